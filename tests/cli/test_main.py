"""What every command shares: exit codes, one-line errors, and where messages go."""

import collections
import json
import os
import signal
import subprocess
import sys

import pytest
import typer

from stage_rt import __version__, cli
from stage_rt.cli import console
from stage_rt.errors import BackendError, FailedSamplesError, MissingExtraError, PromptError
from stage_rt.signals import ENDING

MAIN = "from stage_rt.cli import main; main()"


@pytest.fixture
def failing(monkeypatch):
    """A command line whose only command raises what it is told to."""

    def set_up(error: BaseException) -> None:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

        @app.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)

    yield set_up
    for signum in ENDING:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


def run(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        cli.main(arguments)
    captured = capsys.readouterr()
    return exited.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PromptError("unknown prompt"), 1, "error: unknown prompt\n"),
        (
            BackendError("the library [bold]failed[/bold] :smile:"),
            3,
            "error: the library [bold]failed[/bold] :smile:\n",
        ),
        (FailedSamplesError("2 samples failed"), 4, "error: 2 samples failed\n"),
        (OSError(28, "No space left on device", "x/y"), 3, "error: `x/y`: No space left on device\n"),
        (OSError(28, "No space left on device"), 3, "error: No space left on device\n"),
        (PromptError("`a\x1b[2Jb\nc\udcff`: é"), 1, "error: `a\\x1b[2Jb\\nc\\udcff`: é\n"),
        (RuntimeError("one\ntwo"), 3, "error: RuntimeError: one, run with `--debug` for the traceback\n"),
        (KeyError("k"), 3, "error: KeyError: 'k', run with `--debug` for the traceback\n"),
        (console.Stopped(15), 143, "stopped: run the same command again to go on\n"),
        (console.Stopped(2), 130, "stopped: run the same command again to go on\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(failing, capsys, error, code, message):
    failing(error)
    assert run([], capsys) == (code, "", message)


def test_a_long_message_is_not_broken_into_lines(failing, capsys):
    failing(PromptError("x " * 500))
    assert run([], capsys)[2].count("\n") == 1


def test_debug_shows_the_traceback_wherever_it_stands(failing):
    failing(KeyError("k"))
    for arguments in (["--debug"], ["--debug", "--debug"]):
        with pytest.raises(KeyError):
            cli.main(arguments)


def test_messages_have_colour_only_on_a_terminal_that_wants_it(failing, capsys, monkeypatch):
    failing(PromptError("unknown prompt"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console.messages.cache_clear()
    assert "\x1b[1;31merror: \x1b[0m" in run([], capsys)[2]
    monkeypatch.setenv("NO_COLOR", "1")
    console.messages.cache_clear()
    assert "31m" not in run([], capsys)[2]
    monkeypatch.undo()
    console.messages.cache_clear()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("build", []),
        ("export", []),
        ("synth", ["--normals", "good", "--masks", "masks", "--prompt", "tile+hole"]),
    ],
)
@pytest.mark.parametrize("place", ["linked/inner/out", "given"])
def test_nothing_is_written_into_what_is_read(command, options, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    (tmp_path / "linked").symlink_to("given")
    assert run([command, "given", "-o", place, *options], capsys) == (
        1,
        "",
        f"error: `{place}` would lie in `given`, which could not be used with it inside: choose another `-o`\n",
    )
    assert not list((tmp_path / "given").iterdir())


@pytest.mark.parametrize("read", ["engine", "good", "masks"])
def test_no_jobs_are_put_into_what_is_served(read, tmp_path, monkeypatch, capsys):
    pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    for name in ("engine", "good", "masks"):
        (tmp_path / name).mkdir()
    data = f"{read}/data"
    assert run(["serve", "engine", "--normals", "good", "--masks", "masks", "--data", data], capsys) == (
        1,
        "",
        f"error: `{data}` would lie in `{read}`, which could not be used with it inside: choose another `--data`\n",
    )
    assert not list((tmp_path / read).iterdir())


@pytest.mark.parametrize("name", ["run.json", "types"])
def test_no_jobs_are_put_into_a_run(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / name).mkdir(parents=True)
    assert run(["serve", "engine", "--data", "run"], capsys) == (
        1,
        "",
        "error: `run` is a run of `stage-rt synth`, which jobs do not belong into: choose another `--data`\n",
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    with pytest.raises(MissingExtraError) as missing, console.extra("export"):
        import stage_rt_needs_this  # noqa: F401
    assert str(missing.value) == (
        "this command needs `stage_rt_needs_this`, which is not installed: `pip install 'stage-rt[export]'`"
    )


def test_a_library_that_does_not_load_is_one_sentence():
    with pytest.raises(MissingExtraError) as broken, console.extra("export"):
        raise ImportError("libtorch.so: cannot open shared object file", name="torch._C")
    assert str(broken.value) == (
        "a library that this command needs is installed and cannot be loaded (libtorch.so: cannot open shared "
        "object file): install it again"
    )


def test_a_missing_part_of_stage_rt_itself_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError), console.extra("export"):
        import stage_rt.nonsense  # noqa: F401


def test_the_version_goes_to_stdout(capsys):
    assert run(["--version"], capsys) == (0, f"stage-rt {__version__}\n", "")


def test_every_command_has_help(capsys):
    for command in ("train", "export", "build", "inspect", "verify", "synth", "doctor", "demo"):
        code, out, err = run([command, "--help"], capsys)
        assert (code, err) == (0, "")
        assert f"stage-rt {command}" in out


def test_wrong_usage_is_exit_code_2(capsys):
    for arguments in (["synth"], ["nonsense"], ["synth", "--count", "0"], ["--nonsense"]):
        code, out, err = run(arguments, capsys)
        assert (code, out) == (2, "")
        assert err


@pytest.mark.parametrize(
    "arguments", [["inspect", ""], ["synth", "engine", "-o", ""], ["synth", "--output="]]
)
def test_an_empty_argument_is_wrong_usage_and_not_the_folder_here(capsys, arguments):
    code, out, err = run(arguments, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: an argument is empty")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "stage_rt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"stage-rt {__version__}\n"


def test_a_reader_that_has_enough_is_no_failure():
    code = "from stage_rt.cli import console; console.result('x' * 10**6, {}, as_json=False)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_signal_is_told_only_when_asked_and_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in ENDING]
    with console.orderly_stop() as check:
        check()
        os.kill(os.getpid(), signal.SIGTERM)
        # The listening thread takes a moment to be told.
        with pytest.raises(console.Stopped) as stopped:
            collections.deque(iter(check, "never"), maxlen=0)
    assert stopped.value.exit_code == 143
    assert [signal.getsignal(signum) for signum in ENDING] == before


def test_a_result_cannot_move_the_cursor(capsys):
    console.result("a\x1b[2Jb\n  c", {"name": "a\x1b[2Jb"}, as_json=False)
    console.result("", {"name": "a\x1b[2Jb"}, as_json=True)
    assert capsys.readouterr().out == 'a\\x1b[2Jb\n  c\n{"name": "a\\u001b[2Jb"}\n'


def test_a_result_as_json_is_json_whatever_the_encoding_of_stdout():
    code = "from stage_rt.cli import console; console.result('', {'name': 'é\\udcff'}, as_json=True)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {"name": "é\udcff"}


@pytest.mark.parametrize("arguments", [["inspect", "é"], ["inspect", "é\x1b[2J\n"]])
def test_a_terminal_without_unicode_is_no_internal_error(arguments):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: `\\xe9")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.rstrip(b"\n").isascii()
    assert b"\x1b" not in done.stderr


def test_a_system_without_hang_ups_can_be_told_what_is_wrong() -> None:
    code = f"import signal; del signal.SIGHUP; {MAIN.replace('main()', 'assert main')}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
