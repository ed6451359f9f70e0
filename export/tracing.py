"""Networks as the calls of PyTorch's own kernels, which any GPU that it serves can run."""

import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from stage_rt.errors import BackendError, first_line


class _Stateless(nn.Module):
    """A network whose weights are handed over beside its inputs, so that a program of it holds none."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # In a list it is no part of this module, whose weights would be the program's.
        self._network = [network]

    def forward(self, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        called: Tensor = torch.func.functional_call(
            self._network[0], weights, args=(), kwargs=inputs, strict=True
        )
        return called


def trace_network(network: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Write the program of one network for the shapes, dtypes and device of ``inputs``; returns its weights.

    Raises:
        BackendError: PyTorch cannot trace it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = chain(network.named_parameters(), network.named_buffers())
    weights = {name: tensor.detach() for name, tensor in sorted(held)}
    with warnings.catch_warnings(), torch.no_grad():
        # torch's own use of what it deprecates.
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(_Stateless(network), (weights, dict(inputs)))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # The tracer's exceptions have no common base.
            raise BackendError(f"PyTorch cannot trace `{path.name}`: {first_line(error)}") from error
        # Inputs to try it with, which hold all weights, and the places of the sources it was traced through.
        program.example_inputs = None
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        torch.export.save(program, path)
    return {name: tensor.clone() for name, tensor in weights.items()}
