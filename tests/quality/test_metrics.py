"""Figures of a segmenter against cases computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from stage_rt.quality import metrics

SHOWN = np.array([[[0, 0, 1, 1], [0, 2, 2, 0]]])
FOUND = np.array([[[0, 1, 1, 0], [0, 2, 0, 0]]])


def test_iou_and_accuracy_are_those_of_the_counts() -> None:
    counts = metrics.confusion(FOUND, SHOWN, 3)
    assert counts.tolist() == [[[3, 1, 0], [1, 1, 0], [1, 0, 1]]]
    assert metrics.iou(counts[0]).tolist() == pytest.approx([3 / 6, 1 / 3, 1 / 2])
    assert metrics.accuracy(counts[0]).tolist() == pytest.approx([3 / 4, 1 / 2, 1 / 2])


def test_a_class_that_is_nowhere_has_no_iou() -> None:
    counts = metrics.confusion(np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int), 2)
    assert np.isnan(metrics.iou(counts[0])[1])
    assert np.isnan(metrics.accuracy(counts[0])[1])


def test_anomaly_scores_of_four_pixels() -> None:
    truth = np.array([[[True, False], [True, False]]])
    value = np.array([[[0.9, 0.8], [0.7, 0.1]]], np.float16)
    found = metrics.scores(value, truth)
    # Of four pairs of a defect and a good pixel three are in order.
    assert found.auroc == pytest.approx(0.75)
    # Recall 1/2 at precision 1, then 1 at 2/3.
    assert found.ap == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert found.f1_max == pytest.approx(0.8)


def test_a_perfect_channel_has_every_figure_at_one() -> None:
    truth = np.zeros((2, 8, 8), dtype=bool)
    truth[0, 1:3, 1:3] = truth[1, 4:8, 4:8] = True
    assert metrics.scores(truth.astype(np.float16), truth) == pytest.approx((1, 1, 1, 1))


def test_without_defects_nothing_is_scored() -> None:
    assert all(np.isnan(metrics.scores(np.zeros((1, 4, 4), np.float16), np.zeros((1, 4, 4), bool))))


def test_every_region_counts_alike_in_pro() -> None:
    """A region of 4 px found, one of 16 px not: the overlap is a half, although a fifth of the pixels is found."""
    truth = np.zeros((1, 20, 20), dtype=bool)
    truth[0, 0:2, 0:2] = truth[0, 10:14, 10:14] = True
    value = np.zeros((1, 20, 20), np.float16)
    value[0, 0:2, 0:2] = 1.0
    # From (0, 1/2) the curve goes straight to (1, 1): at 0.3 it is at 0.65.
    assert metrics.pro(value, truth) == pytest.approx((0.5 + 0.65) / 2)


def test_pro_at_random_is_half_the_limit() -> None:
    truth = np.zeros((1, 64, 64), dtype=bool)
    truth[0, :32] = True
    value = np.random.default_rng(0).random((1, 64, 64)).astype(np.float16)
    assert metrics.pro(value, truth) == pytest.approx(0.15, abs=0.01)


def test_counted_levels_score_as_their_pixels_do_one_by_one() -> None:
    rng = np.random.default_rng(3)
    truth = np.zeros((5, 24, 24), dtype=bool)
    truth[0, 2:5, 3:9] = truth[0, 12:20, 4:6] = truth[2, 6:7, 6:7] = truth[3, 1:23, 10:14] = True
    value = (4 * rng.normal(size=truth.shape) - 3 + 4 * truth).round(1).astype(np.float16)
    value[rng.random(truth.shape) < 0.05] = -0.0
    value[rng.random(truth.shape) < 0.05] = 0.0
    flat, single = truth.ravel(), value.astype(np.float64).ravel()
    precision, recall, _ = precision_recall_curve(flat, single)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmax(2 * precision * recall / (precision + recall))
    weight = np.ones(truth.shape)
    weight[0, 2:5, 3:9], weight[0, 12:20, 4:6], weight[3, 1:23, 10:14] = 1 / 18, 1 / 16, 1 / 88
    false, overlap, _ = roc_curve(flat, single, sample_weight=weight.ravel(), drop_intermediate=False)
    below = false <= metrics.PRO_LIMIT
    ends = [*false[below], metrics.PRO_LIMIT], [*overlap[below], np.interp(metrics.PRO_LIMIT, false, overlap)]
    expected = (
        roc_auc_score(flat, single),
        average_precision_score(flat, single),
        f1,
        auc(*ends) / metrics.PRO_LIMIT,
    )
    assert metrics.scores(value, truth) == pytest.approx(expected, abs=1e-12)


def test_a_defect_is_found_above_the_threshold_at_which_one_good_picture_in_ten_alarms() -> None:
    shown, anomaly = np.zeros((14, 1, 10), int), np.zeros((14, 1, 10))
    shown[0, 0, :10] = shown[1, 0, :10] = shown[2, 0, :2] = 1
    shown[3, 0, :3] = 2
    # Of ten good pictures one alarms above 0.8: two of its pixels, as many as the smallest label has, are larger. A
    # single one of another is no alarm.
    for n in range(10):
        anomaly[4 + n, 0, :2] = 0.9 - n / 10
    anomaly[8, 0, 5] = 5
    anomaly[0, 0, :3] = 0.85
    anomaly[1, 0, :2] = 7
    anomaly[2, 0, :1] = 0.81
    anomaly[3, 0, :3] = 0.8
    shares = metrics.defects_found(anomaly, shown, np.array([4, 4, 6, 7, *range(20, 30)]), 4)
    # The first two pictures show one defect, which is found in one of them.
    assert shares.tolist() == pytest.approx([np.nan, (0.5 + 1) / 2, 0, np.nan], nan_ok=True)


def test_without_good_pictures_no_threshold_is_known() -> None:
    shown = np.ones((2, 2, 2), int)
    for pictures in (shown, 0 * shown):
        assert np.isnan(metrics.defects_found(np.zeros((2, 2, 2)), pictures, np.arange(2), 2)).all()
