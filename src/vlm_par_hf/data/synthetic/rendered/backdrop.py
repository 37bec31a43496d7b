"""What stands behind a rendered person, and what stands in front.

Street cameras look down, so most of a crop is ground: asphalt, tiles, a crossing, steps, a kerb or lawn at a corner.
All of it is dull and soft; whatever stands above the horizon is a wall, a hedge, a car or somebody far away.
"""

from collections.abc import Callable

import numpy as np

from vlm_par_hf.errors import ParValueError


__all__ = ["OCCLUDERS", "paint_backdrop", "paint_occluder"]


def paint_backdrop(width: int, height: int, horizon: float, camera: int, rng: np.random.Generator) -> np.ndarray:
    """A street as a camera sees it.

    Args:
        width, height: pixels.
        horizon: the row where the ground ends; it may lie above (< 0) or below (> height) the picture.
        camera: 0, or 1, which looks at another place.
        rng: draws everything.

    Returns:
        sRGB float32 `(height, width, 3)`, 0 to 1.
    """
    picture = np.empty((height, width, 3), np.float32)
    first = int(np.clip(np.ceil(horizon + 1), 0, height))  # of the rows that show ground
    if first < height:
        picture[first:] = _ground(width, height, horizon, first, camera, rng)
    if first > 0:
        picture[:first] = _wall(width, first, rng)
    for _ in range(int(rng.choice(4, p=(0.45, 0.33, 0.15, 0.07)))):
        _put_something(picture, horizon, rng)
    if rng.random() < 0.1:  # the shade of trees
        leaves = _clouds(width, height, rng, 10) + 0.6 * _clouds(width, height, rng, 26)
        picture *= 1 - np.float32(rng.uniform(0.1, 0.4)) * np.clip(leaves * 1.6, 0, 1)[..., None]
    return np.clip(picture, 0, 1)


# --- the ground ------------------------------------------------------------------------------------------------------


