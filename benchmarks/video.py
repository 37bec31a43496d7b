"""What several frames of a person are worth, on rendered tracklets: the baselines, VTF as in its paper, and ours.

    python benchmarks/video.py                      # writes benchmarks/results/video.json and video.png
    python benchmarks/video.py --epochs 1 --test 20 --out elsewhere          # a quick try

SYNTHETIC: rendered people, and what disturbs their tracklets is drawn (`disturb_tracklet`). All methods read the same
features of the embedded backbone, computed once, and train on the same frames: VLM-PAR on single frames, whose answers
the baselines put together, VTF on several frames of a tracklet. In training something passes in front of the person in
30 % of the frames. For the test every frame is there twice, free and with something in front; at a rate of occlusion
so many frames of a tracklet, one after the other, are taken from the second. Macro-F1 is `label_f1_macro` at a
threshold of 0.5.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from vlm_par_hf.data.carried import dataset_schema, read_labels
from vlm_par_hf.data.synthetic.rendered import build_rendered_dataset
from vlm_par_hf.data.synthetic.tracklets import disturb_split
from vlm_par_hf.data.tracklets import group_tracklets, sample_frames
from vlm_par_hf.features import TrackletFeatures, compute_features
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.inference.tracklets import aggregate_logits, frame_quality
from vlm_par_hf.labels.decisions import label_softmax
from vlm_par_hf.metrics import ParMetrics
from vlm_par_hf.models.vlm_par import VlmParProcessor
from vlm_par_hf.models.vtf_par import VtfParProcessor
from vlm_par_hf.training import TrainSettings, train


RATES = (0.0, 0.2, 0.4, 0.6)
RATE = 0.4  # at which the number of frames varies
TRAIN_RATE = 0.3
FRAMES = (1, 2, 4, 6, 12)
LENGTH = 12
SIZES = {"num_train": 440, "num_validation": 60, "num_test": 300}
SEED = 17
AGGREGATES = {"mean of logits": "mean_logits", "vote": "vote", "quality-weighted logits": "quality"}
METHODS = {
    "random frame": None,
    "best frame": None,
    **dict.fromkeys(AGGREGATES),
    "VTF, mean (paper)": "mean",
    "VTF, quality": "quality",
    "VTF, attention": "attention",
}
OURS = ("quality-weighted logits", "VTF, quality", "VTF, attention")


def training_data():
    """Every second frame of the tracklets."""
    clean = build_rendered_dataset(
        **{name: size * LENGTH for name, size in SIZES.items()},
        pictures_per_person=1,
        tracklet_length=LENGTH,
        seed=SEED,
    )
    data = {}
    for number, split in enumerate(("train", "validation")):
        half = clean[split].select(range(0, len(clean[split]), 2))
        data[split] = disturb_split(half, (SEED, number), name="rendered_tracklets", occluded=TRAIN_RATE)
    return data, clean["test"]


def test_features(model, processor, clean, count, folder):
    """Features of every test frame, free and occluded, and the rows of each tracklet in both."""
    found = {}
    for name, rate in (("free", 0.0), ("occluded", 1.0)):
        split = disturb_split(clean.select(range(count * LENGTH)), (SEED, 2), occluded=rate)
        found[name] = compute_features(
            model, split, processor, batch_size=128, directory=folder / f"test-{name}", progress=False
        )
    return found, group_tracklets(split), read_labels(split)[::LENGTH]


def rows_at(rate, groups, seed):
    """Of each tracklet pairs (row, occluded?) at a rate of occlusion."""
    rng, found = np.random.default_rng((SEED, seed)), []
    for rows in groups:
        count = min(len(rows), int(rate * len(rows) + rng.random()))
        first = int(rng.integers(0, len(rows) - count + 1))
        found.append([(int(row), first <= place < first + count) for place, row in enumerate(rows)])
    return found


class MixedStore:
    """Rows of two stores of features: (row, occluded?) pairs."""

    def __init__(self, features):
        self.stores = [features["free"].store, features["occluded"].store]

    def read(self, pairs, views=None):
        parts = {}
        for occluded in (False, True):
            places = [place for place, pair in enumerate(pairs) if pair[1] == occluded]
            if places:
                parts[occluded] = (places, self.stores[occluded].read([pairs[place][0] for place in places]))
        first = next(iter(parts.values()))[1]
        joined = {name: value.new_zeros(len(pairs), *value.shape[1:]) for name, value in first.items()}
        for places, tensors in parts.values():
            for name, value in tensors.items():
                joined[name][places] = value
        return joined


class Mixed(torch.utils.data.Dataset):
    """Tracklets of free and occluded frames, T of each."""

    def __init__(self, features, tracklets, labels, num_frames):
        self.store, self.labels = MixedStore(features), labels
        self.tracklets = [[rows[place] for place in sample_frames(len(rows), num_frames)] for rows in tracklets]

    def __len__(self):
        return len(self.tracklets)

    def __getitem__(self, index):
        item = self.store.read(self.tracklets[index])
        return {**item, "frame_mask": torch.ones(len(self.tracklets[index]), dtype=torch.bool)} | {
            "labels": torch.from_numpy(self.labels[index])
        }


def fit(name, data, work, settings, seed, **options):
    """A trained model, from the features that all of them share; kept, and not trained again."""
    from transformers import AutoModel, AutoProcessor

    folder = work / "runs" / f"{name}-{settings['epochs']:g}-{seed}"
    if not (folder / "training.json").exists():
        processor = VtfParProcessor.from_backbone("embedded")
        if options["family"] == "vlm_par":  # the same grid of patches, so that it reads the same features
            processor = VlmParProcessor(processor.image_processor, processor.tokenizer, processor.patch_grid)
        common = {"precompute_features": True, "progress": False, "flip": 0.0, "logging_steps": 50}
        train(
            data, folder, backbone="embedded", processor=processor, overwrite=True,
            settings=TrainSettings(seed=seed, **common, **settings), cache_features=work / "features",
            command=("python", "benchmarks/video.py"), **options,
        )  # fmt: skip
    model = AutoModel.from_pretrained(folder)
    model.config.decisions = None  # scores as they are, decided at 0.5
    return model, AutoProcessor.from_pretrained(folder)


def answers_of(method, per_frame, tracklets, schema, T, rng):
    """Logits `(tracklets, A, C)` that a baseline gives from the frames' logits, `[occluded?][row]`."""
    found = []
    for rows in tracklets:
        logits = np.stack([per_frame[rows[place][1]][rows[place][0]] for place in sample_frames(len(rows), T)])
        if method == "random frame":
            found.append(logits[rng.integers(len(logits))])
        elif method == "best frame":
            found.append(logits[frame_quality(label_softmax(logits, schema), schema).argmax()])
        else:
            found.append(aggregate_logits(logits, schema, AGGREGATES[method], thresholds=0.5))
    return np.stack(found)


