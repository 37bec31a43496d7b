"""A label space drafted from a table: what each column is taken for, and what is left to the user."""

import json

import pytest

from vlm_par_hf.data import read_folder
from vlm_par_hf.data.drafting import draft_schema


def write(path, columns, rows, delimiter=","):
    lines = [delimiter.join(columns), *(delimiter.join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def draft_column(tmp_path, cells, **options):
    """The draft of one column of cells, and the attribute or None."""
    table = write(tmp_path / "labels.csv", ["image", "Thing"], [(f"{i}.jpg", cell) for i, cell in enumerate(cells)])
    draft = draft_schema(table, **options)
    return draft, None if draft.schema is None else draft.schema["Thing"]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ([0, 1, 1, ""], ("no", "yes")),
        (["1.0", "0.0", "nan"], ("no", "yes")),
        (["Yes", "no", "unknown"], ("no", "yes")),
        (["TRUE", "FALSE"], ("no", "yes")),
        ([-1, 1, 1], ("no", "yes")),
        (["y", "n"], ("n", "y")),
        (["red", "blue", "Red", "blue", "green", "red"], ("blue", "green", "red")),
        (["male", "female"], ("female", "male")),
        (["with hat", "without hat"], ("without hat", "with hat")),
        (["cap", "none", "cap"], ("none", "cap")),
        ([f"kind {i % 30}" for i in range(90)], tuple(sorted(f"kind {i}" for i in range(30)))),
    ],
)
def test_columns_that_are_labels(tmp_path, cells, labels):
    assert draft_column(tmp_path, cells)[1].labels == labels


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ([0, 1, 2, 3], "whole numbers from 0 to 3: if they are classes 0, 1, ..., name them"),
        ([1.5, 180, 2], "numbers from 1.5 to 180"),
        ([f"seen at {i}" for i in range(50)], "free text: 50 different values"),
        ([f"seen at {i}" for i in range(1500)], "free text: more than 1000 different values"),
        (["a", "b", "c"], "free text: 3 different values in 3 rows"),
        (["x" * 80, "y", "x" * 80, "y"], "free text, such as 'xxx"),
        (["", "nan", "unknown"], "no row says anything"),
        (["red", "red", ""], "every row says 'red'"),
    ],
)
def test_columns_that_are_left_out_with_the_reason(tmp_path, cells, why):
    draft, attribute = draft_column(tmp_path, cells)
    assert attribute is None
    ((column, reason),) = draft.left_out
    assert column == "Thing" and reason.startswith(why)


def test_classes_of_numbers_are_named_by_the_user(tmp_path):
    attribute = draft_column(tmp_path, [0, 1, 2], labels={"Thing": ["red", "green", "blue"]})[1]
    assert attribute.labels == ("red", "green", "blue")
    with pytest.raises(ValueError, match="labels names the column 'Thin'; the table has .*'Thing'"):
        draft_schema(tmp_path, labels={"Thin": ["a", "b"]})


def test_words(tmp_path):
    columns = {
        "HatColor": ["red", "light_green"], "hat": [0, 1], "is_smoking": [0, 1], "long_scarf": [0, 1], "male": [0, 1],
        "Age Group": ["young", "old"],
    }  # fmt: skip
    rows = [(f"{row}.jpg", *(cells[row] for cells in columns.values())) for row in (0, 1)]
    draft = draft_schema(write(tmp_path / "labels.csv", ["image", *columns], rows))
    found = {one.name: (one.question, one.prompts[-1]) for one in draft.schema}
    assert found == {
        "HatColor": ("what color is the hat?", "a photo of a person with red hat"),
        "hat": ("is the person wearing a hat?", "a photo of a person wearing a hat"),
        "is_smoking": ("is the person smoking?", "a photo of a person smoking"),
        "long_scarf": ("is the person with long scarf?", "a photo of a person with long scarf"),
        "male": ("is the person a man?", "a photo of a man"),
        "Age Group": ("what is the age group?", "a photo of a person, age group: young"),
    }
    assert [one.name for one in draft.schema if one.sensitive] == ["male", "Age Group"]
    assert draft.remarks[-1] == "marked as sensitive (perceived gender and age): male, Age Group"


