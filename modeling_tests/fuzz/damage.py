"""Damage to files that several areas share: one edit of a JSON document, and one edit of bytes."""

import copy
from typing import Any

from hypothesis import strategies as st


__all__ = ["byte_edits", "edit_json", "json_edits"]

# What a field may hold after an edit; some are right for some fields.
VALUES = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 8, 16, 10**18, -(10**18), 0.5, -0.5]),
    st.sampled_from([1e-12, 1e300, float("nan"), float("inf")]),
    st.sampled_from(["", "x", "no", "yes", "\x1b[31m", "../x", "<b>"]),
    st.sampled_from(["text_to_image", "image_to_text", "none", "float16"]),
    st.sampled_from([[], {}, [1], ["x"], [[1]], {"x": 1}, [None], [[[[[1]]]]]]),
    st.integers(-5, 200),
    st.floats(-2, 2),
    st.text(max_size=8),
)  # fmt: skip


def json_edits() -> st.SearchStrategy:
    """Edits for `edit_json`: where (shares of the way through the document), what, and the new value."""
    return st.tuples(
        st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6),
        st.sampled_from(["set", "set", "set", "delete", "add", "nest"]),
        VALUES,
    )


def edit_json(document: Any, edit: tuple) -> tuple[Any, str]:
    """The document with one edit, and a description of it.

    Each share picks a key or an entry of the current dict or list; the way ends at a leaf or when shares run out.
    """
    shares, what, value = edit
    document = copy.deepcopy(document)
    holder, path, here = None, [], document
    for share in shares:
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        if not len(keys):
            break
        key = keys[int(share * len(keys))]
        holder, here = here, here[key]
        path.append(key)
    if holder is None:
        return document, "nothing"
    if what == "delete":
        del holder[path[-1]]
    elif what == "add" and isinstance(holder, dict):
        holder["x_unknown"] = value
    elif what == "nest":
        holder[path[-1]] = [here]
    else:
        holder[path[-1]] = value
    return document, f"{what} {path} {value!r:.60}"


def byte_edits() -> st.SearchStrategy:
    """Functions from bytes to damaged bytes."""
    share = st.floats(0, 1, exclude_max=True)
    return st.one_of(
        st.builds(lambda at: lambda data: data[: int(at * len(data))], share),
        st.builds(
            lambda at, value: lambda data: _put(data, int(at * len(data)), value),
            share,
            st.binary(min_size=1, max_size=9),
        ),
        st.builds(lambda at, count: lambda data: _cut(data, int(at * len(data)), count), share, st.integers(1, 40)),
        st.builds(lambda tail: lambda data: data + tail, st.binary(max_size=20)),
        st.just(lambda data: b""),
        st.just(lambda data: b"<!DOCTYPE html><html></html>"),
    )


def _put(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _cut(data: bytes, at: int, count: int) -> bytes:
    return data[:at] + data[at + count :]