def _ground(width: int, height: int, horizon: float, first: int, camera: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of the ground, in perspective: `u` and `v` are metres along two turned axes."""
    rows = np.arange(first, height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :] - width / 2
    scale = 0.53 * height  # pixels of a metre where the person stands: she fills the crop's height
    foot = 0.95 * height
    nearness = np.maximum(rows - horizon, 1.0) / max(foot - horizon, 1.0)
    z = rng.uniform(5, 14) / nearness
    x = columns / (scale * nearness)
    angle = rng.normal(0, 0.12) if rng.random() < 0.4 else rng.uniform(0, np.pi)
    u = (x * np.cos(angle) + z * np.sin(angle)).astype(np.float32)
    v = (z * np.cos(angle) - x * np.sin(angle)).astype(np.float32)
    u, v = u + np.float32(rng.uniform(0, 9)), v + np.float32(rng.uniform(0, 9))

    # How many metres a pixel spans: patterns finer than that fade, as they do in a camera.
    span = (1.0 / (scale * nearness)).astype(np.float32)
    level = np.clip(rng.normal(0.47 if camera else 0.55, 0.13), 0.16, 0.9)
    ground = _material(u, v, span, level, rng)
    if rng.random() < 0.5:  # a kerb, and something else beyond it
        border = u - np.float32(np.quantile(u, rng.uniform(0.08, 0.92)))
        beyond = np.clip(border / span, 0, 1)[..., None]
        other = _material(u, v, span, np.clip(level + rng.normal(0, 0.22), 0.12, 0.95), rng)
        ground = ground + (other - ground) * beyond
        kerb = np.clip(1 - np.abs(border) / np.maximum(0.1, span), 0, 1)[..., None]
        ground += np.float32(rng.normal(0.02, 0.16)) * kerb
    shade = 1 + np.float32(rng.uniform(0.03, 0.16)) * _clouds(width, height, rng, 5)[first:]
    return ground * shade[..., None]


def _material(u: np.ndarray, v: np.ndarray, span: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    kind = rng.choice(5, p=(0.34, 0.34, 0.18, 0.09, 0.05))
    if kind == 4:  # lawn or earth
        tint = np.array((0.62, 0.80, 0.45) if rng.random() < 0.7 else (0.85, 0.72, 0.55)) * level * 0.9
        grain, lines = 0.04, np.float32(0)
    else:
        tint = level + rng.normal(0, 0.012, 3) + np.array((1, 0, -1)) * rng.normal(0, 0.014)
        if kind == 1 and rng.random() < 0.12:
            tint = level * np.array((1.1, 0.82, 0.72))  # red paving
        lines = (_asphalt, _tiles, _crossing, _steps)[kind](u, v, span, rng)
        grain = rng.uniform(0.012, 0.05) if kind == 0 else rng.uniform(0.005, 0.03)
    noise = rng.standard_normal(u.shape, np.float32) * np.float32(grain)
    return (lines + noise)[..., None] + tint.astype(np.float32)


def _asphalt(u: np.ndarray, v: np.ndarray, span: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth, at most with a painted line."""
    if rng.random() > 0.2:
        return np.zeros_like(u)
    distance = np.abs(v - np.float32(np.quantile(v, rng.uniform(0.1, 0.9))))
    return np.float32(rng.uniform(0.08, 0.3)) * np.clip((0.08 - distance) / span + 0.5, 0, 1)


def _tiles(u: np.ndarray, v: np.ndarray, span: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A grid of joints; neighbouring slabs differ a little."""
    size = np.float32(rng.choice((0.2, 0.3, 0.4, 0.6, 0.9)))
    long = size * np.float32(rng.choice((1, 1, 2)))
    a, b = u / size, v / long
    rows = np.floor(a)
    b = b + 0.5 * (rows % 2) if rng.random() < 0.5 else b
    joint = np.minimum(np.abs(a - np.rint(a)) * size, np.abs(b - np.rint(b)) * long)
    visible = np.clip(1.6 - 4 * span / size, 0, 1)
    lines = np.clip(1.2 - joint / np.maximum(0.012, 0.7 * span), 0, 1) * visible
    slabs = rng.normal(0, rng.uniform(0.0, 0.035), (32, 32)).astype(np.float32)
    tone = slabs[rows.astype(np.int64) % 32, np.floor(b).astype(np.int64) % 32]
    return tone * visible + np.float32(-rng.uniform(0.03, 0.14)) * lines


def _crossing(u: np.ndarray, v: np.ndarray, span: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White bars on the road."""
    period = np.float32(rng.uniform(0.8, 1.1))
    wave = np.abs(u / period - np.rint(u / period)) * period  # 0 in the middle of a bar
    bars = np.clip((0.27 * period - wave) / np.maximum(span, 0.01) + 0.5, 0, 1)
    return np.float32(rng.uniform(0.16, 0.46)) * bars - np.float32(0.09)


def _steps(u: np.ndarray, v: np.ndarray, span: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Edges of stairs: a dark riser and a light nose."""
    period = np.float32(rng.uniform(0.35, 0.6))
    place = v / period - np.floor(v / period)
    return np.where(place < 0.3, -np.float32(rng.uniform(0.06, 0.2)), np.float32(0.02) + 0.04 * (place > 0.9))


# --- above the horizon -----------------------------------------------------------------------------------------------


def _wall(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    kind = rng.choice(4, p=(0.4, 0.2, 0.2, 0.2))
    level = rng.uniform(0.15, 0.8)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    if kind == 3:  # foliage
        leaves = _clouds(width, height, rng, 14) + rng.standard_normal((height, width), np.float32) * 0.35
        return level * 0.55 * np.array((0.75, 1.0, 0.6), np.float32) * (1 + 0.45 * leaves[..., None])
    tint = level + rng.normal(0, 0.03, 3)
    lines = rng.standard_normal((height, width), np.float32) * np.float32(0.015)
    if kind == 1:  # bricks
        brick = np.float32(rng.uniform(4, 8))
        row = np.floor(y / brick)
        along = x / (2.2 * brick) + 0.5 * (row % 2)
        joints = (y / brick - row < 0.2) | (along - np.floor(along) < 0.1)
        lines += np.float32(rng.uniform(0.03, 0.1)) * joints
        tint = level * np.array((1.15, 0.85, 0.72))
    elif kind == 2:  # a shop window or a door, between frames
        period = rng.uniform(0.3, 0.9) * width
        frames = (x / period - np.floor(x / period)) < rng.uniform(0.05, 0.25)
        lines += np.where(frames, np.float32(rng.uniform(-0.2, 0.2)), 0.25 * _clouds(width, height, rng, 4))
    return lines[..., None] + tint.astype(np.float32)


def _put_something(picture: np.ndarray, horizon: float, rng: np.random.Generator) -> None:
    """A car, a bush, a post or somebody far away, mostly at the edges and in the upper half."""
    height, width = picture.shape[:2]
    kind = rng.choice(4, p=(0.28, 0.28, 0.16, 0.28))
    base = height * rng.uniform(0.05, 0.6)
    side = rng.random() < 0.5
    x = width * (rng.uniform(-0.1, 0.28) if side else rng.uniform(0.72, 1.1))
    if kind == 0:  # a car: body, roof and window
        color, w, h = _dull(rng), width * rng.uniform(0.5, 1.1), height * rng.uniform(0.14, 0.26)
        _ellipse(picture, x, base - 0.62 * h, 0.33 * w, 0.42 * h, color * 0.8)
        _ellipse(picture, x, base - 0.68 * h, 0.27 * w, 0.30 * h, color * 0.25 + 0.08)
        _ellipse(picture, x, base - 0.32 * h, 0.5 * w, 0.30 * h, color)
        for offset in (-0.3, 0.3):
            _ellipse(picture, x + offset * w, base - 0.08 * h, 0.085 * w, 0.15 * h, np.full(3, 0.07, np.float32))
    elif kind == 1:  # a bush
        green = rng.uniform(0.15, 0.42) * np.array((0.78, 1.0, 0.6), np.float32)
        for _ in range(5):
            at = x + rng.normal(0, 0.12) * width, base + rng.normal(0, 0.06) * height
            size = rng.uniform(0.1, 0.25) * width, rng.uniform(0.05, 0.12) * height
            _ellipse(picture, *at, *size, green * np.float32(rng.uniform(0.6, 1.3)), 0.05, rng)
    elif kind == 2:  # a post
        _ellipse(picture, x, base - 0.2 * height, 0.03 * width, 0.26 * height, _dull(rng))
    else:  # somebody: legs, trunk, head
        h = height * rng.uniform(0.18, 0.42)
        trunk, legs, skin = _dull(rng), _dull(rng) * np.float32(0.6), np.array((0.6, 0.45, 0.36), np.float32)
        _ellipse(picture, x, base - 0.25 * h, 0.09 * h, 0.28 * h, legs)
        _ellipse(picture, x, base - 0.62 * h, 0.13 * h, 0.22 * h, trunk)
        _ellipse(picture, x, base - 0.90 * h, 0.06 * h, 0.08 * h, skin)
        _ellipse(picture, x, base - 0.93 * h, 0.06 * h, 0.06 * h, skin * 0.2)


def _dull(rng: np.random.Generator) -> np.ndarray:
    """A color as things in a street have them: mostly gray."""
    level = rng.uniform(0.08, 0.85)
    return np.clip(level + rng.normal(0, 0.05, 3) * (4 if rng.random() < 0.2 else 1), 0.03, 0.95).astype(np.float32)


def _ellipse(picture, x, y, rx, ry, color, grain=0.0, rng=None) -> None:
    """Paints a soft ellipse over the picture; only its box is touched."""
    height, width = picture.shape[:2]
    x0, x1 = max(0, int(x - rx - 1)), min(width, int(x + rx + 2))
    y0, y1 = max(0, int(y - ry - 1)), min(height, int(y + ry + 2))
    if x0 >= x1 or y0 >= y1:
        return
    dx = (np.arange(x0, x1, dtype=np.float32) - np.float32(x)) / np.float32(max(rx, 0.5))
    dy = (np.arange(y0, y1, dtype=np.float32) - np.float32(y)) / np.float32(max(ry, 0.5))
    reach = 1 - (dx * dx)[None, :] - (dy * dy)[:, None]
    alpha = np.clip(reach * np.float32(max(min(rx, ry), 1.0) / 2) + 0.3, 0, 1)[..., None]
    box = picture[y0:y1, x0:x1]
    if grain:
        color = color * (1 + 4 * np.float32(grain) * rng.standard_normal((*box.shape[:2], 1), np.float32))
    box += (color - box) * alpha


def _clouds(width: int, height: int, rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise of unit variance, float32 `(height, width)`; `cells` along the height."""
    across = max(2, round(cells * width / height))
    grid = rng.standard_normal((cells + 1, across + 1), np.float32)
    return _spread(height, cells) @ grid @ _spread(width, across).T


def _spread(size: int, cells: int) -> np.ndarray:
    """The matrix `(size, cells + 1)` that interpolates between points of a grid."""
    place = np.linspace(0, cells, size, dtype=np.float32)
    left = np.minimum(place.astype(np.int64), cells - 1)
    matrix = np.zeros((size, cells + 1), np.float32)
    part = place - left
    part = part * part * (3 - 2 * part)
    matrix[np.arange(size), left] = 1 - part
    matrix[np.arange(size), left + 1] = part
    return matrix


# --- in front --------------------------------------------------------------------------------------------------------


def paint_occluder(kind: str, width: int, height: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Something between camera and person.

    Args:
        kind: one of `OCCLUDERS`.
        width, height: pixels of the whole picture.
        rng: draws where it is and how it looks.

    Returns:
        sRGB float32 `(height, width, 3)`, 0 to 1, and how much of each pixel it covers, float32 `(height, width)`.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in _OCCLUDERS:
        raise ParValueError(f"kind is {kind!r}; expected one of {list(OCCLUDERS)}")
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return _OCCLUDERS[kind](x / width, y / height, rng)


def _pole(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    half = rng.uniform(0.03, 0.09)
    across = (x - rng.uniform(0.08, 0.92) - rng.normal(0, 0.05) * (y - 0.5)) / half
    light = 0.75 + 0.35 * np.sqrt(np.clip(1 - (across - 0.35) ** 2 / 1.9, 0, 1))
    color = _dull(rng) * light[..., None]
    if rng.random() < 0.25:  # warning stripes
        stripes = (np.floor(y * rng.uniform(6, 14) + x) % 2)[..., None]
        color = color * stripes + np.array((0.85, 0.25, 0.15), np.float32) * (1 - stripes) * light[..., None]
    top = rng.uniform(0.3, 0.7) if rng.random() < 0.4 else -1.0
    alpha = np.clip((1 - np.abs(across)) * half * x.shape[1] + 0.5, 0, 1) * (y > top)
    return color.astype(np.float32), alpha.astype(np.float32)


def _car(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The roof or bonnet of a parked car over the lower part."""
    top, middle = rng.uniform(0.62, 0.85), rng.uniform(-0.2, 1.2)
    edge = top + rng.uniform(0.05, 0.25) * (x - middle) ** 2
    depth = (y - edge) * y.shape[0]
    color = _dull(rng)
    glass = ((y - edge > 0.035) & (y - edge < 0.035 + rng.uniform(0.05, 0.11)))[..., None]
    shade = 1.0 - 0.35 * np.clip(y - edge, 0, 1)[..., None] + 0.35 * np.exp(-((depth / 4) ** 2))[..., None]
    picture = np.where(glass, color * 0.2 + 0.1, color) * shade
    return np.clip(picture, 0, 1).astype(np.float32), np.clip(depth + 0.5, 0, 1).astype(np.float32)


def _bush(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = x.shape
    leaves = _clouds(width, height, rng, 16) + 0.6 * rng.standard_normal((height, width), np.float32)
    side = rng.choice((-1.0, 0.0, 1.0))
    edge = rng.uniform(0.62, 0.86) - side * (x - 0.5) * rng.uniform(0.1, 0.5)
    alpha = np.clip((y - edge) * 30 + leaves * 1.4 + 0.5, 0, 1)
    color = rng.uniform(0.2, 0.5) * np.array((0.68, 1.0, 0.48)) * (1 + 0.3 * leaves[..., None])
    return np.clip(color, 0, 1).astype(np.float32), alpha.astype(np.float32)


def _box(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bin, a sign, a table, a cash desk: a plain block at the bottom."""
    height, width = x.shape
    top = rng.uniform(0.6, 0.86)
    middle, half = rng.uniform(0.0, 1.0), rng.uniform(0.18, 0.6)
    inside = np.minimum((half - np.abs(x - middle)) * width, (y - top - rng.normal(0, 0.08) * (x - middle)) * height)
    color = _dull(rng) * (1 + rng.normal(0, 0.12) * (x - middle) / half)[..., None]
    lid = (inside < 0.03 * height) & (y < top + 0.05)
    color = np.clip(color + np.float32(rng.normal(0, 0.12)) * lid[..., None], 0, 1)
    return color.astype(np.float32), np.clip(inside + 0.5, 0, 1).astype(np.float32)


_OCCLUDERS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "pole": _pole,
    "car": _car,
    "bush": _bush,
    "box": _box,
}
OCCLUDERS = tuple(_OCCLUDERS)
