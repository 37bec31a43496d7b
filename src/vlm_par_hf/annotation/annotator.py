"""`Annotator`: answers batches of images, in this process, in `map` of `datasets` or in a worker of Ray."""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import Pipeline

from vlm_par_hf.errors import ParTypeError, ParValueError, argument_in_errors
from vlm_par_hf.images.opening import is_image_file
from vlm_par_hf.inference.boxes import Box, check_box_options, check_detector_label
from vlm_par_hf.inference.devices import inference_dtype
from vlm_par_hf.inference.pictures import TASK, detect_people
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.inference.predicting import read_ahead
from vlm_par_hf.inference.trust import trust_note
from vlm_par_hf.utils import default_threads, iterate, shorten, thread_map

from .inputs import Boxed, ImageList, OpenedRow, Row, RowOptions, open_row


__all__ = ["Annotator", "check_finite", "to_json"]

# Errors that a damaged or unusual picture raises. Any other error (no memory, a bug) ends the run.
_PICTURE_ERRORS = (OSError, TypeError, ValueError, ArithmeticError)


class _Person(NamedTuple):
    """A picture of one person, and what the answer says beside the attributes."""

    image: Image.Image
    notes: dict[str, Any]
    height: int  # in pixels of the full size, without a margin


class _Chunk(NamedTuple):
    """The people of one forward."""

    names: list[str | int]  # of the images that they are of
    heights: list[int]
    inputs: dict[str, torch.Tensor]


class _Column(list):
    """A column whose type does not depend on its rows: `datasets` takes that of the first rows, which may all be
    None."""

    def __init__(self, rows: Iterable[Any], build_type: Callable[[], Any]):
        super().__init__(rows)
        self._build_type = build_type

    def __arrow_array__(self, type=None):
        import pyarrow

        return pyarrow.array(list(self), self._build_type() if type is None else type)


