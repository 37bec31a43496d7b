import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vlm_par_hf import dataset_schema, get_schema
from vlm_par_hf.data.synthetic.rendered import as_pa100k, write_rendered_dataset
from vlm_par_hf.embedded import exchange, train_heads
from vlm_par_hf.embedded.train_heads import fit_thresholds, halve, rendered_data, with_pa100k_labels
from vlm_par_hf.utils import embedded_path


def test_thresholds_are_those_of_calibrated_scores():
    rng = np.random.default_rng(0)
    schema = get_schema("pa100k").subset(["Hat", "Glasses"])
    priors = np.array([0.05, 0.3])
    labels = (rng.random((20_000, 2)) < priors).astype(np.int64)
    margins = 2 * rng.normal(size=labels.shape) + 4 * labels - 2 + np.log(priors / (1 - priors))
    logits = np.stack([np.zeros_like(margins), margins], -1)
    fitted, power = fit_thresholds(logits, labels, schema, labels)
    assert 0.8 <= power <= 1.2
    for one, prior in zip(fitted, priors):
        odds = (prior / (1 - prior)) ** power
        assert one.threshold == pytest.approx(odds / (1 + odds), abs=0.01)
    same, power = fit_thresholds(logits[:3], np.full((3, 2), -100), schema, labels)
    assert same == schema and power == 0


def test_halve(tmp_path):
    tensors = {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([3])}
    save_file(tensors, tmp_path / "model.safetensors")
    halve(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found["a"].dtype == torch.float16 and found["b"].dtype == torch.int64
    assert torch.equal(found["a"].float(), tensors["a"]) and torch.equal(found["b"], tensors["b"])


def test_rendered_people_with_the_labels_of_pa100k(tmp_path):
    write_rendered_dataset(tmp_path / "x", num_train=2, num_validation=1, num_test=1, num_proc=1)
    args = train_heads.argparse.Namespace(rendered=[tmp_path / "x"], num_train=1)
    data = rendered_data(args)
    assert {split: len(part) for split, part in data.items()} == {"train": 1, "validation": 1, "test": 1}
    split = with_pa100k_labels(data["train"], get_schema("pa100k"))
    assert split.column_names == ["image", "labels"] and dataset_schema(split) == get_schema("pa100k")
    assert split[0]["labels"] == as_pa100k(np.array(data["train"][0]["labels"])).tolist()
    assert isinstance(split[0]["image"], Image.Image)
    write_rendered_dataset(tmp_path / "y", num_train=1, num_proc=1)
    with pytest.raises(ValueError, match=r"has no \['test', 'validation'\]"):
        rendered_data(train_heads.argparse.Namespace(rendered=[tmp_path / "y"], num_train=1))


def test_a_backbone_is_copied_with_its_records(tmp_path):
    source = tmp_path / "run" / "checkpoint"
    source.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"lacks config.json"):
        exchange.copy_backbone(source, tmp_path / "out")
    for name in exchange.FILES:
        (source / name).write_bytes((embedded_path("backbone_drawings") / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    (tmp_path / "run" / "train_log.jsonl").write_text("{}\n")
    exchange.copy_backbone(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*exchange.FILES, "train_log.jsonl"])
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config | {"dtype": "float32"}
