"""``stage-rt import``: checkpoints that other programs wrote, as model folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console
from stage_rt.names import MaskRule, WeightDType

if TYPE_CHECKING:
    from stage_rt.export.importers.adapters import TrainingRun
    from stage_rt.export.importers.assemble import Options
    from stage_rt.spec import ModelSpec

app = typer.Typer(
    name="import", help="Make a model folder of a checkpoint another program wrote.", no_args_is_help=True
)


Output = Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="Model folder to write.")]
Ldm = Annotated[
    Path, typer.Option(metavar="FILE", help="The latent-diffusion checkpoint, `text2img-large/model.ckpt`.")
]
Runs = Annotated[
    list[str],
    typer.Option(
        "--adapters",
        metavar="[NAMES=]DIR",
        help="Folder of a training run; NAMES are the prompts it paints, with commas between them, and can be left "
        "out where the files tell. Give it once for each run.",
    ),
]
Step = Annotated[
    int | None, typer.Option(min=0, help="Training step of the adapters.", show_default="the newest")
]
Dtype = Annotated[WeightDType, typer.Option(help="Of the weights in MODEL.")]
ImageSize = Annotated[int, typer.Option(min=16, max=4096, help="Side of the images, in pixels.")]
Heads = Annotated[int, typer.Option(min=1, help="Attention heads of the UNet.")]
Rule = Annotated[
    MaskRule,
    typer.Option(help="`cover` paints under every labelled pixel, `authors` as their code does."),
]
MaxGib = Annotated[float, typer.Option(min=0, max=2**20, help="Refuse files larger than this, in GiB.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def stage(
    ldm: Ldm,
    adapters: Runs,
    output: Output,
    step: Step = None,
    dtype: Dtype = "fp32",
    image_size: ImageSize = 256,
    heads: Heads = 8,
    mask_rule: Rule = "cover",
    max_gib: MaxGib = 8,
    as_json: AsJson = False,
) -> None:
    """A STAGE model as the authors' code trains it: `model.ckpt` and the files of one run or more."""
    with _options(dtype, image_size, heads, mask_rule, max_gib) as options:
        from stage_rt.export.importers.stage import import_stage

        spec = import_stage(ldm, [_run(text) for text in adapters], output, step=step, options=options)
    _result(output, spec, as_json)


@app.command()
def anomalydiffusion(
    ldm: Ldm,
    embeddings: Annotated[
        Path, typer.Option(metavar="FILE", help="The `embeddings` file of a training run.")
    ],
    output: Output,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name in that file; give it once for each.", show_default="all"),
    ] = None,
    dtype: Dtype = "fp32",
    image_size: ImageSize = 256,
    heads: Heads = 8,
    mask_rule: Rule = "cover",
    max_gib: MaxGib = 8,
    as_json: AsJson = False,
) -> None:
    """An AnomalyDiffusion model: `model.ckpt` and learned embeddings, no adapters."""
    with _options(dtype, image_size, heads, mask_rule, max_gib) as options:
        from stage_rt.export.importers.anomalydiffusion import import_anomalydiffusion

        spec = import_anomalydiffusion(ldm, embeddings, output, prompts=prompt or (), options=options)
    _result(output, spec, as_json)


@app.command()
def anogen(
    ldm: Ldm,
    embeddings: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder with a folder for each defect type that holds an `embeddings.pt`."
        ),
    ],
    output: Output,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One of those folders; give it once for each.", show_default="all"),
    ] = None,
    dtype: Dtype = "fp32",
    image_size: ImageSize = 256,
    heads: Heads = 8,
    mask_rule: Rule = "cover",
    max_gib: MaxGib = 8,
    as_json: AsJson = False,
) -> None:
    """An AnoGen model: `model.ckpt` and a learned embedding for each defect type, no adapters."""
    with _options(dtype, image_size, heads, mask_rule, max_gib) as options:
        from stage_rt.export.importers.anogen import import_anogen

        spec = import_anogen(ldm, embeddings, output, prompts=prompt or (), options=options)
    _result(output, spec, as_json)


@app.command()
def diffusers(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of an LDMTextToImagePipeline or StableDiffusionPipeline."),
    ],
    output: Output,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEXT", help="A prompt and its text; give it once for each.", show_default=False
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAMES=]DIR",
            help="Folder of a STAGE training run, as for `import stage`.",
            show_default=False,
        ),
    ] = None,
    step: Step = None,
    dtype: Dtype = "fp32",
    mask_rule: Rule = "cover",
    max_gib: MaxGib = 8,
    as_json: AsJson = False,
) -> None:
    """A diffusers folder, with adapters of STAGE added or not."""
    texts: dict[str, str] = {}
    for name, words in map(_prompt, prompt or ()):
        if name in texts:
            raise typer.BadParameter(f"{name!r} is given two texts: give each a name of its own")
        texts[name] = words
    with _options(dtype, 256, 8, mask_rule, max_gib) as options:
        from stage_rt.export.importers.diffusers import import_diffusers

        runs = [_run(text) for text in adapters or ()]
        spec = import_diffusers(source, output, texts=texts, runs=runs, step=step, options=options)
    _result(output, spec, as_json)


def _prompt(text: str) -> tuple[str, str]:
    name, equals, words = text.partition("=")
    if not equals or not name.strip() or not words.strip():
        raise typer.BadParameter(f"{text!r} is not a prompt and its text, as `dent=a photo of a dent`")
    return name.strip(), words.strip()


@contextmanager
def _options(
    dtype: WeightDType, image_size: int, heads: int, mask_rule: MaskRule, max_gib: float
) -> Iterator["Options"]:
    """Options of an import, with what it does shown on stderr until it ends."""
    from functools import partial

    with console.messages().status("reading") as status, console.extra("export"):
        import torch

        from stage_rt.export.importers.assemble import Options

        yield Options(
            image_size=image_size,
            heads=heads,
            mask_rule=mask_rule,
            dtype=torch.float16 if dtype == "fp16" else torch.float32,
            max_bytes=int(max_gib * 2**30),
            say=status.update,
            notify=partial(console.message, "notice"),
        )


def _run(text: str) -> "TrainingRun":
    from stage_rt.export.importers.adapters import TrainingRun

    names, equals, folder = text.partition("=")
    # A folder can have such a sign in its own name.
    if not equals or Path(text).exists():
        return TrainingRun((), Path(text))
    return TrainingRun(tuple(name.strip() for name in names.split(",")), Path(folder))


def _result(output: Path, spec: "ModelSpec", as_json: bool) -> None:
    prompts = sorted(spec.prompts)
    console.result(
        f"model `{output}`\nprompts {', '.join(prompts)}",
        {"model": str(output), "prompts": prompts},
        as_json=as_json,
    )
