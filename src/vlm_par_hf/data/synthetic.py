"""Synthetic pedestrians: drawn people whose attributes are known exactly.

Nothing here is a photograph, and no number measured on it says how a model does on one. The drawings exist so that
every path of the package (training, evaluation, pipeline, retrieval, video) runs on data that behaves like a PAR data
set: long-tailed (safety vests and canes about 1 %), co-dependent (winter brings coats, scarves and boots; canes go
with age), disturbed by pose, scale, light, background, occlusion, blur, noise and JPEG, seen by two differing cameras,
and grouped by person and tracklet.

Everything is a function of integers: `SyntheticPerson.sample(seed, person_id)` draws who a person is, and
`render_person(person, frame)` one picture of them. Labels are class indices in the order of `get_schema("synthetic")`;
what cannot be seen is unknown (-100): the face seen from the back, the color of a hat that is not there.
"""

import colorsys
import io
import math
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlm_par_hf.schema import AttributeSchema
from vlm_par_hf.schemas import get_schema


HEIGHT, WIDTH = 192, 96  # pixels of a drawing: 12 x 6 patches of 16, near the median PA-100K crop
SUPERSAMPLE = 2
UNKNOWN = -100

_COLORS = {
    "black": (28, 28, 32),
    "gray": (128, 130, 134),
    "white": (236, 236, 232),
    "red": (196, 36, 40),
    "blue": (44, 84, 176),
    "green": (48, 132, 64),
    "yellow": (226, 196, 52),
    "purple": (124, 56, 152),
    "brown": (112, 72, 44),
    "blond": (214, 180, 104),
}
_HAIR_RED = (160, 70, 30)
_SKIN = ((246, 214, 186), (226, 182, 146), (196, 146, 106), (146, 100, 68), (92, 62, 44))
_LENS_CLEAR, _LENS_DARK = (150, 190, 210), (24, 24, 28)

# Long-tailed marginals; the conditional structure is in `SyntheticPerson.sample`.
_UPPER_COLORS = {
    "black": 0.30, "white": 0.19, "gray": 0.16, "red": 0.09, "blue": 0.14, "green": 0.05, "yellow": 0.04,
    "purple": 0.03,
}  # fmt: skip
_LOWER_COLORS = {
    "black": 0.36, "gray": 0.15, "blue": 0.27, "white": 0.06, "brown": 0.08, "red": 0.04, "green": 0.04,
}  # fmt: skip
_SHOE_COLORS = {"black": 0.46, "white": 0.30, "brown": 0.17, "red": 0.07}
_HAT_COLORS = {"black": 0.45, "white": 0.2, "red": 0.17, "blue": 0.18}


def _choice(rng: np.random.Generator, table: dict[str, float]) -> str:
    weights = np.fromiter(table.values(), float)
    return list(table)[int(rng.choice(len(weights), p=weights / weights.sum()))]


@dataclass(frozen=True)
class SyntheticPerson:
    """Who a drawn person is: `traits` (attribute name -> label text, View and Walking left to the frame), the colors
    of their things, and their build. Constant over all pictures of the person, as clothes are in a re-identification
    set."""

    person_id: int
    seed: int
    traits: dict[str, str]
    shades: dict[str, tuple[int, int, int]] = field(repr=False)
    stature: float = 1.0
    girth: float = 1.0

    @classmethod
    def sample(cls, seed: int, person_id: int) -> "SyntheticPerson":
        """Draw person number `person_id` of the population `seed`."""
        rng = np.random.default_rng((seed, person_id, 0))

        def yes(probability: float) -> bool:
            return bool(rng.random() < probability)

        age = _choice(rng, {"child": 0.13, "adult": 0.70, "elderly": 0.17})
        child, elderly = age == "child", age == "elderly"
        season = _choice(rng, {"winter": 0.3, "mild": 0.4, "summer": 0.3})
        winter, summer = season == "winter", season == "summer"
        vest = not child and yes(0.014)
        long_coat = not vest and winter and yes(0.38)
        short_sleeve = not (long_coat or vest) and yes(0.78 if summer else 0.28 if season == "mild" else 0.01)
        long_hair = yes(0.15 if elderly else 0.38)
        hat = yes(0.65 if vest else 0.24 if winter or elderly else 0.10)
        lower = _choice(
            rng,
            {
                "trousers": 0.55 if summer else 0.9,
                "shorts": 0.33 if summer else 0.01,
                "skirt": 0.16 if long_hair else 0.03,
            },
        )
        # Two hands: whatever needs one takes it, and what comes too late stays at home.
        hands, carried = 2, {}
        for name, probability, needed in (
            ("CarryingInFront", 0.05, 2),
            ("Cane", 0.075 if elderly else 0.0005, 1),
            ("Umbrella", 0.06 if winter else 0.012, 1),
            ("Suitcase", 0.03, 1),
            ("HandBag", 0.22 if long_hair else 0.08, 1),
            ("Phone", 0.0 if child else 0.08, 1),
        ):
            carried[name] = hands >= needed and yes(probability)
            hands -= needed * carried[name]
        backpack = yes(0.36 if child else 0.06 if elderly else 0.17)
        hair = {"black": 0.46, "brown": 0.33, "blond": 0.16, "gray": 0.02, "red": 0.035}
        binary = {
            "Hat": hat,
            "Glasses": yes(0.42 if elderly else 0.14),
            "Mask": yes(0.07),
            "LongHair": long_hair,
            "Scarf": winter and yes(0.26),
            "Headphones": not hat and yes(0.025),
            "ShortSleeve": short_sleeve,
            "LongCoat": long_coat,
            "SafetyVest": vest,
            "SideStripe": lower == "trousers" and yes(0.06),
            "Boots": yes(0.8 if vest else 0.30 if winter else 0.05),
            "Backpack": backpack,
            "ShoulderBag": not backpack and yes(0.17),
            **carried,
        }
        traits = {name: "yes" if value else "no" for name, value in binary.items()} | {
            "HatColor": _choice(rng, _HAT_COLORS),
            "HairColor": _choice(rng, {"gray": 0.8, "black": 0.1, "brown": 0.1} if elderly else hair),
            "UpperColor": _choice(rng, _UPPER_COLORS),
            "UpperPattern": "plain"
            if long_coat
            else _choice(rng, {"plain": 0.70, "stripes": 0.13, "plaid": 0.08, "logo": 0.09}),
            "LowerType": lower,
            "LowerColor": _choice(rng, _LOWER_COLORS),
            "ShoeColor": _choice(rng, {"black": 0.6, "brown": 0.4} if binary["Boots"] and yes(0.7) else _SHOE_COLORS),
            "Age": age,
        }
        if not hat:
            del traits["HatColor"]

        def shade(color: tuple[int, int, int], spread: float = 12.0) -> tuple[int, int, int]:
            return tuple(int(c) for c in np.clip(np.array(color) + rng.normal(0, spread, 3), 4, 250))

        hair_color = _HAIR_RED if traits["HairColor"] == "red" else _COLORS[traits["HairColor"]]
        anything = [shade(_COLORS[c]) for c in rng.choice(["black", "brown", "gray", "red", "blue", "green"], 6)]
        shades = {
            "skin": _SKIN[int(rng.integers(len(_SKIN)))],
            "hair": shade(hair_color, 9),
            "hat": shade(_COLORS[traits.get("HatColor", "black")]),
            "upper": shade(_COLORS[traits["UpperColor"]]),
            "lower": shade(_COLORS[traits["LowerColor"]]),
            "shoes": shade(_COLORS[traits["ShoeColor"]]),
            "backpack": anything[0],
            "bag": anything[1],
            "handbag": anything[2],
            "suitcase": anything[3],
            "umbrella": anything[4],
            "box": shade((176, 136, 88)),
            "scarf": anything[5],
            "lens": _LENS_DARK if yes(0.5) else _LENS_CLEAR,
        }
        stature = {"child": 0.72, "adult": 1.0, "elderly": 0.95}[age] * rng.uniform(0.95, 1.05)
        return cls(person_id, seed, traits, shades, float(stature), float(rng.uniform(0.85, 1.2)))


