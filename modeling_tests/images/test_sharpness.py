"""How much of a picture a low copy loses."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

import vlm_par_hf
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.images.sharpness import measure_detail


@pytest.fixture(scope="module")
def crop():
    return open_image(vlm_par_hf.example_crop("backpack")).convert("RGB")


def test_blur_and_enlargement_lose_detail(crop):
    blurred = [
        measure_detail(crop.filter(ImageFilter.GaussianBlur(share * crop.height)), 24)
        for share in (0, 0.01, 0.02, 0.03, 0.06)
    ]
    assert blurred == sorted(blurred, reverse=True) and blurred[0] > 0.2 > 0.1 > blurred[3]
    small = crop.resize((round(crop.width * 16 / crop.height), 16), Image.Resampling.BICUBIC)
    assert (
        measure_detail(small.resize(crop.size, Image.Resampling.BICUBIC), 24) < 0.12 and measure_detail(small, 24) == 1
    )


def test_even_and_noisy_pictures():
    assert measure_detail(Image.new("RGB", (50, 100), "red"), 24) == 0
    noise = np.random.default_rng(0).integers(0, 256, (100, 50), dtype=np.uint8)
    assert 0.8 < measure_detail(Image.fromarray(noise), 24) < 1.1
