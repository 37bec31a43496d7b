"""Tracklets, several frames of one person, answered by models of single pictures and by models that take frames."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_par_hf.errors import ParError, ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.images.opening import is_one_image, open_image
from vlm_par_hf.labels.decisions import decide, label_softmax, read_thresholds
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import thread_map

from .pictures import find_doubt, least_doubt, measure_person
from .predicting import predict_logits
from .results import PersonResult


__all__ = [
    "AGGREGATES",
    "Stream",
    "Tracklet",
    "aggregate_logits",
    "answer_tracklets",
    "chosen_aggregate",
    "find_tracklets",
    "frame_quality",
    "predict_tracklets",
]

AGGREGATES = ("mean_logits", "quality", "vote")
_FEWEST_VOTES = 1e-3  # a label that no frame votes for
# A frame whose answers agree with the others' by 0.01 less counts half as much: chosen on validation tracklets.
_AGREEMENT_COUNTS = 60.0


class Tracklet(Sequence):
    """Several frames of one person, in their order: one item of a call of the pipeline, where a list is several.

    Args:
        frames: pictures of the kinds that `open_image` takes, at least one; or a folder of image files, in the order
            of the numbers in their names.

    Raises:
        TypeError: `frames` is neither.
        FileNotFoundError: the folder does not exist.
        ValueError: no frame.
    """

    def __init__(self, frames: Sequence[Any] | str | os.PathLike[str]) -> None:
        if isinstance(frames, (str, os.PathLike)):
            from vlm_par_hf.data.readers.files import list_images
            from vlm_par_hf.data.readers.tracklet_tables import in_order

            folder = Path(frames)
            if not folder.is_dir():
                raise ParFileNotFoundError(f"{folder} is no folder, expected that of the frames of a tracklet")
            frames = [str(folder / name) for name in in_order(list_images(folder))]
            if not frames:
                raise ParValueError(f"{folder} holds no image, expected the frames of a tracklet")
        if is_one_image(frames) or not isinstance(frames, Sequence):
            raise ParTypeError(
                f"frames is a {type(frames).__name__}, expected a list of pictures or a folder (one picture is no "
                "tracklet: call the pipeline with it, or pass [picture])"
            )
        if not frames:
            raise ParValueError("frames is empty, expected at least one picture of the person")
        self.frames = list(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        return self.frames[index]

    def __repr__(self) -> str:
        return f"Tracklet({len(self)} frames)"


# From the logits of frames to those of a tracklet


def aggregate_logits(
    logits: np.ndarray,
    schema: AttributeSchema,
    aggregate: str = "mean_logits",
    *,
    thresholds: float | str | Sequence[float] | None = None,
    biases: np.ndarray | None = None,
) -> np.ndarray:
    """The logits of a tracklet from those of its frames.

    Args:
        logits: `(T, A, C)`, at least one frame.
        schema: their label space.
        aggregate: `"mean_logits"`: their mean, all frames alike. `"quality"`: a weighted mean, by `frame_quality`.
            `"vote"`: each frame answers; the probability of a label is the share of the frames that gave it, so the
            answer is that of the majority at a threshold of 0.5.
        thresholds: of the votes, as `read_thresholds` takes them; None: those of the schema.
        biases: `(A, C)`, of the votes, as `decide` takes them.

    Returns:
        float32 `(A, C)`.

    Raises:
        ValueError: no frame, other shapes, or an unknown `aggregate`.
    """
    check_aggregate(aggregate)
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 3 or logits.shape[1:] != (len(schema), schema.max_labels) or not len(logits):
        raise ParValueError(
            f"logits has shape {logits.shape}, expected (frames, {len(schema)}, {schema.max_labels}) with at least "
            "one frame"
        )
    if aggregate == "mean_logits":
        return logits.mean(0).astype(np.float32)
    probabilities = label_softmax(logits, schema)
    if aggregate == "quality":
        weights = frame_quality(probabilities, schema)
        return np.einsum("t,tac->ac", weights / weights.sum(), logits).astype(np.float32)
    held = read_thresholds(schema, "schema" if thresholds is None else thresholds)
    shares = np.eye(schema.max_labels)[decide(probabilities, schema, held, biases)].mean(0)
    found = np.log(np.maximum(shares, _FEWEST_VOTES))
    return np.where(schema.label_mask(), found, logits.min(0)).astype(np.float32)


def check_aggregate(aggregate: Any) -> None:
    """Refuses an unknown way to put frames together."""
    if aggregate not in AGGREGATES:
        raise ParValueError(f"aggregate is {aggregate!r:.40}, expected one of {', '.join(AGGREGATES)}")


def frame_quality(probabilities: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """How much each frame of a tracklet is worth, by how well its answers agree with those of the others.

    A frame in which the person is hidden, or somebody else is seen, is answered otherwise than the rest. The agreement
    of a frame is the probability that its answer for an attribute is that of another frame, as both are given, over
    all attributes and other frames. Of one or two frames none is better than the other.

    Args:
        probabilities: `(T, A, C)`, 0 past an attribute's own labels.
        schema: their label space.

    Returns:
        float64 `(T,)`, the largest is 1.
    """
    p = np.asarray(probabilities, np.float64)
    if len(p) < 3:
        return np.ones(len(p))
    others = (p.sum(0) - p) / (len(p) - 1)
    agreement = (p * others).sum(-1).mean(-1)
    return np.exp(_AGREEMENT_COUNTS * (agreement - agreement.max()))


def predict_tracklets(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    aggregate: str | None = None,
    num_frames: int | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a split of tracklets.

    Args:
        model, processor: as for `predict_logits`.
        dataset: rows with `image`, `labels`, `tracklet_id` and `frame`.
        aggregate: how the logits of frames become those of a tracklet, for a model of single pictures (None:
            `"mean_logits"`); must be None for a model that takes several frames.
        num_frames: at most so many frames per tracklet; None: all, or the number that the model was trained with.
        options: `batch_size`, `workers`, `progress`.

    Returns:
        float32 `(S, A, C)` and int64 `(S, A)` of S tracklets, in the order of `group_tracklets`.

    Raises:
        ValueError: as `group_tracklets` and `predict_logits`; `aggregate` for a model that takes several frames.
    """
    from vlm_par_hf.data.tracklets import TrackletDataset, group_tracklets, one_row_per_tracklet, sample_frames

    if model.supports_tracklets:
        _refuse_aggregate(model, aggregate)
        frames = TrackletDataset(dataset, num_frames or model.config.num_frames)
        return predict_logits(model, processor, frames, **options)
    groups = group_tracklets(dataset)
    if num_frames is not None:
        groups = [rows[sample_frames(len(rows), num_frames)] for rows in groups]
    logits, _ = predict_logits(model, processor, dataset.select(np.concatenate(groups)), **options)
    parts = np.split(logits, np.cumsum([len(rows) for rows in groups])[:-1])
    schema = model.config.schema
    found = np.stack([aggregate_logits(one, schema, aggregate or "mean_logits") for one in parts])
    return found, np.asarray(one_row_per_tracklet(dataset)["labels"][:], np.int64)


