"""The rule from probabilities to answers against plain loops, and every form in which thresholds can be given."""

import json
import math
import re

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.errors import ParError
from vlm_par_hf.labels.decisions import (
    AttributeDecision,
    Decisions,
    answer_text,
    decide,
    is_positive_answer,
    is_unknown,
    label_softmax,
    read_thresholds,
)


SCHEMA = tiny_schema(kway=True)  # Hat, Backpack (0.4), Female: binary; UpperColor: 4 labels; BagSide: 3 labels
A, C = len(SCHEMA), SCHEMA.max_labels


def random_probabilities(people=50, seed=0):
    """Rows of each attribute sum to 1 over its own labels and are 0 past them."""
    values = np.random.default_rng(seed).random((people, A, C)) * SCHEMA.label_mask()
    return values / values.sum(axis=-1, keepdims=True)


def decide_by_loop(probabilities, thresholds):
    answers = []
    for person in probabilities:
        row = []
        for attribute, values, threshold in zip(SCHEMA, person, thresholds):
            if attribute.num_labels == 2:
                row.append(1 if values[1] > threshold else 0)
            else:
                best = 0
                for k in range(1, attribute.num_labels):
                    if values[k] > values[best]:
                        best = k
                row.append(best)
        answers.append(row)
    return answers


@pytest.mark.parametrize("thresholds", [None, [0.2, 0.9, 0.5, 0.99, 0.01], np.full(A, 0.7)])
def test_decide_is_the_plain_loop(thresholds):
    probabilities = random_probabilities()
    given = probabilities.copy()
    used = [attribute.threshold for attribute in SCHEMA] if thresholds is None else thresholds
    expected = decide_by_loop(probabilities, used)
    answers = decide(probabilities, SCHEMA, thresholds)
    assert answers.tolist() == expected and answers.dtype == np.int64
    assert np.array_equal(probabilities, given)
    assert any(0 in column and 1 in column for column in np.transpose(expected)[:3].tolist())  # both answers occur


def test_decide_takes_any_leading_axes():
    probabilities = random_probabilities(6)
    expected = decide(probabilities, SCHEMA)
    assert np.array_equal(decide(probabilities.reshape(2, 3, A, C), SCHEMA), expected.reshape(2, 3, A))
    assert np.array_equal(decide(probabilities[0], SCHEMA), expected[0])


def test_a_binary_probability_at_its_threshold_is_no():
    probabilities = random_probabilities(3)
    for row, value in enumerate((0.4, np.nextafter(0.4, 1), np.nextafter(0.4, 0))):
        probabilities[row, 1] = [1 - value, value, 0, 0]
    assert decide(probabilities, SCHEMA)[:, 1].tolist() == [0, 1, 0]
    # Above its threshold "yes" is the answer even where "no" is more probable, and the other way round.
    probabilities[0, 1], probabilities[1, 1] = [0.55, 0.45, 0, 0], [0.45, 0.55, 0, 0]
    assert decide(probabilities[:1], SCHEMA)[0, 1] == 1
    assert decide(probabilities[1:2], SCHEMA, np.full(A, 0.6))[0, 1] == 0


def test_of_equally_probable_labels_the_first_is_the_answer():
    probabilities = random_probabilities(2)
    probabilities[0, 3], probabilities[1, 3] = [0.1, 0.4, 0.4, 0.1], [0.25] * 4
    probabilities[0, 4], probabilities[1, 4] = [0.2, 0.4, 0.4, 0], [0.3, 0.3, 0.4, 0]
    assert decide(probabilities, SCHEMA)[:, 3:].tolist() == [[1, 1], [0, 2]]


