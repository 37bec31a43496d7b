"""`vlm-par evaluate`."""

import json

from vlm_par_hf.cli.main import main


def test_evaluate(checkpoint, files, capsys):
    arguments = ["evaluate", str(checkpoint), "folder", "--root", files["data"], "--bootstrap", "20"]
    assert main([*arguments, "--by-person", "--threshold", "schema"]) == 0
    text = capsys.readouterr().out
    assert "folder, test, 12 images" in text and "instance_f1_harmonic" in text
    assert "auc_macro" in text and "average_precision_macro" in text
    record = json.loads((checkpoint / "evaluation_folder_test" / "metrics.json").read_text())
    assert record["threshold"] == "schema" and record["resampled"] == "persons"


def test_slices_and_a_data_set_with_other_names(checkpoint, files, tmp_path, capsys):
    """Everything that a user can add, by the names of the data set."""
    out = tmp_path / "out"
    arguments = ["evaluate", str(checkpoint), "folder", "--root", files["data"], "--bootstrap", "5", "--out", str(out)]
    assert main([*arguments, "--slices", "Female, size"]) == 0
    text = capsys.readouterr().out
    assert "Not shown, fewer than 30" in text
    record = json.loads((out / "metrics.json").read_text())
    assert [one["name"] for one in record["slices"]["by"]] == ["Female", "size"]
    assert main([*arguments, "--mapping", str(tmp_path / "nothing.json")]) == 2
    assert main([*arguments, "--slices", "Ago"]) == 2
    assert "slices names 'Ago'" in capsys.readouterr().err


def test_own_answers_and_selective(checkpoint, files, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), "folder", "--root", files["data"], "--bootstrap", "0"]
    assert main([*arguments, "--selective", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "mA_fitted" in text and "area under the risk-coverage curve" in text and "sets for 90 %" in text
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["fitted"]["data"]["split"] == "validation" and record["selective"]["aurc"] >= 0
