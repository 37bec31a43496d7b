"""`index_people`: from folders, tables and lists of people to the rows of a gallery. What `vlm-par index` runs.

Only what is new or has changed is read again: a file counts as unchanged if its size and time are those of its rows,
or else its content. A run may be killed at any moment; started again, it goes on behind the last batch that was
committed.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.utils import tqdm

from vlm_par_hf.annotation.inputs import TABLE_SUFFIX, Boxed, ImageList, Row
from vlm_par_hf.annotation.running import list_images
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.output_folders import refuse_overlap
from vlm_par_hf.utils import iterate, read_json, require, shorten

from .encoding import PersonEncoder
from .gallery import Gallery


__all__ = ["PEOPLE_SUFFIX", "index_people", "read_people"]

logger = logging.getLogger(__name__)

PEOPLE_SUFFIX = ".jsonl"
_DETAILS = ("video", "frame", "time", "track", "quality", "box")


class _Candidate(NamedTuple):
    """An image to be read."""

    row: Row
    path: str
    table_row: int | None
    size: int
    mtime_ns: int
    digest: str | None
    is_changed: bool  # whether the gallery holds people of an earlier content


def index_people(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    encoder: PersonEncoder,
    storage_options: Mapping[str, str] | None = None,
    image_column: str = "image",
    image_root: str | os.PathLike | None = None,
    boxes: str | os.PathLike | None = None,
    box_format: str | None = None,
    follow_links: bool = False,
    remove_gone: bool = False,
    people_per_commit: int = 512,
    ray_workers: int = 0,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Puts the people of images into a gallery, which is made if it is not there.

    Args:
        images: folders, files and globs, parquet files; or one `.jsonl` file with a line per person, as
            `vlm-par track` and `vlm-par predict` write it (`read_people`).
        out: the gallery, a folder or a URI.
        encoder: what reads the images. Its detector, if it has one, finds people in images without boxes.
        storage_options: of an object store, as for `Gallery.open`.
        image_column, image_root, boxes, box_format, follow_links: as for `annotate`.
        remove_gone: delete the people of files that are not in the folders any more. Else they are reported, and stay.
        people_per_commit: at most so many people are read again after a run was killed, and with several people in an
            image a few more.
        ray_workers, cpus_per_worker, gpus_per_worker: as for `annotate`; this process commits what the workers read.
        progress: show a bar on standard error.

    Returns:
        The report: `gallery`, `images`, `added` and `people` (in the gallery now), `new`, `changed`, `unchanged`
        (images), `gone` (files that are not there any more) and `removed` (people of these), `duplicates`
        (`{"image", "same_as"}`: the same content under another name, which is not added again), `broken`
        (`{"image", "error"}`), `without_people` and `left_out` as in the report of `annotate`.

    Raises:
        ValueError: a wrong argument; the gallery was built by another checkpoint, label space or processor; another
            process is writing it.
        What `ImageList`, loading the model and the gallery raise. Batches that are committed are kept.
    """
    if people_per_commit < 1:
        raise ParValueError(f"people_per_commit={people_per_commit}: expected at least 1")
    if ray_workers:
        require("ray.data", "ray")
    place = os.fspath(out)
    sources = [images] if isinstance(images, (str, os.PathLike)) else list(iterate(images, "images"))
    if "://" not in place:  # no URI
        refuse_overlap(
            place, {"images" if index == 0 else f"images[{index}]": one for index, one in enumerate(sources)}
        )
    options: dict[str, Any] = {"image_column": image_column, "follow_links": follow_links, "image_root": image_root}
    details: dict[str, list[dict[str, Any]]] = {}
    broken: list[dict[str, str]] = []
    if any(str(one).lower().endswith(PEOPLE_SUFFIX) for one in sources):
        if len(sources) > 1 or boxes is not None:
            raise ParValueError(f"images={shorten(sources)}: a {PEOPLE_SUFFIX} file is named alone, without boxes")
        found = read_people(sources[0], image_root)
        details, broken = found.details, found.missing
        inputs = ImageList(found.paths, boxes=found.boxes, **{**options, "image_root": None})
        box_format = "xyxy"
    else:
        inputs, box_format = list_images(
            sources, boxes=boxes, box_format=box_format, detector=encoder.detector, **options
        )
    encoder.row_options = encoder.row_options._replace(box_format=box_format)
    gallery = Gallery.create(place, encoder.info(), storage_options=storage_options)
    with gallery.writing():
        job = _Job(inputs, encoder, gallery, sources, details)
        with tqdm(total=len(inputs), desc="index", unit="image", disable=not progress) as bar:
            if ray_workers:
                answered = job.on_ray((ray_workers, cpus_per_worker, gpus_per_worker), bar)
            else:
                answered = job.here(bar)
            job.commit(answered, people_per_commit)
        gone = job.gone()
        removed = 0
        if gone and remove_gone:
            for start in range(0, len(gone), 500):
                quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in gone[start : start + 500])
                removed += gallery.delete_where(f"path IN ({quoted})")
    return {
        "gallery": place,
        "images": len(inputs),
        "people": len(gallery),
        "added": job.added,
        "new": job.new,
        "changed": job.changed,
        "unchanged": job.unchanged,
        "gone": gone,
        "removed": removed,
        "duplicates": job.duplicates,
        "broken": broken + job.broken,
        "without_people": {"count": job.nobody[0], "first": job.nobody[1]},
        "left_out": inputs.left_out,
    }