def test_the_columns_that_are_no_labels(tmp_path):
    columns = ["File Name", "subset", "pid", "cam_id", "xmin", "ymin", "xmax", "ymax", "Hat"]
    table = write(tmp_path / "people.csv", columns, [("a.jpg", "train", 7, 1, 0, 0, 9, 9, 1)], delimiter=";")
    draft = draft_schema(table)
    assert draft.schema.names == ("Hat",) and not draft.left_out
    assert dict(draft.columns[:4]) == {
        "File Name": "path of the image", "subset": "split", "pid": "person", "cam_id": "camera",
    }  # fmt: skip
    assert ("xmin", "box (xyxy)") in draft.columns


def test_what_is_drafted_reads(tmp_path):
    """Every column kind at once, in the tables of three splits; the reader takes the draft as it is."""
    for split, count in (("train", 200), ("val", 60), ("test", 60)):
        rows = [
            (f"{split}{i}.jpg", i % 2, ("red", "blue", "")[i % 3], f"note {i}", i * 0.5, i % 5) for i in range(count)
        ]
        write(tmp_path / f"{split}.csv", ["image", "Hat", "CoatColor", "notes", "height", "kind"], rows)
    draft = draft_schema(tmp_path)
    assert draft.rows == 320 and draft.schema.names == ("Hat", "CoatColor")
    assert [column for column, _ in draft.left_out] == ["notes", "height", "kind"]
    splits = read_folder(tmp_path, draft.schema)[1]
    assert {split: len(records) for split, records in splits.items()} == {"train": 200, "validation": 60, "test": 60}
    assert splits["train"][5].labels.tolist() == [1, -100]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([["Hat", "Bag"], ["Bag"], []], ("Hat", "Bag")),
        (["Hat|Bag", "Bag|Hat", "Hat"], ("Hat", "Bag")),
        ([{"Hat": 1, "Color": "red"}, {"Hat": 0, "Color": "blue"}], ("Hat", "Color")),
        (["cap", "beret", "cap"], ("labels",)),
    ],
)
def test_labels_in_one_column(tmp_path, labels, names):
    rows = [json.dumps({"image": f"{i}.jpg", "split": "train", "labels": value}) for i, value in enumerate(labels)]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    schema = draft_schema(tmp_path).schema
    assert schema.names == names
    assert len(read_folder(tmp_path, schema)[1]["train"]) == len(labels)


def test_lists_without_a_header_need_names(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg 1 0\nb.jpg 0 1\n")
    with pytest.raises(ValueError, match="has no header and 2 labels after each path: name these.*--names A,B"):
        draft_schema(tmp_path)
    assert draft_schema(tmp_path, names=["Hat", "Bag"]).schema.names == ("Hat", "Bag")
    with pytest.raises(ValueError, match="line 1: 2 labels after the path 'a.jpg'; expected one for each of the 1"):
        draft_schema(tmp_path, names=["Hat"])


def test_what_cannot_be_drafted_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv does not exist; expected a table or the folder"):
        draft_schema(tmp_path / "nowhere.csv")
    table = write(tmp_path / "labels.csv", ["photo", "Hat"], [("a.jpg", 1)])
    with pytest.raises(ValueError, match="no column with paths of images.*the column 'photo' holds them, rename it"):
        draft_schema(table)
    write(table, ["image", "Hat"], [])
    with pytest.raises(ValueError, match="labels.csv: no rows"):
        draft_schema(table)
    table.write_text("image,Hat\na.jpg,1\nb.jpg,1,0\n")
    with pytest.raises(ValueError, match="line 3: 3 cells; the header has 2"):
        draft_schema(table)
