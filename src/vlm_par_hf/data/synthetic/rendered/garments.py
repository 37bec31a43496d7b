"""Clothes: shells around the body, cut to hems, sleeves and necklines; hair; shoes.

All meshes are of the resting body; `Wardrobe.posed` moves them with the bones.
"""

from dataclasses import dataclass, replace

import numpy as np

from .bodies import Bank, Body
from .people import Garment, RenderedPerson
from .pose import Posed, rotation
from .raster import smoothed, vertex_normals
from .shapes import Mesh, ball, tube


__all__ = ["dress_body", "hairline"]

HIP_TO_ANKLE = 0.80  # metres on the average adult, on whom `Bank.canonical` measures
NECK = 0.535
COVERED = 0.03  # skin that lies this far inside a garment is not drawn


@dataclass(frozen=True)
class Shell:
    """A mesh that moves with the bones of some vertices of the bank."""

    mesh: Mesh
    rows: np.ndarray  # of the bank's vertices

    def posed(self, bank: Bank, posed: Posed) -> Mesh:
        bones, weights = bank.bone_indices[self.rows], bank.bone_weights[self.rows]
        rotations = np.einsum("vk,vkij->vij", weights, posed.rotations[bones].astype(np.float32))
        shifts = np.einsum("vk,vkj->vj", weights, posed.shifts[bones].astype(np.float32))
        vertices = np.einsum("vij,vj->vi", rotations, self.mesh.vertices) + shifts
        return replace(self.mesh, vertices=vertices.astype(np.float32))


def dress_body(bank: Bank, body: Body, person: RenderedPerson, rng: np.random.Generator) -> list[Shell]:
    """The body and all that it wears, shells of the resting body."""
    tailor = _Tailor(bank, body)
    shells = []
    upper, lower = person.upper, person.lower
    long = upper.hem > 0.03
    if lower is not None:
        over = upper.hem < -0.02 and not upper.open  # tucked in: trousers over the top
        shells += tailor.lower("lower", lower, 0.014 if over else 0.0)
    shells += tailor.upper("upper", upper, long)
    if upper.open:
        inner = replace(upper, sleeve=0.5, hem=min(upper.hem, 0.02), fit=0.1, open=False, kind="top")
        shells += tailor.upper("inner", inner, long=False)
    shells += tailor.shoes(person)
    shells += tailor.hair(person, rng)
    shells.append(tailor.skin(person))
    return shells


def hairline(z: np.ndarray) -> np.ndarray:
    """Above which height hair grows on the average adult: from the forehead over the ears to the neck."""
    line = 0.665 + np.clip(z - 0.02, -0.06, 0.14) * 0.55
    return np.where(z > 0.105, np.maximum(line, 0.742), line)


