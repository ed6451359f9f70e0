"""What can be seen of a run from outside: its log, its figures for people, JSON and Prometheus."""

import json
import os
import re
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
from fake_engine import FakeEngine, contents
from prometheus_client.parser import text_string_to_metric_families

from stage_rt.noise import stream
from stage_rt.run import watch as watching
from stage_rt.run.fill import fill
from stage_rt.run.gpus import Gpu, gpus
from stage_rt.run.metrics import Outcome
from stage_rt.run.watch import LOG, METRICS, PROMETHEUS, TIMES, Recorder, recorded

GPU = Gpu(0, "a GPU", 0.5, 3 * 2**30, 70.5, 61)


class Time:
    """A clock that shows what it is set to, and ticks that go on by a second each time they are asked."""

    def __init__(self, now=1_800_000_000.0):
        self.now, self.gone = now, 0.0

    def ticks(self):
        self.gone += 1
        return self.gone

    def recorder(self, *gpus):
        return Recorder(clock=lambda: self.now, ticks=self.ticks, gpus=lambda: list(gpus))


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 5.0)


def watched(job, run, time=None, *gpus, end=True, **engine):
    recorder = (time or Time()).recorder(*gpus)
    fill(FakeEngine(**engine), job, run, watch=recorder)
    if end:
        recorder.end("done", "every sample is")
    return recorder


def figures(run):
    return json.loads((run / METRICS).read_text())


def exposed(run):
    """The samples of a file as Prometheus' own parser reads them, and how they are declared."""
    families = list(text_string_to_metric_families((run / PROMETHEUS).read_text()))
    values = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    return values, {family.name: family.type for family in families}


def test_a_folder_whose_name_is_no_text_is_watched_too(job, tmp_path):
    run = tmp_path / os.fsdecode(b"run\xff")
    watched(job, run)
    assert figures(run)["state"] == "done"
    assert "run\ufffd" in (run / PROMETHEUS).read_text(encoding="utf-8")


def test_the_figures_of_a_run_are_those_of_its_pairs(job, run):
    engine = {"poisoned": [4, stream(4, attempt=1)], "idle": lambda number: number % 2**20 in (2, 7)}
    watched(replace(job, min_fill=0.3, retries=1), run, Time(), GPU, **engine)
    told = figures(run)
    assert told["state"] == "done"
    assert told["types"] == {
        "hole": {"planned": 10, "done": 10, "pairs": 9, "refilled": 3, "weak": 2, "left_out": 0, "failed": 1}
    }
    assert told["seconds_left"] == 0
    assert told["step_seconds"] == 1
    assert told["gpus"] == [vars(GPU)]
    values, kinds = exposed(run)
    for name, field in (
        ("stage_rt_samples_planned", "planned"),
        ("stage_rt_samples_done", "done"),
        ("stage_rt_pairs_total", "pairs"),
        ("stage_rt_pairs_refilled_total", "refilled"),
        ("stage_rt_pairs_weak_total", "weak"),
        ("stage_rt_samples_failed_total", "failed"),
    ):
        assert values[name, "run", "hole"] == told["types"]["hole"][field]
    assert values["stage_rt_running", "run"] == 0
    assert values["stage_rt_updated_seconds", "run"] == 1_800_000_000
    assert values["stage_rt_gpu_memory_bytes", "run", "0"] == 3 * 2**30
    assert kinds["stage_rt_pairs"] == "counter"
    assert kinds["stage_rt_step_seconds"] == "gauge"


class Device(FakeEngine):
    """Tells of its progress every ``every`` steps, each of which takes half a second of ``time``."""

    def __init__(self, time, every, steps):
        super().__init__(steps=steps)
        self.time, self.every = time, every

    def paint(self, *arrays, steps, progress, **how):
        def told(share):
            step = round(share * steps)
            self.time.gone += 0.5
            if step % self.every == 0 or step == steps:
                progress(share)

        return super().paint(*arrays, steps=steps, progress=told, **how)


@pytest.mark.parametrize(("every", "steps"), [(1, 100), (50, 120), (50, 50), (50, 20)])
@pytest.mark.parametrize("retries", [0, 2])
def test_the_time_of_a_step_is_the_same_however_rarely_progress_is_told(job, run, every, steps, retries):
    time = SimpleNamespace(gone=1.0)
    recorder = Recorder(clock=lambda: 1_800_000_000.0, ticks=lambda: time.gone, gpus=list)
    fill(Device(time, every, steps), replace(job, min_fill=0.3, retries=retries), run, watch=recorder)
    recorder.end("done", "every sample is")
    assert figures(run)["step_seconds"] == pytest.approx(0.5)


