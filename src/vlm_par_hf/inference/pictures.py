"""Pictures of a call: taken one by one, opened by threads, cut into people, and put into batches."""

import os
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from vlm_par_hf.images.opening import is_image_file, open_image
from vlm_par_hf.upstream import KeyDataset

from .boxes import check_boxes, check_detector_label
from .predicting import collate_inputs, read_ahead


__all__ = [
    "ONE_IMAGE",
    "TASK",
    "Person",
    "Picture",
    "Pictures",
    "Results",
    "fill_batches",
    "open_picture",
]

TASK = "pedestrian-attributes"
logger = logging.get_logger(__name__)
ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, torch.Tensor, Mapping)
# No crop or street picture comes near; a wrong URL may well.
_MAX_DOWNLOAD_BYTES = 256 * 1024 * 1024


@dataclass
class Picture:
    """A picture that was read, and the answers collected for it."""

    where: str | None  # its index and name, for errors
    image: Image.Image | None
    features: dict[str, torch.Tensor] | None = None  # of the whole picture, when it is one person
    boxes: list[tuple[int, int, int, int]] | None = None
    scores: list[float] | None = None
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    def answer(self, slot: int, result: dict[str, Any]) -> None:
        if self.boxes is not None:
            found = {"box": list(self.boxes[slot])}
            if self.scores is not None:
                found["score"] = self.scores[slot]
            result = {**found, **result}
        self.answers[slot] = result

    @property
    def is_answered(self) -> bool:
        return len(self.answers) == (1 if self.boxes is None else len(self.boxes))

    @property
    def result(self) -> dict[str, Any] | list[dict[str, Any]]:
        return self.answers[0] if self.boxes is None else [self.answers[slot] for slot in range(len(self.boxes))]


@dataclass
class Person:
    """One person of a picture; without features it stands for a picture in which there is nobody."""

    picture: Picture
    slot: int = 0
    crop: Image.Image | None = None
    features: dict[str, torch.Tensor] | None = None


class Pictures:
    """The inputs of a call: items taken one by one in the caller's thread, opened and prepared by threads."""

    def __init__(
        self,
        inputs,
        *,
        processor,
        single: bool,
        threads: int = 0,
        batch_size: int = 1,
        keep_crops: bool = False,
        boxes=None,
        detector=None,
        detector_label: str = "person",
        detector_threshold: float = 0.5,
        timeout: float = 30.0,
    ):
        self.inputs, self.boxes, self.processor, self.single, self.timeout = inputs, boxes, processor, single, timeout
        self.threads, self.batch_size, self.keep_crops = threads, batch_size, keep_crops
        self.detector = detector if boxes is None else None
        self.detector_label, self.detector_threshold = detector_label, detector_threshold
        self.is_sized = isinstance(inputs, Sized) and hasattr(inputs, "__getitem__")
        if self.detector is not None:
            check_detector_label(self.detector, detector_label)
        if boxes is None:
            return
        if not isinstance(boxes, Iterable):
            raise TypeError(f"boxes is {boxes!r}, expected a list of boxes [x0, y0, x1, y1]")
        if self.is_sized:
            self.boxes = boxes if isinstance(boxes, Sized) else list(boxes)
            if len(self.boxes) != len(inputs):
                raise ValueError(
                    f"boxes has {len(self.boxes)} entries for {len(inputs)} pictures, expected one list for each"
                )

    def read(self) -> Iterator[Person]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix=TASK) if self.threads else None
        ahead = self.batch_size + self.threads
        try:
            for picture in read_ahead(self._openings(), pool, ahead):
                if self.detector is not None and picture.boxes is None:
                    with self._naming(picture.where):
                        self._detect(picture)
                image, picture.image = picture.image, None
                if picture.boxes is None:
                    features, picture.features = picture.features, None
                    yield Person(picture, 0, image, features)
                elif not picture.boxes:
                    yield Person(picture)
                else:
                    people = ((1, partial(self._person, picture, slot, image)) for slot in range(len(picture.boxes)))
                    yield from read_ahead(people, pool, ahead)
        finally:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _openings(self) -> Iterator[tuple[int, Callable[[], Picture]]]:
        """What opens each picture, with its weight among what is read ahead: a picture of many people is a batch."""
        boxes = iter(self.boxes) if self.boxes is not None else None
        for index, item in enumerate(self._items()):
            where = None if self.single else f"item {index}{_describe(item)}"
            try:
                own = next(boxes) if boxes is not None else None
            except StopIteration:
                raise ValueError(f"item {index}: boxes ended before the pictures, expected one list each") from None
            with self._naming(where):
                if isinstance(item, Mapping):
                    item, own = _unpack_row(item, own)
                source = self._safe_to_keep(item)
            one_person = own is None and self.detector is None
            yield 1 if one_person else self.batch_size, partial(self._open, where, source, own)

    def _items(self) -> Iterator[Any]:
        if not self.is_sized:
            yield from self.inputs
            return
        inputs = _undecoded(self.inputs)
        for index in range(len(inputs)):
            with self._naming(None if self.single else f"item {index}"):
                item = inputs[index]  # a data set that decodes its images may fail here
            yield item

    def _safe_to_keep(self, source: Any) -> Any:
        """A source that stays what it is while a thread waits to open it: the caller may go on with his objects."""
        if hasattr(source, "read") and not isinstance(source, Image.Image):
            return source.read()
        if is_image_file(source):
            return source
        image = open_image(source)
        return image.copy() if image is source and self.threads else image

    def _open(self, where: str | None, source: Any, boxes: Any) -> Picture:
        with self._naming(where):
            image = open_picture(source, self.timeout)
            if boxes is not None:
                return Picture(where, image, boxes=check_boxes(boxes, image.size))
            if self.detector is not None:  # runs in the caller's thread, on its own device
                return Picture(where, image)
            return Picture(where, image if self.keep_crops else None, features=self._features(image))

    def _person(self, picture: Picture, slot: int, image: Image.Image) -> Person:
        with self._naming(picture.where):
            crop = image.crop(picture.boxes[slot])
            return Person(picture, slot, crop if self.keep_crops else None, self._features(crop))

    def _features(self, image: Image.Image) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=[image], return_tensors="pt"))

    def _detect(self, picture: Picture) -> None:
        found = self.detector(picture.image, threshold=self.detector_threshold)
        picture.boxes, picture.scores = [], []
        for detection in found:
            try:
                label, score, box = detection["label"], float(detection["score"]), detection["box"]
            except (TypeError, KeyError):
                raise ValueError(
                    f"detector returned {detection!r:.200}, expected a dict with label, score and box"
                ) from None
            if str(label).lower() != self.detector_label.lower() or score < self.detector_threshold:
                continue
            try:
                (box,) = check_boxes([box], picture.image.size)
            except ValueError as error:
                # A detector that rounds to whole pixels may leave nothing of a far person; that is no user's mistake.
                logger.info("A detection was left out: %s", error)
                continue
            picture.boxes.append(box)
            picture.scores.append(score)

    @contextmanager
    def _naming(self, where: str | None):
        """Errors of one item among several say which one it is."""
        try:
            yield
        except Exception as error:
            if where is None:
                raise
            kinds = (FileNotFoundError, OSError, TypeError, ValueError)
            kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
            raise kind(f"{where}: {error}") from error


