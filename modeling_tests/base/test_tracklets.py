"""The processor of tracklets."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tests.tiny import tiny_processor, tiny_vtf_processor


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["naflex", "fixed", "clip"])
def test_tracklets_of_other_lengths_and_frames_of_other_sizes(kind):
    processor = tiny_vtf_processor(kind)
    tracklets = [[picture(8, 20), picture(11, 17, 1), picture(30, 40, 2)], [picture(9, 9, 3)]]
    found = processor(videos=tracklets, return_tensors="pt")
    assert found["frame_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert found["pixel_values"].shape[:2] == (2, 3)
    flat = processor(images=[*tracklets[0], *tracklets[1]], return_tensors="pt")
    for name, value in flat.items():
        assert torch.equal(found[name][0], value[:3]) and torch.equal(found[name][1, 0], value[3])
    one = processor(videos=tracklets[0])  # one list of pictures is one tracklet
    assert torch.equal(one["pixel_values"], found["pixel_values"][:1]) and one["frame_mask"].all()


def test_a_picture_is_padded_to_a_square_with_black():
    processor = tiny_vtf_processor("fixed")
    squashed = processor(images=[picture(8, 16)])["pixel_values"]
    processor.pad_to_square = True
    padded = processor(images=[picture(8, 16)])["pixel_values"]
    assert squashed.shape == padded.shape
    assert (padded[..., :3] == -1).all() and (padded[..., -3:] == -1).all() and not (squashed[..., :3] == -1).all()


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], "videos is empty"),
        ([[picture(4, 8)], []], "tracklet 1 has no frame"),
        ([[picture(4, 8), b"broken"]], "tracklet 0, frame 1: .*cannot be read as an image"),
        ([["nowhere.jpg"]], "tracklet 0, frame 0: .*nowhere.jpg"),
        (picture(4, 8), "videos is a Image, expected a list of lists of pictures"),
        ([[picture(4, 8)], picture(4, 8)], "tracklet 1 is a Image, expected a list of pictures"),
    ],
)
def test_what_is_no_tracklet(videos, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        tiny_vtf_processor("fixed")(videos=videos)


def test_what_contradicts_itself():
    with pytest.raises(ValueError, match="images and videos were both given"):
        tiny_vtf_processor("fixed")(images=[picture(4, 8)], videos=[[picture(4, 8)]])
    naflex = tiny_processor("naflex")
    with pytest.raises(ValueError, match="pad_to_square is True, but NaFlex"):
        type(tiny_vtf_processor())(naflex.image_processor, naflex.tokenizer, pad_to_square=True)