def measure(args):
    work, started = Path(args.work), time.time()

    def say(text):
        print(f"{text}: {time.time() - started:.0f} s", flush=True)

    data, clean_test = training_data()
    schema = dataset_schema(data["train"])
    say(f"{len(data['train']):,} training frames")
    single = {"epochs": args.single_epochs, "batch_size": 64}
    several = {"epochs": args.epochs, "batch_size": 16, "learning_rate": args.learning_rate}
    models = {}
    for seed in range(args.seeds):
        models[None, seed] = fit("vlm_par", data, work, single, seed, family="vlm_par")
        say(f"VLM-PAR, seed {seed}")
        for temporal in ("mean", "quality", "attention"):
            options = {"temporal": temporal, "num_frames": args.frames, "fusion_width": 128}
            models[temporal, seed] = fit(
                f"vtf-{temporal}", data, work, several, seed, family="vtf_par", model_options=options
            )
            say(f"VTF, {temporal}, seed {seed}")
    features, groups, labels = test_features(*models[None, 0], clean_test, args.test, work / "features")
    say("features of the test frames")
    metrics, rows = ParMetrics(schema), []
    for seed in range(args.seeds):
        model = models[None, seed][0]
        per_frame = [
            predict_logits(model, None, features[name], batch_size=256, progress=False)[0]
            for name in ("free", "occluded")
        ]
        for rate, T in [*((rate, LENGTH) for rate in RATES), *((RATE, T) for T in FRAMES if T < LENGTH)]:
            tracklets, rng = rows_at(rate, groups, seed), np.random.default_rng(seed)
            for method, kind in METHODS.items():
                if kind is not None:
                    batch = Mixed(features, tracklets, labels, T)
                    draws = [
                        predict_logits(models[kind, seed][0], None, _Kept(batch), batch_size=32, progress=False)[0]
                    ]
                else:
                    count = 5 if method == "random frame" else 1
                    draws = [answers_of(method, per_frame, tracklets, schema, T, rng) for _ in range(count)]
                found = [metrics((logits, labels)) for logits in draws]
                row = {"method": method, "occluded": rate, "frames": T, "seed": seed}
                rows.append(row | {k: float(np.mean([one[k] for one in found])) for k in ("label_f1_macro", "mA")})
            say(f"seed {seed}, {100 * rate:g} % occluded, {T} frames")
    return {
        "note": "SYNTHETIC renderings of pedestrians: not comparable with any result on photographs.",
        "sizes": {**SIZES, "num_test": args.test, "length": LENGTH, "occluded_in_training": TRAIN_RATE},
        "vlm_par": single,
        "vtf_par": {**several, "num_frames": args.frames},
        "seeds": args.seeds,
        "rows": rows,
    }


