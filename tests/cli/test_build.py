"""`stage-rt build` as a user meets it; `tests/engines` has what it builds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError

import pytest
from descriptions import rewrite

from stage_rt.cli import main
from stage_rt.folders import read_engine


@pytest.fixture
def build(graphs, tmp_path, monkeypatch, capsys):
    """Run the command on the fp16 graphs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graphs").symlink_to(graphs("fp16"))

    def run(*arguments, output="engine"):
        with pytest.raises(SystemExit) as exited:
            main(["build", "graphs", "-o", output, *arguments])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return run


def test_a_second_build_is_a_hit(build, tmp_path):
    assert build("--batch", "1,2") == (0, "engine `engine`\n", "")
    before = (tmp_path / "engine/engine.json").read_bytes()
    assert build("--batch", "1,2") == (0, "engine `engine` is up to date\n", "")
    code, out, _ = build("--batch", "2,1", "--json")
    assert (code, json.loads(out)) == (0, {"engine": "engine", "written": False})
    assert (tmp_path / "engine/engine.json").read_bytes() == before


def test_an_engine_of_another_backend_is_replaced_only_by_force(build, tmp_path):
    build("--batch", "1")
    rewrite(tmp_path / "engine/engine.json", backend="tensorrt-rtx", devices=["sm86"])
    before = (tmp_path / "engine/engine.json").read_bytes()
    assert build("--batch", "1") == (
        1,
        "",
        "error: `engine` holds an engine for tensorrt-rtx: choose another `-o`, or replace it with `--force`\n",
    )
    assert (tmp_path / "engine/engine.json").read_bytes() == before
    assert build("--batch", "1", "--force") == (0, "engine `engine`\n", "")
    assert read_engine(tmp_path / "engine").backend == "onnxruntime"


def test_the_memory_it_will_need_is_told_on_stderr(build, tmp_path):
    code, out, err = build("--backend", "tensorrt-rtx", "--target", "SM86", "--batch", "1")
    assert (code, out) == (0, "engine `engine`\n")
    assert err.startswith("notice: the engine will need about ")
    assert err.endswith(" inputs and outputs\n")
    assert err.count("\n") == 1
    assert read_engine(tmp_path / "engine").devices == ["sm86"]


