"""What is told of a pair or a job that somebody follows."""

import asyncio
import json

from stage_rt.serve import news


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
