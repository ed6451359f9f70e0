"""A model repository for Triton: its layout, its configurations against Triton's own schema, and what is refused."""

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from descriptions import relist, rewrite
from fake_triton import config, dtype, schema

from stage_rt.backends.triton import model_names
from stage_rt.cli import main
from stage_rt.engines.triton import write_repository
from stage_rt.errors import GraphsError, InputError
from stage_rt.folders import read_description
from stage_rt.recipe import Recipe
from stage_rt.spec import GRAPHS_FILE, GraphsSpec, ModelSpec

NETWORKS = ["unet", "adapters_tile_aware", "adapters_tile_only", "vae_encoder", "vae_decoder"]
MODELS = ["stage", *(f"stage_{network}" for network in NETWORKS)]


@pytest.fixture
def source(graphs, tmp_path):
    return shutil.copytree(graphs("fp32"), tmp_path / "graphs")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_model_is_a_folder_that_tritons_schema_knows(graphs, tmp_path, precision):
    repository = tmp_path / "repository"
    assert write_repository(graphs(precision), repository, name="stage") == MODELS
    assert sorted(path.name for path in repository.iterdir()) == sorted(MODELS)
    for place in repository.iterdir():
        found = config(place)
        assert found.name == place.name
        assert re.fullmatch(r"[A-Za-z0-9_-]+", place.name)
        assert found.max_batch_size == 0
        assert {path.name for path in place.iterdir()} == {"config.pbtxt", "1"}
        python = found.name == "stage"
        assert found.backend == ("python" if python else "onnxruntime")
        files = {str(path.relative_to(place / "1")) for path in (place / "1").rglob("*") if path.is_file()}
        described = {"model.py", "model/model.json", "model/prompts.safetensors"}
        assert files == (described if python else {"model.onnx"})
        assert len(found.instance_group) == found.instance_group[0].count == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_is_configured_as_its_graph_is(graphs, tmp_path, precision):
    write_repository(graphs(precision), tmp_path / "repository", name="stage")
    kinds = {np.float32: "tensor(float)", np.float16: "tensor(float16)", np.int64: "tensor(int64)"}
    for name in MODELS[1:]:
        place = tmp_path / "repository" / name
        session = onnxruntime.InferenceSession(place / "1/model.onnx", providers=["CPUExecutionProvider"])
        for told, nodes in (
            (config(place).input, session.get_inputs()),
            (config(place).output, session.get_outputs()),
        ):
            assert [(tensor.name, kinds[dtype(tensor)], list(tensor.dims)) for tensor in told] == [
                (node.name, node.type, [size if isinstance(size, int) else -1 for size in node.shape])
                for node in nodes
            ]


def test_the_painting_model_takes_pictures_of_any_size(graphs, tmp_path):
    write_repository(graphs("fp32"), tmp_path / "repository", name="line-7")
    found = config(tmp_path / "repository/line-7")
    told = {
        tensor.name: (schema().DataType.Name(tensor.data_type), list(tensor.dims), tensor.optional)
        for tensor in found.input
    }
    assert told == {
        "image": ("TYPE_UINT8", [-1, -1, 3], False),
        "mask": ("TYPE_UINT8", [-1, -1], False),
        "prompt": ("TYPE_STRING", [1], False),
        "seed": ("TYPE_UINT64", [1], False),
        "steps": ("TYPE_INT32", [1], True),
    }
    assert [tensor.name for tensor in found.output] == ["image", "fill"]


def test_the_graphs_can_be_read_by_the_onnx_runtime_that_triton_brings(graphs):
    # 24.12 is the first release with a Python that stage-rt runs on; its ONNX Runtime is 1.19.2: IR 10, opset 21.
    for path in graphs("fp32").rglob("*.onnx"):
        graph = onnx.load(path)
        assert graph.ir_version <= 10
        assert {(each.domain, each.version) for each in graph.opset_import} == {("", 21)}


