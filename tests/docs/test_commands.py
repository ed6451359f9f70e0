"""The commands, options, targets and links of the documentation, held against what there is."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from stage_rt.cli import app, main

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *(ROOT / "docs").glob("*.md"),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
# Of other programs: pip, pytest, git, benchmarks/gpu/run.sh.
FOREIGN = {"--dry", "--force-reinstall", "--no-deps", "--quick", "--strict", "--upgrade"}


def blocks(text: str) -> Iterator[str]:
    """The lines of fenced ``sh`` blocks, continued ones as one."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> list[list[str]]:
    """The arguments of every ``stage-rt`` command of a page."""
    words = [shlex.split(line, comments=True) for line in blocks(text)]
    return [line[1:] for line in words if line[:1] == ["stage-rt"]]


def parse(arguments: list[str]) -> None:
    """What the command line makes of ``arguments``, without running anything; raises for what it refuses."""
    command: Any = typer.main.get_command(app)
    name = "stage-rt"
    while hasattr(command, "commands"):
        name, command, arguments = arguments[0], command.commands[arguments[0]], arguments[1:]
    command.make_context(name, list(arguments))


@cache
def options() -> frozenset[str]:
    """Every option of every command."""
    found, waiting = {"--debug", "--version", "--help"}, [typer.main.get_command(app)]
    while waiting:
        command: Any = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        found |= {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return frozenset(found)


def unknown_options(text: str) -> set[str]:
    """Options named in backticks that no command has."""
    quoted = " ".join(re.findall(r"`([^`\n]+)`", text))
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", quoted)) - options() - FOREIGN


def dead_links(page: Path, text: str) -> set[str]:
    """Relative links, and paths of the repository in backticks, that lead nowhere."""
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    dead = {link for link in links if link and not (page.parent / link).exists()}
    roots = "stage_rt|training|export|engines|benchmarks|tests|docs|models/demo"
    paths = re.findall(rf"`((?:{roots})/[\w./-]+)`", text)
    return dead | {path for path in paths if "NAME" not in path and not (ROOT / path).exists()}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_is_one(page: Path) -> None:
    for arguments in commands(page.read_text()):
        parse(arguments)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_option_is_one(page: Path) -> None:
    assert unknown_options(page.read_text()) == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_and_path_leads_somewhere(page: Path) -> None:
    assert dead_links(page, page.read_text()) == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_target_of_make_is_one(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


def test_the_pages_have_commands_to_run() -> None:
    found = [arguments[0] for page in PAGES for arguments in commands(page.read_text())]
    assert len(found) >= 10
    assert {"build", "synth", "import"} <= set(found)


@pytest.mark.parametrize(
    "line",
    [
        "stage-rt synth ENGINE --normals N --masks M --prompt p -o RUN --stepps 100",
        "stage-rt synth ENGINE --normals N --masks M --prompt p",
        "stage-rt synth ENGINE --normals N --masks M --prompt p -o RUN --sampler ddim",
        "stage-rt build MODEL -o ENGINE --backend tensorflow",
        "stage-rt paint ENGINE",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    (arguments,) = commands(f"```sh\n{line}\n```\n")
    with pytest.raises(Exception, match=r"stepps|output|ddim|tensorflow|paint"):
        parse(arguments)


def test_a_wrong_option_link_or_path_is_found() -> None:
    assert unknown_options("use `--stepps` or `stage-rt synth --steps 10`") == {"--stepps"}
    text = (
        "[a](nowhere.md) [b](README.md#top) [c](https://example.org) `stage_rt/attic.py` `stage_rt/engine.py`"
    )
    assert dead_links(ROOT / "README.md", text) == {"nowhere.md", "stage_rt/attic.py"}


def test_the_two_commands_of_the_readme(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, with the words in capitals replaced, fewer pairs and the fewer steps of the test's model."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder, count in (("GOOD", 2), ("MASKS", 2)):
        (tmp_path / folder).mkdir()
        for n in range(count):
            pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
            if folder == "MASKS":
                pixels[:] = 0
                pixels[10:20, 10 + n : 24] = 255
            Image.fromarray(pixels).save(tmp_path / folder / f"{n}.png")
    first, second = commands((ROOT / "README.md").read_text())[:2]
    replaced = {"MODEL": str(model_folder), "bottle+crack": "tile+crack", "500": "3", "100": "10"}
    for arguments in (first, second):
        with pytest.raises(SystemExit) as exited:
            main([replaced.get(word, word) for word in arguments])
        assert exited.value.code == 0
    assert len(list((tmp_path / "RUN/test/crack").glob("*.png"))) == 3
