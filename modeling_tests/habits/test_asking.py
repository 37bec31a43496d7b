"""Habits of transformers' users: asking the pipeline and `vlm-par predict`, and going on with the answers.

One row is what a user types, and what comes out of it or the message that names the way.
"""

import base64
import io
import json
import pickle

import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, pipeline

import vlm_par_hf
from modeling_tests.crops import close
from modeling_tests.tiny import randomize, tiny_focus_model, tiny_focus_processor, tiny_model, tiny_processor
from vlm_par_hf import PedestrianAttributesPipeline
from vlm_par_hf.inference.results import PersonResult, PictureResult


TASK, SCARF = "pedestrian-attributes", "wearing a red scarf"


@pytest.fixture(scope="module")
def image():
    with Image.open(vlm_par_hf.example_crop("backpack")) as opened:
        return opened.convert("RGB")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    randomize(tiny_model("naflex")).save_pretrained(folder)
    tiny_processor("naflex").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return pipeline(TASK, model=checkpoint)


@pytest.fixture(scope="module")
def expected(pipe, image):
    return pipe(image)


# What is asked

ASKED = {
    'attributes=["Hat"]': ({"attributes": ["Hat"]}, {"Hat": 0.5}),
    'attributes=["Backpack", "Hat"]': ({"attributes": ["Backpack", "Hat"]}, {"Backpack": 0.4, "Hat": 0.5}),
    "threshold=0.6": ({"threshold": 0.6}, {"Hat": 0.6, "Backpack": 0.6, "Female": 0.6}),
    'thresholds={"Hat": 0.7}': ({"thresholds": {"Hat": 0.7}}, {"Hat": 0.7, "Backpack": 0.4, "Female": 0.5}),
    "all three": (
        {"threshold": 0.6, "thresholds": {"Hat": 0.7}, "attributes": ["Hat", "Female"]},
        {"Hat": 0.7, "Female": 0.6},
    ),
    "in words": ({"attributes": ["Hat", SCARF]}, {"Hat": 0.5, SCARF: 0.5}),
    "names for texts": ({"attributes": {"scarf": SCARF}, "thresholds": {"scarf": 0.3}}, {"scarf": 0.3}),
}


@pytest.mark.parametrize(("options", "thresholds"), ASKED.values(), ids=ASKED)
def test_what_is_asked(pipe, image, expected, options, thresholds):
    found = pipe(image, **options)["attributes"]
    assert {name: one["threshold"] for name, one in found.items()} == thresholds
    for name, one in found.items():
        assert (one["label"] == "yes") == (one["probabilities"]["yes"] > one["threshold"])
        if name in expected["attributes"]:
            assert close(one["probabilities"], expected["attributes"][name]["probabilities"])
    set_before = PedestrianAttributesPipeline(model=pipe.model, processor=pipe.processor, **options)
    assert close(set_before(image)["attributes"], found)


def test_a_folded_model_answers_for_its_own_attributes(pipe, image, expected):
    folded = pipeline(TASK, model=pipe.model.fold(), processor=pipe.processor)
    found = folded(image, attributes=["Backpack"])["attributes"]
    assert close(found, {"Backpack": expected["attributes"]["Backpack"]})
    with pytest.raises(ValueError, match="'wearing a red scarf'.*a folded model has no text tower.*was folded"):
        folded(image, attributes=[SCARF])


def test_focus_answers_in_words(image):
    pipe = pipeline(TASK, model=randomize(tiny_focus_model()), processor=tiny_focus_processor())
    assert list(pipe(image, attributes=["Hat", SCARF], explain=True)["overlays"]) == ["Hat", SCARF]


MESSAGES = {
    "a name in lower case": ({"attributes": ["hat"]}, "the model has 'Hat'; expected such a name, or a dict"),
    "a misspelt name": ({"attributes": ["Backpak"]}, "the model has 'Backpack'"),
    "a text in place of a list": ({"attributes": "Hat"}, "attributes must be a list of texts"),
    "a misspelt threshold": ({"thresholds": {"Backpak": 0.5}}, "did you mean 'Backpack'"),
    "thresholds as threshold": ({"threshold": {"Hat": 0.5}}, "expected one number; thresholds= takes one for each"),
    "a threshold in percent": ({"threshold": 60}, r"threshold is 60, expected a number in \[0, 1\]"),
    "what is left out": ({"attributes": ["Female"], "sensitive": False}, "which sensitive=False leaves out"),
    "candidate_labels=": ({"candidate_labels": ["a hat"]}, "in words are given as attributes="),
    "top_k=": ({"top_k": 3}, "only_positive=True leaves out what a person does not have"),
    "where a text is seen": ({"attributes": [SCARF], "explain": True}, "compared with the picture as a whole"),
}


