"""Networks compiled ahead of time by PyTorch's AOTInductor."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stage_rt.errors import BackendError, first_line

# The weights lie in a file of their own: three batch sizes shall not hold them three times.
_OPTIONS: dict[str, bool | str] = {"aot_inductor.package_constants_in_so": False}

_TUNED: dict[str, bool | str] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    # Otherwise every way that asks for more shared memory than there is fails twice, after seconds of compiling.
    "max_autotune_prune_choices_based_on_shared_mem": True,
    # So that they are tuned as the matrix products they are, and take what comes after them along.
    "conv_1x1_as_mm": True,
    # The 3x3 ones are left to cuDNN: there are ninety of them at full size, each with dozens of ways to try.
    "max_autotune_conv_backends": "ATEN",
}
"""On a GPU: kernels are chosen by trying them, when the engine is built and never again.

cuDNN's own search (``cudnn.benchmark``) is left off: it would be made anew by every process, which may choose others,
and a run that goes on would no longer have the bits of one that was not interrupted.
"""

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""In this order whatever PyTorch prefers, so that an engine does not depend on what its release likes best."""


def compile_network(
    network: nn.Module, inputs: Mapping[str, Tensor], path: Path, *, tuned: bool = False
) -> dict[str, Tensor]:
    """Write one network for the shapes, dtypes and device of ``inputs``; returns the weights that it needs.

    ``tuned`` chooses the kernels of a GPU by trying them.

    Raises:
        BackendError: PyTorch cannot compile it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = _OPTIONS | (_TUNED if tuned else {})
    with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(_ATTENTION, set_priority=True):
        # torch's own use of what it deprecates.
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(network, (), kwargs=dict(inputs))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # The compiler's exceptions have no common base.
            raise BackendError(f"PyTorch cannot compile `{path.name}`: {first_line(error)}") from error
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return {name: value.detach().clone() for name, value in {**program.state_dict, **constants}.items()}
