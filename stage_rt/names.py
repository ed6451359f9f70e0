"""What a user may choose by name, on the command line, in Python and in the files on disk."""

from typing import Literal

BackendName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "inductor", "torch"]
BackendChoice = Literal["auto", BackendName]
DType = Literal["fp32", "fp16", "bf16"]
MaskRule = Literal["cover", "authors"]
PackName = Literal["mvtec", "coco", "yolo", "mmseg", "voc", "parquet"]
PresetName = Literal["tiny", "night", "small"]
RecipeName = Literal["authors", "paper", "masked", "baseline", "+mga", "+aif", "+gd", "+ema", "full"]
SamplerName = Literal["stage", "fast", "fast-published", "anogen", "repaint", "anomalydiffusion", "sdas"]
SegmenterName = Literal["unet", "segformer", "bisenetv2", "stdc"]
SizeName = Literal["cpu", "paper"]
SolverName = Literal["ancestral", "dpmpp-2m", "dpmpp-2m-sde", "unipc"]
SystemName = Literal["stage", "fast"]
ViewName = Literal["whole", "region"]
WeightDType = Literal["fp32", "fp16"]
