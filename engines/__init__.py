"""ONNX graphs to engines (``stage_rt.engines``)."""
