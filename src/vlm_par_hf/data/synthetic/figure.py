"""The figure of a person, drawn with polygons, lines and ellipses."""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

from .people import Frame, SyntheticPerson


__all__ = ["draw_figure"]


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


def draw_figure(canvas: Image.Image, person: SyntheticPerson, frame: Frame, nuisance: float, rng) -> None:
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
