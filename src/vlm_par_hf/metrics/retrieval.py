"""How well people are found by attributes, and texts for pictures. NumPy only.

- People by attributes (`attribute_retrieval`): a query is a whole attribute vector, and right is who has exactly it.
- Texts for pictures (`image_to_text_recall`): the open protocol of POAR and FOCUS.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlm_par_hf.errors import ParKeyError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema

from .ranking import mean_defined


__all__ = [
    "attribute_categories",
    "attribute_retrieval",
    "image_to_text_recall",
    "unseen_categories",
]


def attribute_categories(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The categories of attribute-based retrieval: the attribute vectors that occur.

    Args:
        labels: integer `(N, A)`, class indices, -100 = unknown.

    Returns:
        The different vectors of people of whom everything is known, int64 `(Q, A)`, sorted; and the row of each
        person's vector, int64 `(N,)`, -1 for people of whom something is unknown.

    Raises:
        ValueError: another number of dimensions.
    """
    labels = _label_table("labels", labels)
    known = (labels != UNKNOWN_LABEL).all(1)
    vectors, rows = np.unique(labels[known], axis=0, return_inverse=True)
    category = np.full(len(labels), -1, np.int64)
    category[known] = rows.reshape(-1)
    return vectors, category


def unseen_categories(queries: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which queries are in no row of the labels of the training split, bool `(Q,)`.

    Args:
        queries: integer `(Q, A)`.
        seen: integer `(N, A)`, the labels of the training split, or its categories.

    Raises:
        ValueError: wrong shapes.
    """
    queries, seen = _label_table("queries", queries), _label_table("seen", seen)
    if queries.shape[1] != seen.shape[1]:
        raise ParValueError(f"queries {queries.shape} and seen {seen.shape} have other numbers of attributes")
    rows = {row.tobytes() for row in np.unique(seen, axis=0)}
    return np.array([row.tobytes() not in rows for row in queries], bool)


def attribute_retrieval(
    scores: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    *,
    seen: np.ndarray | None = None,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict:
    """Measures rankings of people by attribute queries (ASMR, CLEAR, UPAR).

    Right for a query are the people with exactly its attribute vector, as far as it asks: an attribute that it leaves
    open (-100) is not compared. People with equal scores keep the order of the gallery. Where a person's label is
    unknown and all known ones agree with the query, nobody can say whether it is right: this person is left out for
    this query.

    The mean average precision has two published conventions:

    - `mAP_standard` (UPAR): the mean over the right people of the precision at their rank.
    - `mAP_trapezoid` (the evaluation of Market-1501, which ASMR and CLEAR follow): in place of that precision the mean
      of it and of the precision one rank before, which counts as 1 before the first rank.

    Args:
        scores: `(Q, N)`, higher is more similar; every row ranks the gallery for one query.
        queries: integer `(Q, A)`, class indices, -100 = open. Published numbers leave nothing open.
        labels: integer `(N, A)`, those of the people in the gallery, -100 = unknown.
        seen: integer `(S, A)`, labels of the training split: then the queries whose vector is not among them are also
            measured apart, and so are the others.
        ranks: the k of `rank_<k>`.

    Returns:
        Means over the queries for which somebody right is in the gallery:

        - `rank_<k>`: the share of queries with somebody right among the first k.
        - `mAP_standard`, `mAP_trapezoid`.
        - `mINP`: number of right people / rank of the last one of them.
        - `mADM` (UPAR Challenge 2027): as `mAP_standard`, but in place of the precision the mean over the people up to
          that rank of how well they match. That is the share of attributes in which they agree with the query, with
          the mean over the gallery as 0 (also for what is below) and the largest share as 1.
        - `chance_mAP_standard`: the expected `mAP_standard` of a random order.
        - `queries`: how many were counted, `queries_without_match`: how many were not, `people`: in the gallery.
        - with `seen`: `seen` and `unseen`, each a dict of these numbers. All means are None where no query counts.

    Raises:
        ValueError: wrong shapes, scores that are not finite, a query that asks for nothing, or a rank below 1.
    """
    queries, labels = _label_table("queries", queries), _label_table("labels", labels)
    scores = np.asarray(scores)
    if scores.shape != (len(queries), len(labels)) or queries.shape[1] != labels.shape[1]:
        raise ParValueError(
            f"scores {scores.shape}, queries {queries.shape} and labels {labels.shape} do not fit, expected (Q, N), "
            "(Q, A) and (N, A)"
        )
    if not np.isfinite(scores).all():
        raise ParValueError("scores has entries that are not finite, which cannot be ranked")
    if (queries == UNKNOWN_LABEL).all(1).any():
        raise ParValueError(f"queries has a row of {UNKNOWN_LABEL} only, which asks for nothing")
    if not ranks or min(ranks) < 1:
        raise ParValueError(f"ranks={tuple(ranks)!r}, expected ranks of 1 or more")
    known = labels != UNKNOWN_LABEL
    rows = [_measure_query(*one, labels, known, ranks) for one in zip(scores, queries)]
    result = _mean_of_queries(rows, len(labels), ranks)
    if seen is not None:
        is_unseen = unseen_categories(queries, seen)
        for name, chosen in (("seen", ~is_unseen), ("unseen", is_unseen)):
            result[name] = _mean_of_queries([row for row, one in zip(rows, chosen) if one], len(labels), ranks)
    return result


def _measure_query(scores, query, labels, known, ranks) -> dict[str, float] | None:
    """The numbers of one query; None if nobody in the gallery is right."""
    asked = query != UNKNOWN_LABEL
    if not asked.all():
        query, labels, known = query[asked], labels[:, asked], known[:, asked]
    agrees = labels == query
    undecided = (agrees | ~known).all(1) & ~known.all(1)
    right = agrees.all(1)
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    order = order[~undecided[order]]
    places = np.flatnonzero(right[order]) + 1  # ranks of the right people, from 1
    number = np.arange(1, len(places) + 1)
    precision = number / places
    before = np.where(places > 1, (number - 1) / np.maximum(places - 1, 1), 1.0)
    share = agrees[order].sum(1) / np.maximum(known[order].sum(1), 1)
    mean, largest = share.mean(), share.max()
    match = np.maximum(share - mean, 0) / (largest - mean) if largest > mean else np.ones(len(share))
    match_so_far = np.cumsum(match) / np.arange(1, len(match) + 1)
    people, count = len(order), len(places)
    harmonic = (1 / np.arange(1, people + 1)).sum() / people
    return {
        **{f"rank_{k}": float(places[0] <= k) for k in ranks},
        "mAP_standard": precision.mean(),
        "mAP_trapezoid": ((precision + before) / 2).mean(),
        "mINP": count / places[-1],
        "mADM": match_so_far[places - 1].mean(),
        "chance_mAP_standard": harmonic + (1 - harmonic) * (count - 1) / max(people - 1, 1),
    }


def _mean_of_queries(rows: Sequence[dict[str, float] | None], people: int, ranks: Sequence[int]) -> dict:
    counted = [row for row in rows if row is not None]
    names = [f"rank_{k}" for k in ranks] + ["mAP_standard", "mAP_trapezoid", "mINP", "mADM", "chance_mAP_standard"]
    return {
        **{name: mean_defined(row[name] for row in counted) for name in names},
        "queries": len(counted),
        "queries_without_match": len(rows) - len(counted),
        "people": people,
    }


def _label_table(name: str, labels: np.ndarray) -> np.ndarray:
    """Labels as an int64 array of two dimensions."""
    table = np.asarray(labels)
    if table.ndim != 2 or table.dtype.kind not in "iu":
        raise ParValueError(f"{name} must be integers (rows, attributes), got {table.dtype} of shape {table.shape}")
    return np.ascontiguousarray(table, np.int64)


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
