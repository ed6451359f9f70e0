"""The segmenters: sizes as the papers give them, shapes, and that they learn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import SegformerConfig, SegformerForImageClassification

from stage_rt.errors import InputError
from stage_rt.quality import learning
from stage_rt.quality.learning import Lesson, find, learn, shares_of
from stage_rt.quality.metrics import confusion, iou
from stage_rt.quality.pictures import Pictures, at_size
from stage_rt.quality.segmenters import SEGMENTERS
from stage_rt.quality.segmenters.calibrated import Calibrated
from stage_rt.quality.segmenters.encoder import load_encoder
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


def trained(name: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of trained weights as they are found, with a head of another task, and the encoder's own."""
    torch.manual_seed(1)
    if name == "segformer":
        other = SegformerForImageClassification(SegformerConfig())
        other.save_pretrained(folder)
        return folder / "model.safetensors", other.segformer.state_dict()
    path, weights = folder / "backbone.safetensors", STDC().state_dict()
    save_file({f"backbone.{key}": tensor for key, tensor in weights.items()} | {"fc": torch.zeros(1)}, path)
    return path, weights


def encoder_of(network: torch.nn.Module) -> torch.nn.Module:
    return network.encoder if hasattr(network, "encoder") else network.network.segformer


@pytest.mark.parametrize("name", ["segformer", "stdc"])
def test_a_trained_encoder_is_taken_from_a_file_that_holds_more(tmp_path: Path, name: str) -> None:
    path, weights = trained(name, tmp_path)
    network = SEGMENTERS[name](2)
    load_encoder(network, path)
    taken = encoder_of(network).state_dict()
    assert set(taken) == set(weights)
    assert all(torch.equal(taken[key], weights[key]) for key in taken)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize("name", ["segformer", "stdc"])
@pytest.mark.parametrize("wrong", ["missing", "shape"])
def test_weights_of_another_encoder_are_told(tmp_path: Path, name: str, wrong: str) -> None:
    path, _ = trained(name, tmp_path)
    weights = load_file(path)
    key = next(key for key in weights if ".0." in key and key.endswith("weight"))
    tensor = weights.pop(key)
    if wrong == "shape":
        weights[key] = tensor[:1].clone()
    path.write_bytes(save(weights))
    with pytest.raises(InputError, match=r"` has no weight `.*` of the right shape: give weights"):
        load_encoder(SEGMENTERS[name](2), path)


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    path, _ = trained("stdc", tmp_path)
    weights = load_file(path)
    key = next(key for key in weights if ".0." in key and key.endswith("weight"))
    weights[key].view(-1)[3] = torch.nan
    path.write_bytes(save(weights))
    with pytest.raises(
        InputError, match=r"` has a weight `.*` that is not finite: give weights that are whole"
    ):
        load_encoder(SEGMENTERS["stdc"](2), path)


def test_what_is_no_file_of_weights_is_told(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"weights")
    for name in (path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"` cannot be read as safetensors .*: save the encoder's"):
            load_encoder(SEGMENTERS["stdc"](2), name)
    with pytest.raises(
        InputError, match="no encoder to be trained apart: use `--segmenter segformer` or `stdc`"
    ):
        load_encoder(SEGMENTERS["unet"](2), path)


def test_a_lesson_with_an_encoder_is_another_one(tmp_path: Path) -> None:
    lesson = Lesson("stdc", 1, 1, 0.1, 32)
    digests = {lesson.digest, replace(lesson, steps=2).digest}
    for content in (b"1", b"2"):
        (tmp_path / "encoder").write_bytes(content)
        digests.add(replace(lesson, encoder=tmp_path / "encoder").digest)
    assert len(digests) == 4


HALF = [0.5, 0.5]


def empty(levels: np.ndarray) -> Pictures:
    return Pictures(levels.astype(np.uint8), np.zeros(levels.shape[:3], np.uint8), ["good"] * len(levels))


