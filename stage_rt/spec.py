"""The contract between the packages: what lies on disk as JSON beside weights, graphs, engines and runs."""

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stage_rt.errors import InputError, printable
from stage_rt.names import BackendName, DType, SamplerName, SystemName, ViewName
from stage_rt.recipe import Branch, Recipe

MODEL_FILE = "stage.json"
GRAPHS_FILE = "model.json"
ENGINE_FILE = "engine.json"
RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.jsonl"
CLIENT_FILE = "client.json"
"""What marks a folder of pairs that ``stage-rt client`` had painted."""
PACK_FILE = "pack.json"
PROMPTS_FILE = "prompts.safetensors"

UNET = "unet"
VAE_ENCODER = "vae_encoder"
VAE_DECODER = "vae_decoder"
FOREGROUND = "foreground"
"""What stands for the branch in the name of FAST's foreground network, which belongs to an adapter."""


def adapter_graph(adapter: str, part: str) -> str:
    """Name of an adapter's graph, without suffix: ``adapters/<adapter>.<part>``, one of `ModelSpec.parts`."""
    return f"adapters/{adapter}.{part}"


def is_foreground(graph: str) -> bool:
    """Whether a graph is a foreground network; the names of adapters have no dot."""
    return graph.endswith(f".{FOREGROUND}")


