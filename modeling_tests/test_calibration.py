"""Fitted decisions against plain loops, closed forms and what they promise."""

import json
import logging
import math

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf import calibration
from vlm_par_hf.calibration import fit, own_weight, shift_priors
from vlm_par_hf.labels.decisions import Decisions, decide, label_softmax
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.metrics.reliability import calibration_error, label_columns


SCHEMA = tiny_schema(kway=True)  # Hat, Backpack, Female: binary; UpperColor: 4 labels; BagSide: 3 labels
SHARES = ([0.7, 0.3], [0.9, 0.1], [0.5, 0.5], [0.4, 0.3, 0.2, 0.1], [0.2, 0.2, 0.6])


def draw(people=2000, seed=0, shares=SHARES, weight=0.5, gain=2.0):
    """Labels, and logits of a model that was trained with class weights (the prior counts `1 - weight` times) and is
    too sure (`gain`): with `weight=0, gain=1` they are exactly calibrated."""
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.choice(len(share), people, p=share) for share in shares], 1)
    logits = np.full((people, len(SCHEMA), SCHEMA.max_labels), -1e4)
    for a, share in enumerate(shares):
        K = len(share)
        seen = 2.0 * np.eye(K)[labels[:, a]] + generator.normal(size=(people, K))
        # The likelihood ratio of that observation is exp(2 x_k).
        logits[:, a, :K] = gain * (2.0 * seen + (1 - weight) * np.log(share))
    return logits, labels


def test_calibration_finds_what_was_done_to_the_logits():
    logits, labels = draw(4000)
    labels[::9, 0] = -100
    decisions = fit(logits, labels, SCHEMA)
    for one, share in zip(SCHEMA, SHARES):
        own = decisions.of(one)
        assert own.gain == pytest.approx(0.5, rel=0.1), one.name
        wanted = 0.5 * np.log(share)
        np.testing.assert_allclose(np.subtract(own.offset, own.offset[0]), wanted - wanted[0], atol=0.35)
    fresh, truth = draw(4000, seed=1)
    raw = calibration_error(*label_columns(label_softmax(fresh, SCHEMA), truth, SCHEMA))
    fitted = calibration_error(*label_columns(decisions.calibrate(fresh, SCHEMA), truth, SCHEMA))
    assert raw > 0.03 > 0.012 > fitted


def test_newton_is_at_the_minimum():
    """No small step from the fitted calibration lowers the penalised cross-entropy, computed in loops."""
    logits, labels = draw(150)
    a, K = 3, 4
    start = np.array([0.6, 0.1, 0.0, -0.2, 0.1])

    def loss(theta):
        total = sum(
            ((v - s) / d) ** 2 / 2 for v, s, d in zip(theta, start, [0.3 * 0.6, *[calibration.OFFSET_SPREAD] * K])
        )
        for row, label in zip(logits[:, a, :K], labels[:, a]):
            scores = [theta[0] * z + o for z, o in zip(row, theta[1:])]
            total += math.log(sum(math.exp(s) for s in scores)) - scores[label]
        return total

    gain, offset = calibration._fit_own_calibration(logits[:, a, :K], labels[:, a], start[0], start[1:])
    found = np.concatenate([[gain], offset])
    best = loss(found)
    for direction in np.eye(K + 1):
        assert min(loss(found + 1e-3 * direction), loss(found - 1e-3 * direction)) > best


def test_closed_forms():
    logits, labels = draw()
    decisions = fit(logits, labels, SCHEMA, objectives=("mA", "accuracy", "cost"), costs=(1, 3))
    for a, one in enumerate(SCHEMA):
        counts = np.bincount(labels[:, a], minlength=one.num_labels) + 1
        points = decisions.of(one).points
        if one.is_binary:
            assert points == {"mA": pytest.approx(counts[1] / counts.sum()), "accuracy": 0.5, "cost": 0.25}
        else:
            np.testing.assert_allclose(points["mA"], -np.log(counts / counts.sum()))
            assert set(points["accuracy"]) == set(points["cost"]) == {0.0}


def f1_of(answers, truth):
    hits = sum(1 for x, y in zip(answers, truth) if x and y)
    return 2 * hits / max(1, sum(answers) + sum(truth))


