"""Checks of boxes of people, given by a user or a detector, and of the detector's label for people."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.utils import iterate, shorten_text


__all__ = ["BOX_FORMATS", "Box", "EmptyBox", "check_box_options", "check_boxes", "check_detector_label", "scale_box"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NUMBERS = {
    "xyxy": "[x0, y0, x1, y1]",
    "xywh": "[x0, y0, width, height]",
    "cxcywh": "[center x, center y, width, height]",
}
# In pixels; with an "n" as shares of the picture's width and height.
BOX_FORMATS = tuple(name + unit for name in _NUMBERS for unit in ("", "n"))
# Detectors put edges a little outside the picture. Numbers that all lie in here are shares, if they are not whole
# numbers above 1; shares that do not are pixels.
_SHARES = (-0.5, 1.5)
_WIDEST_SHARE = 2.0
# Edges this near to a whole pixel lie on it: 0.29 of 100 pixels is 28.999999999999996 as a number of the machine.
_ROUNDING = 1e-3


class Box(NamedTuple):
    """A box in whole pixels of the picture, inside it; x1 and y1 are not included."""

    crop: tuple[int, int, int, int]  # what is cut out: with the margin
    given: tuple[int, int, int, int]  # without the margin


class EmptyBox(ParValueError):
    """A box without a pixel of the picture: it has no width or height, or lies outside."""


def check_box_options(box_format: Any, box_margin: Any) -> None:
    """Checks the form of boxes and the margin around them.

    Raises:
        ValueError: a format that is not one of `BOX_FORMATS`; a margin that is not a number from 0 to 10.
    """
    if box_format not in BOX_FORMATS:
        raise ParValueError(f"box_format is {box_format!r:.100}, expected one of {', '.join(BOX_FORMATS)}")
    is_number = isinstance(box_margin, (int, float, np.integer, np.floating)) and not isinstance(box_margin, bool)
    if not is_number or not 0 <= box_margin <= 10:
        raise ParValueError(
            f"box_margin is {box_margin!r:.100}, expected a share of the box's size from 0 to 10, such as 0.1"
        )


def check_boxes(boxes: Any, size: tuple[int, int], *, box_format: str = "xyxy", box_margin: float = 0.0) -> list[Box]:
    """Boxes as whole pixels inside a picture of `size` (width, height): clipped, and rounded outwards.

    Args:
        boxes: a list or array of boxes, each four numbers in the form of `box_format`, or a dict with xmin, ymin,
            xmax, ymax (for the formats xyxy and xyxyn).
        size: of the picture.
        box_format: one of `BOX_FORMATS`: corners, corner and size, or center and size; in pixels or, with an "n" at
            the end, as shares of the picture's width and height.
        box_margin: share of the box's own width and height that is added on each side before rounding and clipping.

    Raises:
        TypeError: `boxes` is no list of boxes.
        ValueError: a box is not of four finite numbers, or is empty, reversed or outside the picture (the latter as
            `EmptyBox`); pixels are so small that they must be shares, or shares so large that they must be pixels.
    """
    check_box_options(box_format, box_margin)
    where = f"in a picture of width {size[0]} and height {size[1]}"
    boxes = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    if isinstance(boxes, (str, Mapping)) or not isinstance(boxes, Iterable):
        shown = shorten_text(repr(boxes), 100)
        raise ParTypeError(f"boxes is {shown}, expected a list of boxes {_NUMBERS[box_format.rstrip('n')]}")
    return [
        _check_box(box, f"boxes[{index}]", size, where, box_format, box_margin)
        for index, box in enumerate(iterate(boxes, "boxes"))
    ]


def _check_box(box: Any, name: str, size: tuple[int, int], where: str, box_format: str, box_margin: float) -> Box:
    form = _NUMBERS[box_format.rstrip("n")]
    values, shown = _four_numbers(box, name, where, box_format)
    if not all(math.isfinite(value) for value in values):
        raise ParValueError(f"{shown}, expected finite numbers {form} {where}")
    width, height = size
    low, high = min(values), max(values)
    if box_format.endswith("n"):
        if high > _WIDEST_SHARE or low < -1:
            raise ParValueError(
                f"{shown}, which are pixels, expected shares of the picture for box_format={box_format!r} {where}; "
                f"for pixels pass box_format={box_format[:-1]!r}"
            )
        values = [value * side for value, side in zip(values, (width, height, width, height))]
    elif size != (1, 1) and _SHARES[0] <= low and high <= _SHARES[1] and not _is_whole_above_one(values):
        raise ParValueError(
            f"{shown}, which are shares of the picture, not pixels: it would be cut to a corner of a pixel or two "
            f"{where}; for shares pass box_format={box_format + 'n'!r}"
        )
    x0, y0, x1, y1 = _corners(values, box_format.rstrip("n"))
    if x1 <= x0 or y1 <= y0:
        if x1 < x0 or y1 < y0:
            raise ParValueError(f"{shown}, which is reversed, expected {_order(box_format)} {where}")
        raise EmptyBox(f"{shown}, which is empty, expected {_order(box_format)} {where}")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise EmptyBox(f"{shown}, which is outside, expected a box that overlaps the picture {where}")
    more_x, more_y = box_margin * (x1 - x0), box_margin * (y1 - y0)
    return Box(
        _round_and_clip(x0 - more_x, y0 - more_y, x1 + more_x, y1 + more_y, width, height),
        _round_and_clip(x0, y0, x1, y1, width, height),
    )


def _four_numbers(box: Any, name: str, where: str, box_format: str) -> tuple[list[float], str]:
    """The numbers of a box, and the box as errors name it."""
    form = _NUMBERS[box_format.rstrip("n")]
    if isinstance(box, Mapping) and set(_CORNERS) <= set(box):
        if not box_format.startswith("xyxy"):
            raise ParValueError(
                f"{name} names the corners {', '.join(_CORNERS)}, expected {form} for box_format={box_format!r}"
            )
        box = [box[corner] for corner in _CORNERS]
    box = box.tolist() if hasattr(box, "tolist") else box
    wrong = f"{name} is {shorten_text(repr(box), 100)}, expected four numbers {form} {where}"
    if isinstance(box, (str, bytes, bytearray, set, frozenset, Mapping)) or not isinstance(box, Iterable):
        raise ParValueError(wrong)
    values = [value.item() if getattr(value, "ndim", None) == 0 else value for value in box]
    # Text such as "10" is no number, and True is no 1: whoever passes them has mixed something up.
    if len(values) != 4 or any(isinstance(value, (bool, str, bytes, bytearray)) for value in values):
        raise ParValueError(wrong)
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise ParValueError(wrong) from None
    return numbers, f"{name} is {shorten_text(repr(values), 200)}"


def _is_whole_above_one(values: list[float]) -> bool:
    return max(values) > 1 and all(value == int(value) for value in values)


def _corners(values: list[float], form: str) -> tuple[float, float, float, float]:
    a, b, c, d = values
    if form == "xywh":
        return a, b, a + c, b + d
    if form == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


def _order(box_format: str) -> str:
    return "x0 < x1 and y0 < y1" if box_format.startswith("xyxy") else "a width and a height above 0"


def _round_and_clip(x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> tuple[int, int, int, int]:
    # Clipped first, because a number may be too large for the whole numbers of a picture.
    x0, x1 = (min(max(value, 0.0), float(width)) for value in (x0, x1))
    y0, y1 = (min(max(value, 0.0), float(height)) for value in (y0, y1))
    left, top = min(math.floor(x0 + _ROUNDING), width - 1), min(math.floor(y0 + _ROUNDING), height - 1)
    return left, top, max(math.ceil(x1 - _ROUNDING), left + 1), max(math.ceil(y1 - _ROUNDING), top + 1)


def scale_box(
    box: tuple[int, int, int, int], size: tuple[int, int], other: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A box in a picture of `size` as whole pixels of the same picture in another size."""
    if size == other:
        return box
    x, y = other[0] / size[0], other[1] / size[1]
    left, top = min(math.floor(box[0] * x), other[0] - 1), min(math.floor(box[1] * y), other[1] - 1)
    right, bottom = min(math.ceil(box[2] * x), other[0]), min(math.ceil(box[3] * y), other[1])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def check_detector_label(detector: Any, label: str) -> None:
    """Checks that a detector has the label of people: with another one every picture would silently give no people.

    Raises:
        ValueError: the detector says which labels it has, and `label` is not among them.
    """
    known = getattr(getattr(getattr(detector, "model", None), "config", None), "id2label", None)
    if isinstance(known, Mapping) and known and label.lower() not in {str(name).lower() for name in known.values()}:
        names = ", ".join(str(name) for name in list(known.values())[:10])
        raise ParValueError(
            f"detector has no label {label!r}, expected one of its own ({names}): pass detector_label="
        )
