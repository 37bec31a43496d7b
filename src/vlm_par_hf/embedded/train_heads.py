"""Train the heads that ship: small VLM-PAR heads over the embedded backbone.

    python -m vlm_par_hf.embedded.train_heads rendered --work WORK --out OUT
    PAR_DATA=... python -m vlm_par_hf.embedded.train_heads pa100k --work WORK --out OUT

`rendered` learns the label space of rendered pedestrians and is measured on other ones: SYNTHETIC. `pa100k` learns
PA-100K's 26 attributes from rendered pedestrians and from the train part of `$PAR_DATA/pa100k_mini`; the validation
part chooses the epoch and the thresholds, the test part is measured once. `OUT` receives the heads without the
backbone (it is saved by its name, "embedded"), in float16, with the record of the run and the results.
"""

import argparse
import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vlm_par_hf.base.priors import compute_priors
from vlm_par_hf.data import attach_schema, dataset_schema, load_par_dataset
from vlm_par_hf.data.carried import read_labels
from vlm_par_hf.data.synthetic.rendered import as_pa100k
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.training import TrainSettings, evaluate, train
from vlm_par_hf.utils import require


logger = logging.getLogger("vlm_par_hf.embedded.train_heads")

# Seed of the people rendered here: neither the backbone's (1000) nor one of the examples (0, 1, 2).
SEED = 77
# Without a question the heads of 43 attributes are 0.1 MB; with projections for each they would be 22 MB.
HEADS = {"fusion": "none"}
REAL_COPIES = 2  # of each real crop beside 6,000 renders: a quarter of what is seen is real
FEW = 5  # an attribute with fewer positives or negatives on validation has no say in the thresholds
EXPONENTS = np.arange(0.0, 1.5001, 0.05)
KEPT = ("README.md", "run.json", "training.json", "metrics.json", "attributes.md")


def rendered_data(args: argparse.Namespace) -> Any:
    """Rendered pedestrians: from folders that were rendered before, or rendered now."""
    if args.rendered is None:
        return load_par_dataset(
            "rendered", seed=SEED, num_train=args.num_train, num_validation=args.num_train // 10,
            num_test=args.num_train // 5,
        )  # fmt: skip
    datasets = require("datasets", "train")
    found: dict[str, Any] = {}
    for folder in args.rendered:
        found |= {split: part for split, part in load_par_dataset("hub", folder).items() if len(part)}
    missing = {"train", "validation", "test"} - found.keys()
    if missing:
        raise ParValueError(f"--rendered has no {sorted(missing)}; expected folders that hold train, validation, test")
    found["train"] = found["train"].select(range(min(args.num_train, len(found["train"]))))
    return datasets.DatasetDict(found)


def with_pa100k_labels(split: Any, schema: AttributeSchema) -> Any:
    """A split of rendered pedestrians with PA-100K's labels, and no other columns than image and labels."""
    datasets = require("datasets", "train")
    labels = as_pa100k(read_labels(split))
    split = split.select_columns(["image"])
    split = split.add_column(
        "labels", labels.tolist(), feature=datasets.List(datasets.Value("int64"), length=len(schema))
    )
    return attach_schema(split, schema, name="pa100k")


def pa100k_data(args: argparse.Namespace) -> Any:
    """The real crops; rendered pedestrians are added to those to train on."""
    datasets = require("datasets", "train")
    if not os.environ.get("PAR_DATA"):
        raise ParValueError("PAR_DATA is not set; expected the folder that holds pa100k_mini/")
    data = load_par_dataset("pa100k", Path(os.environ["PAR_DATA"]) / "pa100k_mini")
    schema = dataset_schema(data)
    rendered = with_pa100k_labels(rendered_data(args)["train"], schema)
    real = data["train"].select_columns(["image", "labels"]).cast(rendered.features)
    both = datasets.concatenate_datasets([rendered, *[real] * REAL_COPIES])
    notes = {"name": "pa100k", "options": {"rendered": len(rendered), "real": len(real), "real_copies": REAL_COPIES}}
    return datasets.DatasetDict({**data, "train": attach_schema(both, schema, **notes)})


