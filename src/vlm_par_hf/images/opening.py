"""Opens images of any kind (files, bytes, arrays, tensors, PIL images) as 8-bit RGB pictures.

Readers, collator, processors and pipelines all open their images here, so that a 16-bit, transparent or EXIF-rotated
picture gives the same pixels whichever way it reaches a model. Every error names the image. Needs Pillow and NumPy
only.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.utils import thread_map


__all__ = [
    "BACKGROUND",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "describe_image_source",
    "is_image_file",
    "open_image",
    "open_images",
]

# Files of a folder that are taken for pictures.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# The colour behind transparent pixels: mid grey, which is zero after the (x - 0.5) / 0.5 normalisation of SigLIP.
BACKGROUND = (128, 128, 128)
# The size at which Pillow starts to warn: about ten times a 9-megapixel street frame, but far below a decompression
# bomb.
MAX_PIXELS = 89_478_485

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Any, *, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Opens one image and returns it as a decoded RGB `PIL.Image.Image` of 8 bits per channel.

    Args:
        source: one of
            - a path (`str` or `os.PathLike`) or the bytes of an image file, in any format that Pillow reads;
            - a `PIL.Image.Image` of any mode (an RGB one that needs no rotation is returned as it is, not copied);
            - an array or CPU/GPU tensor `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`: uint8 in [0, 255], uint16
              in [0, 65535], bool, or floating point in [0, 1];
            - a dict `{"path": ..., "bytes": ...}`, the undecoded form of `datasets.Image`.
        max_pixels: largest width x height that is decoded; checked before decoding. None: only the limit that Pillow
            sets for the whole process (`PIL.Image.MAX_IMAGE_PIXELS`) applies.

    EXIF rotation is applied; transparent pixels are blended with `BACKGROUND`; 16-bit grey values are scaled, not
    clipped; an animation gives its first frame (an open PIL animation its current frame).

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is no image, truncated or too large; the array holds NaN or has a wrong shape or range.
            The message names the file, and says so if it is a web page that was saved under the name of an image.
        TypeError: the source is of another kind.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, describe_image_source(source), max_pixels)
    if isinstance(source, dict) and ("path" in source or "bytes" in source):
        return _open_dict(source, max_pixels)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_stream(io.BytesIO(source), describe_image_source(source), max_pixels)
    if hasattr(source, "detach") and hasattr(source, "cpu"):  # a torch tensor, without importing torch
        tensor = source.detach().cpu()
        return _from_array((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ParTypeError(
        f"image is a {type(source).__name__}; expected a path, the bytes of an image file, a PIL image, an array or "
        "a torch tensor (height, width, channels)"
    )


def open_images(sources: Sequence[Any]) -> list[Image.Image]:
    """`[open_image(source) for source in sources]`; files are decoded by several threads.

    Raises:
        As `open_image`.
    """
    # In-memory images are opened here: two entries may be one object, which Pillow cannot decode in two threads.
    return thread_map(
        lambda source: open_image(source) if is_image_file(source) else source,
        [source if is_image_file(source) else open_image(source) for source in sources],
    )


def is_image_file(source: Any) -> bool:
    """Whether a source is a path or the bytes of a file. These do not change, so that a worker can decode them
    later."""
    if isinstance(source, Mapping):
        return all(value is None or is_image_file(value) for value in (source.get("path"), source.get("bytes")))
    return isinstance(source, (str, os.PathLike, bytes))


def describe_image_source(source: Any) -> str:
    """A short name of an image source for error messages: the path if there is one, else its kind and size."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"PIL image of mode {source.mode} and size {source.size}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image given as {len(source)} bytes"
    if isinstance(source, dict):
        return source.get("path") or describe_image_source(source.get("bytes") or b"")
    shape = getattr(source, "shape", None)
    return f"{type(source).__name__}" if shape is None else f"{type(source).__name__} of shape {tuple(shape)}"


def _open_path(path: str, max_pixels: int | None) -> Image.Image:
    if not os.path.exists(path):
        raise ParFileNotFoundError(f"image file {path!r} does not exist")
    if os.path.isdir(path):
        raise ParValueError(f"image {path!r} is a folder; expected an image file")
    with open(path, "rb") as stream:
        return _open_stream(stream, path, max_pixels)


