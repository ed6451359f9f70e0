"""Random pickles made of what is costly: none takes long, needs much memory or gives anything but an answer."""

import io
import resource
import struct
import time
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from stage_rt.errors import CheckpointError
from stage_rt.export.importers.unpickle import read_pickle

SECONDS, GROWTH = 5.0, 2 * 2**20
"""What no input under 16 MiB may need; the growth is in KiB, as the system counts it."""
LONGEST = 16 << 20

TEXT = b"X" + struct.pack("<I", 1000) + b"a" * 1000
LARGE = b"X" + struct.pack("<I", 1 << 20) + b"b" * (1 << 20)
INTEGER = b"\x8b" + struct.pack("<i", 1 << 16) + b"\x7f" * (1 << 16)
SMALL = [b"K\x07", b"N", b"\x88", b"G" + struct.pack(">d", 0.5), b")", b"]", b"}", b"U\x01c"]
COSTLY = [
    TEXT,
    LARGE,
    INTEGER,
    b"(" + b"K\x01" * 100_000 + b"t",
    b"(" + b"K\x01" * 100_000 + b"l",
    b"(" + b"K\x01\x85" * 50_000 + b"l",
    b"(" + TEXT * 50 + b"d",
    b"ccollections\nOrderedDict\n",
    b"cbuiltins\nset\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cos\nsystem\n",
]
"""What lies in the memo, to be fetched again and again."""
SLOTS = 4
value = st.sampled_from(SMALL) | st.integers(0, SLOTS - 1).map(lambda slot: b"h" + bytes([slot]))
unit = st.one_of(
    st.tuples(value, value).map(lambda two: b"}" + b"".join(two) + b"s0"),
    value.map(lambda one: b"]" + one + b"a0"),
    st.tuples(value, value).map(lambda two: b"".join(two) + b"\x930"),
    st.tuples(value, value).map(lambda two: two[0] + two[1] + b"\x85R0"),
    st.tuples(value, value).map(lambda two: two[0] + two[1] + b"R0"),
    st.tuples(value, value).map(lambda two: b"".join(two) + b"\x810"),
    st.tuples(value, value).map(lambda two: two[0] + b")\x81" + two[1] + b"b0"),
    value.map(lambda one: one + b"Q0"),
    value.map(lambda one: b"(" + one * 30 + b"t0"),
    value.map(lambda one: b"}(" + one * 30 + b"u0"),
    value.map(lambda one: b"](" + one * 30 + b"e0"),
    st.binary(min_size=1, max_size=3),
)
"""A piece of a pickle that leaves the stack as it was, or damages it."""
run = st.tuples(unit, st.integers(1, 400_000)).map(lambda run: run[0] * min(run[1], LONGEST // len(run[0])))
memo = st.lists(st.sampled_from(COSTLY), min_size=SLOTS, max_size=SLOTS).map(
    lambda costly: b"".join(made + b"q" + bytes([slot]) + b"0" for slot, made in enumerate(costly))
)
pickles = st.tuples(memo, st.lists(run, min_size=1, max_size=5)).map(
    lambda two: two[0] + b"".join(two[1]) + b"N."
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pickles)
def test_no_pickle_is_costly(body: bytes) -> None:
    content = (b"\x80\x04" + body)[:LONGEST]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    answer: Any
    try:
        answer = read_pickle(
            io.BytesIO(content),
            where="it",
            storage=lambda key: key,
            rebuild=lambda name, arguments: arguments,
        )
    except CheckpointError as error:
        answer = str(error)
        assert answer.isprintable()
        assert len(answer) < 500
    spent = time.process_time() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    note(f"{len(content)} bytes, {spent:.1f} s, {grown >> 10} MiB more")
    assert spent < SECONDS
    assert grown < GROWTH
