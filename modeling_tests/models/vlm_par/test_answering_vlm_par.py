"""Attributes that are asked for at call time: own ones by their heads, others by their prompts."""

import pytest
import torch

from modeling_tests.tiny import randomize, tiny_inputs, tiny_model, tiny_processor


def test_attributes_in_words_beside_own_ones():
    """The reference: heads for own attributes; for texts scale * cos(picture, prompt), padded with -1e4."""
    model, processor = randomize(tiny_model("kway")).eval(), tiny_processor("kway")
    inputs = tiny_inputs("kway", batch=2)
    asked = model.encode_attributes(["UpperColor", "wearing a red scarf", "Hat"], processor)
    with torch.no_grad():
        own, found = model(**inputs), model(**inputs, attributes=asked)
        image = torch.nn.functional.normalize(own.image_embeds.double(), dim=-1)
        tokens = processor(text=list(asked.schema["wearing a red scarf"].prompts), padding="max_length", max_length=64)
        texts = model.get_text_features(torch.as_tensor(tokens["input_ids"])).pooler_output
    scale = float(model.vlm.logit_scale.exp())
    assert found.logits.shape == (2, 3, 4)
    torch.testing.assert_close(found.logits[:, 0], own.logits[:, 3])
    torch.testing.assert_close(found.logits[:, 2], own.logits[:, 0])
    for column, text in enumerate(texts):
        expected = scale * (image @ torch.nn.functional.normalize(text.double(), dim=-1))
        torch.testing.assert_close(found.logits[:, 1, column].double(), expected, rtol=1e-4, atol=1e-4)
    assert (found.logits[:, 1, 2:] == -1e4).all()
    relevance, chosen = model.explain(**inputs), model.explain(**inputs, attributes=asked)
    torch.testing.assert_close(chosen[:, [0, 2]], relevance[:, [3, 0]])
    assert (chosen[:, 1] == 0).all() and asked.explained == ("UpperColor", "Hat")


def test_texts_that_a_model_cannot_answer():
    processor, text = tiny_processor(), ["wearing a red scarf"]
    with pytest.raises(ValueError, match="in words, but processor is None: expected the model's processor"):
        randomize(tiny_model()).encode_attributes(text)
    closed = randomize(tiny_model(alignment="none"))
    assert not closed.supports_attributes and closed.encode_attributes(["Hat"]).places == (0,)
    with pytest.raises(ValueError, match='compares no picture with prompts \\(alignment="none"\\)'):
        closed.encode_attributes(text, processor)
    with pytest.raises(ValueError, match="labels and attributes were both given"):
        model = randomize(tiny_model())
        model(**tiny_inputs("naflex"), labels=torch.zeros(3, 3).long(), attributes=model.encode_attributes(["Hat"]))
