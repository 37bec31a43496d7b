"""Losses against a plain loop in float64, their masks, weights and reductions, and equality under accumulation."""

import json
import math

import numpy as np
import pytest
import torch

from vlm_par_hf.base.losses import (
    LOSSES,
    ParLoss,
    ce_focal_loss,
    compute_class_weights,
    compute_priors,
    cross_entropy_loss,
    focal_loss,
    fused_loss,
    weighted_bce_loss,
)
from vlm_par_hf.labels.schema import AttributeSchema


KINDS = tuple(LOSSES)


def make_schema(*num_labels):
    def row(a, K):
        labels = ["no", "yes"] if K == 2 else [f"color{k}" for k in range(K)]
        prompts = [f"a person of kind {a} with {label}" for label in labels]
        return {"name": f"Attribute{a}", "question": f"what is {a}?", "labels": labels, "prompts": prompts}

    return AttributeSchema([row(a, K) for a, K in enumerate(num_labels)])


SCHEMA = make_schema(2, 5, 2, 3)
PRIORS = [[0.9, 0.1], [0.5, 0.2, 0.15, 0.1, 0.05], [0.3, 0.7], [0.98, 0.01, 0.01]]


def make_batch(B=7, schema=SCHEMA, seed=0, missing=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    A, C = len(schema), schema.max_labels
    logits = 2 * torch.randn(B, A, C, generator=generator, dtype=torch.float64)
    logits = torch.where(torch.tensor(schema.label_mask()), logits, torch.tensor(-1e4, dtype=torch.float64))
    labels = torch.stack([torch.randint(K, (B,), generator=generator) for K in schema.num_labels], dim=1)
    labels[torch.rand(B, A, generator=generator) < missing] = -100
    return logits.to(dtype), labels


def reference_cell(kind, z, y, K, eps, gamma, focal_weight):
    """Loss of one cell from the K logits z (float64 scalars with a graph), written out term by term."""
    exponents = [torch.exp(z[k] - z[:K].max().detach()) for k in range(K)]
    p = [e / sum(exponents) for e in exponents]
    if kind in ("focal", "weighted_bce"):
        eps = 0.0
    ce = sum(-((1 - eps) * (k == y) + eps / K) * torch.log(p[k]) for k in range(K))
    focal = -((1 - p[y]) ** gamma) * torch.log(p[y])
    return {
        "ce": ce,
        "focal": focal,
        "ce_focal": ce + focal_weight * focal,
        "fused": (1 - p[y]) ** gamma * ce,
        "weighted_bce": ce,
    }[kind]


def reference_loss(
    logits,
    labels,
    schema=SCHEMA,
    kind="ce_focal",
    *,
    weights=None,
    adjustment=0.0,
    reduction="mean",
    label_smoothing=0.1,
    focal_gamma=2.0,
    focal_weight=1.0,
):
    total, known = torch.zeros((), dtype=torch.float64), 0
    for b in range(labels.shape[0]):
        for a, K in enumerate(schema.num_labels):
            y = int(labels[b, a])
            if y == -100:
                continue
            z = logits[b, a, :K].double()
            if adjustment:
                z = z + adjustment * torch.log(torch.tensor(PRIORS[a], dtype=torch.float64))
            cell = reference_cell(kind, z, y, K, label_smoothing, focal_gamma, focal_weight)
            total = total + (1.0 if weights is None else weights[a][y]) * cell
            known += 1
    return total / known * (len(schema) if reduction == "sum" else 1)


def value_and_gradient(function, logits):
    logits = logits.detach().clone().requires_grad_()
    value = function(logits)
    value.backward()
    return value.detach(), logits.grad


# Against the plain loop


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradient_equal_plain_loop(kind, reduction):
    logits, labels = make_batch()
    settings = {"label_smoothing": 0.17, "focal_gamma": 1.5, "focal_weight": 0.7}
    weights = [[math.exp(1 - p) for p in prior] for prior in PRIORS] if kind == "weighted_bce" else None
    loss = ParLoss(SCHEMA, kind, reduction=reduction, priors=PRIORS, **settings)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    expected, expected_gradient = value_and_gradient(
        lambda z: reference_loss(z, labels, kind=kind, weights=weights, reduction=reduction, **settings), logits
    )
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_float32_equals_plain_loop(kind):
    logits, labels = make_batch(dtype=torch.float32)
    weights = [[math.exp(1 - p) for p in prior] for prior in PRIORS] if kind == "weighted_bce" else None
    loss = ParLoss(SCHEMA, kind, priors=PRIORS)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    expected, expected_gradient = value_and_gradient(
        lambda z: reference_loss(z, labels, kind=kind, weights=weights), logits
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", ["balanced", "sqrt", "exp"])
@pytest.mark.parametrize("kind", ["ce", "focal", "ce_focal", "fused"])
def test_weighting_multiplies_each_cell_by_the_weight_of_its_true_label(kind, weighting):
    logits, labels = make_batch()
    weights = compute_class_weights(PRIORS, weighting, max_class_weight=4.0)
    loss = ParLoss(SCHEMA, kind, weighting=weighting, priors=PRIORS, max_class_weight=4.0)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    expected, expected_gradient = value_and_gradient(
        lambda z: reference_loss(z, labels, kind=kind, weights=weights), logits
    )
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_logit_adjustment_in_training_only():
    logits, labels = make_batch()
    loss = ParLoss(SCHEMA, "ce", priors=PRIORS, logit_adjustment=1.3)
    expected = reference_loss(logits, labels, kind="ce", adjustment=1.3)
    torch.testing.assert_close(loss(logits, labels), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.eval()(logits, labels), ParLoss(SCHEMA, "ce")(logits, labels))


def test_logit_adjustment_makes_prior_scores_neutral():
    # A head that outputs 0 for every label under adjustment predicts exactly the priors: the gradient vanishes on
    # labels that follow the priors, so raw logits of 0 (no preference) are the optimum.
    schema = make_schema(2)
    labels = torch.tensor([[0]] * 9 + [[1]])
    logits = torch.zeros(10, 1, 2, requires_grad=True)
    loss = ParLoss(schema, "ce", label_smoothing=0.0, priors=[[0.9, 0.1]], logit_adjustment=1.0)
    loss(logits, labels).backward()
    torch.testing.assert_close(logits.grad.sum(dim=0), torch.zeros(1, 2), rtol=0, atol=1e-7)


# Hand cases


def test_binary_cross_entropy_on_the_difference_of_logits():
    schema = make_schema(2, 2)
    logits, labels = make_batch(schema=schema, missing=0.0)
    r = torch.tensor([0.1, 0.7], dtype=torch.float64)
    loss = ParLoss(schema, "weighted_bce", priors=[[0.9, 0.1], [0.3, 0.7]], reduction="sum")
    cells = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[..., 1] - logits[..., 0],
        labels.double(),
        weight=torch.where(labels == 1, torch.exp(1 - r), torch.exp(r)),
        reduction="none",
    )
    # Summed over attributes, averaged over samples: the field's "size_sum".
    torch.testing.assert_close(loss(logits, labels), cells.sum(dim=1).mean(), rtol=1e-6, atol=0)


def test_cross_entropy_agrees_with_torch():
    logits, labels = make_batch(schema=make_schema(5, 5, 5))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1, ignore_index=-100
    )
    torch.testing.assert_close(ParLoss(make_schema(5, 5, 5), "ce")(logits, labels), expected)


