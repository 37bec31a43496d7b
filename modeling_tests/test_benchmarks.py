"""The scripts in benchmarks/: what they import from each other, and the parts of them that compute."""

import ast
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from modeling_tests.models.vlm_par.test_modeling_vlm_par import features, some_labels
from modeling_tests.test_calibration import SCHEMA as KWAY
from modeling_tests.test_calibration import draw
from modeling_tests.tiny import tiny_model, tiny_schema
from vlm_par_hf import AttributeSchema, ClearParConfig, ParMetrics, get_schema
from vlm_par_hf.calibration import fit
from vlm_par_hf.embedded import views
from vlm_par_hf.labels.matching import match_label_spaces
from vlm_par_hf.metrics.ranking import average_precision, roc_auc


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


@pytest.fixture(autouse=True)
def scripts_import_each_other(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ablation_of_clear_pairs_seeds():
    script = load("clear_ablation")
    numbers = {"ViT": (0.5, 0.6), "Swin": (0.6, 0.8)}
    rounds = [
        {name: {"mA": values[k], "auc_macro": 0.5, "parameters": 10**6} for name, values in numbers.items()}
        for k in range(2)
    ]
    table = script.summarise(rounds)
    found = table["Swin"]["mA"]
    assert found["mean"] == pytest.approx(0.7) and found["difference"] == pytest.approx(0.15)
    assert found["standard_error"] == pytest.approx(0.05) and table["ViT"]["mA"]["difference"] == 0
    assert "| Swin | 1.00 M | 70.0 | +15.0 ± 5.0 | 50.0 | +0.0 ± 0.0 |" in script.text_of(table)
    assert script.summarise(rounds[:1])["Swin"]["mA"]["standard_error"] is None
    families = [ClearParConfig(**method) for method in {**script.METHODS, **script.READINGS}.values()]
    assert [one.crosses for one in families] == [False, False, False, False, True, True, True, True]


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


def test_pictures_of_different_folds_are_not_compared():
    resampling, rng = load("resampling"), np.random.default_rng(0)
    folds, positives = rng.integers(0, 3, 90), rng.random(90) < 0.3
    scores = (positives + rng.normal(size=90)) * np.array([1.0, 30.0, 2.0])[folds] + np.array([0, 50, -9])[folds]
    units, counts = np.arange(90), np.stack([np.ones(90), rng.integers(0, 3, 90)]).astype(np.int32)
    area, precision = resampling.ranking_within(folds, scores, positives, units, counts)
    for row, count in enumerate(counts):
        right = pairs = 0
        for i in np.flatnonzero(positives):
            for j in np.flatnonzero(~positives & (folds == folds[i])):
                pairs += count[i] * count[j]
                right += count[i] * count[j] * (scores[i] > scores[j])
        assert area[row] == pytest.approx(right / pairs)
    shares = []
    for fold in range(3):
        drawn = np.repeat(np.flatnonzero(folds == fold), counts[1][folds == fold])
        shares += [average_precision(scores[drawn], positives[drawn])] * int(positives[drawn].sum())
    assert precision[1] == pytest.approx(np.mean(shares))
    together = resampling.ranking_within(np.zeros(90, int), scores, positives, units, counts)[0]
    assert together[0] == pytest.approx(roc_auc(scores, positives)) and together[0] < area[0] - 0.02


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


def people(count, rng):
    """Persons of 1 to 6 pictures."""
    return np.repeat(np.arange(count) * 7, rng.integers(1, 7, count))


def test_folds_share_no_person_and_are_alike_in_size():
    folds, rng = load("folds"), np.random.default_rng(0)
    persons = people(60, rng)
    found = folds.person_folds(persons)
    assert all(len(set(found[persons == person])) == 1 for person in persons)
    sizes = np.bincount(found, minlength=5)
    assert sizes.max() - sizes.min() <= 1 and (folds.person_folds(persons) == found).all()
    tested = [folds.split_of_fold(found, fold) for fold in range(5)]
    for split in tested:
        assert sorted(np.concatenate(list(split.values()))) == list(range(len(persons)))
    assert sorted(np.concatenate([split["test"] for split in tested])) == list(range(len(persons)))
    with pytest.raises(ValueError, match="4 persons"):
        folds.person_folds(np.arange(4))


def test_what_a_fold_may_see_is_written(tmp_path):
    folds, rng = load("folds"), np.random.default_rng(0)
    persons, labels = np.arange(10), rng.integers(0, 2, (10, 3)).tolist()
    paths = [tmp_path / f"{value}.png" for value in range(10)]
    for value, path in enumerate(paths):
        Image.fromarray(np.full((4, 2, 3), value, np.uint8)).save(path)
    columns = {"image": list(map(str, paths)), "labels": labels, "person_id": persons}
    data = Dataset.from_dict(columns).cast_column("image", ImageFeature())
    found = folds.person_folds(persons)
    folds.write_parquet(data, tmp_path, found)
    for fold in range(5):
        seen = views.read_parquet([tmp_path / str(fold) / "crops.parquet"], tiny_schema())
        rows = np.flatnonzero(found != fold)
        assert seen.labels.tolist() == [labels[row] for row in rows]
        assert [seen.read(i).getpixel((0, 0))[0] for i in range(len(rows))] == rows.tolist()
        assert len(set(seen.persons)) == len(rows)


def test_attributes_with_few_positives_or_negatives_are_not_scored():
    labels = np.zeros((50, 4), int)
    labels[:20, 0], labels[:19, 1], labels[:31, 2], labels[:, 3] = 1, 1, 1, -100
    assert load("folds").scored_attributes(labels).tolist() == [0]


def crops(rng, width=6):
    """Vectors that tell one attribute, labels of two, persons, folds."""
    persons = people(120, rng)
    labels = rng.integers(0, 2, (len(persons), 2))
    vectors = rng.normal(size=(len(persons), width)).astype(np.float32)
    vectors[:, 0] += 2 * labels[:, 0]
    return vectors, labels, persons, load("folds").person_folds(persons)


def test_the_probe_tells_what_features_tell_and_no_more():
    transfer = load("transfer")
    vectors, labels, persons, folds = crops(np.random.default_rng(0))
    logits, thresholds, penalties = transfer.probe(vectors, labels, folds)
    assert logits.shape == thresholds.shape == labels.shape and len(penalties) == 5
    samples = transfer.resampled(logits, thresholds, labels, persons, 20)
    assert samples["auc"].shape == (2, 21)
    assert samples["auc"][0, 0] > 85 and abs(samples["auc"][1, 0] - 50) < 10
    yes_no = np.stack([np.zeros_like(logits), logits], -1)
    metrics = ParMetrics(AttributeSchema(list(tiny_schema())[:2]))((yes_no, labels))
    assert samples["auc"][:, 0].mean() == pytest.approx(100 * metrics["auc_macro"])
    assert samples["mA"][:, 0].mean() == pytest.approx(100 * metrics["mA"])


def test_a_fold_with_a_backbone_of_its_own_is_tested_with_it():
    transfer = load("transfer")
    vectors, labels, _, folds = crops(np.random.default_rng(0))
    logits = transfer.probe(vectors, labels, folds)[0]
    same = np.stack([vectors] * 5)
    assert np.array_equal(transfer.probe(same, labels, folds)[0], logits)
    same[3] = 0  # the backbone of fold 3 sees nothing
    blind = transfer.probe(same, labels, folds)[0]
    assert np.array_equal(blind[folds != 3], logits[folds != 3])
    assert np.ptp(blind[folds == 3], axis=0).max() < 1e-9


def test_the_best_threshold_is_that_of_a_search():
    transfer, rng = load("transfer"), np.random.default_rng(0)
    labels = (rng.random(80) < 0.3).astype(int)
    scores = labels + rng.normal(size=80)

    def balanced(threshold):
        return np.mean([(scores > threshold)[labels == 1].mean(), (scores <= threshold)[labels == 0].mean()])

    assert balanced(transfer.best_threshold(scores, labels)) == max(map(balanced, np.sort(scores) - 1e-9))


def test_how_real_pictures_are_is_50_for_real_ones_and_100_for_others():
    realness, rng = load("realness"), np.random.default_rng(0)
    real, again = rng.normal(size=(400, 5)), rng.normal(size=(400, 5))
    persons = np.arange(400) // 2
    assert abs(100 * realness.probe_auc(real, again, persons, persons) - 50) < 8
    assert 100 * realness.probe_auc(real, again + 9, persons, persons) == 100


def test_the_distance_of_two_gaussians_is_that_of_its_formula():
    realness, rng = load("realness"), np.random.default_rng(0)
    real = rng.normal(size=(5000, 3)) * [1, 2, 3]
    made = rng.normal(size=(5000, 3)) * [2, 2, 1] + [1, 0, 0]
    assert realness.distance(real, real) == pytest.approx(0, abs=1e-9)
    assert realness.distance(real, made) == pytest.approx((1 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2) / 14, rel=0.1)


def test_commands_in_results_name_no_folder_of_the_machine():
    words = [
        "/home/me/benchmarks/quality.py",
        "--work",
        "/home/me/w",
        "--sets",
        "real",
        "--out",
        "a/b",
        "--backbone",
        "c/d",
    ]
    expected = "python benchmarks/quality.py --work DIR --sets real --out DIR --backbone DIR"
    assert load("pages").command_of(words) == expected
    assert load("pages").command_of(["quality.py", "--backbone", "embedded"]).endswith("--backbone embedded")


def test_decisions_are_fitted_on_the_validation_of_their_part():
    script, resampling = load("decisions"), load("resampling")
    parts = [draw(150, seed=seed) for seed in range(4)]  # validation, test, validation, test
    validations, tests = [parts[0][0], parts[2][0]], [parts[1][0], parts[3][0]]
    labels = np.concatenate([parts[1][1], parts[3][1]])
    found = script.apply_to_parts(validations, tests, [parts[0][1], parts[2][1]], KWAY)
    for number in range(2):
        decisions = fit(*parts[2 * number], KWAY, objectives=("mA",))
        wanted = decisions.apply(tests[number], decisions.settle(KWAY))
        rows = slice(150 * number, 150 * (number + 1))
        np.testing.assert_allclose(found["after"][rows], wanted[0])
        assert np.array_equal(found["mA"][rows], wanted[1])
    assert (found["exact_sets"] <= found["sets"]).all() and found["sets"].any(-1).all()
    judge = resampling.Judge(KWAY, np.arange(len(KWAY)), labels, None, 5)
    numbers = script.measure(found, np.concatenate(tests), labels, KWAY, judge)
    certain = np.eye(4)[found["mA"]]
    metrics = ParMetrics(KWAY, inputs="probabilities")((certain, labels))
    assert numbers["mA_fitted"]["value"] == pytest.approx(metrics["mA"])
    assert numbers["mA_fitted"]["difference"]["value"] == pytest.approx(metrics["mA"] - numbers["mA"]["value"])
    assert numbers["ece_after"] < numbers["ece_before"] and numbers["coverage"] >= numbers["coverage_exact"]
    persons = np.array([7, 7, 3, 3, 3, 9])
    assert script.first_persons(persons, 6, 3).tolist() == [True] * 5 + [False]
    assert script.first_persons(None, 4, 3).tolist() == [True] * 3 + [False]


def test_the_mappings_across_domains_fit_the_label_spaces():
    cross_domain = load("cross_domain")
    answered = {}
    for (tested, trained), mapping in cross_domain.MAPPINGS.items():
        match = match_label_spaces(get_schema(trained), get_schema(tested), mapping)
        assert set(mapping) <= set(match.schema.names)
        answered[tested, trained] = match.unmatched
    assert answered["pa100k", "rendered"] == ()
    assert "Age" not in answered["rendered", "pa100k"]


def test_what_is_lost_is_over_the_same_attributes():
    cross_domain, pages = load("cross_domain"), load("pages")

    def record(**means):
        rows = [{"name": name, "mA": mA, "auc": None if mA < 0.5 else mA + 0.1} for name, mA in means.items()]
        metrics = {"mA": float(np.mean(list(means.values()))), "auc_macro": 0.8}
        return {"attributes": rows, "metrics": metrics, "intervals": {"mA": [0.5, 0.6], "auc_macro": [0.7, 0.9]}}

    own = {"b": record(Hat=0.9, Bag=0.7, Coat=0.1, Boots=0.4)}
    rows = cross_domain.compare(own, {("a", "b"): record(Hat=0.6, Bag=0.5, Boots=0.4)})
    (row,) = rows
    assert row["attributes"] == 3 and row["mA"]["value"] == pytest.approx(50)
    assert row["mA"]["there"] == pytest.approx(100 * (0.9 + 0.7 + 0.4) / 3)
    assert row["auc"]["there"] == pytest.approx(100 * (1.0 + 0.8) / 2)
    sizes = {"num_train": 600, "num_test": 500}
    text = pages.cross_domain_text({"rows": rows, "sizes": sizes, "command": "python x", "machine": "m"})
    assert "| a | b | 3 | 50.0 (50.0 to 60.0) | 66.7 | 16.7 | 80.0 (70.0 to 90.0) | 90.0 | 10.0 |" in text


def test_low_people():
    low, schema = load("low_people"), tiny_schema()
    image = Image.new("RGB", (30, 60))
    assert low.reduce(image, 0) is image and low.reduce(image, 20).size == (10, 20)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 3))
    logits = rng.normal(0, 1, (400, 3, 2)) + np.eye(2)[labels]
    decisions = fit(logits[:200], labels[:200], schema)
    probabilities = decisions.calibrate(logits[200:], schema)
    found = low.measure(probabilities, labels[200:], schema, decisions)
    assert found["coverage"] == pytest.approx(0.9, abs=0.05) == pytest.approx(found["of_yes"], abs=0.07)
    assert 0 < found["wrong_alone"] < found["wrong"] < 0.5 and 0 < found["open"] < 1
    swapped = low.measure(probabilities[..., ::-1], labels[200:], schema, decisions)
    assert swapped["coverage"] < 0.6


def test_so_many_frames_in_a_row_are_occluded():
    video = load("video")
    groups = [np.arange(12), np.arange(12, 24)] * 20
    for rate in (0.0, 0.4, 0.6, 1.0):
        tracklets = video.rows_at(rate, groups, 0)
        counts = []
        for rows, group in zip(tracklets, groups):
            assert [row for row, _ in rows] == group.tolist()
            places = [place for place, (_, occluded) in enumerate(rows) if occluded]
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            counts.append(len(places))
        assert abs(np.mean(counts) / 12 - rate) < 0.02
    free, occluded = ({"patch_embeds": torch.full((24, 2, 3), value)} for value in (1.0, 2.0))

    class Store:
        def __init__(self, tensors):
            self.tensors = tensors

        def read(self, rows):
            return {name: value[rows] for name, value in self.tensors.items()}

    class Features:
        def __init__(self, tensors):
            self.store = Store(tensors)

    features = {"free": Features(free), "occluded": Features(occluded)}
    mixed = video.Mixed(features, video.rows_at(0.5, groups[:2], 1), np.zeros((2, 4), np.int64), 12)
    assert mixed[1]["patch_embeds"].mean() == 1.5 and mixed[0]["frame_mask"].all()
