"""Tables of labels in a folder: drawn labels, ids and splits, written in every way that means them."""

import csv
import io
import json
import math
import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from modeling_tests.fuzz.fuzzing import Area
from vlm_par_hf.data import read_folder


AREA = Area("tables", "the drawn labels, ids and splits")
CONVENTIONS = Area("tables, -1", "the meaning that the options give, or a refusal where two fit")

KINDS = (
    ("no", "yes"),
    ("no hat", "hat"),
    ("male", "female"),
    ("none", "cap"),
    ("S", "s", "M"),
    ("1", "2", "3+"),
    ("red", "blue", "Light Green"),
    ("été", "hiver", "秋"),
    ("none", "unknown", "other"),
)
SPLITS = {"train": ("train", "Train", " train"), "validation": ("val", "validation", "DEV"), "test": ("test", "TEST")}
LINE_ENDS = ("\n", "\r\n", "\r")


def attribute(position: int, labels: tuple[str, ...]) -> dict:
    prompts = [f"prompt {position} {label}" for label in labels]
    return {"name": f"A{position}", "question": "which?", "labels": list(labels), "prompts": prompts}


def spellings(labels: tuple[str, ...], index: int, typed: bool) -> list:
    """Cells that mean this class; `typed` for JSON."""
    texts = {text.lower() for text in labels}
    if index == -100:
        cells = [text for text in ("", "unknown", "NaN", "null", "None", "N/A", "<NA>") if text.lower() not in texts]
        cells += ["-100", "-100.0"] + (["-1", "-1.0"] if len(labels) > 2 else [])
        return cells + ([None, math.nan, -100, -100.0] if typed else [])
    own = labels[index]
    cells = [own, f" {own} "]
    if sum(text.lower() == own.lower() for text in labels) == 1:
        cells += [own.upper(), own.title()]
    if not any(text.isdigit() for text in labels):
        cells += [str(index), f"{index}.0"] + ([index, float(index)] if typed else [])
    elif own.isdigit():
        cells += [f"{own}.0", f"0{own}"] + ([int(own), float(own)] if typed else [])
    if len(labels) == 2 and labels[0].startswith("no"):
        cells += [("false", "True")[index], ("FALSE", "true")[index]] + ([bool(index)] if typed else [])
    return cells


def id_spellings(value: int | str | None, typed: bool) -> list:
    if value is None:
        return ["", "-1", "nan", "Unknown", "N/A", "-1.0"] + ([None, -1, math.nan, -1.0] if typed else [])
    if isinstance(value, str):
        return [value, f" {value}"]
    return [str(value), f"{value:04d}", f"{value}.0"] + ([value, float(value)] if typed else [])


@st.composite
def tables(draw):
    """(schema, rows as drawn, rows as cells, columns, JSON?)"""
    typed = draw(st.booleans())
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    schema = [attribute(position, labels) for position, labels in enumerate(kinds)]
    with_ids = draw(st.sampled_from([(), ("person_id",), ("person_id", "camera_id")]))
    ids = draw(st.sampled_from([[0, 1, 7, None], ["p1", "été", 3, None]]))
    count = draw(st.integers(1, 8))
    truth, cells = [], []
    for number in range(count):
        labels = [draw(st.sampled_from([-100, *range(len(kind))])) for kind in kinds]
        split = draw(st.sampled_from(sorted(SPLITS)))
        named = {column: draw(st.sampled_from(ids)) for column in with_ids}
        image = draw(st.sampled_from([f"{number}.png", f"images/{number}.png", f"a b/ü {number}.jpg"]))
        truth.append((image, labels, named, split))
        written = image.replace("/", "\\") if draw(st.integers(0, 9)) == 0 else image
        row = {"image": written, "split": draw(st.sampled_from(SPLITS[split]))}
        for kind, item, label in zip(kinds, schema, labels):
            row[item["name"]] = draw(st.sampled_from(spellings(kind, label, typed)))
        for column, value in named.items():
            row[column] = draw(st.sampled_from(id_spellings(value, typed)))
        cells.append(row)
    columns = draw(st.permutations(list(cells[0])))
    return schema, truth, cells, columns, typed