def test_names_are_those_of_folders_and_differ_where_the_graphs_do():
    model = ModelSpec(
        image_size=32,
        latent_size=8,
        latent_scale=1.0,
        tokens=1,
        context_dim=1,
        recipe=Recipe.authors(),
        prompts={"a": "tile+hole", "b": "tile_hole", "c": "tile-hole"},
    )
    names = model_names(model, "stage")
    assert set(names) == set(model.graphs)
    assert len(set(names.values())) == len(names)
    assert names["adapters/tile+hole.only"] == "stage_adapters_tile_hole_only"
    assert names["adapters/tile_hole.only"] == "stage_adapters_tile_hole_only_"
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names.values())


def test_weights_beside_a_graph_go_with_it(source, tmp_path):
    for name in ("unet", "adapters/tile.only"):
        path, place = source / f"{name}.onnx", f"{name.rpartition('/')[2]}.onnx.data"
        graph = onnx.load(path)
        onnx.save(graph, path, save_as_external_data=True, location=place, size_threshold=1024)
    relist(source)
    write_repository(source, tmp_path / "repository", name="stage")
    for name, place in (("unet", "unet.onnx.data"), ("adapters_tile_only", "tile.only.onnx.data")):
        folder = tmp_path / f"repository/stage_{name}/1"
        assert {path.name for path in folder.iterdir()} == {"model.onnx", place}
        onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def test_weights_of_nobodys_name_are_refused(source, tmp_path):
    (source / "weights.bin").write_bytes(b"1")
    relist(source)
    with pytest.raises(GraphsError, match=r"weights.bin` has the name of no graph"):
        write_repository(source, tmp_path / "repository", name="stage")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "tile+hole", "a b", '"', "x" * 33, "-x"])
def test_what_cannot_be_a_name_is_refused(source, tmp_path, name):
    with pytest.raises(InputError, match="cannot be the name of a model"):
        write_repository(source, tmp_path / "repository", name=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graphs"]


def test_graphs_that_triton_cannot_run_or_that_were_changed_are_refused(source, tmp_path):
    (source / "unet.onnx").write_bytes(b"other")
    with pytest.raises(GraphsError, match=r"unet.onnx` is not the file that model.json lists"):
        write_repository(source, tmp_path / "repository", name="stage")
    relist(source)
    rewrite(source / GRAPHS_FILE, dtype="bf16")
    with pytest.raises(InputError, match=r"are bf16, which Triton's ONNX Runtime does not take"):
        write_repository(source, tmp_path / "repository", name="stage")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graphs"]


def test_the_description_that_it_paints_by_is_that_of_the_graphs(source, tmp_path):
    write_repository(source, tmp_path / "repository", name="stage")
    found = [
        read_description(path, GraphsSpec, GraphsError, absent="", remedy="")
        for path in (source / GRAPHS_FILE, tmp_path / "repository/stage/1/model" / GRAPHS_FILE)
    ]
    assert found[1].files == {"prompts.safetensors": found[0].files["prompts.safetensors"]}
    assert found[1].model_copy(update={"files": {}}) == found[0].model_copy(update={"files": {}})


def test_the_command_says_what_it_wrote_and_overwrites_nothing(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(["export-triton", "graphs", *arguments])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    listed = ", ".join(f"`{model}`" for model in MODELS)
    assert run("-o", "repository") == (0, f"6 models in `repository`: {listed}\n", "")
    code, out, _ = run("-o", "other", "--name", "line", "--json")
    names = ["line", *(f"line_{network}" for network in NETWORKS)]
    assert (code, json.loads(out)) == (0, {"repository": "other", "models": names})
    code, out, err = run("-o", "repository")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: `.*/repository` exists already, remove it or choose another `-o`\n", err)


def test_what_a_killed_one_had_staged_is_gone(graphs, tmp_path):
    left = tmp_path / ".repository.0123abcd.tmp"
    left.mkdir()
    (left / "half").touch()
    write_repository(graphs("fp32"), tmp_path / "repository", name="stage")
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
