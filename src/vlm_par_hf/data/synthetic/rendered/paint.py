"""Colors of surfaces: skin and faces, cloth and its patterns, and what is painted flat on them."""

import numpy as np

from .garments import hairline
from .people import Garment, RenderedPerson, logo_place


__all__ = ["Surface", "paint"]

# Places on the average adult's head and trunk, metres from the hip joints (`Bank.canonical`).
CHIN, EYES, MOUTH = 0.580, 0.675, 0.607
ARM = 0.58  # length of an arm

_CLOTH = ("upper", "lower", "inner")


class Surface:
    """What pixels see: one row each.

    Attributes:
        point: float32 `(P, 3)`, on the average adult or the unit shape of a thing.
        arm: float32 `(P,)`, along the arm; negative on the trunk.
        names: the parts' names; `part` int `(P,)` holds their numbers and is refined by `paint`.
    """

    def __init__(self, point: np.ndarray, arm: np.ndarray, part: np.ndarray, names: tuple[str, ...]):
        self.point, self.arm, self.part, self.names = point, arm, part.astype(np.int16), list(names)
        self.color = np.zeros_like(point)

    def rows(self, name: str) -> np.ndarray:
        """Which pixels see a part; none when the picture lacks it."""
        if name not in self.names:
            return np.zeros(0, np.intp)
        return np.flatnonzero(self.part == self.names.index(name))

    def mark(self, rows: np.ndarray, name: str) -> None:
        """Say that pixels see something else than thought."""
        if name not in self.names:
            self.names.append(name)
        self.part[rows] = self.names.index(name)


