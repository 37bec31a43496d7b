"""`AttributeHandler`: from the bytes of pictures to answers, for FastAPI, the Open Inference Protocol and Ray.

It knows nothing of HTTP. A picture is opened and cropped in threads, its people wait in the queue of the batcher with
those of other requests, and the pipeline's own functions make inputs and answers, so that the service answers what the
pipeline answers. Nothing of a picture is kept after its answer.
"""

import asyncio
import json
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image

from vlm_par_hf.errors import ParError, ParValueError
from vlm_par_hf.images.opening import IMAGE_FORMATS
from vlm_par_hf.inference.pictures import Person, Pictures
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.inference.predicting import collate_inputs
from vlm_par_hf.inference.trust import trust_note
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import default_threads

from .batching import MicroBatcher
from .refusals import ModelFault, Refusal, busy, too_large


__all__ = ["AttributeHandler", "Handler", "Limits", "NoMeasures", "PictureRequest"]

logger = logging.getLogger(__name__)

_KEPT_OPTIONS = 128  # sets of options whose checked form is remembered


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much is in work at once.

    Args:
        max_bytes: of the body of a request.
        max_pixels: width times height of a picture.
        max_pictures: in one request.
        max_people: in one picture.
        seconds: for the body of a request to arrive, and again for its answer.
        max_in_work: pictures that are in work at once; more are refused with 429.
        max_batch: people per forward pass.
        max_wait: seconds that a person waits at most for others to share the forward pass.

    Raises:
        ValueError: one of them is not above 0, or `max_pictures` is above `max_in_work`.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_pictures: int = 32
    max_people: int = 100
    seconds: float = 30.0
    max_in_work: int = 64
    max_batch: int = 16
    max_wait: float = 0.005

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 or (name == "max_wait" and value == 0)):
                raise ParValueError(f"{name} is {value}, expected a number above 0")
        if self.max_pictures > self.max_in_work:
            raise ParValueError(
                f"max_pictures is {self.max_pictures} and max_in_work is {self.max_in_work}: a request with that many "
                "pictures would never be taken, expected at most as many"
            )


class PictureRequest(NamedTuple):
    """A picture to answer: the bytes of an image file, and its boxes, if they are given."""

    data: bytes
    boxes: list[Any] | None = None


class NoMeasures:
    """What is measured, for nobody."""

    def stage(self, name: str, seconds: float) -> None:
        """A stage of the work on one picture has ended: `prepare`, `wait` or `model`."""

    def batch(self, size: int) -> None:
        """A forward pass of `size` people has ended."""


class _Options(NamedTuple):
    """Options of a request, checked: keywords of the pipeline's steps."""

    key: str | None  # of the forward pass; None: the plain one, which requests share
    preprocess: dict[str, Any]
    forward: dict[str, Any]
    postprocess: dict[str, Any]


class _Item(NamedTuple):
    """A person who waits for the model."""

    person: Person
    options: _Options


class Handler(ABC):
    """What answers requests, and how much it takes at once: the fronts know no more of it.

    Args:
        limits: what is allowed.

    Attributes:
        schema: the label space of the answers, when it is ready.
        note: how far answers can be trusted, or None.
        in_work: pictures that are in work.
        is_ready: whether it is warm and takes requests.
    """

    schema: AttributeSchema
    note: str | None = None

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.in_work = 0
        self.is_ready = False

    @abstractmethod
    async def start(self) -> None:
        """Gets ready; called in the event loop before the first request."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends when all that was taken is answered."""

    @abstractmethod
    async def answer(
        self, pictures: Sequence[PictureRequest], options: Mapping[str, Any] | None = None
    ) -> list[list[dict[str, Any]] | Refusal]:
        """The people of each picture: see `AttributeHandler.answer`."""

    @property
    def waiting(self) -> int:
        """People who wait for the model."""
        return 0

    def seconds_to_wait(self) -> int:
        """Whole seconds, at least 1, after which what is in work should be done."""
        return 1

    @contextmanager
    def reserve(self, pictures: int = 1) -> Iterator[Callable[[int], None]]:
        """Takes room for pictures until the block ends; it gives a function that takes room for more.

        Raises:
            Refusal: 429, there is no room.
        """
        taken = 0

        def take(more: int) -> None:
            nonlocal taken
            if self.in_work + more > self.limits.max_in_work:
                raise busy(
                    f"{self.in_work} pictures are in work, of at most {self.limits.max_in_work}",
                    self.seconds_to_wait(),
                )
            self.in_work += more
            taken += more

        take(pictures)
        try:
            yield take
        finally:
            self.in_work -= taken


