"""`vlm-par train-retrieval` and `evaluate-retrieval`, on a checkpoint trained by the command line."""

import json

from vlm_par_hf.cli.main import main


def test_train_and_evaluate(checkpoint, files, tmp_path, capsys):
    head = tmp_path / "head"
    data = ["folder", "--root", files["data"]]
    words = ["train-retrieval", str(checkpoint), *data, "--out", str(head), "--epochs", "2", "--embedding-size", "8"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "validation mAP" in said and str(head) in said
    assert json.loads((head / "run.json").read_text())["command"].startswith("vlm-par train-retrieval")
    assert main(words) == 2 and "holds an earlier run" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert main([*words, "--overwrite", "--attributes", "Hat,Backpack"]) == 0
    capsys.readouterr()
    measure = ["evaluate-retrieval", str(checkpoint), *data, "--head", str(head)]
    assert main([*measure, "--attributes", "Hat,Backpack"]) == 0
    said = capsys.readouterr().out
    assert "adapters_soft" in said and "unseen" in said
    record = json.loads((head / "retrieval_folder_test" / "retrieval.json").read_text())
    assert record["attributes"] == ["Hat", "Backpack"] and record["command"].startswith("vlm-par evaluate-retrieval")
    assert main(["card", str(head)]) == 2 and "exists" in capsys.readouterr().err  # the training wrote one
    assert main(["card", str(head), "--overwrite", "--name", "me/head"]) == 0
    card = (head / "README.md").read_text()
    assert "# me/head" in card and "| folder, test | log_likelihood | all, " in card and "Trained on folder" in card
    assert main(["card", str(head), "--overwrite", "--metrics", str(head / "run.json")]) == 2
    assert "is no record of evaluate-retrieval" in capsys.readouterr().err
    for more, message in (
        (["--scoring", "best"], "scoring 'best', expected log_likelihood"),
        (["--attributes", " , "], "names none"),
        (["--attributes", "Ht", "--overwrite"], "did you mean 'Hat'"),
        ([], "replace it"),
    ):
        assert main([*measure, *more]) == 2
        assert message in capsys.readouterr().err
