"""When an engine is built again and when not, and several builders of one folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from descriptions import relist, rewrite

from stage_rt.engines import builders
from stage_rt.engines.build import build, is_current
from stage_rt.errors import InputError, StageError
from stage_rt.files import digests
from stage_rt.folders import read_engine
from stage_rt.loading import load
from stage_rt.run.fewest import keep
from stage_rt.spec import ENGINE_FILE, EngineSpec


@pytest.fixture
def own(graphs, tmp_path):
    """A copy of the graphs that may be changed."""
    return Path(shutil.copytree(graphs("fp32"), tmp_path / "graphs"))


def built(source, folder, **options):
    return build(source, folder, **({"backend": "onnxruntime", "batch": [1, 2]} | options))


def identities(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def with_another_weight(graphs):
    """Change one number of the UNet, and the digests with it: other weights of the same shapes."""
    model = onnx.load(graphs / "unet.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(model, graphs / "unet.onnx")
    relist(graphs)


def test_the_same_build_again_is_a_hit_that_touches_nothing(own, tmp_path):
    engine = tmp_path / "engine"
    assert built(own, engine)
    before = identities(engine)
    assert not built(own, engine)
    assert not built(own, engine, batch=[2, 1, 2], dtype="fp32")
    assert identities(engine) == before
    assert {path.name for path in tmp_path.iterdir()} == {"graphs", "engine"}


def test_a_changed_graph_of_the_same_shape_is_a_miss(own, tmp_path):
    built(own, tmp_path / "engine")
    before = read_engine(tmp_path / "engine")
    with_another_weight(own)
    assert built(own, tmp_path / "engine")
    after = read_engine(tmp_path / "engine")
    assert after.graphs_fingerprint != before.graphs_fingerprint
    assert after.fingerprint != before.fingerprint
    assert after.files["unet.onnx"] != before.files["unet.onnx"]


def test_a_damaged_engine_is_a_miss(own, tmp_path):
    built(own, tmp_path / "engine")
    whole = digests(tmp_path / "engine")
    (tmp_path / "engine/unet.onnx").write_bytes(b"")
    assert built(own, tmp_path / "engine")
    assert digests(tmp_path / "engine") == whole
    (tmp_path / "engine" / ENGINE_FILE).write_text("{}")
    assert built(own, tmp_path / "engine")
    assert digests(tmp_path / "engine") == whole


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "tensorrt-rtx"},
        {"library": "other"},
        {"library_version": "0.0.1"},
        {"devices": ["sm86"]},
        {"dtype": "fp16"},
        {"batch": [1, 2, 4]},
        {"graphs_fingerprint": "1" * 64},
        {"gpu": "another card"},
        {"builder": "1" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_all_that_decides_an_engine_is_in_its_fingerprint(engine_folder, change):
    spec = read_engine(engine_folder)
    assert spec.model_copy(update=change).fingerprint != spec.fingerprint


def test_what_follows_from_the_rest_is_not_in_the_fingerprint(engine_folder):
    spec = read_engine(engine_folder)
    assert spec.model_copy(update={"files": {}, "workspace": 7}).fingerprint == spec.fingerprint
    assert EngineSpec.model_validate_json(spec.sealed()).fingerprint == spec.fingerprint


def test_an_engine_of_another_version_is_built_again(own, tmp_path):
    built(own, tmp_path / "engine")
    path = tmp_path / "engine" / ENGINE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"library_version": "0.0.1"}))
    assert built(own, tmp_path / "engine")


def test_an_engine_of_another_builder_is_built_again(own, tmp_path, monkeypatch):
    """What a release builds with the same library is not what the last one built."""
    code = Path(shutil.copytree(Path(builders.__file__).parent, tmp_path / "code"))
    monkeypatch.setattr(builders, "__file__", str(code / "builders.py"))
    engine, how = tmp_path / "engine", {"backend": "onnxruntime", "batch": [1, 2]}
    assert built(own, engine, origin="0" * 64)
    assert not built(own, engine, origin="0" * 64)
    assert is_current(engine, "0" * 64, dtype="fp32", **how)
    with (code / "onnxruntime.py").open("a") as file:
        file.write("\nNEW = True\n")
    assert not is_current(engine, "0" * 64, dtype="fp32", **how)
    assert built(own, engine, origin="0" * 64)
    assert is_current(engine, "0" * 64, dtype="fp32", **how)


def test_calibrated_steps_outlive_another_builder_of_the_same_graphs(own, tmp_path, monkeypatch):
    engine = tmp_path / "engine"
    built(own, engine)
    first = read_engine(engine)
    prompt = next(iter(first.model.prompts))
    keep(engine, first, prompt, 20)
    monkeypatch.setattr("stage_rt.engines.build.sources", lambda: "b" * 64)
    assert built(own, engine)
    assert read_engine(engine).model.defaults[prompt].steps == 20
    with_another_weight(own)
    assert built(own, engine)
    assert prompt not in read_engine(engine).model.defaults


def test_every_file_of_the_builders_counts(tmp_path, monkeypatch):
    installed = Path(builders.__file__).parent
    code = Path(shutil.copytree(installed, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__")))
    here = builders.sources()
    monkeypatch.setattr(builders, "__file__", str(code / "builders.py"))
    assert builders.sources() == here
    found = {here}
    for path in sorted(code.iterdir()):
        path.write_text(path.read_text() + "#")
        found.add(builders.sources())
    assert len(found) == 1 + len(list(code.iterdir())) > 10


def test_an_engine_of_an_earlier_release_is_served_and_built_again(own, tmp_path):
    """It says nothing of its builder."""
    built(own, tmp_path / "engine")
    rewrite(tmp_path / "engine" / ENGINE_FILE, builder=None)
    assert '"builder"' not in (tmp_path / "engine" / ENGINE_FILE).read_text()
    load(tmp_path / "engine").close()
    assert built(own, tmp_path / "engine")
    assert read_engine(tmp_path / "engine").builder == builders.sources()


def test_pairs_that_were_painted_into_an_engine_survive_its_next_build(own, tmp_path):
    built(own, tmp_path / "engine")
    pair = tmp_path / "engine" / "run" / "test" / "crack" / "000000.png"
    pair.parent.mkdir(parents=True)
    pair.write_bytes(b"a night's work")
    with pytest.raises(InputError, match=r"engine/run` is no part of an engine and would be removed"):
        built(own, tmp_path / "engine")
    assert pair.read_bytes() == b"a night's work"


BUILDER = """
import sys, time
from pathlib import Path
from stage_rt.engines.build import build
here, number, source = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
(here / f"ready{number}").touch()
while len(list(here.glob("ready*"))) < 8:
    time.sleep(0.05)