class _Pen:
    """Draws in body coordinates: y runs from 0 (crown) to 1 (soles), x from the body's axis, both in body heights;
    `side` = -1 mirrors. One method call per shape keeps `render_person` readable as a figure."""

    def __init__(self, draw: ImageDraw.ImageDraw, x0: float, y0: float, height: float, side: int, stretch: float):
        self.draw, self.x0, self.y0, self.height, self.side, self.stretch = draw, x0, y0, height, side, stretch

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x0 + self.side * x * self.height, self.y0 + y * self.height * self.stretch

    def polygon(self, points, fill) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=fill)

    def line(self, points, width: float, fill) -> None:
        pixels = max(1, round(width * self.height))
        self.draw.line([self.at(x, y) for x, y in points], fill=fill, width=pixels, joint="curve")
        if pixels > 3:  # round ends
            for x, y in (points[0], points[-1]):
                self.ellipse(x, y, width / 2, width / 2, fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill) -> None:
        (px, py), rx, ry = self.at(x, y), rx * self.height, ry * self.height * self.stretch
        self.draw.ellipse([px - rx, py - ry, px + rx, py + ry], fill=fill)

    def pie(self, x: float, y: float, rx: float, ry: float, fill) -> None:
        """Upper half of an ellipse."""
        (px, py), rx, ry = self.at(x, y), rx * self.height, ry * self.height * self.stretch
        self.draw.pieslice([px - rx, py - ry, px + rx, py + ry], 180, 360, fill=fill)


def _darker(color, factor: float = 0.72) -> tuple[int, int, int]:
    return tuple(int(c * factor) for c in color)


def _contrast(color) -> tuple[int, int, int]:
    """A color that stands out on `color`: stripes and logos must be visible on black as on white."""
    hue, light, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    light = light + 0.42 if light < 0.5 else light - 0.42
    return tuple(int(255 * c) for c in colorsys.hls_to_rgb(hue, light, saturation * 0.8))


def _paint_pattern(canvas: Image.Image, outline, kind: str, color, unit: float, rng: np.random.Generator) -> None:
    """Stripes or plaid inside the polygon `outline` (pixels), line distance relative to the body height `unit`."""
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
    canvas.paste(_contrast(color), (left, top), Image.composite(lines, black, mask))


def _background(size: tuple[int, int], camera: int, rng: np.random.Generator) -> Image.Image:
    """A ground, a wall and a few things behind; camera 1 looks at another place."""
    width, height = size
    tint = np.array([1.0, 1.0, 1.0]) if camera == 0 else np.array([0.80, 0.95, 1.10])
    wall, ground = (
        tuple(int(c) for c in np.clip(rng.uniform(60, 215) * tint + rng.normal(0, 14, 3), 0, 255)) for _ in "ab"
    )
    canvas = Image.new("RGB", size, wall)
    draw = ImageDraw.Draw(canvas)
    horizon = int(height * rng.uniform(0.35, 0.85))
    draw.rectangle([0, horizon, width, height], fill=ground)
    for _ in range(int(rng.integers(1, 6))):
        color = tuple(int(c) for c in rng.integers(30, 225, 3))
        x, w = rng.uniform(-0.2, 1.0) * width, rng.uniform(0.05, 0.5) * width
        y, h = rng.uniform(-0.2, 0.8) * height, rng.uniform(0.05, 0.5) * height
        (draw.rectangle if rng.random() < 0.7 else draw.ellipse)([x, y, x + w, y + h], fill=color)
    return canvas


