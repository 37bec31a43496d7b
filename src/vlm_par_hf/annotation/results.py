"""Files of a run: parts, each complete or absent; at the end one file in the order of the inputs, and a report.

OUT.partial/run.json             what the images, the model and the options are; removed when OUT is finished
OUT.partial/inputs.jsonl         path, size and time of change of every input file
OUT.partial/part-000012.jsonl    a line with a checksum, then a line per person, or that an image has none or an error

These names are the list of what a run writes in OUT.partial: nothing else in it is deleted.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vlm_par_hf.errors import ParFileExistsError, ParValueError
from vlm_par_hf.escaping import csv_cell
from vlm_par_hf.labels.decisions import answer_text
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.output_folders import LOCK, lock_file, refuse_link, sha256_of_file
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, read_json_object

from .annotator import to_json
from .inputs import TABLE_SUFFIX


__all__ = [
    "TableColumns",
    "assemble",
    "check_earlier_work",
    "finish",
    "has_part",
    "lock_parts",
    "make_line",
    "part_name",
    "write_part",
    "write_report",
]

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"
_INPUTS_FILE = "inputs.jsonl"
_WRITTEN_NAME = re.compile(r"run\.json|inputs\.jsonl|part-\d{6}\.jsonl|assembled\.(jsonl|parquet|csv|txt)")
_TEMPORARY_NAME = re.compile(r"\.(run\.json|inputs\.jsonl|part-\d{6}\.jsonl)\.[0-9a-f]{32}\.tmp")
_RUN_KEYS = {"images", "images_digest", "model_digest", "images_per_part"}
_EDGES = ("x0", "y0", "x1", "y1")
_ROW_GROUP = 10_000  # rows of a parquet output that are kept in memory and written together


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:06d}.jsonl"


def make_line(name: str, image_id: str | None, people: Sequence[Mapping[str, Any]] | None, error: str | None) -> str:
    """What a part says of an image: a line for each person; if there is none, or with `error`, one that starts with
    that key and goes to the report."""
    head = {"image": name} if image_id is None else {"image": name, "image_id": image_id}
    if error is not None:
        return to_json({"error": error, **head}) + "\n"
    if not people:
        return to_json({"nobody": True, **head}) + "\n"
    return "".join(f"{to_json({**head, **person})}\n" for person in people)


def write_part(path: Path, images: Sequence[str], run: dict[str, Any]) -> None:
    """Writes a part: what `make_line` says of each image, after a line with the number of images, and a checksum of
    the part together with the run."""
    text = "".join(images)
    head = {"images": len(images), "checksum": _checksum(path.name, text.encode(), run)}
    atomic_write_text(path, f"{to_json(head)}\n{text}")


def has_part(path: Path, images: int, run: dict[str, Any]) -> bool:
    """Whether a part of so many images is there as this run wrote it; one that is damaged is to be computed again."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    head, _, text = data.partition(b"\n")
    try:
        found = json.loads(head)
    except ValueError:
        found = None
    if found == {"images": images, "checksum": _checksum(path.name, text, run)}:
        return True
    logger.warning("%s is not as it was written: its images are answered again", path)
    return False


def _checksum(name: str, text: bytes, run: dict[str, Any]) -> str:
    key = json.dumps([name, run["images_digest"], run["model_digest"], run["images_per_part"]])
    return hashlib.blake2b(key.encode() + text, digest_size=16).hexdigest()


def check_earlier_work(
    out: Path, partial: Path, run: dict, listing: str, overwrite: bool, delete_listed: bool = False
) -> dict[str, Any] | None:
    """Compares a run with what an earlier one left; files of another run are deleted only with `overwrite`.

    Args:
        out: the output file.
        partial: the folder of parts, locked.
        run: what the images, the model and the options are.
        listing: `ImageList.listing()`.
        overwrite: start anew if there is other work.
        delete_listed: also replace a file `out` that is not as a run wrote it.

    Returns:
        The report if `out` is finished. Else None; then `partial` holds the parts of this run that are complete.

    Raises:
        ValueError: there is work of another run; the message says what differs.
        FileExistsError: `out` or its report was changed, or no run wrote it, and `delete_listed` is not set; or a file
            in `partial` that no run wrote has the name of a part.
    """
    report_path = _report_path(out)
    hint = "name another file, or overwrite it (overwrite=True, --overwrite)"
    earlier = read_json_object(partial / _RUN_FILE)
    if earlier is not None and not set(earlier) >= _RUN_KEYS:
        earlier = None  # the record of something else
    if earlier is not None and earlier.pop("finished", False):
        # The process was ended while it removed the parts.
        _remove_parts(partial)
        earlier = None
    if earlier is not None:
        differences = _differences(earlier, run)
        if not differences:
            atomic_write_text(partial / _INPUTS_FILE, listing)
            return None
        if not overwrite:
            if earlier.get("images_digest") != run["images_digest"]:
                differences[0] += _listing_difference(partial / _INPUTS_FILE, listing)
            raise ParValueError(f"{str(partial)!r} holds the work of another run: {'; '.join(differences)}; {hint}")
    elif strange := [name for name in sorted(os.listdir(partial)) if _WRITTEN_NAME.fullmatch(name)]:
        # A run writes its record first, so that these are of somebody else, or nobody can say whose they are.
        raise ParFileExistsError(
            f"{str(partial)!r} holds {strange[0]!r}, and no {_RUN_FILE} that says of which run: delete the folder "
            "yourself, or name another file to write"
        )
    elif out.exists() and not overwrite:
        report = read_json_object(report_path)
        if report is None or not isinstance(report.get("run"), dict):
            raise ParValueError(f"out={str(out)!r} exists, and no report says what it is; {hint}")
        differences = _differences(report["run"], run)
        if differences:
            raise ParValueError(f"out={str(out)!r} is the work of another run: {'; '.join(differences)}; {hint}")
        if _is_changed(out, report):
            raise ParValueError(f"out={str(out)!r} was changed since it was written; {hint}")
        if report.get("checksum", _checksum_of(report)) != _checksum_of(report) or (
            "checksum" not in report and "output_sha256" in report
        ):
            raise ParValueError(f"{str(report_path)!r} was changed since it was written; {hint}")
        logger.info("%s was finished before", out)
        return report
    if not delete_listed:
        _refuse_doubtful(out, report_path)
    _remove_parts(partial)
    atomic_write_json(partial / _RUN_FILE, run)
    atomic_write_text(partial / _INPUTS_FILE, listing)
    return None


