"""`load_par_dataset`: every data set by name, as a `datasets.DatasetDict` that carries its schema."""

import difflib
import inspect
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.images.regions import join_region
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import require

from .carried import attach_schema, dataset_schema
from .prepared import load_hub_dataset
from .readers.files import check_image_files, links_may_leave
from .readers.label_check import read_names
from .readers.records import PedestrianRecord
from .readers.registry import READERS, DatasetReader


if TYPE_CHECKING:
    import datasets


__all__ = ["list_par_datasets", "load_par_dataset", "own_options"]

logger = logging.getLogger(__name__)

_MISSING_CHOICES = ("error", "skip")
# Not read from files.
_MADE = {
    "rendered": "rendered", "synthetic": "drawn", "rendered_tracklets": "rendered", "synthetic_tracklets": "drawn",
}  # fmt: skip


def list_par_datasets() -> list[str]:
    """The names that `load_par_dataset` takes, sorted."""
    return sorted([*READERS, "hub", *_MADE])


def load_par_dataset(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    schema: AttributeSchema | list | None = None,
    partition: int = 0,
    missing: str = "error",
    seed: int = 0,
    follow_links: bool = False,
    **options: Any,
) -> "datasets.DatasetDict":
    """Loads a data set for pedestrian attribute recognition.

    Args:
        name: `"pa100k"`, `"peta35"`, `"peta65"`, `"market1501"`, `"market1501_30"`, `"mivia5"`, `"rapv1"`, `"rapv2"`,
            `"upar"` (original layouts: see the readers in `vlm_par_hf.data`), `"folder"` (your own data, see
            `read_folder`), `"hub"` (`image` and `labels` as `vlm-par prepare` writes them, or one column per
            attribute), `"synthetic"` (drawings) or `"rendered"` (3D people, rendered once and then kept). Of tracklets
            `"mars"`, `"duke_video"`, `"tracklets"` (folders of frames, see `read_tracklets`), `"rendered_tracklets"`
            and `"synthetic_tracklets"`: rows are frames, and `TrackletDataset` gives the tracklets.
        root: folder of the data set, for `"hub"` also a repository `"org/name"`; not for `"synthetic"` and
            `"rendered"`.
        schema: the attributes to keep, in this order; their questions and prompts may be your own, their names and
            labels must be those of the data set. None: all, as the data set has them.
        partition: which of the data set's official partitions, from 0. PETA and RAP have five, the others one.
        missing: `"error"` or `"skip"`: what to do about an image file that is listed but does not exist. Skipped
            images are logged and counted, per split, in the `info.description` of the result.
        seed: of the random division of data that have no official one (a folder that names no splits, PETA without its
            partitions, the validation split of Market-1501 and of RAP version 1; the `info.description` says so), and
            of the synthetic people.
        follow_links: whether links below `root` may lead out of it. They are refused unless you say so: a link in a
            data set that somebody else made could copy a private picture into yours.
        options: for `"folder"` `negative` and `unknown`, the cells that say "no" and "not annotated" where a table
            uses -1, `box_format`, and `ignore`, columns that are not read (see `read_folder`); for `"hub"` `revision`,
            `negative` and `unknown`; for `"synthetic"` and `"rendered"` keywords of `build_synthetic_dataset` and
            `build_rendered_dataset` (such as `num_train`), likewise for the tracklets of both; for `"mars"`,
            `"duke_video"` and `"tracklets"` `num_frames`, the most frames of a tracklet; for the published data sets
            `ignore`, a list of names: of a complete one, an attribute without a positive and a label in the files that
            no attribute takes are errors
            unless they are named there. Of other data they are a warning and an entry of the `info.description`.

    Returns:
        A `datasets.DatasetDict` with the splits train, validation and test (a folder: those that it has; Market-1501
        also has `query`). Columns: `image` (decoded when accessed: a PIL RGB image, or an error that names the file),
        `image_id` (str), `labels` (A int64: class index, -100 if unknown), and `person_id`, `camera_id` (int64 or str)
        if known; of tracklets also `tracklet_id` (str) and `frame` (int64). `dataset_schema(result)` gives the schema.

    Raises:
        FileNotFoundError: `root`, a table or (with `missing="error"`) an image does not exist.
        ValueError: unknown name, a wrong argument, files with unexpected content, or an image that is a link out of
            `root` or no regular file; the message names them.
        TypeError: an unknown keyword.
        ImportError: the extra `train` is not installed.
    """
    if missing not in _MISSING_CHOICES:
        raise ParValueError(f"missing is {missing!r}; expected one of {_MISSING_CHOICES}")
    if schema is not None and not isinstance(schema, AttributeSchema):
        schema = AttributeSchema(schema)
    require("datasets", "train")
    if name in _MADE:
        return _load_made(name, root, schema, partition, seed, options)
    if name == "hub":
        return _load_hub(root, schema, partition, follow_links, options)
    if name not in READERS:
        near = difflib.get_close_matches(str(name), list_par_datasets(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ParValueError(f"name is {name!r}; expected one of {list_par_datasets()}{hint}")
    reader = READERS[name]
    unknown_options = sorted(set(options) - set(reader.options))
    if unknown_options:
        raise ParTypeError(f"load_par_dataset({name!r}) got an unexpected keyword argument {unknown_options[0]!r}")
    if "ignore" in options:
        options["ignore"] = read_names(options["ignore"])
    _check_partition(partition, reader.num_partitions, name)
    if root is None:
        raise ParValueError(f"root is None; {name!r} needs root={reader.how_to_get}")
    root = os.path.abspath(os.fspath(root))
    if not os.path.isdir(root):
        raise ParFileNotFoundError(f"root {root!r} is no folder; expected {reader.how_to_get}")

    with links_may_leave(follow_links):
        own_schema, splits, remarks = reader.read(root, schema, partition, seed, **options)
        splits, skipped = _drop_missing(splits, missing, root)
    _check_splits(splits, name)
    options = {"partition": partition, "seed": seed, **options}
    notes = {"name": name, "options": options, "skipped_images": skipped, **remarks}
    result = {split: _to_dataset(records, own_schema, splits, reader, notes) for split, records in splits.items()}
    return _select_attributes(require("datasets", "train").DatasetDict(result), schema, own_schema)


def own_options(name: str) -> set[str]:
    """The options of `load_par_dataset` that are for the data set of this name only."""
    if name == "hub":
        return {"revision", "negative", "unknown"}
    if name in _MADE:
        return set(inspect.signature(_builder(name)).parameters) - {"seed"}
    return set(READERS[name].options) if name in READERS else set()


def _builder(name: str):
    if name == "rendered":
        from .synthetic.rendered import build_rendered_dataset as build
    elif name == "rendered_tracklets":
        from .synthetic.tracklets import build_rendered_tracklets as build
    elif name == "synthetic_tracklets":
        from .synthetic.tracklets import build_synthetic_tracklets as build
    else:
        from .synthetic import build_synthetic_dataset as build
    return build


def _load_made(name, root, schema, partition, seed, options):
    if root is not None:
        raise ParValueError(f"root is {str(root)!r}; {name!r} is {_MADE[name]}, not read, and takes no root")
    _check_partition(partition, 1, name)
    made = _builder(name)(seed=seed, **options)
    return _select_attributes(made, schema, dataset_schema(made))


def _load_hub(root, schema, partition, follow_links, options):
    _check_partition(partition, 1, "hub")
    if root is None:
        raise ParValueError("root is None; 'hub' needs root='org/name' on the Hub, or a folder of parquet files")
    unknown = sorted(set(options) - own_options("hub"))
    if unknown:
        raise ParTypeError(f"load_par_dataset('hub') got an unexpected keyword argument {unknown[0]!r}")
    with links_may_leave(follow_links):
        own_schema, splits, remarks = load_hub_dataset(root, schema, **options)
    loaded = {split: attach_schema(dataset, own_schema, **remarks) for split, dataset in splits.items()}
    return _select_attributes(require("datasets", "train").DatasetDict(loaded), schema, own_schema)


def _check_partition(partition: int, count: int, name: str) -> None:
    if isinstance(partition, bool) or not isinstance(partition, int) or not 0 <= partition < count:
        raise ParValueError(
            f"partition is {partition!r}; {name!r} has {count}: expected an integer from 0 to {count - 1}"
        )


def _drop_missing(
    splits: dict[str, list[PedestrianRecord]], missing: str, root: str
) -> tuple[dict[str, list[PedestrianRecord]], dict[str, int]]:
    paths = [record.image for records in splits.values() for record in records]
    found = dict(zip(paths, check_image_files(root, paths)))
    kept = {split: [record for record in records if found[record.image]] for split, records in splits.items()}
    skipped = {split: len(splits[split]) - len(kept[split]) for split in splits}
    if any(skipped.values()):
        absent = next(r for records in splits.values() for r in records if not found[r.image])
        total = sum(len(records) for records in splits.values())
        counted = f"{sum(skipped.values())} of {total} listed images do not exist, the first is {absent.image!r}"
        if missing == "error":
            raise ParFileNotFoundError(f'{counted}; check root={root!r}, or pass missing="skip" to go on without them')
        logger.warning("skipped: %s (per split: %s)", counted, skipped)
    return kept, skipped


def _check_splits(splits: dict[str, list[PedestrianRecord]], name: str) -> None:
    split_of_image: dict[str, str] = {}
    split_of_person: dict[int | str, str] = {}
    shared_persons = set()
    for split, records in splits.items():
        for record in records:
            other = split_of_image.setdefault(record.image_id, split)
            if other != split:
                raise ParValueError(f"{name!r}: image {record.image_id!r} is in both {other!r} and {split!r}")
            # Query images show people of the test gallery; that is how retrieval is measured.
            group = "test" if split == "query" else split
            if record.person_id is not None and split_of_person.setdefault(record.person_id, group) != group:
                shared_persons.add(record.person_id)
    if shared_persons:
        logger.warning(
            "%s: %d persons appear in more than one split: results measure recognition of known people",
            name,
            len(shared_persons),
        )


def _to_dataset(
    records: list[PedestrianRecord],
    schema: AttributeSchema,
    splits: dict[str, list[PedestrianRecord]],
    reader: DatasetReader,
    notes: dict[str, Any],
) -> "datasets.Dataset":
    import datasets
    import pyarrow

    from .image_column import PedestrianImage

    labels = np.concatenate([record.labels for record in records]) if records else np.empty(0, np.int64)
    for record in records:
        try:
            record.image.encode()
        except UnicodeEncodeError:  # Arrow holds UTF-8
            raise ParValueError(f"the file name {record.image!r} is not UTF-8; expected it to be renamed") from None
    # With the part of the picture that shows the person, which `open_image` cuts out.
    named = (one.image if one.region is None else join_region(one.image, one.region) for one in records)
    paths = pyarrow.array(named, pyarrow.string())
    no_bytes = pyarrow.nulls(len(records), pyarrow.binary())
    columns = {
        "image": pyarrow.StructArray.from_arrays([no_bytes, paths], names=["bytes", "path"]),
        "image_id": pyarrow.array([record.image_id for record in records], pyarrow.string()),
        "labels": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(labels, pyarrow.int64()), len(schema)),
    }
    features = {
        "image": PedestrianImage(),
        "image_id": datasets.Value("string"),
        "labels": datasets.List(datasets.Value("int64"), length=len(schema)),
    }
    everything = [record for part in splits.values() for record in part]
    for field in ("person_id", "camera_id", "tracklet_id", "frame"):
        kinds = {type(getattr(record, field)) for record in everything} - {type(None)}
        if kinds:  # decided over all splits, so that every split has the same columns and types
            as_text = kinds != {int}
            values = [getattr(record, field) for record in records]
            values = [str(value) if as_text and value is not None else value for value in values]
            columns[field] = pyarrow.array(values, pyarrow.string() if as_text else pyarrow.int64())
            features[field] = datasets.Value("string" if as_text else "int64")
    info = datasets.DatasetInfo(
        features=datasets.Features(features),
        description=json.dumps({**notes, "attributes": schema.to_list()}, ensure_ascii=False),
        homepage=reader.homepage,
        license=reader.license,
        citation=reader.citation,
    )
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(columns)), info=info)


