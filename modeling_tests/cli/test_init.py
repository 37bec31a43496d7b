"""`vlm-par init` and `vlm-par schema`."""

import json
import shlex

import pytest
from PIL import Image

from vlm_par_hf.cli.main import main
from vlm_par_hf.labels.schema import AttributeSchema


@pytest.fixture
def table(tmp_path):
    rows = ["image;split;Hat;Color;notes"]
    for number in range(24):
        Image.new("RGB", (16, 32), (number * 10, 0, 0)).save(tmp_path / f"{number}.png")
        split = "train" if number < 16 else "validation"
        rows.append(f"{number}.png;{split};{number % 2};{('red', 'blue')[number % 2]};seen {number}")
    (tmp_path / "people.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    return tmp_path / "people.csv"


def test_from_a_table_to_a_model(table, files, capsys):
    """The printed command trains as it stands."""
    assert main(["init", str(table)]) == 0
    out = capsys.readouterr().out
    assert "people.csv: 24 rows" in out and "notes  free text: 24 different values" in out
    assert "read: train 16, validation 8" in out
    assert AttributeSchema.from_json(table.parent / "schema.json").names == ("Hat", "Color")
    command = shlex.split(out.strip().splitlines()[-1].removeprefix("train: "))
    assert command[:2] == ["vlm-par", "train"]
    command[command.index("runs/mine")] = str(table.parent.parent / "run")
    extra = ["--backbone", files["backbone"], "--max-steps", "1", "--no-progress"]
    assert main([*command[1:], *extra]) == 0


def test_what_is_there_is_not_replaced(table, capsys):
    schema = table.parent / "schema.json"
    schema.write_text("[]")
    assert main(["init", str(table)]) == 2
    assert "schema.json is there already: replace it (--overwrite)" in capsys.readouterr().err
    assert schema.read_text() == "[]"
    assert main(["init", str(table), "--overwrite"]) == 0


def test_what_is_wanted_before_training_is_said(table, capsys):
    table.write_text(table.read_text().replace(";0;", ";-1;"))
    assert main(["init", str(table)]) == 1
    assert "before training: " in (out := capsys.readouterr().out) and "--negative -1" in out
    assert main(["init", str(table), "--negative", "-1", "--overwrite"]) == 0
    assert "--negative -1" in capsys.readouterr().out
    (table.parent / "3.png").unlink()
    assert main(["init", str(table), "--negative", "-1", "--overwrite"]) == 1
    assert "1 of 24 images do not exist, the first is" in capsys.readouterr().out


def test_a_table_beside_the_one_that_training_reads(table, capsys):
    (table.parent / "labels.csv").write_text("image,Hat\n0.png,1\n")
    assert main(["init", str(table)]) == 1
    assert "training reads labels.csv in this folder: rename people.csv" in capsys.readouterr().out


def test_a_table_without_labels(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("image,height\na.png,1.5\n")
    assert main(["init", str(tmp_path)]) == 2
    assert "no column holds labels" in capsys.readouterr().err
    assert main(["init", str(tmp_path), "--labels", "height"]) == 2
    assert "labels='height': expected COLUMN=A|B|..." in capsys.readouterr().err


def test_schema_from_words(tmp_path, capsys):
    words = ["wearing a hat", "Bag=a backpack | a handbag | no bag", "Scarf=wearing a red scarf"]
    assert main(["schema", *words]) == 0
    printed = AttributeSchema(json.loads(capsys.readouterr().out))
    assert printed.names == ("wearing a hat", "Bag", "Scarf")
    assert printed["Bag"].labels == ("a backpack", "a handbag", "no bag")
    assert printed["Bag"].prompts[2] == "a photo of a person with no bag"
    path = tmp_path / "schema.json"
    assert main(["schema", *words, "--out", str(path)]) == 0
    assert AttributeSchema.from_json(path) == printed
    assert main(["schema", *words, "--out", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a hat | no hat"], "labels are ['a hat', 'no hat'], but of two labels the second is the positive one"),
        (["a hat |"], "alternatives must be two texts or more"),
        (["Hat="], "attributes holds an empty text"),
        (["a hat", "a hat"], "a hat"),
    ],
)
def test_words_that_make_no_schema(words, message, capsys):
    assert main(["schema", *words]) == 2
    assert message in capsys.readouterr().err
