import argparse
import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from vlm_par_hf.embedded import train_backbone
from vlm_par_hf.embedded.distillation import COMPONENTS
from vlm_par_hf.embedded.texts import build_tokenizer
from vlm_par_hf.embedded.train_backbone import (
    POOLED,
    Average,
    Student,
    Views,
    explained_variance,
    flip_group,
    identity_loss,
    own_targets,
)
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("synthetic")
GRID = (3, 2)


def random_group(seed):
    """Views of noise; the teacher's features are linear in their mean colors, so that they can be learned."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, 48, 32, 3), dtype=np.uint8)
    pixels = (pixels * rng.random((6, 1, 1, 3))).astype(np.uint8)
    maps = np.random.default_rng(0).standard_normal((2, 3, max(POOLED, COMPONENTS)))
    colors = pixels.mean((1, 2)) / 64 - 1
    labels = rng.integers(0, 2, (6, len(SCHEMA))).astype(np.int16)
    labels[0] = -100
    return {
        "pixels": pixels,
        "labels": labels,
        "grid": np.array(GRID),
        "index": np.arange(6),
        "persons": np.array([-1, 0, 0, 1, 1, 2]),
        "pooled": (colors @ maps[0][:, :POOLED]).astype(np.float16),
        "patches": np.repeat((colors @ maps[1][:, :COMPONENTS])[:, None], 6, 1).astype(np.float16),
    }


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(320)


@pytest.fixture
def work(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(train_backbone, "HELD_OUT_GROUPS", 1)
    monkeypatch.setattr(train_backbone, "build_tokenizer", lambda: tokenizer)
    for name in ("synthetic", "other"):
        folder = tmp_path / "views" / name
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(json.dumps({"schema": "synthetic", "pictures": 6}))
        for number in range(4):
            np.savez(folder / f"{number:06d}.npz", **random_group(number))
    return tmp_path


def train(monkeypatch, work, run, *arguments):
    sizes = ["--width", "32", "--depth", "1", "--save-every", "2", "--warm-up", "2", "--texts", "3"]
    monkeypatch.setattr(sys, "argv", ["", "--work", str(work), "--run", str(work / run), *sizes, *arguments])
    train_backbone.main()
    return [json.loads(line) for line in (work / run / "train_log.jsonl").read_text().splitlines()]


def weights(work, run, file="state.pt"):
    return torch.load(work / run / file, weights_only=True)["student"]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(work, monkeypatch):
    train(monkeypatch, work, "whole", "--steps", "4")
    train(monkeypatch, work, "parts", "--steps", "2")
    log = train(monkeypatch, work, "parts", "--steps", "4")
    assert [row["step"] for row in log] == [2, 4]
    whole, parts = weights(work, "whole"), weights(work, "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_rate_falls_to_zero_and_the_checkpoint_is_that_of_transformers(work, monkeypatch):
    train(monkeypatch, work, "run", "--steps", "2")
    log = train(monkeypatch, work, "run", "--decay", "4")
    assert [row["step"] for row in log] == [2, 4, 6]
    assert log[-1]["rate"] == pytest.approx(0.25)
    assert (work / "run" / "state.pt").exists(), "the run with a constant rate can go on"
    folder = work / "run" / "checkpoint"
    assert AutoModel.from_pretrained(folder).dtype == torch.float16
    model, processor = AutoModel.from_pretrained(folder, dtype=torch.float32), AutoProcessor.from_pretrained(folder)
    inputs = processor.image_processor([np.zeros((100, 40, 3), np.uint8)], return_tensors="pt")
    assert model.get_image_features(**inputs).pooler_output.shape == (1, 32)
    saved = torch.load(work / "run" / "decayed.pt", weights_only=True)["average"]
    name = "vision_model.embeddings.patch_embedding.weight"
    torch.testing.assert_close(model.state_dict()[name], saved[f"backbone.{name}"].half().float())


def test_the_losses_fall(work, monkeypatch):
    log = train(monkeypatch, work, "run", "--steps", "30", "--save-every", "10", "--learning-rate", "3e-3")
    for kind in ("pooled", "patches", "labels"):
        assert log[-1]["losses"][f"synthetic {kind}"] < log[0]["losses"][f"synthetic {kind}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-muon", "--keep", "0.5", "--no-bf16"],
        ["--label-weight", "0", "--caption-weight", "0"],
        ["--pooled-weight", "0", "--patch-weight", "0"],
        ["--sources", "synthetic", "other", "--shares", "1", "3", "--flip"],
        ["--label-weight", "0", "--self-weight", "1", "--keep", "0.5"],
        ["--label-weight", "0", "--identity-weight", "1", "--flip"],
    ],
)
def test_parts_can_be_left_out(work, monkeypatch, arguments):
    (row,) = train(monkeypatch, work, "run", "--steps", "2", *arguments)
    kinds = {name.split()[1] for name in row["losses"]}
    weights = dict(zip(arguments, arguments[1:], strict=False))
    names = {"pooled": "pooled", "patch": "patches", "label": "labels", "caption": "captions"}
    usual = {plural for name, plural in names.items() if weights.get(f"--{name}-weight") != "0"}
    assert kinds == usual | {name for name in ("self", "identity") if f"--{name}-weight" in weights}
    assert all(np.isfinite(value) for value in row["losses"].values())


def test_weights_of_another_run_are_a_start(work, monkeypatch, caplog):
    train(monkeypatch, work, "first", "--steps", "2")
    with caplog.at_level("INFO"):
        train(monkeypatch, work, "second", "--steps", "2", "--start", str(work / "first/state.pt"), "--depth", "2")
    assert "took" in caplog.text


def test_files_used_least_come_first(work):
    views = Views({"synthetic": work / "views" / "synthetic"}, [1.0], {})
    rng = np.random.default_rng(0)
    for _ in range(6):
        views.draw(rng)
    assert sorted(views.uses.values()) == [2, 2, 2], "three files, the held-out one never"
    np.savez(work / "views" / "synthetic" / "000009.npz", **random_group(9))
    views.look()
    views.draw(rng)
    assert sorted(views.uses.values()) == [1, 2, 2, 2]


def test_mirrored_views_have_mirrored_targets():
    group = random_group(0)
    group["patches"] = np.arange(6 * 6 * 2).reshape(6, 6, 2)
    flipped = flip_group(group, SCHEMA)
    assert (flipped["pixels"][:, :, 0] == group["pixels"][:, :, -1]).all()
    assert flipped["patches"][0, :, 0].tolist() == [2, 0, 6, 4, 10, 8]
    assert (flipped["labels"] == SCHEMA.mirror_labels(group["labels"])).all()
    again = flip_group(flipped, SCHEMA)
    assert all((again[key] == group[key]).all() for key in group)


def test_explained_variance_is_that_of_the_definition():
    torch.manual_seed(0)
    student = Student(320, {"synthetic": SCHEMA}, 32, 1, 2.0)
    group = random_group(0)
    with torch.no_grad():
        for head, name in ((student.to_pooled, "pooled"), (student.to_patches, "patches")):
            head.weight.zero_()
            head.bias.copy_(torch.from_numpy(group[name]).float().flatten(0, -2).mean(0))
        assert explained_variance(student, [group]) == {"pooled": pytest.approx(0, abs=1e-3)} | {
            "patches": pytest.approx(0, abs=1e-3)
        }
        student.to_pooled.bias.zero_()
    assert explained_variance(student, [group])["pooled"] < 0


def test_identity_loss_is_that_of_plain_loops():
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    persons = np.array([3, -1, 3, 5, 3])
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    terms, told = [], [0, 2, 3, 4]
    for i in told:
        partners = [j for j in told if j != i and persons[j] == persons[i]]
        total = sum(torch.exp(unit[i] @ unit[k] / 0.1) for k in told if k != i)
        if partners:
            terms.append(-sum(unit[i] @ unit[j] / 0.1 - total.log() for j in partners) / len(partners))
    assert len(terms) == 3
    torch.testing.assert_close(identity_loss(vectors, persons), sum(terms) / 3)
    with pytest.raises(ValueError, match="no two of 4 pictures"):
        identity_loss(vectors, np.array([-1, 0, 1, 2, 3]))


def test_own_targets_are_those_of_the_averaged_weights_and_change_nothing():
    torch.manual_seed(0)
    student = Student(320, {"synthetic": SCHEMA}, 32, 1, 2.0, ["self"])
    average = Average(student, 0.5)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    group, args = random_group(0), argparse.Namespace(bf16=False)
    first = own_targets(student, average, group, args)
    assert first.shape == (6, 6, 32)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(own_targets(student, average, group, args), first), "the weights of the moment do not matter"
    assert all((parameter == 0).all() for parameter in student.parameters())
    assert all(torch.equal(value, own) for value, own in zip(average.values, before, strict=True))


def test_the_average_of_weights():
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
        average = Average(module, 0.5)
        module.weight.fill_(1.0)
        average.update(module, 100)
        assert average.values[0].item() == 0.5
        average.swap(module)
        assert module.weight.item() == 0.5
        average.swap(module)
        assert module.weight.item() == 1.0
