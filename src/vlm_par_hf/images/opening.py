"""Opens images of any kind (files, bytes, arrays, tensors, PIL images) as 8-bit RGB pictures.

Readers, collator, processors and pipelines all open their images here, so that a 16-bit, transparent or EXIF-rotated
picture gives the same pixels whichever way it reaches a model. Every error names the image. Needs Pillow and NumPy
only.

What a file may do to the process is limited: only the formats of `IMAGE_FORMATS` are tried, none of which starts
another program; a path must lead to a regular file; and files, pixels and memory have limits.
"""

import base64
import binascii
import ctypes
import io
import os
import re
import stat
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.utils import iterate, redact, shorten_text, thread_map

from .regions import crop_region, split_region


__all__ = [
    "BACKGROUND",
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "Opened",
    "describe_image_source",
    "is_image_file",
    "is_one_image",
    "open_image",
    "open_images",
    "open_with_size",
    "refused_file_url",
]

# The formats that are read, by Pillow's names, and the endings of their files. A file is recognised by its content;
# the endings say which files of a folder are taken for pictures.
IMAGE_FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
IMAGE_SUFFIXES = tuple(sorted(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes))

# The colour behind transparent pixels: mid grey, which is zero after the (x - 0.5) / 0.5 normalisation of SigLIP.
BACKGROUND = (128, 128, 128)
# The size at which Pillow starts to warn: about ten times a 9-megapixel street frame, but far below a decompression
# bomb. It stands for the memory of an RGB picture, four bytes per pixel in Pillow; a picture that is decoded in
# another mode and then converted needs both.
MAX_PIXELS = 89_478_485
# Far above any photograph; more is read into memory from no file.
MAX_FILE_BYTES = 512 * 1024 * 1024

# A larger JPEG (phones take 12 to 200 megapixels) is decoded at a half, a quarter or an eighth of its size, which the
# format allows without decoding it at full size first. 25 megapixels are 100 MB in memory. Of one person a quarter of
# that is more than enough; where people are cut out of the picture, each has only a part of its pixels.
_LARGE_PIXELS = 25_000_000
_LARGE_PERSON_PIXELS = 6_250_000
_MAX_JPEG_PIXELS = 400_000_000
# Large pictures are decoded one at a time: what a decoder needs beside the result would add up over threads.
_LARGE_LOCK = threading.Lock()
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{16,}={0,2}\s*")
_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w.=-]+)*?;base64,", re.IGNORECASE)
_LONGEST_PATH = 4096
_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "PA": 2, "LA": 2, "I;16": 2, "I;16B": 2, "I;16L": 2}  # of others 4

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


class Opened(NamedTuple):
    """A picture, and the size that it would have had if it had not been reduced while it was decoded."""

    image: Image.Image  # upright RGB
    full_size: tuple[int, int]  # width and height of the upright picture


class _Limits(NamedTuple):
    max_pixels: int | None  # what is refused
    large: int  # what is decoded at a part of its size


