import copy
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_tests.models.focus_par.reference import reference_mix_tokens, reference_scores
from modeling_tests.tiny import (
    randomize,
    tiny_backbone_config,
    tiny_focus_model,
    tiny_focus_processor,
    tiny_inputs,
    tiny_schema,
)
from vlm_par_hf.base.decisions import fit_decisions, transfer_decisions
from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.calibration import fit
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel
from vlm_par_hf.models.focus_par.mix_tokens_focus_par import patch_regions
from vlm_par_hf.models.focus_par.modeling_focus_par import AttributeGuidedExtraction


KINDS = ("naflex", "fixed", "clip")
LABELS = torch.tensor([[1, 0, -100], [0, 0, 1], [1, 1, 1]])


def inputs_for(kind, batch=3, seed=0):
    return tiny_inputs("fixed" if kind == "clip" else kind, batch, seed)


def trained_model(kind="naflex", **config):
    return randomize(tiny_focus_model(kind, **config), seed=3)


def decisions_of(schema, gains, offsets):
    return Decisions(
        {one.name: AttributeDecision(gain, tuple(offset)) for one, gain, offset in zip(schema, gains, offsets)}
    )


# The computation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [{}, {"num_regions": 3, "num_local_tokens": 5}, {"num_local_tokens": 0}])
def test_scores_equal_the_equations(kind, config):
    """One masked sequence, people and texts in loops: forward and gradients, in float64."""
    model = trained_model(kind, **config).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs_for(kind).items()}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weight = None
    results = []
    for compute in ("mine", "reference"):
        texts = model._own_texts()
        if compute == "mine":
            seen = model._encode_pictures(**inputs)
            tokens, (scores, attention) = seen.tokens, model._score(texts, seen)
            maps = attention.mean(1)
        else:
            tokens = reference_mix_tokens(model, inputs)
            scores, maps = reference_scores(model, texts.embeds, tokens)
        weight = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
        gradients = torch.autograd.grad((scores * weight).sum() + maps.square().sum(), parameters.values())
        results.append((tokens, scores, maps, *gradients))
    for name, mine, theirs in zip(("tokens", "scores", "maps", *parameters), *results):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [True, False])
