"""What ``torch.save`` writes is read back to the bit, in either format."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from stage_rt.export.importers.torchfile import StoredTensor, read_torch_file
from stage_rt.export.importers.unpickle import Stub

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    def saved(value: object) -> Path:
        path = tmp_path / "file.pt"
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return saved


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype(save, dtype):
    expected = torch.arange(-6, 6).reshape(3, 4).to(dtype)
    found = read_torch_file(save({"a": expected})).value["a"]
    assert isinstance(found, StoredTensor)
    assert (found.dtype, found.shape) == (dtype, (3, 4))
    assert torch.equal(found.load(), expected)


def test_views_strides_and_empty_tensors(save):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    views = {"t": whole.permute(2, 0, 1), "part": whole[1, :, ::2], "one": whole[0, 1, 2], "none": whole[:0]}
    found = read_torch_file(save(views)).value
    for name, expected in views.items():
        loaded = found[name].load()
        assert torch.equal(loaded, expected)
        assert loaded.is_contiguous()


def test_changes_do_not_reach_the_file(save):
    path = save({"a": torch.zeros(3)})
    before = path.read_bytes()
    read_torch_file(path).value["a"].load().fill_(7)
    assert path.read_bytes() == before


def test_a_checkpoint_with_bookkeeping(save):
    value = {
        "epoch": 3,
        "rate": 1e-3,
        "names": ("a", ["b", None, True]),
        "state_dict": OrderedDict([("w", nn.Parameter(torch.ones(2)))]),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(5)}}}],
        "path": Path("somewhere"),
    }
    read = read_torch_file(save(value))
    assert read.calls == ()
    assert (read.value["epoch"], read.value["rate"], read.value["names"]) == (
        3,
        1e-3,
        ("a", ["b", None, True]),
    )
    assert read.value["state_dict"]["w"].load().tolist() == [1, 1]
    assert isinstance(read.value["path"], Stub)


def test_a_whole_module_becomes_stubs(save):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    found = read_torch_file(save(module)).value
    assert str(found.of) == "torch.nn.modules.container.Sequential"
    convolution = found.state["_modules"]["0"]
    assert str(convolution.of) == "torch.nn.modules.conv.Conv2d"
    assert torch.equal(convolution.state["_parameters"]["weight"].load(), module[0].weight)
    norm = found.state["_modules"]["1"].state
    assert torch.equal(norm["_buffers"]["running_var"].load(), module[1].running_var)
