"""Where photographs and masks lie in the public data sets: MVTec AD, BTAD, VisA, and plain folders.

====== ============================= ============================== ===================================
layout good photographs              defective photographs          masks
====== ============================= ============================== ===================================
MVTec  ``train/good``                ``test/<type>``                ``ground_truth/<type>``
BTAD   ``train/ok``                  ``test/ko``                    ``ground_truth/ko``
VisA   ``Data/Images/Normal``        ``Data/Images/Anomaly``        ``Data/Masks/Anomaly``
plain  ``good``                      ``images[/<type>]``            ``masks[/<type>]``
====== ============================= ============================== ===================================

A mask has the stem of its photograph, with or without ``_mask`` after it. Files are ordered as a person
counts (``2.png`` before ``10.png``); hidden files and files of other formats are passed over.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from stage_rt.errors import DatasetError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
UNNAMED_TYPE = "damaged"
"""The defect type of a plain folder without subfolders; the authors' name for an object with one type."""

_SHOWN = 3
"""Names of what was found instead of images that are told."""
_GOOD = ("good", "ok", "normal")
_LAYOUTS = (
    (("train/good", "train/ok"), "test", "ground_truth"),
    (("Data/Images/Normal",), "Data/Images", "Data/Masks"),
    (("good",), "images", "masks"),
)


@dataclass(frozen=True)
class Dataset:
    """One object in its folder: its good photographs and, for every defect type, its (photograph, mask) files.

    ``tested`` are good photographs beside the defective ones, which a layout keeps for tests.
    """

    name: str
    folder: Path
    normals: list[Path]
    defects: dict[str, list[tuple[Path, Path]]]
    tested: list[Path]


def normals(folder: Path) -> list[Path]:
    """The photographs of good parts in ``folder``, in natural order.

    Raises:
        DatasetError: the folder is missing or holds no images.
    """
    return _images_or_error(folder, "train/good")


def masks(folder: Path, kind: str | None = None) -> list[Path]:
    """The masks in ``folder``, in natural order; those of the defect type ``kind`` are told of if they lie deeper.

    Raises:
        DatasetError: the folder is missing or holds no images.
    """
    return _images_or_error(folder, *((kind, f"ground_truth/{kind}") if kind else ()))


def masks_of_types(folder: Path, types: Sequence[str]) -> dict[str, list[Path]]:
    """The masks in those folders of ``folder`` that are called after a defect type, by that.

    Raises:
        DatasetError: the folder is missing or has no folder of any of the ``types``, or one that holds no images.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"`{folder}` is not a folder", "give one that holds a folder of masks for each type"
        )
    found = _named(folder, types)
    if not found:
        likely = [place for place in (folder.parent, folder / "ground_truth") if _named(place, types)]
        raise DatasetError(
            f"`{folder}` holds no folder that is called after a type of defect ({', '.join(types)})",
            f"did you mean {_either(likely)}"
            if likely
            else f"put its masks into one, as `{folder / types[0]}`",
        )
    return {kind: masks(place) for kind, place in found.items()}


def _named(folder: Path, types: Sequence[str]) -> dict[str, Path]:
    return {kind: place for kind in types if (place := folder / kind).is_dir()}


def datasets(root: Path) -> list[Dataset]:
    """The object that ``root`` is, or the objects in it.

    Raises:
        DatasetError: the folder is missing or in no known layout, a defective photograph has no mask, two or that
            of another, or two kinds of them would be one type.
    """
    if not root.is_dir():
        raise DatasetError(f"`{root}` is not a folder: give the folder of a data set")
    whole = _dataset(root)
    if whole is not None:
        return [whole]
    found = [dataset for folder in _folders(root) if (dataset := _dataset(folder)) is not None]
    if not found:
        raise DatasetError(
            f"`{root}` is in no known layout: arrange it as "
            "`train/good`, `test/<type>` and `ground_truth/<type>`"
        )
    return found


def provenance_name(dataset: str, kind: str, photo: Path) -> str:
    """How a model's provenance names a photograph of a type of defect, or one that stands among the good ones."""
    return as_text(f"{dataset}/{kind}/{photo.name}")


