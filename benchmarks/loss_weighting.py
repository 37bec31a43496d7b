"""Weights in the loss, or decisions afterwards: losses and samplings on the same cached features, answered at 0.5 and
by fitted decisions.

    PAR_DATA=... python benchmarks/loss_weighting.py --work DIR              # features are those of quality.py in DIR
    PAR_DATA=... python benchmarks/loss_weighting.py --work DIR --sets real  # one set; other results are kept

The head is the linear probe of quality.py on pooled output and mean patch, because there only the loss differs:
features are decoupled from the classifier, as in the re-sampling that is compared. Learning rate and epoch are chosen
by validation AUC for each loss by itself; calibration, thresholds and biases are fitted on the validation part of each
fold (`vlm_par_hf.calibration.fit`). Nothing is fitted on a test part.

- `ce`: cross-entropy;
- `ce_focal`, `ce_focal_sqrt`, `ce_focal_balanced`: VLM-PAR's loss without class weights, with the product's, balanced;
- `weighted_bce`: cross-entropy times exp(1 - share) (DeepMAR);
- `focal`: focal loss with gamma 2 (Lin et al., 2017);
- `focal_by_attribute`: focal loss whose gamma is 2 (1 - K r), r the share of the rarest of K labels: 0 where labels
  are equally frequent, 2 where one is very rare;
- `asl`: asymmetric loss (Ridnik et al., 2021): gamma 0 for positives, 4 for negatives, margin 0.05;
- `resampled`: every classifier is trained on batches of its own, in which its labels are equally frequent (FRDL, Zhou
  et al., 2024, without its augmentation of repeated features).

An attribute with more than two labels is for `asl` one positive and K - 1 negatives, of its softmax.

Finished trainings lie in `--work`, so after an interruption the same command goes on.
"""

import argparse
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from feature_sets import SETS, Features, load_feature_set
from heads import LinearProbe
from pages import RESULTS, command_of, write_page
from quality import SELECT, Recipe, fit, predict, settings_key
from resampling import Judge, answers_of_parts, interval
from torch import nn

from vlm_par_hf import ParLoss, ParMetrics
from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.training.building import starting_shares
from vlm_par_hf.utils import atomic_write_json, read_json_object


logger = logging.getLogger("loss_weighting")

UNKNOWN = -100


class FocalByAttribute(nn.Module):
    """Focal loss with a gamma for each attribute, `(A,)`."""

    def __init__(self, schema, gammas: torch.Tensor) -> None:
        super().__init__()
        self.mask, self.gammas = torch.from_numpy(schema.label_mask()), gammas

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = labels != UNKNOWN
        log_p = logits.masked_fill(~self.mask, -1e4).log_softmax(-1)
        own = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        cells = -((-torch.expm1(own)).clamp_min(1e-12) ** self.gammas) * own
        return torch.where(known, cells, 0.0).sum() / known.sum().clamp_min(1)


class AsymmetricLoss(nn.Module):
    """Asymmetric loss (Ridnik et al., 2021, equations 5 to 7); of a binary attribute the one label is "yes"."""

    def __init__(self, schema, positive: float = 0.0, negative: float = 4.0, margin: float = 0.05) -> None:
        super().__init__()
        mask = torch.from_numpy(schema.label_mask())
        self.mask, self.counted = mask, mask.clone()
        self.counted[[one.is_binary for one in schema], 0] = False  # "no" is the negative of "yes", not a label more
        self.positive, self.negative, self.margin = positive, negative, margin

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = labels != UNKNOWN
        p = logits.masked_fill(~self.mask, -1e4).softmax(-1).clamp(1e-8, 1 - 1e-8)
        truth = torch.nn.functional.one_hot(labels.clamp_min(0), p.shape[-1]).bool()
        shifted = (p - self.margin).clamp_min(0)
        positive = -((1 - p) ** self.positive) * p.log()
        negative = -(shifted**self.negative) * torch.log1p(-shifted)
        cells = torch.where(truth, positive, negative).masked_fill(~self.counted, 0.0).sum(-1)
        return torch.where(known, cells, 0.0).sum() / known.sum().clamp_min(1)


