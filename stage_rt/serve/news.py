"""How pairs and jobs go, as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from stage_rt.serve import api
from stage_rt.serve.jobs import Night
from stage_rt.serve.pairs import Pair
from stage_rt.serve.server import Server

LOOK = 0.05
"""Seconds between two looks at what somebody waits for."""
BEAT = 15.0
"""Seconds after which a stream without news says that it is there."""


async def of_pair(pair: Pair) -> AsyncIterator[str]:
    """Every state of a pair until it is over, with its previews as data URLs."""
    shown: bytes | None = None

    def state() -> dict[str, Any]:
        nonlocal shown
        told = api.PairState.of(pair).model_dump()
        if pair.preview is not shown and pair.preview is not None:
            shown = pair.preview
            told["preview"] = _data_url(pair.preview)
        return told

    async for text in _news(lambda: pair.version, state, pair.ended.is_set):
        yield text


async def of_job(night: Night, server: Server) -> AsyncIterator[str]:
    """Every state of a job until it is over, or the server is."""

    def over() -> bool:
        return server.draining or night.order.state in ("done", "failed", "cancelled")

    async for text in _news(lambda: night.version, lambda: api.JobState.of(night).model_dump(), over):
        yield text


async def _news(
    version: Callable[[], int], state: Callable[[], dict[str, Any]], over: Callable[[], bool]
) -> AsyncIterator[str]:
    seen, quiet = -1, 0.0
    while True:
        # The end is told whatever the version: a job is over a moment before its version grows.
        last, now = over(), version()
        if last or now != seen:
            seen, quiet = now, 0.0
            yield f"data: {json.dumps(state())}\n\n"
        if last:
            return
        if quiet >= BEAT:
            quiet = 0.0
            yield ": here\n\n"
        await asyncio.sleep(LOOK)
        quiet += LOOK


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
