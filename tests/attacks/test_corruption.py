"""A part of the sweep of `tests/support/corruption.py`, whose command tries as many as it is told."""

import corruption
import pytest
from fake_engine import labels

from stage_rt.errors import MaskError
from stage_rt.images.masks import read_mask


@pytest.mark.slow
def test_nothing_corrupted_is_believed_or_ends_in_a_traceback(tmp_path):
    outcomes, faults = corruption.sweep(corruption.subjects(tmp_path), 500, seed=1)
    assert faults == []
    for name in ("engine", "graphs", "model"):
        assert outcomes[name, corruption.REFUSED] > 80


def test_no_flipped_bit_of_a_png_gives_another_label(tmp_path):
    path = labels(tmp_path, 4)[3]
    sound, label = path.read_bytes(), read_mask(path).label
    refused = 0
    for bit in range(8 * len(sound)):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert (read_mask(path).label == label).all()
        except MaskError:
            refused += 1
    assert refused > 4 * len(sound)
