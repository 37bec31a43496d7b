"""Data sets with image and labels from a folder: the schema beside them, labels checked, pictures by our opener."""

import json
import os

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from vlm_par_hf.data import attach_schema, dataset_schema, load_par_dataset
from vlm_par_hf.data.prepared import _check_path
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = AttributeSchema(
    [
        {"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"]},
        {"name": "Age", "question": "how old?", "labels": ["young", "adult", "old"], "prompts": ["a", "b", "c"]},
    ]
)


def make_split(labels, feature=None):
    rows = {
        "image": [Image.new("RGB", (6, 14), (number, 0, 0)) for number in range(len(labels))],
        "labels": labels,
        "note": [f"row {number}" for number in range(len(labels))],
    }
    features = {"image": datasets.Image(), "labels": feature or datasets.List(datasets.Value("int64"))}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({**features, "note": datasets.Value("string")}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(root, splits, schema=SCHEMA, place="data"):
    (root / place).mkdir(parents=True, exist_ok=True)
    for split, labels in splits.items():
        rows = labels if isinstance(labels, datasets.Dataset) else make_split(labels)
        rows.to_parquet(root / place / f"{split}-00000-of-00001.parquet")
    if schema is not None:
        schema.to_json(root / "schema.json")
    return root


@pytest.mark.parametrize("place", ["data", "."])
def test_a_folder_of_parquet(tmp_path, place):
    root = write(tmp_path / "set", {"train": [[0, 2], [1, -100]], "val": [[1, 0]]}, place=place)
    data = load_par_dataset("hub", root)
    assert list(data) == ["train", "validation"] and dataset_schema(data) == SCHEMA
    assert data["train"]["labels"][:] == [[0, 2], [1, -100]]
    assert data["train"].features["labels"] == datasets.List(datasets.Value("int64"), length=2)
    assert data["train"].column_names == ["image", "labels", "note"]
    assert data["train"][1]["image"].getpixel((0, 0)) == (1, 0, 0)
    assert type(data["train"].features["image"]).__name__ == "PedestrianImage"


def test_attributes_can_be_chosen_and_a_missing_schema_given(tmp_path):
    root = write(tmp_path / "set", {"train": [[0, 2], [1, 1]]})
    chosen = load_par_dataset("hub", root, schema=SCHEMA.subset(["Age"]))
    assert chosen["train"]["labels"][:] == [[2], [1]]
    (root / "schema.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no schema.json, so nothing says what its labels mean"):
        load_par_dataset("hub", root)
    assert dataset_schema(load_par_dataset("hub", root, schema=SCHEMA)) == SCHEMA


def test_what_save_to_disk_wrote(tmp_path):
    plain = make_split([[0, 2]])
    datasets.DatasetDict(test=attach_schema(plain, SCHEMA)).save_to_disk(tmp_path / "saved")
    data = load_par_dataset("hub", tmp_path / "saved")
    assert dataset_schema(data) == SCHEMA and data["test"]["labels"][:] == [[0, 2]]


@pytest.mark.parametrize(
    "feature", [datasets.Value("int8"), datasets.Value("bool"), datasets.ClassLabel(names=["no", "yes"])]
)
def test_other_ways_to_store_labels(tmp_path, feature):
    labels = [[False, True], [True, False]] if feature.dtype == "bool" else [[0, 1], [1, 0]]
    root = write(tmp_path / "set", {"train": make_split(labels, datasets.List(feature))})
    data = load_par_dataset("hub", root)
    assert np.array_equal(data["train"].with_format("numpy")["labels"][:], [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 3]], "train: labels holds 3 for attribute 'Age' of row 0, expected 0 to 2"),
        ([[0, 1], [-1, 0]], "labels holds -1 for attribute 'Hat' of row 1"),
        ([[0, 1, 0]], r"rows have \[3\] labels; the schema has 2 attributes"),
        ([[0, 1], [0]], r"rows have \[1, 2\] labels"),
    ],
)
def test_wrong_labels_are_named(tmp_path, rows, message):
    root = write(tmp_path / "set", {"train": rows})
    with pytest.raises(ValueError, match=message):
        load_par_dataset("hub", root)


