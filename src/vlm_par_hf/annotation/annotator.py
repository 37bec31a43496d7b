"""One object that answers batches of images: here, in a `datasets` map, in a worker of Ray."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from PIL import Image

from vlm_par_hf.images.opening import is_image_file, open_image
from vlm_par_hf.inference.devices import inference_dtype
from vlm_par_hf.inference.pictures import TASK
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.inference.predicting import predict_batches, read_ahead
from vlm_par_hf.utils import default_threads, thread_map

from .inputs import ImageList, Row


__all__ = ["Annotator", "to_json"]

# What a damaged or odd picture raises. Anything else (memory, a fault in the code) is not the picture's.
_PICTURE_ERRORS = (OSError, TypeError, ValueError, ArithmeticError)


class Annotator:
    """`Annotator(model)(batch)`: a batch of images to a batch of answers, for `map` of `datasets` and Ray Data.

    It can be pickled: it carries its options and loads the model where it is first used.

    Args:
        model: checkpoint folder or repository; None for the embedded model, which knows drawings only.
        batch_size: people per forward.
        only_positive, sensitive: as for the pipeline.
        device: as for the pipeline.
        dtype: of the weights; None: as they were saved, `"auto"`: `vlm_par_hf.inference_dtype(device)`.

    Raises:
        ValueError: `batch_size` is below 1.
        Loading raises what `transformers.pipeline` raises.
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
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        self.model = None if model is None else os.fspath(model)
        self.batch_size, self.device = batch_size, device
        self.dtype = inference_dtype(device) if dtype == "auto" else dtype
        self.only_positive, self.sensitive = only_positive, sensitive

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pipe"}

    @cached_property
    def pipe(self) -> PedestrianAttributesPipeline:
        """The pipeline that answers, loaded at the first use."""
        from transformers import pipeline

        options = {"model": self.model, "device": self.device, "dtype": self.dtype}
        return pipeline(TASK, **{name: value for name, value in options.items() if value is not None})

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Answers a batch of any size, `batch_size` people at a time.

        Args:
            batch: columns of equal length. `"image"` holds what `open_image` takes: paths, encoded bytes, `{"bytes",
                "path"}`, arrays or PIL images.

        Returns:
            The other columns, `"prediction"`: JSON text `{"attributes": {...}}` as the pipeline answers, None for an
            image that cannot be read, and `"error"`: the reason, None for the others.
        """
        images = list(batch["image"])
        chunks = (images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))
        answers = list(self.stream(chunks))
        return {
            **{name: batch[name] for name in batch if name != "image"},
            "prediction": [None if answer is None else to_json(answer) for answer, _ in answers],
            "error": [error for _, error in answers],
        }

    def stream(self, batches: Iterable[Sequence[Any]]) -> Iterator[tuple[dict[str, Any], None] | tuple[None, str]]:
        """Answers batches of images, each in one forward, while threads prepare the next ones.

        Yields:
            `(answer, None)` per image, in order; `(None, reason)` for an image that cannot be read.
        """
        pipe = self.pipe  # an error about the model comes before one about an image
        # Two batches ahead; inside a batch `thread_map` shares the work.
        pool = ThreadPoolExecutor(min(2, default_threads()), thread_name_prefix="annotator")
        try:
            # In-memory images are opened in this thread: two entries may be one object, which Pillow cannot decode in
            # two threads.
            opened = ([image if is_image_file(image) else _open(image) for image in batch] for batch in batches)
            prepared = read_ahead(((1, partial(self._prepare, batch)) for batch in opened), pool, 3)
            for errors, outputs in predict_batches(pipe.model, prepared):
                answers = iter(())
                if outputs is not None:
                    options = {"only_positive": self.only_positive, "sensitive": self.sensitive}
                    answers = iter(pipe.postprocess(outputs, **options))
                for error in errors:
                    yield (next(answers), None) if error is None else (None, error)
        finally:
            pool.shutdown(cancel_futures=True)

    def rows(
        self, images: ImageList, ranges: Iterable[range] | None = None
    ) -> Iterator[tuple[Row, dict[str, Any] | None, str | None]]:
        """As `stream`, over an image list, each answer with its row.

        Args:
            ranges: which images; None for all. A batch never crosses the border of a range, so that the same ranges
                are answered in the same batches, whatever was done before.
        """
        waiting: deque[Row] = deque()

        def batches() -> Iterator[list[Any]]:
            rows, at = iter(()), None
            for part in [range(len(images))] if ranges is None else ranges:
                if part.start != at:
                    rows = images.rows(part.start)
                for start in range(part.start, part.stop, self.batch_size):
                    batch = list(islice(rows, min(self.batch_size, part.stop - start)))
                    waiting.extend(batch)
                    yield [row.image for row in batch]
                at = part.stop

        for answer, error in self.stream(batches()):
            yield waiting.popleft(), answer, error

    def _prepare(self, images: Sequence[Any]) -> tuple[list[str | None], dict[str, torch.Tensor] | None]:
        """A reason or None per image, and the model's inputs of the images that are good (None: of none)."""
        opened = thread_map(lambda image: _open(image) if is_image_file(image) else image, images)
        good = [one for one in opened if not isinstance(one, Exception)]
        try:
            inputs = self._inputs(good) if good else None
        except _PICTURE_ERRORS:
            # One of them is too odd for the processor: the others must not suffer.
            opened = [one if isinstance(one, Exception) else self._tried(one) for one in opened]
            good = [one for one in opened if not isinstance(one, Exception)]
            inputs = self._inputs(good) if good else None
        return [str(one) if isinstance(one, Exception) else None for one in opened], inputs

    def _inputs(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.pipe.processor(images=pictures, return_tensors="pt"))

    def _tried(self, picture: Image.Image) -> Image.Image | Exception:
        try:
            self._inputs([picture])
        except _PICTURE_ERRORS as error:
            return ValueError(f"the image of size {picture.size} cannot be prepared for the model: {error}")
        return picture

    def fingerprint(self) -> str:
        """A digest of what decides the answers: weights, configuration and processor, not where they lie."""
        digest = hashlib.blake2b(digest_size=16)
        model, processor = self.pipe.model, self.pipe.processor
        for part in (model.config, processor.image_processor):
            digest.update(json.dumps(_without_places(part.to_dict()), sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _open(image: Any) -> Image.Image | Exception:
    try:
        return open_image(image)
    except _PICTURE_ERRORS as error:
        return error


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without_places(value: Any) -> Any:
    """A configuration without where it came from and what wrote it."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not str(key).startswith("_")}
        kept.pop("transformers_version", None)
        return {key: _without_places(item) for key, item in kept.items()}
    return [_without_places(item) for item in value] if isinstance(value, (list, tuple)) else value
