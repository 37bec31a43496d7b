"""Recall of the open protocol: is a right text among the first k? NumPy only."""

from collections.abc import Mapping, Sequence

import numpy as np

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
    """Recall@k of the open protocol (POAR, FOCUS): each picture ranks the texts of a group, is a right one among the
    first k?

    Two conventions, by name: `i2t_recall_at_1_group_mean` is the published one, the mean over pictures, then over
    groups, in which a text that is nearly always right carries its group. `i2t_recall_at_1_label_mean` takes the mean
    over the right texts first (each text's own recall, over the pictures that it is right for), so that always naming
    the most frequent text earns no more than guessing; groups of k texts or fewer, in which nobody can fail, are left
    out of it. Chance of recall at 1 is then the mean of 1 / size of the groups.

    Args:
        scores: `(N, A, C)`, similarity of each label's text, comparable within a group.
        labels: integer `(N, A)`, -100 = unknown: its texts are neither right nor wrong and take no part.
        schema: the label space.
        groups: name -> the texts that compete, `(attribute, label)` pairs; several may be right for a picture, and
            pictures without a right one take no part. None: the labels of each attribute are a group, complements
            such as "no" included.
        k: the ranks to report.

    Returns:
        `{"i2t_recall_at_<k>_group_mean": ..., "i2t_recall_at_<k>_label_mean": ..., "groups": {name: {"texts": size,
        "images": pictures that took part, "recall_at_<k>": ..., "label_recall_at_<k>": ...}}}`, None where undefined.
        A text that ties with a wrong one counts as behind it.

    Raises:
        ValueError: wrong shapes, an empty group, or k below 1.
        KeyError: a group names an unknown attribute or label.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    expected = (len(labels), len(schema), schema.max_labels)
    if scores.shape != expected or labels.shape != expected[:2]:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} do not fit, expected {expected} and {expected[:2]}"
        )
    if not k or min(k) < 1:
        raise ValueError(f"k={tuple(k)!r}, expected ranks of 1 or more")
    if groups is None:
        groups = {one.name: [(one.name, label) for label in one.labels] for one in schema}
    table = {}
    for name, texts in groups.items():
        if not texts:
            raise ValueError(f"group {name!r} is empty, expected (attribute, label) pairs")
        columns = []
        for attribute, label in texts:
            one = schema[attribute]
            if label not in one.labels:
                raise KeyError(f"group {name!r}: attribute {attribute!r} has no label {label!r}, it has {one.labels}")
            columns.append((schema.index(attribute), one.labels.index(label)))
        a, c = np.array(columns).T
        right, known = labels[:, a] == c, labels[:, a] != UNKNOWN_LABEL  # (N, texts)
        found = scores[:, a, c]
        best = np.where(right, found, -np.inf).max(1)
        ahead = ((found >= best[:, None]) & known & ~right).sum(1)  # wrong texts before the best right one
        counted = right.any(1)
        row = {"texts": len(columns), "images": int(counted.sum())}
        for rank in k:
            row[f"recall_at_{rank}"] = float((ahead < rank)[counted].mean()) if counted.any() else None
            # Each right text on its own: how many wrong ones stand before it.
            hit = ((found[:, None] >= found[..., None]) & (known & ~right)[:, None]).sum(-1) < rank
            recalls = [hit[right[:, t], t].mean() for t in range(len(columns)) if right[:, t].any()]
            row[f"label_recall_at_{rank}"] = float(np.mean(recalls)) if recalls and len(columns) > rank else None
        table[name] = row
    result = {}
    for rank in k:
        for kind, key in (("group", f"recall_at_{rank}"), ("label", f"label_recall_at_{rank}")):
            result[f"i2t_recall_at_{rank}_{kind}_mean"] = mean_defined(row[key] for row in table.values())
    return {**result, "groups": table}
