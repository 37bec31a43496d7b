"""Chunks, precision and what training keeps; that the heads equal the equations is tested with the model."""

import pytest
import torch

from modeling_tests.models.vlm_par.test_modeling_vlm_par import features, some_labels, trained_model
from vlm_par_hf.models.vlm_par import heads_vlm_par


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_chunks_change_nothing(monkeypatch, dropout):
    model = trained_model("image_to_text", attention_dropout=dropout).train()
    inputs, labels = features(model), some_labels(model.schema)
    found = []
    # All at once, and one attribute at a time. Random numbers are drawn chunk by chunk, in the same order.
    for limit in (1 << 22, 1):
        monkeypatch.setattr(heads_vlm_par, "CHUNK_ELEMENTS", limit)
        torch.manual_seed(5)
        out = model(**inputs, labels=labels)
        model.zero_grad()
        out.loss.backward()
        found.append([out.logits, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        attended = model(**inputs, output_attentions=True).attentions
        assert attended.shape == (5, len(model.schema), 4, 11, model.question_mask.shape[1])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_trains_as_full_precision_does(autocast):
    gradients = {}
    for half in (False, True):
        model = trained_model("image_to_text").train()
        inputs, labels = features(model), some_labels(model.schema)
        if half and not autocast:
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=half and autocast):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        gradients[half] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for name, exact in gradients[False].items():
        found = gradients[True][name]
        assert found.dtype == (torch.float32 if autocast else torch.bfloat16)
        similarity = torch.nn.functional.cosine_similarity(found.float().flatten(), exact.flatten(), dim=0)
        assert similarity > 0.99, name


def test_training_keeps_two_tensors_of_words_by_patches():
    model = trained_model("image_to_text").train()
    inputs = features(model)
    B, N, _ = inputs["patch_embeds"].shape
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        model(**inputs, labels=some_labels(model.schema)).loss.backward()
    heads = model.attribute_heads
    words = heads.num_heads * sum(heads.question_lengths)
    large = [x for x in kept if x.ndim > 2 and x.shape[-1] == B * N and x.shape[-2] >= heads.num_heads]
    large = {x.data_ptr(): x.numel() for x in large}
    assert len(set(heads.question_lengths)) > 1
    assert sum(large.values()) == 2 * words * B * N


@pytest.mark.parametrize("fusion", ["text_to_image", "image_to_text"])
def test_frozen_patches_and_constants_need_no_graph(fusion):
    model = trained_model(fusion)
    folded, inputs = model.fold(), features(model)
    assert not folded(**inputs).logits.requires_grad
    inputs["patch_embeds"] = torch.where(inputs["patch_mask"][..., None], inputs["patch_embeds"], 0).requires_grad_()
    folded(**inputs).logits[:, 0, 0].sum().backward()  # where to look, by gradients
    assert inputs["patch_embeds"].grad[inputs["patch_mask"]].any()
