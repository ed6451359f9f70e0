"""A run in a process for every GPU, on softcuda: the bytes of one process, and each is told its own device."""

from functools import partial

from fake_engine import contents, labels, photographs
from gpu_engine import PROMPT, in_worker, loaded

from stage_rt.progress import silent
from stage_rt.run.crew import Crew
from stage_rt.run.fill import fill, follow
from stage_rt.run.job import Job
from stage_rt.run.ledger import Place
from stage_rt.run.plan import make_plan
from stage_rt.run.processes import Processes, Seat


def test_a_process_for_every_gpu_paints_the_bytes_of_one(machine, tmp_path):
    job = Job(
        photographs(tmp_path / "normals", 3),
        labels(tmp_path / "masks", 4),
        PROMPT,
        10,
        0,
        True,
        2,
        min_fill=0.0,
    )
    engine, _ = loaded(machine, print)
    fill(engine, job, tmp_path / "one")
    notices = []
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    load = partial(in_worker, meeting=meeting, count=2)
    with Crew(
        engine.spec, Processes(load, [Seat(device="0"), Seat(device="GPU-1")]), 2, notices.append
    ) as crew:
        plan = make_plan(engine.spec, job, notices.append)
        place = Place.of(tmp_path / "two")
        assert follow(crew, plan, place, notify=notices.append, progress=silent).written == 10
    engine.close()
    assert sorted(notices) == ["on 0", "on GPU-1"]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
