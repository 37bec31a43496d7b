"""What a person carries and wears besides clothes: meshes in the posed person's space."""

import numpy as np

from .people import RenderedPerson, Shot
from .pose import Posed, rotation
from .shapes import Mesh, ball, box, ring, strip, tube


__all__ = ["carried_things"]


def carried_things(person: RenderedPerson, shot: Shot, posed: Posed, rng: np.random.Generator) -> list[Mesh]:
    """Meshes of everything in `person.things` that has a shape of its own, and the bicycle of a rider.

    Glasses, masks and straps that lie flat are painted on what wears them (`paint.py`).
    """
    scale = float(np.linalg.norm(posed.joints["head"] - posed.joints["hips"]) / 0.64)
    meshes = []
    for name, thing in person.things.items():
        if name in _BUILDERS:
            meshes += _BUILDERS[name](thing, posed, scale, rng)
    if shot.pose == "cycling":
        meshes += _bicycle(posed, scale)
    return meshes


def _side(thing) -> str:
    return "left" if thing.side > 0 else "right"


def _on(posed: Posed, bone: str, meshes: list[Mesh], shift: tuple, scale: float) -> list[Mesh]:
    """Meshes fixed to a bone, `shift` metres from its joint."""
    turn = posed.rotations[posed.index[bone]]
    place = posed.joints[bone] + turn @ (np.array(shift) * scale)
    return [mesh.moved(turn, place) for mesh in meshes]