def fit_thresholds(logits: np.ndarray, labels: np.ndarray, schema: AttributeSchema, train_labels: np.ndarray):
    """A threshold for each binary attribute: its odds are those of the training prior, to one power for all.

    A calibrated model has its best mean recall at the prior itself (power 1), whatever the attribute; one power that
    is fitted for all of them does not overfit rare ones. The power with the best mA wins, of several the middle one.

    Args:
        logits: `(N, A, C)` of the validation split, and labels `(N, A)`.
        schema: the label space.
        train_labels: `(M, A)`, what the model was trained on.

    Returns:
        The schema with its thresholds, and the power.
    """
    binary = np.array([one.is_binary for one in schema])
    margins = logits[..., 1] - logits[..., 0]
    odds = np.array([np.log(prior[1] / prior[0]) for prior in compute_priors(train_labels, schema)])
    scored = np.flatnonzero(binary & (np.minimum((labels == 0).sum(0), (labels == 1).sum(0)) >= FEW))
    if not len(scored):
        return schema, 0.0
    values = []
    for power in EXPONENTS:
        answers = margins > power * odds
        recalls = [[(answers[labels[:, a] == k, a] == k).mean() for k in (0, 1)] for a in scored]
        values.append(np.mean(recalls))
    best = np.flatnonzero(np.isclose(values, max(values)))
    power = float(EXPONENTS[best[len(best) // 2]])
    thresholds = np.clip(1 / (1 + np.exp(-power * odds)), 0.001, 0.999)
    fitted = [
        dataclasses.replace(one, threshold=round(float(threshold), 4)) if one.is_binary else one
        for one, threshold in zip(schema, thresholds, strict=True)
    ]
    return AttributeSchema(fitted), power


def halve(folder: Path) -> None:
    """Rewrites the weights of a folder in float16; its configuration still says float32, which they are loaded as."""
    path = folder / "model.safetensors"
    tensors = {name: one.half() if one.is_floating_point() else one for name, one in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=("rendered", "pa100k"))
    parser.add_argument("--work", type=Path, required=True, help="folder for the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the heads; a new one")
    parser.add_argument(
        "--rendered", type=Path, nargs="+", metavar="DIR",
        help="folders with rendered people that hold the three splits; default: render some",
    )  # fmt: skip
    parser.add_argument("--num-train", type=int, default=6_000, help="rendered people to train on")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = ["python", "-m", "vlm_par_hf.embedded.train_heads", args.target]
    data = rendered_data(args) if args.target == "rendered" else pa100k_data(args)
    settings = TrainSettings(epochs=args.epochs, precompute_features=True, early_stopping_patience=4)
    options = {"save_backbone": False, **HEADS}
    result = train(
        data, args.work, model_options=options, settings=settings, overwrite=True, delete_listed=True, command=command
    )
    model, processor = result.model, result.processor
    model.config.decisions = None  # these heads ship with scores as they are, and thresholds for them
    logits, labels = predict_logits(model, processor, data["validation"], progress=False)
    schema, power = fit_thresholds(logits, labels, model.config.schema, read_labels(data["train"]))
    logger.info("thresholds: odds of the training priors to the power %.2f", power)
    model.config.attributes = schema.to_list()
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    halve(args.out)
    model = type(model).from_pretrained(args.out, dtype=torch.float32)  # what is measured is what ships
    model.name_or_path = args.out.name  # the name that the record of the evaluation gives to the model
    evaluate(
        model, data, processor=processor, output_dir=args.work, threshold="schema", dataset_name=args.target,
        by_person=True, min_positives=8 if args.target == "pa100k" else None, progress=False, command=command,
    )  # fmt: skip
    for name in KEPT:
        if (args.work / name).exists():
            shutil.copyfile(args.work / name, args.out / name)


if __name__ == "__main__":
    main()
