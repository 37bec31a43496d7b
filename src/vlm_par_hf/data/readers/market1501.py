"""Market-1501 with its attribute annotation: labels of persons, joined to the file names of the images.

Scalable Person Re-identification, Zheng et al., ICCV 2015; Improving Person Re-identification by Attribute and
Identity Learning, Lin et al., Pattern Recognition 2019. The layout is that of the archive, with the annotation in it:

    Market-1501-v15.09.15/bounding_box_train, bounding_box_test, query      0002_c1s1_000451_03.jpg: person, camera
    Market-1501-v15.09.15/market_attribute.mat

Labels hold for a person in all images, so what cannot be seen in one image is labelled all the same.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.utils import shorten

from .files import find_file, find_folder, list_images
from .label_check import check_labels, count_positives
from .matlab import field_names, load_mat_struct, read_field, read_matrix, read_strings
from .records import PedestrianRecord
from .splits import choose_groups


__all__ = ["read_market1501"]

_HOMES = (".", "Market-1501-v15.09.15", "Market-1501", "Market1501", "market1501")
_MAT_PLACES = (
    "market_attribute.mat", "attribute/market_attribute.mat", "attributes/market_attribute.mat",
    *(f"{home}/market_attribute.mat" for home in _HOMES[1:]),
    *(f"{home}/attribute/market_attribute.mat" for home in _HOMES[1:]),
)  # fmt: skip
# our split -> (its folder, the half of the annotation)
_FOLDERS = {
    "train": ("bounding_box_train", "train"),
    "test": ("bounding_box_test", "test"),
    "query": ("query", "test"),
}
_NAME = re.compile(r"(-1|\d{4})_c(\d{1,9})s\d+_", re.ASCII)
_JUNK, _DISTRACTOR = "-1", "0000"
_VALIDATION_SHARE = 0.1
_OFFICIAL_IMAGES = {"train": 12_936, "test": 13_115}


def read_market1501(
    root: str | os.PathLike, table: str = "market1501", *, seed: int = 0, ignore: Iterable[str] = ()
) -> tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]:
    """Reads Market-1501 with attributes.

    Args:
        root: the folder of the archive (or the one above it), with `market_attribute.mat`.
        table: `"market1501"` (age with four classes) or `"market1501_30"` (age as four binary attributes).
        seed: there is no official validation: a tenth of the training images, by person, is taken by this seed.
        ignore: attributes that may have no positive, and fields of the annotation that no attribute takes. Of the
            complete data set either is an error, of a part a warning; the notes name both.

    Returns:
        The schema; the records of train, validation, test (the gallery of 13,115 images on which the official
        evaluation runs) and query (other images of the test persons); notes. Junk (-1) and distractors (0000) are
        left out and counted in the notes.

    Raises:
        FileNotFoundError: no annotation, or no image folder.
        ValueError: a file is not what it should be; the message names it.
    """
    root = Path(root).absolute()
    schema = get_schema(table)
    path = find_file(root, _MAT_PLACES, "market_attribute.mat beside the folders of Market-1501")
    annotation = load_mat_struct(path, "market_attribute")
    # The file has the test half first, and the fields of the two halves in different orders: all goes by name.
    labels_of = {
        half: _read_half(read_field(annotation, path, half), path, half, schema) for half in ("train", "test")
    }
    home = next((root / place for place in _HOMES if (root / place / "bounding_box_train").is_dir()), None)
    if home is None:
        raise ParFileNotFoundError(
            f"root {str(root)!r} holds no folder bounding_box_train; expected the unpacked Market-1501-v15.09.15"
        )
    splits: dict[str, list[PedestrianRecord]] = {}
    left_out = {"junk": 0, "distractors": 0}
    for split, (folder, half) in _FOLDERS.items():
        if find_folder(home, (folder,)) is None:
            if split == "query":
                continue
            raise ParFileNotFoundError(f"{home} holds no folder {folder}; expected the unpacked Market-1501-v15.09.15")
        splits[split] = _read_images(home, folder, labels_of[half], path, half, left_out)
        if not splits[split]:
            raise ParFileNotFoundError(f"{home / folder} holds no image; expected the unpacked Market-1501-v15.09.15")
    complete = all(len(splits[split]) == count for split, count in _OFFICIAL_IMAGES.items())
    unused = _unused_fields(annotation, path, schema)
    label_notes = check_labels(path, count_positives(schema, splits), unused, complete=complete, ignore=ignore)
    train = splits["train"]
    chosen = choose_groups([record.person_id for record in train], _VALIDATION_SHARE, seed)
    kept = {
        "train": [record for record, taken in zip(train, chosen) if not taken],
        "validation": [record for record, taken in zip(train, chosen) if taken],
    }
    notes = {
        "division": f"test official; validation ours: a tenth of the training images by person, seed {seed}",
        "left_out": left_out,
        **label_notes,
    }
    return schema, {**kept, **{split: splits[split] for split in splits if split != "train"}}, notes


def _read_half(half: Any, path: Path, name: str, schema: AttributeSchema) -> dict[int, np.ndarray]:
    """Person -> labels int64 (A,)."""
    persons = read_strings(read_field(half, path, "image_index"), path, f"{name}.image_index")
    for person in persons:
        if re.fullmatch(r"[0-9]{1,9}", person) is None:
            raise ParValueError(f"{path}: {name}.image_index holds {shorten(person)}; expected the number of a person")
    numbers = [int(person) for person in persons]
    if not numbers or len(set(numbers)) != len(numbers):
        raise ParValueError(f"{path}: {name}.image_index holds no person, or one twice")
    columns = [_read_column(half, path, name, attribute, schema, len(persons)) for attribute in schema]
    labels = np.stack(columns, axis=1)
    return dict(zip(numbers, labels))


def _unused_fields(annotation: Any, path: Path, schema: AttributeSchema) -> dict[str, int]:
    """Fields that no attribute takes -> the number of persons that they label."""
    taken = {"image_index", *("age" if attribute.group == "age" else attribute.name for attribute in schema)}
    unused: dict[str, int] = {}
    for name in ("train", "test"):
        half = read_field(annotation, path, name)
        for field in set(field_names(half)) - taken:
            unused[field] = unused.get(field, 0) + np.size(read_field(half, path, field))
    return unused


def _read_column(half, path, name, attribute, schema, count) -> np.ndarray:
    one_of_four = attribute.group == "age"  # the table that spreads age over four binary attributes
    field = "age" if one_of_four else attribute.name
    largest = 4 if field == "age" else attribute.num_labels
    values = read_matrix(np.atleast_2d(read_field(half, path, field)), path, f"{name}.{field}", (1, count))[0]
    if values.min() < 0 or values.max() > largest:
        raise ParValueError(
            f"{path}: {name}.{field} holds {values.max() if values.max() > largest else values.min()}; expected 1 to "
            f"{largest} (0 where unknown)"
        )
    classes = values - 1
    if one_of_four:
        ages = [item.name for item in schema if item.group == "age"]
        classes = (classes == ages.index(attribute.name)).astype(np.int64)
    return np.where(values == 0, UNKNOWN_LABEL, classes)


def _read_images(home, folder, labels_of, path, half, left_out) -> list[PedestrianRecord]:
    records = []
    for name in list_images(home / folder):
        match = _NAME.match(name)
        if match is None:
            raise ParValueError(f"{home / folder} holds {shorten(name)}; expected names like 0002_c1s1_000451_03.jpg")
        person, camera = match.groups()
        if person in (_JUNK, _DISTRACTOR):
            left_out["junk" if person == _JUNK else "distractors"] += 1
            continue
        if int(person) not in labels_of:
            raise ParValueError(f"{path} has no person {int(person)} in {half!r}, but {home / folder} holds {name!r}")
        labels = labels_of[int(person)]
        records.append(
            PedestrianRecord(os.path.join(home, folder, name), f"{folder}/{name}", labels, int(person), int(camera))
        )
    return records
