"""Attributes named at call time, through the pipeline that knows nothing of FOCUS."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import vlm_par_hf  # noqa: F401  (registers the task)
from modeling_tests.tiny import randomize, tiny_focus_model, tiny_focus_processor
from vlm_par_hf.models.focus_par.texts_focus_par import TextReader


ASKED = ["wearing a red scarf", ["a backpack", "a handbag", "no bag"]]


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 20, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    model = randomize(tiny_focus_model("kway"))
    return pipeline("pedestrian-attributes", model=model, processor=tiny_focus_processor("kway"))


def test_attributes_of_a_call(pipe):
    result = pipe(picture(), attributes=ASKED)["attributes"]
    assert list(result) == ["wearing a red scarf", "a backpack / a handbag / no bag"]
    assert list(result["wearing a red scarf"]["probabilities"]) == ["no", "yes"]
    assert sum(result["a backpack / a handbag / no bag"]["probabilities"].values()) == pytest.approx(1)
    assert list(pipe(picture())["attributes"])[:2] == ["Hat", "Backpack"]  # the next call asks as ever
    named = pipe(picture(), attributes={"scarf": "wearing a red scarf"})["attributes"]
    assert named["scarf"]["probabilities"] == pytest.approx(result["wearing a red scarf"]["probabilities"], abs=1e-5)


def test_texts_are_encoded_once(pipe, monkeypatch):
    pipe(picture(), attributes=ASKED)
    monkeypatch.setattr(TextReader, "encode", None)
    pipe([picture(), picture(1)], attributes=ASKED, batch_size=2)


def test_streams_batches_and_the_pipelines_own_attributes(pipe):
    own = pipeline("pedestrian-attributes", model=pipe.model, processor=pipe.processor, attributes=ASKED)
    pictures = [picture(seed) for seed in range(5)]
    alone = [own(one)["attributes"] for one in pictures]
    for found, expected in zip(own(iter(pictures), batch_size=3), alone, strict=True):
        for name, answer in expected.items():
            assert found["attributes"][name]["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
    boxes = own(pictures[0], boxes=[[0, 0, 20, 20], [0, 10, 20, 40]], attributes=["a hat"])
    assert [list(one["attributes"]) for one in boxes] == [["a hat"]] * 2


def test_where_it_looked_for_an_attribute_of_the_call(pipe):
    result = pipe(picture(), attributes=ASKED, explain=["wearing a red scarf"], explain_as="relevance")
    relevance = result["relevance"]["wearing a red scarf"]
    assert relevance.ndim == 2 and relevance.sum() == pytest.approx(1, abs=1e-5)
    overlays = pipe(picture(), attributes=ASKED, explain=True)["overlays"]
    assert list(overlays) == list(result["attributes"]) and overlays["wearing a red scarf"].size == (20, 40)
    with pytest.raises(ValueError, match="explain names 'Hat': no attribute 'Hat'"):
        pipe(picture(), attributes=ASKED, explain="Hat")


def test_what_cannot_be_asked(pipe):
    with pytest.raises(ValueError, match="attributes must hold at least one attribute, got none"):
        pipe(picture(), attributes=[])
    with pytest.raises(ValueError, match="attributes names 'Backpak': the model has 'Backpack'; expected such a name"):
        pipe(picture(), attributes=["Backpak"])


def test_own_attributes_beside_texts(pipe):
    own, asked = pipe(picture())["attributes"], pipe(picture(), attributes=["Backpack", *ASKED])["attributes"]
    assert list(asked) == ["Backpack", "wearing a red scarf", "a backpack / a handbag / no bag"]
    assert asked["Backpack"]["probabilities"] == pytest.approx(own["Backpack"]["probabilities"], abs=1e-5)
    held = pipe(picture(), attributes=ASKED, thresholds={"wearing a red scarf": 0.9})["attributes"]
    assert held["wearing a red scarf"]["threshold"] == 0.9
    assert "threshold" not in held["a backpack / a handbag / no bag"]


def test_answers_equal_the_model(pipe):
    inputs = pipe.processor(images=[picture()], return_tensors="pt")
    with torch.no_grad():
        texts = pipe.model.encode_attributes(ASKED, pipe.processor)
        expected = pipe.model(**inputs, attributes=texts).logits.softmax(-1)[0, 0, 1].item()
    found = pipe(picture(), attributes=ASKED)["attributes"]["wearing a red scarf"]["probabilities"]["yes"]
    assert found == pytest.approx(expected, abs=1e-5)