class _Tailor:
    def __init__(self, bank: Bank, body: Body):
        self.bank, self.body = bank, body
        self.height = bank.canonical[:, 1]
        self.rest_normals = {
            part: vertex_normals(body.vertices[first:last], bank.faces[part] - first)
            for part, (first, last) in bank.ranges.items()
        }
        self.scale = float(body.vertices[:, 1].max() / 1.66)  # against the average adult

    def shell(self, source: str, part: str, grow: np.ndarray | float, smooth: float, cut: np.ndarray) -> Shell:
        """A copy of a mesh of the bank, `grow` metres away from it, its hollows bridged by the share `smooth`."""
        first, last = self.bank.ranges[source]
        vertices = self.body.vertices[first:last]
        if smooth > 0:
            flat = smoothed(vertices, self.bank.neighbours[source])
            # What smoothing takes away is given back outwards, so that cloth lies around the body, not in it.
            normals = self.rest_normals[source]
            lost = np.maximum(((vertices - flat) * normals).sum(1), 0)
            vertices = (1 - smooth) * vertices + smooth * (flat + 0.6 * lost[:, None] * normals)
        vertices = vertices + self.rest_normals[source] * np.reshape(np.asarray(grow) * self.scale, (-1, 1))
        mesh = Mesh(
            vertices.astype(np.float32), self.bank.faces[source] - first, part, self.bank.canonical[first:last],
            cut.astype(np.float32), self.bank.arm[first:last],
        )  # fmt: skip
        return Shell(mesh, np.arange(first, last))

    def _of(self, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        first, last = self.bank.ranges[source]
        x, y, z = self.bank.canonical[first:last].T
        return x, y, z, self.bank.arm[first:last]

    def _upper_cut(self, source: str, garment: Garment, hem: float) -> np.ndarray:
        x, y, z, arm = self._of(source)
        on_arm = arm > 0
        neckline = NECK + (0.05 if garment.collar or garment.hood else 0.0) - 0.25 * np.maximum(z - 0.02, 0)
        trunk = np.minimum(y + hem, neckline - y)
        sleeve = (1.03 * garment.sleeve + (0.0 if garment.sleeve > 0.05 else -0.03) - arm) * 0.55
        cut = np.where(on_arm, 1.0, trunk)
        cut = np.minimum(cut, np.where(arm > -0.12, sleeve, 1.0))
        if garment.open:
            gap = 0.025 + 0.11 * np.clip(0.48 - y, 0, 0.9)
            cut = np.where((z > 0.02) & ~on_arm, np.minimum(cut, np.abs(x) - gap), cut)
        return cut

    def upper(self, part: str, garment: Garment, long: bool) -> list[Shell]:
        """A top, coat or dress: the trunk and sleeves, and below the hips a skirt of cloth when it is `long`."""
        _, y, _, arm = self._of("tights")
        thick = {"coat": 0.018, "jacket": 0.014, "vest": 0.012}.get(garment.kind, 0.006)
        grow = thick + garment.fit * np.where(arm > 0, 0.012, 0.020) + 0.006 * (y < 0.06)
        hem = -0.05 if long else garment.hem
        shells = [self.shell("tights", part, grow, 0.2 + 0.5 * garment.fit, self._upper_cut("tights", garment, hem))]
        if long:
            x, y, z, _ = self._of("skirt")
            cut = y + min(garment.hem, 0.74)
            if garment.open:
                gap = 0.025 + 0.11 * np.clip(0.48 - y, 0, 0.9)
                cut = np.where(z > 0.02, np.minimum(cut, np.abs(x) - gap), cut)
            shells.append(self._skirt(part, garment, cut, thick + 0.006 + 0.01 * garment.fit))
        return shells

    def _skirt(self, part: str, garment: Garment, cut: np.ndarray, grow: float) -> Shell:
        shell = self.shell("skirt", part, grow, 0.0, cut)
        drop = np.clip(0.1 - shell.mesh.surface[:, 1], 0, 1)[:, None]
        center = self.body.joints[self.bank.bones.index("hips")]
        width = 1 - (0.62 - 0.62 * garment.fit) * drop * (1, 0, 1)
        vertices = center + (shell.mesh.vertices - center) * width
        return replace(shell, mesh=replace(shell.mesh, vertices=vertices.astype(np.float32)))

    def _lower_cut(self, source: str, garment: Garment) -> np.ndarray:
        _, y, _, arm = self._of(source)
        return np.where(arm > 0, -1.0, np.minimum(0.13 - y, y + garment.hem * HIP_TO_ANKLE + 0.03))

    def lower(self, part: str, garment: Garment, more: float) -> list[Shell]:
        """Trousers, shorts or a skirt."""
        if garment.kind == "skirt":
            _, y, _, _ = self._of("skirt")
            return [self._skirt(part, garment, y + garment.hem * HIP_TO_ANKLE, 0.004 + more)]
        _, y, _, _ = self._of("tights")
        grow = 0.004 + more + garment.fit * (0.008 + 0.028 * np.clip(-y, 0, 0.8))
        return [self.shell("tights", part, grow, 0.1 + 0.5 * garment.fit, self._lower_cut("tights", garment))]

    def shoes(self, person: RenderedPerson) -> list[Shell]:
        """Rounded shoes around the feet; boots reach up the shins."""
        shells = []
        kind, size = person.shoes.kind, self.scale
        for name in ("left_foot", "right_foot"):
            bone = self.bank.bones.index(name)
            ankle = self.body.joints[bone]
            row = int(np.argmax((self.bank.bone_weights * (self.bank.bone_indices == bone)).sum(1)))
            radii = np.array([0.046, 0.046 if kind != "sandals" else 0.024, 0.140]) * size
            turn = np.sign(ankle[0]) * 6
            shoe = ball("shoes", tuple(radii), 2.6, 8, 16).moved(
                rotation("y", turn),
                (ankle[0] + np.sign(ankle[0]) * 0.012 * size, 0.80 * radii[1], ankle[2] + 0.058 * size),
            )
            shells.append(Shell(shoe, np.full(len(shoe.vertices), row)))
        _, y, _, arm = self._of("body")
        if kind == "boots":
            top = -0.50 - 0.22 * (1.3 - person.shoes.size)
            shells.append(
                self.shell("body", "shoes", 0.014, 0.3, np.where(arm > 0, -1.0, np.minimum(top - y, y + 0.84)))
            )
        return shells

    def hair(self, person: RenderedPerson, rng: np.random.Generator) -> list[Shell]:
        """The scalp's hair, and for long hair the shell that hangs down."""
        style = person.hair_style
        if style == "bald":
            return []
        _, y, z, arm = self._of("body")
        cut = np.where(arm > -0.05, -1.0, y - hairline(z) + rng.uniform(-0.012, 0.008))
        thick = {"short": 0.012, "afro": 0.055, "bun": 0.012, "ponytail": 0.012}.get(style, 0.018)
        shells = [self.shell("body", "hair", thick * rng.uniform(0.9, 1.4), 0.0, cut)]
        if style in ("long", "bob"):
            _, y, _, _ = self._of("hair")
            hem = 0.55 if style == "bob" else rng.uniform(0.30, 0.48)
            x, _, z, _ = self._of("hair")
            # The face is free, from a fringe or the forehead down; hair lies behind the shoulders or before them.
            opening = np.maximum(np.abs(x) - rng.uniform(0.045, 0.065), rng.uniform(0.03, 0.07) - z)
            opening = np.maximum(opening, y - rng.uniform(0.695, 0.74))
            if rng.random() < 0.6:
                opening = np.minimum(opening, np.maximum(0.02 - z, y - 0.60))
            shells.append(self.shell("hair", "hair", 0.004, 0.0, np.minimum(y - hem, opening)))
        if style in ("ponytail", "bun"):
            shells.append(self._tied(style, rng))
        return shells

    def _tied(self, style: str, rng: np.random.Generator) -> Shell:
        """A knot at the back of the head, or a tail that hangs from it."""
        bone = self.bank.bones.index("head")
        row = int(np.argmax((self.bank.bone_weights * (self.bank.bone_indices == bone)).sum(1)))
        head, size = self.body.joints[bone], self.scale
        high = rng.uniform(0.02, 0.12)
        if style == "bun":
            mesh = ball("hair", (0.042 * size, 0.042 * size, 0.040 * size))
            mesh = mesh.moved(None, head + np.array([0, high + 0.02, -0.125]) * size)
        else:
            length = rng.uniform(0.16, 0.34)
            along = np.linspace(0, 1, 6)[:, None]
            points = (
                head
                + (np.array([0, high, -0.115]) + along * (0, -length, -0.03) - along * (1 - along) * (0, 0, 0.09))
                * size
            )
            mesh = tube("hair", points, np.array([0.018, 0.030, 0.034, 0.032, 0.026, 0.006]) * size, 8)
        return Shell(mesh, np.full(len(mesh.vertices), row))

    def skin(self, person: RenderedPerson) -> Shell:
        """The body, without what lies under cloth."""
        _, y, _, arm = self._of("body")
        cover = self._upper_cut("body", replace(person.upper, open=False), min(person.upper.hem, 0.03))
        if person.upper.hem > 0.03:
            cover = np.maximum(cover, np.where(arm > 0, -1, np.minimum(0.1 - y, y + person.upper.hem - 0.08)))
        if person.lower is not None:
            reach = self._lower_cut("body", person.lower)
            cover = np.maximum(cover, reach if person.lower.kind != "skirt" else reach - 0.08)
        cut = np.minimum(COVERED - cover, y + 0.80)  # shoes instead of feet
        return self.shell("body", "skin", 0.0, 0.0, cut)
