"""Speed compared with a baseline: ratios of medians, both timed in turns in one process.

    python benchmarks/speed.py                       # everything
    python benchmarks/speed.py --only heads growth   # some parts; the results of the others stay as they are

The model has the size of google/siglip2-base-patch16-naflex and random weights, as speed does not depend on them.
Decisions are compared for the embedded model, on drawings and, with PAR_DATA, on real crops. Baselines are the plain
form of the paper (text tower in every call, one attention module per attribute; the results hold the largest
difference between its logits and ours), transformers' zero-shot pipeline, and a linear head on the pooled output.

Results go to `--out` (JSON and picture), the tables also to docs/speed.md if `--out` is the default.
"""

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from cache import measure_base
from models import base_model, numbered_schema, schema_of
from pages import COMPARED_DRAWINGS, RESULTS, write_page
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from vlm_par_hf import FocusParConfig, FocusParModel, VlmParModel, VlmParProcessor, get_schema
from vlm_par_hf.annotation import Annotator, ImageList
from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person
from vlm_par_hf.export.exporting import export_model
from vlm_par_hf.export.parity import pick_images
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.models.focus_par import AttributeTexts
from vlm_par_hf.utils import atomic_write_json, embedded_path


logger = logging.getLogger("speed")

ROWS, COLUMNS = 16, 8  # a crop of 256 x 128 in patches of 16
FUSIONS = ("image_to_text", "text_to_image")
PRECISIONS = (("folded", "bfloat16"), ("onnx", "int8"), ("openvino", "bfloat16"), ("openvino", "int8"))


# The plain form, inputs


class PlainHead(nn.Module):
    """One attribute as the paper writes it (VLM-PAR, equations 9-13), both directions."""

    def __init__(self, width: int, text_width: int, labels: int, heads: int, eps: float, fusion: str):
        super().__init__()
        asks, answers = (text_width, width) if fusion == "text_to_image" else (width, text_width)
        self.fusion, self.heads = fusion, heads
        self.query = nn.Linear(asks, width, bias=False)
        self.key = nn.Linear(answers, width, bias=False)
        self.value = nn.Linear(answers, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.classifier = nn.Linear(width, labels)

    def forward(self, patches, patch_mask, question, question_mask):
        B = patches.shape[0]
        count = patch_mask.sum(1)[:, None]
        if self.fusion == "text_to_image":
            mean = (patches * patch_mask[..., None]).sum(1) / count
            asked = (question * question_mask[:, None]).sum(0) / question_mask.sum()
            queries, answers, mask, residual = (
                asked.expand(B, 1, -1),
                patches,
                patch_mask[:, None, None],
                mean[:, None],
            )
        else:
            queries, answers, residual = patches, question.expand(B, -1, -1), patches
            mask = question_mask[None, None, None]
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, answers), (self.value, answers))
        )
        answer = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        fused = self.norm(residual + self.output(answer.transpose(1, 2).flatten(2)))
        pooled = fused[:, 0] if self.fusion == "text_to_image" else (fused * patch_mask[..., None]).sum(1) / count
        return self.classifier(pooled)


class PlainVlmPar(nn.Module):
    """The model as the paper writes it: the text tower runs in every call, every attribute has its own modules."""

    def __init__(self, model: VlmParModel):
        super().__init__()
        config, ours = model.config, model.attribute_heads
        vision, text = config.vlm_config.vision_config, config.vlm_config.text_config
        self.vlm = model.vlm
        length = text.max_position_embeddings
        ids = [(one + [config.text_pad_token_id] * length)[:length] for one in config.question_input_ids]
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        mask = torch.zeros(len(ids), length, dtype=torch.bool)
        for row, one in enumerate(config.question_input_ids):
            mask[row, : len(one)] = True
            mask[row, -1] = True
        self.register_buffer("mask", mask, persistent=False)
        self.heads = nn.ModuleList(
            PlainHead(vision.hidden_size, text.hidden_size, labels, ours.num_heads, ours.eps, ours.fusion)
            for labels in ours.num_labels
        )
        with torch.no_grad():
            for row, (head, labels) in enumerate(zip(self.heads, ours.num_labels)):
                for name in ("query", "key", "value", "output"):
                    getattr(head, name).weight.copy_(getattr(ours, name)[row].T)
                head.norm.weight.copy_(ours.norm_weight[row])
                head.norm.bias.copy_(ours.norm_bias[row])
                head.classifier.weight.copy_(ours.classifier_weight[row, :, :labels].T)
                head.classifier.bias.copy_(ours.classifier_bias[row, :labels])
        self.eval()

    def questions(self) -> torch.Tensor:
        return self.vlm.get_text_features(self.ids).last_hidden_state

    def heads_only(self, patches, patch_mask, states):
        return torch.stack(
            [head(patches, patch_mask, state[mask], mask.new_ones(int(mask.sum())))
             for head, state, mask in zip(self.heads, states, self.mask)],
            1,
        )  # fmt: skip

    def forward(self, pixel_values, spatial_shapes):
        patches = self.vlm.get_image_features(pixel_values=pixel_values, spatial_shapes=spatial_shapes)
        patches = patches.last_hidden_state
        patch_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        return self.heads_only(patches, patch_mask, self.questions())


