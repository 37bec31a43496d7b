"""Crops of noise, tiny pipelines that answer them, and results compared up to rounding."""

import numpy as np
import torch
from PIL import Image

from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline


def make_pipe(kind="naflex", **options):
    return PedestrianAttributesPipeline(
        model=randomize(tiny_model(kind)), processor=tiny_processor(kind), device="cpu", **options
    )


def crop(seed=0, size=(24, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def close(first, second, tolerance=1e-5):
    """Equal results, numbers up to rounding."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key], tolerance) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(close(a, b, tolerance) for a, b in zip(first, second))
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and np.abs(first - second).max() <= tolerance
    if isinstance(first, float):
        return abs(first - second) <= tolerance
    if isinstance(first, Image.Image):
        return first.size == second.size and np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 2
    return first == second


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]
