"""The columns of a gallery in memory: what searches filter and rank by, read once per version of the table.

A filter that the engine evaluates reads its columns from disk each time. Here they stay: the answers of a million
people to one question are a megabyte, and comparing them takes a fraction of a millisecond. What was used longest ago
makes room for what is needed now.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParError, ParOSError, ParValueError, raised_elsewhere
from vlm_par_hf.labels.decisions import Decisions, decide
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import redact

from .queries import Condition, Query
from .scoring import l1, log_likelihood, matches


__all__ = ["DETAILS", "PEOPLE", "SCORES", "Columns", "column_names", "matrix_of", "storage_errors"]

PEOPLE = "people"  # the name of the table
DETAILS = ("id", "path", "row", "person", "box", "video", "frame", "time", "track", "height", "quality")
_CHUNK = 1 << 16  # rows that are read or compared at once
_FEW = 5000  # vectors that are read one by one; more are read with all others

# How people are ranked by their probabilities.
SCORES: dict[str, Callable[..., np.ndarray]] = {"log_likelihood": log_likelihood, "l1": l1}


@contextmanager
def storage_errors(place: str, where: str | None = None) -> Iterator[None]:
    """Names the gallery in what the engine says of storage that it cannot use, and the SQL that it cannot read.

    Raises:
        ValueError: the engine raised an error, and there is a `where`.
        OSError: it raised one without.
    """
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, ParError) or not raised_elsewhere(error):
            raise
        text = redact(" ".join(str(error).split()))[:600]
        if where is not None:
            raise ParValueError(f"where={where!r:.200} is refused: {text}") from error
        raise ParOSError(f"the gallery {redact(place)!r}: {text}") from error


def column_names(schema: AttributeSchema) -> dict[tuple[int, int], str]:
    """The columns of probabilities by position of attribute and label. Of a binary attribute that of the second label
    is enough. Names hold letters, digits and `_` only, as SQL likes them."""
    found: dict[tuple[int, int], str] = {}
    taken = {*DETAILS, "size", "mtime_ns", "digest", "model", "embedding", "log_likelihood"}
    for a, attribute in enumerate(schema):
        for k, label in enumerate(attribute.labels):
            if attribute.is_binary and k == 0:
                continue
            name = base = re.sub(r"\W", "_", f"{attribute.name}_{label}")
            number = 2
            while name.casefold() in taken:
                name, number = f"{base}_{number}", number + 1
            taken.add(name.casefold())
            found[a, k] = name
    return found


class Columns:
    """Reads columns of the version of the table that is checked out.

    Args:
        table: LanceDB's table.
        schema: the label space.
        decisions: `config.decisions` of the checkpoint, whose biases decide answers with several labels.
        memory: bytes that stay.
    """

    def __init__(
        self, table: Any, schema: AttributeSchema, decisions: Mapping[str, Any] | None = None, *, memory: int = 1 << 30
    ):
        self.table, self.schema, self.memory = table, schema, memory
        self.label_mask = schema.label_mask()
        self._names = column_names(schema)
        self._biases = None if decisions is None else Decisions.from_dict(decisions).bias_table(schema)
        self._schemas: dict[str, AttributeSchema] = {}
        self._version: int | None = None
        self._kept: OrderedDict[Any, np.ndarray] = OrderedDict()

    @property
    def row_ids(self) -> np.ndarray:
        """The engine's row ids, uint64 `(N,)`, ascending: the order of everything here."""
        return self._keep("row_ids", lambda: np.sort(self._read([])[0]))

    def has_index(self) -> bool:
        """Whether there is an index of vectors."""
        return any("embedding" in one.columns for one in self.table.list_indices())

    def attribute(self, name: str) -> np.ndarray:
        """The probabilities of an attribute's labels, float32 `(N, K)`."""
        a = self.schema.index(name)
        one = self.schema[name]
        return self._keep(("p", name), lambda: self._probabilities(a, one.num_labels))

    def answers(self, name: str) -> np.ndarray:
        """The answers to an attribute, class indices `(N,)` as the pipeline gives them."""
        return self._keep(("answer", name), lambda: self._decide(name, self.attribute(name)))

    def meets(self, condition: Condition) -> np.ndarray:
        """Whose answer meets a condition, bool `(N,)`."""

        def compute() -> np.ndarray:
            answers = self.answers(condition.attribute).astype(np.int64)[:, None]
            return matches(_query_of(condition), answers, self._alone(condition.attribute))[condition]

        return self._keep(("meets", condition), compute)

    def score(self, name: str, condition: Condition) -> np.ndarray:
        """What a condition adds to a score, float32 `(N,)`."""

        def compute() -> np.ndarray:
            found, own = self.attribute(condition.attribute), self._alone(condition.attribute)
            parts = [SCORES[name](_query_of(condition), found[a : a + _CHUNK], own) for a in _starts(len(found))]
            return np.concatenate(parts or [np.zeros(0)]).astype(np.float32)

        return self._keep((name, condition), compute)

    def similarities(self, vector: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """The cosine of a vector of length 1 and the embeddings, float32.

        Args:
            vector: float32 `(D,)`.
            rows: positions, ascending; None: all.
        """
        count = len(self.row_ids)
        if "vectors" not in self._kept:
            if rows is not None and len(rows) <= _FEW:
                found, values = self._take(rows, ["embedding"])
                return matrix_of(values["embedding"])[np.argsort(found)].astype(np.float32) @ vector
            if count * len(vector) * 2 > self.memory:
                found = np.concatenate([chunk.astype(np.float32) @ vector for chunk in self._vectors()])
                return found if rows is None else found[rows]
        vectors = self._keep("vectors", lambda: self._fill(count, len(vector)))
        self.row_ids  # noqa: B018  (used as recently as the vectors)
        total = count if rows is None else len(rows)
        found = np.empty(total, np.float32)
        for start in range(0, total, 1 << 14):  # small enough for the cache of a core
            part = slice(start, start + (1 << 14))
            found[part] = vectors[part if rows is None else rows[part]].astype(np.float32) @ vector
        return found

    def details(self, rows: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Of some rows, in their order: `DETAILS`; for each attribute the probabilities `(n, K)`; and the answers, as
        class indices `(n,)`."""
        if not len(rows):
            empty = {one.name: np.zeros((0, one.num_labels), np.float32) for one in self.schema}
            return [], empty, {name: np.zeros(0, np.int16) for name in empty}
        names = list(self._names.values())
        ids, values = self._take(rows, [*DETAILS, *names])
        order = np.argsort(np.argsort(self.row_ids[rows]))  # the engine may return them in another order
        order = np.argsort(ids)[order]
        columns = [values[name].take(order).to_pylist() for name in DETAILS]
        details = [dict(zip(DETAILS, one)) for one in zip(*columns)]
        probabilities = {}
        for a, attribute in enumerate(self.schema):
            own = [self._names[a, k] for k in range(attribute.num_labels) if (a, k) in self._names]
            found = np.stack([values[name].to_numpy()[order] for name in own], axis=1)
            probabilities[attribute.name] = self._fill_labels(found)
        return details, probabilities, {name: self._decide(name, found) for name, found in probabilities.items()}

    def where(self, condition: str) -> np.ndarray:
        """The positions of the rows that meet a condition in SQL, ascending."""
        with storage_errors("", condition):
            found = self.table.search().where(condition).select(["person"]).with_row_id(True).to_arrow()
        return np.searchsorted(self.row_ids, np.sort(found.column("_rowid").to_numpy()))

    def nearest(self, vector: np.ndarray, count: int, probes: int) -> np.ndarray:
        """Positions of the nearest rows by the index, at most `count`."""
        query = self.table.search(vector, vector_column_name="embedding").distance_type("cosine").nprobes(probes)
        found = query.limit(count).select(["_distance"]).with_row_id(True).to_arrow()
        return np.searchsorted(self.row_ids, found.column("_rowid").to_numpy())

    # Reading

    def _keep(self, key: Any, compute: Callable[[], np.ndarray]) -> np.ndarray:
        version = self.table.version
        if version != self._version:
            self._kept.clear()
            self._version = version
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = compute()
        self._kept[key] = found
        total = sum(one.nbytes for one in self._kept.values())
        for old in list(self._kept):
            if total <= self.memory or old in (key, "row_ids"):
                continue
            total -= self._kept.pop(old).nbytes
        return found

    def _read(self, names: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The row ids, and columns of numbers, as the engine returns them."""
        selected = list(names) or ["person"]
        table = self.table.search().select(selected).with_row_id(True).to_arrow()
        return table.column("_rowid").to_numpy(), [table.column(name).to_numpy() for name in names]

    def _probabilities(self, a: int, count: int) -> np.ndarray:
        names = [self._names[a, k] for k in range(count) if (a, k) in self._names]
        ids, columns = self._read(names)
        values = np.stack(columns, axis=1)
        if not np.array_equal(ids, self.row_ids):
            values = values[np.argsort(ids)]
        return self._fill_labels(values)

    @staticmethod
    def _fill_labels(values: Any) -> np.ndarray:
        """Probabilities with that of the first label of a binary attribute, which has no column."""
        values = np.asarray(values, dtype=np.float32)
        return np.concatenate([1 - values, values], axis=-1) if values.shape[-1] == 1 else values

    def _decide(self, name: str, found: np.ndarray) -> np.ndarray:
        """The answers for probabilities `(N, K)`, as the pipeline gives them."""
        own = self._alone(name)
        biases = None if self._biases is None else self._biases[[self.schema.index(name)], : own.max_labels]
        parts = [decide(found[a : a + _CHUNK, None], own, None, biases)[:, 0] for a in _starts(len(found))]
        return np.concatenate(parts or [np.zeros(0)]).astype(np.int16)

    def _alone(self, name: str) -> AttributeSchema:
        """A label space of one attribute."""
        if name not in self._schemas:
            self._schemas[name] = AttributeSchema([replace(self.schema[name], mirror=None, requires=None, group=None)])
        return self._schemas[name]

    def _take(self, rows: np.ndarray, names: list[str]):
        """The row ids and columns of some rows, in the order of the engine."""
        table = self.table.take_row_ids(self.row_ids[rows].tolist()).select(names).with_row_id().to_arrow()
        return table.column("_rowid").to_numpy(), {name: table.column(name) for name in names}

    def _vectors(self) -> Iterator[np.ndarray]:
        """The embeddings in the order of `row_ids`, float16 `(n, D)`."""
        for start in _starts(len(self.row_ids)):
            query = self.table.search().select(["embedding"]).with_row_id(True).offset(start).limit(_CHUNK)
            table = query.to_arrow()
            yield matrix_of(table.column("embedding"))

    def _fill(self, count: int, size: int) -> np.ndarray:
        vectors = np.empty((count, size), np.float16)
        start = 0
        for chunk in self._vectors():
            vectors[start : start + len(chunk)] = chunk
            start += len(chunk)
        return vectors


def _query_of(condition: Condition) -> Query:
    given = {condition.attribute: condition.labels}
    return Query(wanted=given) if condition.wanted else Query(unwanted=given)


def _starts(count: int) -> range:
    return range(0, count, _CHUNK)


def matrix_of(column) -> np.ndarray:
    """A column of vectors as float16 `(N, D)`."""
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)
