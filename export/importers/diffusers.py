"""A diffusers folder in the layout of LDMTextToImagePipeline or StableDiffusionPipeline."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from stage_rt.errors import CheckpointError, MissingExtraError, first_line
from stage_rt.files import new_folder
from stage_rt.recipe import Recipe
from stage_rt.spec import ModelSpec

from ...training.folder import write_description
from .adapters import TrainingRun
from .assemble import DEFAULTS, Options, adapter_networks, make_contexts, make_spec, write_all
from .bert import encode
from .checks import require_finite, require_floats, sizes_of, tensors
from .folder import Network, file_origin, origin
from .keys import BertSizes
from .ldm import LATENT_SCALE, TextEncoder
from .stage import CAPTION, read_runs, run_origins

_LDM, _STABLE = "LDMTextToImagePipeline", "StableDiffusionPipeline"
_VAE_FOLDER = {_LDM: "vqvae", _STABLE: "vae"}
_TEXT_FOLDER = {_LDM: "bert", _STABLE: "text_encoder"}
_CLIP_TYPES = ("F16", "BF16", "F32", "F64", "I64")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

# How attention was named before diffusers 0.12.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BERT_NAMES = (
    (r"^model\.embed_tokens\.", "token_emb."),
    (r"^model\.embed_positions\.", "pos_emb.emb."),
    (r"^model\.layer_norm\.", "norm."),
    (r"^model\.layers\.(\d+)\.self_attn_layer_norm\.", "attn_layers.layers.{even}.0."),
    (r"^model\.layers\.(\d+)\.self_attn\.out_proj\.", "attn_layers.layers.{even}.1.to_out."),
    (r"^model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", "attn_layers.layers.{even}.1.to_{part}."),
    (r"^model\.layers\.(\d+)\.final_layer_norm\.", "attn_layers.layers.{odd}.0."),
    (r"^model\.layers\.(\d+)\.fc1\.", "attn_layers.layers.{odd}.1.net.0.0."),
    (r"^model\.layers\.(\d+)\.fc2\.", "attn_layers.layers.{odd}.1.net.2."),
)


def import_diffusers(
    source: Path,
    folder: Path,
    *,
    texts: Mapping[str, str] | None = None,
    runs: Sequence[TrainingRun] = (),
    step: int | None = None,
    options: Options = DEFAULTS,
) -> ModelSpec:
    """Make a model folder; it appears whole or not at all.

    Args:
        source: the diffusers folder.
        folder: the model folder.
        texts: prompt names and what the text encoder is told for each; they are painted without adapters.
        runs: STAGE training runs, for a folder with the text encoder of LDM.
        step: training step of the adapters; the newest that is complete if None.
        options: as for the other imports; ``image_size`` and ``heads`` are the folder's own.

    Raises:
        InputError: ``folder`` has content.
        CheckpointError: a file is not what it has to be, or not safe.
        MissingExtraError: ``texts`` need a tokenizer, and transformers is not installed.
    """
    texts = texts or {}
    with new_folder(folder) as staged:
        options.say(f"reading {source}")
        pipeline = _pipeline(source)
        if not texts and not runs:
            raise CheckpointError(
                "nothing to paint was named: give `--prompt NAME=TEXT` or `--adapters NAME=DIR`"
            )
        if runs and pipeline != _LDM:
            raise CheckpointError(
                f"`{source}` has CLIP as its text encoder, STAGE's adapters go with that of {_LDM}: leave "
                "`--adapters` out"
            )
        unet = _network(UNet2DConditionModel, source / "unet", options)
        vae = _network(AutoencoderKL, source / _VAE_FOLDER[pipeline], options)
        trained = {}
        contexts = {name: _text_context(source, pipeline, text, options) for name, text in texts.items()}
        if runs:
            bert = _bert(source / "bert", options)
            trained = read_runs(runs, step, bert, unet.config["in_channels"], options)
            learned = {prompt: part for run in trained.values() for prompt, part in run.vectors.items()}
            contexts = {**make_contexts(bert, CAPTION, learned, options), **contexts}
        prompts = {prompt: name for name, run in trained.items() for prompt in run.vectors}
        if both := sorted(set(prompts) & set(texts)):
            raise CheckpointError(
                f"prompt {both[0]!r} is asked of a training run and of a text: give one of them another name"
            )
        options.say("computing sha256")
        files = {network.source.parent.name: file_origin(network.source) for network in (unet, vae)}
        provenance = origin(
            "diffusers", pipeline=pipeline, **files, adapters=run_origins(trained), texts=dict(texts)
        )
        spec = _spec(source, unet, vae, {**prompts, **dict.fromkeys(texts)}, contexts, provenance, options)
        adapters = {name: run.adapters for name, run in trained.items()}
        write_all({"unet": unet, "vae": vae, **adapter_networks(adapters)}, staged, options)
        write_description(staged, spec, contexts)
    return spec


def _pipeline(source: Path) -> str:
    name = _json(source / "model_index.json").get("_class_name")
    if not isinstance(name, str) or name not in _VAE_FOLDER:
        raise CheckpointError(f"`{source}` is a folder of {name}, one of {_LDM} or {_STABLE} was wanted")
    return name


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"`{path}` cannot be read ({reason}), a diffusers folder was wanted") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}` holds no configuration, a diffusers folder was wanted")
    return value


def _network(kind: Any, folder: Path, options: Options) -> Network:
    config = _json(folder / "config.json")
    if config.get("_class_name") != kind.__name__:
        raise CheckpointError(f"`{folder}` holds a {config.get('_class_name')}, a {kind.__name__} was wanted")
    if config.get("addition_embed_type"):
        raise CheckpointError(
            f"`{folder}` is the UNet of Stable Diffusion XL, one that reads only text was wanted"
        )
    path = _weights_file(folder)

    def weights() -> dict[str, Tensor]:
        found = _weights(path, options)
        return {_new_name(name): require_finite(path, name, tensor) for name, tensor in found.items()}

    return Network(kind, {k: v for k, v in config.items() if not k.startswith("_")}, weights, path)


def _weights_file(folder: Path) -> Path:
    for stem in _STEMS:
        for suffix in (".safetensors", ".bin"):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    raise CheckpointError(f"`{folder}` has no weights in one file, `{_STEMS[0]}.safetensors` was wanted")


def _weights(path: Path, options: Options) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        value = options.read(path).value
        return {
            name: tensor.load()
            for name, tensor in tensors(value if isinstance(value, dict) else {}, "").items()
        }
    if path.stat().st_size > options.max_bytes:
        raise CheckpointError(f"`{path}` is larger than allowed: raise `--max-gib` if you trust it")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{path}` cannot be read ({error})") from None


def _new_name(name: str) -> str:
    return re.sub(
        r"(attentions\.\d+\.)(query|key|value|proj_attn)\.",
        lambda match: f"{match[1]}{_OLD_ATTENTION[match[2]]}.",
        name,
    )


def _bert(folder: Path, options: Options) -> TextEncoder:
    path = _weights_file(folder)
    found = {_bert_name(name): tensor for name, tensor in _weights(path, options).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    sizes, _ = sizes_of(path, "the text encoder", shapes, BertSizes.of, BertSizes.entries, extra=True)
    return TextEncoder(
        path, sizes, lambda name: require_finite(path, name, require_floats(path, name, found[name]))
    )


def _bert_name(name: str) -> str:
    for pattern, ours in _BERT_NAMES:
        if match := re.match(pattern, name):
            layer = int(match[1]) if match.lastindex else 0
            part = match[2] if match.lastindex == 2 else ""
            return ours.format(even=2 * layer, odd=2 * layer + 1, part=part) + name[match.end() :]
    return name


@torch.no_grad()
def _text_context(source: Path, pipeline: str, text: str, options: Options) -> Tensor:
    try:
        from transformers import BertTokenizerFast, CLIPTextModel, CLIPTokenizerFast
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            f"`--prompt` needs `{missing.name}` to read texts, which is not installed: `pip install 'stage-rt[text]'`"
        ) from missing
    options.say(f"encoding {text!r}")
    tokenizers, encoder = source / "tokenizer", source / _TEXT_FOLDER[pipeline]
    _json(encoder / "config.json")
    kind = BertTokenizerFast if pipeline == _LDM else CLIPTokenizerFast
    try:
        tokenizer = kind.from_pretrained(tokenizers, local_files_only=True)
        if pipeline == _STABLE:
            clip, told = CLIPTextModel.from_pretrained(
                encoder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # What damaged files end in has no common base.
        raise CheckpointError(
            f"`{source}` has no usable tokenizer and text encoder ({first_line(error)}), fetch the folder again"
        ) from None
    if pipeline == _STABLE:
        _check_clip(encoder, clip, told["missing_keys"])
        places = clip.config.max_position_embeddings
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=places).input_ids
        _require_known(tokenizers, ids, clip.config.vocab_size)
        context: Tensor = clip.float()(torch.tensor([ids])).last_hidden_state[0]
        return context
    bert = _bert(encoder, options)
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=bert.sizes.tokens).input_ids
    _require_known(tokenizers, ids, bert.sizes.words)
    return encode(bert.read, bert.sizes, ids)


def _require_known(tokenizers: Path, ids: Sequence[int], words: int) -> None:
    """Refuse ids of a tokenizer that is another encoder's."""
    if max(ids) >= words:
        raise CheckpointError(
            f"`{tokenizers}` gives a text the token {max(ids)}, of which its text encoder knows {words}: "
            "they are not of one model, fetch the folder again"
        )


