"""The stage loop: resuming changes nothing, a diverged loss is an error."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stage_rt.errors import ModelError
from stage_rt.training import loop
from stage_rt.training.presets import Stage


def ignore(*_: object) -> None:
    """A report that nobody reads."""


def run(work: Path, steps: int, stop_at: int | None = None, report: loop.Report = ignore) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    calls = 0

    def loss_of(draws: torch.Generator) -> Tensor:
        nonlocal calls
        if calls == stop_at:
            raise KeyboardInterrupt
        calls += 1
        x = torch.randn(8, 3, generator=draws)
        return (layer(x) - x.sum(dim=1, keepdim=True)).square().mean()

    loop.fit("stage", layer, loss_of, Stage(steps, 8, 1e-2), seed=3, work=work, report=report)
    return layer


def test_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = run(whole, steps=40)
    with pytest.raises(KeyboardInterrupt):
        run(parts, steps=40, stop_at=17)
    resumed = run(parts, steps=40)
    assert torch.equal(expected.weight, resumed.weight)
    assert torch.equal(expected.bias, resumed.bias)


def test_a_training_that_is_stopped_loses_no_step(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()

    def stop(stage: str, step: int, steps: int, loss: float | None) -> None:
        if step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(parts, steps=40, report=stop)
    seen: list[int] = []
    resumed = run(parts, steps=40, report=lambda stage, step, *_: seen.append(step))
    assert seen[0] == 18
    assert torch.equal(run(whole, steps=40).weight, resumed.weight)
    assert (parts / "stage.csv").read_bytes() == (whole / "stage.csv").read_bytes()


def test_a_checkpoint_from_before_losses_were_kept_goes_on(tmp_path: Path) -> None:
    def stop(stage: str, step: int, steps: int, loss: float | None) -> None:
        if step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps=40, report=stop)
    state = torch.load(tmp_path / "stage.pt", weights_only=True)
    state.pop("window", None)
    torch.save(state, tmp_path / "stage.pt")
    run(tmp_path, steps=40)
    assert len((tmp_path / "stage.csv").read_text().split()) == 3


def test_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, replace = os.fsync, os.replace
    synced, named = set(), []

    def syncing(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def naming(source: str, target: str) -> None:
        named.append(Path(target).name)
        assert os.stat(source).st_ino in synced
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", naming)
    run(tmp_path, steps=5)
    # The losses first: those of a step whose checkpoint is missing are passed over, not the other way round.
    assert named == ["stage.csv", "stage.pt"]


def test_finished_stage_draws_nothing_more(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    run(tmp_path, steps=5, stop_at=0)


def test_losses_are_written_in_tens(tmp_path: Path) -> None:
    run(tmp_path, steps=40)
    rows = [line.split(",") for line in (tmp_path / "stage.csv").read_text().split()]
    assert [int(step) for step, _ in rows] == [10, 20, 30, 40]
    assert float(rows[-1][1]) < float(rows[0][1])


def test_diverged_loss_names_stage_and_step(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)
    with pytest.raises(ModelError, match="the stage loss became nan at step 0"):
        loop.fit(
            "stage",
            layer,
            lambda _: layer.weight.sum() * float("nan"),
            Stage(3, 1, 1e-3),
            seed=0,
            work=tmp_path,
            report=ignore,
        )


def test_a_gradient_that_is_no_number_gets_into_no_checkpoint(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)

    def steep(_: torch.Generator) -> Tensor:
        # The root of zero has a value, and a slope without end.
        return (layer.weight * 0).abs().sqrt().sum()

    stage = Stage(1, 1, 1e-3)
    message = "the gradient of the stage loss became nan at step 0: remove `.*` and train again with another `--seed`"
    with pytest.raises(ModelError, match=message):
        loop.fit("stage", layer, steep, stage, seed=0, work=tmp_path, report=ignore)
    assert layer.weight.isfinite().all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("saved", [None, [], {"trainables": 3}, {}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "stage.pt")
    with pytest.raises(ModelError, match="is not a checkpoint of this training"):
        run(tmp_path, steps=5)


def test_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stage.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="is not a checkpoint of this training"):
        run(tmp_path, steps=5)


def test_generator_depends_on_its_place_only() -> None:
    first = torch.randn(4, generator=loop.generator(1, "a", 5))
    assert torch.equal(first, torch.randn(4, generator=loop.generator(1, "a", 5)))
    for other in ((1, "a", 6), (1, "b", 5), (2, "a", 5)):
        assert not torch.equal(first, torch.randn(4, generator=loop.generator(*other)))
