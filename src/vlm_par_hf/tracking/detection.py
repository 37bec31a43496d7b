"""Where people are in a frame: a detector of transformers, one in an OpenVINO file, or boxes that a file holds."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.export.exported import openvino_core
from vlm_par_hf.inference.pictures import detect_people
from vlm_par_hf.inference.track_files import TRACK_SUFFIXES, TrackFile, read_track_file
from vlm_par_hf.inference.videos import Video, VideoFrame
from vlm_par_hf.output_folders import sha256_of_file
from vlm_par_hf.utils import shorten


__all__ = ["Detector", "FileDetector", "OpenVinoDetector", "TransformersDetector", "is_file_of_boxes", "open_file"]

OPENVINO_SUFFIX = ".xml"


class Detector(ABC):
    """Finds the people of a frame.

    Attributes:
        tracks: a file that says which boxes are one person; None: a tracker has to find out.
        digest: of what decides the answers, for the record of a run.
    """

    tracks: TrackFile | None = None
    digest: str

    @abstractmethod
    def find(self, frame: VideoFrame) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float64 `(N, 4)`, x0, y0, x1, y1 in pixels of the frame, and their scores `(N,)`."""


class FileDetector(Detector):
    """The boxes of a track file."""

    def __init__(self, path: str | os.PathLike, video: Video, first_frame: int = 1):
        self.file = read_track_file(path, first_frame=first_frame, num_frames=video.num_frames)
        self.tracks = None if self.file.ids is None else self.file
        self.digest = sha256_of_file(Path(path))

    def find(self, frame: VideoFrame) -> tuple[np.ndarray, np.ndarray]:
        rows = self.file.of(frame.index)
        return self.file.boxes[rows], self.file.scores[rows]


class OpenVinoDetector(Detector):
    """A network with the output of SSD detectors, `(1, 1, N, 7)`: image, label, score, x0, y0, x1, y1 as shares of the
    picture, as those of Open Model Zoo have it. It gets BGR pixels from 0 to 255, as they do.

    Args:
        path: the `.xml` file; the `.bin` file lies beside it.
        label: number of people's label; None: the only one there is.
        threshold: the lowest score.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be read, or the network is of another kind.
    """

    def __init__(self, path: str | os.PathLike, *, label: int | None = None, threshold: float = 0.1):
        path = Path(path)
        for needed in (path, path.with_suffix(".bin")):
            if not needed.is_file():
                raise ParFileNotFoundError(f"detector={str(path)!r}: there is no file {str(needed)!r}")
        core = openvino_core()
        try:
            model = core.read_model(str(path))
        except RuntimeError as error:
            raise ParValueError(f"detector={str(path)!r} cannot be read by OpenVINO: {error}") from error
        inputs = [one.get_partial_shape() for one in model.inputs]
        outputs = [one.get_partial_shape() for one in model.outputs]
        is_ssd = len(outputs) == 1 and len(outputs[0]) == 4 and str(outputs[0][3]) == "7"
        if len(inputs) != 1 or not inputs[0].is_static or len(inputs[0]) != 4 or not is_ssd:
            raise ParValueError(
                f"detector={str(path)!r} takes {', '.join(map(str, inputs))} and gives "
                f"{', '.join(map(str, outputs))}, expected one picture of a fixed size and detections (1, 1, N, 7)"
            )
        self._label, self._threshold = label, threshold
        _, _, height, width = inputs[0].to_shape()
        self._size = (width, height)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._run = core.compile_model(model, "CPU", settings).create_infer_request()
        self.digest = sha256_of_file(path) + sha256_of_file(path.with_suffix(".bin"))

    def find(self, frame: VideoFrame) -> tuple[np.ndarray, np.ndarray]:
        pixels = frame.resized(self._size, "bgr24").transpose(2, 0, 1)[None]
        self._run.infer([np.ascontiguousarray(pixels, dtype=np.float32)])
        rows = self._run.get_output_tensor().data[0, 0]
        rows = rows[: int(np.argmax(rows[:, 0] < 0))] if (rows[:, 0] < 0).any() else rows
        labels = np.unique(rows[rows[:, 2] >= self._threshold, 1])
        if self._label is None and len(labels) > 1:
            shown = ", ".join(f"{one:g}" for one in labels)
            raise ParValueError(
                f"the detector finds things of the labels {shown}, and its file has no names for them: pass the "
                "number of people's (detector_label=, --detector-label)"
            )
        wanted = rows[:, 2] >= self._threshold
        if self._label is not None:
            wanted &= rows[:, 1] == self._label
        width, height = frame.size
        found = rows[wanted].astype(np.float64)
        boxes = found[:, 3:7] * (width, height, width, height)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return boxes[solid], found[solid, 2]


class TransformersDetector(Detector):
    """A pipeline of transformers' task `object-detection`, or a function that is called as it is.

    Args:
        find: as `detector` of the pipeline.
        label: of people.
        threshold: the lowest score.
    """

    digest = ""  # that of its weights is part of `Annotator.fingerprint`

    def __init__(self, find: Callable[..., Any], *, label: str = "person", threshold: float = 0.1):
        self._find, self._label, self._threshold = find, label, threshold

    def find(self, frame: VideoFrame) -> tuple[np.ndarray, np.ndarray]:
        boxes, scores = detect_people(
            self._find, Image.fromarray(frame.pixels), frame.size, label=self._label, threshold=self._threshold,
            where=f"frame {frame.index}",
        )  # fmt: skip
        return np.array([one.given for one in boxes], np.float64).reshape(-1, 4), np.array(scores, np.float64)


def is_file_of_boxes(detector: Any) -> bool:
    """Whether `--detector` names a track file or an OpenVINO file, and no model of transformers."""
    return _suffix(detector) in (*TRACK_SUFFIXES, OPENVINO_SUFFIX)


def open_file(
    path: str | os.PathLike,
    video: Video,
    *,
    label: str | int | None = None,
    threshold: float = 0.1,
    first_frame: int = 1,
) -> Detector:
    """The detector in a file.

    Args:
        path: a track file (`.txt`, `.csv`) or an OpenVINO file (`.xml`).
        video: that it is for.
        label: number of people's label in an OpenVINO file; None: the only one there is.
        threshold: the lowest score, for an OpenVINO file.
        first_frame: number of the first frame in a track file.

    Raises:
        ValueError: `label` is no number.
        What the detectors raise.
    """
    if _suffix(path) in TRACK_SUFFIXES:
        return FileDetector(path, video, first_frame)
    if label is not None and not str(label).isdecimal():
        raise ParValueError(
            f"detector_label is {shorten(label)}, expected a number: an OpenVINO file has no names of labels"
        )
    return OpenVinoDetector(path, label=None if label is None else int(label), threshold=threshold)


def _suffix(detector: Any) -> str:
    is_path = isinstance(detector, (str, os.PathLike))
    return os.path.splitext(os.fspath(detector))[1].lower() if is_path else ""
