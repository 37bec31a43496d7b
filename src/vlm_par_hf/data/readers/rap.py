"""RAP, both versions: `RAP_annotation/RAP_annotation.mat` beside the folder `RAP_dataset`.

A Richly Annotated Dataset for Pedestrian Attribute Recognition, Li et al., arXiv 2016 (version 1: 41,585 images); A
Richly Annotated Pedestrian Dataset for Person Retrieval in Real Surveillance Scenarios, Li et al., IEEE TIP 2019
(version 2: 84,928 images). The data are given out under a signed agreement and must not be passed on.

Label 2 means that the annotator was uncertain: unknown (-100) here.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import check_file_names, find_file, find_folder, images_by_stem
from .label_check import check_labels, count_positives
from .matlab import field_names, load_mat_struct, read_cells, read_field, read_indices, read_matrix, read_strings
from .records import PedestrianRecord
from .splits import check_disjoint, choose_groups


__all__ = ["read_rapv1", "read_rapv2"]

_MAT_PLACES = (
    "RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat",
    "RAP/RAP_annotation/RAP_annotation.mat", "RAP2/RAP_annotation/RAP_annotation.mat",
)  # fmt: skip
_IMAGE_PLACES = ("RAP_dataset", "RAP_datasets", "RAP/RAP_dataset", "RAP2/RAP_dataset", "images")
# As the files spell them -> as our tables do.
_MISSPELT = {"Femal": "Female", "action-Pusing": "action-Pushing"}
_V1_COLUMNS, _V2_COLUMNS = 92, 152
_V1_IMAGES, _V2_IMAGES = 41_585, 84_928
_VALIDATION_SHARE = 0.1
# CAM01-2014-02-15-...-tarid0-frame218-line1.png: images of one target in one clip show one person.
_TRACK = re.compile(r"(.*tarid\d+)", re.IGNORECASE)
_CAMERA = re.compile(r"CAM(\d+)", re.IGNORECASE)


def read_rapv1(
    root: str | os.PathLike, *, partition: int = 0, seed: int = 0, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads RAP version 1: the 51 attributes of the usual protocol, partitions 0 to 4.

    There is no official validation: a tenth of the training images is taken by `seed`, whole tracks at a time where
    the file names tell the track. The official test is divided by image.

    An attribute without a positive is an error in the complete file, in a part of it a warning and a note; `ignore`
    names those that may have none.

    Returns:
        The schema `rapv1`, the records of train, validation and test, and notes.

    Raises:
        FileNotFoundError: no annotation under `root`.
        ValueError: the file is damaged, of another data set or of version 2; the message names file and field.
    """
    root = Path(root).absolute()
    schema = get_schema("rapv1")
    path, annotation = _open_annotation(root)
    if "selected_attribute" in field_names(annotation):
        raise ParValueError(f'{path} is of RAP version 2 (it has selected_attribute); load it as "rapv2"')
    names = _attribute_names(annotation, path, ("attribute_eng",), _V1_COLUMNS)
    images = read_strings(read_field(annotation, path, "imagesname"), path, "imagesname")
    check_file_names(images, path, "imagesname")
    data = read_matrix(read_field(annotation, path, "label"), path, "label", (len(images), _V1_COLUMNS))
    labels = _make_labels(data, names, schema, path, "label")
    parts = _read_partition(annotation, path, ("partion", "partition"), partition, ("train", "test"), len(images))
    train = parts["train"]
    tracks = [_track(images[index]) for index in train.tolist()]
    chosen = choose_groups(tracks, _VALIDATION_SHARE, seed)
    parts = {"train": train[~chosen], "validation": train[chosen], "test": parts["test"]}
    notes = {
        "division": f"test official, partition {partition}; validation ours: a tenth of the training images by track, "
        f"seed {seed}"
    }
    splits = _make_splits(root, images, labels, parts, None)
    return schema, splits, {**notes, **_check_positives(path, schema, splits, len(images) == _V1_IMAGES, ignore)}


