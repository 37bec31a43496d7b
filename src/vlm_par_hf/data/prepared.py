"""Data sets that are already `datasets` data sets: exports on the Hub or on disk, with the schema beside the data.

`vlm-par prepare` writes this form: parquet files with `image` (the encoded files inside) and `labels`, `schema.json`,
and `report.json`, which says where the data came from.
"""

import difflib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.errors import ParError, ParFileNotFoundError, ParOSError, ParValueError
from vlm_par_hf.images.regions import split_region
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range
from vlm_par_hf.utils import require, shorten

from .carried import carried_schema
from .readers.files import leads_out
from .readers.ids import common_ids, read_id
from .readers.label_cells import Place, RowReader


if TYPE_CHECKING:
    import datasets


__all__ = ["REPORT_FILE", "SCHEMA_FILE", "load_hub_dataset", "split_of_file"]

logger = logging.getLogger(__name__)

SCHEMA_FILE = "schema.json"
REPORT_FILE = "report.json"
_SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


def load_hub_dataset(
    root: str | os.PathLike,
    schema: AttributeSchema | None = None,
    *,
    revision: str | None = None,
    negative: str | int | None = None,
    unknown: str | int | None = None,
) -> tuple[AttributeSchema, dict[str, "datasets.Dataset"], dict[str, Any]]:
    """Loads a data set with the columns `image` and `labels`, or with one column per attribute.

    Args:
        root: `"org/name"` on the Hub, a folder of parquet files, or a folder that `save_to_disk` wrote.
        schema: used if the data come without a `schema.json`.
        revision: branch, tag or commit on the Hub.
        negative, unknown: as for `read_folder`, where labels are no lists of class indices.

    `labels` are lists of class indices, or what else `RowReader.read_value` takes. Classes of `datasets.ClassLabel` in
    a column of their own are taken by their names. The only column with pictures is the image, whatever its name.

    An image is the bytes of its file, or a path below `root`: another path would make whoever wrote the data choose a
    file of yours. Ids of persons and cameras have one form (`readers.ids`), and unknown ones are None.

    Returns:
        The schema, the splits (columns `image`, `labels` int64 `(A,)`, and any others), and notes: the name that the
        data had when they were prepared, else that of the repository or folder, and how they were divided. Images stay
        on disk; only the labels are read into memory.

    Raises:
        FileNotFoundError: no such folder or repository, no parquet file, or no schema.
        ValueError: a file is damaged or belongs to another data set, a column is missing, a label is out of its
            attribute's range, or an image is a path out of `root`; the message names the file or the split.
        OSError: the Hub refused the request or cannot be reached.
    """
    datasets = require("datasets", "train")
    name, folder = os.fspath(root), Path(root)
    carried: AttributeSchema | None = None
    report: Path | None = folder / REPORT_FILE
    if not folder.is_dir():
        if not _looks_like_repository(name):
            raise ParFileNotFoundError(f"root {name!r} is neither a folder nor a repository like 'org/name'")
        splits = _load_repository(name, revision)
        path = _repository_file(name, SCHEMA_FILE, revision)
        carried = None if path is None else AttributeSchema.from_json(path)
        report = _repository_file(name, REPORT_FILE, revision)
    elif (folder / "dataset_dict.json").is_file():
        splits = _load_from_disk(folder)
        carried = carried_schema(splits) or _folder_schema(folder)
    else:
        files = _parquet_files(folder)
        _check_parquet(files)
        with _raise_cause(name):
            splits = dict(datasets.load_dataset("parquet", data_files=files))
        carried = _folder_schema(folder)
    found_schema = carried or schema
    if found_schema is None:
        raise ParFileNotFoundError(
            f"{name} has no {SCHEMA_FILE}, so nothing says what its labels mean; expected the file beside the data "
            "(vlm-par schema and AttributeSchema.to_json write one), or the argument schema (--schema)"
        )
    named = [_SPLIT_NAMES.get(split, split) for split in splits]
    twice = next((split for split in named if named.count(split) > 1), None)
    if twice is not None:
        raise ParValueError(f"{name} has the split {twice!r} under two names: {list(splits)}; expected one of them")
    splits = dict(zip(named, splits.values()))
    # In the cache of the Hub, a folder's files are links to another folder of the cache.
    folders = [folder, *_download_folders()] if folder.is_dir() else _download_folders()
    rows = RowReader(found_schema, negative, unknown)
    splits = {
        split: _check_columns(dataset, found_schema, f"{name}, {split}", folders, rows)
        for split, dataset in splits.items()
    }
    rows.check_columns()
    splits = _unify_ids(splits, name)
    own_name = name if not folder.is_dir() else folder.resolve().name
    return found_schema, splits, {"division": "as the data set has it", **_notes_of_report(report, own_name)}


