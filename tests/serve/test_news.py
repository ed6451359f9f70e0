"""What is told of a pair or a job that somebody follows."""

import asyncio
import json
from types import SimpleNamespace

from stage_rt.run.workers import Result
from stage_rt.serve import news
from stage_rt.serve.api import PairState
from stage_rt.serve.pairs import Pair


def test_the_end_is_told_where_a_thing_is_over_before_its_version_has_grown(monkeypatch):
    """A job is done, then written to disk, and only then of another version."""
    monkeypatch.setattr(news, "LOOK", 0)
    states = iter(["painting", "done"])
    now = {}

    def over() -> bool:
        now["state"] = next(states)
        return now["state"] == "done"

    async def told() -> list[str]:
        return [text async for text in news._news(lambda: 1, lambda: dict(now), over)]

    texts = asyncio.run(told())
    assert [json.loads(text.removeprefix("data: "))["state"] for text in texts] == ["painting", "done"]


def test_a_pair_that_is_done_while_it_is_looked_at_is_not_told_of_as_done_without_its_files():
    class Done(Pair):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name == "error" and super().__getattribute__("state") == "painting":
                self.change(
                    result=Result(0, b"", None, b"", 1, 1, 1, 1.0, 1.0, (0, 0, 1, 1), b""), state="done"
                )
            return found

    method = SimpleNamespace(steps=10, min_fill=0.5)
    request = SimpleNamespace(engine="tiles", prompt="tile+crack", seed=0, source=None, method=method)
    pair = Done("a", request, state="painting")
    assert PairState.of(pair).state == "painting"
    assert PairState.of(pair).state == "done"
