"""A user's own folder: every way to write a table that people use, and a named line for every way to get it wrong."""

import json

import numpy as np
import pytest

from vlm_par_hf.data import read_folder
from vlm_par_hf.labels.schema import AttributeSchema


SCHEMA = AttributeSchema(
    [
        {"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"]},
        {
            "name": "Color",
            "question": "what color?",
            "labels": ["red", "blue", "Light Green"],
            "prompts": ["red clothes", "blue clothes", "green clothes"],
        },
    ]
)
HEADER = "image,Hat,Color\n"


@pytest.fixture
def root(tmp_path):
    SCHEMA.to_json(tmp_path / "schema.json")
    return tmp_path


def labels_of(records):
    return [record.labels.tolist() for record in records]


def write_split_table(root, rows, header="image,split,Hat,Color"):
    (root / "labels.csv").write_text(header + "\n" + "\n".join(rows) + "\n")


def test_labels_by_text_index_and_unknown(root):
    cells = {
        "yes,red": [1, 0],
        "NO,light green": [0, 2],
        "1,2": [1, 2],
        "1.0,0.0": [1, 0],
        "True,blue": [1, 1],
        "false,1": [0, 1],
        ",": [-100, -100],
        "unknown,-1": [-100, -100],
        "-100,nan": [-100, -100],
        "-1.0,None": [-100, -100],
    }
    (root / "train.csv").write_text(HEADER + "".join(f"{i}.jpg,{text}\n" for i, text in enumerate(cells)))
    schema, splits = read_folder(root)
    assert schema == SCHEMA and list(splits) == ["train"]
    assert labels_of(splits["train"]) == list(cells.values())
    assert splits["train"][0].labels.dtype == np.int64


def test_a_label_text_goes_before_an_index(tmp_path):
    numbers = AttributeSchema(
        [{"name": "Bags", "question": "how many?", "labels": ["2", "1", "0"], "prompts": ["two", "one", "none"]}]
    )
    (tmp_path / "train.csv").write_text("image,Bags\na.jpg,2\nb.jpg,0\n")
    assert labels_of(read_folder(tmp_path, numbers)[1]["train"]) == [[0], [2]]


def test_csv_as_spreadsheets_write_it(root):
    text = '\ufeff image , Hat,"Color"\r\n"images/a, b.jpg",yes , red\r\n\r\n.\\images\\c.jpg,no,blue\r\n'
    (root / "train.csv").write_bytes(text.encode("utf-8"))
    records = read_folder(root)[1]["train"]
    assert [record.image_id for record in records] == ["images/a, b.jpg", "images/c.jpg"]
    assert records[0].image == str(root / "images" / "a, b.jpg")
    assert labels_of(records) == [[1, 0], [0, 1]]


