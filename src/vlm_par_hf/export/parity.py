"""Parity check: how far the answers of an exported file are from those of its checkpoint, and on which images."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from transformers import PreTrainedModel

from vlm_par_hf.base.decisions import decide, label_probabilities
from vlm_par_hf.errors import ParRuntimeError, ParValueError
from vlm_par_hf.images.opening import IMAGE_SUFFIXES, open_image
from vlm_par_hf.inference.predicting import predict_batch
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.utils import iterate


__all__ = ["NUM_COMPARED", "compare_answers", "draw_people", "pick_images", "prepare_inputs"]

NUM_CALIBRATION, NUM_COMPARED = 128, 256
_BATCH = 8


def pick_images(
    source: str,
    root: str | Path | None = None,
    *,
    num_calibration: int = NUM_CALIBRATION,
    num_compared: int = NUM_COMPARED,
    seed: int = 0,
    **options: Any,
) -> tuple[Sequence, Sequence, str]:
    """Images for `export_model`: to calibrate with, to compare on (never the same ones), and a text about them.

    Args:
        source: a folder of images, or a data set that `load_par_dataset` knows: its training images calibrate, its
            validation images are compared.
        root: folder of the data set.
        num_calibration, num_compared: how many of each at most; a small folder is halved.
        seed: seed of the random choice.
        options: more keywords of `load_par_dataset`.

    Raises:
        ValueError: the folder holds fewer than two images.
        OSError, ValueError: as `load_par_dataset`.
    """
    generator = np.random.default_rng(seed)
    if root is None and Path(source).is_dir():
        files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if len(files) < 2:
            raise ParValueError(f"the folder {source!r} holds {len(files)} images, expected at least 2")
        files = [files[index] for index in generator.permutation(len(files))]
        half = min(num_calibration, len(files) // 2)
        return files[:half], files[half : half + num_compared], f"the folder {Path(source).name}"
    from vlm_par_hf.data import load_par_dataset

    data = load_par_dataset(source, root, **options)

    def pick(split: str, number: int) -> Sequence:
        chosen = generator.permutation(len(data[split]))[:number]
        return data[split].select(sorted(chosen.tolist()))["image"]

    train = pick("train", num_calibration)
    return train, pick("validation", num_compared), f"{source}: train calibrates, validation is compared"


def draw_people(number: int) -> list:
    """Pictures of drawn pedestrians."""
    from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person

    # Their own seed: nobody who is in a synthetic training set by default.
    people = [SyntheticPerson.sample(2**31, index) for index in range(number)]
    return [render_person(person, Frame.sample(person, 0)) for person in people]


def prepare_inputs(processor: Any, images: Sequence, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The model's inputs, batch after batch; images are opened when their batch is asked for."""
    images = iterate(images, "images")
    while chosen := [open_image(image) for image in islice(images, batch_size)]:
        yield dict(processor(images=chosen, return_tensors="pt"))


def compare_answers(
    model: PreTrainedModel, exported: PreTrainedModel, processor: Any, images: Sequence
) -> dict[str, Any]:
    """Compares the logits and decisions of two models on the same pixels; returns their part of the record.

    Raises:
        RuntimeError: a logit of one of them is not finite; the message names whose, the image and the attribute.
    """
    schema, given = model.config.schema, model.config.decisions
    decisions = None if given is None else Decisions.from_dict(given)
    mask = torch.from_numpy(schema.label_mask())
    largest = difference = 0.0
    changed = torch.zeros(len(schema), dtype=torch.int64)
    batches = prepare_inputs(processor, images, _BATCH)
    bar = tqdm(batches, total=-(-len(images) // _BATCH), desc="compare", leave=False)
    for number, inputs in enumerate(bar):
        names = range(number * _BATCH, (number + 1) * _BATCH)
        wanted = _answer("the checkpoint", model, inputs, names)
        found = _answer("the exported file", exported, inputs, names)
        largest = max(largest, float(wanted[:, mask].abs().max()))
        difference = max(difference, float((wanted - found)[:, mask].abs().max()))
        answers = (decide(label_probabilities(logits, schema), schema, decisions) for logits in (wanted, found))
        changed += torch.ne(*answers).sum(0)
    total = len(images) * len(schema)
    return {
        "max_abs_logit": largest,
        "max_abs_difference": difference,
        "decisions": total,
        "changed_decisions": int(changed.sum()),
        "unchanged_share": 1 - int(changed.sum()) / total,
        "changed_by_attribute": {name: int(number) for name, number in zip(schema.names, changed) if number},
    }


def _answer(whose: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor], names: Sequence[int]) -> torch.Tensor:
    try:
        return predict_batch(model, inputs, names=names)["logits"]
    except ParValueError as error:
        raise ParRuntimeError(f"{whose} gives no answer, and nothing was written: {error}") from error
