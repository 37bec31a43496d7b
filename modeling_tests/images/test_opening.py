"""Opening images: every mode and kind gives the right RGB pixels, or an error that names the thing."""

import base64
import io
import os
import struct
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

import vlm_par_hf
from vlm_par_hf.images import opening
from vlm_par_hf.images.opening import (
    BACKGROUND,
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    is_image_file,
    is_one_image,
    open_image,
    open_images,
    open_with_size,
)


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)


def test_path_bytes_dict_array_and_tensor_give_the_same_pixels(noise, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise).save(path)
    sources = [path, str(path), path.read_bytes(), memoryview(path.read_bytes()), noise, torch.from_numpy(noise)]
    sources += [{"path": str(path), "bytes": None}, {"path": "elsewhere.png", "bytes": path.read_bytes()}]
    sources += [Image.open(path), noise.astype(np.uint16) * 257, noise / 255, torch.from_numpy(noise).bfloat16() / 255]
    for position, source in enumerate(sources):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == (10, 20), position
        tolerance = 1 if position == len(sources) - 1 else 0  # bfloat16 has 8 bits
        assert np.abs(np.asarray(image).astype(int) - noise).max() <= tolerance, position


def test_rgb_image_passes_through_and_a_second_opening_changes_nothing(noise):
    image = Image.fromarray(noise)
    assert open_image(image) is image
    rotated = open_image(encoded(image, "JPEG", exif=exif(6)))
    assert open_image(rotated) is rotated


@pytest.mark.parametrize("array", [np.full((4, 3), 7, np.uint8), np.full((4, 3, 1), 7, np.uint8)])
def test_gray_array(array):
    image = open_image(array)
    assert image.size == (3, 4) and pixel(image) == (7, 7, 7)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_modes_without_transparency(mode):
    red = Image.new("RGB", (3, 4), (255, 0, 0))
    source = red.convert(mode)
    expected = (76, 76, 76) if mode == "L" else source.convert("RGB").getpixel((0, 0))
    assert pixel(open_image(source)) == expected
    assert open_image(source).size == (3, 4)


def test_cmyk_jpeg():
    image = open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = pixel(image)
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("mode, clear, solid", [("RGBA", (9, 9, 9, 0), (9, 8, 7, 255)), ("LA", (9, 0), (9, 255))])
def test_transparency_is_composited_on_the_background(mode, clear, solid):
    source = Image.new(mode, (2, 1), clear)
    source.putpixel((1, 0), solid)
    for opened in (open_image(source), open_image(encoded(source, "PNG"))):
        assert pixel(opened) == BACKGROUND
        assert pixel(opened, 1) == ((9, 8, 7) if mode == "RGBA" else (9, 9, 9))


def test_half_transparency_blends():
    assert pixel(open_image(Image.new("RGBA", (1, 1), (228, 128, 28, 128)))) == pytest.approx((178, 128, 78), abs=1)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_transparent_palette_entry_and_color_key(mode):
    source = Image.new("RGB", (2, 1), (255, 255, 255))
    source.putpixel((1, 0), (0, 0, 0))
    source = source.convert(mode)
    key = (255, 255, 255) if mode == "RGB" else source.getpixel((0, 0))
    opened = open_image(encoded(source, "PNG", transparency=key))
    assert pixel(opened) == BACKGROUND and pixel(opened, 1) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    opened = open_image(encoded(Image.fromarray(values), kind))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(opened)[0, :, 2].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_image_in_memory():
    values = np.array([[0, 65535]], np.uint16)
    assert np.asarray(open_image(Image.fromarray(values)))[0, :, 0].tolist() == [0, 255]


def test_integer_image_without_a_stated_range_is_refused():
    with pytest.raises(ValueError, match="mode 'I' with values in .0, 200.; expected a 16-bit file"):
        open_image(Image.fromarray(np.array([[0, 200]], np.int32)))


