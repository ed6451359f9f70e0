"""The row of `benchmarks/gpu` about the loop, made on softcuda with closed-form networks."""

from pathlib import Path

import numpy as np
import pytest
from mock_networks import PROMPTS, TOKENS, WIDTH, MockBackend, adapter, spec, unet
from safetensors.numpy import save_file

from stage_rt.files import digests
from stage_rt.recipe import Branch, Recipe
from stage_rt.spec import ENGINE_FILE, PROMPTS_FILE, UNET

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


class Backend(MockBackend):
    """The networks can also be called from the host, as those of every real backend."""

    def run(self, graph, **inputs):
        if graph == UNET:
            return unet(inputs["sample"], inputs["timestep"][0], inputs["context"])
        name, branch = graph.removeprefix("adapters/").split(".")
        return adapter(name, Branch(branch), **inputs)


@pytest.fixture
def tasks(monkeypatch, machine, tmp_path):
    monkeypatch.syspath_prepend(str(GPU))
    import parts
    import tasks

    for batch in (1, 16):
        folder = parts.engine(tmp_path, "fp32", batch, "compiled")
        folder.mkdir(parents=True)
        contexts = {name: np.ones((TOKENS, WIDTH), np.float32) for name in PROMPTS}
        save_file(contexts, folder / PROMPTS_FILE)
        described = spec(Recipe.authors(), batch=(batch,)).model_copy(update={"files": digests(folder)})
        (folder / ENGINE_FILE).write_text(described.sealed())
    monkeypatch.setattr(tasks, "_backend", lambda mode, folder, spec: Backend(machine, spec))
    monkeypatch.setattr(tasks, "ADAPTER", "a")
    monkeypatch.setattr(tasks, "PROMPT", next(iter(PROMPTS)))
    return tasks


@pytest.mark.parametrize("batch", [1, 16])
def test_the_row_of_the_loop(tasks, tmp_path, batch):
    row = tasks.loop("dry", tmp_path, "fp32", batch, "compiled")
    assert (row["dtype"], row["batch"], row["steps"], row["notices"]) == ("fp32", batch, 20, [])
    assert row["replayed"]
    assert row["bare_ms_a_step"] > 0
    assert row["seconds_a_pair"] == pytest.approx(row["loop_ms_a_step"] / batch)
    assert row["memory_bytes"] > 4 * batch * 4 * 64
    if batch == 1:
        assert row["same_bits_again"] is True
        assert row["max_abs_host_loop"] <= 1e-4
        assert row["bare_ms_a_step_ten_a_graph"] > 0
    else:
        assert row["same_bits_again"] is None
