"""PA-100K in its original layout: `annotation.mat` beside a folder of 100,000 crops.

HydraPlus-Net: Attentive Deep Features for Pedestrian Analysis, Liu et al., ICCV 2017. One official split by file. The
official annotation knows no person; where a file `person_groups.csv` (columns `image,group`) lies beside it, its
groups become `person_id`. They are somebody's estimate of identity, not part of the data set.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.tables import get_schema

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
        raise ParValueError(f"{path}: {names_key} lists {repeated!r} more than once")
    for name in names:
        if not name or name != os.path.basename(name):
            raise ParValueError(f"{path}: {names_key} holds {name!r}; expected a plain file name")
    folder = _find_image_folder(root, names)
    groups = _read_person_groups(path.with_name("person_groups.csv"))
    persons = [None] * len(names) if groups is None else _look_up_groups(names, groups, path)
    return [
        PedestrianRecord(os.path.join(folder, name), name, row, person)
        for name, row, person in zip(names, labels, persons)
    ]


def _find_annotation(root: Path) -> Path:
    for place in _ANNOTATION_PLACES:
        if (root / place).is_file():
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
            f"{path}: attributes are not those of PA-100K: missing {missing}, unexpected {unexpected}, "
            f"{len(found)} names where {len(expected)} were expected"
        )
    labels = read_matrix(variables[labels_key], path, labels_key, (None, len(found)))
    if not np.isin(labels, (0, 1)).all():
        raise ParValueError(f"{path}: {labels_key} holds values other than 0 and 1")
    return np.ascontiguousarray(labels[:, [found.index(name) for name in expected]])


def _read_person_groups(path: Path) -> dict[str, int] | None:
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParValueError(f"{path} is not UTF-8 text ({error})") from error
    groups: dict[str, int] = {}
    with io.StringIO(text) as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        if header != ["image", "group"]:
            raise ParValueError(f"{path}, line 1: columns are {header}; expected image,group")
        for row in rows:
            if not row:
                continue
            try:
                name, group = row
                groups[name] = int(group)
            except ValueError:
                raise ParValueError(
                    f"{path}, line {rows.line_num}: {row}; expected image,group with a whole number"
                ) from None
    return groups


def _look_up_groups(names: list[str], groups: dict[str, int], path: Path) -> list[int]:
    for name in names:
        if name not in groups:
            raise ParValueError(f"{path.with_name('person_groups.csv')} has no group for {name!r}")
    return [groups[name] for name in names]
