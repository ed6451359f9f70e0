"""Philox words: the published known answers, and the library against the definition."""

import numpy as np
import pytest

from stage_rt import kernels
from stage_rt.errors import InputError
from stage_rt.kernels import reference

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, output words.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_definition_gives_the_known_answers(counter, key, answer):
    seed = np.uint64([key[0] + (key[1] << 32)])
    words = reference.philox4x32([np.uint64([word]) for word in counter], seed)
    assert words.tolist() == [list(answer)]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_library_gives_the_known_answers(counter, key, answer):
    first_block, step, draw, sample = counter
    seed, sample, words = np.uint64([key[0] + (key[1] << 32)]), np.uint32([sample]), np.empty(4, np.uint32)
    kernels.library().functions.stage_words(
        seed.ctypes.data, sample.ctypes.data, 1, step, draw, first_block, 1, words.ctypes.data
    )
    assert words.tolist() == list(answer)


@pytest.mark.parametrize("blocks", [1, 3, 16, 63, 64, 65, 257])
def test_words_are_the_same_bits(blocks):
    seeds = np.array([0, 1, 2**32, 2**64 - 1], np.uint64)
    samples = np.array([0, 5, 2**31, 2**32 - 1], np.uint32)
    for step, draw in ((0, 0), (999, 3)):
        made = kernels.philox_words(seeds, samples, step, draw, blocks)
        np.testing.assert_array_equal(made, reference.philox_words(seeds, samples, step, draw, blocks))


def test_every_counter_and_key_word_changes_the_words():
    def words(seed=3, sample=4, step=5, draw=1):
        return kernels.philox_words(np.uint64([seed]), np.uint32([sample]), step, draw, 2).tobytes()

    others = [words(seed=4), words(seed=3 + 2**32), words(sample=5), words(step=6), words(draw=2)]
    assert len({words(), *others}) == 6


def test_streams_of_another_dtype_are_refused():
    with pytest.raises(InputError, match="`seeds` must be a C-contiguous uint64 array"):
        kernels.philox_words(np.array([1], np.int64), np.zeros(1, np.uint32), 0, 0, 1)
    with pytest.raises(InputError, match="`samples` must be a C-contiguous uint32 array of shape"):
        kernels.philox_words(np.array([1], np.uint64), np.zeros(2, np.uint32), 0, 0, 1)
