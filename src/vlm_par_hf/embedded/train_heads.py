"""Train the embedded heads: VLM-PAR on the embedded backbone and drawn pedestrians.

    python -m vlm_par_hf.embedded.train_heads --work WORK --out OUT

Takes a few minutes on two CPU cores. `OUT` receives the heads without the backbone (it is saved by its name,
"embedded"), the record of the run and the results on other drawings. All data are SYNTHETIC.
"""

import argparse
import logging
import shutil
from pathlib import Path

from vlm_par_hf.data import load_par_dataset
from vlm_par_hf.training import TrainSettings, evaluate, train


# Seed of the people drawn here: neither the backbone's (1000) nor one of the examples (0, 1, 2).
SEED = 77
KEPT = ("README.md", "run.json", "training.json", "metrics.json", "attributes.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the heads")
    parser.add_argument("--num-train", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = load_par_dataset("synthetic", seed=SEED, num_train=args.num_train, num_validation=1500, num_test=3000)
    settings = TrainSettings(epochs=args.epochs, precompute_features=True)
    result = train(
        data,
        args.work,
        model_options={"save_backbone": False},
        settings=settings,
        overwrite=True,
        command=["python", "-m", "vlm_par_hf.embedded.train_heads"],
    )
    result.model.name_or_path = "embedded"  # the name that the record of the evaluation gives to the model
    evaluate(
        result.model,
        data,
        processor=result.processor,
        output_dir=args.work,
        dataset_name="synthetic",
        command=["python", "-m", "vlm_par_hf.embedded.train_heads"],
    )
    args.out.mkdir(parents=True, exist_ok=True)
    result.model.save_pretrained(args.out)
    result.processor.save_pretrained(args.out)
    for name in KEPT:
        if (args.work / name).exists():
            shutil.copyfile(args.work / name, args.out / name)


if __name__ == "__main__":
    main()
