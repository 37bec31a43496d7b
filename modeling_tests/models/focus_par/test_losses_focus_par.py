import pytest
import torch

from modeling_tests.models.focus_par.reference import (
    reference_many_to_many,
    reference_region_loss,
    reference_similarity_loss,
)
from modeling_tests.tiny import tiny_schema
from vlm_par_hf.base.losses import compute_class_weights
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.models.focus_par.losses_focus_par import (
    FocusLoss,
    check_loss_settings,
    many_to_many_loss,
    region_loss,
    similarity_loss,
)


LABELS = torch.tensor([[1, 0, -100, 3, 1], [0, 0, 1, -100, 2], [1, 1, 1, 0, 0], [-100] * 5])
PRIORS = [[0.9, 0.1], [0.5, 0.5], [0.7, 0.3], [0.4, 0.3, 0.2, 0.1], [0.2, 0.2, 0.6]]


def example(seed=0, K=3, H=2):
    """Scores `(4, 13)`, maps `(4, 13, K)` and tokens `(4, K, 6)` in float64 that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, 13, generator=generator, dtype=torch.float64) * 4
    maps = torch.randn(4, 13, K, generator=generator, dtype=torch.float64).softmax(-1)
    tokens = torch.randn(4, K, 6, generator=generator, dtype=torch.float64)
    return tuple(one.requires_grad_() for one in (scores, maps, tokens))


def state_of(schema, labels):
    return [
        [
            0 if label == -100 else 1 if label == k else -1
            for one, label in zip(schema, row)
            for k in range(one.num_labels)
        ]
        for row in labels.tolist()
    ]


def equal(mine, theirs, inputs):
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    gradients = zip(*(torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (mine, theirs)))
    for one, other in gradients:
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_similarity_loss_equals_the_equation():
    tokens = example()[2]
    equal(similarity_loss(tokens), reference_similarity_loss(tokens), [tokens])
    orthogonal = torch.eye(3)[None]
    assert similarity_loss(orthogonal) < 1e-5 < similarity_loss(torch.ones(1, 3, 3))


def test_region_loss_equals_the_equation():
    maps = example()[1]
    names = ["head", "head", None, "upper", "upper", "head", None, "foot", "foot", "foot", "upper", "head", "head"]
    numbers = torch.tensor([["head", "upper", "foot"].index(name) if name else -1 for name in names])
    equal(region_loss(maps, numbers), reference_region_loss(maps, names), [maps])
    assert region_loss(maps, torch.full((13,), -1)) == 0
    apart = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert region_loss(apart, torch.tensor([0, 0, 1])) < 1e-5 < region_loss(apart, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("candidates", ["attribute", "all"])
def test_many_to_many_equals_the_loop(candidates):
    schema, scores = tiny_schema(kway=True), example()[0]
    state = state_of(schema, LABELS)
    positive, negative = torch.tensor(state) == 1, torch.tensor(state) == -1
    attribute = [a for a, one in enumerate(schema) for _ in one.labels]
    group = torch.tensor(attribute) if candidates == "attribute" else None
    expected = reference_many_to_many(scores, state, attribute if candidates == "attribute" else [0] * 13)
    equal(many_to_many_loss(scores, positive, negative, group), expected, [scores])
    weight = torch.rand(4, 13, dtype=torch.float64)
    expected = reference_many_to_many(scores, state, attribute if candidates == "attribute" else [0] * 13, weight)
    equal(many_to_many_loss(scores, positive, negative, group, weight), expected, [scores])


def test_text_to_picture_is_the_transposed_loss():
    scores = example()[0]
    state = state_of(tiny_schema(kway=True), LABELS)
    positive, negative = torch.tensor(state) == 1, torch.tensor(state) == -1
    columns = [list(column) for column in zip(*state)]
    equal(
        many_to_many_loss(scores.mT, positive.mT, negative.mT),
        reference_many_to_many(scores.mT, columns, [0] * 4),
        [scores],
    )


def test_far_apart_groups_do_not_hide_each_other():
    """The sums of exponentials of one group must survive beside another whose scores are far higher."""
    scores = torch.tensor([[500.0, 499.0, -300.0, -301.0]], requires_grad=True)
    state = torch.tensor([[1, -1, 1, -1]])
    loss = many_to_many_loss(scores, state == 1, state == -1, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(loss, torch.nn.functional.softplus(torch.tensor(-1.0)))
    loss.backward()
    assert scores.grad.isfinite().all()


def test_nothing_known_gives_zero_with_finite_gradients():
    scores, maps, tokens = example()
    loss = FocusLoss(tiny_schema(kway=True), sim=0, racl=0)(scores, maps, tokens, torch.full((4, 5), -100))
    assert loss == 0
    loss.backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("off", ["sim", "racl", "v2t", "t2v", None])
def test_the_sum_of_four_each_of_which_can_be_left_out(off):
    schema = tiny_schema(kway=True)
    scores, maps, tokens = example()
    state = state_of(schema, LABELS)
    attribute = [a for a, one in enumerate(schema) for _ in one.labels]
    regions = [one.region for one in schema for _ in one.labels]
    columns = [list(column) for column in zip(*state)]
    parts = {
        "sim": 0.5 * reference_similarity_loss(tokens),
        "racl": 2.0 * reference_region_loss(maps, regions),
        "v2t": 1.0 * reference_many_to_many(scores, state, attribute),
        "t2v": 3.0 * reference_many_to_many(scores.mT, columns, [0] * 4),
    }
    weights = {"sim": 0.5, "racl": 2.0, "v2t": 1.0, "t2v": 3.0} | ({off: 0.0} if off else {})
    found = FocusLoss(schema, **weights)(scores, maps, tokens, LABELS)
    expected = sum(value for name, value in parts.items() if name != off)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_class_weights_are_those_of_the_package():
    schema, scores = tiny_schema(kway=True), example()[0]
    weights = [w for row in compute_class_weights(PRIORS, "sqrt") for w in row]
    loss = FocusLoss(schema, sim=0, racl=0, t2v=0, weighting="sqrt", priors=PRIORS)
    attribute = [a for a, one in enumerate(schema) for _ in one.labels]
    expected = reference_many_to_many(scores, state_of(schema, LABELS), attribute, [weights] * 4)
    torch.testing.assert_close(loss(scores, None, None, LABELS).double(), expected, rtol=1e-6, atol=1e-7)


def test_attributes_without_a_region_take_no_part_in_the_region_loss():
    schema = AttributeSchema([{**one.to_dict(), "region": None} for one in tiny_schema()])
    scores, maps, tokens = example()
    loss = FocusLoss(schema, sim=0, v2t=0, t2v=0)
    assert loss(scores[:, :6], maps[:, :6], tokens, LABELS[:, :3]) == 0


def test_wrong_settings_and_labels_are_named():
    with pytest.raises(ValueError, match="loss: unknown setting 'logit_adjustment', expected some of sim, racl"):
        check_loss_settings({"logit_adjustment": 1.0})
    with pytest.raises(ValueError, match=r"loss: racl=-1, expected a weight of 0 or more"):
        FocusLoss(tiny_schema(), racl=-1)
    with pytest.raises(ValueError, match=r"loss: candidates='group', expected one of \('attribute', 'all'\)"):
        FocusLoss(tiny_schema(), candidates="group")
    with pytest.raises(ValueError, match="weighting='sqrt' needs priors"):
        FocusLoss(tiny_schema(), weighting="sqrt")
    scores, maps, tokens = example()
    loss = FocusLoss(tiny_schema(kway=True))
    with pytest.raises(ValueError, match=r"labels has shape \(4, 4\), expected \(4, 5\)"):
        loss(scores, maps, tokens, LABELS[:, :4])
    with pytest.raises(
        ValueError, match=r"labels holds 4 for attribute 'UpperColor' of row 0, expected 0 to 3 \(black"
    ):
        loss(scores, maps, tokens, torch.full((4, 5), 4).clamp(max=torch.tensor([1, 1, 1, 4, 2])))
