"""Folders of noise images, a tiny checkpoint that annotates them, and what a run leaves."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.annotation import ImageList, annotate


def save_image(path: Path, number: int, size=(12, 24)) -> None:
    rng = np.random.default_rng(number)
    pixels = np.uint8(rng.uniform(0, 1, (size[1], size[0], 3)) * rng.uniform(0, 255, (size[1], 1, 3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_model(folder, seed=2, processor=None) -> None:
    randomize(tiny_model("kway"), seed, scale=2.0).save_pretrained(folder)
    (processor or tiny_processor("naflex")).save_pretrained(folder)


def names(images: ImageList) -> list[str]:
    return [row.name for row in images.rows()]


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def run(images, out, model, **options):
    return annotate(images, out, model=model, **{"batch_size": 3, "images_per_part": 8, "progress": False, **options})
