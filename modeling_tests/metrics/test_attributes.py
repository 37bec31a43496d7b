"""Metrics against hand cases, a plain loop, and the numbers that a published code base computed itself."""

import json
import math
import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.metrics import attributes as metrics_module
from vlm_par_hf.metrics import counting
from vlm_par_hf.metrics.attributes import METRIC_NAMES, PRESETS, MetricPreset, ParMetrics
from vlm_par_hf.metrics.ranking import ResampledRanking, average_precision, roc_auc
from vlm_par_hf.metrics.retrieval import image_to_text_recall


DATA = os.environ.get("PAR_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="PAR_DATA is not set: the real material is elsewhere")


def make_schema(*num_labels, thresholds=None):
    def row(a, K):
        labels = ["no", "yes"] if K == 2 else [f"color{k}" for k in range(K)]
        prompts = [f"a person of kind {a} with {label}" for label in labels]
        threshold = 0.5 if thresholds is None else thresholds[a]
        name, question = f"Attribute{a}", f"what is {a}?"
        return {"name": name, "question": question, "labels": labels, "prompts": prompts, "threshold": threshold}

    return AttributeSchema([row(a, K) for a, K in enumerate(num_labels)])


MIXED = make_schema(2, 4, 2, 3, 2)


def make_split(schema, N=60, seed=0, missing=0.0, quality=1.0):
    """Logits with some skill (padded with -1e4) and labels, long-tailed."""
    generator = np.random.default_rng(seed)
    A, C = len(schema), schema.max_labels
    labels = np.stack([generator.geometric(0.6, N).clip(max=K) - 1 for K in schema.num_labels], axis=1)
    logits = generator.normal(size=(N, A, C)) + quality * (labels[..., None] == np.arange(C))
    logits = np.where(schema.label_mask(), logits, -1e4)
    labels[generator.random((N, A)) < missing] = -100
    return logits.astype(np.float32), labels.astype(np.int64)


def binary(truth, predicted):
    """(probabilities, labels) of binary attributes from lists of 0 and 1."""
    return np.where(np.array(predicted), 0.9, 0.1), np.array(truth)


def reference(schema, probabilities, labels, threshold, empty="zero"):
    """Every metric by loops over plain numbers; probabilities (N, A, C)."""
    mean = lambda values: sum(values) / len(values) if values else 0.0  # noqa: E731
    ratio = lambda a, b: a / b if b else 0.0  # noqa: E731
    N, A = len(labels), len(schema)
    predicted = [
        [
            int(probabilities[n][a][1] > threshold) if K == 2 else int(np.argmax(probabilities[n][a][:K]))
            for a, K in enumerate(schema.num_labels)
        ]
        for n in range(N)
    ]
    recalls, f1s, weighted, accuracies, right, known_labels = [], [], [], [], 0, 0
    pooled = [0, 0, 0]
    for a, K in enumerate(schema.num_labels):
        rows = [n for n in range(N) if labels[n][a] != -100]
        if not rows:
            continue
        per_label = []
        for k in range(K):
            tp = sum(labels[n][a] == k and predicted[n][a] == k for n in rows)
            support = sum(labels[n][a] == k for n in rows)
            found = sum(predicted[n][a] == k for n in rows)
            per_label.append((support, ratio(tp, support), ratio(2 * tp, support + found)))
            if K > 2 or k == 1:
                pooled = [pooled[0] + tp, pooled[1] + support, pooled[2] + found]
        if K == 2:
            recalls.append((per_label[0][1] + per_label[1][1]) / 2)
            f1s.append(per_label[1][2])
        else:
            recalls.append(mean([recall for support, recall, _ in per_label if support]))
            f1s.append(mean([f1 for support, _, f1 in per_label if support]))
        weighted.append(sum(support * f1 for support, _, f1 in per_label) / len(rows))
        accuracies.append(sum(labels[n][a] == predicted[n][a] for n in rows) / len(rows))
        right += sum(labels[n][a] == predicted[n][a] for n in rows)
        known_labels += len(rows)

    values = {"accuracy": [], "precision": [], "recall": [], "f1": []}
    for n in range(N):
        true, found = set(), set()
        known = [a for a in range(A) if labels[n][a] != -100]
        for a in known:
            for name, k in (("true", labels[n][a]), ("found", predicted[n][a])):
                if schema.num_labels[a] > 2 or k == 1:
                    (true if name == "true" else found).add((a, int(k)))
        for key, top, bottom in (
            ("accuracy", len(true & found), len(true | found)),
            ("precision", len(true & found), len(found)),
            ("recall", len(true & found), len(true)),
            ("f1", 2 * len(true & found), len(true) + len(found)),
        ):
            if known and (bottom or empty == "zero"):
                values[key].append(ratio(top, bottom))
    precision, recall = mean(values["precision"]), mean(values["recall"])
    return {
        "mA": mean(recalls),
        "plain_accuracy": right / known_labels,
        "accuracy_macro": mean(accuracies),
        "instance_accuracy": mean(values["accuracy"]),
        "instance_precision": precision,
        "instance_recall": recall,
        "instance_f1_harmonic": ratio(2 * precision * recall, precision + recall),
        "instance_f1_mean": mean(values["f1"]),
        "label_f1_macro": mean(f1s),
        "f1_micro": ratio(2 * pooled[0], pooled[1] + pooled[2]),
        "f1_weighted": mean(weighted),
        **reference_ranking(schema, probabilities, labels),
    }


def loop_auc(scores, truth):
    """Over all pairs of a positive and a negative; None without one."""
    pairs = [
        (p > n) + 0.5 * (p == n) for p, yes in zip(scores, truth) if yes for n, also in zip(scores, truth) if not also
    ]
    return sum(pairs) / len(pairs) if pairs else None


def loop_average_precision(scores, truth):
    """Over all thresholds, from the top."""
    total, before = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [yes for score, yes in zip(scores, truth) if score >= threshold]
        total += (sum(chosen) - before) / sum(truth) * sum(chosen) / len(chosen)
        before = sum(chosen)
    return total


def reference_ranking(schema, probabilities, labels):
    areas, precisions = [], []
    for a, K in enumerate(schema.num_labels):
        rows = [n for n in range(len(labels)) if labels[n][a] != -100]
        found = []
        for k in [1] if K == 2 else range(K):
            scores, truth = [float(probabilities[n][a][k]) for n in rows], [bool(labels[n][a] == k) for n in rows]
            if 0 < sum(truth) < len(rows):
                found.append((loop_auc(scores, truth), loop_average_precision(scores, truth)))
        if found:
            areas.append(sum(area for area, _ in found) / len(found))
            precisions.append(sum(precision for _, precision in found) / len(found))
    if not areas:
        return {"auc_macro": math.nan, "average_precision_macro": math.nan}
    return {
        "auc_macro": sum(areas) / len(areas), "average_precision_macro": sum(precisions) / len(precisions),
    }  # fmt: skip


def softmax(schema, logits):
    logits = np.where(schema.label_mask(), logits.astype(np.float64), -np.inf)
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


# The published numbers


@needs_data
@pytest.mark.parametrize("name", ["ep0_train", "ep0_valid", "ep1_train", "ep1_valid"])
def test_peer_sets_are_reproduced(name):
    with np.load(Path(DATA) / "peer_metrics" / f"pa100k_rethink_{name}.npz") as peer:
        peer = dict(peer)
    compute = ParMetrics(make_schema(*[2] * 26), preset="rethinking", inputs="probabilities")
    values = compute((peer["probs"], peer["gt"]))
    report = compute.report((peer["probs"], peer["gt"]), bootstrap=0)
    assert report["metrics"] == values
    for ours, theirs in (
        ("mA", "ma"),
        ("instance_accuracy", "instance_acc"),
        ("instance_precision", "instance_prec"),
        ("instance_recall", "instance_recall"),
        ("instance_f1_harmonic", "instance_f1"),
    ):
        assert values[ours] == pytest.approx(float(peer[f"ref_{theirs}"]), abs=1e-9), ours
    assert values["label_f1_macro"] == pytest.approx(peer["ref_label_f1"].mean(), abs=1e-9)
    assert values["plain_accuracy"] == pytest.approx(1 - peer["ref_error_num"].sum() / peer["gt"].size, abs=1e-9)
    rows = report["attributes"]
    for ours, theirs in (
        ("recall", "label_pos_recall"),
        ("precision", "label_prec"),
        ("jaccard", "label_acc"),
        ("f1", "label_f1"),
        ("mA", "label_ma"),
        ("false_negatives", "fn_num"),
        ("false_positives", "fp_num"),
    ):
        np.testing.assert_allclose([row[ours] for row in rows], peer[f"ref_{theirs}"], rtol=0, atol=1e-9)
    negative_recall = [row["labels"]["no"]["recall"] for row in rows]
    np.testing.assert_allclose(negative_recall, peer["ref_label_neg_recall"], rtol=0, atol=1e-9)


@needs_data
def test_peer_sets_as_logits_give_the_same():
    with np.load(Path(DATA) / "peer_metrics" / "pa100k_rethink_ep1_valid.npz") as peer:
        probabilities, labels = peer["probs"].astype(np.float64), peer["gt"]
    schema = make_schema(*[2] * 26)
    expected = ParMetrics(schema, inputs="probabilities")((probabilities, labels))
    z = np.log(probabilities) - np.log1p(-probabilities)
    assert ParMetrics(schema)((z, labels)) == expected
    assert ParMetrics(schema)((np.stack([0 * z + 3, z + 3], axis=-1), labels)) == expected


# Against the plain loop


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("quality", [0.0, 3.0])
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("schema", [MIXED, make_schema(*[2] * 6), make_schema(5, 3)], ids=["mixed", "binary", "kway"])
def test_every_metric_equals_the_plain_loop(schema, preset, quality, missing):
    logits, labels = make_split(schema, missing=missing, quality=quality)
    labels[:2] = -100  # images without any known label
    values = ParMetrics(schema, preset)((logits, labels))
    threshold, empty = PRESETS[preset].threshold, PRESETS[preset].empty_image
    expected = reference(schema, softmax(schema, logits), labels, threshold, empty)
    assert tuple(values) == METRIC_NAMES
    assert all(type(value) is float and 0 <= value <= 1 for value in values.values())
    for name in METRIC_NAMES:
        assert values[name] == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("preset", list(PRESETS))
def test_absent_labels_and_an_attribute_that_nobody_labelled(preset):
    logits, labels = make_split(MIXED)
    labels[:, 0] = 0  # a binary attribute without positives
    labels[labels[:, 1] == 2, 1] = 0  # a label of a K-way attribute that never occurs
    labels[:, 2] = -100
    values = ParMetrics(MIXED, preset)((logits, labels))
    threshold, empty = PRESETS[preset].threshold, PRESETS[preset].empty_image
    expected = reference(MIXED, softmax(MIXED, logits), labels, threshold, empty)
    for name in METRIC_NAMES:
        assert values[name] == pytest.approx(expected[name], abs=1e-12), name
    row = ParMetrics(MIXED, preset).report((logits, labels), bootstrap=20)["attributes"][2]
    assert row["mA"] is None and row["mA_interval"] is None and row["auc"] is None and row["known"] == 0


# Hand cases


def test_values_by_hand():
    truth = [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    predicted = [[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]]
    values = ParMetrics(make_schema(2, 2, 2), inputs="probabilities")(binary(truth, predicted))
    # Recalls (yes, no): (1, 1/2), (0, 2/3), (1, 1).
    assert values["mA"] == pytest.approx((0.75 + 1 / 3 + 1) / 3)
    assert values["plain_accuracy"] == pytest.approx(9 / 12)
    # Images: hits/union 1/2, 1/2, 1, 0; precision 1, 1/2, 1, 0; recall 1/2, 1, 1, 0; F1 2/3, 2/3, 1, 0.
    assert values["instance_accuracy"] == pytest.approx(0.5)
    assert values["instance_precision"] == pytest.approx(0.625)
    assert values["instance_recall"] == pytest.approx(0.625)
    assert values["instance_f1_harmonic"] == pytest.approx(0.625)
    assert values["instance_f1_mean"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 4)
    # F1 of yes 4/5, 0, 1; of no 2/3, 2/3, 1.
    assert values["label_f1_macro"] == pytest.approx(1.8 / 3)
    assert values["f1_micro"] == pytest.approx(2 * 3 / (4 + 5))
    assert values["f1_weighted"] == pytest.approx(((2 * 0.8 + 2 * 2 / 3) / 4 + (3 * 2 / 3) / 4 + 1) / 3)


def test_mivia_weighs_its_five_attributes_equally():
    schema = get_schema("mivia5")
    truth = np.array([[10, 3, 1, -100, 0], [0, 3, 0, -100, 1], [2, -100, 0, 1, 0], [5, -100, 1, -100, 0]])
    predicted = np.array([[10, 3, 0, 1, 0], [0, 3, 0, 0, 0], [3, 7, 0, 1, 0], [5, 1, 0, 1, 0]])
    probabilities = np.eye(11)[predicted]
    metrics = ParMetrics(schema, "mivia", inputs="probabilities")
    values = metrics((probabilities, truth))
    # Right of known: 3 of 4, 2 of 2, 2 of 4, 1 of 1, 3 of 4.
    assert values["accuracy_macro"] == pytest.approx((3 / 4 + 1 + 2 / 4 + 1 + 3 / 4) / 5)
    assert values["plain_accuracy"] == pytest.approx(11 / 15)
    assert metrics.primary_metric == "accuracy_macro" and ParMetrics(schema).primary_metric == "mA"


# Image 0 has both, image 1 nothing true, image 2 nothing predicted, image 3 neither.
EMPTY = binary([[1, 1], [0, 0], [1, 0], [0, 0]], [[1, 0], [1, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    "preset, accuracy, precision, recall, f1",
    [
        ("rethinking", 0.5 / 4, 1 / 4, 0.5 / 4, (2 / 3) / 4),
        ("vtb", 0.5 / 4, 1 / 4, 0.5 / 4, (2 / 3) / 4),
        ("rap", 0.5 / 3, 1 / 2, 0.5 / 2, (2 / 3) / 3),
    ],
)
def test_empty_images_by_preset(preset, accuracy, precision, recall, f1):
    values = ParMetrics(make_schema(2, 2), preset, inputs="probabilities")(EMPTY)
    assert values["instance_accuracy"] == pytest.approx(accuracy)
    assert values["instance_precision"] == pytest.approx(precision)
    assert values["instance_recall"] == pytest.approx(recall)
    assert values["instance_f1_mean"] == pytest.approx(f1)
    assert values["instance_f1_harmonic"] == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_nothing_predicted_gives_zero_and_never_nan(preset):
    values = ParMetrics(make_schema(2, 2), preset, inputs="probabilities")(binary([[1, 0]] * 3, [[0, 0]] * 3))
    assert values["instance_precision"] == values["instance_f1_harmonic"] == values["f1_micro"] == 0
    assert all(math.isfinite(value) for value in values.values())


def test_vtb_differs_from_rethinking_by_its_threshold_alone():
    schema = make_schema(2, 2)
    probabilities, labels = np.array([[0.47, 0.2], [0.46, 0.6], [0.3, 0.45]]), np.array([[1, 0], [0, 1], [1, 1]])
    at_half = ParMetrics(schema, "rethinking", inputs="probabilities")((probabilities, labels))
    at_045 = ParMetrics(schema, "vtb", inputs="probabilities")((probabilities, labels))
    assert at_half["instance_recall"] == pytest.approx((0 + 1 + 0) / 3)
    assert at_045["instance_recall"] == pytest.approx((1 + 1 + 0) / 3)  # 0.45 itself is not above 0.45
    assert at_045 == ParMetrics(schema, threshold=0.45, inputs="probabilities")((probabilities, labels))
    assert PRESETS["vtb"].published_f1 == "instance_f1_mean"
    assert PRESETS["rethinking"].published_f1 == PRESETS["rap"].published_f1 == "instance_f1_harmonic"


def test_thresholds():
    probabilities, labels = np.array([[0.5, 0.5], [0.3, 0.7]]), np.array([[1, 1], [1, 1]])
    schema = make_schema(2, 2, thresholds=[0.25, 0.75])

    def recall(threshold):
        compute = ParMetrics(schema, threshold=threshold, inputs="probabilities")
        return [row["recall"] for row in compute.report((probabilities, labels), bootstrap=0)["attributes"]]

    assert recall(None) == [0, 0.5]  # the preset's 0.5; 0.5 itself is not above it
    assert recall("schema") == [1, 0]
    assert recall(0.4) == [0.5, 1]
    assert recall([0.25, 0.6]) == [1, 0.5]
    # Logits meet the same thresholds: z = 0 is 0.5, not above it.
    assert ParMetrics(schema)((np.zeros((1, 2, 2)), labels[:1]))["instance_recall"] == 0


def test_kway_by_hand():
    # Three colors, the third never occurs; predictions 0, 1, 1, 2.
    schema = make_schema(3)
    logits = np.eye(3)[[0, 1, 1, 2]][:, None, :] * 5
    labels = np.array([[0], [0], [1], [1]])
    values = ParMetrics(schema)((logits, labels))
    assert values["mA"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert values["plain_accuracy"] == pytest.approx(0.5)
    assert values["instance_accuracy"] == values["instance_f1_mean"] == pytest.approx(0.5)
    assert values["label_f1_macro"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert values["f1_micro"] == pytest.approx(0.5)
    row = ParMetrics(schema).report((logits, labels), bootstrap=0)["attributes"][0]
    assert row["labels"]["color2"] == {"support": 0, "predicted": 1, "recall": None, "precision": 0.0, "f1": 0.0}


def test_entries_past_an_attributes_own_labels_take_no_part():
    logits, labels = make_split(MIXED)
    expected = ParMetrics(MIXED)((logits, labels))
    padded = ~MIXED.label_mask()
    for filler in (50.0, np.nan, -np.inf):
        assert ParMetrics(MIXED)((np.where(padded, filler, logits), labels)) == expected


def test_unknown_labels_equal_leaving_the_cells_out():
    schema = make_schema(2, 2)
    probabilities, labels = binary([[1, 0], [0, 1], [1, 1]], [[1, 1], [0, 1], [0, 1]])
    compute = ParMetrics(schema, inputs="probabilities")
    masked = labels.copy()
    masked[2] = -100
    assert compute((probabilities, masked)) == compute((probabilities[:2], labels[:2]))
    masked = labels.copy()
    masked[:, 1] = -100
    single = ParMetrics(make_schema(2), inputs="probabilities")((probabilities[:, :1], labels[:, :1]))
    assert compute((probabilities, masked)) == single


def test_a_preset_of_ones_own():
    probabilities, labels = binary([[0], [0]], [[0], [1]])
    skip = ParMetrics(make_schema(2), MetricPreset(absent_label="skip"), inputs="probabilities")
    zero = ParMetrics(make_schema(2), inputs="probabilities")
    assert skip((probabilities, labels))["mA"] == 0.5 and zero((probabilities, labels))["mA"] == 0.25


# What a Trainer hands over


def test_accepts_what_trainers_and_models_hand_over():
    import torch

    logits, labels = make_split(MIXED)
    compute = ParMetrics(MIXED)
    expected = compute((logits, labels))
    prediction = namedtuple("EvalPrediction", "predictions label_ids inputs")
    assert compute(prediction((logits, np.zeros((60, 8))), labels.astype(np.float32), None)) == expected
    assert compute(SimpleNamespace(predictions=logits, label_ids=labels)) == expected
    assert compute([logits, labels]) == expected
    assert compute((logits.tolist(), labels.tolist())) == expected
    assert compute((torch.tensor(logits, requires_grad=True), torch.tensor(labels))) == expected
    rounded = torch.tensor(logits).bfloat16()
    assert compute((rounded, labels)) == compute((rounded.float().numpy(), labels))


def test_real_eval_prediction():
    from transformers import EvalPrediction

    logits, labels = make_split(MIXED)
    assert ParMetrics(MIXED)(EvalPrediction(logits, labels)) == ParMetrics(MIXED)((logits, labels))


def test_large_logits_do_not_overflow():
    logits, labels = make_split(MIXED)
    with np.errstate(all="raise", under="ignore"):
        values = ParMetrics(MIXED)((logits * 1e5, labels))
    assert values["plain_accuracy"] == ParMetrics(MIXED)((logits, labels))["plain_accuracy"]


# Report


def naive_bootstrap(schema, logits, labels, units, bootstrap, seed):
    """Every metric recomputed on every resample; `units` lists the images of each group."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(units), size=(bootstrap, len(units)))
    images = [np.concatenate([units[unit] for unit in row]) for row in drawn]
    values = [ParMetrics(schema, "rap")((logits[rows], labels[rows])) for rows in images]
    return {name: np.quantile([value[name] for value in values], [0.05, 0.95]) for name in METRIC_NAMES}


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_equals_recomputing_every_resample(grouped):
    logits, labels = make_split(MIXED, N=40, missing=0.2)
    persons = np.random.default_rng(1).integers(0, 12, 40)
    first_seen = dict.fromkeys(persons.tolist())
    units = [np.flatnonzero(persons == person) for person in first_seen] if grouped else np.arange(40)[:, None]
    groups = [f"person{person}" for person in persons] if grouped else None
    report = ParMetrics(MIXED, "rap").report(
        (logits, labels), bootstrap=30, seed=5, confidence=0.9, groups=groups, min_positives=None
    )
    expected = naive_bootstrap(MIXED, logits, labels, units, bootstrap=30, seed=5)
    assert report["num_groups"] == (len(units) if grouped else None)
    for name in METRIC_NAMES:
        np.testing.assert_allclose(report["intervals"][name], expected[name], rtol=1e-12, atol=1e-12)


# Without a threshold


def tied_split(schema, N=80, seed=0, missing=0.2):
    """Probabilities of one decimal, so that many are equal."""
    generator = np.random.default_rng(seed)
    probabilities = np.round(generator.random((N, len(schema), schema.max_labels)), 1)
    labels = np.stack([generator.integers(0, K, N) for K in schema.num_labels], axis=1)
    labels[generator.random(labels.shape) < missing] = -100
    return probabilities, labels


@pytest.mark.parametrize("schema", [MIXED, make_schema(*[2] * 6), make_schema(5, 3)], ids=["mixed", "binary", "kway"])
def test_rankings_with_ties_equal_the_plain_loop_and_scikit_learn(schema):
    probabilities, labels = tied_split(schema)
    labels[:, -1] = np.where(labels[:, -1] == -100, -100, 1)  # nothing to rank
    metrics = ParMetrics(schema, inputs="probabilities")
    values = metrics((probabilities, labels))
    expected = reference_ranking(schema, probabilities, labels)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-12), name
    report = metrics.report((probabilities, labels), bootstrap=0)
    assert report["ranked"] == {"attributes": len(schema) - 1, "left_out": [schema.names[-1]]}
    assert report["attributes"][-1]["auc"] is None
    sklearn = pytest.importorskip("sklearn.metrics")
    areas, precisions = [], []
    for a, K in enumerate(schema.num_labels[:-1]):
        known = labels[:, a] != -100
        columns = [1] if K == 2 else range(K)
        pairs = [(labels[known, a] == k, probabilities[known, a, k]) for k in columns]
        areas.append(np.mean([sklearn.roc_auc_score(*pair) for pair in pairs]))
        precisions.append(np.mean([sklearn.average_precision_score(*pair) for pair in pairs]))
        assert report["attributes"][a]["auc"] == pytest.approx(areas[-1], rel=1e-12)
    assert values["auc_macro"] == pytest.approx(np.mean(areas), rel=1e-12)
    assert values["average_precision_macro"] == pytest.approx(np.mean(precisions), rel=1e-12)


def test_rankings_depend_on_neither_preset_nor_threshold():
    split = make_split(MIXED, missing=0.2)
    expected = {name: ParMetrics(MIXED)(split)[name] for name in ("auc_macro", "average_precision_macro")}
    for preset in PRESETS:
        for threshold in (None, 0.1, 0.9):
            values = ParMetrics(MIXED, preset, threshold)(split)
            assert {name: values[name] for name in expected} == expected


def test_what_is_always_yes_is_not_averaged_in():
    schema = make_schema(2, 2)
    scores, labels = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.2]]), np.array([[1, 1], [0, 1], [1, 1]])
    report = ParMetrics(schema, inputs="probabilities").report((scores, labels), bootstrap=20)
    assert report["metrics"]["auc_macro"] == report["metrics"]["average_precision_macro"] == 1
    assert report["ranked"] == {"attributes": 1, "left_out": ["Attribute1"]}
    assert report["attributes"][1]["average_precision"] == 1  # of the attribute alone; it says nothing
    assert report["attributes"][1]["average_precision_interval"] is None
    labels[:, 0] = 1
    report = ParMetrics(schema, inputs="probabilities").report((scores, labels), bootstrap=20)
    assert report["metrics"]["auc_macro"] is None and report["intervals"]["average_precision_macro"] is None
    assert report["ranked"]["left_out"] == list(schema.names)
    assert "auc_macro" not in ParMetrics(schema, inputs="probabilities")((scores, labels))


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_of_rankings_with_ties_equal_recomputing(grouped):
    probabilities, labels = tied_split(MIXED, N=30)
    persons = np.random.default_rng(1).integers(0, 9, 30)
    units = [np.flatnonzero(persons == person) for person in dict.fromkeys(persons.tolist())]
    units = units if grouped else np.arange(30)[:, None]
    metrics = ParMetrics(MIXED, inputs="probabilities")
    report = metrics.report(
        (probabilities, labels), bootstrap=40, seed=2, groups=persons.tolist() if grouped else None
    )
    drawn = np.random.default_rng(2).integers(0, len(units), size=(40, len(units)))
    again = []
    for row in drawn:
        images = np.concatenate([units[unit] for unit in row])
        again.append(metrics.report((probabilities[images], labels[images]), bootstrap=0))
    for name in ("auc_macro", "average_precision_macro"):
        expected = np.quantile([one["metrics"][name] for one in again], [0.025, 0.975])
        np.testing.assert_allclose(report["intervals"][name], expected, rtol=1e-12)
    for a, row in enumerate(report["attributes"]):
        for name in ("auc", "average_precision"):
            values = [one["attributes"][a][name] for one in again if one["attributes"][a]["auc"] is not None]
            np.testing.assert_allclose(row[f"{name}_interval"], np.quantile(values, [0.025, 0.975]), rtol=1e-12)


def test_resamples_of_a_ranking_equal_repeated_images():
    generator = np.random.default_rng(0)
    for _ in range(200):
        N = int(generator.integers(2, 40))
        scores, positives = np.round(generator.random(N), 1), generator.random(N) < generator.random()
        positives[0] = True
        counts = generator.integers(0, 3, (5, N)).astype(np.int32)
        found = ResampledRanking(scores, positives, np.arange(N)).compute(counts)
        for row, area, precision in zip(counts, *found):
            repeated = np.repeat(scores, row), np.repeat(positives, row)
            if roc_auc(*repeated) is None:
                assert math.isnan(area) and math.isnan(precision)
            else:
                assert area == pytest.approx(roc_auc(*repeated), rel=1e-12)
                assert precision == pytest.approx(average_precision(*repeated), rel=1e-12)


def test_bootstrap_does_not_depend_on_its_blocks(monkeypatch):
    split = make_split(MIXED, N=40)
    whole = ParMetrics(MIXED).report(split, bootstrap=50)
    monkeypatch.setattr(counting, "BOOTSTRAP_BLOCK", 7 * 40)
    assert ParMetrics(MIXED).report(split, bootstrap=50) == whole
    assert ParMetrics(MIXED).report(split, bootstrap=50, seed=1)["intervals"] != whole["intervals"]


def test_report_is_json_and_agrees_with_the_call():
    split = make_split(MIXED, missing=0.2)
    report = ParMetrics(MIXED).report(split, bootstrap=100, min_positives=8)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    values = ParMetrics(MIXED)(split)
    assert {name: report["metrics"][name] for name in METRIC_NAMES} == values
    assert report["convention"] == {"name": "rethinking", **asdict(PRESETS["rethinking"])}
    rows = report["attributes"]
    assert [row["name"] for row in rows] == list(MIXED.names)
    assert np.mean([row["mA"] for row in rows]) == pytest.approx(values["mA"])
    assert sum(row["accuracy"] * row["known"] for row in rows) / (split[1] != -100).sum() == pytest.approx(
        values["plain_accuracy"]
    )
    for name, value in report["metrics"].items():
        low, high = report["intervals"][name]
        assert low <= value <= high, name
    for row in rows:
        assert row["mA_interval"][0] <= row["mA"] <= row["mA_interval"][1]
        assert sum(label["support"] for label in row["labels"].values()) == row["known"]


def test_intervals_over_persons_are_wider_when_persons_repeat():
    logits, labels = make_split(make_schema(2, 2), N=40)
    logits, labels = np.repeat(logits, 8, axis=0), np.repeat(labels, 8, axis=0)
    persons = np.repeat(np.arange(40), 8)
    compute = ParMetrics(make_schema(2, 2))

    def width(groups):
        return float(np.diff(compute.report((logits, labels), groups=groups)["intervals"]["mA"])[0])

    assert width(persons) > 2 * width(None)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    schema = make_schema(2)
    generator = np.random.default_rng(3)
    hits = 0
    for seed in range(200):
        labels = generator.integers(0, 2, size=(150, 1))
        wrong = generator.random((150, 1)) < 0.3
        probabilities = np.where((labels == 1) ^ wrong, 0.9, 0.1)
        report = ParMetrics(schema, inputs="probabilities").report((probabilities, labels), bootstrap=200, seed=seed)
        low, high = report["intervals"]["mA"]
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_min_positives_averages_over_the_attributes_that_have_them():
    schema = make_schema(2, 2, 3)
    labels = np.zeros((20, 3), dtype=int)
    labels[:3, 0], labels[:9, 1] = 1, 1
    labels[:8, 2], labels[8:10, 2] = 1, 2
    logits, _ = make_split(schema, N=20)
    compute = ParMetrics(schema)
    report = compute.report((logits, labels), bootstrap=10, min_positives=8)
    assert report["min_positives"] == {"value": 8, "attributes": ["Attribute1", "Attribute2"]}
    rows = report["attributes"]
    recalls = [rows[2]["labels"][label]["recall"] for label in ("color0", "color1")]
    assert report["metrics"]["mA_min_positives"] == pytest.approx((rows[1]["mA"] + np.mean(recalls)) / 2)
    nothing = compute.report((logits, labels), bootstrap=10, min_positives=21)
    assert nothing["metrics"]["mA_min_positives"] is None and nothing["intervals"]["mA_min_positives"] is None
    assert "mA_min_positives" not in compute.report((logits, labels), bootstrap=0)["metrics"]


def test_auc_and_average_precision():
    generator = np.random.default_rng(0)
    scores, positives = np.round(generator.random(50), 1), generator.random(50) < 0.3
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positives] for n in scores[~positives]]
    assert roc_auc(scores, positives) == pytest.approx(np.mean(pairs))
    expected, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall = positives[chosen].sum() / positives.sum()
        expected += (recall - before) * positives[chosen].mean()
        before = recall
    assert average_precision(scores, positives) == pytest.approx(expected)
    assert roc_auc(scores, np.zeros(50)) is None and average_precision(scores, np.zeros(50)) is None
    assert roc_auc(scores, np.ones(50)) is None and average_precision(scores, np.ones(50)) == 1

    split = make_split(MIXED, missing=0.3)
    rows = ParMetrics(MIXED).report(split, bootstrap=0)["attributes"]
    probabilities = softmax(MIXED, split[0])
    known = split[1][:, 1] != -100
    per_label = [roc_auc(probabilities[known, 1, k], split[1][known, 1] == k) for k in range(4)]
    assert rows[1]["auc"] == pytest.approx(np.mean(per_label))
    known = split[1][:, 2] != -100
    assert rows[2]["average_precision"] == pytest.approx(
        average_precision(probabilities[known, 2, 1], split[1][known, 2] == 1)
    )


def test_full_size_in_seconds():
    # 10,000 x 26 with 1,000 resamples takes one or two seconds; the bound is for a busy machine.
    import time

    split = make_split(make_schema(*[2] * 26), N=10_000)
    start = time.perf_counter()
    ParMetrics(make_schema(*[2] * 26)).report(split, bootstrap=1000)
    assert time.perf_counter() - start < 20


# Errors


LOGITS, LABELS = make_split(MIXED, N=6)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    "logits, labels, message",
    [
        (LOGITS[..., :3], LABELS, r"logits has shape \(6, 5, 3\), expected \(N, 5, 4\)"),
        (LOGITS[..., 0], LABELS, r"logits has shape \(6, 5\), expected \(N, 5, 4\)"),
        (LOGITS[:0], LABELS[:0], r"logits has shape \(0, 5, 4\), expected at least one image"),
        (LOGITS, LABELS[:5], r"labels has shape \(5, 5\), expected \(6, 5\)"),
        (LOGITS, None, "labels is None"),
        (changed(LOGITS, (3, 1, 2), np.nan), LABELS, "logits holds nan for attribute 'Attribute1' of image 3"),
        (changed(LOGITS, (3, 0, 1), np.inf), LABELS, "logits holds inf for attribute 'Attribute0'.*finite"),
        (LOGITS, changed(LABELS, (2, 1), 4), "labels holds 4 for attribute 'Attribute1' of row 2, expected 0 to 3"),
        (LOGITS, changed(LABELS, (2, 0), -1), "labels holds -1 for attribute 'Attribute0'"),
        (LOGITS, LABELS + 0.5, "labels has dtype float64"),
        (LOGITS, np.full_like(LABELS, -100), "only -100"),
    ],
)
def test_bad_input_is_named(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        ParMetrics(MIXED)((logits, labels))


def test_bad_probabilities_are_named():
    compute = ParMetrics(make_schema(2, 2), inputs="probabilities")
    for value in (1.5, -0.5, float("nan"), float("inf")):
        message = f"holds {value} for attribute 'Attribute1' of image 0, expected probabilities"
        with pytest.raises(ValueError, match=message):
            compute((np.array([[0.5, value]]), np.array([[0, 1]])))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"preset": "coco"}, "preset='coco', expected one of rethinking, rap, vtb"),
        ({"threshold": 1.5}, "threshold of attribute 'Attribute0' must lie between 0 and 1, got 1.5"),
        ({"threshold": "best"}, "threshold='best'"),
        ({"threshold": [0.5, 0.5]}, r"threshold has shape \(2,\), expected one number or 5"),
        ({"threshold": float("nan")}, "must lie between 0 and 1, got nan"),
        ({"inputs": "scores"}, "inputs='scores'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ParMetrics(MIXED, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bootstrap": -1}, "bootstrap=-1"),
        ({"confidence": 95}, "confidence=95"),
        ({"min_positives": 0}, "min_positives=0"),
        ({"groups": [1, 2]}, "groups has 2 entries, expected 6"),
        ({"groups": [1, 2, None, 3, 4, 5]}, "groups holds None"),
    ],
)
def test_bad_report_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ParMetrics(MIXED).report((LOGITS, LABELS), **settings)


@pytest.mark.parametrize("field", ["empty_image", "absent_label", "published_f1"])
def test_bad_preset_fields_are_named(field):
    with pytest.raises(ValueError, match=f"{field}='half'"):
        MetricPreset(**{field: "half"})


def test_needs_no_torch():
    # Loaded without the package's own __init__, which is the door of everything.
    source = Path(metrics_module.__file__).parents[1]
    code = f"""
import sys, types
package = types.ModuleType("vlm_par_hf"); package.__path__ = [{str(source)!r}]; sys.modules["vlm_par_hf"] = package
import vlm_par_hf.metrics
assert not {{"torch", "transformers", "scipy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The open protocol


def open_schema():
    colors = ["red", "green", "blue"]
    return AttributeSchema(
        [
            {"name": "Color", "question": "c?", "labels": colors, "prompts": [f"in {color}" for color in colors]},
            {"name": "Hat", "question": "h?", "prompts": ["no hat", "a hat"]},
            {"name": "Bag", "question": "b?", "prompts": ["no bag", "a bag"]},
        ]
    )


def loop_recall(scores, labels, schema, groups, rank):
    """Both conventions by sorting, one picture and text at a time."""
    images, texts = [], []
    for group in groups:
        hits, own = [], {}
        for n in range(len(labels)):
            entries = []
            for name, label in group:
                a = schema.index(name)
                c = schema[name].labels.index(label)
                if labels[n, a] != -100:
                    entries.append((scores[n, a, c], labels[n, a] == c, (name, label)))
            entries.sort(key=lambda entry: (-entry[0], entry[1]))  # a tie: the wrong one first
            if any(right for _, right, _ in entries):
                hits.append(any(right for _, right, _ in entries[:rank]))
            for _, right, text in entries:
                if right:
                    rivals = [entry for entry in entries if not entry[1] or entry[2] == text]
                    own.setdefault(text, []).append(text in [entry[2] for entry in rivals[:rank]])
        if hits:
            images.append(np.mean(hits))
            if len(group) > rank:
                texts.append(np.mean([np.mean(values) for values in own.values()]))
    return np.mean(images), np.mean(texts) if texts else None


def test_image_to_text_recall_equals_sorting():
    generator = np.random.default_rng(0)
    schema = open_schema()
    labels = np.stack([generator.integers(-1, one.num_labels, 60) for one in schema], 1)
    labels[labels < 0] = -100
    scores = generator.integers(0, 6, (60, 3, 3)).astype(float)  # with ties
    own = [[(one.name, label) for label in one.labels] for one in schema]
    found = image_to_text_recall(scores, labels, schema)
    carried = {"carried": [("Hat", "yes"), ("Bag", "yes"), ("Color", "red")]}
    found_carried = image_to_text_recall(scores, labels, schema, groups=carried, k=(1, 2))
    for rank in (1, 2):
        for result, groups in ((found, own), (found_carried, list(carried.values()))):
            group_mean, label_mean = loop_recall(scores, labels, schema, groups, rank)
            assert result[f"i2t_recall_at_{rank}_group_mean"] == pytest.approx(group_mean)
            assert result[f"i2t_recall_at_{rank}_label_mean"] == (label_mean and pytest.approx(label_mean))
    assert found["groups"]["Hat"]["recall_at_2"] == 1.0 and found["groups"]["Hat"]["label_recall_at_2"] is None
    assert found["groups"]["Color"]["images"] == (labels[:, 0] != -100).sum()


def test_naming_the_most_frequent_text_earns_chance_in_the_label_mean():
    schema = open_schema()
    labels = np.array([[0, 0, 0]] * 9 + [[1, 1, 1]])
    scores = np.zeros((10, 3, 3)) + np.array([3.0, 2.0, 1.0])
    found = image_to_text_recall(scores, labels, schema, k=(1,))
    assert found["i2t_recall_at_1_group_mean"] == pytest.approx(0.9)
    assert found["i2t_recall_at_1_label_mean"] == pytest.approx(0.5)


def test_image_to_text_recall_names_what_is_wrong():
    schema, scores, labels = open_schema(), np.zeros((2, 3, 3)), np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"scores \(2, 3, 3\) and labels \(1, 3\) do not fit, expected \(1, 3, 3\)"):
        image_to_text_recall(scores, labels[:1], schema)
    with pytest.raises(ValueError, match=r"k=\(0,\), expected ranks of 1 or more"):
        image_to_text_recall(scores, labels, schema, k=(0,))
    with pytest.raises(ValueError, match="group 'none' is empty"):
        image_to_text_recall(scores, labels, schema, groups={"none": []})
    with pytest.raises(KeyError, match="attribute 'Hat' has no label 'maybe'"):
        image_to_text_recall(scores, labels, schema, groups={"x": [("Hat", "maybe")]})
    with pytest.raises(KeyError, match="no attribute 'Het' in this schema; did you mean 'Hat'"):
        image_to_text_recall(scores, labels, schema, groups={"x": [("Het", "yes")]})
    unknown = image_to_text_recall(scores, np.full((2, 3), -100), schema)
    assert unknown["i2t_recall_at_1_group_mean"] is None


# What a caller or Trainer hands over


def _forms(logits, labels):
    import torch

    from vlm_par_hf.base.outputs import ParOutput

    tensor, parts = torch.from_numpy(logits), (slice(0, 25), slice(25, 60))
    output = ParOutput(loss=torch.tensor(1.0), logits=tensor.clone().requires_grad_())
    return {
        "an output of a model": (output, labels),
        "a dict": ({"logits": logits}, labels),
        "a tuple that starts with logits": ((logits, np.zeros((60, 8))), (labels,)),
        "tensors": (tensor, torch.from_numpy(labels)),
        "nested lists": (logits.tolist(), labels.tolist()),
        "batches": ([logits[part] for part in parts], [labels[part] for part in parts]),
        "batches of tensors": ([tensor[part] for part in parts], [torch.from_numpy(labels[part]) for part in parts]),
        "rows": (list(tensor), list(labels)),
    }


@pytest.mark.parametrize("form", _forms(*make_split(MIXED)))
def test_predictions_in_any_form(form):
    logits, labels = make_split(MIXED)
    prediction = namedtuple("EvalPrediction", "predictions label_ids")
    expected = ParMetrics(MIXED)((logits, labels))
    given = _forms(logits, labels)[form]
    assert ParMetrics(MIXED)(given) == ParMetrics(MIXED)(prediction(*given)) == expected


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ((np.float32(0.3), np.zeros((60, 5, 4))), "logits is a tuple of 2 entries that starts with a number, such as"),
        ({"scores": np.zeros((60, 5, 4))}, r"logits is a dict of \['scores'\], expected one with 'logits'"),
        (
            [np.zeros((30, 5, 4)), np.zeros((30, 4, 4))],
            r"a list of batches of rows of other shapes each, \[\(4, 4\), ",
        ),
        ([np.zeros((60, 2)), np.zeros((60, 4))], "logits is a list of 2 entries of different shapes, expected one"),
    ],
)
def test_predictions_in_no_form_that_is_known(predictions, message):
    with pytest.raises(ValueError, match=message):
        ParMetrics(MIXED)((predictions, make_split(MIXED)[1]))


def test_batches_one_by_one():
    """As `Trainer` calls with `batch_eval_metrics=True`."""
    logits, labels = make_split(MIXED)
    metrics = ParMetrics(MIXED)
    for _ in range(2):  # the second time nothing of the first is left
        assert metrics((logits[:25], labels[:25]), compute_result=False) == {}
        assert metrics((logits[25:], labels[25:]), compute_result=True) == metrics((logits, labels))