def test_float_image_follows_the_array_rule():
    assert pixel(open_image(Image.fromarray(np.ones((2, 2), np.float32)))) == (255, 255, 255)
    with pytest.raises(ValueError, match=r"floats in \[0, 200\]"):
        open_image(Image.fromarray(np.array([[0, 200]], np.float32)))


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, noise):
    upright = Image.fromarray(noise)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    data = encoded(stored, "PNG", exif=exif(orientation))
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.array_equal(np.asarray(open_image(source)), noise)


def test_exif_orientation_of_a_sixteen_bit_image():
    data = encoded(Image.fromarray(np.array([[0, 65535]], np.uint16)), "PNG", exif=exif(6))
    assert np.asarray(open_image(data))[:, 0, 0].tolist() == [0, 255]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture(noise):
    data = encoded(Image.fromarray(noise), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(open_image(data)), noise)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    red, green, blue = pixel(open_image(data))
    assert red > 230 and green < 20 and blue < 20


def test_one_pixel():
    assert open_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_file_is_named(kind, share, tmp_path, noise):
    data = encoded(Image.fromarray(np.tile(noise, (8, 8, 1))), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    for source in (path, str(path), {"path": str(path), "bytes": None}):
        with pytest.raises(ValueError, match=r"cut\.img.*(truncated|cannot be read)"):
            open_image(source)
    with pytest.raises(ValueError, match=f"image given as {len(path.read_bytes())} bytes"):
        open_image(path.read_bytes())


def test_truncated_lazily_opened_pil_image_is_named(tmp_path, noise):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(Image.fromarray(np.tile(noise, (8, 8, 1))), "JPEG")[:2000])
    with pytest.raises(ValueError, match=r"cut\.jpg.*truncated"):
        open_image(Image.open(path))