def expected(truth: list) -> dict:
    """Split -> rows of (image, labels, person, camera), ids as int where all are."""
    as_int = {
        column: all(not isinstance(named.get(column), str) for _, _, named, _ in truth)
        for column in ("person_id", "camera_id")
    }

    def one(column, value):
        return value if value is None or as_int[column] else str(value)

    found: dict = {}
    for image, labels, named, split in truth:
        ids = [one(column, named.get(column)) for column in ("person_id", "camera_id")]
        found.setdefault(split, []).append((image, labels, *ids))
    return found


def answer(splits: dict) -> dict:
    return {
        split: [(r.image_id, r.labels.tolist(), r.person_id, r.camera_id) for r in records]
        for split, records in splits.items()
    }


def encode(cells, columns, typed, line_end="\n", quoting=csv.QUOTE_MINIMAL, blank=False, ascii_only=False) -> str:
    if typed:
        lines = [json.dumps({name: row[name] for name in columns}, ensure_ascii=ascii_only) for row in cells]
        return line_end.join([*lines, "" if blank else "\n"])
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=quoting, lineterminator=line_end)
    writer.writerow(columns)
    writer.writerows([[row[name] for name in columns] for row in cells])
    return stream.getvalue() + (line_end * 2 if blank else "")


def read(schema, data: bytes, typed: bool, **options):
    root = Path(tempfile.mkdtemp(prefix="tables"))
    try:
        (root / "schema.json").write_text(json.dumps(schema))
        (root / ("labels.jsonl" if typed else "labels.csv")).write_bytes(data)
        return answer(read_folder(root, **options)[1])
    finally:
        shutil.rmtree(root)


@AREA.fuzz(
    2500,
    table=tables(),
    line_end=st.sampled_from(LINE_ENDS),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    mark=st.booleans(),
    blank=st.booleans(),
    ascii_only=st.booleans(),
)
def test_ways_to_write_a_table(table, line_end, quoting, mark, blank, ascii_only):
    schema, truth, cells, columns, typed = table
    text = encode(cells, columns, typed, line_end, quoting, blank, ascii_only)
    data = text.encode("utf-8-sig" if mark else "utf-8")
    AREA.judge(lambda: read(schema, data, typed), lambda found: found == expected(truth))


def _set(cells, column, value):
    cells[0][column] = value


# What is done to the cells, or to the text; all of it must be refused.
FIELD_FAULTS = {
    "above": lambda cells: _set(cells, "image", "../a.png"),
    "absolute": lambda cells: _set(cells, "image", "/etc/a.png"),
    "inside out": lambda cells: _set(cells, "image", "a/../../b.png"),
    "drive": lambda cells: _set(cells, "image", "C:\\a.png"),
    "address": lambda cells: _set(cells, "image", "http://host/a.png"),
    "null byte": lambda cells: _set(cells, "image", "a\0b.png"),
    "no image": lambda cells: _set(cells, "image", ""),
    "twice": lambda cells: cells.append(dict(cells[0])),
    "split": lambda cells: _set(cells, "split", "trian"),
    "label": lambda cells: _set(cells, "A0", "maybe not"),
    "index": lambda cells: _set(cells, "A0", "7"),
    "below": lambda cells: _set(cells, "A0", "-2"),
    "part": lambda cells: _set(cells, "A0", "0.5"),
    "rounded id": lambda cells: [row.update(person_id="1.23457E+17") for row in cells],
    "bell": lambda cells: [row.update(person_id="a\x07b") for row in cells],
}
JSON_FAULTS = {
    "list": lambda cells: _set(cells, "A0", [1]),
    "object": lambda cells: _set(cells, "A0", {"yes": 1}),
    "infinite": lambda cells: _set(cells, "A0", math.inf),
    "huge": lambda cells: _set(cells, "A0", 10**400),
    "true person": lambda cells: [row.update(person_id=True) for row in cells],
    "huge person": lambda cells: [row.update(person_id=1e19) for row in cells],
    "number as image": lambda cells: _set(cells, "image", 3),
    "half a character": lambda cells: _set(cells, "image", "\ud800.png"),
}
TEXT_FAULTS = {
    "utf-16": lambda text: text.encode("utf-16"),
    "latin-1": lambda text: ("é" + text).encode("latin-1"),
    "semicolons": lambda text: text.replace(",", ";").encode(),
    "tabs": lambda text: text.replace(",", "\t").encode(),
    "no header": lambda text: text.split("\n", 1)[1].encode(),
    "column twice": lambda text: ("image," + text).encode(),
    "other column": lambda text: ("remarks," + text).encode(),
    "quote": lambda text: (text + '"').encode(),
    "cell more": lambda text: (text + "x,x\n").encode(),
    "empty": lambda text: b"",
}
JSON_TEXT_FAULTS = {
    "utf-16": lambda text: text.encode("utf-16"),
    "key twice": lambda text: text.replace("{", '{"A0": null, ', 1).encode(),
    "cut": lambda text: (text.rstrip() + "\n{").encode(),
    "deep": lambda text: (text + '{"image": ' + "[" * 100_000 + "\n").encode(),
    "digits": lambda text: (text + '{"image": ' + "1" * 5000 + "}\n").encode(),
    "no object": lambda text: (text + "[1]\n").encode(),
    "long": lambda text: (text + '{"image": "' + "a" * 2_000_000 + '"}\n').encode(),
}


