"""Scores from probabilities, compared with plain loops; who meets which condition."""

import numpy as np
import pytest

from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.retrieval.queries import Condition, Query
from vlm_par_hf.retrieval.scoring import (
    condition_probabilities,
    excluding_conditions,
    flat_probabilities,
    l1,
    label_names,
    log_likelihood,
    matches,
)


SCHEMA = get_schema("rendered")
QUERY = Query.from_dict(
    {"UpperColor": "red", "ShoeColor": ["black", "white"], "Hat": "no"}, SCHEMA, unwanted={"LowerColor": "blue"}
)


@pytest.fixture
def probabilities():
    random = np.random.default_rng(0)
    mask = SCHEMA.label_mask()
    values = random.random((7, *mask.shape)) * mask
    return values / values.sum(-1, keepdims=True)


def by_loop(person):
    """The probability of each condition of QUERY for one person, `(A, C)`."""
    found = []
    for name, labels, is_wanted in QUERY.conditions:
        total = sum(person[SCHEMA.index(name), SCHEMA[name].labels.index(label)] for label in labels)
        found.append(total if is_wanted else 1 - total)
    return found


def test_scores_are_those_of_the_loop(probabilities):
    expected = np.array([by_loop(person) for person in probabilities])
    np.testing.assert_allclose(condition_probabilities(QUERY, probabilities, SCHEMA), expected)
    np.testing.assert_allclose(log_likelihood(QUERY, probabilities, SCHEMA), np.log(expected).sum(1))
    np.testing.assert_allclose(l1(QUERY, probabilities, SCHEMA), -(1 - expected).sum(1))


def test_flat_probabilities_give_the_same(probabilities):
    flat = flat_probabilities(probabilities, SCHEMA)
    assert (
        flat.shape == (7, sum(SCHEMA.num_labels)) and label_names(SCHEMA)[flat.shape[1] - 1] == "CarryingNothing=yes"
    )
    for score in (log_likelihood, l1):
        np.testing.assert_array_equal(score(QUERY, flat, SCHEMA), score(QUERY, probabilities, SCHEMA))


def test_l1_is_the_published_distance_of_binary_attributes():
    """UPAR Challenge: sum p + q (1 - 2 p) over the attributes of the query."""
    schema, random = get_schema("pa100k"), np.random.default_rng(1)
    p, q = random.random((5, len(schema))), random.integers(0, 2, len(schema))
    query = Query.from_labels(q, schema)
    np.testing.assert_allclose(l1(query, np.stack([1 - p, p], -1), schema), -(p + q * (1 - 2 * p)).sum(1))


def test_certain_errors_stay_finite():
    schema = get_schema("pa100k")
    sure = np.zeros((1, len(schema), 2))
    sure[..., 0] = 1
    assert np.isfinite(log_likelihood(Query.parse("hat, boots", schema), sure, schema)).all()


def test_matches_of_labels_and_of_probabilities(probabilities):
    labels = np.full((4, len(SCHEMA)), -100)
    labels[:, SCHEMA.index("UpperColor")] = [3, 3, 0, -100]
    labels[:, SCHEMA.index("Hat")] = [0, 1, 0, 0]
    labels[:, SCHEMA.index("ShoeColor")] = [0, 1, 1, 2]
    labels[:, SCHEMA.index("LowerColor")] = [0, 7, 1, -100]
    met = matches(QUERY, labels, SCHEMA)
    assert {condition.attribute: row.tolist() for condition, row in met.items()} == {
        "Hat": [True, False, True, True],
        "UpperColor": [True, True, False, False],
        "ShoeColor": [True, True, True, False],
        "LowerColor": [True, False, True, False],
    }
    assert excluding_conditions(met)[Condition("UpperColor", ("red",))] == {"excludes": 2, "alone": 1}
    hat = matches(QUERY, probabilities, SCHEMA)[Condition("Hat", ("no",))]
    np.testing.assert_array_equal(hat, probabilities[:, SCHEMA.index("Hat"), 1] <= 0.5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 3)), "a column per label"),
        (np.full((2, sum(SCHEMA.num_labels)), np.nan), "not finite"),
        (np.zeros((2, 3), int), "expected \\(N, 43\\)"),
        (np.full((2, 43), 90), "holds 90"),
    ],
)
def test_refused(values, words):
    with pytest.raises(ValueError, match=words):
        matches(QUERY, values, SCHEMA)


def test_a_query_of_another_label_space_is_refused(probabilities):
    with pytest.raises(KeyError, match="no attribute 'upred'"):
        l1(Query.parse("red top", get_schema("market1501")), probabilities, SCHEMA)
    with pytest.raises(ValueError, match="has the label 'plaid' for 'UpperColor'"):
        l1(Query({"UpperColor": ("plaid",)}), probabilities, SCHEMA)
