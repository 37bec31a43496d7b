"""What travels with a data set: the schema in its `info.description`, and its labels.

A `datasets` data set has no field for a schema, and `info.description` is the one text that survives `map`, `select`,
saving and loading. It holds JSON: notes (the name of the data, how they were divided) and, under `attributes`, the
schema.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.errors import ParError, ParTypeError, ParValueError
from vlm_par_hf.labels.schema import AttributeSchema


if TYPE_CHECKING:
    import datasets


__all__ = ["attach_schema", "carried_schema", "dataset_schema", "disable_decoding", "read_labels"]


def attach_schema(dataset: "datasets.Dataset", schema: AttributeSchema, **notes: Any) -> "datasets.Dataset":
    """The same data set with `schema` (and `notes`, values that JSON can hold) in its `info.description`.

    There they survive `map`, `select`, `filter`, `shuffle`, `concatenate_datasets`, `save_to_disk` and
    `load_from_disk`. They are lost by `to_parquet`, `push_to_hub` and `to_iterable_dataset`: call this function again
    afterwards.

    Raises:
        ValueError: the column `labels` has another width than the schema.
    """
    feature = dataset.features.get("labels")
    width = getattr(feature, "length", -1)
    if feature is not None and width not in (-1, len(schema)):
        raise ParValueError(f"the data set has {width} labels per image but the schema has {len(schema)} attributes")
    dataset = dataset.select(range(len(dataset)))  # a shallow copy: the caller's info stays as it was
    dataset.info.description = json.dumps({**notes, "attributes": schema.to_list()}, ensure_ascii=False)
    return dataset


def dataset_schema(dataset: Any) -> AttributeSchema:
    """The schema that a data set carries.

    Args:
        dataset: a `datasets.Dataset` or `DatasetDict` with a schema, or an object that wraps one as `.dataset`.

    Raises:
        ValueError: it carries no schema, or its splits carry different ones.
    """
    while not hasattr(dataset, "info") and not isinstance(dataset, dict) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # AugmentedDataset, torch.utils.data.Subset
    parts = dataset if isinstance(dataset, dict) else {"data set": dataset}
    if not parts:
        raise ParValueError("the DatasetDict is empty; expected at least one split")
    schemas = [(name, schema) for name, part in parts.items() for schema in _carried_schemas(name, part)]
    first_name, first = schemas[0]
    for name, schema in schemas[1:]:
        if schema != first:
            raise ParValueError(
                f"{first_name!r} and {name!r} carry different schemas: {'; '.join(first.diff(schema)[:3])}"
            )
    return first


def carried_schema(dataset: Any) -> AttributeSchema | None:
    """As `dataset_schema`, but None instead of an error: no schema, or splits whose schemas differ."""
    try:
        return dataset_schema(dataset)
    except ValueError:
        return None


def read_labels(dataset: Any) -> np.ndarray | None:
    """Labels of a split of S images as int64 `(S, A)`, or None if it has none.

    Args:
        dataset: a `datasets.Dataset` (its images are not decoded), or any map-style data set of dicts.

    Raises:
        ValueError: some rows have labels and some have none, or they have different numbers of them.
        TypeError: labels that are not whole numbers.
    """
    if hasattr(dataset, "select_columns"):
        if "labels" not in dataset.column_names:
            return None
        labels = dataset.select_columns(["labels"]).with_format("numpy")[:]["labels"]
    else:
        rows = (dataset[index] for index in range(len(dataset)))
        labels = [row["labels"] for row in rows if row.get("labels") is not None]
        if not labels:
            return None
        if len(labels) != len(dataset):
            raise ParValueError(f"dataset has labels in {len(labels)} of {len(dataset)} rows: expected all or none")
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise ParValueError("dataset has rows with different numbers of labels") from None
    if len(labels) and labels.dtype.kind not in "iub":  # 0.7 must not become 0
        raise ParTypeError(f"labels are {labels.dtype}; expected whole numbers (class index, -100 unknown)")
    return labels.astype(np.int64)


def disable_decoding(dataset: Any, column: str = "image") -> Any:
    """A `datasets.Dataset` whose image column gives paths and bytes instead of decoded images.

    They are then decoded by `open_image`, whose errors name the file. Anything else, and a data set with a transform
    set by the user, is returned unchanged.
    """
    if not hasattr(dataset, "cast_column") or not hasattr(dataset, "format"):
        return dataset
    kind = type((dataset.features or {}).get(column)).__name__
    if kind not in ("Image", "PedestrianImage") or dataset.format["type"] == "custom":
        return dataset
    import datasets

    return dataset.with_format(None).cast_column(column, datasets.Image(decode=False))


def _carried_schemas(name: str, dataset: Any) -> list[AttributeSchema]:
    description = getattr(getattr(dataset, "info", None), "description", None) or ""
    schemas, decoder, position, reason = [], json.JSONDecoder(), 0, ""
    try:
        # concatenate_datasets joins differing descriptions with blank lines
        while description[position:].strip():
            position += len(description[position:]) - len(description[position:].lstrip())
            notes, position = decoder.raw_decode(description, position)
            schemas.append(AttributeSchema(notes["attributes"]))
    except ParError as error:
        schemas, reason = [], f": {error}"
    except (ValueError, KeyError, TypeError, RecursionError):
        schemas = []
    if not schemas:
        raise ParValueError(
            f"{name!r} carries no attribute schema (its info.description is {description[:60]!r}{reason}); expected a "
            "data set from load_par_dataset, or one prepared with attach_schema(dataset, schema)"
        )
    return schemas
