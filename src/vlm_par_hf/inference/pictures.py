"""The pictures of a call of the pipeline: taken one by one, opened by threads, cropped to people, put into batches."""

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

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.images.opening import is_image_file, open_image
from vlm_par_hf.upstream import KeyDataset

from .boxes import check_boxes, check_detector_label
from .predicting import collate_inputs, read_ahead


__all__ = ["ONE_IMAGE", "TASK", "Person", "Picture", "Pictures", "Results", "fill_batches", "open_picture"]

logger = logging.get_logger(__name__)

TASK = "pedestrian-attributes"
# Types of which one object is one picture, although some of them can be iterated.
ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, torch.Tensor, Mapping)
# Far above any crop or street picture, but a wrong URL may point to something larger.
_MAX_DOWNLOAD_BYTES = 256 * 1024 * 1024


@dataclass
class Picture:
    """A picture that was opened, and the answers collected for it."""

    where: str | None  # its index and name, for error messages; None if it is the only picture
    image: Image.Image | None
    inputs: dict[str, torch.Tensor] | None = None  # the model's inputs, if the whole picture is one person
    boxes: list[tuple[int, int, int, int]] | None = None  # of its people; None if the whole picture is one person
    scores: list[float] | None = None  # of the boxes, from a detector
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)  # by the position of the person among the boxes

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
    """One person of a picture; with inputs of None it stands for a picture without people."""

    picture: Picture
    slot: int = 0  # the position among the boxes of the picture
    crop: Image.Image | None = None
    inputs: dict[str, torch.Tensor] | None = None


