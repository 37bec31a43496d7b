"""`Annotator`: batches of any source, pickling, its fingerprint, and images that cannot be prepared."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_tests.image_folders import names, run, save_image, save_model
from modeling_tests.tiny import tiny_processor
from vlm_par_hf.annotation import Annotator, ImageList
from vlm_par_hf.annotation import annotator as annotator_module


def test_an_annotator_is_a_function_of_batches_that_can_be_pickled(folder, model):
    import datasets

    annotator = Annotator(model, batch_size=3, sensitive=False)
    files = names(ImageList(folder))
    with Image.open(files[1]) as opened:
        picture = opened.convert("RGB")
    sources = [files[0], picture, Path(files[2]).read_bytes(), np.asarray(picture), picture, "none.png", None]
    found = annotator({"image": sources, "key": list("abcdefg")})
    assert set(found) == {"key", "prediction", "error"} and found["key"] == list("abcdefg")
    assert found["error"][:5] == [None] * 5 and found["prediction"][5:] == [None, None]
    assert found["error"][5] == "image file 'none.png' does not exist" and "NoneType" in found["error"][6]
    answers = [json.loads(text) for text in found["prediction"][:5]]
    assert "Female" not in answers[0]["attributes"]
    scores = [answer["attributes"]["Hat"]["score"] for answer in answers]
    assert scores[1] == pytest.approx(scores[3], abs=1e-6) == pytest.approx(scores[4], abs=1e-6) != scores[0]
    copy = pickle.loads(pickle.dumps(annotator))
    assert "pipe" in vars(annotator) and "pipe" not in vars(copy)
    assert copy({"image": files})["prediction"] == annotator({"image": files})["prediction"]
    data = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    mapped = data.map(Annotator(model, batch_size=3, sensitive=False), batched=True, batch_size=6)
    assert mapped["prediction"][:] == annotator({"image": files})["prediction"]


def test_a_fingerprint_follows_the_weights_and_the_settings_not_the_place(model, tmp_path):
    first = Annotator(model).fingerprint()
    processor = tiny_processor("naflex")
    processor.image_processor.max_num_patches = 9
    found = []
    for options in ({}, {"processor": processor}, {"seed": 1}):
        save_model(tmp_path / "moved", **options)
        found.append(Annotator(str(tmp_path / "moved")).fingerprint())
    assert found[0] == first and len(set(found)) == 3


def test_an_image_that_fails_on_reading_is_named(folder, model, tmp_path, monkeypatch):
    real = annotator_module.open_row

    def open_row(image, options):
        if str(image).endswith("/3.png"):
            raise PermissionError(13, "Permission denied", image)
        return real(image, options)

    monkeypatch.setattr(annotator_module, "open_row", open_row)
    (entry,) = run(folder, tmp_path / "out.jsonl", model)["broken"]
    assert entry["image"].endswith("3.png") and "Permission denied" in entry["error"]


def test_an_image_that_the_processor_refuses_is_named(folder, model, tmp_path, monkeypatch):
    save_image(folder / "5b.png", 0, size=(1, 300))
    processor = type(Annotator(model).pipe.processor)
    real = processor.__call__

    def call(self, images, **options):
        if any(image.width == 1 for image in images):
            raise ValueError("height/width is 300, expected at most 200")
        return real(self, images, **options)

    monkeypatch.setattr(processor, "__call__", call)
    report = run(folder, tmp_path / "out.jsonl", model)
    (entry,) = report["broken"]
    assert entry["image"].endswith("5b.png") and report["predictions"] == 20
    assert entry["error"] == (
        "the image of size (1, 300) cannot be prepared for the model: height/width is 300, expected at most 200"
    )
