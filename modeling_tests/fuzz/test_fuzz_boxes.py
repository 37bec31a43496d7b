"""Boxes of people in every format and container, and wrong ones."""

import math
from fractions import Fraction

import numpy as np
import pandas
import torch
from hypothesis import strategies as st
from PIL import Image

from modeling_tests.fuzz.fuzzing import Area
from vlm_par_hf.inference.boxes import BOX_FORMATS, check_boxes
from vlm_par_hf.inference.pictures import Pictures


AREA = Area("boxes", "the crop computed in exact fractions from the drawn corners")
CONTAINERS = {
    "list": lambda box: box,
    "tuple": tuple,
    "array": np.array,
    "float32": lambda box: np.array(box, np.float32),
    "tensor": lambda box: torch.tensor(box, dtype=torch.float64),
    "series": lambda box: pandas.Series(box, index=[3, 2, 1, 0]),
    "scalars": lambda box: [np.float64(one) for one in box],
}
sizes = {"width": st.integers(3, 300), "height": st.integers(3, 300)}
shares = st.floats(-0.3, 1.3, allow_nan=False)


class Processor:
    """Keeps the crops that it is given."""

    def __call__(self, images, return_tensors):
        return {"pixel_values": torch.from_numpy(np.array(images[0]))[None]}


