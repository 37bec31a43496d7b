"""PETA: `PETA.mat` with renamed images, or the original archive as it unpacks.

Pedestrian Attribute Recognition At Far Distance, Deng et al., ACM Multimedia 2014. 19,000 images of 8,699 persons from
ten older data sets, labelled per person. Two forms are in use:

    PETA/PETA.mat  PETA/images/00001.png ... 19000.png      what most code bases start from: five random partitions
    PETA dataset/<ten sub-folders>/archive/*, Label.txt     the original download; PETA.mat may lie beside it

The five official partitions divide images, not persons: more than half of the test images show a person who is also in
the training split. Without PETA.mat there are no official partitions, and the images are divided by person here.
"""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import IMAGE_SUFFIXES, find_file, find_folder, images_by_stem, list_images, look_for_file
from .label_check import check_labels
from .matlab import load_mat_struct, read_cells, read_field, read_indices, read_matrix, read_strings
from .records import PedestrianRecord
from .splits import check_disjoint, choose_groups


__all__ = ["PETA_SUBSETS", "read_peta"]

logger = logging.getLogger(__name__)

# In this order the images are numbered 1 to 19000, and column 3 of PETA.mat counts the folders from 1.
PETA_SUBSETS = (
    "3DPeS", "CAVIAR4REID", "CUHK", "GRID", "i-LID", "MIT", "PRID", "SARC3D", "TownCentre", "VIPeR",
)  # fmt: skip
_MAT_PLACES = ("PETA.mat", "PETA/PETA.mat", "annotation/PETA.mat", "PETA dataset/PETA.mat")
_IMAGE_PLACES = ("images", "PETA/images", "data")
_ARCHIVE_PLACES = (".", "PETA dataset", "PETA/PETA dataset", "PETA", "PETA Dataset", "PETA_dataset")
_COLORS = ("Black", "Blue", "Brown", "Green", "Grey", "Orange", "Pink", "Purple", "Red", "White", "Yellow")
_FIRST_LABEL_COLUMN = 4  # image, person, subset, person inside the subset; then one column per attribute
_EXPECTED = "PETA.mat with the folder images, or the original archive with its ten sub-folders"
_OFFICIAL_IMAGES = 19_000
# As Label.txt spells them -> as PETA.mat, the authors' ReadMe and our tables do. There is no other: of the 106 names
# in the files 102 are among the 105 (the two colors below are not there), one is this, and three were left out.
_MISSPELT = {"footwearSneakers": "footwearSneaker"}
# Labelled, and left out by the authors because each has fewer than ten images (their ReadMe.txt).
_LEFT_OUT = ("accessoryFaceMask", "accessoryShawl", "lowerBodyLogo", "lowerBodyThickStripes")
# Colors of PETA that no person has.
_NEVER_POSITIVE = ("hairBlue", "hairPink")
# Ours, in the proportions of the official partitions.
_TEST_SHARE, _VALIDATION_SHARE = 0.4, 0.1


