"""The three conventions for tracklets against cases worked out by hand, and consistency over time."""

import numpy as np
import pytest

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.metrics import answer_flips, flips_per_minute, video_metrics


SCHEMA = AttributeSchema(list(tiny_schema(kway=True))[:1] + list(tiny_schema(kway=True))[3:4])  # Hat, UpperColor (4)
LABELS = np.array([[1, 0], [0, 1], [1, 2], [0, 0]])


def logits(hat, colors):
    found = np.full((len(hat), 2, 4), -1e4)
    for row, (yes, color) in enumerate(zip(hat, colors)):
        found[row, 0, :2] = np.log([1 - yes, yes])
        found[row, 1] = np.log(color)
    return found


# Hat: right, right, missed at 0.5 (0.47 is above 0.45), false alarm. Colors: right, right, wrong, undecided.
SCORES = logits(
    [0.9, 0.1, 0.47, 0.6],
    [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]],
)


def test_chen():
    found = video_metrics(SCORES, LABELS, SCHEMA, "chen")
    # Hat: 2 of 4; F1 of no (1 right, 2 answered, 2 true) and of yes (1, 2, 2) are 1/2. Colors: 3 of 4; F1 of black
    # (2 right, 3 answered, 2 true) 0.8, white 1, red 0; blue occurs nowhere.
    assert found["accuracy"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["f1_macro"] == pytest.approx((0.5 + (0.8 + 1 + 0) / 3) / 2)


def test_vtf():
    found = video_metrics(SCORES, LABELS, SCHEMA, "vtf")
    # Hat above 0.45: yes for 0, 2 and 3; precision 2/3, recall 1, F1 0.8, mA (1 + 1/2) / 2. Colors above 0.45: black,
    # white, black, none; per tracklet 1, 1, 0, 0.
    assert found["precision"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert found["recall"] == pytest.approx((1 + 0.5) / 2)
    assert found["f1"] == pytest.approx((0.8 + 0.5) / 2)
    assert found["accuracy"] == pytest.approx((0.75 + 0.5) / 2)


def test_vtfpar():
    found = video_metrics(SCORES, LABELS, SCHEMA, "vtfpar++")
    # Colors together: 3 answers, 2 right, 4 true; of 16 cells 2 true positives, 11 true negatives.
    assert found["precision"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["recall"] == pytest.approx((1 + 0.5) / 2)
    assert found["f1"] == pytest.approx((0.8 + 4 / 7) / 2)
    assert found["accuracy"] == pytest.approx((3 / 4 + 13 / 16) / 2)


def test_always_none_is_nearly_right_by_the_accuracy_of_vtfpar():
    nothing = logits([0.1] * 4, [[0.25] * 4] * 4)
    assert video_metrics(nothing, LABELS, SCHEMA, "vtfpar++")["accuracy"] == pytest.approx((0.5 + 0.75) / 2)
    assert video_metrics(nothing, LABELS, SCHEMA, "vtfpar++")["f1"] == 0


def test_unknown_labels_and_what_is_refused():
    labels = LABELS.copy()
    labels[:, 0] = -100
    assert video_metrics(SCORES, labels, SCHEMA, "chen")["accuracy"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="no known label"):
        video_metrics(SCORES, np.full_like(LABELS, -100), SCHEMA)
    with pytest.raises(ValueError, match="convention is 'mars', expected one of 'chen', 'vtf', 'vtfpar"):
        video_metrics(SCORES, LABELS, SCHEMA, "mars")
    with pytest.raises(ValueError, match=r"logits has shape \(4, 2, 4\) and labels \(3, 2\)"):
        video_metrics(SCORES, LABELS[:3], SCHEMA)


def test_flips():
    answers = np.array([[1, 0], [1, 2], [-1, 2], [0, 0], [1, -1]])
    assert answer_flips(answers).tolist() == [2, 2]
    assert answer_flips(answers[:1]).tolist() == [0, 0]
    persons, times = ["a", "a", "b", "a", "b"], [0.0, 10.0, 3.0, 20.0, 13.0]
    rows = np.array([[1, 0], [0, 0], [1, 1], [1, 0], [1, 2]])
    found = flips_per_minute(rows, persons, times, SCHEMA)
    # a: Hat flips twice in 20 s; b: color once in 10 s. Together half a minute.
    assert found["person_minutes"] == pytest.approx(0.5)
    assert found["attributes"] == {"Hat": pytest.approx(4.0), "UpperColor": pytest.approx(2.0)}
    assert found["flips_per_minute"] == pytest.approx(3.0)
    order = [3, 1, 0, 4, 2]
    shuffled = flips_per_minute(rows[order], [persons[i] for i in order], [times[i] for i in order], SCHEMA)
    assert shuffled == found
    with pytest.raises(ValueError, match="nobody is seen at two different times"):
        flips_per_minute(rows[:2], ["a", "b"], [0.0, 1.0], SCHEMA)
    with pytest.raises(ValueError, match="times holds a value that is not finite"):
        flips_per_minute(rows[:2], ["a", "a"], [0.0, np.nan], SCHEMA)
