"""Attributes of PA-100K that were not trained, on REAL crops: FOCUS beside its backbone's zero-shot answers.

    PAR_DATA=... python benchmarks/open_real.py                   # five folds; about half an hour on one thread
    PAR_DATA=... python benchmarks/open_real.py --epochs 1 --folds 1 --out /tmp/quick

18 attributes are trained, 8 are held out (`UNSEEN`; of sleeves both, because one is nearly the opposite of the other).
Folds and persons as in `folds.py`; every crop is tested once. Measured over the attributes with enough positives:

- AUC, which depends on no threshold;
- recall at 1 by labels: the label with the highest score, where every label counts alike;
- mA after decisions that are fitted on validation for the trained attributes and transferred to the others.

Intervals are 95 % over persons; differences are to zero-shot, on the same resamples. The epoch is chosen by recall at
1 of the trained attributes on validation. The backbone has not learned from these crops.
"""

import argparse
import json
import logging
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from folds import NUM_FOLDS, person_folds, real_crops, scored_attributes, split_of_fold
from open_attributes import NAMES, VARIANTS, Pictures, answer, train_focus, train_vlm_par
from pages import command_of
from resampling import Judge

from vlm_par_hf import FocusParProcessor, VlmParModel, get_schema
from vlm_par_hf.base.decisions import fit_decisions, transfer_decisions
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("open_real")

UNSEEN = ("Glasses", "HandBag", "Backpack", "ShortSleeve", "LongSleeve", "UpperPlaid", "Shorts", "Back")
METHODS = ("zero_shot", "vlm_par", *VARIANTS)
NUMBERS = {"auc": "AUC", "recall_at_1": "R@1 by labels", "mA": "mA, transferred decisions"}


def subset(pictures: Pictures, rows: np.ndarray) -> Pictures:
    part = object.__new__(Pictures)
    part.tensors = {name: value[rows] for name, value in pictures.tensors.items()}
    part.labels = pictures.labels[rows]
    return part


def decided(logits: np.ndarray, schema, gain, offset) -> np.ndarray:
    """Logits after gains and offsets."""
    table = np.zeros((len(schema), schema.max_labels))
    table[schema.label_mask()] = offset.numpy()
    return logits * gain.numpy()[:, None] + table


def answers_of(method: str, parts: dict, schemas: dict, columns: dict, processor, args, seed: int) -> dict:
    """Logits of validation (trained attributes) and of test (trained and other ones) by one method on one fold."""
    if method == "zero_shot":
        models = {}
        for name, schema in schemas.items():
            settings = {"fusion": "none", "alignment": "logit", "pooled_classifier": False}
            models[name] = VlmParModel.from_backbone(args.backbone, attributes=schema, **settings)
            models[name].fit_zero_shot()
        return {
            "validation": answer(models["seen"], parts["validation"]),
            **{name: answer(model, parts["test"]) for name, model in models.items()},
        }
    if method == "vlm_par":
        model, _ = train_vlm_par(schemas["seen"], parts["train"], parts["validation"], columns["seen"], args, seed)
        return {"validation": answer(model, parts["validation"]), "seen": answer(model, parts["test"])}
    options = dict(VARIANTS[method])
    model, _ = train_focus(schemas["seen"], parts["train"], parts["validation"], columns["seen"], options, args, seed)
    texts = {name: model.encode_attributes(schema, processor) for name, schema in schemas.items()}
    return {
        "validation": answer(model, parts["validation"], attributes=texts["seen"]),
        **{name: answer(model, parts["test"], attributes=one) for name, one in texts.items()},
    }


