"""The images of a run in a fixed order: files, folders, globs and parquet tables, each opened only when it is read."""

import difflib
import glob
import hashlib
import json
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.images.downloading import is_url
from vlm_par_hf.images.opening import IMAGE_SUFFIXES, describe_image_source, refused_file_url
from vlm_par_hf.inference.boxes import Box, check_boxes, scale_box
from vlm_par_hf.inference.opening import open_picture
from vlm_par_hf.utils import iterate, redact, require, shorten, shorten_text


__all__ = [
    "TABLE_SUFFIX",
    "Boxed",
    "Columns",
    "ImageList",
    "OpenedRow",
    "Row",
    "RowOptions",
    "Segment",
    "open_row",
    "read_segments",
]

logger = logging.getLogger(__name__)

TABLE_SUFFIX = ".parquet"
_ID_COLUMN = "image_id"
_File = tuple[str, int, int]  # path, size in bytes, time of change in ns
_DIGITS = re.compile(r"([0-9]+)")


# What is left out of folders, as it is counted.
_HIDDEN = "hidden files and folders"
_LINK_OUT = "links that lead out of the folder (--follow-links follows them)"
_NO_FILE = "names of images that are no regular files"
_TABLE_BESIDE_IMAGES = "parquet files beside images"


class Columns(NamedTuple):
    """The columns of parquet files that are read."""

    image: str = "image"
    box: str | None = None
    root: str | None = None  # the folder of paths in tables; None: that of the table


class RowOptions(NamedTuple):
    """How the image of a row is opened; as for the pipeline."""

    box_format: str = "xyxy"
    box_margin: float = 0.0
    timeout: float = 30.0
    allow_urls: bool = False
    allow_private_urls: bool = False


class Boxed(NamedTuple):
    """A picture out of which people are cut."""

    image: Any
    boxes: Sequence[Any] | None  # None: a row that says nothing of them


class Row(NamedTuple):
    """One image to annotate."""

    index: int  # its position in the image list
    name: str  # the path as it was given; FILE#ROW for a row of a table
    image_id: str | None  # from the column image_id of the table
    image: (
        Any  # a path, a URL, or `{"bytes", "path"}`, with "root" for a path of a table; or `Boxed` with one of these
    )


class Segment(NamedTuple):
    """An image file (`row` is None), or the rows `[row, row + count)` of a table."""

    index: int
    path: str
    row: int | None
    count: int
    boxes: Sequence[Any] | None = None  # of an image file


