"""A small data set whose labels can be seen, and a tiny model over it."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tests.tiny import save_backbone, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.data import attach_schema


# Tiny matrices gain nothing from two threads, and on a busy machine the threads wait for each other.
torch.set_num_threads(1)

SIZES = {"train": 48, "validation": 24, "test": 20}


def draw(labels, rng):
    """One band per attribute, as bright as its label is large, under noise."""
    pixels = rng.integers(0, 60, (64, 32, 3)).astype(np.int64)
    for row, label in enumerate(labels):
        height = 64 // len(labels)
        pixels[row * height : (row + 1) * height, :, row % 3] += 70 * max(int(label), 0)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def build_data(schema, sizes=SIZES, *, unknown=0.1, seed=0):
    rng = np.random.default_rng(seed)
    splits = {}
    for split, size in sizes.items():
        rows = {"image": [], "image_id": [], "labels": [], "person_id": []}
        for index in range(size):
            labels = np.array([rng.integers(0, attribute.num_labels) for attribute in schema])
            rows["image"].append(draw(labels, rng))
            rows["image_id"].append(f"{split}_{index:03d}.png")
            rows["labels"].append(np.where(rng.random(len(schema)) < unknown, -100, labels).tolist())
            rows["person_id"].append(index // 2)
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "image_id": datasets.Value("string"),
                "labels": datasets.List(datasets.Value("int64"), length=len(schema)),
                "person_id": datasets.Value("int64"),
            }
        )
        splits[split] = attach_schema(datasets.Dataset.from_dict(rows, features=features), schema, name="bands")
    return datasets.DatasetDict(splits)


@pytest.fixture(scope="session")
def data():
    return build_data(tiny_schema())


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A folder as a user would name it: a plain SigLIP 2 checkpoint with its tokenizer and image processor."""
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, tiny_model("naflex"), tiny_processor("naflex"))
    return str(folder)
