"""`vlm-par export`, on the embedded model."""

import json

import pytest

from modeling_tests.exports import noise_images
from vlm_par_hf.cli.main import main
from vlm_par_hf.utils import embedded_path


for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)


def test_command_line(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for index, image in enumerate(noise_images(6)):
        image.save(images / f"{index}.png")
    out = tmp_path / "onnx8"
    checkpoint = str(embedded_path("heads"))
    assert main(["export", checkpoint, "--to", "onnx", "--int8", "--calibrate", str(images), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "onnx, int8" in said and "decisions differ from the checkpoint's" in said
    assert json.loads((out / "parity.json").read_text())["images"]["compared"] == 3
    assert main(["predict", str(images / "0.png"), "--model", str(out), "--out", "-"]) == 0
    answers = json.loads(capsys.readouterr().out)["attributes"]
    assert answers["Hat"]["label"] in ("no", "yes") and len(answers) == 26
    assert main(["export", checkpoint, "--to", "onnx", "--out", str(out)]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert main(["export", checkpoint, "--patch-grid", "16", "--out", str(tmp_path / "x")]) == 2
    assert "expected ROWSxCOLUMNS, such as 16x8" in capsys.readouterr().err
    assert main(["export", checkpoint, "--root", "x", "--out", str(tmp_path / "x")]) == 2
    assert "name the data set with --calibrate" in capsys.readouterr().err
    assert main(["export", checkpoint, "--int8", "--out", str(tmp_path / "x")]) == 2
    assert "calibration_images is empty" in capsys.readouterr().err
