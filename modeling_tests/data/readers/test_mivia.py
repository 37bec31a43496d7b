"""MIVIA PAR as the contests give it out: tables without a header, numbers from 1, -1 for what is not annotated."""

import pytest

from modeling_tests.original_files import write_picture
from vlm_par_hf.data import dataset_schema, load_par_dataset, read_mivia
from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.tables import get_schema


ROWS = "0001.jpg,1,11,0,1,0\n0002.jpg,-1,2,1,-1,1\n"
LABELS = [[0, 10, 0, 1, 0], [-100, 1, 1, -100, 1]]


def write_split(root, split, text=ROWS, table=None, images=None):
    path = root / (table or f"{split}_set.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for line in text.splitlines():
        write_picture(root / (images or f"{split}_set") / line.split(",")[0])


@pytest.mark.parametrize(
    ("table", "images"),
    [(None, None), ("annotation/{}_set.txt", "data/{}_set"), ("annotations/{}_set.csv", "{}_set")],
)
def test_the_splits_that_are_there(tmp_path, table, images):
    for split in ("training", "validation"):
        write_split(tmp_path, split, table=table and table.format(split), images=images and images.format(split))
    data = load_par_dataset("mivia5", tmp_path)
    assert dataset_schema(data) == get_schema("mivia5") and list(data) == ["train", "validation"]
    assert data["train"]["labels"][:] == LABELS and data["train"]["image_id"][:] == [
        "training_set/0001.jpg",
        "training_set/0002.jpg",
    ]
    assert data["validation"][1]["image"].size == (6, 14)


def test_what_numbers_mean():
    schema = get_schema("mivia5")
    assert schema.num_labels == (11, 11, 2, 2, 2)
    named = [[one.labels[label] for one, label in zip(schema, row) if label != -100] for row in LABELS]
    assert named == [["black", "yellow", "male", "yes", "no"], ["blue", "female", "yes"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0001.jpg,0,1,0,0,0\n", "line 1: UpperColor is '0'; expected 1 to 11, or -1 for unknown"),
        ("0001.jpg,1,12,0,0,0\n", "LowerColor is '12'; expected 1 to 11"),
        ("0001.jpg,1,1,2,0,0\n", "Gender is '2'; expected 0 to 1"),
        ("0001.jpg,1,1,0,0\n", "4 labels; expected 5: UpperColor, LowerColor, Gender, Bag, Hat"),
        ("0001.jpg,1,1,0,0,0\n\n0001.jpg,1,1,0,0,0\n", "line 3: image '0001.jpg' is already on line 1"),
        ("../0001.jpg,1,1,0,0,0\n", "image is '../0001.jpg'; expected a path below"),
        ("\n", "lists no image"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "training_set").mkdir()
    (tmp_path / "training_set.txt").write_text(text)
    with pytest.raises(ParValueError, match=message):
        read_mivia(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ParFileNotFoundError, match="holds no training_set.txt .* the tables of MIVIA PAR"):
        read_mivia(tmp_path)
    (tmp_path / "training_set.txt").write_text(ROWS)
    with pytest.raises(ParFileNotFoundError, match="training_set.txt and no folder training_set of its images"):
        read_mivia(tmp_path)
