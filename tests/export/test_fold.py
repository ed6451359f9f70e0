import pytest
import torch
from small_model import small_adapter
from torch import nn

from stage_rt.export.fold import FoldedAdapter


@pytest.fixture
def adapter():
    torch.manual_seed(3)
    return small_adapter()


def difference(adapter, folded):
    torch.manual_seed(4)
    eps, mask = torch.randn(3, 4, 9, 9), torch.rand(3, 1, 9, 9)
    with torch.no_grad():
        return (folded(eps, mask) - adapter(eps, mask)).abs().max()


def test_the_folded_adapter_computes_the_same(adapter):
    assert difference(adapter, FoldedAdapter(adapter)) < 1e-5


def test_nothing_but_convolutions_and_relus_is_left(adapter):
    folded = FoldedAdapter(adapter)
    assert {type(layer) for layer in folded.conv} == {nn.Conv2d, nn.ReLU}
    assert folded.conv[0].in_channels == 5


@pytest.mark.parametrize("statistic", ["running_mean", "running_var", "weight", "bias"])
def test_every_part_of_the_normalisation_counts(adapter, statistic):
    folded = FoldedAdapter(adapter)
    with torch.no_grad():
        getattr(adapter.conv[1], statistic).add_(0.5)
    assert difference(adapter, folded) > 1e-2


def test_the_adapter_itself_is_left_as_it_was(adapter):
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    FoldedAdapter(adapter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())
