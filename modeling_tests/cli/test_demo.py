import json
import os

import datasets
import pytest
from PIL import Image
from transformers import AutoModel, AutoProcessor

from modeling_tests.tiny import save_backbone, tiny_model, tiny_processor
from vlm_par_hf.cli.demo import run_demo
from vlm_par_hf.data import load_par_dataset


RESULTS = ("metrics.json", "attributes.csv", "attributes.md", "attributes.png", "learning_curve.png", "people.png")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, tiny_model("naflex"), tiny_processor("naflex"))
    return str(folder)


def check_folder(folder):
    for name in RESULTS:
        assert (folder / name).exists(), name
    with Image.open(folder / "people.png") as picture:
        assert picture.width > 600
    assert AutoModel.from_pretrained(folder / "checkpoint").config.model_type == "vlm_par"
    assert AutoProcessor.from_pretrained(folder / "checkpoint") is not None


@pytest.mark.parametrize("data_name", ["rendered", "synthetic"])
def test_the_demo_leaves_what_it_promises(backbone, tmp_path, data_name, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = []
    records = run_demo(
        tmp_path / "demo", data_name=data_name, num_train=60, epochs=2, backbone=backbone, say=lines.append
    )
    check_folder(tmp_path / "demo")
    text = "\n".join(lines)
    record = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert record["data"]["synthetic"] and record["data"]["images"] == 20
    assert f"{100 * record['metrics']['mA']:.1f}" in text and "SYNTHETIC, test split" in text
    assert 'pipeline("pedestrian-attributes", model=' in text and "set PAR_DATA" in text
    assert list(records) == [data_name]
    # Once more into the same folder: a newcomer types the command twice.
    run_demo(tmp_path / "demo", data_name=data_name, num_train=60, epochs=1, backbone=backbone)


def test_too_few_drawings(tmp_path):
    with pytest.raises(ValueError, match="num_train=10: expected at least 60"):
        run_demo(tmp_path, num_train=10)


@pytest.mark.skipif("PAR_DATA" not in os.environ, reason="needs PAR_DATA, the folder of real images")
def test_the_demo_on_real_images(backbone, tmp_path):
    lines = []
    records = run_demo(
        tmp_path,
        data_name="synthetic",
        num_train=60,
        epochs=1,
        backbone=backbone,
        real_root=os.environ["PAR_DATA"],
        say=lines.append,
    )
    check_folder(tmp_path / "pa100k_mini")
    images = len(load_par_dataset("pa100k", os.path.join(os.environ["PAR_DATA"], "pa100k_mini"))["test"])
    record = records["pa100k_mini"]
    assert record["data"]["images"] == images and not record["data"]["synthetic"]
    assert 0 < len(record["min_positives"]["attributes"]) < 26
    assert any("trained on drawn and rendered people" in line for line in lines)