def test_thresholds_of_the_schema():
    for given in (None, "schema"):
        thresholds = read_thresholds(SCHEMA, given)
        assert thresholds.tolist() == [0.5, 0.4, 0.5, 0.5, 0.5] and thresholds.dtype == np.float64


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.3, [0.3] * 5),
        (0, [0.0] * 5),
        (1, [1.0] * 5),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]),
        (np.float32([0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1]),
        ({"Hat": 0.9, "Female": 0.1}, [0.9, 0.4, 0.1, 0.5, 0.5]),
        ({}, [0.5, 0.4, 0.5, 0.5, 0.5]),
    ],
)
def test_thresholds_of_every_form(given, expected):
    assert read_thresholds(SCHEMA, given).tolist() == expected
    assert read_thresholds(SCHEMA).tolist() == [0.5, 0.4, 0.5, 0.5, 0.5]  # nothing was written into the schema


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("own", ValueError, "threshold='own', expected None, 'schema', or numbers in [0, 1]"),
        (1.5, ValueError, "threshold of attribute 'Hat' must lie between 0 and 1, got 1.5"),
        ([0.5, 0.5, -0.1, 0.5, 0.5], ValueError, "threshold of attribute 'Female' must lie between 0 and 1, got -0.1"),
        (float("nan"), ValueError, "threshold of attribute 'Hat' must lie between 0 and 1, got nan"),
        ({"BagSide": 2}, ValueError, "threshold of attribute 'BagSide' must lie between 0 and 1, got 2"),
        ([0.5, 0.5], ValueError, "threshold has shape (2,), expected one number or 5"),
        ([[0.5] * 5], ValueError, "threshold has shape (1, 5), expected one number or 5"),
        ({"Hatt": 0.5}, KeyError, "no attribute 'Hatt' in this schema; did you mean 'Hat'?"),
    ],
)
def test_wrong_thresholds_are_refused(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        read_thresholds(SCHEMA, given)


@pytest.mark.parametrize(
    ("label", "attribute", "expected"),
    [
        ("yes", "Hat", True),
        ("no", "Hat", False),
        ("blue", "UpperColor", True),
        ("none", "BagSide", False),
        ("left", None, True),
        (" None ", None, False),
        ("No", None, False),
        (None, None, False),
        (None, "Hat", False),
    ],
)
def test_what_a_positive_answer_is(label, attribute, expected):
    assert is_positive_answer(label, None if attribute is None else SCHEMA[attribute]) is expected


def test_a_binary_attribute_with_other_labels_is_positive_at_its_second_one():
    attribute = type(SCHEMA[0])("Age", "how old?", ("adult", "child"), ("an adult", "a child"))
    assert is_positive_answer("child", attribute) and not is_positive_answer("adult", attribute)


def test_what_an_answer_says():
    assert answer_text({"label": "yes"}) == "yes" and not is_unknown({"label": "unknown", "set": ["unknown"]})
    left_open = {"label": "unknown", "set": ["no", "yes"], "reason": "14 pixels high"}
    assert answer_text(left_open) == "unknown: 14 pixels high" and is_unknown(left_open)


# Fitted decisions


def some_decisions():
    """Every kind of entry: scale and shift, monotone maps, biases, sets, an attribute without an entry (Female)."""
    return Decisions(
        {
            "Hat": AttributeDecision(
                0.5, (0.0, 1.0), points={"mA": 0.2, "f1": 0.4}, quantiles=((0.3, 0.9), (0.5, None)),
                promised=(True, False), prior=(0.8, 0.2), examples=(80, 20),
            ),
            "Backpack": AttributeDecision(
                2.0, (0.0, -0.5), points={"mA": 0.35, "f1": 0.6},
                isotonic=(((0.1, 0.9), (0.2, 0.7)), ((0.1, 0.5, 0.9), (0.3, 0.3, 0.8))),
            ),
            "UpperColor": AttributeDecision(
                1.0, (0.0, 0.1, 0.2, 0.3), points={"mA": (0.0, 2.0, 0.0, -1.0), "f1": (0.0,) * 4},
            ),
            "BagSide": AttributeDecision(1.0, (0.0, 0.0)),  # of another number of labels: not this attribute
        },
        "mA",
        (0.5, 0.9),
        {"data": "here"},
    )  # fmt: skip


def random_logits(people=40, seed=1):
    return np.where(SCHEMA.label_mask(), np.random.default_rng(seed).normal(0, 2, (people, A, C)), -1e4)


def calibrate_by_loop(logits, decisions):
    found = np.zeros(logits.shape)
    for i, person in enumerate(logits):
        for a, attribute in enumerate(SCHEMA):
            own, K = decisions.attributes.get(attribute.name), attribute.num_labels
            scores = [float(z) for z in person[a, :K]]
            if own is not None and own.num_labels == K:
                scores = [own.gain * z + o for z, o in zip(scores, own.offset)]
            exponents = [math.exp(z) for z in scores]
            row = [e / sum(exponents) for e in exponents]
            if own is not None and own.isotonic is not None:
                row = [float(np.interp(p, *one)) for p, one in zip(row, own.isotonic)]
                row = [p / sum(row) for p in row]
            found[i, a, :K] = row
    return found


def test_fitted_decisions_are_the_plain_loop():
    decisions, logits = some_decisions(), random_logits()
    schema = decisions.settle(SCHEMA)
    assert [one.threshold for one in schema] == [0.2, 0.35, 0.5, 0.5, 0.5]
    assert [one.threshold for one in decisions.settle(SCHEMA, "f1")] == [0.4, 0.6, 0.5, 0.5, 0.5]
    probabilities, answers = decisions.apply(logits, schema)
    expected = calibrate_by_loop(logits, decisions)
    np.testing.assert_allclose(probabilities, expected, atol=1e-12)
    biases = {3: [0.0, 2.0, 0.0, -1.0]}
    for i in range(len(logits)):
        for a, attribute in enumerate(schema):
            row = expected[i, a, : attribute.num_labels]
            if attribute.is_binary:
                wanted = int(row[1] > attribute.threshold)
            else:
                sums = [math.log(p) + b for p, b in zip(row, biases.get(a, [0.0] * 4))]
                wanted = sums.index(max(sums))
            assert answers[i, a] == wanted
    assert (answers[:, 3] != probabilities[:, 3].argmax(-1)).any()  # the biases do something
    assert np.array_equal(decisions.apply(logits[0], schema)[1], answers[0])


def test_fitted_decisions_survive_json():
    decisions = some_decisions()
    again = Decisions.from_dict(json.loads(json.dumps(decisions.to_dict())))
    assert again == decisions and again.points() == ["mA", "f1"]
    assert again.thresholds("f1") == {"Hat": 0.4, "Backpack": 0.6}
    with pytest.raises(KeyError, match="objective 'accuracy' was not fitted; fitted: mA, f1"):
        again.thresholds("accuracy")
    assert list(again.limited_to(SCHEMA).attributes) == ["Hat", "Backpack", "UpperColor"]


def test_no_decisions_change_nothing():
    logits = random_logits()
    probabilities, answers = Decisions({}).apply(logits, SCHEMA)
    np.testing.assert_array_equal(probabilities, label_softmax(logits, SCHEMA))
    assert np.array_equal(answers, decide(probabilities, SCHEMA))
    assert Decisions({}).settle(SCHEMA) == SCHEMA


def test_answer_sets_are_the_plain_loop():
    decisions, logits = some_decisions(), random_logits(200)
    p = decisions.calibrate(logits, SCHEMA)
    for level, place in ((0.5, 0), (0.7, 1), (0.9, 1)):
        sets, promised = decisions.answer_sets(p, SCHEMA, level)
        assert promised[0].tolist() == [True, False, False, False] and not promised[1:].any()
        as_they_are = decisions.answer_sets(p, SCHEMA, level, allow_empty=True)[0]
        assert np.array_equal(as_they_are[as_they_are.any(-1)], sets[as_they_are.any(-1)])
        assert (~as_they_are.any(-1)).any() == (level == 0.5)
        for row, own in zip(p, sets):
            limits = [decisions.attributes["Hat"].quantiles[k][place] for k in range(2)]
            wanted = [limit is None or 1 - row[0, k] <= limit for k, limit in enumerate(limits)]
            if not any(wanted):
                wanted = [bool(k == row[0].argmax()) for k in range(2)]
            assert own[0, :2].tolist() == wanted and not own[0, 2:].any()
            assert own[3].all() and own[2].tolist() == [True, True, False, False]  # nothing was fitted: all labels
    with pytest.raises(ValueError, match="level=0.99, expected at most 0.9"):
        decisions.answer_sets(p, SCHEMA, 0.99)
    with pytest.raises(ValueError, match="no sets of answers were fitted"):
        Decisions({}).answer_sets(p, SCHEMA, 0.9)
    with pytest.raises(ValueError, match=r"level must be a number in \(0, 1\]"):
        decisions.answer_sets(p, SCHEMA, 0.0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("attributes", "Hat", "gain"), 0, r"attribute 'Hat': gain must be a number in \(0, 10000\], got 0"),
        (("attributes", "Hat", "gain"), float("nan"), "gain must be a number"),
        (("attributes", "Hat", "offset"), [0.0], "offset must hold a number for each of at least 2 labels"),
        (("attributes", "Hat", "offset"), "00", "offset must be a list of numbers"),
        (("attributes", "Hat", "points"), {"mA": 1.0}, "must lie strictly between 0 and 1"),
        (("attributes", "Hat", "points"), {"mA": [0.2, 0.3]}, r"points\['mA'\] must be a number"),
        (("attributes", "UpperColor", "points"), {"mA": 0.4}, r"points\['mA'\] must be a list of 4 entries"),
        (("attributes", "Hat", "prior"), [0.5], "prior must be a list of 2 entries"),
        (("attributes", "Hat", "examples"), [1.5, 2], "examples must be numbers of pictures"),
        (("attributes", "Hat", "isotonic"), [[[0.2, 0.1], [0, 1]]] * 2, "isotonic must be pairs of two increasing"),
        (("attributes", "Hat", "quantiles"), [[0.1], [0.2]], "quantiles must be a list of 2 entries"),
        (("attributes", "Hat", "promised"), [1, 0], "promised must be true or false"),
        (("attributes", "Hat", "weights"), [1, 0], "unknown key 'weights'"),
        (("attributes", "Hat"), 3, "must be a dict, got 3"),
        (("attributes",), [], "attributes must be a dict of names"),
        (("levels",), [0.9, 0.5], "levels must increase"),
        (("objective",), 3, "objective must be text"),
        (("record",), "x", "record must be a dict"),
        (("more",), 1, "unknown key 'more'"),
    ],
)
def test_damaged_decisions_are_refused(place, value, message):
    data = some_decisions().to_dict()
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        Decisions.from_dict(data)
    assert isinstance(caught.value, ParError)


def test_attributes_without_a_point_keep_their_thresholds():
    """Also where no attribute of the label space has one."""
    settled = some_decisions().settle(SCHEMA, "f1")
    assert [one.threshold for one in settled][:3] == [0.4, 0.6, 0.5]
    alone = type(SCHEMA)([SCHEMA["Female"]])
    assert some_decisions().settle(alone, "f1") == alone
    with pytest.raises(KeyError, match="objective 'recall' was not fitted"):
        some_decisions().settle(alone, "recall")