@AREA.fuzz(1200, table=tables(), choice=st.randoms(use_true_random=False))
def test_faults_of_a_table(table, choice):
    schema, _, cells, columns, typed = table
    fields = {**FIELD_FAULTS, **JSON_FAULTS} if typed else FIELD_FAULTS
    texts = JSON_TEXT_FAULTS if typed else TEXT_FAULTS
    name = choice.choice(sorted({*fields, *texts}))
    if name in fields:
        fields[name](cells)
        data = encode(cells, list(cells[0]), typed, ascii_only=True).encode("utf-8")
    else:
        data = texts[name](encode(cells, columns, typed))
    AREA.judge(lambda: read(schema, data, typed), lambda found: False, must_refuse=True)


@AREA.fuzz(600, table=tables(), share=st.floats(0, 1))
def test_a_table_that_ends_early_gives_its_whole_rows(table, share):
    schema, truth, cells, columns, typed = table
    data = encode(cells, columns, typed).encode("utf-8")
    cut = data[: int(share * len(data))]

    def right(found):
        rows = [(image, labels) for records in found.values() for image, labels, _, _ in records]
        drawn = {image: labels for image, labels, _, _ in truth}
        ends_in = [image for image, labels in rows if drawn.get(image) != labels]
        return len(rows) <= len(truth) and len(ends_in) <= 1  # the last row may have lost part of its last cell

    AREA.judge(lambda: read(schema, cut, typed), right)


MEANINGS = {"no": 0, "false": 0, "yes": 1, "1": 1, "": -100, "-100": -100, "0": 0}


@CONVENTIONS.fuzz(
    1000,
    column=st.lists(st.sampled_from(["-1", "0", "1", "no", "yes", ""]), min_size=1, max_size=6),
    negative=st.sampled_from([None, "-1", -1, "0"]),
    unknown=st.sampled_from([None, "-1", 0, "0"]),
)
def test_minus_one(column, negative, unknown):
    options = {"negative": negative, "unknown": unknown}
    chosen = {}
    for value, meaning in ((unknown, -100), (negative, 0)):
        if value is not None:
            chosen[str(value)] = meaning
    same = negative is not None and unknown is not None and str(negative) == str(unknown)
    open_minus_one = "-1" in column and "-1" not in chosen
    says_no = "no" in column or chosen.get("0") == 0 and "0" in column
    refuse = (
        same or (open_minus_one and not says_no) or (chosen.get("-1") == 0 and "0" in column and "0" not in chosen)
    )
    meaning = {**MEANINGS, "-1": -100, **chosen}
    rows = [f"{number}.png,train,{cell}" for number, cell in enumerate(column)]
    data = "\n".join(["image,split,A0", *rows, ""]).encode()
    CONVENTIONS.judge(
        lambda: read([attribute(0, ("no", "yes"))], data, False, **options),
        lambda found: [labels for _, labels, _, _ in found["train"]] == [[meaning[cell]] for cell in column],
        must_refuse=refuse,
    )
