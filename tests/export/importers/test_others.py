"""AnomalyDiffusion's files and diffusers folders, to model folders."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from authors_files import SMALL, write_ldm, write_run
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from stage_rt.errors import CheckpointError, InputError, MissingExtraError
from stage_rt.export.importers import diffusers as module
from stage_rt.export.importers.adapters import TrainingRun
from stage_rt.export.importers.anomalydiffusion import import_anomalydiffusion
from stage_rt.export.importers.assemble import Options
from stage_rt.export.importers.diffusers import import_diffusers
from stage_rt.export.importers.keys import BERT_PREFIX
from stage_rt.export.importers.stage import import_stage
from stage_rt.spec import PROMPTS_FILE
from stage_rt.training.folder import load_model

OPTIONS = Options(image_size=32)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    return write_ldm(tmp_path_factory.mktemp("ldm") / "model.ckpt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def imported(ldm, runs, tmp_path_factory):
    """The same weights by `import stage`, to compare with."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    import_stage(ldm, [TrainingRun(("part+dent",), runs)], folder, options=OPTIONS)
    return folder


@pytest.fixture
def pipeline(imported, ldm, tmp_path):
    """A folder as LDMTextToImagePipeline saves it."""
    folder = tmp_path / "pipeline"
    shutil.copytree(imported / "unet", folder / "unet")
    shutil.copytree(imported / "vae", folder / "vqvae")
    (folder / "model_index.json").write_text('{"_class_name": "LDMTextToImagePipeline"}')
    state = torch.load(ldm, weights_only=True)["state_dict"]
    layer = {
        "0.0": "self_attn_layer_norm",
        "0.1.to_q": "self_attn.q_proj",
        "0.1.to_k": "self_attn.k_proj",
        "0.1.to_v": "self_attn.v_proj",
        "0.1.to_out": "self_attn.out_proj",
        "1.0": "final_layer_norm",
        "1.1.net.0.0": "fc1",
        "1.1.net.2": "fc2",
    }
    names = {f"attn_layers.layers.{theirs}": f"model.layers.0.{ours}" for theirs, ours in layer.items()}
    names |= {
        "token_emb": "model.embed_tokens",
        "pos_emb.emb": "model.embed_positions",
        "norm": "model.layer_norm",
    }
    bert = {
        f"{ours}.{kind}": state[f"{BERT_PREFIX}{theirs}.{kind}"]
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
        if f"{BERT_PREFIX}{theirs}.{kind}" in state
    }
    (folder / "bert").mkdir()
    save_file(
        {**bert, "to_logits.bias": torch.zeros(SMALL.bert.words)}, folder / "bert" / "model.safetensors"
    )
    return folder


def change(path, **values):
    path.parent.mkdir(exist_ok=True)
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | values))


def test_anomalydiffusion_has_prompts_without_adapters(ldm, runs, imported, tmp_path):
    spec = import_anomalydiffusion(ldm, runs / "embeddings_gs-10.pt", tmp_path / "model", options=OPTIONS)
    assert spec.prompts == {"part+dent": None, "part+spot": None}
    assert spec.adapters == []
    assert spec.graphs == ["unet", "vae_encoder", "vae_decoder"]
    model = load_model(tmp_path / "model")
    assert model.adapters == {}
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "model" / name).read_bytes() == (imported / name).read_bytes()
    contexts = load_file(tmp_path / "model" / PROMPTS_FILE)
    # The text is another one than STAGE's.
    assert not torch.allclose(
        contexts["part+dent"], load_file(imported / PROMPTS_FILE)["part+dent"], atol=1e-3
    )
    assert spec.provenance["caption"] == "a photo of a *"


def test_anomalydiffusion_takes_the_names_asked_for(ldm, runs, tmp_path):
    embeddings = runs / "embeddings_gs-10.pt"
    spec = import_anomalydiffusion(
        ldm, embeddings, tmp_path / "model", prompts=["part+spot"], options=OPTIONS
    )
    assert spec.prompts == {"part+spot": None}
    with pytest.raises(CheckpointError, match="no embedding named 'x', it has part\\+dent, part\\+spot"):
        import_anomalydiffusion(ldm, embeddings, tmp_path / "other", prompts=["x"], options=OPTIONS)
    with pytest.raises(CheckpointError, match="a mask-guidance adapter, learned embeddings were wanted"):
        import_anomalydiffusion(ldm, runs / "fine_mask-10.pt", tmp_path / "other", options=OPTIONS)


