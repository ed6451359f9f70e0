"""`stage-rt bench` as a user meets it, and what its figures are made of."""

import io
import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from descriptions import rewrite
from PIL import Image

from stage_rt.bench import stages as module
from stage_rt.bench.result import Result, Row, Spread
from stage_rt.cli import main
from stage_rt.folders import read_engine
from stage_rt.loading import load
from stage_rt.spec import UNET, VAE_DECODER, VAE_ENCODER


@pytest.fixture
def bench(capsys, monkeypatch):
    """Run the command; what the machine can do is not measured anew each time."""
    monkeypatch.setattr(module, "rates", lambda: (50.0, 10.0))

    def run(*arguments):
        with pytest.raises(SystemExit) as exited:
            main(["bench", *map(str, arguments)])
        return exited.value.code, *capsys.readouterr()

    return run


def result(tmp_path, bench, engine, *arguments):
    code, out, err = bench(engine, "--rounds", "2", "--json", *arguments)
    assert (code, err) == (0, "")
    path = tmp_path / "result.json"
    path.write_text(out)
    return json.loads(out), path


def test_every_stage_of_every_batch_is_timed(bench, engine_folder, tmp_path):
    found, path = result(tmp_path, bench, engine_folder, "--plot", tmp_path / "bench.png")
    assert [row["batch"] for row in found["rows"]] == [1, 2, 4]
    assert (found["steps"], found["own_steps"], found["backend"]) == (10, 10, "onnxruntime")
    assert found["peak_memory"] > 2**20
    stages = {"prepare", "encode", "unet", "adapter", "step", "decode", "compose", "write"}
    for row in found["rows"]:
        assert set(row["stages"]) == stages
        assert all(
            0 < spread["low"] <= spread["median"] <= spread["high"] for spread in row["stages"].values()
        )
        assert row["whole"]["rounds"] == 2
        parts = sum(spread["median"] for spread in row["stages"].values())
        assert parts == pytest.approx(row["whole"]["median"], rel=1e-6)
        assert row["unet_gflops"] > 0
    assert Image.open(io.BytesIO((tmp_path / "bench.png").read_bytes())).size[0] > 1000
    assert Result.model_validate_json(path.read_bytes()).model_dump(mode="json") == found


def test_the_memory_told_is_not_what_measuring_the_machine_takes(bench, engine_folder, tmp_path, monkeypatch):
    held = [2**20]

    def measured():
        held.append(2**30)
        return 50.0, 10.0

    monkeypatch.setattr(module, "rates", measured)
    monkeypatch.setattr(module, "_peak_memory", lambda: max(held))
    found, _ = result(tmp_path, bench, engine_folder, "--batch", "1")
    assert held == [2**20, 2**30]
    assert found["peak_memory"] == 2**20


def test_what_the_first_call_of_a_graph_takes_is_loading(bench, engine_folder, tmp_path, monkeypatch):
    open_backend = module.open_backend

    def opened(folder, spec):
        backend, seen = open_backend(folder, spec), set()
        run = backend.run

        def slow_at_first(graph, **inputs):
            time.sleep(0 if graph in seen else 1)
            seen.add(graph)
            return run(graph, **inputs)

        backend.run = slow_at_first
        return backend

    monkeypatch.setattr(module, "open_backend", opened)
    found, _ = result(tmp_path, bench, engine_folder, "--batch", "1")
    # Encoder, UNet, at least one adapter and the decoder.
    assert 4 < found["load_seconds"] < 10
    assert found["rows"][0]["whole"]["high"] < 1


