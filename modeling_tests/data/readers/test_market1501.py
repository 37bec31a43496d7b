"""Market-1501: labels of persons joined to file names, polarity and order by name, nobody in two splits."""

import numpy as np
import pytest
from scipy.io import savemat

from modeling_tests.original_files import market_variables, peta_data, peta_variables, struct, write_picture
from vlm_par_hf.data import dataset_schema, load_par_dataset, read_market1501
from vlm_par_hf.data.readers import market1501
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.tables import get_schema


VARIABLES = market_variables()


def person_values(half):
    """Person -> values as the file has them, in the order of the schema."""
    names = get_schema("market1501").names
    fields = VARIABLES["market_attribute"][0, 0][half][0, 0]
    persons = [int(entry[0]) for entry in fields["image_index"].ravel()]
    return dict(zip(persons, np.stack([fields[name][0] for name in names], axis=1).astype(int)))


TRAIN, TEST = person_values("train"), person_values("test")


def write_images(home):
    """40 training persons with two images, 10 test persons, junk and distractors."""
    for person in list(TRAIN)[:40]:
        for camera in (1, 5):
            write_picture(home / "bounding_box_train" / f"{person:04d}_c{camera}s1_000451_03.jpg")
    for person in list(TEST)[:10]:
        write_picture(home / "bounding_box_test" / f"{person:04d}_c2s1_000301_01.jpg")
        write_picture(home / "query" / f"{person:04d}_c3s1_000301_00.jpg")
    for name in ("-1_c1s1_000401_03.jpg", "-1_c1s1_000401_04.jpg", "0000_c1s1_000151_01.jpg"):
        write_picture(home / "bounding_box_test" / name)
    (home / "bounding_box_test" / "Thumbs.db").write_bytes(b"")


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "Market-1501-v15.09.15")
    savemat(tmp_path / "Market-1501-v15.09.15" / "market_attribute.mat", VARIABLES)
    return tmp_path


def test_labels_come_by_name_from_the_right_half(root):
    for place in (root, root / "Market-1501-v15.09.15"):
        schema, splits, notes = read_market1501(place)
        assert {split: len(part) for split, part in splits.items()} == {
            "train": 72, "validation": 8, "test": 10, "query": 10,
        }  # fmt: skip
        for split, part in splits.items():
            values = TRAIN if split in ("train", "validation") else TEST
            for record in part:
                assert np.array_equal(record.labels, values[record.person_id] - 1)
        assert schema == get_schema("market1501") and notes["left_out"] == {"junk": 2, "distractors": 1}
        assert splits["test"][0].image_id.startswith("bounding_box_test/")
        assert {record.camera_id for record in splits["train"]} == {1, 5}


def test_validation_takes_whole_persons_by_seed(root):
    splits, notes = read_market1501(root, seed=1)[1:]
    persons = {split: {record.person_id for record in part} for split, part in splits.items()}
    assert not persons["train"] & persons["validation"] and len(persons["validation"]) == 4
    assert persons["query"] == persons["test"] and "seed 1" in notes["division"]
    assert {r.image_id for r in read_market1501(root, seed=1)[1]["validation"]} == {
        r.image_id for r in splits["validation"]
    }
    assert {r.image_id for r in read_market1501(root, seed=2)[1]["validation"]} != {
        r.image_id for r in splits["validation"]
    }


def test_thirty_columns_spread_age(root):
    schema, splits, _ = read_market1501(root, "market1501_30")
    assert schema == get_schema("market1501_30")
    for record in splits["test"]:
        values = TEST[record.person_id]
        assert record.labels[:4].tolist() == [int(values[0] == age) for age in (1, 2, 3, 4)]
        assert np.array_equal(record.labels[4:], values[1:] - 1)


def test_zero_is_unknown(root):
    variables = market_variables()
    half = variables["market_attribute"][0, 0]["test"][0, 0]
    half["hat"][0, 0] = half["age"][0, 0] = 0
    savemat(root / "Market-1501-v15.09.15" / "market_attribute.mat", variables)
    person = int(half["image_index"].ravel()[0][0])
    schema, splits, _ = read_market1501(root)
    record = next(record for record in splits["test"] if record.person_id == person)
    assert [name for name, label in zip(schema.names, record.labels) if label < 0] == ["age", "hat"]
    record = next(r for r in read_market1501(root, "market1501_30")[1]["test"] if r.person_id == person)
    assert record.labels[:4].tolist() == [-100] * 4