def pixels(batch: int, rows: int = ROWS, device: str = "cpu") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(batch, rows * COLUMNS, 768, generator=generator).to(device),
        "spatial_shapes": torch.tensor([[rows, COLUMNS]] * batch, device=device),
    }


def features(batch: int, patches: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "patch_embeds": torch.randn(batch, patches, 768, generator=generator).to(device),
        "image_embeds": torch.randn(batch, 768, generator=generator).to(device),
        "patch_mask": torch.ones(batch, patches, dtype=torch.bool, device=device),
    }


# Timing


def race(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate. They take turns, so that other load on the machine affects all alike."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(what: str, ours: float, baseline: float, *, naive: float | None = None, unit: str = "s", **notes) -> dict:
    """`ratio` is ours / baseline; `naive_ratio` the plain form / baseline."""
    result = {"what": what, "ratio": ours / baseline, "ours": ours, "baseline": baseline, "unit": unit, **notes}
    if naive is not None:
        result |= {"naive": naive, "naive_ratio": naive / baseline}
    logger.info("%s: %.4f%s", what, ours / baseline, "" if naive is None else f" (plain form {naive / baseline:.3f})")
    return result


# Parts


@torch.no_grad()
def measure_heads(args) -> list[dict]:
    """The heads compared with the bare vision tower, batch 8."""
    inputs, given = pixels(8, device=args.device), features(8, ROWS * COLUMNS, args.device)

    def measure(count: int, fusion: str) -> dict:
        model = base_model(schema_of(count), fusion).to(args.device)
        plain, folded = PlainVlmPar(model), model.fold()
        states = plain.questions()
        naive = partial(plain.heads_only, given["patch_embeds"], given["patch_mask"], states)
        linear = nn.Linear(768, 2 * count).to(args.device)
        times = race(
            {
                "tower": lambda: model.vlm.get_image_features(**inputs),
                "heads": lambda: folded(**given),
                "plain": naive,
                "linear": lambda: linear(given["image_embeds"]),
            },
            args.rounds,
        )
        return row(
            f"{count} heads, {fusion} / bare vision tower, batch 8",
            times["heads"],
            times["tower"],
            naive=times["plain"],
            linear_head_ratio=times["linear"] / times["tower"],
            largest_difference_to_plain=float((naive() - folded(**given).logits).abs().max()),
        )

    return [measure(count, fusion) for count in (26, 65) for fusion in FUSIONS]


@torch.no_grad()
def measure_whole(args) -> list[dict]:
    """The whole model for one image, compared with the plain form."""
    inputs = pixels(1, device=args.device)

    def measure(fusion: str) -> dict:
        model = base_model(get_schema("pa100k"), fusion).to(args.device)
        plain, folded = PlainVlmPar(model), model.fold()
        times = race({"ours": lambda: folded(**inputs), "plain": lambda: plain(**inputs)}, args.rounds)
        difference = float((plain(**inputs) - folded(**inputs).logits).abs().max())
        what = f"whole model, {fusion}, batch 1 / plain form"
        return row(what, times["ours"], times["plain"], largest_difference_to_plain=difference)

    return [measure(fusion) for fusion in FUSIONS]


def measure_zero_shot(args) -> list[dict]:
    """One crop through our pipeline and through transformers' zero-shot pipeline, from picture to answer."""
    from transformers import pipeline

    processor = VlmParProcessor.from_backbone("embedded", max_num_patches=ROWS * COLUMNS)
    model = base_model(get_schema("pa100k"), "text_to_image", alignment="logit").to(args.device)
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 128, 3), dtype=np.uint8))
    prompts = [prompt for attribute in model.config.schema for prompt in attribute.prompts]
    theirs = pipeline(
        "zero-shot-image-classification", model=model.vlm, tokenizer=processor.tokenizer,
        image_processor=processor.image_processor, device=args.device,
    )  # fmt: skip
    ours = pipeline("pedestrian-attributes", model=model.fold(), processor=processor, device=args.device)
    options = {"candidate_labels": prompts, "tokenizer_kwargs": {"padding": "max_length", "max_length": 64}}
    times = race({"ours": lambda: ours(crop), "theirs": lambda: theirs(crop, **options)}, args.rounds)
    what = f"pipeline, one crop, 26 attributes / zero-shot-image-classification with {len(prompts)} prompts"
    return [row(what, times["ours"], times["theirs"])]


