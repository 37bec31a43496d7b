"""What fitted decisions are worth: probabilities before and after, metrics at 0.5 and fitted, sets of answers.

    PAR_DATA=... python benchmarks/decisions.py --work DIR              # trains what DIR does not hold, as quality.py
    PAR_DATA=... python benchmarks/decisions.py --work DIR --sets real  # one set; other results are kept

Heads and features are those of quality.py with the same `--work`: real crops in five folds without a common person,
and rendered people that backbone and heads never saw. Nothing is fitted on a test part. Calibration, thresholds,
biases and sets of answers are fitted on the validation part of each fold (`vlm_par_hf.calibration.fit`), which also
chose epoch and learning rate.

- `ece`, `brier`: over all attributes, 15 bins of equally many answers; "before" is the softmax of the logits;
- `mA`: over the scored attributes; `f1`: instance F1 (harmonic) over all; at 0.5 without calibration, and fitted;
  `mA_shift` is that of quality.py, one number for all attributes;
- `aurc`: mean over attributes of the risk at all coverages, by the probability of the answer;
- `coverage`: how often sets for 0.9 hold the right answer; `coverage_exact`: the same before empty sets are filled
  with the most probable label, which is what conformal prediction promises; `unsure`: the share of sets with several
  answers;
- `contradictions`: the share of pictures whose answers for instance F1 break a rule of the label space (two ages, the
  hat color of a bare head), and after they were made consistent; `alone` and `consistent`: instance precision, recall
  and F1 of both.

Intervals are 95 %, over persons, and paired. With `--wide N`, N test pictures of rendered people also serve to fit, so
that frequent labels have 1,000 examples; coverage by label is then measured on the other test pictures.
"""

import argparse
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_sets import SETS, load_feature_set
from pages import RESULTS, command_of, write_page
from quality import METHODS, PROBES, SELECT, Recipe, results_of, settings_key
from resampling import LEVEL, OBJECTIVES, Judge, answers_of_parts, interval

from vlm_par_hf import ParMetrics
from vlm_par_hf.calibration import fit
from vlm_par_hf.labels.consistency import NO_ANSWER, count_violations
from vlm_par_hf.labels.decisions import decide
from vlm_par_hf.labels.schema import UNKNOWN_LABEL
from vlm_par_hf.metrics.reliability import (
    area_under_risk_coverage,
    brier_score,
    calibration_error,
    label_columns,
    set_coverage,
)
from vlm_par_hf.utils import atomic_write_json, read_json_object


logger = logging.getLogger("decisions")

COMPARED = ("probe_pooled", "probe_both", "text_to_image_pooled")
WEIGHTINGS = ("none", "sqrt", "balanced")
MANY = 1000  # calibration examples of a label, for its coverage with --wide


def measure(found: dict[str, np.ndarray], shifted: np.ndarray, labels: np.ndarray, schema, judge: Judge) -> dict:
    """The numbers of one method; see the module."""
    start = found["start"]
    certain = np.eye(schema.max_labels)
    numbers: dict[str, Any] = {}
    for name in ("before", "after"):
        columns = label_columns(found[name], labels, schema)
        numbers |= {f"ece_{name}": calibration_error(*columns), f"brier_{name}": brier_score(*columns)}
    numbers["answers"] = len(columns[0])
    recalls = {
        "mA": judge.recall(certain[start]),
        "mA_shift": judge.recall(shifted),
        "mA_fitted": judge.recall(certain[found["mA"]]),
    }
    numbers |= {name: interval(values) for name, values in recalls.items()}
    numbers["mA_fitted"]["difference"] = interval(recalls["mA_fitted"] - recalls["mA"])
    metrics = ParMetrics(schema, inputs="probabilities")
    for name, answers in (("f1", start), ("f1_fitted", found["instance_f1"])):
        numbers[name] = metrics((certain[answers], labels))["instance_f1_harmonic"]
    answers = decide(found["after"], schema, np.full(len(schema), 0.5))
    risks = []
    for a in range(len(schema)):
        known = labels[:, a] >= 0
        sure = np.take_along_axis(found["after"][known, a], answers[known, a, None], 1)[:, 0]
        risks.append(area_under_risk_coverage(sure, answers[known, a] == labels[known, a]))
    numbers["aurc"] = float(np.mean(risks))
    for name, kind in (("coverage", "sets"), ("coverage_exact", "exact_sets")):
        rows = set_coverage(found[kind], labels, schema)
        known = np.array([row["known"] for row in rows])
        numbers[name] = float(np.average([row["coverage"] for row in rows], weights=known))
    contradicted = {name: count_violations(found[name], schema)["people"] for name in ("instance_f1", "consistent")}
    numbers["contradictions"] = {name: people / len(labels) for name, people in contradicted.items()}
    given = found["consistent"] != NO_ANSWER
    consistent = certain[np.where(given, found["consistent"], 0)]
    for name, answers, known in (
        ("alone", certain[found["instance_f1"]], labels),
        ("consistent", consistent, np.where(given, labels, UNKNOWN_LABEL)),
    ):
        values = metrics((answers, known))
        numbers[name] = {key: values[f"instance_{key}"] for key in ("precision", "recall", "f1_harmonic")}
    numbers["unsure"] = float((found["sets"].sum(-1) > 1)[labels >= 0].mean())
    numbers["recalls"] = recalls
    return numbers


