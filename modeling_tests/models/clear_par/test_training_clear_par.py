"""CLEAR through the common trainer, pipeline and command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline

import vlm_par_hf  # noqa: F401  (registers the task)
from modeling_tests.bands import data  # noqa: F401  (fixture)
from modeling_tests.tiny import randomize, tiny_clear_model, tiny_clear_processor, tiny_schema
from modeling_tests.training_runs import QUICK, Interrupt, assert_same_weights
from vlm_par_hf.cli.main import build_parser
from vlm_par_hf.training import TrainSettings, train
from vlm_par_hf.training.building import build_model


def run(data, folder, **options):  # noqa: F811
    return train(
        data, folder, model=tiny_clear_model(kway=False), processor=tiny_clear_processor(),
        settings=TrainSettings(**{**QUICK, "epochs": 1, "eval_steps": 2}), **options,
    )  # fmt: skip


def test_the_branches_too_are_kept_and_continued(data, tmp_path, caplog):  # noqa: F811
    """`Trainer` reads its checkpoints without transformers' renaming of the tensors of ViT and Swin."""
    before = tiny_clear_model(kway=False).state_dict()
    whole = run(data, tmp_path / "whole")
    best = AutoModel.from_pretrained(tmp_path / "whole" / "checkpoints" / f"checkpoint-{whole.best_step}")
    kept = whole.model.state_dict()
    assert_same_weights(kept, best.state_dict(), atol=0, rtol=0)
    for name in ("vit.layers.0.mlp.fc1.weight", "swin.encoder.layers.0.blocks.0.mlp.fc1.weight"):
        assert not torch.equal(kept[name], before[name]), name
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", callbacks=[Interrupt(3)])
    continued = run(data, tmp_path / "cut", resume=True)
    assert continued.steps == whole.steps and continued.best_step == whole.best_step
    assert_same_weights(continued.model.state_dict(), kept, atol=0, rtol=0)
    assert "missing keys" not in caplog.text
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["model"]["family"] == "clear_par"


def test_a_run_without_a_backbone_takes_fresh_branches():
    model, processor = build_model("clear_par", None, tiny_schema(), None, None, {"casa": "none"}, None)
    assert model.config.backbone_name == "fresh-tiny" and model.config.casa == "none"
    assert processor.image_processor.size["height"] == 256 and model.starts_from_priors
    model, _ = build_model(
        "clear_par", "fresh-tiny", tiny_schema(), None, None, {"paper": True, "fusion": "concat"}, None
    )
    config = model.config
    assert (config.casa, config.swin_pooling, config.fusion_projection) == ("paper", "flatten", "before")
    assert config.fusion == "concat" and config.vit_width == 128 and config.loss["label_smoothing"] == 0


@pytest.mark.parametrize(
    ("backbone", "options", "patches", "match"),
    [
        ("embedded", {}, None, "backbone 'embedded': expected a ViT or DINOv2 and a Swin with a plus.*fresh-tiny"),
        (
            None,
            {"freeze_backbone": False},
            None,
            "names 'freeze_backbone', which the family 'clear_par' does not have",
        ),
        (None, {"fusion": "text_to_image"}, None, r"fusion must be one of \('cross', 'concat'\), got 'text_to_image'"),
        (None, {}, 64, "max_num_patches is 64, but pictures have a fixed size"),
    ],
)
def test_options_of_other_families_are_refused(backbone, options, patches, match):
    with pytest.raises(ValueError, match=match):
        build_model("clear_par", backbone, tiny_schema(), None, None, options, patches)


def test_two_folders_by_name(tmp_path):
    start = tiny_clear_model()
    for name in ("vit", "swin"):
        getattr(start, name).save_pretrained(tmp_path / name)
    model, _ = build_model("clear_par", f"{tmp_path / 'vit'}+{tmp_path / 'swin'}", tiny_schema(), None, None,
                           {"image_size": [32, 16], "num_fusion_heads": 4, "freeze": "both"}, None)  # fmt: skip
    assert torch.equal(model.swin.layernorm.weight, start.swin.layernorm.weight) and not model.trains_vision_tower
    with pytest.raises(FileNotFoundError, match="there is no folder '.*missing'"):
        build_model("clear_par", f"{tmp_path / 'vit'}+{tmp_path / 'missing'}", tiny_schema(), None, None, {}, None)


@pytest.mark.parametrize("setting", [{"lora": 2}, {"train_layers": 1}])
def test_parts_of_a_backbone_that_is_not_there(data, tmp_path, setting):  # noqa: F811
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.: ClearParModel has no frozen vision-language"):
        train(data, tmp_path, model=tiny_clear_model(kway=False), processor=tiny_clear_processor(),
              settings=TrainSettings(**QUICK, **setting))  # fmt: skip


def test_the_command_has_one_option_for_a_name_of_two_families():
    parser = build_parser()
    common = ["train", "synthetic", "--out", "runs/clear", "--family", "clear_par"]
    arguments = parser.parse_args([*common, "--fusion", "cross", "--casa", "paper", "--freeze", "last_stages"])
    assert (arguments.fusion, arguments.casa, arguments.freeze) == ("cross", "paper", "last_stages")
    assert arguments.backbone is None and arguments.branches is None
    assert (
        parser.parse_args(["train", "synthetic", "--out", "x", "--fusion", "image_to_text"]).fusion == "image_to_text"
    )


def test_the_pipeline_answers_for_people_in_a_picture():
    pipe = pipeline("pedestrian-attributes", model=randomize(tiny_clear_model()), processor=tiny_clear_processor())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    found = pipe(picture, boxes=[[0, 0, 30, 60], [40, 0, 70, 60]])
    assert [list(one["attributes"]) for one in found] == [["Hat", "Backpack", "Female", "UpperColor", "BagSide"]] * 2
    with pytest.raises(ValueError, match="ClearParModel"):
        pipe(picture, attributes=["wearing a red scarf"])
    with pytest.raises(ValueError, match="ClearParModel"):
        pipe(picture, explain=["Hat"])
