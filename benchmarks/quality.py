"""What the heads of VLM-PAR are worth, beside linear probes on the same frozen features, all trained to convergence.

    PAR_DATA=... python benchmarks/quality.py --work DIR                          # everything; hours on one thread
    PAR_DATA=... python benchmarks/quality.py --work DIR --sets real --seeds 1    # one set; other results are kept
    python benchmarks/quality.py --work DIR --sets drawings --seeds 1 --train 300 --max-epochs 2 --out /tmp/quick
    python benchmarks/quality.py --work DIR --sets real --weighting balanced --variant "balanced class weights"

Every method reads the same cached features and has the same loss, the same starting bias (the best constant answer),
the same number of tried learning rates, the same largest number of epochs, and the same early stopping. Epoch and rate
are chosen by validation AUC, because AUC depends on no threshold; the test part is predicted once. On real crops this
is done in five folds without a common person (`folds.py`), and every picture is tested once.

- `auc`, `ap`: area under the ROC curve and average precision, mean over attributes; pictures of different folds, whose
  scores are of different models, are not compared with each other;
- `mA`: mean recall over labels and attributes, at 0.5; `mA_shift`: the same after one number for all attributes was
  fitted on validation, by how much of the log prior the logits are shifted; `mA_fitted`: by the decisions that
  `vlm_par_hf.calibration.fit` fits on validation for mA, as in decisions.py;
- `f1`: instance F1 (harmonic) over all attributes, at 0.5; `f1_fitted`: by the decisions for instance F1.

Intervals are 95 %, over persons; a difference is that to the linear probe with the best validation AUC, on the same
resamples. Numbers on drawings and rendered people are SYNTHETIC; none can be compared with a number of a paper.

Finished trainings lie in `--work`, so after an interruption the same command goes on. Results go to `--out` (JSON and
pictures), the tables also to docs/quality.md if `--out` is the default.
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_sets import SETS, Features, FeatureSet, load_feature_set
from heads import AttentionPooling, LinearProbe, make_cheap
from pages import RESULTS, command_of, write_page
from quality_pictures import draw_attention_gain, draw_methods
from resampling import NUMBERS, Judge, answers_of_parts, fit_shift, shifted
from torch import nn

from vlm_par_hf import ParLoss, ParMetrics
from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.training.building import starting_shares
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("quality")
logging.getLogger("vlm_par_hf.calibration").setLevel(logging.ERROR)  # rare attributes, for each fold anew

SELECT = "auc_macro"
MEASURED = (*NUMBERS, "mA_fitted")  # with intervals


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        label: how tables call it.
        build: `build(feature_set, train)` -> a module with `forward(**features)` and `parameter_groups`.
        needs_prompts: whether pictures must be comparable with prompts.
    """

    label: str
    build: Any
    needs_prompts: bool = False


def probe(source: str, feature_set: FeatureSet, train: Features) -> nn.Module:
    return LinearProbe(feature_set.schema, source, train.batches())


def attention_pooling(feature_set: FeatureSet, train: Features) -> nn.Module:
    return AttentionPooling(feature_set.schema, 4, train.batches())


def vlm_par(
    feature_set: FeatureSet, train: Features, *, gates: str | None = None, cheap: str | None = None, **settings: Any
) -> nn.Module:
    """VLM-PAR; `gates` of stage 1 are `"zero"`, `"fitted"` or `"one"` at first, None: there is no stage 1."""
    settings = {"alignment": "none" if gates is None else "logit", "attention_dropout": 0.2, **settings}
    model = feature_set.build(**settings)
    if cheap is not None:
        make_cheap(model, cheap)
    model.fit_pooled_statistics(train.batches())
    if gates in ("fitted", "one"):
        model.fit_zero_shot(train.batches() if gates == "fitted" else None)
    return model


def _vlm_par(label: str, *, needs_prompts: bool = False, **settings: Any) -> Method:
    return Method(label, partial(vlm_par, **settings), needs_prompts)