def test_values_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)]]])  # p = (1/4, 3/4)
    labels = torch.tensor([[1]])
    nll, smoothed = -math.log(0.75), -0.95 * math.log(0.75) - 0.05 * math.log(0.25)
    focal = 0.25**2 * nll
    torch.testing.assert_close(cross_entropy_loss(logits, labels), torch.tensor([[nll]]))
    torch.testing.assert_close(cross_entropy_loss(logits, labels, label_smoothing=0.1), torch.tensor([[smoothed]]))
    torch.testing.assert_close(focal_loss(logits, labels), torch.tensor([[focal]]))
    torch.testing.assert_close(ce_focal_loss(logits, labels), torch.tensor([[smoothed + focal]]))
    torch.testing.assert_close(fused_loss(logits, labels), torch.tensor([[0.25**2 * smoothed]]))
    weight = torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(weighted_bce_loss(logits, labels, class_weight=weight), torch.tensor([[3 * nll]]))


def test_focal_with_gamma_zero_is_cross_entropy():
    logits, labels = make_batch()
    torch.testing.assert_close(
        ParLoss(SCHEMA, "focal", focal_gamma=0.0)(logits, labels),
        ParLoss(SCHEMA, "ce", label_smoothing=0.0)(logits, labels),
    )


# Masks


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_labels_have_no_loss_and_no_gradient_even_where_logits_are_nan(kind):
    logits, labels = make_batch()
    loss = ParLoss(SCHEMA, kind, priors=PRIORS)
    expected, expected_gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    broken = torch.where((labels == -100).unsqueeze(-1), torch.tensor(float("nan"), dtype=torch.float64), logits)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), broken)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert (gradient[labels == -100] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_entries_past_an_attributes_own_labels_take_no_part(kind):
    logits, labels = make_batch()
    loss = ParLoss(SCHEMA, kind, priors=PRIORS)
    expected = loss(logits, labels)
    padded = ~torch.tensor(SCHEMA.label_mask())
    value, gradient = value_and_gradient(lambda z: loss(z, labels), logits.masked_fill(padded, 37.0))
    torch.testing.assert_close(value, expected)
    assert (gradient[:, padded] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_batch_without_a_known_label_gives_zero_with_a_graph(kind):
    logits, labels = make_batch(dtype=torch.float32)
    loss = ParLoss(SCHEMA, kind, priors=PRIORS)
    value, gradient = value_and_gradient(lambda z: loss(z, torch.full_like(labels, -100)), logits)
    assert value == 0
    assert (gradient == 0).all()
    zero = loss(logits.requires_grad_(), torch.full_like(labels, -100), num_items_in_batch=0)
    assert zero == 0 and zero.requires_grad


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["focal", "ce_focal", "fused"])
def test_gradients_stay_finite_at_certainty(kind, gamma):
    logits = torch.tensor([[[-400.0, 400.0]], [[400.0, -400.0]]])
    loss = ParLoss(make_schema(2), kind, focal_gamma=gamma)
    value, gradient = value_and_gradient(lambda z: loss(z, torch.tensor([[1], [1]])), logits)
    assert value.isfinite() and gradient.isfinite().all()
    assert gradient[1, 0, 1] < 0


# Dtypes, devices, compilers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_input_is_computed_in_float32(kind, dtype):
    logits, labels = make_batch(dtype=dtype)
    loss = ParLoss(SCHEMA, kind, priors=PRIORS, logit_adjustment=0.5)
    value, gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    exact, exact_gradient = value_and_gradient(lambda z: loss(z, labels), logits.double())
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, exact_gradient.to(dtype), rtol=2**-7, atol=1e-6)


