"""Pairs that other methods' authors published, read from a folder.

AnomalyDiffusion and DFMGAN give ``[<object>/]<type>/image/*`` beside ``mask/*``; anything in a layout that
`stage_rt.images.layouts` knows is read too.
"""

from pathlib import Path

from stage_rt.errors import DatasetError
from stage_rt.images import layouts


def pairs(name: str, folder: Path, subject: str, kind: str) -> list[tuple[Path, Path]]:
    """The (image, mask) files of a type.

    Raises:
        DatasetError: there are none.
    """
    for place in (folder / subject / kind, folder / kind):
        if (place / "image").is_dir() and (place / "mask").is_dir():
            masks = {path.stem.removesuffix("_mask"): path for path in layouts.masks(place / "mask")}
            found = layouts.normals(place / "image")
            if missing := next((path for path in found if path.stem not in masks), None):
                raise DatasetError(
                    f"`{missing}` has no mask in `{place / 'mask'}`: add it or remove the image"
                )
            return [(path, masks[path.stem]) for path in found]
    root = folder / subject if (folder / subject).is_dir() else folder
    for dataset in layouts.datasets(root):
        if kind in dataset.defects:
            return dataset.defects[kind]
    raise DatasetError(
        f"`{folder}` has no pairs of type {kind!r} for source {name!r}: "
        f"put them in `{folder / kind}/image` and `mask`"
    )
