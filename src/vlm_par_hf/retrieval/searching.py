"""One search in a gallery: filter exactly, rank, and say why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import shorten

from .columns import SCORES, Columns
from .queries import Condition, Query
from .scoring import DEFAULT_SCORING, excluding_conditions


__all__ = ["SearchResult", "search_gallery"]

# With an index: up to so many people who pass the filter are compared one by one, which is exact and as fast.
_EXACT = 20_000
_PROBES = 192  # groups that a search reads, of the 512 that an index of many people has (benchmarks/gallery.py)
_CANDIDATES, _MOST_CANDIDATES = 10, 5000  # that it proposes for each person who is wanted and should pass; at most


@dataclass
class SearchResult:
    """The people who were found, best first.

    Attributes:
        people: a dict each: `rank`, `score`, `id`, `path`, `row`, `person`, `box`, `video`, `frame`, `time`, `track`,
            `height`, `quality`; `attributes`, `{name: {"label", "score"}}`, sensitive ones only where they were
            allowed; `why`, for each condition `{"condition", "met", "answer", "probability"}`, the answer and the
            probability that the person meets it.
        query, filter: in words, or None.
        score: how people were ranked: `"log_likelihood"`, `"l1"`, or `"similarity"` to a vector.
        counts: how many people are there, passed the filter (`passed`), meet all conditions of the query (`all`), and
            each of them (`conditions`).
        exact: False if an index was asked, which may miss some of the nearest.
        message: what is to be said beside the people, such as which condition excludes whom; or None.
    """

    people: list[dict[str, Any]]
    query: str | None
    filter: str | None
    score: str
    counts: dict[str, Any]
    exact: bool = True
    message: str | None = None
    conditions: tuple[Condition, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        names = ("query", "filter", "score", "exact", "counts", "message", "people")
        return {name: getattr(self, name) for name in names}


def search_gallery(
    columns: Columns,
    query: Query | None,
    *,
    vector: Any,
    top: int,
    score: str | None,
    filter: Query | None,
    where: str | None,
    show_sensitive: bool,
) -> SearchResult:
    """`Gallery.search`, for queries that are read."""
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ParValueError(f"top={shorten(top)}: expected a whole number of at least 1")
    if query is None and vector is None:
        raise ParValueError("the search has neither a query nor a vector: expected one of them")
    if vector is not None and score is not None:
        raise ParValueError(f"score={score!r} is for queries, and a vector was given: expected no score with it")
    if vector is None and (score or DEFAULT_SCORING) not in SCORES:
        raise ParValueError(f"score={shorten(score)}: expected one of {', '.join(SCORES)}")
    vector = None if vector is None else _unit(vector, columns)
    count = len(columns.row_ids)
    rows, message = _filtered(columns, filter, where)
    conditions = () if query is None else query.conditions
    met = {one: columns.meets(one) for one in conditions}
    of_rows = met if rows is None else {one: row[rows] for one, row in met.items()}
    passed = count if rows is None else len(rows)
    counts = {"people": count, "passed": passed}
    if conditions:
        everything = np.logical_and.reduce(list(of_rows.values())) if passed else np.zeros(0, bool)
        counts["all"] = int(everything.sum())
        counts["conditions"] = {str(one): int(row.sum()) for one, row in of_rows.items()}
        if not count:
            message = "the gallery is empty"
        elif passed and not counts["all"]:
            message = f"nobody meets all of the query: {_who_excludes(of_rows, passed)}"
    elif not count:
        message = "the gallery is empty"
    exact = True
    if not passed:
        found, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    elif vector is None:
        name = score or DEFAULT_SCORING
        parts = [columns.score(name, one) for one in conditions]
        found, scores = _best(sum(parts if rows is None else [part[rows] for part in parts]), rows, top)
    else:
        found, scores, exact = _nearest(columns, vector, rows, passed, top)
    people = _describe(columns, found, scores, conditions, met, show_sensitive)
    return SearchResult(
        people,
        None if query is None else query.describe(),
        None if filter is None else filter.describe(),
        "similarity" if vector is not None else score or DEFAULT_SCORING,
        counts,
        exact,
        message,
        conditions,
    )


def _unit(vector: Any, columns: Columns) -> np.ndarray:
    found = np.asarray(vector, dtype=np.float32)
    size = columns.table.schema.field("embedding").type.list_size
    if found.shape != (size,) or not np.isfinite(found).all():
        raise ParValueError(f"the vector has shape {found.shape}, expected ({size},) finite numbers, as the gallery's")
    length = float(np.linalg.norm(found))
    if length == 0:
        raise ParValueError("the vector is 0 everywhere, which is near to nobody")
    return found / length


def _filtered(columns: Columns, filter: Query | None, where: str | None) -> tuple[np.ndarray | None, str | None]:
    """The positions of those who pass, None for all; and what to say if nobody does."""
    count = len(columns.row_ids)
    mask, message = None, None
    if filter is not None:
        met = {one: columns.meets(one) for one in filter.conditions}
        mask = np.logical_and.reduce(list(met.values()))
        if count and not mask.any():
            message = f"nobody passes the filter: {_who_excludes(met, count)}"
    if where is not None:
        rows = columns.where(where)
        if mask is not None:
            rows = rows[mask[rows]]
        if count and not len(rows) and message is None:
            message = f"nobody passes the filter: where={where!r:.200} leaves none"
        return rows, message
    return (None if mask is None else np.flatnonzero(mask)), message


def _who_excludes(met: dict[Condition, np.ndarray], count: int) -> str:
    """Which condition excludes how many."""
    parts = []
    for condition, one in excluding_conditions(met).items():
        alone = f" ({one['alone']} of them meet all else)" if one["alone"] and len(met) > 1 else ""
        parts.append(f"{condition} excludes {one['excludes']} of {count}{alone}")
    return "; ".join(parts)


def _best(scores: np.ndarray, rows: np.ndarray | None, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions with the highest scores, and these; equal scores in the order of the gallery."""
    if top < len(scores):
        least = np.partition(scores, len(scores) - top)[len(scores) - top]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:top]
    return (order if rows is None else rows[order]), scores[order]