def test_a_pipeline_with_adapters_is_the_model_of_the_checkpoint(pipeline, imported, runs, tmp_path):
    spec = import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    expected = load_model(imported)
    assert spec.model_copy(update={"provenance": {}}) == expected.spec.model_copy(update={"provenance": {}})
    found = load_model(tmp_path / "model")
    for place, network in expected.modules.items():
        theirs = found.modules[place].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(found.contexts["part+dent"], expected.contexts["part+dent"])


def test_old_names_of_attention_and_pickled_weights_are_read(pipeline, runs, tmp_path):
    path = pipeline / "vqvae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    torch.save(renamed, pipeline / "vqvae" / "diffusion_pytorch_model.bin")
    expected = load_file(path)
    path.unlink()
    import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    found = load_file(tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_folder_s_own_schedule_and_scale_are_kept(pipeline, runs, tmp_path):
    change(pipeline / "scheduler" / "scheduler_config.json", beta_start=0.001, beta_end=0.013)
    change(pipeline / "vqvae" / "config.json", scaling_factor=0.5)
    spec = import_diffusers(
        pipeline,
        tmp_path / "model",
        runs=[TrainingRun(("part+dent",), runs)],
        options=replace(OPTIONS, mask_rule="authors"),
    )
    assert (spec.recipe.beta_start, spec.recipe.beta_end, spec.latent_scale) == (0.001, 0.013, 0.5)
    assert spec.recipe.mask_rule == "authors"


def test_anomalydiffusion_keeps_the_latent_scale_that_training_measured(ldm, runs, tmp_path):
    state = torch.load(ldm, weights_only=True)["state_dict"]
    torch.save({"state_dict": {**state, "scale_factor": torch.tensor(0.25)}}, tmp_path / "model.ckpt")
    embeddings = runs / "embeddings_gs-10.pt"
    spec = import_anomalydiffusion(tmp_path / "model.ckpt", embeddings, tmp_path / "model", options=OPTIONS)
    assert spec.latent_scale == 0.25


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLPipeline"},
            "a folder of StableDiffusionXLPipeline, one",
        ),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "has CLIP as its text encoder"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "the UNet of Stable Diffusion XL"),
        (
            "unet/config.json",
            {"_class_name": "UNet2DModel"},
            "holds a UNet2DModel, a UNet2DConditionModel was wanted",
        ),
        ("unet/config.json", {"in_channels": 9}, "adapter for latents of 4 channels, the UNet has 9"),
        (
            "unet/config.json",
            {"cross_attention_dim": 20},
            "a text encoder 16 wide and a UNet for contexts 20 wide",
        ),
        (
            "unet/config.json",
            {"layers_per_block": 2},
            "does not hold a UNet2DConditionModel as its own sizes ask for",
        ),
        ("vqvae/config.json", {"_class_name": "VQModel"}, "holds a VQModel, a AutoencoderKL was wanted"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "prediction_type v_prediction, epsilon",
        ),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 500},
            "num_train_timesteps 500, 1000 was wanted",
        ),
        ("scheduler/scheduler_config.json", {"beta_start": 2}, "a noise schedule that cannot be"),
        ("vqvae/config.json", {"scaling_factor": float("inf")}, "cannot be described, latent_scale: "),
    ],
)
def test_other_folders_are_named(pipeline, runs, tmp_path, file, values, message):
    change(pipeline / file, **values)
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    assert not (tmp_path / "model").exists()