def _relative(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or not path:
        raise ValueError(f"`{path}` is not a path inside the folder")
    return path


RelativePath = Annotated[str, AfterValidator(_relative)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _current(format: Any) -> Any:
    if format == 1:
        raise PydanticCustomError(
            "old", "it is of an earlier release, whose networks took one timestep a batch"
        )
    return format


CompiledFormat = Annotated[Literal[2], BeforeValidator(_current)]
"""Of graphs and engines: 2 since every sample of a batch has a timestep of its own."""
LONGEST_PROMPT = 200
"""Characters that the name of a prompt may have, or that of an adapter."""
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]*$", max_length=LONGEST_PROMPT)]
PromptName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]+$", max_length=LONGEST_PROMPT)]


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Where a description is not valid and why, each on one line whatever the file holds."""
    first = error.errors()[0]
    return printable(".".join(map(str, first["loc"])) or "the file"), printable(first["msg"])


def is_newer(error: ValidationError) -> bool:
    """Whether what is not valid is of a format that only a later release knows."""
    return any(
        fault["type"] == "literal_error"
        and fault["loc"][-1:] == ("format",)
        and isinstance(fault["input"], int)
        and fault["input"] > int(fault["ctx"]["expected"])
        for fault in error.errors()
    )


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class RegionView(_Spec):
    """How a model sees a photograph that was trained on crops around defects (`stage_rt.images.regions`).

    ``context`` is how much of the surroundings it is shown on each side of a label, in sides of the label's square;
    ``least`` the smallest side of a crop, in pixels of the photograph. What is more than ``slender`` times as long as
    it is wide is cut into pieces, each at the scale of its width; None: never.
    """

    context: float = Field(default=0.5, ge=0, le=8, allow_inf_nan=False)
    least: int = Field(ge=8, le=8192)
    slender: float | None = Field(
        default=None, ge=2, allow_inf_nan=False, exclude_if=lambda slender: slender is None
    )


Rim = tuple[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)], ...]
"""Shares of the paint that are kept 1, 2, ... pixels of the network beyond a label (`stage_rt.images.compose`)."""


Outset = Annotated[float, Field(ge=0, le=8, allow_inf_nan=False)]
"""How much wider than they are the networks are told that labels reach, in their pixels."""


class PromptDefaults(_Spec):
    """What the training measured for a prompt: the guidance its defects look most real with, and the least share of a
    label that a pair is expected to fill; None where it was not measured. ``rim`` is how its defects fade out beyond
    their labels, empty where they end there. ``outset`` is how far beyond a label the networks are told that it
    reaches, in pixels of the network, so that what they paint is as strong at its outline as real defects are.
    ``steps`` are the fewest that `stage_rt.run.fewest` found."""

    guidance: float | None = Field(default=None, ge=0, le=20, allow_inf_nan=False)
    min_fill: float | None = Field(default=None, ge=0, le=1)
    rim: Rim = Field(default=(), max_length=8, exclude_if=lambda rim: not rim)
    outset: Outset = Field(default=0.0, exclude_if=lambda outset: not outset)
    steps: int | None = Field(default=None, ge=1, exclude_if=lambda steps: steps is None)


class ModelSpec(_Spec):
    """``stage.json``: what the runtime must know of a trained model besides its weights.

    Sizes are in pixels (image) and cells (latent); both are square. A prompt without an adapter (None) is painted
    with the UNet's own estimate. A model without a ``region`` was trained on whole photographs. ``round_trip`` is
    the median over pictures of the training of what `stage_rt.images.labels.round_trip` says. ``surface`` names the
    context of good surface, or of no text, which `Recipe.prompt_guidance` needs. ``hoisted``: contexts are the keys
    and values of cross-attention, which the UNet then does not compute. ``system`` is whose adapters the model has:
    STAGE's, one a branch, or FAST's, one and a foreground network.
    """

    format: Literal[1] = 1
    image_size: int = Field(ge=16, le=4096)
    image_channels: Literal[1, 3] = 3
    latent_channels: int = Field(default=4, ge=1, le=64)
    latent_size: int = Field(ge=2, le=1024)
    latent_scale: float = Field(gt=0, allow_inf_nan=False)
    tokens: int = Field(ge=1)
    context_dim: int = Field(ge=1)
    recipe: Recipe
    prompts: dict[PromptName, AdapterName | None] = Field(min_length=1)
    # Left out of the JSON where they say nothing, so that digests of older descriptions stay what they are.
    region: RegionView | None = Field(default=None, exclude_if=lambda region: region is None)
    defaults: dict[PromptName, PromptDefaults] = Field(
        default_factory=dict, exclude_if=lambda defaults: not defaults
    )
    round_trip: float | None = Field(default=None, gt=0, exclude_if=lambda levels: levels is None)
    surface: PromptName | None = Field(default=None, exclude_if=lambda name: name is None)
    hoisted: bool = Field(default=False, exclude_if=lambda hoisted: not hoisted)
    system: SystemName = Field(default="stage", exclude_if=lambda system: system == "stage")
    provenance: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _latent_divides_image(self) -> "ModelSpec":
        if self.image_size % self.latent_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of latent_size {self.latent_size}"
            )
        if self.system == "fast" and None in self.prompts.values():
            raise ValueError("a prompt of a model for `fast` has an adapter")
        return self

    def seen(self, view: ViewName | None) -> RegionView | None:
        """How a photograph is to be seen: as the model was trained, or as ``view`` says; None for whole."""
        if view == "whole":
            return None
        if view == "region" and self.region is None:
            return RegionView(least=max(self.image_size // 2, 8))
        return self.region

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that needs what the model has not.

        Raises:
            InputError: the recipe weighs the prompt against good surface, and the model has no context of it; or it
                has timesteps that a hoisted UNet has no row for.
        """
        if self.hoisted and recipe.steps > self.recipe.steps:
            raise InputError(
                f"the engine's UNet knows the {self.recipe.steps} timesteps of its own recipe, and this one has "
                f"{recipe.steps}",
                "leave the option out, or build the engine from graphs made with `stage-rt export`",
            )
        if recipe.prompt_guidance != 1 and self.surface is None:
            raise InputError(
                "the model has no context of good surface, which `prompt_guidance` weighs the prompt against",
                "train it again, or leave the option out",
            )

    @property
    def contexts(self) -> list[str]:
        """Names of the contexts that `PROMPTS_FILE` holds."""
        return [*self.prompts, *([self.surface] if self.surface else [])]

    @property
    def adapters(self) -> list[str]:
        """The distinct adapter names, sorted."""
        return sorted({name for name in self.prompts.values() if name is not None})

    @property
    def parts(self) -> tuple[str, ...]:
        """What every adapter has: one for each branch, or one and a foreground network."""
        return (Branch.AWARE, FOREGROUND) if self.system == "fast" else tuple(Branch)

    @property
    def graphs(self) -> list[str]:
        """Names (no suffix) of every graph the model exports to."""
        adapters = [adapter_graph(name, part) for name in self.adapters for part in self.parts]
        return [UNET, *adapters, VAE_ENCODER, VAE_DECODER]