class Annotator:
    """`Annotator(model)(batch)`: a batch of images to a batch of answers, for `map` of `datasets` and Ray Data.

    It can be pickled: only its options are, and each process loads the models at its first use.

    Args:
        model: checkpoint folder or repository; None for the embedded model, which is small (see `trust_note`).
        batch_size: people per forward.
        only_positive, sensitive, attributes, threshold, thresholds, decide, abstain,
            consistent: as for the pipeline.
        explain: as for the pipeline; answers then hold `"relevance"`, a list of rows of numbers per attribute.
        device: as for the pipeline.
        dtype: of the weights; None: as they were saved; `"auto"`: `vlm_par_hf.inference_dtype(device)`.
        box_format, box_margin: as for the pipeline, for images that come with boxes.
        detector: finds the people in images without boxes: folder or repository of a model for object detection, or
            what the pipeline takes; None: each image without boxes is one person.
        detector_label, detector_threshold: as for the pipeline.
        timeout, allow_private_urls: as for the pipeline.
        allow_urls: whether URLs are read.

    Raises:
        ValueError: `batch_size` is below 1, or `box_format` or `box_margin` has a value that is not allowed.
        At its first use what `transformers.pipeline` raises.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        batch_size: int = 16,
        only_positive: bool = False,
        sensitive: bool = True,
        attributes: Any = None,
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        decide: str | None = None,
        abstain: float | None = None,
        consistent: bool | None = None,
        explain: bool | str | Sequence[str] = False,
        device: Any = None,
        dtype: Any = None,
        box_format: str = "xyxy",
        box_margin: float = 0.0,
        detector: str | os.PathLike | Callable[..., Any] | None = None,
        detector_label: str = "person",
        detector_threshold: float = 0.5,
        timeout: float = 30.0,
        allow_urls: bool = False,
        allow_private_urls: bool = False,
    ):
        if batch_size < 1:
            raise ParValueError(f"batch_size={batch_size}: expected at least 1")
        check_box_options(box_format, box_margin)
        self.model = None if model is None else os.fspath(model)
        self.batch_size, self.device = batch_size, device
        self.dtype = inference_dtype(device) if dtype == "auto" else dtype
        self.answer_options = {
            "only_positive": only_positive,
            "sensitive": sensitive,
            "attributes": attributes,
            "threshold": threshold,
            "thresholds": thresholds,
            "decide": decide,
            "abstain": abstain,
            "consistent": consistent,
            "explain": explain,
        }
        self.detector = os.fspath(detector) if isinstance(detector, os.PathLike) else detector
        self.detector_options = {"detector_label": detector_label, "detector_threshold": detector_threshold}
        self.row_options = RowOptions(box_format, box_margin, timeout, allow_urls, allow_private_urls)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("pipe", "find_people")}

    @property
    def arguments(self) -> dict[str, Any]:
        """What another process makes the same annotator of; a model in a folder by its full path."""
        places = {"model": self.model, "detector": self.detector}
        places = {
            name: os.path.abspath(one) if isinstance(one, str) and os.path.exists(one) else one
            for name, one in places.items()
        }
        own = {"batch_size": self.batch_size, "device": self.device, "dtype": self.dtype}
        return {**places, **own, **self.answer_options, **self.detector_options, **self.row_options._asdict()}

    @cached_property
    def pipe(self) -> PedestrianAttributesPipeline:
        """The pipeline that answers, loaded at the first use."""
        from transformers import pipeline

        options = {"model": self.model, "device": self.device, "dtype": self.dtype, **self.answer_options}
        if self.answer_options["explain"]:
            options["explain_as"] = "relevance"
        with argument_in_errors("model", "embedded" if self.model is None else self.model):
            return pipeline(TASK, **{name: value for name, value in options.items() if value is not None})

    @cached_property
    def find_people(self) -> Callable[..., Any] | None:
        """The detector, loaded at the first use."""
        detector = self.detector
        if isinstance(detector, str):
            from transformers import pipeline

            with argument_in_errors("detector", detector):
                options = {} if self.device is None else {"device": self.device}
                detector = pipeline("object-detection", model=detector, **options)
        if detector is not None:
            if not callable(detector):
                raise ParTypeError(f"detector is {shorten(detector)}, expected the name of a model or a function")
            check_detector_label(detector, self.detector_options["detector_label"])
        return detector

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Answers a batch of any size, `batch_size` people at a time.

        Args:
            batch: columns of equal length. `"image"` holds what `open_image` takes: paths, encoded bytes, `{"bytes",
                "path"}`, arrays or PIL images; and URLs, if they are allowed. `"boxes"`, if it is there, holds a list
                of boxes for each.

        Returns:
            The other columns; `"prediction"`: a dict `{"attributes": {...}}` as the pipeline answers, with boxes or a
            detector a list of such dicts, each with its `"box"`, and None for an image that cannot be read; and
            `"error"`: the reason, None for the others. For Arrow (`datasets`) the answers are structures with the same
            fields in every row; what `only_positive` leaves out is null.
        """
        images = list(iterate(batch["image"], "the column image"))
        several = "boxes" in batch or self.detector is not None
        if "boxes" in batch:
            boxes = list(iterate(batch["boxes"], "the column boxes"))
            if len(boxes) != len(images):
                raise ParValueError(f"the column boxes has {len(boxes)} entries for {len(images)} images")
            images = [Boxed(image, of_image) for image, of_image in zip(images, boxes)]
        found = list(self.stream(self.batches(images)))
        for index, (people, _) in enumerate(found):
            check_finite(people or (), f"image {index} of the batch")
        predictions = [people if several or people is None else people[0] for people, _ in found]
        return {
            **{name: batch[name] for name in batch if name not in ("image", "boxes")},
            "prediction": _Column(predictions, partial(self._build_type, several)),
            "error": _Column((error for _, error in found), _build_text_type),
        }

    def _build_type(self, several: bool):
        """The Arrow type of the answer for an image."""
        import pyarrow

        number, text, box = pyarrow.float64(), pyarrow.string(), pyarrow.list_(pyarrow.int64())
        left_open = {} if self.answer_options["abstain"] is None else {"set": pyarrow.list_(text), "reason": text}
        schema, sensitive = self.pipe.label_space, self.answer_options["sensitive"]
        fields: dict[str, Any] = {}
        if several:
            fields["box"] = box
            if self.row_options.box_margin:
                fields["box_without_margin"] = box
            if self.detector is not None:
                fields["score"] = number
        if trust_note(self.pipe.model) is not None:
            fields["note"] = text
        fields["attributes"] = pyarrow.struct(
            {
                one.name: pyarrow.struct(
                    {
                        "label": text,
                        "score": number,
                        "probabilities": pyarrow.struct(dict.fromkeys(one.labels, number)),
                        **({"threshold": number} if one.is_binary else {}),
                        **left_open,
                    }
                )
                for one in schema
                if sensitive or not one.sensitive
            }
        )
        explain = self.answer_options["explain"]
        if explain:
            names = [explain] if isinstance(explain, str) else schema.names if explain is True else explain
            fields["relevance"] = pyarrow.struct(dict.fromkeys(names, pyarrow.list_(pyarrow.list_(pyarrow.float32()))))
        return pyarrow.list_(pyarrow.struct(fields)) if several else pyarrow.struct(fields)

    def stream(
        self, batches: Iterable[Sequence[Any]]
    ) -> Iterator[tuple[list[dict[str, Any]], None] | tuple[None, str]]:
        """Answers batches of images, while threads prepare the next ones.

        Yields:
            `(people, None)` per image, in order: an answer for each person; `(None, reason)` for an image that cannot
            be read.
        """
        # Loaded first, so that an error about a model is raised before any image is opened.
        pipe, detector = self.pipe, self.find_people
        note = trust_note(pipe.model)
        notes = {} if note is None else {"note": note}
        # Two threads prepare a batch each; inside a batch `thread_map` uses all threads.
        pool = ThreadPoolExecutor(min(2, default_threads()), thread_name_prefix="annotator")
        try:
            # In-memory images are opened in this thread: two entries may be one object, which Pillow cannot decode in
            # two threads.
            opened = ([image if _is_file(image) else self._open(image) for image in batch] for batch in batches)
            prepared = read_ahead(((1, partial(self._prepare, batch)) for batch in opened), pool, 3)
            for images, names, chunks in prepared:
                if detector is not None:  # in this thread, because it may be a model on a GPU
                    images = [self._detect(one) if isinstance(one, OpenedRow) else one for one in images]
                    images, chunks = self._make_inputs(images, names)
                answers = iter(
                    [
                        answer
                        for one in chunks
                        for answer in pipe.answer_batch(one.inputs, names=one.names, heights=one.heights)
                    ]
                )
                for one in images:
                    if isinstance(one, Exception):
                        yield None, str(one)
                    else:
                        yield [{**person.notes, **notes, **_to_plain(next(answers))} for person in one], None
        finally:
            pool.shutdown(cancel_futures=True)

    def rows(
        self, images: ImageList, ranges: Iterable[range] | None = None
    ) -> Iterator[tuple[Row, list[dict[str, Any]] | None, str | None]]:
        """Answers the images of a list.

        Args:
            images: the list.
            ranges: which images; None for all. A batch never crosses the border of a range, so that a range is
                answered in the same batches whichever ranges were answered before.

        Yields:
            `(row, people, None)` or `(row, None, reason)` per image, in order, as `stream`.
        """
        waiting: deque[Row] = deque()

        def images_of(rows: Iterable[Row]) -> Iterator[Any]:
            for row in rows:
                waiting.append(row)
                yield row.image

        def batches() -> Iterator[list[Any]]:
            rows, position = iter(()), None
            for part in [range(len(images))] if ranges is None else ranges:
                if part.start != position:
                    rows = images.rows(part.start)
                yield from self.batches(images_of(islice(rows, len(part))))
                position = part.stop

        for people, error in self.stream(batches()):
            yield waiting.popleft(), people, error

    def batches(self, images: Iterable[Any]) -> Iterator[list[Any]]:
        """Images for one forward each: as many as have `batch_size` people together, as far as that is known."""
        batch, weight = [], 0
        for image in images:
            batch.append(image)
            weight += self._weigh(image)
            if weight >= self.batch_size:
                yield batch
                batch, weight = [], 0
        if batch:
            yield batch

    def _weigh(self, image: Any) -> int:
        """How many people an image has; one whose people are yet to be found fills a batch."""
        if isinstance(image, Boxed):
            return 1 if image.boxes is None else max(1, len(image.boxes))
        return 1 if self.detector is None else self.batch_size

    def _prepare(self, images: Sequence[Any]):
        """Opens images, and without a detector makes the inputs of their people: images, their names, chunks."""
        opened = thread_map(lambda image: self._open(image) if _is_file(image) else image, images)
        names = [_name(image, position) for position, image in enumerate(images)]
        if self.detector is not None:
            return opened, names, []
        images, chunks = self._make_inputs(opened, names)
        return images, names, chunks

    def _make_inputs(
        self, images: Sequence[list[_Person] | Exception], names: Sequence[str | int]
    ) -> tuple[list[list[_Person] | Exception], list[_Chunk]]:
        """The images, those that the processor refuses replaced by the reason; and their people, a chunk for each
        forward."""
        try:
            return list(images), self._process_people(images, names)
        except _PICTURE_ERRORS:
            # The processor refuses one of them: each is tried alone, so that the others are answered.
            images = [one if isinstance(one, Exception) else self._check_processable(one) for one in images]
            return images, self._process_people(images, names)

    def _process_people(self, images, names) -> list[_Chunk]:
        people = [
            (name, person) for name, one in zip(names, images) if not isinstance(one, Exception) for person in one
        ]
        chunks = [people[start : start + self.batch_size] for start in range(0, len(people), self.batch_size)]
        return [
            _Chunk(
                [name for name, _ in chunk],
                [person.height for _, person in chunk],
                self._process([person.image for _, person in chunk]),
            )
            for chunk in chunks
        ]

    def _open(self, image: Any) -> "list[_Person] | OpenedRow | Exception":
        """The people of an image; with a detector, unless it has boxes, what they are to be found in."""
        try:
            opened = open_row(image, self.row_options, one_person=self.detector is None)
        except _PICTURE_ERRORS as error:
            return error
        if opened.boxes is not None:
            return self._cut_out(opened, opened.boxes)
        return opened if self.detector is not None else [_Person(opened.picture, {}, opened.size[1])]

    def _detect(self, opened: OpenedRow) -> list[_Person]:
        boxes, scores = detect_people(
            self.find_people,
            opened.picture,
            opened.size,
            label=self.detector_options["detector_label"],
            threshold=self.detector_options["detector_threshold"],
            box_margin=self.row_options.box_margin,
        )
        return self._cut_out(opened, boxes, scores)

    def _cut_out(
        self, opened: OpenedRow, boxes: Sequence[Box], scores: Sequence[float] | None = None
    ) -> list[_Person]:
        people = []
        for position, box in enumerate(boxes):
            notes: dict[str, Any] = {"box": list(box.crop)}
            if self.row_options.box_margin:
                notes["box_without_margin"] = list(box.given)
            if scores is not None:
                notes["score"] = scores[position]
            people.append(_Person(opened.crop(box), notes, box.given[3] - box.given[1]))
        return people

    def _process(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.pipe.processor(images=pictures, return_tensors="pt"))

    def _check_processable(self, people: list[_Person]) -> "list[_Person] | Exception":
        for person in people:
            try:
                self._process([person.image])
            except _PICTURE_ERRORS as error:
                size = person.image.size
                return ParValueError(f"the image of size {size} cannot be prepared for the model: {error}")
        return people

    def fingerprint(self) -> str:
        """A digest of weights, configurations and processors, which decide the answers; paths do not count."""
        digest = hashlib.blake2b(digest_size=16)
        _add_model(digest, self.pipe.model, self.pipe.processor.image_processor)
        if isinstance(self.find_people, Pipeline):
            _add_model(digest, self.find_people.model, self.find_people.image_processor)
        return digest.hexdigest()