@dataclass(frozen=True)
class Frame:
    """What changes between two pictures of a person. `phase` in [0, 1) is the position in the stride."""

    index: int
    view: str
    walking: bool
    phase: float
    camera: int = 0

    @classmethod
    def sample(cls, person: SyntheticPerson, index: int, camera: int = 0) -> "Frame":
        """Draw the frame number `index` of `person`, seen by `camera` (0 or 1)."""
        rng = np.random.default_rng((person.seed, person.person_id, 1, index, camera))
        view = _choice(rng, {"front": 0.31, "back": 0.27, "left": 0.21, "right": 0.21})
        return cls(index, view, bool(rng.random() < 0.6), float(rng.random()), camera)


def person_labels(person: SyntheticPerson, frame: Frame, schema: AttributeSchema | None = None) -> np.ndarray:
    """Class indices of one picture, int64 `(A,)`, -100 where the picture cannot show the answer."""
    schema = schema or get_schema("synthetic")
    answers = person.traits | {"View": frame.view, "Walking": "yes" if frame.walking else "no"}
    if frame.view == "back":
        answers = {k: v for k, v in answers.items() if k not in ("Glasses", "Mask")}
    labels = np.full(len(schema), UNKNOWN, np.int64)
    for position, attribute in enumerate(schema):
        if attribute.name in answers:
            labels[position] = attribute.labels.index(answers[attribute.name])
    return labels


def render_person(person: SyntheticPerson, frame: Frame, height: int = HEIGHT, nuisance: float = 1.0) -> Image.Image:
    """Draw one picture of a person.

    Args:
        person, frame: who, and how they stand.
        height: picture height in pixels; the width is half of it.
        nuisance: strength of everything that disturbs (light, occlusion, blur, noise, JPEG), 0 for a clean drawing.

    Returns:
        RGB `PIL.Image` of size `(height // 2, height)`, the same for the same arguments.
    """
    rng = np.random.default_rng((person.seed, person.person_id, 2, frame.index, frame.camera))
    width = height // 2
    size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    canvas = _background(size, frame.camera, rng)
    _draw_figure(canvas, person, frame, nuisance, rng)
    if nuisance and rng.random() < 0.12 * nuisance:
        _occlude(canvas, rng)
    return _photograph(canvas.reduce(SUPERSAMPLE), frame.camera, nuisance, rng)


