"""``stage-rt serve``: engines behind HTTP, and a page to paint with."""

import logging
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from stage_rt.cli import console

LEAST_TOKEN = 16


def serve(
    engines: Annotated[
        list[Path], typer.Argument(metavar="ENGINE...", help="Engine folders made by `stage-rt build`.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of jobs and accepted pairs; nothing else is written.")
    ],
    normals: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Photographs of good parts, the page's gallery.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Masks of real defects, one folder a type, like which the page makes new ones.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the token that clients show; needed beyond this machine."
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            min=0,
            help="Memory that engines may take together.",
            show_default="half of what this process may use",
        ),
    ] = None,
) -> None:
    """Paint pairs while somebody watches, and runs for the night, for browsers and programs.

    Ends on SIGTERM once the pairs in hand are painted; unfinished jobs go on when it is started again.
    """
    from stage_rt.errors import InputError
    from stage_rt.machine import memory as of_the_machine

    with console.extra("serve"):
        from stage_rt.serve.guard import is_loopback
        from stage_rt.serve.listen import run
        from stage_rt.serve.metrics import Figures
    from stage_rt.files import check_apart, disk_failures, try_out
    from stage_rt.run.ledger import LOCK_FILE, locked_run
    from stage_rt.serve.server import Server, Settings

    token = _token(token_file) if token_file else None
    if token is None and not is_loopback(host):
        raise InputError(
            f"`{host}` can be reached from other machines", "give a `--token-file`, or leave `--host` out"
        )
    for read in (*engines, normals, masks):
        if read is not None:
            check_apart(read, data, "--data")
    _check_no_run(data)
    try_out(data / LOCK_FILE, "--data")
    data.mkdir(parents=True, exist_ok=True)
    log, figures = _log(), Figures()
    budget = round(memory * 2**30) if memory is not None else of_the_machine() // 2
    with locked_run(data), _listening(host, port) as sock:
        settings = Settings(engines, data, budget, normals, masks)
        with disk_failures(data, "--data"):
            server = Server(settings, tell=log.error, observe=figures.step, over=figures.over)
        name = f"[{host}]" if ":" in host else host
        console.result(f"http://{name}:{sock.getsockname()[1]}/", {}, as_json=False)
        run(server, sock, token, figures, log)


def _check_no_run(data: Path) -> None:
    """A run is packed and merged by what lies in it."""
    from stage_rt.errors import InputError
    from stage_rt.run.night import TYPES
    from stage_rt.spec import RUN_FILE

    # Whether it may be read at all is told when it is tried out.
    if any(os.path.exists(data / name) for name in (RUN_FILE, TYPES)):
        raise InputError(
            f"`{data}` is a run of `stage-rt synth`, which jobs do not belong into", "choose another `--data`"
        )


def _token(path: Path) -> str:
    from stage_rt.errors import InputError

    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"`{path}` cannot be read as a token", "write 32 letters and digits into it"
        ) from None
    if len(token) < LEAST_TOKEN or not token.isprintable():
        raise InputError(
            f"the token in `{path}` has less than {LEAST_TOKEN} characters", "write a longer one"
        )
    return token


def _listening(host: str, port: int) -> socket.socket:
    from stage_rt.errors import InputError

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InputError(
            f"`{host}` port {port} cannot be listened at ({error.strerror or error})", "give another `--port`"
        ) from None


def _log() -> logging.Logger:
    log = logging.getLogger("stage_rt.serve")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return log
