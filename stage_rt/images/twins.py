"""Photographs of the same defect: one part photographed again, lit or cut otherwise.

Of magnetic tiles 88 photographs show 17 blowholes. Whoever learns from some of them and is tested on the others is
asked what he has been told.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage, sparse

from stage_rt.images.at_once import at_once
from stage_rt.progress import Progress, portion, silent

SIDE = 128
"""Photographs and labels are compared at so many pixels: squeezed to a square, or the longest side of all of them."""
SHIFT = 12
"""Pixels of those that two photographs of a part may lie apart."""
LABELS_ALIKE = 0.45
"""Least IoU of two labels, a little wider than drawn and moved onto one another."""
SURFACES_ALIKE = 0.2
"""Least correlation of two surfaces' fine structure.

Of pairs of magnetic tiles whose labels are alike it is above in 98 of 100 for blowholes, 97 for cracks and 27 for
`uneven`, whose labels cover most of a tile; of other pairs in 6."""
UNLIKELY = 0.93
"""Surfaces must also be more alike than so many of those whose labels do not touch: bricks all look alike."""
AT_ONE_SCALE = 0.5
"""Least correlation of two surfaces at one scale, wherever they lie on one another, if their labels agree there.

Of magnetic tiles cut otherwise it is 0.57 to 0.86, of those cut alike mostly 0.65 and more, of others up to 0.46."""
SAME_PART = 0.62
"""Least correlation at one scale of a photograph and one with a label, of which no label says that they agree.

Of 582 good photographs of magnetic tiles those that show the tile of one with a defect have 0.66 to 0.83, others up
to 0.58."""
OVERLAP = 0.45
"""Share of the smaller of two photographs that must lie on the other at one scale."""
UNUSUAL = 6
"""How far above the middle of all pairs such a correlation must be, in distances from the middle to the upper
quartile, and no less than half of the way to 1: photographs of parts that lie alike are alike, whichever they are."""
COVERING = 0.5
"""Share of a photograph from which on a label leaves too little to compare."""
_DRAWN = 0.25


def defects(
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]], progress: Progress = silent
) -> NDArray[np.intp]:
    """Which defect each labelled photograph shows, as numbers ``[n]``: the same for photographs of the same.

    Args:
        pairs: photographs uint8 ``[H, W, 3]`` and labels bool ``[H, W]``, of one type of defect.
        progress: told the share that is compared, once all are read.
    """
    structures, labels, looks = [], [], []
    for photo, label in pairs:
        labels.append(_wider(label))
        structures.append(_structure(photo, labels[-1]))
        looks.append(_look(photo, label))
    squeezed = _correlations(structures, portion(progress, 0.0, 0.3))
    scaled = _scaled(looks, max(look.longest for look in looks)) if looks else []
    natural, apart = np.zeros_like(squeezed), np.zeros_like(squeezed, dtype=np.bool_)
    shifts = np.zeros((*squeezed.shape, 2), np.int16)

    def compared(a: int) -> list[tuple[float, tuple[int, int]]]:
        return [_best(scaled[a], scaled[b]) for b in range(a)]

    for a, row in enumerate(at_once(compared, range(len(labels)), portion(progress, 0.3, 1.0))):
        for b, best in enumerate(row):
            natural[a, b], shifts[a, b] = best
            apart[a, b] = not (labels[a] & labels[b]).any()
    same = np.zeros_like(apart)
    for a, b in _above(squeezed, SURFACES_ALIKE, apart):
        same[a, b] = _overlap(labels[a], labels[b]) >= LABELS_ALIKE
    for a, b in _above(natural, AT_ONE_SCALE, apart):
        same[a, b] |= _agreement(scaled[a].label, scaled[b].label, shifts[a, b].tolist()) >= LABELS_ALIKE
    return _joined(same)


def showing(
    photographs: Iterable[NDArray[np.uint8]],
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    progress: Progress = silent,
) -> NDArray[np.bool_]:
    """Which photographs show a part of which there is a photograph with a label, bool ``[n, m]``.

    Such a photograph is not one of a good part, whoever called it so: the defect is in it, or just beside it. Found
    are those that are lit nearly alike.

    Args:
        photographs: n photographs uint8 ``[H, W, 3]``.
        pairs: m photographs uint8 ``[H, W, 3]`` and labels bool ``[H, W]``.
        progress: told the share that is compared, once all are read.
    """
    known = [_look(photo, label) for photo, label in pairs]
    looks = [_look(photo) for photo in photographs]
    if not known or not looks:
        return np.zeros((len(looks), len(known)), np.bool_)
    longest = max(look.longest for look in (*known, *looks))
    labelled = _scaled(known, longest)

    def compared(row: int) -> list[float]:
        # One spectrum at a time: those of thousands would take gigabytes.
        one = _at(looks[row], longest)
        return [_best(one, other)[0] for other in labelled]

    found = np.array(at_once(compared, range(len(looks)), progress))
    return np.asarray(found >= _unusual(found))


def parts(photographs: Iterable[NDArray[np.uint8]], progress: Progress = silent) -> NDArray[np.intp]:
    """Which part each photograph uint8 ``[H, W, 3]`` shows, as numbers ``[n]``, as far as `showing` tells.

    ``progress`` is told the share that is compared, once all are read.
    """
    looks = [_look(photo) for photo in photographs]
    scaled = _scaled(looks, max((look.longest for look in looks), default=1))
    found = _halved(lambda a, b: _best(scaled[a], scaled[b])[0], len(looks), progress)
    others = found[np.tril_indices(len(looks), -1)]
    same = np.tril(found >= _unusual(others), -1) if others.size else found > 0
    return _joined(same)


def _halved(correlation: Callable[[int, int], float], count: int, progress: Progress) -> NDArray[np.float64]:
    """The correlation of every two photographs ``[n, n]``, of which only the lower half is filled."""
    found = np.zeros((count, count))
    rows = at_once(lambda a: [correlation(a, b) for b in range(a)], range(count), progress)
    for a, row in enumerate(rows):
        found[a, :a] = row
    return found


def _joined(same: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Numbers of photographs ``[n]``, the same for what is the same ``[n, n]``, if only through others."""
    numbers: NDArray[np.intp] = sparse.csgraph.connected_components(same, directed=False)[1].astype(np.intp)
    return numbers


