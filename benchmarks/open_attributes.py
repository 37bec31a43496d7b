"""Attributes that were not trained: FOCUS compared with its backbone's zero-shot answers and VLM-PAR, on drawings.

    python benchmarks/open_attributes.py                                   # about 40 minutes on 2 idle cores
    python benchmarks/open_attributes.py --train 400 --epochs 1 --seeds 1 --out /tmp/quick    # a quick look

Whole attributes are held out of training (`UNSEEN`: bag types, colors, a sleeve form, ...). Every method answers for
all attributes, on the camera that it was trained on and on the other one. Measured are:

- image-to-text recall at 1 and 2 within the labels of an attribute, of the label with the highest score: by pictures
  (the published convention) and by labels (always naming the most frequent label is no better than chance);
- AUC, which depends neither on thresholds nor on how frequent a label is;
- mA after decisions, which are fitted on validation for seen attributes and transferred from these to unseen ones
  (`transfer_decisions`), in the same way for every method.

The epoch is chosen by recall at 1 (by labels) of the seen attributes on validation; the test split is used once.
Learning rates and loss weights were chosen by hand on drawings of another population (seed 7), with the results on its
unseen attributes known.

EVERYTHING HERE IS SYNTHETIC, and the embedded backbone was trained on captions and labels of ALL attributes of the
drawings: "unseen" means unseen in the training of FOCUS and VLM-PAR, not by the backbone.

No number from here can be compared with a number from a paper. Results: `--out` (JSON and picture). Finished methods
are saved there during the run; after an interruption the same command continues with the next one.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pages import command_of
from torch import nn

from vlm_par_hf import (
    FocusParModel,
    FocusParProcessor,
    ParLoss,
    ParMetrics,
    VlmParModel,
    get_schema,
    load_par_dataset,
)
from vlm_par_hf.base.decisions import fit_decisions, transfer_decisions
from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.metrics.retrieval import image_to_text_recall
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("open_attributes")

UNSEEN = {
    "LowerColor": "a color",
    "ShoeColor": "a color",
    "ShortSleeve": "a sleeve form",
    "LongCoat": "a garment",
    "HandBag": "a bag type",
    "ShoulderBag": "a bag type",
    "Boots": "a shoe type",
}
# The paper gives every loss weight 1; 0.1 for these two was a little better on validation. Class weights are balanced,
# because recall by labels counts every label alike.
LOSS = {"sim": 0.1, "racl": 0.1, "weighting": "balanced"}
# What each variant of FOCUS changes.
VARIANTS = {
    "focus": {},
    "focus_no_racl": {"loss": {"racl": 0.0}},
    "focus_no_mix_tokens": {"num_global_tokens": 0, "num_local_tokens": 0},
    "focus_no_extraction": {"mean_of_tokens": True, "loss": {"racl": 0.0}},
    "focus_no_prompts": {"num_prompt_tokens": 0},
    "focus_attribute_prompts": {"prompts_per": "attribute"},
    "focus_trained_tower": {"freeze_backbone": False},
}
NAMES = {
    "zero_shot": "backbone, zero-shot",
    "vlm_par": "VLM-PAR (unseen: its zero-shot alignment)",
    "focus": "FOCUS, full",
    "focus_no_racl": "FOCUS without RACL",
    "focus_no_mix_tokens": "FOCUS without mix tokens",
    "focus_no_extraction": "FOCUS without cross-attention (mean of the mix tokens)",
    "focus_no_prompts": "FOCUS without learnable prompts",
    "focus_attribute_prompts": "FOCUS, prompts per attribute (as the paper)",
    "focus_trained_tower": "FOCUS, vision tower trained (as the paper)",
}
DOMAINS = {"A": (0,), "B": (1,)}  # camera of training, and the other one
BATCH = 64


class MeanOfTokens(nn.Module):
    """In place of FOCUS's cross-attention: every text is compared with the mean of the tokens (the paper, table
    III)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("query", torch.zeros(1))  # a part of what the model's kept texts depend on

    def ask(self, texts: torch.Tensor) -> torch.Tensor:
        return texts[None]

    def forward(self, queries, texts, tokens, mask):
        mask = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask.float()
        share = mask / mask.sum(1, keepdim=True)
        mean = torch.einsum("bk,bke->be", share, tokens.float())
        cosine = nn.functional.normalize(mean, dim=-1) @ nn.functional.normalize(texts.float(), dim=-1).T
        return cosine, share[:, None, None].expand(-1, 1, len(texts), -1)


