"""`train`: what is learned, that a run is exact however it was interrupted, and other families."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, TrainerCallback

from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from modeling_tests.training_runs import FOCUS, QUICK, Interrupt, assert_same_weights, heads, run
from vlm_par_hf.calibration import fit
from vlm_par_hf.data import ParCollator
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.models.vlm_par import VlmParModel
from vlm_par_hf.training import TrainSettings, train
from vlm_par_hf.training.runs import last_complete_checkpoint


def test_the_kept_weights_are_the_best_on_validation(finished):
    result, _ = finished
    scores = {entry["step"]: entry["eval_mA"] for entry in result.log_history if "eval_mA" in entry}
    assert len(scores) == 3
    assert result.best_mA == max(scores.values()) == scores[result.best_step]
    summary = json.loads((result.output_dir / "training.json").read_text())
    assert summary["validation_mA"] == result.best_mA and summary["best_step"] == result.best_step
    best = AutoModel.from_pretrained(result.output_dir / "checkpoints" / f"checkpoint-{result.best_step}")
    assert_same_weights(heads(result.model), heads(best))


def test_decisions_are_fitted_on_validation(finished, data):
    """The model answers by the thresholds for instance F1; those for mA are stored; one of the schema stays."""
    result, _ = finished
    decisions = Decisions.from_dict(result.model.config.decisions)
    assert decisions.points() == ["instance_f1", "mA"] and decisions.objective == "instance_f1"
    record = decisions.record
    assert record["data"] == {"name": "bands", "split": "validation", "pictures": len(data["validation"])}
    assert record["selected_by"] == "mA" and re.fullmatch(r"\d{4}-\d\d-\d\d", record["when"])
    fitted = decisions.thresholds()
    assert tiny_schema()["Backpack"].threshold == 0.4 != fitted["Backpack"]
    expected = fitted | {"Backpack": 0.4}
    assert {one.name: one.threshold for one in result.model.schema} == expected
    loaded = AutoModel.from_pretrained(result.output_dir)
    assert loaded.config.decisions == decisions.to_dict() and loaded.config.schema == result.model.schema
    # The fit is that of the kept weights' scores.
    plain = AutoModel.from_pretrained(result.output_dir, decisions=None)
    logits, labels = predict_logits(
        plain, AutoProcessor.from_pretrained(result.output_dir), data["validation"], progress=False
    )
    again = fit(logits, labels, plain.config.schema)
    for name, one in again.attributes.items():
        assert decisions.attributes[name].gain == pytest.approx(one.gain, rel=1e-3)
        assert decisions.attributes[name].points["mA"] == pytest.approx(one.points["mA"], abs=1e-3)


def test_training_further_starts_from_scores(finished, data, tmp_path):
    """Decisions of the checkpoint were fitted to other weights: they are replaced, not fitted on top of."""
    result, _ = finished
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.config.decisions)

    further = train(
        data, tmp_path / "run", model=result.output_dir, callbacks=[Look()],
        settings=TrainSettings(**QUICK | {"max_steps": 1, "learning_rate": 1e-9}),
    )  # fmt: skip
    assert seen == [None]
    first, second = (Decisions.from_dict(one.model.config.decisions) for one in (result, further))
    for name, one in first.attributes.items():
        assert second.attributes[name].gain == pytest.approx(one.gain, rel=1e-2)


def test_the_epoch_is_chosen_by_what_the_settings_say(data, tmp_path):
    result = run(data, tmp_path / "run", epochs=3, select="auc_macro")
    scores = {entry["step"]: entry for entry in result.log_history if "eval_mA" in entry}
    best = max(scores, key=lambda step: scores[step]["eval_auc_macro"])
    assert scores[result.best_step]["eval_auc_macro"] == scores[best]["eval_auc_macro"]
    assert result.best_mA == scores[result.best_step]["eval_mA"]
    assert json.loads((result.output_dir / "training.json").read_text())["selected_by"] == "auc_macro"
    assert result.model.config.decisions["record"]["selected_by"] == "auc_macro"
    same = data["validation"].map(lambda row: {"labels": [0, 0, 0]})
    with pytest.raises(ValueError, match="select='auc_macro': no attribute has two different known labels"):
        run({"train": data["train"], "validation": same}, tmp_path / "other", max_steps=1, select="auc_macro")


def test_the_record_says_what_was_run(finished):
    result, _ = finished
    record = json.loads((result.output_dir / "run.json").read_text())
    assert record["settings"]["batch_size"] == 8 and record["data"]["train_images"] == 48
    assert record["data"]["name"] == "bands"  # what the data set in memory says of itself
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"] == shlex.join(sys.argv)


def test_frozen_means_frozen_and_the_heads_moved(finished):
    result, frozen = finished
    for name, value in result.model.vlm.state_dict().items():
        assert torch.equal(value, frozen[name]), f"{name} changed"
    start = heads(tiny_model("naflex"))
    trained = heads(result.model)
    for part in ("classifier_weight", "classifier_bias", "gate", "norm_weight", "value", "pooled_mean"):
        assert not torch.equal(trained[f"attribute_heads.{part}"], start[f"attribute_heads.{part}"]), part


def test_it_learns_what_can_be_seen(data, tmp_path):
    result = run(data, tmp_path / "run", epochs=20, learning_rate=2e-2, flip=0.0, pad=0.0, precompute_features=True)
    assert result.best_mA > 0.8, "three bands, as bright as their labels: even random features tell them apart"


def test_a_test_split_is_not_needed_and_validation_is(data, tmp_path):
    run({"train": data["train"], "validation": data["validation"]}, tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match="no 'validation' split.*never on test"):
        run({"train": data["train"], "test": data["test"]}, tmp_path / "other", max_steps=1)


def test_a_label_space_that_differs_is_refused(tmp_path):
    attributes = tiny_schema().to_list()
    attributes[0] = {**attributes[0], "name": "Cap"}
    with pytest.raises(ValueError, match=r"(?s)schema differs from the checkpoint's.*Cap"):
        run(build_data(AttributeSchema(attributes)), tmp_path / "run")


@pytest.mark.parametrize(("stop", "precompute"), [(4, False), (9, True)])
def test_an_interrupted_run_continues_as_if_it_had_not_been(data, tmp_path, stop, precompute):
    # 6 steps per epoch, a checkpoint every 3: one interruption within an epoch, one after an epoch's end.
    settings = {"eval_steps": 3, "precompute_features": precompute, "erasing": 0.0 if precompute else 0.5}
    whole = run(data, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", callbacks=[Interrupt(stop)], **settings)
    assert not (tmp_path / "cut" / "config.json").exists()
    continued = run(data, tmp_path / "cut", resume=True, **settings)
    assert continued.steps == whole.steps == 18
    assert continued.best_step == whole.best_step
    assert_same_weights(heads(continued.model), heads(whole.model), atol=0, rtol=0)
    points = ("step", "loss", "grad_norm", "learning_rate", "eval_loss", "eval_mA")
    for found, expected in zip(continued.log_history, whole.log_history, strict=True):
        assert {k: found[k] for k in points if k in found} == {k: expected[k] for k in points if k in expected}


def test_gradient_accumulation_equals_the_larger_batch(data, tmp_path):
    # With unknown labels in it: micro batches hold unequal numbers of known labels.
    start = randomize(tiny_model("naflex"))
    common = {"max_steps": 4, "schedule": "constant", "warmup": 0}
    whole = run(data, tmp_path / "whole", model=start, batch_size=12, **common)
    start = randomize(tiny_model("naflex"))
    parts = run(data, tmp_path / "parts", model=start, batch_size=4, gradient_accumulation_steps=3, **common)
    assert_same_weights(heads(parts.model), heads(whole.model), atol=1e-5, rtol=1e-4)


def test_features_train_the_same_heads_as_images(data, tmp_path):
    common = {"flip": 0.0, "pad": 0.0}
    images = run(data, tmp_path / "images", **common)
    features = run(data, tmp_path / "features", precompute_features=True, **common)
    # Half-precision features; AdamW's first steps are signs of gradients, so tiny ones may differ.
    found, expected = heads(features.model), heads(images.model)
    name = "attribute_heads.classifier_weight"
    assert torch.nn.functional.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0) > 0.999
    curve = [[e["eval_loss"] for e in r.log_history if "eval_loss" in e] for r in (images, features)]
    np.testing.assert_allclose(curve[1], curve[0], atol=2e-3)


def test_bf16(data, tmp_path):
    result = run(data, tmp_path / "run", bf16=True, max_steps=4)
    assert all(value.isfinite().all() for value in heads(result.model).values())
    assert result.model.dtype == torch.float32


def test_early_stopping(data, tmp_path):
    result = run(data, tmp_path / "run", epochs=40, learning_rate=1e-12, early_stopping_patience=2, flip=0.0, pad=0.0)
    assert result.steps == 3 * 6, "nothing improves after the first validation, patience 2"
    assert run(data, tmp_path / "run", epochs=40, learning_rate=1e-12, early_stopping_patience=2, flip=0.0, pad=0.0,
               resume=True).steps == 3 * 6  # fmt: skip


def test_without_alignment_the_bias_starts_at_the_priors(data, backbone, tmp_path):
    result = train(
        data, tmp_path / "run", backbone=backbone, model_options={"alignment": "none"},
        settings=TrainSettings(**{**QUICK, "max_steps": 1, "learning_rate": 1e-9, "fit_pooled_statistics": False,
                                  "weighting": "none"}),
    )  # fmt: skip
    labels = np.asarray(data["train"]["labels"])[:, 0]
    prior = ((labels == 1).sum() + 1) / ((labels >= 0).sum() + 2)
    bias = result.model.attribute_heads.classifier_bias[0]
    assert torch.softmax(bias, -1)[1].item() == pytest.approx(prior, abs=1e-4)


@pytest.mark.parametrize("precompute", [False, True])
def test_new_heads_start_from_calibrated_zero_shot_answers(data, backbone, tmp_path, precompute):
    settings = {**QUICK, "max_steps": 1, "learning_rate": 1e-9, "precompute_features": precompute}

    def start(name, **more):
        return train(data, tmp_path / name, backbone=backbone, settings=TrainSettings(**settings, **more)).model

    model = start("run")
    fitted = model.attribute_heads
    assert (fitted.gate > 0).all() and fitted.classifier_bias.any()
    assert fitted.image_mean.any() and (fitted.image_std != 1).all()
    images = [ParCollator(tiny_processor("naflex"))(data["train"].select(range(24)))]
    images.append(ParCollator(tiny_processor("naflex"))(data["train"].select(range(24, 48))))
    expected = VlmParModel.from_backbone(backbone, attributes=model.schema, loss=model.config.loss)
    expected.fit_zero_shot(images)
    torch.testing.assert_close(fitted.gate, expected.attribute_heads.gate, rtol=1e-2, atol=1e-3)
    without = start("without", fit_zero_shot=False).attribute_heads
    assert without.gate.abs().max() < 1e-6 and without.image_mean.any()
    # A checkpoint goes on from where it is.
    again = train(data, tmp_path / "more", model=tmp_path / "without", settings=TrainSettings(**settings)).model
    assert again.attribute_heads.gate.abs().max() < 1e-6


def test_categorical_attributes_and_a_trained_tower(tmp_path):
    data = build_data(tiny_schema(kway=True))
    model = tiny_model("kway", freeze_backbone=False)
    before = {name: value.clone() for name, value in model.vlm.state_dict().items()}
    result = run(data, tmp_path / "run", kind="kway", model=model, max_steps=2)
    moved = {name for name, value in result.model.vlm.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("vision_model.") for name in moved)


def test_a_checkpoint_of_the_heads_alone(data, backbone, tmp_path):
    result = train(
        data, tmp_path / "run", backbone=backbone, model_options={"save_backbone": False},
        settings=TrainSettings(**{**QUICK, "epochs": 2}),
    )  # fmt: skip
    again = AutoModel.from_pretrained(result.output_dir)
    assert_same_weights(heads(again), heads(result.model))
    full = (Path(backbone) / "model.safetensors").stat().st_size
    assert (result.output_dir / "model.safetensors").stat().st_size < full + 200_000


_KILLED = """
import sys
from modeling_tests.tiny import tiny_schema
from modeling_tests.bands import build_data
from modeling_tests.training_runs import run