def test_the_sweep_of_f1_is_the_best_of_all_cuts():
    generator = np.random.default_rng(0)
    scores, truth = generator.normal(size=60).round(1), generator.random(60) < 0.3
    order = np.argsort(-scores, kind="stable")
    right = np.append(0, np.cumsum(truth[order]))
    values = 2 * right / np.maximum(1, np.arange(61) + truth.sum())
    cut = calibration._best_cut(scores[order], values)
    wanted = max(f1_of(scores > c, truth) for c in np.arange(-4, 4, 0.05))
    assert f1_of(scores > cut, truth) == pytest.approx(wanted)
    assert cut not in scores  # between two, not at one


@pytest.mark.parametrize(("kind", "share"), [("precision", 0.8), ("recall", 0.9), ("precision", 0.999)])
def test_the_sweep_of_a_target_is_that_of_the_loop(kind, share):
    generator = np.random.default_rng(1)
    truth = generator.random(80) < 0.4
    scores = (generator.normal(size=80) + 1.2 * truth).round(1)
    cut, reached = calibration._sweep_target(scores, truth, kind, share)
    yes = scores > cut
    good = []
    for c in np.arange(-4, 5, 0.05):
        hits = (scores > c) & truth
        value = hits.sum() / max(1, (scores > c).sum()) if kind == "precision" else hits.sum() / truth.sum()
        if value >= share - 1e-9 and (scores > c).any():
            good.append(hits.sum() if kind == "precision" else -(scores > c).sum())
    assert reached == bool(good)
    if good:
        assert max(good) == ((yes & truth).sum() if kind == "precision" else -yes.sum())


@pytest.mark.parametrize("objective", ["f1", "instance_f1"])
def test_own_points_are_never_worse_than_pooled_ones_where_they_are_fitted(objective, monkeypatch):
    """And each sweep ends where no other threshold or bias of one attribute alone is better, in a loop over cuts."""
    monkeypatch.setattr(calibration, "own_weight", lambda examples: 1.0)
    logits, labels = draw(120, seed=3)
    labels[::7, 3], labels[::5, 1] = -100, -100
    decisions = fit(logits, labels, SCHEMA, objectives=(objective,))
    probabilities = decisions.calibrate(logits, SCHEMA)
    counts = [calibration._count_labels(labels[:, a], one.num_labels) for a, one in enumerate(SCHEMA)]
    priors = [(count + 1) / (count + 1).sum() for count in counts]
    problem = calibration._Problem.build(probabilities, labels, SCHEMA, counts, priors)
    measure = problem.instance_f1 if objective == "instance_f1" else problem.label_f1
    pooled = calibration._fit_pooled_points(problem, objective)
    own = calibration._fit_own_points(problem, objective, *pooled)
    assert measure(*own) >= measure(*pooled)
    # The measures are those of the metrics.
    thresholds = [1 / (1 + math.exp(-c)) for c in own[0]] + [0.5] * 2
    biases = np.zeros((5, 4))
    biases[3], biases[4, :3] = own[1]
    certain = np.eye(4)[decide(probabilities, SCHEMA, thresholds, biases)]
    metrics = ParMetrics(SCHEMA, inputs="probabilities")((certain, labels))
    name = "instance_f1_harmonic" if objective == "instance_f1" else "label_f1_macro"
    assert measure(*own) == pytest.approx(metrics[name])
    # The last label that was swept cannot be improved.
    for bias in np.linspace(-6, 6, 241):
        others = [own[1][0], own[1][1].copy()]
        others[1][2] = bias
        assert measure(own[0], others) <= measure(*own) + 1e-12
    cuts = own[0].copy()
    if objective == "f1":
        for cut in np.linspace(-8, 8, 321):
            cuts[0] = cut
            assert measure(cuts, own[1]) <= measure(*own) + 1e-12


