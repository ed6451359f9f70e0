"""How `benchmarks/gpu/bench.py` does its parts: in order, in time, to the end of each, and never twice."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
from process_ids import gone

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
KEY = {
    "source": "0123456789abcdef",
    "device": "Some GPU",
    "mode": "full",
    "driver": "580.159.04",
    "torch": "2.13.0+cu130",
}


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))


@pytest.fixture
def begin(tmp_path):
    """``begin()`` is a benchmark in the same folders, as the command begun again makes it."""
    import bench

    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()

    def begun(*, budget=60, **other):
        return bench.Bench(tmp_path / "work", tmp_path / "out", KEY | other, budget)

    return begun


def part(name, code, seconds=20, **more):
    from parts import Part

    return Part(name, seconds, [sys.executable, "-c", code], **more)


def gives(value):
    return f"print('talk'); print('{{\"value\": {value}}}')"


FAILS = "import sys; sys.exit('the GPU fell off\\nits bus')"


def rows(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]


def test_results_lie_outside_after_every_part(begin, tmp_path):
    bench, result = begin(), tmp_path / "out" / "gpu-some-gpu.json"
    for n in range(3):
        assert bench.do(part(f"loop_{n}", 'print(\'{"dtype": "fp16", "tflops": 1}\')'))
        assert [row["part"] for row in rows(tmp_path)] == [f"loop_{k}" for k in range(n + 1)]
        assert len(json.loads(result.read_text())["loop"]) == n + 1
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.name for path in found) == ["gpu-some-gpu.json", "log.txt", "rows.jsonl"]
    assert "=== loop_2" in (tmp_path / "out" / "log.txt").read_text()


def test_a_part_that_fails_costs_no_other(begin, tmp_path):
    bench = begin()
    assert not bench.do(part("a", FAILS))
    assert bench.do(part("b", gives(2)))
    assert bench.failed() == {"a": "its bus"}
    assert bench.finished() == {"b": {"value": 2}}
    assert "the GPU fell off" in (tmp_path / "out" / "log.txt").read_text()


def sleeps(pids):
    """A process that starts another and, once it has told their numbers in a file, sleeps with it."""
    return (
        "import os, subprocess, sys, time\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open('{pids}.part', 'w').write(f'{{os.getpid()}} {{helper.pid}}')\n"
        f"os.rename('{pids}.part', {str(pids)!r})\n"
        "time.sleep(600)"
    )


def told(pids):
    """The numbers that are in the file once it is there."""
    until(pids.is_file)
    return [int(pid) for pid in pids.read_text().split()]


def ended(pids):
    until(lambda: all(map(gone, pids)))


def until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_part_that_takes_too_long_is_ended_with_all_it_started(begin, tmp_path):
    pids = tmp_path / "pids"
    bench, start = begin(), time.monotonic()
    assert not bench.do(part("slow", sleeps(pids), seconds=3))
    assert time.monotonic() - start < 30
    assert bench.failed() == {"slow": "it took longer than 3 s"}
    assert pids.is_file()
    ended(told(pids))


def test_helpers_that_live_on_neither_hold_a_part_up_nor_share_the_gpu_with_the_next(begin):
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n" + gives(1)
    )
    bench, start = begin(), time.monotonic()
    assert bench.do(part("forks", code))
    assert time.monotonic() - start < 15


def test_the_same_command_goes_on_where_it_was_cut(begin, tmp_path):
    first = begin()
    first.do(part("a", gives(1)))
    first.do(part("b", FAILS))
    with (tmp_path / "work" / "rows.jsonl").open("a") as file:
        file.write('{"part": "c", "source": "01')
    again = begin()
    assert again.do(part("a", FAILS))
    assert again.do(part("b", gives(2)))
    assert again.finished() == {"a": {"value": 1}, "b": {"value": 2}}
    assert again.failed() == {}


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_it_goes_on_after_a_kill_in_the_middle_of_a_part_of_which_nothing_is_left(begin, tmp_path, signum):
    begin()
    pids = tmp_path / "pids"
    code = (
        f"import sys; sys.path.insert(0, {str(GPU)!r})\n"
        "from pathlib import Path\nimport bench, parts\n"
        f"at = bench.Bench(Path({str(tmp_path / 'work')!r}), Path({str(tmp_path / 'out')!r}), {KEY!r}, 60)\n"
        f"at.do(parts.Part('a', 20, [sys.executable, '-c', {gives(1)!r}]))\n"
        f"at.do(parts.Part('b', 20, [sys.executable, '-c', {sleeps(pids)!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while "b ..." not in process.stderr.readline():
        pass
    started = told(pids)
    process.send_signal(signum)
    process.wait()
    process.stderr.close()
    ended(started)
    assert begin().finished() == {"a": {"value": 1}}


@pytest.mark.parametrize(
    "other",
    [
        {"source": "fedcba9876543210"},
        {"device": "Another GPU"},
        {"driver": "590.44.01"},
        {"torch": "2.14.0+cu130"},
    ],
)
def test_rows_of_another_source_gpu_driver_or_torch_do_not_count(begin, other):
    begin().do(part("a", gives(1)))
    bench = begin(**other)
    assert bench.finished() == {}
    assert bench.do(part("a", gives(2)))
    assert begin().finished() == {"a": {"value": 1}}


def test_an_engine_that_is_not_on_this_machine_is_compiled_again(begin, tmp_path):
    made = tmp_path / "engine.json"
    compiles = part("compile", f"open({str(made)!r}, 'w').close(); " + gives(1))
    reads = {"code": f"open({str(made)!r}); " + gives(2), "before": compiles, "made": made}
    assert begin().do(part("loop", **reads))
    made.unlink()
    # Its row is here, so there is no need of the engine; another row needs it.
    assert begin().do(part("loop", **reads))
    assert not made.exists()
    assert begin().do(part("other", **reads))
    assert made.exists()


def test_what_a_check_of_other_sources_found_is_not_published(begin, tmp_path):
    found, result = [{"shape": [1], "passed": True}], tmp_path / "out" / "gpu-some-gpu.json"
    written = f"open({str(tmp_path / 'work/kernels.json')!r}, 'w').write({json.dumps(found)!r}); "
    begin().do(part("kernels", written + "print('1 FAIL'); raise SystemExit(1)"))
    for source, expected in ((KEY["source"], found), ("fedcba9876543210", [])):
        begin(source=source)
        assert json.loads(result.read_text())["kernels"] == expected


@pytest.mark.parametrize(
    "other", [{"source": "fedcba9876543210"}, {"device": "Another GPU"}, {"torch": "2.14.0+cu130"}]
)
def test_engines_of_another_source_gpu_or_torch_are_not_measured(begin, tmp_path, other):
    import bench
    from parts import Place, plan

    def loop(key):
        engines = bench.own_engines(tmp_path / "work", key)
        place = Place(tmp_path / "work", engines, tmp_path / "driver", None)
        planned = next(part for part in plan("full", place) if part.name == "loop_fp16_32_compiled")
        read, compiled = (json.loads(each.command[-1]) for each in (planned, planned.before))
        assert read["engines"] == compiled["engines"] == str(engines)
        code = f"from pathlib import Path; at = Path({str(planned.made)!r}); "
        written = f"at.parent.mkdir(parents=True); at.write_text({json.dumps(key)!r}); "
        before = part("compile", code + written + gives(1))
        return part("loop", f"{code}print(at.read_text())", before=before, made=planned.made)

    assert begin().do(loop(KEY))
    other = KEY | other
    assert begin(**other).do(loop(other))
    assert begin(**other).finished()["loop"] == other
    # That of before is gone; what is measured with another driver or in another mode is the same engine.
    assert len(list((tmp_path / "work" / "engines").iterdir())) == 1
    again = begin(driver="590.44.01", **{name: other[name] for name in ("source", "device", "torch")})
    assert again.do(loop(other | {"driver": "590.44.01", "mode": "quick"}))
    assert "compile" not in again.finished()


def test_a_part_that_crashes_is_told_of_with_its_signal_and_its_place(begin, tmp_path):
    bench = begin()
    crashes = "import ctypes\n\ndef library():\n    ctypes.string_at(0)\n\nlibrary()"
    assert not bench.do(part("crash", crashes))
    assert bench.failed() == {"crash": "ended by SIGSEGV: see log.txt"}
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "Segmentation fault" in log
    assert "in library" in log


def test_what_cannot_be_compiled_is_not_run(begin):
    bench = begin()
    assert not bench.do(part("loop", gives(1), before=part("compile", FAILS), made=Path("nowhere")))
    assert bench.failed() == {"compile": "its bus", "loop": "there is no compile"}


def test_what_needs_a_check_that_failed_is_not_begun(begin):
    bench = begin()
    assert bench.do(part("a", gives(1), needs="check"))
    assert not bench.do(part("check", FAILS))
    assert not bench.do(part("b", gives(1), before=part("c", gives(1)), made=Path("nowhere"), needs="check"))
    assert bench.failed() == {"check": "its bus", "b": "check failed"}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "@pytest.mark.gpu\ndef test_b():\n    pytest.skip('PyCUDA is not installed')",
            "1 skipped: PyCUDA is not installed",
        ),
        (
            "@pytest.mark.gpu\n@pytest.mark.skipif(True, reason='no GPU')\ndef test_b(): pass",
            "1 skipped: no GPU",
        ),
        ("pytest.skip('no torch', allow_module_level=True)", "1 skipped: no torch"),
        ("def test_b(): pass", None),
    ],
)
def test_a_check_that_skipped_a_test_has_not_passed(begin, tmp_path, code, reason):
    from parts import Part, Place, plan

    passes = "import pytest\n\n@pytest.mark.gpu\ndef test_a(): pass\n\n"
    checked = [tmp_path / "test_a.py", tmp_path / "test_b.py"]
    checked[0].write_text(passes)
    checked[1].write_text(f"import pytest\n\n{code}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    planned = next(
        part for part in plan("full", Place(tmp_path, tmp_path, tmp_path, None)) if part.name == "loop_checks"
    )
    check = Part("loop_checks", 60, [*planned.command[:-1], *map(str, checked)])
    bench = begin()
    assert bench.do(check) == (reason is None)
    assert bench.failed() == ({"loop_checks": reason} if reason else {})
    assert begin().finished() == ({} if reason else {"loop_checks": "pass"})
    checked[1].write_text(passes)
    again = begin()
    assert again.do(check)
    assert again.failed() == {}


def test_a_check_of_no_test_has_not_passed(begin, tmp_path):
    (tmp_path / "test_a.py").write_text("def test_a(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    bench = begin()
    command = [sys.executable, "-P", str(GPU / "unskipped.py"), "-m", "gpu", str(tmp_path)]
    assert not bench.do(part("loop_checks", "")._replace(command=command, seconds=60))
    assert bench.failed() == {"loop_checks": "no test was run"}


def test_no_part_is_begun_without_time(begin):
    bench = begin(budget=5)
    assert not bench.do(part("a", gives(1)))
    assert bench.failed() == {"a": "no time was left"}


def test_checks_come_first_then_the_batches_with_targets(tmp_path):
    from parts import CHECKS, COMPILER, Place, plan

    place = Place(tmp_path, tmp_path / "engines", tmp_path / "driver", Path("/usr/bin/compute-sanitizer"))
    names = [part.name for part in plan("full", place)]
    assert names[: len(CHECKS)] == [*(check for check in CHECKS if check != COMPILER), "machine"]
    assert names[len(CHECKS) : names.index("loop_fp16_1_compiled") + 1] == [
        *("loop_fp16_32_traced", "loop_fp16_1_traced"),
        *("peer_authors_eager_fp16_32", "peer_authors_eager_fp16_1", "peer_eager_fp16_32", "demo"),
        *(COMPILER, "loop_fp16_32_compiled", "loop_fp16_1_compiled"),
    ]
    assert len(set(names)) == len(names)
    quick = [part.name for part in plan("quick", place)]
    assert quick == [name for name in names if name != "demo"][: len(quick)]
    loops = [part for part in plan("full", place) if part.before]
    for part in loops:
        assert part.needs == (None if part.name.endswith("traced") else COMPILER)
        assert json.loads(part.command[-1]) == json.loads(part.before.command[-1]) | {"task": "loop"}
    assert len({part.made for part in loops}) == len(loops) == 16
    assert "memcheck" not in [part.name for part in plan("full", place._replace(sanitizer=None))]


def wheel(folder, name, version, *requires):
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_what_is_there_is_not_carried(tmp_path):
    kept = [
        wheel(tmp_path, "stage-rt", "0.1.0", "numpy>=1.26", "pydantic>=2.12", 'torch; extra == "export"'),
        wheel(tmp_path, "pydantic", "2.14", "pydantic-core==2.50", "typing-extensions>=4"),
        wheel(tmp_path, "pydantic-core", "2.50"),
        wheel(tmp_path, "diffusers", "0.42", "pillow"),
        wheel(tmp_path, "pycuda", "2026.1", "pytools>=2011.2"),
        *(
            wheel(tmp_path, name, "9999")
            for name in ("pytools", "mako", "platformdirs", "siphash24", "pytest")
        ),
    ]
    there = {
        "numpy": "2.5",
        "typing_extensions": "4.9",
        "Pillow": "12.0",
        "cuda-bindings": "13.1",
        "pytest": "7.0",
    }
    left = [
        wheel(tmp_path, name, "9999") for name in ("numpy", "typing-extensions", "pillow", "cuda-bindings")
    ]
    (tmp_path / "there.txt").write_text("".join(f"{name}=={version}\n" for name, version in there.items()))
    command = [sys.executable, str(GPU / "missing.py"), str(tmp_path), str(tmp_path / "there.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.splitlines()) == {str(path) for path in left}
    assert set(tmp_path.glob("*.whl")) - set(left) == set(kept)


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_wheels_are_for_the_processor_that_is_here(tmp_path, processor):
    python, asked, wheels = tmp_path / "python", tmp_path / "asked", tmp_path / "wheels"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nprintf "%s\\n" "$*" >> {asked}\n'
    )
    python.chmod(0o755)
    wheels.mkdir()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    compiled = {
        each: wheels / f"pycuda-2026.1-{tag}-{tag}-linux_{each}.whl" for each in ("x86_64", "aarch64")
    }
    for path in compiled.values():
        path.touch()
    places = {"PYTHON": str(python), "WHEELS": str(wheels), "_PYTHON_HOST_PLATFORM": f"linux-{processor}"}
    done = subprocess.run(
        ["bash", str(GPU / "carry.sh")], env=os.environ | places, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # PyCUDA for this processor is there already, so nothing is compiled but stage-rt.
    assert [each for each, path in compiled.items() if path.exists()] == [processor]
    built, fetched = asked.read_text().splitlines()
    assert built.startswith("-m pip wheel ")
    words = fetched.split()
    platforms = [after for word, after in pairwise(words) if word == "--platform"]
    assert f"manylinux_2_28_{processor}" in platforms
    assert all(each.endswith(f"_{processor}") for each in platforms)


@pytest.fixture
def first_day(tmp_path):
    """``first_day(python)`` is what run.sh says at last, which ends where it finds the wheels to be old ones."""
    (tmp_path / "work/wheels").mkdir(parents=True)
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho '#$ TOP={tmp_path}' >&2\n")
    nvcc.chmod(0o755)

    def run(python, **environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        kept["PATH"] = f"{nvcc.parent}:{kept['PATH']}"
        places = {"PYTHON": str(python), "WORK": str(tmp_path / "work")}
        command = ["bash", str(GPU / "run.sh")]
        done = subprocess.run(command, env=kept | places | environment, capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    return run


def torch_in(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "torch.py").write_text(
        "from types import SimpleNamespace\nversion = SimpleNamespace(cuda='13.0')\n"
    )
    return folder


def test_a_pytorch_that_the_user_installed_for_himself_is_seen(first_day, tmp_path):
    python, user = sys._base_executable, {"PYTHONUSERBASE": str(tmp_path / "user")}
    asked = subprocess.run([python, "-m", "site", "--user-site"], env=user, capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("this Python has no packages of the user")
    torch_in(Path(asked.stdout.strip()))
    assert "the wheels in" in first_day(python, **user)
    seen = [tmp_path / "work/venv/bin/python", "-c", "import torch; print(torch.version.cuda)"]
    assert subprocess.run(seen, env=user, capture_output=True, text=True).stdout == "13.0\n"


def test_a_pytorch_that_no_venv_sees_is_told_of_before_anything_is_built(first_day, tmp_path):
    python = tmp_path / "bin/python"
    elsewhere = torch_in(tmp_path / "elsewhere")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={elsewhere} exec {sys._base_executable} "$@"\n')
    python.chmod(0o755)
    assert first_day(python) == (
        "run.sh: PyTorch is where a venv cannot see it: install it into the site-packages of PYTHON=..."
    )


@pytest.mark.parametrize("script", ["run.sh", "carry.sh", "source.sh"])
def test_the_scripts_parse_and_are_programs(script):
    subprocess.run(["bash", "-n", str(GPU / script)], check=True)
    assert os.access(GPU / script, os.X_OK)


def test_an_unknown_option_is_told():
    done = subprocess.run(["bash", str(GPU / "run.sh"), "--fast"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: benchmarks/gpu/run.sh [--quick|--checks|--dry]\n")
