"""The command that is run when a run is over."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stage_rt.cli import console
from stage_rt.errors import ExitCode, FailedSamplesError
from stage_rt.run.watch import METRICS

RUN, STATE, CODE, FIGURES = "STAGE_RT_RUN", "STAGE_RT_STATE", "STAGE_RT_EXIT_CODE", "STAGE_RT_METRICS"


@contextmanager
def finished(command: str | None, run: Path) -> Iterator[None]:
    """A block after which ``command`` is run by the shell, however it ends; its own failure is a notice.

    It finds in its environment the folder of the run, ``done``, ``stopped`` or ``failed``, the exit code and the file
    of figures. What it prints goes to stderr, as the result is on stdout.
    """
    if command is None:
        yield
        return
    state, code = "done", int(ExitCode.DONE)
    try:
        yield
    except console.Stopped as stopped:
        state, code = "stopped", stopped.exit_code
        raise
    except FailedSamplesError as failed:
        code = int(failed.exit_code)
        raise
    except BaseException as error:
        # Wrong usage is an error of the command line's own library, which knows its code too.
        state, code = "failed", int(getattr(error, "exit_code", ExitCode.BROKEN))
        raise
    finally:
        told = {RUN: str(run), STATE: state, CODE: str(code), FIGURES: str(run / METRICS)}
        ended = subprocess.run(command, shell=True, env=os.environ | told, stdout=2, check=False)
        if ended.returncode:
            console.message("notice", f"`--on-finish` ended with exit code {ended.returncode}")
