"""Pictures of a person: the place behind them, what stands in front, and what a camera adds."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlm_par_hf.errors import ParValueError

from .figure import draw_figure
from .people import Frame, SyntheticPerson


__all__ = ["HEIGHT", "SUPERSAMPLE", "WIDTH", "render_person", "render_tracklet"]

HEIGHT, WIDTH = 192, 96  # pixels of a drawing: 12 x 6 patches of 16, near the median PA-100K crop
SUPERSAMPLE = 2  # drawn at twice the size and reduced, for smooth edges


def render_person(person: SyntheticPerson, frame: Frame, height: int = HEIGHT, nuisance: float = 1.0) -> Image.Image:
    """Draw one picture of a person.

    Args:
        person, frame: who, and how they stand.
        height: picture height in pixels; the width is half of it.
        nuisance: strength of everything that disturbs (light, occlusion, blur, noise), 0 for a clean drawing.

    Returns:
        RGB `PIL.Image` of size `(height // 2, height)`, the same for the same arguments.
    """
    rng = np.random.default_rng((person.seed, person.person_id, 2, frame.index, frame.camera))
    width = height // 2
    size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    canvas = _background(size, frame.camera, rng)
    draw_figure(canvas, person, frame, nuisance, rng)
    if nuisance and rng.random() < 0.12 * nuisance:
        _occlude(canvas, rng)
    return _photograph(canvas.reduce(SUPERSAMPLE), frame.camera, nuisance, rng)


def render_tracklet(
    person: SyntheticPerson, num_frames: int, camera: int = 0, track: int = 0
) -> list[tuple[Image.Image, Frame]]:
    """Several frames of one person: one view, the stride going on from frame to frame.

    Args:
        num_frames: at least 1.
        camera: 0 or 1.
        track: number of the tracklet; other numbers give other views.

    Returns:
        Pairs of an RGB picture of size `(WIDTH, HEIGHT)` and its frame.

    Raises:
        ValueError: `num_frames` is below 1.
    """
    if num_frames < 1:
        raise ParValueError(f"num_frames is {num_frames!r}; expected at least 1")
    first = Frame.sample(person, 1_000_000 + track, camera)
    frames = (
        Frame(10_000 * (track + 200) + t, first.view, first.walking, (first.phase + 0.11 * t) % 1.0, camera)
        for t in range(num_frames)
    )
    return [(render_person(person, frame), frame) for frame in frames]


def _background(size: tuple[int, int], camera: int, rng: np.random.Generator) -> Image.Image:
    """A ground, a wall and a few things behind; camera 1 looks at another place."""
    width, height = size
    tint = np.array([1.0, 1.0, 1.0]) if camera == 0 else np.array([0.80, 0.95, 1.10])
    wall, ground = (
        tuple(int(c) for c in np.clip(rng.uniform(60, 215) * tint + rng.normal(0, 14, 3), 0, 255)) for _ in "ab"
    )
    canvas = Image.new("RGB", size, wall)
    draw = ImageDraw.Draw(canvas)
    horizon = int(height * rng.uniform(0.35, 0.85))
    draw.rectangle([0, horizon, width, height], fill=ground)
    for _ in range(int(rng.integers(1, 6))):
        color = tuple(int(c) for c in rng.integers(30, 225, 3))
        x, w = rng.uniform(-0.2, 1.0) * width, rng.uniform(0.05, 0.5) * width
        y, h = rng.uniform(-0.2, 0.8) * height, rng.uniform(0.05, 0.5) * height
        (draw.rectangle if rng.random() < 0.7 else draw.ellipse)([x, y, x + w, y + h], fill=color)
    return canvas


def _occlude(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Something stands in front: a pole, or a car, table or bush over the lower part."""
    draw, (width, height) = ImageDraw.Draw(canvas), canvas.size
    color = tuple(int(c) for c in rng.integers(30, 200, 3))
    if rng.random() < 0.4:
        x = rng.uniform(0.1, 0.85) * width
        draw.rectangle([x, 0, x + rng.uniform(0.06, 0.14) * width, height], fill=color)
    else:
        top = rng.uniform(0.62, 0.85) * height
        shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        shape([-rng.uniform(0, 0.6) * width, top, rng.uniform(0.5, 1.3) * width, height * 1.2], fill=color)


def _photograph(image: Image.Image, camera: int, nuisance: float, rng: np.random.Generator) -> Image.Image:
    """Light, blur, sensor noise: what a camera adds. Camera 1 is dim, bluish, low in contrast and noisy."""
    if not nuisance:
        return image
    if rng.random() < (0.25 if camera == 0 else 0.5) * nuisance:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.4, 1.3) * nuisance))
    pixels = np.asarray(image, np.float32)
    gain = rng.uniform(0.72, 1.2) * rng.uniform(0.94, 1.06, 3)
    if camera == 1:
        pixels = 118 + (pixels - 118) * 0.72
        gain = gain * np.array([0.74, 0.86, 1.04])
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(2, 7) + 5 * camera) * nuisance
    slope = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-18, 18))
    pixels = pixels * gain.astype(np.float32) + noise + slope
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
