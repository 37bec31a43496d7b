"""The folder of a run: what is in it, what of it is continued, and what is never overwritten."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from modeling_tests.bands import build_data
from modeling_tests.tiny import tiny_schema
from modeling_tests.training_runs import Interrupt, assert_same_weights, heads, run
from vlm_par_hf.data import ParCollator
from vlm_par_hf.output_folders import LIST
from vlm_par_hf.training import train
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


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, max_steps=3)
    notes = [out / "notes.md", out / "checkpoints" / "notes.md", out / "checkpoints" / "checkpoint-3" / "notes.md"]
    for path in notes:
        path.write_text("mine")
    weights = next((out / "checkpoints").glob("checkpoint-*/model.safetensors"))
    weights.write_bytes(b"something else")
    with pytest.raises(FileExistsError, match="1 files were changed since.*checkpoint-3/model.safetensors"):
        run(data, out, max_steps=2, overwrite=True)
    with pytest.raises(FileExistsError, match="checkpoint-3/notes.md' was not written by a run"):
        run(data, out, max_steps=2, overwrite=True, delete_listed=True)
    notes.pop().unlink()
    run(data, out, max_steps=2, overwrite=True, delete_listed=True)
    assert [path.read_text() for path in notes] == ["mine", "mine"]
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"notes.md", "checkpoint-2"}


def test_files_of_somebody_else_are_not_replaced(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer_config.json").write_text("mine")
    for options in ({}, {"overwrite": True, "delete_listed": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match="tokenizer_config.json' was not written by a run"):
            run(data, tmp_path / "run", **options)
    assert [path.read_text() for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_run_of_an_earlier_version_is_shown_before_it_is_replaced(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, max_steps=3)
    (out / LIST).unlink()
    with pytest.raises(FileExistsError, match=r"taken for those of an earlier version.*'checkpoints/checkpoint-3/"):
        run(data, out, max_steps=2, overwrite=True)
    assert run(data, out, max_steps=2, overwrite=True, delete_listed=True).steps == 2
    (out / LIST).unlink()
    assert run(data, out, max_steps=2, resume=True).steps == 2 and (out / LIST).is_file()


def test_a_run_does_not_replace_what_it_starts_from(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, max_steps=1)
    options = {"output_dir": out, "overwrite": True, "delete_listed": True}
    for source in (out, out / "checkpoints" / "checkpoint-1"):
        with pytest.raises(ValueError, match=r"out=.*(is|would be replaced and holds) model .*only read"):
            train(data, model=str(source), **options)


def test_a_moved_run_reads_its_own_weights(data, tmp_path):
    """The Trainer writes absolute paths: at the old place lie other weights by now."""
    first, moved, whole = tmp_path / "first", tmp_path / "moved", tmp_path / "whole"
    rate = {"learning_rate": 3e-4}  # slow enough that the last epoch is the best
    expected = run(data, whole, **rate)
    assert expected.best_step == 18
    with pytest.raises(KeyboardInterrupt):
        run(data, first, callbacks=[Interrupt(14)], **rate)
    shutil.copytree(first, moved)
    for path in (first / "checkpoints").glob("checkpoint-*/model.safetensors"):
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    again = run(data, moved, resume=True, **rate)
    assert_same_weights(heads(again.model), heads(expected.model), atol=0, rtol=0)
    assert again.best_mA == expected.best_mA
    # The last step was made, and only the result is missing.
    final = tmp_path / "final"
    shutil.copytree(moved, final)
    for path in (moved / "checkpoints").glob("checkpoint-*/model.safetensors"):
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    assert_same_weights(heads(run(data, final, resume=True, **rate).model), heads(expected.model), atol=0, rtol=0)
    # Without the best weights the old mA is not claimed.
    newest = last_complete_checkpoint(final / "checkpoints")
    state = json.loads((newest / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = "/elsewhere/checkpoints/checkpoint-3"
    (newest / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(FileNotFoundError, match="the run in .*final' ended, and its best weights are not in"):
        run(data, final, resume=True, **rate)


def test_files_of_a_run_have_the_permissions_of_the_umask(data, tmp_path):
    before = os.umask(0o027)
    try:
        run(data, tmp_path / "run", max_steps=1)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes
