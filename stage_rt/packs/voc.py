"""PASCAL VOC: ``JPEGImages``, ``SegmentationClass``, ``Annotations`` (boxes) and ``ImageSets``.

The images are PNG in spite of their folder's name: JPEG would change every pixel.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from stage_rt.errors import printable
from stage_rt.images.inputs import header_of
from stage_rt.packs.outlines import parts
from stage_rt.packs.palette import BACKGROUND, classes_png
from stage_rt.packs.picture import SIDES, File, Format, Picture

_SETS = ("Segmentation", "Main")


class VOC(Format):
    """``labels.txt`` names the class of every number in the masks."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        super().__init__(folder, classes)
        (folder / "labels.txt").write_text("\n".join([BACKGROUND, *classes]) + "\n", encoding="utf-8")
        for kind in _SETS:
            (folder / "ImageSets" / kind).mkdir(parents=True)
            for side in SIDES:
                (folder / "ImageSets" / kind / f"{side}.txt").touch()

    def add(self, picture: Picture) -> str:
        """Write one picture, its mask and its boxes; the mask is all 0 where the part is good."""
        place = f"JPEGImages/{picture.name}.png"
        picture.image.put(self.folder / place)
        mask = classes_png(picture.label, self.number(picture.kind), coloured=True)
        mask.put(self.folder / "SegmentationClass" / f"{picture.name}.png")
        boxes = File(ElementTree.tostring(_annotation(picture), encoding="utf-8"))
        boxes.put(self.folder / "Annotations" / f"{picture.name}.xml")
        for kind in _SETS:
            with (self.folder / "ImageSets" / kind / f"{picture.side}.txt").open("a") as names:
                names.write(f"{picture.name}\n")
        return place


def _annotation(picture: Picture) -> ElementTree.Element:
    width, height = picture.size
    root = ElementTree.Element("annotation")
    _fill(root, {"folder": "JPEGImages", "filename": f"{picture.name}.png", "segmented": 1})
    depth = 1 if header_of(picture.image.content, Path(picture.name)).grey else 3
    _fill(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": depth})
    if picture.kind is not None:
        for part in parts(picture.label):
            left, top, width, height = part.box
            found = ElementTree.SubElement(root, "object")
            _fill(
                found,
                {"name": printable(picture.kind), "pose": "Unspecified", "truncated": 0, "difficult": 0},
            )
            # Of the first and the last pixel, counted from 1.
            box = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
            _fill(ElementTree.SubElement(found, "bndbox"), box)
    ElementTree.indent(root)
    return root


def _fill(element: ElementTree.Element, texts: Mapping[str, str | int]) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)
