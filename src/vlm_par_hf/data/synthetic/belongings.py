"""What a figure carries: on the back, over the shoulder, in front and in the hands."""

from .body import SOLE_Y, Body
from .pen import Pen, Point, darker


__all__ = [
    "draw_backpack_behind",
    "draw_backpack_on_back",
    "draw_backpack_straps",
    "draw_box",
    "draw_held",
    "draw_shoulder_bag",
    "draw_umbrella",
]


def draw_umbrella(pen: Pen, body: Body) -> None:
    x, y = body.far_hand
    pen.line([(x, y + 0.03), (x * 0.6, -0.10)], 0.012, (70, 66, 64))
    pen.pie(x * 0.6, -0.015, 0.27, 0.15, body.shades["umbrella"])


def draw_backpack_behind(pen: Pen, body: Body) -> None:
    """What is seen of it from the front or in profile: the body covers the rest."""
    top, bottom, half = body.shoulder_y, body.hip_y, body.half_shoulder
    if body.profile:
        x = body.chest_x - half
        outline = [(x, top + 0.02), (x - 0.10, top + 0.05), (x - 0.11, bottom - 0.06), (x, bottom - 0.03)]
    else:
        outline = [(-half - 0.012, top), (half + 0.012, top), (half, bottom - 0.06), (-half, bottom - 0.06)]
    pen.polygon(outline, body.shades["backpack"])


def draw_backpack_on_back(pen: Pen, body: Body) -> None:
    top, bottom, half, color = body.shoulder_y, body.hip_y, body.half_shoulder, body.shades["backpack"]
    pen.polygon(
        [(-half * 0.72, top + 0.02), (half * 0.72, top + 0.02),
         (half * 0.78, bottom - 0.05), (-half * 0.78, bottom - 0.05)],
        color,
    )  # fmt: skip
    pen.line([(-half * 0.5, top + 0.19), (half * 0.5, top + 0.19)], 0.012, darker(color, 0.5))


def draw_backpack_straps(pen: Pen, body: Body) -> None:
    half = body.half_shoulder
    for x in (half * 0.1,) if body.profile else (-half * 0.62, half * 0.62):
        strap = [(body.chest_x + x, body.shoulder_y), (x, body.hip_y - 0.09)]
        pen.line(strap, 0.024, darker(body.shades["backpack"], 0.8))


def draw_shoulder_bag(pen: Pen, body: Body) -> None:
    y, color = body.hip_y, body.shades["bag"]
    x = 0.02 if body.profile else body.half_hip + 0.03
    pen.line([(body.chest_x - body.half_shoulder * 0.55, body.shoulder_y), (x, y - 0.02)], 0.017, darker(color, 0.7))
    pen.box(x - 0.06, y - 0.04, x + 0.06, y + 0.07, color)


def draw_box(pen: Pen, body: Body) -> None:
    """A box that both hands hold in front; from behind its ends show beside the body."""
    top, bottom, color = body.hip_y - 0.19, body.hip_y - 0.05, body.shades["box"]
    if body.back:
        inner, outer = body.half_shoulder * 0.98, 0.145 + 0.03
        for s in (-1, 1):
            pen.polygon([(s * inner, top), (s * outer, top), (s * outer, bottom), (s * inner * 0.9, bottom)], color)
        return
    x, half = (0.17, 0.07) if body.profile else (0.0, 0.115)
    pen.box(x - half, top, x + half, bottom, color)
    seam = body.hip_y - 0.12
    pen.line([(x - half, seam), (x + half, seam)], 0.008, darker(color, 0.6))


def draw_held(pen: Pen, body: Body) -> None:
    """Cane, suitcase, handbag and phone; a bag that finds both hands full stays away."""
    has, free = body.has, []
    if not has["Phone"]:
        free.append(body.near_hand)
    if not (has["Umbrella"] or has["Cane"]):
        free.append(body.far_hand)
    if has["Cane"]:
        _draw_cane(pen, body.near_hand if has["Umbrella"] else body.far_hand)
    for name, draw in (("Suitcase", _draw_suitcase), ("HandBag", _draw_handbag)):
        if has[name] and free:
            draw(pen, body, free.pop(0))
    if has["Phone"]:
        _draw_phone(pen, body.near_hand)


def _draw_cane(pen: Pen, hand: Point) -> None:
    x, y = hand
    pen.line([(x - 0.02, y - 0.012), (x + 0.012, y - 0.012), (x + 0.015, SOLE_Y)], 0.018, (84, 52, 30))


def _draw_suitcase(pen: Pen, body: Body, hand: Point) -> None:
    (x, y), color = hand, body.shades["suitcase"]
    x += 0.05 if x >= 0 else -0.05
    pen.line([(x, y), (x, y + 0.10)], 0.012, (60, 60, 64))
    pen.box(x - 0.065, y + 0.10, x + 0.065, SOLE_Y - 0.01, color)
    pen.line([(x - 0.03, y + 0.14), (x - 0.03, SOLE_Y - 0.04)], 0.008, darker(color, 0.6))


def _draw_handbag(pen: Pen, body: Body, hand: Point) -> None:
    (x, y), color = hand, body.shades["handbag"]
    top, bottom = y + 0.05, y + 0.13
    pen.line([(x - 0.025, top), (x, y), (x + 0.025, top)], 0.010, darker(color, 0.7))
    pen.polygon([(x - 0.05, top), (x + 0.05, top), (x + 0.058, bottom), (x - 0.058, bottom)], color)


def _draw_phone(pen: Pen, hand: Point) -> None:
    x, y = hand
    pen.box(x - 0.014, y - 0.045, x + 0.014, y + 0.012, (20, 22, 30))
    pen.box(x - 0.009, y - 0.038, x + 0.009, y, (150, 205, 240))