def read_peta(
    root: str | os.PathLike,
    table: str = "peta35",
    *,
    partition: int = 0,
    seed: int = 0,
    ignore: Iterable[str] = (),
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads PETA.

    Args:
        root: the folder with `PETA.mat` and `images/`, or the unpacked original archive, with or without `PETA.mat`.
        table: `"peta35"` or `"peta65"`. In the latter a color is a class; where the file has none or several colors
            of one garment, the label is unknown (-100), and the notes count these images.
        partition: 0 to 4, the official partitions of `PETA.mat`.
        seed: divides by person where there is no `PETA.mat`.
        ignore: attributes (a color as the files name it, such as `hairGreen`) that may have no positive, and labels
            in the files that no attribute takes. Of all 19,000 images either is an error, of a part of them a warning;
            the notes name both. Four labels that the authors left out are only counted (`labels_left_out`).

    Returns:
        The schema, the records of train, validation and test, and notes. `person_id` is an int with `PETA.mat` and
        `"VIPeR/12"` without. `image_id` is `"00001.png"`, or `"VIPeR/000_45_1.bmp"` in the original form.

    Raises:
        FileNotFoundError: neither form lies under `root`.
        ValueError: a file is not what it should be; the message names it.
    """
    root = Path(root).absolute()
    schema = get_schema(table)
    mat = look_for_file(root, _MAT_PLACES)
    archive = _find_archive(root)
    if mat is None:
        if archive is None:
            find_file(root, _MAT_PLACES, _EXPECTED)  # raises, and says what it looked for
        if partition:
            raise ParValueError(f"partition is {partition}; without PETA.mat there is one, of our own: expected 0")
        return _read_archive(archive, schema, seed, ignore)
    return _read_mat(root, mat, archive, schema, partition, ignore)


def _find_archive(root: Path) -> Path | None:
    for place in _ARCHIVE_PLACES:
        if any((root / place / subset / "archive").is_dir() for subset in PETA_SUBSETS):
            return root / place
    return None


# ---- PETA.mat ----


def _read_mat(root, path, archive, schema, partition, ignore):
    peta = load_mat_struct(path, "peta")
    names = read_strings(read_field(peta, path, "attribute"), path, "attribute")
    data = read_matrix(read_field(peta, path, "data"), path, "data", (None, _FIRST_LABEL_COLUMN + len(names)))
    _check_columns(data, path)
    if len(set(names)) != len(names):
        raise ParValueError(f"{path}: attribute holds {shorten(next(n for n in names if names.count(n) > 1))} twice")
    # selected_attribute counts columns of data, four more than the position in attribute: going by name avoids that.
    columns = {name: data[:, _FIRST_LABEL_COLUMN + position] for position, name in enumerate(names)}
    labels, notes = _make_labels(columns, schema, path)
    unused = {name: int(columns[name].sum()) for name in set(names) - _known_names()}
    notes |= _check_names(path, columns, unused, schema, len(data) == _OFFICIAL_IMAGES, ignore)
    paths, image_ids = _numbered_images(root, data) if archive is None else _archive_images(archive, data, path)
    partitions = read_cells(read_field(peta, path, "partion_attribute", "partition_attribute"))  # sic
    if partition >= len(partitions):
        raise ParValueError(f"partition is {partition}; {path} has {len(partitions)}")
    parts = {
        split: read_indices(
            read_field(partitions[partition], path, field), path, f"partition {partition}, {field}", len(data)
        )
        for split, field in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    check_disjoint(parts, path, f"partition {partition}")
    splits = {
        split: [
            PedestrianRecord(paths[index], image_ids[index], labels[index], int(data[index, 1]))
            for index in indices.tolist()
        ]
        for split, indices in parts.items()
    }
    return schema, splits, {"division": f"official, by image, partition {partition} of PETA.mat", **notes}


def _check_columns(data: np.ndarray, path: Path) -> None:
    if len(data) == 0 or (data[:, 0] != np.arange(1, len(data) + 1)).any():
        raise ParValueError(f"{path}: the first column of data does not count the images from 1")
    if data[:, 2].min() < 1 or data[:, 2].max() > len(PETA_SUBSETS):
        raise ParValueError(f"{path}: the third column of data (subset) holds values outside 1 to {len(PETA_SUBSETS)}")
    if not np.isin(data[:, _FIRST_LABEL_COLUMN:], (0, 1)).all():
        raise ParValueError(f"{path}: data holds labels other than 0 and 1")


def _make_labels(columns: dict[str, np.ndarray], schema: AttributeSchema, where: object):
    """Labels int64 (N, A) from binary columns by name, and how many images have no single color."""
    labels, none, several = [], {}, {}
    for attribute in schema:
        wanted = _columns_of(attribute)
        for name in wanted:
            if name not in columns:
                raise ParValueError(f"{where} lacks the attribute {name!r}; expected the 105 attributes of PETA")
        values = np.stack([columns[name] for name in wanted], axis=1)
        if attribute.is_binary:
            labels.append(values[:, 0])
            continue
        count = values.sum(axis=1)
        labels.append(np.where(count == 1, values.argmax(axis=1), UNKNOWN_LABEL))
        none[attribute.name], several[attribute.name] = int((count == 0).sum()), int((count > 1).sum())
    if not none:
        return np.stack(labels, axis=1).astype(np.int64), {}
    logger.info("PETA: colors that are unknown because the file has none: %s, several: %s", none, several)
    notes = {"images_without_color": none, "images_with_several_colors": several}
    return np.stack(labels, axis=1).astype(np.int64), notes


def _check_names(where, columns, unused, schema, complete, ignore) -> dict[str, Any]:
    """Checks `columns` (name -> 0 or 1 of each image) and the other names of the files; returns the notes."""
    wanted = [name for attribute in schema for name in _columns_of(attribute)]
    positives = {name: int(columns[name].sum()) for name in wanted if name not in _NEVER_POSITIVE}
    left_out = {name: count for name, count in unused.items() if name in _LEFT_OUT}
    others = {name: count for name, count in unused.items() if name not in _LEFT_OUT}
    notes = check_labels(where, positives, others, complete=complete, ignore=ignore)
    return {**({"labels_left_out": left_out} if left_out else {}), **notes}


def _known_names() -> set[str]:
    """The 105 names."""
    return {name for attribute in get_schema("peta65") for name in _columns_of(attribute)}


def _columns_of(attribute: Attribute) -> list[str]:
    return [attribute.name] if attribute.is_binary else _color_columns(attribute.name)


def _color_columns(attribute: str) -> list[str]:
    return [attribute.removesuffix("Color") + color for color in _COLORS]


def _numbered_images(root: Path, data: np.ndarray) -> tuple[list[str], list[str]]:
    folder = find_folder(root, _IMAGE_PLACES) or root / _IMAGE_PLACES[0]
    found = images_by_stem(folder)
    names = [found.get(f"{number:05d}", f"{number:05d}.png") for number in data[:, 0].tolist()]
    return [os.path.join(folder, name) for name in names], names


def _archive_images(archive: Path, data: np.ndarray, path: Path) -> tuple[list[str], list[str]]:
    """The original file of each row: rows and files of one person, both in the order of the file names."""
    paths, image_ids = [""] * len(data), [""] * len(data)
    rows_of: dict[tuple[int, int], list[int]] = {}
    for row, (subset, person) in enumerate(data[:, 2:4].tolist()):
        rows_of.setdefault((subset, person), []).append(row)
    for number, subset in enumerate(PETA_SUBSETS, start=1):
        folder = archive / subset / "archive"
        files_of: dict[int, list[str]] = {}
        for name in sorted(list_images(folder), key=lambda name: os.path.splitext(name)[0]):
            files_of.setdefault(_person_number(name, folder), []).append(name)
        for person, files in files_of.items():
            rows = rows_of.get((number, person), [])
            if len(files) > len(rows):
                raise ParValueError(
                    f"{folder} holds {len(files)} images of person {person} ({files[0]}, ...) but {path} lists "
                    f"{len(rows)}; expected the original archive, unchanged"
                )
        for (row_subset, person), rows in rows_of.items():
            if row_subset != number:
                continue
            files = files_of.get(person, [])
            # With one of a person's files missing nobody can tell which: none of them is taken.
            names = files if len(files) == len(rows) else [f"{person} ({len(files)} of {len(rows)} files)"] * len(rows)
            for position, (row, name) in enumerate(zip(rows, names)):
                unsure = len(files) != len(rows)
                paths[row] = os.path.join(folder, name)
                image_ids[row] = f"{subset}/{name}" + (f" {position}" if unsure else "")
    return paths, image_ids


def _person_number(name: str, folder: Path) -> int:
    match = re.match(r"[0-9]+", name)
    if match is None:
        raise ParValueError(f"{folder} holds {name!r}; expected names that begin with the number of a person")
    return int(match.group())


# ---- Label.txt ----


def _read_archive(archive: Path, schema: AttributeSchema, seed: int, ignore: Iterable[str]):
    known = _known_names()
    paths, image_ids, persons, rows = [], [], [], []
    strange: dict[str, int] = {}
    images = 0
    absent = [subset for subset in PETA_SUBSETS if not (archive / subset / "archive").is_dir()]
    if absent:
        logger.warning("%s lacks %d of the ten sub-folders of PETA: %s", archive, len(absent), ", ".join(absent))
    for subset in PETA_SUBSETS:
        if subset in absent:
            continue
        folder = archive / subset / "archive"
        label_file = find_file(folder, ("Label.txt",), "the labels of the sub-folder")
        attributes_of = _read_label_file(label_file, known, strange)
        unlabelled = 0
        for name in sorted(list_images(folder), key=lambda name: os.path.splitext(name)[0]):
            images += 1
            person = _person_number(name, folder)
            attributes = attributes_of.get(os.path.splitext(name)[0], attributes_of.get(person))
            if attributes is None:
                unlabelled += 1
                continue
            paths.append(os.path.join(folder, name))
            image_ids.append(f"{subset}/{name}")
            persons.append(f"{subset}/{person}")
            rows.append(attributes)
        if unlabelled:
            logger.warning("%s: %d images whose person is not in Label.txt are left out", folder, unlabelled)
    if not rows:
        raise ParValueError(f"{archive}: no image with a label in Label.txt")
    columns = {name: np.fromiter((name in row for row in rows), np.int64, len(rows)) for name in known}
    labels, notes = _make_labels(columns, schema, archive)
    notes |= _check_names(archive, columns, strange, schema, images == _OFFICIAL_IMAGES, ignore)
    in_test = choose_groups(persons, _TEST_SHARE, seed)
    rest = np.flatnonzero(~in_test)
    in_validation = choose_groups([persons[i] for i in rest], _VALIDATION_SHARE / (1 - _TEST_SHARE), seed + 1)
    parts = {"train": rest[~in_validation], "validation": rest[in_validation], "test": np.flatnonzero(in_test)}
    splits = {
        split: [PedestrianRecord(paths[i], image_ids[i], labels[i], persons[i]) for i in indices.tolist()]
        for split, indices in parts.items()
    }
    sizes = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
    logger.warning(
        "%s: no PETA.mat, so no official partition: divided by person with seed=%d into %s", archive, seed, sizes
    )
    division = f"ours, by person, seed {seed}; absent sub-folders: {', '.join(absent) or 'none'}"
    return schema, splits, {"division": division, **notes}


def _read_label_file(path: Path, known: set[str], strange: dict[str, int]) -> dict[int | str, frozenset[str]]:
    """Number of a person, or a file's name without extension -> names of the attributes. Names beyond the 105 are
    counted in `strange`."""
    text = path.read_bytes()
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        lines = text.decode("latin-1").splitlines()
    found: dict[int | str, frozenset[str]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        stem, suffix = os.path.splitext(words[0])
        if not re.match(r"[0-9]", words[0]):
            raise ParValueError(
                f"{path}, line {number}: begins with {shorten(words[0])}; expected the number of a person or an image "
                "file"
            )
        is_number = words[0].isdecimal() and len(words[0]) < 10
        key = stem if suffix.lower() in IMAGE_SUFFIXES else int(words[0]) if is_number else words[0]
        names = {_MISSPELT.get(word, word) for word in words[1:]}
        for name in names - known:
            strange[name] = strange.get(name, 0) + 1
        if names and not names & known:
            raise ParValueError(
                f"{path}, line {number}: {shorten(words[1])} is no attribute of PETA; expected such as hairLong"
            )
        if found.setdefault(key, frozenset(names & known)) != names & known:
            logger.warning("%s, line %d: %s is there already; its first line counts", path, number, key)
    if not found:
        raise ParValueError(f"{path} is empty; expected one line per person")
    return found
