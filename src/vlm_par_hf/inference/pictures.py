"""The pictures of a call of the pipeline: taken one by one, opened by threads, cropped to people, put into batches."""

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging

from vlm_par_hf.errors import (
    ParFileNotFoundError,
    ParOSError,
    ParRuntimeError,
    ParTypeError,
    ParValueError,
)
from vlm_par_hf.images.downloading import is_url
from vlm_par_hf.images.opening import describe_image_source, is_image_file, open_image
from vlm_par_hf.images.sharpness import measure_detail
from vlm_par_hf.labels.decisions import SMALLEST_DETAIL, SMALLEST_HEIGHT
from vlm_par_hf.upstream import KeyDataset
from vlm_par_hf.utils import iterate

from .boxes import Box, EmptyBox, check_box_options, check_boxes, check_detector_label, scale_box
from .opening import is_name, open_picture, read_file_object
from .predicting import collate_inputs, read_ahead
from .results import PersonResult, PictureResult


__all__ = ["TASK", "Person", "Picture", "Pictures", "Results", "detect_people", "fill_batches"]

logger = logging.get_logger(__name__)

TASK = "pedestrian-attributes"
_KINDS_OF_ERRORS = (
    (FileNotFoundError, ParFileNotFoundError),
    (OSError, ParOSError),
    (TypeError, ParTypeError),
    (ValueError, ParValueError),
)


@dataclass
class Picture:
    """A picture that was opened, and the answers collected for it."""

    where: str | None  # its index and name, for error messages; None if it is the only picture
    image: Image.Image | None
    inputs: dict[str, torch.Tensor] | None = None  # the model's inputs, if the whole picture is one person
    detail: float | None = None  # of that person, if it was asked for
    boxes: list[Box] | None = None  # of its people; None if the whole picture is one person
    scores: list[float] | None = None  # of the boxes, from a detector
    full_size: tuple[int, int] | None = None  # that boxes refer to; the image is smaller if it was reduced
    with_margin: bool = False  # whether boxes were widened, so that results say the given ones too
    source: Any = None  # what `draw` of the results opens again; None: they do not remember it
    url_options: dict[str, Any] = field(default_factory=dict)  # keywords of `open_picture` for it
    answers: dict[int, PersonResult] = field(default_factory=dict)  # by the position of the person among the boxes

    def answer(self, slot: int, result: dict[str, Any]) -> None:
        if self.boxes is not None:
            found: dict[str, Any] = {"box": list(self.boxes[slot].crop)}
            if self.with_margin:
                found["box_without_margin"] = list(self.boxes[slot].given)
            if self.scores is not None:
                found["score"] = self.scores[slot]
            result = {**found, **result}
        self.answers[slot] = PersonResult(result)
        self.answers[slot].remember(self.source, self.url_options)

    @property
    def is_answered(self) -> bool:
        return len(self.answers) == (1 if self.boxes is None else len(self.boxes))

    @property
    def result(self) -> PersonResult | PictureResult:
        if self.boxes is None:
            return self.answers[0]
        people = PictureResult(self.answers[slot] for slot in range(len(self.boxes)))
        people.remember(self.source, self.url_options)
        return people


@dataclass
class Person:
    """One person of a picture; with inputs of None it stands for a picture without people."""

    picture: Picture
    slot: int = 0  # the position among the boxes of the picture
    crop: Image.Image | None = None
    inputs: dict[str, torch.Tensor] | None = None
    detail: float | None = None  # `measure_detail`, if it was asked for

    @property
    def doubt(self) -> str | None:
        """Why nothing can be said about the person (`find_doubt`)."""
        return find_doubt(self.height, self.detail)

    @property
    def height(self) -> int:
        """In pixels of the picture's full size, without a margin."""
        if self.picture.boxes is None:
            return self.picture.full_size[1]
        _, top, _, bottom = self.picture.boxes[self.slot].given
        return bottom - top


def measure_person(image: Image.Image) -> float:
    """The detail of a person's picture, as `find_doubt` takes it."""
    return measure_detail(image, SMALLEST_HEIGHT)


def find_doubt(height: int, detail: float | None = None) -> str | None:
    """Why nothing can be said about a person, as "14 pixels high" or "blurred"; None: it can.

    Args:
        height: of the person, in pixels of the full size.
        detail: `measure_person` of the picture; None: it was not measured.
    """
    if height < SMALLEST_HEIGHT:
        return f"{height} pixels high"
    return "blurred" if detail is not None and detail < SMALLEST_DETAIL else None


