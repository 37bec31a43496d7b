"""What it is worth to train more than the heads: on the real crops of `pa100k_mini`, in folds without a common person.

    PAR_DATA=... python benchmarks/fine_tuning.py --work DIR              # one fold; ten minutes on one thread
    PAR_DATA=... python benchmarks/fine_tuning.py --work DIR --folds 5    # all pictures are tested
    PAR_DATA=... python benchmarks/fine_tuning.py --work DIR --rates 2    # two learning rates are tried
    PAR_DATA=... python benchmarks/fine_tuning.py --work DIR --epochs 1 --methods heads --out quick.json

From the embedded backbone: the heads alone, LoRA of rank 8 beside them, the last two layers, the whole vision tower.
All see the same pictures in the same order with the same augmentation, for the same number of epochs, and have the
same loss and the same start (`fit_pooled_statistics`, `fit_zero_shot`). Epoch and, of several, learning rate are
chosen by validation AUC; the test fold is predicted once. The rates of the tower are larger than the defaults of
`vlm-par train`, which are for backbones several times as wide.

- `auc`: area under the ROC curve, mean over attributes;
- `mA`: mean recall over labels and attributes, at 0.5; `mA_shift`: after one number for all attributes was fitted on
  validation, by how much of the log prior the logits are shifted (`resampling.py`).

Intervals are 95 %, over persons; a difference is that to the heads alone, on the same resamples. Finished trainings
lie in `--work`, so after an interruption the same command goes on, and more folds can be added.
"""

import argparse
import copy
import json
import logging
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from folds import NUM_FOLDS, person_folds, real_crops, scored_attributes, split_of_fold
from pages import RESULTS, command_of, write_page
from resampling import Judge, fit_shift, shifted
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup, set_seed

from vlm_par_hf import ParCollator, ParMetrics, VlmParModel, VlmParProcessor, get_schema
from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.data import AugmentedDataset, ParAugmentation
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("fine_tuning")