def test_fitted_answers_are_best_for_what_they_were_fitted_for():
    logits, labels = draw(1500)
    objectives = ("mA", "instance_f1", "accuracy", "f1")
    decisions = fit(logits, labels, SCHEMA, objectives=objectives)
    fresh, truth = draw(3000, seed=5)
    found = {}
    for objective in objectives:
        certain = np.eye(4)[
            decide(
                decisions.calibrate(fresh, SCHEMA), decisions.settle(SCHEMA, objective), None,
                decisions.bias_table(SCHEMA, objective),
            )
        ]  # fmt: skip
        found[objective] = ParMetrics(SCHEMA, inputs="probabilities")((certain, truth))
    names = {"mA": "mA", "instance_f1": "instance_f1_harmonic", "accuracy": "plain_accuracy", "f1": "label_f1_macro"}
    for objective, name in names.items():
        assert found[objective][name] >= max(one[name] for one in found.values()) - 0.004, objective


def test_targets_hold_on_fresh_pictures():
    logits, labels = draw(2000)
    decisions = fit(logits, labels, SCHEMA, objectives=("precision>=0.9", "recall>=0.9"))
    fresh, truth = draw(4000, seed=6)
    p = decisions.calibrate(fresh, SCHEMA)
    for a in range(3):
        found = {}
        for objective in ("precision>=0.9", "recall>=0.9"):
            yes = p[:, a, 1] > decisions.thresholds(objective)[SCHEMA.names[a]]
            hits = (yes & (truth[:, a] == 1)).sum()
            found[objective] = hits / (yes.sum() if "precision" in objective else (truth[:, a] == 1).sum())
        assert min(found.values()) > 0.86, (SCHEMA.names[a], found)


def test_a_rare_label_has_no_threshold_of_its_own(caplog):
    assert [own_weight([n, 500]) for n in (0, 3, 9, 10, 50)] == [0, 0, 0, 10 / 60, 0.5]
    logits, labels = draw(400)
    labels[:, 1] = 0
    labels[:3, 1] = 1
    logits[:3, 1, :2] = [0.0, 60.0]  # three positives that any sweep would follow
    with caplog.at_level(logging.WARNING):
        decisions = fit(logits, labels, SCHEMA, objectives=("f1", "mA"))
    assert "fewer than 10 pictures of a label" in caplog.text and "Backpack" in caplog.text
    assert decisions.record["pooled"] == ["Backpack"]
    moved = labels.copy()
    moved[:3, 1], moved[10:13, 1] = 0, 1  # three others: only the calibration moves, a little
    again = fit(logits, moved, SCHEMA, objectives=("f1", "mA"))
    first, second = (one.of(SCHEMA["Backpack"]).points["f1"] for one in (decisions, again))
    assert first == pytest.approx(second, abs=0.1)


@pytest.mark.parametrize("column", [np.zeros(300, int), np.full(300, -100), np.where(np.arange(300) == 7, 1, -100)])
def test_an_attribute_without_two_labels_follows_the_others(column):
    """No positive, nothing known at all, one known value only."""
    logits, labels = draw(300)
    labels[:, 0] = column
    decisions = fit(logits, labels, SCHEMA)
    own = decisions.of(SCHEMA["Hat"])
    assert "Hat" in decisions.record["pooled"] and 0.3 < own.gain < 0.8
    assert all(0 < value < 1 for value in own.points.values())
    decisions.apply(logits, decisions.settle(SCHEMA))


def test_isotonic_maps_mend_what_scale_and_shift_cannot():
    logits, labels = draw(4000)
    z = logits[:, 0, 1] - logits[:, 0, 0]
    logits[:, 0, :2] = np.stack([np.zeros(4000), np.where(z > 0, 0.3 * z, 3 * z)], 1)  # bent
    fresh, truth = logits[2000:], labels[2000:]
    errors = {}
    for isotonic in (False, True):
        decisions = fit(logits[:2000], labels[:2000], SCHEMA, isotonic=isotonic)
        p = decisions.calibrate(fresh, SCHEMA)
        np.testing.assert_allclose(p.sum(-1), 1)
        errors[isotonic] = calibration_error(p[:, 0, 1], truth[:, 0] == 1)
        order = np.argsort(fresh[:, 0, 1])
        assert (np.diff(p[order, 0, 1]) >= -1e-12).all()
        again = Decisions.from_dict(json.loads(json.dumps(decisions.to_dict())))
        assert np.array_equal(again.calibrate(fresh, SCHEMA), p)
    assert errors[True] < errors[False]


