"""The figure of a person: body and clothes, drawn part by part, what is farther away first."""

import numpy as np
from PIL import Image, ImageDraw

from .belongings import (
    draw_backpack_behind,
    draw_backpack_on_back,
    draw_backpack_straps,
    draw_box,
    draw_held,
    draw_shoulder_bag,
    draw_umbrella,
)
from .body import SOLE_Y, Body
from .pen import Pen, Point, contrast, darker, paint_pattern
from .people import Frame, SyntheticPerson


__all__ = ["draw_figure"]


def draw_figure(
    canvas: Image.Image, person: SyntheticPerson, frame: Frame, nuisance: float, rng: np.random.Generator
) -> None:
    """Draws a person onto a picture.

    Args:
        canvas: RGB, of any size; changed.
        person, frame: who, and how they stand.
        nuisance: strength of what disturbs: above 0 a body may be cut off at the edge.
        rng: places the body and its patterns.
    """
    body = Body(person, frame)
    pen = _place(canvas, person, frame, nuisance, rng)
    _draw_behind(pen, body)
    _draw_legs(pen, body)
    _draw_torso(pen, body, canvas, rng)
    _draw_on_torso(pen, body)
    _draw_hands(pen, body)
    _draw_head(pen, body)


def _place(
    canvas: Image.Image, person: SyntheticPerson, frame: Frame, nuisance: float, rng: np.random.Generator
) -> Pen:
    """A pen for a body that stands in the picture, with room for an umbrella above it."""
    width, height = canvas.size
    umbrella = person.traits["Umbrella"] == "yes"
    size = height * (0.80 if umbrella else 0.93) * rng.uniform(0.90, 1.0) * (0.86 + 0.14 * person.stature)
    if nuisance and rng.random() < 0.06 * nuisance:
        size *= 1.2  # cut off at the frame, as loose detections are
    x = width / 2 + rng.uniform(-0.10, 0.10) * width
    y = max(height * rng.uniform(0.96, 0.995) - size, height * (0.16 if umbrella else 0.01))
    # Camera 1 hangs higher: bodies are foreshortened.
    return Pen(ImageDraw.Draw(canvas), x, y, size, -1 if frame.view == "left" else 1, 0.90 if frame.camera else 1.0)


def _draw_behind(pen: Pen, body: Body) -> None:
    """What the body covers; from behind that is the umbrella only."""
    if body.has["Umbrella"]:
        draw_umbrella(pen, body)
    if body.back:
        return
    _draw_arm(pen, body, near=False)
    if body.has["LongHair"]:
        _draw_hair_behind(pen, body)
    if body.has["Backpack"]:
        draw_backpack_behind(pen, body)


def _draw_on_torso(pen: Pen, body: Body) -> None:
    has, back = body.has, body.back
    if has["LongCoat"] and not back:
        _draw_coat_opening(pen, body)
    if has["SafetyVest"]:
        _draw_safety_vest(pen, body)
    if has["Backpack"]:
        (draw_backpack_on_back if back else draw_backpack_straps)(pen, body)
    if has["ShoulderBag"]:
        draw_shoulder_bag(pen, body)
    if has["CarryingInFront"]:
        draw_box(pen, body)


def _draw_hands(pen: Pen, body: Body) -> None:
    """The arms in front of the body, and what the hands hold."""
    if body.back:
        _draw_arm(pen, body, near=False)
    _draw_arm(pen, body, near=True)
    draw_held(pen, body)


def _draw_head(pen: Pen, body: Body) -> None:
    _draw_bare_head(pen, body)
    _draw_hair(pen, body)
    if not body.back:
        _draw_face(pen, body)
    if body.has["Hat"]:
        _draw_hat(pen, body)
    if body.has["Headphones"]:
        _draw_headphones(pen, body)
    if body.has["Scarf"]:
        _draw_scarf(pen, body)


# --- arms and legs ---------------------------------------------------------------------------------------------------


def _draw_arm(pen: Pen, body: Body, *, near: bool) -> None:
    profile, skin, upper = body.profile, body.shades["skin"], body.shades["upper"]
    hand = body.near_hand if near else body.far_hand
    x = body.chest_x + (0.0 if profile else (1 if near else -1) * (body.half_shoulder - 0.02))
    bend = 0.02 if profile else 0.03 if near else -0.03
    elbow = ((x + hand[0]) / 2 + bend, (body.shoulder_y + hand[1]) / 2 + 0.03)
    shoulder = (x, body.shoulder_y + 0.03)
    cloth = upper if near or not profile else darker(upper, 0.8)
    if body.has["ShortSleeve"]:
        pen.line([shoulder, elbow, hand], 0.036, skin)
        middle = ((x + elbow[0]) / 2, (shoulder[1] + elbow[1]) / 2)
        pen.line([shoulder, middle], 0.056, cloth)
    else:
        pen.line([shoulder, elbow, hand], 0.052, cloth)
    pen.ellipse(*hand, 0.022, 0.022, skin)