class ImageList:
    """Images in a fixed order, read lazily: image files, rows of parquet files, URLs.

    Folders are searched with all folders below them. Inside a folder names are in natural order (`2.jpg` before
    `10.jpg`), and parquet files are read only if there is no image. A file that is named twice is in the list twice.
    Only the paths are kept in memory.

    What is named here may lie anywhere. What is found is data: paths in a table and links in a folder or behind a glob
    are followed only below that folder. What a folder holds and is not read (hidden files, other kinds of files, links
    that lead out) is counted in `left_out`, and a warning says so.

    Args:
        images: a file, a folder, a glob (`"day?/**/*.jpg"`), a URL, or a list (or another container with an order) of
            them.
        image_column: the column of parquet files that holds the images: encoded bytes, `{"bytes", "path"}` as
            `datasets` writes them, or paths (relative to `image_root`).
        box_column: a column of parquet files with the box of the person in the image, or with a list of boxes; None:
            each image is one person.
        boxes: `{name: list of boxes}` for image files; a file without boxes has no people. A name is the end of the
            path of one of the images (`street/1.jpg` of `data/street/1.jpg`).
        image_root: the folder below which paths in tables lie; None: the folder of the parquet file.
        without: folders that are not searched.
        follow_links: follow links in folders wherever they lead.
        allow_urls: URLs may be named here; `open_row` says whether those in tables are read.

    Raises:
        FileNotFoundError: a name is neither a file nor a folder, or a glob matches nothing.
        ValueError: a folder holds no image; a parquet file cannot be read or lacks a column; a name is a URL and
            `allow_urls` is false, or a pipe or device.
        ValueError: `boxes` names an image that is not there, or that several paths end in; `images` holds tables too.
        TypeError: `images` is a container without an order.
        OSError: a folder cannot be read.
    """

    def __init__(
        self,
        images: str | os.PathLike | Iterable[str | os.PathLike],
        *,
        image_column: str = "image",
        box_column: str | None = None,
        boxes: Mapping[str, Sequence[Any]] | None = None,
        image_root: str | os.PathLike | None = None,
        without: Iterable[str | os.PathLike] = (),
        follow_links: bool = False,
        allow_urls: bool = False,
    ):
        names = [images] if isinstance(images, (str, os.PathLike)) else list(iterate(images, "images"))
        self.columns = Columns(image_column, box_column, None if image_root is None else os.path.abspath(image_root))
        if image_root is not None and not os.path.isdir(image_root):
            raise ParFileNotFoundError(f"image_root={os.fspath(image_root)!r}: expected a folder")
        self.has_ids = False
        self.folder = os.getcwd()
        self._without = {os.path.realpath(folder) for folder in without}
        self._follow_links, self._allow_urls = follow_links, allow_urls
        self._left_out: dict[str, list[Any]] = {}  # what -> [how many, the first one]
        self._paths: list[str] = []
        self._sizes, self._times, counts = array("q"), array("q"), array("q")
        for name in names:
            if not isinstance(name, (str, os.PathLike)):
                raise ParTypeError(f"images holds a {type(name).__name__}; expected paths, folders and globs")
            for path, size, time in self._find(os.fspath(name)):
                self._paths.append(path)
                self._sizes.append(size)
                self._times.append(time)
                counts.append(self._check_table(path) if _is_table(path) else 1)
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not len(self):
            shown = shorten_text(repr([os.fspath(name) for name in names]), 300)
            raise ParValueError(f"images={shown}: expected at least one image")
        if box_column is not None and not any(map(_is_table, self._paths)):
            raise ParValueError(
                f"box_column={box_column!r}: there is no parquet file that has it; boxes of image files come from a "
                "file (--boxes boxes.csv)"
            )
        self._boxes = None if boxes is None else self._find_boxes(boxes)

    @property
    def is_boxed(self) -> bool:
        """Whether people are cut out of the images."""
        return self._boxes is not None or self.columns.box is not None

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """What folders and globs hold and is not read: `{"what", "count", "first"}` each, the first with its path."""
        return [{"what": what, "count": count, "first": first} for what, (count, first) in self._left_out.items()]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The images `start` to `stop` (not included); a file is opened only when it is reached."""
        return read_segments(self.segments(start, stop), self.columns, self.folder)

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
                yield Segment(start, path, None, 1, None if self._boxes is None else self._boxes.get(path, ()))
                start += 1
            position += 1

    def file_rows(self, index: int) -> int:
        """How many images the file has that the image `index` is of: 1, or the rows of a table."""
        position = int(np.searchsorted(self._ends, index, side="right"))
        return int(self._ends[position]) - (int(self._ends[position - 1]) if position else 0)

    def listing(self) -> str:
        """A line `[path, size in bytes, time of change in ns]` per file, with its boxes: equal if no file was
        changed."""
        files = zip(map(_listed_name, self._paths), self._sizes, self._times)
        if self._boxes is not None:
            files = ((*file, self._boxes.get(path, ())) for file, path in zip(files, self._paths))
        return "".join(f"{json.dumps(file, separators=(',', ':'))}\n" for file in files)

    def picture_name(self, row: Row) -> str:
        """A file name for a picture of this image, the same in every run and different for every image."""
        path = self._paths[int(np.searchsorted(self._ends, row.index, side="right"))]
        stem, number = (
            Path(_printable_path(path)).stem,
            row.name[len(_printable_path(path)) :],
        )  # "#12" for a row of a table
        suffix = "" if self._stems[stem] == 1 else f"_{row.index}"
        return f"{stem}{number}_attributes{suffix}.png"

    @cached_property
    def _stems(self) -> Counter:
        return Counter(Path(_printable_path(path)).stem for path in self._paths)

    def _find_boxes(self, boxes: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """The boxes by the path of the image."""
        table = next((path for path in self._paths if _is_table(path)), None)
        if table is not None:
            raise ParValueError(f"boxes are of image files, and {table!r} is a table: name its column (box_column)")
        ends: dict[str, list[str]] = {}
        for path in dict.fromkeys(self._paths):
            ends.setdefault(os.path.basename(path), []).append(path)
        found: dict[str, Sequence[Any]] = {}
        for name, of_image in boxes.items():
            end = os.path.normpath(name)
            fitting = [
                path
                for path in ends.get(os.path.basename(end), ())
                if _is_end(path, end) or os.path.abspath(path) == os.path.abspath(end)
            ]
            if len(fitting) > 1:
                raise ParValueError(
                    f"boxes names {shorten(name)}, which is the end of {shorten(fitting)}: expected one"
                )
            if not fitting:
                near = difflib.get_close_matches(os.path.basename(end)[:200], ends, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ParValueError(f"boxes names {shorten(name)}, which is none of the {len(self)} images{hint}")
            if fitting[0] in found:
                raise ParValueError(f"boxes names {shorten(fitting[0])} twice")
            found[fitting[0]] = of_image
        return found

    def _find(self, name: str) -> Iterator[_File]:
        if name[:7].lower() == "file://":
            raise refused_file_url(name)
        if is_url(name):
            if not self._allow_urls:
                raise ParValueError(f"{redact(name)!r:.300} is a URL: it is read only with allow_urls (--allow-urls)")
            yield name, 0, 0
        elif os.path.isdir(name):
            yield from self._search(name)
        elif os.path.isfile(name):
            yield _file_entry(name, os.stat(name))
        elif os.path.exists(name):
            raise ParValueError(
                f"{shorten_text(name)!r} is no regular file (a device, pipe or socket); expected an image"
            )
        elif glob.has_magic(name):
            yield from self._match(name)
        else:
            raise ParFileNotFoundError(f"no such image or folder: {shorten_text(name)!r}")

    def _match(self, pattern: str) -> Iterator[_File]:
        found = sorted(glob.glob(pattern, recursive=True), key=_natural_key)
        if not found:
            raise ParFileNotFoundError(f"nothing matches {shorten_text(pattern)!r}")
        root = os.path.realpath(_folder_of_glob(pattern))
        for path in found:
            if os.path.isdir(path):
                # `**` matches folders and the files in them: searching such a folder would list its files twice.
                if "**" not in pattern:
                    yield from self._search(path)
            elif not os.path.isfile(path):
                self._leave_out(_NO_FILE, path)
            elif self._leads_out(path, root):
                self._leave_out(_LINK_OUT, path)
            else:
                yield _file_entry(path, os.stat(path))

    def _search(self, folder: str) -> Iterator[_File]:
        if os.path.realpath(folder) in self._without:
            raise ParValueError(f"the folder {folder!r} is also one to write to: expected another")
        before = {what: count for what, (count, _) in self._left_out.items()}
        found = list(self._walk(folder, os.path.realpath(folder), frozenset()))
        images = [item for item in found if not _is_table(item[0])]
        if images and len(images) < len(found):
            logger.warning(
                "%s: its images are read; its %d parquet files are not, name them to have them read.",
                folder, len(found) - len(images),
            )  # fmt: skip
            for path, *_ in found:
                if _is_table(path):
                    self._leave_out(_TABLE_BESIDE_IMAGES, path)
        new = {what: count - before.get(what, 0) for what, (count, _) in self._left_out.items()}
        shown = ", ".join(
            f"{count} {what}" for what, count in new.items() if count and what not in (_HIDDEN, _TABLE_BESIDE_IMAGES)
        )
        if not found:
            expected = ", ".join((*IMAGE_SUFFIXES, TABLE_SUFFIX))
            but = f" (it holds {shown})" if shown else ""
            raise ParValueError(f"no image in the folder {folder!r}{but}: expected files ending in {expected}")
        if shown:
            logger.warning("%s: not read are %s.", folder, shown)
        yield from images or found

    def _walk(self, folder: str, root: str, above: frozenset[str]) -> Iterator[_File]:
        here = os.path.realpath(folder)
        if here in above or here in self._without:  # following a link to a folder above would never end
            return
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: _natural_key(entry.name))
        for entry in entries:
            if entry.name.startswith("."):
                self._leave_out(_HIDDEN, entry.path)
            elif entry.is_symlink() and self._leads_out(entry.path, root):
                self._leave_out(_LINK_OUT, entry.path)
            elif entry.is_dir():
                yield from self._walk(entry.path, root, above | {here})
            elif not entry.name.lower().endswith((*IMAGE_SUFFIXES, TABLE_SUFFIX)):
                suffix = os.path.splitext(entry.name)[1].lower()
                self._leave_out(f"{suffix} files" if suffix else "files without an ending", entry.path)
            elif entry.is_file():
                yield _file_entry(entry.path, entry.stat())
            elif entry.is_symlink() and not os.path.exists(entry.path):
                # A link to a missing file is reported as any image that cannot be read.
                yield _file_entry(entry.path, entry.stat(follow_symlinks=False))
            else:
                self._leave_out(_NO_FILE, entry.path)

    def _leads_out(self, path: str, root: str) -> bool:
        return not self._follow_links and not _is_below(os.path.realpath(path), root)

    def _leave_out(self, what: str, path: str) -> None:
        self._left_out.setdefault(what, [0, _printable_path(path)])[0] += 1

    def _check_table(self, path: str) -> int:
        parquet = require("pyarrow.parquet", "train")
        import pyarrow

        try:
            with parquet.ParquetFile(path) as file:
                count, schema = file.metadata.num_rows, file.schema_arrow
        except (OSError, pyarrow.ArrowException) as error:
            raise ParValueError(f"{path!r} cannot be read as parquet: {error}") from error
        for option, column in (("image_column", self.columns.image), ("box_column", self.columns.box)):
            if column is not None and column not in schema.names:
                raise ParValueError(f"{option}={column!r}: {path!r} has the columns {', '.join(schema.names)}")
        kind = schema.field(self.columns.image).type
        types = pyarrow.types
        box = None if self.columns.box is None else schema.field(self.columns.box).type
        if box is not None and not (types.is_list(box) or types.is_large_list(box) or types.is_fixed_size_list(box)):
            raise ParValueError(
                f"box_column={self.columns.box!r} of {path!r} holds {box}; expected lists of four numbers, or lists "
                "of such lists"
            )
        is_image = types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
        is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
        if not (is_image or is_bytes or types.is_string(kind) or types.is_large_string(kind)):
            raise ParValueError(
                f"image_column={self.columns.image!r} of {path!r} holds {kind}; expected encoded images (binary, or a "
                "struct of bytes and path) or paths"
            )
        self.has_ids |= _ID_COLUMN in schema.names
        return count


def _is_end(path: str, end: str) -> bool:
    """Whether a path ends in whole parts of another."""
    path = os.path.normpath(path)
    return path == end or path.endswith(os.sep + end)


def _file_entry(path: str, status: os.stat_result) -> _File:
    return path, status.st_size, status.st_mtime_ns


def _is_table(path: str) -> bool:
    return not is_url(path) and path.lower().endswith(TABLE_SUFFIX)


def _natural_key(name: str) -> tuple[list[Any], str]:
    # Text and numbers alternate, starting with text, so that text is compared with text and number with number.
    parts: list[Any] = _DIGITS.split(name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _is_below(path: str, root: str) -> bool:
    """Whether a path lies in a folder; both are resolved."""
    return path == root or path.startswith(root if root.endswith(os.sep) else root + os.sep)


def _folder_of_glob(pattern: str) -> str:
    """The part of a glob that is named: the folders before the first one with a wildcard."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def read_segments(segments: Iterable[Segment], columns: Columns, folder: str) -> Iterator[Row]:
    """The rows of segments; their relative paths start at `folder`."""
    for segment in segments:
        path = segment.path if is_url(segment.path) else os.path.join(folder, segment.path)
        if segment.row is None:
            image = path if segment.boxes is None else Boxed(path, segment.boxes)
            yield Row(segment.index, _printable_path(segment.path), None, image)
        else:
            yield from _read_table(segment, columns, path)


