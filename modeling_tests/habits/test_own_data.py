"""Habits of people with data of their own: tables, label spaces, options in files.

One row is what a user has or types, and what comes out of it or the message that names the way.
"""

import json

import datasets
import pytest
from PIL import Image

from vlm_par_hf import AttributeSchema, load_par_dataset
from vlm_par_hf.cli.config import expand_config
from vlm_par_hf.cli.main import build_parser, main


SCHEMA = AttributeSchema.from_texts({"Hat": "wearing a hat", "Bag": "a backpack | a handbag | no bag"})
HEADER = "image,split,Hat,Bag\n"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "my_data"
    (root / "train").mkdir(parents=True)
    for name in ("a.png", "b c.png", "train/a.png"):
        Image.new("RGB", (8, 16), (200, 0, 0)).save(root / name)
    SCHEMA.to_json(root / "schema.json")
    return root


def parse(*arguments):
    return build_parser().parse_args(expand_config(arguments, build_parser))


TABLES = {
    "a csv file": ("labels.csv", HEADER + "a.png,train,yes,no bag\nb c.png,train,,a backpack\n"),
    "semicolons, as a spreadsheet writes them": (
        "labels.csv",
        "image;split;Hat;Bag\na.png;train;1;2\nb c.png;train;;0\n",
    ),
    "tabs": ("train.tsv", "image\tHat\tBag\na.png\t1\t2\nb c.png\t\t0\n"),
    "a byte order mark": ("labels.csv", "\ufeff" + HEADER + "a.png,train,1,2\nb c.png,train,,0\n"),
    "a list without a header": ("train.txt", "a.png 1 2\nb c.png -100 0\n"),
    "a list with commas": ("train.txt", "a.png,1,2\nb c.png,,0\n"),
    "json lines": (
        "train.jsonl",
        '{"image": "a.png", "Hat": true, "Bag": 2}\n{"image": "b c.png", "Hat": null, "Bag": 0}',
    ),
    "file_name of an image folder": ("metadata.csv", "file_name,split,Hat,Bag\na.png,train,1,2\nb c.png,train,,0\n"),
    "a table of any name": ("people.csv", "Path,subset,Hat,Bag\na.png,train,1,2\nb c.png,train,,0\n"),
    "labels as an object": (
        "train.jsonl",
        '{"image": "a.png", "labels": {"Hat": 1, "Bag": "no bag"}}\n'
        '{"image": "b c.png", "labels": {"Hat": "", "Bag": 0}}',
    ),
    "labels as a list": (
        "train.jsonl",
        '{"image": "a.png", "labels": [1, 2]}\n{"image": "b c.png", "labels": [null, 0]}',
    ),
    "labels as a text": ("train.csv", 'image,labels\na.png,1 2\nb c.png,"-100, 0"\n'),
}


@pytest.mark.parametrize(("name", "text"), TABLES.values(), ids=TABLES)
def test_tables_that_are_read(root, name, text):
    (root / name).write_text(text, encoding="utf-8")
    data = load_par_dataset("folder", root)["train"]
    assert data["image_id"][:] == ["a.png", "b c.png"] and data["labels"][:] == [[1, 2], [-100, 0]]


def test_names_of_what_a_person_has(root):
    (root / "train.csv").write_text("image,labels\na.png,Hat|a backpack\nb c.png,a handbag\n")
    assert load_par_dataset("folder", root)["train"]["labels"][:] == [[1, 0], [0, 1]]


def test_an_image_folder_with_a_table_in_it(root):
    (root / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "Hat": 1, "Bag": 2}')
    assert load_par_dataset("folder", root)["train"]["image_id"][:] == ["train/a.png"]


def test_boxes_of_people_in_pictures(root):
    (root / "train.csv").write_text("image,Hat,Bag,xmin,ymin,xmax,ymax\na.png,1,2,0,0,4,8\na.png,0,1,4,2,8,16\n")
    assert [row["image"].size for row in load_par_dataset("folder", root)["train"]] == [(4, 8), (4, 14)]


