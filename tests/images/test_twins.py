"""Photographs of one defect are told from those of another."""

import numpy as np
import pytest
from PIL import Image

from stage_rt.images.twins import defects, showing


def surface(seed: int, shape: tuple[int, int] = (120, 90)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = (
        rng.normal(0, 12, shape) + rng.normal(0, 8, (1, shape[1])) + np.linspace(60, 150, shape[0])[:, None]
    )
    return np.repeat(rough.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def label(rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, int] = (120, 90)) -> np.ndarray:
    drawn = np.zeros(shape, dtype=bool)
    drawn[slice(*rows), slice(*columns)] = True
    return drawn


DENT = label((40, 60), (30, 50))


def lit(photo: np.ndarray, gain: float, noise: int) -> np.ndarray:
    grain = np.random.default_rng(noise).normal(0, 3, photo.shape[:2])[..., None]
    return (photo * gain + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("gain", [0.3, 0.7, 1.0, 1.5])
def test_a_part_lit_otherwise_shows_the_same_defect(gain: float) -> None:
    assert defects([(surface(0), DENT), (lit(surface(0), gain, 1), DENT)]).tolist() == [0, 0]


def test_a_part_cut_out_a_little_otherwise_shows_the_same_defect() -> None:
    whole = surface(0, (130, 100))
    drawn = label((45, 65), (35, 55), (130, 100))
    parts = [
        (whole[y : y + 120, x : x + 90], drawn[y : y + 120, x : x + 90]) for y, x in ((0, 0), (5, 4), (10, 8))
    ]
    assert len(set(defects(parts).tolist())) == 1


def test_a_photograph_of_another_size_shows_the_same_defect() -> None:
    small = np.asarray(Image.fromarray(surface(0)).resize((72, 96)))
    drawn = np.asarray(Image.fromarray(DENT).resize((72, 96)))
    assert defects([(surface(0), DENT), (small, drawn)]).tolist() == [0, 0]


def test_a_photograph_that_shows_more_of_the_part_shows_the_same_defect() -> None:
    whole, drawn = surface(0, (120, 160)), label((70, 90), (90, 110), (120, 160))
    strips = [slice(0, 160), slice(30, 125), slice(60, 160)]
    parts = [(lit(whole[:, columns], 0.8, n), drawn[:, columns]) for n, columns in enumerate(strips)]
    parts.append((surface(5, (120, 95)), label((70, 90), (60, 80), (120, 95))))
    assert defects(parts).tolist() == [0, 0, 0, 1]
    # Squeezed to squares, as they were compared before, neither surfaces nor labels agree.
    beside = [(photo, label((5, 15), (5, 15), photo.shape[:2])) for photo, _ in parts]
    assert len(set(defects([parts[0], *beside[1:]]).tolist())) > 1


def test_good_photographs_of_a_part_with_a_defect_are_found() -> None:
    whole = surface(0, (120, 160))
    good = [surface(n, (120, 100)) for n in range(10, 40)]
    good[7] = lit(whole[:, 20:120], 0.9, 3)
    pairs = [(whole, label((70, 90), (90, 110), (120, 160))), (surface(2), DENT)]
    told: list[float] = []
    assert np.argwhere(showing(good, pairs, told.append)).tolist() == [[7, 0]]
    assert told == [n / 30 for n in range(31)]
    assert showing([], pairs).shape == (0, 2)
    assert showing(good, []).shape == (30, 0)


def test_parts_that_lie_alike_are_not_taken_for_one() -> None:
    outline = surface(99, (100, 100)).astype(float)
    alike = [(0.8 * outline + 0.2 * surface(n, (100, 100))).clip(0, 255).astype(np.uint8) for n in range(12)]
    pairs = [(photo, label((40 + n, 50 + n), (50, 60), (100, 100))) for n, photo in enumerate(alike[:4])]
    assert not showing(alike[4:], pairs).any()


def test_other_parts_and_other_places_are_other_defects() -> None:
    elsewhere = label((80, 100), (60, 80))
    found = defects([(surface(0), DENT), (surface(1), DENT), (lit(surface(0), 0.8, 2), elsewhere)])
    assert len(set(found.tolist())) == 3


def test_how_far_a_comparison_is_rises_with_every_photograph() -> None:
    told: list[float] = []
    defects([(surface(n), DENT) for n in range(5)], told.append)
    assert len(told) >= 10
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_the_first_and_the_last_of_a_series_are_the_same_through_those_between() -> None:
    whole = surface(3, (160, 90))
    series = [(whole[y : y + 120], label((60 - y, 80 - y), (30, 50))) for y in (0, 8, 16, 24)]
    assert len(set(defects(series).tolist())) == 1


def test_plain_photographs_are_told_apart_by_nothing_and_are_no_error() -> None:
    plain = np.full((40, 40, 3), 128, np.uint8)
    drawn = label((4, 9), (4, 9), (40, 40))
    assert defects([(plain, drawn), (plain, drawn)]).shape == (2,)
    assert defects([(plain, drawn)]).tolist() == [0]


@pytest.mark.parametrize("width", [1, 2])
def test_a_scratch_too_thin_to_be_seen_so_small_is_the_same_on_both_photographs(width: int) -> None:
    shape = (1600, 1600)
    drawn, elsewhere = (label((row, row + width), (500, 800), shape) for row in (700, 300))
    found = defects(
        [(broad(1), drawn), (lit(broad(1), 0.85, 2), drawn), (broad(3), elsewhere), (broad(3), drawn)]
    )
    assert found.tolist() == [0, 0, 1, 2]


def broad(seed: int) -> np.ndarray:
    """A surface whose structure is seen at a twelfth of its size."""
    rough = Image.fromarray(surface(seed, (100, 100))[..., 0]).resize((1600, 1600), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(rough)[..., None], 3, axis=2)
