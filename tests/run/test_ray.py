"""The transport over Ray, on a stand-in that does at once what is asked for and hands on pickles, as Ray does.

`tests/faults/test_ray.py` has it on real clusters.
"""

import pickle
import sys
from functools import partial
from itertools import count
from types import ModuleType, SimpleNamespace

import pytest
from fake_engine import FakeEngine, contents

from stage_rt.errors import ImageError, InputError, StageError
from stage_rt.progress import silent
from stage_rt.run.crew import Crew
from stage_rt.run.fill import fill, follow
from stage_rt.run.ledger import Place
from stage_rt.run.plan import RULES, make_plan
from stage_rt.run.ray import LOCAL, Cluster, _Hand


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__()
        self.cause = cause


def sent(thing):
    """What arrives elsewhere: an exception without its frames."""
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture
def ray(monkeypatch):
    """The stand-in, in place of Ray; ``failed`` are the errors that Ray would print, since nobody asked for them."""
    made, calls, answers = ModuleType("ray"), count(), {}
    made.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    made.failed = []

    def called(method, *args):
        call = next(calls)
        try:
            answers[call] = sent(method(*map(sent, args)))
        except Exception as error:
            answers[call] = RayTaskError(sent(error))
            made.failed.append(error)
        return call

    def actor(kind, *args):
        hand = kind(*args)
        methods = {name: getattr(hand, name) for name in ("load", "paint")}
        return SimpleNamespace(
            **{name: SimpleNamespace(remote=partial(called, method)) for name, method in methods.items()}
        )

    def get(call):
        if isinstance(answers[call], Exception):
            raise answers[call]
        return answers[call]

    made.remote = lambda **_: lambda kind: SimpleNamespace(remote=partial(actor, kind))
    made.wait = lambda calls, **_: (calls[:1], calls[1:])
    made.init = made.kill = made.shutdown = lambda *_, **__: None
    made.get = get
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def paint(job, folder, load, *, before=lambda plan: None):
    spec = FakeEngine().spec
    with Crew(spec, Cluster(load, LOCAL, gpu=False), 2, print) as crew:
        plan = make_plan(spec, job, print)
        before(plan)
        return follow(crew, plan, Place.of(folder), notify=print, progress=silent)


def test_the_bytes_are_those_of_one_process(ray, job, run, tmp_path):
    fill(FakeEngine(), job, tmp_path / "whole")
    assert paint(job, run, lambda notify: FakeEngine()).written == 10
    assert contents(run) == contents(tmp_path / "whole")


@pytest.mark.parametrize("answer", ["0" * 64, ("0" * 64, RULES - 1), ("0" * 64, RULES + 1)])
def test_a_node_of_another_release_is_refused(ray, job, run, monkeypatch, answer):
    """One of before told the engine's fingerprint alone."""
    monkeypatch.setattr(_Hand, "load", lambda self: (answer, []))
    with pytest.raises(
        InputError,
        match=r"^a worker is of another release of stage-rt than the command, which paints by other",
    ):
        paint(job, run, lambda notify: FakeEngine())
    assert not list(run.rglob("*.png"))


@pytest.mark.parametrize("moment", ["load", "paint"])
def test_what_nobody_foresaw_says_which_line_of_ours_it_comes_from(ray, job, run, moment):
    def broken(*_, **__):
        raise RuntimeError("a fault\nof two lines")

    def painting(notify):
        engine = FakeEngine()
        engine.paint = broken
        return engine

    where = "run/ray" if moment == "load" else "strokes"
    told = rf"^a worker failed \(RuntimeError: a fault \(in `{where}\.py`, line \d+\)\)$"
    with pytest.raises(StageError, match=told):
        paint(job, run, broken if moment == "load" else painting)
    assert ray.failed == []


def test_a_photograph_that_cannot_be_used_is_named(ray, job, run):
    def replaced(plan):
        plan.samples[0].normal.write_bytes(b"")

    with pytest.raises(
        ImageError, match=r"^`.*normals/\d+\.png` changed since it was checked: put it back and"
    ):
        paint(job, run, lambda notify: FakeEngine(), before=replaced)
    assert ray.failed == []
