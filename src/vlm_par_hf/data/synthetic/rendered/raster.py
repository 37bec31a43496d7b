"""A z-buffer in compiled loops: which triangle each pixel sees, and what the triangle's corners say there."""

import functools
from types import SimpleNamespace

import numpy as np

from vlm_par_hf.utils import require


__all__ = ["compiled", "interpolate", "rasterize", "smoothed", "vertex_normals"]


@functools.cache
def compiled() -> SimpleNamespace:
    """The compiled loops: `fill`, `gather`, `normals`, `smooth`.

    Raises:
        ImportError: the extra `rendered` is not installed.
    """
    numba = require("numba", "rendered")
    jit = functools.partial(numba.njit, cache=True, fastmath=True, nogil=True)

    @jit
    def fill(points, cut, faces, depth, triangle, weights):
        height, width = depth.shape
        for t in range(faces.shape[0]):
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            if cut[a] < 0 and cut[b] < 0 and cut[c] < 0:
                continue
            za, zb, zc = points[a, 2], points[b, 2], points[c, 2]
            if za <= 0.05 or zb <= 0.05 or zc <= 0.05:
                continue
            xa, ya, xb, yb, xc, yc = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
            area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
            if area == 0.0:
                continue
            left, right = max(0, int(np.ceil(min(xa, xb, xc) - 0.5))), min(width - 1, int(max(xa, xb, xc) - 0.5))
            top, bottom = max(0, int(np.ceil(min(ya, yb, yc) - 0.5))), min(height - 1, int(max(ya, yb, yc) - 0.5))
            scale = 1.0 / area
            dbx, dcx = (yc - ya) * scale, (ya - yb) * scale
            for y in range(top, bottom + 1):
                py = y + 0.5 - ya
                for x in range(left, right + 1):
                    px = x + 0.5 - xa
                    wb = px * dbx - py * (xc - xa) * scale
                    wc = px * dcx + py * (xb - xa) * scale
                    wa = 1.0 - wb - wc
                    if wa < 0.0 or wb < 0.0 or wc < 0.0:
                        continue
                    z = wa * za + wb * zb + wc * zc
                    if z >= depth[y, x] or wa * cut[a] + wb * cut[b] + wc * cut[c] < 0.0:
                        continue
                    depth[y, x] = z
                    triangle[y, x] = t
                    weights[y, x, 0] = wb
                    weights[y, x, 1] = wc

    @jit
    def gather(triangle, weights, faces, values, result):
        for i in range(triangle.shape[0]):
            t = triangle[i]
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            wb, wc = weights[i, 0], weights[i, 1]
            wa = 1.0 - wb - wc
            for k in range(values.shape[1]):
                result[i, k] = wa * values[a, k] + wb * values[b, k] + wc * values[c, k]

    @jit
    def normals(vertices, faces, result):
        for t in range(faces.shape[0]):
            a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
            ux, uy, uz = (
                vertices[b, 0] - vertices[a, 0],
                vertices[b, 1] - vertices[a, 1],
                vertices[b, 2] - vertices[a, 2],
            )
            vx, vy, vz = (
                vertices[c, 0] - vertices[a, 0],
                vertices[c, 1] - vertices[a, 1],
                vertices[c, 2] - vertices[a, 2],
            )
            nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
            for corner in (a, b, c):
                result[corner, 0] += nx
                result[corner, 1] += ny
                result[corner, 2] += nz
        for v in range(result.shape[0]):
            length = np.sqrt(result[v, 0] ** 2 + result[v, 1] ** 2 + result[v, 2] ** 2) + 1e-12
            result[v, 0] /= length
            result[v, 1] /= length
            result[v, 2] /= length

    @jit
    def smooth(vertices, neighbours, rounds, result, spare):
        result[:] = vertices
        for _ in range(rounds):
            for v in range(vertices.shape[0]):
                for k in range(3):
                    total = np.float32(0)
                    for n in range(neighbours.shape[1]):
                        total += result[neighbours[v, n], k]
                    spare[v, k] = np.float32(0.5) * (result[v, k] + total / neighbours.shape[1])
            result[:] = spare

    return SimpleNamespace(fill=fill, gather=gather, normals=normals, smooth=smooth)


def rasterize(
    points: np.ndarray, cut: np.ndarray, faces: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each pixel sees of triangles, both sides of which are seen.

    Args:
        points: float32 `(V, 3)`: x and y in pixels (the first pixel's middle is at 0.5), distance from the camera > 0.
        cut: float32 `(V,)`; where its interpolation over a triangle is negative, the triangle has a hole.
        faces: int32 `(T, 3)` rows of `points`.
        height, width: of the picture.

    Returns:
        Distance float32 `(height, width)` (infinite where nothing is), triangle int32 `(height, width)` (-1 there),
        and float32 `(height, width, 2)`, the weights of the triangle's second and third corner.
    """
    depth = np.full((height, width), np.inf, np.float32)
    triangle = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    compiled().fill(points, cut, faces, depth, triangle, weights)
    return depth, triangle, weights


def interpolate(triangle: np.ndarray, weights: np.ndarray, faces: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values float32 `(V, K)` of the corners at pixels `(P,)`, `(P, 2)` of `rasterize`: float32 `(P, K)`."""
    result = np.empty((len(triangle), values.shape[1]), np.float32)
    compiled().gather(triangle, weights, faces, values, result)
    return result


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals float32 `(V, 3)`, the mean of a vertex's triangles weighted by area."""
    result = np.zeros_like(vertices)
    compiled().normals(vertices, faces, result)
    return result


def smoothed(vertices: np.ndarray, neighbours: np.ndarray, rounds: int = 6) -> np.ndarray:
    """Vertices float32 `(V, 3)`, in each round half-way to the mean of their neighbours `(V, K)`."""
    result = np.empty_like(vertices)
    compiled().smooth(vertices, neighbours, rounds, result, np.empty_like(vertices))
    return result