def test_jsonl(root):
    rows = [
        {"image": "a.jpg", "Hat": True, "Color": "blue", "person_id": 7, "camera_id": "c1"},
        {"image": "b.jpg", "Hat": None, "Color": 2, "person_id": None, "camera_id": "c2"},
        {"image": "c.jpg", "Hat": 0, "Color": -100, "person_id": 8, "camera_id": None},
    ]
    (root / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    records = read_folder(root)[1]["test"]
    assert labels_of(records) == [[1, 1], [-100, 2], [0, -100]]
    assert [record.person_id for record in records] == [7, None, 8]
    assert [record.camera_id for record in records] == ["c1", "c2", None]


def test_one_table_per_split_and_their_other_names(root):
    for name in ("train.csv", "val.csv", "test.csv"):
        (root / name).write_text(HEADER + f"{name}.jpg,1,1\n")
    splits = read_folder(root)[1]
    assert {split: records[0].image_id for split, records in splits.items()} == {
        "train": "train.csv.jpg",
        "validation": "val.csv.jpg",
        "test": "test.csv.jpg",
    }


def test_split_column(root):
    write_split_table(root, ["a.jpg,test,1,1", "b.jpg,Train,1,1", "c.jpg,valid,1,1", "d.jpg,train,1,1"])
    splits = read_folder(root)[1]
    assert {split: len(records) for split, records in splits.items()} == {"train": 2, "validation": 1, "test": 1}
    assert list(splits) == ["train", "validation", "test"]


def test_ids_stay_text_unless_all_are_plain_numbers(root):
    for ids, expected in ((["7", "12"], [7, 12]), (["007", "7"], [7, 7]), (["a", "1"], ["a", "1"])):
        rows = [f"{i}.jpg,train,1,1,{person}" for i, person in enumerate(ids)]
        write_split_table(root, rows, "image,split,Hat,Color,person_id")
        assert [record.person_id for record in read_folder(root)[1]["train"]] == expected


def test_division_keeps_persons_together_and_follows_the_seed(root, caplog):
    rng = np.random.default_rng(0)
    rows = [f"{i}.jpg,1,1,p{rng.integers(60)}" for i in range(400)]
    write_split_table(root, rows, "image,Hat,Color,person_id")
    schema, splits = read_folder(root, seed=3)
    assert "divided by person with seed=3 into train" in caplog.text
    persons = {split: {record.person_id for record in records} for split, records in splits.items()}
    assert not persons["train"] & persons["validation"] and not persons["train"] & persons["test"]
    assert not persons["validation"] & persons["test"]
    assert sum(map(len, splits.values())) == 400
    assert 20 <= len(splits["validation"]) <= 40 and 20 <= len(splits["test"]) <= 40

    def names(seed):
        return {split: [r.image_id for r in records] for split, records in read_folder(root, seed=seed)[1].items()}

    assert names(3) == names(3) != names(4)


@pytest.mark.parametrize("count", [3, 4, 10, 101])
def test_division_without_person_ids_fills_every_split(root, count):
    (root / "labels.csv").write_text(HEADER + "".join(f"{i}.jpg,1,1\n" for i in range(count)))
    sizes = {split: len(records) for split, records in read_folder(root)[1].items()}
    assert sum(sizes.values()) == count and min(sizes.values()) >= 1
    assert sizes["test"] == max(1, count // 10)


def test_division_of_one_huge_person_still_fills_every_split(root):
    rows = [f"{i}.jpg,1,1,{0 if i < 98 else i}" for i in range(100)]
    write_split_table(root, rows, "image,Hat,Color,person_id")
    for seed in range(6):
        splits = read_folder(root, seed=seed)[1]
        assert all(splits[split] for split in ("train", "validation", "test"))


def test_schema_argument_ignores_columns_that_only_the_file_names(root):
    (root / "train.csv").write_text(HEADER + "a.jpg,yes,red\n")
    schema, splits = read_folder(root, SCHEMA.subset(["Color"]))
    assert schema.names == ("Color",) and labels_of(splits["train"]) == [[0]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "train.csv is empty"),
        ("image,Hat\na.jpg,1\n", r"train.csv, line 2: column 'Color' is missing; found \['image', 'Hat'\]"),
        ("Hat,Color\n1,1\n", r"line 2: column 'image' \(or 'file_name', 'path'\) is missing; found"),
        ("imag,Hat,Color\na.jpg,1,1\n", "column 'image' .* is missing; did you mean the column 'imag'"),
        ("image,Hat,Colour\na.jpg,1,1\n", "line 2: column 'Color' is missing; did you mean the column 'Colour'"),
        ("image,hat,Color\na.jpg,1,1\n", "line 2: column 'Hat' is missing; did you mean the column 'hat'"),
        ("image,Hat,Color,spilt\na.jpg,1,1,test\n", r"unknown column 'spilt'; did you mean 'split'.*--ignore spilt"),
        ("image,Hat,Color,persn_id\na.jpg,1,1,7\n", "unknown column 'persn_id'; did you mean 'person_id'"),
        ("image,Hat,Hat,Color\na.jpg,1,1,1\n", "line 1: column 'Hat' appears twice"),
        ("image Hat Color\na.jpg 1 1\n", "line 1: begins with .*: its columns are divided by spaces; expected"),
        ("one;two\na.jpg;1;1\n", "line 1: begins with .*: it is no header and no row .* 'image,Hat,Color'"),
        (HEADER + "a.jpg,1\n", "line 2: 2 cells; the header has 3"),
        (HEADER + "a.jpg,1,1\nb.jpg,1,1,1\n", "line 3: 4 cells; the header has 3"),
        (HEADER + "a.jpg,maybe,1\n", r"line 2: column 'Hat' is 'maybe'; expected one of \['no', 'yes'\]"),
        (HEADER + "a.jpg,1,3\n", "line 2: column 'Color' is '3'; expected .* a class index from 0 to 2"),
        (HEADER + "a.jpg,1,true\n", "line 2: column 'Color' is 'true'"),
        (HEADER + "a.jpg,0.5,1\n", "line 2: column 'Hat' is '0.5'"),
        (HEADER + "a.jpg,1,1\na.jpg,0,1\n", "line 3: image 'a.jpg' is already on line 2"),
        (HEADER + "../a.jpg,1,1\n", "line 2: image is '../a.jpg'; expected a path below"),
        (HEADER + "/etc/a.jpg,1,1\n", "line 2: image is '/etc/a.jpg'; expected a path below"),
        (HEADER + "C:\\a.jpg,1,1\n", "line 2: image is 'C:.*expected a path below"),
        (HEADER + ",1,1\n", "line 2: image is ''"),
        (HEADER + '"a.jpg,1,1\n', "train.csv, line .*not well-formed CSV"),
        ("image,split,Hat,Color\na.jpg,test,1,1\n", "line 2: split is 'test' in the table of 'train'"),
        ("image,split,Hat,Color\na.jpg,trian,1,1\n", "line 2: split is 'trian'; expected one of"),
        (HEADER, "train.csv: no rows"),
    ],
)
def test_wrong_tables_are_named(root, text, message):
    (root / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folder(root)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"image": "a.jpg", "Hat": 1, "Color": 1}\n{"image": ', "line 2: not JSON"),
        ("[1]\n", "line 1: a list; expected an object"),
        ('{"image": "a.jpg", "Hat": 1}', "line 1: column 'Color' is missing"),
        (
            '{"image": "a.jpg", "Hat": 1, "Color": 1}\n{"image": "b.jpg", "Hat": 1, "Colr": 1}',
            "line 2: column 'Color' is missing; did you mean the column 'Colr'",
        ),
        ('{"image": 3, "Hat": 1, "Color": 1}', "line 1: image is 3"),
        ('{"image": "a.jpg", "Hat": 2, "Color": 1}', "line 1: column 'Hat' is 2"),
        ('{"image": "a.jpg", "Hat": [1], "Color": 1}', r"line 1: column 'Hat' is \[1\]"),
    ],
)
def test_wrong_jsonl_tables_are_named(root, text, message):
    (root / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"train.jsonl, {message}"):
        read_folder(root)


