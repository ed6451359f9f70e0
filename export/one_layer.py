"""The process that `stage_rt.export.compiler` looks at: ``python -m stage_rt.export.one_layer DEVICE PACKAGE``."""

import sys
from pathlib import Path

import torch

from stage_rt.backends.packages import open_package

from .inductor import compile_network


def main(device: str, path: Path) -> None:
    """Compile one layer for ``device``, open it as an engine's networks are opened, and hold it against itself."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8, device=device).eval()
    inputs = {"input": torch.randn(4, 8, device=device)}
    needed = compile_network(layer, inputs, path)
    found = open_package(torch, path, needed)(**inputs)
    torch.testing.assert_close(found, layer(**inputs))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