def _check_clip(encoder: Path, clip: torch.nn.Module, missing: Collection[str]) -> None:
    """Refuse a text encoder that is not whole: the library draws what a file lacks by dice, and tells a log of it."""
    if missing:
        raise CheckpointError(
            f"`{encoder}` lacks weights of a CLIPTextModel, the first of {len(missing)} is `{min(missing)}`: fetch "
            "the folder again"
        )
    for name, tensor in clip.state_dict().items():
        require_finite(encoder, name, tensor)
    for path in sorted(encoder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            # The library turns them into floating-point numbers without their scale; places of tokens are int64.
            quantised = [name for name in file.keys() if file.get_slice(name).get_dtype() not in _CLIP_TYPES]  # noqa: SIM118
        if quantised:
            require_floats(path, quantised[0], load_file(path)[quantised[0]])


def _spec(
    source: Path,
    unet: Network,
    vae: Network,
    prompts: Mapping[str, str | None],
    contexts: Mapping[str, Tensor],
    provenance: Any,
    options: Options,
) -> ModelSpec:
    channels, latent_size = vae.config.get("latent_channels", 4), unet.config.get("sample_size")
    tokens, dim = next(iter(contexts.values())).shape
    if unet.config.get("in_channels") != channels or not isinstance(latent_size, int):
        raise CheckpointError(
            f"`{source}` has a UNet of {unet.config.get('in_channels')} channels for latents of {channels}, one that "
            "reads only the latent was wanted"
        )
    widths = vae.config.get("block_out_channels")
    if not isinstance(widths, list) or not widths:
        raise CheckpointError(
            f"`{vae.source.with_name('config.json')}` has no `block_out_channels`, the widths of an autoencoder were "
            "wanted"
        )
    if unet.config.get("cross_attention_dim") != dim:
        raise CheckpointError(
            f"`{source}` has a text encoder {dim} wide and a UNet for contexts "
            f"{unet.config.get('cross_attention_dim')} wide"
        )
    return make_spec(
        image_size=latent_size * 2 ** (len(widths) - 1),
        image_channels=vae.config.get("in_channels", 3),
        latent_channels=channels,
        latent_size=latent_size,
        latent_scale=vae.config.get("scaling_factor", LATENT_SCALE),
        tokens=tokens,
        context_dim=dim,
        recipe=_recipe(source, options),
        prompts=dict(prompts),
        provenance=provenance,
    )


def _recipe(source: Path, options: Options) -> Recipe:
    """The authors' recipe on the folder's own noise schedule."""
    path = source / "scheduler" / "scheduler_config.json"
    config = _json(path) if path.is_file() else {}
    wanted = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", "num_train_timesteps": 1000}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"`{path}` has {name} {config[name]}, {value} was wanted")
    authors = Recipe.authors()
    fields = {name: config.get(name, getattr(authors, name)) for name in ("beta_start", "beta_end")}
    try:
        return Recipe(**{**authors.model_dump(), **fields, "mask_rule": options.mask_rule})
    except ValidationError as error:
        raise CheckpointError(
            f"`{path}` has a noise schedule that cannot be: {error.errors()[0]['msg']}"
        ) from None