def with_columns(count=2, **columns):
    """A split with other columns than `labels`: (values, feature) by name."""
    split = make_split([[0, 0]] * count).remove_columns("labels")
    for name, (values, feature) in columns.items():
        split = split.add_column(name, values, feature=feature)
    return split


TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")
TEXTS = datasets.List(TEXT)


@pytest.mark.parametrize(
    "columns",
    [
        {"Hat": ([1, None], NUMBER), "Age": ([2, 0], NUMBER)},
        {"Age": (["old", "Young"], TEXT), "Hat": (["yes", ""], TEXT)},
        {
            "Hat": ([True, None], datasets.Value("bool")),
            "Age": ([0, 2], datasets.ClassLabel(names=["old", "x", "young"])),
        },
        {"labels": ([{"Hat": "yes", "Age": 2}, {"Hat": None, "Age": 0}], {"Hat": TEXT, "Age": NUMBER})},
        {"labels": (["[1, 2]", "-100 0"], TEXT)},
        {"labels": ([["yes", "old"], ["unknown", "young"]], TEXTS)},
        {"label": ([[1, 2], [-100, 0]], datasets.List(NUMBER))},
        {"label": ([5, 6], NUMBER), "Hat": ([1, None], NUMBER), "Age": ([2, 0], NUMBER)},
    ],
    ids=["columns of indices", "of texts", "of classes", "struct", "text", "list of texts", "label", "label beside"],
)
def test_other_forms_of_labels(tmp_path, columns):
    root = write(tmp_path / "set", {"train": with_columns(**columns)})
    data = load_par_dataset("hub", root)["train"]
    assert data["labels"][:] == [[1, 2], [-100, 0]]
    assert data.features["labels"] == datasets.List(NUMBER, length=2)
    assert set(data.column_names) == {"image", "note", "labels"} | ({"label"} if len(columns) == 3 else set())


def test_names_of_what_people_have(tmp_path):
    rows = with_columns(3, labels=([["Hat", "old"], [], None], TEXTS))
    data = load_par_dataset("hub", write(tmp_path / "set", {"train": rows}))["train"]
    assert data["labels"][:] == [[1, 2], [0, -100], [-100, -100]]


def test_one_attribute_needs_no_list(tmp_path):
    rows = with_columns(label=([1, 0], datasets.ClassLabel(names=["young", "old"])))
    schema = AttributeSchema.from_texts({"Age": "old | young"})
    root = write(tmp_path / "set", {"train": rows}, schema)
    assert load_par_dataset("hub", root)["train"]["labels"][:] == [[0], [1]]


def test_the_only_column_with_pictures_is_the_image(tmp_path):
    root = write(tmp_path / "set", {"train": make_split([[0, 1]]).rename_column("image", "crop")})
    assert load_par_dataset("hub", root)["train"][0]["image"].size == (6, 14)
    pictures = [Image.new("RGB", (6, 14))]
    features = datasets.Features({"crop": datasets.Image(), "mask": datasets.Image(), "labels": datasets.List(NUMBER)})
    twice = datasets.Dataset.from_dict({"crop": pictures, "mask": pictures, "labels": [[0, 1]]}, features=features)
    root = write(tmp_path / "other", {"train": twice})
    with pytest.raises(ValueError, match=r"no column 'image'; which of \['crop', 'mask'\] is it"):
        load_par_dataset("hub", root)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"hat": ([1, 0], NUMBER), "Age": ([2, 0], NUMBER)}, "no column 'Hat' .*did you mean the column 'hat'"),
        (
            {"tags": ([1, 0], NUMBER)},
            r"train: no column 'labels', and no column 'Hat' .*it has \['image', 'note', 'tags'\]",
        ),
        ({"Hat": ([1, 2], NUMBER), "Age": ([2, 0], NUMBER)}, "train, row 1: column 'Hat' is 2; expected one of"),
        ({"Hat": ([1, -1], NUMBER), "Age": ([2, 0], NUMBER)}, "train, row 1: column 'Hat' holds -1.*negative=-1"),
        ({"labels": (["Hat", "Hut"], TEXT)}, "train, row 1: labels names 'Hut', .*did you mean 'Hat'"),
        ({"labels": ([1, 0], NUMBER)}, "train, row 0: labels is 1; expected one label for each of the 2"),
    ],
)
def test_wrong_columns_are_named(tmp_path, columns, message):
    root = write(tmp_path / "set", {"train": with_columns(**columns)})
    with pytest.raises(ValueError, match=message):
        load_par_dataset("hub", root)


