"""Evaluations of the data set that `tests/quality/conftest.py` writes."""

from pathlib import Path
from typing import Any

from fake_engine import FakeEngine

from stage_rt.quality.evaluate import Done, Request, run

SOURCES = ["ours", "ours-shifted", "cutpaste"]


def engine(held_out: range = range(2, 6)) -> FakeEngine:
    made = FakeEngine()
    model = made.spec.model.model_copy(
        update={
            "prompts": {"part+dent": "a", "part+spot": "a"},
            "provenance": {
                "held_out": [f"part/{kind}/{n}.png" for kind in ("dent", "spot") for n in held_out]
            },
        }
    )
    made.spec = made.spec.model_copy(update={"model": model})
    return made


def request(data: Path, **changes) -> Request:
    asked = {
        "root": data,
        "size": "cpu",
        "sources": SOURCES,
        "segmenter": None,
        "encoder": None,
        "types": None,
        "seeds": 2,
        "pairs": None,
        "recipe": None,
        "command": "stage-rt evaluate part",
    }
    return Request(**(asked | changes))


def run_with(engine: FakeEngine, asked: Request, folder: Path, shares: list[float] | None = None) -> Done:
    told = [] if shares is None else shares
    return run({"engine": engine}, asked, folder, say=lambda line: None, progress=told.append)


def evaluated(data: Path, folder: Path, shares: list[float] | None = None, **changes: Any) -> dict[str, Any]:
    return run_with(engine(), request(data, **changes), folder, shares).result
