"""A built engine against its model in torch: every graph at a spread of timesteps, then a whole trajectory."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage_rt.engine import Engine
from stage_rt.errors import BackendError, EngineError, MissingExtraError, ParityError, PromptError
from stage_rt.executor import HostExecutor
from stage_rt.folders import read_contexts, read_engine
from stage_rt.kernels.reference import guide
from stage_rt.loading import open_backend
from stage_rt.names import DType
from stage_rt.networks import TOLERANCE, Backend
from stage_rt.noise import PhiloxNoise
from stage_rt.progress import Progress, portion, silent
from stage_rt.recipe import Branch
from stage_rt.sampler import Denoiser
from stage_rt.samplers import SAMPLERS
from stage_rt.samplers.fast import Foreground
from stage_rt.spec import (
    FOREGROUND,
    PROMPTS_FILE,
    UNET,
    VAE_DECODER,
    VAE_ENCODER,
    EngineSpec,
    ModelSpec,
    PromptDefaults,
    adapter_graph,
)

from ..training.folder import Model, load_model
from ..training.folder import read_spec as read_model_spec
from .hoist import hoisted_model
from .networks import networks, random_inputs

Float32 = NDArray[np.float32]

TRAJECTORY_TOLERANCE: dict[DType, float] = {"fp32": 5e-4, "fp16": 5e-2, "bf16": 2.5e-1}
"""Largest error allowed of any state of a trajectory and of its image, relative to the largest value.

Five times that of a graph: a step may be off by as much as one graph, and the loop keeps some of it. It does not
pile up, as each step draws the same noise on both sides and trusts the estimate a little: over 1000 steps of random
networks on ONNX Runtime it came to 1e-6 in fp32 and 1e-4 in fp16.
"""

TIMESTEPS = 16
"""How many the graphs are compared at."""
QUICK_CALLS, QUICK_TIMESTEPS = 50, 4
"""Network calls of the trajectory, and timesteps the graphs are compared at, where there is no time for all."""
CONTEXTS, PROJECTED = "contexts", "keys and values"
SEED = 0


class Error(NamedTuple):
    """How far an array is from its reference; all NaN where a value is not finite.

    ``max_rel`` is relative to the largest value of the reference; ``cosine`` is that of the angle between both.
    """

    max_abs: float
    max_rel: float
    cosine: float


@dataclass(frozen=True)
class Point:
    """The error of one graph at one batch; ``timestep`` is None where it plays no part."""

    graph: str
    batch: int
    timestep: int | None
    error: Error


@dataclass(frozen=True)
class Row:
    """The worst of all that was measured of one subject, beside what is allowed."""

    subject: str
    worst: Error
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a non-finite one is not."""
        return self.worst.max_rel <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What was measured.

    ``trajectory`` has the error of the state after every iteration ``i``, ascending, ``image`` that of the image
    decoded in the end.
    """

    dtype: DType
    prompt: str
    points: list[Point]
    trajectory: dict[int, Error]
    image: Error

    @property
    def rows(self) -> list[Row]:
        """One row a graph, one for the worst state of the trajectory and one for its image."""
        graphs: dict[str, list[Error]] = {}
        for point in self.points:
            graphs.setdefault(point.graph, []).append(point.error)
        graph, trajectory = TOLERANCE[self.dtype], TRAJECTORY_TOLERANCE[self.dtype]
        return [
            *(Row(name, _worst(errors), 0 if name == CONTEXTS else graph) for name, errors in graphs.items()),
            Row("trajectory", _worst(list(self.trajectory.values())), trajectory),
            Row("painted image", self.image, trajectory),
        ]


def spread(steps: int, count: int) -> list[int]:
    """``count`` timesteps, or as many as there are, evenly from ``steps - 1`` down to 0."""
    return sorted({round(float(step)) for step in np.linspace(0, steps - 1, count)}, reverse=True)


def calls(model: ModelSpec, quick: bool) -> int:
    """Network calls of the trajectory: as many as the model's own sampler makes, or at most `QUICK_CALLS`."""
    way, recipe = SAMPLERS[model.system], model.recipe
    return max(way.range(recipe)[0], min(QUICK_CALLS, recipe.steps)) if quick else way.steps(recipe)


def work(spec: EngineSpec, timesteps: int, *, quick: bool = False) -> int:
    """How much there is to `verify`: timesteps compared and steps of both trajectories."""
    return len(spread(spec.model.recipe.steps, timesteps)) + 2 * calls(spec.model, quick)


