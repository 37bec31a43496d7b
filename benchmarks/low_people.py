"""How low or blurred a person may be before sets of answers stop holding what they promise.

    vlm-par calibrate CHECKPOINT pa100k --root PA-100K --out calibrated
    python benchmarks/low_people.py calibrated --root PA-100K

Crops of a split that decisions were not fitted on are reduced to so many pixels of height and answered as they are
then. Per height: how often sets for 90 % hold the right label, the same over those who have the attribute (of
attributes with at least 10 of them), how many sets hold more than one label, how many answers are wrong, and how many
where the set holds one label. Then the same for crops that are blurred, by a Gaussian whose standard deviation is a
share of their height, or enlarged from fewer pixels; with it how many of them `find_doubt` would not answer for.
`SMALLEST_HEIGHT` and `SMALLEST_DETAIL` of `vlm_par_hf.labels.decisions` come from here.
"""

import argparse
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from transformers import AutoModel, AutoProcessor

from vlm_par_hf import load_par_dataset
from vlm_par_hf.base.decisions import label_probabilities
from vlm_par_hf.inference.pictures import find_doubt, measure_person
from vlm_par_hf.inference.predicting import evaluation_mode, predict_batch
from vlm_par_hf.labels.decisions import Decisions, decide
from vlm_par_hf.metrics.reliability import set_coverage


HEIGHTS = (0, 96, 64, 48, 32, 28, 24, 20, 16, 12, 8)  # 0: as they are
BLURS = (0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.06)
ENLARGED = (48, 32, 24, 20, 16, 12)


def reduce(image: Image.Image, height: int) -> Image.Image:
    """An image of that height, with its aspect ratio; 0: as it is."""
    if not height:
        return image
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BICUBIC)


def changes() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """What is done to the pictures, by the name of the row."""
    found = {str(height or "full"): lambda one, height=height: reduce(one, height) for height in HEIGHTS}
    for share in BLURS:
        found[f"blurred {share}"] = lambda one, share=share: one.filter(ImageFilter.GaussianBlur(share * one.height))
    for height in ENLARGED:
        found[f"enlarged {height}"] = lambda one, height=height: reduce(one, height).resize(
            one.size, Image.Resampling.BICUBIC
        )
    return found


def measure(probabilities, labels, schema, decisions: Decisions, level: float = 0.9) -> dict[str, float]:
    """The numbers of one height, for a label space of binary attributes."""
    sets, _ = decisions.answer_sets(probabilities, schema, level)
    rows = set_coverage(sets, labels, schema)
    answers, known, single = decide(probabilities, schema), labels >= 0, sets.sum(-1) == 1
    positives = [labels[:, a] == 1 for a in range(len(schema))]
    return {
        "coverage": np.mean([row["coverage"] for row in rows if row["known"]]),
        "of_yes": np.mean([sets[yes, a, 1].mean() for a, yes in enumerate(positives) if yes.sum() >= 10]),
        "open": np.mean(~single[known]),
        "wrong": np.mean((answers != labels)[known]),
        "wrong_alone": np.mean((sets.argmax(-1) != labels)[known & single]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="with fitted decisions")
    parser.add_argument("--root", required=True, help="PA-100K in its original layout")
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    model, processor = AutoModel.from_pretrained(args.checkpoint), AutoProcessor.from_pretrained(args.checkpoint)
    schema, decisions = model.config.schema, Decisions.from_dict(model.config.decisions)
    rows = load_par_dataset("pa100k", args.root)[args.split]
    labels = np.asarray(rows["labels"])
    images = [row["image"].convert("RGB") for row in rows]
    print(f"{len(images)} pictures, {min(one.height for one in images)} pixels high or more")
    with evaluation_mode(model):
        for name, change in changes().items():
            found, doubtful = [], 0
            for start in range(0, len(images), args.batch_size):
                batch = [change(one) for one in images[start : start + args.batch_size]]
                doubtful += sum(find_doubt(one.height, measure_person(one)) is not None for one in batch)
                logits = predict_batch(model, processor(images=batch, return_tensors="pt"))["logits"]
                found.append(label_probabilities(logits, schema).numpy())
            numbers = measure(np.concatenate(found), labels, schema, decisions)
            numbers["not_answered"] = doubtful / len(images)
            print(name, *(f"{key} {100 * value:.1f}" for key, value in numbers.items()), flush=True)


if __name__ == "__main__":
    main()