def _draw_legs(pen: Pen, body: Body) -> None:
    """Both legs with shoes, and the skirt over them."""
    stride = body.stride
    if body.profile:
        _draw_leg(pen, body, 0.0, (-0.12 * stride, SOLE_Y - 0.012 * abs(stride)), shaded=True)
        _draw_leg(pen, body, 0.0, (0.12 * stride, SOLE_Y), shaded=False)
    else:
        x_hip, x_foot = body.half_hip * 0.52, 0.035 if body.walking else 0.055
        lift = 0.035 * stride
        _draw_leg(pen, body, -x_hip, (-x_foot, SOLE_Y - max(0.0, lift)), shaded=lift > 0)
        _draw_leg(pen, body, x_hip, (x_foot, SOLE_Y - max(0.0, -lift)), shaded=lift < 0)
    if body.lower_type == "skirt":
        top, hem, half = body.hip_y - 0.03, body.hip_y + 0.19, body.half_hip
        pen.polygon([(-half, top), (half, top), (half + 0.05, hem), (-half - 0.05, hem)], body.shades["lower"])


def _draw_leg(pen: Pen, body: Body, x_hip: float, foot: Point, *, shaded: bool) -> None:
    """One leg with its shoe; `shaded` is the one that is farther away."""
    skin, lower = body.shades["skin"], body.shades["lower"]
    cloth = darker(lower, 0.82) if shaded else lower
    hip = (x_hip, body.hip_y)
    knee = ((x_hip + foot[0]) / 2 + (0.02 if body.profile else 0.0), (body.hip_y + foot[1]) / 2)
    if body.lower_type == "trousers":
        pen.line([hip, knee, foot], body.leg_width, cloth)
        if body.has["SideStripe"]:
            outwards = 0.0 if body.profile else 0.022 if x_hip > 0 else -0.022
            pen.line([(x + outwards, y) for x, y in (hip, knee, foot)], 0.016, contrast(lower))
    else:
        pen.line([hip, knee, foot], 0.05, darker(skin, 0.85) if shaded else skin)
        if body.lower_type == "shorts":
            pen.line([hip, knee], body.leg_width + 0.012, cloth)
    if body.has["Boots"]:
        shin = (knee[0] * 0.45 + foot[0] * 0.55, knee[1] * 0.45 + foot[1] * 0.55)
        pen.line([shin, foot], 0.068, body.shades["shoes"])
    toe = (0.05, 0.0) if body.profile else (0.012 if x_hip > 0 else -0.012, 0.006)
    pen.line([(foot[0] - 0.01, foot[1]), (foot[0] + toe[0], foot[1] + toe[1])], 0.042, body.shades["shoes"])


# --- torso -----------------------------------------------------------------------------------------------------------


def _draw_torso(pen: Pen, body: Body, canvas: Image.Image, rng: np.random.Generator) -> None:
    """Neck, and top or coat with its pattern."""
    head_x, head_y, _, radius = body.head
    neck = [(body.neck_x, body.shoulder_y - 0.02), (head_x, head_y + radius * 0.7)]
    pen.line(neck, 0.05, darker(body.shades["skin"], 0.9))
    upper = body.shades["upper"]
    pen.polygon(body.torso, upper)
    if body.pattern in ("stripes", "plaid"):
        paint_pattern(canvas, [pen.at(x, y) for x, y in body.torso], body.pattern, upper, pen.height, rng)
    elif body.pattern == "logo":
        _draw_logo(pen, body, rng)


def _draw_logo(pen: Pen, body: Body, rng: np.random.Generator) -> None:
    """A disc, a bar or a triangle on the chest."""
    x, y, color = body.lean * 0.6 + 0.01, body.shoulder_y + 0.12, contrast(body.shades["upper"])
    kind = rng.integers(3)
    if kind == 0:
        pen.ellipse(x, y, 0.042, 0.036, color)
    elif kind == 1:
        pen.box(x - 0.05, y - 0.02, x + 0.05, y + 0.02, color)
    else:
        pen.polygon([(x, y - 0.045), (x + 0.045, y + 0.035), (x - 0.045, y + 0.035)], color)


def _draw_coat_opening(pen: Pen, body: Body) -> None:
    top = body.lean * 0.6 + (body.half_shoulder * 0.6 if body.profile else 0)
    bottom = body.half_hip * 0.7 if body.profile else 0
    line = [(top, body.shoulder_y + 0.02), (bottom, body.hem_y)]
    pen.line(line, 0.010, darker(body.shades["upper"], 0.55))


def _draw_safety_vest(pen: Pen, body: Body) -> None:
    pen.polygon([(x * 0.96, min(y, body.hip_y)) for x, y in body.torso], (250, 130, 20))
    x, half = body.lean * 0.5, body.half_hip * 0.95
    for y in (body.shoulder_y + 0.13, body.shoulder_y + 0.23):
        pen.line([(x - half, y), (x + half, y)], 0.026, (232, 240, 180))


# --- head ------------------------------------------------------------------------------------------------------------