class _Sealed(_Spec):
    """A description that lists the digests of files and, on disk, its own under ``sha256``.

    A changed number in it would be as wrong as a changed file, and as hard to see.
    """

    def sealed(self) -> str:
        """The JSON to write."""
        content = self.model_dump(mode="json") | {"sha256": self._digest()}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @model_validator(mode="wrap")
    @classmethod
    def _unseal(cls, content: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if not isinstance(content, dict) or info.mode != "json":
            return handler(content)
        spec = handler({key: value for key, value in content.items() if key != "sha256"})
        if spec._digest() != content.get("sha256"):
            raise PydanticCustomError("changed", "it was changed after it was written")
        return spec

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class GraphsSpec(_Sealed):
    """``model.json`` of a graphs folder: model, dtype, opset, and the sha256 of every other file."""

    format: CompiledFormat = 2
    model: ModelSpec
    dtype: DType
    opset: int
    source: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[RelativePath, Sha256]

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides what the graphs compute; where they came from takes no part."""
        return hashlib.sha256(self.model_dump_json(exclude={"source"}).encode()).hexdigest()


class EngineSpec(_Sealed):
    """``engine.json``: for what an engine was compiled, and the sha256 of every other file.

    ``devices`` are ``cpu`` or compute capabilities (``sm86``), ``gpu`` is the name of the GPU that the engine was
    tuned on, where it was. ``workspace`` is the GPU memory in bytes that the engines of the set take turns in, at the
    largest batch, as the library planned it when it built them; 0 on a CPU. ``builder`` is a digest of the code that
    compiled graphs, ``origin`` one of the model and of the exporter, where the engine was built from a model.
    ``operations`` is twice the multiply-adds of a graph for one sample, where they were counted.
    """

    format: CompiledFormat = 2
    model: ModelSpec
    backend: BackendName
    library: str
    library_version: str
    devices: list[str] = Field(min_length=1)
    dtype: DType
    batch: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    graphs_fingerprint: Sha256
    # Left out of the JSON where they are not known, so that engines of earlier releases go on being served.
    gpu: str | None = Field(default=None, exclude_if=lambda gpu: gpu is None)
    builder: Sha256 | None = Field(default=None, exclude_if=lambda builder: builder is None)
    workspace: int = Field(default=0, ge=0)
    origin: Sha256 | None = Field(default=None, exclude_if=lambda origin: origin is None)
    operations: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, exclude_if=lambda counted: not counted
    )
    files: dict[RelativePath, Sha256]

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the engine: graphs, backend, library version, devices, the GPU it was tuned on,
        the code that built it, dtype, batches."""
        decides = self.model_dump(
            mode="json", exclude={"model", "workspace", "origin", "operations", "files"}
        )
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class Shard(_Spec):
    """Part ``number`` of ``of``, from 1, of a run whose samples are painted ``together`` at a time."""

    number: int = Field(ge=1)
    of: int = Field(ge=1)
    together: int = Field(ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.number > self.of:
            raise ValueError("there are fewer shards")
        return self

    def __str__(self) -> str:
        return f"{self.number}/{self.of} of {self.together} at a time"


class RunSpec(_Spec):
    """``run.json``: everything that decides what a run is; the same job resumes it, one of more pairs continues it.

    ``count``, ``batch`` and ``backend`` are those of the last command.

    ``engine`` is the fingerprint of the engine's graphs, ``dtype`` what they compute in, of which older releases said
    nothing. ``steps`` is None where the sampler visits as many levels as
    it does by itself, ``region`` where photographs are painted whole, ``min_fill`` where a pair is kept whatever its
    label looks like, ``objects`` where nothing was told of the object, ``shard`` where the run is whole; ``rim`` is
    empty where nothing beyond a label changes, ``outset`` in pixels of the network. ``rules`` is the number of
    the rules of the release that began it (`stage_rt.run.plan.RULES`), 1 where it said nothing. ``normals``,
    ``masks`` and ``objects`` are digests of the names and sizes of all files; the contents of those used are in the
    lines of the pairs.
    """

    format: Literal[1] = 1
    rules: int = Field(default=1, ge=1, exclude_if=lambda rules: rules == 1)
    dtype: DType | None = Field(default=None, exclude_if=lambda dtype: dtype is None)
    engine: Sha256
    backend: BackendName
    recipe: Recipe
    sampler: SamplerName = "stage"
    prompt: PromptName
    count: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**64)
    composite: bool
    batch: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1, exclude_if=lambda steps: steps is None)
    region: RegionView | None = Field(default=None, exclude_if=lambda region: region is None)
    min_fill: float | None = Field(default=None, ge=0, le=1, exclude_if=lambda fill: fill is None)
    rim: Rim = Field(default=(), max_length=8, exclude_if=lambda rim: not rim)
    outset: Outset = Field(default=0.0, exclude_if=lambda outset: not outset)
    retries: int = Field(default=0, ge=0, exclude_if=lambda retries: retries == 0)
    strict: bool = Field(default=False, exclude_if=lambda strict: not strict)
    augment: bool = Field(default=False, exclude_if=lambda augment: not augment)
    objects: Sha256 | None = Field(default=None, exclude_if=lambda objects: objects is None)
    mask_class: int | None = Field(default=None, exclude_if=lambda value: value is None)
    mask_threshold: float | None = Field(default=None, exclude_if=lambda share: share is None)
    normals: Sha256
    masks: Sha256
    shard: Shard | None = Field(default=None, exclude_if=lambda shard: shard is None)


