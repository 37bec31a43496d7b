"""From prepared inputs to a model's outputs: used by the pipeline, annotation, evaluation and the parity of exports.

Its callers differ in how they open pictures, in which threads, and in what they do with the answers; that stays there.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader

from vlm_par_hf.base.decisions import check_scores
from vlm_par_hf.base.modeling import ParPreTrainedModel, evaluation_mode
from vlm_par_hf.errors import ParValueError


__all__ = ["collate_inputs", "predict_batch", "predict_batches", "predict_logits", "read_ahead"]

Carried = TypeVar("Carried")


@torch.no_grad()
def predict_batch(
    model: ParPreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    *,
    attributes: Any = None,
    explain: bool = False,
    names: Sequence[str] | None = None,
) -> dict[str, torch.Tensor]:
    """The outputs of a model for one batch.

    Args:
        model: is run on its own device. The caller has put it in evaluation mode, once: several threads may predict
            with one model, and a mode that each call changes and restores would be seen by the others.
        inputs: keywords of its `forward`, on any device; floating ones are cast to the model's dtype.
        attributes: what `encode_attributes` returned, for a model with `supports_attributes`.
        explain: whether to compute the relevance of each patch too.
        names: of the images, for messages; None: their positions.

    Returns:
        On the CPU: `logits` float32 `(B, A, C)`; with `explain` also `relevance` float32 `(B, A, N)` and, for NaFlex,
        `spatial_shapes` int64 `(B, 2)`.

    Raises:
        ValueError: a score is not finite.
    """
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    named = {} if attributes is None else {"attributes": attributes}
    model_inputs = inputs
    if explain and model.supports_features:
        # The vision tower, which is nearly all of the work, runs once for logits and relevance.
        model_inputs = model.get_image_features(**inputs).as_inputs()
    outputs = {"logits": model(**model_inputs, **named).logits.float()}
    check_scores(outputs["logits"], model.config.schema if attributes is None else attributes.schema, names)
    if explain:
        outputs["relevance"] = model.explain(**model_inputs, **named)
        if "spatial_shapes" in inputs:
            outputs["spatial_shapes"] = inputs["spatial_shapes"]
    return {name: value.cpu() for name, value in outputs.items()}


def predict_batches(
    model: ParPreTrainedModel,
    batches: Iterable[tuple[Carried, Mapping[str, torch.Tensor] | None]],
    **options: Any,
) -> Iterator[tuple[Carried, dict[str, torch.Tensor] | None]]:
    """`predict_batch` for one batch after another.

    Args:
        model: as for `predict_batch`.
        batches: pairs of any object and the inputs of a batch; inputs of None have no outputs.
        options: keywords of `predict_batch`.

    Yields:
        The object that came with the batch, and its outputs (None for inputs of None), in order.
    """
    for carried, inputs in batches:
        yield carried, None if inputs is None else predict_batch(model, inputs, **options)


def predict_logits(
    model: ParPreTrainedModel,
    processor: Any,
    dataset: Any,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a whole split.

    Args:
        model: is run in evaluation mode on its own device.
        processor: its processor.
        dataset: a split with `image` and `labels`, or a `FeatureDataset`.
        batch_size: images per forward pass.
        workers: data loader processes.
        progress: show a progress bar.

    Returns:
        float32 `(S, A, C)` and int64 `(S, A)`, in the order of the split; of a model that takes tracklets, on a split
        of them, S is their number, in the order of `group_tracklets`.

    Raises:
        ValueError: the split is empty, or a label is not a class index of its attribute.
    """
    from vlm_par_hf.data import AugmentedDataset, ParCollator
    from vlm_par_hf.data.tracklets import TrackletDataset, has_tracklets
    from vlm_par_hf.features import FeatureDataset

    if len(dataset) == 0:
        raise ParValueError("the split is empty: expected at least one image")
    if not isinstance(dataset, (AugmentedDataset, FeatureDataset)):
        by_tracklet = model.supports_tracklets and has_tracklets(dataset)
        dataset = TrackletDataset(dataset, model.config.num_frames) if by_tracklet else AugmentedDataset(dataset)
    collator = ParCollator(processor, model.config.schema)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collator)
    batches = ((batch.pop("labels").numpy(), batch) for batch in loader)
    logits, labels = [], []
    bar = tqdm(total=len(dataset), desc="predict", unit="image", disable=not progress, leave=False)
    with bar, evaluation_mode(model):
        for batch_labels, outputs in predict_batches(model, batches):
            logits.append(outputs["logits"].numpy())
            labels.append(batch_labels)
            bar.update(len(batch_labels))
    return np.concatenate(logits), np.concatenate(labels)


def collate_inputs(items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Joins inputs with a leading axis of 1 to a batch; shorter patch axes are padded with zeros, also in the mask."""
    batch = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if values[0].ndim >= 2 and len({value.shape[1] for value in values}) > 1:
            longest = max(value.shape[1] for value in values)
            values = [
                torch.cat([value, value.new_zeros(1, longest - value.shape[1], *value.shape[2:])], dim=1)
                for value in values
            ]
        batch[name] = torch.cat(values)
    return batch


def read_ahead(
    tasks: Iterator[tuple[int, Callable[[], Any]]], pool: ThreadPoolExecutor | None, ahead: int
) -> Iterator[Any]:
    """Results of tasks in order, while threads already work on the next tasks.

    Args:
        tasks: pairs of a weight and a function without arguments.
        pool: the threads; None: each task is done when its result is asked for.
        ahead: tasks are started until their weights add up to this or more.

    Yields:
        What each function returned. An error of a function, or of `tasks` itself, is raised after the results before
        it were yielded.
    """
    if pool is None:
        for _, task in tasks:
            yield task()
        return
    started: deque[tuple[int, Future]] = deque()
    total_weight, ended, failure = 0, False, None
    while True:
        while not ended and total_weight < ahead:
            try:
                weight, task = next(tasks)
            except StopIteration:
                ended = True
            except Exception as error:
                ended, failure = True, error
            else:
                started.append((weight, pool.submit(task)))
                total_weight += weight
        if not started:
            break
        weight, future = started.popleft()
        total_weight -= weight
        yield future.result()
    if failure is not None:
        raise failure
