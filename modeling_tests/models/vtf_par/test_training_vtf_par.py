"""VTF on tracklets through the common trainer, evaluation and command: from pictures and from cached features."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling_tests.tiny import tiny_model, tiny_processor, tiny_vtf_model, tiny_vtf_processor
from modeling_tests.training_runs import QUICK, Interrupt, assert_same_weights
from vlm_par_hf import dataset_schema, load_par_dataset
from vlm_par_hf.cli.main import build_parser
from vlm_par_hf.features import TrackletFeatures, compute_features
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.training import TrainSettings, evaluate, train
from vlm_par_hf.training.building import build_model


SIZES = {"num_train": 6, "num_validation": 2, "num_test": 3, "length": 4}


@pytest.fixture(scope="module")
def tracklets():
    return load_par_dataset("synthetic_tracklets", **SIZES)


def run(data, folder, **options):
    own = {name: options.pop(name) for name in ("resume", "callbacks", "cache_features") if name in options}
    return train(
        data, folder, model=tiny_vtf_model("naflex", attributes=dataset_schema(data), num_frames=2),
        processor=tiny_vtf_processor(),
        settings=TrainSettings(**{**QUICK, "epochs": 2, "batch_size": 2, **options}), **own,
    )  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_is_kept_and_continued(tracklets, tmp_path, cached):
    options = {"cache_features": tmp_path / "features"} if cached else {}
    before = tiny_vtf_model("naflex", attributes=dataset_schema(tracklets), num_frames=2).state_dict()
    whole = run(tracklets, tmp_path / "whole", **options)
    assert whole.steps == 6  # 6 tracklets, not 24 frames
    loaded = AutoModel.from_pretrained(tmp_path / "whole")
    assert_same_weights(loaded.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    moved = {name for name, value in loaded.state_dict().items() if not torch.equal(value, before[name])}
    assert "classifier.weight" in moved and "pooled_mean" in moved and not any(n.startswith("vlm.") for n in moved)
    assert loaded.config.decisions["record"]["pictures"] == 2
    with pytest.raises(KeyboardInterrupt):
        run(tracklets, tmp_path / "cut", callbacks=[Interrupt(4)], **options)
    continued = run(tracklets, tmp_path / "cut", resume=True, **options)
    assert_same_weights(continued.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)


def test_features_give_what_pictures_give(tracklets):
    data = tracklets["train"]
    model, processor = tiny_vtf_model("naflex", attributes=dataset_schema(data), num_frames=3), tiny_vtf_processor()
    features = compute_features(model, data, processor, views=("identity", "flip"), dtype="float32", progress=False)
    assert len(features) == 24
    features.flip = 0.0
    by_tracklet = TrackletFeatures(features, data, 3)
    assert len(by_tracklet) == 6
    item = by_tracklet[1]
    assert item["patch_embeds"].shape == (3, 12, 32) and item["frame_mask"].all()
    assert item["labels"].tolist() == data[4]["labels"]
    expected, labels = predict_logits(model, processor, data, progress=False)
    found, same = predict_logits(model, None, by_tracklet, progress=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.array_equal(same, labels)
    drawn = TrackletFeatures(features, data, 2, random=True)
    draws = []
    for epoch in range(8):
        drawn.set_epoch(epoch)
        draws.append(drawn[0]["patch_embeds"].sum().item())
        assert drawn[0]["patch_embeds"].sum().item() == draws[-1]
    assert len(set(draws)) > 3
    drawn.flip = 1.0
    mirrored = dataset_schema(data).mirror_labels(np.asarray(data["labels"][:1]))[0]
    assert drawn[0]["labels"].tolist() == mirrored.tolist()
    batch = TrackletFeatures(features, data.select(range(23))).__getitems__([0, 5]).tensors
    assert batch["frame_mask"].tolist() == [[True] * 4, [True, True, True, False]]


def test_tracklets_are_measured_one_by_one(tracklets, tmp_path):
    schema = dataset_schema(tracklets)
    model = tiny_vtf_model("naflex", attributes=schema)
    options = {"bootstrap": 0, "progress": False, "processor": tiny_vtf_processor()}
    record = evaluate(model, tracklets, output_dir=tmp_path, by_person=True, **options)
    assert record["data"]["images"] == 3 and set(record["video"]) == {"chen", "vtf", "vtfpar++"}
    assert json.loads((tmp_path / "metrics.json").read_text())["video"]["vtf"].keys() == {
        "accuracy", "precision", "recall", "f1",
    }  # fmt: skip
    single, processor = tiny_model("naflex", attributes=schema), tiny_processor()
    options["processor"] = processor
    assert evaluate(single, tracklets, **options)["data"]["images"] == 12
    found = evaluate(single, tracklets, aggregate="vote", **options)
    assert found["data"]["images"] == 3 and found["aggregate"] == "vote"
    with pytest.raises(ValueError, match="VtfParModel takes all frames of a person at once"):
        evaluate(model, tracklets, aggregate="vote", **{**options, "processor": tiny_vtf_processor()})
    pictures = load_par_dataset("synthetic", num_train=1, num_validation=1, num_test=2)
    with pytest.raises(ValueError, match="the data set has no column tracklet_id"):
        evaluate(single, pictures, aggregate="vote", **options)
    assert evaluate(model, pictures, **{**options, "processor": tiny_vtf_processor()})["data"]["images"] == 2


def test_the_command_has_the_options_of_the_family():
    args = build_parser().parse_args(
        [
            "train",
            "mars",
            "--root",
            "x",
            "--out",
            "y",
            "--family",
            "vtf_par",
            "--temporal",
            "quality",
            "--num-frames",
            "8",
        ]
    )
    assert (args.temporal, args.num_frames, args.logit_norm) == ("quality", 8, None)
    schema = load_par_dataset("synthetic_tracklets", num_train=1, num_validation=1, num_test=1, length=2)
    options = {"paper": True, "fusion_width": 64, "num_fusion_heads": 4}
    model, processor = build_model("vtf_par", "embedded", dataset_schema(schema), None, None, options, None)
    config = model.config
    assert (config.temporal, config.pooled_classifier, config.fusion_width) == ("mean", False, 64)
    assert config.text_template.startswith("the pedestrian has") and processor.patch_grid == [12, 6]
