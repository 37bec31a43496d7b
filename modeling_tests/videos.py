"""Small video files for tests, and the boxes of the people in them."""

from fractions import Fraction
from pathlib import Path

import numpy as np


SIZE = (160, 128)
_BLOCK = 16


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that says its number: black and white blocks in the upper rows, the lowest bit first."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    for bit in range(8):
        pixels[:_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 235 * (number >> bit & 1) + 10
    return pixels


def read_number(pixels: np.ndarray) -> int:
    """What `numbered` says, of a picture that was encoded and decoded."""
    middle = _BLOCK // 2
    return sum(int(pixels[middle, bit * _BLOCK + middle].mean() > 128) << bit for bit in range(8))


def write_video(
    path: Path, pictures: list[np.ndarray], *, rate: int = 10, stamps: list[int] | None = None, rotation: int = 0,
    codec: str = "libx264", gop: int = 5, **container: str,
) -> Path:  # fmt: skip
    """Writes pictures `(height, width, 3)` of one size as a video; `stamps` are their times in milliseconds."""
    import av

    base = Fraction(1, rate) if stamps is None else Fraction(1, 1000)
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        stream.options = {"preset": "ultrafast", "crf": "10", "g": str(gop)}
        if rotation:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number if stamps is None else stamps[number], base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_numbered(path: Path, count: int = 20, size: tuple[int, int] = SIZE, **options) -> Path:
    """A video whose frame n says n."""
    return write_video(path, [numbered(number, size) for number in range(count)], **options)


def damage_packet(path: Path, number: int) -> None:
    """Overwrites the data of a packet, in the order of presentation."""
    import av

    with av.open(str(path)) as file:
        packets = sorted(
            ((one.pts, one.pos, one.size) for one in file.demux(video=0) if one.size), key=lambda one: one[0]
        )
    _, position, size = packets[number]
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)


def walkers(count: int = 30, people: int = 2) -> tuple[list[np.ndarray], list[tuple[int, int, int, int, int, int]]]:
    """Frames in which coloured boxes move, and rows frame (from 1), id, x, y, width, height."""
    noise = np.random.default_rng(0).integers(0, 60, (people, 40, 20, 3), dtype=np.uint8)
    pictures, rows = [], []
    for index in range(count):
        picture = np.full((SIZE[1], SIZE[0], 3), 60, np.uint8)
        for person in range(people):
            x, y = 10 + 60 * person + index, 30 + 20 * person
            colour = np.array([60 + 60 * person, 120, 180 - 60 * person], np.uint8)
            picture[y : y + 40, x : x + 20] = noise[person] + colour
            rows.append((index + 1, person + 1, x, y, 20, 40))
        pictures.append(picture)
    return pictures, rows


def write_tracks(path: Path, rows: list[tuple], *more: float) -> Path:
    """Writes rows as a MOT file."""
    path.write_text("".join(",".join(map(str, (*row, *more))) + "\n" for row in rows))
    return path
