"""The rule from probabilities to answers against plain loops, and every form in which thresholds can be given."""

import re

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.labels.decisions import decide, is_positive_answer, read_thresholds


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
    ],
)
def test_what_a_positive_answer_is(label, attribute, expected):
    assert is_positive_answer(label, None if attribute is None else SCHEMA[attribute]) is expected


def test_a_binary_attribute_with_other_labels_is_positive_at_its_second_one():
    attribute = type(SCHEMA[0])("Age", "how old?", ("adult", "child"), ("an adult", "a child"))
    assert is_positive_answer("child", attribute) and not is_positive_answer("adult", attribute)
