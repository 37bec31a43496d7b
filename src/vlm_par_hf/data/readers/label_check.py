"""Labels that a schema and the files of a data set do not have in common.

A name that is spelt in one way in a file and in another in the schema loses its labels, and nothing else shows it.
"""

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.utils import shorten

from .records import PedestrianRecord


__all__ = ["check_labels", "count_positives", "read_names"]

logger = logging.getLogger(__name__)

_MOST = 20  # names of one kind that a message or a note lists


def count_positives(schema: AttributeSchema, splits: Mapping[str, list[PedestrianRecord]]) -> dict[str, int]:
    """Per attribute the images with its second label; with more labels than two, those without its most frequent one,
    so that 0 always means that nothing is told apart."""
    rows = [record.labels for records in splits.values() for record in records]
    labels = np.stack(rows) if rows else np.empty((0, len(schema)), np.int64)
    counts = {}
    for attribute, column in zip(schema, labels.T):
        by_label = np.bincount(column[column != UNKNOWN_LABEL], minlength=attribute.num_labels)
        counts[attribute.name] = int(by_label[1] if attribute.is_binary else by_label.sum() - by_label.max())
    return counts


def read_names(ignore: Iterable[str]) -> list[str]:
    """The names in `ignore`.

    Raises:
        TypeError: it is one text, or holds something else than texts.
    """
    names = [None] if isinstance(ignore, str) or not isinstance(ignore, Iterable) else list(ignore)
    if not all(isinstance(name, str) for name in names):
        raise ParTypeError(f"ignore is {shorten(ignore)}; expected a list of names")
    return names


def check_labels(
    where: object,
    positives: Mapping[str, int],
    unused: Mapping[str, int],
    *,
    complete: bool,
    ignore: Iterable[str] = (),
) -> dict[str, Any]:
    """Refuses attributes without a positive and labels without an attribute; of data that are not complete, warns.

    Args:
        where: the file or folder, for the message.
        positives: number of positives of each attribute, by the name that the files should use.
        unused: labels that the files hold and no attribute takes, and how often.
        complete: whether these are all images of the published data set. In a part of it, or in somebody's own data,
            an attribute may well have no positive.
        ignore: names of either kind that the user accepts.

    Returns:
        Notes for the data set, empty where nothing is to be said: `attributes_without_positive` (names) and
        `labels_not_taken` (name: how often), the first 20, those that were ignored included.

    Raises:
        ValueError: a complete data set lacks a positive or has a label too many, or `ignore` names neither.
        TypeError: `ignore` is no list of names.
    """
    ignore = set(read_names(ignore))
    strange = sorted(ignore - set(positives) - set(unused))
    if strange:
        near = difflib.get_close_matches(strange[0][:100], [*positives, *unused], n=1)
        hint = f"; did you mean {shorten(near[0])}?" if near else ""
        raise ParValueError(
            f"ignore names {shorten(strange[0])}, which is no attribute and no label in the files of {where}{hint}"
        )
    absent = [name for name, count in positives.items() if not count]
    not_taken = dict(sorted(unused.items(), key=lambda item: (-item[1], item[0])))
    problems = []
    wrong = [name for name in absent if name not in ignore]
    if wrong:
        problems.append(f"no image has {_list_names(map(shorten, wrong), len(wrong))}")
    wrong = [name for name in not_taken if name not in ignore]
    if wrong:
        told = (f"{shorten(name)} ({not_taken[name]} times{_similar(name, positives)})" for name in wrong)
        problems.append(f"no attribute takes the label {_list_names(told, len(wrong))}")
    if problems:
        message = f"{where}: {'; '.join(problems)}"
        if complete:
            raise ParValueError(
                f"{message}. All images of the published data set are there, so a name may be spelt in another way "
                "than expected, or the files are not the published ones; to go on without, name it in ignore "
                "(--ignore NAME)"
            )
        logger.warning("%s", message)
    notes: dict[str, Any] = {}
    if absent:
        notes["attributes_without_positive"] = absent[:_MOST]
    if not_taken:
        notes["labels_not_taken"] = {name[:100]: not_taken[name] for name in list(not_taken)[:_MOST]}
    return notes


def _list_names(names: Iterable[str], count: int) -> str:
    listed = [name for name, _ in zip(names, range(_MOST))]
    return ", ".join(listed) + (f" and {count - len(listed)} more" if count > len(listed) else "")


def _similar(name: str, positives: Mapping[str, int]) -> str:
    near = difflib.get_close_matches(name[:100], positives, n=1, cutoff=0.85)
    return f"; did they mean {near[0]!r}?" if near else ""
