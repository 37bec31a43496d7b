"""How a person stands, walks, runs or rides, and where the hands are: one rigid motion per bone."""

from dataclasses import dataclass

import numpy as np

from .bodies import PARENTS, Bank, Body
from .people import RenderedPerson, Shot


__all__ = ["Posed", "pose_body"]

DOWN = np.array([0.0, -1.0, 0.0])
SIDES = (("left", 1), ("right", -1))


@dataclass(frozen=True)
class Posed:
    """The motion of each bone: a vertex `v` of bone `b` goes to `rotations[b] @ v + shifts[b]`.

    Attributes:
        rotations: float64 `(bones, 3, 3)`.
        shifts: float64 `(bones, 3)`.
        joints: name -> where the bone begins, in metres, before the person is turned to the camera.
    """

    rotations: np.ndarray
    shifts: np.ndarray
    joints: dict[str, np.ndarray]
    index: dict[str, int]

    def at(self, bone: str, point: np.ndarray) -> np.ndarray:
        """Where points `(..., 3)` go that are fixed to a bone."""
        return point @ self.rotations[self.index[bone]].T + self.shifts[self.index[bone]]


class _Skeleton:
    """Bones turned one after the other, parents first."""

    def __init__(self, bank: Bank, body: Body):
        self.rest = dict(zip(bank.bones, body.joints.astype(float), strict=True))
        self.rotation: dict[str, np.ndarray] = {}
        self.joint: dict[str, np.ndarray] = {}

    def turn(self, bone: str, rotation: np.ndarray) -> None:
        """Turn a bone about its joint by `rotation`, after what its parent does."""
        parent = PARENTS[bone]
        if parent is None:
            self.rotation[bone], self.joint[bone] = rotation, self.rest[bone]
            return
        self.joint[bone] = self.joint[parent] + self.rotation[parent] @ (self.rest[bone] - self.rest[parent])
        self.rotation[bone] = rotation @ self.rotation[parent]

    def aim(self, bone: str, child: str, direction: np.ndarray) -> None:
        """Turn a bone so that its child lies in a direction of the person's space."""
        parent = PARENTS[bone]
        resting = self.rotation[parent] @ (self.rest[child] - self.rest[bone])
        self.turn(bone, _shortest(resting, direction))

    def reach(self, side: str, target: np.ndarray, hint: np.ndarray) -> None:
        """Bend an arm so that the wrist is at `target`, or as near as it comes, with the elbow towards `hint`."""
        upper, fore, hand = (f"{side}_{name}" for name in ("upper_arm", "forearm", "hand"))
        parent = PARENTS[upper]
        shoulder = self.joint[parent] + self.rotation[parent] @ (self.rest[upper] - self.rest[parent])
        first, second = (np.linalg.norm(self.rest[b] - self.rest[a]) for a, b in ((upper, fore), (fore, hand)))
        line = target - shoulder
        reach = np.clip(np.linalg.norm(line), abs(first - second) + 0.02, first + second - 0.005)
        line = line / np.linalg.norm(line)
        along = (first**2 - second**2 + reach**2) / (2 * reach)
        hint = hint - (hint @ line) * line
        elbow = line * along + hint / np.linalg.norm(hint) * np.sqrt(max(first**2 - along**2, 1e-6))
        self.aim(upper, fore, elbow)
        self.aim(fore, hand, line * reach - elbow)
        self.turn(hand, np.eye(3))