def picture(width, height):
    """Every pixel tells its place."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns % 256, rows % 256, 2 * (columns // 256) + rows // 256], -1).astype(np.uint8)


def in_format(corners, box_format, width, height):
    x0, y0, x1, y1 = corners
    box = {
        "xyxy": [x0, y0, x1, y1],
        "xywh": [x0, y0, x1 - x0, y1 - y0],
        "cxcywh": [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
    }[box_format.rstrip("n")]
    if box_format.endswith("n"):
        box = [one / side for one, side in zip(box, (width, height, width, height))]
    return box


def edges(low, high, margin, side):
    """The whole pixels of one axis; a thousandth of a pixel beside an edge lies on it."""
    low, high, near = Fraction(low), Fraction(high), Fraction(1, 1000)
    more = Fraction(margin) * (high - low)
    low, high = max(low - more, 0), min(high + more, side)
    start = min(math.floor(low + near), side - 1)
    return start, max(math.ceil(high - near), start + 1)


def all_near(found, wanted, corners, margin, sides):
    """Equal, except where rounding of the input itself decides: an edge within a hundredth of the thousandth."""
    for axis in (0, 1):
        low, high = Fraction(corners[axis]), Fraction(corners[axis + 2])
        more = Fraction(margin) * (high - low)
        for value, one, other in (
            (low - more, found[axis], wanted[axis]),
            (high + more, found[axis + 2], wanted[axis + 2]),
        ):
            fraction = float(value) % 1
            unsure = min(abs(fraction - 0.001), abs(fraction - 0.999)) < 2e-4
            assert one == other or (unsure and abs(one - other) == 1), f"{found}, expected {wanted}"
    return True


@AREA.fuzz(
    2500,
    **sizes,
    corners=st.tuples(shares, shares, shares, shares),
    whole=st.booleans(),
    in_order=st.sampled_from((True, True, True, False)),
    box_format=st.sampled_from(BOX_FORMATS),
    margin=st.sampled_from((0, 0, 0.1, 0.25, 1)),
    container=st.sampled_from(sorted(CONTAINERS)),
)
def test_boxes_are_cropped_as_drawn_or_refused(width, height, corners, whole, in_order, box_format, margin, container):
    sides = (width, height, width, height)
    corners = [one * side for one, side in zip(corners, sides)]
    corners = [round(one) if whole else one for one in corners]
    if in_order:
        corners = [*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:])]
    box = in_format(corners, box_format, width, height)
    x0, y0, x1, y1 = corners
    is_wrong = x1 <= x0 or y1 <= y0 or x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height
    if not is_wrong and min(x1 - x0, y1 - y0, x1, y1, width - x0, height - y0) < 1e-3:
        return  # so thin that rounding of the input decides
    if min(abs(x1 - x0), abs(y1 - y0)) < 1e-3 and not is_wrong:
        return
    (x_start, x_end), (y_start, y_end) = (
        ((0, 0), (0, 0)) if is_wrong else (edges(x0, x1, margin, width), edges(y0, y1, margin, height))
    )
    wanted, pixels = (x_start, y_start, x_end, y_end), picture(width, height)
    given = [[0, 0, width, height], CONTAINERS[container](box)]
    given[0] = in_format(given[0], box_format, width, height)

    def crop():
        people = list(
            Pictures(
                [Image.fromarray(pixels)], processor=Processor(), single=True, boxes=[given], box_format=box_format,
                box_margin=margin,
            ).read()
        )  # fmt: skip
        return people[1].picture.boxes[1].crop, people[1].inputs["pixel_values"][0].numpy()

    def right(answer):
        box, found = answer
        all_near(box, wanted, corners, margin, sides)
        assert np.array_equal(found, pixels[box[1] : box[3], box[0] : box[2]]), "another crop"
        return True

    AREA.judge(crop, right, must_refuse=is_wrong)


@AREA.fuzz(
    800,
    **sizes,
    corners=st.tuples(*[st.integers(0, 299)] * 4),
    box_format=st.sampled_from(("xyxy", "xywh", "cxcywh")),
    container=st.sampled_from(sorted(CONTAINERS)),
)
def test_good_pixels_are_never_refused(width, height, corners, box_format, container):
    x0, x1 = sorted((corners[0] % width, corners[2] % width))
    y0, y1 = sorted((corners[1] % height, corners[3] % height))
    box = in_format((x0, y0, x1 + 1, y1 + 1), box_format, width, height)
    if max(box) <= 1.5:
        return  # these are shares, see below
    AREA.judge(
        lambda: check_boxes([CONTAINERS[container](box)], (width, height), box_format=box_format)[0].crop,
        lambda found: found == (x0, y0, x1 + 1, y1 + 1),
        refusals=(),
    )


@AREA.fuzz(
    600,
    **sizes,
    box=st.tuples(*[st.floats(0, 1, allow_nan=False)] * 4),
    box_format=st.sampled_from(("xyxy", "xywh", "cxcywh")),
    container=st.sampled_from(sorted(CONTAINERS)),
)
def test_shares_are_never_taken_for_pixels(width, height, box, box_format, container):
    AREA.judge(
        lambda: check_boxes([CONTAINERS[container](list(box))], (width, height), box_format=box_format),
        lambda found: False,
        must_refuse=True,
    )


no_number = st.sampled_from(
    [float("nan"), float("inf"), -float("inf"), None, "5", b"5", True, [5], 10**400, 5j, {}, np.nan]
)
no_box = st.one_of(
    st.lists(st.integers(0, 90), max_size=3),
    st.lists(st.integers(0, 90), min_size=5, max_size=6),
    st.tuples(st.integers(0, 3), no_number).map(
        lambda wrong: [0 if i < 2 else 50 for i in range(wrong[0])] + [wrong[1]] + [50] * (3 - wrong[0])
    ),
    st.sampled_from(
        [
            "0 0 50 50",
            "1234",
            b"1234",
            {0, 1, 50, 51},
            None,
            7,
            {"xmin": 0, "ymin": 0, "xmax": 50},
            [[0, 0, 50, 50]],
            {"x": 1, "y": 2, "w": 50, "h": 50},
        ]
    ),
)


@AREA.fuzz(1000, box=no_box, box_format=st.sampled_from(BOX_FORMATS), first=st.booleans())
def test_what_is_no_box_is_refused(box, box_format, first):
    good = in_format([0, 0, 50, 50], box_format, 100, 100)
    boxes = [box, good] if first else [good, box]
    AREA.judge(lambda: check_boxes(boxes, (100, 100), box_format=box_format), lambda found: False, must_refuse=True)
