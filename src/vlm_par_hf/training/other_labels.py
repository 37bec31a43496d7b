"""Measuring a checkpoint on a data set with another label space."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_par_hf.base.decisions import label_probabilities
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.labels.matching import LabelMatch, match_label_spaces, read_mapping
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema

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
        model: is not changed.
        processor: its processor.
        split: with `image` and `labels`.
        facts: of the split.
        asked: from `read_label_space`.
        zero_shot: also answer the attributes that the model was not trained on.
        options: keywords of `predict_logits`.

    Returns:
        float64 `(N, A, C)`, int64 `(N, A)`, and the label space of both: the matched attributes, then those answered
        from their texts, each in the order of the data set.

    Raises:
        ValueError: `zero_shot` for a model that cannot answer from texts.
    """
    match = asked.match
    rest = asked.rest if zero_shot else None
    if rest is not None:
        _check_zero_shot(model)
    labels = match.labels(facts.labels)
    parts = [
        (match.probabilities(_probabilities(model, processor, split, model.config.schema, options)), match.schema)
    ]
    if rest is not None:
        other = copy.deepcopy(model)
        other._exchange_attributes(rest, processor)
        parts.append((_probabilities(other, processor, split, rest, options), rest))
        columns = [facts.schema.index(name) for name in rest.names]
        labels = np.concatenate([labels, facts.labels[:, columns]], axis=1)
    schema = AttributeSchema([one for _, part in parts for one in part])
    widest = schema.max_labels
    padded = [np.pad(values, ((0, 0), (0, 0), (0, widest - values.shape[2]))) for values, _ in parts]
    return np.concatenate(padded, axis=1), labels, schema


def _probabilities(model, processor, split, schema: AttributeSchema, options: dict[str, Any]) -> np.ndarray:
    """float64 `(N, A, C)` of the model's own label space; labels of the split play no part."""
    unknown = [[UNKNOWN_LABEL] * len(schema)] * len(split)
    images = split.select_columns(["image"]).add_column("labels", unknown)
    logits, _ = predict_logits(model, processor, images, **options)
    return label_probabilities(torch.from_numpy(logits), schema).double().numpy()


def _check_zero_shot(model) -> None:
    from_backbone = model.supports_training and getattr(model.config, "alignment", "none") != "none"
    if not model.supports_attributes and not from_backbone:
        raise ParValueError(
            f"zero_shot: this {type(model).__name__} answers the attributes that it was trained on and no others; "
            "FOCUS does, and VLM-PAR with alignment='logit'"
        )
