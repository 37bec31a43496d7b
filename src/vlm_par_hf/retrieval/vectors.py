"""What a recogniser says about people, as search and retrieval heads need it: image vectors and probabilities."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from vlm_par_hf.base.modeling import evaluation_mode
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.decisions import label_softmax

from .scoring import flat_probabilities


__all__ = ["PeopleVectors", "model_hash", "people_vectors"]


class PeopleVectors(NamedTuple):
    """What a recogniser gives for N people.

    Attributes:
        image_embeds: float32 `(N, D)`, `ParOutput.image_embeds`.
        probabilities: float32 `(N, L)`, calibrated where the checkpoint is, one column per label.
    """

    image_embeds: np.ndarray
    probabilities: np.ndarray


@torch.no_grad()
def people_vectors(model: Any, batches: Iterable[Mapping[str, torch.Tensor]]) -> PeopleVectors:
    """Runs a frozen recogniser.

    Args:
        model: any model of this package that gives `image_embeds`, on any device.
        batches: keywords of its `forward`: pixels, or features computed before.

    Raises:
        ValueError: no batch, the model gives no image vector, or a number is not finite.
    """
    embeds, probabilities = [], []
    with evaluation_mode(model):
        for batch in batches:
            inputs = {
                name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
                for name, value in batch.items()
                if name != "labels"
            }
            output = model(**inputs)
            if output.image_embeds is None:
                raise ParValueError(
                    f"this {type(model).__name__} gives no vector of a picture (image_embeds is None), expected a "
                    "checkpoint of VLM-PAR, FOCUS or CLEAR"
                )
            scores = label_softmax(output.logits.float().cpu().numpy(), model.config.schema)
            probabilities.append(flat_probabilities(scores, model.config.schema).astype(np.float32))
            embeds.append(output.image_embeds.float().cpu().numpy())
    if not embeds:
        raise ParValueError("there are no pictures: expected at least one")
    found = PeopleVectors(np.concatenate(embeds), np.concatenate(probabilities))
    if not np.isfinite(found.image_embeds).all():
        row = int(np.argwhere(~np.isfinite(found.image_embeds).all(1))[0, 0])
        raise ParValueError(f"the vector of picture {row} is not finite: check the checkpoint and its precision")
    return found


def model_hash(model: Any) -> str:
    """sha256 of all weights of a model in memory and of what else its answers depend on: which recogniser it is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(model.config.decisions, sort_keys=True).encode())
    return digest.hexdigest()
