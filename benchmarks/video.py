"""What several frames of a person are worth, on rendered tracklets: the baselines, VTF as in its paper, and ours.

    python benchmarks/video.py                      # writes benchmarks/results/video.json and video.png
    python benchmarks/video.py --epochs 1 --test 20 --out elsewhere          # a quick try

SYNTHETIC: rendered people, and what disturbs their tracklets is drawn (`disturb_tracklet`). All methods read the same
features of the embedded backbone, computed once, and train on the same frames: VLM-PAR on single frames, whose answers
the baselines put together, VTF on 6 frames of a tracklet. In training 30 % of the frames of a
tracklet are occluded. Macro-F1 is `label_f1_macro` at a threshold of 0.5.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from vlm_par_hf.data.carried import dataset_schema
from vlm_par_hf.data.synthetic.rendered import build_rendered_dataset
from vlm_par_hf.data.synthetic.tracklets import disturb_split
from vlm_par_hf.data.tracklets import group_tracklets, one_row_per_tracklet, sample_frames
from vlm_par_hf.features import TrackletFeatures, compute_features
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.inference.tracklets import aggregate_logits, frame_quality
from vlm_par_hf.labels.decisions import label_softmax
from vlm_par_hf.metrics import ParMetrics
from vlm_par_hf.models.vlm_par import VlmParProcessor
from vlm_par_hf.models.vtf_par import VtfParProcessor
from vlm_par_hf.training import TrainSettings, train


RATES = (0.0, 0.2, 0.4, 0.6)
TRAIN_RATE = 0.3
SIZES = {"num_train": 440, "num_validation": 60, "num_test": 300}
FRAMES = (1, 2, 4, 6, 12)
LENGTH = 12
SEED = 17
METHODS = {
    "random frame": "one frame at random",
    "best frame": "the frame of the highest quality",
    "mean of logits": "VLM-PAR on each frame",
    "vote": "VLM-PAR on each frame",
    "quality-weighted logits": "VLM-PAR on each frame",
    "VTF, mean (paper)": "mean",
    "VTF, quality": "quality",
    "VTF, attention": "attention",
}


def clean_tracklets():
    """Rendered once, and then kept."""
    return build_rendered_dataset(
        **{name: size * LENGTH for name, size in SIZES.items()},
        pictures_per_person=1,
        tracklet_length=LENGTH,
        seed=SEED,
    )


def fit(name, data, work, epochs, seed, **options):
    """A trained model, from the features that all of them share; kept, and not trained again."""
    from transformers import AutoModel, AutoProcessor

    folder = work / "runs" / f"{name}-{epochs:g}-{seed}"
    if not (folder / "training.json").exists():
        processor = VtfParProcessor.from_backbone("embedded")
        if options["family"] == "vlm_par":  # the same grid of patches, so that it reads the same features
            processor = VlmParProcessor(processor.image_processor, processor.tokenizer, processor.patch_grid)
        settings = TrainSettings(
            epochs=epochs, batch_size=options.pop("batch_size"), seed=seed, precompute_features=True, progress=False, flip=0.0,
            learning_rate=options.pop("learning_rate", 3e-3), logging_steps=50,
        )  # fmt: skip
        train(
            data, folder, backbone="embedded", processor=processor, settings=settings, cache_features=work / "features",
            overwrite=True, **options,
        )  # fmt: skip
    return AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def frame_logits(model, features):
    """float32 `(frames, A, C)` of a model of single pictures."""
    model.config.decisions = None
    return predict_logits(model, None, features, batch_size=256, progress=False)[0]


def tracklet_logits(model, features, dataset, num_frames):
    model.config.decisions = None
    tracklets = TrackletFeatures(features, dataset, num_frames)
    return predict_logits(model, None, tracklets, batch_size=64, progress=False)[0]


def answers_of(method, per_frame, probabilities, groups, schema, T, rng):
    """Logits `(tracklets, A, C)` that a baseline gives from the frames' logits."""
    found = []
    for rows in groups:
        rows = rows[sample_frames(len(rows), T)]
        if method == "random frame":
            found.append(per_frame[rng.choice(rows)])
        elif method == "best frame":
            found.append(per_frame[rows[frame_quality(probabilities[rows], schema).argmax()]])
        else:
            how = {"mean of logits": "mean_logits", "vote": "vote", "quality-weighted logits": "quality"}[method]
            found.append(aggregate_logits(per_frame[rows], schema, how, thresholds=0.5))
    return np.stack(found)