def test_the_table_is_for_people_and_an_earlier_result_is_set_beside_it(bench, engine_folder, tmp_path):
    _, path = result(tmp_path, bench, engine_folder, "--batch", "2")
    code, out, err = bench(engine_folder, "--batch", "2", "--rounds", "1", "--compare", path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "50 GFLOP/s in float32 products, copies 10.0 GB/s" in lines[0]
    assert lines[3].split()[:2] == ["batch", "s"]
    assert lines[4].split()[0] == "2"
    assert "of the loop is outside the networks" in lines[5]
    assert lines[7].startswith("beside onnxruntime")
    assert lines[8].startswith("batch 2: ")
    assert lines[8].endswith(" times the pairs an hour")
    assert "other graphs" not in lines[7]
    path.write_text(path.read_text().replace(read_engine(engine_folder).graphs_fingerprint, "1" * 64))
    assert bench(engine_folder, "--batch", "1", "--rounds", "1", "--compare", path)[1].endswith(
        "no batch was measured in both\n"
    )
    out = bench(engine_folder, "--batch", "2", "--rounds", "1", "--compare", path)[1]
    assert ", fp32, of other graphs, as another model's, on " in out.splitlines()[7]


def row(batch, **seconds):
    stages = {stage: Spread(median=s, low=s, high=s, rounds=1) for stage, s in seconds.items()}
    whole = sum(seconds.values())
    return Row(batch=batch, whole=Spread(median=whole, low=whole, high=whole, rounds=1), stages=stages)


def test_other_steps_are_longer_loops_and_nothing_else():
    found = row(2, encode=1, unet=6, adapter=2, step=2, decode=1)
    assert found.pairs_an_hour(steps=50, own=50) == pytest.approx(3600 * 2 / 12)
    assert found.pairs_an_hour(steps=50, own=1000) == pytest.approx(3600 * 2 / (2 + 10 * 20))
    assert found.outside == pytest.approx(0.2)
    whole = row(2, prepare=1, paint=9)
    assert whole.pairs_an_hour(steps=50, own=100) == pytest.approx(3600 * 2 / 19)
    assert whole.outside is None


class Device:
    """An executor whose work takes the seconds that ``clock`` is told: 3 to encode, 0.5 a step, 7 to decode.

    Its loop is made the first time, which takes ``loading`` seconds.
    """

    def __init__(self, executor, clock, loading=0):
        self._executor, self._clock, self._loading = executor, clock, loading
        self.slots, self.close = executor.slots, executor.close

    def encode(self, images):
        self._clock.now += 3
        return self._executor.encode(images)

    def sample(self, *arguments, steps, **options):
        self._clock.now += steps / 2 + self._loading
        self._loading = 0
        return self._executor.sample(*arguments, steps=steps, **options)

    def decode(self, latent):
        self._clock.now += 0.25
        return Decoding(self._executor.decode(latent), self._clock)


class Decoding:
    def __init__(self, painted, clock):
        self._painted, self._clock, self._waited = painted, clock, False

    @property
    def images(self):
        self._clock.now += 0 if self._waited else 6.75
        self._waited = True
        return self._painted.images

    @property
    def finite(self):
        assert self.images is not None
        return self._painted.finite


def test_an_autoencoder_on_a_gpu_is_no_part_of_the_steps(bench, engine_folder, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def opened(folder, notify):
        engine = load(engine_folder)
        clock.now += 2
        return engine.over(Device(engine.executor, clock, loading=40))

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(module, "load", opened)
    folder = shutil.copytree(engine_folder, tmp_path / "engine")
    rewrite(folder / "engine.json", devices=["sm90"])
    found, path = result(tmp_path, bench, folder, "--batch", "2")
    (measured,) = Result.model_validate(found).rows
    assert {stage: spread.median for stage, spread in measured.stages.items()} == {
        **{"prepare": 0, "encode": 3, "paint": 5, "decode": 7, "compose": 0, "write": 0}
    }
    assert measured.pairs_an_hour(steps=10, own=200) == pytest.approx(3600 * 2 / (3 + 100 + 7))
    assert measured.outside is None
    # UNet and adapters are read when the loop is made.
    assert found["load_seconds"] == pytest.approx(2 + 40)
    again = ("--batch", "2", "--rounds", "1", "--compare", path)
    assert bench(folder, *again)[1].endswith("\nbatch 2: 1.00 times the pairs an hour\n")

    # As it was measured before: its loop may hold 10 of 15 seconds that no step takes.
    stages = found["rows"][0]["stages"]
    stages["paint"] = found["rows"][0]["whole"]
    del stages["encode"], stages["decode"]
    path.write_text(json.dumps(found))
    assert bench(folder, *again)[1].endswith(
        "\nwhich took its autoencoder for a part of every step then: measure it again\n"
    )


def test_an_engine_without_counted_operations_has_no_rate(bench, engine_folder, tmp_path):
    folder = shutil.copytree(engine_folder, tmp_path / "engine")
    rewrite(folder / "engine.json", operations={})
    found, _ = result(tmp_path, bench, folder, "--batch", "1")
    assert found["rows"][0]["unet_gflops"] is None
    assert " - " in bench(folder, "--batch", "1", "--rounds", "1")[1]


def test_wrong_arguments_are_one_sentence(bench, engine_folder, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": 1}')
    for arguments, message in (
        (("--batch", "8"), "error: this engine paints batches of 1 to 4: give `--batch` others"),
        (("--batch", "0"), "error: this engine paints batches of 1 to 4"),
        (("--steps", "20"), "error: sampler `stage` takes from 10 to 10 steps, not 20"),
        (("--plot", tmp_path), f"error: `{tmp_path}` is no name for a picture"),
        (("--compare", broken), f"error: `{broken}` is no result of a bench, at machine (Field required)"),
        (("--compare", tmp_path / "none"), "error: `"),
    ):
        code, out, err = bench(engine_folder, *arguments)
        assert (code, out) == (1, "")
        assert err.startswith(message)
        assert err.count("\n") == 1
    for arguments in (("--batch", "many"), ("--steps", "9"), ("--steps", "1001")):
        assert bench(engine_folder, *arguments)[0] == 2


def test_a_picture_that_cannot_be_written_is_told_before_the_work(
    bench, engine_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("stage_rt.bench.stages.bench", None)
    (tmp_path / "file").touch()
    assert bench(engine_folder, "--plot", tmp_path / "file/plot.png") == (
        3,
        "",
        f"error: writing to `{tmp_path}/file/plot.png` failed (Not a directory): mend that and run the same command "
        "again\n",
    )


def test_the_arithmetic_is_what_torch_counts(engine_folder, model_folder):
    import torch
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    from stage_rt.export.networks import networks, random_inputs
    from stage_rt.folders import read_engine
    from stage_rt.training.folder import load_model

    model, generator = load_model(model_folder), torch.Generator().manual_seed(0)
    # Torch does not count what its fused attention does on a CPU.
    model.unet.set_attn_processor(AttnProcessor())
    model.vae.set_attn_processor(AttnProcessor())
    operations = read_engine(engine_folder).operations
    # Adapters are folded, and have less to do than torch's.
    for graph in (UNET, VAE_ENCODER, VAE_DECODER):
        inputs = random_inputs(graph, model, batch=1, timesteps=[1], generator=generator)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            networks(model)[graph](**inputs)
        assert operations[graph] == counter.get_total_flops(), graph


def test_a_machine_has_rates():
    from stage_rt.bench.rates import rates

    assert all(np.isfinite(rate) and rate > 0.01 for rate in rates())
