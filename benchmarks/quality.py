"""Does attention between question and patches help? Linear probes and VLM-PAR's fusions on the same frozen features.

    python benchmarks/quality.py                       # synthetic drawings, 3 seeds; real PA-100K crops with PAR_DATA
    python benchmarks/quality.py --only synthetic --seeds 1 --train 600 --epochs 2     # a quick look
    python benchmarks/quality.py --cache-features DIR  # keeps the features, so that another run needs no backbone

Every method reads the same cached features of the embedded backbone, and has the same loss, optimizer, schedule,
number of epochs and choice of the best epoch by validation mA; the test split is used once, at the end. The linear
probes also choose their learning rate on validation, so that they are strong baselines.

The backbone has seen only drawings. Numbers on drawings are SYNTHETIC; numbers on the real crops say what features are
worth there that were learned without a photograph. Neither can be compared with a number from a paper.

Results go to `--out` (JSON and picture), the tables also to docs/quality.md if `--out` is the default.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pages import MIN_POSITIVES, RESULTS, label_of, write_page
from torch import nn

from vlm_par_hf import ParLoss, ParMetrics, VlmParModel, VlmParProcessor, dataset_schema, load_par_dataset
from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.data import ParCollator
from vlm_par_hf.training import TrainSettings, compute_features, feature_views
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("quality")

FUSIONS = ("none", "image_to_text", "text_to_image")
ALIGNMENTS = ("none", "logit")
PROBE_RATES = (1e-3, 3e-3, 1e-2)
SHOWN = ("mA", "plain_accuracy", "instance_f1_harmonic", "label_f1_macro")


class LinearProbe(nn.Module):
    """A linear classifier per attribute on one standardised vector per image."""

    def __init__(self, schema, source: str, features):
        super().__init__()
        self.source = source
        batches = [self._vector(batch) for batch in features.batches()]
        vectors = torch.cat(batches)
        self.register_buffer("mean", vectors.mean(0))
        self.register_buffer("std", vectors.std(0).clamp_min(1e-6))
        self.weight = nn.Parameter(torch.zeros(len(schema), vectors.shape[1], schema.max_labels))
        self.bias = nn.Parameter(torch.zeros(len(schema), schema.max_labels))
        self.register_buffer("label_mask", torch.tensor(schema.label_mask()))

    def _vector(self, batch):
        if self.source == "pooled":
            return batch["image_embeds"]
        mask = batch["patch_mask"][..., None]
        return (batch["patch_embeds"] * mask).sum(1) / mask.sum(1)

    def forward(self, **batch):
        vector = (self._vector(batch) - self.mean) / self.std
        logits = torch.einsum("bd,adc->bac", vector, self.weight) + self.bias
        return logits.masked_fill(~self.label_mask, -1e4)

    def parameter_groups(self, learning_rate, fusion_learning_rate=None, *, weight_decay=0.01):
        return [{"params": [self.weight], "lr": learning_rate, "weight_decay": weight_decay},
                {"params": [self.bias], "lr": learning_rate, "weight_decay": 0.0}]  # fmt: skip


def run(model, batch) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    output = model(**inputs)
    return output if torch.is_tensor(output) else output.logits


@torch.no_grad()
def predict(model, features) -> np.ndarray:
    """Logits float32 `(N, A, C)` over a split, in order."""
    model.eval()
    return torch.cat([run(model, batch) for batch in features.batches(256)]).numpy()


def fit(model, loss, train, validation, metrics, *, settings: TrainSettings, rate: float, seed: int) -> dict:
    """Train, keep the weights of the epoch with the best validation mA; returns its numbers and the seconds."""
    torch.manual_seed(seed)
    steps_per_epoch = -(-len(train) // settings.batch_size)
    total = int(settings.epochs * steps_per_epoch)
    optimizer = torch.optim.AdamW(
        model.parameter_groups(rate, settings.fusion_learning_rate or None, weight_decay=settings.weight_decay),
        lr=rate,
    )
    warm_up = max(1, int(settings.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 * (1 + np.cos(np.pi * step / total)))
    )
    labels = validation.labels
    collate = ParCollator()
    best = {"validation_mA": -1.0}
    started = time.perf_counter()
    for epoch in range(int(settings.epochs)):
        model.train()
        train.set_epoch(epoch)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed * 1000 + epoch)).tolist()
        train_loss = 0.0
        for start in range(0, len(order), settings.batch_size):
            batch = collate(train.__getitems__(order[start : start + settings.batch_size]))
            value = loss(run(model, batch), batch["labels"])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            train_loss += value.item() / steps_per_epoch
        mA = metrics((predict(model, validation), labels))["mA"]
        logger.info("    epoch %d: loss %.4f, validation mA %.2f", epoch + 1, train_loss, 100 * mA)
        if mA > best["validation_mA"]:
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            state = {name: value.clone() for name, value in model.state_dict().items() if name in trained}
            best = {"validation_mA": mA, "epoch": epoch + 1, "train_loss": train_loss}
    model.load_state_dict(state, strict=False)
    return best | {"seconds": round(time.perf_counter() - started, 1)}


def measure(
    data,
    seed: int,
    settings: TrainSettings,
    loss_settings: dict,
    bootstrap: int,
    cache: Path,
    fusions: tuple[str, ...] = FUSIONS,
) -> dict[str, dict]:
    """All methods on one data set and one seed, from the features in `cache`: method -> metrics on the test split."""
    schema = dataset_schema(data)
    processor = VlmParProcessor.from_backbone("embedded")
    base = VlmParModel.from_backbone("embedded", attributes=schema, fusion="none")
    features = {
        split: compute_features(
            base, data[split], processor, 128, directory=cache / split, views=feature_views(split == "train"),
            dtype="float32", flip=settings.flip, seed=seed, progress=False,
        )
        for split in ("train", "validation", "test")
    }  # fmt: skip
    metrics = ParMetrics(schema)
    train_labels, test_labels = features["train"].labels, features["test"].labels
    priors = compute_priors(train_labels, schema)
    if loss_settings.get("weighting") or loss_settings.get("logit_adjustment"):
        loss_settings = loss_settings | {"priors": priors}
    loss = ParLoss(schema, **loss_settings)
    groups = data["test"]["person_id"] if "person_id" in data["test"].column_names else None
    results = {}

    def finish(name: str, logits: np.ndarray, notes: dict) -> None:
        report = metrics.report(
            (logits, test_labels), bootstrap=bootstrap, groups=groups, min_positives=MIN_POSITIVES, seed=0
        )
        results[name] = {
            "metrics": report["metrics"],
            "intervals": report["intervals"],
            "scored_attributes": report["min_positives"]["attributes"],
            "attribute_mA": {row["name"]: row["mA"] for row in report["attributes"]},
            **notes,
        }
        logger.info("  %-34s test mA %.2f", name, 100 * report["metrics"]["mA"])

    constant = np.full((len(test_labels), len(schema), schema.max_labels), -1e4, np.float32)
    for position, prior in enumerate(priors):
        constant[:, position, : len(prior)] = np.log(np.maximum(prior, 1e-9))
    finish("majority", constant, {})
    zero_shot = VlmParModel.from_backbone("embedded", attributes=schema, fusion="none", alignment="logit")
    finish("zero_shot", predict(zero_shot, features["test"]), {})

    common = {"settings": settings, "seed": seed}
    for name, source in (("probe_pooled", "pooled"), ("probe_patches", "patches")):
        tried = []
        for rate in PROBE_RATES:
            probe = LinearProbe(schema, source, features["train"])
            notes = fit(probe, loss, features["train"], features["validation"], metrics, rate=rate, **common)
            tried.append((notes["validation_mA"], rate, probe, notes))
        _, rate, probe, notes = max(tried, key=lambda one: one[0])
        finish(name, predict(probe, features["test"]), notes | {"learning_rate": rate})
    for alignment in ALIGNMENTS:
        for fusion in fusions:
            torch.manual_seed(seed)
            model = VlmParModel.from_backbone("embedded", attributes=schema, fusion=fusion, alignment=alignment)
            if alignment == "none":
                model.init_bias_from_priors(priors)
            model.fit_pooled_statistics(features["train"].batches())
            rate = settings.learning_rate
            notes = fit(model, loss, features["train"], features["validation"], metrics, rate=rate, **common)
            finish(f"vlm_par {fusion} {alignment}", predict(model, features["test"]), notes | {"learning_rate": rate})
    return results


def summarise(runs: list[dict[str, dict]], key: str) -> dict[str, dict]:
    """Mean and spread (sample standard deviation) over seeds, and the first seed's bootstrap interval."""
    summary = {}
    for method in runs[0]:
        row = {}
        for metric in dict.fromkeys((key, *SHOWN)):
            values = [run[method]["metrics"][metric] for run in runs if method in run]
            row[metric] = {
                "mean": float(np.mean(values)),
                "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "interval_first_seed": runs[0][method]["intervals"].get(metric),
            }
        summary[method] = row
    return summary