def test_pooling_of_adjacent_violators_is_that_of_the_loop():
    generator = np.random.default_rng(2)
    claimed = generator.random(40).round(2)
    truth = generator.random(40) < claimed
    x, y = calibration._pool_adjacent(claimed, truth)
    values = sorted(set(claimed))
    blocks = [[[v], int(truth[claimed == v].sum()), int((claimed == v).sum())] for v in values]
    merged = True
    while merged:
        merged = False
        for i in range(len(blocks) - 1):
            if blocks[i][1] / blocks[i][2] >= blocks[i + 1][1] / blocks[i + 1][2]:
                blocks[i : i + 2] = [[blocks[i][j] + blocks[i + 1][j] for j in range(3)]]
                merged = True
                break
    assert len(x) == len(blocks)
    for position, (own, hits, count) in enumerate(blocks):
        assert own[0] - 1e-9 <= x[position] <= own[-1] + 1e-9
        assert y[position] >= (hits + 0.5) / (count + 1) - 1e-12
    assert list(y) == sorted(y)


def test_shares_of_unlabelled_pictures_are_found():
    logits, labels = draw(3000)
    decisions = fit(logits, labels, SCHEMA, objectives=("mA", "accuracy"))
    other = ([0.3, 0.7], [0.6, 0.4], [0.8, 0.2], [0.1, 0.1, 0.2, 0.6], [0.5, 0.4, 0.1])
    # The same model sees other shares: its logits hold the old ones.
    fresh, truth = draw(3000, seed=7, shares=other, weight=1.0)
    for a, share in enumerate(SHARES):
        fresh[:, a, : len(share)] += 2.0 * 0.5 * np.log(share)
    shifted = shift_priors(decisions, fresh, SCHEMA, record={"data": "mine"})
    assert shifted.record["priors_only"] is True and shifted.record["fitted_before"]["pictures"] == 3000
    for one, share in zip(SCHEMA, other):
        np.testing.assert_allclose(shifted.of(one).prior, share, atol=0.05)
        if one.is_binary:
            assert shifted.of(one).points["mA"] == pytest.approx(shifted.of(one).prior[1])
        assert shifted.of(one).quantiles is None
    errors = [
        calibration_error(*label_columns(one.calibrate(fresh, SCHEMA), truth, SCHEMA)) for one in (decisions, shifted)
    ]
    assert errors[1] < 0.02 < errors[0]
    again = shift_priors(decisions, logits, SCHEMA)  # the pictures it was fitted on: nothing to correct
    for one in SCHEMA:
        np.testing.assert_allclose(again.of(one).prior, decisions.of(one).prior, atol=0.03)
    with pytest.raises(ValueError, match="'Hat' have no shares of its labels: fit them on labelled pictures first"):
        shift_priors(Decisions({}), fresh, SCHEMA)


def test_few_pictures_say_little_about_shares(caplog):
    logits, labels = draw(300)
    decisions = fit(logits, labels, SCHEMA)
    caplog.clear()
    shift_priors(decisions, logits, SCHEMA)
    assert not caplog.text
    shift_priors(decisions, logits[:4], SCHEMA)
    assert "4 pictures say little about shares: expected at least 100" in caplog.text


def test_shares_move_isotonic_maps_too():
    logits, labels = draw(2000)
    decisions = fit(logits, labels, SCHEMA, isotonic=True)
    other = ([0.3, 0.7], *SHARES[1:])
    fresh, truth = draw(3000, seed=7, shares=other, weight=1.0)
    for a, share in enumerate(SHARES):
        fresh[:, a, : len(share)] += 2.0 * 0.5 * np.log(share)
    shifted = shift_priors(decisions, fresh, SCHEMA)
    Decisions.from_dict(json.loads(json.dumps(shifted.to_dict())))
    p, before = (one.calibrate(fresh, SCHEMA)[:, 0, 1] for one in (shifted, decisions))
    assert calibration_error(p, truth[:, 0] == 1) < 0.5 * calibration_error(before, truth[:, 0] == 1)