def _draw_hair_behind(pen: Pen, body: Body) -> None:
    """Long hair that falls behind the shoulders."""
    x, y, _, radius = body.head
    if body.profile:
        x -= 0.035
        left, right = x - radius * 0.75, x
    else:
        left, right = x - radius * 1.15, x + radius * 1.15
    bottom = body.shoulder_y
    pen.polygon([(left, y), (right, y), (right, bottom + 0.10), (left, bottom + 0.12)], body.shades["hair"])


def _draw_bare_head(pen: Pen, body: Body) -> None:
    """The head without hair and face; in profile it has a nose."""
    (x, y, rx, ry), skin = body.head, body.shades["skin"]
    pen.ellipse(x, y, rx, ry * 1.1, skin)
    if body.profile:
        pen.polygon([(x + rx * 0.9, y - 0.008), (x + rx * 1.22, y + 0.018), (x + rx * 0.9, y + 0.022)], skin)


def _draw_hair(pen: Pen, body: Body) -> None:
    (x, y, rx, ry), hair, long_hair = body.head, body.shades["hair"], body.has["LongHair"]
    if body.back:
        pen.ellipse(x, y - ry * 0.06, rx * 1.06, ry * 1.08, hair)
        if long_hair:
            bottom = body.shoulder_y + 0.11
            pen.polygon([(x - rx * 1.05, y), (x + rx * 1.05, y), (x + rx * 1.1, bottom), (x - rx * 1.1, bottom)], hair)
    elif body.profile:
        pen.pie(x - 0.006, y - ry * 0.05, rx * 1.08, ry * 1.2, hair)
        pen.polygon(
            [(x - rx * 1.08, y - 0.02), (x - rx * 0.2, y - 0.02),
             (x - rx * 0.35, y + ry * 0.65), (x - rx * 0.95, y + ry * 0.6)],
            hair,
        )  # fmt: skip
    else:
        pen.pie(x, y - ry * 0.18, rx * 1.08, ry * 1.05, hair)
        bottom = y + ry * (0.9 if long_hair else 0.1)
        for s in (-1, 1):
            pen.line([(x + s * rx, y - ry * 0.25), (x + s * rx, bottom)], ry * 0.22, hair)


def _draw_face(pen: Pen, body: Body) -> None:
    """Eyes, glasses, and mask or mouth."""
    (x, y, rx, ry), profile = body.head, body.profile
    eyes = (x + rx * 0.55,) if profile else (x - rx * 0.42, x + rx * 0.42)
    for eye in eyes:
        pen.ellipse(eye, y, 0.007, 0.007, (30, 26, 26))
    if body.has["Glasses"]:
        for eye in eyes:
            pen.ellipse(eye, y, ry * 0.34, ry * 0.30, (16, 16, 18))
            pen.ellipse(eye, y, ry * 0.22, ry * 0.18, body.shades["lens"])
        pen.line([(x - rx * (0.6 if profile else 0.95), y - 0.004), (x + rx * 0.9, y - 0.004)], 0.008, (16, 16, 18))
    if body.has["Mask"]:
        left, right = x + (rx * 0.1 if profile else -rx * 0.72), x + rx * (1.15 if profile else 0.72)
        top, bottom = y + ry * 0.30, y + ry * 0.98
        pen.polygon([(left, top), (right, top), (right - 0.008, bottom), (left + 0.010, bottom)], (222, 238, 246))
    else:
        mouth_x, mouth_y = x + (rx * 0.62 if profile else 0.0), y + ry * 0.58
        pen.line([(mouth_x - 0.012, mouth_y), (mouth_x + 0.012, mouth_y)], 0.007, darker(body.shades["skin"], 0.55))


def _draw_hat(pen: Pen, body: Body) -> None:
    (x, y, rx, ry), color = body.head, body.shades["hat"]
    pen.pie(x, y - ry * 0.28, rx * 1.2, ry * 1.15, color)
    brim_y, peak = y - ry * 0.30, rx * (1.75 if body.profile else 1.25)
    pen.line([(x - rx * 1.25, brim_y), (x + peak, brim_y)], ry * 0.24, darker(color, 0.85))


def _draw_headphones(pen: Pen, body: Body) -> None:
    x, y, rx, ry = body.head
    ear = rx * (0.1 if body.profile else 1.0)
    band = [(-ear * 1.1, 0.0), (-ear, -0.8), (0.0, -1.22), (ear, -0.8)]
    pen.line([(x + dx, y + dy * ry) for dx, dy in band], 0.014, (28, 28, 30))
    for s in (0.0,) if body.profile else (-1, 1):
        pen.ellipse(x + s * rx * 1.12, y, ry * 0.34, ry * 0.42, (30, 30, 34))
        pen.ellipse(x + s * rx * 1.12, y, ry * 0.16, ry * 0.2, (200, 60, 60))


def _draw_scarf(pen: Pen, body: Body) -> None:
    (_, y, rx, ry), x, color = body.head, body.neck_x, body.shades["scarf"]
    pen.line([(x - rx * 0.95, y + ry * 1.22), (x + rx * 0.95, y + ry * 1.22)], 0.052, color)
    if not body.back:
        end = [(x + rx * 0.5, y + ry * 1.3), (x + rx * 0.6, body.shoulder_y + 0.15)]
        pen.line(end, 0.034, darker(color, 0.85))
