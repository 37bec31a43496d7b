import numpy as np
import pytest
import torch
from transformers import AutoModel, pipeline

from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.par_metrics import PATH
from vlm_par_hf.training import predict_logits


evaluate = pytest.importorskip("evaluate", reason="needs the extra evaluate")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def data(schema, N=37, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(N, len(schema), schema.max_labels)).astype(np.float32)
    logits[:, ~schema.label_mask()] = -1e4
    labels = np.stack([generator.integers(0, one.num_labels, N) for one in schema], axis=1)
    labels[generator.random(labels.shape) < 0.1] = -100
    return logits, labels


@pytest.mark.parametrize("preset", ["rethinking", "vtb"])
def test_batches_equal_the_whole(preset):
    schema = tiny_schema(kway=True)
    logits, labels = data(schema)
    metric = evaluate.load(PATH, schema=schema, preset=preset)
    for start in range(0, len(labels), 10):
        rows = slice(start, start + 10)
        metric.add_batch(predictions=torch.from_numpy(logits[rows]), references=torch.from_numpy(labels[rows]))
    assert metric.compute() == ParMetrics(schema, preset=preset)((logits, labels))


def test_other_forms_of_the_same_input():
    schema = tiny_schema()
    logits, labels = data(schema)
    expected = ParMetrics(schema)((logits, labels))
    metric = evaluate.load(PATH, schema=schema.to_list(), keep_in_memory=True)
    assert metric.compute(predictions=logits, references=labels) == expected
    assert metric.compute(predictions=logits.tolist(), references=labels.tolist()) == expected  # a second time, too
    for row, label in zip(logits, labels):
        metric.add(prediction=row, reference=label)
    assert metric.compute() == expected
    half = torch.from_numpy(logits).bfloat16()
    assert metric.compute(predictions=half, references=labels) == ParMetrics(schema)((half, labels))


def test_binary_scores_and_a_schema_by_name():
    schema = tiny_schema()
    _, labels = data(schema)
    scores = np.random.default_rng(1).random(labels.shape)
    metric = evaluate.load(PATH, schema=schema, inputs="probabilities", threshold="schema")
    expected = ParMetrics(schema, threshold="schema", inputs="probabilities")((scores, labels))
    assert metric.compute(predictions=scores, references=labels) == expected
    assert len(evaluate.load(PATH, schema="pa100k")._metrics.schema) == 26


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"schema is None.*evaluate\.load"):
        evaluate.load(PATH)
    metric = evaluate.load(PATH, schema=tiny_schema())
    logits, labels = data(tiny_schema())
    with pytest.raises(ValueError, match=r"logits has shape \(37, 2, 2\), expected \(N, 3, 2\)"):
        metric.compute(predictions=logits[:, :2], references=labels)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    randomize(tiny_model("kway")).save_pretrained(folder)
    tiny_processor("kway").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("how", ["folder", "pipeline"])
def test_an_evaluator_measures_a_model_on_a_split(checkpoint, how):
    from vlm_par_hf.par_metrics.par_evaluator import ParEvaluator

    split = build_data(tiny_schema(kway=True), {"test": 11})["test"]
    model = checkpoint if how == "folder" else pipeline("pedestrian-attributes", model=checkpoint)
    found = ParEvaluator(batch_size=4).compute(model, split)
    scores = predict_logits(AutoModel.from_pretrained(checkpoint), tiny_processor("kway"), split, progress=False)
    for name, value in ParMetrics(tiny_schema(kway=True))(scores).items():
        assert found.pop(name) == pytest.approx(value, abs=1e-9), name
    assert found.keys() == {"total_time_in_seconds", "samples_per_second", "latency_in_seconds"}
    metric = evaluate.load(PATH, schema=tiny_schema(kway=True), preset="vtb", inputs="probabilities")
    expected = ParMetrics(tiny_schema(kway=True), preset="vtb")(scores)
    assert ParEvaluator().compute(model, split, metric=metric)["mA"] == pytest.approx(expected["mA"], abs=1e-9)


def test_what_an_evaluator_refuses(checkpoint):
    from vlm_par_hf.par_metrics.par_evaluator import ParEvaluator

    split = build_data(tiny_schema(kway=True), {"test": 2})["test"]
    logits = evaluate.load(PATH, schema=tiny_schema(kway=True))
    with pytest.raises(ValueError, match='metric reads logits, .*inputs="probabilities"'):
        ParEvaluator().compute(checkpoint, split, metric=logits)
    with pytest.raises(ValueError, match="strategy='bootstrap': expected 'simple'"):
        ParEvaluator().compute(checkpoint, split, strategy="bootstrap")
    with pytest.raises(ValueError, match="Invalid `label_column` label"):
        ParEvaluator().compute(checkpoint, split, label_column="label")
    other = pipeline("pedestrian-attributes", model=checkpoint)
    other.task = "image-classification"
    with pytest.raises(ValueError, match="pipeline for 'image-classification', expected one for 'pedestrian-attrib"):
        ParEvaluator().compute(other, split)