class BalancedFeatures(Features):
    """Features whose batches hold, for each attribute, as many rows as were asked for, drawn so that its labels are
    equally frequent; in those rows the labels of the others are unknown."""

    def __init__(self, views, labels: torch.Tensor, persons: np.ndarray | None = None) -> None:
        super().__init__(views, labels, persons)
        known = self.labels[0].T
        self.chances = torch.zeros(known.shape)  # of each row for each attribute
        for k in range(int(known.max()) + 1):
            own = known == k
            self.chances += own / own.sum(1, keepdim=True).clamp_min(1)

    def batch(self, rows: torch.Tensor, mirrored: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if mirrored is None:  # to predict
            return super().batch(rows)
        A = len(self.chances)
        drawn = torch.multinomial(self.chances, len(rows), replacement=True)
        batch = super().batch(drawn.flatten(), mirrored.repeat(A))
        own = torch.arange(A).repeat_interleave(len(rows))[:, None] == torch.arange(A)
        batch["labels"] = batch["labels"].masked_fill(~own, UNKNOWN)
        return batch


class BalancedProbe(LinearProbe):
    """The probe, which in training answers each block of rows of `BalancedFeatures` for its own attribute only; the
    logits of the others, whose labels are unknown there, are 0."""

    def forward(self, **batch):
        if not self.training:
            return super().forward(**batch)
        A, C = self.bias.shape
        vector = (self._vector(batch) - self.mean) / self.std
        own = torch.einsum("abd,adc->abc", vector.unflatten(0, (A, -1)), self.weight) + self.bias[:, None]
        logits = own.new_zeros(A, own.shape[1], A, C)
        logits[torch.arange(A), :, torch.arange(A)] = own
        return logits.flatten(0, 1).masked_fill(~self.label_mask, -1e4)


def pooled(features: Features, kind: type[Features] = Features) -> Features:
    """The same with one patch, the mean of all: what the probe looks at."""
    views = []
    for view in features.views:
        mask = view["patch_mask"][..., None]
        mean = torch.where(mask, view["patch_embeds"].float(), 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        views.append({**view, "patch_embeds": mean, "patch_mask": torch.ones(len(mean), 1, dtype=torch.bool)})
    return kind(views, features.labels, features.persons)


def losses(schema, priors: list[list[float]]) -> dict[str, tuple[Any, list[list[float]]]]:
    """By name: the loss, and the label shares whose logarithm the bias starts from."""
    plain: dict[str, dict[str, Any]] = {
        "ce": {"kind": "ce", "label_smoothing": 0.0},
        "ce_focal": {},
        "ce_focal_sqrt": {"weighting": "sqrt", "priors": priors},
        "ce_focal_balanced": {"weighting": "balanced", "priors": priors},
        "weighted_bce": {"kind": "weighted_bce", "priors": priors},
        "focal": {"kind": "focal"},
    }
    gammas = torch.tensor([2 * (1 - len(prior) * min(prior)) for prior in priors])
    found = {name: (ParLoss(schema, **one), starting_shares(one, priors)) for name, one in plain.items()}
    equal = [[1 / len(prior)] * len(prior) for prior in priors]
    return found | {
        "focal_by_attribute": (FocalByAttribute(schema, gammas), priors),
        "asl": (AsymmetricLoss(schema), priors),
        "resampled": (ParLoss(schema, "ce", label_smoothing=0.0), equal),
    }


NAMES = (
    "ce", "ce_focal", "ce_focal_sqrt", "ce_focal_balanced", "weighted_bce", "focal", "focal_by_attribute", "asl",
    "resampled",
)  # fmt: skip


def result_of(name: str, feature_set, number: int, recipe: Recipe, work: Path) -> dict[str, Any]:
    """One loss on one fold: `train_part`, unless `work` holds its result."""
    file = work / feature_set.name / f"part{number}" / f"{name}.npz"
    if not file.is_file():
        trained = train_part(name, feature_set, feature_set.parts[number], recipe)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".part.npz")
        np.savez(half, **{**trained, "notes": json.dumps(trained["notes"])})
        half.rename(file)
    with np.load(file) as saved:
        return {**saved, "notes": json.loads(str(saved["notes"]))}


def train_part(name: str, feature_set, part: dict[str, Features], recipe: Recipe) -> dict[str, Any]:
    """The logits of validation and test of the best rate, and notes."""
    schema = feature_set.schema
    train = pooled(part["train"], BalancedFeatures if name == "resampled" else Features)
    validation, test = pooled(part["validation"]), pooled(part["test"])
    priors = compute_priors(train.labels[0].numpy(), schema)
    best: dict[str, Any] = {}
    for rate in recipe.rates:
        loss, shares = losses(schema, priors)[name]
        torch.manual_seed(0)
        kind = BalancedProbe if name == "resampled" else LinearProbe
        model = kind(schema, "both", train.batches())
        model.init_bias_from_priors(shares)
        notes = fit(model, loss, train, validation, schema, recipe, rate=rate, seed=0) | {"rate": rate}
        if not best or notes[SELECT] > best["notes"][SELECT]:
            best = {"validation": predict(model, validation), "test": predict(model, test), "notes": notes}
    return best


def measure_set(set_name: str, args) -> dict[str, Any]:
    """All losses on one set: what loss_weighting.json holds of it."""
    sizes = {"num_train": args.train, "num_validation": max(200, args.train // 4), "num_test": max(400, args.train)}
    feature_set = load_feature_set(set_name, 0, args.work / "features", sizes)
    schema, parts = feature_set.schema, feature_set.parts
    truths = [part["validation"].labels[0].numpy() for part in parts]
    tests = [part["test"] for part in parts]
    labels = np.concatenate([one.labels[0].numpy() for one in tests])
    persons = None if tests[0].persons is None else np.concatenate([one.persons for one in tests])
    folds = np.repeat(np.arange(len(tests)), [len(one) for one in tests])
    judge = Judge(schema, feature_set.scored, labels, persons, args.bootstrap, folds)
    certain, metrics = np.eye(schema.max_labels), ParMetrics(schema, inputs="probabilities")
    rows, recalls = {}, {}
    recipe = Recipe(max_epochs=args.max_epochs)
    work = args.work / f"losses-{settings_key(recipe, sizes, set_name)}"
    for name in args.losses:
        trained = [result_of(name, feature_set, number, recipe, work) for number in range(len(parts))]
        logits = np.concatenate([one["test"] for one in trained])
        found = answers_of_parts(
            [one["validation"] for one in trained], [one["test"] for one in trained], truths, schema
        )
        numbers = {
            "auc": judge.ranking(logits)["auc"],
            "mA": judge.recall(certain[found["start"]]),
            "mA_fitted": judge.recall(certain[found["mA"]]),
        }
        recalls[name] = numbers
        rows[name] = {key: interval(values) for key, values in numbers.items()}
        for key, answers in (("f1", found["start"]), ("f1_fitted", found["instance_f1"])):
            rows[name][key] = metrics((certain[answers], labels))["instance_f1_harmonic"]
        rows[name]["rates"] = [one["notes"]["rate"] for one in trained]
        rows[name]["epochs"] = [one["notes"]["epoch"] for one in trained]
        logger.info(
            "%s %s: AUC %.2f, fitted mA %.2f", set_name, name, *(100 * numbers[key][0] for key in ("auc", "mA_fitted"))
        )
    for name, row in rows.items():
        if name != args.losses[0]:
            for key in ("auc", "mA_fitted"):
                row[key]["difference"] = interval(recalls[name][key] - recalls[args.losses[0]][key])
    return {
        "title": feature_set.title,
        "command": command_of(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "folds": len(parts),
        "fitted_on": [len(one) for one in truths],
        "tested": len(labels),
        "scored": len(feature_set.scored),
        "losses": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="of quality.py, for its features")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["real", "rendered"])
    parser.add_argument("--losses", nargs="+", choices=NAMES, default=list(NAMES), help="the first is compared with")
    parser.add_argument("--train", type=int, default=2000, help="training pictures that are drawn or rendered")
    parser.add_argument("--max-epochs", type=int, default=30)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("vlm_par_hf.calibration").setLevel(logging.ERROR)  # rare attributes, for each fold anew
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "loss_weighting.json"
    result = read_json_object(saved) or {"sets": {}}
    for name in args.sets:
        result["sets"][name] = measure_set(name, args)
        result["sets"] = {one: result["sets"][one] for one in SETS if one in result["sets"]}
        atomic_write_json(saved, result)
    print(f"wrote {saved}")
    if args.out.resolve() == RESULTS.resolve():
        print(f"wrote {write_page('loss_weighting')}")


if __name__ == "__main__":
    main()
