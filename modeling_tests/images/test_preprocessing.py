"""The fast road from pictures to `pixel_values`, within 2 grey levels of transformers' Pillow backend."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vlm_par_hf.images import preprocessing as pixels
from vlm_par_hf.images.opening import open_images
from vlm_par_hf.images.preprocessing import preprocess_images


# (width, height): crops of PA-100K, the field's 128 x 256, wider than tall, lines, a pixel, a frame.
SIZES = [(54, 145), (75, 200), (132, 333), (128, 256), (256, 128), (224, 224), (1, 400), (400, 1), (1, 1), (3, 2)]
SIZES += [(17, 31), (640, 480), (2000, 37)]

PROCESSORS = {
    "naflex 128": lambda: Siglip2ImageProcessorPil(max_num_patches=128),
    "naflex 256": Siglip2ImageProcessorPil,
    "naflex 196, patch 14": lambda: Siglip2ImageProcessorPil(max_num_patches=196, patch_size=14),
    "naflex 1": lambda: Siglip2ImageProcessorPil(max_num_patches=1),
    "naflex bicubic": lambda: Siglip2ImageProcessorPil(max_num_patches=128, resample=3),
    "naflex, statistics per channel": lambda: Siglip2ImageProcessorPil(
        max_num_patches=64, image_mean=[0.48, 0.45, 0.40], image_std=[0.27, 0.26, 0.28]
    ),
    "fixed 224": lambda: SiglipImageProcessorPil(resample=2),
    "fixed 224, bicubic": SiglipImageProcessorPil,
    "fixed 384": lambda: SiglipImageProcessorPil(resample=2, size={"height": 384, "width": 384}),
    "fixed 256 x 128": lambda: SiglipImageProcessorPil(resample=2, size={"height": 256, "width": 128}),
    "clip, bicubic": lambda: CLIPImageProcessorPil(size={"height": 224, "width": 224}, do_center_crop=False),
    "fixed, statistics per channel": lambda: SiglipImageProcessorPil(
        resample=2, image_mean=[0.48, 0.45, 0.40], image_std=[0.27, 0.26, 0.28]
    ),
}


def noise(size, contrast="levels", seed=0):
    """The worst case for resizing: independent pixels; "extremes" are black and white only."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values if contrast == "levels" else np.where(values < 128, 0, 255).astype(np.uint8))


def smooth(size):
    """What a photograph is more like."""
    return noise((8, 8)).resize(size, Image.Resampling.BICUBIC)