def test_one_sequence_and_tokens_alone_are_the_same(kind, frozen):
    """What runs without gradients or with a trained tower, and what trains the tokens of a frozen one."""
    model = trained_model(kind, freeze_backbone=frozen).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs_for(kind).items()}
    alone = model._encode_pictures(**inputs, output_maps=True)
    with torch.set_grad_enabled(not frozen):
        together = model._encode_pictures(**inputs)
    for mine, theirs in zip(alone[:4], together):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    tokens, _, image_embeds, patch_mask, maps = alone
    assert tokens.requires_grad and image_embeds.requires_grad != frozen
    assert maps.shape == (3, len(model.mix_tokens), patch_mask.shape[1])


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("tokens", [2, 40])
def test_what_texts_find_is_compared_alike_with_few_tokens_and_many(heads, tokens):
    """Few: by products of the parts; many: by the vectors themselves; both against the plain form."""
    torch.manual_seed(0)
    block = AttributeGuidedExtraction(32, heads, dropout=0.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    texts, states = torch.randn(5, 32, dtype=torch.float64), torch.randn(3, tokens, 32, dtype=torch.float64)
    mask = torch.arange(tokens) < torch.tensor([[tokens], [1], [2]])
    cosine, attention = block(block.ask(texts), texts, states, mask)
    assert (attention.permute(0, 3, 1, 2)[~mask] == 0).all()
    values = (states @ block.value).unflatten(-1, (heads, -1)).transpose(1, 2)
    found = (attention @ values).transpose(1, 2).flatten(2) @ block.output
    torch.testing.assert_close(cosine, torch.cosine_similarity(found, texts[None], dim=-1))


@pytest.mark.parametrize("tokens", [{}, {"num_global_tokens": 0, "num_local_tokens": 0, "num_attention_heads": 8}])
def test_bfloat16_autocast_is_near(tokens):
    """Of a model that is trained, with few tokens and with texts that look at all patches."""
    model, inputs = trained_model("fixed", **tokens), inputs_for("fixed")
    exact = model(**inputs, labels=labels_for(model))
    with torch.autocast("cpu", torch.bfloat16):
        near = model(**inputs, labels=labels_for(model))
    near.loss.backward()
    assert near.logits.dtype == torch.float32 and model.extraction.output.grad.abs().max() > 0
    torch.testing.assert_close(near.logits[exact.logits > -1e3], exact.logits[exact.logits > -1e3], rtol=0.1, atol=0.5)


def test_an_answer_does_not_remember_queries_that_were_trained_since():
    model, inputs = trained_model(num_prompt_tokens=0), inputs_for("naflex")
    with torch.no_grad():
        before = model(**inputs).logits
        model.extraction.query.mul_(3.0)
        assert not torch.allclose(model(**inputs).logits, before)
    model(**inputs, labels=labels_for(model)).loss.backward()
    assert model.extraction.query.grad.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_tower_is_untouched_by_its_mix_tokens(kind):
    model, inputs = trained_model(kind), inputs_for(kind)
    with torch.no_grad():
        expected = model.vlm.get_image_features(**inputs).pooler_output
        torch.testing.assert_close(model(**inputs).image_embeds, expected)


def test_a_fresh_global_token_answers_the_pooled_picture():
    """With CLIP up to the class token's look at itself, with SigLIP up to the share of the token in the probe."""
    model, inputs = tiny_focus_model("naflex"), inputs_for("naflex")
    with torch.no_grad():
        model.probe_share.zero_()
        tokens = model._encode_pictures(**inputs).tokens
        pooled = model.vlm.get_image_features(**inputs).pooler_output
    cosine = torch.cosine_similarity(tokens, pooled[:, None], dim=-1)
    torch.testing.assert_close(cosine[:, :3], torch.ones(3, 3))
    assert (cosine[:, 3:] < 0.9999).all()


@pytest.mark.parametrize(("patches", "regions"), [(8, 4), (9, 4), (14, 4), (3, 4), (1, 4), (196, 4), (10, 3)])
def test_regions_cover_all_patches_in_order_and_none_is_empty(patches, regions):
    model = tiny_focus_model(num_global_tokens=1, num_local_tokens=regions, num_regions=regions)
    mask = torch.arange(200)[None] < patches
    seen = patch_regions(model.config, mask)[0]
    assert seen.shape == (1 + regions, 200) and torch.equal(seen[0], mask[0])
    assert seen[1:].any(0).tolist() == mask[0].tolist() and seen[1:].any(1).all()
    starts = [row.nonzero()[0].item() for row in seen[1:]]
    sizes = seen[1:].sum(1)
    assert starts == sorted(starts) and sizes.max() - sizes.min() <= 1
    if patches % regions == 0:
        assert (sizes == patches // regions).all() and (seen[1:].sum(0) <= 1).all()


def test_more_local_tokens_than_regions_share_them():
    model = tiny_focus_model(num_global_tokens=0, num_local_tokens=5, num_regions=2)
    seen = patch_regions(model.config, torch.ones(1, 8).bool())[0]
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and not (seen[0] & seen[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_mix_tokens_the_texts_look_at_the_patches(kind):
    model, inputs = trained_model(kind, num_global_tokens=0, num_local_tokens=0), inputs_for(kind)
    out = model(**inputs, labels=labels_for(model), output_attentions=True)
    patches = inputs["spatial_shapes"].prod(1).tolist() if kind == "naflex" else [16] * 3
    for one, count in zip(out.attentions, patches):
        torch.testing.assert_close(one[:, :2, :, :count].sum(-1), torch.ones_like(one[:, :2, :, 0]))
        assert (one[..., count:] == 0).all()
    assert out.loss.isfinite()


def labels_for(model, batch=3):
    return torch.stack([torch.arange(batch) % one.num_labels for one in model.config.schema], 1)


# Texts


@pytest.mark.parametrize("kind", KINDS)
def test_learnable_vectors_pass_through_the_text_tower_as_embedded_words_would(kind):
    """transformers' own text tower, with the vectors put where words of the same number stood."""
    model, processor = trained_model(kind, prompt_init="random"), tiny_focus_processor(kind)
    schema = model.schema
    tower = model.vlm.text_model
    start = int(kind == "clip")
    with torch.no_grad():
        found = model.encode_attributes(schema, processor).embeds
        z = 0
        for attribute, texts in zip(schema, model.label_texts(schema)):
            region = model.config.prompt_regions.index(attribute.region)
            for ids in processor.encode_texts(texts):
                ids = ids[:start] + [7, 7] + ids[start:]
                if kind != "clip":
                    ids = (ids + [0] * 64)[:64]

                def put(module, args, output, region=region):
                    output = output.clone()
                    output[:, start : start + 2] = model.prompts[region]
                    return output

                handle = tower.embeddings.token_embedding.register_forward_hook(put)
                expected = model.vlm.get_text_features(torch.tensor([ids])).pooler_output
                handle.remove()
                torch.testing.assert_close(found[z], expected[0], rtol=1e-5, atol=1e-6)
                z += 1


def test_words_that_all_texts_share_become_the_learnable_vectors():
    model = tiny_focus_model("clip", num_prompt_tokens=3)
    schema = AttributeSchema(
        [{**one.to_dict(), "prompts": [f"abc {p}" for p in one.prompts]} for one in tiny_schema()]
    )
    processor = tiny_focus_processor("clip")
    fresh = FocusParModel(FocusParConfig(**{**model.config.to_dict(), "attributes": schema, "label_input_ids": None}))
    fresh.vlm.load_state_dict(model.vlm.state_dict())
    fresh._prepare_texts(processor)
    ids = processor.encode_texts(["abc a person"])[0]
    assert fresh.config.prompt_start_ids == ids[1:4]
    with torch.no_grad():
        fresh.reset_tokens()
        vocabulary = fresh.vlm.text_model.embeddings.token_embedding.weight
        assert torch.equal(fresh.prompts, vocabulary[ids[1:4]].expand_as(fresh.prompts))
        # As the backbone reads the whole sentence.
        whole = torch.tensor([processor.encode_texts([schema[0].prompts[1]])[0]])
        expected = fresh.vlm.get_text_features(whole).pooler_output[0]
        torch.testing.assert_close(fresh.eval()._own_texts().embeds[1], expected, rtol=1e-5, atol=1e-6)
        # A text that begins otherwise stands whole behind the vectors.
        other = fresh.encode_attributes([Attribute("x", "x?", prompts=["not so", "so"])], processor)
        assert other.embeds.isfinite().all()


@pytest.mark.parametrize("kind", ["naflex", "fixed"])
def test_vectors_in_the_place_of_padding_change_nothing_at_first(kind):
    model, processor = tiny_focus_model(kind), tiny_focus_processor(kind)
    texts = [text for one in model.label_texts(model.schema) for text in one]
    ids = processor(text=texts)["input_ids"]
    with torch.no_grad():
        expected = model.vlm.get_text_features(ids).pooler_output
        torch.testing.assert_close(model.encode_attributes(model.schema, processor).embeds, expected)
        model.prompts.mul_(-2.0)
        model._kept.clear()
        assert (model.encode_attributes(model.schema, processor).embeds - expected).abs().max() > 1e-3


def test_a_region_without_vectors_of_its_own_has_their_mean():
    model, processor = trained_model(), tiny_focus_processor()
    assert model.config.prompt_regions == ["head", "attachment", "whole"]
    one = Attribute("Shoes", "red?", prompts=["black shoes", "red shoes"], region="foot")
    none = Attribute("Shoes", "red?", prompts=["black shoes", "red shoes"])
    head = Attribute("Shoes", "red?", prompts=["black shoes", "red shoes"], region="head")
    embeds = [model.encode_attributes([attribute], processor).embeds for attribute in (one, none, head)]
    torch.testing.assert_close(embeds[0], embeds[1])
    assert (embeds[0] - embeds[2]).abs().max() > 1e-4
    with torch.no_grad():
        model.prompts.copy_(model.prompts.mean(0).expand_as(model.prompts))
    model._kept.clear()
    torch.testing.assert_close(model.encode_attributes([head], processor).embeds, embeds[0], rtol=1e-4, atol=1e-5)


def test_vectors_per_attribute():
    """The paper's: an attribute that was not trained on has the mean of those of its region."""
    model, processor = trained_model("kway", prompts_per="attribute"), tiny_focus_processor("kway")
    names = [["Hat", "head"], ["Backpack", "attachment"], ["Female", "whole"], ["UpperColor", "upper"],
             ["BagSide", "attachment"]]  # fmt: skip
    assert model.config.prompt_attributes == names and model.prompts.shape[0] == 5
    shares = model.texts.build_table(model.schema, model.config.label_input_ids, model.device).shares
    assert torch.equal(shares, torch.eye(5).repeat_interleave(torch.tensor(model.schema.num_labels), 0))
    texts = {"question": "red?", "prompts": ["a bag", "a red bag"]}
    asked = AttributeSchema(
        [Attribute("Bag", region="attachment", **texts), Attribute("Shoes", region="foot", **texts),
         Attribute("Hat", region="whole", **texts)]
    )  # fmt: skip
    ids = model.texts.tokenize(asked, processor)
    shares = model.texts.build_table(asked, ids, model.device).shares[::2]
    expected = torch.tensor([[0, 0.5, 0, 0, 0.5], [0.2] * 5, [1, 0, 0, 0, 0]])
    torch.testing.assert_close(shares, expected)
    assert FocusParConfig.paper(attributes=tiny_schema()).prompts_per == "attribute"
    assert FocusParConfig(attributes=tiny_schema()).prompt_attributes is None


def test_vectors_per_attribute_stay_when_the_label_space_changes(tmp_path):
    model, processor, inputs = trained_model(prompts_per="attribute"), tiny_focus_processor(), inputs_for("naflex")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        before = model(**inputs).logits
    scarf = Attribute("Scarf", "is there a scarf?", prompts=["no scarf", "a scarf"], region="head")
    schema = AttributeSchema([scarf, model.schema["Backpack"]])
    loaded = AutoModel.from_pretrained(tmp_path, attributes=schema)
    assert loaded.prompts.shape == model.prompts.shape
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits[:, 1], before[:, 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="prompts_per='region' is not what the weights in"):
        AutoModel.from_pretrained(tmp_path, prompts_per="region")


def test_the_template_of_the_paper():
    config = FocusParConfig.paper(attributes=tiny_schema(kway=True))
    model = tiny_focus_model("kway", text_template=config.text_template)
    texts = model.label_texts(model.schema)
    assert texts[0][1] == "a head feature of hat is yes" and texts[3][2] == "a upper feature of upper color is red"
    assert not config.freeze_backbone and config.num_global_tokens + config.num_local_tokens == 12


# Any attributes


def test_attributes_at_call_time():
    model, processor, inputs = trained_model(), tiny_focus_processor(), inputs_for("naflex")
    asked = model.encode_attributes(["wearing a red scarf", ["a backpack", "a handbag", "no bag"]], processor)
    with torch.no_grad():
        out = model(**inputs, attributes=asked)
        own = model(**inputs)
    assert out.logits.shape == (3, 2, 3) and (out.logits[:, 0, 2] == -1e4).all()
    assert own.logits.shape == (3, 3, 2) and model.schema == tiny_schema()
    assert model.encode_attributes(asked.schema, processor) is asked  # not encoded twice
    model.set_attributes(asked.schema, processor)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, out.logits)


def test_set_attributes_is_saved_and_keeps_fitted_decisions(tmp_path):
    model, processor, inputs = trained_model(), tiny_focus_processor(), inputs_for("naflex")
    model.config.set_decisions(decisions_of(model.schema, [2.0, 0.5, 1.0], [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
    new = AttributeSchema([model.schema["Backpack"], *AttributeSchema.from_texts(["a red scarf"])])
    with torch.no_grad():
        before = model(**inputs).logits
        model.set_attributes(new, processor)
        after = model(**inputs).logits
    torch.testing.assert_close(after[:, 0], before[:, 1])
    torch.testing.assert_close(model.decision_gain, torch.tensor([0.5, 1.0]))
    # The scarf has the median of the thresholds -0.5, -4 and -3.
    torch.testing.assert_close(model.decision_offset, torch.tensor([0.0, 2.0, -1.5, 1.5]))
    assert model.config.prompt_regions == ["head", "attachment", "whole"]
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.schema == new
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, after, rtol=1e-5, atol=1e-6)


def test_a_loaded_model_finds_its_tokenizer(tmp_path):
    trained_model().save_pretrained(tmp_path / "whole")
    tiny_focus_processor().save_pretrained(tmp_path / "whole")
    loaded = AutoModel.from_pretrained(tmp_path / "whole")
    assert loaded.encode_attributes(["a red scarf"]).schema.names == ("a red scarf",)
    trained_model().save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match="processor is None, and none could be loaded from .*alone"):
        AutoModel.from_pretrained(tmp_path / "alone").encode_attributes(["a red scarf"])


def test_attributes_that_cannot_be():
    model, processor = tiny_focus_model(), tiny_focus_processor()
    with pytest.raises(ValueError, match="attributes must hold at least one attribute, got none"):
        model.encode_attributes([], processor)
    with pytest.raises(ValueError, match="attribute names must be unique, 'a hat' is at positions 0 and 1"):
        model.encode_attributes(["a hat", "a  hat"], processor)
    with pytest.raises(ValueError, match=r"attribute '.*': the text 'a .* has more than 62 tokens, the most that the"):
        model.encode_attributes(["xyz " * 80], processor)
    with pytest.raises(ValueError, match=r"attribute 'x': region must be one of .* or None, got 'tail'"):
        model.encode_attributes([{"name": "x", "question": "x", "prompts": ["a", "b"], "region": "tail"}], processor)
    with pytest.raises(TypeError, match="attributes must be a list of texts or attributes, or a dict, got 'a hat'"):
        model.encode_attributes("a hat", processor)
    with pytest.raises(ValueError, match="empty text"):
        model.set_attributes(["  "], processor)
    assert model.schema == tiny_schema()  # nothing was changed
    asked = model.encode_attributes(["eine rote Mütze", "穿红色外套"], processor)
    assert asked.embeds.isfinite().all() and (asked.embeds[1] - asked.embeds[3]).abs().max() > 0


def test_a_text_that_just_fits_is_not_cut():
    model, processor = tiny_focus_model(), tiny_focus_processor()
    fits = next(
        text
        for n in range(80, 0, -1)
        if len(processor.encode_texts([text := "q" * n], 99)[0]) == model.max_text_tokens
    )
    one = [Attribute("x", "x?", prompts=["a", fits])]
    assert model.encode_attributes(one, processor).embeds.isfinite().all()
    with pytest.raises(ValueError, match="has more than 62 tokens"):
        model.encode_attributes([Attribute("x", "x?", prompts=["a", fits + "q"])], processor)


def test_encodings_follow_the_weights():
    model, processor, inputs = trained_model(), tiny_focus_processor(), inputs_for("naflex")
    with torch.no_grad():
        first = model(**inputs).logits
        asked = model.encode_attributes(["a red scarf"], processor)
        model.prompts.mul_(-3.0)  # as an optimizer does, in whatever mode
        assert (model(**inputs).logits - first).abs().max() > 1e-3
        assert model.encode_attributes(["a red scarf"], processor) is not asked
        second = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, second)


# Decisions


def test_decisions_are_fitted_and_saved(tmp_path):
    """Similarities that rank well but are off by an offset and a gain become right answers, K-way ones as well."""
    model = tiny_focus_model("kway")
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(0, one.num_labels, 400) for one in model.schema], 1)
    labels[:, 2] = 1  # one label only: nothing can be learned, nothing is changed
    labels[::7, 0] = -100
    logits = generator.normal(0, 0.3, (400, 5, 4))
    for a, one in enumerate(model.schema):
        for k in range(one.num_labels):
            logits[:, a, k] += (labels[:, a] == k) * 1.0 + 3.0 * k  # the last label looks best everywhere
    before = [np.mean(logits[:, a, : one.num_labels].argmax(-1) == labels[:, a]) for a, one in enumerate(model.schema)]
    model.config.set_decisions(fit(logits, labels, model.schema, objectives=("accuracy",)))
    table = torch.tensor(logits) * model.decision_gain[:, None]
    offsets = model.decision_offset.split(model.schema.num_labels)
    for a, one in enumerate(model.schema):
        known = labels[:, a] != -100
        found = (table[:, a, : one.num_labels] + offsets[a]).argmax(-1).numpy()
        accuracy = np.mean(found[known] == labels[known, a])
        assert accuracy > 0.85
        assert a == 2 or before[a] < 0.7
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.decision_gain, model.decision_gain)
    assert torch.equal(loaded.decision_offset, model.decision_offset)


