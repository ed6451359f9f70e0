"""The examples of an image and of a timer: what they name exists, and the programs they are for accept them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from stage_rt.cli import app
from stage_rt.errors import ExitCode
from stage_rt.files import cache_folder

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def test_the_service_calls_the_command_with_options_it_has():
    unit = (DEPLOY / "stage-rt-night.service").read_text()
    words = shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1])
    # Of two signals the second ends `stage-rt` at once: `timeout` sends its own to the whole group, as systemd does.
    assert "KillMode=mixed\n" in unit
    assert words[:4] == ["/usr/bin/timeout", "--foreground", "--preserve-status", "10h"]
    program, name, *arguments = words[4:]
    assert Path(program).name == "stage-rt"
    typer.main.get_command(app).commands[name].make_context(name, arguments)


def test_the_server_is_called_with_options_it_has():
    unit = (DEPLOY / "stage-rt-serve.service").read_text()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["serve"]
    lines = [
        re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1].split()[1:],
        compose["command"].split(),
    ]
    for name, *arguments in lines:
        assert typer.main.get_command(app).commands[name].make_context(name, arguments).params["data"]
    assert f"SuccessExitStatus={128 + 15}\n" in unit
    # What systemd lets be written is what the server writes.
    assert "ReadWritePaths=/srv/stage/data\n" in unit
    build = compose["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert f" AS {build['target']}\n" in (DEPLOY / "Dockerfile").read_text()


@pytest.mark.parametrize("unit", ["stage-rt-serve.service", "stage-rt-night.service"])
def test_what_a_service_compiles_on_a_gpu_is_kept_where_it_may_write(monkeypatch, unit):
    text = (DEPLOY / unit).read_text()
    assert "ProtectHome=yes\n" in text
    (folder,) = re.findall(r"^CacheDirectory=(\S+)$", text, re.MULTILINE)
    (variable,) = re.findall(r"^Environment=XDG_CACHE_HOME=(\S+)$", text, re.MULTILINE)
    # systemd makes it for the service's user, in the folder that it calls %C.
    monkeypatch.setenv("XDG_CACHE_HOME", variable.replace("%C", "/var/cache"))
    assert cache_folder() == Path("/var/cache") / folder


def test_the_image_for_a_gpu_has_pycuda_without_the_curand_that_it_lacks():
    *_, wheels, last = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert re.match(r"nvidia/cuda:\S+-base-", last)
    script, folder = re.search(r"python (\S+) \S+ --wheels (\S+)", wheels).groups()
    assert "--no-cuda-enable-curand" in (ROOT / script).read_text()
    installed = re.search(r"pip install .*\[.*gpu.*\]\"(.*)$", wheels, re.MULTILINE)[1]
    assert installed.split() == [f"{folder}/pycuda-*.whl"]


def test_a_stop_is_no_failure_of_the_service():
    line = re.search(
        r"^SuccessExitStatus=(.*)$", (DEPLOY / "stage-rt-night.service").read_text(), re.MULTILINE
    )[1]
    assert line.split() == [str(128 + 15), str(int(ExitCode.FAILED_SAMPLES))]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path):
    program = tmp_path / "stage-rt"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = ("stage-rt-night.service", "stage-rt-night.timer", "stage-rt-serve.service")
    for unit in units:
        text = (DEPLOY / unit).read_text().replace("/opt/stage-rt/bin/stage-rt", str(program))
        (tmp_path / unit).write_text(text.replace("User=stage", "User=root"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / unit for unit in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_image_has_what_it_copies_and_installs_extras_that_are_there():
    text = (DEPLOY / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    assert stages == ["cpu-wheels", "cpu", "gpu-wheels", "gpu"]
    assert set(re.findall(r"--from=([\w-]+)", text) + re.findall(r"mount=from=([\w-]+)", text)) <= set(stages)
    extras = {name for names in re.findall(r'\[([\w,]+)\]"', text) for name in names.split(",")}
    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras == {"cpu", "gpu", "pack", "rtx", "serve"} <= set(declared)
    # What is left out of the context is nothing that a wheel is built from.
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    packages = re.findall(r'^"stage_rt\S*" = "(\S+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages
    run = re.findall(r"python (\S+\.py)", text)
    assert run == ["tests/support/softcuda/build.py"]
    needed = ["README.md", "LICENSE", "CMakeLists.txt", "constraints.txt", *packages, *run]
    # What that compiles too.
    needed += ["tests/kernels/emulated", "stage_rt/kernels"]
    assert all((ROOT / one).exists() for one in needed)
    assert not set(ignored) & {one.partition("/")[0] for one in needed}