def test_table_that_is_not_utf8(root):
    (root / "train.csv").write_bytes((HEADER + "a.jpg,1,1\n").encode() + "ä.jpg,1,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="train.csv, line 3 is not UTF-8 text"):
        read_folder(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.txt"])
def test_tables_as_programs_write_them(root, encoding, delimiter, name):
    rows = ["image,Hat,Color", "ä.jpg,yes,light green", "b.jpg,,1"]
    text = "\r\n".join(rows).replace(",", delimiter)
    (root / name).write_bytes(text.encode(encoding))
    records = read_folder(root)[1]["train"]
    assert [record.image_id for record in records] == ["ä.jpg", "b.jpg"]
    assert labels_of(records) == [[1, 2], [-100, 1]]


def test_a_spreadsheet_that_names_its_separator(root):
    (root / "train.csv").write_text("sep=;\nimage;Hat;Color\na, b.jpg;1;1\n")
    assert read_folder(root)[1]["train"][0].image_id == "a, b.jpg"


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="schema.json does not exist"):
        read_folder(tmp_path)
    SCHEMA.to_json(tmp_path / "schema.json")
    with pytest.raises(FileNotFoundError, match="holds no table; expected labels.csv"):
        read_folder(tmp_path)
    (tmp_path / "labels.csv").write_text(HEADER + "a.jpg,1,1\n")
    with pytest.raises(ValueError, match="1 different persons cannot be divided"):
        read_folder(tmp_path)
    (tmp_path / "labels.jsonl").touch()
    with pytest.raises(ValueError, match="both labels.csv and labels.jsonl"):
        read_folder(tmp_path)
    (tmp_path / "labels.jsonl").unlink()
    (tmp_path / "test.csv").touch()
    with pytest.raises(ValueError, match="both labels.csv and test.csv"):
        read_folder(tmp_path)
    (tmp_path / "schema.json").write_text('[{"name": ')
    with pytest.raises(ValueError, match="schema.json"):
        read_folder(tmp_path)


def test_split_column_must_be_filled_throughout(root):
    write_split_table(root, ["a.jpg,test,1,1", "b.jpg,,1,1"])
    with pytest.raises(ValueError, match="line 3: column 'split' is filled in some rows only"):
        read_folder(root)


def read_column(tmp_path, labels, cells, name="train.csv", **options):
    """The labels of one attribute from cells of a table; `name` says CSV or JSON lines."""
    prompts = [f"prompt {label}" for label in labels]
    schema = AttributeSchema([{"name": "A", "question": "which?", "labels": labels, "prompts": prompts}])
    rows = [{"image": f"{number}.jpg", "A": cell} for number, cell in enumerate(cells)]
    lines = (
        ["image,A", *(f"{row['image']},{row['A']}" for row in rows)] if name.endswith("csv") else map(json.dumps, rows)
    )
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return [record.labels[0] for record in read_folder(tmp_path, schema, **options)[1]["train"]]


def test_null_is_unknown_also_where_none_is_a_label(tmp_path):
    cells = [None, "none", "None", float("nan"), "cap"]
    assert read_column(tmp_path, ["none", "cap"], cells, "train.jsonl") == [-100, 0, 0, -100, 1]


def test_labels_that_differ_by_case_stay_apart(tmp_path):
    assert read_column(tmp_path, ["S", "s", "M"], ["S", "s", "m"]) == [0, 1, 2]
    with pytest.raises(ValueError, match="column 'A' is 'NONE'; expected one of"):
        read_column(tmp_path, ["None", "none", "cap"], ["NONE"])


def test_a_number_is_no_index_where_labels_are_numbers(tmp_path):
    assert read_column(tmp_path, ["2", "1", "0"], ["2", "2.0", "0", "02"]) == [0, 0, 2, 0]
    with pytest.raises(ValueError, match=r"column 'A' is '0'; expected one of \['1', '2', '3'\], or nothing"):
        read_column(tmp_path, ["1", "2", "3"], ["0"])


def test_true_and_false_need_labels_that_deny_and_affirm(tmp_path):
    assert read_column(tmp_path, ["no hat", "hat"], ["true", "False", True]) == [1, 0, 1]
    with pytest.raises(ValueError, match="column 'A' is 'true'; expected one of .'male', 'female'."):
        read_column(tmp_path, ["male", "female"], ["true"])


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        ([-1, 1, -1], {"negative": -1}, [0, 1, 0]),
        ([-1, 1, 0], {"negative": "-1", "unknown": "0"}, [0, 1, -100]),
        ([-1, 1, 0], {"unknown": -1}, [-100, 1, 0]),
        ([-1, 1, 0], {"negative": 0}, [-100, 1, 0]),
        (["no", "yes", -1], {}, [0, 1, -100]),
    ],
)
def test_minus_one_as_the_user_says(tmp_path, name, cells, options, expected):
    assert read_column(tmp_path, ["no", "yes"], cells, name, **options) == expected


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([1, -1], {}, "line 3: column 'A' holds -1 and neither 0 nor 'no'.*negative=-1 .--negative -1.*unknown=-1"),
        ([-1], {}, "column 'A' holds -1 and neither 0 nor 'no'"),
        ([1, 0, -1], {}, r"line 4: column 'A' holds both 0 and -1.*WIDER.*negative=-1, unknown=0.*unknown=-1"),
        ([1, 0, -1], {"negative": -1}, "line 3: column 'A' holds 0, and negative=-1 says that -1 is 'no'.*unknown=0"),
        ([1], {"negative": -1, "unknown": "-1.0"}, "negative and unknown are both -1"),
    ],
)
def test_minus_one_with_two_meanings_is_refused(tmp_path, cells, options, message):
    with pytest.raises(ValueError, match=message):
        read_column(tmp_path, ["no", "yes"], cells, **options)


