"""How long the vision towers of backbones take for the same pictures, each with its own processor's patches.

    python benchmarks/towers.py                                   # both editions of the embedded backbone
    python benchmarks/towers.py embedded google/siglip2-base-patch16-naflex

Rendered people of seed 5 in the sizes of their crops. Per batch size: median seconds of the towers, run in turn in one
process on one thread, and the ratio to the first one. Preparing the pictures is not counted.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModel, AutoProcessor

from vlm_par_hf import load_par_dataset, pixels
from vlm_par_hf.utils import backbone_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=["embedded-drawings", "embedded"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    people = load_par_dataset("rendered", num_train=max(args.batches), num_validation=1, num_test=1, seed=5)["train"]
    images = list(people["image"])
    models, processors = {}, {}
    for name in args.backbones:
        path = backbone_files(name)
        models[name] = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        processors[name] = AutoProcessor.from_pretrained(path).image_processor
    print("| backbone | patches | " + " | ".join(f"batch {size}" for size in args.batches) + " |")
    print("|---" * (2 + len(args.batches)) + "|")
    rows = {name: [] for name in args.backbones}
    patches = {}
    for size in args.batches:
        inputs = {name: pixels.preprocess_images(one, images[:size]) for name, one in processors.items()}
        patches = {name: int(one["pixel_attention_mask"].sum(1).max()) for name, one in inputs.items()}
        seconds = {name: [] for name in args.backbones}
        for _ in range(args.rounds):
            for name, model in models.items():
                started = time.perf_counter()
                with torch.inference_mode():
                    model.get_image_features(**inputs[name])
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(own) for name, own in seconds.items()}
        first = medians[args.backbones[0]]
        for name, median in medians.items():
            rows[name].append(f"{1000 * median:.1f} ms ({median / first:.1f}x)")
    for name, cells in rows.items():
        print(f"| {name} | {patches[name]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
