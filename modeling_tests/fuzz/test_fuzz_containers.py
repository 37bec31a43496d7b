"""The pipeline over every kind of container: sorted, filtered, lazy, typed; and those without an order."""

import io
import os
import tempfile
from collections import UserList, deque
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow
from hypothesis import strategies as st
from transformers.pipelines.pt_utils import KeyDataset

from modeling_tests.crops import Rows, close, crop, make_pipe
from modeling_tests.fuzz.fuzzing import Area


AREA = Area("containers", "the answer to each element alone")
PIPE = make_pipe()
FOLDER = tempfile.TemporaryDirectory()
IMAGES = [crop(seed, size=(9 + 3 * seed, 40 - 4 * seed)) for seed in range(6)]
PATHS = [os.path.join(FOLDER.name, f"{index}.png") for index in range(6)]
for _path, _image in zip(PATHS, IMAGES):
    _image.save(_path)
BYTES = [Path(path).read_bytes() for path in PATHS]
ANSWERS = [PIPE(path) for path in PATHS]
BOXES = [[1, 1, 6, 9 + index] for index in range(6)]
BOXED = [PIPE(path, boxes=[box]) for path, box in zip(PATHS, BOXES)]


def objects(items):
    """An array of objects, which NumPy would otherwise make of its own accord."""
    array = np.empty(len(items), object)
    array[:] = items
    return array


def column(items, cast=None):
    data = datasets.Dataset.from_dict({"image": list(items)})
    return data if cast is None else data.cast_column("image", cast)


# Of any elements, and of paths only. A Series has labels that are not positions.
ANY = {
    "list": list,
    "tuple": tuple,
    "generator": lambda items: (item for item in items),
    "iterator": iter,
    "deque": deque,
    "user list": UserList,
    "values": lambda items: dict(enumerate(items)).values(),
    "objects": objects,
    "reversed objects": lambda items: objects(items[::-1])[::-1],
    "series": lambda items: pandas.Series(items, index=range(10, 10 + len(items)), dtype=object),
    "sorted series": lambda items: pandas.Series(items[::-1], dtype=object).iloc[::-1],
    "filtered series": lambda items: pandas.Series([None, *items, None], dtype=object)[1:-1],
    "labelled series": lambda items: pandas.Series(items, index=[*range(len(items))][::-1], dtype=object),
    "named series": lambda items: pandas.Series(items, index=list("abcdefghijkl")[: len(items)], dtype=object),
    "rows by position": Rows,
    "rows of dicts": lambda items: [{"image": item} for item in items],
    "key of rows": lambda items: KeyDataset(Rows([{"x": item} for item in items]), "x"),
}
OF_TEXT = {
    "texts": np.array,
    "reversed texts": lambda items: np.array(items[::-1])[::-1],
    "index": pandas.Index,
    "string series": lambda items: pandas.Series(items, dtype="string")[::-1][::-1],
    "categories": lambda items: pandas.Series(items, dtype="category"),
    "arrow": pyarrow.array,
    "chunked arrow": lambda items: pyarrow.chunked_array([items[:2], items[2:]], pyarrow.string()),
    "sliced arrow": lambda items: pyarrow.array([None, *items])[1:],
    "keys": lambda items: dict.fromkeys(items).keys(),
    "data set column": lambda items: column(items)["image"],
    "data set": lambda items: column(items, datasets.Image()),
    "key of data set": lambda items: KeyDataset(column(items, datasets.Image()), "image"),
    "stream of data": lambda items: column(items).to_iterable_dataset(),
}
ELEMENTS = {"paths": PATHS, "bytes": BYTES, "images": IMAGES, "arrays": [np.asarray(image) for image in IMAGES]}
options = {
    "chosen": st.lists(st.integers(0, 5), min_size=1, max_size=6),
    "batch_size": st.integers(1, 4),
    "threads": st.integers(0, 2),
}


def judge(container, expected, batch_size, threads, **more):
    AREA.judge(
        lambda: list(PIPE(container, batch_size=batch_size, num_workers=threads, **more)),
        lambda found: len(found) == len(expected) and close(found, expected),
        refusals=(),
    )


@AREA.fuzz(700, **options, kind=st.sampled_from(sorted(ANY)), element=st.sampled_from(sorted(ELEMENTS)))
def test_containers_of_anything(chosen, batch_size, threads, kind, element):
    container = ANY[kind]([ELEMENTS[element][index] for index in chosen])
    judge(container, [ANSWERS[index] for index in chosen], batch_size, threads)


@AREA.fuzz(500, **options, kind=st.sampled_from(sorted(OF_TEXT)))
def test_containers_of_paths(chosen, batch_size, threads, kind):
    chosen = list(dict.fromkeys(chosen)) if kind == "keys" else chosen
    judge(OF_TEXT[kind]([PATHS[index] for index in chosen]), [ANSWERS[index] for index in chosen], batch_size, threads)


@AREA.fuzz(400, **options, kind=st.sampled_from(sorted(ANY)), of_boxes=st.sampled_from(sorted(ANY)))
def test_boxes_go_along(chosen, batch_size, threads, kind, of_boxes):
    boxes = [[BOXES[index]] for index in chosen]
    boxes = boxes if "rows" in of_boxes else ANY[of_boxes](boxes)
    container = ANY[kind]([PATHS[index] for index in chosen])
    judge(container, [BOXED[index] for index in chosen], batch_size, threads, boxes=boxes)


@AREA.fuzz(400, **options, kind=st.sampled_from(sorted(ANY)), element=st.sampled_from(sorted(ELEMENTS)))
def test_the_processor_takes_them_too(chosen, batch_size, threads, kind, element):
    if "rows" in kind:
        return  # rows are for the pipeline
    processor = PIPE.processor
    expected = processor(images=[IMAGES[index] for index in chosen])["pixel_values"]
    container = ANY[kind]([ELEMENTS[element][index] for index in chosen])
    AREA.judge(
        lambda: processor(images=container)["pixel_values"],
        lambda found: found.shape == expected.shape and (found - expected).abs().max() < 1e-5,
        refusals=(),
    )


WITHOUT_ORDER = {
    "set": set,
    "frozenset": frozenset,
    "dict of images": lambda paths: {path: path for path in paths},
    "table": lambda paths: pandas.DataFrame({"image": paths}),
    "arrow table": lambda paths: pyarrow.table({"image": paths}),
    "record batch": lambda paths: pyarrow.RecordBatch.from_pydict({"image": paths}),
    "bytes of fixed width": lambda paths: np.array([path.encode() for path in paths]),
    "matrix of paths": lambda paths: np.array([paths, paths]),
    "number": len,
    "nothing": lambda paths: None,
    "image in a file of text": lambda paths: io.StringIO(paths[0]),
    "dict of splits": lambda paths: datasets.DatasetDict(train=column(paths)),
    "one is missing": lambda paths: [*paths, None],
    "one is a number": lambda paths: pandas.Series([*paths, float("nan")], dtype=object),
    "lists in a list": lambda paths: [paths],
}


@AREA.fuzz(300, **options, kind=st.sampled_from(sorted(WITHOUT_ORDER)))
def test_what_has_no_order_or_no_images_is_refused(chosen, batch_size, threads, kind):
    container = WITHOUT_ORDER[kind]([PATHS[index] for index in chosen])
    AREA.judge(
        lambda: list(PIPE(container, batch_size=batch_size, num_workers=threads)),
        lambda found: False,
        must_refuse=True,
    )