def _unusual(found: NDArray[np.float64]) -> float:
    """The least of such correlations from which on two photographs show one part."""
    middle, upper = np.quantile(found, (0.5, 0.75))
    return float(max(SAME_PART, middle + UNUSUAL * (upper - middle), (1 + middle) / 2))


def _above(
    correlations: NDArray[np.float64], least: float, apart: NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """The pairs whose correlation is high, and than nearly all ``apart``, whose labels do not touch."""
    chance = float(np.quantile(correlations[apart], UNLIKELY)) if apart.any() else 0.0
    rows, columns = np.nonzero(np.tril(correlations >= max(least, chance), -1))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


class _Look(NamedTuple):
    """A photograph in shades, small, with its label, if it has one; ``longest`` is its longest side in pixels of its
    own."""

    shades: Image.Image
    label: Image.Image | None
    longest: int


class _Scaled(NamedTuple):
    """A surface at the scale of all: its spectrum, its label bool ``[h, w]``."""

    spectrum: NDArray[np.complex64]
    label: NDArray[np.bool_]


def _look(photo: NDArray[np.uint8], label: NDArray[np.bool_] | None = None) -> _Look:
    longest = max(photo.shape[:2])
    share = min(1.0, 2 * SIDE / longest)
    height, width = (max(round(side * share), 1) for side in photo.shape[:2])
    size, drawn = (width, height), None
    if label is not None:
        drawn = Image.fromarray(label.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return _Look(Image.fromarray(photo).convert("L").resize(size, Image.Resampling.BICUBIC), drawn, longest)


def _scaled(looks: list[_Look], longest: int) -> list[_Scaled]:
    return [_at(look, longest) for look in looks]


def _at(look: _Look, longest: int) -> _Scaled:
    """A surface, so that ``longest`` pixels of its photograph are `SIDE`."""
    share = SIDE / longest * look.longest / max(look.shades.size)
    width, height = (max(round(side * share), 1) for side in look.shades.size)
    size = (width, height)
    label = _dilated(look.label, size) if look.label else np.zeros((height, width), np.bool_)
    fine = _fine(look.shades, size, 2, 6)
    # Grinding and the borders of a frame run alike in photographs of any part.
    fine -= fine.mean(0, keepdims=True)
    fine -= fine.mean(1, keepdims=True)
    if label.mean() < COVERING:
        fine[label] = 0
    strength = float(np.sqrt((fine**2).mean()))
    spectrum = fft.rfft2((fine / strength if strength else fine).astype(np.float32), s=(2 * SIDE, 2 * SIDE))
    return _Scaled(spectrum, label)


def _best(one: _Scaled, other: _Scaled) -> tuple[float, tuple[int, int]]:
    """The highest correlation of two surfaces, and how far the other is moved down and to the right for it."""
    found = fft.irfft2(one.spectrum * other.spectrum.conj(), s=(2 * SIDE, 2 * SIDE), overwrite_x=True)
    found *= _weights(one.label.shape, other.label.shape)
    place = np.unravel_index(found.argmax(), found.shape)
    y, x = (int(at) if at < SIDE else int(at) - 2 * SIDE for at in place)
    return float(found[place]), (y, x)


@lru_cache(maxsize=64)
def _weights(one: tuple[int, ...], other: tuple[int, ...]) -> NDArray[np.float32]:
    """One over the pixels that two pictures share, by how the second is moved, or 0 where those are too few."""
    shared = np.outer(*(_shared(*sides) for sides in zip(one, other, strict=True)))
    enough = shared >= OVERLAP * min(math.prod(one), math.prod(other))
    return np.divide(1, shared, out=np.zeros(shared.shape, np.float32), where=enough, casting="same_kind")


def _shared(one: int, other: int) -> NDArray[np.intp]:
    """Pixels that two lines share where the other is moved by 0, 1 .. SIDE - 1, -SIDE .. -1 ``[2 SIDE]``."""
    moved = np.fft.fftfreq(2 * SIDE, 1 / (2 * SIDE)).astype(np.intp)
    shared: NDArray[np.intp] = np.minimum(one, other + moved) - np.maximum(0, moved)
    return shared.clip(0)


def _agreement(one: NDArray[np.bool_], other: NDArray[np.bool_], moved: Sequence[int]) -> float:
    """The IoU of two labels where the other is moved down and to the right, in what both photographs show."""
    down, right = moved
    height, width = (
        min(a, b + shift) - max(0, shift) for a, b, shift in zip(one.shape, other.shape, moved, strict=True)
    )
    first = one[max(0, down) :, max(0, right) :][:height, :width]
    second = other[max(0, -down) :, max(0, -right) :][:height, :width]
    return _iou(first, second)


def _correlations(structures: list[NDArray[np.float64]], progress: Progress) -> NDArray[np.float64]:
    """The highest correlation of every two surfaces ``[n, n]``, of which only the lower half is filled."""
    spectra = [np.fft.rfft2(structure) for structure in structures]

    def highest(a: int, b: int) -> float:
        correlation = np.fft.irfft2(spectra[a] * spectra[b].conj(), s=(SIDE, SIDE))
        near = np.roll(correlation, (SHIFT, SHIFT), (0, 1))[: 2 * SHIFT + 1, : 2 * SHIFT + 1]
        return float(near.max())

    return _halved(highest, len(structures), progress)


def _structure(photo: NDArray[np.uint8], label: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fine structure of a surface ``[S, S]``, of the same strength everywhere however it is lit; of length 1.

    Defects of a kind look alike on any part, so theirs is left out, unless there is hardly anything else.
    """
    fine = _fine(Image.fromarray(photo).convert("L"), (SIDE, SIDE), 6, 10)
    fine -= fine.mean()
    if label.mean() < COVERING:
        fine[label] = 0
    length = float(np.linalg.norm(fine))
    return fine / length if length else fine


def _wider(label: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return _dilated(Image.fromarray(label.astype(np.float32)), (SIDE, SIDE))


def _dilated(label: Image.Image, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A label at another (width, height), a little wider than drawn.

    One that is too thin for that is wherever there is something of it: with nothing labelled two photographs of it
    were two defects.
    """
    share = np.asarray(label.resize(size, Image.Resampling.BOX))
    drawn = share >= _DRAWN
    return np.asarray(ndimage.binary_dilation(drawn if drawn.any() else share > 0, iterations=2))


def _fine(shades: Image.Image, size: tuple[int, int], coarse: float, around: float) -> NDArray[np.float64]:
    """What of a surface is finer than ``coarse`` pixels at a (width, height), evened out over those ``around``."""
    levels = np.asarray(shades.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    fine = levels - ndimage.gaussian_filter(levels, coarse)
    return np.asarray(fine / (np.sqrt(ndimage.gaussian_filter(fine**2, around)) + 2))


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The IoU of two labels where they lie on one another best, which need not be where the surfaces do."""
    steps = range(-SHIFT, SHIFT + 1, 2)
    moved = (np.roll(b, (down, right), (0, 1)) for down in steps for right in steps)
    return max(_iou(a, one) for one in moved)


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))