def run_fold(method: str, fold: int, parts: dict, schemas: dict, columns: dict, processor, args) -> dict:
    """`{"seen", "unseen"}` -> raw and decided logits of the test pictures; kept in `--work`."""
    file = args.work / f"{method}-{args.epochs}-fold{fold}.npz"
    if not file.is_file():
        found = answers_of(method, parts, schemas, columns, processor, args, seed=0)
        truth = parts["validation"].labels[:, columns["seen"]]
        decisions = {"seen": fit_decisions(found["validation"], truth, schemas["seen"], weighting="balanced")}
        decisions["unseen"] = transfer_decisions(*decisions["seen"], schemas["seen"], schemas["unseen"])
        arrays = {}
        for name in schemas.keys() & found.keys():
            arrays[name] = found[name]
            arrays[f"{name}_decided"] = decided(found[name], schemas[name], *decisions[name])
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".part.npz")
        np.savez(half, **arrays)
        half.rename(file)
        logger.info("fold %d: %s is trained", fold, method)
    with np.load(file) as saved:
        return dict(saved)


def interval(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def table(result: dict) -> str:
    lines = [
        "| REAL crops | "
        + " | ".join(f"{part}: {NUMBERS[key]}" for part in ("unseen", "seen") for key in NUMBERS)
        + " |",
        "|---" * (2 * len(NUMBERS) + 1) + "|",
    ]
    for method, row in result["methods"].items():
        cells = []
        for part in ("unseen", "seen"):
            for key in NUMBERS:
                cell = row.get(part, {}).get(key)
                low, value, high = (100 * cell[one] for one in ("low", "value", "high")) if cell else (0, 0, 0)
                cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]" if cell else "")
        lines.append(f"| {NAMES[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folds", type=int, default=NUM_FOLDS, help="how many of them are tested")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--work", type=Path, required=True, help="keeps the answers of finished trainings")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    rates = {"learning_rate": 3e-3, "extraction_learning_rate": 1e-3, "backbone_learning_rate": 1e-4}
    args = SimpleNamespace(**vars(given), **rates)  # the rates of open_attributes.py

    crops = real_crops()
    schema = get_schema("pa100k")
    processor = FocusParProcessor.from_backbone(args.backbone)
    pictures = Pictures(crops, processor)
    schemas = {
        "seen": schema.subset(name for name in schema.names if name not in UNSEEN),
        "unseen": schema.subset(UNSEEN),
    }
    columns = {part: [schema.index(name) for name in one.names] for part, one in schemas.items()}
    persons = np.asarray(crops["person_id"])
    folds = person_folds(persons)
    tested, collected = [], {}
    for fold in range(args.folds):
        rows = split_of_fold(folds, fold)
        parts = {split: subset(pictures, own) for split, own in rows.items()}
        tested.append(rows["test"])
        for method in args.methods:
            torch.manual_seed(0)
            found = run_fold(method, fold, parts, schemas, columns, processor, args)
            for name, logits in found.items():
                collected.setdefault(method, {}).setdefault(name, []).append(logits)
    tested = np.concatenate(tested)
    values: dict[str, dict] = {}
    result = {"methods": {}, "scored": {}}
    for part, one in schemas.items():
        labels = pictures.labels[tested][:, columns[part]]
        scored = scored_attributes(pictures.labels[:, columns[part]])
        result["scored"][part] = [one.names[int(a)] for a in scored]
        judge = Judge(one, scored, labels, persons[tested], args.bootstrap, folds[tested])
        for method, found in collected.items():
            if part not in found:
                continue
            raw, fitted = (np.concatenate(found[name]) for name in (part, f"{part}_decided"))
            numbers = {"auc": judge.ranking(raw)["auc"], "recall_at_1": judge.recall(raw), "mA": judge.recall(fitted)}
            values.setdefault(method, {})[part] = numbers
            row = result["methods"].setdefault(method, {}).setdefault(part, {})
            for key, own in numbers.items():
                row[key] = interval(own)
                reference = values.get("zero_shot", {}).get(part)
                if reference is not None and method != "zero_shot":
                    row[key]["difference"] = interval(own - reference[key])
    result |= {
        "command": command_of(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "unseen": list(UNSEEN),
        "tested": len(tested),
        "settings": {name: str(value) for name, value in vars(args).items() if name not in ("out", "work")},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(args.out / "open_real.json", json.loads(json.dumps(result)))
    print(table(result))
    print(f"wrote {args.out / 'open_real.json'}")


if __name__ == "__main__":
    main()