class _Noise:
    """Smooth noise in [0, 1] over the plane, from a table that repeats after 64 cells."""

    def __init__(self, rng: np.random.Generator):
        self.table = rng.random((64, 64), np.float32)

    def __call__(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        left, top = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        x, y = u - left, v - top
        x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
        left, top, right, bottom = left & 63, top & 63, (left + 1) & 63, (top + 1) & 63
        table = self.table
        above = table[top, left] * (1 - x) + table[top, right] * x
        below = table[bottom, left] * (1 - x) + table[bottom, right] * x
        return above * (1 - y) + below * y


def paint(surface: Surface, person: RenderedPerson, rng: np.random.Generator) -> None:
    """Sets `surface.color` (sRGB, 0 to 1) and refines its parts.

    The part `"skin"` becomes `head`, `face`, `eyes`, `neck`, `arms`, `hands`, `legs`; of the upper garment, `sleeves`
    and `torso_front` and `torso_back`; painted things get their own.
    """
    noise = _Noise(rng)
    colors = {"upper": person.upper.colors[0], "lower": (person.lower or person.upper).colors[0]}
    colors |= {"inner": person.upper.colors[2], "hair": person.hair, "shoes": person.shoes.color}
    colors |= {name: thing.color for name, thing in person.things.items()} | {"bicycle": (52, 54, 60)}
    for name in tuple(surface.names):
        rows = surface.rows(name)
        if not len(rows):
            continue
        if name == "skin":
            _paint_skin(surface, rows, person, noise)
            continue
        surface.color[rows] = np.array(colors[name], np.float32) / 255
        if name in ("upper", "lower"):
            _paint_cloth(surface, rows, getattr(person, name) or person.upper, name, noise)
        if name in _CLOTH or name == "hair":
            _wrinkle(surface, rows, noise, 0.22 if name == "hair" else 0.11)
        if name in person.things:
            _paint_thing(surface, rows, name, person)
    for name in ("upper", "inner"):
        _paint_straps(surface, surface.rows(name), person)
    rows = surface.rows("upper")
    point, arm = surface.point[rows], surface.arm[rows]
    front = point[:, 2] > 0.03
    surface.mark(rows[(arm <= 0) & front & (point[:, 1] > 0)], "torso_front")
    surface.mark(rows[(arm <= 0) & ~front & (point[:, 1] > 0)], "torso_back")
    surface.mark(rows[arm > 0], "sleeves")


def _paint_skin(surface: Surface, rows: np.ndarray, person: RenderedPerson, noise: _Noise) -> None:
    (x, y, z), arm = surface.point[rows].T, surface.arm[rows]
    color = np.tile(np.array(person.skin, np.float32) / 255, (len(rows), 1))
    head = (y > CHIN - 0.012) & (arm <= 0)
    face = head & (z > 0.07)
    eyes = face & (np.abs(y - EYES) < 0.024) & (np.abs(x) < 0.056)
    wide = np.abs(x)
    dark = face & (np.abs(y - EYES) < 0.009) & (wide > 0.016) & (wide < 0.045)
    color[dark] *= 0.35
    color[face & (np.abs(y - EYES - 0.018) < 0.005) & (wide > 0.012) & (wide < 0.05)] *= 0.5
    mouth = face & (np.abs(y - MOUTH) < 0.007) & (wide < 0.026)
    color[mouth] *= (0.85, 0.5, 0.5) if person.female else (0.8, 0.65, 0.62)
    color[face & (np.abs(y - 0.633) < 0.006) & (wide < 0.018)] *= 0.8  # below the nose
    if person.beard:
        beard = head & (y < 0.635) & (z > 0.03) & ~mouth
        color[beard] = 0.35 * color[beard] + 0.65 * np.array(person.hair, np.float32) / 255
    scalp = head & (y > hairline(z) + 0.006)
    if person.hair_style != "bald":
        color[scalp] = np.array(person.hair, np.float32) / 255
    legs = (y < 0.12) & (arm <= 0)
    if person.legs is not None:
        color[legs] = np.array(person.legs, np.float32) / 255
    # Skin of the trunk that cloth should cover is painted as cloth: nobody is rendered bare.
    trunk = (arm <= 0) & (y > -0.10) & (y < 0.46)
    cloth = (person.lower or person.upper).colors[0]
    color[trunk] = np.where(
        y[trunk, None] < 0.08, np.array(cloth, np.float32) / 255, np.array(person.upper.colors[0], np.float32) / 255
    )
    color *= 0.94 + 0.12 * noise(u=x * 60, v=y * 60)[:, None]
    surface.color[rows] = color
    surface.mark(rows[head], "head")
    surface.mark(rows[face], "face")
    surface.mark(rows[eyes], "eyes")
    surface.mark(rows[~head & (y >= 0.46) & (arm <= 0)], "neck")
    surface.mark(rows[(arm > 0) & (arm <= 1.0)], "arms")
    surface.mark(rows[arm > 1.0], "hands")
    surface.mark(rows[legs & ~trunk], "legs")
    glasses, mask = person.things.get("glasses"), person.things.get("mask")
    if glasses is not None:
        lens = face & (np.abs(y - EYES) < 0.017) & (wide > 0.006) & (wide < 0.054)
        rim = face & (np.abs(y - EYES) < 0.022) & (wide < 0.060) & ~lens
        temple = head & (np.abs(y - EYES - 0.004) < 0.006) & (z > 0.01) & (wide > 0.054)
        frame = np.array(glasses.color, np.float32) / 255
        shade = np.array((30, 30, 34) if glasses.kind == "dark" else (150, 160, 168), np.float32) / 255
        share = 0.92 if glasses.kind == "dark" else 0.25
        part = surface.color[rows[lens]]
        surface.color[rows[lens]] = (1 - share) * part + share * shade
        surface.color[rows[rim | temple]] = frame
        surface.mark(rows[lens | rim | temple], "glasses")
    if mask is not None:
        over = head & (y < 0.652) & (y > CHIN - 0.01) & (z > 0.055)
        surface.color[rows[over]] = np.array(mask.color, np.float32) / 255
        surface.mark(rows[over], "mask")


def _plane(surface: Surface, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the cloth in metres: across, and up; along the sleeve on an arm."""
    (x, y, z), arm = surface.point[rows].T, surface.arm[rows]
    around = np.arctan2(x, z - 0.01) * 0.16
    return np.where(arm > 0, z, around), np.where(arm > 0, 0.46 - arm * ARM, y)


def _paint_cloth(surface: Surface, rows: np.ndarray, garment: Garment, name: str, noise: _Noise) -> None:
    u, v = _plane(surface, rows)
    (x, y, z), arm = surface.point[rows].T, surface.arm[rows]
    main, second, third = (np.array(color, np.float32) / 255 for color in garment.colors)
    color = np.tile(main, (len(rows), 1))
    size, phase = garment.scale, garment.phase

    def put(mask: np.ndarray, value: np.ndarray) -> None:
        color[mask] = value

    match garment.pattern:
        case "stripes":
            period = 0.045 * size
            along = u if phase > 0.88 else v
            wobble = 0.06 * noise(u * 9, v * 9)
            put(((along / period + phase * 7 + wobble) % 1.0) < 0.35 + 0.3 * (phase * 13 % 1), second)
        case "plaid":
            period = 0.055 * size
            across, up = (u / period + phase) % 1.0, (v / period + phase) % 1.0
            share = 0.42 * (across < 0.35) + 0.42 * (up < 0.35)
            color += share[:, None] * (second - color)
            put((np.abs(across - 0.7) < 0.05) | (np.abs(up - 0.7) < 0.05), third)
        case "floral":
            period = 0.055 * size
            cells = noise(u / period * 1.7 + 7, v / period * 1.7)
            put(cells > 0.64, second)
            put(cells > 0.80, third)
        case "dots":
            period = 0.045 * size
            a, b = (u / period) % 1.0 - 0.5, (v / period) % 1.0 - 0.5
            put(a * a + b * b < 0.07, second)
        case "camouflage":
            cells = noise(u / (0.07 * size), v / (0.045 * size))
            put(cells > 0.52, second)
            put(cells > 0.70, third * 0.6)
        case "denim":
            fade = np.exp(-((np.abs(x) - 0.10) ** 2) / 0.003) * np.exp(-((y + 0.2) ** 2) / 0.03) * (z > 0)
            color *= (0.9 + 0.2 * noise(u * 130, v * 60) + 0.35 * fade)[:, None]
        case "side_stripe":
            seam = np.abs(np.abs(np.arctan2(x - np.sign(x) * 0.105, z)) - np.pi / 2) * 0.075
            outside = np.abs(x) > 0.10
            line = seam < 0.018 * size
            if phase > 0.5:
                line &= (seam // (0.005 * size)) % 2 == 0
            put(line & outside & (y < 0.1), second)
        case "logo":
            surface.mark(rows[_paint_logo(color, garment, x, y, z, arm, second, third, noise)], "print")
        case "splice":
            _paint_splice(color, garment, x, y, z, arm, second)
    if name == "upper":
        if garment.kind == "vest":
            put(arm > 0.02, second)
        if garment.open:
            put((np.abs(np.abs(x) - (0.034 + 0.11 * np.clip(0.48 - y, 0, 0.9))) < 0.006) & (z > 0), main * 0.7)
        elif garment.kind in ("shirt", "jacket", "coat"):
            put((np.abs(x) < 0.005) & (z > 0.02) & (arm <= 0), main * 0.6)  # buttons or a zip
        if garment.collar:
            put((y > 0.50) & (arm <= 0), main * 0.85 if garment.pattern != "splice" else second)
        if garment.hood:
            put((y > 0.52) & (arm <= 0), main * 0.8)
    surface.color[rows] = color


def _paint_logo(color, garment: Garment, x, y, z, arm, second, third, noise: _Noise) -> np.ndarray:
    """Paints the print; returns which pixels show it."""
    place, size = logo_place(garment), 0.7 + 0.3 * garment.scale
    middle_x, middle_y, half_x, half_y, sign = {
        "chest": (0.0, 0.33, 0.085 * size, 0.075 * size, 1),
        "badge": (0.085, 0.37, 0.024, 0.022, 1),
        "back": (0.0, 0.34, 0.10 * size, 0.045 * size, -1),
    }[place]
    a, b = (x - middle_x) / half_x, (y - middle_y) / half_y
    inside = (np.abs(a) < 1) & (np.abs(b) < 1) & (arm <= 0) & ((z - 0.02) * sign > 0)
    style = int(garment.phase * 97) % 4
    if place == "back" or style == 0:  # rows of text
        inked = ((b * 1.5) % 1.0 < 0.62) & (noise(a * 9 + 20, np.floor(b * 1.5) * 7) > 0.34)
    elif style == 1:  # a picture
        inked = a * a + b * b < 1
        other = inked & inside & (noise(a * 3, b * 3) > 0.5)
        color[inside & inked] = second
        color[other] = third
        return inside & inked
    elif style == 2:  # a figure
        inked = noise(a * 2.5 + 3, b * 2.5) > 0.45
    else:  # a block with a word
        inked = (np.abs(b) < 0.55) & ~((np.abs(b) < 0.22) & (noise(a * 8, b * 0) > 0.5))
    color[inside & inked] = second
    return inside & inked


def _paint_splice(color, garment: Garment, x, y, z, arm, second) -> None:
    kind = garment.phase
    side = np.abs(x) > 0.115
    if kind < 0.40:
        where = arm > (0.0 if kind < 0.25 else -0.10)
    elif kind < 0.62:
        where = ((y > 0.30 + 0.1 * (kind - 0.4) / 0.22) & (arm <= 0)) | ((arm > -0.2) & (arm < 0.18))
    elif kind < 0.76:
        where = (y < 0.14 + 0.2 * (kind - 0.62) / 0.14) & (arm <= 0)
    elif kind < 0.88:
        where = (side & (arm <= 0)) | (arm > 0.5)
    else:
        band = garment.sleeve - 0.10
        where = ((arm > band) & (arm > 0)) | ((y > 0.50) & (arm <= 0))
    color[where] = second


def _wrinkle(surface: Surface, rows: np.ndarray, noise: _Noise, strength: float) -> None:
    """Folds: long soft light and dark lines, most where a garment hangs or bends."""
    u, v = _plane(surface, rows)
    folds = noise(u * 22 + v * 7 + 31, v * 8 - u * 5) - 0.5 + 0.6 * (noise(u * 45, v * 28 + 11) - 0.5)
    surface.color[rows] *= (1 + strength * 2 * folds)[:, None]


def _paint_thing(surface: Surface, rows: np.ndarray, name: str, person: RenderedPerson) -> None:
    thing = person.things[name]
    x, y, z = surface.point[rows].T
    detail = np.array(thing.color2, np.float32) / 255
    if name == "umbrella":
        panel = np.floor((np.arctan2(x, z) / (2 * np.pi) + 0.5) * 8).astype(int)
        shade = np.where(panel % 2 == 0, 1.0, 0.86)
        surface.color[rows] *= shade[:, None]
    elif name == "backpack":
        surface.color[rows[np.abs(y + 0.12) < 0.03]] *= 0.6
        surface.color[rows[(np.abs(x) < 0.35) & (np.abs(y - 0.35) < 0.14)]] = detail
    elif name == "handbag":
        if thing.kind == "shopping":
            surface.color[rows[(np.abs(z) < 0.45) & (np.abs(y) < 0.30)]] = detail
        else:
            surface.color[rows[np.abs(y - 0.45) < 0.08]] = detail
    elif name == "suitcase":
        surface.color[rows[(np.abs((x * 6) % 2.0 - 1) < 0.25) & (np.abs(y) < 0.85)]] *= 0.75
    elif name in ("shoulder_bag", "hat"):
        edge = np.abs(y - (0.25 if name == "shoulder_bag" else 0.10)) < 0.08
        surface.color[rows[edge]] = detail
    elif name == "in_front" and thing.kind == "box":
        surface.color[rows[(np.abs(x) < 0.14) & (np.abs(y) > 0.3)]] *= 0.8  # tape
    elif name == "phone":
        surface.color[rows[(z > 0.9) & (np.abs(x) < 0.85) & (np.abs(y) < 0.85)]] = (0.55, 0.62, 0.7)


def _paint_straps(surface: Surface, rows: np.ndarray, person: RenderedPerson) -> None:
    (x, y, z), arm = surface.point[rows].T, surface.arm[rows]
    trunk = arm <= 0.03
    backpack, bag = person.things.get("backpack"), person.things.get("shoulder_bag")
    if backpack is not None:
        strap = trunk & (np.abs(np.abs(x) - 0.112) < 0.022) & (y > 0.20) & (z > -0.05)
        surface.color[rows[strap]] = np.array(backpack.color, np.float32) / 255 * 0.85
        surface.mark(rows[strap], "backpack_straps")
    if bag is not None and bag.kind == "cross":
        # From the shoulder of the other side, (-0.12, 0.50), to the hip, (0.19, 0.02).
        slope = (x * bag.side + 0.12) * 0.48 + (y - 0.50) * 0.31
        strap = trunk & (np.abs(slope) / 0.571 < 0.016 * bag.size) & (y > -0.02)
        surface.color[rows[strap]] = np.array(bag.color, np.float32) / 255
        surface.mark(rows[strap], "shoulder_bag")
