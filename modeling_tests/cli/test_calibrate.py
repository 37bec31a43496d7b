"""`vlm-par calibrate`, on a checkpoint trained by the command line."""

import json
from pathlib import Path

from vlm_par_hf.cli.main import main


def test_calibrate_and_predict_with_it(checkpoint, files, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["calibrate", str(checkpoint), "folder", "--root", files["data"], "--out", str(out)]
    assert main([*words, "--objective", "precision>=0.9"]) == 0
    said = capsys.readouterr().out
    assert "12 pictures of folder, cross-fitted in 5 parts" in said and "before" in said and str(out) in said
    record = json.loads((out / "calibration.json").read_text())
    assert record["command"].startswith("vlm-par calibrate") and "curves" not in record
    picture = next(str(path) for path in Path(files["data"]).glob("*.png"))
    assert main(["predict", picture, "--model", str(out), "--out", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["attributes"]
    adapted = str(tmp_path / "adapted")
    assert main(["calibrate", str(out), files["data"], "--priors-only", "--out", adapted]) == 0
    assert "Assumed: only the shares of the labels differ" in capsys.readouterr().out
    for more, message in (
        ([], "holds something already"),
        (["--objective", "cost"], "--costs and --objective cost belong together"),
        (["--costs", "1:2"], "--costs and --objective cost belong together"),
        (["--objective", "cost", "--costs", "1"], "costs='1': expected two numbers"),
        (["--split", "test"], "run.json of .* says"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert message.split(" .* ")[0] in error, error
