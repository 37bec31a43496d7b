"""Every script in examples/ runs, as a user runs it: from a shell, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tests.tiny import tiny_model, tiny_processor, tiny_schema
from modeling_tests.training.conftest import build_data


EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))

# Small size and tiny weights; BACKBONE, MODEL and IMAGE stand for files that the fixture makes.
SMALL = {
    "predict.py": ["IMAGE", "--model", "MODEL", "--explain", "Hat", "--output", "out/predict.png"],
    "train_vlm_par.py": ["--backbone", "BACKBONE", "--num-train", "32", "--batch-size", "8", "--epochs", "2",
                         "--out", "out"],
}  # fmt: skip
# The same scripts as the first line of their docstring runs them, on the embedded model, at small size.
EMBEDDED = {
    "predict.py": ["--people", "2", "--output", "out/predict.png"],
    "train_vlm_par.py": ["--num-train", "64", "--epochs", "1", "--out", "out"],
}
WRITES = {"predict.py": ["predict.png"], "train_vlm_par.py": ["config.json", "metrics.json", "attributes.png"]}


def run(script, arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.strip(), "an example says where its result lies"
    for name in WRITES[script]:
        assert (folder / "out" / name).exists(), name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples")
    model, processor = tiny_model("naflex"), tiny_processor("naflex")
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    model.vlm.save_pretrained(root / "backbone")
    processor.image_processor.save_pretrained(root / "backbone")
    processor.tokenizer.save_pretrained(root / "backbone")
    build_data(tiny_schema(), {"test": 1})["test"][0]["image"].save(root / "person.png")
    return {"MODEL": str(root / "model"), "BACKBONE": str(root / "backbone"), "IMAGE": str(root / "person.png")}


def test_there_are_examples_and_each_one_is_run_here():
    assert SCRIPTS, f"no example found in {EXAMPLES}"
    assert SCRIPTS == sorted(SMALL) == sorted(EMBEDDED) == sorted(WRITES), "a new example needs its lines above"


@pytest.mark.parametrize("script", SCRIPTS)
def test_example(script, files, tmp_path):
    run(script, [files.get(argument, argument) for argument in SMALL[script]], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_example_on_the_embedded_model(script, tmp_path):
    run(script, EMBEDDED[script], tmp_path)
