"""How often each label occurs in the training split, and the class weights that follow from it. NumPy only."""

from collections.abc import Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range


__all__ = ["WEIGHTINGS", "check_priors", "compute_class_weights", "compute_priors"]

WEIGHTINGS = ("balanced", "exp", "sqrt")


def compute_priors(labels: np.ndarray, schema: AttributeSchema, *, smoothing: float = 1.0) -> list[list[float]]:
    """Share of each label among the known labels of the training split, one list of K numbers per attribute.

    Args:
        labels: integer `(N, A)`, -100 = unknown.
        smoothing: pseudo-count added to every label (Laplace). With it, a label that never occurs has a prior above 0,
            and an attribute without any known label has a uniform prior. 0 gives the plain shares.

    Returns:
        Plain lists of floats, each summing to 1, ready for `config.loss["priors"]`.

    Raises:
        ValueError: wrong shape, a label out of range (attribute and value named), negative `smoothing`, or no known
            label for an attribute with `smoothing=0`.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(schema):
        raise ParValueError(f"labels has shape {labels.shape}, expected (N, {len(schema)}): one column per attribute")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ParValueError(f"labels has dtype {labels.dtype}, expected integers (class index, -100 = unknown)")
    if not smoothing >= 0:
        raise ParValueError(f"smoothing={smoothing!r}, expected a number >= 0")
    check_label_range(labels, schema)
    priors = []
    for attribute, column in zip(schema, labels.T):
        known = column[column != UNKNOWN_LABEL]
        counts = np.bincount(known, minlength=attribute.num_labels) + float(smoothing)
        if counts.sum() == 0:
            raise ParValueError(f"labels has no known label for attribute {attribute.name!r}; smoothing=0 needs one")
        priors.append((counts / counts.sum()).tolist())
    return priors


def compute_class_weights(
    priors: Sequence[Sequence[float]], weighting: str, *, max_class_weight: float = 10.0
) -> list[list[float]]:
    """Weight of each label from its prior p, one list of K numbers per attribute.

    - `"balanced"`: proportional to 1 / p; `"sqrt"`: proportional to 1 / sqrt(p). No weight is above
      `max_class_weight`, and the mean weight over the training labels (sum of p * weight) is 1: where the limit lowers
      the weight of a rare label, the other weights are raised. So the scale of the loss does not depend on the
      weighting, and the same learning rate fits.
    - `"exp"`: exp(1 - p), the usual choice of the field. It lies between 1 and e, and is neither scaled nor limited.

    Raises:
        ValueError: unknown `weighting`, or `max_class_weight` below 1 (then no weights of mean 1 exist).
    """
    if weighting not in WEIGHTINGS:
        raise ParValueError(f"weighting={weighting!r}, expected None or one of {', '.join(map(repr, WEIGHTINGS))}")
    if not max_class_weight >= 1:
        raise ParValueError(f"max_class_weight={max_class_weight!r}, expected a number >= 1")
    weights = []
    for prior in priors:
        p = np.asarray(prior, dtype=np.float64)
        if weighting == "exp":
            weights.append(np.exp(1 - p).tolist())
            continue
        # A label with prior 0 gets the largest weight allowed; it does not enter the mean.
        raw = np.maximum(p, np.finfo(np.float64).tiny) ** (-1.0 if weighting == "balanced" else -0.5)
        weight = np.full_like(p, max_class_weight)
        free = p > 0  # labels whose weight is not fixed at the limit yet
        while free.any():
            scale = (1 - max_class_weight * p[~free].sum()) / (p * raw)[free].sum()
            over = free & (raw * scale > max_class_weight)
            if not over.any():
                weight[free] = raw[free] * scale
                break
            free &= ~over
        weights.append(weight.tolist())
    return weights


def check_priors(priors: Sequence[Sequence[float]], schema: AttributeSchema) -> None:
    """Checks that `priors` holds, for each attribute, one share per label, and that the shares sum to 1.

    Raises:
        ValueError: a wrong number of attributes or labels, a negative share, or a sum that is not 1.
    """
    if len(priors) != len(schema):
        raise ParValueError(f"priors has {len(priors)} entries, expected {len(schema)}: one list per attribute")
    for attribute, prior in zip(schema, priors):
        p = np.asarray(prior, dtype=np.float64)
        if p.shape != (attribute.num_labels,):
            raise ParValueError(
                f"priors of attribute {attribute.name!r} has {p.size} values, expected {attribute.num_labels}: "
                f"one per label ({', '.join(attribute.labels)})"
            )
        if not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-3:
            raise ParValueError(
                f"priors of attribute {attribute.name!r} is {prior!r}, expected shares >= 0 with sum 1 "
                "(see vlm_par_hf.losses.compute_priors)"
            )
