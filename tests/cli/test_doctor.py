"""``stage-rt doctor``: what it prints, and the exit code scripts rely on."""

import json

import pytest

from stage_rt import doctor
from stage_rt.cli import main
from stage_rt.doctor import Line, Status

FINE = [
    Line("Python", Status.OK, "3.12", needed=True),
    Line("GPU", Status.MISSING, "none", "buy [bold]one[/bold]"),
    Line("disk here", Status.WRONG, "full", "free some"),
]
SICK = [*FINE, Line("ONNX Runtime", Status.MISSING, "not installed", "`pip install x`", needed=True)]


@pytest.fixture
def run(monkeypatch, capsys):
    def command(lines, *arguments):
        monkeypatch.setattr(doctor, "examine", lambda: lines)
        with pytest.raises(SystemExit) as exited:
            main(["doctor", *arguments])
        captured = capsys.readouterr()
        return exited.value.code, captured.out, captured.err

    return command


def test_a_line_a_subject_and_its_fix_below(run):
    assert run(FINE) == (
        0,
        "ok      Python     3.12\n"
        "missing GPU        none\n"
        "                   fix: buy [bold]one[/bold]\n"
        "wrong   disk here  full\n"
        "                   fix: free some\n",
        "",
    )


def test_exit_code_1_when_the_default_path_is_barred(run):
    code, out, err = run(SICK)
    assert code == 1
    assert out.endswith("missing ONNX Runtime  not installed\n                      fix: `pip install x`\n")
    assert err == "error: not ready to run on the CPU: see to ONNX Runtime above\n"


@pytest.mark.parametrize(("lines", "ready"), [(FINE, True), (SICK, False)])
def test_json_says_the_same(run, lines, ready):
    code, out, _ = run(lines, "--json")
    found = json.loads(out)
    assert (code, found["ready"]) == (0 if ready else 1, ready)
    assert [line["status"] for line in found["lines"]] == [line.status.value for line in lines]
    assert found["lines"][1] == {
        "subject": "GPU",
        "status": "missing",
        "found": "none",
        "fix": "buy [bold]one[/bold]",
        "needed": False,
    }


def test_colour_is_an_extra(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in run(FINE)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run(FINE)[1]
    assert "missing" in run(FINE)[1]


def test_the_whole_command_on_this_machine(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["doctor"])
    captured = capsys.readouterr()
    assert (exited.value.code, captured.err) == (0, "")
    assert "ok      ONNX Runtime" in captured.out