run(build_data(tiny_schema()), sys.argv[1], resume="resume" in sys.argv, epochs=12, eval_steps=3, workers=2)
"""


@pytest.mark.slow
def test_kill_9_and_resume_equal_an_uninterrupted_run(tmp_path):
    """The whole process group dies right after its first checkpoint, wherever it happens to be."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]

    def start(folder, *more):
        return subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(folder), *more], cwd=root, env=environment, start_new_session=True
        )

    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "cut")
    deadline = time.monotonic() + 300
    while last_complete_checkpoint(tmp_path / "cut" / "checkpoints") is None:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "config.json").exists()
    assert start(tmp_path / "cut", "resume").wait() == 0
    whole, cut = (AutoModel.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert_same_weights(heads(cut), heads(whole), atol=0, rtol=0)
    curves = [json.loads((tmp_path / name / "learning_curve.json").read_text()) for name in ("whole", "cut")]
    for row in (*curves[0], *curves[1]):
        for name in ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"):
            row.pop(name, None)
    assert curves[0] == curves[1]


def test_another_family(data, focus_backbone, tmp_path):
    """FOCUS through the same loop; what it decides by is fitted on validation and saved."""
    result = train(
        data, tmp_path / "run", family="focus_par", backbone=focus_backbone, model_options=FOCUS,
        settings=TrainSettings(**QUICK),
    )  # fmt: skip
    assert type(result.model).__name__ == "FocusParModel" and result.model.config.num_global_tokens == 2
    assert (result.model.decision_gain != 1).any() and (result.model.decision_offset != 0).any()
    assert result.model.config.loss["weighting"] == "sqrt"
    loaded = AutoModel.from_pretrained(result.output_dir)
    assert_same_weights(heads(loaded), heads(result.model), atol=0, rtol=0)
    asked = loaded.encode_attributes(["a red scarf"])  # the processor lies beside it
    assert asked.embeds.shape == (2, 32)
    record = json.loads((result.output_dir / "run.json").read_text())
    assert record["model"]["family"] == "focus_par"


def test_an_interrupted_run_of_another_family(data, focus_backbone, tmp_path):
    options = {"family": "focus_par", "backbone": focus_backbone, "model_options": FOCUS}
    settings = TrainSettings(**{**QUICK, "eval_steps": 3, "epochs": 2})
    whole = train(data, tmp_path / "whole", settings=settings, **options)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", settings=settings, callbacks=[Interrupt(4)], **options)
    continued = train(data, tmp_path / "cut", settings=settings, resume=True, **options)
    assert_same_weights(heads(continued.model), heads(whole.model), atol=0, rtol=0)
