"""PA-100K in its original layout: `annotation.mat` beside a folder of 100,000 crops.

HydraPlus-Net: Attentive Deep Features for Pedestrian Analysis, Liu et al., ICCV 2017. One official split by file. The
official annotation knows no person; where a file `person_groups.csv` (columns `image,group`) lies beside it, its
groups become `person_id`. They are somebody's estimate of identity, not part of the data set.
"""

import os
from pathlib import Path

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import check_file_names, is_annotation_file, read_csv_rows
from .ids import common_ids, read_id
from .matlab import load_mat_variables, read_matrix, read_strings
from .records import PedestrianRecord


__all__ = ["PA100K_SPLITS", "read_pa100k"]

# our split name -> prefix of the variables in annotation.mat
PA100K_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_ANNOTATION_PLACES = ("annotation.mat", "annotation/annotation.mat")
_IMAGE_PLACES = ("data", "release_data/release_data", "release_data", "data/release_data", "images", ".")


def read_pa100k(root: str | os.PathLike, split: str) -> list[PedestrianRecord]:
    """Reads one split (`train`, `validation` or `test`) of PA-100K.

    `root` holds `annotation.mat` and the images in `data/` or `release_data/release_data/`, as the archives unpack.
    Labels are int64 `(26,)` in the order of `get_schema("pa100k")`, matched by name. Whether the image files exist is
    not checked here: `load_par_dataset` does, and labels alone can be studied without them.

    Raises:
        FileNotFoundError: no `annotation.mat` under `root`.
        ValueError: unknown split; a file that is truncated, lacks a variable, or whose names, counts or values are not
            those of PA-100K. The message names the file.
    """
    if split not in PA100K_SPLITS:
        raise ParValueError(f"split is {split!r}; expected one of {sorted(PA100K_SPLITS)}")
    root = Path(root).absolute()
    path = _find_annotation(root)
    prefix = PA100K_SPLITS[split]
    names_key, labels_key = f"{prefix}_images_name", f"{prefix}_label"
    variables = load_mat_variables(path, ("attributes", names_key, labels_key), "PA-100K")
    names = read_strings(variables[names_key], path, names_key)
    labels = _read_labels(variables, path, labels_key)
    if len(names) != len(labels):
        raise ParValueError(f"{path}: {names_key} has {len(names)} entries but {labels_key} has {len(labels)} rows")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        repeated = next(name for name in names if name in seen or seen.add(name))
        raise ParValueError(f"{path}: {names_key} lists {shorten(repeated)} more than once")
    check_file_names(names, path, names_key)
    folder = _find_image_folder(root, names)
    groups = _read_person_groups(root, path.with_name("person_groups.csv"))
    persons = [None] * len(names) if groups is None else _look_up_groups(names, groups, path)
    return [
        PedestrianRecord(os.path.join(folder, name), name, row, person)
        for name, row, person in zip(names, labels, persons)
    ]


def _find_annotation(root: Path) -> Path:
    for place in _ANNOTATION_PLACES:
        if is_annotation_file(root, root / place):
            return root / place
    raise ParFileNotFoundError(
        f"root {str(root)!r} holds no annotation.mat (looked for {', '.join(_ANNOTATION_PLACES)}); "
        "expected the unpacked PA-100K archives"
    )


def _find_image_folder(root: Path, names: list[str]) -> str:
    for place in _IMAGE_PLACES:
        folder = root / place
        if any((folder / name).is_file() for name in names[:100]):
            return str(folder)
    existing = [place for place in _IMAGE_PLACES[:-1] if (root / place).is_dir()]
    return str(root / (existing[0] if existing else _IMAGE_PLACES[0]))


def _read_labels(variables: dict[str, np.ndarray], path: Path, labels_key: str) -> np.ndarray:
    found = read_strings(variables["attributes"], path, "attributes")
    expected = get_schema("pa100k").names
    if set(found) != set(expected) or len(found) != len(expected):
        missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise ParValueError(
            f"{path}: attributes are not those of PA-100K: missing {shorten(missing)}, unexpected "
            f"{shorten(unexpected)}, "
            f"{len(found)} names where {len(expected)} were expected"
        )
    labels = read_matrix(variables[labels_key], path, labels_key, (None, len(found)))
    if not np.isin(labels, (0, 1)).all():
        raise ParValueError(f"{path}: {labels_key} holds values other than 0 and 1")
    return np.ascontiguousarray(labels[:, [found.index(name) for name in expected]])


def _read_person_groups(root: Path, path: Path) -> dict[str, int | str | None] | None:
    if not is_annotation_file(root, path):
        return None
    groups: dict[str, str | None] = {}
    rows = read_csv_rows(path)
    _, header = next(rows, (1, []))
    if header != ["image", "group"]:
        raise ParValueError(f"{path}, line 1: columns are {shorten(header)}; expected image,group")
    for line, row in rows:
        if len(row) != 2 or not row[0]:
            raise ParValueError(f"{path}, line {line}: {shorten(row)}; expected image,group")
        name, group = row
        if name in groups:
            raise ParValueError(f"{path}, line {line}: image {shorten(name)} is there already")
        try:
            groups[name] = read_id(group)
        except ValueError as error:
            raise ParValueError(f"{path}, line {line}: group {error}") from None
        if groups[name] is not None and not groups[name].isdecimal():
            raise ParValueError(f"{path}, line {line}: {shorten(row)}; expected image,group with a whole number")
    return dict(zip(groups, common_ids(list(groups.values()))))


def _look_up_groups(names: list[str], groups: dict[str, int | str | None], path: Path) -> list[int | str | None]:
    for name in names:
        if name not in groups:
            raise ParValueError(f"{path.with_name('person_groups.csv')} has no group for {shorten(name)}")
    return [groups[name] for name in names]