def split_of_file(name: str) -> str:
    """The split of a parquet file by its name: `train-00000-of-00002.parquet` -> `train`."""
    return Path(name).stem.split("-")[0]


def _load_from_disk(folder: Path) -> dict[str, Any]:
    """What `save_to_disk` wrote, whose files say where its tables lie."""
    datasets = require("datasets", "train")
    import pyarrow

    try:
        splits = dict(datasets.load_from_disk(os.fspath(folder)))
    except (
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
        pyarrow.ArrowException,
    ) as error:
        raise ParValueError(f"{folder} cannot be read as what save_to_disk writes: {shorten(error)}") from error
    for part in splits.values():
        for file in part.cache_files:
            if leads_out(folder, file["filename"]):
                raise ParValueError(f"{folder} names the table {shorten(file['filename'])} out of it")
    return splits


def _looks_like_repository(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _load_repository(name: str, revision: str | None) -> dict[str, Any]:
    datasets = require("datasets", "train")
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        with _raise_cause(name):
            return dict(datasets.load_dataset(name, revision=revision))
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError) as error:
        raise ParFileNotFoundError(
            f"the data set {name!r} is not on the Hub, or not for you ({error}); expected a folder or 'org/name'"
        ) from error
    except OSError as error:  # no network, for instance
        if isinstance(error, ParError):
            raise
        raise ParOSError(f"the data set {name!r} could not be loaded: {error}") from error


