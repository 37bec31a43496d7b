"""Damage to files: what disks, transfers, editors and converters do to bytes and to JSON."""

import json
from typing import Any

from hypothesis import strategies as st


__all__ = ["damaged_bytes", "damaged_json", "damages"]

_VALUES = (None, True, 0, -1, 1, 7, 10**20, 0.5, "", "x", "../x", "/etc/passwd", "\0", [], {}, [None], ["x"], {"x": 1})


def damages() -> st.SearchStrategy:
    """How a file is damaged: a kind and numbers that say where."""
    numbers = st.integers(0, 2**31)
    kinds = st.sampled_from(["nothing", "bit", "cut", "drop", "twice", "insert", "zeros", "append", "json", "json"])
    return st.tuples(kinds, numbers, numbers, numbers)


def damaged_bytes(data: bytes, damage: tuple[str, int, int, int]) -> bytes:
    """`data` with one damage; a damage of kind "json" changes a value of the JSON object or of one line."""
    kind, first, second, third = damage
    if kind == "nothing" or not data:
        return data
    where = first % len(data)
    lines = data.splitlines(keepends=True)
    line = first % len(lines)
    if kind == "bit":
        return data[:where] + bytes([data[where] ^ (1 << second % 8)]) + data[where + 1 :]
    if kind == "cut":
        return data[:where]
    if kind == "drop":
        return b"".join(lines[:line] + lines[line + 1 :])
    if kind == "twice":
        return b"".join([*lines[: line + 1], *lines[line:]])
    if kind == "insert":
        return data[:where] + second.to_bytes(4, "little") + data[where:]
    if kind == "zeros":
        return data[:where] + bytes(len(data[where : where + 64])) + data[where + 64 :]
    if kind == "append":
        return data + second.to_bytes(4, "little")
    try:
        return (json.dumps(damaged_json(json.loads(data), first, second, third), indent=2) + "\n").encode()
    except ValueError:
        pass
    try:
        lines[line] = (json.dumps(damaged_json(json.loads(lines[line]), second, third, first)) + "\n").encode()
    except ValueError:
        return data
    return b"".join(lines)


def damaged_json(value: Any, first: int, second: int, third: int) -> Any:
    """A JSON value with one part replaced, removed or renamed."""
    places = list(_places(value))
    if not places:
        return value
    path = places[first % len(places)]
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    key, choice = path[-1], second % (len(_VALUES) + 3)
    if choice == len(_VALUES):
        del parent[key]
    elif choice == len(_VALUES) + 1 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif choice >= len(_VALUES):
        other = places[third % len(places)]
        found = value
        for one in other:
            found = found[one]
        parent[key] = json.loads(json.dumps(found))
    else:
        parent[key] = _VALUES[choice]
    return copy


def _places(value: Any, path: tuple = ()) -> Any:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from _places(one, (*path, key))
