"""`load_par_dataset`: one form for every data set, the schema travels along, what is missing is named."""

import json
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import vlm_par_hf
from modeling_tests.pa100k_files import pa100k_variables
from vlm_par_hf.data import AugmentedDataset, dataset_schema, list_par_datasets, load_par_dataset, prepare_dataset
from vlm_par_hf.data.readers import registry
from vlm_par_hf.data.readers.label_check import count_positives
from vlm_par_hf.data.readers.records import PedestrianRecord
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.features import describing
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema


SCHEMA = AttributeSchema(
    [
        {"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"]},
        {"name": "Bag", "question": "is there a bag?", "prompts": ["no bag", "a bag"]},
    ]
)


@pytest.fixture
def folder(tmp_path):
    """Three splits of two images each; the red channel of a picture is its number."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    SCHEMA.to_json(root / "schema.json")
    rows = ["image,split,Hat,Bag,person_id,camera_id"]
    for number, split in enumerate(["train", "train", "validation", "validation", "test", "test"]):
        Image.new("RGB", (8, 20), (number, 0, 0)).save(root / "images" / f"{number}.png")
        rows.append(f"images/{number}.png,{split},{number % 2},,{number // 2},cam{number % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def test_folder(folder):
    data = load_par_dataset("folder", folder)
    assert isinstance(data, datasets.DatasetDict) and list(data) == ["train", "validation", "test"]
    assert data["test"].column_names == ["image", "image_id", "labels", "person_id", "camera_id"]
    row = data["test"][1]
    assert row["labels"] == [1, -100] and row["person_id"] == 2 and row["camera_id"] == "cam1"
    assert row["image_id"] == "images/5.png"
    assert row["image"].mode == "RGB" and row["image"].getpixel((0, 0)) == (5, 0, 0)
    assert data["test"].features["labels"] == datasets.List(datasets.Value("int64"), length=2)
    assert isinstance(data["test"].features["image"], datasets.Image)
    assert dataset_schema(data) == dataset_schema(data["train"]) == SCHEMA


def test_relative_root_survives_a_change_of_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    data = load_par_dataset("folder", "mine")
    monkeypatch.chdir(tmp_path.parent)
    assert data["train"][1]["image"].getpixel((0, 0)) == (1, 0, 0)


def test_pa100k(write_pa100k):
    variables = pa100k_variables()
    data = load_par_dataset("pa100k", write_pa100k(variables))
    assert dataset_schema(data) == get_schema("pa100k")
    assert data["train"].column_names == ["image", "image_id", "labels"]
    assert np.array_equal(data["validation"].with_format("numpy")["labels"][:], variables["val_label"])
    assert data["validation"][0]["image_id"] == "000007.jpg"
    assert data["validation"][0]["image"].getpixel((0, 0))[0] == pytest.approx(7, abs=2)
    assert data["train"].info.license == "CC-BY-4.0" and "HydraPlus" in data["train"].info.citation


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.select([1]),
        lambda d: d.shuffle(seed=0),
        lambda d: d.filter(lambda row: True),
        lambda d: d.map(lambda row: {"extra": 1}),
        lambda d: d.map(lambda rows: {"n": [1] * len(rows["labels"])}, batched=True, remove_columns=["image"]),
        lambda d: d.remove_columns("image_id"),
        lambda d: d.with_format("torch"),
        lambda d: d.train_test_split(test_size=0.5, seed=0)["test"],
        lambda d: datasets.concatenate_datasets([d, d.select([0])]),
        lambda d: d.cast_column("image", datasets.Image(decode=False)),
    ],
)
def test_schema_survives(folder, change):
    data = load_par_dataset("folder", folder)
    assert dataset_schema(change(data["train"])) == SCHEMA


def test_trip_to_disk_and_joining_with_what_stayed(folder, tmp_path):
    data = load_par_dataset("folder", folder)
    data.save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    assert dataset_schema(loaded) == SCHEMA
    joined = datasets.concatenate_datasets([data["train"], loaded["validation"]])
    assert dataset_schema(joined) == SCHEMA
    assert [row["image"].getpixel((0, 0))[0] for row in joined] == [0, 1, 2, 3]
    code = "import datasets, sys; d = datasets.load_from_disk(sys.argv[1]); d['test'][0]['image'].load()"
    code += "; sys.exit('vlm_par_hf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved")], cwd=tmp_path).returncode == 0


def test_map_keeps_the_opener_that_names_files(folder):
    (folder / "images" / "0.png").write_bytes((folder / "images" / "0.png").read_bytes()[:50])
    data = load_par_dataset("folder", folder)["train"]
    for changed in (data, data.select([0]), data.map(lambda row: {"extra": 1}, input_columns=["image_id"])):
        with pytest.raises(ValueError, match="0.png"):
            changed[0]
    assert data[1]["image"].size == (8, 20)  # decoded one by one: its neighbour is no obstacle
    assert data["labels"][:] == [[0, -100], [1, -100]]


def test_schema_argument_selects_and_orders(write_pa100k):
    variables = pa100k_variables()
    root = write_pa100k(variables)
    wanted = get_schema("pa100k").subset(["boots", "Female"])
    data = load_par_dataset("pa100k", root, schema=wanted)
    assert dataset_schema(data) == wanted
    assert data["train"].column_names == ["image", "image_id", "labels"]
    assert np.array_equal(data["train"]["labels"][:], variables["train_label"][:, [25, 0]])
    assert data["train"].features["labels"].length == 2
    assert json.loads(data["train"].info.description)["name"] == "pa100k"
    with_list = load_par_dataset("pa100k", root, schema=wanted.to_list())
    assert dataset_schema(with_list) == wanted
    hat = get_schema("pa100k")["Hat"].to_dict()
    with pytest.raises(ValueError, match="schema names 'Hats', which the data set does not label; did you mean 'Hat'"):
        load_par_dataset("pa100k", root, schema=[{**hat, "name": "Hats"}])
    with pytest.raises(ValueError, match=r"gives 'Hat' the labels \['none', 'hat'\]; the data set has"):
        load_par_dataset("pa100k", root, schema=[{**hat, "labels": ["none", "hat"]}])


def test_missing_images(write_pa100k, caplog):
    root = write_pa100k()
    (root / "data" / "000003.jpg").unlink()
    (root / "data" / "000010.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 11 listed images do not exist, the first is .*000003.jpg"):
        load_par_dataset("pa100k", root)
    data = load_par_dataset("pa100k", root, missing="skip")
    assert "skipped: 2 of 11" in caplog.text
    assert {split: len(rows) for split, rows in data.items()} == {"train": 5, "validation": 3, "test": 1}
    assert "000003.jpg" not in data["train"]["image_id"][:]
    notes = json.loads(data["test"].info.description)
    assert notes["skipped_images"] == {"train": 1, "validation": 0, "test": 1}
    assert dataset_schema(datasets.concatenate_datasets(list(data.values()))) == get_schema("pa100k")


def test_missing_image_folder(write_pa100k):
    root = write_pa100k(images=None)
    with pytest.raises(FileNotFoundError, match="11 of 11 listed images do not exist, the first is .*data/000001.jpg"):
        load_par_dataset("pa100k", root)
    data = load_par_dataset("pa100k", root, missing="skip")
    assert [len(rows) for rows in data.values()] == [0, 0, 0] and dataset_schema(data) == get_schema("pa100k")


def test_image_in_two_splits_and_person_in_two_splits(folder, caplog):
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("images/2.png,validation,0,,1", "images/2.png,validation,0,,0"))
    load_par_dataset("folder", folder)
    assert "1 persons appear in more than one split" in caplog.text
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("image,Hat,Bag\nimages/0.png,1,1\n")
    (folder / "labels.csv").unlink()
    with pytest.raises(ValueError, match="image 'images/0.png' is in both 'train' and 'test'"):
        load_par_dataset("folder", folder)


def test_ids_have_one_type_in_all_splits(folder):
    (folder / "labels.csv").unlink()
    (folder / "train.jsonl").write_text('{"image": "images/0.png", "Hat": 1, "Bag": 1, "person_id": 4}')
    (folder / "test.jsonl").write_text('{"image": "images/1.png", "Hat": 1, "Bag": 1, "person_id": "x"}')
    data = load_par_dataset("folder", folder)
    assert data["train"]["person_id"][:] == ["4"] and data["test"]["person_id"][:] == ["x"]
    assert data["train"].features == data["test"].features


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"name": "pa100"}, ValueError, "name is 'pa100'; expected one of .*did you mean 'pa100k'"),
        ({"name": "imagenet"}, ValueError, "name is 'imagenet'; expected one of"),
        ({"name": "pa100k"}, ValueError, "root is None; 'pa100k' needs root=.*CC-BY 4.0 from https://github.com"),
        ({"name": "folder"}, ValueError, "root is None; 'folder' needs root=a folder of your own"),
        ({"name": "pa100k", "root": "/nowhere/at/all"}, FileNotFoundError, "'/nowhere/at/all' is no folder"),
        ({"name": "pa100k", "root": ".", "missing": "ignore"}, ValueError, "missing is 'ignore'; expected one of"),
        (
            {"name": "pa100k", "root": ".", "partition": 1},
            ValueError,
            "partition is 1; 'pa100k' has 1: expected an integer from 0 to 0",
        ),
        ({"name": "folder", "root": ".", "partition": "0"}, ValueError, "partition is '0'"),
        ({"name": "folder", "root": ".", "num_train": 3}, TypeError, "unexpected keyword argument 'num_train'"),
        ({"name": "synthetic", "root": "."}, ValueError, "'synthetic' is drawn, not read"),
        ({"name": "synthetic", "num_trains": 3}, TypeError, "num_trains"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        load_par_dataset(**arguments)


def test_list():
    assert list_par_datasets() == [
        "duke_video", "folder", "hub", "market1501", "market1501_30", "mars", "mivia5", "pa100k", "peta35", "peta65",
        "rapv1", "rapv2", "rendered", "rendered_tracklets", "synthetic", "synthetic_tracklets", "tracklets", "upar",
    ]  # fmt: skip


def test_synthetic():
    sizes = {"num_train": 6, "num_validation": 2, "num_test": 2}
    data = load_par_dataset("synthetic", seed=5, num_proc=1, **sizes)
    assert dataset_schema(data) == get_schema("synthetic")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 6, "validation": 2, "test": 2}
    wanted = get_schema("synthetic").subset(["UpperColor", "Hat"])
    chosen = load_par_dataset("synthetic", schema=wanted, seed=5, num_proc=1, **sizes)
    columns = [get_schema("synthetic").index(name) for name in wanted.names]
    assert np.array_equal(chosen["train"]["labels"][:], np.asarray(data["train"]["labels"][:])[:, columns])
    assert np.array_equal(np.asarray(chosen["train"][3]["image"]), np.asarray(data["train"][3]["image"]))
    assert chosen["train"].column_names == data["train"].column_names


def test_an_attribute_without_a_positive_is_told_and_refused_in_the_complete_pa100k(write_pa100k, monkeypatch, caplog):
    variables = pa100k_variables()
    boots = get_schema("pa100k").index("boots")
    for prefix in ("train", "val", "test"):
        variables[f"{prefix}_label"][:, boots] = 0
        variables[f"{prefix}_label"][0, :boots] = 1
    root = write_pa100k(variables)
    notes = json.loads(load_par_dataset("pa100k", root)["train"].info.description)
    assert notes["attributes_without_positive"] == ["boots"] and "no image has 'boots'" in caplog.text
    monkeypatch.setattr(registry, "_PA100K_IMAGES", 11)
    with pytest.raises(ParValueError, match="no image has 'boots'. All images of the published data set are there"):
        load_par_dataset("pa100k", root)
    caplog.clear()
    load_par_dataset("pa100k", root, ignore=["boots"])
    assert "boots" not in caplog.text


def test_an_attribute_without_a_positive_in_a_folder_is_a_warning(folder, caplog):
    notes = json.loads(load_par_dataset("folder", folder)["test"].info.description)
    assert notes["attributes_without_positive"] == ["Bag"] and "no image has 'Bag'" in caplog.text
    with pytest.raises(ValueError, match="ignore names 'Bag', an attribute of the schema"):
        load_par_dataset("folder", folder, ignore=["Bag"])


def test_an_attribute_with_more_labels_has_no_positive_where_one_label_is_all_there_is():
    colors = ["red", "green", "blue"]
    schema = AttributeSchema(
        [*SCHEMA, {"name": "Coat", "question": "c?", "labels": colors, "prompts": [f"in {color}" for color in colors]}]
    )

    def records(rows):
        return [PedestrianRecord("", str(number), np.asarray(row)) for number, row in enumerate(rows)]

    splits = {"train": records([[0, 1, 2], [0, -100, 2]]), "test": records([[0, 1, -100]])}
    assert count_positives(schema, splits) == {"Hat": 0, "Bag": 2, "Coat": 0}
    splits["test"] += records([[1, 0, 0]])
    assert count_positives(schema, splits) == {"Hat": 1, "Bag": 2, "Coat": 1}
    assert count_positives(schema, {"train": []}) == {"Hat": 0, "Bag": 0, "Coat": 0}


def test_importing_and_reading_need_no_torch(write_pa100k):
    # A bare parent stands for the package, whose own __init__ registers with transformers.
    code = (
        "import sys, types\nparent = sys.modules['vlm_par_hf'] = types.ModuleType('vlm_par_hf')\n"
        "parent.__path__ = [sys.argv[1]]\nfrom vlm_par_hf.data import read_pa100k\n"
        "assert len(read_pa100k(sys.argv[2], 'train')) == 6\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'datasets', 'transformers')))"
    )
    command = [sys.executable, "-c", code, str(Path(vlm_par_hf.__file__).parent), str(write_pa100k())]
    assert subprocess.run(command).returncode == 0


def test_real_images_all_decode(par_data):
    data = load_par_dataset("pa100k", par_data / "pa100k_mini")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 1027, "validation": 214, "test": 359}
    sizes = [row["image"].size for rows in data.values() for row in rows if row["image"].mode == "RGB"]
    assert len(sizes) == 1600 and min(sizes)[0] >= 50
    persons = {split: set(rows["person_id"]) for split, rows in data.items()}
    assert not persons["train"] & persons["validation"] and not persons["train"] & persons["test"]


def test_full_annotation_opens_in_seconds(par_data, caplog):
    start = time.process_time()  # processor time: a busy machine is no reason to fail
    data = load_par_dataset("pa100k", par_data / "pa100k", missing="skip")
    assert time.process_time() - start < 10
    notes = json.loads(data["train"].info.description)
    assert notes["skipped_images"] == {"train": 80_000, "validation": 10_000, "test": 10_000}
    assert "skipped: 100000 of 100000" in caplog.text


def test_people_are_cut_out_of_pictures(tmp_path):
    """Where the table has boxes, every reader of the data set gets the person, and prepared files hold it."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    root = tmp_path / "data"
    root.mkdir()
    Image.fromarray(pixels).save(root / "street.png")
    AttributeSchema.from_texts(["hat"]).to_json(root / "schema.json")
    rows = ["street.png,train,1,0 0 20 40", "street.png,train,0,30 10 50 40", "street.png,validation,0,20 0 40 40"]
    (root / "labels.csv").write_text("\n".join(["image,split,hat,box", *rows]))
    data = load_par_dataset("folder", root)
    expected = [((20, 40), 255.0), ((20, 30), 0.0), ((20, 40), 127.5)]

    def found(splits):
        return [(row["image"].size, np.asarray(row["image"]).mean()) for part in splits.values() for row in part]

    assert found(data) == found({name: AugmentedDataset(part) for name, part in data.items()}) == expected
    assert data["train"]["image_id"][1] == "street.png#xywh=30,10,20,30"
    prepare_dataset("folder", root, tmp_path / "prepared")
    assert found(load_par_dataset("hub", tmp_path / "prepared")) == expected
    hashes = {describing._hash_image({"path": f"{root}/street.png#xywh=0,0,9,{n}", "bytes": None}) for n in (5, 6)}
    assert len(hashes) == 2  # features of one person are not taken for those of another


def test_columns_that_are_not_read_are_noted(tmp_path):
    AttributeSchema.from_texts(["hat"]).to_json(tmp_path / "schema.json")
    (tmp_path / "train.csv").write_text("image,hat,height\na.png,1,180\n")
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png")
    notes = json.loads(load_par_dataset("folder", tmp_path)["train"].info.description)
    assert notes["columns_not_read"] == ["height"]
    notes = json.loads(load_par_dataset("folder", tmp_path, ignore=["height"])["train"].info.description)
    assert "columns_not_read" not in notes
    with pytest.raises(TypeError, match="ignore is 'height'; expected a list of names"):
        load_par_dataset("folder", tmp_path, ignore="height")