def _nearest(
    columns: Columns, vector: np.ndarray, rows: np.ndarray | None, passed: int, top: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The nearest people, their similarities, and whether none can have been missed.

    Few are compared one by one. Of many the index gives candidates, as many as should hold `top` who pass; if they do
    not, all who pass are compared: a filter never makes the answer shorter.
    """
    wanted = min(top, passed)
    if passed > _EXACT and columns.has_index():
        count = len(columns.row_ids)
        candidates = math.ceil(_CANDIDATES * top * count / passed)
        if candidates <= _MOST_CANDIDATES:
            found = np.sort(columns.nearest(vector, candidates, _PROBES))
            if rows is not None:
                found = found[rows[np.minimum(np.searchsorted(rows, found), len(rows) - 1)] == found]
            if len(found) >= wanted:
                order, scores = _best(columns.similarities(vector, found), found, top)
                return order, scores, False
    order, scores = _best(columns.similarities(vector, rows), rows, top)
    return order, scores, True


def _describe(
    columns: Columns,
    rows: np.ndarray,
    scores: np.ndarray,
    conditions: Sequence[Condition],
    met: dict[Condition, np.ndarray],
    show_sensitive: bool,
) -> list[dict[str, Any]]:
    """What is said of the people who were found, best first."""
    details, probabilities, answers = columns.details(rows)
    shown = [one for one in columns.schema if show_sensitive or not one.sensitive]
    named = {}
    for condition in conditions:
        own = columns.schema[condition.attribute]
        places = [own.labels.index(label) for label in condition.labels]
        total = probabilities[own.name][:, places].sum(1)
        named[condition] = total if condition.wanted else 1 - total
    people = []
    for position, (row, one) in enumerate(zip(rows.tolist(), details)):
        label = {name: found[position] for name, found in answers.items()}
        attributes = {
            each.name: {
                "label": each.labels[label[each.name]],
                "score": float(probabilities[each.name][position, label[each.name]]),
            }
            for each in shown
        }
        why = [
            {
                "condition": str(condition),
                "met": bool(met[condition][row]),
                "answer": columns.schema[condition.attribute].labels[label[condition.attribute]],
                "probability": float(named[condition][position]),
            }
            for condition in conditions
        ]
        start = {"rank": position + 1, "score": float(scores[position])}
        people.append({**start, **one, "attributes": attributes, "why": why})
    return people
