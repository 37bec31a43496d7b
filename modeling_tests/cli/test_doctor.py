"""`vlm-par doctor` says what is there."""

import re

from modeling_tests.tiny import tiny_model, tiny_processor
from vlm_par_hf.cli import main
from vlm_par_hf.cli.doctor import _EXTRAS


def test_it_says_what_is_there_and_what_is_missing(tmp_path, capsys, monkeypatch):
    tiny_model("naflex").save_pretrained(tmp_path)
    tiny_processor("naflex").save_pretrained(tmp_path)
    from vlm_par_hf.cli import doctor

    known = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "peft" else known(name))
    assert main(["doctor", "--model", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  torch \d", said, re.MULTILINE) and re.search(r"^  train: accelerate \d", said, re.MULTILINE)
    assert re.search(r"^  peft: without peft: pip install .*\[peft\]", said, re.MULTILINE)
    assert re.search(
        rf"^one picture: [\d.]+ ms by {re.escape(str(tmp_path))} on cpu; the first one \d+ ms$", said, re.M
    )


def test_every_extra_is_looked_for():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(_EXTRAS) == set(extras) - {"dev"}
    for extra, packages in _EXTRAS.items():
        named = {re.match(r"[\w-]+", one)[0] for one in extras[extra]} - {"vlm-par-hf"}
        assert named == set(packages), extra


def test_a_model_that_is_not_there(capsys, tmp_path):
    assert main(["doctor", "--model", str(tmp_path / "none")]) == 2
    assert "model: there is no folder" in capsys.readouterr().err