class PairRecord(_Spec):
    """One line of ``manifest.jsonl``: a pair that was written, or a sample that failed or was left out, and why.

    A sample that is ``rejected`` waits for its next attempt.

    ``index`` is the sample in the noise's streams, beside the run's ``seed``. ``normal`` and ``label`` are the names
    of the files the pair was made from, ``normal_sha256`` and ``label_sha256`` their contents; ``recipe`` is the name
    of the run's, ``steps`` its own. ``regions`` is how many squares it was painted in and ``attempts`` how often the
    one of them that took most, where more than once; ``weak`` is set where the best attempt filled less than was
    asked for. ``fill``, ``leak`` and ``contrast`` are those of `stage_rt.images.labels.Figures`, ``label_pixels`` is
    the size of the mask that is written, ``round_trip`` is the median of `stage_rt.images.labels.round_trip` over its
    regions; ``box`` is the square (left, top, right, bottom) that shows the largest defect. Pairs of older releases
    lack them. ``rejected`` are the sha256 of images that a person rejected, each of which was painted again.
    """

    index: int = Field(ge=0)
    status: Literal["ok", "failed", "left out", "rejected"]
    reason: str | None = None
    image: RelativePath | None = None
    mask: RelativePath | None = None
    image_sha256: Sha256 | None = None
    mask_sha256: Sha256 | None = None
    normal: str
    label: str
    normal_sha256: Sha256 | None = None
    label_sha256: Sha256 | None = None
    prompt: PromptName
    seed: int
    sampler: SamplerName = "stage"
    recipe: str | None = None
    steps: int | None = None
    fill: float | None = None
    leak: float | None = None
    contrast: float | None = None
    label_pixels: int | None = None
    round_trip: float | None = None
    regions: int | None = None
    attempts: int | None = None
    weak: bool | None = None
    box: tuple[int, int, int, int] | None = None
    rejected: list[Sha256] | None = None
    latent_mask_cells: int