TEXT, IMAGE = "text_to_image", "image_to_text"
METHODS = {
    "probe_pooled": Method("linear probe, pooled output", partial(probe, "pooled")),
    "probe_patches": Method("linear probe, mean patch", partial(probe, "patches")),
    "probe_both": Method("linear probe, both", partial(probe, "both")),
    "none": _vlm_par("VLM-PAR, no fusion", fusion="none", pooled_classifier=False),
    "image_to_text": _vlm_par("VLM-PAR, image_to_text (the paper's)", fusion=IMAGE, pooled_classifier=False),
    "image_to_text_pooled": _vlm_par("VLM-PAR, image_to_text + pooled", fusion=IMAGE),
    "text_to_image": _vlm_par("VLM-PAR, text_to_image", fusion=TEXT, pooled_classifier=False),
    "text_to_image_pooled": _vlm_par("VLM-PAR, text_to_image + pooled", fusion=TEXT),
    "gates_one": _vlm_par("the same + stage 1, gates from 1", fusion=TEXT, gates="one", needs_prompts=True),
    "gates_zero": _vlm_par("the same + stage 1, gates from 0", fusion=TEXT, gates="zero", needs_prompts=True),
    "gates_fitted": _vlm_par("the same + stage 1, gates fitted", fusion=TEXT, gates="fitted", needs_prompts=True),
    "question_prompts": _vlm_par("text_to_image + pooled, 4 question prompts", fusion=TEXT, num_question_prompts=4),
    "shared": _vlm_par("text_to_image + pooled, shared projections", fusion=TEXT, cheap="shared"),
    "low_rank": _vlm_par("text_to_image + pooled, rank 8 beside shared", fusion=TEXT, cheap="low_rank"),
    "attention_pooling": Method("attention pooling + pooled, no question", attention_pooling),
}
PROBES = ("probe_pooled", "probe_patches", "probe_both")


