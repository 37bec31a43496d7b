"""Checks of boxes of people, given by a user or a detector, and of the detector's label for people."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_par_hf.errors import ParTypeError, ParValueError


__all__ = ["check_boxes", "check_detector_label"]


def check_boxes(boxes: Any, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes as whole pixels inside a picture of `size` (width, height): rounded outwards, then clipped.

    Args:
        boxes: each `[x0, y0, x1, y1]` or a dict with xmin, ymin, xmax, ymax, in pixels.

    Raises:
        TypeError: `boxes` is no list of boxes.
        ValueError: a box is not of four finite numbers, or is empty, reversed or outside the picture.
    """
    width, height = size
    where = f"in a picture of width {width} and height {height}"
    boxes = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    if isinstance(boxes, (str, Mapping)) or not isinstance(boxes, Iterable):
        raise ParTypeError(f"boxes is {boxes!r:.100}, expected a list of boxes [x0, y0, x1, y1]")
    checked = []
    for index, box in enumerate(boxes):
        if isinstance(box, Mapping) and {"xmin", "ymin", "xmax", "ymax"} <= set(box):
            box = [box["xmin"], box["ymin"], box["xmax"], box["ymax"]]
        box = box.tolist() if hasattr(box, "tolist") else box
        try:
            x0, y0, x1, y1 = (float(value) for value in box)
        except (TypeError, ValueError):
            raise ParValueError(
                f"boxes[{index}] is {box!r:.100}, expected four numbers [x0, y0, x1, y1] {where}"
            ) from None
        shown = f"boxes[{index}] is {list(box)}"
        if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
            raise ParValueError(f"{shown}, expected finite numbers [x0, y0, x1, y1] {where}")
        if x1 <= x0 or y1 <= y0:
            kind = "reversed" if x1 < x0 or y1 < y0 else "empty"
            raise ParValueError(f"{shown}, which is {kind}, expected x0 < x1 and y0 < y1 {where}")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise ParValueError(f"{shown}, which is outside, expected a box that overlaps the picture {where}")
        checked.append(
            (max(0, math.floor(x0)), max(0, math.floor(y0)), min(width, math.ceil(x1)), min(height, math.ceil(y1)))
        )
    return checked


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
