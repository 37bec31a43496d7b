"""A part of a picture, as the end of a path: `street.jpg#xywh=160,120,40,110`, the form of W3C's media fragments.

So a column of paths can name people in pictures. `open_image` cuts the part out of the undecoded form of
`datasets.Image`; a program that does not know the form finds no such file, instead of taking the whole picture.
"""

import io
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from vlm_par_hf.errors import ParValueError


__all__ = [
    "REGION_FORMATS",
    "Region",
    "crop_region",
    "encode_image",
    "is_region",
    "join_region",
    "read_region",
    "split_region",
]

# The same names as everywhere: corners, corner and size, center and size; in pixels or, with an n, as shares.
REGION_FORMATS = tuple(form + unit for form in ("xyxy", "xywh", "cxcywh") for unit in ("", "n"))
_NUMBER = r"(-?[0-9]+(?:\.[0-9]+)?)"
_FRAGMENT = re.compile(rf"#xywh=(percent:)?{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\Z", re.ASCII)
# As for boxes of the pipeline: numbers in here are shares, and shares beyond the second limit are pixels.
_SHARES = (-0.5, 1.5)
_WIDEST_SHARE = 2.0
_ROUNDING = 1e-3


class Region(NamedTuple):
    """A rectangle: left edge, top edge, width and height, in pixels or in percent of the picture."""

    x: float
    y: float
    width: float
    height: float
    percent: bool = False


def read_region(numbers: Sequence[float], box_format: str) -> Region:
    """The region that a box of four numbers says.

    Args:
        numbers: four, in the form of `box_format`.
        box_format: one of `REGION_FORMATS`.

    Raises:
        ValueError: not four finite numbers, an empty or reversed box, or pixels that must be shares and the reverse.
    """
    values = [float(number) for number in numbers]
    form, shares = box_format.removesuffix("n"), box_format.endswith("n")
    shown = f"[{', '.join(f'{value:g}' for value in values)}]"
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        raise ParValueError(f"box is {shown}; expected four numbers in the form {form}")
    low, high = min(values), max(values)
    if shares and (high > _WIDEST_SHARE or low < -1):
        raise ParValueError(f"box is {shown}, which are pixels; for pixels pass box_format={form!r}")
    whole = high > 1 and all(value.is_integer() for value in values)
    if not shares and _SHARES[0] <= low and high <= _SHARES[1] and not whole:
        raise ParValueError(
            f"box is {shown}, which are shares of the picture; for shares pass box_format={form + 'n'!r}"
        )
    a, b, c, d = values
    if form == "xyxy":
        x, y, width, height = a, b, c - a, d - b
    elif form == "xywh":
        x, y, width, height = a, b, c, d
    else:
        x, y, width, height = a - c / 2, b - d / 2, c, d
    if width <= 0 or height <= 0:
        hint = "; where the last two are width and height pass box_format='xywh'" if form == "xyxy" else ""
        raise ParValueError(f"box is {shown} in the form {form}: it is empty or reversed{hint}")
    scale = 100.0 if shares else 1.0
    return Region(x * scale, y * scale, width * scale, height * scale, shares)


def join_region(path: str, region: Region) -> str:
    """The path with the region at its end."""
    numbers = ",".join(f"{round(value, 4):.4f}".rstrip("0").rstrip(".") for value in region[:4])
    return f"{path}#xywh={'percent:' if region.percent else ''}{numbers}"


def split_region(path: str) -> tuple[str, Region | None]:
    """The path of the file, and the region that its end says; None where it says none, or where a file has that
    name."""
    found = _FRAGMENT.search(path) if "#xywh=" in path else None
    if found is None or os.path.lexists(path):
        return path, None
    return path[: found.start()], Region(*map(float, found.groups()[1:]), percent=found[1] is not None)


def is_region(path: object) -> bool:
    """Whether something is a path that ends in a region."""
    return isinstance(path, str) and split_region(path)[1] is not None


def crop_region(image: Image.Image, full_size: tuple[int, int], region: Region, name: str) -> Image.Image:
    """The region of a picture, rounded outwards to whole pixels and clipped.

    Args:
        image: the picture, which may have been reduced while it was decoded.
        full_size: its width and height before that, to which pixels refer.
        region: what to cut out.
        name: of the picture, for the error.

    Raises:
        ValueError: the region lies outside of the picture.
    """
    edges = []
    for start, length, full, side in zip(region[:2], region[2:4], full_size, image.size):
        total = 100.0 if region.percent else float(full)
        low, high = max(start, 0.0), min(start + length, total)
        if high <= low:
            raise ParValueError(
                f"image {name!r}: the box [{', '.join(f'{value:g}' for value in region[:4])}] (left, top, width, "
                f"height{', percent' if region.percent else ''}) lies outside of the picture of width {full_size[0]} "
                f"and height {full_size[1]}"
            )
        low, high = low * side / total, high * side / total
        first = min(math.floor(low + _ROUNDING), side - 1)
        edges.append((first, max(math.ceil(high - _ROUNDING), first + 1)))
    (left, right), (top, bottom) = edges
    return image.crop((left, top, right, bottom))


def encode_image(image: Image.Image) -> bytes:
    """A picture as a PNG file, which loses nothing."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