def test_file_that_is_no_image(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    for name in ("notes.jpg", "empty.jpg"):
        with pytest.raises(ValueError, match=f"{name}.*cannot be read as an image"):
            open_image(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        open_image(tmp_path / "absent.jpg")
    with pytest.raises(ValueError, match="neither 'path' nor 'bytes'"):
        open_image({"path": None, "bytes": None})


@pytest.mark.parametrize(
    "start",
    ["<!DOCTYPE html>", "\n  <html lang='en'>", "\ufeff<!doctype HTML>", "<HTML>", "<?xml version='1.0'?><Error/>"],
)
def test_web_page_under_the_name_of_an_image(start, tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text(start + "<body>404 Not Found</body>" * 40, encoding="utf-8")
    for source in (path, path.read_bytes(), {"path": str(path), "bytes": None}):
        name = "image given as" if isinstance(source, bytes) else "page.jpg"
        with pytest.raises(ValueError, match=f"{name}.* is a web page, not an image .a download that failed"):
            open_image(source)


def test_open_images_keeps_the_order_and_names_what_it_cannot_open(noise, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_par_hf.utils.default_threads", lambda: 3)
    sources = []
    for index in range(20):
        path = tmp_path / f"{index}.png"
        Image.fromarray(noise + np.uint8(index)).save(path)
        sources.append((path, str(path), path.read_bytes(), Image.open(path), np.asarray(Image.open(path)))[index % 5])
    for index, image in enumerate(open_images(sources)):
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), noise + np.uint8(index)), index
    (tmp_path / "6.png").write_bytes(b"")
    with pytest.raises(ValueError, match="6.png.*cannot be read as an image"):
        open_images(sources)
    assert open_images([]) == []


def test_open_images_decodes_one_lazy_picture_once(noise, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_par_hf.utils.default_threads", lambda: 4)
    Image.fromarray(np.tile(noise, (20, 20, 1))).save(tmp_path / "a.jpg")
    for _ in range(20):
        images = open_images([Image.open(tmp_path / "a.jpg")] * 16)
        assert all(image is images[0] for image in images)


def test_what_is_an_image_file(noise):
    for source in ("a.jpg", Path("a.jpg"), b"data", {"path": "a.jpg"}, {"path": None, "bytes": b"data"}):
        assert is_image_file(source)
    for source in (noise, torch.from_numpy(noise), Image.fromarray(noise), bytearray(b"data"), 3, None):
        assert not is_image_file(source)


def png_that_claims(width, height):
    """A PNG file that states a size and holds no pixels: whoever decodes it fails in another way."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_decompression_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_claims(12_000, 12_000))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="12000x12000.*max_pixels=89478485"),
    ):
        open_image(path)
    path.write_bytes(png_that_claims(20_000, 20_000))  # above the limit at which Pillow itself refuses
    with pytest.raises(ValueError, match="bomb.png.*400000000 pixels"):
        open_image(path)


def test_max_pixels():
    source = Image.new("RGB", (10, 10))
    with pytest.raises(ValueError, match="10x10 = 100 pixels; expected at most max_pixels=99"):
        open_image(source, max_pixels=99)
    assert open_image(source, max_pixels=100).size == (10, 10)
    assert open_image(source, max_pixels=None).size == (10, 10)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((4, 4, 3), np.nan), "NaN or infinity"),
        (np.full((4, 4, 3), np.inf), "NaN or infinity"),
        (np.full((4, 4, 3), 128.0), r"floats in \[128, 128\]; expected \[0, 1\]"),
        (np.full((4, 4, 3), -0.1), r"floats in \[-0.1"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64; expected uint8"),
        (np.zeros((3, 20, 10), np.uint8), r"channels-first: pass image.transpose\(1, 2, 0\)"),
        (torch.zeros(3, 20, 10), r"channels-first.*image.permute\(1, 2, 0\)"),
        (np.zeros((20, 10, 2), np.uint8), "expected 1, 3 or 4 channels last"),
        (np.zeros((2, 20, 10, 3), np.uint8), "expected one image"),
        (np.zeros((0, 10, 3), np.uint8), "expected one image"),
        (np.zeros(3, np.uint8), "expected one image"),
    ],
)
def test_bad_arrays(array, message):
    with pytest.raises(ValueError, match=message):
        open_image(array)


@pytest.mark.parametrize("source", [None, 3, [[1, 2]], object()])
def test_unknown_kind(source):
    with pytest.raises(TypeError, match=f"image is a {type(source).__name__}; expected a path"):
        open_image(source)


def test_array_is_not_aliased(noise):
    image = open_image(noise)
    before = np.asarray(image).copy()
    noise[:] = 0
    assert np.array_equal(np.asarray(image), before)


def test_needs_no_torch():
    # A bare parent stands for the package, whose own __init__ registers with transformers.
    code = (
        "import sys, types\nparent = sys.modules['vlm_par_hf'] = types.ModuleType('vlm_par_hf')\n"
        "parent.__path__ = [sys.argv[1]]\nimport vlm_par_hf.images\nsys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(Path(vlm_par_hf.__file__).parent)]
    assert subprocess.run(command).returncode == 0


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "ICO", "TGA", "SGI"])
def test_other_formats_are_not_tried(kind, noise):
    """EPS would start Ghostscript; each format is one more parser that a file can choose."""
    with pytest.raises(ValueError, match="it is in none of the formats AVIF, BMP, GIF, JPEG"):
        open_image(encoded(Image.fromarray(noise), kind))


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_format_is_read(kind, noise, tmp_path):
    try:
        data = encoded(Image.fromarray(noise), kind)
    except OSError:
        pytest.skip(f"this Pillow writes no {kind}")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(open_image(data)), expected)
    assert all(
        Image.registered_extensions()[suffix] in (kind, "MPO") for suffix in IMAGE_FORMATS[kind] if suffix != ".pfm"
    )
    assert set(IMAGE_FORMATS[kind]) <= set(IMAGE_SUFFIXES)


def test_only_regular_files_are_opened(tmp_path):
    """A pipe that nobody writes to would be waited for, and /dev/zero read, without end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        for source in (tmp_path / name, {"path": str(tmp_path / name), "bytes": None}):
            with pytest.raises(ValueError, match=f"{name}' is no regular file"):
                open_image(source)


def test_a_file_that_becomes_another_while_it_is_opened(tmp_path, monkeypatch, noise):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(noise), "PNG"))
    status = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(opening.os, "stat", lambda name: status)
    with pytest.raises(ValueError, match="a.png' is no regular file"):
        open_image(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(opening.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="a.png' has 536870913 bytes; expected at most 536870912"):
        open_image(tmp_path / "a.png")


def test_base64_text_and_data_urls(noise, tmp_path, monkeypatch):
    data = encoded(Image.fromarray(noise), "PNG")
    text = base64.b64encode(data).decode()
    broken = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for source in (text, broken + "\n", f"data:image/png;base64,{text}", f"DATA:image/png;name=a;BASE64,{text}"):
        assert np.array_equal(np.asarray(open_image(source)), noise)
    monkeypatch.chdir(tmp_path)
    name = "iVBORw0KGgo" + "a" * 40  # a file may be called like that
    Image.new("RGB", (3, 2)).save(tmp_path / name, "PNG")
    assert open_image(name).size == (3, 2)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            base64.b64encode(b"no image at all" * 999).decode(),
            "a text of 19980 characters, which is not that of an image",
        ),
        ("x.jpg" * 5000, "a text of 25000 characters, which is neither a path nor base64"),
        ("a\0b.jpg", "a text of 7 characters, which is neither"),
        ("data:image/png;base64,@@@@", "is not the base64 text of an image file"),
        ("data:text/html,<p>", "is a data URL of another form; expected data:image/...;base64,"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 5000).decode(), "image given as base64 text of 6680 char"),
        ("https://example.org/a.jpg?token=abc", r"a.jpg\?token=\*\*\*' is a URL, which is not read here"),
        ("x" * 3000 + ".jpg", "cannot be opened: File name too long"),
    ],
)
def test_texts_that_are_refused_in_few_words(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_image(text)
    assert len(str(caught.value)) < 500 and "abc" not in str(caught.value)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(orientation, monkeypatch):
    monkeypatch.setattr(opening, "_LARGE_PERSON_PIXELS", 10_000)
    pixels = np.zeros((300, 401, 3), np.uint8)
    pixels[:, 200:] = (250, 120, 10)
    upright = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}[orientation]
    image, full_size = open_with_size(encoded(Image.fromarray(pixels), "JPEG", exif=exif(orientation), quality=95))
    assert full_size == (upright.shape[1], upright.shape[0]) and image.size == (
        -(-full_size[0] // 4),
        -(-full_size[1] // 4),
    )
    reference = np.asarray(Image.fromarray(np.ascontiguousarray(upright)).resize(image.size, Image.Resampling.BOX))
    assert np.abs(np.asarray(image).astype(int) - reference).mean() < 3
    assert open_with_size(encoded(Image.fromarray(pixels), "PNG")).image.size == (401, 300)
    # Where people are cut out of it, more of the picture is kept.
    whole = encoded(Image.fromarray(pixels), "JPEG")
    assert open_with_size(whole, one_person=False).image.size == (401, 300)


def test_a_phone_photograph_passes_and_a_bomb_does_not(monkeypatch):
    """Pillow's own limit would refuse 200 megapixels, although a JPEG need not be decoded at that size."""
    monkeypatch.setattr(opening, "_MAX_JPEG_PIXELS", 3_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    monkeypatch.setattr(opening, "_LARGE_PERSON_PIXELS", 500_000)
    image, full_size = open_with_size(encoded(Image.new("RGB", (2000, 1000), (9, 90, 200)), "JPEG"))
    assert image.size == (1000, 500) and full_size == (2000, 1000)
    with pytest.raises(ValueError, match="4000x1000 = 4000000 pixels; expected at most 3000000 of a JPEG"):
        open_image(encoded(Image.new("RGB", (4000, 1000)), "JPEG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="expected at most 2 . PIL.Image.MAX_IMAGE_PIXELS = 2000"):
        open_image(encoded(Image.new("RGB", (2000, 1000)), "JPEG"))


def test_the_budget_counts_bytes():
    """A picture of another mode lies in memory beside the RGB one."""
    assert open_image(Image.new("L", (10, 8)), max_pixels=100).size == (10, 8)
    with pytest.raises(ValueError, match="of mode L, 5 bytes each; expected at most max_pixels=100 of 4 bytes"):
        open_image(Image.new("L", (10, 9)), max_pixels=100)
    with pytest.raises(ValueError, match="of mode RGBA, 8 bytes each"):
        open_image(Image.new("RGBA", (10, 6)), max_pixels=100)


def test_a_tiff_of_32_bits_does_not_say_its_range():
    with pytest.raises(ValueError, match="mode 'I' with values in .0, 200.; expected a 16-bit file"):
        open_image(encoded(Image.fromarray(np.array([[0, 200]], np.int32)), "TIFF"))


def test_transparent_grey_of_16_bits():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    opened = open_image(encoded(Image.fromarray(values), "PNG", transparency=257))
    assert np.asarray(opened)[0].tolist() == [[0] * 3, list(BACKGROUND), [128] * 3, [255] * 3]


def test_arrays_of_another_byte_order_and_masked_ones(noise):
    assert np.array_equal(np.asarray(open_image((noise.astype(">u2") * 257).astype(">u2"))), noise)
    assert np.array_equal(np.asarray(open_image((noise / 255).astype(">f4"))), noise)
    with pytest.raises(ValueError, match="has masked pixels"):
        open_image(np.ma.masked_less(noise, 9))
    for tensor in (
        torch.zeros(3, 4, dtype=torch.complex64),
        torch.zeros(3, 4).to_sparse(),
        torch.zeros(3, 4, device="meta"),
    ):
        with pytest.raises(ValueError, match="image .*expected"):
            open_image(tensor)


def test_what_is_one_image_and_what_is_a_container(noise):
    one = (noise, "a.jpg", Path("a.jpg"), b"", bytearray(), Image.fromarray(noise), torch.zeros(2, 2), {"path": "a"})
    assert all(map(is_one_image, one))
    several = (
        ["a.jpg"],
        ("a.jpg",),
        np.array(["a.jpg"]),
        np.array([noise, None], object),
        iter(["a"]),
        {"a": 1}.values(),
    )
    assert not any(map(is_one_image, several))
    assert [image.size for image in open_images(np.array([noise, noise[:5]], object))] == [(10, 20), (10, 5)]
    with pytest.raises(TypeError, match="images is a set, which has no order"):
        open_images({"a.jpg"})


MEMORY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from vlm_par_hf.images.opening import open_image
with ThreadPoolExecutor(8) as pool:
    sizes = {image.size for image in pool.map(open_image, [sys.argv[1]] * 8)}
# Not `ru_maxrss`, which starts with the peak of the process that started this one.
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(*sizes, int(peak.split()[1]) // 1024, sep=";")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4032, 3024), (1512, 2016)),
        ((6000, 4000), (2000, 3000)),
        ((8160, 6120), (1530, 2040)),
        ((16320, 12240), (1530, 2040)),
    ],
)
def test_eight_phone_photographs_at_once_stay_below_a_gigabyte(tmp_path, monkeypatch, size, expected):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("RGB", size, (9, 90, 200)).save(tmp_path / "photograph.jpg", exif=exif(6))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "photograph.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, peak = done.stdout.strip().split(";")
    assert size == str(expected) and int(peak) < 1024, peak