def test_minus_one_in_columns_as_the_user_says(tmp_path):
    rows = with_columns(Hat=([1, -1], NUMBER), Age=([2, 0], NUMBER))
    root = write(tmp_path / "set", {"train": rows})
    assert load_par_dataset("hub", root, negative=-1)["train"]["labels"][:] == [[1, 2], [0, 0]]
    assert load_par_dataset("hub", root, unknown=-1)["train"]["labels"][:] == [[1, 2], [-100, 0]]


def test_a_column_of_other_things_is_no_image(tmp_path):
    root = write(
        tmp_path / "other", {"train": make_split([[0, 1]]).remove_columns("image").add_column("image", ["a"])}
    )
    with pytest.raises(ValueError, match="column 'image' is .*expected datasets.Image"):
        load_par_dataset("hub", root)


@pytest.mark.parametrize("content", ["half", b"", b"<!DOCTYPE html>\n<html><body>404</body></html>\n"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = write(tmp_path / "set", {"train": [[0, 1]]}) / "data" / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match="train-00000-of-00001.parquet cannot be read as a parquet file"):
        load_par_dataset("hub", path.parents[1])
    # Its end is whole, its beginning is not: found when the rows are read.
    path.write_bytes(whole[:4] + bytes(100) + whole[104:])
    with pytest.raises((ValueError, OSError), match="the data set '.*set' c"):
        load_par_dataset("hub", path.parents[1])


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_data_sets_mixed_are_named(tmp_path, split):
    root = write(tmp_path / "set", {"train": [[0, 1]]})
    other = make_split([[1, 1]]).rename_column("note", "camera_id")
    other.to_parquet(root / "data" / f"{split}-00001-of-00002.parquet")
    first = root / "data" / "train-00000-of-00001.parquet"
    if split == "train":
        first.rename(first.with_name("train-00000-of-00002.parquet"))
    else:
        (root / "data" / "test-00001-of-00002.parquet").rename(root / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="has the columns .*, but .*: are these files of two data sets"):
        load_par_dataset("hub", root)


def test_the_same_columns_of_other_types(tmp_path):
    root = write(tmp_path / "set", {"train": [[0, 1]], "test": [[0, 1]]})
    other = make_split([[0, 1]]).cast_column("note", datasets.Value("string"))
    rows = {**other.to_dict(), "note": [{"a": 1}], "image": [None]}
    datasets.Dataset.from_dict(rows).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="the files of the data set '.*set' cannot be read as one"):
        load_par_dataset("hub", root)


@pytest.mark.parametrize("content", ["[{'name': 'caf\xe9'}]".encode("latin-1"), b"<!DOCTYPE html><html></html>"])
def test_a_schema_that_is_none(tmp_path, content):
    root = write(tmp_path / "set", {"train": [[0, 1]]})
    (root / "schema.json").write_bytes(content)
    with pytest.raises(ValueError, match="schema.json is not JSON"):
        load_par_dataset("hub", root)


def test_data_keep_the_name_that_they_were_prepared_under(tmp_path):
    root = write(tmp_path / "set", {"train": [[0, 1]]})

    def notes():
        return json.loads(load_par_dataset("hub", root)["train"].info.description)

    assert notes()["name"] == "set"
    for report, name in (
        ({"notes": {"name": "pa100k", "skipped_images": {"train": 2}}}, "pa100k"),
        ({"notes": {"name": "folder"}}, "set"),  # how they were read, not what they are
        ({"notes": ["somebody else's"]}, "set"),
        (["somebody else's"], "set"),
    ):
        (root / "report.json").write_text(json.dumps(report))
        assert notes()["name"] == name
    (root / "report.json").write_text("no JSON")
    assert notes()["name"] == "set" and "skipped_images" not in notes()