def test_a_text_encoder_of_a_folder_that_does_not_divide_into_heads_is_refused(pipeline, runs, tmp_path):
    path = pipeline / "bert" / "model.safetensors"
    attention = {f"model.layers.0.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")}
    narrow = {name: tensor[:40] if name in attention else tensor for name, tensor in load_file(path).items()}
    narrow["model.layers.0.self_attn.out_proj.weight"] = torch.zeros(SMALL.bert.dim, 40)
    save_file({name: tensor.contiguous() for name, tensor in narrow.items()}, path)
    with pytest.raises(
        CheckpointError,
        match=r"model.safetensors` does not hold .*\(its attention is 40 wide, a multiple of 64",
    ):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_pipeline_is_named(tmp_path, pipeline, runs):
    with pytest.raises(CheckpointError, match=r"model_index.json` cannot be read \(No such file"):
        import_diffusers(tmp_path, tmp_path / "model", texts={"a": "b"})
    with pytest.raises(CheckpointError, match="nothing to paint was named"):
        import_diffusers(pipeline, tmp_path / "model")
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    shutil.rmtree(pipeline / "unet")
    with pytest.raises(CheckpointError, match=r"config\.json` cannot be read"):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    with pytest.raises(InputError, match="exists already"):
        import_diffusers(pipeline, pipeline, texts={"a": "b"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"_class_name": ["LDM"]}', r"is a folder of \['LDM'\], one of LDMTextToImagePipeline or"),
        ("[" * 200_000, r"model_index.json` cannot be read \(maximum recursion depth"),
    ],
)
def test_a_folder_whose_index_is_of_another_kind_is_named(tmp_path, content, message):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(tmp_path, tmp_path / "model", texts={"a": "b"})


def test_texts_without_transformers_say_what_to_install(pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stage-rt\[text\]'"):
        import_diffusers(pipeline, tmp_path / "model", texts={"dent": "a photo of a dent"})


@pytest.fixture
def stable(tmp_path):
    """A small folder as StableDiffusionPipeline saves it."""
    transformers = pytest.importorskip("transformers", reason="texts need transformers")
    folder = tmp_path / "pipeline"
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "dent</w>"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=9, pad_token="<|endoftext|>")
    config = transformers.CLIPTextConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=9,
        eos_token_id=1,
        bos_token_id=0,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def test_a_stable_diffusion_folder_reads_texts_with_clip(stable, tmp_path):
    spec = import_diffusers(stable, tmp_path / "model", texts={"dent": "a dent", "none": "a a"})
    assert spec.prompts == {"dent": None, "none": None}
    assert (spec.image_size, spec.tokens, spec.context_dim) == (16, 9, 16)
    contexts = load_model(tmp_path / "model").contexts
    assert not torch.allclose(contexts["dent"], contexts["none"], atol=1e-3)


def _weights(change):
    def damage(folder):
        path = folder / "text_encoder" / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return damage