def _draw_figure(canvas: Image.Image, person: SyntheticPerson, frame: Frame, nuisance: float, rng) -> None:
    traits, shades = person.traits, person.shades
    has = {name: traits.get(name) == "yes" for name in traits}
    age, lower_type = traits["Age"], traits["LowerType"]
    child, elderly = age == "child", age == "elderly"
    front, back, profile = frame.view == "front", frame.view == "back", frame.view in ("left", "right")
    width, height = canvas.size

    room = 0.80 if has["Umbrella"] else 0.93
    body = height * room * rng.uniform(0.90, 1.0) * (0.86 + 0.14 * person.stature)
    if nuisance and rng.random() < 0.06 * nuisance:
        body *= 1.2  # cut off at the frame, as loose detections are
    x0 = width / 2 + rng.uniform(-0.10, 0.10) * width
    y0 = max(height * rng.uniform(0.96, 0.995) - body, height * (0.16 if has["Umbrella"] else 0.01))
    # Camera 1 hangs higher: bodies are foreshortened.
    pen = _Pen(ImageDraw.Draw(canvas), x0, y0, body, -1 if frame.view == "left" else 1, 0.90 if frame.camera else 1.0)

    head_r = 0.088 if child else 0.064
    head_y = head_r * 1.15
    shoulder_y = head_y + head_r * (1.5 if elderly else 1.75)
    hip_y = shoulder_y + (0.31 if child else 0.345)
    lean = 0.055 if elderly else 0.0  # elderly people are drawn with a stoop
    head_x = lean + (0.012 if profile else 0.0)
    half_shoulder = (0.066 if profile else 0.105 if child else 0.122) * person.girth * (0.9 if elderly else 1.0)
    half_hip = (0.058 if profile else 0.088) * person.girth
    stride = math.sin(2 * math.pi * frame.phase) if frame.walking else 0.0
    if frame.walking and abs(stride) < 0.45:
        stride = math.copysign(0.45, stride or 1.0)
    skin, upper, lower = shades["skin"], shades["upper"], shades["lower"]
    sole = 0.985

    # Far arm and things behind the body.
    near_hand = (
        (0.06 + 0.13 * stride, hip_y + 0.03) if profile else (half_shoulder + 0.055, hip_y + 0.03 - 0.02 * stride)
    )
    far_hand = (-0.13 * stride, hip_y + 0.03) if profile else (-half_shoulder - 0.055, hip_y + 0.03 + 0.02 * stride)
    if has["CarryingInFront"]:
        near_hand = (0.17, hip_y - 0.10) if profile else (0.10, hip_y - 0.10)
        far_hand = (0.15, hip_y - 0.08) if profile else (-0.10, hip_y - 0.10)
    if has["Phone"]:
        near_hand = (head_x + 0.055, head_y + 0.03) if profile else (head_r + 0.03, head_y + 0.03)
    if has["Umbrella"]:
        far_hand = (0.10, shoulder_y + 0.10) if profile else (-half_shoulder - 0.03, shoulder_y + 0.10)
    if has["Cane"]:
        cane_hand = "far" if not has["Umbrella"] else "near"
        spot = (
            (0.14, hip_y + 0.01)
            if profile
            else ((-1 if cane_hand == "far" else 1) * (half_shoulder + 0.08), hip_y + 0.01)
        )
        far_hand, near_hand = (spot, near_hand) if cane_hand == "far" else (far_hand, spot)

    def arm(hand, near: bool) -> None:
        sx = lean * 0.7 + (0.0 if profile else (1 if near else -1) * (half_shoulder - 0.02))
        bend = 0.02 if profile else (0.03 if near else -0.03)
        elbow = ((sx + hand[0]) / 2 + bend, (shoulder_y + hand[1]) / 2 + 0.03)
        color = upper if near or not profile else _darker(upper, 0.8)
        if has["ShortSleeve"]:
            pen.line([(sx, shoulder_y + 0.03), elbow, hand], 0.036, skin)
            middle = ((sx + elbow[0]) / 2, (shoulder_y + 0.03 + elbow[1]) / 2)
            pen.line([(sx, shoulder_y + 0.03), middle], 0.056, color)
        else:
            pen.line([(sx, shoulder_y + 0.03), elbow, hand], 0.052, color)
        pen.ellipse(*hand, 0.022, 0.022, skin)

    def leg(x_hip: float, x_foot: float, y_foot: float, shaded: bool) -> None:
        cloth = _darker(lower, 0.82) if shaded else lower
        knee = ((x_hip + x_foot) / 2 + (0.02 if profile else 0.0), (hip_y + y_foot) / 2)
        foot = (x_foot, y_foot)
        thick = 0.072 if child else 0.078
        if lower_type == "trousers":
            pen.line([(x_hip, hip_y), knee, foot], thick, cloth)
            if has["SideStripe"]:
                off = 0.0 if profile else (0.022 if x_hip > 0 else -0.022)
                pen.line(
                    [(x_hip + off, hip_y), (knee[0] + off, knee[1]), (foot[0] + off, foot[1])], 0.016, _contrast(lower)
                )
        else:
            pen.line([(x_hip, hip_y), knee, foot], 0.05, _darker(skin, 0.85) if shaded else skin)
            if lower_type == "shorts":
                pen.line([(x_hip, hip_y), knee], thick + 0.012, cloth)
        shoe = shades["shoes"]
        if has["Boots"]:
            shin = (knee[0] * 0.45 + foot[0] * 0.55, knee[1] * 0.45 + foot[1] * 0.55)
            pen.line([shin, foot], 0.068, shoe)
        toe = (0.05, 0.0) if profile else (0.012 if x_hip > 0 else -0.012, 0.006)
        pen.line([(x_foot - 0.01, y_foot), (x_foot + toe[0], y_foot + toe[1])], 0.042, shoe)

    if has["Umbrella"]:
        hx, hy = far_hand
        pen.line([(hx, hy + 0.03), (hx * 0.6, -0.10)], 0.012, (70, 66, 64))
        pen.pie(hx * 0.6, -0.015, 0.27, 0.15, shades["umbrella"])
    arm(far_hand, near=False) if not back else None
    if has["LongHair"] and not back:
        hair_x = head_x - (0.035 if profile else 0.0)
        spread = head_r * (0.75 if profile else 1.15)
        pen.polygon(
            [(hair_x - spread, head_y), (hair_x + (0.0 if profile else spread), head_y),
             (hair_x + (0.0 if profile else spread), shoulder_y + 0.10), (hair_x - spread, shoulder_y + 0.12)],
            shades["hair"],
        )  # fmt: skip
    if has["Backpack"] and profile:
        x_back = lean * 0.7 - half_shoulder
        pen.polygon(
            [
                (x_back, shoulder_y + 0.02),
                (x_back - 0.10, shoulder_y + 0.05),
                (x_back - 0.11, hip_y - 0.06),
                (x_back, hip_y - 0.03),
            ],
            shades["backpack"],
        )
    if has["Backpack"] and front:
        pen.polygon(
            [
                (-half_shoulder - 0.012, shoulder_y + 0.0),
                (half_shoulder + 0.012, shoulder_y + 0.0),
                (half_shoulder, hip_y - 0.06),
                (-half_shoulder, hip_y - 0.06),
            ],
            shades["backpack"],
        )

    # Legs, skirt.
    if profile:
        leg(0.0, -0.12 * stride, sole - 0.012 * abs(stride), True)
        leg(0.0, 0.12 * stride, sole, False)
    else:
        x_foot = 0.035 if frame.walking else 0.055
        lift = 0.035 * stride
        leg(-half_hip * 0.52, -x_foot, sole - max(0.0, lift), lift > 0)
        leg(half_hip * 0.52, x_foot, sole - max(0.0, -lift), lift < 0)
    if lower_type == "skirt":
        hem = hip_y + 0.19
        pen.polygon(
            [(-half_hip, hip_y - 0.03), (half_hip, hip_y - 0.03), (half_hip + 0.05, hem), (-half_hip - 0.05, hem)],
            lower,
        )

    # Torso.
    bottom = hip_y + (0.22 if has["LongCoat"] else 0.03)
    flare = 0.035 if has["LongCoat"] else 0.0
    torso = [
        (lean * 0.7 - half_shoulder, shoulder_y + 0.02), (lean * 0.7 - half_shoulder * 0.5, shoulder_y - 0.015),
        (lean * 0.7 + half_shoulder * 0.5, shoulder_y - 0.015), (lean * 0.7 + half_shoulder, shoulder_y + 0.02),
        (half_hip + flare, bottom), (-half_hip - flare, bottom),
    ]  # fmt: skip
    pen.line([(head_x * 0.8, shoulder_y - 0.02), (head_x, head_y + head_r * 0.7)], 0.05, _darker(skin, 0.9))
    pen.polygon(torso, upper)
    if traits["UpperPattern"] in ("stripes", "plaid"):
        _paint_pattern(canvas, [pen.at(*p) for p in torso], traits["UpperPattern"], upper, pen.height, rng)
    elif traits["UpperPattern"] == "logo":
        lx, ly = (lean * 0.6 + 0.01, shoulder_y + 0.12)
        kind = rng.integers(3)
        if kind == 0:
            pen.ellipse(lx, ly, 0.042, 0.036, _contrast(upper))
        elif kind == 1:
            pen.polygon(
                [(lx - 0.05, ly - 0.02), (lx + 0.05, ly - 0.02), (lx + 0.05, ly + 0.02), (lx - 0.05, ly + 0.02)],
                _contrast(upper),
            )
        else:
            pen.polygon([(lx, ly - 0.045), (lx + 0.045, ly + 0.035), (lx - 0.045, ly + 0.035)], _contrast(upper))
    if has["LongCoat"] and not back:
        pen.line(
            [
                (lean * 0.6 + (half_shoulder * 0.6 if profile else 0), shoulder_y + 0.02),
                (half_hip * 0.7 if profile else 0, bottom),
            ],
            0.010,
            _darker(upper, 0.55),
        )
    if has["SafetyVest"]:
        vest = [(x * 0.96, min(y, hip_y)) for x, y in torso]
        pen.polygon(vest, (250, 130, 20))
        for y in (shoulder_y + 0.13, shoulder_y + 0.23):
            pen.line([(-half_hip * 0.95 + lean * 0.5, y), (half_hip * 0.95 + lean * 0.5, y)], 0.026, (232, 240, 180))
    if has["Backpack"] and back:
        pen.polygon(
            [
                (-half_shoulder * 0.72, shoulder_y + 0.02),
                (half_shoulder * 0.72, shoulder_y + 0.02),
                (half_shoulder * 0.78, hip_y - 0.05),
                (-half_shoulder * 0.78, hip_y - 0.05),
            ],
            shades["backpack"],
        )
        pen.line(
            [(-half_shoulder * 0.5, shoulder_y + 0.19), (half_shoulder * 0.5, shoulder_y + 0.19)],
            0.012,
            _darker(shades["backpack"], 0.5),
        )
    if has["Backpack"] and not back:
        for x in (half_shoulder * 0.1,) if profile else (-half_shoulder * 0.62, half_shoulder * 0.62):
            pen.line([(lean * 0.7 + x, shoulder_y), (x, hip_y - 0.09)], 0.024, _darker(shades["backpack"], 0.8))
    if has["ShoulderBag"]:
        sx = -half_shoulder * 0.55
        bag_x = half_hip + 0.03 if not profile else 0.02
        pen.line([(lean * 0.7 + sx, shoulder_y), (bag_x, hip_y - 0.02)], 0.017, _darker(shades["bag"], 0.7))
        pen.polygon(
            [
                (bag_x - 0.06, hip_y - 0.04),
                (bag_x + 0.06, hip_y - 0.04),
                (bag_x + 0.06, hip_y + 0.07),
                (bag_x - 0.06, hip_y + 0.07),
            ],
            shades["bag"],
        )
    if has["CarryingInFront"]:
        half, bx = (0.07, 0.17) if profile else (0.145 if back else 0.115, 0.0)
        if not back:
            pen.polygon(
                [
                    (bx - half, hip_y - 0.19),
                    (bx + half, hip_y - 0.19),
                    (bx + half, hip_y - 0.05),
                    (bx - half, hip_y - 0.05),
                ],
                shades["box"],
            )
            pen.line([(bx - half, hip_y - 0.12), (bx + half, hip_y - 0.12)], 0.008, _darker(shades["box"], 0.6))
        else:
            for s in (-1, 1):
                inner = half_shoulder * 0.98
                pen.polygon(
                    [
                        (s * inner, hip_y - 0.19),
                        (s * (half + 0.03), hip_y - 0.19),
                        (s * (half + 0.03), hip_y - 0.05),
                        (s * inner * 0.9, hip_y - 0.05),
                    ],
                    shades["box"],
                )

    # Arms and what the hands hold.
    if back:
        arm(far_hand, near=False)
    arm(near_hand, near=True)
    free = [hand for hand, used in ((near_hand, has["Phone"]), (far_hand, has["Umbrella"] or has["Cane"])) if not used]
    if has["Cane"]:
        hx, hy = far_hand if not has["Umbrella"] else near_hand
        pen.line([(hx - 0.02, hy - 0.012), (hx + 0.012, hy - 0.012), (hx + 0.015, sole)], 0.018, (84, 52, 30))
    for name, color in (("Suitcase", "suitcase"), ("HandBag", "handbag")):
        if has[name] and free:
            hx, hy = free.pop(0)
            if name == "Suitcase":
                hx += 0.05 if hx >= 0 else -0.05
                pen.line([(hx, hy), (hx, hy + 0.10)], 0.012, (60, 60, 64))
                pen.polygon(
                    [
                        (hx - 0.065, hy + 0.10),
                        (hx + 0.065, hy + 0.10),
                        (hx + 0.065, sole - 0.01),
                        (hx - 0.065, sole - 0.01),
                    ],
                    shades[color],
                )
                pen.line([(hx - 0.03, hy + 0.14), (hx - 0.03, sole - 0.04)], 0.008, _darker(shades[color], 0.6))
            else:
                pen.line(
                    [(hx - 0.025, hy + 0.05), (hx, hy), (hx + 0.025, hy + 0.05)], 0.010, _darker(shades[color], 0.7)
                )
                pen.polygon(
                    [(hx - 0.05, hy + 0.05), (hx + 0.05, hy + 0.05), (hx + 0.058, hy + 0.13), (hx - 0.058, hy + 0.13)],
                    shades[color],
                )
    if has["Phone"]:
        hx, hy = near_hand
        pen.polygon(
            [(hx - 0.014, hy - 0.045), (hx + 0.014, hy - 0.045), (hx + 0.014, hy + 0.012), (hx - 0.014, hy + 0.012)],
            (20, 22, 30),
        )
        pen.polygon(
            [(hx - 0.009, hy - 0.038), (hx + 0.009, hy - 0.038), (hx + 0.009, hy + 0.0), (hx - 0.009, hy + 0.0)],
            (150, 205, 240),
        )

    # Head.
    hair, rx = shades["hair"], head_r * (0.92 if profile else 0.84)
    pen.ellipse(head_x, head_y, rx, head_r * 1.1, skin)
    if profile:
        pen.polygon(
            [
                (head_x + rx * 0.9, head_y - 0.008),
                (head_x + rx * 1.22, head_y + 0.018),
                (head_x + rx * 0.9, head_y + 0.022),
            ],
            skin,
        )
    if back:
        pen.ellipse(head_x, head_y - head_r * 0.06, rx * 1.06, head_r * 1.08, hair)
        if has["LongHair"]:
            pen.polygon(
                [
                    (head_x - rx * 1.05, head_y),
                    (head_x + rx * 1.05, head_y),
                    (head_x + rx * 1.1, shoulder_y + 0.11),
                    (head_x - rx * 1.1, shoulder_y + 0.11),
                ],
                hair,
            )
    elif profile:
        pen.pie(head_x - 0.006, head_y - head_r * 0.05, rx * 1.08, head_r * 1.2, hair)
        pen.polygon(
            [
                (head_x - rx * 1.08, head_y - 0.02),
                (head_x - rx * 0.2, head_y - 0.02),
                (head_x - rx * 0.35, head_y + head_r * 0.65),
                (head_x - rx * 0.95, head_y + head_r * 0.6),
            ],
            hair,
        )
    else:
        pen.pie(head_x, head_y - head_r * 0.18, rx * 1.08, head_r * 1.05, hair)
        for s in (-1, 1):
            pen.line(
                [
                    (head_x + s * rx, head_y - head_r * 0.25),
                    (head_x + s * rx, head_y + head_r * (0.9 if has["LongHair"] else 0.1)),
                ],
                head_r * 0.22,
                hair,
            )
    if not back:
        eyes = (head_x + rx * 0.55,) if profile else (head_x - rx * 0.42, head_x + rx * 0.42)
        for x in eyes:
            pen.ellipse(x, head_y, 0.007, 0.007, (30, 26, 26))
        if has["Glasses"]:
            for x in eyes:
                pen.ellipse(x, head_y, head_r * 0.34, head_r * 0.30, (16, 16, 18))
                pen.ellipse(x, head_y, head_r * 0.22, head_r * 0.18, shades["lens"])
            pen.line(
                [(head_x - rx * (0.6 if profile else 0.95), head_y - 0.004), (head_x + rx * 0.9, head_y - 0.004)],
                0.008,
                (16, 16, 18),
            )
        if has["Mask"]:
            left = head_x + (rx * 0.1 if profile else -rx * 0.72)
            right = head_x + rx * (1.15 if profile else 0.72)
            pen.polygon(
                [
                    (left, head_y + head_r * 0.30),
                    (right, head_y + head_r * 0.30),
                    (right - 0.008, head_y + head_r * 0.98),
                    (left + 0.010, head_y + head_r * 0.98),
                ],
                (222, 238, 246),
            )
        else:
            mouth = head_x + (rx * 0.62 if profile else 0.0)
            pen.line(
                [(mouth - 0.012, head_y + head_r * 0.58), (mouth + 0.012, head_y + head_r * 0.58)],
                0.007,
                _darker(skin, 0.55),
            )
    if has["Hat"]:
        pen.pie(head_x, head_y - head_r * 0.28, rx * 1.2, head_r * 1.15, shades["hat"])
        brim = (-rx * 1.25, rx * (1.75 if profile else 1.25))
        pen.line(
            [(head_x + brim[0], head_y - head_r * 0.30), (head_x + brim[1], head_y - head_r * 0.30)],
            head_r * 0.24,
            _darker(shades["hat"], 0.85),
        )
    if has["Headphones"]:
        ear = rx * (0.1 if profile else 1.0)
        band = [(-ear * 1.1, 0.0), (-ear, -0.8), (0.0, -1.22), (ear, -0.8)]
        pen.line([(head_x + x, head_y + y * head_r) for x, y in band], 0.014, (28, 28, 30))
        for s in (0.0,) if profile else (-1, 1):
            pen.ellipse(head_x + s * rx * 1.12, head_y, head_r * 0.34, head_r * 0.42, (30, 30, 34))
            pen.ellipse(head_x + s * rx * 1.12, head_y, head_r * 0.16, head_r * 0.2, (200, 60, 60))
    if has["Scarf"]:
        pen.line(
            [(head_x * 0.8 - rx * 0.95, head_y + head_r * 1.22), (head_x * 0.8 + rx * 0.95, head_y + head_r * 1.22)],
            0.052,
            shades["scarf"],
        )
        if not back:
            pen.line(
                [(head_x * 0.8 + rx * 0.5, head_y + head_r * 1.3), (head_x * 0.8 + rx * 0.6, shoulder_y + 0.15)],
                0.034,
                _darker(shades["scarf"], 0.85),
            )


