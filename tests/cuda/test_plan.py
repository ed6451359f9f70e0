"""What is launched, in which order and how large."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage_rt.cuda import plan
from stage_rt.recipe import Branch, Recipe


@pytest.mark.parametrize("recipe", [Recipe.authors(), Recipe.paper()], ids=lambda recipe: recipe.name)
def test_stretches_are_the_whole_loop_in_order(recipe):
    stretches = plan.stretches(recipe)
    launched = [branch for stretch in stretches for branch in stretch.branches]
    assert launched == [recipe.branch(i) for i in range(999, -1, -1)]
    assert [1000 * stretch.done for stretch in stretches] == pytest.approx(list(range(50, 1001, 50)))
    assert stretches[-1].done == 1
    assert launched.count(Branch.ONLY) == {"authors": 202, "paper": 301}[recipe.name]


def test_a_loop_that_is_no_multiple_of_fifty_ends_with_a_short_stretch():
    stretches = plan.stretches(Recipe(name="odd", steps=101, ema_stop=3, only_intervals=()))
    assert [(len(stretch.branches), stretch.done) for stretch in stretches] == [
        (50, 50 / 101),
        (50, 100 / 101),
        (1, 1),
    ]


def test_branches_come_with_a_step_of_theirs():
    recipe = Recipe.authors()
    for each in (recipe, recipe.respaced(20)):
        chosen = plan.branches(each)
        assert all(each.branch(each.coefficients[row].timestep) is branch for branch, row in chosen.items())
    assert set(plan.branches(recipe)) == set(Branch)
    assert set(plan.branches(Recipe(name="none", only_intervals=()))) == {Branch.AWARE}


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
    blocks, rows = plan.gather_grid(elements)
    assert (blocks - 1) * plan.BLOCK < elements <= blocks * plan.BLOCK
    assert rows == 1
