"""``stage-rt doctor``: what this machine has and lacks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from stage_rt.cli import console

if TYPE_CHECKING:
    from stage_rt.doctor import Line

STYLES = {"ok": "green", "missing": "yellow", "wrong": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what this machine has, what it lacks and how to mend it.

    The exit code is 0 when the default path, ONNX Runtime on the CPU, can be taken, and 1 when it cannot;
    all else may be missing.
    """
    from dataclasses import asdict

    from stage_rt.doctor import examine, lacking
    from stage_rt.errors import InputError

    with console.messages().status("looking"):
        lines = examine()
    missed = lacking(lines)
    if as_json:
        fields = {"ready": not missed, "lines": [asdict(line) for line in lines]}
        console.result("", fields, as_json=True)
    else:
        _show(lines)
    if missed:
        raise InputError(f"not ready to run on the CPU: see to {', '.join(missed)} above")


def _show(lines: Sequence["Line"]) -> None:
    from rich.console import Console
    from rich.text import Text

    stdout = Console(highlight=False, soft_wrap=True)
    width = max(len(line.subject) for line in lines)
    for line in lines:
        text = Text.assemble(
            (f"{line.status:<8}", STYLES[line.status]), f"{line.subject:<{width}}  {line.found}"
        )
        stdout.print(text)
        if line.fix:
            stdout.print(Text(f"{'':<8}{'':<{width}}  fix: {line.fix}"))
