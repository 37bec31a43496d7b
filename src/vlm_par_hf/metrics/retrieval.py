"""Recall at k of texts for pictures (the open protocol of POAR and FOCUS). NumPy only."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_par_hf.errors import ParKeyError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema

from .ranking import mean_defined


__all__ = [
    "image_to_text_recall",
]


def image_to_text_recall(
    scores: np.ndarray,
    labels: np.ndarray,
    schema: AttributeSchema,
    *,
    groups: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    k: Sequence[int] = (1, 2),
) -> dict:
    """Recall@k of the open protocol (POAR, FOCUS): for each picture the texts of a group are ranked by their scores,
    and it counts whether a right text is among the first k.

    There are two conventions:

    - `i2t_recall_at_<k>_group_mean`, the published one: the mean over pictures, then over groups. A text that is right
      for nearly all pictures dominates its group.
    - `i2t_recall_at_<k>_label_mean`: for each text the recall over the pictures for which it is right, then the mean
      over the texts of a group, then over groups. A model that always ranks the most frequent text first is not better
      than guessing here. Groups with k texts or fewer are left out, because their recall is always 1. Guessing gives
      at k = 1 the mean of 1 / size of the groups.

    Args:
        scores: `(N, A, C)`, similarity of each label's text, comparable within a group.
        labels: integer `(N, A)`, -100 = unknown: the texts of that attribute are ignored for this picture.
        schema: the label space.
        groups: name of a group -> the texts that compete in it, as `(attribute, label)` pairs. Several may be right
            for a picture; pictures without a right one are left out. None: the labels of each attribute are a group,
            including complements such as "no".
        k: the ranks to report.

    Returns:
        `{"i2t_recall_at_<k>_group_mean": ..., "i2t_recall_at_<k>_label_mean": ..., "groups": {name: {"texts": size,
        "images": number of pictures counted, "recall_at_<k>": ..., "label_recall_at_<k>": ...}}}`, None where
        undefined. A right text with the same score as a wrong one is ranked behind it.

    Raises:
        ValueError: wrong shapes, an empty group, or k below 1.
        KeyError: a group names an unknown attribute or label.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    expected = (len(labels), len(schema), schema.max_labels)
    if scores.shape != expected or labels.shape != expected[:2]:
        raise ParValueError(
            f"scores {scores.shape} and labels {labels.shape} do not fit, expected {expected} and {expected[:2]}"
        )
    if not k or min(k) < 1:
        raise ParValueError(f"k={tuple(k)!r}, expected ranks of 1 or more")
    if groups is None:
        groups = {one.name: [(one.name, label) for label in one.labels] for one in schema}
    table = {}
    for name, texts in groups.items():
        if not texts:
            raise ParValueError(f"group {name!r} is empty, expected (attribute, label) pairs")
        columns = []
        for attribute, label in texts:
            one = schema[attribute]
            if label not in one.labels:
                raise ParKeyError(
                    f"group {name!r}: attribute {attribute!r} has no label {label!r}, it has {one.labels}"
                )
            columns.append((schema.index(attribute), one.labels.index(label)))
        a, c = np.array(columns).T
        right, known = labels[:, a] == c, labels[:, a] != UNKNOWN_LABEL  # (N, texts)
        group_scores = scores[:, a, c]
        best = np.where(right, group_scores, -np.inf).max(1)
        ahead = ((group_scores >= best[:, None]) & known & ~right).sum(
            1
        )  # wrong texts ranked before the best right one
        counted = right.any(1)
        row = {"texts": len(columns), "images": int(counted.sum())}
        for rank in k:
            row[f"recall_at_{rank}"] = float((ahead < rank)[counted].mean()) if counted.any() else None
            # For each text on its own: are fewer than `rank` wrong texts ranked before it?
            hit = ((group_scores[:, None] >= group_scores[..., None]) & (known & ~right)[:, None]).sum(-1) < rank
            recalls = [hit[right[:, t], t].mean() for t in range(len(columns)) if right[:, t].any()]
            row[f"label_recall_at_{rank}"] = float(np.mean(recalls)) if recalls and len(columns) > rank else None
        table[name] = row
    result = {}
    for rank in k:
        for kind, key in (("group", f"recall_at_{rank}"), ("label", f"label_recall_at_{rank}")):
            result[f"i2t_recall_at_{rank}_{kind}_mean"] = mean_defined(row[key] for row in table.values())
    return {**result, "groups": table}
