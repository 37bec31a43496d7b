"""MIVIA PAR: five attributes per image, as the contests at CAIP 2023 and 2025 give them out.

Per split a table without a header and, beside it, the folder of its images; the test split of a contest is private:

    training_set.txt, training_set/...; validation_set.txt, validation_set/...; test_set.txt, test_set/...

A row is `image, upper color, lower color, gender, bag, hat`: colors 1 to 11, gender 0 (male) or 1 (female), bag and
hat 0 or 1, and -1 where an image is not annotated, which many are not.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import find_file, find_folder, look_for_file, read_csv_rows, relative_path
from .label_check import check_labels, count_positives
from .records import PedestrianRecord


__all__ = ["read_mivia"]

_TABLES = {"train": "training_set", "validation": "validation_set", "test": "test_set"}
_HOMES = ("", "annotation/", "annotations/")  # of the tables
_ENDINGS = (".txt", ".csv")
_UNKNOWN = "-1"


def read_mivia(
    root: str | os.PathLike, *, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads the splits of MIVIA PAR that lie under `root`.

    Labels belong to images: `person_id` is None. An attribute without a positive is a warning and a note, since the
    number of images differs between the contests.

    Args:
        root: the folder with the tables (or with a folder `annotation` of them) and the folders of images, which may
            also lie in a folder `data`.
        ignore: names of attributes that may have no positive.

    Returns:
        The schema `mivia5`, the records of train and, where present, validation and test, and notes.

    Raises:
        FileNotFoundError: no table of the training split, or no folder of images beside a table.
        ValueError: a row that cannot be read, or an image that is listed twice; the message names file and line.
    """
    root = Path(root).absolute()
    schema = get_schema("mivia5")
    splits = {}
    for split, name in _TABLES.items():
        places = [f"{home}{name}{ending}" for home in _HOMES for ending in _ENDINGS]
        path = look_for_file(root, places)
        if path is None:
            if split == "train":
                find_file(root, places, "the tables of MIVIA PAR")  # raises
            continue
        homes = (name, f"data/{name}")
        images = find_folder(root, homes)
        if images is None:
            raise ParFileNotFoundError(f"root {str(root)!r} holds {path.name} and no folder {homes[0]} of its images")
        splits[split] = list(_read_table(path, images, schema))
    notes = check_labels(root, count_positives(schema, splits), {}, complete=False, ignore=ignore)
    return schema, splits, {"division": "official", **notes}


def _read_table(path: Path, images: Path, schema: AttributeSchema) -> Iterator[PedestrianRecord]:
    # The value of each cell -> class index: colors count from 1, the others from 0.
    starts = [0 if attribute.is_binary else 1 for attribute in schema]
    values = [
        {_UNKNOWN: UNKNOWN_LABEL} | {str(start + label): label for label in range(attribute.num_labels)}
        for start, attribute in zip(starts, schema)
    ]
    seen: dict[str, int] = {}
    for line, (name, *cells) in read_csv_rows(path):
        image = relative_path(name)
        if image is None:
            raise ParValueError(f"{path}, line {line}: image is {shorten(name)}; expected a path below {images}")
        if image in seen:
            raise ParValueError(f"{path}, line {line}: image {shorten(image)} is already on line {seen[image]}")
        seen[image] = line
        if len(cells) != len(schema):
            raise ParValueError(
                f"{path}, line {line}: {len(cells)} labels; expected {len(schema)}: {', '.join(schema.names)}"
            )
        for attribute, cell, known in zip(schema, cells, values):
            if cell not in known:
                _, low, *_, high = known
                raise ParValueError(
                    f"{path}, line {line}: {attribute.name} is {shorten(cell)}; expected {low} to {high}, or -1 for "
                    "unknown"
                )
        labels = np.asarray([known[cell] for cell, known in zip(cells, values)], np.int64)
        # With its folder: the splits number their images alike.
        yield PedestrianRecord(os.path.join(images, image), f"{images.name}/{image}", labels)
    if not seen:
        raise ParValueError(f"{path} lists no image")
