"""Masks from disk, and the rule by which grey values become a label.

1. With ``--mask-class N`` the pixels of value N are labelled, of a file with a palette those of number N in it, which
   its tools call the class; with ``--mask-threshold S`` those from S of white on. The other rules see grey values.
2. Values up to 31 are class numbers, as VisA's are: whatever is not 0 is a defect.
3. A mask of two values is labelled where it has the brighter one. Values within a tenth of its brightest, or of
   black, count as that, as JPEG leaves them. Class numbers beside one bright value, which often says "ignore", are
   not: they are flat, or lie where no block of a JPEG has anything of the label. Nor is black needed: of two class
   numbers, or of two larger values, the brighter one is labelled.
4. Up to eight other values, or such numbers, are classes that nobody has chosen one of: refused.
5. Anything else is shaded: labelled where it is at least half as bright as its brightest pixel, and told of. If that
   is more than a fifth of it, and so is what lies between black and white, it is taken for a photograph: refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stage_rt.errors import MaskError
from stage_rt.images.inputs import Values, fit_mask, grey_of, read_grey, read_image

ALIKE = 0.1
"""Share of a mask's brightest value within which values are the same."""
HIGHEST_CLASS = 31
"""Largest value that is taken for a class number."""
MOST_CLASSES = 8
"""Values other than black of a mask that is taken for one of classes."""
BLOCK = 8
"""Side of JPEG's blocks in pixels: beyond those that an edge lies in it leaves no noise."""
LARGE = 0.2
"""Share of a mask that is in shades, and that would be labelled, from which on it is no label with soft edges but a
photograph."""
STRAY = 0.01
"""Share of the label that pixels of class numbers may have and pass for a slip of the pen."""


@dataclass(frozen=True)
class Reading:
    """What the user said of a mask's values: the one that is labelled, or the share of white from which on."""

    value: int | None = None
    threshold: float | None = None


AS_IT_IS = Reading()


class Mask(NamedTuple):
    """A label bool ``[H, W]``, and whether it was cut out of shades (rule 5)."""

    label: NDArray[np.bool_]
    shaded: bool


def read_mask(path: Path, reading: Reading = AS_IT_IS, digest: str | None = None) -> Mask:
    """A mask, upright.

    Raises:
        MaskError: the file cannot be read as an image or has not the sha256 ``digest`` that is asked for, no pixel is
            labelled, it shows classes of which none was chosen, or it looks like a photograph.
    """
    return _label(read_grey(path, digest), path, reading)


def labelled(photo: Path, mask: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A photograph uint8 ``[H, W, 3]`` and its label bool ``[H, W]``.

    Raises:
        ImageError, MaskError: one of the files is unusable, or they do not belong together.
    """
    pixels = read_image(photo)
    return pixels, fit_mask(read_mask(mask).label, (pixels.shape[1], pixels.shape[0]), mask)


def mask_of(content: bytes, name: Path) -> Mask:
    """`read_mask` of what a file would hold; ``name`` is what errors call it and is never opened.

    Raises:
        MaskError: as `read_mask`.
    """
    return _label(grey_of(content, name), name, AS_IT_IS)


def _label(values: Values, path: Path, reading: Reading) -> Mask:
    grey = values.grey.astype(np.int32)
    classes = grey if values.indices is None else values.indices
    if reading.value is not None:
        return Mask(
            _some(classes == reading.value, path, f"the value {reading.value}", "--mask-class"), shaded=False
        )
    if reading.threshold is not None:
        least = reading.threshold * values.white
        wanted = f"{reading.threshold:g} of white"
        return Mask(_some((grey >= least) & (grey > 0), path, wanted, "--mask-threshold"), shaded=False)
    shown: NDArray[np.int32] = np.unique(grey[grey > 0])
    if not len(shown):
        raise MaskError(f"`{path}` is all black", "paint the defect white or remove the mask")
    brightest = int(shown[-1])
    if grey.all() and _two_apart(shown):
        return Mask(grey == brightest, shaded=False)
    if brightest <= HIGHEST_CLASS:
        return Mask(grey > 0, shaded=False)
    two_valued = bool(((shown <= ALIKE * brightest) | (shown >= (1 - ALIKE) * brightest)).all())
    several = _numbers_beside(grey, shown) if two_valued else len(shown) <= MOST_CLASSES
    if several:
        raise MaskError(
            f"`{path}` shows several classes ({', '.join(map(str, np.unique(classes[grey > 0])))})",
            "save one alone, or choose with `--mask-class N` or `--mask-threshold 0.5` of `stage-rt synth`",
        )
    label = 2 * grey >= brightest
    between = (grey > ALIKE * brightest) & (grey < (1 - ALIKE) * brightest)
    if label.mean() > LARGE and between.mean() > LARGE:
        raise MaskError(
            f"`{path}` is in shades of grey and would label {label.mean():.0%} of the picture, as a photograph does",
            "give a mask that is white on the defect and black elsewhere, or say from where on with "
            "`--mask-threshold 0.5` of `stage-rt synth`",
        )
    return Mask(label, shaded=not two_valued)


def _two_apart(shown: NDArray[np.int32]) -> bool:
    """Whether the values of a mask are two that neither JPEG nor a note of "ignore" makes of one."""
    if len(shown) != 2:
        return False
    darker, brighter = shown.tolist()
    if brighter <= HIGHEST_CLASS:
        return True
    return bool(HIGHEST_CLASS < darker < (1 - ALIKE) * brighter)


def _numbers_beside(grey: NDArray[np.int32], shown: NDArray[np.int32]) -> bool:
    """Whether a mask ``[H, W]`` of two values ``shown`` has class numbers in what is as good as black."""
    *numbers, brightest = shown.tolist()
    if not 0 < len(numbers) <= MOST_CLASSES or numbers[-1] > HIGHEST_CLASS:
        return False
    label = grey == brightest
    flat = ndimage.maximum_filter(grey, 3) == ndimage.minimum_filter(grey, 3)
    near = ndimage.maximum_filter(label, 2 * BLOCK - 1)
    drawn = (grey > 0) & ~label & (flat | ~near)
    return bool(drawn.sum() > STRAY * label.sum())


def _some(label: NDArray[np.bool_], path: Path, wanted: str, option: str) -> NDArray[np.bool_]:
    if not label.any():
        raise MaskError(f"`{path}` has no pixel of {wanted}", f"give another `{option}` or remove the mask")
    return label
