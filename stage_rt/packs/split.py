"""Which side a good photograph and all that was painted into it stands on.

Pairs painted into the same photograph share all but the defect. On both sides of a split they would let a network be
tested on what it learned, so whole photographs are dealt out. The rule knows names, counts and the seed alone;
`alike` gives photographs of one content one name.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

Counts = Mapping[str, Mapping[str, int]]
"""By a photograph's name: how many pictures of each type are made of it."""

_ALL = "all/types"
"""Counted as a type is, and the name of none."""


def alike(named: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Every name by the first, in alphabetical order, of all that are the same photograph.

    ``named`` are names and their sha256, if known. Names of one content are the same photograph, and so is what had
    one name in several runs, whatever it held: pairs tell of a photograph only its name.
    """
    contents: dict[str, set[str | None]] = {}
    names: dict[str | None, set[str]] = {}
    for name, digest in named:
        contents.setdefault(name, set()).add(digest)
        names.setdefault(digest, set()).add(name)
    first: dict[str, str] = {}
    for name in sorted(contents):
        queue = [] if name in first else [name]
        while queue:
            one = queue.pop()
            if one not in first:
                first[one] = name
                queue += (other for digest in contents[one] - {None} for other in names[digest])
    return first


def held_out(photographs: Counts, share: float, seed: int) -> frozenset[str]:
    """The photographs of the validation side, so that ``share`` of every type is left to train on.

    Those with most pictures go first, the seed's order decides between equals. Each goes to the side that has the
    smaller part of its due, in every type and in all together; the training side between equals. So both sides have
    something, given two photographs.
    """
    if not 0 < share < 1:
        return frozenset() if share else frozenset(photographs)
    photographs = {name: {**counts, _ALL: sum(counts.values())} for name, counts in photographs.items()}
    total = sum(map(Counter, photographs.values()), Counter[str]())
    due = [{kind: part * count for kind, count in total.items()} for part in (share, 1 - share)]
    have: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    out = set()
    for name in sorted(_shuffled(photographs, seed), key=lambda name: -photographs[name][_ALL]):
        counts = photographs[name]
        wants = [
            sum(count * (1 - have[side][kind] / due[side][kind]) for kind, count in counts.items())
            for side in (0, 1)
        ]
        side = int(wants[1] > wants[0])
        have[side].update(counts)
        if side:
            out.add(name)
    return frozenset(out)


def kept_good(photographs: Counts, share: float, seed: int) -> frozenset[str]:
    """The ``share`` of photographs to train on as they are; first those that nothing was painted into.

    ``photographs`` counts pairs.
    """
    order = sorted(_shuffled(photographs, seed), key=lambda name: sum(photographs[name].values()) > 0)
    return frozenset(order[: round(share * len(order))])


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """In an order that the seed decides and that no other name takes part in."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
