import numpy as np
import pytest

from stage_rt.quality.directions import coherence, turnable
from stage_rt.quality.pictures import Pictures


def lines(*degrees: float, length: int = 12) -> Pictures:
    labels = np.zeros((len(degrees), 40, 40), np.uint8)
    for label, angle in zip(labels, np.deg2rad(degrees), strict=True):
        for step in np.linspace(-length, length, 200):
            label[round(20 + step * np.sin(angle)), round(20 + step * np.cos(angle))] = 1
    return Pictures(np.zeros((*labels.shape, 3), np.uint8), labels, [str(n) for n in range(len(labels))])


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (lines(0, 0, 0), 1),
        (lines(90, 90), 1),
        (lines(179, 1, 181), 1),
        (lines(0, 90), 0),
        (lines(0, 60, 120), 0),
        (lines(0, 0, 90), 1 / 3),
        (lines(0, 45), 0.5**0.5),
    ],
    ids=["level", "upright", "about level", "a cross", "a star", "two and one", "half a turn"],
)
def test_coherence_is_that_of_axes(pictures: Pictures, expected: float) -> None:
    assert coherence(pictures) == pytest.approx(expected, abs=0.02)
    assert turnable(pictures) == (expected < 0.5)


def test_round_defects_say_nothing_beside_slender_ones_and_nothing_alone() -> None:
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[:, 10:20, 10:20] = 1
    labels[0, 20, 15] = labels[1, 15, 20] = 1
    blobs = Pictures(np.zeros((2, 40, 40, 3), np.uint8), labels, ["0", "1"])
    level = lines(0, 0)
    both = Pictures(
        np.concatenate([blobs.images, level.images]),
        np.concatenate([blobs.classes, level.classes]),
        ["n"] * 4,
    )
    assert coherence(both) > 0.9
    square = Pictures(
        blobs.images[:1], np.pad(np.ones((1, 4, 4), np.uint8), ((0, 0), (9, 27), (9, 27))), ["0"]
    )
    assert not turnable(square)
    assert not turnable(Pictures(blobs.images, np.zeros_like(blobs.classes), ["0", "1"]))


def test_two_specks_beside_one_another_are_no_line() -> None:
    labels = np.zeros((1, 40, 40), np.uint8)
    labels[0, 5:7, 5:7] = labels[0, 5:7, 30:32] = 1
    specks = Pictures(np.zeros((1, 40, 40, 3), np.uint8), labels, ["0"])
    alone = lines(90)
    both = Pictures(
        np.concatenate([specks.images, alone.images]), np.concatenate([labels, alone.classes]), ["0", "1"]
    )
    assert coherence(both) == pytest.approx(1)
