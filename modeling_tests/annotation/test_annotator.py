"""`Annotator`: batches of any source, pickling, its fingerprint, and images that cannot be prepared."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from modeling_tests.crops import close
from modeling_tests.image_folders import names, read, run, save_image, save_model
from modeling_tests.labels.test_decisions import some_decisions
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf import AttributeSchema
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
    answers = found["prediction"][:5]
    assert "Female" not in answers[0]["attributes"]
    scores = [answer["attributes"]["Hat"]["score"] for answer in answers]
    assert scores[1] == pytest.approx(scores[3], abs=1e-6) == pytest.approx(scores[4], abs=1e-6) != scores[0]
    copy = pickle.loads(pickle.dumps(annotator))
    assert "pipe" in vars(annotator) and "pipe" not in vars(copy)
    assert copy({"image": files})["prediction"] == annotator({"image": files})["prediction"]
    data = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    mapped = data.map(Annotator(model, batch_size=3, sensitive=False), batched=True, batch_size=6)
    assert mapped["prediction"][:] == annotator({"image": files})["prediction"]
    assert close(mapped["prediction"][0]["attributes"]["Hat"], annotator.pipe(files[0])["attributes"]["Hat"])


def test_rows_of_a_data_set_have_one_type_whatever_comes_first(folder, model):
    """`datasets` takes the type of a column from the rows that it writes first, here all broken, or all read."""
    import datasets

    files = names(ImageList(folder))[:4]
    for sources in (["none.png", "none.png", *files[:2]], [*files[:2], "none.png", "none.png"]):
        data = datasets.Dataset.from_dict({"image": sources, "boxes": [[[0, 0, 6, 24], [6, 0, 12, 24]]] * 4})
        for options in ({"only_positive": True}, {"explain": ["Hat"]}):
            whole, cut = (
                one.map(Annotator(model, **options), batched=True, batch_size=2, writer_batch_size=2)
                for one in (data.remove_columns("boxes"), data)
            )
            assert [one is None for one in whole["prediction"]] == [one == "none.png" for one in sources]
            assert [one is None for one in whole["error"]] == [one != "none.png" for one in sources]
            assert "probabilities" in whole.features["prediction"]["attributes"]["Hat"]
            people = next(one for one in cut["prediction"] if one is not None)
            assert [one["box"] for one in people] == [[0, 0, 6, 24], [6, 0, 12, 24]]


def test_people_of_a_detector(folder, model):
    def detector(image, threshold):
        found = [{"label": "person", "score": 0.9, "box": {"xmin": 0, "ymin": 0, "xmax": 6, "ymax": image.height}}]
        return found * 2 if image.getpixel((0, 0))[0] > 60 else []

    annotator = Annotator(model, batch_size=3, detector=detector)
    found = annotator({"image": names(ImageList(folder))})["prediction"]
    assert {len(people) for people in found} == {0, 2}
    people = next(people for people in found if people)
    assert people[0] == people[1] and people[0]["score"] == 0.9 and people[0]["box"] == [0, 0, 6, 24]
    with pytest.raises(TypeError, match="detector is 3, expected the name of a model or a function"):
        Annotator(model, detector=3)({"image": []})
    with pytest.raises(OSError, match="detector.*there is no folder './none'"):
        Annotator(model, detector="./none")({"image": []})


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

    def open_row(image, options, **named):
        if str(image).endswith("/3.png"):
            raise PermissionError(13, "Permission denied", image)
        return real(image, options, **named)

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


def test_what_makes_no_sense_in_every_output(folder, tmp_path):
    import datasets

    model = randomize(tiny_model("kway"), 2, scale=2.0)
    model.config.set_schema(
        AttributeSchema(
            replace(one, **{"BagSide": {"requires": ("Hat", "yes")}, "Hat": {"threshold": 0.1}}.get(one.name, {}))
            for one in model.config.schema
        )
    )
    model.save_pretrained(tmp_path / "rules")
    tiny_processor("naflex").save_pretrained(tmp_path / "rules")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        run(folder, tmp_path / name, str(tmp_path / "rules"))
    rows = read(tmp_path / "out.jsonl")
    labels = [row["attributes"]["BagSide"]["label"] for row in rows]
    assert [label is None for label in labels] == [row["attributes"]["Hat"]["label"] == "no" for row in rows]
    assert None in labels and len(set(labels)) > 1
    for table in (pandas.read_csv(tmp_path / "out.csv"), pandas.read_parquet(tmp_path / "out.parquet")):
        assert [None if pandas.isna(one) else one for one in table["BagSide"]] == labels
        assert list(table["BagSide_score"].isna()) == [label is None for label in labels]
        assert not table["BagSide_left"].isna().any()
    data = datasets.Dataset.from_dict({"image": [row["image"] for row in rows]})
    mapped = data.map(Annotator(str(tmp_path / "rules")), batched=True, batch_size=4)
    assert [one["attributes"]["BagSide"]["label"] for one in mapped["prediction"]] == labels
    with pytest.raises(ValueError, match="consistent was None and is False"):
        run(folder, tmp_path / "out.csv", str(tmp_path / "rules"), consistent=False)
    run(folder, tmp_path / "alone.jsonl", str(tmp_path / "rules"), consistent=False)
    assert all(row["attributes"]["BagSide"]["label"] for row in read(tmp_path / "alone.jsonl"))


def test_what_is_left_open_in_every_output(folder, tmp_path):
    import datasets

    model = randomize(tiny_model("kway"), 2, scale=2.0)
    model.config.set_decisions(some_decisions())
    model.save_pretrained(tmp_path / "fitted")
    tiny_processor("naflex").save_pretrained(tmp_path / "fitted")
    save_image(folder / "9.png", 9, size=(8, 14))
    options = {"decide": "mA", "abstain": 0.5}
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        report = run(folder, tmp_path / name, str(tmp_path / "fitted"), **options)
    assert (report["run"]["decide"], report["run"]["abstain"]) == ("mA", 0.5)
    assert report["run"]["thresholds"] == {"Hat": 0.2, "Backpack": 0.35, "Female": 0.5}
    rows = read(tmp_path / "out.jsonl")
    low = next(row for row in rows if row["image"].endswith("9.png") and not row["image"].endswith("19.png"))
    assert low["attributes"]["Hat"]["reason"] == "14 pixels high" and low["attributes"]["Hat"]["set"] == ["no", "yes"]
    tables = (pandas.read_csv(tmp_path / "out.csv"), pandas.read_parquet(tmp_path / "out.parquet"))
    answers = [row["attributes"]["Hat"] for row in rows]
    wanted = ["unknown: 14 pixels high" if row is low else row["attributes"]["Hat"]["label"] for row in rows]
    assert {"no", "unknown", "unknown: 14 pixels high"} <= set(wanted)
    for table in tables:
        assert list(table["Hat"]) == wanted
        assert list(table["Hat_score"].isna()) == [text.startswith("unknown") for text in wanted]
        assert table["Hat_yes"].tolist() == pytest.approx([one["probabilities"]["yes"] for one in answers], abs=1e-6)
    data = datasets.Dataset.from_dict({"image": [row["image"] for row in rows]})
    mapped = data.map(Annotator(str(tmp_path / "fitted"), **options), batched=True, batch_size=4)
    found = [one["attributes"]["Hat"] for one in mapped["prediction"]]
    assert [one["label"] for one in found] == [one["label"] for one in answers]
    assert [one["set"] for one in found] == [one["set"] for one in answers]
    assert mapped.features["prediction"]["attributes"]["Hat"]["reason"].dtype == "string"
    with pytest.raises(ValueError, match="decide was 'mA' and is None"):
        run(folder, tmp_path / "out.csv", str(tmp_path / "fitted"), abstain=0.5)
