"""Finding people by attributes: both conventions of average precision, unknown labels, unseen categories."""

import os

import numpy as np
import pytest

from vlm_par_hf.data import read_pa100k
from vlm_par_hf.metrics import attribute_categories, attribute_retrieval, unseen_categories


def test_categories_are_the_different_vectors_of_known_people():
    labels = np.array([[1, 0], [0, 2], [1, 0], [-100, 2]])
    vectors, category = attribute_categories(labels)
    assert vectors.tolist() == [[0, 2], [1, 0]] and category.tolist() == [1, 0, 1, -1]
    assert unseen_categories(vectors, labels[[0, 3]]).tolist() == [True, False]
    empty, category = attribute_categories(np.full((2, 3), -100))
    assert empty.shape == (0, 3) and category.tolist() == [-1, -1]


def test_one_ranking_by_hand():
    """Right people at ranks 1 and 4 of 5."""
    labels = np.array([[1, 1], [0, 1], [0, 0], [1, 1], [0, 0]])
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    found = attribute_retrieval(scores, labels[:1], labels)
    assert (found["rank_1"], found["rank_5"]) == (1.0, 1.0)
    assert found["mAP_standard"] == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert found["mAP_trapezoid"] == pytest.approx(((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert found["mINP"] == pytest.approx(2 / 4)
    # Shares of attributes that agree: 1, 0.5, 0, 1, 0; their mean 0.5 counts 0 and the largest 1.
    assert found["mADM"] == pytest.approx((1 / 1 + (1 + 0 + 0 + 1) / 4) / 2)
    assert (found["queries"], found["people"], found["queries_without_match"]) == (1, 5, 0)


def test_equal_scores_keep_the_order_of_the_gallery():
    labels = np.array([[0], [1], [1]])
    found = attribute_retrieval(np.zeros((2, 3)), np.array([[1], [0]]), labels, ranks=(1, 2))
    assert found["rank_1"] == 0.5 and found["rank_2"] == 1.0
    assert found["mAP_standard"] == pytest.approx((np.mean([1 / 2, 2 / 3]) + 1) / 2)


def test_who_may_be_right_is_left_out_and_who_cannot_be_is_not():
    labels = np.array([[-100, 1], [-100, 0], [1, 1]])
    found = attribute_retrieval(np.array([[3.0, 2.0, 1.0]]), np.array([[1, 1]]), labels)
    # The first might be right and is left out; the second is wrong, whatever its unknown label is.
    assert found["mAP_standard"] == pytest.approx(1 / 2) and found["rank_1"] == 0.0
    assert found["mADM"] == pytest.approx(np.mean([0, 1]))


def reference(scores, query, labels):
    """Average precisions, INP and ADM of one query without unknown labels, in plain loops."""
    order = sorted(range(len(labels)), key=lambda n: (-scores[n], n))
    shares = [sum(a == b for a, b in zip(labels[n], query)) / len(query) for n in order]
    mean, largest = sum(shares) / len(shares), max(shares)
    right = hits = standard = trapezoid = adm = 0
    precision_before, total, last = 1.0, 0.0, 0
    for rank, share in enumerate(shares, 1):
        total += max(0.0, share - mean) / (largest - mean)
        hits += share == 1
        precision = hits / rank
        if share == 1:
            right += 1
            standard += precision
            trapezoid += (precision_before + precision) / 2
            adm += total / rank
            last = rank
        precision_before = precision
    return {
        "mAP_standard": standard / right,
        "mAP_trapezoid": trapezoid / right,
        "mINP": right / last,
        "mADM": adm / right,
    }


def test_the_numbers_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (60, 3))
    queries, category = attribute_categories(labels)
    scores = rng.normal(size=(len(queries), 60)).round(1) + (category == np.arange(len(queries))[:, None])
    found = attribute_retrieval(scores, queries, labels)
    rows = [reference(*one, labels.tolist()) for one in zip(scores.tolist(), queries.tolist())]
    for name in rows[0]:
        assert found[name] == pytest.approx(np.mean([row[name] for row in rows])), name


def test_chance_is_the_mean_of_random_orders():
    rng = np.random.default_rng(0)
    labels = np.array([[1]] * 3 + [[0]] * 17)
    scores = rng.random((4000, 20))
    found = attribute_retrieval(scores, np.ones((4000, 1), int), labels)
    assert found["mAP_standard"] == pytest.approx(found["chance_mAP_standard"], abs=0.01)


def test_unseen_categories_are_measured_apart():
    labels = np.array([[0, 0], [0, 1], [1, 1]])
    queries = np.array([[0, 0], [1, 1], [1, 0]])
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    found = attribute_retrieval(scores, queries, labels, seen=np.array([[0, 0], [1, 0]]))
    assert found["queries"] == 2 and found["queries_without_match"] == 1
    assert found["seen"]["rank_1"] == 1.0 and found["seen"]["queries_without_match"] == 1
    assert found["unseen"]["rank_1"] == 0.0 and found["unseen"]["mINP"] == pytest.approx(1 / 3)
    nothing = attribute_retrieval(scores[:1], queries[:1], labels, seen=labels)["unseen"]
    assert nothing["mAP_standard"] is None and nothing["queries"] == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scores": np.zeros((1, 2))}, r"scores \(1, 2\), queries \(1, 1\) and labels \(3, 1\) do not fit"),
        ({"scores": np.array([[np.nan, 0, 0]])}, "scores has entries that are not finite"),
        ({"queries": np.array([[-100]])}, "asks for nothing"),
        ({"queries": np.array([[0.5]])}, r"queries must be integers \(rows, attributes\), got float64"),
        ({"ranks": (0,)}, r"ranks=\(0,\), expected ranks of 1 or more"),
        ({"seen": np.zeros((2, 2), int)}, "other numbers of attributes"),
    ],
)
def test_what_does_not_fit_is_refused(change, match):
    given = {"scores": np.zeros((1, 3)), "queries": np.array([[0]]), "labels": np.array([[0], [1], [0]]), **change}
    with pytest.raises(ValueError, match=match):
        attribute_retrieval(given.pop("scores"), given.pop("queries"), given.pop("labels"), **given)


@pytest.mark.skipif("PAR_DATA" not in os.environ, reason="needs PAR_DATA, the folder of real annotations")
def test_the_categories_of_pa100k():
    train, test = (
        np.stack([one.labels for one in read_pa100k(os.path.join(os.environ["PAR_DATA"], "pa100k"), split)])
        for split in ("train", "test")
    )
    (of_train, _), (of_test, _) = attribute_categories(train), attribute_categories(test)
    assert (len(of_train), len(of_test), unseen_categories(of_test, train).sum()) == (2020, 849, 168)