def test_the_log_has_a_line_now_and_then_and_every_event(job, run):
    recorder = Time().recorder(GPU)
    recorder.notice("told before the folder was there\x1b[2J")
    fill(FakeEngine(poisoned=[4]), job, run, watch=recorder, notify=recorder.notice)
    recorder.end("done", "every sample is")
    lines = (run / LOG).read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING) ", line) for line in lines)
    said = [line.partition(" ")[2] for line in lines]
    assert said[:2] == ["INFO begins: 10 hole", "WARNING notice: told before the folder was there\\x1b[2J"]
    assert "WARNING hole 4 failed: the sampler's result is not finite" in said
    assert said[-1] == "INFO done: every sample is"
    steady = [line for line in said if " ms a step" in line]
    assert len(steady) > 3
    assert re.fullmatch(
        r"INFO \d+/10 samples(, [\d.]+ a second, \d+ min left)?, 1e\+03 ms a step(, 1 failed)?, "
        r"GPU 0 50% 3.0 GiB 70 W 61 °C",
        steady[-1],
    )


def test_the_same_pairs_come_out_watched_or_not(job, run):
    watched(job, run)
    fill(FakeEngine(), job, run.with_name("alone"))
    assert contents(run) == contents(run.with_name("alone"))
    for name in (LOG, METRICS, PROMETHEUS, TIMES):
        assert (run / name).stat().st_size


def test_sittings_are_kept_and_a_clock_that_jumps_does_not_lengthen_one(job, run):
    time = Time()
    recorder = time.recorder()

    def stop(share):
        time.now -= 86400
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(FakeEngine(), job, run, watch=recorder, progress=stop)
    recorder.end("stopped", "the same command again goes on")
    first = figures(run)["sittings"]
    assert first[0]["samples"] > 0
    assert 0 < first[0]["seconds"] < 200
    assert figures(run)["state"] == "stopped"
    watched(job, run, Time())
    both = figures(run)["sittings"]
    assert both[:-1] == first
    assert sum(one["samples"] for one in both) == 10
    watched(job, run, Time())
    watched(job, run, Time())
    # Those in which nothing was left to do are not kept.
    assert figures(run)["sittings"][:-1] == both
    assert (
        json.loads((run / TIMES).read_text().removeprefix("window.stageTimes = ").removesuffix(";\n"))
        == (figures(run)["sittings"])
    )
    (run / METRICS).write_text('{"sittings": [{"started": 1}]}')
    watched(job, run, Time())
    assert len(figures(run)["sittings"]) == 1


def test_a_resumed_run_counts_what_was_done_and_its_speed_leaves_it_out(job, run):
    fill(FakeEngine(), replace(job, count=6), run)
    recorder = Time().recorder()
    told = []

    def look(share):
        if (run / METRICS).exists():
            told.append(figures(run))

    fill(FakeEngine(), job, run, watch=recorder, progress=look)
    assert (told[0]["types"]["hole"]["done"], told[0]["state"]) == (6, "running")
    assert told[0]["pairs_per_second"] is None
    recorder.end("done", "")
    assert figures(run)["types"]["hole"] == {
        "planned": 10, "done": 10, "pairs": 10, "refilled": 0, "weak": 0, "left_out": 0, "failed": 0
    }  # fmt: skip


@pytest.mark.parametrize("strict", [False, True])
def test_the_figures_of_a_run_that_was_cut_off_are_those_of_a_whole_one(job, run, strict):
    engine = {"poisoned": [4, stream(4, attempt=1)], "idle": lambda number: number % 2**20 in (2, 7)}
    job = replace(job, min_fill=0.3, retries=1, strict=strict)
    watched(job, run.with_name("whole"), **engine)
    whole = figures(run.with_name("whole"))
    assert all(
        whole["types"]["hole"][name] for name in ("refilled", "left_out" if strict else "weak", "failed")
    )

    def stop(share):
        if share > 0.85:
            raise KeyboardInterrupt

    recorder = Time().recorder()
    with pytest.raises(KeyboardInterrupt):
        fill(FakeEngine(**engine), job, run, watch=recorder, progress=stop)
    recorder.end("stopped", "")
    first, done = figures(run)["sittings"], figures(run)["types"]["hole"]["done"]
    assert 4 < done < 10
    watched(job, run, **engine)
    assert figures(run)["types"] == whole["types"]
    # The one that failed is painted again.
    assert [one["samples"] for one in figures(run)["sittings"]] == [done, 10 - done + 1]
    assert figures(run)["sittings"][:1] == first


