"""What is launched, in which order and how large."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage_rt.cuda import plan
from stage_rt.cuda.plan import Kind
from stage_rt.recipe import Recipe

A, N, S = Kind.AWARE, Kind.ONLY, Kind.SURFACE
SHORT = Recipe(name="short", steps=9, ema_stop=2, only_intervals=((3, 5),))


@pytest.mark.parametrize("recipe", [Recipe.authors(), Recipe.paper()], ids=lambda recipe: recipe.name)
def test_in_lockstep_every_step_runs_the_adapter_of_its_branch(recipe):
    needed = plan.kinds(recipe, True)
    found = plan.launched([needed] * 3, [999] * 3, 1000)
    assert [kind.branches for kind in found] == [[recipe.branch(i)] for i in range(999, -1, -1)]
    assert found.count(N) == {"authors": 202, "paper": 301}[recipe.name]
    assert plan.launched([needed], [999], 1000) == found


def test_a_recipes_rows_say_what_they_need():
    assert plan.kinds(SHORT, True).tolist() == [A, A, A, N, N, N, A, A, A]
    assert plan.kinds(SHORT, False).tolist() == [0] * 9
    assert plan.kinds(SHORT.contrasted(2), True).tolist() == [S | A] * 3 + [S | N] * 3 + [S | A] * 3
    assert plan.kinds(SHORT.contrasted(0), False).tolist() == [S] * 9


@pytest.mark.parametrize(
    ("counters", "steps", "expected"),
    [
        ([8, -1, -1], 4, [A, A, A, N]),
        ([8, 5, -1], 4, [A | N, A | N, A | N, A | N]),
        ([1, -1, 2], 9, [A | S, A | S, A | S]),
        ([8, -1, 0], 3, [A | S, A, A]),
        ([-1, 4, 4], 2, [N | S, N | S]),
        ([-1, -1, -1], 5, []),
        ([0, -1, -1], 5, [A]),
        ([8, 8, 8], 0, []),
    ],
)
def test_a_step_runs_what_any_sample_that_has_its_turn_needs(counters, steps, expected):
    needed = [plan.kinds(SHORT, True)] * 2 + [plan.kinds(SHORT.contrasted(3), True)]
    assert plan.launched(needed, counters, steps) == expected


def test_every_kind_is_what_samples_at_steps_of_their_own_can_come_to():
    assert plan.every_kind(4, guided=True, surface=False) == [A, N, A | N]
    assert plan.every_kind(1, guided=True, surface=True) == [A, N, A | S, N | S]
    assert plan.every_kind(4, guided=False, surface=True) == [Kind(0), S]


@pytest.mark.parametrize("kind", plan.every_kind(4, guided=True, surface=True), ids=str)
def test_a_rehearsal_needs_what_it_rehearses_at_every_row(kind):
    tables = [plan.rehearsed(SHORT, kind, sample) for sample in range(2)]
    for rows in zip(*tables, strict=True):
        together = Kind(0)
        for row in rows:
            together |= plan.kind(row, guided=True)
        assert together == kind


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (A, "branch `aware`"),
        (A | N, "branch `aware` and `only`"),
        (S | N, "branch `only` against good surface"),
        (Kind(0), "the UNet alone"),
    ],
)
def test_a_kind_in_words(kind, text):
    assert str(kind) == text


@pytest.mark.parametrize("count", [1, 49, 50, 51, 101, 1000])
def test_stretches_are_all_steps_cut_after_every_fifty(count):
    stretches = plan.stretches(count)
    assert [each.steps for each in stretches] == [50] * (count // 50) + [count % 50] * (count % 50 > 0)
    assert [each.done for each in stretches] == [
        min(50 * (n + 1), count) / count for n in range(len(stretches))
    ]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=12))
def test_buffers_are_aligned_and_apart(listed):
    sizes = {f"buffer {n}": size for n, size in enumerate(listed)}
    offsets, end = plan.layout(sizes)
    spans = sorted((offsets[name], offsets[name] + size) for name, size in sizes.items())
    assert all(offset % plan.ALIGNMENT == 0 for offset in offsets.values())
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert max(stop for _, stop in spans) <= end


@given(st.integers(1, 5000), st.integers(1, 70))
def test_grids_reach_every_element(elements, batch):
    blocks, rows = plan.step_grid(batch, elements)
    assert (blocks - 1) * plan.BLOCK * 4 < elements <= blocks * plan.BLOCK * 4
    assert rows == batch
    blocks, rows = plan.gather_grid(batch, elements)
    assert (blocks - 1) * plan.BLOCK < elements <= blocks * plan.BLOCK
    assert rows == batch
    blocks, rows = plan.advance_grid(batch)
    assert (blocks - 1) * plan.BLOCK < batch <= blocks * plan.BLOCK
    assert rows == 1
