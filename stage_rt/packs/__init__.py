"""Finished runs as data sets that other tools open: one file a format, the table below."""

from stage_rt.names import PackName
from stage_rt.packs.coco import Coco
from stage_rt.packs.mmseg import MMSeg
from stage_rt.packs.mvtec import MVTec
from stage_rt.packs.parquet import Parquet
from stage_rt.packs.picture import Format
from stage_rt.packs.voc import VOC
from stage_rt.packs.yolo import YOLO

FORMATS: dict[PackName, type[Format]] = {
    "mvtec": MVTec,
    "coco": Coco,
    "yolo": YOLO,
    "mmseg": MMSeg,
    "voc": VOC,
    "parquet": Parquet,
}
"""What writes a pack of each name."""