class AttributeHandler(Handler):
    """Answers pictures with a pipeline: batched across requests, within limits.

    Args:
        pipe: the pipeline; its detector, if it has one, finds people in pictures without boxes.
        limits: what is allowed.
        measures: is told of stages and batches.

    `start` must be called in the event loop before the first request, and `stop` ends it when all is answered.
    """

    def __init__(
        self,
        pipe: PedestrianAttributesPipeline,
        limits: Limits | None = None,
        measures: NoMeasures | None = None,
    ) -> None:
        super().__init__(limits or Limits())
        self.pipe = pipe
        self.measures = NoMeasures() if measures is None else measures
        self.schema = pipe.model.config.schema
        self.note = trust_note(pipe.model)
        detector = pipe._preprocess_params.get("detector")
        self.has_detector = detector is not None
        self._detector = None if detector is None else _OneAtATime(detector)
        self._readers = ThreadPoolExecutor(default_threads(), thread_name_prefix="pictures")
        self._options: OrderedDict[str, _Options] = OrderedDict()
        self.batcher: MicroBatcher | None = None

    @property
    def waiting(self) -> int:
        """People who wait for the model."""
        return 0 if self.batcher is None else self.batcher.waiting

    def seconds_to_wait(self) -> int:
        return self.batcher.seconds_to_wait(self.in_work)

    async def start(self) -> None:
        """Begins to answer. It is ready when a picture has gone all the way.

        Raises:
            RuntimeError: the picture was not answered: the model, or the detector, does not work.
        """
        self.batcher = MicroBatcher(
            self._answer_people,
            max_batch=self.limits.max_batch,
            max_wait=self.limits.max_wait,
            observe=self._observe,
        )
        self.batcher.start()
        picture = BytesIO()
        Image.new("RGB", (64, 128), (120, 120, 120)).save(picture, "PNG")
        # With a detector both ways: where it finds nobody in grey, the model would not have been asked.
        for detect in (False, True)[: 1 + self.has_detector]:
            try:
                await self._answer_picture(PictureRequest(picture.getvalue()), await self._check({"detect": detect}))
            except ParError as error:
                what = "detector" if detect else "model"
                raise ModelFault(f"the {what} fails on a plain grey picture: {error}") from error
        self.is_ready = True

    async def stop(self) -> None:
        """Answers what was taken and ends."""
        self.is_ready = False
        if self.batcher is not None:
            await self.batcher.stop()
        self._readers.shutdown()

    async def answer(
        self, pictures: Sequence[PictureRequest], options: Mapping[str, Any] | None = None
    ) -> list[list[dict[str, Any]] | Refusal]:
        """The people of each picture.

        Args:
            pictures: at most `max_pictures`.
            options: options of the pipeline that are plain data: `attributes`, `threshold`, `thresholds`, `decide`,
                `abstain`, `only_positive`, `sensitive`, `explain`, `box_format`, `box_margin`, `detector_threshold`;
                and `detect`, False where a picture without boxes is one person although there is a detector.

        Returns:
            For each picture a list of `{"attributes": {...}}` as the pipeline gives them, or why it was refused.

        Raises:
            Refusal: the options are refused, there are too many pictures, or it takes too long.
            ModelFault: model or detector failed.
        """
        if len(pictures) > self.limits.max_pictures:
            raise too_large(f"{len(pictures)} pictures were sent, expected at most {self.limits.max_pictures}")
        try:
            async with asyncio.timeout(self.limits.seconds):
                checked = await self._check(dict(options or {}))
                found = await asyncio.gather(
                    *(self._answer_picture(one, checked) for one in pictures), return_exceptions=True
                )
        except TimeoutError:
            raise Refusal(
                503, "late", f"it took more than {self.limits.seconds:g} seconds", retry_after=self.seconds_to_wait()
            ) from None
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, Refusal):
                raise one
        return found

    async def _check(self, options: dict[str, Any]) -> _Options:
        """Options in the form of the pipeline's steps; those asked before are remembered."""
        text = json.dumps(options, sort_keys=True)
        known = self._options.get(text)
        if known is None:
            loop = asyncio.get_running_loop()
            # In the model's thread: attributes in words are encoded by the model.
            known = await loop.run_in_executor(self.batcher.thread, self._read_options, options, text)
            self._options[text] = known
            if len(self._options) > _KEPT_OPTIONS:
                self._options.popitem(last=False)
        else:
            self._options.move_to_end(text)
        return known

    def _read_options(self, options: dict[str, Any], text: str) -> _Options:
        detect = options.pop("detect", self.has_detector)
        if detect and not self.has_detector:
            raise Refusal(422, "options", "detect is true, but this service was started without a detector")
        if options.get("explain"):
            options["explain_as"] = "relevance"
        pipe = self.pipe
        own = (pipe._preprocess_params, pipe._forward_params, pipe._postprocess_params)
        try:
            given = pipe._sanitize_parameters(**options)
        except ParError as error:
            raise Refusal(422, "options", str(error)) from error
        preprocess, forward, postprocess = ({**old, **new} for old, new in zip(own, given))
        preprocess["detector"] = self._detector if detect else None
        chosen = forward.get("chosen")
        is_plain = not forward.get("explain") and (chosen is None or chosen.encoded is None)
        return _Options(None if is_plain else text, preprocess, forward, postprocess)

    async def _answer_picture(self, request: PictureRequest, options: _Options) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        people, results = self._people(request, options), []
        while True:
            # As many people as a batch holds: a crowd neither fills memory nor keeps others waiting.
            with self.batcher.coming():
                some = await loop.run_in_executor(self._readers, self._prepare, people)
                answers = [self.batcher.put(options.key, _Item(one, options)) for one in some]
            if not some:
                return results
            found = await asyncio.gather(*answers, return_exceptions=True)
            for one, result in zip(some, found):
                if isinstance(result, ParError):
                    raise ModelFault(str(result)) from result
                if isinstance(result, BaseException):
                    raise result
                one.picture.answer(one.slot, result)
                results.append(dict(one.picture.answers[one.slot]))

    def _people(self, request: PictureRequest, options: _Options) -> Iterator[Person]:
        """The people of a picture, each prepared when it is asked for; called in a thread."""
        _check_size(request.data, self.limits.max_pixels)
        boxes = request.boxes
        self._check_people(boxes)
        pictures = Pictures(
            [request.data],
            processor=self.pipe.processor,
            single=True,
            find_doubts=options.postprocess.get("abstain") is not None,
            boxes=None if boxes is None else [boxes],
            **{name: value for name, value in options.preprocess.items() if value is not None},
        )
        for person in pictures.read():
            self._check_people(person.picture.boxes)
            if person.inputs is not None:  # None stands for a picture without people
                yield person

    def _check_people(self, boxes: Sequence[Any] | None) -> None:
        if boxes is not None and len(boxes) > self.limits.max_people:
            raise too_large(f"a picture has {len(boxes)} people, expected at most {self.limits.max_people}")

    def _prepare(self, people: Iterator[Person]) -> list[Person]:
        started = time.monotonic()
        try:
            return list(islice(people, self.limits.max_batch))
        except (Refusal, ModelFault):
            raise
        except (ParError, OSError, ValueError, TypeError) as error:
            raise Refusal(422, "picture", str(error)) from error
        finally:
            self.measures.stage("prepare", time.monotonic() - started)

    def _answer_people(self, items: Sequence[_Item]) -> list[dict[str, Any]]:
        """One forward pass; called in the model's thread."""
        outputs = self.pipe._forward(collate_inputs([one.person.inputs for one in items]), **items[0].options.forward)
        rows: dict[int, list[int]] = {}
        for row, one in enumerate(items):
            rows.setdefault(id(one.options), []).append(row)
        results: list[Any] = [None] * len(items)
        for own in rows.values():
            options = items[own[0]].options
            found = self.pipe.postprocess(
                {name: value[own] for name, value in outputs.items()},
                doubts=[items[row].person.doubt for row in own],
                **options.postprocess,
            )
            for row, result in zip(own, found):
                if "relevance" in result:
                    result["relevance"] = {name: one.tolist() for name, one in result["relevance"].items()}
                results[row] = result
        return results

    def _observe(self, size: int, waited: list[float], seconds: float) -> None:
        self.measures.batch(size)
        for one in waited:
            self.measures.stage("wait", one)
        self.measures.stage("model", seconds)


class _OneAtATime:
    """A detector that threads take turns with; what it raises is a fault of the service."""

    def __init__(self, detector: Callable[..., Any]) -> None:
        self._detector, self._lock = detector, threading.Lock()
        self.model = getattr(detector, "model", None)  # its labels are read from here

    def __call__(self, image: Image.Image, **options: Any) -> Any:
        with self._lock:
            try:
                return self._detector(image, **options)
            except Exception as error:
                raise ModelFault(f"the detector failed: {type(error).__name__}: {error}") from error


def _check_size(data: bytes, max_pixels: int) -> None:
    """Refuses a picture by what its file says of its size, before anything is decoded.

    Raises:
        Refusal: 413, it is too large; 422, it is no picture.
    """
    if not data:
        raise Refusal(422, "picture", "the picture is empty, expected the bytes of an image file")
    try:
        with Image.open(BytesIO(data), formats=tuple(IMAGE_FORMATS)) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(f"the picture is too large: {error}; expected at most {max_pixels} pixels") from error
    except Exception:  # Pillow's parsers raise many kinds of errors; `open_image` says what it is
        return
    if width * height > max_pixels:
        raise too_large(f"the picture is {width}x{height} pixels, expected at most {max_pixels} in all")
