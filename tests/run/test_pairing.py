from collections import Counter
from pathlib import Path

import pytest

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import Header
from stage_rt.run import pairing

RECORDED = [("n2", "m1"), ("n0", "m0"), ("n1", "m1"), ("n0", "m0"), ("n1", "m1"), ("n2", "m0")]


def files(prefix: str, *sizes: tuple[int, int]) -> dict[Path, Header]:
    return {Path(f"{prefix}{n}"): Header(*size, grey=False) for n, size in enumerate(sizes)}


def pair(normals, masks, **options):
    """The pairs by the paths of their files, and the masks that were left out."""
    chosen, left_out = pairing.pair(normals, masks, **options)
    of_normals, of_masks = list(normals), list(masks)
    return [(of_normals[normal], of_masks[mask]) for normal, mask in chosen.tolist()], left_out


def names(pairs):
    return [(str(normal), str(mask)) for normal, mask in pairs]


def test_the_order_is_that_of_the_seed_and_stays_the_same():
    normals, masks = files("n", *[(8, 8)] * 3), files("m", *[(8, 8)] * 2)
    # Recorded: a change of these means that no older run can be resumed.
    assert names(pair(normals, masks, count=6, seed=0)[0]) == RECORDED
    assert names(pair(normals, masks, count=6, seed=1)[0]) != RECORDED


def test_more_samples_leave_the_first_ones_as_they_are():
    normals, masks = files("n", *[(8, 8)] * 7), files("m", *[(8, 8)] * 5)
    assert pair(normals, masks, count=50, seed=3)[0][:20] == pair(normals, masks, count=20, seed=3)[0]


def test_masks_and_normals_are_used_evenly():
    normals, masks = files("n", *[(8, 8)] * 10), files("m", *[(8, 8)] * 7)
    for count in (7, 10, 33, 70):
        pairs, _ = pair(normals, masks, count=count, seed=2)
        for uses, of in ((Counter(n for n, _ in pairs), 10), (Counter(m for _, m in pairs), 7)):
            assert max(uses.values()) == -(-count // of)
            assert min(uses[name] for name in uses) >= count // of
    assert len(set(pair(normals, masks, count=70, seed=2)[0])) > 35


def test_every_cycle_is_shuffled_anew():
    normals, masks = files("n", (8, 8)), files("m", *[(8, 8)] * 20)
    order = [mask for _, mask in pair(normals, masks, count=40, seed=0)[0]]
    assert order[:20] != order[20:]
    assert set(order[:20]) == set(order[20:]) == set(masks)


def test_a_mask_goes_only_with_photographs_of_its_shape():
    normals = files("n", (100, 200), (100, 100), (50, 103), (102, 100))
    masks = files("m", (10, 20), (10, 10), (30, 10))
    pairs, left_out = pair(normals, masks, count=40, seed=0)
    shapes = {str(mask): {str(n) for n, m in pairs if m == mask} for mask in masks}
    assert shapes == {"m0": {"n0", "n2"}, "m1": {"n1", "n3"}, "m2": set()}
    assert left_out == [Path("m2")]


def test_no_mask_of_a_fitting_shape_is_an_error_that_tells_the_shapes():
    with pytest.raises(
        DatasetError, match=r"the first mask is 8x9, the first photograph 8x8\): give masks drawn"
    ):
        pair(files("n", (8, 8)), files("m", (8, 9)), count=1, seed=0)


def test_the_largest_seed_is_a_seed():
    assert len(pair(files("n", (8, 8)), files("m", (8, 8)), count=3, seed=2**64 - 1)[0]) == 3
