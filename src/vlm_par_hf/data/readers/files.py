"""Finding annotation files and images below the folder that a user names."""

import os
from collections.abc import Iterable
from pathlib import Path

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.images.opening import IMAGE_SUFFIXES


__all__ = ["IMAGE_SUFFIXES", "find_file", "find_folder", "images_by_stem", "list_images"]


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
                if entry.lower() == name.lower() and (folder / entry).is_file():
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
