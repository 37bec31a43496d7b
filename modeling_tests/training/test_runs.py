"""The folder of a run: what is in it, what of it is continued, and what is never overwritten."""

import shutil

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_tests.bands import build_data
from modeling_tests.tiny import tiny_schema
from modeling_tests.training_runs import Interrupt, assert_same_weights, heads, run
from vlm_par_hf.data import ParCollator
from vlm_par_hf.output_folders import LIST
from vlm_par_hf.training.runs import last_complete_checkpoint


def test_the_folder_is_an_ordinary_checkpoint(finished, data):
    result, _ = finished
    model = AutoModel.from_pretrained(result.output_dir)
    processor = AutoProcessor.from_pretrained(result.output_dir)
    batch = ParCollator(processor)([data["test"][index] for index in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, result.model(**batch).logits, atol=1e-5, rtol=1e-5)
    names = {path.name for path in result.output_dir.iterdir()}
    assert {"run.json", "training.json", "learning_curve.json", "learning_curve.csv", "learning_curve.png"} <= names
    assert {name for name in names if name.startswith(".")} == {LIST}, "something unfinished was left"


def test_an_intermediate_checkpoint_can_be_used(finished):
    result, _ = finished
    checkpoint = last_complete_checkpoint(result.output_dir / "checkpoints")
    assert AutoProcessor.from_pretrained(checkpoint) is not None
    assert AutoModel.from_pretrained(checkpoint).config.schema == tiny_schema()


def test_an_earlier_run_is_not_overwritten(finished, data):
    result, _ = finished
    with pytest.raises(ValueError, match="holds an earlier run.*--resume.*--overwrite"):
        run(data, result.output_dir)
    with pytest.raises(ValueError, match="resume=True and overwrite=True"):
        run(data, result.output_dir, resume=True, overwrite=True)


def test_another_run_is_not_continued(finished, data):
    result, _ = finished
    with pytest.raises(ValueError, match=r"(?s)cannot be continued.*seed: 42 then, 7 now"):
        run(data, result.output_dir, resume=True, seed=7)
    other = build_data(tiny_schema(), seed=3)
    with pytest.raises(ValueError, match=r"(?s)cannot be continued.*data train_sha256"):
        run(other, result.output_dir, resume=True)


def test_resume_without_a_checkpoint_starts_from_the_beginning(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run", callbacks=[Interrupt(1)], max_steps=3)
    assert run(data, tmp_path / "run", resume=True, max_steps=3).steps == 3


def test_a_half_written_checkpoint_is_passed_over(data, tmp_path):
    result = run(data, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    newest = last_complete_checkpoint(checkpoints)
    state = newest / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    older = last_complete_checkpoint(checkpoints)
    assert older is not None and older != newest
    assert_same_weights(heads(run(data, tmp_path / "run", resume=True).model), heads(result.model), atol=0, rtol=0)
    shutil.rmtree(checkpoints)
    assert last_complete_checkpoint(checkpoints) is None


def test_a_run_that_ended_before_its_folder_was_written_takes_no_further_step(data, tmp_path):
    result = run(data, tmp_path / "run")
    for path in list(result.output_dir.iterdir()):
        if path.is_file() and path.name != "run.json":
            path.unlink()
    again = run(data, tmp_path / "run", resume=True)
    assert again.steps == result.steps and again.best_mA == result.best_mA
    assert_same_weights(heads(again.model), heads(result.model))
    assert AutoModel.from_pretrained(again.output_dir) is not None


def test_overwrite_starts_anew(data, tmp_path):
    first = run(data, tmp_path / "run", max_steps=2)
    assert first.steps == 2
    assert run(data, tmp_path / "run", max_steps=3, overwrite=True).steps == 3