def test_load(root, caplog):
    data = load_par_dataset("market1501", root)
    assert dataset_schema(data) == get_schema("market1501") and list(data) == ["train", "validation", "test", "query"]
    row = data["test"][0]
    assert row["image"].size == (6, 14) and row["camera_id"] == 2 and row["person_id"] in TEST
    assert '"left_out": {"junk": 2' in data["test"].info.description
    assert "more than one split" not in caplog.text  # a query shows a person of the gallery on purpose


def rename_half(variables):
    fields = variables["market_attribute"][0, 0]
    variables["market_attribute"] = struct(train=fields["train"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_half, "lacks the field 'test'"),
        (lambda v: v["market_attribute"][0, 0]["train"][0, 0]["hat"].fill(3), "train.hat holds 3; expected 1 to 2"),
        (
            lambda v: v["market_attribute"][0, 0]["train"][0, 0].__setitem__("up", np.ones((1, 3))),
            r"train.up has shape \(1, 3\); expected 1 x 751",
        ),
        (
            lambda v: v["market_attribute"][0, 0]["train"][0, 0]["image_index"].__setitem__((0, 0), "abc"),
            "image_index holds 'abc'",
        ),
    ],
)
def test_wrong_files_are_named(root, change, message):
    variables = market_variables()
    change(variables)
    savemat(root / "Market-1501-v15.09.15" / "market_attribute.mat", variables)
    with pytest.raises(ValueError, match=f"market_attribute.mat.*{message}"):
        read_market1501(root)


def test_two_data_sets_mixed(root):
    folder = root / "Market-1501-v15.09.15"
    write_picture(folder / "bounding_box_train" / "9999_c1s1_000001_01.jpg")
    with pytest.raises(ValueError, match="has no person 9999 in 'train', but .*9999_c1s1"):
        read_market1501(root)
    (folder / "bounding_box_train" / "9999_c1s1_000001_01.jpg").rename(folder / "query" / "holiday.jpg")
    with pytest.raises(ValueError, match="query holds 'holiday.jpg'; expected names like"):
        read_market1501(root)
    savemat(folder / "market_attribute.mat", peta_variables(peta_data(60), sizes=(30, 6, 24)))
    with pytest.raises(ValueError, match="lacks the variable 'market_attribute'.*annotation of PETA"):
        read_market1501(root)


def test_half_downloaded(root, tmp_path):
    folder = root / "Market-1501-v15.09.15"
    for path in (folder / "query").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="query holds no image"):
        read_market1501(root)
    (folder / "query").rmdir()
    assert list(read_market1501(root)[1]) == ["train", "validation", "test"]
    (folder / "bounding_box_test").rename(folder / "gallery")
    with pytest.raises(FileNotFoundError, match="holds no folder bounding_box_test"):
        read_market1501(root)
    (folder / "bounding_box_train").rename(folder / "training")
    with pytest.raises(FileNotFoundError, match="holds no folder bounding_box_train"):
        read_market1501(root)
    (folder / "market_attribute.mat").unlink()
    with pytest.raises(FileNotFoundError, match="holds no market_attribute.mat"):
        read_market1501(root)


def test_of_complete_data_every_attribute_has_a_positive_and_every_field_an_attribute(root, monkeypatch, caplog):
    variables = market_variables()
    for half in ("train", "test"):
        variables["market_attribute"][0, 0][half][0, 0]["downpink"][:] = 1
    savemat(root / "Market-1501-v15.09.15" / "market_attribute.mat", variables)
    _, _, notes = read_market1501(root)
    assert notes["attributes_without_positive"] == ["downpink"] and "no image has 'downpink'" in caplog.text
    monkeypatch.setattr(market1501, "_OFFICIAL_IMAGES", {"train": 80, "test": 10})
    for table in ("market1501", "market1501_30"):
        with pytest.raises(ParValueError, match="market_attribute.mat: no image has 'downpink'. All images"):
            load_par_dataset(table, root)
        load_par_dataset(table, root, ignore=["downpink"])
    halves = market_variables()["market_attribute"][0, 0]
    named = {}
    for half in ("test", "train"):
        fields = halves[half][0, 0]
        named[half] = struct(**{name: fields[name] for name in fields.dtype.names}, umbrella=fields["hat"])
    savemat(root / "Market-1501-v15.09.15" / "market_attribute.mat", {"market_attribute": struct(**named)})
    with pytest.raises(ParValueError, match=r"no attribute takes the label 'umbrella' \(1501 times\)"):
        read_market1501(root)
    assert read_market1501(root, ignore=["umbrella"])[2]["labels_not_taken"] == {"umbrella": 1501}
