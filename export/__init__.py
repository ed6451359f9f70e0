"""Torch and diffusers to ONNX graphs, with parity against torch (``stage_rt.export``); needs the ``export`` extra."""