class Pictures:
    """A split as tensors: pixels as the processor makes them (half precision) and labels of all attributes."""

    def __init__(self, dataset, processor):
        parts = []
        for start in range(0, len(dataset), 100):
            rows = dataset.select(range(start, min(start + 100, len(dataset))))
            parts.append(processor(images=list(rows["image"]), return_tensors="pt"))
        self.tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.tensors["pixel_values"] = self.tensors["pixel_values"].half()
        self.labels = np.asarray(dataset["labels"])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows) -> dict[str, torch.Tensor]:
        batch = {name: value[rows] for name, value in self.tensors.items()}
        return batch | {"pixel_values": batch["pixel_values"].float()}


@torch.no_grad()
def answer(model, pictures: Pictures, **extra) -> np.ndarray:
    """Logits float32 `(S, A, C)`."""
    model.eval()
    rows = torch.arange(len(pictures)).split(200)
    return torch.cat([model(**pictures.batch(part), **extra).logits for part in rows]).numpy()


def measure(logits: np.ndarray, labels: np.ndarray, schema, decisions) -> dict:
    """Recall, AUC and mA over the attributes of `schema`; `decisions` are their (gain, offset)."""
    recall = image_to_text_recall(logits, labels, schema)
    areas = [row["auc"] for row in ParMetrics(schema).report((logits, labels), bootstrap=0)["attributes"]]
    gain, offset = decisions
    table = np.zeros((len(schema), schema.max_labels))
    table[schema.label_mask()] = offset.numpy()
    logits = logits * gain.numpy()[:, None] + table
    result = {name: value for name, value in recall.items() if name != "groups"}
    result["auc"] = float(np.mean([area for area in areas if area is not None]))
    result["mA"] = ParMetrics(schema)((logits, labels))["mA"]
    result["attributes"] = {name: row["label_recall_at_1"] for name, row in recall["groups"].items()}
    return result


def train_focus(seen, train: Pictures, validation: Pictures, columns, options: dict, args, seed: int):
    """FOCUS on the seen attributes; the weights of the best epoch. Returns model and notes."""
    torch.manual_seed(seed)
    labels = torch.as_tensor(train.labels[:, columns])
    loss = {"priors": compute_priors(labels.numpy(), seen), **LOSS, **options.pop("loss", {})}
    mean_of_tokens = options.pop("mean_of_tokens", False)
    model = FocusParModel.from_backbone(args.backbone, attributes=seen, loss=loss, **options)
    if mean_of_tokens:
        model.extraction = MeanOfTokens()
    return fit(model, lambda rows: model(**train.batch(rows), labels=labels[rows]).loss, model.parameter_groups(
        args.learning_rate, args.extraction_learning_rate, backbone_learning_rate=args.backbone_learning_rate
    ), seen, validation, columns, len(train), args, seed)  # fmt: skip


def train_vlm_par(seen, train: Pictures, validation: Pictures, columns, args, seed: int):
    torch.manual_seed(seed)
    labels = torch.as_tensor(train.labels[:, columns])
    loss = ParLoss(seen, weighting="sqrt", priors=compute_priors(labels.numpy(), seen))
    model = VlmParModel.from_backbone(args.backbone, attributes=seen)
    rows = torch.arange(len(train)).split(200)
    model.fit_pooled_statistics(train.batch(part) for part in rows)
    model.config.loss = {"weighting": "sqrt", "priors": compute_priors(labels.numpy(), seen)}
    model.fit_zero_shot({**train.batch(part), "labels": labels[part]} for part in rows)
    return fit(model, lambda rows: loss(model(**train.batch(rows)).logits, labels[rows]), model.parameter_groups(3e-3),
               seen, validation, columns, len(train), args, seed)  # fmt: skip


