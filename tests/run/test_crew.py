"""The driver of many workers: every task is kept once, whoever dies meanwhile and in whatever order things happen."""

import json
import random
import time
from functools import partial
from itertools import chain

import pytest
from fake_engine import FakeEngine, contents, manifest, on_device

from stage_rt.errors import BackendError, DeviceError, EngineError, InputError, MaskError
from stage_rt.progress import silent
from stage_rt.run.crew import LOSSES, Crew, Done, Failed, Lost, Noticed, Ready, Share
from stage_rt.run.fill import fill, follow
from stage_rt.run.ledger import Place
from stage_rt.run.plan import RULES, make_plan
from stage_rt.run.processes import Processes, Seat
from stage_rt.run.watch import METRICS, Recorder
from stage_rt.run.workers import begin


def ignore(notice):
    """A notice that nobody reads."""


class Dice:
    """A transport without workers: what its engine paints at once is handed in, and workers die, by chance.

    ``deaths`` is how probable it is that a worker dies where it could have finished something.
    """

    def __init__(self, seed=0, deaths=0.0, fingerprint="0" * 64, rules=RULES):
        self.dice, self.deaths, self.fingerprint = random.Random(seed), deaths, fingerprint
        self.rules = rules
        self.engine, self.given, self.alive, self.news = FakeEngine(), {}, [], []
        self.most = self.ended = 0

    def start(self, worker):
        self.alive.append(worker)
        self.given[worker] = []
        self.news.append(Ready(worker, self.fingerprint, self.rules))

    def give(self, worker, number, task):
        self.given[worker].append((number, task))
        self.most = max(self.most, len(self.given[worker]))

    def events(self, seconds):
        self.dice.shuffle(self.news)
        yield from self.take_news()
        for worker in self.dice.sample(self.alive, len(self.alive)):
            if self.dice.random() < self.deaths:
                self.alive.remove(worker)
                self.ended += 1
                yield Lost(worker, "by signal 9")
            elif self.given[worker]:
                yield from self.finish(worker)

    def finish(self, worker):
        number, task = self.given[worker].pop(0)
        yield Share(worker, 0.5)
        yield Done(worker, number, list(begin(self.engine, task, silent)()))

    def take_news(self):
        while self.news:
            yield self.news.pop()

    def dismiss(self, seconds):
        for worker in self.alive:
            if self.given[worker]:
                yield from self.finish(worker)
        self.alive.clear()

    def close(self):
        self.alive.clear()


def paint(job, folder, transport, size=2, notify=ignore, progress=silent, **more):
    engine = FakeEngine()
    with Crew(engine.spec, transport, size, notify) as crew:
        plan = make_plan(engine.spec, job, ignore)
        return follow(crew, plan, Place.of(folder), notify=ignore, progress=progress, **more)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("deaths", [0.0, 0.3])
def test_the_bytes_are_those_of_one_process(job, run, tmp_path, size, deaths):
    fill(FakeEngine(), job, tmp_path / "whole")
    ended = 0
    for seed in range(4):
        transport, told = Dice(seed, deaths), []
        summary = paint(job, run / str(seed), transport, size, progress=told.append)
        assert contents(run / str(seed)) == contents(tmp_path / "whole")
        assert summary.written == summary.pairs == 10
        assert told == sorted(told)
        assert told[-1] == 1.0
        assert sorted(chain(*transport.engine.batches)) == list(range(10))
        ended += transport.ended
    assert bool(ended) == bool(deaths)


def test_nobody_has_a_second_task_while_another_has_none(job, run):
    transport = Dice()
    job = type(job)(**{**vars(job), "count": 40})
    paint(job, run / "few", transport, size=2)
    assert transport.most == 2
    transport = Dice()
    paint(job, run / "many", transport, size=9)
    assert transport.most == 1


def test_what_ends_every_worker_ends_the_run(job, run):
    notices = []
    with pytest.raises(BackendError, match=r"5 workers ended one after the other, the last one by signal 9"):
        paint(job, run, Dice(deaths=1.0), notify=notices.append)
    assert len(notices) == LOSSES - 1
    assert notices[0] == "a worker ended (by signal 9), what it had in hand goes to another"


def test_an_error_of_a_worker_is_that_of_the_run_and_what_was_painted_is_kept(job, run):
    class Failing(Dice):
        def events(self, seconds):
            yield from self.take_news()
            if all(self.given.values()):
                yield from self.finish(self.alive[0])
                yield Noticed(self.alive[0], "slower")
                yield Noticed(self.alive[1], "slower")
                yield Failed(self.alive[1], MaskError("`a.png` is gone", "bring it back"))

    notices = []
    with pytest.raises(MaskError, match=r"`a\.png` is gone: bring it back"):
        paint(job, run, Failing(), notify=notices.append)
    assert notices == ["slower"]
    # What the others could still hand in was kept as well.
    assert len((run / "manifest.jsonl").read_text().splitlines()) >= 8


