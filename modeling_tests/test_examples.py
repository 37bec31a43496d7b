"""Every script in examples/ runs, as a user runs it: from a shell, in a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tests.bands import build_data
from modeling_tests.hub_server import HubServer
from modeling_tests.tiny import tiny_model, tiny_processor, tiny_schema


EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))

# Small size and tiny weights; BACKBONE, MODEL, IMAGE and HUB stand for what the fixture makes.
SMALL = {
    "focus_open_attributes.py": ["--backbone", "BACKBONE", "--num-train", "40", "--epochs", "1", "--people", "6",
                                 "--show", "2", "--out", "out"],
    "predict.py": ["IMAGE", "--model", "MODEL", "--explain", "Hat", "--output", "out/predict.png"],
    "round_trip.py": ["--repo", "org/round-trip", "--endpoint", "HUB", "--images", "40", "--epochs", "1",
                      "--backbone", "BACKBONE", "--out", "out"],
    "train_vlm_par.py": ["--backbone", "BACKBONE", "--num-train", "32", "--batch-size", "8", "--epochs", "2",
                         "--out", "out"],
    "video_par.py": ["--backbone", "BACKBONE", "--num-train", "4", "--num-test", "2", "--epochs", "1",
                     "--seconds", "0.8", "--out", "out"],
}  # fmt: skip
# The same scripts as the first line of their docstring runs them, on the embedded model, at small size.
EMBEDDED = {
    "focus_open_attributes.py": ["--num-train", "64", "--epochs", "1", "--people", "20", "--out", "out"],
    "predict.py": ["--output", "out/predict.png"],
    "round_trip.py": [
        "--repo",
        "org/embedded",
        "--endpoint",
        "HUB",
        "--images",
        "100",
        "--epochs",
        "1",
        "--out",
        "out",
    ],
    "train_vlm_par.py": ["--num-train", "64", "--epochs", "1", "--out", "out"],
    "video_par.py": ["--num-train", "16", "--num-test", "4", "--epochs", "1", "--seconds", "2", "--out", "out"],
}
WRITES = {
    "focus_open_attributes.py": ["found.png", "model/config.json"],
    "predict.py": ["predict.png"],
    "round_trip.py": ["round_trip.json", "checkpoint/metrics.json", "prepared/report.json"],
    "train_vlm_par.py": ["config.json", "metrics.json", "attributes.png"],
    "video_par.py": ["ablation.md", "street.mp4", "people.jsonl", "people.png", "drawn.mp4", "people.xml"],
}


def run(script, arguments, folder, hub):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "HUB" in arguments:
        environment.update(hub.environment(folder / "home"))
        del environment["HF_ENDPOINT"]  # the script is told by its argument
        arguments = [hub.url if argument == "HUB" else argument for argument in arguments]
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


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    # Weights and parquet travel as large files, as to the Hub itself.
    with HubServer(tmp_path_factory.mktemp("hub"), lfs_over=20_000) as server:
        yield server


@pytest.mark.parametrize("script", SCRIPTS)
def test_example(script, files, hub, tmp_path):
    run(script, [files.get(argument, argument) for argument in SMALL[script]], tmp_path, hub)


def test_the_round_trip_went_through_the_hub(files, hub, tmp_path):
    if "org/round-trip" not in hub.repos:
        test_example("round_trip.py", files, hub, tmp_path)
    model, data = hub.repos["org/round-trip"], hub.repos["datasets/org/round-trip"]
    assert model.private and data.private and not hub.unknown
    assert "data/train-00000-of-00001.parquet" in hub.files("datasets/org/round-trip")
    card = hub.read("org/round-trip", "README.md").decode()
    assert "SYNTHETIC" in card and "28 training" in card and "test: 8 images" in card
    schema = json.loads(hub.read("datasets/org/round-trip", "schema.json"))
    config = json.loads(hub.read("org/round-trip", "config.json"))
    assert [one["name"] for one in config["attributes"]] == [one["name"] for one in schema]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_example_on_the_embedded_model(script, hub, tmp_path):
    run(script, EMBEDDED[script], tmp_path, hub)