def measure(args):
    work, started = Path(args.work), time.time()

    def say(text):
        print(f"{text}: {time.time() - started:.0f} s", flush=True)

    clean = clean_tracklets()
    data = {
        split: disturb_split(clean[split], (SEED, number), name="rendered_tracklets", occluded=TRAIN_RATE)
        for number, split in enumerate(("train", "validation"))
    }
    measured = clean["test"].select(range(args.test * LENGTH))
    tests = {rate: disturb_split(measured, (SEED, 2), occluded=rate) for rate in RATES}
    say(f"{len(data['train']):,} training frames")
    models = {}
    for seed in range(args.seeds):
        models["single", seed] = fit("vlm_par", data, work, args.single_epochs, seed, family="vlm_par", batch_size=64)
    say("VLM-PAR")
    features = {}
    for rate, split in tests.items():
        model, processor = models["single", 0]
        features[rate] = compute_features(
            model, split, processor, batch_size=128, directory=work / "features" / f"test-{rate:g}", progress=False
        )
        say(f"features of the test tracklets, {100 * rate:g} % occluded")
    if args.features_only:
        raise SystemExit
    for seed in range(args.seeds):
        for temporal in ("mean", "quality", "attention"):
            models[temporal, seed] = fit(
                f"vtf-{temporal}", data, work, args.epochs, seed, family="vtf_par", batch_size=16,
                learning_rate=args.learning_rate,
                model_options={"temporal": temporal, "num_frames": args.frames, "fusion_width": 128},
            )  # fmt: skip
            say(f"VTF, {temporal}, seed {seed}")
    schema = dataset_schema(data["train"])
    metrics, rows = ParMetrics(schema), []
    for rate, split in tests.items():
        groups = group_tracklets(split)
        labels = np.asarray(one_row_per_tracklet(split)["labels"][:])
        for seed in range(args.seeds):
            per_frame = frame_logits(models["single", seed][0], features[rate])
            probabilities = label_softmax(per_frame, schema)
            for T in FRAMES:
                for method, kind in METHODS.items():
                    if kind in ("mean", "quality", "attention"):
                        draws = [tracklet_logits(models[kind, seed][0], features[rate], split, T)]
                    else:
                        rng = np.random.default_rng(seed)
                        count = 5 if method == "random frame" else 1
                        draws = [
                            answers_of(method, per_frame, probabilities, groups, schema, T, rng) for _ in range(count)
                        ]
                    found = [metrics((logits, labels)) for logits in draws]
                    row = {"method": method, "occluded": rate, "frames": T, "seed": seed}
                    rows.append(row | {k: float(np.mean([one[k] for one in found])) for k in ("label_f1_macro", "mA")})
        say(f"answers at {100 * rate:g} % occluded")
    return {
        "note": "SYNTHETIC renderings of pedestrians: not comparable with any result on photographs.",
        "sizes": {**SIZES, "num_test": args.test, "length": LENGTH, "occluded_in_training": TRAIN_RATE},
        "epochs": {"vlm_par": args.single_epochs, "vtf_par": args.epochs},
        "frames_in_training": args.frames,
        "seeds": args.seeds,
        "seconds": round(time.time() - started),
        "rows": rows,
    }


def mean_of(rows, key="label_f1_macro", **where):
    return 100 * float(np.mean([row[key] for row in rows if all(row[name] == one for name, one in where.items())]))


def print_tables(record):
    rows = record["rows"]
    print(f"\nSYNTHETIC. Macro-F1 in %, mean of {record['seeds']} seeds. 12 frames, by share of occluded frames:\n")
    print("| method | " + " | ".join(f"{100 * rate:g} %" for rate in RATES) + " |\n|---|" + "---|" * len(RATES))
    for method in METHODS:
        print(f"| {method} | " + " | ".join(f"{mean_of(rows, method=method, occluded=r, frames=12):.1f}" for r in RATES)
              + " |")  # fmt: skip
    print("\n40 % occluded, by number of frames:\n")
    print("| method | " + " | ".join(map(str, FRAMES)) + " |\n|---|" + "---|" * len(FRAMES))
    for method in METHODS:
        print(f"| {method} | " + " | ".join(f"{mean_of(rows, method=method, occluded=0.4, frames=t):.1f}" for t in FRAMES)
              + " |")  # fmt: skip
    for rate in (0.4, 0.0):
        base = mean_of(rows, method="mean of logits", occluded=rate, frames=12)
        gains = {m: mean_of(rows, method=m, occluded=rate, frames=12) - base for m in list(METHODS)[4:]}
        best = max(gains, key=gains.get)
        print(f"\n{100 * rate:g} % occluded, 12 frames: best of ours {best}, {gains[best]:+.1f} points against the mean "
              "of logits")  # fmt: skip


def draw(record, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = record["rows"]
    colors = ["0.6", "0.45", "black", "0.75", "tab:olive", "tab:orange", "tab:blue", "tab:red"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for method, color in zip(METHODS, colors):
        style = {"color": color, "marker": "o", "markersize": 4, "label": method}
        style["linestyle"] = "-" if method.startswith(("VTF", "mean")) else "--"
        values = [mean_of(rows, method=method, occluded=rate, frames=12) for rate in RATES]
        axes[0].plot([100 * rate for rate in RATES], values, **style)
        values = [mean_of(rows, method=method, occluded=0.4, frames=T) for T in FRAMES]
        axes[1].plot(range(len(FRAMES)), values, **style)
    axes[0].set(xlabel="occluded frames, %", ylabel="macro-F1, %", title="12 frames")
    axes[0].set_xticks([100 * rate for rate in RATES])
    axes[1].set(xlabel="frames", title="40 % of the frames occluded")
    axes[1].set_xticks(range(len(FRAMES)), FRAMES)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle("SYNTHETIC: rendered tracklets")
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", type=int, default=300, help="tracklets to measure, of 300")
    parser.add_argument("--frames", type=int, default=4, help="of a tracklet in training")
    parser.add_argument("--features-only", action="store_true", help="compute what is kept, and end")
    parser.add_argument("--epochs", type=float, default=12, help="of VTF")
    parser.add_argument("--single-epochs", type=float, default=4, help="of VLM-PAR, on all frames")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of VTF")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", default="video_work", help="folder of features and runs, which are kept")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    parser.add_argument("--draw-only", action="store_true", help="print and draw the record in --out again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if not args.draw_only:
        record = measure(args)
        (out / "video.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads((out / "video.json").read_text(encoding="utf-8"))
    print_tables(record)
    draw(record, out / "video.png")


if __name__ == "__main__":
    main()
