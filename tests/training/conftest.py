"""The micro preset and data set as fixtures."""

from pathlib import Path

import pytest
from micro import MICRO, write_dataset

from stage_rt.training.presets import PRESETS, Preset


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The micro preset in the place of ``tiny``."""
    monkeypatch.setitem(PRESETS, "tiny", MICRO)
    return MICRO


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """An MVTec-layout folder of the object ``part``."""
    return write_dataset(tmp_path / "part")