def _open_dict(source: dict, max_pixels: int | None) -> Image.Image:
    if source.get("bytes") is not None:
        return _open_stream(io.BytesIO(source["bytes"]), describe_image_source(source), max_pixels)
    if source.get("path") is not None:
        return _open_path(source["path"], max_pixels)
    raise ParValueError("image has neither 'path' nor 'bytes'; expected at least one of them")


def _open_stream(stream: Any, name: str, max_pixels: int | None) -> Image.Image:
    try:
        image = Image.open(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ParValueError(f"image {name!r} is too large to decode: {error}") from error
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, struct.error, ... on damaged headers
        reason = _recognise_non_image(stream) or f"cannot be read as an image: {error}"
        raise ParValueError(f"image {name!r} {reason}") from error
    with image:
        return _to_rgb(image, name, max_pixels)


def _recognise_non_image(stream: Any) -> str | None:
    """End of an error message for common kinds of files that are no images; None for all others."""
    stream.seek(0)
    start = stream.read(512)
    if not start:
        return "cannot be read as an image: it is empty"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page, not an image (a download that failed?)"
    return None


def _to_rgb(image: Image.Image, name: str, max_pixels: int | None) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ParValueError(f"image {name!r} has size {width}x{height}; expected at least one pixel")
    if max_pixels is not None and width * height > max_pixels:
        raise ParValueError(
            f"image {name!r} is {width}x{height} = {width * height} pixels; expected at most max_pixels={max_pixels}"
        )
    try:
        image.load()
    except Exception as error:  # truncated and damaged data raise many kinds of errors, as above
        raise ParValueError(f"image {name!r} is truncated or damaged: {error}") from error
    transpose = _TRANSPOSE_OF_ORIENTATION.get(_orientation(image))
    if image.mode == "RGB" and "transparency" not in image.info:
        rgb = image
    else:
        rgb = _convert_mode(image, name)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
        rgb.info = {}  # it holds the EXIF orientation: the next reader would rotate the picture again
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata: the pixels are still usable
        return 1


def _convert_mode(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_array(np.asarray(image).astype(np.uint16), name)
    if image.mode == "I":
        return _from_array(_sixteen_bit_values(image, name), name)
    if image.mode == "F":
        return _from_array(np.asarray(image), name)
    try:
        if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            background = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
            rgb = Image.alpha_composite(background, rgba).convert("RGB")
            rgb.info = {key: value for key, value in image.info.items() if key != "transparency"}
            return rgb
        return image.convert("RGB")
    except ValueError as error:
        raise ParValueError(
            f"image {name!r} has mode {image.mode!r}, which cannot be shown as RGB: {error}"
        ) from error


def _sixteen_bit_values(image: Image.Image, name: str) -> np.ndarray:
    # Files that Pillow opens as 32-bit integers (16-bit PGM, some PNG) hold 16-bit values. An image made in memory
    # does not say its range. A guess from its values could turn a dark picture into a bright one or the other way
    # round.
    values = np.asarray(image)
    if image.format is None or values.min() < 0 or values.max() > 65535:
        raise ParValueError(
            f"image {name!r} has mode 'I' with values in [{values.min()}, {values.max()}]; expected a 16-bit file, or "
            "an image converted to mode 'L' or 'I;16'"
        )
    return values.astype(np.uint16)


def _from_array(array: np.ndarray, name: str | None = None) -> Image.Image:
    name = name or describe_image_source(array)
    if array.ndim not in (2, 3) or array.size == 0:
        raise ParValueError(f"image {name!r} has shape {array.shape}; expected one image (height, width[, channels])")
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        hint = ""
        if array.shape[0] in (1, 3, 4):
            hint = "; it looks channels-first: pass image.transpose(1, 2, 0), for a tensor image.permute(1, 2, 0)"
        raise ParValueError(f"image {name!r} has shape {array.shape}; expected 1, 3 or 4 channels last{hint}")
    pixels = _to_uint8(array, name)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))  # L, RGB or RGBA
    return picture if picture.mode == "RGB" else _convert_mode(picture, name)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, rounded
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ParValueError(f"image {name!r} holds NaN or infinity; expected finite values in [0, 1]")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise ParValueError(
                f"image {name!r} holds floats in [{low:g}, {high:g}]; expected [0, 1] (for 0 to 255 pass uint8)"
            )
        return np.rint(array * np.float32(255)).astype(np.uint8)
    raise ParValueError(
        f"image {name!r} has dtype {array.dtype}; expected uint8, uint16, bool or floating point in [0, 1]"
    )