def _hat(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    # The head's joint is at the height of the chin's back; the crown is 0.145 m above it.
    dome = ball("hat", (0.088, 0.085 if thing.kind != "beanie" else 0.105, 0.106), 2.3)
    upper = dome.surface[:, 1] + (0.30 if thing.kind == "beanie" else 0.12)
    dome = Mesh(dome.vertices, dome.faces, "hat", dome.surface, upper.astype(np.float32))
    meshes = [dome]
    if thing.kind == "cap":
        brim = ball("hat", (0.065, 0.008, 0.075)).moved(rotation("x", 10), (0, -0.004, 0.115))
        meshes.append(brim)
    elif thing.kind in ("brim", "helmet"):
        wide = 0.155 if thing.kind == "brim" else 0.115
        meshes.append(ball("hat", (wide * thing.size, 0.010, (wide + 0.015) * thing.size)).moved(None, (0, -0.004, 0)))
    tilt = rotation("x", rng.uniform(-8, 4))
    grown = [mesh.moved(np.diag([scale * 1.06] * 3) @ tilt) for mesh in meshes]
    return _on(posed, "head", grown, (0, 0.088, -0.002), scale)


def _scarf(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    loop = ring("scarf", (0.068 * scale, 0.070 * scale), (0.034 * scale, 0.042 * scale)).moved(rotation("x", 12))
    meshes = _on(posed, "neck", [loop], (0, -0.005, 0.012), scale)
    if rng.random() < 0.6:
        down = np.linspace(0, -0.32 * thing.size, 5)[:, None] * (0, 1, 0) + (0.05 * thing.side, -0.05, 0.145)
        meshes += _on(posed, "shoulders", [strip("scarf", down * scale, (0.05 * scale, 0, 0))], (0, 0.14, 0), scale)
    return meshes


def _headphones(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    angles = np.linspace(0, np.pi, 9)
    arc = np.stack([0.088 * np.cos(angles), 0.04 + 0.118 * np.sin(angles), 0 * angles], 1) * scale
    cups = [ball("headphones", (0.020, 0.036, 0.034)).moved(None, (s * 0.088, 0.04, 0)) for s in (-1, 1)]
    return _on(posed, "head", [tube("headphones", arc, 0.010 * scale), *cups], (0, 0.0, 0.005), scale)


def _backpack(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    high, wide, deep = (0.215 * thing.size, 0.150 * thing.size, rng.uniform(0.065, 0.105) * thing.size)
    pack = ball("backpack", (wide, high, deep), 3.6, 10, 18)
    pocket = ball("backpack", (wide * 0.75, high * 0.42, deep * 0.5), 3.6).moved(None, (0, -high * 0.35, -deep * 0.8))
    meshes = [mesh.moved(np.diag([scale] * 3)) for mesh in (pack, pocket)]
    return _on(posed, "shoulders", meshes, (0, 0.12 - high, -0.125 - 0.75 * deep), scale)


def _shoulder_bag(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    high, wide, deep = 0.125 * thing.size, 0.155 * thing.size, 0.055
    bag = ball("shoulder_bag", (deep, high, wide), 4.0, 8, 16).moved(np.diag([scale] * 3))
    if thing.kind == "cross":  # hangs at the hip, the strap over the other shoulder is painted
        return _on(posed, "hips", [bag], (thing.side * 0.215, -0.02, rng.uniform(-0.08, 0.1)), scale)
    side = _side(thing)
    drop = rng.uniform(0.26, 0.40)
    clavicle = posed.joints[f"{side}_upper_arm"]
    shoulders = posed.joints["shoulders"] + posed.rotations[posed.index["shoulders"]] @ (
        np.array([thing.side * 0.15, 0.115, -0.01]) * scale
    )
    middle = clavicle + np.array([thing.side * 0.055, -drop, -0.03]) * scale
    turn = posed.rotations[posed.index["chest"]]
    straps = [
        strip(
            "shoulder_bag",
            np.array([shoulders + turn @ (0, 0.02 * scale, 0), middle + turn @ (0, high * scale, z * scale)]),
            turn @ (0, 0, 0.012 * scale),
        )
        for z in (-0.06, 0.06)
    ]
    return [bag.moved(turn, middle), *straps]


def _handbag(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    hand = posed.joints[f"{_side(thing)}_hand"] + np.array([0, -0.07, 0.01]) * scale
    if thing.kind == "shopping":
        high, wide, deep = rng.uniform(0.13, 0.19) * thing.size, rng.uniform(0.10, 0.15) * thing.size, 0.05
        power, drop = rng.choice([2.2, 6.0]), 0.09
    else:
        high, wide, deep, power, drop = 0.105 * thing.size, 0.145 * thing.size, 0.05, 5.0, 0.10
    bag = ball("handbag", (deep, high, wide), power, 8, 16)
    center = hand + np.array([0, -(drop + high) * scale, 0])
    turn = rotation("y", rng.normal(0, 18))
    straps = [
        tube("handbag", np.array([center + turn @ (0, high * scale * 0.9, z * scale), hand]), 0.006 * scale, 5)
        for z in (-0.06, 0.06)
    ]
    return [bag.moved(turn * scale, center), *straps]


def _suitcase(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    hand = posed.joints[f"{_side(thing)}_hand"] + np.array([0, -0.06, 0]) * scale
    high, wide, deep = 0.29 * thing.size, 0.20 * thing.size, 0.125 * thing.size
    tilt = rotation("x", rng.uniform(15, 40))
    bottom = hand + np.array([thing.side * 0.05 * scale, 0, -0.40 * scale])
    bottom[1] = 0.04
    center = bottom + tilt @ (0, high * scale, 0)
    body = ball("suitcase", (wide, high, deep), 6.0, 10, 18).moved(tilt * scale, center)
    top = center + tilt @ (0, high * scale * 0.95, 0)
    rods = [tube("suitcase", np.array([top + (x * scale, 0, 0), hand]), 0.008 * scale, 5) for x in (-0.05, 0.05)]
    return [body, *rods]


def _umbrella(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    hand = posed.joints[f"{_side(thing)}_hand"] + np.array([0, -0.02, 0.03]) * scale
    tilt = rotation("x", rng.uniform(-18, 10)) @ rotation("z", thing.side * rng.uniform(-4, 14))
    top = hand + tilt @ (0, 0.80 * scale, 0)
    dome = ball("umbrella", (0.50 * thing.size, 0.24, 0.50 * thing.size), 2.0, 14, 16)
    dome = Mesh(dome.vertices, dome.faces, "umbrella", dome.surface, (dome.surface[:, 1] - 0.05).astype(np.float32))
    return [
        dome.moved(tilt * scale, top - tilt @ (0, 0.22 * scale, 0)),
        tube("umbrella", np.array([hand - tilt @ (0, 0.12 * scale, 0), top]), 0.010 * scale, 5),
    ]


def _phone(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    side = _side(thing)
    phone = box("phone", (0.072 * scale, 0.145 * scale, 0.012 * scale))
    hand = posed.joints[f"{side}_hand"]
    turn = posed.rotations[posed.index["head"]]
    if thing.kind == "ear":
        upright = rotation("y", 90 * thing.side) @ rotation("x", 20)
        return [phone.moved(turn @ upright, hand + turn @ (np.array([thing.side * 0.012, 0.05, 0.02]) * scale))]
    return [phone.moved(rotation("x", -50), hand + np.array([-0.02 * thing.side, 0.03, 0.08]) * scale)]


def _in_front(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    middle = 0.5 * (posed.joints["left_hand"] + posed.joints["right_hand"]) + np.array([0, 0.02, 0.03]) * scale
    if thing.kind == "box":
        wide, high, deep = rng.uniform(0.26, 0.42), rng.uniform(0.16, 0.34), rng.uniform(0.18, 0.30)
        return [box("in_front", tuple(np.array([wide, high, deep]) * scale)).moved(None, middle)]
    if thing.kind in ("folder", "papers"):
        flat = box("in_front", (0.23 * scale, 0.31 * scale, 0.015 * scale))
        return [flat.moved(rotation("x", rng.uniform(-70, -15)), middle + (0, 0.03 * scale, 0))]
    round_bag = ball("in_front", tuple(np.array([0.17, 0.15, 0.11]) * scale * thing.size), 2.5, 9, 14)
    return [round_bag.moved(None, middle)]


def _cane(thing, posed: Posed, scale: float, rng: np.random.Generator) -> list[Mesh]:
    hand = posed.joints[f"{_side(thing)}_hand"] + np.array([0, -0.05, 0.03]) * scale
    foot = np.array([hand[0] + 0.04 * thing.side, 0.0, hand[2] + rng.uniform(0.02, 0.25)])
    grip = tube("cane", np.array([hand + (0, 0, 0.05), hand + (0, 0, -0.06)]), 0.013, 5)
    return [tube("cane", np.array([hand, foot]), 0.012, 5), grip]


def _bicycle(posed: Posed, scale: float) -> list[Mesh]:
    hips = posed.joints["hips"]
    hands = 0.5 * (posed.joints["left_hand"] + posed.joints["right_hand"])
    rear, front = np.array([0, 0.33, hips[2] - 0.42]), np.array([0, 0.33, hips[2] + 0.66])
    crank, seat = np.array([0, 0.30, hips[2] + 0.12]), hips + (0, -0.08, -0.02)
    head = np.array([0, hands[1] - 0.08, front[2] - 0.12])
    wheels = [
        ring("bicycle", (0.32, 0.32), (0.022, 0.018), 22).moved(rotation("z", 90), place) for place in (rear, front)
    ]
    tubes = [(rear, crank), (rear, seat), (crank, seat), (crank, head), (seat * (1, 0.8, 1), head), (head, front)]
    frame = [tube("bicycle", np.array(pair), 0.018, 6) for pair in tubes]
    bars = tube(
        "bicycle", np.array([posed.joints["left_hand"], head + (0, 0.08, 0), posed.joints["right_hand"]]), 0.013
    )
    return [*wheels, *frame, bars, ball("bicycle", (0.07, 0.03, 0.13)).moved(None, seat)]


_BUILDERS = {
    "hat": _hat, "scarf": _scarf, "headphones": _headphones, "backpack": _backpack, "shoulder_bag": _shoulder_bag,
    "handbag": _handbag, "suitcase": _suitcase, "umbrella": _umbrella, "phone": _phone, "in_front": _in_front,
    "cane": _cane,
}  # fmt: skip
