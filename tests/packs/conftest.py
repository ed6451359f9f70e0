"""Two finished runs of one object, and packs of them in every format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import PROMPT, FakeEngine, manifest, opened, photographs
from PIL import Image, ImageOps

from stage_rt.packs.pack import Request, Summary, pack
from stage_rt.run.fill import fill
from stage_rt.run.job import Job

COUNTS = {"hole": 14, "crack": 9}
SPLIT = 0.6


def awkward_labels(folder: Path, size=(40, 30)) -> list[Path]:
    """Masks that are hard to outline: holes, single pixels, corners that touch, a hairline, the edge of the frame."""
    folder.mkdir(parents=True)
    ring, dust, stairs, edge = (np.zeros((size[1], size[0]), dtype=np.uint8) for _ in range(4))
    ring[4:20, 5:25] = 255
    ring[8:12, 9:14] = ring[14:17, 12:20] = 0
    dust[3, 4] = dust[3, 7] = dust[20, 30] = dust[21:24, 2] = 255
    stairs[np.arange(5, 25), np.arange(5, 25)] = 255
    edge[:, :3] = edge[-2:, :] = 255
    edge[10, 10:40] = 255
    paths = []
    for name, label in {"ring": ring, "dust": dust, "stairs": stairs, "edge": edge}.items():
        paths.append(folder / f"{name}.png")
        Image.fromarray(label).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def here(tmp_path_factory) -> Path:
    """``normals`` (9 photographs, all of which are used), and the runs ``hole`` and ``crack``; read only."""
    folder = tmp_path_factory.mktemp("runs")
    job = Job(
        normals=photographs(folder / "normals", 9),
        masks=awkward_labels(folder / "masks"),
        prompt="tile+hole",
        count=COUNTS["hole"],
        seed=7,
        composite=True,
        batch=4,
    )
    # One sample fails in the first run.
    fill(FakeEngine(poisoned=(3,)), job, folder / "hole")
    fill(FakeEngine(), replace(job, prompt="tile+crack", count=COUNTS["crack"], seed=8), folder / "crack")
    return folder


@pytest.fixture(scope="session")
def runs(here) -> list[Path]:
    return [here / "hole", here / "crack"]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data set of the object: 8 holes, 5 cracks, 3 good photographs beside them; read only."""
    folder = tmp_path_factory.mktemp("data") / PROMPT.partition("+")[0]
    masks = awkward_labels(folder.parent / "drawn")
    for seed, (kind, count) in enumerate({"hole": 8, "crack": 5}.items(), start=20):
        (folder / "ground_truth" / kind).mkdir(parents=True)
        for n, photo in enumerate(photographs(folder / "test" / kind, count, seed=seed)):
            # Other labels than those of the runs, of which pairs would be left out.
            turned = ImageOps.mirror(opened(masks[n % 4]))
            turned.save(folder / "ground_truth" / kind / f"{photo.stem}_mask.png")
    photographs(folder / "test/good", 3, seed=30)
    return folder


@pytest.fixture
def packed(here, runs, tmp_path):
    """``packed(format)`` packs both runs with their photographs; returns the folder and what was said of it."""

    def run(form: str, **options) -> tuple[Path, Summary]:
        given = {"runs": runs, "format": form, "split": SPLIT, "normals": [here / "normals"]} | options
        return tmp_path / form, pack(Request(**given), tmp_path / form)

    return run


@pytest.fixture(scope="session")
def areas(runs) -> dict[str, list[int]]:
    """The labelled pixels of every pair of both runs by type, ascending; what a reader has to find."""
    return {run.name: sorted(written_areas(run)) for run in runs}


@pytest.fixture(scope="session")
def real_areas(data) -> dict[str, list[int]]:
    """The labelled pixels of every labelled photograph of `data`, as `areas`."""
    return {
        kind.name: sorted(int((np.asarray(opened(mask)) > 0).sum()) for mask in kind.iterdir())
        for kind in (data / "ground_truth").iterdir()
    }


def written_areas(run: Path) -> list[int]:
    """From the run's own masks."""
    ok = [line for line in manifest(run) if line["status"] == "ok"]
    return [int((np.asarray(opened(run / line["mask"])) > 0).sum()) for line in ok]
