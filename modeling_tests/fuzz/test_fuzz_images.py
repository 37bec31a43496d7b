"""Image files: drawn pictures of every mode and format, and what is left of them after damage."""

import contextlib
import io
import os
import random
import struct
import tempfile
import warnings
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.tiny import tiny_processor
from vlm_par_hf.images.opening import open_image


AREA = Area("images", "Pillow's full decode of the same bytes, turned to RGB by plain NumPy; drawn pixels")
FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
}
KINDS = [(kind, mode) for kind, modes in FORMATS.items() for mode in modes]
WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")
PROCESSOR = tiny_processor("naflex")
FOLDER = tempfile.TemporaryDirectory()

# Of formats that are read, and of some that are not.
STARTS = (
    b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF0000WEBPVP8 ", b"P6\n",
    b"\0\0\0\x20ftypavif", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg>", b"%PDF-1.7\n", b"8BPS\0\1",
)  # fmt: skip

drawn = {
    "kind": st.sampled_from(KINDS),
    "width": st.integers(1, 40),
    "height": st.integers(1, 40),
    "orientation": st.sampled_from((None, None, *range(1, 9))),
    "seed": st.integers(0, 2**32 - 1),
    "more": st.booleans(),
}


def draw(mode, width, height, seed):
    """A picture of smooth noise with values of the whole range."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 4), dtype=np.uint8)
    pixels = np.repeat(np.repeat(small, 4, 0), 4, 1)[:height, :width]
    if mode == "F":
        return Image.fromarray((pixels[..., 0] / 255).astype(np.float32))
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 251 + 7)
    if mode in ("LA", "RGBA"):
        return Image.fromarray(pixels).convert(mode)
    return Image.fromarray(pixels[..., :3].copy()).convert(mode)


def encode(kind, width, height, orientation, seed, more):
    """The bytes of a drawn picture, and the picture."""
    kind, mode = kind
    image = draw(mode, width, height, seed)
    options = {}
    if orientation is not None and kind in WITH_EXIF:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if more and kind == "JPEG":
        options["progressive"] = True
    if more and kind == "TIFF" and mode not in ("F", "1"):
        options["compression"] = "tiff_lzw"
    if more and kind == "PNG" and mode in ("L", "P", "RGB", "I;16"):
        options["transparency"] = image.getpixel((0, 0))
    elif more and kind in ("GIF", "PNG", "WEBP", "TIFF") and mode in ("L", "RGB"):
        options.update(save_all=True, append_images=[draw(mode, width, height, seed + 1)])
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue(), image


def to_rgb(image):
    """The documented rules in NumPy: blending with mid grey, 16-bit values scaled, the orientation applied."""
    image.load()
    orientation = 1
    with contextlib.suppress(Exception):  # damaged metadata turn nothing
        orientation = image.getexif().get(0x0112, 1)
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        pixels = np.repeat(((grey + 128) // 257)[..., None], 3, 2)
        if image.mode != "I" and isinstance(transparent, int):
            pixels[grey == transparent] = 128
    elif image.mode == "F":
        pixels = np.repeat(np.rint(np.asarray(image)[..., None] * 255.0), 3, 2)
    elif transparent is not None or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
        share = rgba[..., 3:] / 255
        pixels = rgba[..., :3] * share + 128 * (1 - share)
    else:
        pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    return turn(pixels, orientation)


def turn(pixels, orientation):
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def near(found, expected, levels=1):
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    difference = np.abs(found - expected).max()
    assert difference <= levels, f"off by {difference} levels"
    return True


def equals_pillow(data):
    def right(answer):
        with Image.open(io.BytesIO(data)) as image:
            assert image.format in (*FORMATS, "MPO"), f"the format {image.format} was answered"
            return near(answer, to_rgb(image))

    return right


def opened(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(open_image(source)).astype(np.float64)


@AREA.fuzz(1200, **drawn)
def test_drawn_pictures_are_right(kind, width, height, orientation, seed, more):
    data, image = encode(kind, width, height, orientation, seed, more)
    kind, mode = kind
    AREA.judge(lambda: opened(data), equals_pillow(data), refusals=())
    if kind in LOSSLESS and mode in ("1", "L", "RGB") and not more:
        expected = turn(np.asarray(image.convert("RGB")), orientation if kind in WITH_EXIF else 1)
        AREA.judge(lambda: opened(data), lambda answer: near(answer, expected.astype(int), 0), refusals=())


@AREA.fuzz(300, **drawn)
def test_the_processor_prepares_files_as_the_drawn_picture(kind, width, height, orientation, seed, more):
    data, _ = encode(kind, width, height, orientation, seed, more)
    path = os.path.join(FOLDER.name, "image")
    with open(path, "wb") as file:
        file.write(data)
    with Image.open(io.BytesIO(data)) as image:
        pixels = Image.fromarray(np.rint(to_rgb(image)).astype(np.uint8))
    expected = PROCESSOR(images=[pixels])["pixel_values"]

    def right(answer):
        return all((one - expected[0]).abs().max() < 3 / 127 for one in answer["pixel_values"])

    AREA.judge(lambda: PROCESSOR(images=[path, data, {"bytes": data, "path": None}]), right, refusals=())


def damage(data, how, seed):
    rng = random.Random(seed)
    data = bytearray(data)
    if how == "cut":
        return bytes(data[: rng.randrange(len(data))])
    if how == "swap":
        start, end = sorted(rng.randrange(len(data)) for _ in range(2))
        return bytes(data[end:] + data[start:end] + data[:start])
    if how == "insert":
        place = rng.randrange(len(data))
        return bytes(data[:place] + rng.randbytes(rng.randrange(1, 40)) + data[place:])
    if how == "append":
        return bytes(data + rng.randbytes(rng.randrange(1, 400)))
    if how == "remove":
        place = rng.randrange(len(data))
        return bytes(data[:place] + data[place + rng.randrange(1, 40) :])
    length = min(64, len(data)) if how == "header" else len(data)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(length)
        data[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256), data[place] ^ (1 << rng.randrange(8))))
    return bytes(data)


@AREA.fuzz(
    2500,
    **drawn,
    how=st.sampled_from(("cut", "swap", "insert", "append", "remove", "header", "header", "bytes", "bytes")),
    damage_seed=st.integers(0, 2**32 - 1),
)
def test_damaged_files(kind, width, height, orientation, seed, more, how, damage_seed):
    data = damage(encode(kind, width, height, orientation, seed, more)[0], how, damage_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AREA.judge(lambda: opened(data), equals_pillow(data))


@AREA.fuzz(300, start=st.sampled_from(STARTS), seed=st.integers(0, 2**32 - 1))
def test_bytes_that_are_no_image(start, seed):
    data = start + random.Random(seed).randbytes(seed % 300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AREA.judge(lambda: opened(data), equals_pillow(data))


@AREA.fuzz(
    150,
    width=st.integers(9_500, 2**31 - 1),
    height=st.integers(9_500, 2**31 - 1),
    colour=st.sampled_from((0, 2, 3, 4, 6)),
)
def test_bombs_are_refused(width, height, colour):
    """A PNG of a few bytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 16))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    AREA.judge(lambda: opened(data), lambda answer: False, must_refuse=True)
