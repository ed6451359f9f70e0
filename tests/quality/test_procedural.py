"""The package defect-synthesis, in whose place stands one that draws what it is told to."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from stage_rt.errors import InputError
from stage_rt.images.objects import find_object
from stage_rt.quality import procedural

PHOTO = np.zeros((40, 40, 3), dtype=np.uint8)
PHOTO[4:36, 4:36] = np.random.default_rng(0).integers(190, 210, (32, 32, 3), dtype=np.uint8)
LABEL = np.zeros((40, 40), dtype=bool)
LABEL[20, 5:30] = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, np.ndarray]]:
    """What generators were asked for and where; every first time they draw nothing."""
    asked: list[tuple[str, np.ndarray]] = []

    def generator(name: str) -> SimpleNamespace:
        def apply(photo: np.ndarray, roi_mask: np.ndarray) -> SimpleNamespace:
            asked.append((name, roi_mask))
            mask = np.zeros(photo.shape[:2], dtype=np.uint8)
            if len(asked) > 1:
                mask[12:16, 12:16] = 255
                photo[11:17, 11:17] = 0
            return SimpleNamespace(image=photo, anomaly_mask=mask)

        return SimpleNamespace(apply=apply)

    names = set(procedural.GENERATORS.values())
    package = SimpleNamespace(**{name: lambda name=name: generator(name) for name in names})
    monkeypatch.setitem(sys.modules, "defect_synthesis", package)
    return asked


def test_it_draws_its_own_defect_and_label_anywhere_on_the_part(asked) -> None:
    before = PHOTO.copy()
    image, label = procedural.painter("crack")(PHOTO, LABEL, PHOTO, np.random.default_rng(0))
    assert [name for name, _ in asked] == ["CrackGenerator"] * 2
    for _, where in asked:
        np.testing.assert_array_equal(where > 0, find_object(PHOTO))
    assert 0.5 < find_object(PHOTO).mean() < 0.7
    assert np.argwhere(label).min(axis=0).tolist() == [12, 12]
    assert label.sum() == 16
    np.testing.assert_array_equal(PHOTO, before)
    np.testing.assert_array_equal(np.argwhere((image != before).all(axis=2)).max(axis=0), [16, 16])


@pytest.mark.parametrize(("kind", "generators"), [("blowhole", ["PittingGenerator"]), ("fray", [])])
def test_a_type_without_a_generator_of_its_kind_gets_any(asked, kind: str, generators: list[str]) -> None:
    paint, rng = procedural.painter(kind), np.random.default_rng(0)
    for _ in range(20):
        paint(PHOTO, LABEL, PHOTO, rng)
    used = {name for name, _ in asked}
    assert used == set(generators or procedural.GENERATORS.values())


def test_without_the_package_its_name_and_how_it_is_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "defect_synthesis", None)
    with pytest.raises(InputError, match="is not installed: `pip install --no-deps defect-synthesis`"):
        procedural.painter("crack")