class _Job:
    """One run over a list of images; the lock is held."""

    def __init__(self, inputs, encoder, gallery, sources, details):
        self.inputs, self.encoder, self.gallery, self.details = inputs, encoder, gallery, details
        self.roots = [os.path.abspath(one) for one in sources if os.path.isdir(one)]
        self.added = self.new = self.changed = self.unchanged = 0
        self.duplicates: list[dict[str, str]] = []
        self.broken: list[dict[str, str]] = []
        self.nobody: list[Any] = [0, None]
        self.listed: set[str] = set()
        self.known: dict[str, dict[int, tuple[int, int, str | None]]] = {}
        self.contents: dict[str, tuple[str, int]] = {}  # digest -> path and row of a person
        files = gallery.files()
        for path, row, size, time, digest in zip(
            files["path"], files["row"].tolist(), files["size"].tolist(), files["mtime_ns"].tolist(), files["digest"]
        ):
            self.known.setdefault(path, {})[row] = (size, time, digest)
            if digest != -1:
                self.contents.setdefault(digest, (path, row))

    def candidates(self) -> Iterator[_Candidate]:
        """The images that are to be read: new ones and those whose content has changed."""
        index = 0
        for line in self.inputs.listing().splitlines():
            name, size, time, *_ = json.loads(line)
            count = self.inputs.file_rows(index)
            path = _printable(os.path.join(self.inputs.folder, name))
            is_table = name.lower().endswith(TABLE_SUFFIX)
            self.listed.add(path)
            known = self.known.get(path, {})
            first, index = index, index + count
            if all(known.get(row, (None,))[:2] == (size, time) for row in (range(count) if is_table else (-1,))):
                self.unchanged += count
                continue
            for row in self.inputs.rows(first, index):
                table_row = row.index - first if is_table else None
                before = known.get(-1 if table_row is None else table_row)
                if before is not None and before[:2] == (size, time):
                    self.unchanged += 1
                    continue
                digest = _digest(row.image)
                if before is not None and digest is not None and before[2] == digest:
                    self.unchanged += 1
                    continue
                own = (path, -1 if table_row is None else table_row)
                same = own if digest is None else self.contents.setdefault(digest, own)
                if same != own and not os.path.exists(same[0]):  # it was moved: its people are gone there
                    same = self.contents[digest] = own
                if same != own:
                    self.duplicates.append({"image": row.name, "same_as": _name(*same)})
                    continue
                if before is not None and self.contents.get(before[2]) == own:
                    del self.contents[before[2]]
                yield _Candidate(row, path, table_row, size, time, digest, before is not None)

    def here(self, bar) -> Iterator[tuple[_Candidate, list[dict[str, Any]] | None, str | None]]:
        """What this process reads."""
        waiting: deque[_Candidate] = deque()

        def images() -> Iterator[Any]:
            for one in self.candidates():
                waiting.append(one)
                yield one.row.image

        for people, error in self.encoder.stream(self.encoder.batches(images())):
            one = waiting.popleft()
            bar.update(one.row.index + 1 - bar.n)
            yield one, people, error
        bar.update(len(self.inputs) - bar.n)

    def on_ray(self, resources, bar) -> Iterator[tuple[_Candidate, list[dict[str, Any]] | None, str | None]]:
        """What workers read, in the order in which they finish."""
        from .on_ray import encode_on_ray

        candidates = {one.row.index: one for one in self.candidates()}
        bar.update(len(self.inputs) - len(candidates))
        for index, people, error in encode_on_ray(self.inputs, self.encoder, sorted(candidates), resources):
            bar.update(1)
            yield candidates[index], people, error

    def commit(self, answered: Iterable, people_per_commit: int) -> None:
        """Adds what was read, batch by batch."""
        fresh: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        images: list[tuple[str, int | None]] = []

        def write() -> None:
            if fresh:
                self.added += self.gallery.add_rows(self.gallery.prepare(fresh))["added"]
            if images:
                self.gallery.replace_rows(self.gallery.prepare(changed), images)
                self.added += len(changed)
            fresh.clear(), changed.clear(), images.clear()

        try:
            for one, people, error in answered:
                if error is not None:
                    self.broken.append({"image": one.row.name, "error": error})
                    if one.digest is not None:
                        self.contents.pop(one.digest, None)
                    continue
                if not people:
                    self.nobody[0] += 1
                    self.nobody[1] = self.nobody[1] or one.row.name
                rows = [self._describe(one, number, person) for number, person in enumerate(people)]
                if one.is_changed:
                    self.changed += 1
                    changed += rows
                    images.append((one.path, one.table_row))
                else:
                    self.new += 1
                    fresh += rows
                if len(fresh) + len(changed) >= people_per_commit:
                    write()
        finally:
            write()

    def gone(self) -> list[str]:
        """Files of the folders that were named whose people are in the gallery, and that are not there any more."""
        return sorted(
            path
            for path in self.known
            if path not in self.listed and any(path.startswith(os.path.join(root, "")) for root in self.roots)
        )

    def _describe(self, one: _Candidate, number: int, person: Mapping[str, Any]) -> dict[str, Any]:
        listed = self.details.get(one.path)
        known = listed[number] if listed else {}
        found = {
            "path": one.path, "row": one.table_row, "person": number, "size": one.size, "mtime_ns": one.mtime_ns,
            "digest": one.digest,
            **{name: person[name] for name in ("probabilities", "embedding", "height", "quality")},
        }  # fmt: skip
        if "box" in person:
            found["box"] = person["box"]
        return {**found, **known}