def first_persons(persons: np.ndarray | None, total: int, number: int) -> np.ndarray:
    """The pictures of the first persons, about `number` of `total`: bool `(total,)`."""
    if persons is None:
        return np.arange(total) < number
    _, first, index = np.unique(persons, return_index=True, return_inverse=True)
    return first[index] < number


def wide_coverage(validation, truth, test, labels, schema, inside: np.ndarray) -> dict[str, Any]:
    """Exact coverage of labels with at least `MANY` calibration examples on other test pictures, when those `inside`
    also calibrate."""
    logits, known = np.concatenate([validation, test[inside]]), np.concatenate([truth, labels[inside]])
    decisions = fit(logits, known, schema, objectives=OBJECTIVES)
    test, labels = test[~inside], labels[~inside]
    sets, _ = decisions.answer_sets(decisions.calibrate(test, schema), schema, LEVEL, allow_empty=True)
    rows = set_coverage(sets, labels, schema)
    found, counts = [], []
    for one, row in zip(schema, rows):
        for k, coverage in enumerate(row["by_label"]):
            if decisions.of(one).examples[k] >= MANY:
                found.append(coverage)
                counts.append(int((labels[:, schema.index(one.name)] == k).sum()))
    return {
        "pictures": len(logits),
        "labels": len(found),
        "coverage": float(np.average(found, weights=counts)) if found else None,
        "lowest": min(found, default=None),
        "highest": max(found, default=None),
        "all": float(np.average([row["coverage"] for row in rows], weights=[row["known"] for row in rows])),
    }


def measure_set(name: str, args) -> dict[str, Any]:
    """All recipes and methods on one set: what decisions.json holds of it."""
    sizes = {"num_train": args.train, "num_validation": max(200, args.train // 4), "num_test": max(400, args.train)}
    feature_set = load_feature_set(name, 0, args.work / "features", sizes)
    schema, parts = feature_set.schema, feature_set.parts
    truths = [part["validation"].labels[0].numpy() for part in parts]
    tests = [part["test"] for part in parts]
    labels = np.concatenate([one.labels[0].numpy() for one in tests])
    persons = None if tests[0].persons is None else np.concatenate([one.persons for one in tests])
    folds = np.repeat(np.arange(len(tests)), [len(one) for one in tests])
    judge = Judge(schema, feature_set.scored, labels, persons, args.bootstrap, folds)
    recipes: dict[str, Any] = {}
    for weighting in args.weightings:
        recipe = Recipe(weighting=weighting)
        results = results_of(feature_set, 0, list(args.methods), recipe, args.work / settings_key(recipe, sizes, name))
        rows, recalls = {}, {}
        for method, result in results.items():
            logits = [result["logits"][folds == number] for number in range(len(parts))]
            found = answers_of_parts(result["validation"], logits, truths, schema)
            row = measure(found, result["fitted"], labels, schema, judge)
            recalls[method] = row.pop("recalls")["mA_fitted"]
            row["label"] = METHODS[method].label
            row["validation_auc"] = float(np.mean([one[SELECT] for one in result["notes"]]))
            if args.wide and len(parts) == 1:
                inside = first_persons(persons, len(labels), args.wide)
                row["wide"] = wide_coverage(result["validation"][0], truths[0], logits[0], labels, schema, inside)
            rows[method] = row
            logger.info("%s %s %s: mA %.2f", name, weighting, method, 100 * row["mA_fitted"]["value"])
        probes = [one for one in PROBES if one in rows]
        best = max(probes, key=lambda one: rows[one]["validation_auc"], default=None)
        for method, row in rows.items():
            if best is not None and method not in PROBES:
                row["mA_fitted"]["to_probe"] = interval(recalls[method] - recalls[best])
        recipes[weighting] = {"best_probe": best, "methods": rows}
    return {
        "title": feature_set.title,
        "command": command_of(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "folds": len(parts),
        "fitted_on": [len(one) for one in truths],
        "tested": len(labels),
        "scored": len(feature_set.scored),
        "level": LEVEL,
        "recipes": recipes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="of quality.py: features and finished trainings")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["real", "rendered"])
    parser.add_argument("--weightings", nargs="+", choices=WEIGHTINGS, default=list(WEIGHTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(COMPARED))
    parser.add_argument("--train", type=int, default=2000, help="training pictures that are drawn or rendered")
    parser.add_argument("--wide", type=int, default=1000, help="test pictures that also calibrate (see above)")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("vlm_par_hf.calibration").setLevel(logging.ERROR)  # rare attributes, for each fold anew
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "decisions.json"
    result = read_json_object(saved) or {"sets": {}}
    for name in args.sets:
        result["sets"][name] = measure_set(name, args)
        result["sets"] = {one: result["sets"][one] for one in SETS if one in result["sets"]}
        atomic_write_json(saved, result)
    print(f"wrote {saved}")
    if args.out.resolve() == RESULTS.resolve():
        print(f"wrote {write_page('decisions')}")


if __name__ == "__main__":
    main()