def test_an_unseen_binary_attribute_has_the_usual_threshold():
    """Others are decided by their similarities; what was fitted keeps its own."""
    fitted = AttributeSchema(
        [
            *AttributeSchema.from_texts(["a scarf", "a hat", "a phone"]),
            Attribute(name="Coat", question="which coat?", labels=["red", "blue", "green"],
                      prompts=["a red coat", "a blue coat", "a green coat"]),
        ]
    )  # fmt: skip
    gain = torch.tensor([1.0, 2.0, 4.0, 8.0])
    offset = torch.tensor([0.0, 3.0, -1.0, 1.0, 6.0, 2.0, 5.0, 5.0, 5.0])  # thresholds -3, -1, 1
    asked = AttributeSchema([*AttributeSchema.from_texts(["a cane"]), fitted["Coat"], fitted["a phone"]])
    new_gain, new_offset = transfer_decisions(gain, offset, fitted, asked)
    usual = 64 ** (1 / 4)
    torch.testing.assert_close(new_gain, torch.tensor([usual, 8.0, 4.0]))
    expected = torch.tensor([-0.5 * usual, 0.5 * usual, 5.0, 5.0, 5.0, 6.0, 2.0])
    torch.testing.assert_close(new_offset, expected)
    # A picture that is a little less like "yes" than like "no" is a "yes": the others were fitted so.
    scores = torch.tensor([0.2, -0.6])
    assert (scores * new_gain[0] + new_offset[:2]).argmax() == 1
    no_binary = AttributeSchema([fitted["Coat"]])
    assert (transfer_decisions(gain[3:], offset[6:], no_binary, asked)[1][:2] == 0).all()