def differences(summary: dict[str, dict], key: str) -> dict[str, float]:
    """The two differences that the benchmark asks for, in points."""

    def best(names):
        return max(summary[name][key]["mean"] for name in names)

    no_fusion = best([m for m in summary if m.startswith("vlm_par none")])
    fused = best([m for m in summary if m.startswith("vlm_par") and not m.startswith("vlm_par none")])
    probes = best(["probe_pooled", "probe_patches"])
    return {
        "best fusion minus fusion none": 100 * (fused - no_fusion),
        "best VLM-PAR minus best linear probe": 100 * (max(fused, no_fusion) - probes),
    }


def describe(runs: list[dict], title: str, key: str, error_bars: str, sizes: dict[str, int]) -> dict:
    summary = summarise(runs, key)
    return {
        "title": title,
        "command": " ".join(["python benchmarks/quality.py", *sys.argv[1:]]),
        "key": key,
        "error_bars": error_bars,
        "sizes": sizes,
        "seeds": len(runs),
        "summary": summary,
        "differences": differences(summary, key),
        "runs": runs,
    }


def table(summary: dict[str, dict], key: str) -> str:
    columns = list(dict.fromkeys((key, *SHOWN)))
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, row in summary.items():
        cells = []
        for metric in columns:
            value, spread = row[metric]["mean"], row[metric]["spread"]
            cells.append(f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}"))
        lines.append(f"| {label_of(method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def color_of(method: str) -> str:
    if not method.startswith("vlm_par"):
        return "#9a9a9a"
    return "#9db7d5" if method.startswith("vlm_par none") else "#2c6fbb"


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = result["data"]
    figure, axes = plt.subplots(1, len(parts), figsize=(6.2 * len(parts), 4.0), squeeze=False, layout="constrained")
    for axis, part in zip(axes[0], parts.values(), strict=True):
        key, summary = part["key"], part["summary"]
        methods = list(summary)[::-1]
        values = [100 * summary[m][key]["mean"] for m in methods]
        errors = np.zeros((2, len(methods)))
        for i, method in enumerate(methods):
            cell = summary[method][key]
            if part["error_bars"] == "bootstrap" and cell["interval_first_seed"]:
                low, high = (100 * v for v in cell["interval_first_seed"])
                errors[:, i] = max(0, values[i] - low), max(0, high - values[i])
            elif cell["spread"] is not None:
                errors[:, i] = 100 * cell["spread"]
        # Points, not bars: the axis does not begin at 0.
        for y, (method, value) in enumerate(zip(methods, values, strict=True)):
            axis.errorbar(value, y, xerr=errors[:, y : y + 1], fmt="o", color=color_of(method), capsize=2, lw=1)
        axis.set_yticks(range(len(methods)), [label_of(m) for m in methods])
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        for y, (value, error) in enumerate(zip(values, errors[1], strict=True)):
            axis.text(value + error + 1.0, y, f"{value:.1f}", va="center", fontsize=8)
        axis.set_xlim(min(values) - 3, max(v + e for v, e in zip(values, errors[1], strict=True)) + 4)
        axis.set_xlabel(f"test {key} (%)")
        axis.set_title(part["title"], fontsize=9, loc="right")
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("synthetic", "pa100k_mini"), help="only this data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--seeds-image-to-text", type=int, default=3, help="how many of them train image_to_text, by far the slowest"
    )
    parser.add_argument("--train", type=int, default=2000, help="synthetic training drawings")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument(
        "--cache-features", type=Path, metavar="DIR", help="keep the features here (default: they are not kept)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.cache_features is None:
        with tempfile.TemporaryDirectory() as folder:
            run_all(args, Path(folder))
    else:
        run_all(args, args.cache_features)


def run_all(args, cache: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)

    settings = TrainSettings(epochs=args.epochs, batch_size=32)
    loss_settings = {"weighting": "sqrt"}  # the default of `vlm-par train`
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "settings": settings.to_dict(),
        "loss": loss_settings,
        "data": {},
    }
    if args.only != "pa100k_mini":
        sizes = {
            "num_train": args.train,
            "num_validation": max(200, args.train // 4),
            "num_test": max(400, args.train),
        }
        runs = []
        for seed in range(args.seeds):
            logger.info("synthetic, seed %d: %s", seed, sizes)
            data = load_par_dataset("synthetic", seed=seed, **sizes)
            fusions = FUSIONS if seed < args.seeds_image_to_text else ("none", "text_to_image")
            name = f"synthetic_{args.train}_seed{seed}"
            runs.append(measure(data, seed, settings, loss_settings, args.bootstrap, cache / name, fusions))
        title = f"SYNTHETIC drawings, {args.seeds} seeds (lines: ± spread)"
        result["data"]["synthetic"] = describe(runs, title, "mA", "spread", sizes)
    root = Path(os.environ.get("PAR_DATA", "")) / "pa100k_mini"
    if args.only != "synthetic" and os.environ.get("PAR_DATA") and root.is_dir():
        data = load_par_dataset("pa100k", root)
        sizes = {split: len(part) for split, part in data.items()}
        logger.info("pa100k_mini: %s", sizes)
        # One seed: the intervals over the few test people are wider than the differences between seeds.
        runs = [measure(data, 0, settings, loss_settings, args.bootstrap, cache / "pa100k_mini")]
        count = len(runs[0]["majority"]["scored_attributes"])
        title = (
            "1,600 real PA-100K crops; the backbone has seen drawings only\n"
            f"{count} of 26 attributes ({MIN_POSITIVES}+ test positives); lines: 95 % bootstrap over persons"
        )
        result["data"]["pa100k_mini"] = describe(runs, title, "mA_min_positives", "bootstrap", sizes)
    for part in result["data"].values():
        print(f"\n{part['title']}\n\n{table(part['summary'], part['key'])}\n")
        for question, points in part["differences"].items():
            print(f"{question}: {points:+.1f} points of {part['key']}")
    saved = args.out / "quality.json"
    if args.only and saved.exists():  # keep the results of the other data set
        result["data"] = json.loads(saved.read_text(encoding="utf-8"))["data"] | result["data"]
    atomic_write_json(saved, json.loads(json.dumps(result)))
    draw(result, args.out / "quality.png")
    print(f"\nwrote {args.out / 'quality.json'} and {args.out / 'quality.png'}")
    if args.out.resolve() == RESULTS.resolve():
        print(f"wrote {write_page('quality')}")


if __name__ == "__main__":
    main()