def _shortest(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotation that takes one direction to another."""
    a, b = start / np.linalg.norm(start), end / np.linalg.norm(end)
    axis, cosine = np.cross(a, b), float(a @ b)
    if cosine < -0.9999:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def rotation(axis: str, degrees: float) -> np.ndarray:
    """A turn about an axis of the person's space: `"x"` nods, `"y"` turns to the left, `"z"` leans to the right."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def _swing(degrees: float, outwards: float = 0.0) -> np.ndarray:
    """A direction that hangs down, swung forward by `degrees` and outwards (to +x) by `outwards` degrees."""
    return rotation("z", outwards) @ rotation("x", -degrees) @ DOWN


def pose_body(bank: Bank, body: Body, person: RenderedPerson, shot: Shot, rng: np.random.Generator) -> Posed:
    """The motion of each bone of a person in a picture; soles stand on height 0."""
    bones = _Skeleton(bank, body)
    pose, things = shot.pose, person.things
    stoop = rng.uniform(6, 20) if person.age == "elderly" else rng.uniform(-1, 5)
    lean = {"running": rng.uniform(6, 14), "cycling": rng.uniform(18, 38)}.get(pose, rng.uniform(-1, 3))
    swing = {"walking": rng.uniform(16, 27), "running": rng.uniform(32, 46)}.get(pose, 0.0)
    wave = np.cos(2 * np.pi * shot.phase)  # 1 when the left leg is in front
    bones.turn("hips", rotation("y", 0.22 * swing * -wave) @ rotation("x", lean * 0.4))
    bones.turn("abdomen", rotation("x", lean * 0.3 + stoop * 0.3) @ rotation("z", rng.normal(0, 1.5)))
    bones.turn("chest", rotation("x", lean * 0.2 + stoop * 0.4) @ rotation("y", 0.2 * swing * wave))
    bones.turn("shoulders", rotation("x", stoop * 0.3) @ rotation("y", 0.2 * swing * wave))
    phone = things.get("phone")
    looks_down = phone is not None and phone.kind == "look"
    nod = rng.uniform(18, 32) if looks_down else rng.normal(3, 6) - 0.6 * lean - 0.5 * stoop
    turn = rng.normal(0, 14)
    bones.turn("neck", rotation("x", 0.5 * nod) @ rotation("y", 0.4 * turn))
    bones.turn("head", rotation("x", 0.5 * nod) @ rotation("y", 0.6 * turn) @ rotation("z", rng.normal(0, 3)))
    _pose_legs(bones, shot, rng)
    _pose_arms(bones, person, shot, rng)
    rotations = np.stack([bones.rotation[name] for name in bank.bones])
    joints = np.stack([bones.joint[name] for name in bank.bones])
    shifts = joints - np.einsum("bij,bj->bi", rotations, body.joints)
    index = {name: i for i, name in enumerate(bank.bones)}
    # The lower foot stands on the ground, or both hang over it when a person runs or rides.
    soles = [
        (rotations[index[f"{side}_foot"]] @ (body.joints[index[f"{side}_foot"]] * (1, 0, 1) + offset)
         + shifts[index[f"{side}_foot"]])[1]
        for side, _ in SIDES for offset in (np.array([0, 0, 0.12]), np.array([0, 0, -0.05]))
    ]  # fmt: skip
    lift = {"running": 0.04, "cycling": 0.18}.get(pose, 0.0)
    shifts = shifts + (0, lift - min(soles), 0)
    places = {name: joints[i] + (0, lift - min(soles), 0) for name, i in index.items()}
    return Posed(rotations, shifts, places, index)


def _pose_legs(bones: _Skeleton, shot: Shot, rng: np.random.Generator) -> None:
    spread = rng.uniform(0, 5)
    for side, sign in SIDES:
        phase = (shot.phase + (0.0 if sign > 0 else 0.5)) % 1.0
        cosine = np.cos(2 * np.pi * phase)

        def bump(at: float, width: float, phase=phase) -> float:
            return np.exp(-((((phase - at + 0.5) % 1.0) - 0.5) ** 2) / (2 * width**2))

        if shot.pose == "walking":
            amplitude = rng.uniform(20, 28)
            thigh, knee = 4 + amplitude * cosine, 5 + 52 * bump(0.73, 0.10) + 10 * bump(0.13, 0.08)
            foot = 10 * bump(0.0, 0.08) - 32 * bump(0.62, 0.08)
        elif shot.pose == "running":
            thigh, knee = 12 + 36 * cosine, 18 + 80 * bump(0.72, 0.13) + 20 * bump(0.1, 0.1)
            foot = -30 * bump(0.6, 0.1)
        elif shot.pose == "cycling":
            thigh, knee = 62 + 24 * cosine, 82 + 26 * np.cos(2 * np.pi * (phase - 0.08))
            foot = 0.0
        else:
            thigh, knee, foot = rng.normal(0, 5), abs(rng.normal(0, 6)), 0.0
        outwards = sign * (spread * (1.0 if shot.pose == "standing" else 0.3) + 1.0)
        bones.aim(f"{side}_thigh", f"{side}_shin", _swing(thigh, outwards))
        bones.aim(f"{side}_shin", f"{side}_foot", _swing(thigh - knee, outwards * 0.6))
        # The foot keeps its rest direction in the person's space, but for its pitch and a turn outwards.
        shin = bones.rotation[f"{side}_shin"]
        lifted = rotation("x", -foot if shot.pose != "cycling" else 0.0) @ rotation("y", sign * rng.uniform(0, 10))
        bones.turn(f"{side}_foot", lifted @ shin.T)


def _pose_arms(bones: _Skeleton, person: RenderedPerson, shot: Shot, rng: np.random.Generator) -> None:
    things = person.things
    busy = {}
    shoulders = bones.rotation["shoulders"]
    chest, head = bones.joint["shoulders"], bones.joint["head"]
    for side, _ in SIDES:
        bones.turn(f"{side}_clavicle", np.eye(3))
    scale = np.linalg.norm(bones.rest["left_hand"] - bones.rest["left_forearm"]) / 0.25

    def place(x: float, y: float, z: float) -> np.ndarray:
        return chest + shoulders @ (np.array([x, y, z]) * scale)

    front = things.get("in_front")
    if front is not None:
        half = 0.19 * front.size if front.kind == "box" else 0.07
        low = rng.uniform(-0.22, -0.06)
        for side, sign in SIDES:
            busy[side] = (place(sign * half, low, 0.30), np.array([sign * 0.8, -0.6, -0.4]))
    for name, spot in (
        ("umbrella", (0.16, -0.04, 0.26)),
        ("phone", (0.06, -0.02, 0.30)),
        ("handbag", (0.24, -0.16, 0.14)),
    ):
        thing = things.get(name)
        if thing is None:
            continue
        side = "left" if thing.side > 0 else "right"
        x, y, z = spot
        if name == "handbag" and (thing.kind == "shopping" or rng.random() < 0.6):
            continue  # it hangs from a straight arm
        if name == "phone" and thing.kind == "ear":
            target = head + bones.rotation["head"] @ (np.array([thing.side * 0.085, 0.03, 0.03]) * scale)
        else:
            target = place(thing.side * x, y, z)
        busy[side] = (target, np.array([thing.side * 0.7, -0.8, -0.3]))
    if shot.pose == "cycling":
        busy = {side: (place(sign * 0.22, -0.22, 0.48), np.array([sign, -0.5, 0.0])) for side, sign in SIDES}
    idle = rng.choice(["hang", "hang", "hang", "pocket", "crossed", "behind"]) if shot.pose == "standing" else "hang"
    if idle == "hang" and rng.random() < 0.12:
        idle = "pocket"
    for side, sign in SIDES:
        if side in busy:
            bones.reach(side, *busy[side])
            continue
        holds = any(things[n].side == sign for n in ("suitcase", "handbag", "cane") if n in things)
        if idle != "hang" and not holds:
            target = {"pocket": (0.21, -0.36, 0.06), "crossed": (-0.06, -0.10, 0.2), "behind": (0.03, -0.36, -0.16)}
            x, y, z = target[idle]
            bones.reach(side, place(sign * x, y, z), np.array([sign * 0.8, -0.2, -0.7]))
            continue
        phase = shot.phase + (0.5 if sign > 0 else 0.0)
        wave = np.cos(2 * np.pi * phase)
        if shot.pose == "running":
            swing, elbow = 32 * wave, 85.0
        elif shot.pose == "walking":
            swing, elbow = (4 if holds else 20) * wave + rng.normal(0, 2), 14 + 10 * max(wave, 0)
        else:
            swing, elbow = rng.normal(0, 4), rng.uniform(4, 20)
        if "suitcase" in things and things["suitcase"].side == sign:
            swing, elbow = -16.0, 6.0
        outwards = sign * rng.uniform(6, 12)
        bones.aim(f"{side}_upper_arm", f"{side}_forearm", shoulders @ _swing(swing - 4, outwards))
        bones.aim(f"{side}_forearm", f"{side}_hand", shoulders @ _swing(swing - 4 + elbow, outwards * 0.3))
        bones.turn(f"{side}_hand", np.eye(3))