class PeopleFile(NamedTuple):
    """What a `.jsonl` file says of people."""

    paths: list[str]  # of the images, each once
    boxes: dict[str, list[Any]] | None  # to be cut out of them
    details: dict[str, list[dict[str, Any]]]  # by full path, in the order of the boxes
    missing: list[dict[str, str]]  # images that are not there


def read_people(path: str | os.PathLike, image_root: str | os.PathLike | None = None) -> PeopleFile:
    """Reads a list of people.

    Each line is an object with `"image"`, a path that starts at the folder of the file (or at `image_root`) and lies
    below it. `"box"`, `[x0, y0, x1, y1]` in pixels, says where in the image the person is; without it the image is the
    person. `"video"`, `"frame"`, `"time"` and `"track"` are kept where they are given. A line of `vlm-par track` has
    `"id"` and `"best"`, the frame, time and box of the picture in the video.

    Raises:
        ValueError: a line is no such object, a path leads out of the folder, or only some lines have a box.
    """
    root = os.path.realpath(image_root or os.path.dirname(os.path.abspath(path)))
    paths: dict[str, list[Any]] = {}
    details: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, dict[str, str]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{os.fspath(path)!r:.200}, line {number}"
            try:
                one = read_json(line)
            except ValueError as error:
                raise ParValueError(f"{where} is no JSON: {error}") from error
            image = one.get("image") if isinstance(one, Mapping) else None
            if not isinstance(image, str):
                raise ParValueError(
                    f'{where} is {shorten(one)}, expected an object with "image", the path of a picture'
                )
            full = os.path.realpath(os.path.join(root, image))
            if not full.startswith(os.path.join(root, "")):
                raise ParValueError(f"{where}: the image {shorten(image)} leads out of {root!r} (--image-root)")
            if not os.path.isfile(full):
                missing[full] = {"image": image, "error": "there is no such file"}
                continue
            best = one.get("best")
            box = None if isinstance(best, Mapping) else one.get("box")
            paths.setdefault(full, []).append(box)
            details.setdefault(full, []).append(_details(one, best))
    boxed = {one is not None for of_image in paths.values() for one in of_image}
    if len(boxed) > 1:
        raise ParValueError(f"{os.fspath(path)!r}: some lines have a box and others do not: expected all or none")
    if not paths:
        raise ParValueError(f"{os.fspath(path)!r} names no image that is there")
    several = next((one for one, of_image in paths.items() if len(of_image) > 1 and boxed == {False}), None)
    if several is not None:
        raise ParValueError(f"{os.fspath(path)!r} names {several!r:.200} twice, without boxes that tell who is who")
    return PeopleFile(list(paths), paths if boxed == {True} else None, details, list(missing.values()))


def _details(one: Mapping[str, Any], best: Any) -> dict[str, Any]:
    given = {"track": one.get("id"), **one, **best} if isinstance(best, Mapping) else {**one, "box": None}
    found = {name: given[name] for name in _DETAILS if given.get(name) is not None}
    if "track" in found:
        found["track"] = str(found["track"])
    return found


def _digest(image: Any) -> str | None:
    """A digest of the content of an image and of the boxes in it; None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=12)
    if isinstance(image, Boxed):
        digest.update(json.dumps(image.boxes, default=str).encode())
        image = image.image
    try:
        if isinstance(image, Mapping):
            data = image.get("bytes")
            digest.update(Path(image["path"]).read_bytes() if data is None else data)
        else:
            digest.update(Path(image).read_bytes())
    except (OSError, TypeError, ValueError):
        return None
    return digest.hexdigest()


def _name(path: str, row: int) -> str:
    return path if row == -1 else f"{path}#{row}"


def _printable(path: str) -> str:
    """The full path, bytes that are not UTF-8 escaped."""
    return os.fsencode(os.path.abspath(path)).decode("utf-8", "backslashreplace")
