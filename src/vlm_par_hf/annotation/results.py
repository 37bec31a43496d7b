"""Files of a run: parts, each complete or absent; at the end one file in the order of the inputs, and a report.

OUT.partial/run.json             what the images, the model and the options are; removed when OUT is finished
OUT.partial/inputs.jsonl         path, size and time of change of every input file
OUT.partial/part-000012.jsonl    a line per image: an answer, or an error
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub.utils import WeakFileLock

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import atomic_write_json, atomic_write_text

from .annotator import to_json
from .inputs import TABLE_SUFFIX


__all__ = ["assemble", "check_earlier_work", "lock_parts", "make_line", "part_name", "table_schema"]

logger = logging.getLogger(__name__)

_LOCK_FILE = "lock"
_ROW_GROUP = 10_000  # rows of a parquet output that are kept in memory and written together


def part_name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:06d}.jsonl"


def make_line(name: str, image_id: str | None, prediction: str | None, error: str | None) -> str:
    """A line of a part. With `error` it starts with that key and goes to the report, otherwise to the output."""
    head = {"image": name} if image_id is None else {"image": name, "image_id": image_id}
    if error is not None:
        return to_json({"error": error, **head}) + "\n"
    return f"{to_json(head)[:-1]}, {prediction[1:]}\n"


def check_earlier_work(out: Path, partial: Path, run: dict, listing: str, overwrite: bool) -> dict[str, Any] | None:
    """Compares a run with what an earlier one left; files of another run are deleted only with `overwrite`.

    Args:
        out: the output file.
        partial: the folder of parts, locked.
        run: what the images, the model and the options are.
        listing: `ImageList.listing()`.
        overwrite: start anew if there is other work.

    Returns:
        The report if `out` is finished. Else None; then `partial` holds the parts of this run that are complete.

    Raises:
        ValueError: there is work of another run; the message says what differs.
    """
    report_path = _report_path(out)
    hint = "name another file, or overwrite it (overwrite=True, --overwrite)"
    if (partial / "run.json").is_file():
        earlier = json.loads((partial / "run.json").read_text(encoding="utf-8"))
        differences = _differences(earlier, run)
        if not differences:
            return None
        if not overwrite:
            if earlier["images_digest"] != run["images_digest"]:
                differences[0] += _listing_difference((partial / "inputs.jsonl").read_text(encoding="utf-8"), listing)
            raise ParValueError(f"{str(partial)!r} holds the work of another run: {'; '.join(differences)}; {hint}")
    elif out.exists() and not overwrite:
        report = json.loads(report_path.read_text(encoding="utf-8")) if report_path.is_file() else {}
        if "run" not in report:
            raise ParValueError(f"out={str(out)!r} exists, and no report says what it is; {hint}")
        differences = _differences(report["run"], run)
        if differences:
            raise ParValueError(f"out={str(out)!r} is the work of another run: {'; '.join(differences)}; {hint}")
        logger.info("%s was finished before", out)
        return report
    for name in os.listdir(partial):
        if name != _LOCK_FILE:
            (partial / name).unlink()
    atomic_write_text(partial / "inputs.jsonl", listing)
    atomic_write_json(partial / "run.json", run)
    return None


def _differences(earlier: dict[str, Any], run: dict[str, Any]) -> list[str]:
    found = []
    if earlier.get("images_digest") != run["images_digest"]:
        found.append(f"the images differ ({earlier.get('images')} then, {run['images']} now)")
    if earlier.get("model_digest") != run["model_digest"]:
        found.append(f"the model differs ({earlier.get('model')} then, {run['model']} now)")
    # Compared above by digest, because a model may be moved; the attributes follow from the model.
    compared = ("images", "images_digest", "model", "model_digest", "attributes")
    for name in run:
        if name not in compared and earlier.get(name) != run[name]:
            found.append(f"{name} was {earlier.get(name)!r} and is {run[name]!r}")
    return found


def _listing_difference(earlier: str, now: str) -> str:
    old, new = ({path: stamp for path, *stamp in map(json.loads, text.splitlines())} for text in (earlier, now))
    groups = {
        "added": [path for path in new if path not in old],
        "removed": [path for path in old if path not in new],
        "changed": [path for path in new if path in old and new[path] != old[path]],
    }
    changes = [f"{len(paths)} {change}, the first {paths[0]!r}" for change, paths in groups.items() if paths]
    return ": " + ("; ".join(changes) if changes else "they are in another order")


@contextmanager
def lock_parts(partial: Path, out: Path) -> Iterator[None]:
    """Makes and locks the folder of parts; at the end removes it, unless its run.json says that work is unfinished.

    Raises:
        ValueError: another process holds the lock.
    """
    partial.mkdir(parents=True, exist_ok=True)
    lock = WeakFileLock(partial / _LOCK_FILE, timeout=0.5)
    try:
        lock.__enter__()
    except TimeoutError:
        raise ParValueError(f"out={str(out)!r}: another process is writing it") from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
        if not (partial / "run.json").exists():
            shutil.rmtree(partial, ignore_errors=True)


def assemble(out: Path, partial: Path, count: int, run: dict, has_ids: bool, left_out: list) -> dict[str, Any]:
    """Joins the parts to `out`, writes the report and returns it.

    run.json is removed last: after a crash at any line the next run finds it and all parts, and does this again.
    """
    temporary = partial / f"assembled{out.suffix}"
    broken: list[dict[str, Any]] = []
    predictions = 0

    def lines() -> Iterator[bytes]:
        nonlocal predictions
        for number in range(count):
            for line in (partial / part_name(number)).read_bytes().splitlines(keepends=True):
                if line.startswith(b'{"error"'):
                    entry = json.loads(line)
                    broken.append({"image": entry.pop("image"), **entry})
                else:
                    predictions += 1
                    yield line

    with temporary.open("wb") as file:
        if out.suffix == TABLE_SUFFIX:
            _write_table(file, lines(), run["attributes"], has_ids)
        else:
            file.writelines(lines())
        file.flush()
        os.fsync(file.fileno())
    report = {
        "images": run["images"],
        "predictions": predictions,
        "broken": broken,
        "left_out": left_out,
        "order": "as given; inside a folder natural order of names, folders and files together",
        "run": run,
    }
    atomic_write_json(_report_path(out), report)
    os.replace(temporary, out)
    (partial / "run.json").unlink()
    return report


def _report_path(out: Path) -> Path:
    return out.with_suffix(".report.json")


def table_schema(attributes: Sequence[str], has_ids: bool):
    """The columns of a parquet output.

    Raises:
        ValueError: two columns have the same name.
    """
    import pyarrow

    fields = [("image", pyarrow.string()), *([("image_id", pyarrow.string())] if has_ids else [])]
    for name in attributes:
        fields += [(name, pyarrow.string()), (f"{name}_score", pyarrow.float32())]
    names = Counter(name for name, _ in fields)
    if len(names) < len(fields):
        raise ParValueError(
            f"two columns of the output are called {names.most_common(1)[0][0]!r}: write .jsonl instead"
        )
    return pyarrow.schema(fields)


def _write_table(file, lines: Iterator[bytes], attributes: Sequence[str], has_ids: bool) -> None:
    import pyarrow.parquet

    schema = table_schema(attributes, has_ids)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while chunk := [_table_row(line, attributes, has_ids) for line in islice(lines, _ROW_GROUP)]:
            columns = [pyarrow.array(column, field.type) for column, field in zip(zip(*chunk), schema)]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _table_row(line: bytes, attributes: Sequence[str], has_ids: bool) -> list[Any]:
    found = json.loads(line)
    row = [found["image"], *([found.get("image_id")] if has_ids else [])]
    for name in attributes:
        answer = found["attributes"].get(name)
        row += (None, None) if answer is None else (answer["label"], answer["score"])
    return row
