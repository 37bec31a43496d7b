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


def test_own_answers_and_selective(checkpoint, files, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), "folder", "--root", files["data"], "--bootstrap", "0"]
    assert main([*arguments, "--selective", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "mA_fitted" in text and "area under the risk-coverage curve" in text and "sets for 90 %" in text
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["fitted"]["data"]["split"] == "validation" and record["selective"]["aurc"] >= 0
