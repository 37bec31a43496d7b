"""Rows to batches: tensors of the promised shape and type, and errors that name the row."""

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_par_hf.data import ParCollator
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = AttributeSchema(
    [
        {"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"]},
        {"name": "Color", "question": "what color?", "labels": ["r", "g", "b"], "prompts": ["red", "green", "blue"]},
    ]
)


def processor(images, return_tensors):
    assert return_tensors == "pt" and all(isinstance(image, Image.Image) for image in images)
    return {"pixel_values": torch.stack([torch.from_numpy(np.array(image)) for image in images])}


def row(value=0, labels=(1, 2), **more):
    labels = {} if labels is None else {"labels": list(labels)}
    return {"image": Image.new("RGB", (2, 3), (value, 0, 0)), **labels, "image_id": "a.jpg", **more}


def test_images_and_labels():
    batch = ParCollator(processor, SCHEMA)([row(4), row(5, (-100, 0))])
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 2, 3) and batch["pixel_values"][:, 0, 0, 0].tolist() == [4, 5]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [[1, 2], [-100, 0]]


def test_images_of_every_kind(tmp_path):
    Image.new("RGB", (2, 3), (7, 0, 0)).save(tmp_path / "a.png")
    rows = [{"image": str(tmp_path / "a.png")}, {"image": {"path": str(tmp_path / "a.png"), "bytes": None}}]
    assert ParCollator(processor)(rows)["pixel_values"][:, 0, 0, 0].tolist() == [7, 7]
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match="bad.png"):
        ParCollator(processor)([{"image": str(tmp_path / "bad.png")}])


def test_a_large_batch_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_par_hf.utils.default_threads", lambda: 3)
    for index in range(20):
        Image.new("RGB", (2, 3), (index, 0, 0)).save(tmp_path / f"{index}.png")
    rows = [{"image": str(tmp_path / f"{index}.png"), "labels": [index]} for index in range(20)]
    batch = ParCollator(processor)(rows)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == batch["labels"][:, 0].tolist() == list(range(20))


@pytest.mark.parametrize("labels", [np.array([1, 2]), torch.tensor([1, 2]), (1, 2), np.array([1, 2], np.uint8)])
def test_kinds_of_labels(labels):
    batch = ParCollator(processor, SCHEMA)([{**row(), "labels": labels}])
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [[1, 2]]


def test_rows_without_labels():
    assert set(ParCollator(processor)([row(labels=None), row(labels=None)])) == {"pixel_values"}
    assert set(ParCollator(processor)([{**row(), "labels": None}])) == {"pixel_values"}


def test_a_real_processor():
    from modeling_tests.tiny import tiny_processor

    batch = ParCollator(tiny_processor("naflex"))([row(), row()])
    assert {"pixel_values", "pixel_attention_mask", "spatial_shapes", "labels"} <= set(batch)
    assert all(isinstance(value, torch.Tensor) for value in batch.values())


def test_precomputed_features():
    rows = [
        {"patch_embeds": np.full((5, 4), i, np.float16), "image_embeds": torch.ones(4), "patch_mask": [True] * 5}
        | {"labels": [0, i]}
        for i in range(3)
    ]
    batch = ParCollator(None, SCHEMA)(rows)
    assert batch["patch_embeds"].shape == (3, 5, 4) and batch["patch_embeds"].dtype == torch.float16
    assert batch["image_embeds"].shape == (3, 4)
    assert batch["patch_mask"].dtype == torch.bool and batch["patch_mask"].shape == (3, 5)
    assert batch["labels"].tolist() == [[0, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([], ValueError, "examples is empty"),
        ([row(), row(labels=None)], ValueError, "row 1 has no 'labels', row 0 has; expected all or none"),
        ([row(), row(labels=(1,))], ValueError, r"labels of row 1 have shape \(1,\); expected 2"),
        (
            [row(), row(labels=(2, 0))],
            ValueError,
            "labels holds 2 for attribute 'Hat' of row 1, expected 0 to 1",
        ),
        ([row(labels=(0, -1))], ValueError, "labels holds -1 for attribute 'Color' of row 0"),
        ([row(labels=(0.0, 1.0))], TypeError, "labels of row 0 are float64; expected whole numbers"),
        ([row(labels=("no", "zz"))], ValueError, "row 0: labels names 'no', which is no attribute"),
        ([row(), {"labels": [0, 0]}], ValueError, "row 1 has no 'image'"),
        ([{"image_embeds": np.ones(3)}, {}], ValueError, "row 1 has no 'image_embeds'"),
        (
            [{"patch_embeds": np.ones((2, 3))}, {"patch_embeds": np.ones((4, 3))}],
            ValueError,
            r"'patch_embeds' of row 1 has shape \(4, 3\), of row 0 \(2, 3\); expected the same number of patches",
        ),
    ],
)
def test_wrong_rows(rows, error, message):
    with pytest.raises(error, match=message):
        ParCollator(processor, SCHEMA)(rows)


def test_wrong_rows_without_a_schema():
    with pytest.raises(ValueError, match="row 1 has 1 labels, row 0 has 2"):
        ParCollator(processor)([row(), row(labels=(1,))])
    with pytest.raises(ValueError, match="label -1 of row 0, attribute 1: expected -100 or a class index from 0$"):
        ParCollator(processor)([row(labels=(0, -1))])


def test_wrong_processor():
    with pytest.raises(ValueError, match="processor is None; expected one"):
        ParCollator()([row()])
    with pytest.raises(TypeError, match="processor is a str"):
        ParCollator("google/siglip2-base-patch16-naflex")


def test_labels_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"labels of row 0 are \[\[0\], \[0, 1\]\]; expected one per attribute"):
        ParCollator()([{"image_embeds": np.zeros(2), "labels": [[0], [0, 1]]}])


def test_labels_by_name_need_the_schema():
    schema = AttributeSchema.from_texts({"Hat": "a hat", "Bag": "a backpack | a handbag | no bag"})
    with pytest.raises(TypeError, match="labels of row 0 are .'Hat'.; expected class indices, or the argument schema"):
        ParCollator()([{"image_embeds": np.zeros(2), "labels": ["Hat"]}])
    rows = [{"Hat": "yes", "Bag": 2}, "Hat|a handbag", ["Hat"], ["no", "no bag"], (0, 1)]
    batch = ParCollator(schema=schema)([{"image_embeds": np.zeros(2), "labels": labels} for labels in rows])
    assert batch["labels"].tolist() == [[1, 2], [1, 1], [1, -100], [0, 2], [0, 1]]
    with pytest.raises(ValueError, match="row 1: labels names 'Hut', which is no attribute; did you mean 'Hat'"):
        ParCollator(schema=schema)([{"image_embeds": np.zeros(2), "labels": labels} for labels in (["Hat"], ["Hut"])])
