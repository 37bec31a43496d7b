"""The bank of bodies: people of both sexes, of all ages and builds, without clothes or a pose.

Lengths are in metres, y is up, the person looks along +z and has the left hand at +x. The geometry is derived from
MakeHuman's base mesh, targets and rig (CC0); `pack_bodies.py` made the file.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open


__all__ = ["PARENTS", "Bank", "Body", "load_bank"]

PARTS = ("body", "tights", "skirt", "hair")
PARENTS = {
    "hips": None, "abdomen": "hips", "chest": "abdomen", "shoulders": "chest", "neck": "shoulders", "head": "neck",
    **{
        f"{side}_{bone}": f"{side}_{parent}" if parent in ("clavicle", "upper_arm", "forearm", "thigh", "shin")
        else parent
        for side in ("left", "right")
        for bone, parent in (
            ("clavicle", "shoulders"), ("upper_arm", "clavicle"), ("forearm", "upper_arm"), ("hand", "forearm"),
            ("thigh", "hips"), ("shin", "thigh"), ("foot", "shin"),
        )
    },
}  # fmt: skip


@dataclass(frozen=True)
class Bank:
    """What all bodies share.

    Attributes:
        bones: names, in the order of `bone_indices` and joints.
        faces: part -> int32 `(T, 3)` rows of the vertices.
        ranges: part -> first and last + 1 of its vertices.
        bone_indices, bone_weights: `(V, 4)`, which bones move a vertex by how much.
        canonical: float32 `(V, 3)`, where a vertex is on the average adult; y is 0 at the hip joints.
        arm: float32 `(V,)`: 0 at the shoulder joint, 1 at the wrist, negative on the trunk.
        neighbours: part -> int32 `(V_part, K)`, rows within the part, for smoothing.
    """

    bones: tuple[str, ...]
    faces: dict[str, np.ndarray]
    ranges: dict[str, tuple[int, int]]
    bone_indices: np.ndarray
    bone_weights: np.ndarray
    canonical: np.ndarray
    canonical_joints: dict[str, np.ndarray]
    arm: np.ndarray
    neighbours: dict[str, np.ndarray]
    average: np.ndarray
    components: np.ndarray
    coefficients: dict[tuple[str, str], np.ndarray]

    def body(self, female: bool, age: str, number: float) -> "Body":
        """The body `number` in [0, 1) of those of a sex and an age (`"child"`, `"adult"` or `"elderly"`)."""
        table = self.coefficients["female" if female else "male", age]
        position = number * len(table)
        first = int(position)
        second, share = (first * 7 + 3) % len(table), 0.35 * (position - first)
        mixed = (1 - share) * table[first] + share * table[second]
        points = self.average + np.einsum("c,cvk->vk", mixed, self.components)  # without BLAS, see `shapes.times`
        count = len(self.bone_indices)
        return Body(points[:count], points[count:])


@dataclass(frozen=True)
class Body:
    """One body at rest: `vertices` float32 `(V, 3)`, `joints` float32 `(bones, 3)`."""

    vertices: np.ndarray
    joints: np.ndarray


@functools.cache
def load_bank() -> Bank:
    """Read the file beside this one, once."""
    with safe_open(Path(__file__).with_name("bodies.safetensors"), "np") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        bones, groups = (json.loads(file.metadata()[name]) for name in ("bones", "groups"))
    ranges = {part: tuple(int(i) for i in tensors[f"range.{part}"]) for part in PARTS}
    count = len(tensors["bones"])
    canonical, joints = tensors["canonical"][:count], tensors["canonical"][count:]
    hip = joints[bones.index("left_thigh"), 1]
    canonical, joints = canonical - (0, hip, 0), dict(zip(bones, joints - (0, hip, 0), strict=True))
    weights = tensors["weights"].astype(np.float32)
    table = tensors["coefficients"].reshape(len(groups), -1, tensors["coefficients"].shape[1])
    return Bank(
        bones=tuple(bones),
        faces={part: tensors[f"faces.{part}"] for part in PARTS},
        ranges=ranges,
        bone_indices=tensors["bones"].astype(np.int64),
        bone_weights=weights,
        canonical=canonical.astype(np.float32),
        canonical_joints=joints,
        arm=_along_arm(canonical, joints, tensors["bones"], weights, bones),
        neighbours={part: _neighbours(tensors[f"faces.{part}"], ranges[part]) for part in PARTS},
        average=tensors["average"],
        components=tensors["components"].astype(np.float32),
        coefficients={tuple(group): rows for group, rows in zip(groups, table, strict=True)},
    )


def _along_arm(canonical, joints, bone_indices, weights, bones) -> np.ndarray:
    names = [[i for i, bone in enumerate(bones) if bone.endswith(end)] for end in ("upper_arm", "forearm", "hand")]
    share = (weights * np.isin(bone_indices, sum(names, []))).sum(1)
    points = np.abs(canonical[:, :1]) * (1, 0, 0) + canonical * (0, 1, 1)  # both arms as the left one
    shoulder, elbow, wrist = (joints[f"left_{name}"] for name in ("upper_arm", "forearm", "hand"))
    upper, fore = elbow - shoulder, wrist - elbow
    lengths = np.linalg.norm(upper), np.linalg.norm(fore)
    first = (points - shoulder) @ (upper / lengths[0])
    second = (points - elbow) @ (fore / lengths[1])
    along = np.where(first < lengths[0], first, lengths[0] + np.maximum(second, 0)) / sum(lengths)
    return np.where(share > 0.3, along, np.minimum(along, 0) - 0.1).astype(np.float32)


def _neighbours(faces: np.ndarray, span: tuple[int, int], most: int = 10) -> np.ndarray:
    first, last = span
    around: list[list[int]] = [[] for _ in range(last - first)]
    for row in faces - first:
        for i in range(3):
            around[row[i]] += [int(row[(i + 1) % 3]), int(row[(i + 2) % 3])]
    rows = [(sorted(set(near)) or [i])[:most] for i, near in enumerate(around)]
    return np.array([[row[i % len(row)] for i in range(most)] for row in rows], np.int32)
