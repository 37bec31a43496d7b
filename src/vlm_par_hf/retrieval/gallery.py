"""`Gallery`: a table of people in a folder or an object store, a row per person, searched by attributes and vectors.

A gallery is a LanceDB table (extra `gallery`; the engine runs in this process). Its columns:

| column | what |
|---|---|
| `id` | 24 hex digits made from `path`, `row` and `person`: adding the same person again adds nothing |
| `path`, `row` | the image file; or a table and the row in it |
| `person` | the number of the person in the image |
| `box` | pixels `x0, y0, x1, y1` of the image; with a `video` of its frame, and the image is what was cut out |
| `video`, `frame`, `time`, `track` | where they are known: file, number of the frame, seconds, the person's id |
| `height`, `quality` | of the person in pixels; the mean probability of the answers |
| `size`, `mtime_ns`, `digest` | of the file when it was read, and of its content: what says that it has changed |
| `model` | the fingerprint of the checkpoint |
| `NAME_LABEL` | the probability of each label, float32; of a binary attribute that of the second label |
| `embedding` | float16 of length 1: what vectors are compared with |
| `log_likelihood` | float16 `(2 L,)`: log p of every label, then log (1 - p). For engines that know only vectors: the
  inner product with 0 and 1 is the logarithm of the probability that a person has some labels and lacks others |

Writing: rows are added in batches. A batch is acknowledged when its version of the table is committed, which is one
rename; a process that is killed before leaves files that nobody reads, and `compact` removes them after a week. Any
number of processes may read while one writes; each search sees one version as a whole.

Searching filters first, and exactly. The engine's own filter on top of an approximate index either takes the nearest
and then drops those that do not fit, and so returns too few, or searches all of them slowly. See `columns`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileExistsError, ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.output_folders import LOCK, lock_file, refuse_link
from vlm_par_hf.utils import iterate, require, shorten

from .columns import DETAILS, PEOPLE, Columns, column_names, matrix_of, storage_errors
from .queries import Query
from .scoring import SMALLEST_PROBABILITY
from .searching import SearchResult, search_gallery


__all__ = ["Gallery", "GalleryInfo", "person_id"]

_INFO = b"vlm_par_gallery"  # the key of the record in the metadata of the table
_FORMAT = 1
INDEX_NAME = "embedding_idx"


@dataclass(frozen=True)
class GalleryInfo:
    """What the rows of a gallery were made with. Two galleries, or a gallery and a model, fit if all of it is equal.

    Args:
        schema: the label space, with the thresholds that answers are decided by.
        model: name of the checkpoint, for messages; a digest of its weights and configuration decides.
        model_fingerprint: that digest.
        processor_fingerprint: the digest of the image processor's settings.
        embedding: what the vectors are: `{"source": "image_embeds" or "retriever", "size": D, "name", "fingerprint"}`.
        decisions: what was fitted for the answers (`config.decisions`), or None.
    """

    schema: AttributeSchema
    model: str
    model_fingerprint: str
    processor_fingerprint: str
    embedding: Mapping[str, Any]
    decisions: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "processor_fingerprint": self.processor_fingerprint,
            "embedding": dict(self.embedding),
            "decisions": None if self.decisions is None else dict(self.decisions),
            "label_space": self.schema.to_list(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GalleryInfo":
        if data.get("format") != _FORMAT:
            raise ParValueError(f"the gallery has format {shorten(data.get('format'))}, expected {_FORMAT}")
        names = ("model", "model_fingerprint", "processor_fingerprint", "embedding", "decisions")
        return cls(AttributeSchema(data["label_space"]), **{name: data[name] for name in names})

    def check_same(self, other: "GalleryInfo", place: str) -> None:
        """Refuses another checkpoint, processor, label space or kind of vectors than the gallery was built with.

        Args:
            other: what is to be used now.
            place: the gallery, for the message.

        Raises:
            ValueError: the message names both.
        """
        begin = f"the gallery {place!r} was built by"
        hint = "use that one, or build another gallery"
        if self.schema != other.schema:
            raise ParValueError(
                f"{begin} {self.model!r} with another label space than {other.model!r} has: "
                f"{'; '.join(self.schema.diff(other.schema)[:3])}; {hint}"
            )
        for what, name in (("the checkpoint", "model"), ("the image processor of", "processor")):
            ours, theirs = getattr(self, f"{name}_fingerprint"), getattr(other, f"{name}_fingerprint")
            if ours != theirs:
                raise ParValueError(
                    f"{begin} {what} {self.model!r} (fingerprint {ours[:12]}), and not by that of {other.model!r} "
                    f"({theirs[:12]}): probabilities and vectors of the two must not be compared; {hint}"
                )
        for key in ("source", "size", "fingerprint"):
            if self.embedding.get(key) != other.embedding.get(key):
                raise ParValueError(
                    f"{begin} vectors of {_describe(self.embedding)}, and not of {_describe(other.embedding)}; {hint}"
                )


def _describe(embedding: Mapping[str, Any]) -> str:
    found = f"{embedding.get('source')} {embedding.get('name')!r}, {embedding.get('size')} numbers"
    return f"{found} (fingerprint {str(embedding.get('fingerprint'))[:12]})"


def person_id(path: str, row: int | None, person: int) -> str:
    """The id of a person: 24 hex digits from the path, the row of a table or None, and the number in the image."""
    return hashlib.blake2b(json.dumps([path, row, person]).encode(), digest_size=12).hexdigest()


class Gallery:
    """People of many pictures, to be found by what they wear. Made by `Gallery.create` and `Gallery.open`.

        gallery = Gallery.open("people.gallery")
        for one in gallery.search("red top, backpack, not hat", top=20).people:
            print(one["score"], one["path"], one["box"])

    Args:
        place: a folder, or a URI of an object store that LanceDB knows (`s3://bucket/people`).
        info: what the rows are made with.
        database, table: LanceDB's connection and table.
        memory: bytes of columns and vectors that stay in memory between searches.
    """

    def __init__(self, place: str, info: GalleryInfo, database: Any, table: Any, *, memory: int = 1 << 30):
        self.place, self.info = place, info
        self._database, self._table = database, table
        self.columns = Columns(table, info.schema, info.decisions, memory=memory)
        self._known: tuple[int, set[str]] | None = None  # the version, and the ids in it
        self._lock = RLock()  # of threads: a search needs one version from its beginning to its end

    # Making and opening

    @classmethod
    def create(
        cls,
        place: str | os.PathLike,
        info: GalleryInfo,
        *,
        storage_options: Mapping[str, str] | None = None,
        memory: int = 1 << 30,
    ) -> "Gallery":
        """Makes an empty gallery, or opens the one that is there if it was built with the same.

        Raises:
            ValueError: there is a gallery that was built by another checkpoint, label space or processor.
            FileExistsError: the folder holds something else.
            ImportError: LanceDB is not installed.
        """
        place = os.fspath(place)
        size = info.embedding.get("size")
        if not isinstance(size, int) or size < 1:
            raise ParValueError(f"info.embedding has the size {shorten(size)}, expected the length of the vectors")
        local = _local(place)
        if local is not None:
            refuse_link(local)
            if local.exists() and not local.is_dir():
                raise ParFileExistsError(f"{place!r} is a file: expected a folder for the gallery")
            strangers = sorted(set(os.listdir(local)) - {f"{PEOPLE}.lance", LOCK}) if local.exists() else []
            if strangers:
                raise ParFileExistsError(
                    f"{place!r} is not empty and no gallery ({strangers[0]!r:.100}): name another folder"
                )
        database = _connect(place, storage_options)
        with storage_errors(place):
            if PEOPLE not in database.list_tables().tables:
                try:
                    database.create_table(PEOPLE, schema=_arrow_schema(info))
                except ValueError as error:
                    if "already exists" not in str(error):  # another process was faster
                        raise
        return cls.open(place, expected=info, storage_options=storage_options, memory=memory)

    @classmethod
    def open(
        cls,
        place: str | os.PathLike,
        *,
        expected: GalleryInfo | None = None,
        storage_options: Mapping[str, str] | None = None,
        memory: int = 1 << 30,
    ) -> "Gallery":
        """Opens a gallery.

        Args:
            place: the folder or URI.
            expected: what is to be used with it; None: not checked.
            storage_options: of the object store, as LanceDB takes them (`endpoint`, `region`, ...). Keys are better
                left to the environment (`AWS_ACCESS_KEY_ID`, ...).
            memory: bytes of columns and vectors that stay in memory between searches. All that does not fit is read
                again by each search that needs it.

        Raises:
            FileNotFoundError: there is no gallery.
            ValueError: it was built by another checkpoint, label space or processor; the message names both.
            OSError: it cannot be read.
        """
        place = os.fspath(place)
        local = _local(place)
        if local is not None and not (local / f"{PEOPLE}.lance").is_dir():  # connecting would make the folder
            raise ParFileNotFoundError(f"there is no gallery {place!r}: make one (vlm-par index IMAGES --out {place})")
        database = _connect(place, storage_options)
        with storage_errors(place):
            if PEOPLE not in database.list_tables().tables:
                raise ParFileNotFoundError(f"there is no gallery {place!r}: make one (vlm-par index)")
            table = database.open_table(PEOPLE)
            record = (table.schema.metadata or {}).get(_INFO)
        if record is None:
            raise ParValueError(f"the table in {place!r} was not made by this package: name a gallery")
        try:
            info = GalleryInfo.from_dict(json.loads(record))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ParValueError(f"the record of the gallery {place!r} is damaged: {error!r}") from error
        if expected is not None:
            info.check_same(expected, place)
        return cls(place, info, database, table, memory=memory)

    @contextmanager
    def _engine(self, where: str | None = None) -> Iterator[None]:
        """The engine for one thread at a time, its errors as `storage_errors` has them."""
        with self._lock, storage_errors(self.place, where):
            yield

    # Reading

    def __len__(self) -> int:
        """The number of people."""
        self.refresh()
        return self._table.count_rows()

    @property
    def schema(self) -> AttributeSchema:
        """The label space."""
        return self.info.schema

    def refresh(self) -> int:
        """Goes to the newest version, in which other processes may have added people; returns its number."""
        with self._engine():
            self._table.checkout_latest()
            return self._table.version

    def search(
        self,
        query: Query | Mapping[str, Any] | str | None = None,
        *,
        vector: np.ndarray | Sequence[float] | None = None,
        top: int = 20,
        score: str | None = None,
        filter: Query | Mapping[str, Any] | str | None = None,
        where: str | None = None,
        allow_sensitive: bool = False,
    ) -> SearchResult:
        """The people who fit best.

        Args:
            query: a `Query`, a dict of attributes and labels, or text ("red top, backpack, not hat").
            vector: `(D,)`, what the embeddings are compared with, such as that of an example picture. With a query
                too, the vector ranks, and the query says why.
            top: how many; fewer if there are not so many.
            score: how a query ranks: `"log_likelihood"` (the default) or `"l1"`.
            filter: as `query`: only people whose answers meet all its conditions.
            where: a condition in SQL on the columns, `"time < 60 AND quality > 0.8"`; names with capital letters in
                backticks (`` `Hat_yes` > 0.9 ``).
            allow_sensitive: admit attributes that are marked sensitive, perceived gender and age.

        Returns:
            `SearchResult`. A filter that nobody meets gives no people and says which condition excludes how many.

        Raises:
            ValueError: neither query nor vector, `top` below 1, an unknown score, a query that is refused
                (`Query.parse`), a vector of another length or that is not finite, or a condition that is no SQL.
        """
        read = _QueryReader(self.schema, allow_sensitive)
        if where is not None and not allow_sensitive:
            self._refuse_sensitive(where)
        with self._engine():
            self.refresh()
            return search_gallery(
                self.columns,
                read(query, "query"),
                vector=vector,
                top=top,
                score=score,
                filter=read(filter, "filter"),
                where=where,
                show_sensitive=allow_sensitive,
            )

    def files(self) -> dict[str, np.ndarray]:
        """What was read: arrays `path`, `row` (-1: an image file), `size`, `mtime_ns`, `digest` and `id`, an entry per
        person."""
        self.refresh()
        with self._engine():
            names = ["path", "row", "size", "mtime_ns", "digest", "id"]
            found = self._table.search().select(names).to_arrow()
        return {
            name: np.asarray(
                [-1 if value is None else value for value in found.column(name).to_pylist()],
                dtype=np.int64 if name in ("row", "size", "mtime_ns") else object,
            )
            for name in names
        }

    def embeddings(self, images: Sequence[tuple[str, int | None]]) -> np.ndarray:
        """The vectors of people, float32 `(N, D)`, of images that are named by path and row (None: an image file), in
        that order; of an image with several people that of the first one.

        Raises:
            ValueError: one of them is not in the gallery.
        """
        ids = [person_id(path, row, 0) for path, row in images]
        found: dict[str, np.ndarray] = {}
        self.refresh()
        for start in range(0, len(ids), 500):
            names = ", ".join(map(_quoted, ids[start : start + 500]))
            with self._engine():
                table = self._table.search().where(f"id IN ({names})").select(["id", "embedding"]).to_arrow()
            found.update(zip(table.column("id").to_pylist(), matrix_of(table.column("embedding"))))
        missing = next((image for one, image in zip(ids, images) if one not in found), None)
        if missing is not None:
            raise ParValueError(f"{missing[0]!r}, row {missing[1]}, is not in the gallery {self.place!r}")
        return np.stack([found[one] for one in ids]).astype(np.float32)

    def stats(self) -> dict[str, Any]:
        """Numbers of the newest version: people, files, bytes on disk, fragments, the index and what it lacks."""
        version = self.refresh()
        with self._engine():
            found = self._table.stats()
            paths = self._table.search().select(["path"]).to_arrow().column("path")
            index = self._table.index_stats(INDEX_NAME) if self.columns.has_index() else None
        return {
            "people": found["num_rows"],
            "files": len(paths.unique()),
            "bytes": found["total_bytes"],
            "fragments": found["fragment_stats"]["num_fragments"],
            "version": version,
            "index": None if index is None else index.index_type,
            "people_not_in_index": None if index is None else index.num_unindexed_rows,
            "model": self.info.model,
            "model_fingerprint": self.info.model_fingerprint,
            "embedding": dict(self.info.embedding),
            "attributes": list(self.schema.names),
        }

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the lock of writers of a gallery in a folder; threads with one `Gallery` wait for each other.

        On an object store there is none: the engine commits batches of several writers one after another, but two
        that add the same people add them twice.

        Raises:
            ValueError: another process is writing.
        """
        local = _local(self.place)
        with self._lock, nullcontext() if local is None else lock_file(local / LOCK, local):
            yield

    def add(self, people: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        """Adds a batch of people; when this returns, they are committed.

        Args:
            people: dicts with `path`; `probabilities`, `(A, C)` or a number per label, `(L,)`; `embedding` `(D,)`;
                and, where they are known, `row`, `person`, `box`, `video`, `frame`, `time`, `track`, `height`,
                `quality`, `size`, `mtime_ns`, `digest`, `model` (a fingerprint).

        Returns:
            `{"added": how many, "already_there": how many}`; those that are there are left as they are.

        Raises:
            ValueError: a field is missing, unknown or of another shape, a number is not finite, or `model` is another
                checkpoint; nothing is added. Another process is writing.
        """
        rows = self.prepare(iterate(people, "people"))
        with self.writing():
            return self.add_rows(rows)

    def add_rows(self, rows: Any) -> dict[str, int]:
        """`add` for rows that are prepared (`prepare`), by a process that holds the lock."""
        known = self._ids()
        fresh: dict[str, int] = {}  # id -> position
        for position, one in enumerate(rows.column("id").to_pylist()):
            if one not in known:
                fresh.setdefault(one, position)
        if fresh:
            with self._engine():
                self._table.add(rows if len(fresh) == len(rows) else rows.take(list(fresh.values())))
                known.update(fresh)
                self._known = self._table.version, known
        return {"added": len(fresh), "already_there": len(rows) - len(fresh)}

    def replace_rows(self, rows: Any, images: Iterable[tuple[str, int | None]]) -> None:
        """Puts the rows of some images, `(path, row)`, in the place of those that are there, in one commit."""
        old = " OR ".join(
            f"(path = {_quoted(path)} AND {'row IS NULL' if row is None else f'row = {int(row)}'})"
            for path, row in images
        )
        with self._engine():
            self._table.checkout_latest()
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.when_not_matched_by_source_delete(old).execute(rows)
        self._known = None

    def prepare(self, people: Iterable[Mapping[str, Any]]) -> Any:
        """People as an Arrow table with the columns of the gallery, checked, for `add_rows`."""
        import pyarrow

        people = [self._checked(one, f"people[{position}]") for position, one in enumerate(people)]
        count, size = len(people), self.info.embedding["size"]
        L = sum(self.schema.num_labels)
        flat = np.array([one["probabilities"] for one in people], dtype=np.float32).reshape(count, L)
        vectors = np.array([one["embedding"] for one in people], dtype=np.float32).reshape(count, size)
        wrong = ~((flat >= 0) & (flat <= 1 + 1e-5)).all(1)
        if wrong.any():
            row = int(wrong.argmax())
            raise ParValueError(
                f"people[{row}]: probabilities range from {flat[row].min():g} to {flat[row].max():g}, expected 0 to 1"
            )
        if not np.isfinite(vectors).all():
            row = int((~np.isfinite(vectors)).any(1).argmax())
            raise ParValueError(f"people[{row}]: embedding has numbers that are not finite")
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        logarithms = np.log(np.clip(np.concatenate([flat, 1 - flat], axis=1), SMALLEST_PROBABILITY, 1))
        first = np.concatenate([[0], np.cumsum(self.schema.num_labels)])
        known: dict[str, Any] = {
            "id": [person_id(one["path"], one.get("row"), one["person"]) for one in people],
            "embedding": _vectors(vectors),
            "log_likelihood": _vectors(logarithms),
            **{name: flat[:, first[a] + k] for (a, k), name in column_names(self.schema).items()},
        }
        schema = self._table.schema.remove_metadata()
        arrays = [
            known[field.name]
            if isinstance(known.get(field.name), pyarrow.Array)
            else pyarrow.array(known.get(field.name, [one.get(field.name) for one in people]), field.type)
            for field in schema
        ]
        return pyarrow.Table.from_arrays(arrays, schema=schema)

    def delete(self, where: str | None = None, *, ids: Iterable[str] = (), paths: Iterable[str] = ()) -> int:
        """Deletes people; returns how many.

        Args:
            where: a condition in SQL, as for `search`.
            ids: of people.
            paths: of image files and tables, all of whose people are deleted.

        Raises:
            ValueError: nothing is named, `where` is no SQL, or another process is writing.
        """
        lists = {"id": list(iterate(ids, "ids")), "path": list(iterate(paths, "paths"))}
        parts = [] if where is None else [f"({where})"]
        parts += [f"{name} IN ({', '.join(map(_quoted, values))})" for name, values in lists.items() if values]
        if not parts:
            raise ParValueError("delete was called without where, ids and paths: name who is to be deleted")
        with self.writing():
            return self.delete_where(" OR ".join(parts))

    def delete_where(self, where: str) -> int:
        """`delete` by a process that holds the lock."""
        with self._engine(where):
            self._table.checkout_latest()
            deleted = self._table.delete(where).num_deleted_rows
        self._known = None
        return deleted

    def create_index(self, kind: str = "ivf_sq", *, partitions: int | None = None) -> None:
        """Makes the index of vectors, with which a search reads a part of them. Worth it from about 100,000 people.

        People who are added later are searched one by one beside the index, until `compact` takes them in.

        Args:
            kind: `"ivf_sq"`: groups of vectors in 8 bits per number; what it proposes is compared with the vectors
                themselves. `"ivf_flat"`: groups of the vectors as they are.
            partitions: groups; None: the square root of the number of people, 512 at most.

        Raises:
            ValueError: an unknown kind, or fewer than 256 people.
        """
        index = require("lancedb.index", "gallery")
        kinds = {"ivf_flat": index.IvfFlat, "ivf_sq": index.IvfSq}
        if kind not in kinds:
            raise ParValueError(f"kind={kind!r}: expected one of {', '.join(kinds)}")
        people = len(self)
        if people < 256:
            raise ParValueError(f"the gallery has {people} people, expected at least 256: without an index all of "
                                "them are compared, which is exact")  # fmt: skip
        partitions = partitions or max(1, min(512, round(people**0.5)))
        config = kinds[kind](distance_type="cosine", num_partitions=partitions, max_iterations=10, sample_rate=64)
        with self.writing(), self._engine():
            self._table.checkout_latest()
            self._table.create_index("embedding", config=config, replace=True, name=INDEX_NAME)

    def compact(self, *, keep: timedelta = timedelta(days=7)) -> dict[str, Any]:
        """Joins small files, takes new people into the index, and removes versions that are older than `keep` and
        what killed processes left. Readers of a version that is removed fail, hence the week.

        Returns:
            `stats()` afterwards.
        """
        with self.writing(), self._engine():
            self._table.checkout_latest()
            self._table.optimize(cleanup_older_than=keep)
        return self.stats()

    def _refuse_sensitive(self, where: str) -> None:
        for (a, _), name in column_names(self.schema).items():
            if self.schema[a].sensitive and name.casefold() in where.casefold():
                raise ParValueError(
                    f"where={where!r:.200} asks for {self.schema[a].name!r}, which is marked sensitive: searching "
                    "people by perceived gender or age is a decision to take on purpose (allow_sensitive=True, "
                    "--allow-sensitive)"
                )

    def _ids(self) -> set[str]:
        """The ids of the newest version."""
        version = self.refresh()
        if self._known is None or self._known[0] != version:
            with self._engine():
                found = self._table.search().select(["id"]).to_arrow().column("id").to_pylist()
            self._known = version, set(found)
        return self._known[1]

    def _checked(self, person: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A person with flat probabilities and no field that is unknown."""
        if not isinstance(person, Mapping):
            raise ParTypeError(f"{where} is {shorten(person)}, expected a dict")
        unknown, missing = person.keys() - _FIELDS, _NEEDED - person.keys()
        if unknown or missing:
            what = f"the unknown field {min(unknown)!r}" if unknown else f"no {min(missing)!r}"
            raise ParValueError(f"{where} has {what}, expected {', '.join(sorted(_FIELDS))}")
        probabilities, embedding = np.asarray(person["probabilities"]), np.asarray(person["embedding"])
        mask, size = self.columns.label_mask, self.info.embedding["size"]
        if probabilities.shape == mask.shape:
            probabilities = probabilities[mask]
        elif probabilities.shape != (mask.sum(),):
            raise ParValueError(
                f"{where}: probabilities have shape {probabilities.shape}, expected {mask.shape}, or ({mask.sum()},), "
                "one per label"
            )
        if embedding.shape != (size,):
            raise ParValueError(f"{where}: embedding has shape {embedding.shape}, expected ({size},)")
        model = person.get("model") or self.info.model_fingerprint
        if model != self.info.model_fingerprint:
            raise ParValueError(
                f"{where} was made by a checkpoint with the fingerprint {shorten(model)}, and the gallery "
                f"{self.place!r} by {self.info.model!r} ({self.info.model_fingerprint[:12]})"
            )
        return {
            **person, "path": str(person["path"]), "person": int(person.get("person") or 0), "model": model,
            "probabilities": probabilities, "embedding": embedding,
        }  # fmt: skip


class _QueryReader:
    """Reads what `search` takes as a query."""

    def __init__(self, schema: AttributeSchema, allow_sensitive: bool):
        self.schema, self.allow_sensitive = schema, allow_sensitive

    def __call__(self, given: Any, argument: str) -> Query | None:
        if given is None or isinstance(given, Query):
            if given is not None and not self.allow_sensitive:
                Query.from_dict(given.wanted, self.schema, unwanted=given.unwanted)  # refuses what is sensitive
            return given
        if isinstance(given, str):
            return Query.parse(given, self.schema, allow_sensitive=self.allow_sensitive)
        if isinstance(given, Mapping):
            return Query.from_dict(given, self.schema, allow_sensitive=self.allow_sensitive)
        raise ParTypeError(f"{argument} is {shorten(given)}, expected a Query, a dict or text")


_NEEDED = {"path", "probabilities", "embedding"}
_FIELDS = {*_NEEDED, "size", "mtime_ns", "digest", "model", *DETAILS} - {"id"}


def _arrow_schema(info: GalleryInfo):
    import pyarrow

    text, whole = pyarrow.string(), pyarrow.int64()
    labels = sum(info.schema.num_labels)
    columns = {
        "id": text, "path": text, "row": whole, "person": pyarrow.int32(), "box": pyarrow.list_(pyarrow.int32(), 4),
        "video": text, "frame": whole, "time": pyarrow.float64(), "track": text, "height": pyarrow.int32(),
        "quality": pyarrow.float32(), "size": whole, "mtime_ns": whole, "digest": text, "model": text,
        **dict.fromkeys(column_names(info.schema).values(), pyarrow.float32()),
        "embedding": pyarrow.list_(pyarrow.float16(), info.embedding["size"]),
        "log_likelihood": pyarrow.list_(pyarrow.float16(), 2 * labels),
    }  # fmt: skip
    return pyarrow.schema(columns, metadata={_INFO: json.dumps(info.to_dict(), ensure_ascii=False).encode()})


def _local(place: str) -> Path | None:
    """The folder of a gallery; None for a URI."""
    return None if "://" in place else Path(place)


def _connect(place: str, storage_options: Mapping[str, str] | None):
    lancedb = require("lancedb", "gallery")
    # Vectors and columns that stay in memory are in `Columns`: the engine's own caches are small.
    session = lancedb.Session(index_cache_size_bytes=512 << 20, metadata_cache_size_bytes=64 << 20)
    options = None if storage_options is None else dict(storage_options)
    with storage_errors(place):
        return lancedb.connect(place, storage_options=options, session=session)


def _vectors(values: np.ndarray):
    """Vectors `(N, D)` as an Arrow array of float16."""
    import pyarrow

    flat = pyarrow.array(values.astype(np.float16).reshape(-1), pyarrow.float16())
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _quoted(value: Any) -> str:
    return "'" + str(value).replace("'", "''") + "'"
