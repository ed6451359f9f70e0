"""Every format through the library it is for, or through supervision, which reads three of them.

Each test finds the pictures of both sides, and of every pair the exact pixels of its label.
"""

import json
from collections import defaultdict
from functools import partial

import numpy as np
import pyarrow.parquet
import pytest
import supervision
import yaml
from fake_engine import opened
from pycocotools.coco import COCO

from stage_rt.images.layouts import datasets
from stage_rt.packs import FORMATS, parquet
from stage_rt.packs.yolo import YOLO

CLASSES = ["crack", "hole"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def counted(found, summary):
    """That ``found`` (side, type, area) are as many pictures of a side and type as the pack says."""
    for side, pictures in summary.pictures.items():
        assert {kind: sum((s, k) == (side, kind) for s, k, _ in found) for kind in pictures} == pictures
    assert len(found) == sum(sum(pictures.values()) for pictures in summary.pictures.values())
    by_kind = defaultdict(list)
    for _, kind, area in found:
        by_kind[kind].append(area)
    assert set(by_kind.pop("good")) == {0}
    return {kind: sorted(each) for kind, each in by_kind.items()}


def test_there_is_a_test_for_every_format():
    assert set(FORMATS) == {
        name.split("_")[1] for name in globals() if name.endswith("_gives_back_every_pixel")
    }


@pytest.fixture(params=["painted", "beside real ones"])
def both(request, packed, areas, data, real_areas):
    """``both[0](format)`` packs, ``both[1]`` are the areas that are to be found."""
    if request.param == "painted":
        return packed, areas
    return partial(packed, real=data), {kind: sorted(each + real_areas[kind]) for kind, each in areas.items()}


def test_mvtec_gives_back_every_pixel(packed, areas):
    folder, summary = packed("mvtec", split=0)
    (dataset,) = datasets(folder)
    found = [("val", "good", 0) for _ in (folder / "test/good").iterdir()]
    for kind, pairs in dataset.defects.items():
        found += [("val", kind, int((np.asarray(opened(mask)) == 255).sum())) for _, mask in pairs]
    assert counted(found, summary) == areas


@pytest.mark.parametrize("file", ["instances", "polygons"])
def test_coco_gives_back_every_pixel(both, file):
    packed, areas = both
    folder, summary = packed("coco")
    found = []
    for side in ("train", "val"):
        coco = COCO(folder / "annotations" / f"{file}_{side}.json")
        assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == CLASSES
        for image in coco.loadImgs(coco.getImgIds()):
            assert opened(folder / side / image["file_name"]).size == (image["width"], image["height"])
            said = coco.loadAnns(coco.getAnnIds(image["id"]))
            masks = [coco.annToMask(each) for each in said]
            assert [int(mask.sum()) for mask in masks] == [each["area"] for each in said]
            for mask, each in zip(masks, said, strict=True):
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert each["bbox"] == box
            kinds = {coco.cats[each["category_id"]]["name"] for each in said} or {"good"}
            found.append((side, *kinds, int(sum(mask.sum() for mask in masks))))
    assert counted(found, summary) == areas


def of_supervision(dataset, side, found):
    assert dataset.classes[-2:] == CLASSES
    for _, _, detections in dataset:
        kinds = {dataset.classes[n] for n in detections.class_id} or {"good"}
        area = 0 if detections.mask is None else int(np.asarray(detections.mask).any(axis=0).sum())
        found.append((side, *kinds, area if len(detections) else 0))


def test_yolo_gives_back_every_pixel(both):
    packed, areas = both
    folder, summary = packed("yolo")
    found = []
    for side in ("train", "val"):
        dataset = supervision.DetectionDataset.from_yolo(
            images_directory_path=str(folder / "images" / side),
            annotations_directory_path=str(folder / "labels" / side),
            data_yaml_path=str(folder / "data.yaml"),
            force_masks=True,
        )
        of_supervision(dataset, side, found)
    assert counted(found, summary) == areas


def test_yolo_lists_types_by_the_names_they_have(tmp_path):
    names = ["hole", "ri\u00df", "\U00020bb7", "\U0001f525 burn", "yes", "0", "a: b", "next\x85line"]
    YOLO(tmp_path, names)
    said = yaml.safe_load((tmp_path / "data.yaml").read_bytes())
    assert said == {"train": "images/train", "val": "images/val", "names": dict(enumerate(names))}


def test_mmseg_gives_back_every_pixel(both):
    """By the rules of its BaseSegDataset: suffixes are exchanged, a value is a class, 255 would be ignored."""
    packed, areas = both
    folder, summary = packed("mmseg")
    metainfo = json.loads((folder / "metainfo.json").read_text())
    assert metainfo["classes"] == ["background", *CLASSES]
    assert metainfo["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    found = []
    for side in ("train", "val"):
        for image in sorted((folder / "img_dir" / side).iterdir()):
            mask = opened(folder / "ann_dir" / side / image.name)
            assert (mask.mode, mask.size) == ("L", opened(image).size)
            values, numbers = np.unique(np.asarray(mask), return_counts=True)
            of = dict(zip(values.tolist(), numbers.tolist(), strict=True))
            (number,) = of.keys() - {0} or {0}
            found.append((side, ["good", *CLASSES][number], of[number] if number else 0))
    assert counted(found, summary) == areas


def test_voc_gives_back_every_pixel(both):
    packed, areas = both
    folder, summary = packed("voc")
    names = (folder / "labels.txt").read_text().split()
    found, boxes = [], 0
    dataset = supervision.DetectionDataset.from_pascal_voc(
        images_directory_path=str(folder / "JPEGImages"),
        annotations_directory_path=str(folder / "Annotations"),
    )
    detected = {path.rpartition("/")[2][:-4]: each for path, _, each in dataset}
    for side in ("train", "val"):
        listed = (folder / "ImageSets/Segmentation" / f"{side}.txt").read_text().split()
        assert listed == (folder / "ImageSets/Main" / f"{side}.txt").read_text().split()
        for name in listed:
            mask = opened(folder / "SegmentationClass" / f"{name}.png")
            assert mask.mode == "P"
            assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            values = np.asarray(mask)
            number = int(values.max())
            found.append((side, names[number] if number else "good", int((values > 0).sum())))
            inside = np.zeros(values.shape, bool)
            for left, top, right, bottom in detected[name].xyxy.astype(int):
                inside[top:bottom, left:right] = True
                boxes += 1
                assert (values[[top, bottom - 1], left:right] > 0).any(axis=1).all()
                assert (values[top:bottom, [left, right - 1]] > 0).any(axis=0).all()
            assert not (values[~inside] > 0).any()
    assert boxes > len(found)
    assert counted(found, summary) == areas


def test_parquet_gives_back_every_pixel(both, tmp_path, monkeypatch):
    packed, areas = both
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 5_000)
    monkeypatch.setattr(parquet, "FILE_BYTES", 10_000)
    folder, summary = packed("parquet")
    found, files = [], set()
    for side in ("train", "val"):
        paths = sorted(folder.glob(f"{side}-*.parquet"))
        assert [path.name for path in paths] == [f"{side}-{n:05d}.parquet" for n in range(len(paths))]
        assert len(paths) > 1
        assert pyarrow.parquet.ParquetFile(paths[0]).num_row_groups > 1
        for row in pyarrow.parquet.read_table(paths).to_pylist():
            for field in ("image", "mask"):
                (tmp_path / row[field]["path"]).write_bytes(row[field]["bytes"])
                assert opened(tmp_path / row[field]["path"]).size == (row["width"], row["height"])
            mask = np.asarray(opened(tmp_path / row["mask"]["path"]))
            assert ["good", *CLASSES][row["class"]] == row["type"]
            if row["type"] != "good" and row["real"] is None:
                assert (row["seed"], row["engine"]) == (7 if row["type"] == "hole" else 8, "0" * 64)
                assert 0 <= row["fill"] <= 1
            files.add(row["image"]["path"])
            found.append((side, row["type"], int((mask == 255).sum())))
    assert len(files) == len(found)
    assert counted(found, summary) == areas
