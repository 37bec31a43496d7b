"""Several data sets as one: a label space that holds all their attributes, and how often each is sampled.

What a data set does not annotate is unknown (-100) in its rows, so the loss and the metrics leave it out.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.errors import ParKeyError, ParTypeError, ParValueError
from vlm_par_hf.labels.matching import match_labels
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, Attribute, AttributeSchema
from vlm_par_hf.utils import require, shorten

from .carried import attach_schema, dataset_schema, read_labels


if TYPE_CHECKING:
    import datasets


__all__ = ["SOURCE", "TemperatureSampler", "unite_datasets", "unite_schemas"]

SOURCE = "dataset"  # the column that names the data set of a row


def unite_schemas(
    schemas: Mapping[str, AttributeSchema], same: Mapping[str, Mapping[str, str]] | None = None
) -> tuple[AttributeSchema, dict[str, list[tuple[int, np.ndarray]]]]:
    """The label space of several data sets.

    The first data set comes first, with its names and wording; of each further one, attributes that are there already
    (the same question, or the same name and labels, as `match_labels` has it) share a column, and the others follow. A
    shared attribute of more than two labels gets the labels of both.

    Args:
        schemas: name of a data set -> its label space.
        same: name of a data set -> {its attribute: the attribute of the united label space that it is}, for what
            neither question nor name tells; None instead of a name: it is no other attribute.

    Returns:
        The label space, and per data set for each of its attributes the column in it and, per label, the class index
        there.

    Raises:
        ValueError: no data set; two attributes of one name that are not the same; two attributes of a data set that
            are the same.
        KeyError: `same` names a data set or an attribute that is not there.
    """
    if not schemas:
        raise ParValueError("schemas is empty, expected the label space of one data set or more")
    for name in same or {}:
        if name not in schemas:
            raise ParKeyError(f"same names {shorten(name)}, expected one of {', '.join(schemas)}")
    united: list[Attribute] = []
    places: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, schema in schemas.items():
        shared = {}
        if united:
            before = AttributeSchema([replace(one, mirror=None, requires=None) for one in united])
            shared = match_labels(before, schema, (same or {}).get(name))
        columns: dict[str, tuple[int, np.ndarray]] = {}
        taken = {one.name.casefold() for one in united}
        for one in schema:
            if one.name in shared:
                column, indices = shared[one.name]
                united[column], indices = _extend(united[column], one, indices)
            else:
                if one.name.casefold() in taken:
                    raise ParValueError(
                        f"{name!r} has an attribute {shorten(one.name)}, which is another one in a data set before "
                        "it: say in `same` of unite_datasets which attribute it is, or rename it"
                    )
                column, indices = len(united), np.arange(one.num_labels)
                united.append(one)
            columns[one.name] = (column, indices)
        groups = {group: f"{name}: {group}" if places else group for group in schema.groups}
        for one in schema:
            if one.name not in shared:
                united[columns[one.name][0]] = _with_names_of(united, one, schema, columns, groups)
        places[name] = list(columns.values())
    return AttributeSchema(united), places


def unite_datasets(
    datasets_by_name: Mapping[str, Any], same: Mapping[str, Mapping[str, str]] | None = None
) -> "datasets.DatasetDict":
    """Several data sets as one, split by split.

    Args:
        datasets_by_name: name -> a `DatasetDict` from `load_par_dataset`.
        same: as for `unite_schemas`.

    Returns:
        A `DatasetDict` with the columns `image`, `image_id`, `labels`, `person_id` (with the name of the data set, so
        that persons of two are never one; None where not known) and `dataset`, for the splits train, validation and
        test that any of them has. It carries the united label space; its name is the names joined by "+".

    Raises:
        ValueError, KeyError: as for `unite_schemas`.
        TypeError: something else than data sets by name.
    """
    given = isinstance(datasets_by_name, Mapping) and datasets_by_name.values()
    if not given or not all(isinstance(one, Mapping) for one in given):
        raise ParTypeError(f"expected a dict of names and DatasetDicts, got {shorten(datasets_by_name)}")
    datasets = require("datasets", "train")
    schemas = {name: dataset_schema(data) for name, data in datasets_by_name.items()}
    schema, places = unite_schemas(schemas, same)
    result = {}
    for split in ("train", "validation", "test"):
        parts = [
            _united_rows(data[split], name, places[name], schema)
            for name, data in datasets_by_name.items()
            if split in data
        ]
        if parts:
            options = {name: _notes(data).get("options", {}) for name, data in datasets_by_name.items()}
            joined = datasets.concatenate_datasets(parts)
            result[split] = attach_schema(
                joined, schema, name="+".join(datasets_by_name), options=options, sources=list(datasets_by_name)
            )
    return datasets.DatasetDict(result)


class TemperatureSampler:
    """Draws rows of several data sets so that a small one is not lost beside a large one.

    A data set of n rows is drawn from with probability proportional to n ** (1 / temperature): 1 leaves shares as they
    are, a very large temperature draws from all equally often. Within a data set, no row is drawn a second time before
    all of it were. An epoch has as many draws as there are rows.

    To be given to a `DataLoader` as `sampler`; the order depends on seed and epoch alone.

    Args:
        sources: the data set of each row, `(N,)`: the column `dataset`.
        temperature: 1 or more.
        seed: of the drawing.

    Raises:
        ValueError: no row, or a temperature below 1.
    """

    def __init__(self, sources: Any, temperature: float = 2.0, seed: int = 0) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature >= 1:
            raise ParValueError(f"temperature is {shorten(temperature)}, expected a number of 1 or more")
        self.names, index = np.unique(np.asarray(sources), return_inverse=True)
        if not len(index):
            raise ParValueError("sources is empty, expected the data set of each row")
        self._rows = [np.flatnonzero(index == number) for number in range(len(self.names))]
        weights = np.array([len(rows) for rows in self._rows], float) ** (1 / temperature)
        self.shares = dict(zip(self.names.tolist(), (weights / weights.sum()).tolist()))
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch, counted from 0; `transformers.Trainer` calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        drawn = generator.choice(len(self._rows), size=len(self), p=list(self.shares.values()))
        order = np.empty(len(self), np.int64)
        for number, rows in enumerate(self._rows):
            places = np.flatnonzero(drawn == number)
            rounds = -(-len(places) // len(rows))
            order[places] = np.concatenate([generator.permutation(rows) for _ in range(max(rounds, 1))])[: len(places)]
        return iter(order.tolist())


def _extend(first: Attribute, one: Attribute, indices: np.ndarray) -> tuple[Attribute, np.ndarray]:
    """The shared attribute with the labels of `one` that it lacks (-1 in `indices`), and the indices of all labels."""
    missing = np.flatnonzero(indices < 0)
    if not len(missing):
        return first, indices
    indices = indices.copy()
    indices[missing] = first.num_labels + np.arange(len(missing))
    labels = (*first.labels, *(one.labels[label] for label in missing))
    prompts = (*first.prompts, *(one.prompts[label] for label in missing))
    mirror = first.mirror
    if mirror is not None or isinstance(one.mirror, tuple):
        flips = dict(enumerate(mirror or range(first.num_labels)))
        own = one.mirror if isinstance(one.mirror, tuple) else range(one.num_labels)
        flips |= {int(indices[label]): int(indices[own[label]]) for label in missing}
        flips |= {flipped: label for label, flipped in list(flips.items())}
        mirror = tuple(flips[label] for label in range(len(labels)))
    return replace(first, labels=labels, prompts=prompts, mirror=mirror), indices


def _with_names_of(united, one: Attribute, schema, columns, groups) -> Attribute:
    """The attribute, naming others as the united label space does."""
    mirror, requires = one.mirror, one.requires
    if isinstance(mirror, str):
        mirror = united[columns[mirror][0]].name
    if requires is not None:
        column, indices = columns[requires[0]]
        labels = [indices[schema[requires[0]].labels.index(label)] for label in requires[1:]]
        requires = (united[column].name, *(united[column].labels[label] for label in labels))
    # "age" of two data sets are other ages: both may be positive.
    return replace(one, mirror=mirror, requires=requires, group=groups.get(one.group))


def _united_rows(split, name: str, places, schema: AttributeSchema):
    import pyarrow

    datasets = require("datasets", "train")
    from .image_column import PedestrianImage

    given = read_labels(split)
    labels = np.full((len(split), len(schema)), UNKNOWN_LABEL, np.int64)
    for position, (column, indices) in enumerate(places):
        known = given[:, position] != UNKNOWN_LABEL
        labels[known, column] = indices[given[known, position]]
    persons = split["person_id"] if "person_id" in split.column_names else [None] * len(split)
    texts = {
        "image_id": [f"{name}/{image}" for image in split["image_id"]],
        "person_id": [None if person is None else f"{name}/{person}" for person in persons],
        SOURCE: [name] * len(split),
    }
    rows = split.select_columns(["image"]).cast_column("image", PedestrianImage())
    for column, values in texts.items():
        rows = rows.add_column(column, pyarrow.array(values, pyarrow.string()), feature=datasets.Value("string"))
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(labels.ravel(), pyarrow.int64()), len(schema))
    return rows.add_column("labels", values, feature=datasets.List(datasets.Value("int64"), length=len(schema)))


def _notes(data) -> dict[str, Any]:
    split = next(iter(data.values()))
    return json.loads(split.info.description)