def test_half_downloaded_and_nothing(tmp_path):
    root = write(tmp_path / "set", {"train": [[0, 1]]})
    path = root / "data" / "train-00000-of-00001.parquet"
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    with pytest.raises(FileNotFoundError, match="1 of the 2 files of 'train'"):
        load_par_dataset("hub", root)
    with pytest.raises(FileNotFoundError, match="holds no parquet file"):
        load_par_dataset("hub", tmp_path)
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a repository like 'org/name'"):
        load_par_dataset("hub", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root is None; 'hub' needs root='org/name'"):
        load_par_dataset("hub")
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_train'"):
        load_par_dataset("hub", root, num_train=3)


def test_an_image_that_is_a_path_out_of_the_data_is_refused(tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (6, 14)).save(secret)
    rows = {"image": [{"path": str(secret), "bytes": None}], "labels": [[0, 1]]}
    feature = {"image": datasets.Image(decode=False), "labels": datasets.List(datasets.Value("int64"))}
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    SCHEMA.to_json(root / "schema.json")
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(feature))
    table = split.data.table.cast(datasets.Features({**feature, "image": datasets.Image()}).arrow_schema)
    pyarrow.parquet.write_table(table, root / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match="train: the image of row 0 is the path '.*secret.png' out of .*expected the bytes"
    ):
        load_par_dataset("hub", root)


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.png", "../../a.png", "/dev/zero"])
def test_other_paths_in_the_data_are_refused(tmp_path, path):
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(ValueError, match="the image of row 3 is the path .* out of"):
        _check_path(path, "the image of row 3", [folder])
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ValueError, match="pipe.png', is no regular file"):
        _check_path(str(folder / "pipe.png"), "the image of row 3", [folder])


def test_ids_have_one_form_over_all_splits(tmp_path):
    def split(persons):
        return make_split([[0, 1]] * len(persons)).add_column("person_id", persons)

    root = write(tmp_path / "set", {"train": split(["7", "0007", "-1"]), "test": split(["8.0", "unknown", ""])})
    data = load_par_dataset("hub", root)
    assert data["train"]["person_id"][:] == [7, 7, None] and data["test"]["person_id"][:] == [8, None, None]
    assert data["train"].column_names == ["image", "labels", "note", "person_id"]
    assert data["train"].features["person_id"].dtype == data["test"].features["person_id"].dtype == "int64"
    kept = load_par_dataset("hub", write(tmp_path / "kept", {"train": split([3, 4])}))
    assert kept["train"]["person_id"][:] == [3, 4]


def test_a_report_that_is_no_report_is_ignored(tmp_path):
    root = write(tmp_path / "set", {"train": [[0, 1]]})
    (root / "report.json").write_text("[" * 100_000)
    assert json.loads(load_par_dataset("hub", root)["train"].info.description)["name"] == "set"


def test_a_split_under_two_names_or_under_none(tmp_path):
    root = write(tmp_path / "set", {"val": [[0, 1]], "validation": [[1, 1]]})
    with pytest.raises(ValueError, match="has the split 'validation' under two names"):
        load_par_dataset("hub", root)
    root = write(tmp_path / "other", {"my split": [[0, 1]]})
    with pytest.raises(ValueError, match="'my split' is no name of a split"):
        load_par_dataset("hub", root)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet is no regular file"):
        load_par_dataset("hub", tmp_path / "pipe")


def test_a_damaged_folder_of_save_to_disk(tmp_path):
    data = datasets.DatasetDict(test=attach_schema(make_split([[0, 2]]), SCHEMA))
    data.save_to_disk(tmp_path / "saved")
    data.save_to_disk(tmp_path / "elsewhere")
    state = tmp_path / "saved" / "test" / "state.json"
    whole = json.loads(state.read_text())
    for change, message in (
        ("{", "cannot be read as what save_to_disk writes"),
        ("[" * 100_000, "cannot be read as what save_to_disk writes"),
        (json.dumps({**whole, "_data_files": []}), "cannot be read|no column"),
        (
            json.dumps({**whole, "_data_files": [{"filename": "../../elsewhere/test/data-00000-of-00001.arrow"}]}),
            "names the table '.*elsewhere.*arrow' out of it",
        ),
    ):
        state.write_text(change)
        with pytest.raises(ValueError, match=message):
            load_par_dataset("hub", tmp_path / "saved")
