"""The rule for answers in torch equals that in NumPy, also exactly at a threshold; probabilities, fitted decisions."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from modeling_tests.labels.test_consistency import SCHEMA as RULES
from modeling_tests.labels.test_consistency import random_probabilities
from modeling_tests.labels.test_decisions import SCHEMA as KWAY
from modeling_tests.labels.test_decisions import random_logits, some_decisions
from modeling_tests.tiny import tiny_schema
from vlm_par_hf.base.decisions import (
    Calibration,
    decide,
    fit_decisions,
    label_probabilities,
    make_consistent,
    transfer_decisions,
)
from vlm_par_hf.labels import consistency
from vlm_par_hf.labels import decisions as numpy_decisions
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = tiny_schema(kway=True)
A, C = len(SCHEMA), SCHEMA.max_labels


def with_thresholds(thresholds):
    return AttributeSchema([dataclasses.replace(one, threshold=value) for one, value in zip(SCHEMA, thresholds)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_torch_decides_as_numpy_does(seed, dtype):
    generator = np.random.default_rng(seed)
    schema = with_thresholds(generator.uniform(0.01, 0.99, A))
    logits = torch.from_numpy(generator.normal(size=(200, A, C)) * 3).to(dtype)
    probabilities = label_probabilities(logits, schema)
    answers = decide(probabilities, schema)
    assert answers.dtype == torch.int64 and answers.shape == (200, A)
    assert np.array_equal(answers.numpy(), numpy_decisions.decide(probabilities.numpy(), schema))
    assert all(len(column.unique()) == one.num_labels for column, one in zip(answers.T, schema))  # all labels occur


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch_decides_as_numpy_does_exactly_at_the_threshold(dtype):
    """Thresholds are float64: a float32 probability is compared with the threshold itself, not with a rounded one."""
    values = np.array([0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9])
    for threshold in values:
        schema = with_thresholds([threshold] * A)
        at = dtype(threshold)
        column = np.array([np.nextafter(at, dtype(0)), at, np.nextafter(at, dtype(1))], dtype=dtype)
        probabilities = np.zeros((3, A, C), dtype=dtype)
        probabilities[..., 1], probabilities[..., 0] = column[:, None], 1 - column[:, None]
        answers = decide(torch.from_numpy(probabilities), schema)
        assert np.array_equal(answers.numpy(), numpy_decisions.decide(probabilities, schema)), threshold
        assert answers[:, 0].tolist() == [0, int(float(at) > threshold), 1], threshold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_makes_answers_consistent_as_numpy_does(dtype):
    schema, rows = RULES, torch.from_numpy(random_probabilities(400)).to(dtype)
    rows[:20, :, 1] = 1.0  # a logarithm would be infinite
    answers = make_consistent(decide(rows, schema), rows, schema)
    expected = consistency.consistent(rows.numpy(), schema)
    assert answers.dtype == torch.int64 and np.array_equal(answers.numpy(), expected)
    assert (expected == consistency.NO_ANSWER).any() and not np.array_equal(expected, decide(rows, schema).numpy())


def test_of_equally_probable_labels_both_answer_with_the_first():
    probabilities = torch.zeros(1, A, C)
    probabilities[:, :, 1] = probabilities[:, :, 2] = 0.5
    answers = decide(probabilities, SCHEMA)
    assert answers[0, 3:].tolist() == [1, 1]
    assert np.array_equal(answers.numpy(), numpy_decisions.decide(probabilities.numpy(), SCHEMA))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("filler", [-1e4, 0.0, 60.0, float("inf"), float("nan")])
def test_probabilities_are_those_of_an_attributes_own_labels(filler, dtype):
    """Whatever the logits past an attribute's own labels are, the probabilities there are exactly 0."""
    torch.manual_seed(0)
    mask = torch.from_numpy(SCHEMA.label_mask())
    logits = torch.randn(4, A, C).to(dtype)
    table = label_probabilities(torch.where(mask, logits, filler), SCHEMA)
    assert table.dtype == torch.float32
    assert (table[:, ~mask] == 0).all() and (table[:, mask] > 0).all()
    for a, attribute in enumerate(SCHEMA):
        expected = logits[:, a, : attribute.num_labels].float().softmax(-1)
        torch.testing.assert_close(table[:, a, : attribute.num_labels], expected)


def test_fitted_decisions_undo_an_offset_and_leave_unknown_attributes_alone():
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(0, one.num_labels, 400) for one in SCHEMA], axis=1)
    labels[:, 2] = -100  # nothing is known of Female
    labels[:, 1] = 1  # and only one label of Backpack
    logits = generator.normal(size=(400, A, C)) * 0.5
    for a in range(A):
        logits[np.arange(400), a, labels[:, a].clip(0)] += 2
    logits[:, 0, 0] += 5  # a model that always says "no"
    gain, offset = fit_decisions(logits, labels, SCHEMA)
    assert gain.dtype == offset.dtype == torch.float64
    assert gain.shape == (A,) and offset.shape == (sum(SCHEMA.num_labels),)
    assert (gain > 0).all() and gain[1:3].tolist() == [1, 1] and offset[2:6].tolist() == [0] * 4
    fitted = logits[:, 0, :2] * gain[0].item() + offset[:2].numpy()
    assert (logits[:, 0, :2].argmax(1) == labels[:, 0]).mean() < 0.6
    assert (fitted.argmax(1) == labels[:, 0]).mean() > 0.95


def test_fitting_refuses_arrays_of_another_label_space():
    message = "logits (3, 5, 2) and labels (3, 5) do not fit, expected (3, 5, 4) and (3, 5) for this label space"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_decisions(np.zeros((3, A, 2)), np.zeros((3, A), int), SCHEMA)


def test_decisions_of_attributes_that_were_not_fitted():
    gain = torch.tensor([2.0, 8.0, 4.0, 1.0, 1.0])
    offset = torch.arange(13.0)
    new = AttributeSchema.from_texts(["a red scarf", ["a dog", "a cat"], ["a bike", "a car", "a bus"]])
    asked = AttributeSchema([*new, SCHEMA["BagSide"], SCHEMA["Backpack"]])
    moved_gain, moved_offset = transfer_decisions(gain, offset, SCHEMA, asked)
    usual = (2.0 * 8.0 * 4.0 * 1.0 * 1.0) ** (1 / 5)  # the geometric mean
    torch.testing.assert_close(moved_gain, torch.tensor([usual, usual, usual, 1.0, 8.0]))
    # Thresholds of the fitted binary ones: -1/2, -1/8, -1/4; their median is -1/4.
    half = usual * 0.25 / 2
    expected = torch.tensor([-half, half, -half, half, 0, 0, 0, 10, 11, 12, 2, 3])
    torch.testing.assert_close(moved_offset, expected)


def test_calibration_is_that_of_numpy():
    decisions, logits = some_decisions(), random_logits(300)
    calibrated = Calibration(decisions, KWAY)(torch.from_numpy(logits).float())
    assert calibrated.dtype == torch.float32 and torch.isfinite(calibrated).all()
    assert bool((calibrated[:, ~torch.from_numpy(KWAY.label_mask())] == -1e4).all())
    probabilities = label_probabilities(calibrated, KWAY)
    expected, answers = decisions.apply(logits, KWAY)
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=2e-6)
    found = decide(torch.from_numpy(expected), KWAY, decisions)
    assert np.array_equal(found.numpy(), answers)
    assert not np.array_equal(decide(torch.from_numpy(expected), KWAY).numpy(), answers)
