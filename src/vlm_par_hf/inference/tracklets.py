"""Several frames of one person, answered by a model of single pictures: from logits per frame to those of a tracklet."""

from collections.abc import Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.decisions import decide, label_softmax, read_thresholds
from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["AGGREGATES", "aggregate_logits", "frame_quality"]

AGGREGATES = ("mean_logits", "quality", "vote")
_FEWEST_VOTES = 1e-3  # a label that no frame votes for


def aggregate_logits(
    logits: np.ndarray,
    schema: AttributeSchema,
    aggregate: str = "mean_logits",
    *,
    thresholds: float | str | Sequence[float] | None = None,
) -> np.ndarray:
    """The logits of a tracklet from those of its frames.

    Args:
        logits: `(T, A, C)`, at least one frame.
        schema: their label space.
        aggregate: `"mean_logits"`: their mean, all frames alike. `"quality"`: a weighted mean, by `frame_quality`.
            `"vote"`: each frame answers; the probability of a label is the share of the frames that gave it, so the
            answer is that of the majority at a threshold of 0.5.
        thresholds: of the votes, as `read_thresholds` takes them; None: those of the schema.

    Returns:
        float32 `(A, C)`.

    Raises:
        ValueError: no frame, other shapes, or an unknown `aggregate`.
    """
    if aggregate not in AGGREGATES:
        raise ParValueError(f"aggregate is {aggregate!r:.40}, expected one of {', '.join(AGGREGATES)}")
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 3 or logits.shape[1:] != (len(schema), schema.max_labels) or not len(logits):
        raise ParValueError(
            f"logits has shape {logits.shape}, expected (frames, {len(schema)}, {schema.max_labels}) with at least one "
            "frame"
        )
    if aggregate == "mean_logits":
        return logits.mean(0).astype(np.float32)
    probabilities = label_softmax(logits, schema)
    if aggregate == "quality":
        weights = frame_quality(probabilities, schema)
        return np.einsum("t,tac->ac", weights / weights.sum(), logits).astype(np.float32)
    answers = decide(probabilities, schema, read_thresholds(schema, "schema" if thresholds is None else thresholds))
    shares = np.eye(schema.max_labels)[answers].mean(0)
    found = np.log(np.maximum(shares, _FEWEST_VOTES))
    return np.where(schema.label_mask(), found, logits.min(0)).astype(np.float32)


def frame_quality(probabilities: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """How much each frame of a tracklet is worth, float64 `(T,)`, above 0."""
    p = np.asarray(probabilities, np.float64)
    certain = np.where(schema.label_mask(), p, 0).max(-1).mean(-1)
    agree = (p * p.mean(0)).sum(-1).mean(-1)
    return np.exp(10 * (certain + agree))
