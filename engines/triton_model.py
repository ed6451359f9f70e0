"""Paints pairs in Triton: `stage_rt.serve.triton` does the work, over the networks beside this model."""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from stage_rt.serve.triton import Painter


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what is beside this file; networks are only asked for when somebody wants a pair."""
        self._painter = Painter(Path(__file__).parent / "model", args["model_name"], pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._painter.answer(request) for request in requests]