def _read_table(segment: Segment, columns: Columns, path: str) -> Iterator[Row]:
    import pyarrow.parquet

    name, root = _printable_path(segment.path), columns.root or os.path.dirname(path)
    # Read through a small buffer and not ahead, because a row group may be larger than the memory.
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        names = [name for name in (columns.image, columns.box, _ID_COLUMN) if name in file.schema_arrow.names]
        skip, groups = segment.row, list(range(file.num_row_groups))
        while skip >= file.metadata.row_group(groups[0]).num_rows:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        left, row = segment.count, segment.row
        for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=names, use_threads=False):
            skipped = min(skip, len(batch))
            skip -= skipped
            values = batch.slice(skipped, left).to_pydict()
            images, none = values[columns.image], [None] * len(batch)
            for image, box, image_id in zip(images, values.get(columns.box, none), values.get(_ID_COLUMN, none)):
                image_id = None if image_id is None else str(image_id)
                image = _as_image(image, root)
                if columns.box is not None:
                    image = Boxed(image, _list_of_boxes(box))
                yield Row(segment.index + row - segment.row, f"{name}#{row}", image_id, image)
                row += 1
                left -= 1
            if not left:
                return


def _list_of_boxes(value: Any) -> Sequence[Any] | None:
    """What a row of a box column holds, as a list of boxes: one box is four numbers."""
    return [value] if value and not isinstance(value[0], (list, tuple)) else value