def test_good_photographs_have_the_same_share_beside_real_pairs_and_beside_painted_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    red = empty(np.full((4, 32, 32, 3), (200, 0, 0)))
    labelled = empty(np.full((9, 32, 32, 3), 128))
    labelled.classes[:, 8:12, 8:12] = 1
    seen: list[np.ndarray] = []
    real = learning.inputs

    def watched(images):
        seen.append(images)
        return real(images)

    monkeypatch.setattr(learning, "inputs", watched)
    for parts in ([labelled], [labelled, labelled]):
        learn(parts, red, HALF, [0.5], Lesson("unet", 3, 12, 1e-3, 32), 0, CPU, lambda share: None)
    assert len(seen) == 6
    for images in seen:
        reds = images[..., 0].mean(axis=(1, 2)) > images[..., 1].mean(axis=(1, 2)) + 1
        assert reds.sum() == 4


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Crops handed to a network so far: of grey, red, green and blue pictures."""
    counted = np.zeros(4)
    handed = learning.inputs

    def watched(images):
        levels = images.mean(axis=(1, 2))
        strongest = np.where(np.ptp(levels, axis=1) < 1, 0, 1 + levels.argmax(axis=1))
        counted[:] += np.bincount(strongest, minlength=4)
        return handed(images)

    monkeypatch.setattr(learning, "inputs", watched)
    return counted


def plain(count: int, colour: tuple[int, int, int], kind: int) -> Pictures:
    pictures = empty(np.full((count, 32, 32, 3), colour))
    pictures.classes[:, 8:12, 8:12] = kind
    return pictures


def test_a_share_of_a_types_crops_is_painted_however_many_pairs_there_are(counts: np.ndarray) -> None:
    good, real, painted = plain(2, (90, 90, 90), 0), plain(3, (90, 200, 90), 1), plain(400, (90, 90, 200), 1)
    learn([real, painted], good, HALF, [0.25], Lesson("unet", 60, 24, 1e-3, 32), 0, CPU, lambda share: None)
    assert counts[0] == 60 * 8
    assert counts[3] / counts[1:].sum() == pytest.approx(0.25, abs=0.04)
    counts[:] = 0
    learn([painted], good, HALF, [0.25], Lesson("unet", 3, 24, 1e-3, 32), 0, CPU, lambda share: None)
    assert counts.tolist() == [3 * 8, 0, 0, 3 * 16]


def test_types_are_shown_as_often_as_one_another_and_one_without_pairs_is_real(counts: np.ndarray) -> None:
    good, chips, cracks, pairs = (
        plain(2, (90, 90, 90), 0),
        plain(3, (200, 90, 90), 1),
        plain(20, (90, 200, 90), 2),
        plain(60, (90, 90, 200), 2),
    )
    real = Pictures(
        np.concatenate([chips.images, cracks.images]),
        np.concatenate([chips.classes, cracks.classes]),
        chips.names + cracks.names,
    )
    thirds, lesson = [1 / 3] * 3, Lesson("unet", 60, 24, 1e-3, 32)
    learn([real, pairs], good, thirds, [0.9, 0.6], lesson, 0, CPU, lambda share: None)
    shares = counts[1:] / counts[1:].sum()
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.04)


def test_the_fewer_real_defects_there_are_the_more_crops_are_painted() -> None:
    assert learning.painted_shares([12, 4, 1]) == [0.25, 0.5, 0.8]


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
    good = Pictures(
        rng.integers(90, 110, (3, 32, 32, 3)).astype(np.uint8), np.zeros((3, 32, 32), np.uint8), ["", "", ""]
    )
    network = learn(
        [pictures],
        good,
        shares_of(pictures, 3),
        [0.5, 0.5],
        Lesson("unet", 400, 8, 5e-3, 32),
        0,
        CPU,
        told.append,
    )
    found = find(network, pictures, CPU)
    assert iou(confusion(found.classes, classes, 3).sum(axis=0)).min() > 0.8
    # Log odds: the defects' stand well above those of good surface, and are not all one number.
    assert found.anomaly[classes > 0].mean() > 1.4
    assert found.anomaly[classes == 0].mean() < -1.4
    assert told[-1] == 1


@pytest.mark.parametrize("name", SEGMENTERS)
def test_scores_are_brought_from_the_shares_of_a_lesson_to_those_of_photographs(name: str) -> None:
    torch.manual_seed(0)
    network, x = Calibrated(name, 3), torch.randn(2, 3, 64, 64)
    learned, shares = np.array([0.9, 0.08, 0.02]), [0.98, 0.005, 0.015]
    with torch.no_grad():
        before = network.eval()(x)
        network.bring(learned, shares)
        moved = (network(x) - before).permute(0, 2, 3, 1).reshape(-1, 3)
    assert torch.allclose(
        moved, torch.from_numpy(np.log(shares / learned)).float().expand_as(moved), atol=1e-4
    )


def test_a_network_that_learns_hears_nothing_of_shares() -> None:
    network, x = Calibrated("unet", 2), torch.randn(2, 3, 64, 64)
    network.bring(np.array([0.5, 0.5]), [0.9, 0.1])
    torch.testing.assert_close(network.train()(x), network.network.train()(x))


def test_a_class_that_a_lesson_never_showed_is_not_brought_anywhere() -> None:
    network, x = Calibrated("unet", 3).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network(x)
        network.bring(np.array([0.9, 0.1, 0.0]), [0.99, 0.0, 0.01])
        moved = network(x) - before
    torch.testing.assert_close(moved[:, 0], torch.full((1, 32, 32), float(np.log(1.1))))
    assert torch.equal(moved[:, 1:], torch.zeros_like(moved[:, 1:]))


@pytest.mark.parametrize("side", [46, 90, 100])
def test_labels_of_crops_lie_where_their_pictures_do(side: int) -> None:
    """A label that ends in a row of a crop ends where the smaller crop shows it, in the mean of all rows."""
    off = []
    for row in range(1, side):
        label = np.zeros((side, side), np.uint8)
        label[:row] = 1
        image, drawn = learning._scaled(np.repeat(label[..., None] * np.uint8(200), 3, axis=2), label, 64)
        off.append(drawn[:, 0].sum() - image[:, 0, 0].sum() / 200)
    assert abs(np.mean(off)) < 0.02


@pytest.mark.parametrize("turn", [True, False])
def test_crops_lie_in_all_eight_ways_with_their_labels_or_unturned_in_four(turn: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 190, (1, 32, 32, 3)).astype(np.uint8)
    label = np.zeros((1, 32, 32), np.uint8)
    label[0, 3:20, 5:9] = 1
    pictures, lesson = Pictures(image, label, ["one"]), Lesson("unet", 1, 1, 0.1, 32, turn=turn)
    seen = set()
    for _ in range(400):
        _, drawn = learning._crop(pictures, 0, lesson, rng, None)
        if drawn.sum() != label.sum():
            continue  # another scale
        ways = [np.rot90(side, k) for side in (label[0], label[0].T) for k in range(4)]
        seen |= {number for number, way in enumerate(ways) if (drawn == way).all()}
    assert len(seen) == (8 if turn else 4)


def test_a_label_never_vanishes_at_the_segmenters_size() -> None:
    image = np.zeros((1000, 1500, 3), np.uint8)
    for rows, columns in ((slice(500, 502), slice(700, 703)), (slice(400, 401), slice(300, 900))):
        label = np.zeros((1000, 1500), dtype=bool)
        label[rows, columns] = True
        small = at_size(image, label, 256)[1]
        assert 1 <= small.sum() <= 110
        assert small[500 * 256 // 1000 if rows.start == 500 else 400 * 256 // 1000].any()
