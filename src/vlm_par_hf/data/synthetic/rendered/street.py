"""A street with people who walk through it, seen by one camera: frames of a video and where the people are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vlm_par_hf.errors import ParValueError

from .backdrop import paint_backdrop
from .people import RenderedPerson, Shot
from .photograph import photograph
from .render import SUPERSAMPLE, Camera, build_figure, draw_figure, ground_shadow, horizon_row, reduced


__all__ = ["Walker", "render_street"]

_STRIDE = 1.35  # metres of two steps, of somebody 1.75 m tall
_PITCH = 13.0  # degrees that the camera looks down
_DISTANCE = 9.5  # metres from the camera to the middle of the street
_VIEW = 8.5  # metres that the camera sees there
_LEAST = 40  # pixels that must be seen of a person for a box


@dataclass(frozen=True)
class Walker:
    """A person who walks on a straight line.

    Attributes:
        person: who.
        start, end: metres to the right and towards the camera, from the middle of the street, at the first and the
            last frame.
    """

    person: RenderedPerson
    start: tuple[float, float]
    end: tuple[float, float]

    def shot(self, base: Shot, time: float, duration: float) -> tuple[Shot, np.ndarray]:
        """The person's shot at a time, and where they stand."""
        start, end = np.array(self.start), np.array(self.end)
        way = end - start
        place = start + way * (time / duration)
        # 0 faces the camera, 90 the picture's right.
        azimuth = float(np.degrees(np.arctan2(way[0], way[1])) % 360)
        phase = float(np.hypot(*way)) * (time / duration) / _STRIDE % 1.0
        own = Shot.sample(self.person, base.index, base.camera)
        pose = "walking" if own.pose != "cycling" else own.pose
        shot = replace(base, azimuth=azimuth, phase=phase, pose=pose, seed=base.seed + self.person.person_id)
        return shot, np.array([place[0], 0, place[1]], np.float32)


def render_street(
    walkers: Sequence[Walker],
    *,
    seconds: float = 10.0,
    rate: int = 12,
    size: tuple[int, int] = (960, 540),
    seed: int = 0,
) -> Iterator[tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]]:
    """Renders a video: the same for the same arguments.

    Args:
        walkers: who walks through it; who is nearer hides who is behind.
        seconds: how long.
        rate: frames per second.
        size: width and height of the frames, even numbers.
        seed: the place, the light and the camera.

    Yields:
        Per frame the picture, and for each walker of whom something is seen the position among `walkers` and the box
        x0, y0, x1, y1 of what is inside the frame, as if nobody stood in front.

    Raises:
        ValueError: there is no walker, or no frame.
        ImportError: the extra `rendered` is not installed.
    """
    count = round(seconds * rate)
    if not walkers or count < 1:
        raise ParValueError(f"walkers={len(walkers)}, seconds={seconds}, rate={rate}: expected at least one of each")
    width, height = size
    base = Shot.sample(walkers[0].person, 2_000_000 + seed)
    base = replace(
        base, pitch=_PITCH, distance=_DISTANCE, pose="walking", others=(), occluder=None, infrared=False, seed=seed
    )
    camera = _street_camera(width, height)
    backdrop = paint_backdrop(width, height, horizon_row(camera, base), base.camera, np.random.default_rng((seed, 10)))
    for index in range(count):
        yield _frame(walkers, base, camera, backdrop, index, index / rate, seconds)


def _street_camera(width: int, height: int) -> Camera:
    pitch = np.radians(_PITCH)
    forward = np.array([0, -np.sin(pitch), -np.cos(pitch)])
    axes = np.stack([np.array([1.0, 0, 0]), np.array([0, -np.cos(pitch), np.sin(pitch)]), forward])
    place = np.array([0, 0.9, 0]) - forward * _DISTANCE
    focal = width * _DISTANCE / _VIEW
    scale = SUPERSAMPLE
    return Camera(place, axes, focal * scale, np.array([width, height]) * scale / 2, width * scale, height * scale)


def _frame(walkers, base, camera, backdrop, index, time, seconds):
    height, width = backdrop.shape[:2]
    depth = np.full(camera.width * camera.height, np.inf, np.float32)
    color = np.zeros((len(depth), 3), np.float32)
    ground, boxes = backdrop, []
    for number, walker in enumerate(walkers):
        shot, place = walker.shot(replace(base, index=index), time, seconds)
        # The same seed in all frames: what does not move must not flicker.
        figure = build_figure(walker.person, shot).shifted(place)
        ground = ground * (1 - ground_shadow(figure, camera, shot, feet=place))[..., None]
        rng = np.random.default_rng((walker.person.seed, walker.person.person_id, 11))
        layer = draw_figure(figure, camera, shot, rng)
        if len(layer.rows) >= _LEAST:
            rows, columns = np.divmod(layer.rows, camera.width)
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            boxes.append((number, tuple(int(edge) // SUPERSAMPLE for edge in edges)))
        nearer = layer.depth < depth[layer.rows]
        depth[layer.rows[nearer]], color[layer.rows[nearer]] = layer.depth[nearer], layer.color[nearer]
    color = reduced(color.reshape(camera.height, camera.width, 3))
    alpha = reduced(np.isfinite(depth).reshape(camera.height, camera.width, 1).astype(np.float32))
    pixels = photograph(color + (1 - alpha) * ground, base, np.random.default_rng((base.seed, 12, index)))
    return Image.fromarray(pixels), [(number, box) for number, box in boxes if box[2] > box[0] and box[3] > box[1]]