def _as_image(value: Any, root: str) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if path is None or data is not None:
        return {"bytes": data, "path": path}
    return {"bytes": None, "path": path if is_url(path) else os.path.join(root, path), "root": root}


class OpenedRow(NamedTuple):
    """The picture of a row."""

    picture: Image.Image
    size: tuple[int, int]  # that boxes refer to; the picture is smaller if it was reduced
    boxes: list[Box] | None  # None: the picture is one person, or nobody has said where people are

    def crop(self, box: Box) -> Image.Image:
        """What is cut out for a box."""
        return self.picture.crop(scale_box(box.crop, self.size, self.picture.size))


def open_row(image: Any, options: RowOptions | None = None, *, one_person: bool = True) -> OpenedRow:
    """Opens the image of a row.

    Args:
        image: `Row.image`, or what `open_image` takes, or `Boxed` with it.
        options: how URLs and boxes are read.
        one_person: False if people will be cut out of a picture without boxes.

    Raises:
        ValueError: also for a path in a table that leads out of its folder, a URL that is not allowed, or a row
            without a box.
        What `open_image`, `download` and `check_boxes` raise.
    """
    options = options or RowOptions()
    boxes = None
    if isinstance(image, Boxed):
        image, boxes = image
        if boxes is None:
            raise ParValueError("the row has no box; expected four numbers, or a list of boxes")
    source = image
    if isinstance(image, Mapping) and image.get("bytes") is None and isinstance(image.get("path"), str):
        source = image["path"]
    if is_url(source):
        if not options.allow_urls:
            raise ParValueError(
                f"{describe_image_source(source)} is a URL: it is read only with allow_urls (--allow-urls)"
            )
    elif source is not image and image.get("root") is not None:
        path, root = os.path.realpath(source), os.path.realpath(image["root"])
        if not _is_below(path, root):
            raise ParValueError(
                f"the path {describe_image_source(source)!r} in a table leads out of the folder "
                f"{describe_image_source(root)!r}; expected a path below it (image_root, --image-root, names another)"
            )
        source = Path(path)  # what was checked; and a text in a table is a path and nothing else
    picture, size = open_picture(
        source,
        one_person=one_person and boxes is None,
        timeout=options.timeout,
        allow_private=options.allow_private_urls,
    )
    if boxes is not None:
        boxes = check_boxes(boxes, size, box_format=options.box_format, box_margin=options.box_margin)
    return OpenedRow(picture, size, boxes)


def _listed_name(path: str) -> str:
    """A path as it is; a URL without its secrets, and with a digest that tells it from others."""
    if not is_url(path):
        return path
    return f"{redact(path)} {hashlib.blake2b(path.encode(errors='replace'), digest_size=8).hexdigest()}"


def _printable_path(path: str) -> str:
    """The path with bytes that are not UTF-8 escaped, because JSON and parquet cannot hold them; a URL without
    secrets."""
    if is_url(path):
        return redact(path)
    return os.fsencode(path).decode("utf-8", "backslashreplace")
