"""Finding annotation files and images below the folder that a user names.

What a data set says of paths is data, and may come from a stranger: `../key.png`, a link to a private picture, a pipe
that never ends. So paths stay below the folder, links too unless the user lets them (`links_may_leave`), and only
regular files are read.
"""

import csv
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.images.opening import IMAGE_SUFFIXES
from vlm_par_hf.utils import shorten


__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_TABLE_BYTES",
    "check_annotation_file",
    "check_file_names",
    "check_image_files",
    "find_file",
    "find_folder",
    "images_by_stem",
    "is_annotation_file",
    "leads_out",
    "links_may_leave",
    "list_images",
    "look_for_file",
    "open_table",
    "read_csv_rows",
    "relative_path",
]

MAX_TABLE_BYTES = 1 << 30  # of a table of labels: millions of rows
_LINKS_MAY_LEAVE: ContextVar[bool] = ContextVar("links_may_leave", default=False)


def find_file(root: Path, places: Iterable[str], what: str) -> Path:
    """The first of `places` (relative paths, upper and lower case alike in the file's name) that exists below `root`.

    Raises:
        FileNotFoundError: none does. Where other projects' pickles lie instead, the message says why they are not
            read.
    """
    places = tuple(places)
    found = look_for_file(root, places)
    if found is None:
        raise ParFileNotFoundError(
            f"root {str(root)!r} holds no {Path(places[0]).name} (looked for {', '.join(places)}); "
            f"expected {what}{_pickle_hint(root)}"
        )
    return found


def look_for_file(root: Path, places: Iterable[str]) -> Path | None:
    """As `find_file`, None where nothing is found."""
    for place in places:
        folder, name = root / Path(place).parent, Path(place).name
        if folder.is_dir():
            for entry in sorted(os.listdir(folder)):
                if entry.lower() == name.lower() and is_annotation_file(root, folder / entry):
                    return folder / entry
    return None


def find_folder(root: Path, places: Iterable[str]) -> Path | None:
    """The first of `places` that is a folder below `root`, None where there is none."""
    return next((root / place for place in places if (root / place).is_dir()), None)


def list_images(folder: Path) -> list[str]:
    """Names of the image files in `folder`, sorted; the case of an extension does not matter, `Thumbs.db` does not
    count."""
    if not folder.is_dir():
        return []
    names = os.listdir(folder)
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def images_by_stem(folder: Path) -> dict[str, str]:
    """Name without extension -> name, for annotation files that name another extension than the images have.

    Raises:
        ValueError: two images differ in the extension only.
    """
    found: dict[str, str] = {}
    for name in list_images(folder):
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise ParValueError(f"{folder} holds both {found[stem]} and {name}; expected one image per name")
        found[stem] = name
    return found


@contextmanager
def links_may_leave(allowed: bool) -> Iterator[None]:
    """Whether links below a data set's folder may lead out of it, for what is read in this context."""
    token = _LINKS_MAY_LEAVE.set(allowed)
    try:
        yield
    finally:
        _LINKS_MAY_LEAVE.reset(token)


def is_annotation_file(root: Path, path: Path) -> bool:
    """Whether a file is there that may be read as a table or an annotation: see `check_annotation_file`."""
    if not path.is_file():
        return False
    check_annotation_file(root, path)
    return True


def check_annotation_file(root: Path, path: Path) -> None:
    """Refuses a file that is a link out of `root`, no regular file, or larger than `MAX_TABLE_BYTES`.

    Raises:
        ValueError: it is refused.
    """
    _check_inside(root, str(path))
    if not path.is_file():
        raise ParValueError(f"{path} is no regular file; expected a table or an annotation file")
    size = path.stat().st_size
    if size > MAX_TABLE_BYTES:
        raise ParValueError(f"{path} has {size} bytes; at most {MAX_TABLE_BYTES} are read")


