"""`Annotator`: answers batches of images, in this process, in `map` of `datasets` or in a worker of Ray."""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image

from vlm_par_hf.errors import ParValueError, argument_in_errors
from vlm_par_hf.images.opening import is_image_file
from vlm_par_hf.inference.boxes import check_box_options
from vlm_par_hf.inference.devices import inference_dtype
from vlm_par_hf.inference.pictures import TASK
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.inference.predicting import predict_batch, read_ahead
from vlm_par_hf.inference.trust import trust_note
from vlm_par_hf.utils import default_threads, iterate, thread_map

from .inputs import ImageList, Row, RowOptions, open_row


__all__ = ["Annotator", "answer_to_json", "to_json"]

# Errors that a damaged or unusual picture raises. Any other error (no memory, a bug) ends the run.
_PICTURE_ERRORS = (OSError, TypeError, ValueError, ArithmeticError)


class _Person(NamedTuple):
    """A picture of one person, and what the answer says beside the attributes."""

    image: Image.Image
    notes: dict[str, Any]


class Annotator:
    """`Annotator(model)(batch)`: a batch of images to a batch of answers, for `map` of `datasets` and Ray Data.

    It can be pickled: only its options are, and each process loads the model at its first use.

    Args:
        model: checkpoint folder or repository; None for the embedded model, which is small (see `trust_note`).
        batch_size: people per forward.
        only_positive, sensitive: as for the pipeline.
        device: as for the pipeline.
        dtype: of the weights; None: as they were saved; `"auto"`: `vlm_par_hf.inference_dtype(device)`.
        box_format, box_margin: as for the pipeline, for images that come with a box.
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
        device: Any = None,
        dtype: Any = None,
        box_format: str = "xyxy",
        box_margin: float = 0.0,
        timeout: float = 30.0,
        allow_urls: bool = False,
        allow_private_urls: bool = False,
    ):
        if batch_size < 1:
            raise ParValueError(f"batch_size={batch_size}: expected at least 1")
        self.model = None if model is None else os.fspath(model)
        self.batch_size, self.device = batch_size, device
        self.dtype = inference_dtype(device) if dtype == "auto" else dtype
        self.only_positive, self.sensitive = only_positive, sensitive
        check_box_options(box_format, box_margin)
        self.row_options = RowOptions(box_format, box_margin, timeout, allow_urls, allow_private_urls)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pipe"}

    @cached_property
    def pipe(self) -> PedestrianAttributesPipeline:
        """The pipeline that answers, loaded at the first use."""
        from transformers import pipeline

        options = {"model": self.model, "device": self.device, "dtype": self.dtype}
        with argument_in_errors("model", "embedded" if self.model is None else self.model):
            return pipeline(TASK, **{name: value for name, value in options.items() if value is not None})

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Answers a batch of any size, `batch_size` people at a time.

        Args:
            batch: columns of equal length. `"image"` holds what `open_image` takes: paths, encoded bytes, `{"bytes",
                "path"}`, arrays or PIL images; and URLs, if they are allowed. A dict with a `"box"` too is one person
                in a picture.

        Returns:
            The other columns; `"prediction"`: JSON text `{"attributes": {...}}` as the pipeline answers, None for an
            image that cannot be read; and `"error"`: the reason, None for the others. The answer for a box says which
            pixels were read, under `"box"`, and with a margin `"box_without_margin"`.
        """
        images = list(iterate(batch["image"], "the column image"))
        chunks = (images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))
        answers = list(self.stream(chunks))
        return {
            **{name: batch[name] for name in batch if name != "image"},
            "prediction": [
                None if answer is None else answer_to_json(answer, f"image {index} of the batch")
                for index, (answer, _) in enumerate(answers)
            ],
            "error": [error for _, error in answers],
        }

    def stream(self, batches: Iterable[Sequence[Any]]) -> Iterator[tuple[dict[str, Any], None] | tuple[None, str]]:
        """Answers batches of images, each in one forward, while threads prepare the next ones.

        Yields:
            `(answer, None)` per image, in order; `(None, reason)` for an image that cannot be read.
        """
        pipe = self.pipe  # loaded first, so that an error about the model is raised before any image is opened
        note = trust_note(pipe.model)
        notes = {} if note is None else {"note": note}
        # Two threads prepare a batch each; inside a batch `thread_map` uses all threads.
        pool = ThreadPoolExecutor(min(2, default_threads()), thread_name_prefix="annotator")
        try:
            # In-memory images are opened in this thread: two entries may be one object, which Pillow cannot decode in
            # two threads.
            opened = ([image if is_image_file(image) else self._open(image) for image in batch] for batch in batches)
            prepared = read_ahead(((1, partial(self._prepare, batch)) for batch in opened), pool, 3)
            for (opened, names), inputs in prepared:
                answers = iter(())
                if inputs is not None:
                    outputs = predict_batch(pipe.model, inputs, names=names)
                    options = {"only_positive": self.only_positive, "sensitive": self.sensitive}
                    answers = iter(pipe.postprocess(outputs, **options))
                for one in opened:
                    yield (None, str(one)) if isinstance(one, Exception) else ({**one, **notes, **next(answers)}, None)
        finally:
            pool.shutdown(cancel_futures=True)

    def rows(
        self, images: ImageList, ranges: Iterable[range] | None = None
    ) -> Iterator[tuple[Row, dict[str, Any] | None, str | None]]:
        """Answers the images of a list.

        Args:
            images: the list.
            ranges: which images; None for all. A batch never crosses the border of a range, so that a range is
                answered in the same batches whichever ranges were answered before.

        Yields:
            `(row, answer, None)` or `(row, None, reason)` per image, in order, as `stream`.
        """
        waiting: deque[Row] = deque()

        def batches() -> Iterator[list[Any]]:
            rows, position = iter(()), None
            for part in [range(len(images))] if ranges is None else ranges:
                if part.start != position:
                    rows = images.rows(part.start)
                for start in range(part.start, part.stop, self.batch_size):
                    batch = list(islice(rows, min(self.batch_size, part.stop - start)))
                    waiting.extend(batch)
                    yield [row.image for row in batch]
                position = part.stop

        for answer, error in self.stream(batches()):
            yield waiting.popleft(), answer, error

    def _prepare(
        self, images: Sequence[Any]
    ) -> tuple[tuple[list[dict[str, Any] | Exception], list[str | int]], dict[str, torch.Tensor] | None]:
        """For each image what its answer says beside the attributes, or why it cannot be read; the names of the
        readable ones; and their inputs, or None."""
        opened = thread_map(lambda image: self._open(image) if is_image_file(image) else image, images)
        try:
            readable = [one.image for one in opened if isinstance(one, _Person)]
            inputs = self._process(readable) if readable else None
        except _PICTURE_ERRORS:
            # The processor refuses one of them: each is tried alone, so that the others are answered.
            opened = [self._check_processable(one) if isinstance(one, _Person) else one for one in opened]
            readable = [one.image for one in opened if isinstance(one, _Person)]
            inputs = self._process(readable) if readable else None
        names = [
            _name(image, position) for position, image in enumerate(images) if isinstance(opened[position], _Person)
        ]
        return ([one.notes if isinstance(one, _Person) else one for one in opened], names), inputs

    def _open(self, image: Any) -> "_Person | Exception":
        try:
            picture, box = open_row(image, self.row_options)
        except _PICTURE_ERRORS as error:
            return error
        notes: dict[str, Any] = {}
        if box is not None:
            notes["box"] = list(box.crop)
            if self.row_options.box_margin:
                notes["box_without_margin"] = list(box.given)
        return _Person(picture, notes)

    def _process(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.pipe.processor(images=pictures, return_tensors="pt"))

    def _check_processable(self, person: "_Person") -> "_Person | Exception":
        try:
            self._process([person.image])
        except _PICTURE_ERRORS as error:
            return ParValueError(f"the image of size {person.image.size} cannot be prepared for the model: {error}")
        return person

    def fingerprint(self) -> str:
        """A digest of weights, configuration and processor, which decide the answers; paths do not count."""
        digest = hashlib.blake2b(digest_size=16)
        model, processor = self.pipe.model, self.pipe.processor
        for part in (model.config, processor.image_processor):
            digest.update(json.dumps(_without_origin(part.to_dict()), sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def to_json(value: Any) -> str:
    """`value` as JSON on one line, with letters of every language as they are.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def answer_to_json(answer: Mapping[str, Any], image: str) -> str:
    """An answer of the pipeline as `to_json`.

    Raises:
        ValueError: a score is not finite; the message names the attribute and `image`.
    """
    for name, found in answer["attributes"].items():
        if not math.isfinite(found["score"]) or not all(map(math.isfinite, found["probabilities"].values())):
            raise ParValueError(
                f"the score of attribute {name!r} for {image} is {found['score']}, expected a finite number: check "
                "the weights of the model and its dtype"
            )
    return to_json(answer)


def _name(image: Any, position: int) -> str | int:
    """An image for messages: its path if it has one, else its position in the batch."""
    path = image.get("path") if isinstance(image, dict) else image
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else position


def _without_origin(value: Any) -> Any:
    """A configuration without the path it was loaded from and the version of transformers that wrote it."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not str(key).startswith("_")}
        kept.pop("transformers_version", None)
        return {key: _without_origin(item) for key, item in kept.items()}
    return [_without_origin(item) for item in value] if isinstance(value, (list, tuple)) else value