SELECT = "auc_macro"
NUMBERS = ("auc", "mA", "mA_shift")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        label: how tables call it.
        rate: which learning rate of `parameter_groups` is tried.
        rates: its values; of these `--rates` are tried.
        lora, train_layers: as in `TrainSettings`.
        freeze_backbone: as in the configuration.
    """

    label: str
    rate: str
    rates: tuple[float, float]
    lora: int = 0
    train_layers: int = 0
    freeze_backbone: bool = True

    def build(self, schema) -> VlmParModel:
        model = VlmParModel.from_backbone("embedded", attributes=schema, freeze_backbone=self.freeze_backbone)
        if self.lora:
            model.add_lora(self.lora)
        if self.train_layers:
            model.train_last_layers(self.train_layers)
        return model


METHODS = {
    "heads": Method("heads alone", "learning_rate", (1e-3, 3e-3)),
    "lora": Method("LoRA, rank 8", "adapter_learning_rate", (1e-3, 2e-4), lora=8),
    "last": Method("last 2 layers", "backbone_learning_rate", (1e-4, 1e-5), train_layers=2),
    "all": Method("whole vision tower", "backbone_learning_rate", (1e-4, 1e-5), freeze_backbone=False),
}


@dataclass(frozen=True)
class Recipe:
    """What all methods have in common."""

    epochs: int = 4
    patches: int = 72
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 0


@torch.no_grad()
def predict(model, batches) -> np.ndarray:
    """Logits float32 `(N, A, C)`, in order."""
    model.eval()
    inputs = ({key: one for key, one in batch.items() if key != "labels"} for batch in batches)
    return torch.cat([model(**one).logits for one in inputs]).numpy()


def fit(method: Method, rate: float, parts: dict[str, Any], processor, schema, recipe: Recipe):
    """Trains one model. Returns it with the weights of the best epoch, and notes."""
    set_seed(recipe.seed)
    model = method.build(schema)
    labels = np.asarray(parts["train"]["labels"])
    model.config.loss = {"weighting": "sqrt", "priors": compute_priors(labels, schema)}
    collator = ParCollator(processor, schema)
    plain = [*DataLoader(AugmentedDataset(parts["train"]), batch_size=64, collate_fn=collator)]
    with torch.no_grad():
        seen = [
            model.get_image_features(**{key: one for key, one in batch.items() if key != "labels"}).as_inputs()
            | {"labels": batch["labels"]}
            for batch in plain
        ]
    model.fit_pooled_statistics(seen)
    model.fit_zero_shot(seen)

    augmented = AugmentedDataset(parts["train"], ParAugmentation(schema), seed=recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    batches = DataLoader(augmented, batch_size=recipe.batch_size, shuffle=True, generator=order, collate_fn=collator)
    validation = [*DataLoader(AugmentedDataset(parts["validation"]), batch_size=64, collate_fn=collator)]
    truth, metrics = np.asarray(parts["validation"]["labels"]), ParMetrics(schema)
    rates = {"learning_rate": recipe.learning_rate, method.rate: rate}
    optimizer = torch.optim.AdamW(model.parameter_groups(**rates, weight_decay=recipe.weight_decay), fused=True)
    steps = recipe.epochs * len(batches)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(recipe.warmup * steps), steps)
    best: dict[str, Any] = {SELECT: -1.0}
    started = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        augmented.set_epoch(epoch)
        model.train()
        for batch in batches:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        score = metrics((predict(model, validation), truth))[SELECT]
        logger.info("  %s, rate %g, epoch %d: validation AUC %.2f", method.label, rate, epoch, 100 * score)
        if score > best[SELECT]:
            best = {SELECT: score, "epoch": epoch}
            state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    seconds = (time.perf_counter() - started) / recipe.epochs
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return model, best | {"rate": rate, "seconds_per_epoch": round(seconds, 1), "parameters": trained}


def result_of(
    name: str, rates: int, fold: int, parts, processor, schema, recipe: Recipe, work: Path
) -> dict[str, Any]:
    """Logits of validation and test of a method on one fold, and notes; trained if `work` does not hold it."""
    method, found = METHODS[name], []
    for rate in method.rates[:rates]:
        file = work / f"fold{fold}" / f"{name}-{rate:g}.npz"
        if not file.is_file():
            model, notes = fit(method, rate, parts, processor, schema, recipe)
            logits = {
                split: predict(
                    model,
                    DataLoader(
                        AugmentedDataset(parts[split]), batch_size=64, collate_fn=ParCollator(processor, schema)
                    ),
                )
                for split in ("validation", "test")
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            half = file.with_suffix(".part.npz")
            np.savez(half, **logits, notes=json.dumps(notes))
            half.rename(file)
            logger.info("fold %d %s: %s", fold, name, notes)
        with np.load(file) as saved:
            found.append((saved["validation"], saved["test"], json.loads(str(saved["notes"]))))
    return max(found, key=lambda one: one[2][SELECT])


def interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="keeps finished trainings")
    parser.add_argument("--folds", type=int, default=1, choices=range(1, NUM_FOLDS + 1), help="how many are tested")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--patches", type=int, default=Recipe.patches, help="of a picture, at most")
    parser.add_argument("--rates", type=int, default=1, choices=(1, 2), help="learning rates that each method tries")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS / "fine_tuning.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.methods[0] != "heads":
        parser.error("--methods must begin with heads, which the others are compared with")

    recipe = Recipe(epochs=args.epochs, patches=args.patches)
    data, schema = real_crops(), get_schema("pa100k")
    processor = VlmParProcessor.from_backbone("embedded", max_num_patches=args.patches)
    labels, persons = np.asarray(data["labels"]), np.asarray(data["person_id"])
    folds, scored = person_folds(persons), scored_attributes(np.asarray(data["labels"]))
    found: dict[str, dict[str, list]] = {name: {"test": [], "fitted": [], "notes": []} for name in args.methods}
    rows = []
    for fold in range(args.folds):
        positions = split_of_fold(folds, fold)
        parts = {split: data.select(where) for split, where in positions.items()}
        priors = compute_priors(labels[positions["train"]], schema)
        rows.append(positions["test"])
        for name, own in found.items():
            validation, test, notes = result_of(
                name,
                args.rates,
                fold,
                parts,
                processor,
                schema,
                recipe,
                args.work / f"{recipe.epochs}-epochs-{recipe.patches}-patches",
            )
            shift = fit_shift(validation, labels[positions["validation"]], schema, scored, priors)
            own["test"].append(test)
            own["fitted"].append(shifted(test, priors, shift))
            own["notes"].append(notes | {"shift": shift})
    tested = np.concatenate(rows)
    judge = Judge(schema, scored, labels[tested], persons[tested], args.bootstrap, folds[tested])
    measured = {
        name: judge.measure(np.concatenate(own["test"]), np.concatenate(own["fitted"])) for name, own in found.items()
    }
    methods = {}
    for name, values in measured.items():
        methods[name] = {"label": METHODS[name].label, "notes": found[name]["notes"]}
        for number in NUMBERS:
            methods[name][number] = interval(values[number])
            if name != "heads":
                methods[name][number]["difference"] = interval(values[number] - measured["heads"][number])
    atomic_write_json(
        args.out,
        {
            "command": command_of(sys.argv),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "recipe": asdict(recipe),
            "folds": args.folds,
            "tested": len(tested),
            "persons": len(np.unique(persons[tested])),
            "scored": [schema[int(one)].name for one in scored],
            "methods": methods,
        },
    )
    print(f"wrote {args.out}")
    if args.out.resolve() == (RESULTS / "fine_tuning.json").resolve():
        print(f"wrote {write_page('fine_tuning')}")


if __name__ == "__main__":
    main()
