"""The authors' files at a very small size, to a model folder, and everything that can be wrong with them."""

import json
from dataclasses import replace

import authors_files
import pytest
import torch
from authors_files import SMALL, write_adapter, write_embeddings, write_ldm, write_run
from conftest import FOLDER as GOLDEN
from safetensors.torch import load_file

from stage_rt.errors import CheckpointError, InputError
from stage_rt.export.importers.adapters import TrainingRun, _entries, read_embeddings, trained_prompt
from stage_rt.export.importers.assemble import Options
from stage_rt.export.importers.bert import CAPTIONS, encode
from stage_rt.export.importers.keys import (
    BERT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    AutoencoderSizes,
    BertSizes,
    UNetSizes,
)
from stage_rt.export.importers.stage import import_stage
from stage_rt.recipe import Branch
from stage_rt.spec import PROMPTS_FILE
from stage_rt.training.folder import load_model

OPTIONS = Options(image_size=32)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    return write_ldm(tmp_path_factory.mktemp("ldm") / "model.ckpt")


@pytest.fixture(scope="module")
def state(ldm):
    return torch.load(ldm, weights_only=True)["state_dict"]


def run(folder, *prompts):
    return TrainingRun(prompts, folder)


def saved(tmp_path, state):
    path = tmp_path / "changed.ckpt"
    torch.save({"state_dict": state}, path)
    return path


def test_one_run_becomes_a_model(ldm, state, tmp_path):
    names = ("part+dent", "part+hole", "part+spot")
    folder = write_run(tmp_path / "run", names, trained="part+dent")
    spec = import_stage(ldm, [run(folder)], tmp_path / "model", options=OPTIONS)
    model = load_model(tmp_path / "model")
    assert model.spec == spec
    assert spec.prompts == {"part+dent": "part+dent"}
    assert (spec.image_size, spec.latent_size, spec.tokens, spec.context_dim) == (32, 16, 12, 16)
    assert (spec.latent_scale, spec.recipe.name, spec.recipe.mask_rule) == (0.18215, "authors", "cover")
    assert torch.equal(model.unet.conv_in.weight, state[f"{UNET_PREFIX}input_blocks.0.0.weight"])
    assert torch.equal(model.vae.decoder.conv_out.weight, state[f"{VAE_PREFIX}decoder.conv_out.weight"])
    assert model.unet.config.attention_head_dim == 8
    for branch, stem in ((Branch.AWARE, "fine_image"), (Branch.ONLY, "fine_mask")):
        kept = model.adapters["part+dent"][branch].state_dict()
        with authors_files._their_class():
            theirs = torch.load(folder / f"{stem}-10.pt", weights_only=False).state_dict()
        assert kept.keys() == theirs.keys()
        assert all(torch.equal(kept[name], theirs[name]) for name in theirs)