@dataclass
class Recipe:
    """What all methods have in common.

    Args:
        rates: the learning rates of the classifier that are tried.
        max_epochs, patience: training ends after so many epochs, or so many without a better validation AUC.
        batch_size, weight_decay, flip, weighting, warm_up: as in `TrainSettings`; the warm-up is in steps.
        fusion_rate: of the fusion, 0: the product's default.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    max_epochs: int = 30
    patience: int = 4
    batch_size: int = 32
    weight_decay: float = 0.01
    flip: float = 0.5
    weighting: str = "sqrt"
    warm_up: int = 30
    fusion_rate: float = 0.0


def run(model, batch) -> torch.Tensor:
    output = model(**{name: value for name, value in batch.items() if name != "labels"})
    return output if torch.is_tensor(output) else output.logits


@torch.no_grad()
def predict(model, features: Features) -> np.ndarray:
    """Logits float32 `(N, A, C)`, in order."""
    model.eval()
    return torch.cat([run(model, batch) for batch in features.batches(64)]).numpy()


def loss_of(feature_set: FeatureSet, train: Features, recipe: Recipe) -> tuple[ParLoss, list[list[float]], dict]:
    priors = compute_priors(train.labels[0].numpy(), feature_set.schema)
    weighting = None if recipe.weighting == "none" else recipe.weighting
    settings = {} if weighting is None else {"weighting": weighting, "priors": priors}
    return ParLoss(feature_set.schema, **settings), priors, settings


def fit(model, loss, train: Features, validation: Features, schema, recipe: Recipe, *, rate: float, seed: int) -> dict:
    """Trains; the model ends with the weights of the epoch with the best validation AUC. Returns notes."""
    groups = model.parameter_groups(rate, recipe.fusion_rate or None, weight_decay=recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    # A constant rate after the warm-up: with a decay, the largest number of epochs would be one more setting.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warm_up))
    metrics, truth = ParMetrics(schema), validation.labels[0].numpy()
    generator = torch.Generator().manual_seed(seed)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    best: dict[str, Any] = {SELECT: -1.0, "epoch": 0}
    started = time.perf_counter()
    for epoch in range(1, recipe.max_epochs + 1):
        model.train()
        for rows in torch.randperm(len(train), generator=generator).split(recipe.batch_size):
            mirrored = torch.rand(len(rows), generator=generator) < recipe.flip
            batch = train.batch(rows, mirrored)
            value = loss(run(model, batch), batch["labels"])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            schedule.step()
        score = metrics((predict(model, validation), truth))[SELECT]
        if score > best[SELECT]:
            state = {name: value.clone() for name, value in model.state_dict().items() if name in trained}
            best = {SELECT: score, "epoch": epoch}
        elif epoch - best["epoch"] >= recipe.patience:
            break
    model.load_state_dict(state, strict=False)
    return best | {"epochs": epoch, "seconds": round(time.perf_counter() - started, 1)}


def train_method(method: Method, feature_set: FeatureSet, part: dict[str, Features], recipe: Recipe, seed: int):
    """Tries the rates of a method and keeps the best by validation AUC.

    Returns:
        Logits of validation and test, and notes.
    """
    train, validation = part["train"], part["validation"]
    loss, priors, settings = loss_of(feature_set, train, recipe)
    best = None
    for rate in recipe.rates:
        torch.manual_seed(seed)
        model = method.build(feature_set, train)
        if not getattr(model, "starts_from_zero_shot", False):
            model.init_bias_from_priors(starting_shares(settings, priors))
        notes = fit(model, loss, train, validation, feature_set.schema, recipe, rate=rate, seed=seed) | {"rate": rate}
        if best is None or notes[SELECT] > best[1][SELECT]:
            best = (model, notes)
    model, notes = best
    metrics, labels = ParMetrics(feature_set.schema), train.labels[0].numpy()
    notes["train_auc"] = metrics((predict(model, train), labels))[SELECT]
    notes["parameters"] = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return predict(model, validation), predict(model, part["test"]), notes


def untrained(name: str, feature_set: FeatureSet, part: dict[str, Features], recipe: Recipe):
    """As `train_method`, for the zero-shot answers of the backbone."""
    model = feature_set.build(alignment="logit", fusion="none", pooled_classifier=False)
    model.fit_zero_shot()
    return predict(model, part["validation"]), predict(model, part["test"]), {SELECT: None, "parameters": 0}


def results_of(feature_set: FeatureSet, seed: int, names: list[str], recipe: Recipe, work: Path) -> dict[str, Any]:
    """Trains what `work` does not hold.

    Returns:
        method -> {"logits", "fitted" (both `(N, A, C)` over all parts), "validation" (logits of each part), "tests"
        (how many test pictures each part has), "notes"}.
    """
    found = {}
    for name in names:
        pieces = {"logits": [], "fitted": [], "validation": [], "tests": [], "notes": []}
        for number, part in enumerate(feature_set.parts):
            file = work / feature_set.name / f"seed{seed}" / f"part{number}" / f"{name}.npz"
            if not file.is_file():
                started = time.perf_counter()
                if name == "zero_shot":
                    validation, test, notes = untrained(name, feature_set, part, recipe)
                else:
                    validation, test, notes = train_method(METHODS[name], feature_set, part, recipe, seed)
                notes["wall_seconds"] = round(time.perf_counter() - started, 1)
                file.parent.mkdir(parents=True, exist_ok=True)
                half = file.with_suffix(".part.npz")
                np.savez(half, validation=validation, test=test, notes=json.dumps(notes))
                half.rename(file)
                logger.info("%s seed %d part %d %s: %s", feature_set.name, seed, number, name, notes)
            with np.load(file) as saved:
                validation, test, notes = saved["validation"], saved["test"], json.loads(str(saved["notes"]))
            priors = compute_priors(part["train"].labels[0].numpy(), feature_set.schema)
            truth = part["validation"].labels[0].numpy()
            shift = fit_shift(validation, truth, feature_set.schema, feature_set.scored, priors)
            pieces["logits"].append(test)
            pieces["fitted"].append(shifted(test, priors, shift))
            pieces["validation"].append(validation)
            pieces["tests"].append(len(test))
            pieces["notes"].append(notes | {"shift": shift})
        found[name] = {**pieces, **{key: np.concatenate(pieces[key]) for key in ("logits", "fitted")}}
    return found


def measure_set(name: str, args, recipe: Recipe) -> dict[str, Any]:
    """All methods on one feature set: what quality.json holds of it."""
    sizes = {"num_train": args.train, "num_validation": max(200, args.train // 4), "num_test": max(400, args.train)}
    numbers: dict[str, dict[str, list]] = {}
    notes: dict[str, list] = {}
    for seed in range(args.seeds):
        feature_set = load_feature_set(name, seed, args.work / "features", sizes)
        names = [one for one in args.methods if feature_set.has_prompts or not METHODS[one].needs_prompts]
        if feature_set.has_prompts:
            names = ["zero_shot", *names]
        found = results_of(feature_set, seed, names, recipe, args.work / settings_key(recipe, sizes, name))
        test = [part["test"] for part in feature_set.parts]
        labels = np.concatenate([one.labels[0].numpy() for one in test])
        persons = None if test[0].persons is None else np.concatenate([one.persons for one in test])
        folds = np.repeat(np.arange(len(test)), [len(one) for one in test])
        judge = Judge(feature_set.schema, feature_set.scored, labels, persons, args.bootstrap, folds)
        truths = [part["validation"].labels[0].numpy() for part in feature_set.parts]
        for method, result in found.items():
            own = numbers.setdefault(method, {key: [] for key in (*MEASURED, "f1", "f1_fitted")})
            for key, values in judge.measure(result["logits"], result["fitted"]).items():
                own[key].append(values)
            own["f1"].append(ParMetrics(feature_set.schema)((result["logits"], labels))["instance_f1_harmonic"])
            recall, f1 = by_decisions(result, truths, labels, judge, feature_set.schema)
            own["mA_fitted"].append(recall)
            own["f1_fitted"].append(f1)
            notes.setdefault(method, []).extend(result["notes"])
            logger.info("%s seed %d %s: AUC %.2f", name, seed, method, 100 * own["auc"][-1][0])
    return {
        "title": feature_set.title,
        "command": command_of(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "recipe": vars(recipe),
        "seeds": args.seeds,
        "folds": len(feature_set.parts),
        "pictures": {split: len(feature_set.parts[0][split]) for split in feature_set.parts[0]},
        "tested": len(labels),
        "scored": [feature_set.schema[int(a)].name for a in feature_set.scored],
        **summarise(numbers, notes),
    }


def by_decisions(result: dict[str, Any], truths: list, labels: np.ndarray, judge: Judge, schema):
    """`mA_fitted` for the resamples of `judge`, and `f1_fitted`, from an entry of `results_of`; `truths` are the
    labels of each validation part, `labels` those of the test parts."""
    ends = np.cumsum([0, *result["tests"]])
    tests = [result["logits"][start:end] for start, end in zip(ends, ends[1:])]
    found = answers_of_parts(result["validation"], tests, truths, schema)
    certain = np.eye(schema.max_labels)
    f1 = ParMetrics(schema, inputs="probabilities")((certain[found["instance_f1"]], labels))["instance_f1_harmonic"]
    return judge.recall(certain[found["mA"]]), f1


def summarise(numbers: dict[str, dict[str, list]], notes: dict[str, list]) -> dict[str, Any]:
    """Means over seeds with intervals, and the paired differences to the best probe."""
    chosen = {
        method: float(np.mean([one[SELECT] for one in own]))
        for method, own in notes.items()
        if own[0][SELECT] is not None
    }
    best_probe = max((one for one in PROBES if one in chosen), key=chosen.get, default=None)
    methods = {}
    for method, own in numbers.items():
        row: dict[str, Any] = {"label": METHODS[method].label if method in METHODS else "zero-shot (prompts)"}
        for key in MEASURED:
            values = np.mean(own[key], axis=0)  # over seeds, resample by resample
            row[key] = _interval(values) | {"seeds": [float(one[0]) for one in own[key]]}
            if best_probe is not None and method != best_probe:
                row[key]["difference"] = _interval(values - np.mean(numbers[best_probe][key], axis=0))
        for key in ("f1", "f1_fitted"):
            row[key] = {"value": float(np.mean(own[key])), "seeds": [float(one) for one in own[key]]}
        row["validation_auc"] = chosen.get(method)
        if method in chosen:
            row["train_auc"] = float(np.mean([one["train_auc"] for one in notes[method]]))
            row["parameters"] = notes[method][0]["parameters"]
            for name in ("rate", "epoch", "shift", "seconds"):
                row[name] = [one[name] for one in notes[method]]
        methods[method] = row
    return {"best_probe": best_probe, "methods": methods}


def _interval(values: np.ndarray) -> dict[str, float | None]:
    low, high = (np.nanquantile(values[1:], [0.025, 0.975])) if len(values) > 1 else (None, None)
    return {"value": float(values[0]), "low": None if low is None else float(low),
            "high": None if high is None else float(high)}  # fmt: skip


def settings_key(recipe: Recipe, sizes: dict[str, int], name: str) -> str:
    """Trainings with other settings lie in another folder of `--work`."""
    settings = vars(recipe) | (sizes if name in ("drawings", "rendered") else {})
    return "runs-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def attention_gain(name: str, args, recipe: Recipe) -> dict[str, Any]:
    """The paper's figure 4: one epoch, accuracy of each attribute without and with the paper's cross-attention, and
    with the question looking at the patches."""
    sizes = {"num_train": args.train, "num_validation": max(200, args.train // 4), "num_test": max(400, args.train)}
    feature_set = load_feature_set(name, 0, args.work / "features", sizes)
    one_epoch = Recipe(**{**vars(recipe), "max_epochs": 1})
    rows = {}
    for label, settings in (
        ("without cross-attention", {"fusion": "none"}),
        ("image_to_text (the paper's)", {"fusion": "image_to_text"}),
        ("text_to_image", {"fusion": "text_to_image"}),
    ):
        logits, truth = [], []
        for part in feature_set.parts:
            loss, priors, chosen = loss_of(feature_set, part["train"], one_epoch)
            torch.manual_seed(0)
            model = vlm_par(feature_set, part["train"], pooled_classifier=False, **settings)
            model.init_bias_from_priors(starting_shares(chosen, priors))
            fit(model, loss, part["train"], part["validation"], feature_set.schema, one_epoch, rate=3e-3, seed=0)
            logits.append(predict(model, part["test"]))
            truth.append(part["test"].labels[0].numpy())
        report = ParMetrics(feature_set.schema).report((np.concatenate(logits), np.concatenate(truth)), bootstrap=0)
        rows[label] = {one["name"]: one["accuracy"] for one in report["attributes"]}
        logger.info("%s, one epoch, %s: accuracy %.2f", name, label, 100 * np.mean(list(rows[label].values())))
    return {"title": feature_set.title, "folds": len(feature_set.parts), "accuracy": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps features and finished trainings")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=2000, help="training pictures that are drawn or rendered")
    parser.add_argument("--max-epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--weighting", choices=("none", "sqrt", "balanced"), default="sqrt")
    parser.add_argument("--fusion-rate", type=float, default=0.0, help="0: the product's default")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument(
        "--variant", help="results stand beside the others under this name: other seeds, weights, rates"
    )
    parser.add_argument("--attention-gain", choices=SETS, help="only the paper's figure 4, on this set")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        max_epochs=args.max_epochs, patience=args.patience, weighting=args.weighting, fusion_rate=args.fusion_rate
    )
    saved = args.out / "quality.json"
    result = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {"sets": {}}
    if args.attention_gain:
        result["attention_gain"] = attention_gain(args.attention_gain, args, recipe)
    sets = result["sets"]
    if args.variant:
        sets = result.setdefault("variants", {}).setdefault(args.variant, {})
    for name in () if args.attention_gain else args.sets:
        sets[name] = measure_set(name, args, recipe)
        ordered = {one: sets.pop(one) for one in SETS if one in sets}
        sets.update(ordered)
        atomic_write_json(saved, result)
    atomic_write_json(saved, result)
    if result["sets"]:
        draw_methods(result["sets"], args.out / "quality.png")
    if "attention_gain" in result:
        draw_attention_gain(result["attention_gain"], args.out / "attention_gain.png")
    print(f"wrote {saved} and the pictures beside it")
    if args.out.resolve() == RESULTS.resolve():
        print(f"wrote {write_page('quality')}")


if __name__ == "__main__":
    main()
