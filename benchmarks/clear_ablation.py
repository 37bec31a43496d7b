"""What the parts of CLEAR are worth: ViT, Swin, Swin + CASA, concatenation, cross-fusion (the paper's table 5).

    python benchmarks/clear_ablation.py --data rendered                        # RENDERED people, the default sizes
    PAR_DATA=... python benchmarks/clear_ablation.py --data pa100k_mini        # REAL crops, five folds by persons
    python benchmarks/clear_ablation.py --num-train 200 --epochs 1 --seeds 1   # a quick look

Every method starts with random weights, of tiny towers unless `--backbone` names others, and is trained by the same
recipe of the common trainer. The epoch is chosen on validation. So the table compares architectures that learn from
few pictures, not the pretrained branches of the paper, and its numbers stand beside no published ones.

Printed and written for each method: mA and AUC, mean over seeds or folds, and the differences to the plain ViT, paired
by seed or fold, with their standard errors.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from folds import NUM_FOLDS, person_folds, real_crops, split_of_fold
from pages import command_of

from vlm_par_hf import ParMetrics, load_par_dataset
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.training import TrainSettings, train
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("clear_ablation")

METHODS = {
    "ViT": {"branches": "vit"},
    "Swin": {"branches": "swin", "casa": "none"},
    "Swin + CASA": {"branches": "swin"},
    "concatenation": {"fusion": "concat"},
    "cross-fusion": {"fusion": "cross"},
}
READINGS = {  # of equation 2, for the whole model
    "cross-fusion without CASA": {"casa": "none"},
    "cross-fusion, CASA as printed": {"casa": "paper"},
    "cross-fusion, CASA as in the code": {"casa": "code"},
}
NUMBERS = {"mA": "mA", "auc_macro": "AUC"}


def rounds_of(args) -> list[tuple[int, dict]]:
    """Per seed or fold its number and the splits `train`, `validation` and `test`."""
    if args.data == "pa100k_mini":
        data = real_crops()
        folds = person_folds(np.asarray(data["person_id"]))
        return [
            (fold, {name: data.select(rows) for name, rows in split_of_fold(folds, fold).items()})
            for fold in range(args.folds)
        ]
    sizes = {"num_train": args.num_train, "num_validation": args.num_validation, "num_test": args.num_test}
    data = load_par_dataset(args.data, **sizes)
    return [(seed, data) for seed in range(args.seeds)]


def run(method: dict, splits: dict, seed: int, args) -> dict[str, float]:
    """Trains one method and measures it on test."""
    settings = TrainSettings(
        epochs=args.epochs, batch_size=args.batch_size, eval_batch_size=args.batch_size, seed=seed, progress=False,
        backbone_learning_rate=args.backbone_learning_rate,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            splits, folder, family="clear_par", backbone=args.backbone, model_options=method, settings=settings,
            dataset_name=args.data,
        )  # fmt: skip
    model = result.model
    logits, labels = predict_logits(
        model, result.processor, splits["test"], batch_size=args.batch_size, progress=False
    )
    measured = ParMetrics(model.config.schema)((logits, labels))
    parameters = sum(one.numel() for one in model.parameters())
    return {**{name: measured[name] for name in NUMBERS}, "parameters": parameters, "best_step": result.best_step}


def summarise(rounds: list[dict[str, dict]]) -> dict[str, dict]:
    """Per method mean, and difference to the first method with its standard error, of each number.

    Args:
        rounds: per seed or fold, method -> numbers.
    """
    first = next(iter(rounds[0]))
    table = {}
    for method in rounds[0]:
        row: dict = {"parameters": rounds[0][method]["parameters"]}
        for name in NUMBERS:
            values = np.array([one[method][name] for one in rounds])
            difference = values - np.array([one[first][name] for one in rounds])
            count = len(values)
            row[name] = {
                "mean": values.mean(),
                "difference": difference.mean(),
                "standard_error": difference.std(ddof=1) / count**0.5 if count > 1 else None,
            }
        table[method] = row
    return table


def text_of(table: dict[str, dict]) -> str:
    lines = [
        "| method | parameters | " + " | ".join(f"{title} | to the ViT" for title in NUMBERS.values()) + " |",
        "|---" * (2 + 2 * len(NUMBERS)) + "|",
    ]
    for method, row in table.items():
        cells = [method, f"{row['parameters'] / 1e6:.2f} M"]
        for name in NUMBERS:
            number = row[name]
            error = "" if number["standard_error"] is None else f" ± {100 * number['standard_error']:.1f}"
            cells += [f"{100 * number['mean']:.1f}", f"{100 * number['difference']:+.1f}{error}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("rendered", "synthetic", "pa100k_mini"), default="rendered")
    parser.add_argument("--backbone", default="fresh-tiny", help="as vlm-par train --family clear_par takes it")
    parser.add_argument("--backbone-learning-rate", type=float, default=1e-5, help="of pretrained branches")
    parser.add_argument("--readings", action="store_true", help="also the readings of the channel-aware attention")
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-validation", type=int, default=500)
    parser.add_argument("--num-test", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=15.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3, help="of rendered and synthetic people")
    parser.add_argument("--folds", type=int, default=NUM_FOLDS, help="of pa100k_mini")
    parser.add_argument("--out", type=Path, help="writes the numbers as JSON")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logger.setLevel(logging.INFO)
    methods = METHODS | (READINGS if args.readings else {})
    rounds = []
    for number, splits in rounds_of(args):
        measured = {}
        for name, method in methods.items():
            measured[name] = run(method, splits, number, args)
            logger.info("%s %d, %s: %s", args.data, number, name, json.dumps(measured[name]))
        rounds.append(measured)
    table = summarise(rounds)
    kind = "REAL crops" if args.data == "pa100k_mini" else f"{args.data.upper()} people"
    print(f"{kind}, {len(rounds)} {'folds' if args.data == 'pa100k_mini' else 'seeds'}, branches {args.backbone}\n")
    print(text_of(table))
    if args.out is not None:
        settings = {name: value for name, value in vars(args).items() if name != "out"}
        atomic_write_json(
            args.out,
            {
                "command": command_of(sys.argv), "settings": settings, "table": table, "rounds": rounds,
                "torch": torch.__version__, "python": platform.python_version(),
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
