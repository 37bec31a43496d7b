"""The rule from probabilities to answers, which metrics, processor and exported models follow.

The answer to a binary attribute is its second label if that label's probability is strictly above the attribute's
threshold, else its first label. The answer to an attribute with more labels is the most probable one.
`vlm_par_hf.base.decisions.decide` is the same rule for torch tensors.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError

from .schema import Attribute, AttributeSchema


__all__ = ["decide", "is_positive_answer", "read_thresholds"]


def decide(
    probabilities: np.ndarray, schema: AttributeSchema, thresholds: np.ndarray | Sequence[float] | None = None
) -> np.ndarray:
    """The class index of each answer.

    Args:
        probabilities: `(..., A, C)`, C the largest number of labels; 0 past an attribute's own labels.
        schema: the label space.
        thresholds: `(A,)`, used for binary attributes only; None: those of the schema.

    Returns:
        int64 `(..., A)`.
    """
    if thresholds is None:
        thresholds = [attribute.threshold for attribute in schema]
    binary = np.array([attribute.is_binary for attribute in schema])
    answers = probabilities.argmax(axis=-1)
    positive = probabilities[..., 1] > np.asarray(thresholds, dtype=np.float64)
    answers[..., binary] = positive[..., binary]
    return answers


def read_thresholds(
    schema: AttributeSchema, threshold: float | str | Sequence[float] | Mapping[str, float] | None = None
) -> np.ndarray:
    """One threshold per attribute, float64 `(A,)`.

    Args:
        schema: the label space.
        threshold: None or `"schema"`: each attribute's own threshold; a number: the same for all; A numbers: one each;
            a dict: for the attributes that it names, while all others keep their own.

    Raises:
        ValueError: a threshold outside [0, 1], another text, or another number of them.
        KeyError: the dict names an unknown attribute.
    """
    own = np.array([attribute.threshold for attribute in schema], dtype=np.float64)
    if threshold is None or (isinstance(threshold, str) and threshold == "schema"):
        return own
    if isinstance(threshold, str):
        raise ParValueError(f"threshold={threshold!r}, expected None, 'schema', or numbers in [0, 1]")
    if isinstance(threshold, Mapping):
        values = own
        for name, value in threshold.items():
            values[schema.index(name)] = value
    else:
        values = np.asarray(threshold, dtype=np.float64)
        if values.ndim and values.shape != own.shape:
            raise ParValueError(f"threshold has shape {values.shape}, expected one number or {len(schema)}")
        values = np.broadcast_to(values, own.shape)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        position = int(wrong.argmax())
        raise ParValueError(
            f"threshold of attribute {schema.names[position]!r} must lie between 0 and 1, got {values[position]:g}"
        )
    return values


def is_positive_answer(label: str, attribute: Attribute | None = None) -> bool:
    """Whether an answer says that something is there, as opposed to "no".

    Args:
        label: the predicted label.
        attribute: if it is given and binary, its second label is the positive answer. Otherwise every label but "no"
            and "none" is positive.
    """
    if attribute is not None and attribute.is_binary:
        return label == attribute.labels[1]
    return label.strip().lower() not in ("no", "none")