def test_unknown_persons_are_nobody_and_one_id_is_one_person(root):
    people = ["7", "0007", "7.0", "-1", "", "nan", "Unknown", "8"]
    rows = [f"{number}.jpg,1,1,{person},{person}" for number, person in enumerate(people)]
    write_split_table(root, rows, "image,Hat,Color,person_id,camera_id")
    records = [record for part in read_folder(root)[1].values() for record in part]
    found = {int(record.image_id[:-4]): (record.person_id, record.camera_id) for record in records}
    expected = [7, 7, 7, None, None, None, None, 8]
    assert [found[number] for number in range(8)] == [(person, person) for person in expected]
    (root / "labels.csv").unlink()
    row = {"image": "a.jpg", "Hat": 1, "Color": 1, "split": "train"}
    (root / "labels.jsonl").write_text(json.dumps({**row, "person_id": [7]}))
    with pytest.raises(ValueError, match=r"line 1: person_id is \[7\]; expected a text or a whole number"):
        read_folder(root)


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg 1 2\nb c.jpg 0 0\n",
        "a.jpg,1,2\nb c.jpg,0,0\n",
        "a.jpg\t1,2\nb c.jpg\t0,0\n",
        "a.jpg;1;2\nb c.jpg; 0;0\n",
    ],
)
def test_lists_without_a_header_have_the_order_of_the_schema(root, text):
    (root / "train.txt").write_text(text)
    records = read_folder(root)[1]["train"]
    assert [record.image_id for record in records] == ["a.jpg", "b c.jpg"]
    assert labels_of(records) == [[1, 2], [0, 0]]