def fit(model, loss_of, groups, seen, validation, columns, count, args, seed):
    optimizer = torch.optim.AdamW(groups)
    total = args.epochs * -(-count // BATCH)
    warm_up = max(1, total // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 * (1 + np.cos(np.pi * step / total)))
    )
    best, started = {"validation": -1.0}, time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        running = 0.0
        for rows in order.split(BATCH):
            loss = loss_of(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            schedule.step()
            running += loss.item() * len(rows) / count
        found = image_to_text_recall(answer(model, validation), validation.labels[:, columns], seen)
        score = found["i2t_recall_at_1_label_mean"]
        logger.info("    epoch %d: loss %.4f, validation recall of seen %.2f", epoch + 1, running, 100 * score)
        if score > best["validation"]:
            best = {"validation": score, "epoch": epoch + 1}
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            state = {name: value.clone() for name, value in model.state_dict().items() if name in trained}
    model.load_state_dict(state, strict=False)
    return model.eval(), best | {"seconds": round(time.perf_counter() - started)}


class Kept:
    """Results so far, seed -> method -> rows, saved to a file after every method, so that a stopped run can continue.

    Raises `SystemExit` where the file was written with other settings.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings, self.runs = path, settings, {}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["settings"] != settings:
                raise SystemExit(
                    f"{path} was written with other settings: {kept['settings']}, now {settings}; remove it"
                )
            self.runs = kept["runs"]

    def of(self, seed: int) -> dict:
        return self.runs.setdefault(str(seed), {})

    def keep(self, seed: int, method: str, rows: dict) -> None:
        self.of(seed)[method] = rows
        atomic_write_json(self.path, {"settings": self.settings, "runs": self.runs})


def run(seed: int, args, kept: Kept) -> dict:
    """Method -> domain -> "seen" and "unseen" -> metrics."""
    results = kept.of(seed)
    if results.keys() == NAMES.keys():
        return results
    schema = get_schema("synthetic")
    seen, unseen = schema.subset(name for name in schema.names if name not in UNSEEN), schema.subset(UNSEEN)
    columns, unseen_columns = ([schema.index(name) for name in part.names] for part in (seen, unseen))
    processor = FocusParProcessor.from_backbone(args.backbone)
    sizes = {"num_train": args.train, "num_validation": max(200, args.train // 4), "num_test": args.test}
    data = load_par_dataset("synthetic", seed=seed, **sizes)
    # The other camera also sees other people, nobody from the training.
    other = load_par_dataset(
        "synthetic", seed=100 + seed, cameras=DOMAINS["B"], num_train=1, num_validation=1, num_test=args.test
    )
    train, validation = Pictures(data["train"], processor), Pictures(data["validation"], processor)
    tests = {"A": Pictures(data["test"], processor), "B": Pictures(other["test"], processor)}

    def finish(method: str, notes: dict, answers_seen, answers_unseen=None) -> None:
        """Measure a method by the functions that give its logits; without the second one, unseen attributes get the
        zero-shot answers."""
        decisions = fit_decisions(answers_seen(validation), validation.labels[:, columns], seen, weighting="balanced")
        transferred = transfer_decisions(*decisions, seen, unseen)
        rows = {}
        for domain, pictures in tests.items():
            rows[domain] = {"seen": measure(answers_seen(pictures), pictures.labels[:, columns], seen, decisions)}
            if answers_unseen is None:
                rows[domain]["unseen"] = results["zero_shot"][domain]["unseen"]
            else:
                labels = pictures.labels[:, unseen_columns]
                rows[domain]["unseen"] = measure(answers_unseen(pictures), labels, unseen, transferred)
        kept.keep(seed, method, {**rows, **notes})
        shown = [f"{d} {p} {100 * rows[d][p]['i2t_recall_at_1_label_mean']:.1f}" for d in rows for p in rows[d]]
        logger.info("  %s: recall at 1, by labels: %s", method, ", ".join(shown))

    if "zero_shot" not in results:
        settings = {"fusion": "none", "alignment": "logit", "pooled_classifier": False}
        models = [VlmParModel.from_backbone(args.backbone, attributes=part, **settings) for part in (seen, unseen)]
        for model in models:
            model.fit_zero_shot()
        finish("zero_shot", {}, *(partial(answer, model) for model in models))
    if "vlm_par" not in results:
        model, notes = train_vlm_par(seen, train, validation, columns, args, seed)
        finish("vlm_par", notes, partial(answer, model))
    for method, options in VARIANTS.items():
        if method in results:
            continue
        model, notes = train_focus(seen, train, validation, columns, dict(options), args, seed)
        texts = [model.encode_attributes(part, processor) for part in (seen, unseen)]
        finish(method, notes, *(partial(answer, model, attributes=one) for one in texts))
    return results


KEYS = {
    "i2t_recall_at_1_label_mean": "R@1 by labels",
    "i2t_recall_at_1_group_mean": "R@1",
    "i2t_recall_at_2_group_mean": "R@2",
    "auc": "AUC",
    "mA": "mA",
}


def chance() -> dict[str, float]:
    """Recall at 1, by labels, of a guess."""
    schema = get_schema("synthetic")
    parts = {"unseen": list(UNSEEN), "seen": [name for name in schema.names if name not in UNSEEN]}
    return {part: float(np.mean([1 / schema[name].num_labels for name in names])) for part, names in parts.items()}


def summarise(runs: list[dict]) -> dict:
    summary = {}
    for method in NAMES:
        summary[method] = {}
        for domain in DOMAINS:
            for part in ("seen", "unseen"):
                for key in KEYS:
                    values = [one[method][domain][part][key] for one in runs]
                    summary[method][f"{domain} {part} {key}"] = {
                        "mean": float(np.mean(values)),
                        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    }
    return summary


def table(summary: dict, domain: str) -> str:
    columns = [(part, key) for part in ("unseen", "seen") for key in KEYS]
    lines = ["| method | " + " | ".join(f"{part} {KEYS[key]}" for part, key in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]  # fmt: skip
    for method, row in summary.items():
        cells = []
        for part, key in columns:
            cell = row[f"{domain} {part} {key}"]
            spread = "" if cell["spread"] is None else f" ± {100 * cell['spread']:.1f}"
            cells.append(f"{100 * cell['mean']:.1f}{spread}")
        lines.append(f"| {NAMES[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True, layout="constrained")
    panels = [
        ("A unseen i2t_recall_at_1_label_mean", "unseen, camera A: recall at 1, by labels"),
        ("A unseen auc", "unseen, camera A: AUC"),
        ("A unseen mA", "unseen, camera A: mA"),
        ("A seen mA", "seen, camera A: mA"),
    ]
    methods = list(result["summary"])[::-1]
    colors = ["#2c6fbb" if m == "focus" else "#9db7d5" if m.startswith("focus") else "#9a9a9a" for m in methods]
    for axis, (key, title) in zip(axes, panels, strict=True):
        cells = [result["summary"][method][key] for method in methods]
        values = [100 * cell["mean"] for cell in cells]
        errors = [100 * (cell["spread"] or 0) for cell in cells]
        # Points, not bars: the axis does not begin at 0.
        for y, (value, error, color) in enumerate(zip(values, errors, colors, strict=True)):
            axis.errorbar(value, y, xerr=error, fmt="o", color=color, capsize=2, lw=1)
            axis.text(value + error + 0.4, y, f"{value:.1f}", va="center", fontsize=8)
        axis.set_yticks(range(len(methods)), [NAMES[m] for m in methods])
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.set_xlim(min(values) - 4, max(v + e for v, e in zip(values, errors, strict=True)) + 4)
        axis.set_xlabel("test (%)", fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(result["title"], fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train", type=int, default=3000, help="training drawings")
    parser.add_argument("--test", type=int, default=1500, help="test drawings per camera")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of mix tokens and prompts of FOCUS")
    parser.add_argument("--extraction-learning-rate", type=float, default=1e-3, help="of FOCUS's cross-attention")
    parser.add_argument(
        "--backbone-learning-rate", type=float, default=1e-4, help="of FOCUS's vision tower, if it is trained"
    )
    parser.add_argument("--backbone", default="embedded", help="a repository or folder")
    parser.add_argument("--name", default="open_attributes", help="of the result files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    kept = Kept(args.out / f"{args.name}.part.json", settings)
    runs = []
    for seed in range(args.seeds):
        logger.info("SYNTHETIC, seed %d", seed)
        runs.append(run(seed, args, kept))
    summary = summarise(runs)
    seeds = f"{args.seeds} seed{'s' * (args.seeds > 1)}"
    seen_by = f"unseen by FOCUS and VLM-PAR; backbone: {args.backbone}"
    if args.backbone == "embedded":
        seen_by = "unseen by FOCUS and VLM-PAR, not by the embedded backbone"
    result = {
        "title": f"SYNTHETIC drawings, {seeds}; {seen_by}",
        "command": command_of(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "unseen": UNSEEN,
        "chance": chance(),
        "settings": settings,
        "summary": summary,
        "runs": runs,
    }
    for domain in DOMAINS:
        where = "the camera of training" if domain == "A" else "another camera"
        print(f"\n{result['title']}\ntest on camera {domain} ({where})\n\n{table(summary, domain)}")
    for domain in DOMAINS:
        for part, key, other in (
            ("unseen", "i2t_recall_at_1_label_mean", "zero_shot"),
            ("unseen", "i2t_recall_at_1_group_mean", "zero_shot"),
            ("unseen", "auc", "zero_shot"),
            ("unseen", "mA", "zero_shot"),
            ("seen", "mA", "vlm_par"),
        ):
            name = f"{domain} {part} {key}"
            points = 100 * (summary["focus"][name]["mean"] - summary[other][name]["mean"])
            print(
                f"\nfull FOCUS minus {NAMES[other]}, camera {domain}, {part}, {KEYS[key]}: {points:+.1f} points",
                end="",
            )
    guessed = ", ".join(f"{part} {100 * value:.1f}" for part, value in result["chance"].items())
    print(f"\n\nchance, R@1 by labels: {guessed}")
    saved = args.out / f"{args.name}.json"
    atomic_write_json(saved, result)
    draw(result, saved.with_suffix(".png"))
    kept.path.unlink()
    print(f"wrote {saved} and {saved.with_suffix('.png')}")


if __name__ == "__main__":
    main()