REFUSED = {
    "a column with a typing error": (
        HEADER.replace("Bag", "Bga") + "a.png,train,1,2",
        "did you mean the column 'Bga'",
    ),
    "a split with a typing error": (HEADER + "a.png,trian,1,2", "line 2: split is 'trian'; expected one of"),
    "a misspelt optional column": ("image,spilt,Hat,Bag\na.png,train,1,2", "did you mean 'split'.*--ignore spilt"),
    "a label with a typing error": (HEADER + "a.png,train,yess,2", "line 2: column 'Hat' is 'yess'; expected one of"),
    "a row that ends early": (HEADER + "a.png,train,1,2\nb c.png,tra", "line 3: 2 cells; the header has 4"),
    "a path out of the folder": (HEADER + "../a.png,train,1,2", "line 2: image is '../a.png'; expected a path below"),
    "an image that is not there": (HEADER + "z.png,train,1,2", "1 of 1 listed images do not exist.*z.png"),
    "-1 for no": (
        HEADER + "a.png,train,-1,2\nb c.png,train,1,2",
        "column 'Hat' holds -1.*--negative -1.*--unknown -1",
    ),
    "a box as corner and size": ("image,split,Hat,Bag,bbox\na.png,train,1,2,40 20 10 30", "box_format='xywh'"),
    "columns divided by spaces": ("image split Hat Bag\na.png train 1 2", "its columns are divided by spaces"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_tables_that_are_refused(root, text, message):
    (root / "labels.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_par_dataset("folder", root)


def test_no_schema_yet(root, capsys):
    (root / "schema.json").unlink()
    (root / "labels.csv").write_text(HEADER + "a.png,train,1,red\nb c.png,train,0,blue\ntrain/a.png,val,0,red\n")
    with pytest.raises(FileNotFoundError, match="schema.json does not exist.*vlm-par init drafts"):
        load_par_dataset("folder", root)
    assert main(["init", str(root)]) == 0
    assert f"train: vlm-par train folder --root {root} --out" in capsys.readouterr().out
    assert load_par_dataset("folder", root)["train"]["labels"][:] == [[1, 1], [0, 0]]


def test_a_schema_in_a_few_words(tmp_path):
    path = tmp_path / "schema.json"
    assert main(["schema", "Hat=wearing a hat", "Bag=a backpack | a handbag | no bag", "--out", str(path)]) == 0
    assert AttributeSchema.from_json(path) == SCHEMA


def test_one_column_per_attribute_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"img": [Image.new("RGB", (8, 16))] * 2, "Hat": [1, None], "Bag": ["no bag", "a backpack"]}
    features = {"img": datasets.Image(), "Hat": datasets.Value("int64"), "Bag": datasets.Value("string")}
    folder = tmp_path / "hub"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / "train.parquet")
    data = load_par_dataset("hub", folder, schema=SCHEMA)["train"]
    assert data["labels"][:] == [[1, 2], [-100, 0]] and data.column_names == ["image", "labels"]


def test_options_in_a_yaml_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: folder\nroot: my_data\nout: runs/mine\nlearning_rate: 1e-4\nprogress: false\n")
    args = parse("train", "--config", str(path), "--epochs", "20")
    assert (args.dataset, args.learning_rate, args.progress, args.epochs) == ("folder", 1e-4, False, 20.0)


def test_options_in_a_json_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"images": ["a.png"], "batch-size": 4}))
    assert parse("predict", "--config", str(path)).batch_size == 4


def test_a_typing_error_in_a_file_of_options(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rte: 1e-4\n")
    assert main(["train", "--config", str(path)]) == 2
    assert "has no option 'learning_rte'; did you mean 'learning_rate'?" in capsys.readouterr().err


def test_which_version(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("vlm-par ")