class _Kept(TrackletFeatures):
    """Marks a data set as features, which need no processor."""

    def __init__(self, dataset):
        self.rows = dataset

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, indices):
        return [self.rows[index] for index in indices]


def mean_of(rows, key="label_f1_macro", **where):
    return 100 * float(np.mean([row[key] for row in rows if all(row[name] == one for name, one in where.items())]))


def table(rows, head, cells):
    lines = [f"| method | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    lines += [
        f"| {method} | {' | '.join(f'{mean_of(rows, method=method, **one):.1f}' for one in cells)} |"
        for method in METHODS
    ]
    return "\n".join(lines)


def print_tables(record):
    rows = record["rows"]
    print(
        f"\nSYNTHETIC. Macro-F1 in %, mean of {record['seeds']} seeds. {LENGTH} frames, by share of occluded frames:\n"
    )
    print(table(rows, [f"{100 * rate:g} %" for rate in RATES], [{"occluded": r, "frames": LENGTH} for r in RATES]))
    print(f"\n{100 * RATE:g} % occluded, by number of frames:\n")
    print(table(rows, list(map(str, FRAMES)), [{"occluded": RATE, "frames": T} for T in FRAMES]))
    for rate in (RATE, 0.0):
        base = mean_of(rows, method="mean of logits", occluded=rate, frames=LENGTH)
        gains = {one: mean_of(rows, method=one, occluded=rate, frames=LENGTH) - base for one in OURS}
        told = ", ".join(f"{one} {gain:+.1f}" for one, gain in gains.items())
        print(f"\n{100 * rate:g} % occluded, {LENGTH} frames, against the mean of logits: {told}")


def draw(record, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = record["rows"]
    colors = ["0.65", "0.45", "black", "0.8", "tab:olive", "tab:orange", "tab:blue", "tab:red"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for method, color in zip(METHODS, colors):
        style = {"color": color, "marker": "o", "markersize": 4, "label": method}
        style["linestyle"] = "-" if method.startswith(("VTF", "mean", "quality")) else "--"
        values = [mean_of(rows, method=method, occluded=rate, frames=LENGTH) for rate in RATES]
        axes[0].plot([100 * rate for rate in RATES], values, **style)
        values = [mean_of(rows, method=method, occluded=RATE, frames=T) for T in FRAMES]
        axes[1].plot(range(len(FRAMES)), values, **style)
    axes[0].set(xlabel="occluded frames, %", ylabel="macro-F1, %", title=f"{LENGTH} frames")
    axes[0].set_xticks([100 * rate for rate in RATES])
    axes[1].set(xlabel="frames", title=f"{100 * RATE:g} % of the frames occluded")
    axes[1].set_xticks(range(len(FRAMES)), FRAMES)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle("SYNTHETIC: rendered tracklets")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", type=int, default=150, help="tracklets to measure, up to 300")
    parser.add_argument("--epochs", type=float, default=10, help="of VTF")
    parser.add_argument("--single-epochs", type=float, default=4, help="of VLM-PAR, on all frames")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of VTF")
    parser.add_argument("--frames", type=int, default=4, help="of a tracklet, of VTF in training")
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
