"""Folders that a command writes: locked by one process, with a list of what was written. Needs no torch.

    OUT/.vlm_par_output.json     the files that were written here, each with its size and sha256
    OUT/.vlm_par_output.lock     there while a process writes the folder

Only listed files are ever deleted or replaced, and one that somebody has changed since is not deleted without a word.
A folder of an earlier version, which has no list, is recognised by its record; what would be deleted in it is shown
first. No link is followed to what is deleted.
"""

import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from vlm_par_hf.errors import ParFileExistsError, ParOSError, ParValueError
from vlm_par_hf.utils import atomic_write_json, read_json


__all__ = [
    "LIST",
    "LOCK",
    "STAGING",
    "OutputFolder",
    "is_model_file",
    "lock_file",
    "open_output",
    "refuse_link",
    "refuse_overlap",
    "sha256_of_file",
]

logger = logging.getLogger(__name__)

LIST = ".vlm_par_output.json"
LOCK = ".vlm_par_output.lock"
STAGING = ".saving"  # a folder in which files wait until all of them are written
_SHOWN = 20  # files named in a message
_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")
# What models and processors of transformers and of this package are saved as.
_MODEL_FILE = re.compile(
    r"(config|generation_config|preprocessor_config|processor_config|video_preprocessor_config|tokenizer|"
    r"tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|(merges|vocab)\.txt|[a-z]+\.model|"
    r"chat_template\.(json|jinja)|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|"
    r"(configuration|modeling|processing)_\w+\.py"
)


@contextmanager
def open_output(path: str | os.PathLike, kind: str) -> Iterator["OutputFolder"]:
    """Makes and locks a folder to write, and logs where it lies; at the end removes what is empty of it.

    Args:
        path: the folder.
        kind: what is written there, such as "training run"; a folder of another kind is refused.

    Raises:
        ValueError: another process writes the folder.
        OSError: it is a link, or its list is damaged.
        FileExistsError: it is a file, or holds work of another kind.
    """
    path = Path(path)
    refuse_link(path)
    if path.exists() and not path.is_dir():
        raise ParFileExistsError(f"{str(path)!r} is a file: expected a folder to write")
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(path / LOCK, path):
            folder = OutputFolder(path, kind)
            logger.info("%s: files go to %s", kind, path.absolute())
            try:
                yield folder
            finally:
                folder.close()
    finally:
        with suppress(OSError):  # they hold something, as they should
            for parent in made:
                parent.rmdir()