def measure_predict(args) -> list[dict]:
    """`vlm-par predict` on a folder of JPEG files, after loading, compared with the model on ready tensors."""

    def measure(what: str, model, size: tuple[int, int], count: int) -> dict:
        processor = VlmParProcessor.from_backbone("embedded", max_num_patches=size[0] * size[1] // 256)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, crops, out = (Path(folder) / name for name in ("model", "crops", "out.jsonl"))
            crops.mkdir()
            for number in range(count):
                person = SyntheticPerson.sample(0, number)
                render_person(person, Frame.sample(person, 0)).resize(size).save(crops / f"{number}.jpg", quality=90)
            model.save_pretrained(checkpoint)
            processor.save_pretrained(checkpoint)
            annotator = Annotator(checkpoint, batch_size=16, device=args.device)
            images = ImageList(crops)
            batches = [
                annotator.pipe.processor(images=[open_image(row.image) for row in batch], return_tensors="pt")
                for batch in (list(islice(images.rows(start), 16)) for start in range(0, count, 16))
            ]
            loaded = annotator.pipe.model

            @torch.inference_mode()
            def model_alone():
                for batch in batches:
                    loaded(**{name: value.to(loaded.device) for name, value in batch.items()})

            def predict():
                answers = annotator.rows(images)
                out.write_text(
                    "".join(json.dumps({"image": row.name, **found[0]}) + "\n" for row, found, _ in answers)
                )

            times = race({"predict": predict, "model": model_alone}, max(3, args.rounds // 2))
        return row(what, times["predict"], times["model"])

    base = base_model(get_schema("pa100k"), "text_to_image", alignment="logit").fold()
    embedded = VlmParModel.from_pretrained(embedded_path("heads")).fold()
    return [
        measure("predict on a folder of 256 x 128 JPEG files / model alone", base, (128, 256), 48),
        measure("the same with the embedded model (1.5 M parameters, 192 x 96)", embedded, (96, 192), 480),
    ]


def measure_precision(args) -> list[dict]:
    """The whole model in other precisions and runtimes, compared with torch float32; decisions: the embedded model."""
    decisions = {f"{to} {precision}": unchanged_decisions(to, precision) for to, precision in PRECISIONS}
    model = base_model(get_schema("pa100k"), "text_to_image", alignment="logit")
    processor = VlmParProcessor.from_backbone("embedded", max_num_patches=ROWS * COLUMNS)
    crops = list(np.random.default_rng(0).integers(0, 256, (24, 256, 128, 3), dtype=np.uint8))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        loaded = {"float32": model.fold()}
        for to, precision in PRECISIONS:
            out = Path(folder) / f"{to}-{precision}"
            export_model(
                model, out, to=to, precision=precision, processor=processor,
                calibration_images=crops[:16], compared_images=crops[16:],
            )  # fmt: skip
            loaded[f"{to} {precision}"] = AutoModel.from_pretrained(out, dtype="auto")
        for batch in (1, 8):
            inputs = pixels(batch) | {"pixel_attention_mask": torch.ones(batch, ROWS * COLUMNS, dtype=torch.int32)}

            @torch.inference_mode()
            def answer(one, inputs=inputs):
                one(**(inputs | {"pixel_values": inputs["pixel_values"].to(one.dtype)}))

            times = race({name: partial(answer, one) for name, one in loaded.items()}, args.rounds)
            rows += [
                row(f"whole model, {name.replace('folded', 'torch')}, batch {batch} / torch float32", seconds,
                    times["float32"], unchanged_decisions=decisions[name])
                for name, seconds in times.items()
                if name in decisions
            ]  # fmt: skip
    return rows


def unchanged_decisions(to: str, precision: str) -> dict[str, float]:
    """Share of the embedded model's decisions that do not change, on drawings and, with PAR_DATA, on real crops."""
    sources = {"drawings": ("synthetic", None, {"num_train": 128, "num_validation": COMPARED_DRAWINGS, "num_test": 1})}
    root = Path(os.environ.get("PAR_DATA", "")) / "pa100k_mini"
    if os.environ.get("PAR_DATA") and root.is_dir():
        sources["real crops"] = ("pa100k", root, {})
    shares = {}
    for name, (source, root, options) in sources.items():
        calibration, compared, images_from = pick_images(source, root, num_compared=COMPARED_DRAWINGS, **options)
        with tempfile.TemporaryDirectory() as folder:
            record = export_model(
                embedded_path("heads"), Path(folder) / "out", to=to, precision=precision,
                calibration_images=calibration, compared_images=compared, images_from=images_from,
            )  # fmt: skip
        shares[name] = record["unchanged_share"]
    logger.info("%s %s: decisions unchanged %s", to, precision, shares)
    return shares


def measure_epoch(args) -> list[dict]:
    """An epoch of training from cached features, compared with one from images, batch 64; cache.py measures more."""
    options = argparse.Namespace(base_images=64, rounds=max(2, args.rounds // 3), device=args.device)
    return [
        row(f"epoch from cached features, {fusion} / epoch from images, batch 64",
            *(statistics.median(found["seconds"][name]) for name in ("cache", "images")))
        for fusion, found in measure_base(options).items()
    ]  # fmt: skip


def measure_memory(args) -> list[dict]:
    """Peak memory of a training step beyond parameters, gradients and optimizer; each form in its own process."""
    rows = []
    for fusion in FUSIONS:
        found = {}
        for form in ("ours", "plain"):
            command = [sys.executable, __file__, "--memory-of", fusion, form, "--device", args.device]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[form] = json.loads(output.splitlines()[-1])
        rows.append(
            row(f"training step of 26 heads, {fusion}, batch 64, 196 patches: memory / plain form",
                found["ours"]["gigabytes"], found["plain"]["gigabytes"], unit="GB")
        )  # fmt: skip
    return rows


def memory_of_step(fusion: str, form: str, device: str) -> float:
    """GB (10^9 bytes) of memory at the peak of a step, less what was in use before it."""
    model = base_model(get_schema("pa100k"), fusion)
    states = model.question_states
    plain = PlainVlmPar(model)
    del model.vlm.text_model, model.vlm.vision_model
    trained = plain.heads if form == "plain" else model.attribute_heads
    other = model.attribute_heads if form == "plain" else plain.heads
    other.to("meta")
    trained.to(device).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    mask = model.question_mask.to(device)

    def step(batch: int) -> None:
        given = features(batch, 196, device)
        labels = torch.zeros(batch, 26, dtype=torch.int64, device=device)
        if form == "plain":
            logits = torch.stack(
                [head(given["patch_embeds"], given["patch_mask"], one[kept], kept[kept])
                 for head, one, kept in zip(trained, states.to(device), mask)], 1,
            )  # fmt: skip
        else:
            logits = model(**given).logits
        F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()

    step(1)
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(64)
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    step(64)
    return (_status("VmHWM") - before) / 1e9


def _status(field: str) -> int:
    """A memory value of this process in bytes, as Linux reports it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this part needs Linux")


def measure_checkpoint(args) -> list[dict]:
    """Size on disk of a folded checkpoint, compared with a full one."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for fusion in ("image_to_text", "text_to_image", "none"):
            model = base_model(get_schema("pa100k"), fusion, alignment="logit")
            sizes = {}
            for form, one in (("full", model), ("folded", model.fold())):
                target = Path(folder) / form
                one.save_pretrained(target)
                sizes[form] = sum(path.stat().st_size for path in target.iterdir())
            rows.append(row(f"folded checkpoint, {fusion} / full", sizes["folded"], sizes["full"], unit="bytes"))
    return rows


@torch.no_grad()
def measure_growth(args) -> list[dict]:
    """How the cost of the heads grows, as a share of the cost of the bare tower for the same images."""
    points = []

    def point(axis: str, value: int, fusion: str, count: int = 26, length=None, batch: int = 8, rows: int = ROWS):
        model = base_model(schema_of(count), fusion, question_length=length).to(args.device)
        inputs, given = pixels(batch, rows, args.device), features(batch, rows * COLUMNS, args.device)
        folded = model.fold()
        times = race(
            {"tower": lambda: model.vlm.get_image_features(**inputs), "heads": lambda: folded(**given)},
            max(3, args.rounds // 2),
        )
        found = row(f"growth with {axis} {value}, {fusion}", times["heads"], times["tower"])
        points.append(found | {"axis": axis, "value": value, "fusion": fusion})

    for fusion in FUSIONS:
        for count in (5, 26, 65, 200):
            point("attributes", count, fusion, count=count)
        for batch in (1, 8, 32):
            point("batch", batch, fusion, batch=batch)
        for rows in (8, 16, 32):
            point("patches", rows * COLUMNS, fusion, rows=rows)
    for length in (3, 7, 15, 31):
        point("question tokens", length + 1, "image_to_text", length=length)
    return points


@torch.no_grad()
def measure_open(args) -> list[dict]:
    """FOCUS with more and more attributes of two labels, texts encoded once, compared with the bare tower."""
    torch.manual_seed(0)
    known = numbered_schema(1)
    model = FocusParModel(
        FocusParConfig(vlm_config={"model_type": "siglip2"}, attributes=known, label_input_ids=[[[5, 6, 7, 8, 9]] * 2])
    )
    model = model.to(args.device).eval()
    texts = {count: texts_of(model, count) for count in (1, 100, 300, 1000)}

    def answer(seen, asked):
        return model._calibrated_logits(asked, model._score(asked, seen)[0])

    rows = []
    for batch in (1, 8):
        inputs = pixels(batch, device=args.device)
        seen = model._encode_pictures(**inputs)
        candidates = {
            "tower": partial(model.vlm.get_image_features, **inputs),
            "one": partial(model, **inputs, attributes=texts[1]),
            "many": partial(model, **inputs, attributes=texts[300]),
            **{count: partial(answer, seen, asked) for count, asked in texts.items()},
        }
        times = race(candidates, args.rounds)
        beside = f"batch {batch} / bare vision tower"
        rows.append(row(f"FOCUS, 1 attribute, {beside}", times["one"], times["tower"]))
        rows.append(row(f"FOCUS, 300 attributes, {beside}", times["many"], times["tower"]))
        for count in texts:
            what = f"{count} attributes" if count > 1 else "1 attribute"
            rows.append(row(f"texts of {what} looking at the mix tokens, {beside}", times[count], times["tower"]))
    return rows


def texts_of(model: FocusParModel, count: int) -> AttributeTexts:
    """Random texts of `count` attributes: the cost does not depend on what they say."""
    schema, total = numbered_schema(count), 2 * count
    embeds = torch.randn(total, model.config.text_width, device=model.device)
    return AttributeTexts(
        schema,
        embeds=embeds,
        queries=model.extraction.ask(embeds),
        slots=torch.arange(total, device=model.device),
        attribute=torch.arange(count, device=model.device).repeat_interleave(2),
        gain=torch.ones(count, device=model.device),
        offset=torch.zeros(total, device=model.device),
    )


PARTS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "heads": measure_heads,
    "whole": measure_whole,
    "zero_shot": measure_zero_shot,
    "predict": measure_predict,
    "precision": measure_precision,
    "epoch": measure_epoch,
    "memory": measure_memory,
    "checkpoint": measure_checkpoint,
    "growth": measure_growth,
    "open": measure_open,
}


# Results


def table(parts: dict[str, dict]) -> str:
    lines = ["| what / baseline | ratio | plain form / baseline |", "|---|---|---|"]
    for name, part in parts.items():
        if name != "growth":
            for one in part["rows"]:
                naive = f"{one['naive_ratio']:.3f}x" if "naive_ratio" in one else ""
                lines.append(f"| {one['what']} | {one['ratio']:.3f}x | {naive} |")
    return "\n".join(lines)


def draw_growth(points: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    figure = Figure(figsize=(3.4 * len(axes_names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(axes_names), sharey=True, squeeze=False)[0]
    colors = {"image_to_text": "#cc6633", "text_to_image": "#2c6fbb"}
    for axis, name in zip(axes, axes_names, strict=True):
        for fusion, color in colors.items():
            found = [point for point in points if point["axis"] == name and point["fusion"] == fusion]
            if found:
                axis.plot([p["value"] for p in found], [100 * p["ratio"] for p in found], "o-", color=color,
                          label=fusion, markersize=4)  # fmt: skip
        axis.set_xlabel(name)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("heads, % of the bare vision tower")
    figure.suptitle("26 attributes, batch 8, 128 patches, questions of up to 12 tokens, unless varied", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), help="parts to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each candidate (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory-of", nargs=2, metavar=("FUSION", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps({"gigabytes": memory_of_step(*args.memory_of, args.device)}))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "speed.json"
    parts = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    for name in args.only or PARTS:
        logger.info("part %s", name)
        parts[name] = {
            "rows": PARTS[name](args),
            "command": f"python benchmarks/speed.py --only {name} --rounds {args.rounds}",
            "machine": f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
        }
        parts = {key: parts[key] for key in PARTS if key in parts}
        atomic_write_json(saved, parts)
    if "growth" in parts:
        draw_growth(parts["growth"]["rows"], args.out / "speed.png")
    print(f"\n{table(parts)}\n\nwrote {saved}")
    if args.out.resolve() == RESULTS.resolve():
        print(f"wrote {write_page('speed')}")


if __name__ == "__main__":
    main()