def _repository_file(name: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except EntryNotFoundError:
        return None


def _notes_of_report(path: Path | None, own_name: str) -> dict[str, Any]:
    """The notes that `prepare_dataset` wrote; a file of that name from another project is ignored."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))["notes"] if path is not None and path.is_file() else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        notes = {}
    notes = notes if isinstance(notes, dict) else {}
    # "folder" only says how the data were read, so the name of the repository or folder is used instead.
    return {**notes, "name": own_name if notes.get("name") in (None, "folder") else notes["name"]}


def _folder_schema(folder: Path) -> AttributeSchema | None:
    path = folder / SCHEMA_FILE
    return AttributeSchema.from_json(path) if path.is_file() else None


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """Parquet files by split, from `data/` or from the folder itself."""
    home = folder / "data" if any(folder.glob("data/*.parquet")) else folder
    files: dict[str, list[str]] = {}
    for path in sorted(home.glob("*.parquet")):
        split = split_of_file(path.name)
        if re.fullmatch(r"\w+(\.\w+)*", split) is None:
            raise ParValueError(
                f"{path}: {shorten(split)} is no name of a split; expected such as train-00000-of-00001"
            )
        if not path.is_file():
            raise ParValueError(f"{path} is no regular file; expected a parquet file")
        files.setdefault(split, []).append(str(path))
    if not files:
        raise ParFileNotFoundError(
            f"{folder} holds no parquet file (looked in data/ and in the folder itself); expected files like "
            "data/train-00000-of-00001.parquet, or what save_to_disk writes"
        )
    for split, paths in files.items():
        counts = {Path(path).stem.rpartition("-of-")[2] for path in paths if "-of-" in path}
        if len(counts) == 1 and next(iter(counts)).isdecimal() and int(next(iter(counts))) != len(paths):
            raise ParFileNotFoundError(
                f"{home} holds {len(paths)} of the {int(next(iter(counts)))} files of {split!r}; expected all of them "
                "(downloaded or prepared in part?)"
            )
    return files


def _check_parquet(files: dict[str, list[str]]) -> None:
    """Checks that every file is complete and that all have the same columns; reads only the end of each file."""
    import pyarrow.parquet

    first: tuple[str, list[str]] | None = None
    for path in (path for paths in files.values() for path in paths):
        try:
            columns = pyarrow.parquet.read_schema(path).names
        except (pyarrow.ArrowException, OSError) as error:
            raise ParValueError(f"{path} cannot be read as a parquet file (downloaded in part?): {error}") from error
        first = first or (path, columns)
        if sorted(columns) != sorted(first[1]):
            raise ParValueError(
                f"{path} has the columns {columns}, but {first[0]} has {first[1]}: are these files of two data sets?"
            )


@contextmanager
def _raise_cause(name: str) -> Iterator[None]:
    """Raises the cause of an error of `datasets`, with the name of the data set: only the cause says what failed."""
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except DatasetGenerationError as error:
        cause = error.__cause__ or error.__context__ or error
        if isinstance(cause, OSError):
            raise ParOSError(f"the data set {name!r} could not be loaded: {cause}") from error
        raise ParValueError(f"the files of the data set {name!r} cannot be read as one: {cause}") from error


def _download_folders() -> list[Path]:
    """Where files of the Hub lie that are not inside of a data set's own files."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]


def _check_paths(dataset: "datasets.Dataset", where: str, folders: list[Path]) -> None:
    """Refuses images that are not in the data but paths out of its folders. No image is read."""
    import pyarrow.compute

    start = 0
    for chunk in dataset.data.column("image").chunks:
        if not isinstance(chunk, pyarrow.StructArray):  # plain bytes or paths, which `datasets` wraps later
            chunk = dataset.features["image"].cast_storage(chunk)
        outside = pyarrow.compute.and_(chunk.is_valid(), chunk.field("bytes").is_null())
        for row in np.flatnonzero(outside.to_numpy(zero_copy_only=False)).tolist():
            path = chunk.field("path")[row].as_py()
            if path is None:
                raise ParValueError(f"{where}: the image of row {start + row} has neither bytes nor a path")
            _check_path(path, f"{where}: the image of row {start + row}", folders)
        start += len(chunk)


def _check_path(path: str, where: str, folders: list[Path]) -> None:
    path, _ = split_region(path)  # the file, whose links are followed
    if "\0" in path or "://" in path or all(leads_out(folder, path) for folder in folders):
        raise ParValueError(
            f"{where} is the path {shorten(path)} out of {shorten(str(folders[0]))}; expected the bytes of the image "
            "in the data, as vlm-par prepare writes them"
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise ParValueError(f"{where}, {shorten(path)}, is no regular file; expected an image file")


def _unify_ids(splits: dict[str, "datasets.Dataset"], name: str) -> dict[str, "datasets.Dataset"]:
    """The splits with `person_id` and `camera_id` in one form, None where unknown; other types are left alone."""
    import datasets

    for column in ("person_id", "camera_id"):
        features = [part.features.get(column) for part in splits.values()]
        if any(getattr(feature, "dtype", "")[:3] not in ("int", "uin", "str", "lar", "flo") for feature in features):
            continue
        given = {split: part[column][:] for split, part in splits.items()}
        try:
            read = [read_id(value) for values in given.values() for value in values]
        except ValueError as error:
            raise ParValueError(f"{name}: {column} {error}") from None
        ids = iter(common_ids(read))
        changed = {split: [next(ids) for _ in values] for split, values in given.items()}
        if changed == given:
            continue
        kind = "string" if any(isinstance(one, str) for values in changed.values() for one in values) else "int64"
        for split, part in splits.items():
            names = part.column_names
            feature = datasets.Value(kind)
            replaced = part.remove_columns(column).add_column(column, changed[split], feature=feature)
            splits[split] = replaced.select_columns(names)
    return splits


def _check_columns(
    dataset: "datasets.Dataset", schema: AttributeSchema, where: str, folders: list[Path], rows: RowReader
) -> "datasets.Dataset":
    """The data set with checked labels, int64 of fixed length, and images that `open_image` decodes."""
    import datasets
    import pyarrow

    from .image_column import PedestrianImage

    dataset = _name_image_column(dataset, where)
    _check_paths(dataset, where, folders)
    used, labels = _find_labels(dataset, schema, where, rows)
    feature = datasets.List(datasets.Value("int64"), length=len(schema))
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(labels.ravel(), pyarrow.int64()), len(schema))
    names = ["labels" if name == used[0] else name for name in dataset.column_names if name not in used[1:]]
    replaced = dataset.remove_columns(used).add_column("labels", column, feature=feature).select_columns(names)
    return replaced.cast_column("image", PedestrianImage())


def _name_image_column(dataset: "datasets.Dataset", where: str) -> "datasets.Dataset":
    """The data set with the column `image`: the one of that name, or the only one with pictures."""
    import datasets

    pictures = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if "image" not in dataset.column_names:
        if len(pictures) != 1:
            found = f"; which of {pictures} is it?" if pictures else f"; it has {dataset.column_names}"
            raise ParValueError(f"{where}: no column 'image'{found}")
        logger.info("%s: the column %r is taken as 'image', the only one with pictures", where, pictures[0])
        return dataset.rename_column(pictures[0], "image")
    if "image" not in pictures:
        near = f"; did you mean the column {pictures[0]!r}?" if pictures else ""
        raise ParValueError(
            f"{where}: the column 'image' is {dataset.features['image']}; expected datasets.Image{near}"
        )
    return dataset


def _find_labels(
    dataset: "datasets.Dataset", schema: AttributeSchema, where: str, rows: RowReader
) -> tuple[list[str], np.ndarray]:
    """The columns that hold the labels, and the labels, int64 `(S, A)`: in `labels`, or in one column per
    attribute."""
    names = dataset.column_names
    column = next((name for name in ("labels", "label") if name in names and name not in schema), None)
    missing = [name for name in schema.names if name not in names]
    if not missing and column != "labels":
        return list(schema.names), _read_label_columns(dataset, where, rows)
    if column is None:
        near = difflib.get_close_matches(missing[0].casefold(), {name.casefold() for name in names}, n=1)
        meant = [name for name in names if near and name.casefold() == near[0]]
        hint = f"; did you mean the column {meant[0]!r}?" if meant else ""
        raise ParValueError(
            f"{where}: no column 'labels', and no column {missing[0]!r} as if there were one per attribute{hint}; it "
            f"has {shorten(names)}"
        )
    feature = dataset.features[column]
    if getattr(getattr(feature, "feature", None), "dtype", "")[:3] in ("int", "uin", "boo", "flo", "dou"):
        return [column], _read_label_lists(dataset, column, schema, where)
    return [column], _read_label_values(dataset, column, where, rows)


def _read_label_lists(dataset: "datasets.Dataset", column: str, schema: AttributeSchema, where: str) -> np.ndarray:
    """Labels from lists of class indices, without a Python object per label."""
    import pyarrow.compute

    chunks = dataset.with_format("arrow", columns=[column])[:][column].combine_chunks()
    lengths = np.unique(pyarrow.compute.list_value_length(chunks).to_numpy(zero_copy_only=False))
    if len(dataset) and lengths.tolist() != [len(schema)]:
        raise ParValueError(f"{where}: rows have {lengths.tolist()} labels; the schema has {len(schema)} attributes")
    values = chunks.flatten()
    if values.null_count:
        values = values.fill_null(UNKNOWN_LABEL)
    labels = values.to_numpy(zero_copy_only=False).reshape(-1, len(schema))
    if labels.dtype.kind not in "iub":
        raise ParValueError(f"{where}: labels are {labels.dtype}; expected whole numbers (class index, -100 unknown)")
    labels = labels.astype(np.int64)
    check_label_range(labels, schema, f"{where}: labels")
    return labels


def _read_label_values(dataset: "datasets.Dataset", column: str, where: str, rows: RowReader) -> np.ndarray:
    """Labels from any other form of one column."""
    values = _with_names(dataset.features[column], dataset[column][:])
    labels = np.empty((len(values), len(rows.schema)), np.int64)
    for number, value in enumerate(values):
        place = Place(where, "row", number)
        try:
            labels[number] = rows.read_value(value, place)
        except ParValueError as error:
            raise ParValueError(f"{place}: {error}") from None
    return labels


def _read_label_columns(dataset: "datasets.Dataset", where: str, rows: RowReader) -> np.ndarray:
    """Labels from one column per attribute."""
    labels = np.empty((len(dataset), len(rows.schema)), np.int64)
    for position, reader in enumerate(rows.readers):
        values = _with_names(dataset.features[reader.name], dataset[reader.name][:])
        for number, value in enumerate(values):
            place = Place(where, "row", number)
            try:
                labels[number, position] = reader(value, place)
            except ParValueError as error:
                raise ParValueError(f"{place}: {error}") from None
    return labels


def _with_names(feature: Any, values: list) -> list:
    """Values in which classes are texts instead of numbers: their order in the data may be another than in the
    schema."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    if isinstance(feature, datasets.List):
        return [None if value is None else _with_names(feature.feature, value) for value in values]
    if isinstance(feature, dict):
        return [
            value if value is None else {name: _with_names(feature[name], [one])[0] for name, one in value.items()}
            for value in values
        ]
    return values