DAMAGES = {
    "renamed": (
        _weights(lambda held: {f"other.{name}": tensor for name, tensor in held.items()}),
        r"text_encoder` lacks weights of a CLIPTextModel, the first of \d\d is `",
    ),
    "one missing": (
        _weights(lambda held: {name: held[name] for name in sorted(held)[1:]}),
        "text_encoder` lacks weights of a CLIPTextModel, the first of 1 is `",
    ),
    "not finite": (
        _weights(lambda held: {name: tensor * float("nan") for name, tensor in held.items()}),
        "text_encoder` holds values that are not finite in `",
    ),
    "quantised": (
        _weights(lambda held: {name: (100 * tensor).to(torch.int8) for name, tensor in held.items()}),
        r"model.safetensors` holds `\S+` as int8, weights in float32, float16",
    ),
    "cut": (
        lambda folder: os.truncate(folder / "text_encoder" / "model.safetensors", 3000),
        r"has no usable tokenizer and text encoder \(Error while deserializing header",
    ),
    "another width": (
        lambda folder: change(folder / "text_encoder" / "config.json", hidden_size=32),
        "has no usable tokenizer and text encoder",
    ),
    "a tokenizer of more words": (
        lambda folder: change(folder / "tokenizer" / "vocab.json", **{"a</w>": 4}),
        "tokenizer` gives a text the token 4, of which its text encoder knows 4: they are not of one model",
    ),
    "no vocabulary": (
        lambda folder: (folder / "tokenizer" / "vocab.json").write_text("["),
        r"has no usable tokenizer and text encoder \(Error while initializing BPE",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_text_encoder_that_is_not_whole_is_refused(stable, tmp_path, damage):
    do, message = DAMAGES[damage]
    do(stable)
    with pytest.raises(CheckpointError, match=message):
        import_diffusers(stable, tmp_path / "model", texts={"dent": "a dent"})
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_of_longer_texts_fills_the_places_of_its_encoder(stable, tmp_path):
    change(stable / "tokenizer" / "tokenizer_config.json", model_max_length=77)
    assert import_diffusers(stable, tmp_path / "model", texts={"dent": "a dent"}).tokens == 9


def test_positions_of_a_text_encoder_may_be_whole_numbers(stable, tmp_path):
    """As older releases of the library saved them."""
    path = stable / "text_encoder" / "model.safetensors"
    positions = {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    save_file(load_file(path) | positions, path, metadata={"format": "pt"})
    import_diffusers(stable, tmp_path / "model", texts={"dent": "a dent"})


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "conv_out.bias"),
        ("vqvae/diffusion_pytorch_model.safetensors", "quant_conv.bias"),
        ("bert/model.safetensors", "model.layer_norm.bias"),
    ],
)
def test_a_folder_that_was_quantised_is_refused(pipeline, runs, tmp_path, file, name, kind):
    held = load_file(pipeline / file)
    save_file(held | {name: torch.ones_like(held[name]).to(kind)}, pipeline / file)
    told = name.removeprefix("model.layer_") if file.startswith("bert") else name
    with pytest.raises(
        CheckpointError, match=f"{file}` holds `{told}` as {str(kind)[6:]}, weights in float32"
    ):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    assert not (tmp_path / "model").exists()


def test_a_name_that_is_a_run_s_and_a_text_s_is_refused(pipeline, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_text_context", lambda *_: torch.zeros(1, 16))
    with pytest.raises(
        CheckpointError, match=r"prompt 'part\+dent' is asked of a training run and of a text"
    ):
        import_diffusers(
            pipeline,
            tmp_path / "model",
            runs=[TrainingRun(("part+dent",), runs)],
            texts={"part+dent": "a dent"},
        )


@pytest.mark.parametrize("widths", [None, [], 4, "ab"])
def test_an_autoencoder_without_widths_is_refused(pipeline, runs, tmp_path, widths):
    path = pipeline / "vqvae" / "config.json"
    config = json.loads(path.read_text())
    config.pop("block_out_channels")
    path.write_text(json.dumps(config if widths is None else config | {"block_out_channels": widths}))
    with pytest.raises(CheckpointError, match=r"vqvae/config.json` has no `block_out_channels`"):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"down_block_types": ["NoSuchBlock", "DownBlock2D"]},
        {"block_out_channels": []},
        {"norm_num_groups": 0},
        {"layers_per_block": "many"},
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(pipeline, runs, tmp_path, values):
    change(pipeline / "unet" / "config.json", **values)
    with pytest.raises(CheckpointError, match=r"no UNet2DConditionModel can be made .*unet"):
        import_diffusers(pipeline, tmp_path / "model", runs=[TrainingRun(("part+dent",), runs)])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("source", ["stage", "diffusers", "anomalydiffusion"])
def test_what_a_killed_import_had_staged_is_gone(ldm, pipeline, runs, tmp_path, source):
    out = tmp_path / "out"
    (out / ".model.0123abcd.tmp").mkdir(parents=True)
    (out / ".model.0123abcd.tmp" / "half").touch()
    trained = [TrainingRun(("part+dent",), runs)]
    if source == "stage":
        import_stage(ldm, trained, out / "model", options=OPTIONS)
    elif source == "diffusers":
        import_diffusers(pipeline, out / "model", runs=trained)
    else:
        import_anomalydiffusion(ldm, runs / "embeddings_gs-10.pt", out / "model", options=OPTIONS)
    assert [path.name for path in out.iterdir()] == ["model"]
