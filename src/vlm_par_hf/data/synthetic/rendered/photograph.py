"""What a camera and a recorder make of a scene: exposure, color, haze, blur, noise, sharpening, JPEG."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


if TYPE_CHECKING:
    from .people import Shot


__all__ = ["photograph"]

_GRAY = np.array((0.299, 0.587, 0.114), np.float32)


def photograph(pixels: np.ndarray, shot: "Shot", rng: np.random.Generator) -> np.ndarray:
    """The picture that a street camera takes of a scene.

    Args:
        pixels: sRGB float32 `(H, W, 3)`, 0 to 1, the scene as it is.
        shot: its `seed` decides the camera's settings, which a tracklet shares.
        rng: draws what differs from frame to frame: the noise.

    Returns:
        sRGB uint8 `(H, W, 3)`, after JPEG.
    """
    settings = np.random.default_rng((shot.seed, 7))
    height, width = pixels.shape[:2]
    pixels = _develop(np.asarray(pixels, np.float32), shot, settings)
    picture = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    picture = _blur(picture, shot, settings)

    pixels = np.asarray(picture, np.float32)
    pixels = pixels + _noise((height, width), shot, settings, rng)
    if settings.random() < 0.45:
        pixels = _sharpen(pixels, np.float32(settings.uniform(0.4, 1.7)))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if settings.random() < 0.03:
        _write_over(picture, settings)
    return _compress(picture, round(settings.uniform(28, 95)))


def _develop(pixels: np.ndarray, shot: "Shot", settings: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, haze, contrast and saturation."""
    mood = settings.random()
    gain = np.exp(settings.normal(0.03, 0.13)) * (0.78 if shot.camera else 1.0)
    if mood < 0.10:  # burnt out
        gain *= settings.uniform(1.25, 1.6)
    elif mood < 0.15:  # dusk
        gain *= settings.uniform(0.45, 0.75)
    balance = np.exp(settings.normal(0, 0.12 if settings.random() < 0.06 else 0.025, 3))
    balance = balance * ((0.89, 1.0, 1.16) if shot.camera else (0.97, 1.0, 1.03))
    saturation = settings.uniform(0.5, 1.05)
    contrast = settings.uniform(1.0, 1.5) * (0.82 if shot.camera else 1.0)
    slope = np.linspace(-1, 1, pixels.shape[0], dtype=np.float32)[:, None, None] * settings.normal(0, 0.04)
    haze = settings.uniform(0.12, 0.5) if settings.random() < 0.17 else settings.uniform(0.0, 0.1)
    black, gamma = settings.uniform(0.0, 0.17), settings.uniform(1.05, 1.45)
    haze_level = settings.uniform(0.5, 0.85)

    pixels = pixels * (gain * balance).astype(np.float32)
    gray = np.einsum("ywc,c->yw", pixels, _GRAY)[..., None]
    if shot.infrared:
        pixels, saturation = np.repeat(np.sqrt(np.clip(gray, 0, 1)), 3, axis=2), 0.0
        contrast *= settings.uniform(0.7, 1.2)
        gray = pixels[..., :1]
    pixels = gray + (pixels - gray) * np.float32(saturation)
    pixels = 0.45 + (pixels - 0.45) * np.float32(contrast) + slope.astype(np.float32)
    # Cameras lift shadows and darken what is between them and the lights.
    pixels = np.float32(black) + np.maximum(pixels, 0) ** np.float32(gamma) * np.float32(1 - 0.7 * black)
    return pixels * np.float32(1 - haze) + np.float32(haze * haze_level)


def _blur(picture: Image.Image, shot: "Shot", settings: np.random.Generator) -> Image.Image:
    """Defocus, motion, and few pixels enlarged."""
    width, height = picture.size
    unit = height / 192
    if settings.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(settings.uniform(0.4, 1.4) * unit))
    moving = 0.25 if shot.pose in ("running", "cycling") else 0.08
    if settings.random() < moving:
        picture = _smear(picture, settings.uniform(2, 6) * unit, settings.random() < 0.8)
    if settings.random() < 0.4:
        share = settings.uniform(0.32, 0.8)
        small = max(8, round(width * share)), max(16, round(height * share))
        how = Image.Resampling.BICUBIC if settings.random() < 0.7 else Image.Resampling.BILINEAR
        picture = picture.resize(small, Image.Resampling.BOX).resize((width, height), how)
    return picture


def _smear(picture: Image.Image, length: float, sideways: bool) -> Image.Image:
    pixels = np.asarray(picture, np.float32)
    axis = 1 if sideways else 0
    steps = max(2, min(round(length), pixels.shape[axis] - 1))
    total = sum(np.roll(pixels, step - steps // 2, axis) for step in range(steps))
    # What rolled over the edge comes from the other side: repeat the edge instead.
    blurred = total / steps
    margin = steps // 2 + 1
    inner = [slice(None), slice(None)]
    inner[axis] = slice(margin, -margin)
    result = pixels.copy()
    result[tuple(inner)] = blurred[tuple(inner)]
    return Image.fromarray(result.astype(np.uint8))


def _noise(size: tuple[int, int], shot: "Shot", settings: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    strength = settings.uniform(3.0, 11.0) if shot.camera or shot.infrared else settings.uniform(0.4, 3.2)
    noise = rng.standard_normal((*size, 1), np.float32) * np.float32(strength)
    if settings.random() < 0.5 and not shot.infrared:
        noise = noise + rng.standard_normal((*size, 3), np.float32) * np.float32(0.6 * strength)
    return noise


def _sharpen(pixels: np.ndarray, amount: np.float32) -> np.ndarray:
    """Adds what a 3x3 mean takes away: the light and dark rims of cheap cameras."""
    rows = pixels.copy()
    rows[1:-1] = (pixels[:-2] + pixels[1:-1] + pixels[2:]) * np.float32(1 / 3)
    mean = rows.copy()
    mean[:, 1:-1] = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 3)
    return pixels + amount * (pixels - mean)


def _write_over(picture: Image.Image, settings: np.random.Generator) -> None:
    """Part of a time stamp or a camera's name, as recorders write them into the picture."""
    width, height = picture.size
    text = "".join(str(d) for d in settings.integers(0, 10, int(settings.integers(2, 8))))
    font = ImageFont.load_default(size=round(height * settings.uniform(0.06, 0.14)))
    at = settings.uniform(-0.3, 0.5) * width, settings.uniform(0.0, 0.92) * height
    ImageDraw.Draw(picture).text(at, text, fill=(245, 245, 245), font=font, stroke_width=1, stroke_fill=(20, 20, 20))


def _compress(picture: Image.Image, quality: int) -> np.ndarray:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))