def read_rapv2(
    root: str | os.PathLike, *, partition: int = 0, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads RAP version 2: the 54 selected attributes, partitions 0 to 4 with train, validation and test.

    Images are matched by name without extension. `person_id` is None where the file says -1.

    An attribute without a positive is an error in the complete file, in a part of it a warning and a note; `ignore`
    names those that may have none.

    Returns:
        The schema `rapv2`, the records of train, validation and test, and notes.

    Raises:
        FileNotFoundError: no annotation under `root`.
        ValueError: the file is damaged, of another data set or of version 1; the message names file and field.
    """
    root = Path(root).absolute()
    schema = get_schema("rapv2")
    path, annotation = _open_annotation(root)
    if "imagesname" in field_names(annotation) and "selected_attribute" not in field_names(annotation):
        raise ParValueError(f'{path} is of RAP version 1 (it has imagesname); load it as "rapv1"')
    names = _attribute_names(annotation, path, ("attribute",), _V2_COLUMNS)
    images = read_strings(read_field(annotation, path, "name"), path, "name")
    check_file_names(images, path, "name")
    data = read_matrix(read_field(annotation, path, "data"), path, "data", (len(images), _V2_COLUMNS))
    selected = read_indices(read_field(annotation, path, "selected_attribute"), path, "selected_attribute", len(names))
    unselected = sorted(set(schema.names) - {names[index] for index in selected.tolist()})
    if unselected:
        raise ParValueError(f"{path}: selected_attribute does not select {unselected[0]!r}; expected the 54 of RAP")
    labels = _make_labels(data, names, schema, path, "data")
    fields = ("train_index", "val_index", "test_index")
    found = _read_partition(annotation, path, ("partition_attribute",), partition, fields, len(images))
    parts = dict(zip(("train", "validation", "test"), (found[field] for field in fields)))
    persons = None
    if "person_identity" in field_names(annotation):
        values = np.asarray(read_field(annotation, path, "person_identity")).reshape(1, -1)
        persons = read_matrix(values, path, "person_identity", (1, len(images)))[0]
    notes = {"division": f"official, partition {partition}"}
    splits = _make_splits(root, images, labels, parts, persons)
    return schema, splits, {**notes, **_check_positives(path, schema, splits, len(images) == _V2_IMAGES, ignore)}


def _check_positives(path, schema, splits, complete, ignore) -> dict[str, Any]:
    # The columns that no attribute takes are no surprise here: the protocols take 51 of 92 and 54 of 152, by name, and
    # a name that is not there is an error already.
    return check_labels(path, count_positives(schema, splits), {}, complete=complete, ignore=ignore)


def _open_annotation(root: Path) -> tuple[Path, np.ndarray]:
    path = find_file(root, _MAT_PLACES, "RAP_annotation.mat beside the folder RAP_dataset")
    return path, load_mat_struct(path, "RAP_annotation")


def _attribute_names(annotation, path: Path, fields: tuple[str, ...], count: int) -> list[str]:
    names = read_strings(read_field(annotation, path, *fields), path, fields[0])
    if len(names) != count:
        raise ParValueError(f"{path}: {fields[0]} has {len(names)} names; expected {count}")
    return [_MISSPELT.get(name, name) for name in names]


def _make_labels(data: np.ndarray, names: list[str], schema: AttributeSchema, path: Path, field: str) -> np.ndarray:
    """Labels int64 (N, A) by name; 2 becomes -100."""
    missing = [name for name in schema.names if name not in names]
    if missing:
        raise ParValueError(f"{path} lacks the attribute {missing[0]!r}; it has {shorten(names[:3])} ...")
    twice = [name for name in schema.names if names.count(name) > 1]
    if twice:
        raise ParValueError(f"{path}: {field} has the attribute {twice[0]!r} twice; expected one column of it")
    labels = data[:, [names.index(name) for name in schema.names]]
    wrong = (labels < 0) | (labels > 2)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise ParValueError(
            f"{path}: {field} is {labels[row, column]} for {schema.names[column]!r} of image {row + 1}; expected 0, 1 "
            "or 2 (uncertain); early copies of the file have other codes, ask for a current one"
        )
    return np.where(labels == 2, UNKNOWN_LABEL, labels)


def _read_partition(annotation, path, names, partition, fields, count) -> dict[str, np.ndarray]:
    partitions = read_cells(read_field(annotation, path, *names))
    if partition >= len(partitions):
        raise ParValueError(f"partition is {partition}; {path} has {len(partitions)}")
    struct = partitions[partition]
    while isinstance(struct, np.ndarray) and struct.dtype.names is None and struct.size:
        struct = struct.ravel()[0]  # version 1 has a cell inside the cell
    parts = {}
    for field in fields:
        spellings = (field, f"{field}_index", field.removesuffix("_index"))
        values = read_field(struct, path, *spellings)
        parts[field] = read_indices(values, path, f"partition {partition}, {field}", count)
    check_disjoint(parts, path, f"partition {partition}")
    return parts


def _track(name: str) -> str:
    match = _TRACK.match(name)
    return match.group(1) if match else name


def _make_splits(root, images, labels, parts, persons) -> dict[str, list[PedestrianRecord]]:
    folder = find_folder(root, _IMAGE_PLACES) or root / _IMAGE_PLACES[0]
    by_stem = images_by_stem(folder)

    def record(index: int) -> PedestrianRecord:
        stem, suffix = os.path.splitext(images[index])
        name = by_stem.get(stem, f"{stem}.png" if not suffix else images[index])
        camera = _CAMERA.match(name)
        person = None if persons is None or persons[index] < 0 else int(persons[index])
        return PedestrianRecord(
            os.path.join(folder, name), name, labels[index], person, int(camera.group(1)) if camera else None
        )

    return {split: [record(index) for index in indices.tolist()] for split, indices in parts.items()}
