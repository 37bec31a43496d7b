"""The images of a run in a fixed order: files, folders, globs and parquet tables, each opened only when it is read."""

import glob
import json
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.images.opening import IMAGE_SUFFIXES
from vlm_par_hf.utils import require


__all__ = ["TABLE_SUFFIX", "ImageList", "Row", "Segment", "read_segments"]

logger = logging.getLogger(__name__)

TABLE_SUFFIX = ".parquet"
_ID_COLUMN = "image_id"
_File = tuple[str, int, int]  # path, size in bytes, time of change in ns
_DIGITS = re.compile(r"([0-9]+)")


class Row(NamedTuple):
    """One image to annotate."""

    index: int  # its position in the image list
    name: str  # the path as it was given; FILE#ROW for a row of a table
    image_id: str | None  # from the column image_id of the table
    image: Any  # a path, or `{"bytes": ..., "path": ...}`


class Segment(NamedTuple):
    """An image file (`row` is None), or the rows `[row, row + count)` of a table."""

    index: int
    path: str
    row: int | None
    count: int


class ImageList:
    """Images in a fixed order, read lazily: image files and rows of parquet files.

    Folders are searched with all folders below them. Inside a folder names are in natural order (`2.jpg` before
    `10.jpg`), hidden files are left out, and parquet files are read only if there is no image. A file that is named
    twice is in the list twice. Only the paths are kept in memory.

    Args:
        images: a file, a folder, a glob (`"day?/**/*.jpg"`), or a sequence of them.
        image_column: the column of parquet files that holds the images: encoded bytes, `{"bytes", "path"}` as
            `datasets` writes them, or paths (relative to the folder of the parquet file).
        without: folders that are not searched.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or a glob matches nothing.
        ValueError: a folder holds no image; a parquet file cannot be read or lacks the column.
        OSError: a folder cannot be read.
    """

    def __init__(
        self,
        images: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        image_column: str = "image",
        without: Iterable[str | os.PathLike] = (),
    ):
        names = [images] if isinstance(images, (str, os.PathLike)) else list(images)
        self.image_column = image_column
        self.has_ids = False
        self.folder = os.getcwd()
        self._without = {os.path.realpath(folder) for folder in without}
        self._paths: list[str] = []
        self._sizes, self._times, counts = array("q"), array("q"), array("q")
        for name in names:
            for path, size, time in self._find(os.fspath(name)):
                self._paths.append(path)
                self._sizes.append(size)
                self._times.append(time)
                counts.append(self._check_table(path) if _is_table(path) else 1)
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not len(self):
            raise ParValueError(f"images={[os.fspath(name) for name in names]!r:.300}: expected at least one image")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The images `start` to `stop` (not included); a file is opened only when it is reached."""
        return read_segments(self.segments(start, stop), self.image_column, self.folder)

    def segments(self, start: int = 0, stop: int | None = None) -> Iterator[Segment]:
        """Files and rows of the images `start` to `stop`; relative paths start at `folder`."""
        stop = len(self) if stop is None else min(stop, len(self))
        position = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[position])
            path = self._paths[position]
            if _is_table(path):
                first = int(self._ends[position - 1]) if position else 0
                count = min(end, stop) - start
                yield Segment(start, path, start - first, count)
                start += count
            else:
                yield Segment(start, path, None, 1)
                start += 1
            position += 1

    def listing(self) -> str:
        """A line `[path, size in bytes, time of change in ns]` per file: equal if no file was changed."""
        files = zip(self._paths, self._sizes, self._times)
        return "".join(f"{json.dumps(file, separators=(',', ':'))}\n" for file in files)

    def picture_name(self, row: Row) -> str:
        """A file name for a picture of this image, the same in every run and different for every image."""
        path = self._paths[int(np.searchsorted(self._ends, row.index, side="right"))]
        stem, number = Path(path).stem, row.name[len(_printable_path(path)) :]  # "#12" for a row of a table
        suffix = "" if self._stems[stem] == 1 else f"_{row.index}"
        return f"{stem}{number}_attributes{suffix}.png"

    @cached_property
    def _stems(self) -> Counter:
        return Counter(Path(path).stem for path in self._paths)

    def _find(self, name: str) -> Iterator[_File]:
        if os.path.isdir(name):
            yield from self._search(name)
        elif os.path.isfile(name):
            yield _file_entry(name, os.stat(name))
        elif glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True), key=_natural_key)
            if not found:
                raise ParFileNotFoundError(f"nothing matches {name!r}")
            # `**` matches folders and the files in them: searching such a folder would list its files twice.
            for path in found:
                if os.path.isfile(path):
                    yield _file_entry(path, os.stat(path))
                elif "**" not in name and os.path.isdir(path):
                    yield from self._search(path)
        else:
            raise ParFileNotFoundError(f"no such image or folder: {name!r}")

    def _search(self, folder: str) -> Iterator[_File]:
        if os.path.realpath(folder) in self._without:
            raise ParValueError(f"the folder {folder!r} is also one to write to: expected another")
        found = list(_walk(folder, self._without, frozenset()))
        images = [item for item in found if not _is_table(item[0])]
        if not found:
            expected = ", ".join((*IMAGE_SUFFIXES, TABLE_SUFFIX))
            raise ParValueError(f"no image in the folder {folder!r}: expected files ending in {expected}")
        if images and len(images) < len(found):
            logger.warning(
                "%s: its images are read; its %d parquet files are not, name them to have them read.",
                folder, len(found) - len(images),
            )  # fmt: skip
        yield from images or found

    def _check_table(self, path: str) -> int:
        parquet = require("pyarrow.parquet", "train")
        import pyarrow

        try:
            with parquet.ParquetFile(path) as file:
                count, schema = file.metadata.num_rows, file.schema_arrow
        except (OSError, pyarrow.ArrowException) as error:
            raise ParValueError(f"{path!r} cannot be read as parquet: {error}") from error
        if self.image_column not in schema.names:
            raise ParValueError(
                f"image_column={self.image_column!r}: {path!r} has the columns {', '.join(schema.names)}"
            )
        kind = schema.field(self.image_column).type
        types = pyarrow.types
        is_image = types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
        is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
        if not (is_image or is_bytes or types.is_string(kind) or types.is_large_string(kind)):
            raise ParValueError(
                f"image_column={self.image_column!r} of {path!r} holds {kind}; expected encoded images (binary, or a "
                "struct of bytes and path) or paths"
            )
        self.has_ids |= _ID_COLUMN in schema.names
        return count


def _file_entry(path: str, status: os.stat_result) -> _File:
    return path, status.st_size, status.st_mtime_ns


def _is_table(path: str) -> bool:
    return path.lower().endswith(TABLE_SUFFIX)


def _natural_key(name: str) -> tuple[list[Any], str]:
    # Text and numbers alternate, starting with text, so that text is compared with text and number with number.
    parts: list[Any] = _DIGITS.split(name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _walk(folder: str, without: set[str], above: frozenset[str]) -> Iterator[_File]:
    here = os.path.realpath(folder)
    if here in above or here in without:  # following a link to a folder above would never end
        return
    with os.scandir(folder) as scan:
        entries = sorted(
            (entry for entry in scan if not entry.name.startswith(".")), key=lambda e: _natural_key(e.name)
        )
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, without, above | {here})
        elif entry.name.lower().endswith((*IMAGE_SUFFIXES, TABLE_SUFFIX)):
            if entry.is_file():
                yield _file_entry(entry.path, entry.stat())
            elif entry.is_symlink():  # to a missing file: reported like any image that cannot be read
                yield _file_entry(entry.path, entry.stat(follow_symlinks=False))


def read_segments(segments: Iterable[Segment], image_column: str, folder: str) -> Iterator[Row]:
    """The rows of segments; their relative paths start at `folder`."""
    for segment in segments:
        path = os.path.join(folder, segment.path)
        if segment.row is None:
            yield Row(segment.index, _printable_path(segment.path), None, path)
        else:
            yield from _read_table(segment, image_column, path)


def _read_table(segment: Segment, image_column: str, path: str) -> Iterator[Row]:
    import pyarrow.parquet

    name, folder = _printable_path(segment.path), os.path.dirname(path)
    # Read through a small buffer and not ahead, because a row group may be larger than the memory.
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        columns = [column for column in (image_column, _ID_COLUMN) if column in file.schema_arrow.names]
        skip, groups = segment.row, list(range(file.num_row_groups))
        while skip >= file.metadata.row_group(groups[0]).num_rows:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        left, row = segment.count, segment.row
        for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=columns, use_threads=False):
            skipped = min(skip, len(batch))
            skip -= skipped
            values = batch.slice(skipped, left).to_pydict()
            images = values[image_column]
            for image, image_id in zip(images, values.get(_ID_COLUMN, [None] * len(images))):
                image_id = None if image_id is None else str(image_id)
                yield Row(segment.index + row - segment.row, f"{name}#{row}", image_id, _as_image(image, folder))
                row += 1
                left -= 1
            if not left:
                return


def _as_image(value: Any, folder: str) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    return {"bytes": data, "path": path if path is None or data is not None else os.path.join(folder, path)}


def _printable_path(path: str) -> str:
    """The path with bytes that are not UTF-8 escaped, because JSON and parquet cannot hold them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