def fill_batches(
    people: Iterator[Person], batch_size: int, waiting: deque[Picture]
) -> Iterator[tuple[list[Person], dict[str, torch.Tensor] | None]]:
    """Batches of people that run across pictures, with their inputs joined.

    Args:
        people: in order; one without features stands for a picture in which there is nobody.
        batch_size: people per batch.
        waiting: receives each picture when its first person comes.

    Yields:
        The people and their inputs. An empty batch after each picture without people: it may be answered at once.

    What was read before a bad picture is handed out before its error is raised.
    """
    batch: list[Person] = []
    failure = None
    while True:
        try:
            person = next(people)
        except StopIteration:
            person = None
        except Exception as error:
            person, failure = None, error
        if person is not None:
            if not waiting or waiting[-1] is not person.picture:
                waiting.append(person.picture)
            if person.features is not None:
                batch.append(person)
        # Pictures in which nobody was found fill no batch, and must not pile up behind one that waits.
        if batch and (person is None or len(batch) == batch_size or len(waiting) >= 4 * batch_size):
            yield batch, collate_inputs([one.features for one in batch])
            batch = []
        elif person is not None and person.features is None:
            yield [], None
        if failure is not None:
            raise failure
        if person is None:
            return


class Results(Iterator):
    """The results of a stream, with a length where the inputs have one (a progress bar asks for it)."""

    def __init__(self, results: Iterator, length: int | None):
        self._results, self._length = results, length

    def __next__(self):
        return next(self._results)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the inputs have no length, so their results have none")
        return self._length


def _undecoded(inputs: Any) -> Any:
    """A `datasets.Dataset` of images, or one column of it, as paths and bytes: threads decode those."""
    if isinstance(inputs, (list, tuple)):
        return inputs
    from vlm_par_hf.data.carried import undecoded

    if isinstance(inputs, KeyDataset):
        return KeyDataset(undecoded(inputs.dataset, inputs.key), inputs.key)
    return undecoded(inputs)


def _describe(item: Any) -> str:
    if isinstance(item, Mapping):
        item = item.get("image")
    if isinstance(item, (str, os.PathLike)):
        return f" ({os.fspath(item)!s:.200})"
    name = getattr(item, "filename", None) or getattr(item, "name", None)
    return f" ({name!s:.200})" if isinstance(name, (str, os.PathLike)) and name else ""


def _unpack_row(row: Mapping, boxes: Any) -> tuple[Any, Any]:
    if "image" not in row:
        if "bytes" in row or "path" in row:  # an image that a data set has not decoded
            return row, boxes
        keys = ", ".join(str(key) for key in list(row)[:8])
        raise ValueError(
            f"a dict with the keys {keys} was given, expected the key 'image' "
            "(of a dictionary of splits give one split; of a data set with other names use KeyDataset)"
        )
    if row.get("boxes") is not None:
        if boxes is not None:
            raise ValueError("boxes were given as an argument and in the dict, expected one of them")
        boxes = row["boxes"]
    return row["image"], boxes


def open_picture(source: Any, timeout: float) -> Image.Image:
    """Any kind of picture as upright RGB."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            request = urllib.request.Request(source, headers={"User-Agent": "vlm-par-hf"})
            with urllib.request.urlopen(request, timeout=timeout) as response:
                data = response.read(_MAX_DOWNLOAD_BYTES + 1)
        except OSError as error:
            raise ValueError(f"could not read {source}: {error}") from error
        if len(data) > _MAX_DOWNLOAD_BYTES:
            raise ValueError(f"{source} is larger than {_MAX_DOWNLOAD_BYTES} bytes, expected a picture")
        try:
            return open_image(data)
        except (OSError, ValueError) as error:
            raise ValueError(f"{source} holds no picture that can be read: {error}") from error
    if hasattr(source, "read") and not isinstance(source, Image.Image):
        source = source.read()
    return open_image(source)
