"""The examples in C++ and JavaScript: they cut pictures as the processor does, and answer as Python does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlm_par_hf
from vlm_par_hf import VlmParProcessor
from vlm_par_hf.utils import embedded_path


ELSEWHERE = Path(__file__).parents[1] / "examples" / "elsewhere"
GRID = (16, 8)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed here")
@pytest.mark.parametrize("name, channels", [("skirt", 3), ("bags", 4)])
def test_javascript_cuts_pictures_as_the_processor_does(name, channels, tmp_path):
    picture = Image.open(vlm_par_hf.example_crop(name)).convert("RGB")
    (tmp_path / "pixels").write_bytes(np.asarray(picture.convert("RGB" if channels == 3 else "RGBA")).tobytes())
    script = f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        const {{ toPatches }} = await import({json.dumps((ELSEWHERE / "attributes.mjs").as_uri())});
        const patches = toPatches(readFileSync("pixels"), {picture.width}, {picture.height}, {GRID[0]}, {GRID[1]});
        writeFileSync("patches", new Uint8Array(patches.buffer));
    """
    subprocess.run(["node", "--input-type=module", "--eval", script], cwd=tmp_path, check=True, timeout=60)
    patches = np.frombuffer((tmp_path / "patches").read_bytes(), np.float32).reshape(1, GRID[0] * GRID[1], -1)
    processor = VlmParProcessor.from_pretrained(embedded_path("heads"), patch_grid=GRID)
    expected = processor(images=[picture], return_tensors="np")["pixel_values"]
    assert patches.shape == expected.shape
    assert np.abs(patches - expected).max() < 1.1 * 2 / 255, "no more than one grey level"
    assert (np.abs(patches - expected) < 1e-6).mean() > 0.9


@pytest.mark.slow
def test_cpp_answers_as_python_does(tmp_path):
    utils = pytest.importorskip("openvino.utils", reason="OpenVINO is not installed here")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("there is no CMake or no C++ compiler here")
    exported, build = tmp_path / "exported", tmp_path / "build"
    vlm_par_hf.export_model(
        embedded_path("heads"), exported, patch_grid=GRID, compared_images=[Image.open(vlm_par_hf.example_crop())]
    )
    config = json.loads((exported / "config.json").read_text())
    lines = ["\t".join([one["name"], *one["labels"]]) for one in config["attributes"]]
    (exported / "labels.txt").write_text("\n".join([f"{GRID[0]}\t{GRID[1]}", *lines, ""]))
    Image.open(vlm_par_hf.example_crop()).convert("RGB").save(exported / "person.ppm")
    openvino = f"-DOpenVINO_DIR={utils.get_cmake_path()}"
    subprocess.run(["cmake", "-S", ELSEWHERE, "-B", build, openvino], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    command = [build / "attributes", exported / "model.xml", exported / "labels.txt", exported / "person.ppm"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    script = f"""
import vlm_par_hf
from transformers import pipeline
answers = pipeline("pedestrian-attributes", model={str(exported)!r})(vlm_par_hf.example_crop())["attributes"]
for name, one in answers.items():
    print(name, one["label"], format(one["score"], ".4f"), sep="\\t")
"""
    expected = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    for ours, theirs in zip(found.splitlines(), expected.splitlines(), strict=True):
        assert ours.split("\t")[:2] == theirs.split("\t")[:2]
        assert abs(float(ours.split("\t")[2]) - float(theirs.split("\t")[2])) < 0.002
    missing = subprocess.run([build / "attributes", exported / "model.xml", exported / "labels.txt", "gone.ppm"],
                             capture_output=True, text=True)  # fmt: skip
    assert missing.returncode == 1 and "gone.ppm: expected a binary PPM" in missing.stderr