@contextmanager
def lock_file(path: Path, locked: Path) -> Iterator[None]:
    """Holds the lock `path`, which is removed at the end.

    Raises:
        ValueError: another process holds it; the message names `locked`. A lock ends with its process.
        OSError: `path` is a link.
    """
    refuse_link(path)
    while True:
        lock = FileLock(path, mode=0o666, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ParValueError(f"{str(locked)!r}: another process is writing it; wait, or name another") from None
        # The process that held the lock before may have removed the file between our opening and locking it.
        if path.exists():
            break
        lock.release()
    try:
        yield
    finally:
        with suppress(PermissionError):  # of Windows, which removes no open file
            path.unlink(missing_ok=True)
        lock.release()


def refuse_link(path: Path) -> None:
    """Raises `OSError` where `path` is a link: what is deleted and written must lie where its name says."""
    if path.is_symlink():
        raise ParOSError(f"{str(path)!r} is a link to {os.path.realpath(path)!r}: name that place itself")


def refuse_overlap(
    out: str | os.PathLike, inputs: Mapping[str, str | os.PathLike | None], *, replaced: bool = False
) -> None:
    """Refuses an output that is an input or lies inside one; with `replaced` also one that an input lies inside.

    Args:
        out: the output.
        inputs: by their names; those that do not exist (repositories, names) and None do not count.

    Raises:
        ValueError: the message names both.
    """
    target = Path(os.path.realpath(out))
    for name, given in inputs.items():
        if given is None or not os.path.exists(given):
            continue
        source = Path(os.path.realpath(given))
        if target == source or source in target.parents:
            relation = "is" if target == source else "lies inside"
        elif replaced and target in source.parents:
            relation = "would be replaced and holds"
        else:
            continue
        raise ParValueError(
            f"out={os.fspath(out)!r} {relation} {name} {os.fspath(given)!r}, which is only read: name another output"
        )


def is_model_file(name: str) -> bool:
    """Whether a file of that name is one of a checkpoint."""
    return _MODEL_FILE.fullmatch(name) is not None


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OutputFolder:
    """A locked folder and the list of what was written there; made by `open_output`.

    Attributes:
        path: the folder.
        is_known: whether it has a list, so that this package wrote it.
    """

    def __init__(self, path: Path, kind: str):
        self.path, self._kind = path, kind
        self._files: dict[str, dict[str, Any] | None] = {}
        self._pending: list[str] = []
        self.is_known = (path / LIST).is_file()
        if self.is_known:
            self._read()
        self._remove_temporary_files()

    def _read(self) -> None:
        try:
            found = read_json((self.path / LIST).read_text(encoding="utf-8"))
            kind, self._files, self._pending = found["kind"], dict(found["files"]), list(found["being_written"])
            names = [*self._files, *self._pending]
            damaged = not all(_is_plain(name) for name in names) or not all(
                entry is None or {"bytes", "mtime_ns", "sha256"} <= set(entry) for entry in self._files.values()
            )
        except (ValueError, KeyError, TypeError):
            damaged = True
        if damaged:
            raise ParOSError(f"{str(self.path / LIST)!r} is damaged: name another folder, or delete this one yourself")
        if kind != self._kind:
            raise ParFileExistsError(
                f"{str(self.path)!r} holds a {kind!r:.60}, and a {self._kind!r} is to be written: name another folder"
            )

    def _remove_temporary_files(self) -> None:
        """Removes what a process that was killed in `atomic_write_text` left beside files that are ours."""
        names = {LIST, *self._files, *self._pending}
        for folder in {(self.path / name).parent for name in names}:
            for path in folder.glob(".*.tmp"):
                found = _TEMPORARY_NAME.fullmatch(path.name)
                if found and (folder / found[1]).relative_to(self.path).as_posix() in names:
                    path.unlink(missing_ok=True)

    def _write(self) -> None:
        files = {name: self._files[name] for name in sorted(self._files)}
        atomic_write_json(self.path / LIST, {"kind": self._kind, "files": files, "being_written": self._pending})
        self.is_known = True

    def close(self) -> None:
        """Removes the list where it lists nothing."""
        if self.is_known and not self._files and not self._pending:
            (self.path / LIST).unlink(missing_ok=True)

    # What is there

    @property
    def is_unfinished(self) -> bool:
        """Whether a process was ended while it put files in place here, or before it had written any."""
        return self.is_known and (not self._files or any(name != STAGING for name in self._pending))

    @property
    def has_files(self) -> bool:
        """Whether a listed file is there."""
        return any(os.path.lexists(self.path / name) for name in self._files)

    def owns(self, name: str) -> bool:
        """Whether the file of that name, or each in the folder of that name, was written by this package, or is not
        there. Names are relative to this folder."""
        path = self.path / name
        if not os.path.lexists(path):
            return True
        if not self._is_reached_without_links(name):
            return False
        if name in self._files or any(name == one or name.startswith(f"{one}/") for one in self._pending):
            return True
        return path.is_dir() and all(self.owns(f"{name}/{inside}") for inside in os.listdir(path))

    def lists(self, name: str) -> bool:
        """Whether a file is listed as written, and not only as being written."""
        return self._files.get(name) is not None and name not in self._pending

    def strangers(self) -> list[str]:
        """Names of all files and links below the folder that are not listed, sorted."""
        found = []
        for folder, folders, files in os.walk(self.path):
            here = Path(folder).relative_to(self.path)
            links = [name for name in folders if Path(folder, name).is_symlink()]
            found += [(here / name).as_posix() for name in (*files, *links)]
        own = {LIST, LOCK}
        return sorted(name for name in found if name not in own and not self.owns(name))

    def _is_reached_without_links(self, name: str) -> bool:
        parts = PurePosixPath(name).parts
        return not any(self.path.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts) + 1))

    def is_changed(self, name: str) -> bool:
        """Whether a listed file is there and not as it was written."""
        path, entry = self.path / name, self._files.get(name)
        if entry is None or name in self._pending:
            return False
        try:
            found = path.lstat()
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry["bytes"]:
            return True
        return found.st_mtime_ns != entry["mtime_ns"] and sha256_of_file(path) != entry["sha256"]

    # Writing

    def begin(self, names: Iterable[str], *, repair: bool = False) -> None:
        """Lists files or folders that are about to be made: if this process is killed, they are still known as ours.

        Args:
            names: their names.
            repair: what is damaged is to be replaced.

        Raises:
            FileExistsError: one of them is there and is not listed, or was changed since it was written.
        """
        names = list(names)
        if not repair:
            self.check_unchanged(names)
        for name in names:
            if not self.owns(name):
                raise ParFileExistsError(
                    f"{str(self.path / name)!r} was not written by this package and would be replaced: move it, or "
                    "name another folder"
                )
        self._pending += [name for name in names if name not in self._pending]
        self._write()

    def record(self, names: Iterable[str]) -> None:
        """Lists what is written: files, or all files of folders. What is not there any more is no longer listed."""
        names = list(names)
        covered = tuple(f"{name}/" for name in names)
        self._pending = [one for one in self._pending if one not in names and not one.startswith(covered)]
        for name in names:
            path = self.path / name
            inside = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
            self._files.update({file.relative_to(self.path).as_posix(): _describe(file) for file in inside})
        self._files = {name: one for name, one in self._files.items() if os.path.lexists(self.path / name)}
        self._write()

    def forget_missing(self, within: str) -> None:
        """Takes from the list what was about to be made in a folder below and is not there."""
        self._pending = [
            name for name in self._pending if not name.startswith(f"{within}/") or os.path.lexists(self.path / name)
        ]
        self._write()

    def check_unchanged(self, names: Iterable[str] | None = None, *, without: str = "") -> None:
        """Refuses to replace listed files that somebody changed.

        Args:
            names: the files; None: all that are listed.
            without: a folder that is not looked at.

        Raises:
            FileExistsError: the message names one.
        """
        for name in list(self._files) if names is None else names:
            if not (without and name.startswith(f"{without}/")) and self.is_changed(name):
                raise ParFileExistsError(
                    f"{str(self.path / name)!r} was changed since it was written and would be replaced: move it away"
                )

    def claim(self, *, delete_listed: bool, recognise: Callable[[Path], Iterable[str] | None]) -> None:
        """Decides what may be deleted or replaced here; nothing is deleted yet.

        Args:
            delete_listed: also files that were changed since they were written, and those of a folder without a list,
                which `recognise` names.
            recognise: gets the folder; returns the names of files that an earlier version of this package wrote there,
                None if its record is not there.

        Raises:
            FileExistsError: nothing says that this package wrote the folder; or files were changed, or are not listed,
                and `delete_listed` is not set. The message names them.
        """
        if self.is_known:
            doubtful = [name for name in self._files if self.is_changed(name)]
            reason = "were changed since they were written"
        else:
            strangers = self.strangers()
            if not strangers:
                return
            found = recognise(self.path)
            if found is None:
                raise ParFileExistsError(
                    f"{str(self.path)!r} is not empty, and nothing in it says that this package wrote it "
                    f"({strangers[0]!r:.100}): name another folder"
                )
            doubtful = [name for name in found if name in strangers and self._is_reached_without_links(name)]
            reason = "are taken for those of an earlier version of this package"
        if doubtful and not delete_listed:
            shown = ", ".join(map(repr, doubtful[:_SHOWN])) + (", ..." if len(doubtful) > _SHOWN else "")
            raise ParFileExistsError(
                f"{str(self.path)!r}: {len(doubtful)} files {reason} and would be deleted: {shown:.1200}; to delete "
                "them pass delete_listed=True too (--delete-listed), or name another folder"
            )
        self._files.update(dict.fromkeys(doubtful))
        self._write()

    def clear(self, within: str = "") -> None:
        """Deletes what is listed; other files stay.

        Args:
            within: only what lies in this folder below.
        """
        self._pending = [name for name in self._pending if not self._delete(name, within)]
        self._files = {name: entry for name, entry in self._files.items() if not self._delete(name, within)}
        self._write()

    def _delete(self, name: str, within: str) -> bool:
        """Deletes a listed file or a folder that was being written; False if it must stay listed."""
        if within and not name.startswith(f"{within}/"):
            return False
        path = self.path / name
        if not self._is_reached_without_links(name):
            return True  # somebody else's now
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.path:
                break
            try:
                parent.rmdir()
            except OSError:
                break
        return True

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder inside this one for files that wait; it is removed at the end."""
        path = self.path / STAGING
        self.begin([STAGING])
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            self._pending = [name for name in self._pending if name != STAGING]
            self._write()

    def publish(self, staging: Path, *, last: str, replace_all: bool = False) -> None:
        """Moves the files of a folder here, one by one.

        `last`, which other programs read first, is removed first and moved last: so a folder that holds files of two
        states, because the process was killed, does not load.

        Args:
            staging: the folder; its files are moved.
            last: the name of one of them.
            replace_all: delete listed files that are not among the new ones.

        Raises:
            FileExistsError: a file of the same name is not listed. Nothing was moved.
        """
        names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        names.sort(key=lambda name: name == last)
        self.begin(names)
        (self.path / last).unlink(missing_ok=True)
        if replace_all:
            self._files = {
                name: entry for name, entry in self._files.items() if name in names or not self._delete(name, "")
            }
        for name in names:
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, target)
        self.record(names)


def _is_plain(name: Any) -> bool:
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."


def _describe(path: Path) -> dict[str, Any] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sha256_of_file(path)}
