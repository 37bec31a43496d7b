"""What a figure is drawn with: shapes in body heights, and colors that go with a color."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


__all__ = ["Color", "Pen", "Point", "contrast", "darker", "paint_pattern"]

Color = tuple[int, int, int]  # RGB, 0 to 255
Point = tuple[float, float]


class Pen:
    """Draws in body coordinates: y runs from 0 (crown) to 1 (soles), x from the body's axis, both in body heights.

    Args:
        draw: of the canvas.
        x0, y0: pixels of the body's axis and crown.
        height: of the body in pixels.
        side: 1, or -1 to mirror.
        stretch: of y alone; below 1 the body is seen from above.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, x0: float, y0: float, height: float, side: int, stretch: float):
        self.draw, self.x0, self.y0, self.height, self.side, self.stretch = draw, x0, y0, height, side, stretch

    def at(self, x: float, y: float) -> Point:
        """The pixel of a point of the body."""
        return self.x0 + self.side * x * self.height, self.y0 + y * self.height * self.stretch

    def polygon(self, points: Sequence[Point], fill: Color) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def line(self, points: Sequence[Point], width: float, fill: Color) -> None:
        pixels = max(1, round(width * self.height))
        self.draw.line([self.at(x, y) for x, y in points], fill=fill, width=pixels, joint="curve")
        if pixels > 3:  # round ends
            for x, y in (points[0], points[-1]):
                self.ellipse(x, y, width / 2, width / 2, fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        self.draw.ellipse(self._frame(x, y, rx, ry), fill=fill)

    def pie(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        """Upper half of an ellipse."""
        self.draw.pieslice(self._frame(x, y, rx, ry), 180, 360, fill=fill)

    def _frame(self, x: float, y: float, rx: float, ry: float) -> list[float]:
        (px, py), rx, ry = self.at(x, y), rx * self.height, ry * self.height * self.stretch
        return [px - rx, py - ry, px + rx, py + ry]


def darker(color: Color, factor: float) -> Color:
    return tuple(int(c * factor) for c in color)


def contrast(color: Color) -> Color:
    """A color that stands out on `color`: stripes and logos must be visible on black as on white."""
    hue, light, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    light = light + 0.42 if light < 0.5 else light - 0.42
    return tuple(int(255 * c) for c in colorsys.hls_to_rgb(hue, light, saturation * 0.8))


def paint_pattern(
    canvas: Image.Image, outline: Sequence[Point], kind: str, color: Color, unit: float, rng: np.random.Generator
) -> None:
    """Stripes or plaid inside a polygon.

    Args:
        canvas: changed.
        outline: corners of the polygon in pixels.
        kind: `"stripes"` or `"plaid"`.
        color: of the ground; the lines contrast with it.
        unit: the body height in pixels, to which the distance of the lines is relative.
        rng: draws where the lines lie.
    """
    xs, ys = [p[0] for p in outline], [p[1] for p in outline]
    left, top = int(min(xs)), int(min(ys))
    size = (max(1, int(max(xs)) - left + 1), max(1, int(max(ys)) - top + 1))
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in outline], fill=1)
    lines = Image.new("1", size)
    draw = ImageDraw.Draw(lines)
    gap = max(5, int(unit * rng.uniform(0.042, 0.06)))
    thickness = max(2, int(gap * (0.42 if kind == "stripes" else 0.24)))
    for y in range(int(rng.integers(gap)), size[1], gap):
        draw.rectangle([0, y, size[0], y + thickness - 1], fill=1)
    if kind == "plaid":
        for x in range(int(rng.integers(gap)), size[0], gap):
            draw.rectangle([x, 0, x + thickness - 1, size[1]], fill=1)
    black = Image.new("1", size)
    canvas.paste(contrast(color), (left, top), Image.composite(lines, black, mask))