def _select_attributes(
    splits: "datasets.DatasetDict", schema: AttributeSchema | None, own_schema: AttributeSchema
) -> "datasets.DatasetDict":
    """The data set, whose schema is `own_schema`, with the attributes that `schema` names, in its order."""
    if schema is None or schema == own_schema:
        return splits
    for attribute in schema:
        if attribute.name not in own_schema:
            near = difflib.get_close_matches(attribute.name, own_schema.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {list(own_schema.names)}"
            raise ParValueError(f"schema names {attribute.name!r}, which the data set does not label{hint}")
        if attribute.labels != own_schema[attribute.name].labels:  # a class index would mean something else
            raise ParValueError(
                f"schema gives {attribute.name!r} the labels {list(attribute.labels)}; the data set has "
                f"{list(own_schema[attribute.name].labels)}"
            )
    import datasets
    import pyarrow

    order = [own_schema.index(name) for name in schema.names]
    result = {}
    for split, dataset in splits.items():
        column = dataset.with_format("numpy", columns=["labels"])[:]["labels"] if len(dataset) else []
        labels = np.asarray(column, np.int64).reshape(-1, len(own_schema))[:, order]
        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(labels.ravel(), pyarrow.int64()), len(schema))
        feature = datasets.List(datasets.Value("int64"), length=len(schema))
        names = dataset.column_names
        replaced = dataset.remove_columns("labels").add_column("labels", values, feature=feature).select_columns(names)
        notes = json.loads(dataset.info.description)
        notes.pop("attributes")
        result[split] = attach_schema(replaced, schema, **notes)
    return datasets.DatasetDict(result)
