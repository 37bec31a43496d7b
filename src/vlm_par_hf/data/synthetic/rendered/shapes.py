"""Meshes of simple things: boxes, balls, tubes, rings."""

from dataclasses import dataclass, replace

import numpy as np


__all__ = ["Mesh", "ball", "box", "join", "ring", "strip", "times", "tube"]


def times(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`points @ matrix` of `(P, K)` and `(K, M)` without BLAS.

    The threads of BLAS get in each other's way when several processes render, and its rounding depends on the machine.
    """
    return np.einsum("pk,km->pm", points, matrix)


@dataclass(frozen=True)
class Mesh:
    """Triangles of one part of the picture.

    Attributes:
        vertices: float32 `(V, 3)` in metres.
        faces: int32 `(T, 3)`.
        part: what it is; the colors and the count of visible pixels go by it.
        surface: float32 `(V, 3)`, where paint finds a point: on the average adult, or on the unit shape of a thing.
        cut: float32 `(V,)`, holes where its interpolation is negative.
        arm: float32 `(V,)`, as in `Bank.arm`; -1 for things.
        normals: float32 `(V, 3)` when they are known already.
    """

    vertices: np.ndarray
    faces: np.ndarray
    part: str
    surface: np.ndarray
    cut: np.ndarray | None = None
    arm: np.ndarray | None = None
    normals: np.ndarray | None = None

    def moved(self, rotation: np.ndarray | None = None, shift: np.ndarray | tuple = (0, 0, 0)) -> "Mesh":
        """The same mesh elsewhere."""
        vertices = self.vertices if rotation is None else times(self.vertices, np.asarray(rotation, np.float32).T)
        return replace(self, vertices=(vertices + np.asarray(shift)).astype(np.float32))


def _grid_faces(rows: int, columns: int, closed: bool) -> np.ndarray:
    """Two triangles for each cell of a grid of vertices, whose last column meets the first when `closed`."""
    wide = columns if closed else columns - 1
    r, c = (a.ravel() for a in np.mgrid[: rows - 1, :wide])
    a, b = r * columns + c, r * columns + (c + 1) % columns
    return np.concatenate(
        [np.stack([a, b, a + columns], 1), np.stack([b, b + columns, a + columns], 1)]
    ).astype(np.int32)  # fmt: skip


def ball(part: str, radii: tuple[float, float, float], power: float = 2.0, rows: int = 8, columns: int = 14) -> Mesh:
    """A ball; with a `power` above 2 its sides flatten to those of a rounded box."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, rows), np.arange(columns) * 2 * np.pi / columns, indexing="ij"
    )  # fmt: skip
    unit = np.stack([np.sin(polar) * np.cos(around), np.cos(polar), np.sin(polar) * np.sin(around)], -1).reshape(-1, 3)
    unit /= (np.abs(unit) ** power).sum(1, keepdims=True) ** (1 / power)
    vertices = (unit * radii).astype(np.float32)
    return Mesh(vertices, _grid_faces(rows, columns, closed=True), part, unit.astype(np.float32))


def box(part: str, sizes: tuple[float, float, float]) -> Mesh:
    """A box with sharp edges, of the whole lengths `sizes`."""
    vertices, faces, surface = [], [], []
    for axis in range(3):
        for sign in (-1, 1):
            first = len(vertices) * 4
            corner = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
            unit = np.insert(corner, axis, sign, axis=1)
            vertices.append(unit * np.array(sizes) / 2)
            surface.append(unit)
            faces += [[first, first + 1, first + 2], [first, first + 2, first + 3]]
    return Mesh(
        np.concatenate(vertices).astype(np.float32), np.array(faces, np.int32), part,
        np.concatenate(surface).astype(np.float32),
    )  # fmt: skip


def tube(part: str, points: np.ndarray, radius: float | np.ndarray, columns: int = 8) -> Mesh:
    """A round tube along points `(N, 3)`."""
    points = np.asarray(points, float)
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True) + 1e-9
    helper = np.where(np.abs(tangents[:, 1:2]) > 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]])
    first = np.cross(tangents, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(tangents, first)
    angles = np.arange(columns) * 2 * np.pi / columns
    circle = first[:, None] * np.cos(angles)[:, None] + second[:, None] * np.sin(angles)[:, None]
    radius = np.broadcast_to(np.asarray(radius, float), (len(points),))
    vertices = (points[:, None] + circle * radius[:, None, None]).reshape(-1, 3).astype(np.float32)
    along = np.repeat(np.linspace(0, 1, len(points)), columns)
    surface = np.stack([np.tile(np.cos(angles), len(points)), along, np.tile(np.sin(angles), len(points))], 1)
    return Mesh(vertices, _grid_faces(len(points), columns, closed=True), part, surface.astype(np.float32))


def ring(part: str, radii: tuple[float, float], thickness: tuple[float, float], rows: int = 18) -> Mesh:
    """A flat-lying ring in the plane y = 0: radii in x and z, half sizes of its section outwards and upwards."""
    around = np.arange(rows) * 2 * np.pi / rows
    section = np.arange(8) * 2 * np.pi / 8
    out = np.stack([np.cos(around), np.zeros(rows), np.sin(around)], 1)
    points = out[:, None] * (np.array([radii[0], 0, radii[1]]) + thickness[0] * np.cos(section)[:, None] * (1, 0, 1))
    points = points + np.sin(section)[:, None] * np.array([0, thickness[1], 0])
    faces = _grid_faces(rows + 1, 8, closed=True) % (rows * 8)
    surface = np.repeat(out, 8, 0) + np.tile(np.sin(section), rows)[:, None] * (0, 1, 0)
    return Mesh(points.reshape(-1, 3).astype(np.float32), faces, part, surface.astype(np.float32))


def strip(part: str, points: np.ndarray, across: np.ndarray) -> Mesh:
    """A band along points `(N, 3)`, reaching by `across` `(N, 3)` or `(3,)` to both sides."""
    points = np.asarray(points, float)
    across = np.broadcast_to(across, points.shape)
    vertices = np.stack([points - across, points + across], 1).reshape(-1, 3).astype(np.float32)
    along = np.repeat(np.linspace(-1, 1, len(points)), 2)
    surface = np.stack([np.tile([-1.0, 1.0], len(points)), along, np.zeros(2 * len(points))], 1)
    return Mesh(vertices, _grid_faces(len(points), 2, closed=False), part, surface.astype(np.float32))


def join(meshes: list[Mesh]) -> tuple[Mesh, np.ndarray, tuple[str, ...]]:
    """All meshes as one, with the number of its part for each triangle, and the parts' names by number."""
    names = tuple(dict.fromkeys(mesh.part for mesh in meshes))
    first, faces, parts = 0, [], []
    for mesh in meshes:
        faces.append(mesh.faces + first)
        parts.append(np.full(len(mesh.faces), names.index(mesh.part), np.int16))
        first += len(mesh.vertices)
    every = [np.ones(len(m.vertices), np.float32) if m.cut is None else m.cut for m in meshes]
    arms = [np.full(len(m.vertices), -1, np.float32) if m.arm is None else m.arm for m in meshes]
    whole = Mesh(
        np.concatenate([m.vertices for m in meshes]).astype(np.float32),
        np.concatenate(faces),
        "",
        np.concatenate([m.surface for m in meshes]).astype(np.float32),
        np.concatenate(every).astype(np.float32),
        np.concatenate(arms).astype(np.float32),
    )
    return whole, np.concatenate(parts), names
