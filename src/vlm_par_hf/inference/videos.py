"""Video files, frame by frame: numbered, timed, upright, in little memory (PyAV, extra `video`)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.images.downloading import is_url
from vlm_par_hf.utils import require, shorten_text


__all__ = ["VIDEO_SUFFIXES", "Damage", "Video", "VideoFrame", "is_video_file"]

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".mpg", ".mpeg", ".h264", ".h265")
# Pictures in a planar format with chroma at half the size: what nearly all files hold. A person is cut out of the
# planes, and only that part becomes RGB.
_PLANAR = ("yuv420p", "yuvj420p")
_TEXT_ART = {"adf", "bin", "idf", "tty", "xbin"}  # formats in which FFmpeg takes any text file for a video of letters


def is_video_file(source: Any) -> bool:
    """Whether a source is a path that ends as video files do."""
    return isinstance(source, (str, os.PathLike)) and os.fspath(source).lower().endswith(VIDEO_SUFFIXES)


class Damage(NamedTuple):
    """Frames that a file should hold and that cannot be decoded."""

    first: int
    last: int  # included
    reason: str

    def __str__(self) -> str:
        frames = f"frame {self.first}" if self.first == self.last else f"frames {self.first} to {self.last}"
        return f"{frames}: {self.reason}"


class VideoFrame:
    """A decoded frame, upright. Pixels are converted when they are asked for.

    Attributes:
        index: its number in the order of presentation, from 0; frames that cannot be decoded count too.
        time: of its presentation in seconds, after that of the first frame.
        size: width and height. All frames of a video have that of the first one: others are scaled to it.
    """

    def __init__(self, frame: Any, index: int, time: float, quarters: int, size: tuple[int, int]):
        self.index, self.time, self.size, self._quarters = index, time, size, quarters
        stored = size if quarters % 2 == 0 else size[::-1]
        if (frame.width, frame.height) != stored:
            frame = frame.reformat(width=stored[0], height=stored[1])
        self._frame = frame
        even = stored[0] % 2 == 0 and stored[1] % 2 == 0
        self._has_planes = quarters == 0 and even and frame.format.name in _PLANAR

    @cached_property
    def pixels(self) -> np.ndarray:
        """RGB, uint8 `(height, width, 3)`."""
        return np.ascontiguousarray(np.rot90(self._frame.to_ndarray(format="rgb24"), self._quarters))

    def resized(self, size: tuple[int, int], order: str = "rgb24") -> np.ndarray:
        """The frame in another size, uint8 `(height, width, 3)`; `order` is `"rgb24"` or `"bgr24"`."""
        width, height = size if self._quarters % 2 == 0 else size[::-1]
        small = self._frame.reformat(width=width, height=height, format=order)
        return np.ascontiguousarray(np.rot90(small.to_ndarray(), self._quarters))

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """The part inside a box x0, y0, x1, y1 of whole pixels, which lies in the frame."""
        x0, y0, x1, y1 = box
        if not self._has_planes:
            return Image.fromarray(self.pixels[y0:y1, x0:x1])
        left, top, right, bottom = x0 - x0 % 2, y0 - y0 % 2, x1 + x1 % 2, y1 + y1 % 2
        luma = self._plane(0)[top:bottom, left:right]
        chroma = [self._plane(number)[top // 2 : bottom // 2, left // 2 : right // 2] for number in (1, 2)]
        rows = np.concatenate([plane.ravel() for plane in (luma, *chroma)]).reshape(-1, right - left)
        part = type(self._frame).from_ndarray(rows, format=self._frame.format.name)
        part.colorspace, part.color_range = self._frame.colorspace, self._frame.color_range
        return Image.fromarray(part.to_ndarray(format="rgb24")[y0 - top : y1 - top, x0 - left : x1 - left])

    def brightness(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """The brightness of the pixels inside a box, uint8 `(height, width)`, without converting any other."""
        x0, y0, x1, y1 = box
        return self._plane(0)[y0:y1, x0:x1] if self._has_planes else self.pixels[y0:y1, x0:x1, 1]

    def _plane(self, number: int) -> np.ndarray:
        plane = self._frame.planes[number]
        return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


class Video:
    """A video file.

    Opening it reads the file once, without decoding it, so that the number and time of each frame is known: also where
    the frame rate varies, and where frames cannot be decoded.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        num_frames: that the file holds.
        times: of the frames in seconds after the first, float64 `(num_frames,)`.
        size: width and height of the upright picture.
        damages: what could not be decoded; complete when `frames` has reached the end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video, has no picture (audio only), or no frame of it can be decoded.
        ImportError: the extra `video` is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        self._av = require("av", "video")
        if not isinstance(path, (str, os.PathLike)):
            raise ParTypeError(f"video is a {type(path).__name__}, expected the path of a file")
        self.path = Path(path)
        if is_url(path):
            raise ParValueError(f"video={shorten_text(os.fspath(path))!r} is a URL, expected a file of this machine")
        if not self.path.is_file():
            raise ParFileNotFoundError(f"video={shorten_text(str(path))!r}: there is no such file")
        self.damages: list[Damage] = []
        self._read_packets()
        first = next(self._decoded(0), None)
        if first is None:
            raise ParValueError(f"{self._name}: none of its {self.num_frames} frames can be decoded: it is damaged")
        frame, _ = first
        self._quarters = round(frame.rotation / 90) % 4
        size = (frame.width, frame.height)
        self.size = size if self._quarters % 2 == 0 else size[::-1]
        self.damages = [one for one in self.damages if one.first >= self.num_frames]

    @property
    def _name(self) -> str:
        return f"video {shorten_text(str(self.path))!r}"

    @property
    def rate(self) -> float:
        """Mean frames per second."""
        duration = self.times[-1] - self.times[0]
        return (self.num_frames - 1) / duration if duration > 0 else float(self._rate)

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """The container and its video stream."""
        try:
            # A playlist could name other files and addresses: nothing but this file is read.
            container = self._av.open(f"file:{self.path.absolute()}", options={"protocol_whitelist": "file"})
        except (self._av.FFmpegError, ValueError) as error:
            raise ParValueError(
                f"{self._name} cannot be opened: it is no video, or its end is missing ({_reason(error)})"
            ) from error
        with container:
            if container.format.name in _TEXT_ART:
                raise ParValueError(f"{self._name} cannot be opened: it is no video, but text")
            attached = self._av.stream.Disposition.attached_pic
            streams = [one for one in container.streams.video if not one.disposition & attached]
            if not streams:
                held = ", ".join(sorted({one.type for one in container.streams})) or "nothing"
                raise ParValueError(f"{self._name} holds no pictures (but {held}), expected a video")
            best = container.streams.best("video")
            stream = best if best in streams else streams[0]
            stream.thread_type = "SLICE"
            yield container, stream

    def _read_packets(self) -> None:
        with self._open() as (container, stream):
            base, self._rate = stream.time_base, stream.guessed_rate or stream.average_rate or 25
            stamps, declared, length = [], stream.frames, container.duration
            try:
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard:
                        stamps.append(packet.pts)
            except self._av.FFmpegError as error:
                self._note(len(stamps), len(stamps), f"the file ends or is damaged here ({_reason(error)})")
        if not stamps:
            raise ParValueError(f"{self._name} holds no frame, expected at least one")
        self.num_frames = len(stamps)
        # Bare streams (.h264) have no times; their frames are counted.
        self._stamps = None if None in stamps else np.sort(np.asarray(stamps, np.int64))
        if self._stamps is None:
            self.times = np.arange(self.num_frames) / float(self._rate)
        else:
            self.times = (self._stamps - self._stamps[0]) * float(base)
        if declared == 0 and length and self._stamps is not None:
            # Of files that do not say how many frames they have (Matroska), the duration says it well enough.
            rest = length / 1e6 - self.times[-1]
            declared = self.num_frames + round(rest * self.rate) - 1 if rest > max(1.0, 3 / self.rate) else 0
        if declared > self.num_frames:
            self._note(self.num_frames, declared - 1, f"the file ends before them, {declared} frames were expected")

    def frames(self, start: int = 0) -> Iterator[VideoFrame]:
        """Decodes the frames from number `start` on, in order; only one is in memory.

        Frames that cannot be decoded are left out and noted in `damages`.
        """
        expected = start
        for frame, index in self._decoded(start):
            if index > expected:
                self._note(expected, index - 1, "cannot be decoded, the file is damaged here")
            yield VideoFrame(frame, index, float(self.times[index]), self._quarters, self.size)
            expected = index + 1
        if expected < self.num_frames:
            self._note(expected, self.num_frames - 1, "cannot be decoded, the file is damaged here")

    def _note(self, first: int, last: int, reason: str) -> None:
        if all(one.first != first for one in self.damages):
            self.damages.append(Damage(first, last, reason))
            self.damages.sort()

    def _decoded(self, start: int) -> Iterator[tuple[Any, int]]:
        """Frames of PyAV and their numbers, in order, from `start` on."""
        with self._open() as (container, stream):
            reached = -1
            if start > 0 and self._stamps is not None:
                container.seek(int(self._stamps[start]), stream=stream, backward=True)
            elif self._stamps is None:
                reached = 0
            for frame in self._decode(container, stream):
                if self._stamps is None:
                    index, reached = reached, reached + 1
                else:
                    index = self._number(frame.pts)
                    if index is None or index <= reached:
                        continue  # of a damaged part: shown before, or at no time of its own
                    if reached < 0 < start < index:  # the index of the file led too far
                        break
                    reached = index
                if index >= start:
                    yield frame, index
            if start == 0 or reached >= start:
                return
        # Some containers cannot be entered near their end, or not at this frame: they are decoded from the beginning.
        with self._open() as (container, stream):
            for frame in self._decode(container, stream):
                index = self._number(frame.pts)
                if index is not None and index >= start:
                    start = index + 1
                    yield frame, index

    def _number(self, stamp: int | None) -> int | None:
        if stamp is None:
            return None
        index = int(np.searchsorted(self._stamps, stamp))
        return index if index < self.num_frames and self._stamps[index] == stamp else None

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, self._av.FFmpegError):
                break
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                continue  # those of this packet are missing, and those that build on them are what can be had
            yield from (one for one in frames if not one.is_corrupt)


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the path and the number."""
    text = str(getattr(error, "strerror", None) or error)
    return shorten_text(text.split(":")[0])