def test_a_list_with_holes_and_labels_of_two_words(root):
    (root / "train.txt").write_text('a.jpg,,light green\n"b, c.jpg",yes,\n')
    assert labels_of(read_folder(root)[1]["train"]) == [[-100, 2], [1, -100]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1 0 0\n", r"line 1: 3 labels after the path 'a.jpg'; expected one for each of the 2 .*Hat, Color"),
        ("a.jpg 1 0\nb.jpg 1\n", "line 2: 1 labels after the path 'b.jpg'"),
        ("a.jpg 1 0\n\nb.jp", "line 3: 'b.jp' is no path with labels after it"),
        ("a.jpg 1 0\nb.jpg 1 x\n", "line 2: column 'Color' is 'x'"),
    ],
)
def test_wrong_rows_of_lists_are_named(root, text, message):
    (root / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folder(root)


def test_columns_of_nothing_are_not_read_and_said(root, caplog):
    (root / "train.csv").write_text("image,Hat,Color,remarks,height\na.jpg,1,1,x,180\n")
    assert labels_of(read_folder(root)[1]["train"]) == [[1, 1]]
    assert "not read, as no attribute has that name: 'remarks', 'height'" in caplog.text
    caplog.clear()
    read_folder(root, ignore=["remarks", "height"])
    assert not caplog.text
    with pytest.raises(ValueError, match="ignore names 'remark', which is no column.*did you mean 'remarks'"):
        read_folder(root, ignore=["remark"])


@pytest.mark.parametrize("name", ["metadata.csv", "train/metadata.csv", "metadata.jsonl", "train/metadata.jsonl"])
def test_image_folders_of_datasets(root, name):
    (root / "train").mkdir()
    rows = [{"file_name": "a.jpg", "Hat": 1, "Color": "red"}]
    if "/" not in name:
        rows[0] |= {"file_name": "train/a.jpg", "split": "train"}
    lines = (
        [",".join(rows[0]), ",".join(map(str, rows[0].values()))] if name.endswith("csv") else [json.dumps(rows[0])]
    )
    (root / name).write_text("\n".join(lines))
    (record,) = read_folder(root)[1]["train"]
    assert (record.image_id, record.image) == ("train/a.jpg", str(root / "train" / "a.jpg"))
    assert record.labels.tolist() == [1, 0]


def test_the_only_table_may_have_any_name(root):
    (root / "people.csv").write_text("Image Path,Hat,Color,subset\na.jpg,1,1,train\n")
    assert labels_of(read_folder(root)[1]["train"]) == [[1, 1]]
    (root / "more.csv").write_text(HEADER)
    with pytest.raises(FileNotFoundError, match=r"holds no table.*which of \['more.csv', 'people.csv'\] is it"):
        read_folder(root)


def test_absolute_paths_below_the_folder(root):
    (root / "train.csv").write_text(HEADER + f"{root}/images/a.jpg,1,1\n")
    assert read_folder(root)[1]["train"][0].image_id == "images/a.jpg"
    (root / "train.csv").write_text(HEADER + f"{root}/../a.jpg,1,1\n")
    with pytest.raises(ValueError, match="line 2: image is .*expected a path below"):
        read_folder(root)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"Hat": "yes", "Color": "blue"}, [1, 1]),
        ([1, 2], [1, 2]),
        (["yes", None], [1, -100]),
        (["Hat", "light green"], [1, 2]),
        (["hat"], [1, -100]),
        (["Color=blue"], [0, 1]),
        ([], [0, -100]),
        ("Hat|red", [1, 0]),
        ("Hat, Light Green", [1, 2]),
        ("0 2", [0, 2]),
        ("[1, 0]", [1, 0]),
        ("", [-100, -100]),
        (None, [-100, -100]),
    ],
)
def test_labels_in_one_column(root, labels, expected):
    (root / "train.jsonl").write_text(json.dumps({"image": "a.jpg", "labels": labels}))
    assert labels_of(read_folder(root)[1]["train"]) == [expected]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"Hat": 1}, r"line 1: labels names no 'Color'; it names \['Hat'\]"),
        ({"Hat": 1, "Color": 1, "Bag": 1}, "line 1: labels names 'Bag', which is no attribute"),
        (["Hatt"], "line 1: labels names 'Hatt', which is no attribute; did you mean 'Hat'"),
        ("Hat|blu", "labels names 'blu', which is no attribute; did you mean 'blue'"),
        (["red", "blue"], "labels names both 'red' and 'blue' for 'Color'"),
        ([1, 2, 0], r"labels is \[1, 2, 0\]; expected one label or class index for each of the 2 attributes"),
        (1, "labels is 1; expected one label for each of the 2 attributes"),
    ],
)
def test_wrong_labels_in_one_column_are_named(root, labels, message):
    (root / "train.jsonl").write_text(json.dumps({"image": "a.jpg", "labels": labels}))
    with pytest.raises(ValueError, match=message):
        read_folder(root)