def _occlude(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Something stands in front: a pole, or a car, table or bush over the lower part."""
    draw, (width, height) = ImageDraw.Draw(canvas), canvas.size
    color = tuple(int(c) for c in rng.integers(30, 200, 3))
    if rng.random() < 0.4:
        x = rng.uniform(0.1, 0.85) * width
        draw.rectangle([x, 0, x + rng.uniform(0.06, 0.14) * width, height], fill=color)
    else:
        top = rng.uniform(0.62, 0.85) * height
        shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        shape([-rng.uniform(0, 0.6) * width, top, rng.uniform(0.5, 1.3) * width, height * 1.2], fill=color)


def _photograph(image: Image.Image, camera: int, nuisance: float, rng: np.random.Generator) -> Image.Image:
    """Light, blur, sensor noise: what a camera adds. Camera 1 is dim, bluish, low in contrast and noisy."""
    if not nuisance:
        return image
    if rng.random() < (0.25 if camera == 0 else 0.5) * nuisance:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.4, 1.3) * nuisance))
    pixels = np.asarray(image, np.float32)
    gain = rng.uniform(0.72, 1.2) * rng.uniform(0.94, 1.06, 3)
    if camera == 1:
        pixels = 118 + (pixels - 118) * 0.72
        gain = gain * np.array([0.74, 0.86, 1.04])
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(2, 7) + 5 * camera) * nuisance
    slope = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-18, 18))
    pixels = pixels * gain.astype(np.float32) + noise + slope
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# --- words -----------------------------------------------------------------------------------------------------------

_THINGS = {
    "Glasses": ("wearing glasses", "without glasses"),
    "Mask": ("wearing a face mask", "without a face mask"),
    "Scarf": ("wearing a scarf", "without a scarf"),
    "Headphones": ("wearing headphones", "without headphones"),
    "SafetyVest": ("wearing a safety vest", "without a safety vest"),
    "Backpack": ("carrying a backpack", "without a backpack"),
    "HandBag": ("holding a handbag", "without a handbag"),
    "ShoulderBag": ("carrying a shoulder bag", "without a shoulder bag"),
    "Umbrella": ("holding an umbrella", "without an umbrella"),
    "Phone": ("holding a phone", "without a phone"),
    "Suitcase": ("pulling a suitcase", "without a suitcase"),
    "Cane": ("walking with a cane", "without a cane"),
    "CarryingInFront": ("carrying something in front", "carrying nothing in front"),
    "Walking": ("walking", "standing still"),
}
# Attributes that one phrase tells together.
_PHRASES = tuple((name,) for name in _THINGS) + (
    ("Hat",), ("Hat", "HatColor"), ("HairColor",), ("LongHair",), ("HairColor", "LongHair"),
    ("UpperColor",), ("UpperPattern",), ("UpperColor", "UpperPattern"), ("ShortSleeve",), ("LongCoat",),
    ("UpperColor", "LongCoat"), ("LowerType",), ("LowerColor", "LowerType"), ("SideStripe",), ("Boots",),
    ("ShoeColor", "Boots"), ("View",), ("Age",),
)  # fmt: skip
_SUBJECTS = ("a drawing of a person", "a person", "a pedestrian", "a photo of a person", "someone")


def _phrase(names: tuple[str, ...], answers: dict[str, str]) -> str:
    has = {name: answers[name] == "yes" for name in names}
    if names[0] in _THINGS:
        return _THINGS[names[0]][0 if has[names[0]] else 1]
    match names:
        case ("Hat",):
            return "wearing a hat" if has["Hat"] else "without a hat"
        case ("Hat", "HatColor"):
            return f"wearing a {answers['HatColor']} hat"
        case ("HairColor",):
            return f"with {answers['HairColor']} hair"
        case ("LongHair",):
            return "with long hair" if has["LongHair"] else "with short hair"
        case ("HairColor", "LongHair"):
            return f"with {'long' if has['LongHair'] else 'short'} {answers['HairColor']} hair"
        case ("UpperColor",):
            return f"in a {answers['UpperColor']} top"
        case ("UpperPattern",):
            return {"plain": "in a plain top", "stripes": "in a striped top", "plaid": "in a plaid top",
                    "logo": "in a top with a logo"}[answers["UpperPattern"]]  # fmt: skip
        case ("UpperColor", "UpperPattern"):
            kind = {"plain": "plain", "stripes": "striped", "plaid": "plaid", "logo": "printed"}[
                answers["UpperPattern"]
            ]
            return f"in a {answers['UpperColor']} {kind} top"
        case ("ShortSleeve",):
            return "with short sleeves" if has["ShortSleeve"] else "with long sleeves"
        case ("LongCoat",):
            return "wearing a long coat" if has["LongCoat"] else "without a long coat"
        case ("UpperColor", "LongCoat"):
            return f"in a {answers['UpperColor']} {'long coat' if has['LongCoat'] else 'short top'}"
        case ("LowerType",):
            return f"wearing {_lower(answers)}"
        case ("LowerColor", "LowerType"):
            return "wearing " + _lower(answers, answers["LowerColor"] + " ")
        case ("SideStripe",):
            return "with a stripe down the trousers" if has["SideStripe"] else "without a side stripe"
        case ("Boots",):
            return "wearing boots" if has["Boots"] else "wearing low shoes"
        case ("ShoeColor", "Boots"):
            return f"in {answers['ShoeColor']} {'boots' if has['Boots'] else 'shoes'}"
        case ("View",):
            side = answers["View"]
            return f"facing {side}" if side in ("left", "right") else f"seen from the {side}"
        case ("Age",):
            return {"child": "who is a child", "adult": "who is an adult", "elderly": "who is elderly"}[answers["Age"]]
    raise ValueError(f"no phrase for the attributes {names!r}")


def _lower(answers: dict[str, str], color: str = "") -> str:
    article = "a " if answers["LowerType"] == "skirt" else ""
    return f"{article}{color}{answers['LowerType']}"


def caption(
    labels: np.ndarray, rng: np.random.Generator, phrases: int | None = None, schema: AttributeSchema | None = None
) -> tuple[str, list[int]]:
    """A sentence that tells part of what a picture shows.

    Args:
        labels: int64 `(A,)`, -100 = unknown (never told).
        phrases: how many phrases; 1 to 6 when None.

    Returns:
        The lower-case sentence and the positions of the attributes it tells. Another picture matches the sentence
        exactly when its labels agree at these positions, which is what makes the sigmoid loss's targets exact.
    """
    schema = schema or get_schema("synthetic")
    answers = {a.name: a.labels[k] for a, k in zip(schema, labels, strict=True) if k != UNKNOWN}
    possible = [
        names
        for names in _PHRASES
        if all(name in answers for name in names)
        and not (names == ("SideStripe",) and answers["LowerType"] != "trousers")
    ]
    # What is there is told more often than what is not: captions name things.
    weights = np.array([0.3 if answers[n[0]] == "no" else 1.0 for n in possible])
    count = min(len(possible), phrases or int(rng.integers(1, 7)))
    chosen = rng.choice(len(possible), count, replace=False, p=weights / weights.sum())
    told, text = [], []
    for names in (possible[i] for i in chosen):
        if not set(names) & set(told):
            told += names
            text.append(_phrase(names, answers))
    return f"{_SUBJECTS[int(rng.integers(len(_SUBJECTS)))]} {', '.join(text)}", [schema.index(name) for name in told]


# --- data sets -------------------------------------------------------------------------------------------------------


def render_tracklet(
    person: SyntheticPerson, num_frames: int, camera: int = 0, track: int = 0
) -> list[tuple[Image.Image, Frame]]:
    """Several frames of one person: one view, the stride going on from frame to frame.

    Args:
        num_frames: at least 1.
        track: number of the tracklet; other numbers give other views.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames!r}; expected at least 1")
    first = Frame.sample(person, 1_000_000 + track, camera)
    frames = (
        Frame(10_000 * (track + 200) + t, first.view, first.walking, (first.phase + 0.11 * t) % 1.0, camera)
        for t in range(num_frames)
    )
    return [(render_person(person, frame), frame) for frame in frames]


