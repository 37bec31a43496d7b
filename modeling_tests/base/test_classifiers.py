"""One linear classifier for all attributes: its rows, their logits, and what another label space takes over."""

import pytest
import torch

from modeling_tests.tiny import tiny_schema
from vlm_par_hf.base.classifiers import AttributeClassifier


def build(schema, **options):
    torch.manual_seed(0)
    made = AttributeClassifier(6, schema, **options)
    made.init_parameters()
    return made


def test_scores_stand_where_their_labels_do():
    schema = tiny_schema(kway=True)
    head = build(schema)
    assert head.rows == [1, 1, 1, 4, 3] and list(head.places().values())[3] == slice(3, 7)
    vectors = torch.randn(2, 6)
    scores, logits = head.scores(vectors), head(vectors)
    assert logits.shape == (2, 5, 4) and torch.equal(logits, head.arrange(scores))
    assert torch.equal(logits[:, :3, 1], scores[:, :3]) and (logits[:, :3, 0] == 0).all()
    assert torch.equal(logits[:, 3], scores[:, 3:7]) and torch.equal(logits[:, 4, :3], scores[:, 7:])
    assert (logits[:, :3, 2:] == -1e4).all() and (logits[:, 4, 3] == -1e4).all()
    own = head.scores(vectors[:, None].expand(-1, 10, -1))  # a vector for each row
    torch.testing.assert_close(own, scores)


def test_starting_values():
    schema = tiny_schema()
    assert not build(schema, std=0).weight.any() and build(schema).weight.any()
    assert build(schema, bias=False).bias is None


def test_rows_of_equal_attributes_are_taken():
    old, new = build(tiny_schema(kway=True)), build(tiny_schema(kway=True).subset(["BagSide", "Hat"]))
    old.weight.requires_grad_(False)
    old.double().eval()
    assert new.take_rows(old) == ["BagSide", "Hat"]
    assert torch.equal(new.weight, torch.cat([old.weight[7:], old.weight[:1]])) and new.weight.dtype == torch.float64
    assert not new.weight.requires_grad and new.bias.requires_grad and not new.training


def test_priors():
    head = build(tiny_schema(kway=True))
    priors = [[0.8, 0.2], [0.5, 0.5], [0.0, 1.0], [0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.5]]
    found = head.arrange(head.prior_scores(priors)[None]).softmax(-1)[0]
    assert found[0, 1] == pytest.approx(0.2) and found[3].tolist() == pytest.approx(priors[3])
    assert found[2, 1] > 0.999
    with pytest.raises(ValueError, match=r"priors must have one entry per attribute \(5\), got 1"):
        head.prior_scores([[0.5, 0.5]])
    with pytest.raises(ValueError, match="priors of attribute 'Hat' must be 2 shares between 0 and 1"):
        head.prior_scores([[0.5, 1.5], *priors[1:]])
