"""The fastest engine for the CPU at hand, found by trying: what is installed, each measured beside the others."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import DeviceError, InputError, MissingExtraError, ParityError
from stage_rt.folders import read_contexts, read_engine
from stage_rt.loading import open_backend
from stage_rt.names import BackendName, DType
from stage_rt.networks import TOLERANCE, Backend
from stage_rt.spec import PROMPTS_FILE, UNET, EngineSpec
from stage_rt.timing import Timing, in_turn

from .builders import choose

ROUNDS, BUDGET = 15, 30.0
"""Calls of a UNet that are timed, and seconds after which no further ones begin."""


class Candidate(NamedTuple):
    """An engine that might be the one."""

    backend: BackendName
    dtype: DType

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype}"


CANDIDATES = (
    Candidate("onnxruntime", "fp32"),
    Candidate("openvino", "fp32"),
    Candidate("openvino", "bf16"),
)
"""What runs on a CPU; the first that is there is the oracle of the others. fp16 is no faster there than fp32."""


class Judged(NamedTuple):
    """Seconds of a UNet call, and the largest error relative to the oracle's largest value."""

    candidate: Candidate
    seconds: Timing
    error: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance of its dtype; one that is not finite is not."""
        return self.error <= TOLERANCE[self.candidate.dtype]


def candidates(dtypes: Sequence[DType] | None) -> list[Candidate]:
    """Those of `CANDIDATES` that can be built here, of ``dtypes`` or of any.

    Raises:
        InputError: there is a GPU, whose backends are to be named, or none is of these dtypes.
        MissingExtraError: no backend for a CPU is installed.
    """
    if _has_gpu():
        raise InputError(
            "`--backend auto` compares engines for a CPU and this machine has a GPU: name its backend, as "
            "`--backend tensorrt`"
        )
    wanted = [candidate for candidate in CANDIDATES if dtypes is None or candidate.dtype in dtypes]
    found: list[Candidate] = []
    refusals: list[InputError] = []
    for candidate in wanted:
        try:
            choose(candidate.backend, candidate.dtype, None)
        except InputError as refusal:
            refusals.append(refusal)
        else:
            found.append(candidate)
    if not found:
        if refusals:
            raise refusals[0]
        raise InputError("`--backend auto` builds fp32 and bf16: leave `--dtype` out or name a backend")
    return found


def judge(folders: Mapping[Candidate, Path]) -> list[Judged]:
    """Every engine's UNet at its largest batch, in turn; the first of ``folders`` is the oracle.

    Raises:
        EngineError, BackendError: an engine cannot be opened or run.
    """
    with ExitStack() as opened:
        networks: dict[str, Backend] = {}
        for candidate, folder in folders.items():
            spec = read_engine(folder)
            networks[str(candidate)] = backend = open_backend(folder, spec)
            opened.callback(backend.close)
        inputs = unet_inputs(folder, spec, max(spec.batch))
        outputs = {name: network.run(UNET, **inputs) for name, network in networks.items()}
        runs = {
            name: lambda network=network: network.run(UNET, **inputs) for name, network in networks.items()
        }
        seconds = in_turn(runs, ROUNDS, budget=BUDGET, warm_up=0)
    oracle = outputs[str(next(iter(folders)))]
    return [
        Judged(candidate, Timing.of(seconds[str(candidate)]), _error(outputs[str(candidate)], oracle))
        for candidate in folders
    ]


def fastest(judged: Sequence[Judged]) -> Judged:
    """The one whose median is least of those within their tolerance.

    Raises:
        ParityError: there is none, as when the oracle gives no finite numbers.
    """
    passed = [one for one in judged if one.passed]
    if not passed:
        raise ParityError("no engine gave finite numbers: check the model with `stage-rt verify`")
    return min(passed, key=lambda one: one.seconds.median)


def told(judged: Sequence[Judged], kept: Judged, batch: int) -> str:
    """What was measured, in one sentence."""
    each = ", ".join(
        f"{one.candidate} {1e3 * one.seconds.median:.3g} ms"
        + ("" if one.passed else " (beyond its tolerance)")
        for one in judged
    )
    return f"a UNet call of {batch} takes {each}: kept {kept.candidate}"


def unet_inputs(folder: Path, spec: EngineSpec, batch: int) -> dict[str, NDArray[np.generic]]:
    """Normal states, timesteps over the whole schedule, contexts of the prompts in turn."""
    model, rng = spec.model, np.random.default_rng(0)
    contexts = list(read_contexts(folder / PROMPTS_FILE, model).values())
    return {
        "sample": rng.standard_normal(
            (batch, model.latent_channels, model.latent_size, model.latent_size), dtype=np.float32
        ),
        "timestep": np.linspace(0, model.recipe.steps - 1, batch).astype(np.int64),
        "context": np.stack([contexts[n % len(contexts)] for n in range(batch)]),
    }


def _error(found: NDArray[np.float32], oracle: NDArray[np.float32]) -> float:
    return float(np.abs(found - oracle).max() / np.abs(oracle).max())


def _has_gpu() -> bool:
    from stage_rt.cuda import device

    try:
        device.current()
    except (DeviceError, MissingExtraError):
        return False
    return True