class Sick(Dice):
    """Devices that meet ``error`` instead of finishing their first task, by the numbers of their workers."""

    def __init__(self, error, *sick):
        super().__init__()
        self.error, self.sick = error, sick

    def finish(self, worker):
        if worker not in self.sick:
            yield from super().finish(worker)
            return
        self.alive.remove(worker)
        yield Failed(worker, self.error, f"GPU {worker}")
        yield Lost(worker, f"with exit code 0 on GPU {worker}")


@pytest.mark.parametrize(
    "error",
    [
        BackendError("CUDA failed: ECC", "see nvidia-smi"),
        DeviceError("it is gone"),
        EngineError("of another"),
    ],
)
def test_a_device_that_fails_is_left_out_and_the_others_paint_what_it_had(job, run, tmp_path, error):
    fill(FakeEngine(), job, tmp_path / "whole")
    notices, transport = [], Sick(error, 2)
    paint(job, run, transport, size=3, notify=notices.append)
    assert contents(run) == contents(tmp_path / "whole")
    assert notices == [f"GPU 2 is left out ({error}), what it had in hand goes to the others"]
    assert sorted(transport.given) == [1, 2, 3]


def test_where_every_device_fails_the_last_one_is_named(job, run):
    error, notices = BackendError("CUDA failed: ECC", "see nvidia-smi"), []
    with pytest.raises(BackendError, match=r"^GPU \d: CUDA failed: ECC: see nvidia-smi$") as last:
        paint(job, run, Sick(error, 1, 2, 3), size=3, notify=notices.append)
    named = {str(last.value)[:5], *(notice[:5] for notice in notices)}
    assert named == {"GPU 1", "GPU 2", "GPU 3"}


def test_a_file_that_cannot_be_used_is_no_fault_of_the_device(job, run):
    with pytest.raises(MaskError, match=r"^`a\.png` is gone$"):
        paint(job, run, Sick(MaskError("`a.png` is gone"), 2), size=3)


def test_the_seat_of_a_device_that_failed_stays_empty():
    transport = Processes(partial(on_device, sick="7"), [Seat(device="7"), Seat(device="GPU-1")])
    seen = []

    def until(kind, worker):
        deadline = time.monotonic() + 120
        while not any(isinstance(event, kind) and event.worker == worker for event in seen):
            assert time.monotonic() < deadline, seen
            seen.extend(transport.events(1.0))

    transport.start(1)
    transport.start(2)
    until(Lost, 1)
    until(Ready, 2)
    transport._running[2][0].kill()
    until(Lost, 2)
    transport.start(3)
    until(Ready, 3)
    transport.close()
    [failed] = [event for event in seen if isinstance(event, Failed)]
    assert (str(failed.told), failed.local) == ("GPU 7: CUDA failed: ECC", True)
    assert {event.worker: event.how for event in seen if isinstance(event, Lost)} == {
        1: "with exit code 0 on GPU 7",
        2: "by signal 9 on GPU-1",
    }
    assert [event.notice for event in seen if isinstance(event, Noticed) and event.worker == 3] == [
        "on GPU-1"
    ]


def test_a_run_that_is_stopped_keeps_what_was_painted(job, run, tmp_path):
    class EnoughError(Exception):
        pass

    def enough(share):
        if share > 0.3:
            raise EnoughError

    with pytest.raises(EnoughError):
        paint(job, run, Dice(), progress=enough)
    assert (run / "manifest.jsonl").read_text().count("\n") >= 4
    paint(job, run, Dice())
    paint(job, tmp_path / "whole", Dice())
    assert contents(run) == contents(tmp_path / "whole")


def test_workers_need_the_engine_of_the_command(job, run):
    with pytest.raises(EngineError, match="a worker has another engine than the command: give all of them"):
        paint(job, run, Dice(fingerprint="1" * 64))


def test_workers_need_the_rules_of_the_command(job, run):
    transport = Dice(rules=RULES - 1)
    with pytest.raises(InputError, match=r"of another release of stage-rt than the command, .*: install one"):
        paint(job, run, transport)
    assert transport.engine.batches == []


def test_a_finished_run_starts_no_worker(job, run):
    paint(job, run, Dice())
    transport = Dice()
    paint(job, run, transport)
    assert transport.given == {}


def test_rejected_pairs_get_the_image_that_one_process_gives_them(job, run, tmp_path):
    asked = {}
    for folder in (run, tmp_path / "whole"):
        fill(FakeEngine(), job, folder)
        asked = {"hole": {n: manifest(folder)[n]["image_sha256"] for n in (1, 5)}}
    old = contents(run)
    fill(FakeEngine(), job, tmp_path / "whole", rejected=asked)
    assert paint(job, run, Dice(deaths=0.3), rejected=asked).written == 2
    assert contents(run) == contents(tmp_path / "whole")
    assert contents(run) != old


def test_a_crew_is_watched_and_says_nothing_of_the_time_of_a_step(job, run):
    recorder = Recorder()
    paint(job, run, Dice(), watch=recorder)
    recorder.end("done", "every sample is")
    told = json.loads((run / METRICS).read_text())
    assert (told["types"]["hole"]["pairs"], told["step_seconds"]) == (10, None)