def test_autocast_changes_nothing():
    logits, labels = make_batch(dtype=torch.float32)
    loss = ParLoss(SCHEMA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, labels)
        with pytest.raises(ValueError, match="labels holds 9"):
            loss(logits, torch.full_like(labels, 9))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits, labels), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["ce_focal", "weighted_bce"])
def test_traces_without_graph_breaks(kind):
    logits, labels = make_batch(dtype=torch.float32)
    loss = ParLoss(SCHEMA, kind, priors=PRIORS, logit_adjustment=0.5)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), loss(logits, labels))
    count = (labels != -100).sum()
    torch.testing.assert_close(compiled(logits, labels, num_items_in_batch=count), loss(logits, labels))


def test_nothing_of_it_enters_a_checkpoint_and_it_survives_the_meta_device():
    logits, labels = make_batch()
    with torch.device("meta"):
        loss = ParLoss(SCHEMA, "weighted_bce", priors=PRIORS)
    assert not loss.state_dict() and not list(loss.parameters()) and not list(loss.buffers())
    torch.testing.assert_close(loss(logits, labels), ParLoss(SCHEMA, "weighted_bce", priors=PRIORS)(logits, labels))


def test_built_in_inference_mode_it_still_trains():
    logits, labels = make_batch()
    with torch.inference_mode():
        loss = ParLoss(SCHEMA, "weighted_bce", priors=PRIORS, logit_adjustment=1.0)
        loss(logits, labels)
    loss(logits.requires_grad_(), labels).backward()
    assert logits.grad.abs().sum() > 0


