"""How much is lost on another domain: heads trained on one, tested on the others, on the attributes that both have.

    PAR_DATA=... python benchmarks/cross_domain.py --work DIR      # rendered cameras A and B, PA-100K's real crops
    python benchmarks/cross_domain.py --work DIR --domains rendered_a rendered_b
    python benchmarks/cross_domain.py --work DIR --root peta35=PETA --root market1501=Market-1501-v15.09.15

Each domain trains heads on the embedded backbone with the settings of `vlm-par train`; the epoch is chosen on its own
validation split. Each checkpoint is then measured on the test split of every domain as `vlm-par evaluate` does it,
with the mappings below where two label spaces divide the same thing otherwise. `there` is the checkpoint of the tested
domain on the same attributes; `lost` is the difference.

The backbone has learned from other rendered people of camera A, so on `rendered_b` and on photographs it is a stranger
too. Numbers on rendered people are SYNTHETIC; PA-100K's are of the 1,600 crops below `PAR_DATA`, and none can be
compared with a number of a paper. Finished trainings and renderings are kept; results go to `--out` (JSON), the table
also to docs/evaluation.md if `--out` is the default.
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
from pages import RESULTS, command_of, cross_domain_text, write_page

from vlm_par_hf import load_par_dataset
from vlm_par_hf.training import TrainSettings, evaluate, train
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("cross_domain")

DOMAINS = ("rendered_a", "rendered_b", "pa100k_mini")
# What the same attribute is called where question and name do not tell: tested label space -> trained one -> mapping.
_VIEW = {"Front": ["front"], "Side": ["left", "right"], "Back": ["back"]}
MAPPINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("pa100k", "rendered"): {
        **{name: {"attribute": "View", "labels": labels} for name, labels in _VIEW.items()},
        "AgeLess18": {"attribute": "Age", "labels": ["child"]},
        "Age18-60": {"attribute": "Age", "labels": ["adult"]},
        "AgeOver60": {"attribute": "Age", "labels": ["elderly"]},
        "ShortSleeve": {"attribute": "Sleeves", "labels": ["none", "short"]},
        "LongSleeve": {"attribute": "Sleeves", "labels": ["long"]},
        "Trousers": {"attribute": "LowerType", "labels": ["trousers"]},
        "Shorts": {"attribute": "LowerType", "labels": ["shorts"]},
        "Skirt&Dress": {"attribute": "LowerType", "labels": ["skirt", "dress"]},
        "boots": {"attribute": "Footwear", "labels": ["boots"]},
    },
    ("rendered", "pa100k"): {
        "Age": {"attributes": {"child": "AgeLess18", "adult": "Age18-60", "elderly": "AgeOver60"}},
    },
}


def load_domain(name: str, sizes: dict[str, int], roots: dict[str, str]):
    """Data set of a domain and the name of its label space.

    Raises:
        SystemExit: real crops are not below `PAR_DATA`.
    """
    if name in ("rendered_a", "rendered_b"):
        return load_par_dataset("rendered", cameras=(int(name == "rendered_b"),), **sizes), "rendered"
    if name == "pa100k_mini":
        root = Path(os.environ.get("PAR_DATA", "")) / name
        if not root.is_dir():
            raise SystemExit("PAR_DATA must name the folder that holds pa100k_mini/")
        return load_par_dataset("pa100k", root), "pa100k"
    return load_par_dataset(name, roots[name]), name


def train_domain(name: str, data, work: Path, epochs: int) -> Path:
    """The checkpoint of a domain, trained unless it is there."""
    run = work / name
    if (run / "training.json").is_file():  # written last
        return run
    # Features of the frozen backbone are computed once.
    settings = TrainSettings(epochs=epochs, precompute_features=True, progress=False)
    train(data, run, settings=settings, resume=(run / "run.json").is_file())
    return run


def measure(checkpoint: Path, data, mapping, bootstrap: int) -> dict[str, Any]:
    by_person = "person_id" in data["test"].column_names
    return evaluate(checkpoint, data, mapping=mapping, bootstrap=bootstrap, by_person=by_person, progress=False)


def over(record: dict[str, Any], names: list[str], key: str) -> float | None:
    """The mean over attributes of a record."""
    values = [row[key] for row in record["attributes"] if row["name"] in names and row[key] is not None]
    return float(np.mean(values)) if values else None


def compare(own: dict[str, dict], crossed: dict[tuple[str, str], dict]) -> list[dict[str, Any]]:
    """A row per pair of domains; numbers in percent."""
    rows = []
    for (source, target), record in crossed.items():
        names = [row["name"] for row in record["attributes"]]
        row: dict[str, Any] = {"trained": source, "tested": target, "attributes": len(names)}
        for metric, key in (("mA", "mA"), ("auc_macro", "auc")):
            here, there = record["metrics"][metric], over(own[target], names, key)
            low, high = record["intervals"][metric] or (None, None)
            row[key] = {"value": 100 * here, "low": 100 * low, "high": 100 * high, "there": 100 * there}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), help=f"default: {' '.join(DOMAINS)}")
    parser.add_argument(
        "--root", action="append", default=[], metavar="NAME=DIR", help="another data set and where it lies"
    )
    parser.add_argument("--train", type=int, default=600, help="rendered training pictures (default: 600)")
    parser.add_argument("--validation", type=int, default=150, help="default: 150")
    parser.add_argument("--test", type=int, default=500, help="default: 500")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--bootstrap", type=int, default=1000, help="default: 1000")
    parser.add_argument("--out", type=Path, default=RESULTS / "cross_domain.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    roots = dict(one.split("=", 1) for one in args.root)
    sizes = {"num_train": args.train, "num_validation": args.validation, "num_test": args.test}

    data, spaces, checkpoints = {}, {}, {}
    for name in [*args.domains, *roots]:
        data[name], spaces[name] = load_domain(name, sizes, roots)
        checkpoints[name] = train_domain(name, data[name], args.work, args.epochs)
        logger.info("%s is trained", name)
    own, crossed = {}, {}
    for target in data:
        own[target] = measure(checkpoints[target], data[target], None, 0)
        for source in data:
            if source != target:
                mapping = MAPPINGS.get((spaces[target], spaces[source]))
                record = measure(checkpoints[source], data[target], mapping, args.bootstrap)
                crossed[source, target] = record
                logger.info("%s on %s: mA %.1f", source, target, 100 * record["metrics"]["mA"])
    rows = compare(own, crossed)
    result = {
        "command": command_of(sys.argv),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "sizes": sizes,
        "rows": rows,
        "attributes": {
            f"{source} on {target}": {row["name"]: row["mA"] for row in record["attributes"]}
            for (source, target), record in crossed.items()
        },
    }
    atomic_write_json(args.out, result)
    print(cross_domain_text(result))
    if args.out == RESULTS / "cross_domain.json":
        print(f"wrote {write_page('cross_domain')}")


if __name__ == "__main__":
    main()