def test_provenance_names_every_file(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    told = json.loads((tmp_path / "model" / "stage.json").read_text())["provenance"]
    assert told["imported"] == "stage"
    assert told["ldm"]["file"] == "model.ckpt"
    assert told["adapters"]["part+dent"]["step"] == 10
    files = told["adapters"]["part+dent"]["files"]
    assert [file["file"] for file in files] == ["embeddings_gs-10.pt", "fine_image-10.pt", "fine_mask-10.pt"]
    assert all(len(file["sha256"]) == 64 for file in [told["ldm"], *files])
    assert str(tmp_path) not in json.dumps(told)


def test_several_runs_share_one_unet(ldm, tmp_path):
    one = write_run(tmp_path / "one" / "checkpoints", seed=1).parent
    two = write_run(tmp_path / "two", seed=2)
    runs = [run(one, "part+dent"), run(two, "part+spot")]
    spec = import_stage(ldm, runs, tmp_path / "model", options=OPTIONS)
    assert spec.prompts == {"part+dent": "part+dent", "part+spot": "part+spot"}
    names = sorted(
        path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.safe*")
    )
    assert [name for name in names if name.startswith("unet")] == ["unet/diffusion_pytorch_model.safetensors"]
    assert sum(name.startswith("adapters/") for name in names) == 4
    weights = [load_file(tmp_path / "model" / name)["conv.0.weight"] for name in names if "aware" in name]
    assert not torch.equal(*weights)


def test_one_run_can_serve_several_prompts(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    spec = import_stage(ldm, [run(folder, "part+dent", "part+spot")], tmp_path / "model", options=OPTIONS)
    assert spec.adapters == ["part+dent"]
    contexts = load_file(tmp_path / "model" / PROMPTS_FILE)
    assert not torch.equal(contexts["part+dent"], contexts["part+spot"])


def test_half_precision(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    import_stage(
        ldm, [run(folder, "part+dent")], tmp_path / "model", options=replace(OPTIONS, dtype=torch.float16)
    )
    weights = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert load_file(tmp_path / "model" / PROMPTS_FILE)["part+dent"].dtype == torch.float32
    load_model(tmp_path / "model")


def test_everybody_may_read_what_is_written(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "model" / "stage.json").stat().st_mode}


def test_newest_complete_step_is_taken_and_a_newer_one_told(ldm, tmp_path):
    folder = write_run(tmp_path / "run", step=900)
    write_run(folder, step=1500)
    write_run(folder, step=3000)
    (folder / "fine_mask-3000.pt").unlink()
    said = []
    options = replace(OPTIONS, notify=said.append)
    spec = import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=options)
    assert spec.provenance["adapters"]["part+dent"]["step"] == 1500
    assert said == [f"step 3000 in `{folder}` lacks files, step 1500 is the newest that is complete"]
    spec = import_stage(ldm, [run(folder, "part+dent")], tmp_path / "older", step=900, options=options)
    assert spec.provenance["adapters"]["part+dent"]["step"] == 900


def test_files_without_a_step_are_those_of_the_end(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    for stem, name in (
        ("embeddings_gs", "embeddings"),
        ("fine_image", "fine_image"),
        ("fine_mask", "fine_mask"),
    ):
        (folder / f"{stem}-10.pt").rename(folder / f"{name}.pt")
    spec = import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    assert spec.provenance["adapters"]["part+dent"]["step"] is None


def test_any_number_of_vectors(ldm, tmp_path):
    for vectors in (1, 8):
        folder = write_run(tmp_path / f"run{vectors}", sizes=replace(SMALL, vectors=vectors))
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / f"model{vectors}", options=OPTIONS)
    folder = write_run(tmp_path / "run", sizes=replace(SMALL, vectors=10))
    with pytest.raises(CheckpointError, match="too few for 'Anomaly \\*' with 10 learned vectors"):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)


def test_vectors_stand_where_the_placeholder_was(state):
    """The context of n vectors equal to words is that of a text with those words."""
    sizes, caption = SMALL.bert, CAPTIONS["Anomaly *"]
    words = state[f"{BERT_PREFIX}token_emb.weight"]

    def read(name):
        return state[f"{BERT_PREFIX}{name}"]

    place = caption.index(1008)
    replaced = encode(read, sizes, caption, words[[7, 8]])
    spelled = encode(read, sizes, (*caption[:place], 7, 1008, *caption[place + 1 :]), words[[8]])
    assert torch.allclose(replaced, spelled, atol=1e-6)
    assert not torch.allclose(replaced, encode(read, sizes, caption, words[[8, 7]]), atol=1e-3)


def test_text_encoder_written_out(state):
    """One layer of one head, as the equations have it."""
    sizes = SMALL.bert

    def read(name):
        return state[f"{BERT_PREFIX}{name}"]

    ids = torch.tensor([101, 28685, 5, 102, *[0] * 8])
    x = read("token_emb.weight")[ids] + read("pos_emb.emb.weight")
    normed = torch.nn.functional.layer_norm(x, (16,))
    layer = "attn_layers.layers.0.1"
    scores = (normed @ read(f"{layer}.to_q.weight").T) @ (normed @ read(f"{layer}.to_k.weight").T).T / 8
    mixed = scores.softmax(-1) @ (normed @ read(f"{layer}.to_v.weight").T)
    x = x + mixed @ read(f"{layer}.to_out.weight").T
    layer = "attn_layers.layers.1.1"
    hidden = torch.nn.GELU()(torch.nn.functional.layer_norm(x, (16,)) @ read(f"{layer}.net.0.0.weight").T)
    expected = torch.nn.functional.layer_norm(x + hidden @ read(f"{layer}.net.2.weight").T, (16,))
    found = encode(read, sizes, CAPTIONS["Anomaly *"], read("token_emb.weight")[[5]])
    assert torch.allclose(found, expected, atol=1e-5)


