"""A run in parts: which samples each of several commands paints, so that together they are one run.

Samples that go through the networks together stay together, so a pair has the bytes it has in one run at that batch.
"""

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stage_rt.errors import InputError
from stage_rt.run.plan import Plan
from stage_rt.spec import Shard

MOST = 10_000


def parse(text: str) -> tuple[int, int]:
    """Number and count of shards from ``i/n``, counted from 1.

    Raises:
        InputError: it is something else.
    """
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of <= MOST:
        raise InputError(
            f"`--shard {text}` is no part of a run: give `1/{max(of, 2)}` to the first of {max(of, 2)}"
        )
    return number, of


def take(plan: Plan, number: int, of: int) -> Plan:
    """The part of a plan that is shard ``number`` of ``of``: every ``of``-th batch, from the ``number``-th on."""
    shard = Shard(number=number, of=of, together=plan.together)
    return replace(
        plan,
        samples=plan.samples.only(indices(shard, plan.spec.count)),
        spec=plan.spec.model_copy(update={"shard": shard}),
    )


def indices(shard: Shard, count: int) -> NDArray[np.int64]:
    """Of a run of ``count`` samples those that belong to a shard, rising."""
    every = np.arange(count)
    return np.flatnonzero(every // shard.together % shard.of == shard.number - 1)
