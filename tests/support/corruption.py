"""Random corruptions of every kind of folder, and what became of each: ``python tests/support/corruption.py 2000``.

A corrupted engine, graphs folder, model, run or photograph has to be refused in one sentence, or to give exactly what
the sound one gives. Anything else is printed, and the exit code is 1.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fake_engine import PROMPT, FakeEngine, contents, labels, photographs

from stage_rt.engines.build import build
from stage_rt.engines.graphs import read_graphs
from stage_rt.errors import StageError
from stage_rt.folders import read_contexts, read_engine, verify_engine
from stage_rt.images.inputs import read_image
from stage_rt.images.masks import read_mask
from stage_rt.run.fill import fill
from stage_rt.run.job import Job
from stage_rt.spec import PROMPTS_FILE

REFUSED, SAME, WRONG, CRASHED = "refused", "same result", "WRONG RESULT", "CRASHED"


class Subject(NamedTuple):
    """A sound folder, and ``use``, which says what comes of a copy of it; equal for equal results."""

    name: str
    sound: Path
    use: Callable[[Path], Any]
    ways: tuple[Callable[[Path, random.Random], None], ...]


def flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(dice.choice((1, 1, 1, 8))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content) or 1)])


def extend(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(dice.choice((1, 16, 5000))))


def blank(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = dice.randrange(len(content) or 1)
    end = min(start + dice.choice((16, 512, 4096)), len(content))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


def remove(path: Path, dice: random.Random) -> None:
    path.unlink()


def exchange(path: Path, dice: random.Random) -> None:
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    if others:
        other = dice.choice(others)
        mine, its = path.read_bytes(), other.read_bytes()
        path.write_bytes(its)
        other.write_bytes(mine)


def to_folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def to_link(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to(dice.choice(("/nowhere", "/etc/passwd", "/dev/null", ".")))


def rewrite(path: Path, dice: random.Random) -> None:
    """Another value somewhere in a JSON file, or in a line of one; bytes where it is none."""
    lines = path.read_bytes().split(b"\n") if path.suffix == ".jsonl" else [path.read_bytes()]
    number = dice.randrange(len(lines))
    try:
        content = json.loads(lines[number])
    except ValueError:
        return flip(path, dice)
    place, parent, key = content, None, None
    while isinstance(place, dict | list) and place:
        parent, key = place, dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = place[key]
    if parent is not None:
        parent[key] = dice.choice((None, -1, 0, 1e308, 2**70, "", "\x1b[2J", "../x", [], {}, True, [[[[]]]]))
    lines[number] = json.dumps(content).encode()
    path.write_bytes(b"\n".join(lines))
    return None


OF_CONTENT = (flip, truncate, extend, blank)
OF_FILES = (flip, truncate, extend, blank, remove, exchange, to_folder, to_link, rewrite)


def sweep(subjects: list[Subject], count: int, seed: int = 0) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Outcomes by subject, and what was wrong, in words."""
    dice, outcomes, faults = random.Random(seed), Counter(), []
    expected = {subject.name: used(subject) for subject in subjects}
    for number in range(count):
        subject = subjects[number % len(subjects)]
        way = dice.choice(subject.ways)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "it"
            shutil.copytree(subject.sound, folder)
            path = dice.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
            where = path.relative_to(folder)
            way(path, dice)
            try:
                found = subject.use(folder)
            except StageError as error:
                outcome = REFUSED if told_well(str(error)) else CRASHED
                told = str(error)
            except Exception as error:
                outcome, told = CRASHED, repr(error)
            else:
                outcome, told = SAME if found == expected[subject.name] else WRONG, "another result"
        outcomes[subject.name, outcome] += 1
        if outcome in (WRONG, CRASHED):
            faults.append(f"{number}: {way.__name__} of {subject.name}/{where}: {told}")
    return outcomes, faults


def told_well(text: str) -> bool:
    """Whether an error is one line that a terminal shows as it is."""
    return text.isprintable() and len(text) < 1000


def used(subject: Subject) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        return subject.use(Path(shutil.copytree(subject.sound, Path(scratch) / "it")))


def subjects(folder: Path) -> list[Subject]:
    """Sound examples of everything, made in ``folder``."""
    from small_model import write_small_model

    from stage_rt.export.graphs import export

    model = write_small_model(folder / "model")
    export(model, folder / "graphs", dtype="fp32")
    build(folder / "graphs", folder / "engine", backend="onnxruntime", batch=[2])
    photographs(folder / "inputs" / "normals", 3)
    labels(folder / "inputs" / "masks", 4)
    fill(FakeEngine(), job(folder / "inputs"), folder / "run")
    return [
        Subject("engine", folder / "engine", engine, OF_FILES),
        Subject("graphs", folder / "graphs", lambda at: read_graphs(at).fingerprint, OF_FILES),
        Subject("model", model, weights, OF_FILES),
        Subject("run", folder / "run", lambda at: resumed(folder / "inputs", at), OF_FILES),
        # Which photographs there are is the user's to say: only what is in them is corrupted.
        Subject("images", folder / "inputs", decoded, OF_CONTENT),
    ]


def job(inputs: Path) -> Job:
    normals, masks = (sorted((inputs / name).iterdir()) for name in ("normals", "masks"))
    return Job(normals, masks, PROMPT, 6, 0, True, 2)


def engine(folder: Path) -> Any:
    """What loading checks of an engine before a library reads it: once it is whole, it is the sound one."""
    spec = read_engine(folder)
    verify_engine(folder, spec)
    contexts = read_contexts(folder / PROMPTS_FILE, spec.model)
    return spec, {name: context.tobytes() for name, context in contexts.items()}


def weights(folder: Path) -> Any:
    from stage_rt.training.folder import load_model

    model = load_model(folder)
    states = {
        f"{place}.{name}": tensor.numpy().tobytes()
        for place, module in model.modules.items()
        for name, tensor in module.state_dict().items()
    }
    return model.spec, states, {name: context.numpy().tobytes() for name, context in model.contexts.items()}


def resumed(inputs: Path, run: Path) -> Any:
    fill(FakeEngine(), job(inputs), run)
    return {name: content for name, content in contents(run).items() if name != ".lock"}


def decoded(inputs: Path) -> Any:
    asked = job(inputs)
    return (
        [read_image(path).tobytes() for path in asked.normals],
        [read_mask(path).label.tobytes() for path in asked.masks],
    )


def main(count: int) -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = subjects(Path(folder))
        outcomes, faults = sweep(made, count)
    for subject in made:
        told = {outcome: outcomes[subject.name, outcome] for outcome in (REFUSED, SAME, WRONG, CRASHED)}
        print(f"{subject.name:8}", ", ".join(f"{number} {outcome}" for outcome, number in told.items()))
    print(f"{count} corruptions in {time.monotonic() - started:.0f} s, {len(faults)} faults")
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
