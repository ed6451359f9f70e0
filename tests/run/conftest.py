"""A job of ten pairs, and the folder of its run, as fixtures."""

import pytest
from fake_engine import ten_pairs

from stage_rt.run.job import Job


@pytest.fixture
def job(tmp_path) -> Job:
    return ten_pairs(tmp_path)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"
