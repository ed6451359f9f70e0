"""A job of ten pairs, and the folder of its run, as fixtures."""

import pytest
from fake_engine import PROMPT, labels, photographs

from stage_rt.run.job import Job


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(
        normals=photographs(tmp_path / "normals", 5),
        masks=labels(tmp_path / "masks", 4),
        prompt=PROMPT,
        count=10,
        seed=7,
        composite=True,
        batch=4,
    )


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"