def test_sets_hold_the_right_answer_as_often_as_promised():
    logits, labels = draw(3000)
    decisions = fit(logits, labels, SCHEMA)
    fresh, truth = draw(6000, seed=8)
    p = decisions.calibrate(fresh, SCHEMA)
    for level in (0.8, 0.9, 0.95):
        sets, promised = decisions.answer_sets(p, SCHEMA, level)
        assert promised[SCHEMA.label_mask()].all() and sets.any(-1).all()
        for a, one in enumerate(SCHEMA):
            for k in range(one.num_labels):
                own = truth[:, a] == k
                assert sets[own, a, k].mean() > level - 0.04, (level, one.name, k)
    rows = decisions.answer_sets(p, SCHEMA, 0.87)[0]
    assert np.array_equal(rows, decisions.answer_sets(p, SCHEMA, 0.9)[0])  # the next level that was fitted


def test_quantiles_are_those_of_the_loop_and_few_examples_promise_nothing():
    generator = np.random.default_rng(4)
    schema = AttributeSchema([SCHEMA["UpperColor"]])
    labels = np.repeat([0, 1, 2, 3], [150, 60, 30, 5])[:, None]
    p = generator.dirichlet(np.ones(4), (245, 1))
    (quantiles, promised) = calibration._fit_quantiles(p, labels, schema)[0]
    assert promised == (True, True, True, True)  # 1, 2 and 3 are pooled: 95 examples
    for k, members in ((0, [0]), (1, [1, 2, 3]), (3, [1, 2, 3])):
        misfit = sorted(1 - p[i, 0, labels[i, 0]] for i in range(245) if labels[i, 0] in members)
        for level, found in zip(calibration.LEVELS, quantiles[k]):
            rank = math.ceil((len(misfit) + 1) * level - 1e-9)
            assert found == (misfit[rank - 1] if rank <= len(misfit) else None)
    few = np.repeat([0, 3], [240, 5])[:, None]
    quantiles, promised = calibration._fit_quantiles(p, few, schema)[0]
    assert promised == (True, False, False, False)
    assert quantiles[3] == calibration._conformal_quantiles(1 - p[np.arange(245), 0, few[:, 0]])
    quantiles, promised = calibration._fit_quantiles(p[:8], few[:8], schema)[0]
    assert promised == (False,) * 4 and set(quantiles[0]) == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y, o: (z[:, :2], y, o), r"logits have shape \(60, 2, 4\), expected \(N, 5, 4\)"),
        (lambda z, y, o: (z[:0], y[:0], o), "N above 0"),
        (lambda z, y, o: (z, y[:, :2], o), r"labels have shape \(60, 2\), expected \(60, 5\)"),
        (lambda z, y, o: (z, y.astype(float), o), "labels have dtype float64, expected integers"),
        (lambda z, y, o: (z, np.where(y == 1, 7, y), o), "labels holds 7 for attribute"),
        (lambda z, y, o: (z, np.full_like(y, -100), o), "no known label"),
        (lambda z, y, o: (np.where(np.arange(60)[:, None, None] == 3, np.nan, z), y, o),
         "score of attribute 'Hat' of row 3 is nan"),
        (lambda z, y, o: (z, y, {"objectives": ("mean",)}), "objective='mean', expected one of mA, f1"),
        (lambda z, y, o: (z, y, {"objectives": ("precision>=1.5",)}), "expected one of mA"),
        (lambda z, y, o: (z, y, {"objectives": ("recall>=0.0",)}), "expected one of mA"),
        (lambda z, y, o: (z, y, {"objectives": ()}), "objectives is empty"),
        (lambda z, y, o: (z, y, {"costs": (1, 0)}), "costs=.*, expected two numbers above 0"),
    ],
)  # fmt: skip
def test_bad_input(change, message):
    logits, labels, options = change(*draw(60), {})
    with pytest.raises(ValueError, match=message):
        fit(logits, labels, SCHEMA, **options)
    if "score" in message:
        with pytest.raises(ValueError, match="is not finite"):
            Decisions({}).apply(logits, SCHEMA)