def test_an_unseen_attribute_answers_at_one_half_what_others_do_at_their_threshold_for_mA():
    model, inputs = trained_model(), inputs_for("naflex", batch=4)
    point = {"mA": 0.2, "accuracy": 0.5}
    entries = {one.name: AttributeDecision(2.0, (0.0, 1.0), points=point) for one in model.schema}
    model.config.set_decisions(Decisions(entries, "accuracy"))
    # Own attributes say yes for mA where 2 (s1 - s0) + 1 > logit(0.2).
    gain, offset = model._decisions_for(AttributeSchema.from_texts(["a cane"]))
    assert gain.item() == pytest.approx(2.0)
    assert (offset[1] - offset[0]).item() == pytest.approx(1 - math.log(0.25), abs=1e-5)
    without = {name: AttributeDecision(2.0, (0.0, 1.0)) for name in entries}
    model.config.decisions = Decisions(without).to_dict()
    _, offset = model._decisions_for(AttributeSchema.from_texts(["a cane"]))
    assert (offset[1] - offset[0]).item() == pytest.approx(1.0)
    with torch.no_grad():
        asked = model.encode_attributes(["a cane"], tiny_focus_processor())
        assert torch.isfinite(model(**inputs, attributes=asked).logits).all()


def test_class_weights_move_decisions_towards_the_rare_label():
    labels = (np.arange(200) % 10 == 0).astype(int)[:, None].repeat(3, 1)
    logits = np.random.default_rng(0).normal(0, 1, (200, 3, 2)) + 1.5 * np.eye(2)[labels]
    recalls = []
    for weighting in (None, "sqrt", "balanced"):
        gain, offset = fit_decisions(logits, labels, tiny_schema(), weighting=weighting)
        scores = logits * gain[:, None].numpy() + offset.view(3, 2).numpy()
        recalls.append((scores.argmax(-1) == 1)[labels == 1].mean())
    assert recalls[0] < recalls[1] < recalls[2]


