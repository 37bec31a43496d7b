import csv
import io
import json

import pytest
from PIL import Image

from vlm_par_hf.training import plot_attributes, plot_learning_curve
from vlm_par_hf.training.plots import curve_rows, table_text, write_history


LOG = [
    {"step": 5, "epoch": 0.5, "loss": 1.0, "learning_rate": 1e-3},
    {"step": 10, "epoch": 1.0, "loss": 0.8, "learning_rate": 9e-4},
    {"step": 10, "epoch": 1.0, "eval_loss": 0.9, "eval_mA": 0.61},
    {"step": 20, "epoch": 2.0, "loss": 0.5, "learning_rate": 1e-4},
    {"step": 20, "epoch": 2.0, "eval_loss": 0.95, "eval_mA": 0.59},
    {"step": 20, "epoch": 2.0, "train_runtime": 3.0, "train_loss": 0.7},
]


def is_drawn(path):
    with Image.open(path) as image:
        low, high = image.convert("L").getextrema()
        return image.width > 300 and image.height > 100 and low < 100 < high


def test_curve_rows_join_training_and_validation_of_a_step():
    rows = curve_rows(LOG)
    assert [row["step"] for row in rows] == [5, 10, 20]
    assert rows[1] == {
        "step": 10, "epoch": 1.0, "loss": 0.8, "learning_rate": 9e-4, "eval_loss": 0.9, "eval_mA": 0.61,
    }  # fmt: skip
    assert all("train_runtime" not in row for row in rows)


def test_history_is_the_same_in_json_and_csv(tmp_path):
    json_path, csv_path = write_history(LOG, tmp_path)
    rows = json.loads(json_path.read_text())
    cells = list(csv.DictReader(io.StringIO(csv_path.read_text())))
    assert len(rows) == len(cells) == 3
    assert float(cells[2]["eval_mA"]) == rows[2]["eval_mA"] == 0.59
    assert cells[0]["eval_mA"] == ""


def test_table_keeps_every_column():
    assert table_text([{"a": 1}, {"b": "x,y"}]) == 'a,b\n1,\n,"x,y"\n'


def test_learning_curve_is_drawn(tmp_path):
    path = plot_learning_curve(LOG, tmp_path / "deep" / "curve.png", title="run", best_step=10)
    assert is_drawn(path)
    assert [item.name for item in path.parent.iterdir()] == ["curve.png"]


def test_learning_curve_without_validation_yet(tmp_path):
    assert is_drawn(plot_learning_curve(LOG[:1], tmp_path / "curve.png"))


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="neither a training loss nor a validation mA"):
        plot_learning_curve([], tmp_path / "curve.png")
    with pytest.raises(ValueError, match="table is empty"):
        plot_attributes([], tmp_path / "attributes.png")


def test_attributes_are_drawn_undefined_ones_too(tmp_path):
    table = [
        {"name": "Hat", "mA": 0.9, "chance": 0.5, "rarest": 120},
        {"name": "Cane", "mA": None, "chance": 0.5, "rarest": 0},
        {"name": "Boots", "mA": float("nan"), "chance": 0.25, "rarest": 3},
    ]
    assert is_drawn(plot_attributes(table, tmp_path / "attributes.png", title="three"))
