"""Measuring a checkpoint on a data set with another label space."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader

from vlm_par_hf.base.decisions import label_probabilities
from vlm_par_hf.base.modeling import evaluation_mode
from vlm_par_hf.data import AugmentedDataset, ParCollator
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.inference.predicting import predict_batch
from vlm_par_hf.labels.matching import LabelMatch, match_label_spaces, read_mapping
from vlm_par_hf.labels.schema import AttributeSchema

from .provenance import DataFacts, check_schema


__all__ = ["OtherLabels", "predict_matched", "read_label_space"]


@dataclass(frozen=True, eq=False)
class OtherLabels:
    """How a data set with another label space is measured.

    Attributes:
        match: the attributes that both have.
        rest: the label space of the others; None if there are none.
    """

    match: LabelMatch
    rest: AttributeSchema | None

    def to_dict(self, *, zero_shot: bool) -> dict[str, Any]:
        """For the record."""
        rest = [] if self.rest is None else list(self.rest.names)
        return {
            "attributes": dict(zip(self.match.schema.names, self.match.described)),
            "matched_by_name_alone": list(self.match.by_name),
            "zero_shot": rest if zero_shot else [],
            "left_out": [] if zero_shot else rest,
        }


def read_label_space(
    model: AttributeSchema,
    data: AttributeSchema,
    *,
    mapping: Mapping[str, Any] | str | Path | None = None,
    zero_shot: bool = False,
) -> OtherLabels | None:
    """How a data set is to be measured; None if its label space is the model's.

    Raises:
        ValueError: no attribute in common; a mapping or `zero_shot` with nothing to do.
    """
    if [(one.name, one.labels) for one in model] == [(one.name, one.labels) for one in data]:
        for name, given in (("mapping", mapping is not None), ("zero_shot", zero_shot)):
            if given:
                raise ParValueError(
                    f"{name} is for a data set with another label space; this one has the checkpoint's"
                )
        check_schema(data, model)  # the wording may differ
        return None
    if isinstance(mapping, (str, Path)):
        mapping = read_mapping(mapping)
    match = match_label_spaces(model, data, mapping)
    rest = [replace(data[name], mirror=None, requires=None) for name in match.unmatched]
    return OtherLabels(match, AttributeSchema(rest) if rest else None)


def predict_matched(
    model, processor, split, facts: DataFacts, asked: OtherLabels, *, zero_shot: bool, **options: Any
) -> tuple[np.ndarray, np.ndarray, AttributeSchema]:
    """Probabilities and labels of the attributes of a data set with another label space.

    Args:
        model: on its device.
        processor: its processor.
        split: with `image` and `labels`.
        facts: of the split.
        asked: from `read_label_space`.
        zero_shot: also answer the attributes that the model was not trained on.
        options: `batch_size`, `workers` and `progress`, as for `predict_logits`.

    Returns:
        float64 `(N, A, C)`, int64 `(N, A)`, and the label space of both: the matched attributes, then those answered
        from their texts, each in the order of the data set.

    Raises:
        ValueError: `zero_shot` for a model that cannot answer from texts.
    """
    match, labels = asked.match, asked.match.labels(facts.labels)
    texts = None
    if zero_shot and asked.rest is not None:
        if not model.supports_attributes:
            raise ParValueError(f"zero_shot: {model.why_no_texts}")
        texts = model.encode_attributes(asked.rest, processor)
        columns = [facts.schema.index(name) for name in texts.schema.names]
        labels = np.concatenate([labels, facts.labels[:, columns]], axis=1)
    own, other = _predict(model, processor, split, texts, **options)
    parts = [(match.probabilities(own), match.schema)]
    if texts is not None:
        parts.append((other, texts.schema))
    schema = AttributeSchema([one for _, part in parts for one in part])
    padded = [np.pad(values, ((0, 0), (0, 0), (0, schema.max_labels - values.shape[2]))) for values, _ in parts]
    return np.concatenate(padded, axis=1), labels, schema


def _predict(model, processor, split, texts, *, batch_size: int, workers: int, progress: bool):
    """Probabilities float64 `(N, A, C)` of the model's own label space, and of `texts` (None: None)."""
    images = AugmentedDataset(split.select_columns(["image"]))
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=ParCollator(processor))
    own, other = [], []
    bar = tqdm(total=len(images), desc="predict", unit="image", disable=not progress, leave=False)
    with bar, evaluation_mode(model):
        for batch in loader:
            own.append(label_probabilities(predict_batch(model, batch)["logits"], model.config.schema))
            if texts is not None:
                logits = predict_batch(model, batch, attributes=texts)["logits"]
                other.append(label_probabilities(logits, texts.schema))
            bar.update(len(own[-1]))
    return torch.cat(own).double().numpy(), torch.cat(other).double().numpy() if other else None