# Training, saving, inputs


@pytest.mark.parametrize("kind", KINDS)
def test_freezing(kind, tmp_path):
    model = tiny_focus_model(kind).train()
    names = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"mix_tokens", "prompts", "extraction"} | ({"probe_share"} if kind != "clip" else set())
    assert not model.vlm.training and model.extraction.training
    model = trained_model(kind, freeze_backbone=False).train()
    assert model.vlm.vision_model.training and not model.vlm.text_model.training
    model(**inputs_for(kind), labels=labels_for(model)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name
    groups = model.parameter_groups(1e-3, 1e-4, backbone_learning_rate=1e-5)
    counted = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in counted}) == len(counted) == sum(p.requires_grad for p in model.parameters())
    assert {group["name"]: group["lr"] for group in groups} == {"tokens": 1e-3, "extraction": 1e-4, "backbone": 1e-5}


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model, inputs = tiny_focus_model("kway").train(), tiny_inputs("kway", 8)
    labels = labels_for(model, 8)
    model.config.loss = {"weighting": "sqrt", "priors": compute_priors(labels.numpy(), model.schema)}
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2, 1e-2))
    losses = []
    for _ in range(30):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_heads_alone(kind, tmp_path):
    backbone = AutoModel.from_config(tiny_backbone_config({"naflex": "siglip2", "fixed": "siglip"}.get(kind, kind)))
    backbone.save_pretrained(tmp_path / "backbone")
    processor = tiny_focus_processor(kind)
    processor.image_processor.save_pretrained(tmp_path / "backbone")
    processor.tokenizer.save_pretrained(tmp_path / "backbone")
    options = {"num_attention_heads": 4, "save_backbone": False, "num_prompt_tokens": 2}
    model = FocusParModel.from_backbone(tmp_path / "backbone", attributes=tiny_schema(), **options).eval()
    model.save_pretrained(tmp_path / "heads")
    processor.save_pretrained(tmp_path / "heads")
    assert (tmp_path / "heads/model.safetensors").stat().st_size < 50_000
    loaded = AutoModel.from_pretrained(tmp_path / "heads")
    inputs = inputs_for(kind)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-6)
    assert type(AutoProcessor.from_pretrained(tmp_path / "heads")) is type(processor)
    config = json.loads((tmp_path / "heads/config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_focus_par.FocusParModel"


def test_where_it_looked():
    model, inputs = trained_model("kway"), tiny_inputs("kway")
    relevance = model.explain(**inputs)
    assert relevance.shape == (3, 5, 12) and (relevance >= 0).all()
    torch.testing.assert_close(relevance.sum(-1), torch.ones(3, 5))
    assert (relevance[inputs["pixel_attention_mask"][:, None].expand(-1, 5, -1) == 0] == 0).all()
    torch.testing.assert_close(model.explain(attribute=["UpperColor", 0], **inputs), relevance[:, [3, 0]])
    with pytest.raises(KeyError, match="no attribute 'Hut'"):
        model.explain(attribute="Hut", **inputs)
    # A picture that only one local token may have looked at shows in its region alone.
    alone = trained_model("kway", num_global_tokens=0, num_local_tokens=1)
    relevance = alone.explain(**inputs)
    for person, (rows, columns) in zip(relevance, inputs["spatial_shapes"].tolist()):
        assert (person[:, -(-rows * columns // 4) :] == 0).all()


def test_wrong_inputs_are_named():
    model, inputs = tiny_focus_model(), inputs_for("naflex")
    with pytest.raises(ValueError, match="pixel_values is None, expected pictures"):
        model()
    with pytest.raises(ValueError, match="patch_embeds: expected pixel_values, because the mix tokens of FOCUS live"):
        model(patch_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(B, N, values of a patch\) for a siglip2"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="spatial_shapes is None"):
        model(inputs["pixel_values"])
    asked = model.encode_attributes(["a hat"], tiny_focus_processor())
    with pytest.raises(ValueError, match="labels and attributes were both given"):
        model(**inputs, labels=LABELS, attributes=asked)
    with pytest.raises(ValueError, match="the texts were never tokenized"):
        FocusParModel(copy.deepcopy(FocusParConfig(**_raw(model.config))))(**inputs)


def _raw(config):
    return {**config.to_dict(), "label_input_ids": None}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_global_tokens": -1}, "num_global_tokens must be a whole number from 0 to 4,096, got -1"),
        ({"num_regions": 0}, "num_regions must be a whole number from 1 to 4,096, got 0"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide the width of the texts 32, got 5"),
        ({"attention_dropout": 1.0}, r"attention_dropout must lie in \[0, 1\), got 1.0"),
        ({"text_template": "a {region}"}, "text_template must say {label} or {prompt} and may use the fields"),
        ({"text_template": "{label} {size}"}, "text_template must say {label} or {prompt} and may use the fields"),
        ({"prompts_per": "label"}, r"prompts_per must be one of \('region', 'attribute'\), got 'label'"),
        ({"prompt_attributes": ["Hat"]}, r"prompt_attributes must be names of attributes.*\['Hat'\]"),
        ({"prompt_init": "zero"}, r"prompt_init must be one of \('words', 'random'\), got 'zero'"),
        ({"loss": {"cow": 1}}, "loss: unknown setting 'cow'"),
        ({"vlm_config": {"model_type": "bert"}}, "must be the configuration of a clip, siglip or siglip2 checkpoint"),
    ],
)
def test_wrong_configurations_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        FocusParConfig(**{"vlm_config": tiny_backbone_config(), "attributes": tiny_schema(), **config})


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_towers_embeddings_are_found_and_replaced(kind):
    model = tiny_focus_model(kind)
    old = model.get_input_embeddings()
    assert isinstance(old, torch.nn.Embedding) and old.num_embeddings == model.config.vlm_config.text_config.vocab_size
    new = torch.nn.Embedding(old.num_embeddings, old.embedding_dim)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new


def test_another_label_space_of_the_same_size_has_other_texts():
    """No weight differs between the two: only the texts do."""
    model, processor = tiny_focus_model("kway"), tiny_focus_processor("kway")
    inputs = tiny_inputs("kway")
    with torch.no_grad():
        model(**inputs)
        before = model._own_texts()
        other = model.schema.to_list()
        for one in other:
            one["prompts"] = [f"{text} in the rain" for text in one["prompts"]]
        model.set_attributes(AttributeSchema(other), processor)
        found = model(**inputs).logits
        assert not torch.equal(model._own_texts().embeds, before.embeds)
        fresh = copy.deepcopy(model)
        fresh._kept.clear()
        assert torch.equal(found, fresh(**inputs).logits)
