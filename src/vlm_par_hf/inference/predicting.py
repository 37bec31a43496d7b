"""The one way from prepared inputs to a model's outputs: pipeline, annotation, evaluation and export parity use it.

What is around it differs and stays where it belongs: who opens pictures, in which threads, and what becomes of the
answers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader

from vlm_par_hf.base.modeling import ParPreTrainedModel


__all__ = ["collate_inputs", "evaluation_mode", "predict_batch", "predict_batches", "predict_logits", "read_ahead"]

Carried = TypeVar("Carried")


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: a model straight from training would answer with dropout."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@torch.no_grad()
def predict_batch(
    model: ParPreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    *,
    attributes: Any = None,
    explain: bool = False,
) -> dict[str, torch.Tensor]:
    """What a model answers, in evaluation mode, whatever mode it was left in.

    Args:
        model: answers on the device where it lies.
        inputs: keywords of its `forward`, on any device; floating ones are cast to the model's dtype.
        attributes: what `encode_attributes` returned, for a model with `supports_attributes`.
        explain: whether to say where the answers come from.

    Returns:
        On the CPU: `logits` float32 `(B, A, C)`; with `explain` also `relevance` float32 `(B, A, N)` and, for NaFlex,
        `spatial_shapes` int64 `(B, 2)`.
    """
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    asked = {} if attributes is None else {"attributes": attributes}
    outputs = {}
    with evaluation_mode(model):
        given = inputs
        if explain and model.supports_features:
            # The vision tower, which is nearly all of the work, runs once for both.
            features = model.get_image_features(**inputs)
            given = dict(zip(("patch_embeds", "image_embeds", "patch_mask"), features))
        outputs["logits"] = model(**given, **asked).logits.float()
        if explain:
            outputs["relevance"] = model.explain(**given, **asked)
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
        model: as there.
        batches: pairs of anything and the inputs of a batch; None in their place: nothing to answer.
        options: as there.

    Yields:
        What came with the batch, and its outputs (None where there were no inputs), in order.
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
        model: run in evaluation mode on its own device.
        processor: its processor.
        dataset: a split with `image` and `labels`, or a `FeatureDataset`.
        batch_size: images per forward pass.
        workers: data loader processes.
        progress: show a progress bar.

    Returns:
        float32 `(S, A, C)` and int64 `(S, A)`, in the order of the split.

    Raises:
        ValueError: the split is empty, or a label is no class index of its attribute.
    """
    from vlm_par_hf.data import AugmentedDataset, ParCollator
    from vlm_par_hf.features import FeatureDataset

    if len(dataset) == 0:
        raise ValueError("the split is empty: expected at least one image")
    if not isinstance(dataset, (AugmentedDataset, FeatureDataset)):
        dataset = AugmentedDataset(dataset)
    collator = ParCollator(processor, model.config.schema)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collator)
    batches = ((batch.pop("labels").numpy(), batch) for batch in loader)
    logits, labels = [], []
    bar = tqdm(total=len(dataset), desc="predict", unit="image", disable=not progress, leave=False)
    with bar, evaluation_mode(model):
        for known, outputs in predict_batches(model, batches):
            logits.append(outputs["logits"].numpy())
            labels.append(known)
            bar.update(len(known))
    return np.concatenate(logits), np.concatenate(labels)


def collate_inputs(items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Joins inputs with a leading axis of 1; a shorter patch axis is filled with zeros, which the mask leaves out."""
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
    """Results of weighted tasks, in order, while the next ones are under way in threads.

    Args:
        tasks: pairs of a weight and what is to be done.
        pool: None does each task when its result is asked for.
        ahead: tasks of this weight together are under way.

    An error, of a task or of `tasks`, comes after the results before it.
    """
    if pool is None:
        for _, task in tasks:
            yield task()
        return
    under_way: deque[tuple[int, Future]] = deque()
    weights, ended, failure = 0, False, None
    while True:
        while not ended and weights < ahead:
            try:
                weight, task = next(tasks)
            except StopIteration:
                ended = True
            except Exception as error:
                ended, failure = True, error
            else:
                under_way.append((weight, pool.submit(task)))
                weights += weight
        if not under_way:
            break
        weight, future = under_way.popleft()
        weights -= weight
        yield future.result()
    if failure is not None:
        raise failure
