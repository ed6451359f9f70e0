from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stage_rt.errors import DatasetError
from stage_rt.images.inputs import Header, same_aspect
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


def of_shapes(prefix: str, rng: np.random.Generator, count: int) -> dict[Path, Header]:
    sides = rng.integers(50, 60, count).tolist()
    return files(prefix, *[(side, side * int(rng.integers(1, 3))) for side in sides])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_mask_gets_the_least_used_of_all_photographs_in_which_it_shows(share):
    rng = np.random.default_rng(round(10 * share))
    normals, masks = of_shapes("n", rng, 30), of_shapes("m", rng, 12)
    seen = {(mask, header[:2]): rng.random() < share for mask in masks for header in normals.values()}
    allowed = {
        mask: [
            place
            for place, normal in enumerate(normals.values())
            if same_aspect(header[:2], normal[:2]) and seen[mask, normal[:2]]
        ]
        for mask, header in masks.items()
    }

    def shows(mask, drawn, size):
        assert drawn == masks[mask][:2]
        return seen[mask, size]

    if not any(allowed.values()):
        with pytest.raises(DatasetError, match="every mask is so small"):
            pairing.pair(normals, masks, count=1, seed=4, shows=shows)
        return
    chosen, left_out = pairing.pair(normals, masks, count=200, seed=4, shows=shows)
    assert left_out == [mask for mask in masks if not allowed[mask]]
    uses, of_masks = [0] * len(normals), list(masks)
    for normal, mask in chosen.tolist():
        ranked = [
            (uses[place], pairing._ranks(len(normals), 4, uses[place])[place], place)
            for place in allowed[of_masks[mask]]
        ]
        assert normal == min(ranked)[2]
        uses[normal] += 1


def test_a_mask_is_asked_of_the_sizes_that_it_comes_to():
    normals, masks = files("n", *[(100 + n,) * 2 for n in range(50)]), files("m", *[(100, 100)] * 40)
    asked = set()

    def shows(mask, drawn, size):
        asked.add((mask, size))
        return True

    pairing.pair(normals, masks, count=30, seed=0, shows=shows)
    assert len(asked) <= 40 + 30


def test_a_stop_while_masks_are_asked_is_heard_at_the_next_one():
    asked = []

    def shows(mask, drawn, size):
        asked.append(mask)
        return True

    def stop(share):
        if asked:
            raise KeyboardInterrupt

    normals, masks = files("n", (100, 100), (90, 90)), files("m", *[(100, 100)] * 40)
    with pytest.raises(KeyboardInterrupt):
        pairing.pair(normals, masks, count=30, seed=0, shows=shows, progress=stop)
    assert len(asked) == 1
