"""The scripts in benchmarks/: what they import from each other, and the parts of them that compute."""

import ast
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_tests.models.vlm_par.test_modeling_vlm_par import features, some_labels
from modeling_tests.tiny import tiny_model, tiny_schema
from vlm_par_hf import ParMetrics


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_no_two_benchmarks_import_each_other():
    scripts = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in BENCHMARKS.glob("*.py")}
    assert scripts, f"no benchmark found in {BENCHMARKS}"
    imports = {}
    for name, tree in scripts.items():
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imports[name] = found & scripts.keys()
    assert "models" in imports["speed"] and "models" in imports["cache"], "the test sees the imports"
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_resampled_numbers_are_those_of_the_metrics():
    resampling, schema, rng = load("resampling"), tiny_schema(kway=True), np.random.default_rng(0)
    labels = np.stack([rng.integers(-1, one.num_labels, 90) for one in schema], 1)
    labels[labels < 0] = -100
    logits, persons = rng.normal(size=(90, len(schema), schema.max_labels)), rng.integers(0, 30, 90)
    logits[:, ~schema.label_mask()] = -1e4
    judge = resampling.Judge(schema, np.arange(len(schema)), labels, persons, 3)
    found = judge.measure(logits, logits)
    metrics = ParMetrics(schema)((logits, labels))
    for key, name in (("auc", "auc_macro"), ("ap", "average_precision_macro"), ("mA", "mA")):
        assert found[key][0] == pytest.approx(metrics[name]) and len(found[key]) == 4
    # A resample counts the pictures of a person as often as the person was drawn.
    drawn = np.repeat(np.arange(90), judge.counts[2][judge.units])
    again = ParMetrics(schema)((logits[drawn], labels[drawn]))
    assert found["auc"][2] == pytest.approx(again["auc_macro"]) and found["mA"][2] == pytest.approx(again["mA"])


def test_one_shift_for_all_attributes_is_fitted():
    resampling, schema, rng = load("resampling"), tiny_schema(), np.random.default_rng(0)
    priors = [[0.9, 0.1], [0.8, 0.2], [0.95, 0.05]]
    labels = np.stack([rng.random(600) < prior[1] for prior in priors], 1).astype(int)
    # Calibrated scores, which say "no" to nearly everything at 0.5.
    signal = labels * 1.0 + rng.normal(size=labels.shape)
    yes = signal - 0.5 + np.log([prior[1] / prior[0] for prior in priors])
    logits = np.stack([np.zeros_like(yes), yes], -1)
    shift = resampling.fit_shift(logits, labels, schema, range(3), priors)
    assert 0.7 < shift < 1.3
    better = resampling.mean_recall(resampling.shifted(logits, priors, shift), labels, schema, range(3))
    assert better[0] > resampling.mean_recall(logits, labels, schema, range(3))[0] + 0.1


@pytest.mark.parametrize("kind", ["shared", "low_rank"])
@pytest.mark.parametrize("fusion", ["text_to_image", "image_to_text"])
def test_cheap_projections_start_alike_and_learn(kind, fusion):
    model = tiny_model("naflex", fusion=fusion)
    count = sum(one.numel() for one in model.parameters() if one.requires_grad)
    load("heads").make_cheap(model, kind)
    trained = [one for one in model.parameters() if one.requires_grad]
    assert sum(one.numel() for one in trained) < count
    inputs, labels = features(model), some_labels(model.schema)
    assert not model(**inputs).logits.any()
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    assert model.attribute_heads.key.shape[0] == 3
    assert all(one.grad is not None for one in trained)


def test_probes_read_what_they_say():
    heads, model = load("heads"), tiny_model("naflex")
    inputs = features(model)
    inputs["patch_embeds"] = torch.where(inputs["patch_mask"][..., None], inputs["patch_embeds"], torch.nan)
    widths = {"pooled": 32, "patches": 32, "both": 64}
    for source, width in widths.items():
        probe = heads.LinearProbe(model.schema, source, [inputs])
        assert probe.weight.shape == (3, width, 2)
        probe.init_bias_from_priors([[0.9, 0.1]] * 3)
        torch.testing.assert_close(probe(**inputs).softmax(-1)[..., 1], torch.full((5, 3), 0.1))
    pooling = heads.AttentionPooling(model.schema, 2, [inputs])
    assert pooling(**inputs).shape == (5, 3, 2) and len(pooling.parameter_groups(1e-3, 1e-4)) == 3