BAD_INPUT = {
    "unknown target": (
        ("--target", "sm90"),
        "error: TensorRT-RTX knows no target `sm90`: use some of sm75, sm80, ",
    ),
    "a batch of 0": (("--batch", "0"), "error: a batch of 0 serves nobody: use `--batch 1` or more"),
    "a batch of 10,000": (
        ("--batch", "10000"),
        "error: a batch of 10000 would need about 2.8 GiB of GPU memory",
    ),
    "another dtype": (("--dtype", "fp32"), "error: the graphs in `graphs` are fp16: leave `--dtype` out"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_writes_nothing(build, tmp_path, case):
    arguments, message = BAD_INPUT[case]
    code, out, err = build("--backend", "tensorrt-rtx", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["graphs"]


def test_a_target_that_cannot_do_the_dtype_is_refused_before_the_export(model_folder, tmp_path, capsys):
    arguments = ["--backend", "tensorrt-rtx", "--target", "sm75", "--dtype", "fp32"]
    with pytest.raises(SystemExit) as exited:
        main(["build", str(model_folder), "-o", str(tmp_path / "engine"), *arguments])
    assert exited.value.code == 1
    assert capsys.readouterr().err.startswith("error: TensorRT-RTX multiplies no fp32 matrices on sm75")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
@pytest.mark.parametrize("batch", ["0", "1,100000"])
def test_a_batch_that_serves_nobody_is_refused_before_the_export(
    model_folder, engine_folder, tmp_path, capsys, monkeypatch, batch, backend
):
    monkeypatch.setattr("stage_rt.engines.auto._has_gpu", lambda: False)
    engine = shutil.copytree(engine_folder, tmp_path / "engine")
    for output in (engine, tmp_path / "other"):
        with pytest.raises(SystemExit) as exited:
            main(["build", str(model_folder), "-o", str(output), "--backend", backend, "--batch", batch])
        assert exited.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: a batch of {batch.split(',')[-1]} ")
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
def test_a_model_for_a_folder_that_cannot_be_written_is_one_sentence(
    model_folder, tmp_path, capsys, monkeypatch, backend
):
    monkeypatch.setattr("stage_rt.engines.auto._has_gpu", lambda: False)
    (tmp_path / "file").touch()
    engine = tmp_path / "file" / "engine"
    with pytest.raises(SystemExit) as exited:
        main(["build", str(model_folder), "-o", str(engine), "--backend", backend])
    assert exited.value.code == 3
    assert capsys.readouterr().err == (
        f"error: writing to `{engine.parent}` failed (File exists): mend that and run the same command again\n"
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
def test_without_the_libraries_that_export_a_model_is_one_sentence(
    model_folder, tmp_path, capsys, monkeypatch, backend
):
    def version(library):
        raise PackageNotFoundError(library)

    monkeypatch.setattr("stage_rt.engines.auto._has_gpu", lambda: False)
    monkeypatch.setattr("stage_rt.export.origin.version", version)
    with pytest.raises(SystemExit) as exited:
        main(["build", str(model_folder), "-o", str(tmp_path / "engine"), "--backend", backend])
    assert exited.value.code == 1
    assert capsys.readouterr().err == (
        "error: exporting a model needs `torch`, which is not installed: `pip install 'stage-rt[export]'`\n"
    )
    assert not list(tmp_path.iterdir())


def test_batch_sizes_that_are_no_numbers_are_wrong_usage(build):
    code, out, err = build("--batch", "1,many")
    assert (code, out) == (2, "")
    assert "is not a batch size" in err


def test_ctrl_c_ends_a_build_and_leaves_nothing(graphs, tmp_path):
    arguments = ["build", str(graphs("fp16")), "-o", str(tmp_path / "engine"), "--backend", "tensorrt-rtx"]
    code = f"from stage_rt.cli import main; main({[*arguments, '--batch', '1,2,4,8,16']!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob(".engine.*.tmp")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped: run the same command again to go on"
    assert not list(tmp_path.iterdir())


def test_auto_builds_what_is_fastest_and_says_what_it_measured(graphs, tmp_path, capsys, monkeypatch):
    from stage_rt.engines import auto

    def build(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(
                [
                    "build",
                    str(graphs("fp32")),
                    "-o",
                    str(tmp_path / "engine"),
                    "--backend",
                    "auto",
                    *arguments,
                ]
            )
        return exited.value.code, *capsys.readouterr()

    monkeypatch.setattr(auto, "fastest", lambda judged: judged[-1])
    code, out, err = build("--batch", "2")
    assert (code, out) == (0, f"engine `{tmp_path / 'engine'}`\n")
    assert re.fullmatch(
        r"notice: a UNet call of 2 takes onnxruntime fp32 \S+ ms, openvino fp32 \S+ ms: kept openvino fp32\n",
        err,
    )
    spec = read_engine(tmp_path / "engine")
    assert (spec.backend, spec.dtype, spec.batch) == ("openvino", "fp32", [2])
    monkeypatch.setattr(auto, "fastest", lambda judged: judged[0])
    assert build("--batch", "2")[0] == 0
    assert read_engine(tmp_path / "engine").backend == "onnxruntime"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize("dtype", [(), ("--dtype", "bf16")])
def test_auto_says_that_it_measured_nothing(model_folder, tmp_path, capsys, monkeypatch, dtype):
    from stage_rt.engines import auto

    monkeypatch.setattr(auto, "_has_gpu", lambda: False)
    monkeypatch.setattr(auto, "choose", lambda *_: None)
    monkeypatch.setattr("stage_rt.engines.build.is_current", lambda *_, backend, **__: backend == "openvino")
    engine = tmp_path / "engine"
    with pytest.raises(SystemExit) as exited:
        main(["build", str(model_folder), "-o", str(engine), "--backend", "auto", *dtype])
    assert exited.value.code == 0
    out, err = capsys.readouterr()
    assert out == f"engine `{engine}` is up to date\n"
    # Of one candidate there is nothing to measure.
    assert err == (
        ""
        if dtype
        else f"notice: nothing was measured, as `{engine}` holds openvino fp32 of this model already: remove it to "
        "have all tried again\n"
    )


def test_auto_neither_replaces_an_engine_for_a_gpu_nor_takes_targets(graphs, tmp_path, rtx_engine, capsys):
    shutil.copytree(rtx_engine, tmp_path / "engine")
    build = ["build", str(graphs("fp32")), "-o", str(tmp_path / "engine"), "--backend", "auto"]
    for more, message in (
        ((), "holds an engine for tensorrt-rtx: choose another `-o`, or replace it with `--force`"),
        (("--target", "sm86"), "`--backend auto` compares engines for a CPU: leave it out"),
        (("--dtype", "fp16"), "`--backend auto` builds fp32 and bf16"),
    ):
        with pytest.raises(SystemExit) as exited:
            main([*build, *more])
        assert exited.value.code == 1
        assert message in capsys.readouterr().err
    assert read_engine(tmp_path / "engine").backend == "tensorrt-rtx"
