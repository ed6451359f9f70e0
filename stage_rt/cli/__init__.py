"""The ``stage-rt`` command: one file per command, each importing what it needs in its body."""

import io
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from stage_rt import __version__
from stage_rt.cli import console
from stage_rt.cli.bench import bench
from stage_rt.cli.build import build
from stage_rt.cli.calibrate import calibrate
from stage_rt.cli.client import client
from stage_rt.cli.demo import demo
from stage_rt.cli.doctor import doctor
from stage_rt.cli.evaluate import evaluate
from stage_rt.cli.export import export
from stage_rt.cli.export_triton import export_triton
from stage_rt.cli.import_ import app as import_
from stage_rt.cli.inspect import inspect
from stage_rt.cli.merge import merge
from stage_rt.cli.pack import pack
from stage_rt.cli.serve import serve
from stage_rt.cli.synth import synth
from stage_rt.cli.train import train
from stage_rt.cli.verify import verify
from stage_rt.errors import ExitCode, StageError, first_line

app = typer.Typer(
    name="stage-rt",
    help="Paint realistic defects exactly inside a mask: train or import, export, build, synthesize.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    train,
    export,
    export_triton,
    build,
    inspect,
    verify,
    bench,
    calibrate,
    synth,
    serve,
    client,
    merge,
    pack,
    evaluate,
    doctor,
    demo,
):
    app.command()(_command)
app.add_typer(import_)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its `ExitCode`, or with 128 + the number of the signal that ended it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here so that `--debug` can stand anywhere: a user adds it to the end of what failed.
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.platform == "win32":
        console.message("error", "stage-rt runs on Linux: use it there or in WSL")
        sys.exit(ExitCode.INPUT)
    for signum in console.caught():
        signal.signal(signum, console.raise_stopped)
    if any(argument == "" or (argument.startswith("--") and argument.endswith("=")) for argument in given):
        console.message(
            "error", "an argument is empty, as an unset variable of a shell is: give a value or leave it out"
        )
        sys.exit(ExitCode.USAGE)
    try:
        command = typer.main.get_command(app)
        command(args=[argument for argument in given if argument != "--debug"], prog_name="stage-rt")
    except console.Stopped as stopped:
        # What is left to be done is Python's own: a second signal is to end it, not to be told of.
        for signum in console.caught():
            signal.signal(signum, signal.SIG_DFL)
        console.message("stopped", "run the same command again to go on")
        sys.exit(stopped.exit_code)
    except Exception as error:
        if debug:
            raise
        text, code = _told(error)
        console.message("error", text)
        sys.exit(code)
    sys.exit(ExitCode.DONE)


def _told(error: Exception) -> tuple[str, ExitCode]:
    if isinstance(error, StageError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        return f"`{error.filename}`: {error.strerror}" if error.filename else error.strerror, ExitCode.BROKEN
    return (
        f"{type(error).__name__}: {first_line(error)}, run with `--debug` for the traceback",
        ExitCode.BROKEN,
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stage-rt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Declared for the help; `main` and `_version` act on them."""
