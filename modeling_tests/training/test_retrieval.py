"""Training and evaluating retrieval heads: what is learned, resuming, refusals."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_tests.tiny import (
    tiny_clear_model,
    tiny_clear_processor,
    tiny_focus_model,
    tiny_focus_processor,
    tiny_model,
    tiny_processor,
)
from vlm_par_hf.errors import ParError
from vlm_par_hf.metrics.retrieval import attribute_retrieval
from vlm_par_hf.retrieval.ranking import rank_people
from vlm_par_hf.retrieval.scoring import SCORINGS
from vlm_par_hf.training import RetrievalSettings, evaluate_retrieval, fitting_adapters, train_retrieval
from vlm_par_hf.training.retrieval import load_retriever


QUICK = RetrievalSettings(epochs=3, batch_size=8)
HEAD = {"embedding_size": 16}


def run(data, folder, *, model=None, processor=None, **options):
    options = {"head": HEAD, "settings": QUICK, "progress": False, **options}
    processor = processor or tiny_processor()
    return train_retrieval(model or tiny_model(), data, folder, processor=processor, **options)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("retrieval") / "head")


def test_a_run_writes_a_head_that_loads(data, trained):
    loaded = AutoModel.from_pretrained(trained.output_dir)
    for name, value in trained.retriever.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    summary = json.loads((trained.output_dir / "training.json").read_text())
    assert summary["validation_mAP"] == max(one["validation_mAP"] for one in summary["history"])
    assert summary["best_epoch"] == trained.fit.best_epoch and len(summary["history"]) == 3
    labels = np.unique(np.asarray(data["train"]["labels"]), axis=0)
    np.testing.assert_array_equal(loaded.categories.numpy(), labels)
    assert loaded.config.recognizer_type == "vlm_par" and loaded.config.uses_probabilities


def test_it_learns(data, tmp_path):
    result = run(data, tmp_path / "head", settings=RetrievalSettings(epochs=15, batch_size=8))
    losses = [one["loss"] for one in result.fit.history]
    assert losses[-1] < 0.8 * losses[0]


def test_a_killed_run_continues_and_gives_the_same(data, trained, tmp_path, monkeypatch):
    write, written = fitting_adapters._write_state, []

    def die(*arguments):
        write(*arguments)
        written.append(1)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting_adapters, "_write_state", die)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "head")
    monkeypatch.undo()
    (tmp_path / "head" / "vectors" / "train-00007.part").write_bytes(b"half")
    assert not (tmp_path / "head" / "config.json").exists()
    with pytest.raises(ValueError, match="holds an earlier run"):
        run(data, tmp_path / "head")
    for options, words in (
        ({"settings": RetrievalSettings(epochs=4, batch_size=8)}, "settings epochs: 3 then, 4 now"),
        ({"head": {"embedding_size": 8}}, "head embedding_size: 16 then, 8 now"),
        ({"model": tiny_model(seed=1)}, "model sha256"),
        ({"attributes": ["Hat"]}, "attributes : None then, ['Hat'] now"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            run(data, tmp_path / "head", resume=True, **options)
    found = run(data, tmp_path / "head", resume=True)
    expected, weights = (load_file(one.output_dir / "model.safetensors") for one in (trained, found))
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert found.fit == trained.fit and not list((tmp_path / "head").rglob("*.part"))


def test_damaged_states_and_vectors(data, trained, tmp_path):
    run(data, tmp_path / "head")
    vectors = tmp_path / "head" / "vectors" / "train-00000.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:50])
    found = run(data, tmp_path / "head", resume=True)  # computed again
    assert found.fit == trained.fit
    state = tmp_path / "head" / "states" / "adapters.safetensors"
    state.write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged"):
        run(data, tmp_path / "head", resume=True)


@pytest.mark.parametrize("family", ["clear", "focus", "features"])
def test_every_family_and_cached_features(data, tmp_path, family):
    if family == "clear":
        options = {
            "model": tiny_clear_model(),
            "processor": tiny_clear_processor(),
            "head": {**HEAD, "soft_weight": 0},
        }
    elif family == "focus":
        options = {"model": tiny_focus_model(), "processor": tiny_focus_processor()}
    else:
        options = {"cache_features": tmp_path / "features"}
    result = run(data, tmp_path / "head", **options)
    assert result.retriever.parts == (("hard",) if family == "clear" else ("both", "hard", "soft"))
    assert result.retriever.config.uses_probabilities == (family != "clear")
    if family == "features":
        assert (tmp_path / "features" / "train" / "manifest.json").is_file()


def test_chosen_attributes(data, tmp_path):
    result = run(data, tmp_path / "head", attributes=["Hat", "Backpack"])
    categories = result.retriever.categories
    hat, backpack = (result.retriever.schema.index(name) for name in ("Hat", "Backpack"))
    open_ones = [i for i in range(categories.shape[1]) if i not in (hat, backpack)]
    assert (categories[:, open_ones] == -100).all() and (categories[:, hat] >= 0).all() and len(categories) <= 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": {"size": 3}}, "head names 'size'"),
        ({"attributes": ["Ht"]}, "did you mean 'Hat'"),
        ({"attributes": []}, "expected a list of names"),
        ({"resume": True, "overwrite": True}, "expected one of them"),
        ({"delete_listed": True}, "expected overwrite=True too"),
        ({"model": tiny_clear_model(), "processor": tiny_clear_processor()}, "has no text tower"),
        ({"model": tiny_model("kway")}, "schema differs"),
    ],
)
def test_refused(data, tmp_path, options, words):
    with pytest.raises(ParError, match=re.escape(words)):
        run(data, tmp_path / "head", **options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -1}, "weight_decay=-1"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        RetrievalSettings(**settings)


def test_files_of_somebody_else(data, tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape("mine.txt")):
        run(data, tmp_path / "head")


class TestEvaluation:
    def test_all_scorings(self, data, trained, tmp_path):
        model, processor = tiny_model(), tiny_processor()
        record = evaluate_retrieval(
            model, data, processor=processor, retriever=trained.output_dir, output_dir=tmp_path, progress=False
        )
        assert set(record["scorings"]) == set(SCORINGS) and not record["left_out"]
        queries = len(np.unique(np.asarray(data["test"]["labels"]), axis=0))
        for found in record["scorings"].values():
            assert found["queries"] == queries and 0 < found["mAP_standard"] <= 1
            assert found["queries"] == found["seen"]["queries"] + found["unseen"]["queries"]
        assert json.loads((tmp_path / "retrieval.json").read_text()) == json.loads(json.dumps(record))
        table = (tmp_path / "retrieval.md").read_text()
        assert "| log_likelihood | unseen |" in table and "attribute vectors that the train split" in table
        with pytest.raises(FileExistsError, match="replace it"):
            evaluate_retrieval(model, data, processor=processor, output_dir=tmp_path, progress=False)

    def test_what_cannot_be_measured_is_said(self, data):
        options = {"processor": tiny_clear_processor(), "progress": False}
        record = evaluate_retrieval(tiny_clear_model(), data, **options)
        assert set(record["scorings"]) == {"log_likelihood", "l1"}
        assert "retriever is None" in record["left_out"]["adapters"] and "no text tower" in record["left_out"]["text"]
        with pytest.raises(ValueError, match="retriever is None"):
            evaluate_retrieval(tiny_clear_model(), data, scorings=["adapters"], **options)
        with pytest.raises(ValueError, match="scoring 'best'"):
            evaluate_retrieval(tiny_clear_model(), data, scorings=["best"], **options)

    def test_the_head_of_another_recogniser(self, trained):
        with pytest.raises(ValueError, match="has other weights"):
            load_retriever(trained.output_dir, tiny_model(seed=1), tiny_processor())
        assert load_retriever(trained.output_dir, tiny_model(), tiny_processor()).parts[0] == "both"

    def test_the_truth_finds_everybody(self):
        labels = np.random.default_rng(0).integers(0, 2, (40, 3))
        schema = tiny_model().config.schema
        truth = np.eye(2)[labels] * 0.8 + 0.1
        queries = np.unique(labels, axis=0)
        for scoring in ("log_likelihood", "l1"):
            scores = rank_people(scoring, queries, schema, probabilities=truth)
            assert attribute_retrieval(scores, queries, labels)["mAP_standard"] == 1