@pytest.mark.parametrize(
    ("columns", "cells", "options", "expected"),
    [
        ("box", '"10,20,30,60"', {}, "a.jpg#xywh=10,20,20,40"),
        ("bbox", '"[10, 20, 30, 60]"', {"box_format": "xywh"}, "a.jpg#xywh=10,20,30,60"),
        ("box", "0.1 0.2 0.5 1", {"box_format": "cxcywhn"}, "a.jpg#xywh=percent:-15,-30,50,100"),
        ("x1,y1,x2,y2", "10,20,30.5,60", {}, "a.jpg#xywh=10,20,20.5,40"),
        ("x,y,w,h", "10,20,30,60", {}, "a.jpg#xywh=10,20,30,60"),
    ],
)
def test_boxes(root, columns, cells, options, expected):
    (root / "train.csv").write_text(f"image,Hat,Color,{columns}\na.jpg,1,1,{cells}\n")
    (record,) = read_folder(root, **options)[1]["train"]
    assert record.image_id == expected and record.image == str(root / "a.jpg")


@pytest.mark.parametrize(
    ("columns", "cells", "options", "message"),
    [
        ("box", '"10,20,30"', {}, r"line 2: box is \[10, 20, 30\]; expected four numbers"),
        ("box", '"10,20,30,x"', {}, "line 2: box is .*expected four numbers"),
        ("box", "", {}, "line 2: box is ''; expected four numbers, as in the other rows"),
        ("box", '"100,200,30,60"', {}, "line 2: box is .* is empty or reversed; .*box_format='xywh'"),
        ("box", '"0.1,0.2,0.3,0.4"', {}, "which are shares of the picture; for shares pass box_format='xyxyn'"),
        ("box", '"10,20,30,40"', {"box_format": "xyxyn"}, "which are pixels; for pixels pass box_format='xyxy'"),
        ("x,y,w,h", "1,2,30,40", {"box_format": "xyxy"}, "the columns x, y, w, h hold boxes in the form xywh"),
        ("box", '"1,2,30,40"', {"box_format": "yx"}, "box_format is 'yx'; expected one of xyxy, xyxyn"),
    ],
)
def test_wrong_boxes_are_named(root, columns, cells, options, message):
    (root / "train.csv").write_text(f"image,Hat,Color,{columns}\na.jpg,1,1,{cells}\n")
    with pytest.raises(ValueError, match=message):
        read_folder(root, **options)


def test_people_of_one_picture_stay_in_one_split(root):
    rows = [f'{number // 2}.jpg,1,1,"{number % 2 * 10},0,{number % 2 * 10 + 9},20"\n' for number in range(40)]
    (root / "labels.csv").write_text("image,Hat,Color,box\n" + "".join(rows))
    splits = read_folder(root)[1]
    pictures = [{record.image for record in records} for records in splits.values()]
    assert sum(map(len, splits.values())) == 40 and sum(map(len, pictures)) == 20
    (root / "labels.csv").write_text("image,Hat,Color,box\n" + rows[0] + rows[0])
    with pytest.raises(ValueError, match="line 3: image '0.jpg' with this box is already on line 2"):
        read_folder(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.jpg", "Hat": 1, "Hat": 0, "Color": 1}', "line 1: not JSON: the key 'Hat' appears twice"),
        ('{"image": ' + "[" * 100_000, "line 1: not JSON: it is nested too deeply"),
        ('{"image": ' + "1" * 5000 + "}", "line 1: not JSON: Exceeds the limit"),
        ('{"image": "' + "a" * 2**20 + '"}', "line 1: longer than 1048576 characters"),
        ('{"image": "a\\u0000.jpg", "Hat": 1, "Color": 1}', r"line 1: image is 'a.x00.jpg'; expected a path below"),
        ('{"image": "\\ud800.jpg", "Hat": 1, "Color": 1}', "line 1: image is '.ud800.jpg'; expected a path"),
        ('{"image": "a.jpg", "Hat": 1, "Color": 1, "split": 3}', "line 1: split is 3; expected one of"),
    ],
)
def test_json_that_would_lose_a_value_or_the_process(root, text, message):
    (root / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"train.jsonl, {message}"):
        read_folder(root)


def test_a_schema_with_a_byte_order_mark(root):
    (root / "schema.json").write_text(json.dumps(SCHEMA.to_list()), encoding="utf-8-sig")
    (root / "train.csv").write_text(HEADER + "a.jpg,1,1\n")
    assert read_folder(root)[0] == SCHEMA
