"""The sampler's noise source."""

import numpy as np
import pytest

from stage_rt import kernels
from stage_rt.errors import InputError
from stage_rt.noise import Draw, NoiseSource, PhiloxNoise

SHAPE = (3, 4, 5, 6)


def draws(noise, shape=SHAPE):
    return {
        "initial": noise.initial(shape),
        "background": noise.background(7, shape),
        "mask": noise.mask(7, (shape[0], 1, *shape[2:])),
        "posterior": noise.posterior(7, shape),
        "encode": noise.encode(shape),
    }


def test_it_is_a_noise_source():
    source: NoiseSource = PhiloxNoise([1])
    assert source.initial((1, 2, 2, 2)).dtype == np.float32


def test_each_method_is_its_draw_of_the_kernels():
    noise = PhiloxNoise([1, 2, 2**64 - 1], samples=[0, 9, 2**32 - 1])
    made = draws(noise)
    expected = {
        "initial": (0, Draw.INITIAL),
        "background": (7, Draw.BACKGROUND),
        "mask": (7, Draw.MASK),
        "posterior": (7, Draw.POSTERIOR),
        "encode": (0, Draw.ENCODE),
    }
    for name, (step, draw) in expected.items():
        numbers = kernels.normal(noise.seeds, noise.samples, step, draw, made[name].shape[1:])
        np.testing.assert_array_equal(made[name], numbers)


def test_no_two_draws_are_alike():
    made = {name: array[:, :1].tobytes() for name, array in draws(PhiloxNoise([1, 2, 3])).items()}
    made["next step"] = PhiloxNoise([1, 2, 3]).posterior(8, SHAPE)[:, :1].tobytes()
    assert len(set(made.values())) == 6


def test_a_sample_has_the_same_noise_in_any_batch():
    whole = draws(PhiloxNoise([11, 22, 33], samples=[1, 2, 3]))
    for row, (seed, sample) in enumerate(((11, 1), (22, 2), (33, 3))):
        alone = draws(PhiloxNoise([seed], samples=[sample]), (1, *SHAPE[1:]))
        for name, array in alone.items():
            np.testing.assert_array_equal(array[0], whole[name][row])


def test_samples_are_streams_under_one_seed_and_default_to_zero():
    noise = PhiloxNoise([5, 5], samples=[0, 1]).initial((2, 4, 4, 4))
    assert not np.array_equal(noise[0], noise[1])
    np.testing.assert_array_equal(PhiloxNoise([5]).initial((1, 4, 4, 4))[0], noise[0])


def test_seeds_may_be_an_array_of_any_integers():
    for seeds in (np.array([3, 4]), np.array([3, 4], np.uint64), (3, 4), range(3, 5)):
        assert PhiloxNoise(seeds).seeds.tolist() == [3, 4]
        assert PhiloxNoise(seeds).seeds.dtype == np.uint64


@pytest.mark.parametrize(
    ("seeds", "samples", "message"),
    [
        ([-1], None, r"`seeds` must lie between 0 and 2\*\*64 - 1, got \[-1\]"),
        ([2**64], None, "`seeds` must lie between"),
        ([1], [2**32], r"`samples` must lie between 0 and 2\*\*32 - 1"),
        ([1.0], None, "`seeds` must be a sequence of integers"),
        (7, None, "`seeds` must be a sequence of integers"),
        ([1, 2], [0], "`samples` has 1 entries for 2 `seeds`"),
    ],
)
def test_wrong_seeds_are_refused(seeds, samples, message):
    with pytest.raises(InputError, match=message):
        PhiloxNoise(seeds, samples)


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), ()])
def test_a_batch_of_another_size_is_refused(shape):
    with pytest.raises(InputError, match="needs one seed a sample, got 2 seeds"):
        PhiloxNoise([1, 2]).initial(shape)