# Reduction and accumulation


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind, weighting", [*((kind, None) for kind in KINDS), ("ce_focal", "balanced")])
def test_accumulated_micro_batches_equal_the_whole_batch(kind, weighting, reduction, as_tensor):
    # Unequal micro batches with unequal shares of unknown labels, one of them with none known.
    logits, labels = make_batch(B=12)
    labels[5:7] = -100
    loss = ParLoss(SCHEMA, kind, weighting=weighting, priors=PRIORS, reduction=reduction)
    whole, whole_gradient = value_and_gradient(lambda z: loss(z, labels), logits)
    count = (labels != -100).sum()
    count = count if as_tensor else int(count)
    parts = [slice(0, 5), slice(5, 7), slice(7, 8), slice(8, 12)]
    value, gradient = value_and_gradient(
        lambda z: sum(loss(z[part], labels[part], num_items_in_batch=count) for part in parts), logits
    )
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-15)


def test_sum_is_the_number_of_attributes_times_mean():
    logits, labels = make_batch()
    mean, total = (ParLoss(SCHEMA, reduction=reduction)(logits, labels) for reduction in ("mean", "sum"))
    torch.testing.assert_close(total, 4 * mean)
    complete = labels.clamp(min=0)
    cells = ce_focal_loss(logits, complete, label_mask=torch.tensor(SCHEMA.label_mask()))
    torch.testing.assert_close(ParLoss(SCHEMA, reduction="sum")(logits, complete), cells.sum(dim=1).mean())


# Priors and weights


def test_priors_are_shares_of_known_labels():
    labels = np.array([[0, 2], [0, -100], [1, 2], [-100, 0]])
    schema = make_schema(2, 3)
    plain = compute_priors(labels, schema, smoothing=0)
    np.testing.assert_allclose(plain[0], [2 / 3, 1 / 3])
    np.testing.assert_allclose(plain[1], [1 / 3, 0, 2 / 3])
    np.testing.assert_allclose(compute_priors(labels, schema)[1], [2 / 6, 1 / 6, 3 / 6])
    unknown = np.where(np.arange(2) == 1, -100, labels)
    np.testing.assert_allclose(compute_priors(unknown, schema)[1], [1 / 3] * 3)
    json.dumps(plain)


@pytest.mark.parametrize(
    "labels, smoothing, message",
    [
        (np.array([[0, 3]]), 1, "labels holds 3 for attribute 'Attribute1' of row 0, expected 0 to 2"),
        (np.array([[-1, 0]]), 1, "labels holds -1 for attribute 'Attribute0'"),
        (np.array([0, 1]), 1, r"labels has shape \(2,\), expected \(N, 2\)"),
        (np.array([[0.0, 1.0]]), 1, "labels has dtype float64"),
        (np.array([[0, -100]]), 0, "no known label for attribute 'Attribute1'"),
        (np.array([[0, 0]]), -1, "smoothing=-1"),
    ],
)
def test_priors_name_what_is_wrong(labels, smoothing, message):
    with pytest.raises(ValueError, match=message):
        compute_priors(labels, make_schema(2, 3), smoothing=smoothing)


@pytest.mark.parametrize("limit", [1.0, 1.5, 4.0, 1e6])
@pytest.mark.parametrize("weighting, power", [("balanced", -1.0), ("sqrt", -0.5)])
def test_weights_have_mean_one_over_the_training_labels_within_the_limit(weighting, power, limit):
    priors = [*PRIORS, [0.5, 0.499, 0.001, 0.0]]
    for prior, weight in zip(priors, compute_class_weights(priors, weighting, max_class_weight=limit)):
        p, w = np.array(prior), np.array(weight)
        np.testing.assert_allclose((p * w).sum(), 1, rtol=1e-12)
        assert w.max() <= limit * (1 + 1e-12) and (np.diff(w[np.argsort(-p)]) >= -1e-12).all()
        free = (w < limit * (1 - 1e-9)) & (p > 0)
        ratio = w[free] / p[free] ** power
        np.testing.assert_allclose(ratio, np.full(len(ratio), ratio[0] if len(ratio) else 1))