def verify(
    engine: Path,
    model: Path,
    *,
    prompt: str | None = None,
    timesteps: int = TIMESTEPS,
    quick: bool = False,
    progress: Progress = silent,
) -> Report:
    """Run an engine and its model side by side.

    The graphs are compared one by one, each on inputs from torch and at each of the engine's batches. The
    trajectory is one sample by the sampler of the model's system: the same noise for both, each on its own states.

    Args:
        engine: engine folder.
        model: the model folder it was built from; computed by torch in float32 on the CPU.
        prompt: of the trajectory; the first by name when None.
        timesteps: how many the graphs are compared at, evenly over those of the recipe.
        quick: whether the trajectory takes `QUICK_CALLS` network calls instead of all.
        progress: told the share of `work` that is done.

    Returns:
        What was measured; `require` judges it.

    Raises:
        EngineError: the engine folder is damaged, cannot be run on this machine or is of another model.
        MissingExtraError: its inference library is not installed.
        BackendError: the library failed.
        ModelError: the model folder is incomplete or inconsistent.
        PromptError: the model does not know ``prompt``.
    """
    spec = read_engine(engine)
    _require_same_model(engine, spec.model, model)
    prompts = sorted(spec.model.prompts)
    if prompt is not None and prompt not in prompts:
        raise PromptError(f"unknown prompt {prompt!r}: use one of {', '.join(prompts)}")
    with _nothing_was_verified():
        backend = open_backend(engine, spec)
        try:
            contexts = read_contexts(engine / PROMPTS_FILE, spec.model)
            loaded = load_model(model)
            if spec.model.hoisted:
                loaded = hoisted_model(loaded)
            sides = _Sides(spec, backend, contexts, loaded, calls(spec.model, quick))
            return sides.measure(prompt or prompts[0], spread(spec.model.recipe.steps, timesteps), progress)
        finally:
            backend.close()


def require(report: Report) -> None:
    """Raise `ParityError` for what is furthest beyond its tolerance, if anything is."""
    failed = [row for row in report.rows if not row.passed]
    if failed:
        worst = max(failed, key=_excess)
        raise ParityError(
            f"{len(failed)} of {len(report.rows)} comparisons failed, worst `{worst.subject}`, which differs "
            f"from torch by {worst.worst.max_rel:.1e} of its largest value, more than {worst.tolerance:.0e}: "
            "build the engine again from this model, with `--dtype fp32` if it still differs then"
        )


def error_of(found: NDArray[Any], reference: NDArray[Any]) -> Error:
    """The `Error` of an array against a reference.

    Raises:
        BackendError: their shapes differ.
    """
    if found.shape != reference.shape:
        raise BackendError(f"the engine returned shape {found.shape}, expected {reference.shape}")
    a, b = found.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Error(math.nan, math.nan, math.nan)
    max_abs, lengths = float(np.abs(a - b).max()), float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        return Error(max_abs, math.inf if max_abs else 0.0, 0.0 if max_abs else 1.0)
    return Error(max_abs, max_abs / float(np.abs(b).max()), float(a @ b) / lengths)