def check_image_files(root: str | os.PathLike, paths: Iterable[str]) -> list[bool]:
    """Which of the files below `root` exist.

    Folders are listed once each: 100,000 single questions take minutes on a network disk.

    Raises:
        ValueError: one is no regular file (a folder, pipe or device), or a link leads out of `root`.
    """
    kinds_in: dict[str, dict[str, str]] = {}

    def exists(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in kinds_in:
            kinds_in[folder] = _list_kinds(root, folder)
        kind = kinds_in[folder].get(name)
        if kind == "link":
            _check_inside(root, path)
            kind = "file" if os.path.isfile(path) else None if not os.path.exists(path) else "other"
        if kind == "other":
            raise ParValueError(f"image {path!r} is no regular file; expected an image file")
        return kind == "file"

    return [exists(path) for path in paths]


def _list_kinds(root: str | os.PathLike, folder: str) -> dict[str, str]:
    if not os.path.isdir(folder):
        return {}
    _check_inside(root, folder)
    with os.scandir(folder) as entries:
        return {
            entry.name: "link" if entry.is_symlink() else "file" if entry.is_file(follow_symlinks=False) else "other"
            for entry in entries
        }


def leads_out(root: str | os.PathLike, path: str) -> bool:
    """Whether a path does not stay below `root`: as it is written or, unless links may leave, behind its links."""
    resolve = os.path.abspath if _LINKS_MAY_LEAVE.get() else os.path.realpath
    root = resolve(root)
    return os.path.commonpath([root, resolve(path)]) != root


def _check_inside(root: str | os.PathLike, path: str) -> None:
    if leads_out(root, path):
        raise ParValueError(
            f"{path!r} is a link to {os.path.realpath(path)!r}, out of the folder of the data set; if you made that "
            "link, pass follow_links=True (--follow-links)"
        )


def relative_path(value: Any) -> str | None:
    """A path as a table writes it, with slashes, if it stays below the folder of the table; else None."""
    if not isinstance(value, str) or not (value.isprintable() or _is_plain(value)):
        return None
    text = value.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or text.startswith("/") or ":" in parts[0]:
        return None
    return "/".join(parts)


def _is_plain(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def check_file_names(names: Iterable[str], path: Path, field: str) -> None:
    """Raises ValueError where a name that the field of an annotation holds is a path."""
    for name in names:
        if name != os.path.basename(name) or relative_path(name) != name:
            raise ParValueError(f"{path}: {field} holds {shorten(name)}; expected a plain file name")


def read_csv_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, cells without surrounding space) of each row of a text file; empty rows are left out.

    Raises:
        ValueError: it is not well-formed CSV or not UTF-8; the message names file and line.
    """
    with open_table(path) as stream:
        reader = csv.reader(stream, strict=True, delimiter=delimiter)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, [cell.strip() for cell in row]
        except csv.Error as error:
            raise ParValueError(f"{path}, line {reader.line_num}: not well-formed CSV: {error}") from error


@contextmanager
def open_table(path: Path) -> Iterator[TextIO]:
    """A text file of UTF-8, or of UTF-16 if it begins with the mark of that, as spreadsheets write "Unicode text".

    Raises:
        ValueError: it is neither; the message names the line.
    """
    with open(path, "rb") as stream:
        start = stream.read(2)
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # with or without its mark
    with open(path, encoding=encoding, newline="") as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            line = f", line {_line_of_error(path)}" if encoding == "utf-8-sig" else ""
            raise ParValueError(
                f"{path}{line} is not UTF-8 text ({error}); expected a table saved as UTF-8"
            ) from error


def _line_of_error(path: Path) -> int | None:
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def _pickle_hint(root: Path) -> str:
    names = os.listdir(root) if root.is_dir() else []
    found = sorted(name for name in names if name.lower().endswith((".pkl", ".pickle")))
    if not found:
        return ""
    return (
        f". {found[0]} is another project's cache: reading a pickle runs the code inside it, so none is read here. "
        "Use the original annotation file, or let that project's own code write its lists as labels.csv for the data "
        "set 'folder'"
    )
