"""The rule that decides sides."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage_rt.packs.split import alike, held_out, kept_good

photographs = st.dictionaries(
    st.text("abc0123456789", min_size=1, max_size=6),
    st.dictionaries(st.sampled_from(["crack", "hole", "good"]), st.integers(1, 20), min_size=1),
    min_size=2,
    max_size=40,
)


def even(count, kinds=("crack", "hole")):
    return {f"{n:03d}.png": dict.fromkeys(kinds, 2) for n in range(count)}


def total(counts, names):
    return sum((Counter(counts[name]) for name in names), Counter())


@given(photographs, st.floats(0.05, 0.95), st.integers())
def test_both_sides_have_something_whatever_there_is(counts, share, seed):
    out = held_out(counts, share, seed)
    assert 0 < len(out) < len(counts)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_every_type_is_split_as_asked(share):
    counts = even(100)
    out = total(counts, held_out(counts, share, 0))
    assert out == {kind: pytest.approx(200 * (1 - share), abs=2) for kind in ("crack", "hole")}


def test_a_type_of_few_photographs_is_on_both_sides():
    counts = even(50, ["crack"]) | {f"rare{n}": {"hole": 1} for n in range(5)}
    out = total(counts, held_out(counts, 0.8, 0))
    assert out["hole"] == 1
    assert out["crack"] == 20


def test_the_ends_are_one_side_alone():
    assert held_out(even(5), 1.0, 0) == frozenset()
    assert held_out(even(5), 0.0, 0) == frozenset(even(5))


def test_the_seed_alone_chooses_among_equals():
    counts = even(40)
    backwards = dict(reversed(counts.items()))
    assert held_out(counts, 0.8, 3) == held_out(backwards, 0.8, 3)
    assert held_out(counts, 0.8, 3) != held_out(counts, 0.8, 4)
    # Held on purpose: a pack made again must not move a photograph.
    assert sorted(held_out(even(10), 0.8, 0)) == ["005.png", "006.png"]


def test_good_photographs_that_nothing_was_painted_into_are_learned_first():
    counts = {f"{n}.png": {"hole": 3} if n < 4 else {} for n in range(10)}
    kept = kept_good(counts, 0.5, 0)
    assert len(kept) == 5
    assert not any(counts[name] for name in kept)
    assert sum(bool(counts[name]) for name in kept_good(counts, 0.8, 0)) == 2
    assert kept_good(counts, 0.0, 0) == frozenset()


def test_names_of_one_content_are_one_photograph():
    assert alike([("b", "1"), ("a", "1"), ("c", "2")]) == {"a": "a", "b": "a", "c": "c"}
    # By way of a name that was another photograph in another run.
    assert set(alike([("d", "1"), ("b", "1"), ("b", "2"), ("c", "2"), ("e", "3")]).items()) == {
        *(("d", "b"), ("b", "b"), ("c", "b"), ("e", "e"))
    }
    # What has no digest is known by name.
    assert alike([("a", None), ("b", None), ("b", "1")]) == {"a": "a", "b": "b"}
