"""Parts of pictures as the ends of paths."""

import numpy as np
import pytest
from PIL import Image

from vlm_par_hf.images.opening import open_image
from vlm_par_hf.images.regions import REGION_FORMATS, Region, is_region, join_region, read_region, split_region
from vlm_par_hf.inference.boxes import BOX_FORMATS, check_boxes


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    return tmp_path / "street.png", pixels


def test_the_formats_are_those_of_the_pipeline():
    assert REGION_FORMATS == BOX_FORMATS


@pytest.mark.parametrize("box_format", REGION_FORMATS)
@pytest.mark.parametrize("corners", [(3, 5, 20, 38), (2.3, 4.6, 19.5, 30.2), (-4, -3, 12, 70)])
def test_the_part_is_what_the_pipeline_cuts_out(picture, box_format, corners):
    path, pixels = picture
    x0, y0, x1, y1 = corners
    numbers = {
        "xyxy": (x0, y0, x1, y1),
        "xywh": (x0, y0, x1 - x0, y1 - y0),
        "cxcywh": ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
    }[box_format.removesuffix("n")]
    if box_format.endswith("n"):
        numbers = [number / side for number, side in zip(numbers, (60, 40, 60, 40))]
    ((crop, _),) = check_boxes([numbers], (60, 40), box_format=box_format)
    left, top, right, bottom = crop
    place = join_region(str(path), read_region(numbers, box_format))
    found = open_image({"path": place, "bytes": None})
    assert np.array_equal(np.asarray(found), pixels[top:bottom, left:right])


def test_a_path_and_its_region(tmp_path):
    region = Region(1, 2.5, 30, 40)
    assert join_region("a.jpg", region) == "a.jpg#xywh=1,2.5,30,40"
    assert split_region("a.jpg#xywh=1,2.5,30,40") == ("a.jpg", region)
    percent = Region(10, 20, 30, 40, percent=True)
    assert split_region(join_region("a.jpg", percent)) == ("a.jpg", percent)
    assert split_region("a.jpg") == ("a.jpg", None) and split_region("a#xywh=1,2.jpg")[1] is None
    real = tmp_path / "a.jpg#xywh=1,2,3,4"
    real.touch()
    assert split_region(str(real)) == (str(real), None)
    assert is_region("a.jpg#xywh=1,2,3,4") and not is_region("a.jpg") and not is_region(None)


def test_a_part_of_a_reduced_jpeg(tmp_path):
    pixels = np.zeros((3000, 9000, 3), np.uint8)
    pixels[:, 4500:] = 255
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    for box, value in (((0, 0, 4000, 3000), 0), ((5000, 0, 4000, 3000), 255)):
        part = open_image({"path": join_region(str(tmp_path / "large.jpg"), Region(*box)), "bytes": None})
        assert np.asarray(part).mean() == value


def test_what_is_outside_is_named(picture):
    with pytest.raises(
        ValueError, match=r"street.png#xywh=70,0,5,5'.*outside of the picture of width 60 and height 40"
    ):
        open_image({"path": f"{picture[0]}#xywh=70,0,5,5", "bytes": None})