def _picture_rows(job: tuple) -> list[tuple[bytes, str, np.ndarray, int, int]]:
    seed, people, pictures_per_person, cameras, height = job
    rows = []
    for person_id in people:
        person = SyntheticPerson.sample(seed, person_id)
        for index in range(pictures_per_person):
            camera = cameras[index % len(cameras)]
            frame = Frame.sample(person, index, camera)
            file = io.BytesIO()
            render_person(person, frame, height).save(file, "JPEG", quality=90)
            rows.append(
                (
                    file.getvalue(),
                    f"{person_id:06d}_c{camera}_{index}.jpg",
                    person_labels(person, frame),
                    person_id,
                    camera,
                )
            )
    return rows


def _map_jobs(jobs: list, num_proc: int) -> Iterator:
    # Drawing is pure Python over PIL: processes, not threads. Where fork does not exist a child would have to import
    # the caller's main module, which scripts without a guard do not survive: draw in this process there.
    if num_proc <= 1 or len(jobs) < 4 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_picture_rows, jobs)
        return
    with multiprocessing.get_context("fork").Pool(num_proc) as pool:
        yield from pool.imap(_picture_rows, jobs)


def build_synthetic_dataset(
    *,
    num_train: int = 6000,
    num_validation: int = 1000,
    num_test: int = 2000,
    pictures_per_person: int = 2,
    cameras: tuple[int, ...] = (0,),
    height: int = HEIGHT,
    seed: int = 0,
    num_proc: int | None = None,
):
    """Draw a data set of pedestrians: the same pictures for the same arguments, whatever `num_proc`.

    Args:
        num_train, num_validation, num_test: pictures per split; no person is in two splits.
        pictures_per_person: pictures of each person, differing in view, pose and everything that disturbs.
        cameras: which cameras take them, in turn: `(0,)`, `(1,)` (the shifted domain) or `(0, 1)`.
        height: picture height in pixels, the width is half of it.
        seed: the population. The embedded backbone was trained on population 1000, which is refused here.
        num_proc: drawing processes, all cores when None.

    Returns:
        `datasets.DatasetDict` with `image`, `image_id`, `labels` int64 `(A,)` (-100 = cannot be seen), `person_id` and
        `camera_id`, carrying its schema.
    """
    from vlm_par_hf.utils import require

    datasets = require("datasets", "train")
    from .carried import attach_schema
    from .features import PedestrianImage

    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"num_{name} is {value!r}; expected a positive integer")
    if pictures_per_person < 1:
        raise ValueError(f"pictures_per_person is {pictures_per_person!r}; expected at least 1")
    if not cameras or not set(cameras) <= {0, 1}:
        raise ValueError(f"cameras is {cameras!r}; expected a non-empty tuple of 0 and 1")
    if seed == 1000:
        raise ValueError("seed 1000 is the population that the embedded backbone was trained on; choose another")

    schema = get_schema("synthetic")
    features = datasets.Features(
        {
            "image": PedestrianImage(),
            "image_id": datasets.Value("string"),
            "labels": datasets.List(datasets.Value("int64"), length=len(schema)),
            "person_id": datasets.Value("int64"),
            "camera_id": datasets.Value("int64"),
        }
    )
    options = {
        "seed": seed,
        "num_train": num_train,
        "num_validation": num_validation,
        "pictures_per_person": pictures_per_person,
        "cameras": list(cameras),
    }
    result, start = {}, 0
    for split, size in sizes.items():
        people = range(start, start + math.ceil(size / pictures_per_person))
        start = people.stop
        jobs = [
            (seed, people[i : i + 32], pictures_per_person, tuple(cameras), height) for i in range(0, len(people), 32)
        ]
        rows = [row for job in _map_jobs(jobs, num_proc or os.cpu_count() or 1) for row in job][:size]
        pictures, names, labels, person_ids, camera_ids = zip(*rows, strict=True)
        table = {
            "image": [{"bytes": data, "path": name} for data, name in zip(pictures, names, strict=True)],
            "image_id": list(names),
            "labels": [row.tolist() for row in labels],
            "person_id": list(person_ids),
            "camera_id": list(camera_ids),
        }
        dataset = datasets.Dataset.from_dict(table, features=features)
        result[split] = attach_schema(dataset, schema, name="synthetic", options=options)
    return datasets.DatasetDict(result)