def test_what_a_crash_left_staged_is_swept_out_and_nothing_else(job, run):
    run.mkdir()
    for name in (METRICS, PROMETHEUS, "mine.json"):
        (run / f".{name}.0123abcd.tmp").write_text("half")
    watched(job, run)
    assert [path.name for path in run.rglob("*.tmp")] == [".mine.json.0123abcd.tmp"]


def test_a_disk_that_takes_no_log_stops_no_run(job, run, capsys):
    fill(FakeEngine(), replace(job, count=2), run)
    for name in (LOG, METRICS, PROMETHEUS):
        (run / name).mkdir()
    watched(job, run)
    assert len(list(run.glob("test/hole/*"))) == 10
    assert capsys.readouterr().err == ""
    assert not list(run.rglob("*.tmp"))


def test_names_are_escaped_as_prometheus_reads_them(tmp_path):
    recorder = Time().recorder()
    recorder.open(tmp_path, {'a"b\\c\nd': 3})
    recorder.begin('a"b\\c\nd', {Outcome("ok", weak=False, refilled=False): 1})
    values, _ = exposed(tmp_path)
    assert values["stage_rt_samples_done", tmp_path.name, 'a"b\\c\nd'] == 1
    recorder.end("done", "")


class Stop(BaseException):
    """A signal."""


@pytest.mark.parametrize(
    ("raised", "state", "told"),
    [
        (None, "done", "INFO done: every sample is"),
        (Stop(), "stopped", "INFO stopped: the same command again goes on"),
        (ValueError("broken"), "failed", "ERROR failed: broken"),
    ],
)
def test_how_a_run_ends_is_told(tmp_path, raised, state, told):
    def work():
        recorder = Recorder()
        with recorded(recorder, Stop):
            recorder.open(tmp_path, {"hole": 1})
            recorder.begin("hole", {})
            if raised:
                raise raised

    if raised:
        with pytest.raises(type(raised)):
            work()
    else:
        work()
    assert figures(tmp_path)["state"] == state
    assert (tmp_path / LOG).read_text().splitlines()[-1].partition(" ")[2] == told


def test_what_fails_before_a_type_is_begun_is_what_is_raised(tmp_path):
    recorder = Recorder()
    recorder.open(tmp_path, {"hole": 3})
    with pytest.raises(ValueError, match="broken"), recorded(recorder, Stop):
        raise ValueError("broken")
    assert (figures(tmp_path)["state"], figures(tmp_path)["types"]["hole"]["done"]) == ("failed", 0)


def test_what_ends_before_it_begins_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="broken"), recorded(Recorder(), Stop):
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def nvml(monkeypatch, **questions):
    """A `pynvml` whose GPU answers ``questions``; what it is not told it does not support."""
    module = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def refuse(*_):
        raise NVMLError

    def answers(answer):
        def asked(handle, *more):
            return refuse() if answer is None else answer

        return asked

    module.NVMLError, module.NVML_TEMPERATURE_GPU = NVMLError, 0
    module.closed = 0
    module.nvmlInit = lambda: refuse() if questions.get("broken") else None
    module.nvmlShutdown = lambda: setattr(module, "closed", module.closed + 1)
    module.nvmlDeviceGetCount = lambda: 1
    module.nvmlDeviceGetHandleByIndex = lambda number: number
    for name in ("Name", "UtilizationRates", "MemoryInfo", "PowerUsage", "Temperature"):
        setattr(module, f"nvmlDeviceGet{name}", answers(questions.get(name)))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_tells_what_the_gpus_do_and_what_one_does_not_know_is_left_out(monkeypatch):
    module = nvml(
        monkeypatch,
        Name="H100",
        UtilizationRates=SimpleNamespace(gpu=97, memory=3),
        MemoryInfo=SimpleNamespace(total=80, used=41),
        PowerUsage=345_600,
        Temperature=61,
    )
    assert gpus() == [Gpu(0, "H100", 0.97, 41, 345.6, 61)]
    assert module.closed == 1
    nvml(monkeypatch, Name="Orin")
    assert gpus() == [Gpu(0, "Orin", None, None, None, None)]


def test_without_nvml_there_are_no_gpus(monkeypatch):
    nvml(monkeypatch, broken=True)
    assert gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus() == []


def test_nvml_as_it_is_has_what_is_asked_of_it():
    pynvml = pytest.importorskip("pynvml")
    for name in (
        "Name",
        "UtilizationRates",
        "MemoryInfo",
        "PowerUsage",
        "Temperature",
        "Count",
        "HandleByIndex",
    ):
        assert callable(getattr(pynvml, f"nvmlDeviceGet{name}"))
    assert pynvml.NVML_TEMPERATURE_GPU == 0
    assert issubclass(pynvml.NVMLError, Exception)
