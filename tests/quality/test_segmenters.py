"""The segmenters: sizes as the papers give them, shapes, and that they learn."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stage_rt.quality.learning import Lesson, find, learn
from stage_rt.quality.metrics import confusion, iou
from stage_rt.quality.pictures import Pictures
from stage_rt.quality.segmenters import SEGMENTERS
from stage_rt.quality.segmenters.stdc import STDC
from stage_rt.training.loop import Device

CPU = Device(torch.device("cpu"), False)


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_segformer_b0_has_the_papers_parameters() -> None:
    """Table 6 of the paper gives 3.8 M with the 150 classes of ADE20K."""
    assert parameters(SEGMENTERS["segformer"](150)) == pytest.approx(3.8e6, rel=0.02)


def test_the_backbone_of_stdc1_has_the_papers_parameters() -> None:
    """Table 2 of the paper gives 8.44 M, with the head for ImageNet's 1000 classes."""
    head = 1024 * 1024 + 2 * 1024 + 1024 * 1024 + 2 * 1024 + 1024 * 1000
    assert parameters(STDC()) + head == pytest.approx(8.44e6, rel=0.001)


def test_bisenet_v2_has_about_the_papers_work() -> None:
    """The paper gives no parameters but 21.15 G multiplications at 512x1024 with 19 classes; ours has 24.6 G."""
    network = SEGMENTERS["bisenetv2"](19).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 512, 1024))
    assert counter.get_total_flops() / 2 == pytest.approx(21.15e9, rel=0.17)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_scores_are_of_the_pictures_size_and_the_last_layer_makes_them(name: str) -> None:
    network = SEGMENTERS[name](4)
    x = torch.randn(2, 3, 64, 64)
    heads = network.train()(x)
    heads = heads if isinstance(heads, list) else [heads]
    assert {tuple(head.shape) for head in heads} == {(2, 4, 64, 64)}
    with torch.no_grad():
        assert network.eval()(x).shape == (2, 4, 64, 64)
    assert network.last.out_channels % 4 == 0


def test_a_segmenter_learns_what_is_plain_to_see() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(90, 110, (24, 32, 32, 3)).astype(np.uint8)
    classes = np.zeros((24, 32, 32), dtype=np.uint8)
    for n in range(24):
        top, left = rng.integers(2, 20, 2)
        classes[n, top : top + 8, left : left + 8] = 1 + n % 2
        images[n][classes[n] > 0] = (30, 220)[n % 2]
    pictures = Pictures(images, classes, [str(n) for n in range(24)])
    told: list[float] = []
    network = learn([pictures], 3, Lesson("unet", 60, 8, 5e-3, 32), 0, CPU, told.append)
    found = find(network, pictures, CPU)
    assert iou(confusion(found.classes, classes, 3).sum(axis=0)).min() > 0.8
    assert found.anomaly[classes > 0].mean() > 0.8
    assert told[-1] == 1