class Pictures:
    """The pictures of a call, read as people.

    Args:
        items: what the caller gave: pictures or rows. They are taken one by one in the caller's thread.
        processor: makes the model's inputs of a picture.
        single: whether `items` is one picture; errors then need not say which one.
        threads: open pictures and prepare people ahead; 0: each when it is asked for.
        batch_size: people per forward; as many are prepared ahead.
        keep_crops: whether to keep the picture of each person, for overlays.
        boxes: a list of boxes for each picture; None: a detector finds the people, or each picture is one person.
        detector, detector_label, detector_threshold, timeout: as for the pipeline.

    Raises:
        TypeError: `boxes` is no list.
        ValueError: there are not as many lists of boxes as pictures, or the detector does not have its label.
    """

    def __init__(
        self,
        items,
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
        self.items, self.boxes, self.processor, self.single, self.timeout = items, boxes, processor, single, timeout
        self.threads, self.batch_size, self.keep_crops = threads, batch_size, keep_crops
        self.detector = detector if boxes is None else None
        self.detector_label, self.detector_threshold = detector_label, detector_threshold
        self.is_sized = isinstance(items, Sized) and hasattr(items, "__getitem__")
        if self.detector is not None:
            check_detector_label(self.detector, detector_label)
        if boxes is None:
            return
        if not isinstance(boxes, Iterable):
            raise ParTypeError(f"boxes is {boxes!r}, expected a list of boxes [x0, y0, x1, y1]")
        if self.is_sized:
            self.boxes = boxes if isinstance(boxes, Sized) else list(boxes)
            if len(self.boxes) != len(items):
                raise ParValueError(
                    f"boxes has {len(self.boxes)} entries for {len(items)} pictures, expected one list for each"
                )

    def read(self) -> Iterator[Person]:
        """The people of all pictures in order; a picture without people gives one `Person` with inputs of None."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix=TASK) if self.threads else None
        ahead = self.batch_size + self.threads
        try:
            for picture in read_ahead(self._tasks(), pool, ahead):
                if self.detector is not None and picture.boxes is None:
                    with self._prefix_errors(picture.where):
                        self._detect_people(picture)
                image, picture.image = picture.image, None
                if picture.boxes is None:
                    inputs, picture.inputs = picture.inputs, None
                    yield Person(picture, 0, image, inputs)
                elif not picture.boxes:
                    yield Person(picture)
                else:
                    people = (
                        (1, partial(self._crop_person, picture, slot, image)) for slot in range(len(picture.boxes))
                    )
                    yield from read_ahead(people, pool, ahead)
        finally:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _tasks(self) -> Iterator[tuple[int, Callable[[], Picture]]]:
        """A function that opens each picture, and its weight for `read_ahead`: one with many people fills a batch."""
        boxes = iter(self.boxes) if self.boxes is not None else None
        for index, item in enumerate(self._take_items()):
            where = None if self.single else f"item {index}{_describe_name(item)}"
            try:
                own = next(boxes) if boxes is not None else None
            except StopIteration:
                raise ParValueError(f"item {index}: boxes ended before the pictures, expected one list each") from None
            with self._prefix_errors(where):
                if isinstance(item, Mapping):
                    item, own = _unpack_row(item, own)
                source = self._independent_source(item)
            one_person = own is None and self.detector is None
            yield 1 if one_person else self.batch_size, partial(self._open, where, source, own)

    def _take_items(self) -> Iterator[Any]:
        if not self.is_sized:
            yield from self.items
            return
        items = _disable_decoding(self.items)
        for index in range(len(items)):
            with self._prefix_errors(None if self.single else f"item {index}"):
                item = items[index]  # a data set that decodes its images may fail here
            yield item

    def _independent_source(self, source: Any) -> Any:
        """A source that a thread can open later, even if the caller changes the original meanwhile."""
        if hasattr(source, "read") and not isinstance(source, Image.Image):
            return source.read()
        if is_image_file(source):
            return source
        image = open_image(source)
        return image.copy() if image is source and self.threads else image

    def _open(self, where: str | None, source: Any, boxes: Any) -> Picture:
        with self._prefix_errors(where):
            image = open_picture(source, self.timeout)
            if boxes is not None:
                return Picture(where, image, boxes=check_boxes(boxes, image.size))
            if self.detector is not None:  # `read` runs it in the caller's thread, because it may be a model on a GPU
                return Picture(where, image)
            return Picture(where, image if self.keep_crops else None, inputs=self._prepare(image))

    def _crop_person(self, picture: Picture, slot: int, image: Image.Image) -> Person:
        with self._prefix_errors(picture.where):
            crop = image.crop(picture.boxes[slot])
            return Person(picture, slot, crop if self.keep_crops else None, self._prepare(crop))

    def _prepare(self, image: Image.Image) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=[image], return_tensors="pt"))

    def _detect_people(self, picture: Picture) -> None:
        found = self.detector(picture.image, threshold=self.detector_threshold)
        picture.boxes, picture.scores = [], []
        for detection in found:
            try:
                label, score, box = detection["label"], float(detection["score"]), detection["box"]
            except (TypeError, KeyError):
                raise ParValueError(
                    f"detector returned {detection!r:.200}, expected a dict with label, score and box"
                ) from None
            if str(label).lower() != self.detector_label.lower() or score < self.detector_threshold:
                continue
            try:
                (box,) = check_boxes([box], picture.image.size)
            except ValueError as error:
                # A detector that rounds to whole pixels may give an empty box for a far person: no error of the user.
                logger.info("A detection was left out: %s", error)
                continue
            picture.boxes.append(box)
            picture.scores.append(score)

    @contextmanager
    def _prefix_errors(self, where: str | None):
        """Puts `where` in front of the message of an error, so that it says which of several items failed."""
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
        people: in order; one with inputs of None stands for a picture without people.
        batch_size: people per batch.
        waiting: each picture is appended to it when its first person comes.

    Yields:
        The people and their joined inputs; after a picture without people `([], None)`, so that the caller can answer
        it without waiting for a batch. People before a bad picture are yielded before its error is raised.
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
            if person.inputs is not None:
                batch.append(person)
        # Pictures without people fill no batch: many of them must not wait in memory behind a batch that is not full.
        if batch and (person is None or len(batch) == batch_size or len(waiting) >= 4 * batch_size):
            yield batch, collate_inputs([one.inputs for one in batch])
            batch = []
        elif person is not None and person.inputs is None:
            yield [], None
        if failure is not None:
            raise failure
        if person is None:
            return


class Results(Iterator):
    """An iterator over results that has a length if the inputs have one, which progress bars need."""

    def __init__(self, results: Iterator, length: int | None):
        self._results, self._length = results, length

    def __next__(self):
        return next(self._results)

    def __len__(self) -> int:
        if self._length is None:
            raise ParTypeError("the inputs have no length, so their results have none")
        return self._length


def _disable_decoding(items: Any) -> Any:
    """A `datasets.Dataset` of images, or one column of it, gives paths and bytes, so that threads decode them."""
    if isinstance(items, (list, tuple)):
        return items
    from vlm_par_hf.data.carried import disable_decoding

    if isinstance(items, KeyDataset):
        return KeyDataset(disable_decoding(items.dataset, items.key), items.key)
    return disable_decoding(items)


def _describe_name(item: Any) -> str:
    if isinstance(item, Mapping):
        item = item.get("image")
    if isinstance(item, (str, os.PathLike)):
        return f" ({os.fspath(item)!s:.200})"
    name = getattr(item, "filename", None) or getattr(item, "name", None)
    return f" ({name!s:.200})" if isinstance(name, (str, os.PathLike)) and name else ""


def _unpack_row(row: Mapping, boxes: Any) -> tuple[Any, Any]:
    """Image and boxes of a row; `boxes` are those given as an argument of the call."""
    if "image" not in row:
        if "bytes" in row or "path" in row:  # an image that a data set has not decoded
            return row, boxes
        keys = ", ".join(str(key) for key in list(row)[:8])
        raise ParValueError(
            f"a dict with the keys {keys} was given, expected the key 'image' "
            "(of a dictionary of splits give one split; of a data set with other names use KeyDataset)"
        )
    if row.get("boxes") is not None:
        if boxes is not None:
            raise ParValueError("boxes were given as an argument and in the dict, expected one of them")
        boxes = row["boxes"]
    return row["image"], boxes


def open_picture(source: Any, timeout: float) -> Image.Image:
    """What the pipeline takes as a picture, as upright RGB.

    Args:
        source: a URL, an open binary file, or what `open_image` takes.
        timeout: seconds to wait for a URL.

    Raises:
        ValueError, TypeError, OSError: it cannot be read.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            request = urllib.request.Request(source, headers={"User-Agent": "vlm-par-hf"})
            with urllib.request.urlopen(request, timeout=timeout) as response:
                data = response.read(_MAX_DOWNLOAD_BYTES + 1)
        except OSError as error:
            raise ParValueError(f"could not read {source}: {error}") from error
        if len(data) > _MAX_DOWNLOAD_BYTES:
            raise ParValueError(f"{source} is larger than {_MAX_DOWNLOAD_BYTES} bytes, expected a picture")
        try:
            return open_image(data)
        except (OSError, ValueError) as error:
            raise ParValueError(f"{source} holds no picture that can be read: {error}") from error
    if hasattr(source, "read") and not isinstance(source, Image.Image):
        source = source.read()
    return open_image(source)