def test_full_size_has_the_names_and_shapes_of_the_authors_model():
    rows = [line.split("\t") for line in (GOLDEN / "checkpoint_keys.tsv").read_text().splitlines()]
    theirs = {name: tuple(json.loads(shape)) for name, _, shape in rows}
    full = authors_files.FULL
    parts = ((UNET_PREFIX, full.unet), (VAE_PREFIX, full.vae), (BERT_PREFIX, full.bert))
    ours = {f"{prefix}{name}": shape for prefix, part in parts for name, shape in part.entries()}
    for stem in ("fine_image.", "fine_mask."):
        ours |= {f"{stem}{name}": shape for name, shape in _entries(4, full.adapter)}
    assert {name: theirs.get(name) for name in ours} == ours
    for prefix, part in parts:
        found = {
            name.removeprefix(prefix): shape for name, shape in theirs.items() if name.startswith(prefix)
        }
        assert type(part).of(found) == part
    unused = {name for name in theirs if name not in ours and "embedding_manager" not in name}
    assert {name for name in unused if "." in name} == {
        f"{BERT_PREFIX}to_logits.{n}" for n in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("prefix", "kind"), [(UNET_PREFIX, UNetSizes), (VAE_PREFIX, AutoencoderSizes), (BERT_PREFIX, BertSizes)]
)
def test_sizes_are_read_off_the_shapes(state, prefix, kind):
    shapes = {
        name.removeprefix(prefix): tuple(t.shape) for name, t in state.items() if name.startswith(prefix)
    }
    assert (
        kind.of(shapes) == {UNET_PREFIX: SMALL.unet, VAE_PREFIX: SMALL.vae, BERT_PREFIX: SMALL.bert}[prefix]
    )


