"""How much is read to make a plan, where photographs differ in size."""

from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeEngine, labels, photographs
from PIL import Image

from stage_rt.errors import MaskError
from stage_rt.images.inputs import fit_mask
from stage_rt.images.masks import AS_IT_IS
from stage_rt.run import augment, plan
from stage_rt.run.checks import Checks
from stage_rt.run.plan import make_plan
from stage_rt.run.sample import Sight

FILES = 12


@pytest.fixture
def many_sizes(job, tmp_path):
    """A job of photographs and masks of one shape, no two of one size."""
    sizes = [(80 + 4 * n, 60 + 3 * n) for n in range(FILES)]
    normals = [photographs(tmp_path / f"n{n}", 1, size)[0] for n, size in enumerate(sizes)]
    masks = [labels(tmp_path / f"m{n}", 1, size)[0] for n, size in enumerate(sizes)]
    return replace(job, normals=normals, masks=masks, count=5)


@pytest.fixture
def read(monkeypatch):
    """The masks that were decoded, in turn."""
    found = []
    for module in (plan, augment):
        reading = module.read_mask
        monkeypatch.setattr(
            module, "read_mask", lambda path, *more, of=reading: found.append(path) or of(path, *more)
        )
    return found


@pytest.mark.parametrize("mask_rule", ["cover", "authors"])
def test_masks_are_decoded_for_the_sizes_that_pairs_have(many_sizes, read, mask_rule):
    made = make_plan(FakeEngine(mask_rule=mask_rule).spec, many_sizes, lambda notice: None)
    assert len(made.samples) == 5
    # Once to see whether it shows at all, once to be checked, and those that are used once in their photograph.
    assert len(read) <= 2 * FILES + len(made.samples)


@pytest.mark.parametrize("mask_rule", ["cover", "authors"])
def test_masks_to_be_joined_are_decoded_once_for_all_sizes(many_sizes, read, mask_rule):
    job = replace(many_sizes, augment=True, count=4 * FILES)
    make_plan(FakeEngine(mask_rule=mask_rule).spec, job, lambda notice: None)
    # For pairs, as above, then to know the borders they lie at, for all sizes and to be checked.
    assert len(read) <= FILES + 4 * FILES + 3 * FILES


@pytest.mark.parametrize("augmented", [False, True])
def test_a_stop_is_heard_at_the_next_mask(many_sizes, read, augmented):
    def stop(share):
        if read:
            raise KeyboardInterrupt

    job = replace(many_sizes, augment=augmented)
    with pytest.raises(KeyboardInterrupt):
        make_plan(FakeEngine(mask_rule="authors").spec, job, lambda notice: None, stop)
    assert len(read) == 1


def test_between_two_masks_that_are_decoded_a_stop_is_heard(many_sizes, read):
    told = []
    job = replace(many_sizes, augment=True, count=2 * FILES)
    make_plan(
        FakeEngine(mask_rule="authors").spec, job, lambda notice: None, lambda share: told.append(len(read))
    )
    assert max(np.diff(told)) == 1
    assert len(read) > 3 * FILES


def test_what_is_certain_of_a_label_without_a_look_at_a_size_is_so(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "mask.png"
    certain = shown = 0
    for _ in range(60):
        height, width = rng.integers(20, 90, 2).tolist()
        label = np.zeros((height, width), bool)
        rows, columns = rng.integers(1, 12, 2).tolist()
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        label[top : top + rows, left : left + columns] = True
        Image.fromarray(label.astype(np.uint8) * 255).save(path)
        asked = plan._Labels(Sight(FakeEngine().spec.model, None), AS_IT_IS, Checks())
        for scale in rng.uniform(0.08, 1.5, 8).tolist():
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            try:
                stays = bool(fit_mask(label, size, path).any())
            except MaskError as error:
                if "vanishes" not in str(error):
                    continue
                stays = False
            shown += stays
            if asked._stays(path, (width, height), size):
                certain += 1
                assert stays
            assert asked.shows(path, (width, height), size) == stays
    assert 0.5 * shown < certain < shown


def test_masks_that_are_left_out_or_resized_are_told_of(many_sizes, tmp_path):
    speck = tmp_path / "speck.png"
    drawn = np.zeros((600, 800), np.uint8)
    drawn[300, 401] = 255
    Image.fromarray(drawn).save(speck)
    told = []
    job = replace(many_sizes, normals=many_sizes.normals[:4], masks=[speck, *many_sizes.masks])
    make_plan(FakeEngine().spec, job, told.append)
    names = ", ".join(["`000_mask.png`"] * 3)
    assert told == [
        "masks left out, as nothing of some defect would be seen by the networks: `speck.png`",
        f"masks resized to the size of their photograph: {names} and 1 more",
    ]
