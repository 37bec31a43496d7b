"""A data set and a checkpoint to the Hub and back, with 20,000 images, in the steps that a user would take.

    python examples/round_trip.py --repo YOUR-NAME/round-trip      # the Hub, with the token of `hf auth login`
    python examples/round_trip.py --repo org/name --endpoint URL   # another server of the Hub's protocol (HF_ENDPOINT)

1. Draws people into a folder with labels.csv and schema.json, the layout of a user's own data set.
2. Prepares it (every image checked, parquet, report, card), pushes it, and loads it from the Hub.
3. Trains heads on the embedded backbone, measures the test split once, and pushes the checkpoint with its card.
4. Predicts on test images in a new process with an empty cache, which is given only the name of the repository. Its
   answers must be the same as those of the checkpoint on this machine.

Both repositories, the data set's and the model's, have the name --repo and are private. After an interruption the same
command continues where it stopped. `round_trip.json` in --out says how long each step took, and the peak of memory
by then. Everything here is SYNTHETIC.
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path


CHUNK = 1000  # images drawn at once, so that memory holds no more of them
FIRST_SEED = 10_000  # of the first chunk: other people than `load_par_dataset("synthetic")` draws with a small seed
PREDICT = """
import json, sys
import vlm_par_hf
from transformers import pipeline

pipe = pipeline("pedestrian-attributes", model=sys.argv[1])
print(json.dumps([answer["attributes"] for answer in pipe(sys.argv[2:], batch_size=16)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, help="name/repository, for the data set and for the model")
    parser.add_argument("--endpoint", default=os.environ.get("HF_ENDPOINT"), help="a server other than the Hub")
    parser.add_argument("--images", type=int, default=20_000, help="70%% to train on, 10%% for validation, 20%% test")
    parser.add_argument("--backbone", default="embedded", help="SigLIP or SigLIP 2 repository or folder")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", default="round_trip", help="folder to write")
    args = parser.parse_args()
    if args.images < 10:
        parser.error(f"--images {args.images}: expected at least 10, one of them for validation")
    if args.endpoint:  # huggingface_hub reads it on import, so nothing above may import that package
        os.environ["HF_ENDPOINT"] = args.endpoint
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # only the Hub itself supports Xet

    from transformers import pipeline

    from vlm_par_hf import load_par_dataset
    from vlm_par_hf.data import prepare_dataset
    from vlm_par_hf.training import TrainSettings, evaluate, train
    from vlm_par_hf.utils import atomic_write_json

    out, steps = Path(args.out), {}
    drawn, prepared, checkpoint = out / "synthetic_drawings", out / "prepared", out / "checkpoint"

    with step("draw", steps):
        draw(drawn, args.images)
    with step("prepare", steps):
        report = prepare_dataset("folder", drawn, prepared)
    with step("push data", steps):
        prepare_dataset("folder", drawn, prepared, push_to_hub=args.repo)
    with step("load data", steps):
        data = load_par_dataset("hub", args.repo)
        found = {split: len(part) for split, part in data.items()}
        if found != {split: part["images"] for split, part in report["splits"].items()}:
            raise SystemExit(f"{args.repo} holds {found}: not what was prepared")
    with step("train", steps):
        # Training from images, not from features in memory: memory does not grow with their number. The data set would
        # be called by the name of its repository; records and cards must call it SYNTHETIC.
        settings = TrainSettings(epochs=args.epochs, batch_size=args.batch_size, workers=args.workers)
        resume = (checkpoint / "run.json").is_file()
        train(data, checkpoint, backbone=args.backbone, dataset_name="synthetic", settings=settings, resume=resume)
    with step("evaluate", steps):
        record = evaluate(checkpoint, data, dataset_name="synthetic", output_dir=checkpoint, workers=args.workers)
    with step("push model", steps):
        pipe = pipeline("pedestrian-attributes", model=str(checkpoint))
        commit = pipe.push_to_hub(args.repo, private=True, metrics=checkpoint / "metrics.json")
    with step("predict", steps):
        people = [str(path) for path in sorted(drawn.glob("images/test/*.jpg"))[:16]]
        with tempfile.TemporaryDirectory() as empty:
            fresh = subprocess.run(
                [sys.executable, "-c", PREDICT, args.repo, *people],
                env={**os.environ, "HF_HUB_CACHE": empty}, check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        compare(json.loads(fresh.stdout), [answer["attributes"] for answer in pipe(people, batch_size=16)])

    result = {"images": found, "mA": record["metrics"]["mA"], "steps": steps, "commit": str(commit)}
    atomic_write_json(out / "round_trip.json", result)
    print(f"SYNTHETIC test, {found['test']:,} images: mA {100 * result['mA']:.1f}")
    print(f"{len(people)} people predicted alike in a fresh process by {args.repo}; {out / 'round_trip.json'}")


@contextmanager
def step(name: str, steps: dict):
    started = time.monotonic()
    yield
    steps[name] = {"seconds": round(time.monotonic() - started, 1), "peak_gib": peak_memory()}
    print(f"{name:<12}{steps[name]['seconds']:>8.1f} s   at most {steps[name]['peak_gib']} GiB so far", flush=True)


def peak_memory() -> float | None:
    """The most memory that this process has used so far, GiB; None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2)


def draw(root: Path, images: int) -> None:
    """Drawn people in the layout of a user's own data set: images/SPLIT/NAME.jpg, labels.csv, schema.json."""
    import datasets

    from vlm_par_hf import dataset_schema, load_par_dataset
    from vlm_par_hf.utils import atomic_write_text

    if (root / "labels.csv").is_file():  # written last
        return
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    chunks = -(-images // CHUNK)
    for chunk in range(chunks):  # each seed gives other people: nobody is drawn twice
        size = images * (chunk + 1) // chunks - images * chunk // chunks
        data = load_par_dataset(
            "synthetic", seed=FIRST_SEED + chunk, num_train=size - 3 * (size // 10), num_validation=size // 10,
            num_test=2 * (size // 10),
        )  # fmt: skip
        schema = dataset_schema(data)
        if chunk == 0:
            writer.writerow(["image", "split", "person_id", "camera_id", *schema.names])
        for split, part in data.items():
            folder = root / "images" / split
            folder.mkdir(parents=True, exist_ok=True)
            for row in part.cast_column("image", datasets.Image(decode=False)):
                name = f"{chunk:03d}_{row['image_id']}"
                (folder / name).write_bytes(row["image"]["bytes"])
                labels = [a.labels[label] if label >= 0 else "" for a, label in zip(schema, row["labels"])]
                person = f"{chunk:03d}_{row['person_id']:06d}"
                writer.writerow([f"images/{split}/{name}", split, person, row["camera_id"], *labels])
    schema.to_json(root / "schema.json")
    atomic_write_text(root / "labels.csv", table.getvalue())


def compare(there: list[dict], here: list[dict]) -> None:
    for number, (one, other) in enumerate(zip(there, here, strict=True)):
        for name, answer in other.items():
            score, expected = one[name]["score"], answer["score"]  # both None where a question makes no sense
            is_near = score == expected or (None not in (score, expected) and abs(score - expected) <= 1e-3)
            if one[name]["label"] != answer["label"] or not is_near:
                raise SystemExit(f"person {number}, {name}: {one[name]} from the Hub, {answer} on this machine")


if __name__ == "__main__":
    main()
