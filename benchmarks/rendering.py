"""How fast people are rendered: the compiled z-buffer against the same loops in numpy, one scene, one run.

    python benchmarks/rendering.py                               # 40 pictures, one thread
    python benchmarks/rendering.py --sheet docs/rendered.jpg     # only a contact sheet

Prints pictures per CPU-second of the whole renderer with either z-buffer, the median time of each step, and the ratio.
"""

import argparse
import contextlib
import statistics
import time
from unittest import mock

import numpy as np
from PIL import Image

from vlm_par_hf.data.synthetic.rendered import render
from vlm_par_hf.data.synthetic.rendered.people import RenderedPerson, Shot


def rasterize_numpy(points, cut, faces, height, width):
    """What `raster.rasterize` does, with numpy over the pixels of one triangle after the other."""
    depth = np.full((height, width), np.inf, np.float32)
    triangle = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    corners, cuts = points[faces], cut[faces]
    low = np.maximum(np.ceil(corners[..., :2].min(1) - 0.5), 0).astype(int)
    high = np.minimum(np.floor(corners[..., :2].max(1) - 0.5), (width - 1, height - 1)).astype(int)
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    seen = (high >= low).all(1) & (area != 0) & (corners[..., 2] > 0.05).all(1) & (cuts >= 0).any(1)
    for t in np.flatnonzero(seen):
        (xa, ya, za), (xb, yb, zb), (xc, yc, zc) = corners[t]
        box = np.s_[low[t, 1] : high[t, 1] + 1, low[t, 0] : high[t, 0] + 1]
        px = np.arange(low[t, 0], high[t, 0] + 1, dtype=np.float32) + np.float32(0.5) - xa
        py = np.arange(low[t, 1], high[t, 1] + 1, dtype=np.float32)[:, None] + np.float32(0.5) - ya
        wb = (px * (yc - ya) - py * (xc - xa)) / area[t]
        wc = (px * (ya - yb) + py * (xb - xa)) / area[t]
        wa = 1 - wb - wc
        z = wa * za + wb * zb + wc * zc
        hit = (wa >= 0) & (wb >= 0) & (wc >= 0) & (z < depth[box])
        hit &= wa * cuts[t, 0] + wb * cuts[t, 1] + wc * cuts[t, 2] >= 0
        depth[box][hit] = z[hit]
        triangle[box][hit] = t
        weights[box][hit] = np.stack([wb[hit], wc[hit]], 1)
    return depth, triangle, weights


def interpolate_numpy(triangle, weights, faces, values):
    """What `raster.interpolate` does."""
    a, b, c = (values[faces[triangle, i]] for i in range(3))
    return a + weights[:, :1] * (b - a) + weights[:, 1:] * (c - a)


def vertex_normals_numpy(vertices, faces):
    """What `raster.vertex_normals` does."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    result = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(result, faces[:, corner], np.cross(b - a, c - a))
    return result / (np.linalg.norm(result, axis=1, keepdims=True) + 1e-12)


def draw_sheet(path: str, seed: int, columns: int = 14, rows: int = 3, cell: tuple[int, int] = (78, 196)) -> None:
    """A contact sheet of the first people of a population, each at the size that the camera gave it or smaller."""
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    for number in range(columns * rows):
        person = RenderedPerson.sample(seed, number)
        image = render.render_picture(person, Shot.sample(person, 0)).image
        image.thumbnail((cell[0] - 4, cell[1] - 4))
        sheet.paste(image, (number % columns * cell[0] + 2, number // columns * cell[1] + 2))
    sheet.save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheet", metavar="FILE", help="write a contact sheet and do nothing else")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    if args.sheet:
        draw_sheet(args.sheet, args.seed)
        return
    people = [RenderedPerson.sample(args.seed, number) for number in range(args.pictures)]
    shots = [Shot.sample(person, 0) for person in people]
    render.render_picture(people[0], shots[0])  # compiles
    plain = {"rasterize": rasterize_numpy, "interpolate": interpolate_numpy, "vertex_normals": vertex_normals_numpy}
    seconds = {"compiled": [], "numpy": []}
    for person, shot in zip(people, shots, strict=True):
        for name, functions in (("compiled", {}), ("numpy", plain)):
            with mock.patch.multiple(render, **functions) if functions else contextlib.nullcontext():
                started = time.process_time()
                render.render_picture(person, shot)
                seconds[name].append(time.process_time() - started)
    for name, times in seconds.items():
        print(
            f"{name}: {len(times) / sum(times):.1f} pictures per CPU-second, median {statistics.median(times):.4f} s"
        )
    ratio = statistics.median(b / a for a, b in zip(seconds["compiled"], seconds["numpy"], strict=True))
    print(f"ratio of the whole picture's time, numpy / compiled: {ratio:.1f} (median of {args.pictures})")


if __name__ == "__main__":
    main()