print(build(source, here / "engine", backend="onnxruntime", batch=[1]))
"""


def test_eight_builders_of_one_folder_make_one_build(graphs, tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, tmp_path, str(number), graphs("fp32")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert sorted(results) == [("False\n", "")] * 7 + [("True\n", "")]
    assert not built(graphs("fp32"), tmp_path / "engine", batch=[1])
    assert {path.name for path in tmp_path.iterdir()} == {"engine", *(f"ready{n}" for n in range(8))}


def test_a_builder_that_waits_says_so_and_can_be_cancelled(graphs, tmp_path):
    from stage_rt.files import locked

    notices = []

    def cancel(share):
        raise KeyboardInterrupt

    with locked(tmp_path / "engine", lambda: None), pytest.raises(KeyboardInterrupt):
        built(graphs("fp32"), tmp_path / "engine", notify=notices.append, progress=cancel)
    assert notices == [f"waiting for another process that builds `{tmp_path / 'engine'}`"]
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_content_is_left_alone(graphs, tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already, remove it or choose another `-o`"):
        built(graphs("fp32"), tmp_path / "engine")
    assert [path.name for path in tmp_path.rglob("*")] == ["engine", "thesis.txt"]


def test_the_disk_fills_up_at_any_write(graphs, tmp_path):
    source = graphs("fp32")
    for call in range(1, 4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full_from(call))
            with pytest.raises(StageError, match=r"writing to `.*engine` failed \(No space left on device\)"):
                built(source, tmp_path / "engine")
        assert not list(tmp_path.iterdir())


def full_from(call):
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) >= call:
            raise OSError(28, "No space left on device")

    return fsync


FULL = """
import resource, shutil, signal, sys
from pathlib import Path
from types import SimpleNamespace
from stage_rt.engines.build import build
from stage_rt.errors import StageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
shutil.disk_usage = lambda folder: SimpleNamespace(free=0)
try:
    build(Path(sys.argv[1]), Path(sys.argv[2]), backend=sys.argv[3], batch=[1])
except StageError as error:
    print(error)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_disk_that_fills_up_under_a_library_is_no_fault_of_the_graph(graphs, tmp_path, backend):
    """By the largest file a process may write, which ends a write as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, graphs("fp32"), tmp_path / "engine", backend],
        capture_output=True,
        text=True,
        check=False,
    )
    told = f"writing to `{tmp_path / 'engine/unet'}` failed (No space left on device): mend that and run the same"
    assert told in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission(graphs, tmp_path):
    (tmp_path / "fixed").mkdir(mode=0o555)
    with pytest.raises(InputError, match="may not be written: give yourself permission or another `-o`"):
        built(graphs("fp32"), tmp_path / "fixed/engine")


def test_a_refused_write_is_an_input_error(graphs, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="may not be written: give yourself permission or another `-o`"):
        built(graphs("fp32"), tmp_path / "engine")
