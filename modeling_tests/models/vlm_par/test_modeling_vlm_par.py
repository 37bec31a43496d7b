import copy
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from modeling_tests.models.vlm_par.reference import reference_logits
from modeling_tests.tiny import (
    randomize,
    tiny_backbone_config,
    tiny_inputs,
    tiny_model,
    tiny_processor,
    tiny_schema,
    tiny_tokenizer,
)
from vlm_par_hf.base.losses import ParLoss
from vlm_par_hf.models.vlm_par import VlmParConfig, VlmParModel, VlmParProcessor


FUSIONS = ("text_to_image", "image_to_text", "none")


def features(model, batch=5, seed=0):
    """Random frozen features with unequal numbers of patches; what lies at padding must never matter."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.vlm_config.vision_config.hidden_size
    patches = torch.randn(batch, 11, width, generator=generator)
    mask = torch.arange(11)[None] < torch.tensor([11, 1, 7, 4, 10])[:batch, None]
    patches[~mask] = float("nan")
    return {
        "patch_embeds": patches,
        "image_embeds": torch.randn(batch, width, generator=generator),
        "patch_mask": mask,
    }


def some_labels(schema, batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(-1, one.num_labels, (batch,), generator=generator) for one in schema]
    labels = torch.stack(columns, 1)
    return labels.masked_fill(labels < 0, -100)


def trained_model(fusion, alignment="logit", question_tokens="content", kind="kway", **config):
    model = tiny_model(kind, fusion=fusion, alignment=alignment, question_tokens=question_tokens, **config)
    randomize(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    heads = model.attribute_heads
    with torch.no_grad():
        heads.pooled_mean.copy_(torch.randn(heads.width, generator=generator))
        heads.pooled_std.copy_(torch.rand(heads.width, generator=generator) + 0.5)
        if heads.pooled_classifier:
            heads.image_mean.copy_(torch.randn(heads.width, generator=generator))
            heads.image_std.copy_(torch.rand(heads.width, generator=generator) + 0.5)
    return model


# The computation


@pytest.mark.parametrize("question_tokens", ["content", "all"])
@pytest.mark.parametrize("alignment", ["logit", "none"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factored_path_equals_the_equations(fusion, alignment, question_tokens, dtype):
    model = trained_model(fusion, alignment, question_tokens).to(dtype)
    inputs = features(model)
    inputs["patch_embeds"], inputs["image_embeds"] = inputs["patch_embeds"].to(dtype), inputs["image_embeds"].to(dtype)
    labels = some_labels(model.schema)
    if fusion != "none":
        assert len(set(model.question_mask.sum(1).tolist())) > 1 or question_tokens == "all"
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss_function = ParLoss(model.schema)

    out = model(**inputs, labels=labels)
    expected = reference_logits(model, **inputs)
    torch.testing.assert_close(out.logits, expected, rtol=tolerance, atol=tolerance)
    expected_loss = loss_function(expected, labels)
    torch.testing.assert_close(out.loss, expected_loss, rtol=tolerance, atol=tolerance)
    mine = torch.autograd.grad(out.loss, parameters.values())
    theirs = torch.autograd.grad(expected_loss, parameters.values())
    for name, one, other in zip(parameters, mine, theirs):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_of_the_patches_equal_the_equations(fusion):
    model = trained_model(fusion).double()
    inputs = features(model)
    results = []
    for compute in (lambda **x: model(**x).logits, lambda **x: reference_logits(model, **x)):
        patches = inputs["patch_embeds"].double().requires_grad_()
        logits = compute(**{**inputs, "patch_embeds": patches, "image_embeds": inputs["image_embeds"].double()})
        weight = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
        (logits * weight * model.attribute_heads.label_mask).sum().backward()
        results.append(patches.grad)
    mask = inputs["patch_mask"]
    torch.testing.assert_close(results[0][mask], results[1][mask], rtol=1e-9, atol=1e-11)
    assert (results[0][~mask] == 0).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16_is_no_worse_than_the_plain_form(fusion):
    errors, plain_errors = [], []
    for seed in range(4):
        model = trained_model(fusion)
        inputs = features(model, seed=seed)
        # The same bfloat16 weights and features on both sides, so that only the arithmetic differs.
        half = copy.deepcopy(model).to(torch.bfloat16)
        inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
        exact_model = copy.deepcopy(half).double()
        exact_inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        mask = half.attribute_heads.label_mask
        with torch.no_grad():
            exact = exact_model(**exact_inputs).logits[:, mask]
            errors.append((half(**inputs).logits[:, mask] - exact).square().mean())
            plain_errors.append((reference_logits(half, **inputs)[:, mask] - exact).square().mean())
    assert torch.stack(errors).mean() <= torch.stack(plain_errors).mean()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_autocast_stays_close(fusion):
    model = trained_model(fusion)
    inputs = features(model)
    with torch.no_grad():
        exact = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits
    assert logits.dtype == torch.float32
    mask = model.attribute_heads.label_mask
    assert (logits - exact)[:, mask].abs().max() < 0.1 * exact[:, mask].std()


def test_vanishing_variance_is_clamped():
    model = trained_model("image_to_text")
    inputs = features(model)
    inputs["patch_embeds"] = torch.ones_like(inputs["patch_embeds"]) * 1e3  # nothing left after centring
    logits = model(**inputs, labels=some_labels(model.schema))
    logits.loss.backward()
    assert logits.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_no_tensor_of_patches_by_width_per_attribute():
    model = trained_model("image_to_text")
    B, N, A, D = 3, 11, len(model.schema), model.attribute_heads.width
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        model(**features(model, batch=B)).logits.softmax(-1)[..., 0].sum().backward()
    assert (B, N, D) in shapes
    assert not [shape for shape in shapes if set(shape) >= {B, N, A, D}]


# Starting point


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("kind", ["naflex", "fixed", "kway"])
def test_fit_zero_shot_makes_a_fresh_model_the_zero_shot_classifier(kind, fusion):
    model = tiny_model(kind, fusion=fusion)
    assert not model(**tiny_inputs(kind)).logits[:, model.attribute_heads.label_mask].any()
    model.fit_zero_shot()
    processor = tiny_processor(kind)
    inputs = tiny_inputs(kind)
    with torch.no_grad():
        logits = model(**inputs).logits
        for position, attribute in enumerate(model.schema):
            texts = processor(text=list(attribute.prompts), return_tensors="pt")
            expected = model.vlm(**texts, **inputs).logits_per_image
            torch.testing.assert_close(logits[:, position, : attribute.num_labels], expected, rtol=1e-5, atol=1e-5)
            assert (logits[:, position, attribute.num_labels :] == -1e4).all()


def test_fit_zero_shot_calibrates_on_training_images():
    model = tiny_model("kway", loss={"kind": "ce", "label_smoothing": 0.0})
    with torch.no_grad():
        model.vlm.logit_scale.fill_(4.0)  # sure of itself, as a trained backbone is
    model.fit_zero_shot()
    batches = [features(model, seed=seed) for seed in range(40)]
    with torch.no_grad():
        scores = torch.cat([model(**batch).logits for batch in batches])
    # Labels of which the scores know something; the last attribute has one label only.
    generator = torch.Generator().manual_seed(0)
    noisy = scores / scores.std(0) + torch.randn(scores.shape, generator=generator)
    labels = noisy.masked_fill(~model.attribute_heads.label_mask, -torch.inf).argmax(-1)
    labels[:3, :2], labels[:, 4] = -100, 1
    for batch, own in zip(batches, labels.split(5)):
        batch["labels"] = own

    def losses():
        with torch.no_grad():
            logits = torch.cat([model(**{**batch, "labels": None}).logits for batch in batches])
        return [
            F.cross_entropy(logits[:, a, : one.num_labels], labels[:, a]).item() for a, one in enumerate(model.schema)
        ]

    raw = losses()
    model.fit_zero_shot(batches)
    fitted = losses()
    assert all(mine < theirs for mine, theirs in zip(fitted[:4], raw))
    heads = model.attribute_heads
    assert (heads.gate[:4] > 0).all() and (heads.gate[:4] < 1).all()
    assert heads.gate[4] == 1 and not heads.classifier_bias[4].any()
    before = heads.gate.clone()
    pixels = [{**tiny_inputs("kway"), "labels": some_labels(model.schema, 3, seed)} for seed in range(4)]
    model.fit_zero_shot(pixels)  # from pictures as well
    assert not torch.equal(heads.gate, before)


def test_fit_zero_shot_refuses_what_it_cannot_fit():
    with pytest.raises(ValueError, match='alignment is "none"'):
        tiny_model("naflex", alignment="none").fit_zero_shot()
    model = tiny_model("naflex")
    with pytest.raises(ValueError, match=r"no labels \(it has \['image_embeds'"):
        model.fit_zero_shot([features(model)])
    with pytest.raises(ValueError, match="batches is empty"):
        model.fit_zero_shot([])
    for labels, message in (
        ([[0, 1]] * 5, r"labels has shape \(5, 2\), expected"),
        ([[0, 1, 2]] * 5, "holds 2 for attribute 'Female'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit_zero_shot([{**features(model), "labels": torch.tensor(labels)}])
    with torch.no_grad():
        model.attribute_heads.image_classifier_weight[0, 0, 0] = 1
    with pytest.raises(ValueError, match="image_classifier_weight is not 0: this model is trained"):
        model.fit_zero_shot()


def test_fresh_fusion_is_a_no_op():
    pooled = {}
    for fusion in FUSIONS:
        model = tiny_model("naflex", fusion=fusion)
        inputs = features(model)
        pooled[fusion] = model.attribute_heads.apply_constants(model._constants(), **inputs).pooled
    torch.testing.assert_close(pooled["image_to_text"], pooled["none"].expand_as(pooled["image_to_text"]))
    mean = torch.stack([x[m].mean(0) for x, m in zip(inputs["patch_embeds"], inputs["patch_mask"])])
    expected = torch.nn.functional.layer_norm(mean, mean.shape[-1:], eps=1e-6)[:, None]
    torch.testing.assert_close(pooled["text_to_image"], expected.expand(5, 3, 32), rtol=1e-4, atol=1e-4)


def test_paper_configuration():
    config = VlmParConfig.paper(vlm_config=tiny_backbone_config(), attributes=tiny_schema())
    assert (config.alignment, config.fusion, config.num_fusion_heads) == ("none", "image_to_text", 8)
    assert VlmParConfig.paper(vlm_config=tiny_backbone_config(), fusion="none").fusion == "none"
    model = VlmParModel(config)
    model.encode_questions(tiny_processor())
    assert not model(**tiny_inputs()).logits.any()  # a zero classifier and nothing else


def test_init_bias_from_priors():
    model = tiny_model("kway", alignment="none")
    colors = [0.4, 0.3, 0.2, 0.1]
    model.init_bias_from_priors([0.1, [0.75, 0.25], 0.5, colors, [0.2, 0.2, 0.6]])
    with torch.no_grad():
        probabilities = model(**tiny_inputs("kway")).logits.softmax(-1)
    torch.testing.assert_close(probabilities[0, 0, :2], torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(probabilities[1, 1, :2], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(probabilities[2, 3], torch.tensor(colors))
    torch.testing.assert_close(probabilities[0, 4, :3], torch.tensor([0.2, 0.2, 0.6]))
    with pytest.raises(ValueError, match="one entry per attribute"):
        model.init_bias_from_priors([0.5])
    with pytest.raises(ValueError, match="UpperColor.*4 shares"):
        model.init_bias_from_priors([0.1, 0.2, 0.5, [0.5, 0.5], [0.2, 0.2, 0.6]])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fit_pooled_statistics_standardises_and_changes_no_logit(fusion):
    model = trained_model(fusion)
    batches = [features(model, seed=seed) for seed in range(6)]
    with torch.no_grad():
        before = [model(**batch).logits for batch in batches]
        model.train()
        model.fit_pooled_statistics(batches)
        assert model.training
        model.eval()
        after = [model(**batch).logits for batch in batches]
        heads = model.attribute_heads
        pooled = torch.cat([heads.apply_constants(model._constants(), **batch).pooled for batch in batches])
        pooled = (pooled * heads.norm_weight + heads.norm_bias).flatten(0, 1)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    image = torch.cat([batch["image_embeds"] for batch in batches])
    for standard in (
        (pooled - heads.pooled_mean) / heads.pooled_std,
        (image - heads.image_mean) / heads.image_std,
    ):
        torch.testing.assert_close(standard.mean(0), torch.zeros(heads.width), rtol=0, atol=1e-3)
        torch.testing.assert_close(standard.std(0), torch.ones(heads.width), rtol=0, atol=2e-2)
    with pytest.raises(ValueError, match="at least 2 images"):
        model.fit_pooled_statistics([])


# Freezing and optimisation


@pytest.mark.parametrize("kind", ["naflex", "fixed"])
def test_frozen_backbone_is_bit_equal_after_training(kind):
    model = tiny_model(kind, attention_dropout=0.1)
    before = {name: tensor.clone() for name, tensor in model.vlm.state_dict().items()}
    model.train()
    assert model.attribute_heads.training and not any(module.training for module in model.vlm.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)  # given everything, on purpose
    labels = some_labels(model.schema, batch=3)
    for _ in range(3):
        optimizer.zero_grad()
        model(**tiny_inputs(kind), labels=labels).loss.backward()
        optimizer.step()
    after = model.vlm.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.attribute_heads.classifier_weight.any()


@pytest.mark.parametrize(("alignment", "pooled"), [("logit", False), ("none", True), ("none", False)])
def test_unfrozen_means_the_vision_tower_alone(alignment, pooled):
    model = tiny_model("naflex", freeze_backbone=False, alignment=alignment, pooled_classifier=pooled)
    randomize(model)
    model.train()
    assert model.vlm.vision_model.training and not model.vlm.text_model.training
    model(**tiny_inputs(), labels=some_labels(model.schema, batch=3)).loss.backward()
    for name, parameter in model.named_parameters():
        trained = name.startswith(("attribute_heads.", "vlm.vision_model."))
        if alignment == "none" and not pooled and name.startswith("vlm.vision_model.head."):
            trained = False
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name
    model.eval()
    assert not any(module.training for module in model.modules())


def test_parameter_groups_hold_every_trainable_parameter_once():
    for config in ({}, {"freeze_backbone": False}, {"fusion": "none", "alignment": "none"}):
        model = tiny_model("naflex", **config)
        groups = model.parameter_groups(3e-3, 1e-4, weight_decay=0.05)
        ids = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
        heads = model.attribute_heads
        assert rates[id(heads.classifier_weight)] == (3e-3, 0.05)
        assert rates[id(heads.classifier_bias)] == (3e-3, 0.0)
        assert rates[id(heads.image_classifier_weight)] == (3e-3, 0.05)
        assert rates[id(heads.norm_weight)] == (1e-4, 0.0)
        if config.get("fusion") != "none":
            assert rates[id(heads.value)] == (1e-4, 0.05)
            assert rates[id(heads.gate)] == (3e-3, 0.0)
        if "freeze_backbone" in config:
            assert rates[id(model.vlm.vision_model.post_layernorm.weight)] == (1e-5, 0.0)
        torch.optim.AdamW(groups)


def test_the_default_fusion_rate_falls_with_the_width():
    model = tiny_model("naflex")
    rates = {group["name"]: group["lr"] for group in model.parameter_groups(3e-3)}
    assert rates == {"classifier": 3e-3, "fusion": pytest.approx(0.128 / model.attribute_heads.width)}


def test_num_items_in_batch_makes_micro_batches_add_up():
    model = trained_model("text_to_image")
    inputs, labels = features(model, 4), some_labels(model.schema, 4)
    known = (labels != -100).sum()
    whole = model(**inputs, labels=labels).loss
    parts = [
        model(**{k: v[s] for k, v in inputs.items()}, labels=labels[s], num_items_in_batch=known).loss
        for s in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_loss_settings_are_those_of_the_configuration_at_the_time():
    model = trained_model("none")
    inputs, labels = features(model), some_labels(model.schema)
    with torch.no_grad():
        first = model(**inputs, labels=labels)
        torch.testing.assert_close(first.loss, ParLoss(model.schema)(first.logits, labels))
        model.config.loss = {"kind": "ce", "label_smoothing": 0.0, "reduction": "sum"}
        second = model(**inputs, labels=labels)
    expected = ParLoss(model.schema, "ce", label_smoothing=0.0, reduction="sum")(second.logits, labels)
    torch.testing.assert_close(second.loss, expected)
    assert not [name for name in model.state_dict() if "loss" in name]


# Text


def test_question_states_are_those_of_the_text_tower():
    processor, questions = tiny_processor(), tiny_schema().questions
    states = {}
    for tokens in ("content", "all"):
        model = tiny_model("naflex", question_tokens=tokens)
        with torch.no_grad():
            ids = processor(text=list(questions))["input_ids"]
            assert ids.shape == (3, 64)
            expected = model.vlm.text_model(input_ids=ids).last_hidden_state
        for row, question in enumerate(questions):
            length = len(processor.encode_texts([question])[0])
            kept = [*range(length), 63] if tokens == "content" else list(range(64))
            assert model.question_mask[row].sum() == len(kept)
            found = model.question_states[row][model.question_mask[row]]
            torch.testing.assert_close(found, expected[row, kept], rtol=1e-5, atol=1e-5)
        states[tokens] = model.question_states
    assert states["all"].shape[1] == 64 and states["content"].shape[1] < 20


def test_a_full_question_has_no_extra_position():
    schema = tiny_schema().to_list()
    schema[0]["question"] = " ".join(["hat"] * 100)
    model = VlmParModel(VlmParConfig(vlm_config=tiny_backbone_config(), attributes=schema))
    model.encode_questions(tiny_processor())
    assert model.question_mask.sum(1).tolist()[0] == 64


def test_forward_encodes_from_the_configured_ids_and_raises_without():
    encoded = trained_model("image_to_text")
    config = VlmParConfig.from_dict(encoded.config.to_dict())
    fresh = VlmParModel(config)
    fresh.load_state_dict(
        {k: v for k, v in encoded.state_dict().items() if not k.startswith(("question", "prompt"))}, strict=False
    )
    inputs = features(fresh)
    torch.testing.assert_close(fresh.eval()(**inputs).logits, encoded(**inputs).logits)
    with pytest.raises(ValueError, match="never tokenized"):
        tiny_model("naflex", encode=False)(**tiny_inputs())
    no_text_needed = tiny_model("naflex", encode=False, fusion="none", alignment="none")
    assert no_text_needed(**tiny_inputs()).logits.shape == (3, 3, 2)


def test_a_model_saved_before_its_first_answer_has_its_questions_encoded(tmp_path):
    model = VlmParModel(VlmParConfig.from_dict(tiny_model("naflex").config.to_dict()))
    assert not model.question_mask.any()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["question_mask"].any() and saved["prompt_embeds"].any()
    torch.testing.assert_close(saved["question_states"], model.question_states, rtol=0, atol=0)


def test_an_error_that_is_not_about_the_weights_is_left_as_it_is(tmp_path):
    for model in (tiny_model("naflex"), tiny_model("naflex").fold()):
        model.save_pretrained(tmp_path)
        with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
            type(model).from_pretrained(tmp_path)


def test_folded_text_is_never_stale():
    model = trained_model("text_to_image")
    inputs = features(model)

    def logits():
        with torch.no_grad():
            return model(**inputs).logits

    def fresh_logits():
        model._kept.clear()
        return logits()

    first = logits()
    assert model._kept.values and torch.equal(logits(), first)
    with torch.no_grad():
        model.attribute_heads.key.mul_(3)  # in place
    changed = logits()
    assert not torch.allclose(changed, first) and torch.equal(changed, fresh_logits())
    model.load_state_dict(trained_model("text_to_image").state_dict())
    assert torch.equal(logits(), first)
    model.train()
    model.attribute_heads.key.data.mul_(2)  # counts no version; training clears what was kept
    model.eval()
    assert torch.equal(logits(), fresh_logits()) and not torch.allclose(logits(), first)
    model.attribute_heads.key.data.div_(2)
    model.double().float()
    torch.testing.assert_close(logits(), first)
    schema = model.schema
    model.schema = type(schema)([{**one, "question": "where is it?"} for one in schema.to_list()])
    model.encode_questions(tiny_processor())
    assert not torch.allclose(logits(), first) and torch.equal(logits(), fresh_logits())
    with torch.inference_mode():
        inference = model(**inputs).logits
    torch.testing.assert_close(inference, logits())
    model(**inputs, labels=some_labels(schema)).loss.backward()  # gradients after all that
    assert model.attribute_heads.query.grad.any()


# Attention and evidence


@pytest.mark.parametrize("fusion", FUSIONS)
def test_attentions_and_relevance(fusion):
    model = trained_model(fusion)
    inputs = features(model)
    A, T = len(model.schema), model.question_mask.shape[1] if fusion != "none" else 0
    if fusion == "none":
        with pytest.raises(ValueError, match="config.fusion is 'none'"):
            model(**inputs, output_attentions=True)
    else:
        out = model(**inputs, output_attentions=True)
        shape = {"text_to_image": (5, A, 4, 11), "image_to_text": (5, A, 4, 11, T)}[fusion]
        assert tuple(out.attentions.shape) == shape
        torch.testing.assert_close(out.attentions.sum(-1), torch.ones(out.attentions.shape[:-1]))
    assert model(**inputs).attentions is None
    if fusion == "image_to_text":
        assert not out.attentions[:, ~model.question_mask[:, None, None].expand(A, 4, 11, T)].any()
    relevance = model.explain(**inputs)
    assert relevance.shape == (5, A, 11) and not relevance.isnan().any()
    padding = ~inputs["patch_mask"][:, None].expand_as(relevance)
    assert not relevance[padding].any()
    if fusion == "text_to_image":
        torch.testing.assert_close(relevance, out.attentions.mean(2))
    one = model.explain(attribute="UpperColor", **inputs)
    assert torch.equal(one, relevance[:, 3:4])
    assert torch.equal(model.explain(attribute=[2, "Hat"], **inputs), relevance[:, [2, 0]])
    with pytest.raises(KeyError, match="UpperColor"):
        model.explain(attribute="UpperColour", **inputs)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_evidence_of_the_patches_sums_to_the_logit(fusion):
    model = trained_model(fusion, alignment="none", pooled_classifier=False).double()
    inputs = features(model)
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    evidence = model.patch_evidence(**inputs)
    assert evidence.shape == (5, len(model.schema), 11, 4)
    heads = model.attribute_heads
    shift = (heads.norm_bias - heads.pooled_mean) / heads.pooled_std
    constant = torch.einsum("ad,adc->ac", shift, heads.classifier_weight) + heads.classifier_bias
    logits = model(**inputs).logits
    torch.testing.assert_close((evidence.sum(2) + constant)[:, heads.label_mask], logits[:, heads.label_mask])


# Inputs


def test_precomputed_features_equal_pixels():
    for kind in ("naflex", "fixed"):
        model = randomize(tiny_model(kind))
        inputs = tiny_inputs(kind)
        with torch.no_grad():
            patches, pooled, mask = model.get_image_features(**inputs)
            assert mask.dtype == torch.bool and patches.shape[:2] == mask.shape
            expected = model(**inputs).logits
            found = model(patch_embeds=patches, image_embeds=pooled, patch_mask=mask).logits
            assert torch.equal(found, expected)
            halves = model(patch_embeds=patches.half(), image_embeds=pooled.half(), patch_mask=mask).logits
        torch.testing.assert_close(halves, expected, rtol=1e-2, atol=1e-2)


def test_fixed_resolution_takes_another_size():
    model = tiny_model("fixed")
    assert model(pixel_values=torch.randn(2, 3, 32, 16)).logits.isfinite().all()


def test_wrong_inputs_are_named():
    model = tiny_model("naflex")
    inputs = tiny_inputs()
    with pytest.raises(ValueError, match="either pixel_values or patch_embeds, got neither"):
        model()
    with pytest.raises(ValueError, match="got both"):
        model(**inputs, patch_embeds=torch.zeros(3, 12, 32))
    with pytest.raises(ValueError, match="image_embeds is None"):
        model(patch_embeds=torch.zeros(3, 12, 32))
    with pytest.raises(ValueError, match="spatial_shapes is None"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="pixel_values must have shape"):
        model(**tiny_inputs("fixed"))
    with pytest.raises(ValueError, match="attributes is None"):
        VlmParModel(VlmParConfig(vlm_config=tiny_backbone_config()))


# Saved forms


@pytest.fixture
def backbone_folder(tmp_path):
    """A plain SigLIP 2 checkpoint with its tokenizer and image processor, as the Hub has them."""
    model = tiny_model("naflex")
    folder = tmp_path / "backbone"
    model.vlm.save_pretrained(folder)
    processor = tiny_processor()
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def test_from_backbone(backbone_folder, caplog):
    model = VlmParModel.from_backbone(backbone_folder, attributes=tiny_schema(kway=True), num_fusion_heads=4)
    expected = tiny_model("kway")
    assert not model.training and model.config.backbone_name == str(backbone_folder)
    with torch.no_grad():
        torch.testing.assert_close(model(**tiny_inputs()).logits, expected(**tiny_inputs()).logits)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and name.startswith("vlm.")]
    half = VlmParModel.from_backbone(
        str(backbone_folder), attributes=tiny_schema(), tokenizer=tiny_tokenizer(), dtype=torch.bfloat16
    )
    assert half.dtype == half.prompt_embeds.dtype == torch.bfloat16
    assert half(**tiny_inputs()).logits.isfinite().all()


def heads_model(backbone_folder, **config):
    model = VlmParModel.from_backbone(
        backbone_folder, attributes=tiny_schema(), num_fusion_heads=4, save_backbone=False, **config
    )
    return randomize(model)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_heads_alone_come_back(backbone_folder, tmp_path, fusion):
    model = heads_model(backbone_folder, fusion=fusion)
    folder = tmp_path / "heads"
    model.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size < (backbone_folder / "model.safetensors").stat().st_size
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("vlm.")]  # noqa: SIM118
    inputs = tiny_inputs()
    for loaded in (VlmParModel.from_pretrained(folder), AutoModel.from_pretrained(str(folder))):
        assert type(loaded) is VlmParModel and not loaded.training
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
        assert not any(p.requires_grad for p in loaded.vlm.parameters())
        assert loaded.name_or_path == str(folder)
    assert AutoModel.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "model.safetensors").stat().st_size == (folder / "model.safetensors").stat().st_size
    loaded.config.save_backbone = True
    loaded.save_pretrained(tmp_path / "full")
    full = AutoModel.from_pretrained(tmp_path / "full")
    with torch.no_grad():
        torch.testing.assert_close(full(**inputs).logits, model(**inputs).logits)


def test_trainer_saves_resumes_and_restores_heads_alone(backbone_folder, tmp_path, caplog):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            inputs = {name: value[index] for name, value in tiny_inputs(batch=16).items()}
            return {**inputs, "labels": torch.tensor([index % 2, index // 2 % 2, -100 if index % 3 else 1])}

    def train(model, resume=None):
        arguments = TrainingArguments(
            tmp_path / "run",
            num_train_epochs=3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            seed=1,
        )
        trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trainer = train(heads_model(backbone_folder))
    model = trainer.model
    first, *_, last = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert (last / "model.safetensors").stat().st_size < (backbone_folder / "model.safetensors").stat().st_size
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert losses[-1] < losses[0] and model.config.keys_to_ignore_at_inference
    predictions = trainer.predict(Rows()).predictions
    assert predictions.shape == (16, 3, 2)
    best = AutoModel.from_pretrained(trainer.state.best_model_checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(best(**tiny_inputs()).logits, model.eval()(**tiny_inputs()).logits)
    resumed = train(heads_model(backbone_folder), resume=str(first)).model
    for (name, mine), theirs in zip(model.state_dict().items(), resumed.state_dict().values()):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: name + text)
    assert "missing keys" not in caplog.text


def test_heads_find_a_sharded_backbone_and_refuse_another(backbone_folder, tmp_path):
    folder = tmp_path / "heads"
    model = heads_model(backbone_folder)
    model.save_pretrained(folder)
    (backbone_folder / "model.safetensors").unlink()
    model.vlm.save_pretrained(backbone_folder, max_shard_size="20KB")
    assert (backbone_folder / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder)(**tiny_inputs()).logits
        torch.testing.assert_close(found, model(**tiny_inputs()).logits)
        model.vlm.vision_model.post_layernorm.weight[0] += 1e-3
    model.vlm.save_pretrained(backbone_folder, max_shard_size="20KB")
    with pytest.raises(ValueError, match="backbone_hash"):
        AutoModel.from_pretrained(folder)


def test_heads_alone_are_refused_without_a_way_back(backbone_folder, tmp_path):
    with pytest.raises(ValueError, match="backbone_name is None"):
        tiny_model("naflex", save_backbone=False).save_pretrained(tmp_path / "x")
    model = heads_model(backbone_folder, freeze_backbone=False)
    with pytest.raises(ValueError, match="vision tower would be lost"):
        model.save_pretrained(tmp_path / "x")
    model = heads_model(backbone_folder)
    model.vlm.vision_model.requires_grad_(True)
    with pytest.raises(ValueError, match="vision tower would be lost"):
        model.save_pretrained(tmp_path / "x")
    model.vlm.requires_grad_(False)
    model.save_pretrained(tmp_path / "x")
    model.half().float().save_pretrained(tmp_path / "y")  # rounded, but the same backbone
    model.vlm.vision_model.post_layernorm.weight.data[3] += 0.1  # as adapters that were merged
    with pytest.raises(ValueError, match=r"not that of .*post_layernorm.weight.* differs"):
        model.save_pretrained(tmp_path / "z")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "backbone_hash": None}))
    with pytest.raises(ValueError, match="has no backbone_hash"):
        AutoModel.from_pretrained(tmp_path / "x")


def test_text_adapters_are_warned_about(caplog):
    model = tiny_model("naflex")
    model.vlm.text_model.encoder.layers[0].requires_grad_(True)
    model.train()
    assert "text tower require gradients and will get none" in caplog.text


def test_a_missing_or_foreign_file_is_named(backbone_folder, tmp_path):
    folder = tmp_path / "model"
    tiny_model("naflex").save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "kept")
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes((backbone_folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="model.safetensors lacks .* attribute_heads"):
        AutoModel.from_pretrained(folder)
    tiny_model("kway").save_pretrained(tmp_path / "kway")
    (folder / "model.safetensors").write_bytes((tmp_path / "kway" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="attribute_heads"):
        AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(Exception, match=r"(?i)safetensors|header"):
        AutoModel.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match="config.json"):
        VlmParModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="from_backbone"):
        VlmParModel.from_pretrained(backbone_folder)
    heads = tmp_path / "heads"
    heads_model(backbone_folder).save_pretrained(heads)
    (heads / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(heads)
    (backbone_folder / "config.json").unlink()
    with pytest.raises(OSError):
        AutoModel.from_pretrained(heads)


def test_configuration_overrides_at_load(tmp_path):
    tiny_model("naflex").save_pretrained(tmp_path)
    assert VlmParModel.from_pretrained(tmp_path, attention_dropout=0.3).attribute_heads.dropout == 0.3
    model, info = VlmParModel.from_pretrained(tmp_path, output_loading_info=True, freeze_backbone=False)
    assert not info["missing_keys"] and not model.config.freeze_backbone
    assert any(p.requires_grad for p in model.vlm.vision_model.parameters())


def test_a_checkpoint_saved_before_the_pooled_classifier_answers_as_before(tmp_path):
    model = trained_model("text_to_image", pooled_classifier=False)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["pooled_classifier"] is False  # a configuration always says so
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in saved.items() if k != "pooled_classifier"}))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.pooled_classifier is False and not hasattr(loaded.attribute_heads, "image_mean")
    inputs = features(model)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    folded = loaded.fold().config.to_dict()
    del folded["pooled_classifier"]
    assert AutoConfig.for_model(**folded).pooled_classifier is False
    with pytest.raises(ValueError, match="pooled_classifier=True is not what the weights in .* were trained with"):
        AutoModel.from_pretrained(tmp_path, pooled_classifier=True)
    new = trained_model("text_to_image")
    new.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).pooled_classifier is True
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(tmp_path)(**inputs).logits, new(**inputs).logits)


# Learnable vectors in the questions


def test_question_prompts_go_through_the_text_tower_with_gradients(backbone_folder):
    settings = {"attributes": tiny_schema(), "num_fusion_heads": 4, "fusion": "image_to_text"}
    model = VlmParModel.from_backbone(backbone_folder, num_question_prompts=4, **settings)
    plain = VlmParModel.from_backbone(backbone_folder, question_tokens="all", **settings)
    text, positions = model.vlm.text_model, model._kept_positions(len(model.config.question_input_ids[0]))
    assert positions[-5:] == [59, 60, 61, 62, 63] and "question_states" not in model.state_dict()
    states = model._read_questions()
    # Fresh: they are padding, so the states are those of the backbone.
    torch.testing.assert_close(states[0][model.question_mask[0]], plain.question_states[0][positions])
    randomize(model)

    def replace(module, inputs, output):
        return torch.cat([output[:, :59], model.question_prompts, output[:, 63:]], 1)

    hook = text.embeddings.token_embedding.register_forward_hook(replace)
    padded = torch.tensor([one + [0] * (64 - len(one)) for one in model.config.question_input_ids])
    expected = text(input_ids=padded).last_hidden_state
    hook.remove()
    found = model._read_questions()
    torch.testing.assert_close(found[0][model.question_mask[0]], expected[0][positions], rtol=1e-5, atol=1e-5)
    inputs = features(model)
    torch.testing.assert_close(model(**inputs).logits, reference_logits(model, **inputs), rtol=1e-5, atol=1e-5)
    model(**inputs, labels=some_labels(model.schema)).loss.backward()
    assert model.question_prompts.grad.flatten(1).any(1).all()
    assert not any(parameter.grad is not None for parameter in model.vlm.parameters())
    groups = {id(p): group for group in model.parameter_groups(3e-3) for p in group["params"]}
    assert groups[id(model.question_prompts)]["lr"] == 3e-3 and not groups[id(model.question_prompts)]["weight_decay"]


@pytest.mark.parametrize("fusion", ["text_to_image", "image_to_text"])
def test_question_prompts_are_never_stale_and_are_saved_folded_and_exchanged(backbone_folder, tmp_path, fusion):
    model = heads_model(backbone_folder, num_question_prompts=2, fusion=fusion)
    inputs = features(model)

    def logits(one=model):
        with torch.no_grad():
            return one(**inputs).logits

    first, start = logits(), copy.deepcopy(model.state_dict())
    assert torch.equal(logits(), first)
    model.question_prompts.data.mul_(3)
    assert not torch.allclose(logits(), first)
    torch.testing.assert_close(logits(model.fold()), logits(), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModel.from_pretrained(tmp_path)), logits())
    new = {"name": "Scarf", "question": "a scarf?", "prompts": ["a person", "a person with a scarf"]}
    schema = type(model.schema)([new, model.schema.to_list()[1]])
    other = AutoModel.from_pretrained(tmp_path, attributes=schema)
    assert other.question_prompts.shape == (2, 2, 24) and other.question_prompts.requires_grad
    torch.testing.assert_close(logits(other)[:, 1], logits()[:, 1], rtol=1e-5, atol=1e-5)
    model.load_state_dict(start)
    torch.testing.assert_close(logits(), first)


# Real configurations

CONFIGS = {
    "siglip2-base-patch16-naflex": True,
    "siglip2-base-patch16-224": True,
    "siglip-base-patch16-224": True,
    "siglip2-so400m-patch14-384": False,  # on the meta device: 1.1 billion parameters
}


def checkpoint_config(name):
    if not os.environ.get("PAR_DATA"):
        pytest.skip("PAR_DATA is not set: needs its checkpoint_configs folder")
    return Path(os.environ["PAR_DATA"]) / "checkpoint_configs" / name


@pytest.mark.parametrize("name", CONFIGS)
def test_real_configurations_build_and_run_on_meta(name):
    vlm_config = AutoConfig.from_pretrained(checkpoint_config(name))
    ids = [[5, 6, 7, 1]] * 3
    config = VlmParConfig(
        vlm_config=vlm_config, attributes=tiny_schema(), question_input_ids=ids, prompt_input_ids=[ids[:2]] * 3
    )
    with torch.device("meta"):
        model = VlmParModel(config).eval()
        width = vlm_config.vision_config.hidden_size
        out = model(patch_embeds=torch.empty(2, 729, width), image_embeds=torch.empty(2, width))
        if vlm_config.model_type == "siglip":
            size = vlm_config.vision_config.image_size
            assert model(pixel_values=torch.empty(2, 3, size, size)).image_embeds.shape == (2, width)
    assert out.logits.shape == (2, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, runs in CONFIGS.items() if runs])
def test_real_configurations_at_full_size(name, tmp_path):
    folder = checkpoint_config(name)
    vlm_config = AutoConfig.from_pretrained(folder)
    model = VlmParModel(VlmParConfig(vlm_config=vlm_config, attributes=tiny_schema().subset(["Hat"])))
    from transformers import AutoImageProcessor

    processor = VlmParProcessor(AutoImageProcessor.from_pretrained(folder, backend="pil"), tiny_tokenizer())
    model.encode_questions(processor)
    randomize(model.eval(), scale=0.05)
    from PIL import Image

    inputs = processor(images=[Image.new("RGB", (128, 256), (90, 20, 60)), Image.new("L", (70, 200), 30)])
    with torch.no_grad():
        logits = model(**inputs).logits
        assert logits.shape == (2, 1, 2) and logits.isfinite().all()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(**inputs).logits, logits, rtol=1e-5, atol=1e-5)


def test_other_backbones_are_refused_by_name():
    with pytest.raises(ValueError, match="siglip or siglip2.*'clip'"):
        VlmParConfig(vlm_config=AutoConfig.from_pretrained(checkpoint_config("clip-vit-base-patch16")))


# Configuration


def test_configuration_round_trip(tmp_path):
    config = tiny_model("kway", loss={"kind": "ce"}).config
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is VlmParConfig and loaded.schema == config.schema
    assert loaded.loss == {"kind": "ce"} and loaded.question_input_ids == config.question_input_ids
    for one in (config, loaded):
        assert one.id2label == {0: "Hat", 1: "Backpack", 2: "Female", 3: "UpperColor", 4: "BagSide"}
        assert one.label2id == {"Hat": 0, "Backpack": 1, "Female": 2, "UpperColor": 3, "BagSide": 4}
    assert json.loads((tmp_path / "config.json").read_text())["attributes"] == config.schema.to_list()


def test_a_configuration_warns_of_nothing(caplog, monkeypatch):
    warning = logging.getLogger("transformers.configuration_utils")
    monkeypatch.setattr(warning, "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    transformers_logging.warning_once.cache_clear()
    VlmParConfig(attributes=tiny_schema())
    VlmParConfig(attributes=tiny_schema(), vlm_config=tiny_backbone_config())
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "both"}, "fusion must be one of .*'both'"),
        ({"alignment": "cosine"}, "alignment must be one of .*'cosine'"),
        ({"question_tokens": 3}, "question_tokens"),
        ({"pooled_classifier": "yes"}, "pooled_classifier"),
        ({"num_question_prompts": -1}, "num_question_prompts must be a whole number from 0 to 4,096, got -1"),
        ({"num_question_prompts": 63}, "num_question_prompts must leave room for a question in 64 positions, got 63"),
        (
            {"num_question_prompts": 4, "fusion": "none"},
            'num_question_prompts is 4, but fusion="none" asks no question',
        ),
        ({"num_fusion_heads": 5}, "num_fusion_heads must divide .* 32, got 5"),
        ({"attention_dropout": 1.0}, "attention_dropout must lie in"),
        ({"attributes": []}, "at least one attribute"),
        ({"vlm_config": {"hidden_size": 3}}, "model_type None"),
    ],
)
def test_bad_configurations_are_named(settings, message):
    with pytest.raises(Exception, match=message):
        VlmParConfig(**{"vlm_config": tiny_backbone_config(), "attributes": tiny_schema(), **settings})
