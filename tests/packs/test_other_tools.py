"""Packs in tools that are no dependency of the tests: they are skipped where a tool is not installed."""

import json

import numpy as np
import pytest
from fake_engine import opened

pytestmark = pytest.mark.filterwarnings("ignore")


def test_anomalib_loads_the_mvtec_pack(packed):
    pytest.importorskip("anomalib")
    from anomalib.data.datasets.image.mvtecad import make_mvtec_ad_dataset

    folder, summary = packed("mvtec")
    samples = make_mvtec_ad_dataset(folder)
    for side, split in (("train", "train"), ("val", "test")):
        kinds = samples[samples.split == split].label.value_counts().to_dict()
        assert kinds == summary.pictures[side]
    painted = samples[samples.label_index == 1]
    masks = [int((np.asarray(opened(path)) > 0).sum()) for path in painted.mask_path]
    assert len(masks) == summary.pairs("val")
    assert min(masks) > 0


def test_anomalib_loads_a_run_as_it_is(runs, areas):
    pytest.importorskip("anomalib")
    from anomalib.data.datasets.image.mvtecad import make_mvtec_ad_dataset

    for run in runs:
        samples = make_mvtec_ad_dataset(run)
        assert {"good"} == set(samples[samples.split == "train"].label)
        assert {"good", run.name} == set(samples[samples.split == "test"].label)
        painted = samples[samples.label_index == 1]
        assert (
            sorted(int((np.asarray(opened(path)) > 0).sum()) for path in painted.mask_path) == areas[run.name]
        )


def test_ultralytics_reads_every_label_of_the_yolo_pack(packed, areas):
    pytest.importorskip("ultralytics")
    from ultralytics.data.utils import check_det_dataset, polygons2masks, verify_image_label

    folder, summary = packed("yolo")
    data = check_det_dataset(str(folder / "data.yaml"), autodownload=False)
    assert data["names"] == {0: "crack", 1: "hole"}
    found = {"crack": [], "hole": []}
    for side in ("train", "val"):
        images = sorted((folder / "images" / side).iterdir())
        assert len(images) == sum(summary.pictures[side].values())
        for image in images:
            label = folder / "labels" / side / f"{image.stem}.txt"
            read = verify_image_label((str(image), str(label), "", False, 2, 0, 0, False))
            boxes, size, segments, corrupt = read[1], read[2], read[3], read[8]
            assert (corrupt, len(segments)) == (0, len(boxes))
            if len(boxes):
                pixels = [(segment * (size[1], size[0])).ravel() for segment in segments]
                # One by one, as they differ in length.
                masks = [polygons2masks(size, [each], 1)[0] for each in pixels]
                found[data["names"][int(boxes[0, 0])]].append(int(np.any(masks, axis=0).sum()))
    assert {kind: sorted(each) for kind, each in found.items()} == areas


def test_mmsegmentation_loads_the_mmseg_pack(packed, areas):
    pytest.importorskip("mmseg")
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    folder, summary = packed("mmseg")
    metainfo = json.loads((folder / "metainfo.json").read_text())
    found = {"crack": [], "hole": []}
    for side in ("train", "val"):
        dataset = BaseSegDataset(
            data_root=str(folder),
            data_prefix={"img_path": f"img_dir/{side}", "seg_map_path": f"ann_dir/{side}"},
            img_suffix=".png",
            metainfo=metainfo,
            pipeline=[LoadAnnotations()],
        )
        assert len(dataset) == sum(summary.pictures[side].values())
        for n in range(len(dataset)):
            values = dataset[n]["gt_seg_map"]
            if values.any():
                found[metainfo["classes"][values.max()]].append(int((values > 0).sum()))
    assert {kind: sorted(each) for kind, each in found.items()} == areas