def _refuse_doubtful(out: Path, report_path: Path) -> None:
    """Refuses to replace an output that no report describes as it is, and a report of something else."""
    report = read_json_object(report_path)
    doubtful = []
    if out.exists() and _digests(report).get(out.suffix) != sha256_of_file(out):
        doubtful.append(out)
    if report_path.exists() and not isinstance((report or {}).get("run"), dict):
        doubtful.append(report_path)
    if doubtful:
        raise ParFileExistsError(
            f"{', '.join(repr(str(path)) for path in doubtful)}: not as a run of this package wrote it, and would be "
            "replaced; for that pass overwrite=True and delete_listed=True (--overwrite --delete-listed), or name "
            "another file"
        )


def _is_changed(out: Path, report: dict[str, Any]) -> bool:
    """Whether an output is not as it was written; that of an earlier version, whose report has no digest, may be."""
    return out.is_file() and _digests(report).get(out.suffix) not in (None, sha256_of_file(out))


def _checksum_of(report: dict[str, Any]) -> str:
    content = {name: value for name, value in report.items() if name != "checksum"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digests(report: dict[str, Any] | None) -> dict[str, Any]:
    """The sha256 of outputs by suffix: `out.jsonl` and `out.parquet` share a report, which is of the later one."""
    found = {} if report is None else report.get("output_sha256")
    return found if isinstance(found, dict) else {}


def _remove_parts(partial: Path) -> None:
    """Removes what a run writes in its folder of parts, its record last."""
    names = sorted(os.listdir(partial), key=lambda name: name == _RUN_FILE)
    for name in names:
        if _WRITTEN_NAME.fullmatch(name) or _TEMPORARY_NAME.fullmatch(name):
            (partial / name).unlink()


def _differences(earlier: dict[str, Any], run: dict[str, Any]) -> list[str]:
    found = []
    if earlier.get("images_digest") != run["images_digest"]:
        found.append(f"the images differ ({earlier.get('images')} then, {run['images']} now)")
    if earlier.get("model_digest") != run["model_digest"]:
        found.append(f"the model differs ({earlier.get('model')} then, {run['model']} now)")
    # Compared above by digest, because a model may be moved.
    compared = ("images", "images_digest", "model", "model_digest")
    for name in run:
        if name not in compared and earlier.get(name) != run[name]:
            found.append(f"{name} was {earlier.get(name)!r} and is {run[name]!r}")
    return found


def _listing_difference(path: Path, now: str) -> str:
    try:
        earlier = path.read_text(encoding="utf-8")
        old, new = ({path: stamp for path, *stamp in map(json.loads, text.splitlines())} for text in (earlier, now))
    except (OSError, ValueError, TypeError):
        return ""  # the list of then is damaged
    groups = {
        "added": [path for path in new if path not in old],
        "removed": [path for path in old if path not in new],
        "changed": [path for path in new if path in old and new[path] != old[path]],
    }
    changes = [f"{len(paths)} {change}, the first {paths[0]!r}" for change, paths in groups.items() if paths]
    return ": " + ("; ".join(changes) if changes else "they are in another order")


@contextmanager
def lock_parts(partial: Path, out: Path) -> Iterator[None]:
    """Makes and locks the folder of parts; at the end removes it, unless it holds unfinished work or something else.

    Raises:
        ValueError: another process holds the lock.
        OSError: the folder is a link.
    """
    refuse_link(partial)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(partial / LOCK, out):
            yield
    finally:
        with suppress(OSError):
            partial.rmdir()


def assemble(
    out: Path, partial: Path, count: int, run: dict, columns: "TableColumns", left_out: list
) -> dict[str, Any]:
    """Joins the parts to `out`, writes the report and returns it.

    run.json is removed last: after a crash at any line the next run finds it and all parts, and does this again, or
    finds it marked as finished.
    """
    temporary = partial / f"assembled{out.suffix}"
    broken: list[dict[str, Any]] = []
    nobody: list[Any] = [0, None]  # how many images without people, and the first one
    predictions = 0

    def lines() -> Iterator[bytes]:
        nonlocal predictions
        for number in range(count):
            for line in (partial / part_name(number)).read_bytes().splitlines(keepends=True)[1:]:
                if line.startswith(b'{"error"'):
                    entry = json.loads(line)
                    broken.append({"image": entry.pop("image"), **entry})
                elif line.startswith(b'{"nobody"'):
                    nobody[0] += 1
                    nobody[1] = nobody[1] or json.loads(line)["image"]
                else:
                    predictions += 1
                    yield line

    with temporary.open("wb") as file:
        if out.suffix == TABLE_SUFFIX:
            _write_parquet(file, lines(), columns)
        elif out.suffix == ".csv":
            _write_csv(file, lines(), columns)
        else:
            file.writelines(lines())
        file.flush()
        os.fsync(file.fileno())
    report = {
        "images": run["images"],
        "predictions": predictions,
        "broken": broken,
        "without_people": {"count": nobody[0], "first": nobody[1]},
        "left_out": left_out,
        "order": "as given; inside a folder natural order of names, folders and files together",
        "output_sha256": {**_digests(read_json_object(_report_path(out))), out.suffix: sha256_of_file(temporary)},
        "run": run,
    }
    finish(out, partial, run, temporary, report)
    return report


def finish(out: Path, partial: Path, run: dict, temporary: Path, report: dict[str, Any]) -> None:
    """Puts an assembled output in its place, writes the report, and removes the parts."""
    write_report(out, report)
    os.replace(temporary, out)
    atomic_write_json(partial / _RUN_FILE, {**run, "finished": True})
    _remove_parts(partial)


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Writes the report of an output, with its checksum."""
    report["checksum"] = _checksum_of(report)
    atomic_write_json(_report_path(out), report)


def _report_path(out: Path) -> Path:
    return out.with_suffix(".report.json")


class TableColumns(NamedTuple):
    """The columns of a table.

    Args:
        schema: the attributes.
        has_ids: whether images have an `image_id`.
        has_boxes: whether people are cut out of images: `x0`, `y0`, `x1`, `y1` in pixels.
        has_scores: whether a detector found them: `person_score`.
    """

    schema: AttributeSchema
    has_ids: bool = False
    has_boxes: bool = False
    has_scores: bool = False

    def kinds(self) -> dict[str, type]:
        """The columns with the kinds of their values: text, int, or float for a float32.

        Raises:
            ValueError: two columns have the same name.
        """
        found = [("image", str)]
        found += [("image_id", str)] * self.has_ids
        found += [(edge, int) for edge in _EDGES] * self.has_boxes
        found += [("person_score", float)] * self.has_scores
        for one in self.schema:
            found += [(one.name, str), (f"{one.name}_score", float)]
            found += [(f"{one.name}_{label}", float) for label in _ranked_labels(one)]
        names = Counter(name for name, _ in found)
        if len(names) < len(found):
            raise ParValueError(
                f"two columns of the output are called {names.most_common(1)[0][0]!r}: write .jsonl instead"
            )
        return dict(found)

    def row(self, line: bytes) -> list[Any]:
        """The values of a line; None where there is none."""
        found = json.loads(line)
        values = [found["image"]]
        values += [found.get("image_id")] * self.has_ids
        values += found["box"] if self.has_boxes else []
        values += [found["score"]] if self.has_scores else []
        for one in self.schema:
            answer = found["attributes"].get(one.name)
            labels = _ranked_labels(one)
            if answer is None:
                values += [None] * (2 + len(labels))
            else:
                values += [answer_text(answer), answer["score"], *(answer["probabilities"][label] for label in labels)]
        return values


def _ranked_labels(attribute: Attribute) -> tuple[str, ...]:
    """The labels whose probability has a column of its own: of a binary attribute that of its second one is enough."""
    return attribute.labels[1:] if attribute.is_binary else attribute.labels


def _write_parquet(file: BinaryIO, lines: Iterator[bytes], columns: TableColumns) -> None:
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float32()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.kinds().items()])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while chunk := [columns.row(line) for line in islice(lines, _ROW_GROUP)]:
            arrays = [pyarrow.array(column, field.type) for column, field in zip(zip(*chunk), schema)]
            writer.write_table(pyarrow.table(arrays, schema=schema))


def _write_csv(file: BinaryIO, lines: Iterator[bytes], columns: TableColumns) -> None:
    """Text is written as `csv_cell` has it; an empty cell stands for None."""
    stream = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(stream, lineterminator="\n")
    kinds = columns.kinds()
    writer.writerow(csv_cell(name) for name in kinds)
    for line in lines:
        values = zip(columns.row(line), kinds.values())
        writer.writerow(
            str(np.float32(value)) if kind is float and value is not None else csv_cell(value)
            for value, kind in values
        )
    stream.detach()  # flushes it, and leaves the file open