def to_json(value: Any) -> str:
    """`value` as JSON on one line, with letters of every language as they are.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def check_finite(people: Iterable[Mapping[str, Any]], image: str) -> None:
    """Checks that the scores of answers are numbers.

    Raises:
        ValueError: one is not finite; the message names the attribute and `image`.
    """
    for answer in people:
        for name, found in answer["attributes"].items():
            wrong = [one for one in found["probabilities"].values() if not math.isfinite(one)]
            if wrong:
                raise ParValueError(
                    f"the score of attribute {name!r} for {image} is {wrong[0]}, expected a finite number: "
                    "check the weights of the model and its dtype"
                )


def _build_text_type():
    import pyarrow

    return pyarrow.string()


def _to_plain(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer whose relevance is lists of numbers."""
    if "relevance" in answer:
        answer = {**answer, "relevance": {name: one.tolist() for name, one in answer["relevance"].items()}}
    return answer


def _is_file(image: Any) -> bool:
    return is_image_file(image.image if isinstance(image, Boxed) else image)


def _add_model(digest, model: torch.nn.Module, image_processor: Any) -> None:
    for part in (model.config, image_processor):
        digest.update(json.dumps(_without_origin(part.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _name(image: Any, position: int) -> str | int:
    """An image for messages: its path if it has one, else its position in the batch."""
    image = image.image if isinstance(image, Boxed) else image
    path = image.get("path") if isinstance(image, dict) else image
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else position


def _without_origin(value: Any) -> Any:
    """A configuration without the path it was loaded from and the version of transformers that wrote it."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not str(key).startswith("_")}
        kept.pop("transformers_version", None)
        return {key: _without_origin(item) for key, item in kept.items()}
    return [_without_origin(item) for item in value] if isinstance(value, (list, tuple)) else value