def grey_levels(found, expected, image_processor):
    """Largest difference of `pixel_values` in grey levels."""
    std = np.asarray(image_processor.image_std, np.float32)
    if found.ndim == 4:
        std = std.reshape(3, 1, 1)
    else:
        std = np.tile(std, found.shape[-1] // 3)
    return float((np.abs(np.asarray(found) - np.asarray(expected)) * std * 255).max())


def forbid(image_processor, monkeypatch):
    """From here on the image processor computes nothing."""

    def fail(*args, **kwargs):
        raise AssertionError("the image processor was called")

    monkeypatch.setattr(type(image_processor), "preprocess", fail)


def assert_equal_within_levels(found, expected, image_processor, levels=2.0):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        if name != "pixel_values":
            assert np.array_equal(found[name], value), name
    assert grey_levels(found["pixel_values"], expected["pixel_values"], image_processor) <= levels + 1e-3


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_the_reference(name, return_tensors, monkeypatch):
    image_processor = PROCESSORS[name]()
    images = [noise(size) for size in SIZES] + [noise(size, "extremes", 1) for size in SIZES]
    images += [smooth(size) for size in SIZES]
    expected = image_processor(images, return_tensors=return_tensors)
    forbid(image_processor, monkeypatch)
    found = preprocess_images(image_processor, images, return_tensors=return_tensors)
    # Where Pillow resizes there is nothing but floating-point rounding.
    assert_equal_within_levels(found, expected, image_processor, 0.0 if "bicubic" in name else 2.0)


def test_real_crops_equal_the_reference():
    if not os.environ.get("PAR_DATA"):
        pytest.skip("PAR_DATA is not set: needs the folder with real PA-100K images")
    paths = sorted((Path(os.environ["PAR_DATA"]) / "pa100k_mini" / "data").glob("*.jpg"))[::25]
    images = open_images(paths)
    assert len(images) == 64
    for name in ("naflex 128", "fixed 224"):
        image_processor = PROCESSORS[name]()
        expected = image_processor(images, return_tensors="pt")
        assert_equal_within_levels(preprocess_images(image_processor, images), expected, image_processor, 1.0)


@pytest.mark.parametrize("name", ["naflex 128", "fixed 256 x 128"])
def test_a_picture_of_the_wanted_size_is_not_touched(name):
    image_processor, image = PROCESSORS[name](), noise((128, 256))
    values = preprocess_images(image_processor, [image])["pixel_values"]
    if name == "naflex 128":
        values = values.reshape(16, 8, 16, 16, 3).permute(0, 2, 1, 3, 4).reshape(256, 128, 3)
    else:
        values = values[0].permute(1, 2, 0)
    assert np.array_equal(np.rint((values.numpy() + 1) * 127.5).astype(np.uint8), np.asarray(image))


def test_the_pictures_stay_as_they_are():
    images = [noise((75, 200)), noise((128, 256))]
    before = [np.array(image) for image in images]
    for name in ("naflex 128", "fixed 224", "fixed 256 x 128"):
        preprocess_images(PROCESSORS[name](), images)
    assert all(np.array_equal(one, old) for one, old in zip(images, before))


@pytest.mark.parametrize("name", ["naflex 128", "fixed 224"])
def test_threads_and_batches_change_nothing(name, monkeypatch):
    image_processor, images = PROCESSORS[name](), [noise(SIZES[index % 7], seed=index) for index in range(24)]
    monkeypatch.setattr("vlm_par_hf.utils.default_threads", lambda: 1)
    expected = preprocess_images(image_processor, images)
    monkeypatch.setattr("vlm_par_hf.utils.default_threads", lambda: 3)
    for name, value in preprocess_images(image_processor, images).items():
        assert torch.equal(value, expected[name])
    for index in (0, 23):
        for name, value in preprocess_images(image_processor, images[index : index + 1]).items():
            assert torch.equal(value[0], expected[name][index])


def test_the_settings_of_the_moment_count(monkeypatch):
    image_processor = Siglip2ImageProcessorPil()
    image_processor.max_num_patches, image_processor.image_std = 32, (0.25, 0.25, 0.25)
    expected = [image_processor([noise((40, 90))], return_tensors="pt")]
    expected.append(image_processor([noise((40, 90))], return_tensors="pt", max_num_patches=20))
    forbid(image_processor, monkeypatch)
    for options, one in zip(({}, {"max_num_patches": 20}), expected):
        assert_equal_within_levels(
            preprocess_images(image_processor, [noise((40, 90))], **options), one, image_processor
        )


class Inverted(Siglip2ImageProcessorPil):
    def normalize(self, image, mean, std, **kwargs):
        return -super().normalize(image, mean, std, **kwargs)


@pytest.mark.parametrize(
    "make, options",
    [
        (lambda: Inverted(max_num_patches=32), {}),
        (lambda: Siglip2ImageProcessorPil(do_normalize=False), {}),
        (lambda: Siglip2ImageProcessorPil(do_rescale=False), {}),
        (lambda: Siglip2ImageProcessorPil(), {"max_num_patches": 32, "image_mean": [0.1, 0.2, 0.3]}),
        (lambda: Siglip2ImageProcessorPil(), {"return_tensors": None}),
        (lambda: SiglipImageProcessorPil(do_resize=False), {}),
        (lambda: SiglipImageProcessorPil(do_center_crop=True, crop_size=64), {}),
        (lambda: CLIPImageProcessorPil(), {}),
        (lambda: SiglipImageProcessorPil(do_pad=True, pad_size={"height": 256, "width": 256}), {}),
        (lambda: SiglipImageProcessorPil(size={"shortest_edge": 64}), {}),
        (lambda: SiglipImageProcessorPil(), {"size": {"height": 64, "width": 32}}),
    ],
)
def test_what_is_not_known_is_left_to_the_image_processor(make, options, monkeypatch):
    image_processor, options = make(), {"return_tensors": "np", **options}
    expected = image_processor([noise((40, 90))], **options)
    monkeypatch.setattr(pixels, "_write_normalised", None)
    found = preprocess_images(image_processor, [noise((40, 90))], **options)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "many", None])
def test_a_wrong_patch_budget_is_refused(wrong):
    with pytest.raises(ValueError, match=f"max_num_patches is {wrong!r}; expected a whole number"):
        preprocess_images(Siglip2ImageProcessorPil(), [noise((40, 90))], max_num_patches=wrong)