def least_doubt(doubts: Iterable[str | None]) -> str | None:
    """The doubt about a person who was seen several times: none if there is a picture without one, else the last."""
    last = None
    for last in doubts:
        if last is None:
            return None
    return last


class Pictures:
    """The pictures of a call, read as people.

    Args:
        items: what the caller gave: pictures or rows. They are taken one by one in the caller's thread.
        processor: makes the model's inputs of a picture.
        single: whether `items` is one picture; errors then need not say which one.
        threads: open pictures and prepare people ahead; 0: each when it is asked for.
        batch_size: people per forward; as many are prepared ahead.
        keep_crops: whether to keep the picture of each person, for overlays.
        find_doubts: whether to measure how sharp people are, for reasons of `abstain`.
        remember: whether results remember their pictures; False: only those that have a path or a URL.
        boxes: a list of boxes for each picture; None: a detector finds the people, or each picture is one person.
        box_format, box_margin, detector, detector_label, detector_threshold, timeout, allow_urls, allow_private_urls:
            as for the pipeline.

    Raises:
        TypeError: `items` or `boxes` is no container with an order.
        ValueError: there are not as many lists of boxes as pictures, the form of boxes is unknown, or the detector
            does not have its label.
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
        find_doubts: bool = False,
        remember: bool = False,
        boxes=None,
        box_format: str = "xyxy",
        box_margin: float = 0.0,
        detector=None,
        detector_label: str = "person",
        detector_threshold: float = 0.5,
        timeout: float = 30.0,
        allow_urls: bool | None = None,
        allow_private_urls: bool = False,
    ):
        check_box_options(box_format, box_margin)
        self.items, self.boxes, self.processor, self.single = _disable_decoding(items), boxes, processor, single
        self.threads, self.batch_size, self.keep_crops = threads, batch_size, keep_crops
        self.remember, self.find_doubts = remember, find_doubts
        self.box_format, self.box_margin = box_format, float(box_margin)
        self.detector = detector if boxes is None else None
        self.detector_label, self.detector_threshold = detector_label, detector_threshold
        # A URL that the caller wrote into the call is asked; one that a data set or a stream holds only on request.
        self.asks_urls = isinstance(items, (list, tuple)) if allow_urls is None else allow_urls
        self.asks_urls_of_rows = bool(allow_urls)
        self.url_options = {"timeout": timeout, "allow_private": allow_private_urls}
        self._elements = iterate(self.items, "inputs")
        self.length = _length(items)
        if self.detector is not None:
            check_detector_label(self.detector, detector_label)
        if boxes is None:
            return
        if not isinstance(boxes, Iterable) and not hasattr(boxes, "__getitem__"):
            raise ParTypeError(f"boxes is {boxes!r:.100}, expected a list of boxes [x0, y0, x1, y1]")
        self.boxes = iterate(boxes, "boxes")
        if self.length is not None:
            self.boxes = list(self.boxes)
            if len(self.boxes) != self.length:
                raise ParValueError(
                    f"boxes has {len(self.boxes)} entries for {self.length} pictures, expected one list for each"
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
                    yield Person(picture, 0, image, inputs, picture.detail)
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
            where, in_row = None if self.single else f"item {index}{_describe_name(item)}", isinstance(item, Mapping)
            try:
                own = next(boxes) if boxes is not None else None
            except StopIteration:
                raise ParValueError(f"item {index}: boxes ended before the pictures, expected one list each") from None
            with self._prefix_errors(where):
                if in_row:
                    item, own = _unpack_row(item, own)
                source = self._independent_source(item, in_row and not self.single)
            shown = item if is_image_file(item) or isinstance(source, Image.Image) else source
            shown = shown if self.remember or is_name(shown) else None
            one_person = own is None and self.detector is None
            yield 1 if one_person else self.batch_size, partial(self._open, where, source, own, shown)

    def _take_items(self) -> Iterator[Any]:
        for index in itertools.count():
            with self._prefix_errors(None if self.single else f"item {index}"):
                try:
                    item = next(self._elements)  # a data set that decodes its images may fail here
                except StopIteration:
                    return
            yield item

    def _independent_source(self, source: Any, in_row: bool) -> Any:
        """A source that a thread can open later, even if the caller changes the original meanwhile."""
        if hasattr(source, "read") and not isinstance(source, Image.Image):
            return read_file_object(source)
        url = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
        if is_url(url):
            if not (self.asks_urls_of_rows if in_row else self.asks_urls):
                raise ParValueError(
                    f"{describe_image_source(url)} is a URL, and those of data sets and streams are read only with "
                    "allow_urls=True"
                )
            return url
        if is_image_file(source):
            return source
        image = open_image(source)
        return image.copy() if image is source and self.threads else image

    def _open(self, where: str | None, source: Any, boxes: Any, shown: Any) -> Picture:
        with self._prefix_errors(where):
            one_person = boxes is None and self.detector is None
            image, size = open_picture(source, one_person=one_person, **self.url_options)
            picture = Picture(
                where, image, full_size=size, with_margin=self.box_margin > 0, source=shown,
                url_options=self.url_options,
            )  # fmt: skip
            if boxes is not None:
                picture.boxes = check_boxes(boxes, size, box_format=self.box_format, box_margin=self.box_margin)
            elif self.detector is None:  # `read` runs it in the caller's thread: it may be a model on a GPU
                picture.inputs, picture.detail = self._prepare(image), self._measure(image)
                picture.image = image if self.keep_crops else None
            return picture

    def _crop_person(self, picture: Picture, slot: int, image: Image.Image) -> Person:
        with self._prefix_errors(picture.where):
            crop = image.crop(scale_box(picture.boxes[slot].crop, picture.full_size, image.size))
            return Person(picture, slot, crop if self.keep_crops else None, self._prepare(crop), self._measure(crop))

    def _measure(self, image: Image.Image) -> float | None:
        return measure_person(image) if self.find_doubts else None

    def _prepare(self, image: Image.Image) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=[image], return_tensors="pt"))

    def _detect_people(self, picture: Picture) -> None:
        picture.boxes, picture.scores = detect_people(
            self.detector, picture.image, picture.full_size, label=self.detector_label,
            threshold=self.detector_threshold, box_format=self.box_format, box_margin=self.box_margin,
            where=picture.where,
        )  # fmt: skip

    @contextmanager
    def _prefix_errors(self, where: str | None):
        """Puts `where` in front of the message of an error, so that it says which of several items failed."""
        try:
            yield
        except Exception as error:
            if where is None:
                raise
            ours = next((ours for kind, ours in _KINDS_OF_ERRORS if isinstance(error, kind)), ParRuntimeError)
            raise ours(f"{where}: {error}") from error


def detect_people(
    detector: Callable[..., Any],
    image: Image.Image,
    full_size: tuple[int, int],
    *,
    label: str = "person",
    threshold: float = 0.5,
    box_format: str = "xyxy",
    box_margin: float = 0.0,
    where: str | None = None,
) -> tuple[list[Box], list[float]]:
    """The people that a detector finds.

    Args:
        detector, label, threshold, box_format, box_margin: as `detector`, ... of the pipeline.
        image: the picture, which may have been reduced.
        full_size: of the picture that boxes are to refer to.
        where: the picture, for warnings.

    Returns:
        Boxes in pixels of the full size, and their scores.

    Raises:
        TypeError, ValueError: the detector returns something else than a list of detections, or a wrong box.
    """
    found = detector(image, threshold=threshold)
    if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
        raise ParTypeError(f"detector returned {found!r:.200}, expected a list of dicts with label, score and box")
    boxes: list[Box] = []
    scores: list[float] = []
    for index, detection in enumerate(found):
        try:
            name, score, box = detection["label"], float(detection["score"]), detection["box"]
        except (TypeError, KeyError, ValueError):
            raise ParValueError(
                f"detector returned {detection!r:.200}, expected a dict with label, score and box"
            ) from None
        if not math.isfinite(score):
            raise ParValueError(f"detector returned the score {score} for detection {index}, expected a number")
        if str(name).lower() != label.lower() or score < threshold:
            continue
        try:
            (checked,) = check_boxes([box], image.size, box_format=box_format, box_margin=box_margin)
        except EmptyBox as error:
            # A detector that rounds to whole pixels may give an empty box for a far person: no error of the user.
            logger.warning("%sDetection %d is left out: %s", _prefix(where), index, error)
            continue
        except ValueError as error:
            raise ParValueError(f"detector returned a wrong box for detection {index}: {error}") from error
        boxes.append(Box(*(scale_box(one, image.size, full_size) for one in checked)))
        scores.append(score)
    return boxes, scores


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


def _length(items: Any) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a DataLoader over a stream
        return None


def _prefix(where: str | None) -> str:
    return "" if where is None else f"{where}: "


def _describe_name(item: Any) -> str:
    if isinstance(item, Mapping):
        item = item.get("image")
    if isinstance(item, (str, os.PathLike)):
        return f" ({describe_image_source(item)})"
    name = getattr(item, "filename", None) or getattr(item, "name", None)
    return f" ({describe_image_source(name)})" if isinstance(name, (str, os.PathLike)) and name else ""


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
