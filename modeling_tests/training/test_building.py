"""The model of a run: built over a backbone by options, or loaded; and the weights of its loss."""

import json

import numpy as np
import pytest
import torch

from modeling_tests.training_runs import FOCUS, QUICK, run
from vlm_par_hf.data import ParCollator
from vlm_par_hf.training import TrainSettings, train
from vlm_par_hf.training.building import starting_shares


def test_class_weights_come_from_the_training_labels(data, tmp_path):
    result = run(data, tmp_path / "run", max_steps=2, weighting="balanced")
    loss = json.loads((result.output_dir / "config.json").read_text())["loss"]
    labels = np.asarray(data["train"]["labels"])
    known = labels[:, 0] >= 0
    assert loss["weighting"] == "balanced"
    assert loss["priors"][0][1] == pytest.approx((labels[known, 0].sum() + 1) / (known.sum() + 2))


def test_class_weights_by_default(data, tmp_path):
    assert run(data, tmp_path / "run", max_steps=1).model.config.loss["weighting"] == "sqrt"


def test_the_start_is_the_best_constant_answer_for_the_loss():
    priors = [[0.9, 0.1], [0.2, 0.3, 0.5]]
    assert starting_shares({}, priors) == [pytest.approx(one) for one in priors]
    even = starting_shares({"weighting": "balanced"}, priors)
    assert even == [pytest.approx([1 / 2] * 2), pytest.approx([1 / 3] * 3)]
    assert starting_shares({"logit_adjustment": 1.0}, priors) == even
    assert starting_shares({"weighting": "sqrt"}, priors)[0] == pytest.approx([3 / 4, 1 / 4])
    exp = np.array(priors[0]) * np.exp(1 - np.array(priors[0]))
    assert starting_shares({"kind": "weighted_bce"}, priors)[0] == pytest.approx(exp / exp.sum())
    limited = starting_shares({"weighting": "balanced", "max_class_weight": 1.0}, priors)
    assert limited == [pytest.approx(one) for one in priors]


def test_the_papers_choices(data, backbone, tmp_path):
    result = train(
        data, tmp_path / "run", backbone=backbone, model_options={"paper": True}, max_num_patches=9,
        settings=TrainSettings(**{**QUICK, "max_steps": 1}),
    )  # fmt: skip
    assert (result.model.config.alignment, result.model.config.fusion) == ("none", "image_to_text")
    assert result.processor.image_processor.max_num_patches == 9
    assert not result.model.config.loss.get("weighting"), "the paper's loss has no class weights"


def test_going_on_from_a_checkpoint(finished, data, tmp_path):
    result, _ = finished
    more = train(
        data, tmp_path / "more", model=result.output_dir,
        settings=TrainSettings(**{**QUICK, "max_steps": 1, "learning_rate": 1e-9, "fusion_learning_rate": 1e-9}),
    )  # fmt: skip
    batch = ParCollator(result.processor)([data["test"][0]])
    with torch.no_grad():
        torch.testing.assert_close(more.model(**batch).logits, result.model(**batch).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="model_options=.*already has its configuration"):
        train(data, tmp_path / "wrong", model=result.output_dir, model_options={"fusion": "none"})


def test_options_of_another_family_are_refused(data, focus_backbone, tmp_path):
    with pytest.raises(ValueError, match="model_options names 'fusion', which the family 'focus_par' does not have"):
        train(data, tmp_path / "run", family="focus_par", backbone=focus_backbone, model_options={"fusion": "none"})
    with pytest.raises(ValueError, match="family='clear': expected one of vlm_par, focus_par"):
        train(data, tmp_path / "run", family="clear", backbone=focus_backbone)
    with pytest.raises(ValueError, match="FocusParModel .*features cannot be computed once"):
        train(
            data, tmp_path / "run", family="focus_par", backbone=focus_backbone, model_options=FOCUS,
            settings=TrainSettings(**QUICK, precompute_features=True),
        )  # fmt: skip


def test_a_checkpoint_of_another_label_space_goes_on_with_that_of_the_data(tmp_path):
    from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
    from vlm_par_hf.labels.schema import AttributeSchema
    from vlm_par_hf.training.building import build_model

    old = randomize(tiny_model())
    old.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    attributes = tiny_schema().to_list()
    attributes[0] = {**attributes[0], "name": "Cap", "question": "is the person wearing a cap?"}
    schema = AttributeSchema(attributes[::-1])
    model, _ = build_model("vlm_par", "embedded", schema, tmp_path, None, {}, None)
    assert model.config.schema.names == ("Female", "Backpack", "Cap")
    assert model.config.question_input_ids[1] == old.config.question_input_ids[1]
    kept, fresh = model.attribute_heads.classifier_weight, old.attribute_heads.classifier_weight
    assert (kept[:2] == fresh[[2, 1]]).all() and (kept[2] == 0).all()