def chosen_aggregate(model: Any, aggregate: str | None) -> str | None:
    """How a model's answers for frames are put together; None for a model that takes several frames.

    Raises:
        ValueError: `aggregate` is unknown, or the model takes several frames.
    """
    if model.supports_tracklets:
        _refuse_aggregate(model, aggregate)
        return None
    aggregate = aggregate or "mean_logits"
    check_aggregate(aggregate)
    return aggregate


def _refuse_aggregate(model: Any, aggregate: str | None) -> None:
    if aggregate is not None:
        raise ParValueError(
            f"aggregate is {aggregate!r:.40}, but {type(model).__name__} takes all frames of a person at once: leave "
            "it out"
        )


# Calls of the pipeline


def find_tracklets(inputs: Any) -> tuple[Iterator[Tracklet] | None, bool]:
    """The tracklets that a call of the pipeline was given.

    Returns:
        An iterator over them, or None for pictures and for an iterator, of which nothing is known yet (`Stream`);
        and whether it is one tracklet.
    """
    if _is_tracklet(inputs):
        return iter([_as_tracklet(inputs)]), True
    # A `TrackletDataset`, or a data set with a column of them.
    in_rows = hasattr(inputs, "tracklets") or "frames" in (getattr(inputs, "column_names", None) or ())
    if (isinstance(inputs, (list, tuple)) or in_rows) and len(inputs) and _is_tracklet(inputs[0]):
        return map(_as_tracklet, _items(inputs)), False
    return None, False


class Stream(Iterator):
    """An iterator of which is not known whether it gives pictures or tracklets before its first item is asked for.

    Args:
        items: the iterator.
    """

    def __init__(self, items: Iterator[Any]):
        self._items = items

    def __next__(self) -> Any:
        return next(self._items)

    def answer(
        self, pictures: Iterator[Any], tracklets: Callable[[Iterator[Tracklet]], Iterator[Any]]
    ) -> Iterator[Any]:
        """The results of `pictures`, which reads this stream, or of what `tracklets` makes of it."""
        try:
            first = [next(self._items)]
        except Exception as error:  # also where it ends: whoever reads it says which item that was
            self._items, first = _raise(error), []
        else:
            self._items = itertools.chain(first, self._items)
        yield from tracklets(map(_as_tracklet, self)) if first and _is_tracklet(first[0]) else pictures