def open_image(source: Any, *, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Opens one image and returns it as a decoded RGB `PIL.Image.Image` of 8 bits per channel.

    Args:
        source: one of
            - a path (`str` or `os.PathLike`) to a regular file, or the bytes of one, in a format of `IMAGE_FORMATS`;
            - the base64 text of such a file, alone or as `data:image/...;base64,...`;
            - a `PIL.Image.Image` of any mode (an RGB one that needs no rotation is returned as it is, not copied);
            - an array or CPU/GPU tensor `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`: uint8 in [0, 255], uint16
              in [0, 65535], bool, or floating point in [0, 1];
            - a dict `{"path": ..., "bytes": ...}`, the undecoded form of `datasets.Image`; a path that ends in
              `#xywh=left,top,width,height` is that part of the picture (`images.regions`).
        max_pixels: largest width x height that is decoded; checked before decoding. None: only the limit that Pillow
            sets for the whole process (`PIL.Image.MAX_IMAGE_PIXELS`) applies. It stands for four bytes of memory per
            pixel: of a mode that has to be converted to RGB fewer pixels are allowed.

    EXIF rotation is applied; transparent pixels are blended with `BACKGROUND`; 16-bit grey values are scaled, not
    clipped; an animation gives its first frame (an open PIL animation its current frame). A JPEG file of more than
    6.25 megapixels is decoded at a half, a quarter or an eighth of its width and height (`open_with_size` says what
    they were): far more than any model reads of one person.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is no image, of another format, truncated or too large, or no regular file; the array
            holds NaN or has a wrong shape or range. The message names the file, and says so if it is a web page that
            was saved under the name of an image.
        TypeError: the source is of another kind.
    """
    return open_with_size(source, max_pixels=max_pixels).image


def open_with_size(source: Any, *, max_pixels: int | None = MAX_PIXELS, one_person: bool = True) -> Opened:
    """As `open_image`, with the size of the picture before a large JPEG was reduced. Boxes refer to that size.

    Args:
        source, max_pixels: as for `open_image`.
        one_person: False for a picture of which people will be cut out: it is reduced only above 25 megapixels.

    Raises:
        As `open_image`.
    """
    limits = _Limits(max_pixels, _LARGE_PERSON_PIXELS if one_person else _LARGE_PIXELS)
    if isinstance(source, Image.Image):
        image = _to_rgb(source, describe_image_source(source), max_pixels)
        return Opened(image, image.size)
    if isinstance(source, Mapping) and ("path" in source or "bytes" in source):
        return _open_dict(source, limits)
    if isinstance(source, str):
        return _open_text(source, limits)
    if isinstance(source, os.PathLike):
        return _open_path(os.fspath(source), limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_stream(io.BytesIO(source), describe_image_source(source), limits)
    if hasattr(source, "detach") and hasattr(source, "cpu"):  # a torch tensor, without importing torch
        image = _from_array(_tensor_values(source))
        return Opened(image, image.size)
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        return Opened(image, image.size)
    raise ParTypeError(
        f"image is a {type(source).__name__}; expected a path, the bytes of an image file, a PIL image, an array or "
        "a torch tensor (height, width, channels)"
    )


def open_images(sources: Iterable[Any]) -> list[Image.Image]:
    """`[open_image(source) for source in sources]`, in the order of the container; files are decoded by several
    threads.

    Raises:
        As `open_image`; TypeError also for a container without an order.
    """
    # In-memory images are opened here: two entries may be one object, which Pillow cannot decode in two threads.
    return thread_map(
        lambda source: open_image(source) if is_image_file(source) else source,
        [source if is_image_file(source) else open_image(source) for source in iterate(sources, "images")],
    )


def is_one_image(source: Any) -> bool:
    """Whether an object is one image (or a row with one), and no container of several: some images can be iterated
    too. An array of objects or texts is a container."""
    if isinstance(source, np.ndarray):
        return source.dtype.kind not in "OSU"
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Mapping)
    return isinstance(source, kinds) or (hasattr(source, "detach") and hasattr(source, "cpu"))


def is_image_file(source: Any) -> bool:
    """Whether a source is a path or the bytes of a file. These do not change, so that a worker can decode them
    later."""
    if isinstance(source, Mapping):
        return all(value is None or is_image_file(value) for value in (source.get("path"), source.get("bytes")))
    return isinstance(source, (str, os.PathLike, bytes))


def describe_image_source(source: Any) -> str:
    """A short name of an image source for error messages: the path if there is one, else its kind and size."""
    if isinstance(source, str | os.PathLike):
        return _name_of(os.fspath(source))
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "")
        return _name_of(name) if name else f"PIL image of mode {source.mode} and size {source.size}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image given as {memoryview(source).nbytes} bytes"
    if isinstance(source, Mapping):
        return describe_image_source(source.get("path") or source.get("bytes") or b"")
    shape = getattr(source, "shape", None)
    return f"{type(source).__name__}" if shape is None else f"{type(source).__name__} of shape {tuple(shape)}"


def _name_of(path: str | bytes) -> str:
    """A path or URL as it may stand in a message: short, printable, without secrets."""
    path = os.fsdecode(path)
    return shorten_text(redact(path[:_LONGEST_PATH]) if "://" in path[:32] else path)


def refused_file_url(url: str) -> ParValueError:
    """The error for a `file://` URL: what it names might lie anywhere, and a path says it as well."""
    path = unquote(urlsplit(url[:_LONGEST_PATH]).path)
    return ParValueError(
        f"image {_name_of(url)!r} is a file URL, which is not read; expected the path alone, such as "
        f"{_name_of(path)!r}"
    )


def _open_text(text: str, limits: _Limits) -> Opened:
    start = _DATA_URL.match(text[:200])
    if start is not None:
        return _open_stream(io.BytesIO(_decode_base64(text[start.end() :])), _describe_base64(text), limits)
    if text[:5].lower() == "data:":
        raise ParValueError(f"image {_name_of(text)!r} is a data URL of another form; expected data:image/...;base64,")
    if text[:7].lower() == "file://":
        raise refused_file_url(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text[:64]):
        raise ParValueError(
            f"image {_name_of(text)!r} is a URL, which is not read here; expected a path (the pipeline reads http and "
            "https)"
        )
    # What is longer than any path is never one; a shorter text is one if there is such a file.
    is_base64 = _BASE64.fullmatch(text) is not None
    if is_base64 and (len(text) > _LONGEST_PATH or not os.path.lexists(text)):
        data = _decode_base64(text)
        if _is_known_start(data):
            return _open_stream(io.BytesIO(data), _describe_base64(text), limits)
        is_base64 = len(text) > 200
    if len(text) > _LONGEST_PATH or "\0" in text:
        what = "which is not that of an image" if is_base64 else "which is neither a path nor base64"
        raise ParValueError(
            f"image {shorten_text(text, 80)!r} is a text of {len(text)} characters, {what}; expected a path, or the "
            "base64 text of an image file"
        )
    return _open_path(text, limits)


def _describe_base64(text: str) -> str:
    return f"image given as base64 text of {len(text)} characters"


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ParValueError(
            f"image {shorten_text(text, 80)!r} is not the base64 text of an image file ({error}); expected a path or "
            "base64 text"
        ) from None


def _is_known_start(data: bytes) -> bool:
    """Whether bytes start as a file of one of the formats; so texts that happen to be base64 are told from images."""
    starts = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
    is_riff, is_avif = data[:4] == b"RIFF" and data[8:12] == b"WEBP", data[4:8] == b"ftyp"
    return len(data) > 16 and (data.startswith(starts) or is_riff or is_avif or data[:2] in (b"P4", b"P5", b"P6"))


def _open_path(path: str | bytes, limits: _Limits) -> Opened:
    name = _name_of(path)
    with _open_regular_file(path, name) as stream:
        return _open_stream(stream, name, limits)


def _open_regular_file(path: str | bytes, name: str) -> BinaryIO:
    """A stream over a regular file. A pipe would be waited for without end, a device read without end."""
    # Asked before opening, because opening may already do something to a device; and once more of what was opened,
    # because another file may stand there by then. Without waiting, as the opening of a pipe would.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        _check_regular(os.stat(path), name)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ParFileNotFoundError(f"image file {name!r} does not exist") from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParValueError(f"image file {name!r} cannot be opened: {reason}") from error
    stream = os.fdopen(descriptor, "rb")
    try:
        _check_regular(os.fstat(descriptor), name)
    except BaseException:
        stream.close()
        raise
    return stream


def _check_regular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ParValueError(f"image {name!r} is a folder; expected an image file")
    if not stat.S_ISREG(status.st_mode):
        raise ParValueError(f"image {name!r} is no regular file (a device, pipe or socket); expected an image file")
    if status.st_size > MAX_FILE_BYTES:
        raise ParValueError(f"image {name!r} has {status.st_size} bytes; expected at most {MAX_FILE_BYTES}")


def _open_dict(source: Mapping, limits: _Limits) -> Opened:
    data, path = source.get("bytes"), source.get("path")
    if data is not None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ParTypeError(f"'bytes' of an image is a {type(data).__name__}; expected the bytes of an image file")
        return _open_stream(io.BytesIO(data), describe_image_source(source), limits)
    if path is None:
        raise ParValueError("image has neither 'path' nor 'bytes'; expected at least one of them")
    if not isinstance(path, str | os.PathLike):
        raise ParTypeError(f"'path' of an image is a {type(path).__name__}; expected a path")
    path = os.fspath(path)
    if not isinstance(path, str):
        return _open_path(path, limits)
    file, region = split_region(path)
    if region is None:
        return _open_text(path, limits)
    opened = _open_path(file, limits._replace(large=_LARGE_PIXELS))
    picture = crop_region(opened.image, opened.full_size, region, _name_of(path))
    return Opened(picture, picture.size)


def _open_stream(stream: Any, name: str, limits: _Limits) -> Opened:
    try:
        if stream.read(3) == b"\xff\xd8\xff":
            # As Image.open does, but without its limit on the full size: a JPEG need not be decoded at that size.
            stream.seek(0)
            image = JpegImagePlugin.jpeg_factory(stream)
        else:
            stream.seek(0)
            image = Image.open(stream, formats=tuple(IMAGE_FORMATS))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ParValueError(f"image {name!r} is too large to decode: {error}") from error
    except Exception as error:  # Pillow's parsers raise OSError, SyntaxError, struct.error, ... on damaged headers
        reason = _recognise_non_image(stream) or f"cannot be read as an image: {_reason(error)}"
        raise ParValueError(f"image {name!r} {reason}") from error
    with image:
        width, height = image.size
        factor = _reduce_jpeg(image, name, limits) if image.format in ("JPEG", "MPO") else 1
        is_large = width * height > limits.large
        with _LARGE_LOCK if is_large else nullcontext():
            rgb = _to_rgb(image, name, limits.max_pixels)
            is_turned = factor > 1 and _orientation(image) in (5, 6, 7, 8)
            if rgb is not image:
                image.close()  # frees its pixels now, before another large picture is decoded
            if is_large:
                _return_memory()
    if factor == 1:
        return Opened(rgb, rgb.size)
    return Opened(rgb, (height, width) if is_turned else (width, height))


def _return_memory() -> None:
    """Gives freed memory back to the system: the allocator of Linux keeps it for each thread, which adds up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _reduce_jpeg(image: ImageFile.ImageFile, name: str, limits: _Limits) -> int:
    """Tells the decoder of a large JPEG to make a smaller picture; the factor that its sides are divided by."""
    width, height = image.size
    if width * height > _MAX_JPEG_PIXELS:
        raise ParValueError(
            f"image {name!r} is {width}x{height} = {width * height} pixels; expected at most {_MAX_JPEG_PIXELS} of a "
            "JPEG file"
        )
    limit = limits.large if limits.max_pixels is None else min(limits)
    factor = next((one for one in (1, 2, 4, 8) if -(-width // one) * -(-height // one) <= limit), 8)
    if factor > 1:
        image.draft(image.mode, (width // factor, height // factor))
    limit = Image.MAX_IMAGE_PIXELS  # the user may have lowered it; Pillow refuses what is twice as large
    if limit is not None and image.width * image.height > 2 * limit:
        raise ParValueError(
            f"image {name!r} is {width}x{height} pixels; expected at most 2 * PIL.Image.MAX_IMAGE_PIXELS = {2 * limit}"
        )
    return factor


def _reason(error: Exception) -> str:
    """The text of an error of Pillow for our message; its descriptions of streams say nothing."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is in none of the formats {', '.join(IMAGE_FORMATS)}"
    return shorten_text(str(error) or type(error).__name__, 300)


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
    # In bytes: a picture of another mode lies in memory beside the RGB one that it is converted to.
    bytes_per_pixel = 4 if image.mode == "RGB" else 4 + _BYTES_PER_PIXEL.get(image.mode, 4)
    if max_pixels is not None and width * height * bytes_per_pixel > 4 * max_pixels:
        needs = "" if image.mode == "RGB" else f" of mode {image.mode}, {bytes_per_pixel} bytes each"
        least = f"max_pixels={max_pixels}" + ("" if image.mode == "RGB" else " of 4 bytes")
        raise ParValueError(
            f"image {name!r} is {width}x{height} = {width * height} pixels{needs}; expected at most {least}"
        )
    try:
        image.load()
    except Exception as error:  # truncated and damaged data raise many kinds of errors, as above
        raise ParValueError(f"image {name!r} is truncated or damaged: {_reason(error)}") from error
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
        values = np.asarray(image).astype(np.uint16)
        rgb = _from_array(values, name)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):  # one grey value of a PNG file; Pillow converts no 16-bit picture with it
            rgb.paste(BACKGROUND, mask=Image.fromarray(values == transparent))
        return rgb
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
    # PGM and PNG files that Pillow opens as 32-bit integers hold 16-bit values. A TIFF of 32 bits and an image made in
    # memory do not say their range. A guess from its values could turn a dark picture into a bright one or the other
    # way round.
    values = np.asarray(image)
    if image.format not in ("PNG", "PPM") or values.min() < 0 or values.max() > 65535:
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


def _tensor_values(tensor: Any) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise ParValueError(
            f"image is a {type(tensor).__name__} of {tensor.dtype} and layout {tensor.layout} that has no array form: "
            f"{shorten_text(str(error), 100)}; expected a dense tensor (height, width, channels)"
        ) from error


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if np.ma.is_masked(array):
        raise ParValueError(f"image {name!r} has masked pixels; expected an array whose values all count")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
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