def as_text(name: str) -> str:
    """The name of a file, which need not be text on the disk and must be in JSON: another one for each."""
    return name.encode(errors="backslashreplace").decode()


def _dataset(root: Path) -> Dataset | None:
    for good, images, labels in _LAYOUTS:
        folders = [root / folder for folder in good if (root / folder).is_dir()]
        if folders or ((root / images).is_dir() and (root / labels).is_dir()):
            return Dataset(
                name=root.resolve().name,
                folder=root,
                normals=[path for folder in folders for path in _images(folder)],
                defects=_defects(root / images, root / labels),
                tested=[
                    path
                    for folder in (_folders(root / images) if (root / images).is_dir() else [])
                    if folder.name.lower() in _GOOD and folder not in folders
                    for path in _images(folder)
                ],
            )
    return None


def _defects(images: Path, labels: Path) -> dict[str, list[tuple[Path, Path]]]:
    if not images.is_dir():
        return {}
    found = {}
    for folder in _folders(images):
        if folder.name.lower() not in _GOOD and (photographs := _images(folder)):
            found[folder.name] = _with_masks(photographs, labels / folder.name)
    if photographs := _images(images):
        if UNNAMED_TYPE in found:
            raise DatasetError(
                f"`{images}` holds photographs beside the folder `{UNNAMED_TYPE}`, which is their type",
                "move them and their masks into a folder of a type",
            )
        found[UNNAMED_TYPE] = _with_masks(photographs, labels)
    return found


def _with_masks(photographs: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    by_stem: dict[str, list[Path]] = {}
    for path in _images(folder) if folder.is_dir() else []:
        by_stem.setdefault(path.stem, []).append(path)
    pairs: dict[Path, Path] = {}
    for photograph in photographs:
        found = by_stem.get(f"{photograph.stem}_mask") or by_stem.get(photograph.stem)
        if found is None:
            raise DatasetError(
                f"`{photograph}` has no mask: add `{folder / photograph.stem}_mask.png` or remove it"
            )
        mask, *others = found
        if others:
            raise DatasetError(
                f"`{mask}` and `{others[0]}` would both be the mask of `{photograph}`",
                "remove the one that does not belong to it",
            )
        if mask in pairs:
            raise DatasetError(
                f"`{pairs[mask]}` and `{photograph}` would have the same mask, `{mask}`",
                "remove the one that it does not belong to",
            )
        pairs[mask] = photograph
    return [(photograph, mask) for mask, photograph in pairs.items()]


def _images_or_error(folder: Path, *likely: str) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"`{folder}` is not a folder: give a folder of PNG, JPEG, BMP or TIFF files")
    found = _images(folder)
    if not found:
        raise DatasetError(
            f"`{folder}` holds no PNG, JPEG, BMP or TIFF files", _way_to_images(folder, likely)
        )
    return found


def _way_to_images(folder: Path, likely: Sequence[str]) -> str:
    """Where images are below ``folder``, in the folder that is ``likely`` if they are there, or why it has none."""
    named = [inside for name in likely if (inside := folder / name).is_dir() and _images(inside)]
    if nearby := named[:1] or [inside for inside in _folders(folder) if _images(inside)]:
        return f"did you mean {_either(nearby)}"
    others = dict.fromkeys(path.suffix for path in _visible(folder) if path.suffix and path.is_file())
    if others:
        return f"convert pictures that are {_either(others)} to one of those"
    return "put the files directly into it"


def _either(found: Iterable[object]) -> str:
    return " or ".join(f"`{one}`" for one in islice(found, _SHOWN))


def _images(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.name)
    # Digits of other scripts are decimal too, but stand where letters do.
    numbered = [int(part) if part.isascii() and part.isdecimal() else part.casefold() for part in parts]
    return numbered, path.name