def _raise(error: Exception) -> Iterator[Any]:
    if not isinstance(error, StopIteration):
        raise error
    yield from ()


def _items(inputs: Sequence[Any]) -> Iterator[Any]:
    return (inputs[index] for index in range(len(inputs)))


def _is_tracklet(item: Any) -> bool:
    return isinstance(item, Tracklet) or (isinstance(item, Mapping) and "frames" in item)


def _as_tracklet(item: Any) -> Tracklet:
    if isinstance(item, Mapping) and "frames" in item:
        item = Tracklet(item["frames"])
    if not isinstance(item, Tracklet):
        raise ParTypeError(f"a {type(item).__name__} among tracklets, expected a Tracklet or a dict with 'frames'")
    return item


def answer_tracklets(
    pipe: Any,
    tracklets: Iterable[Tracklet],
    *,
    aggregate: str | None,
    num_frames: int | None,
    batch_size: int,
    forward_params: Mapping[str, Any],
    postprocess_params: Mapping[str, Any],
) -> Iterator[PersonResult]:
    """Yields the answer for each tracklet, in order.

    Args:
        pipe: the pipeline.
        tracklets: taken `batch_size` at a time.
        aggregate: as for `predict_tracklets`.
        num_frames: at most so many frames per tracklet, spread evenly; None: all.
        batch_size: pictures per forward, or tracklets of a model that takes several frames.
        forward_params, postprocess_params: of the call.

    Raises:
        ValueError, TypeError, OSError: an option that needs single pictures, or a frame that cannot be read; the
            message names tracklet and frame.
    """
    aggregate = chosen_aggregate(pipe.model, aggregate)
    if forward_params.get("explain"):
        raise ParValueError("explain shows the patches of one picture, and tracklets were given: leave it out")
    if num_frames is not None and (isinstance(num_frames, bool) or num_frames < 1):
        raise ParValueError(f"num_frames is {num_frames!r}, expected at least 1, or None for all frames")
    remaining, first, failure = iter(tracklets), 0, None
    while failure is None:
        chunk, opened = [], []
        try:
            for one in itertools.islice(remaining, batch_size):
                opened.append(_open_frames(one, first + len(chunk), num_frames))
                chunk.append(one)
        except Exception as error:  # raised when what came before it is answered
            failure = error
        if chunk:
            names = [f"tracklet {first + number}" for number in range(len(chunk))]
            first += len(chunk)
            logits = _logits_of(pipe, opened, names, aggregate, batch_size, forward_params, postprocess_params)
            options = {**postprocess_params, "majority": aggregate == "vote"}
            doubts = None
            if options.get("abstain") is not None:
                doubts = [least_doubt(find_doubt(one.height, measure_person(one)) for one in own) for own in opened]
            results = pipe.postprocess({"logits": logits}, doubts=doubts, **options)
            for one, frames, result in zip(chunk, opened, results):
                found = PersonResult({**result, "num_frames": len(frames)})
                found.remember(one[len(one) // 2], {})
                yield found
        elif failure is None:
            return
    raise failure


def _open_frames(tracklet: Tracklet, number: int, num_frames: int | None) -> list[Any]:
    from vlm_par_hf.data.tracklets import sample_frames

    places = range(len(tracklet)) if num_frames is None else sample_frames(len(tracklet), num_frames)

    def open_one(place: int) -> Any:
        try:
            return open_image(tracklet[place])
        except ParError as error:
            raise type(error)(f"tracklet {number}, frame {place}: {error}") from error

    return thread_map(open_one, list(places))


def _logits_of(pipe, opened, names, aggregate, batch_size, forward_params, postprocess_params) -> torch.Tensor:
    """`(tracklets, A, C)`."""
    if aggregate is None:
        inputs = dict(pipe.processor(videos=opened, return_tensors="pt"))
        return pipe._forward(inputs, names=names, **forward_params)["logits"]
    frames = [(f"{name}, frame {place}", one) for name, own in zip(names, opened) for place, one in enumerate(own)]
    parts = []
    for start in range(0, len(frames), batch_size):
        batch = frames[start : start + batch_size]
        inputs = dict(pipe.processor(images=[one for _, one in batch], return_tensors="pt"))
        parts.append(pipe._forward(inputs, names=[name for name, _ in batch], **forward_params)["logits"])
    schema, thresholds, biases = pipe.frame_decisions(postprocess_params)
    per_tracklet = torch.cat(parts).numpy()
    stops = np.cumsum([len(own) for own in opened])[:-1]
    return torch.from_numpy(
        np.stack(
            [
                aggregate_logits(one, schema, aggregate, thresholds=thresholds, biases=biases)
                for one in np.split(per_tracklet, stops)
            ]
        )
    )