def test_weights_by_hand():
    np.testing.assert_allclose(compute_class_weights([[0.75, 0.25]], "balanced"), [[2 / 3, 2]])
    np.testing.assert_allclose(compute_class_weights([[0.99, 0.01]], "balanced"), [[0.9 / 0.99, 10]])
    np.testing.assert_allclose(compute_class_weights([[0.75, 0.25]], "exp"), [[math.exp(0.25), math.exp(0.75)]])


# Errors


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "bce"}, "kind='bce', expected one of 'ce', 'ce_focal'"),
        ({"reduction": "none"}, "reduction='none', expected one of 'mean', 'sum'"),
        ({"weighting": "inverse", "priors": PRIORS}, "weighting='inverse'"),
        ({"kind": "weighted_bce", "weighting": "balanced", "priors": PRIORS}, "expected None or 'exp'"),
        ({"kind": "weighted_bce"}, "priors=None"),
        ({"weighting": "balanced"}, "priors=None, expected one list of label shares per attribute for weighting"),
        ({"logit_adjustment": 1.0}, "priors=None.*logit_adjustment=1.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0, expected a number in \[0, 1\)"),
        ({"label_smoothing": "0.1"}, "label_smoothing='0.1'"),
        ({"focal_gamma": -1}, "focal_gamma=-1, expected a number >= 0"),
        ({"focal_weight": float("nan")}, "focal_weight=nan"),
        ({"priors": PRIORS[:3]}, "priors has 3 entries, expected 4"),
        ({"priors": [*PRIORS[:3], [0.5, 0.5]]}, "'Attribute3' has 2 values, expected 3"),
        ({"priors": [[0.5, 0.6], *PRIORS[1:]]}, "'Attribute0'.*sum 1"),
        ({"priors": [[1.5, -0.5], *PRIORS[1:]]}, "'Attribute0'.*shares >= 0"),
        ({"priors": [[1.0, 0.0], *PRIORS[1:]], "logit_adjustment": 1.0}, "'Attribute0'.*shares above 0"),
        ({"weighting": "sqrt", "priors": PRIORS, "max_class_weight": 0.5}, "max_class_weight=0.5"),
    ],
)
def test_settings_name_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        ParLoss(SCHEMA, **settings)


@pytest.mark.parametrize("value, column", [(2, 0), (5, 1), (-1, 1), (3, 3), (4, 3)])
def test_label_out_of_range_names_attribute_and_value(value, column):
    logits, labels = make_batch()
    labels[2, column] = value
    with pytest.raises(ValueError, match=f"labels holds {value} for attribute 'Attribute{column}'"):
        ParLoss(SCHEMA)(logits, labels)


def test_wrong_shapes_and_dtypes():
    logits, labels = make_batch()
    loss = ParLoss(SCHEMA)
    with pytest.raises(ValueError, match=r"logits has shape \(7, 4, 4\), expected \(B, 4, 5\)"):
        loss(logits[..., :4], labels)
    with pytest.raises(ValueError, match=r"labels has shape \(6, 4\), expected \(7, 4\)"):
        loss(logits, labels[:6])
    with pytest.raises(TypeError, match="labels has dtype torch.float32, expected int64"):
        loss(logits, labels.float())
    torch.testing.assert_close(loss(logits, labels.int()), loss(logits, labels))


def test_settings_are_json_and_the_default_is_the_papers():
    config = {"kind": "ce_focal", "label_smoothing": 0.1, "focal_gamma": 2.0, "weighting": "balanced"}
    config["priors"] = compute_priors(make_batch(B=50)[1].numpy(), SCHEMA)
    assert repr(ParLoss(SCHEMA, **json.loads(json.dumps(config)))) == repr(ParLoss(SCHEMA, **config))
    logits, labels = make_batch()
    torch.testing.assert_close(ParLoss(SCHEMA)(logits, labels), reference_loss(logits, labels))
    torch.testing.assert_close(ParLoss(SCHEMA.to_list())(logits, labels), reference_loss(logits, labels))