class _Sides:
    """The engine and the model, ready to be handed the same inputs."""

    def __init__(
        self,
        spec: EngineSpec,
        backend: Backend,
        contexts: dict[str, Float32],
        model: Model,
        steps: int,
    ) -> None:
        self.backend, self.contexts, self.model, self.steps = backend, contexts, model, steps
        self.recipe = model.spec.recipe
        self.executor = HostExecutor(spec.model, backend)
        self.engine = Engine(spec, self.executor, contexts)
        self.networks = networks(model)
        self.generator = torch.Generator().manual_seed(SEED)

    @torch.no_grad()
    def measure(self, prompt: str, timesteps: Sequence[int], progress: Progress) -> Report:
        points = [*self.prompts(), *self.autoencoder()]
        total = len(timesteps) + 2 * self.steps
        for done, timestep in enumerate(timesteps, 1):
            points += self.denoising(timestep)
            progress(done / total)
        trajectory, image = self.trajectory(prompt, portion(progress, len(timesteps) / total, 1))
        return Report(self.engine.spec.dtype, prompt, points, trajectory, image)

    def prompts(self) -> Iterator[Point]:
        name = PROJECTED if self.model.spec.hoisted else CONTEXTS
        for prompt, expected in self.model.contexts.items():
            yield Point(name, 1, None, error_of(self.contexts[prompt], expected.numpy()))

    def autoencoder(self) -> Iterator[Point]:
        for graph in (VAE_ENCODER, VAE_DECODER):
            yield from self.compare(graph, None, self.inputs(graph, 0))[1]

    def denoising(self, timestep: int) -> Iterator[Point]:
        """The UNet, then every adapter on what torch's UNet gave and the mask of its branch at ``timestep``.

        Foreground networks are compared on inputs of their own.
        """
        eps, points = self.compare(UNET, timestep, self.inputs(UNET, timestep))
        yield from points
        spec = self.model.spec
        for adapter, part in product(spec.adapters, spec.parts):
            graph = adapter_graph(adapter, part)
            inputs = self.inputs(graph, timestep)
            if "eps" in inputs:
                mask = inputs["mask"]
                if part == Branch.AWARE:
                    mask = mask + spec.recipe.ema(timestep) * (1 - mask)
                inputs = {"eps": eps, "mask": mask}
            yield from self.compare(graph, timestep, inputs)[1]

    def inputs(self, graph: str, timestep: int) -> dict[str, Tensor]:
        batch = max(self.engine.spec.batch)
        return random_inputs(graph, self.model, batch=batch, timesteps=[timestep], generator=self.generator)

    def compare(
        self, graph: str, timestep: int | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, list[Point]]:
        """Torch's output at the largest batch, and the engine's errors at each: no sample depends on another."""
        output: Tensor = self.networks[graph](**inputs)
        reference, points = output.numpy(), []
        for batch in self.engine.spec.batch:
            part = {name: tensor[:batch].numpy() for name, tensor in inputs.items()}
            error = error_of(self.backend.run(graph, **part), reference[:batch])
            points.append(Point(graph, batch, timestep, error))
        return output, points

    def trajectory(self, prompt: str, progress: Progress) -> tuple[dict[int, Error], Error]:
        """The error of every state, by iteration, and of the decoded image."""
        steps, scale = self.steps, self.model.spec.latent_scale
        states: dict[int, Float32] = {}
        errors: dict[int, Error] = {}

        def keep(i: int, state: Float32) -> None:
            states[i] = state
            progress(len(states) / (2 * steps))

        def judge(i: int, state: Float32) -> None:
            errors[i] = error_of(state, states[i])
            progress((steps + len(errors)) / (2 * steps))

        condition = self.engine.condition(prompt)
        expected = self.sample(self.torch_denoiser(prompt), self.torch_foreground(prompt), keep)
        found = self.sample(
            self.executor.denoiser(condition, guidance=self.recipe.guidance),
            self.executor.foreground(condition),
            judge,
        )
        image = self.networks[VAE_DECODER](latent=torch.from_numpy(expected) / scale).numpy()
        return dict(sorted(errors.items())), error_of(self.engine.decode(found), image)

    def sample(
        self, denoise: Denoiser, foreground: Foreground, callback: Callable[[int, Float32], None]
    ) -> Float32:
        """One sample of the trajectory, with a square in the middle for a mask."""
        spec = self.model.spec
        noise = PhiloxNoise([SEED])
        clean = noise.encode((1, spec.latent_channels, spec.latent_size, spec.latent_size))
        mask = np.zeros((1, 1, spec.latent_size, spec.latent_size), np.float32)
        edge = spec.latent_size // 4
        mask[:, :, edge : spec.latent_size - edge, edge : spec.latent_size - edge] = 1
        needed = {"foreground": foreground} if spec.system == "fast" else {}
        latent: Float32 = SAMPLERS[spec.system].run(
            *(denoise, clean, mask),
            recipe=self.recipe,
            noise=noise,
            steps=self.steps,
            callback=callback,
            **needed,
        )
        return latent

    def torch_denoiser(self, prompt: str) -> Denoiser:
        context = self.model.contexts[prompt][None]
        adapter = self.model.spec.prompts[prompt]

        def denoise(x: Float32, i: int, mask: Float32, branch: Branch) -> Float32:
            sample = torch.from_numpy(x)
            eps = self.networks[UNET](sample=sample, timestep=torch.tensor([i]), context=context)
            if adapter is None:
                return np.asarray(eps.numpy())
            adapted = self.networks[adapter_graph(adapter, branch)](eps=eps, mask=torch.from_numpy(mask))
            return guide(eps.numpy(), adapted.numpy(), self.recipe.guidance)

        return denoise

    def torch_foreground(self, prompt: str) -> Foreground:
        graph = adapter_graph(str(self.model.spec.prompts[prompt]), FOREGROUND)

        def foresee(x: Float32, i: int, mask: Float32) -> Float32:
            timestep, told = torch.full((len(x),), i), torch.from_numpy(mask)
            foreseen = self.networks[graph](sample=torch.from_numpy(x), timestep=timestep, mask=told)
            return np.asarray(foreseen.numpy())

        return foresee


def _require_same_model(engine: Path, found: ModelSpec, model: Path) -> None:
    expected, found = _as_trained(read_model_spec(model)), _as_trained(found)
    free = {"provenance", "hoisted", *(["context_dim"] if found.hoisted else [])}
    for name in (name for name in ModelSpec.model_fields if name not in free):
        if getattr(found, name) != getattr(expected, name):
            raise EngineError(
                f"`{engine}` is of another model than `{model}`, whose `{name}` differs: name the model it was "
                "built from, or build it again with `stage-rt build`"
            )


def _as_trained(model: ModelSpec) -> ModelSpec:
    """Without the fewest steps, which `stage-rt calibrate` writes into an engine and nobody into a model."""
    plain = {name: one.model_copy(update={"steps": None}) for name, one in model.defaults.items()}
    defaults = {name: one for name, one in plain.items() if one != PromptDefaults()}
    return model.model_copy(update={"defaults": defaults})


@contextmanager
def _nothing_was_verified() -> Iterator[None]:
    """An engine that cannot run here must not be taken for one that passed."""
    try:
        yield
    except (EngineError, MissingExtraError, BackendError) as error:
        raise type(error)(f"nothing was verified: {error.problem}", error.remedy) from error


def _worst(errors: Sequence[Error]) -> Error:
    table = np.array(errors)
    return Error(float(table[:, 0].max()), float(table[:, 1].max()), float(table[:, 2].min()))


def _excess(row: Row) -> float:
    excess = row.worst.max_rel / row.tolerance if row.tolerance else math.inf
    return math.inf if math.isnan(excess) else excess