def test_missing_and_misshapen_tensors_are_named(state, tmp_path):
    folder = write_run(tmp_path / "run")
    changed = dict(state)
    for n in (0, 2):
        del changed[f"{UNET_PREFIX}time_embed.{n}.bias"]
    changed[f"{UNET_PREFIX}out.2.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as error:
        import_stage(
            saved(tmp_path, changed), [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS
        )
    assert "2 missing (`time_embed.0.bias`, `time_embed.2.bias`)" in str(error.value)
    assert "1 of another shape (`out.2.bias 5 instead of 4`)" in str(error.value)
    assert not (tmp_path / "model").exists()


def test_unknown_tensors_of_the_unet_are_refused_and_others_told(state, tmp_path):
    folder = write_run(tmp_path / "run")
    changed = {**state, f"{UNET_PREFIX}label_emb.0.0.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"1 not known \(`label_emb.0.0.weight`\)"):
        import_stage(
            saved(tmp_path, changed), [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS
        )
    said = []
    changed = {**state, "model_ema.decay": torch.zeros(()), f"{VAE_PREFIX}loss.logvar": torch.zeros(())}
    import_stage(
        saved(tmp_path, changed),
        [run(folder, "part+dent")],
        tmp_path / "model",
        options=replace(OPTIONS, notify=said.append),
    )
    assert len(said) == 1
    assert said[0].startswith("2 tensors of")
    assert "`model_ema.decay`" in said[0]


@pytest.mark.parametrize(
    "name", [f"{UNET_PREFIX}out.2.bias", f"{VAE_PREFIX}quant_conv.bias", f"{BERT_PREFIX}norm.bias"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(state, tmp_path, name, value):
    folder = write_run(tmp_path / "run")
    changed = {**state, name: torch.full_like(state[name], value)}
    with pytest.raises(CheckpointError, match=f"not finite in `{name}`"):
        import_stage(
            saved(tmp_path, changed), [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS
        )
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (f"{UNET_PREFIX}out.2.bias", "conv_out.bias"),
        (f"{VAE_PREFIX}quant_conv.bias", "quant_conv.bias"),
        (f"{BERT_PREFIX}norm.bias", f"{BERT_PREFIX}norm.bias"),
    ],
)
@pytest.mark.parametrize("kind", [torch.int8, torch.int64])
def test_weights_that_are_whole_numbers_are_refused(state, tmp_path, name, told, kind):
    folder = write_run(tmp_path / "run")
    path = saved(tmp_path, {**state, name: torch.ones_like(state[name], dtype=kind)})
    with pytest.raises(
        CheckpointError, match=f"changed.ckpt` holds `{told}` as {str(kind)[6:]}, weights in float32, float16"
    ):
        import_stage(path, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    assert not (tmp_path / "model").exists()


def test_adapters_and_vectors_that_are_whole_numbers_are_refused(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "fine_mask-10.pt"
    with authors_files._their_class():
        weights = torch.load(path, weights_only=False).state_dict()
    # Counts are whole numbers, and stay so.
    torch.save(weights, path)
    import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    kept = load_file(tmp_path / "model/adapters/part+dent/only/diffusion_pytorch_model.safetensors")
    assert kept["conv.1.num_batches_tracked"].dtype == torch.int64
    torch.save({**weights, "conv.0.bias": torch.ones(8, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match=r"fine_mask-10.pt` holds `conv.0.bias` as int8"):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "other", options=OPTIONS)
    write_embeddings(folder / "embeddings_gs-10.pt", {"part+dent": torch.ones(3, 16)})
    value = {
        "string_to_token": {"*": 1008},
        "string_to_param": {"part+dent": torch.ones(3, 16).to(torch.uint8)},
    }
    torch.save(value, folder / "embeddings_gs-10.pt")
    with pytest.raises(CheckpointError, match=r"embeddings_gs-10.pt` holds `part\+dent` as uint8"):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "other", options=OPTIONS)
    assert not (tmp_path / "other").exists()


def test_values_beyond_half_precision_are_refused(state, tmp_path):
    folder = write_run(tmp_path / "run")
    name = f"{UNET_PREFIX}out.2.bias"
    path = saved(tmp_path, {**state, name: torch.full_like(state[name], 1e5)})
    with pytest.raises(CheckpointError, match="fp16 cannot hold: use `--dtype fp32`"):
        import_stage(
            path,
            [run(folder, "part+dent")],
            tmp_path / "model",
            options=replace(OPTIONS, dtype=torch.float16),
        )


def test_another_noise_schedule_is_refused(state, tmp_path):
    folder = write_run(tmp_path / "run")
    path = saved(tmp_path, {**state, "betas": torch.linspace(1e-4, 0.02, 1000)})
    with pytest.raises(CheckpointError, match=r"another noise schedule \(1000 steps, the last beta 0.02\)"):
        import_stage(path, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)


@pytest.mark.parametrize("width", [96, 0])
def test_a_text_encoder_that_does_not_divide_into_heads_is_refused(state, tmp_path, width):
    folder, layer = write_run(tmp_path / "run"), f"{BERT_PREFIX}attn_layers.layers.0.1"
    narrow = {
        f"{layer}.{part}.weight": torch.zeros(width, SMALL.bert.dim) for part in ("to_q", "to_k", "to_v")
    }
    path = saved(tmp_path, state | narrow | {f"{layer}.to_out.weight": torch.zeros(SMALL.bert.dim, width)})
    with pytest.raises(
        CheckpointError,
        match=rf"changed.ckpt` does not hold the text encoder .*\(its attention is {width} wide, a multiple of 64",
    ):
        import_stage(path, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("stored", [torch.tensor(0.25), torch.tensor([0.75], dtype=torch.float64)])
def test_the_latent_scale_that_training_measured_is_kept(state, tmp_path, stored):
    """Where `scale_by_std` was on, the checkpoint's own is not that of the public weights."""
    folder, said = write_run(tmp_path / "run"), []
    path = saved(tmp_path, {**state, "scale_factor": stored})
    options = replace(OPTIONS, notify=said.append)
    spec = import_stage(path, [run(folder, "part+dent")], tmp_path / "model", options=options)
    assert spec.latent_scale == stored.item()
    assert said == []
    model = load_model(tmp_path / "model")
    assert (model.spec.latent_scale, model.vae.config.scaling_factor) == (stored.item(), stored.item())


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (torch.tensor(float("nan")), "of nan, which"),
        (torch.tensor(float("inf")), "of inf, which"),
        (torch.tensor(0.0), "of 0, which"),
        (torch.tensor(-0.2), "of -0.2, which"),
        (torch.tensor(1e-60, dtype=torch.float64), "of 0, which"),
        (torch.tensor([0.2, 0.3]), r"of shape \[2\], one number"),
        (torch.zeros(0), r"of shape \[0\], one number"),
    ],
)
def test_a_latent_scale_that_cannot_be_is_refused(state, tmp_path, stored, told):
    folder = write_run(tmp_path / "run")
    path = saved(tmp_path, {**state, "scale_factor": stored})
    with pytest.raises(CheckpointError, match=f"changed.ckpt` has a `scale_factor` {told}"):
        import_stage(path, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)
    assert not (tmp_path / "model").exists()


def test_wrong_file_in_a_role_is_named(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    attempt = {"runs": [run(folder, "part+dent")], "folder": tmp_path / "model", "options": OPTIONS}
    with pytest.raises(CheckpointError, match=r"is learned embeddings, the `model.ckpt` of .* was wanted"):
        import_stage(folder / "embeddings_gs-10.pt", **attempt)
    with pytest.raises(
        CheckpointError, match=r"a pickled `ldm.*MGA`, a mask-guidance adapter, the `model.ckpt`"
    ):
        import_stage(folder / "fine_mask-10.pt", **attempt)
    (folder / "fine_mask-10.pt").write_bytes((folder / "embeddings_gs-10.pt").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"fine_mask-10.pt` is learned embeddings, a mask-guidance adapter"
    ):
        import_stage(ldm, **attempt)
    (folder / "embeddings_gs-10.pt").write_bytes((folder / "fine_image-10.pt").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"MGA`, a mask-guidance adapter, learned embeddings were wanted"
    ):
        import_stage(ldm, **attempt)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("conditioner.embedders.0.transformer.text_model.x", "a Stable Diffusion XL checkpoint"),
        ("cond_stage_model.transformer.text_model.x", "a Stable Diffusion 1 checkpoint"),
        ("cond_stage_model.model.x", "a Stable Diffusion 2 checkpoint"),
        ("down_blocks.0.x", "the UNet of a diffusers folder"),
        ("something.else", "a dictionary with `something.else`, `"),
    ],
)
def test_other_checkpoints_are_named(state, tmp_path, key, name):
    others = {f"{UNET_PREFIX}out.2.bias": torch.zeros(4)} if "x" in key else {}
    path = saved(tmp_path, {key: torch.zeros(1), **others, "b": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=f"is {name}.*, the `model.ckpt` of latent-diffusion text2img was wanted"
    ):
        import_stage(path, [run(tmp_path, "x")], tmp_path / "model", options=OPTIONS)


def test_adapters_of_two_widths_are_refused(ldm, tmp_path):
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", sizes=replace(SMALL, adapter=(8, 16)))
    with pytest.raises(
        CheckpointError, match=r"layers 8-12 wide and .* layers 8-16 wide: adapters of one model"
    ):
        import_stage(ldm, [run(one, "part+dent"), run(two, "part+spot")], tmp_path / "model", options=OPTIONS)


def test_an_adapter_for_other_latents_is_refused(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    write_adapter(folder / "fine_mask-10.pt", (8, 12), torch.Generator(), channels=8)
    with pytest.raises(CheckpointError, match="for latents of 8 channels, the UNet has 4"):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)


def test_a_name_that_is_not_there_lists_those_that_are(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(
        CheckpointError, match="no embedding named 'part\\+hole', it has part\\+dent, part\\+spot"
    ):
        import_stage(ldm, [run(folder, "part+hole")], tmp_path / "model", options=OPTIONS)


def test_a_run_that_does_not_tell_its_prompt_serves_all_or_lists_the_names(ldm, tmp_path):
    folder, said = write_run(tmp_path / "run"), []
    options = replace(OPTIONS, notify=said.append)
    spec = import_stage(ldm, [run(folder)], tmp_path / "model", options=options)
    assert spec.prompts == {"part+dent": "part+dent", "part+spot": "part+dent"}
    assert len(said) == 1
    assert (
        "for all of its 2 names; to have one, name it as `--adapters NAME=DIR`: part+dent, part+spot"
        in said[0]
    )
    other = write_run(tmp_path / "other")
    with pytest.raises(CheckpointError, match="`--adapters NAME=DIR`: part\\+dent, part\\+spot"):
        import_stage(ldm, [run(folder), run(other)], tmp_path / "both", options=OPTIONS)


def test_the_vectors_that_training_moved_are_found_in_bfloat16_too(tmp_path):
    start = torch.ones(2, 8, dtype=torch.bfloat16)
    moved = write_embeddings(tmp_path / "a.pt", {"dent": start, "spot": 2 * start, "hole": start})
    assert trained_prompt(read_embeddings(moved)) == "spot"


def test_a_token_that_is_no_number_is_refused(tmp_path):
    value = {"string_to_token": {"*": torch.tensor(float("nan"))}, "string_to_param": {"a": torch.ones(2, 8)}}
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"holds vectors for token nan of the text, those for `\*`"):
        read_embeddings(tmp_path / "a.pt")


def test_one_prompt_of_two_runs_is_refused(ldm, tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    with pytest.raises(CheckpointError, match="prompt 'part\\+dent' is asked of"):
        import_stage(ldm, [run(one, "part+dent"), run(two, "part+dent")], tmp_path / "model", options=OPTIONS)


def test_a_step_that_only_some_files_have_is_named(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    write_run(folder, step=20)
    (folder / "fine_mask-20.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no `fine_mask-20.pt`: the steps .* all three files are there are 10"
    ):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", step=20, options=OPTIONS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no step of which there are `embeddings_gs-N.pt`"):
        import_stage(ldm, [run(tmp_path / "empty", "x")], tmp_path / "model", options=OPTIONS)


def test_vectors_of_another_width_are_refused(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    write_embeddings(folder / "embeddings_gs-10.pt", {"part+dent": torch.ones(3, 20)})
    with pytest.raises(
        CheckpointError, match="vectors 20 wide for 'part\\+dent', the text encoder is 16 wide"
    ):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)


def test_sizes_that_do_not_divide_are_refused(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="33 pixels do not divide by that, give another `--image-size`"):
        import_stage(
            ldm, [run(folder, "part+dent")], tmp_path / "model", options=replace(OPTIONS, image_size=33)
        )
    with pytest.raises(CheckpointError, match="5 heads do not divide: give `--heads`"):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=replace(OPTIONS, heads=5))


class Installer:
    """Pickles as a call of what is no part of Python itself."""

    def __reduce__(self):
        return torch.hub.load, ("somebody/anything", "entry")


def test_a_call_of_another_library_is_not_made_and_told(ldm, state, tmp_path, monkeypatch):
    folder, said = write_run(tmp_path / "run"), []
    path = tmp_path / "more.ckpt"
    torch.save({"state_dict": state, "more": Installer()}, path)
    monkeypatch.setattr(torch.hub, "load", lambda *_: pytest.fail("called"))
    options = replace(OPTIONS, notify=said.append)
    import_stage(path, [run(folder, "part+dent")], tmp_path / "model", options=options)
    assert said == [
        f"`{path}` asks for calls of names that are no part of a checkpoint; none was made: torch.hub.load"
    ]


def test_a_module_that_holds_itself_ends(ldm, tmp_path):
    folder = write_run(tmp_path / "run")
    loop = torch.nn.Sequential()
    loop._modules["conv"] = loop
    torch.save(loop, folder / "fine_mask-10.pt")
    with pytest.raises(CheckpointError, match="a mask-guidance adapter was wanted"):
        import_stage(ldm, [run(folder, "part+dent")], tmp_path / "model", options=OPTIONS)


def test_a_folder_with_content_is_left_alone(ldm, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        import_stage(ldm, [run(tmp_path, "x")], tmp_path / "model", options=OPTIONS)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.txt"]


def test_names_a_folder_cannot_have_get_another(ldm, tmp_path):
    names = ("teil+riß", "teil+ri s", "-x")
    runs = [run(write_run(tmp_path / str(n), names), name) for n, name in enumerate(names)]
    spec = import_stage(ldm, runs, tmp_path / "model", options=OPTIONS)
    assert spec.prompts == {"teil+riß": "teil+ri_", "teil+ri s": "teil+ri_s", "-x": "a-x"}
    with pytest.raises(CheckpointError, match="cannot be described"):
        import_stage(
            ldm,
            [run(write_run(tmp_path / "up", ["up/down"]), "up/down")],
            tmp_path / "other",
            options=OPTIONS,
        )
    assert not (tmp_path / "other").exists()
