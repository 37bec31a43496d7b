"""Calibration error, risk against coverage, and coverage of sets, against plain loops."""

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.metrics.reliability import (
    area_under_risk_coverage,
    brier_score,
    calibration_error,
    label_columns,
    reliability_bins,
    risk_coverage,
    selective_report,
    set_coverage,
)


SCHEMA = tiny_schema(kway=True)


def test_bins_hold_equally_many_and_the_error_is_that_of_the_loop():
    generator = np.random.default_rng(0)
    claimed, truth = generator.random(200).round(2), generator.random(200) < 0.4
    bins = reliability_bins(claimed, truth)
    assert len(bins) == 15 and {one["count"] for one in bins} <= {13, 14}
    order = sorted(range(200), key=lambda i: claimed[i])
    start, total = 0, 0.0
    for one in bins:
        inside = order[start : start + one["count"]]
        start += one["count"]
        gap = abs(sum(claimed[i] for i in inside) - sum(truth[i] for i in inside))
        total += gap / 200
        assert one["claimed"] == pytest.approx(np.mean(claimed[inside]))
        assert one["true"] == pytest.approx(np.mean(truth[inside]))
    assert calibration_error(claimed, truth) == pytest.approx(total)
    assert brier_score(claimed, truth) == pytest.approx(sum((c - t) ** 2 for c, t in zip(claimed, truth)) / 200)
    assert calibration_error(truth, truth) == 0 == brier_score(truth, truth)
    assert len(reliability_bins([0.5, 0.2], [True, False])) == 2


def test_risk_and_coverage_are_those_of_the_loop():
    generator = np.random.default_rng(1)
    confidence, right = generator.random(60).round(1), generator.random(60) < 0.7
    coverage, risk = risk_coverage(confidence, right)
    for share, wrong, limit in zip(coverage, risk, sorted(set(confidence), reverse=True), strict=True):
        given = confidence >= limit
        assert share == pytest.approx(given.mean()) and wrong == pytest.approx((~right)[given].mean())
    assert coverage[-1] == 1 and risk[-1] == pytest.approx((~right).mean())


def test_area_under_risk_and_coverage_is_the_mean_over_orders_of_equal_ones():
    confidence, right = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([True, False, True, True, False])
    values = []
    for place in range(3):  # the wrong one of the three
        wrong = [0, *(int(i == place) for i in range(3)), 1]
        values.append(np.mean(np.cumsum(wrong) / np.arange(1, 6)))
    assert area_under_risk_coverage(confidence, right) == pytest.approx(np.mean(values))
    generator = np.random.default_rng(2)
    right = generator.random(3000) < 0.8
    assert area_under_risk_coverage(np.ones(3000), right) == pytest.approx((~right).mean())
    assert area_under_risk_coverage(right, right) < area_under_risk_coverage(generator.random(3000), right)


def test_columns_and_sets_leave_out_what_is_unknown():
    generator = np.random.default_rng(3)
    labels = np.stack([generator.integers(0, one.num_labels, 50) for one in SCHEMA], 1)
    labels[:, 1], labels[::3, 3] = -100, -100
    p = generator.random((50, 5, 4)) * SCHEMA.label_mask()
    claimed, truth = label_columns(p, labels, SCHEMA)
    known = int((labels[:, 3] >= 0).sum())
    assert len(claimed) == len(truth) == 50 + 0 + 50 + 4 * known + 3 * 50
    assert np.array_equal(claimed[:50], p[:, 0, 1]) and np.array_equal(truth[:50], labels[:, 0] == 1)
    sets = generator.random((50, 5, 4)) < 0.6
    rows = set_coverage(sets, labels, SCHEMA)
    assert rows[1] == {"coverage": None, "single": None, "size": None, "known": 0, "by_label": [None, None]}
    held = [sets[i, 3, labels[i, 3]] for i in range(50) if labels[i, 3] >= 0]
    size = [sets[i, 3].sum() for i in range(50) if labels[i, 3] >= 0]
    assert rows[3]["coverage"] == pytest.approx(np.mean(held)) and rows[3]["known"] == known
    assert rows[3]["size"] == pytest.approx(np.mean(size))
    assert rows[3]["single"] == pytest.approx(np.mean([one == 1 for one in size]))
    own = [sets[i, 4, 2] for i in range(50) if labels[i, 4] == 2]
    assert rows[4]["by_label"][2] == pytest.approx(np.mean(own))


@pytest.mark.parametrize(
    ("claimed", "truth", "message"),
    [
        ([], [], r"claimed has shape \(0,\)"),
        ([0.1, 0.2], [True], r"and truth \(1,\), expected \(N,\) each"),
        ([1.2], [True], "no probability"),
        ([float("nan")], [True], "no probability"),
    ],
)
def test_bad_input(claimed, truth, message):
    with pytest.raises(ValueError, match=message):
        calibration_error(claimed, truth)
    with pytest.raises(ValueError, match="bins=0"):
        reliability_bins([0.5], [True], 0)


def test_selective_report_is_that_of_single_attributes():
    generator = np.random.default_rng(3)
    probabilities = generator.random((60, len(SCHEMA), SCHEMA.max_labels)) * SCHEMA.label_mask()
    answers, labels = probabilities.argmax(-1), np.stack([np.arange(60) % one.num_labels for one in SCHEMA], 1)
    labels[::5, 0], labels[:, 2] = -100, -100
    found = selective_report(probabilities, answers, labels, SCHEMA, points=4)
    expected = []
    for a, row in enumerate(found["attributes"]):
        known = labels[:, a] >= 0
        if a == 2:
            assert row == {"name": "Female", "known": 0, "error": None, "aurc": None}
            continue
        sure, right = probabilities[known, a].max(-1), answers[known, a] == labels[known, a]
        order = np.argsort(-sure)
        expected.append([np.mean(~right[order][: int(np.ceil(len(right) * share))]) for share in (0.25, 0.5, 0.75, 1)])
        assert row["aurc"] == pytest.approx(area_under_risk_coverage(sure, right))
        assert row["error"] == pytest.approx(np.mean(~right)) and row["known"] == known.sum()
    assert [x for x, _ in found["curve"]] == [0.25, 0.5, 0.75, 1]
    assert [y for _, y in found["curve"]] == pytest.approx(np.mean(expected, axis=0))
    assert found["error"] == pytest.approx(found["curve"][-1][1])
    with pytest.raises(ValueError, match="labels hold no known label"):
        selective_report(probabilities, answers, np.full_like(labels, -100), SCHEMA)