@pytest.mark.parametrize(("options", "message"), MESSAGES.values(), ids=MESSAGES)
def test_what_is_not_asked_like_that(pipe, image, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pipe(image, **options)


# Pictures


def _stream(image, tmp_path):
    stream = io.BytesIO()
    image.save(stream, "PNG")  # which leaves it at its end
    return stream


def _text(image, tmp_path):
    return base64.b64encode(_stream(image, tmp_path).getvalue()).decode()


def _path(image, tmp_path):
    image.save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


PICTURES = {
    "an open file that was read before": _stream,
    "bytes": lambda *given: _stream(*given).getvalue(),
    "base64": _text,
    "a data URI": lambda *given: f"data:image/png;base64,{_text(*given)}",
    "a path": _path,
    "a row": lambda image, tmp_path: {"image": image},
}


@pytest.mark.parametrize("form", PICTURES.values(), ids=PICTURES)
def test_pictures(pipe, image, expected, tmp_path, form):
    source = form(image, tmp_path)
    assert pipe(source) == expected == pipe(source) == pipe(images=source)


def test_a_file_url_is_refused_by_name(pipe):
    for where in (pipe, lambda url: vlm_par_hf.Annotator()({"image": [url]})):
        try:
            message = where("file:///data/a%20b.png")["error"][0]
        except ValueError as error:
            message = str(error)
        assert "is a file URL, which is not read; expected the path alone, such as '/data/a b.png'" in message


def test_images_by_name(pipe, image, expected):
    assert pipe(images=[image]) == [expected] == list(pipe(images=iter([image])))
    with pytest.raises(TypeError, match="inputs and images are two names of the pictures, and both were given"):
        pipe(image, images=image)


# Answers


def test_answers_are_data_that_can_be_drawn(pipe, image, expected, tmp_path):
    people = pipe(image, boxes=[[0, 0, 30, 60], [20, 20, 60, 150]])
    assert isinstance(people, list) and type(people) is PictureResult and type(expected) is PersonResult
    for answer in (people, expected):
        assert json.loads(json.dumps(answer)) == answer == pickle.loads(pickle.dumps(answer))
    people.save(tmp_path / "street.jpg")
    with Image.open(tmp_path / "street.jpg") as saved:
        assert saved.size == image.size == vlm_par_hf.draw_boxes(image, people).size
    assert expected.draw().width > image.width


def test_a_table_is_ranked_by_what_people_have(checkpoint, image, tmp_path, capsys):
    import pandas

    from vlm_par_hf.cli.main import main

    for number, picture in enumerate((image, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))):
        picture.save(tmp_path / f"{number}.png")
    out = str(tmp_path / "out.csv")
    assert main(["predict", "--model", checkpoint, *(f"{tmp_path}/{one}.png" for one in (0, 1)), "--out", out]) == 0
    table = pandas.read_csv(out).sort_values("Hat_yes", ascending=False)
    assert table["Hat_yes"].is_monotonic_decreasing and len(table) == 2


def test_answers_of_a_data_set_are_structures(checkpoint, image, expected):
    import datasets

    data = datasets.Dataset.from_dict({"image": [image]}).map(vlm_par_hf.Annotator(checkpoint), batched=True)
    assert close(data[0]["prediction"]["attributes"]["Hat"], expected["attributes"]["Hat"])


# Making the pipeline

WAYS = {
    "pipeline(model=folder)": lambda folder: pipeline(model=folder),
    "PedestrianAttributesPipeline.from_pretrained": PedestrianAttributesPipeline.from_pretrained,
    "image_processor=": lambda folder: pipeline(
        TASK, model=folder, image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil")
    ),
    "image_processor=folder": lambda folder: pipeline(TASK, model=folder, image_processor=folder),
    "image_processor=AutoProcessor": lambda folder: pipeline(
        TASK,
        model=vlm_par_hf.VlmParModel.from_pretrained(folder),
        image_processor=AutoProcessor.from_pretrained(folder),
    ),
    "tokenizer=folder": lambda folder: pipeline(TASK, model=folder, tokenizer=folder),
}


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_making_the_pipeline(checkpoint, image, expected, make):
    made = make(checkpoint)
    assert type(made) is PedestrianAttributesPipeline and close(made(image), expected)


@pytest.mark.parametrize("task", ["image-classification", "zero-shot-image-classification"])
def test_another_task_for_a_model_in_memory(pipe, task):
    processor = pipe.processor
    with pytest.raises(vlm_par_hf.ParError, match=r'make pipeline\("pedestrian-attributes", model=model, processor='):
        pipeline(task, model=pipe.model, image_processor=processor.image_processor, tokenizer=processor.tokenizer)


def test_a_model_in_memory_alone(pipe):
    with pytest.raises(ValueError, match="processor is None, expected the processor of the model.*pass"):
        pipeline(TASK, model=pipe.model)
