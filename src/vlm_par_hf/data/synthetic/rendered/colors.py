"""Colors of cloth, hair and skin, and the names that people give them."""

import math

import numpy as np


__all__ = ["COLOR_NAMES", "HAIR_COLORS", "RGB", "color_distance", "color_name", "hair_color_name"]

RGB = tuple[int, int, int]  # sRGB, 0 to 255

# Market-1501's names and those of PETA together, each with shades that everybody calls so.
_NAMED: dict[str, tuple[RGB, ...]] = {
    "black": ((20, 20, 22), (40, 40, 43), (34, 30, 28)),
    "white": ((244, 244, 242), (226, 227, 228), (240, 236, 226)),
    "gray": ((86, 87, 90), (128, 130, 133), (170, 171, 173), (146, 142, 138)),
    "red": ((196, 36, 40), (128, 26, 36), (222, 62, 58), (160, 40, 44)),
    "orange": ((226, 112, 32), (242, 146, 70), (250, 130, 20)),
    "yellow": ((226, 196, 52), (240, 222, 112), (204, 172, 48), (214, 224, 60)),
    "green": ((46, 128, 62), (30, 72, 46), (124, 172, 84), (92, 104, 60), (48, 140, 120), (150, 205, 160)),
    "blue": (
        (42, 82, 176),
        (26, 36, 78),
        (92, 142, 204),
        (158, 188, 222),
        (66, 92, 132),
        (48, 62, 96),
        (60, 160, 200),
        (20, 40, 205),
    ),
    "purple": ((116, 56, 148), (152, 116, 184), (70, 40, 92), (120, 60, 110)),
    "pink": ((232, 152, 178), (240, 192, 202), (218, 78, 134), (226, 132, 138)),
    "brown": ((112, 74, 46), (72, 50, 38), (158, 120, 82), (200, 172, 134), (150, 92, 56)),
}
COLOR_NAMES = tuple(_NAMED)
_HAIR_NAMED: dict[str, tuple[RGB, ...]] = {
    "black": ((22, 20, 20), (36, 32, 32)),
    "brown": ((78, 54, 38), (108, 76, 50), (132, 94, 62)),
    "blond": ((214, 180, 112), (186, 152, 96)),
    "gray": ((142, 142, 144), (196, 196, 196), (226, 226, 224)),
    "red": ((156, 70, 34), (136, 52, 30)),
}
HAIR_COLORS = tuple(_HAIR_NAMED)
_MARGIN = 4.0  # in Lab: a shade that is as near to another name has no certain one


def _lab(color: RGB) -> tuple[float, float, float]:
    """CIE Lab of an sRGB color."""
    r, g, b = (c / 3294.6 if c <= 10.3 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _table(named: dict[str, tuple[RGB, ...]]) -> tuple[np.ndarray, list[str]]:
    pairs = [(shade, name) for name, shades in named.items() for shade in shades]
    return np.array([_lab(shade) for shade, _ in pairs]), [name for _, name in pairs]


_CLOTH, _HAIR = _table(_NAMED), _table(_HAIR_NAMED)


def _nearest(color: RGB, table: tuple[np.ndarray, list[str]]) -> str | None:
    labs, names = table
    distances = np.linalg.norm(labs - _lab(color), axis=1)
    first = int(distances.argmin())
    others = [distance for distance, name in zip(distances, names, strict=True) if name != names[first]]
    return names[first] if min(others) - distances[first] >= _MARGIN else None


def color_name(color: RGB) -> str | None:
    """One of `COLOR_NAMES`, the nearest; None if another name is nearly as near."""
    return _nearest(color, _CLOTH)


def hair_color_name(color: RGB) -> str | None:
    """One of `HAIR_COLORS`, the nearest; None if another name is nearly as near."""
    return _nearest(color, _HAIR)


def color_distance(first: RGB, second: RGB) -> float:
    """Distance in Lab: about 2 is just visible, 100 lies between black and white."""
    return math.dist(_lab(first), _lab(second))
