"""UPAR's CSV files of 2023, 2024 and 2027, and its retrieval queries."""

import csv
import time

import numpy as np
import pytest

from modeling_tests.original_files import write_picture, write_upar_table
from vlm_par_hf.data import dataset_schema, load_par_dataset, read_upar, read_upar_queries
from vlm_par_hf.data.readers import upar
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.tables import get_schema


NAMES = get_schema("upar40").names
IMAGES = {
    "train": ["Market1501/bounding_box_train/0002_c1s1_000451_03.jpg", "PETA/images/00001.png"],
    "val": ["Market1501/query/0001_c1s1_001051_00.jpg", "PA100k/release_data/release_data/000001.jpg"],
}


def random_labels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (count, 40))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "tables",
    [
        {"train": "data/annotations/task1/train/gt.csv", "val": "data/annotations/task1/val/gt.csv"},
        {"train": "data/annotations/train.csv", "val": "data/annotations/val.csv"},
        {"train": "data/phase1/train/train.csv", "val": "data/phase1/val_task1/val.csv"},
    ],
)
def test_every_year(tmp_path, tables, end):
    labels = {split: random_labels(2, seed) for seed, split in enumerate(tables)}
    for split, place in tables.items():
        write_upar_table(tmp_path / place, IMAGES[split], labels[split], end=end)
        for image in IMAGES[split]:
            write_picture(tmp_path / "data" / image)
    for root in (tmp_path, tmp_path / "data"):
        data = load_par_dataset("upar", root)
        assert dataset_schema(data) == get_schema("upar40") and list(data) == ["train", "validation"]
        for split, name in (("train", "train"), ("val", "validation")):
            assert data[name]["labels"][:] == labels[split].tolist()
            assert data[name]["image_id"][:] == IMAGES[split]
            assert data[name][1]["image"].size == (6, 14)


def test_columns_in_another_order_and_unknown(tmp_path):
    order = np.random.default_rng(1).permutation(40)
    labels = random_labels(2)
    labels[0, 3] = -1
    write_upar_table(tmp_path / "train.csv", IMAGES["train"], labels[:, order], [NAMES[i] for i in order])
    records = read_upar(tmp_path)[1]["train"]
    assert records[1].labels.tolist() == labels[1].tolist()
    assert records[0].labels[3] == -100


@pytest.mark.parametrize("header", ["# image\n", "image\n", ""])
def test_images_to_predict_have_unknown_labels(tmp_path, header, caplog):
    write_upar_table(tmp_path / "phase1/train/train.csv", IMAGES["train"], random_labels(2))
    (tmp_path / "phase1/val_task1").mkdir()
    (tmp_path / "phase1/val_task1/val.csv").write_text(header + "\n".join(IMAGES["val"]) + "\n")
    splits, notes = read_upar(tmp_path)[1:]
    assert [record.image_id for record in splits["validation"]] == IMAGES["val"]
    assert all((record.labels == -100).all() for record in splits["validation"])
    assert notes["splits_without_labels"] == ["validation"] and "has no labels" in caplog.text


def write_queries(root, queries, rows):
    folder = root / "data/annotations/task2/train"
    folder.mkdir(parents=True)
    with open(folder / "queries.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["# " + NAMES[0], *NAMES[1:]], *queries.tolist()])
    with open(folder / "ids.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(zip(IMAGES["train"], rows))
    return folder


def test_queries(tmp_path):
    queries = random_labels(3)
    folder = write_queries(tmp_path, queries, [2, 0])
    found = read_upar_queries(tmp_path, "train")
    assert np.array_equal(found.queries, queries) and found.queries.dtype == np.int64
    assert found.query_of_image == {IMAGES["train"][0]: 2, IMAGES["train"][1]: 0}
    (folder / "ids.csv").write_text(f"{IMAGES['train'][0]},3\n")
    with pytest.raises(ValueError, match="ids.csv, line 1: query 3; queries.csv has rows 0 to 2"):
        read_upar_queries(tmp_path, "train")
    (folder / "ids.csv").write_text("image,query_row\n")
    with pytest.raises(ValueError, match="ids.csv, line 1: 'image,query_row'; expected image,row"):
        read_upar_queries(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="holds no queries.csv"):
        read_upar_queries(tmp_path, "validation")
    with pytest.raises(ValueError, match="split is 'val'"):
        read_upar_queries(tmp_path, "val")


HEADER = "# image," + ",".join(NAMES)
ROW = "a.jpg" + ",1" * 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("Age-Young", "Age-Child") + "\n" + ROW, "missing .'Age-Young'.*unexpected .'Age-Child'.*year"),
        (HEADER.replace(",Accessory-Hat", "") + "\n" + ROW, "1 missing .'Accessory-Hat'.*another year"),
        (HEADER + "\n" + ROW + ",1", "line 2: 41 labels; expected 40"),
        (HEADER + "\n" + ROW.replace("1", "2", 1), "line 2: label '2'; expected 0, 1 or -1"),
        (HEADER + f"\n{ROW}\n{ROW}", "line 3: image 'a.jpg' is already on line 2"),
        (HEADER + f"\n../{ROW}", "line 2: image is '../a.jpg'"),
        (HEADER + "\n", "lists no image"),
        ("", "is empty"),
        ("<html>,<body>", "line 1: begins with '<html>'; expected a header"),
    ],
)
def test_wrong_tables_are_named(tmp_path, text, message):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=f"train.csv.*{message}"):
        read_upar(tmp_path)


def test_other_encodings_and_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no gt.csv"):
        read_upar(tmp_path)
    (tmp_path / "train.csv").write_bytes((HEADER + "\ncaf\xe9.jpg" + ",1" * 40).encode("latin-1"))
    with pytest.raises(ValueError, match="train.csv, line [0-9]+ is not UTF-8 text"):
        read_upar(tmp_path)


def test_a_hundred_thousand_rows_in_seconds(tmp_path):
    row = ",".join(["0", "1"] * 20)
    (tmp_path / "train.csv").write_text(HEADER + "\n" + "".join(f"x/{i}.jpg,{row}\n" for i in range(100_000)))
    start = time.process_time()  # processor time: a busy machine is no reason to fail
    splits = read_upar(tmp_path)[1]
    assert time.process_time() - start < 15
    assert len(splits["train"]) == 100_000 and splits["train"][-1].labels.tolist() == [0, 1] * 20


def test_of_complete_data_every_attribute_has_a_positive(tmp_path, monkeypatch, caplog):
    labels = np.stack([np.zeros(40, int), np.ones(40, int)])
    labels[:, 7] = 0
    for split in ("train", "val"):
        write_upar_table(tmp_path / f"{split}.csv", IMAGES[split], labels)
    assert read_upar(tmp_path)[2]["attributes_without_positive"] == [NAMES[7]] and NAMES[7] in caplog.text
    monkeypatch.setattr(upar, "_OFFICIAL_IMAGES", {"train": 2, "validation": 2})
    with pytest.raises(ParValueError, match=f"no image has '{NAMES[7]}'. All images"):
        read_upar(tmp_path)
    read_upar(tmp_path, ignore=[NAMES[7]])
