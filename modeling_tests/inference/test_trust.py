"""The sentence about the models that ship."""

import json

import pytest

from vlm_par_hf import example_crop
from vlm_par_hf.cli.main import main
from vlm_par_hf.inference import trust
from vlm_par_hf.inference.trust import trust_note
from vlm_par_hf.utils import embedded_path


class Named:
    def __init__(self, name):
        self.name_or_path = name


@pytest.mark.parametrize("kind", ["heads_pa100k", "heads_rendered"])
def test_the_sentence_has_the_numbers_that_ship(kind):
    folder = embedded_path(kind)
    record = json.loads((folder / "metrics.json").read_text())
    note = trust_note(Named(str(folder)))
    key = "mA_min_positives" if kind == "heads_pa100k" else "mA"
    assert f"mA {100 * record['metrics'][key]:.0f}, AUC {100 * record['metrics']['auc_macro']:.0f}" in note
    assert f"{record['data']['images']:,}" in note and "\n" not in note and "`vlm-par train folder" in note
    assert ("nothing was measured on photographs" in note) == (kind == "heads_rendered")


@pytest.mark.parametrize("name", [None, "", "somebody/checkpoint"])
def test_other_models_have_none(name):
    assert trust_note(Named(name)) is None


def test_without_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "embedded_path", lambda kind: tmp_path)
    assert "nothing was measured" in trust_note(Named(str(tmp_path)))


def test_answers_and_pictures_of_the_command_say_it(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["predict", example_crop("backpack"), "--out", str(out), "--draw", str(tmp_path / "drawn")]) == 0
    row = json.loads(out.read_text())
    assert row["note"] == trust_note(Named(str(embedded_path("heads")))) and len(row["attributes"]) == 26
    assert len(list((tmp_path / "drawn").iterdir())) == 1
    capsys.readouterr()
    assert main(["predict", example_crop("backpack"), "--out", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["note"] == row["note"]
