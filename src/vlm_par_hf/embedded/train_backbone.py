"""Train the embedded backbone: a small SigLIP-2-shaped (NaFlex) model on views of drawn and rendered pedestrians.

    python -m vlm_par_hf.embedded.distillation ...                                     # makes WORK/views/NAME
    python -m vlm_par_hf.embedded.train_backbone --work WORK --run RUN --steps 20000   # trains; killed, it goes on
    python -m vlm_par_hf.embedded.train_backbone --work WORK --run RUN --decay 1500    # rate to zero, and exports

Three kinds of targets:

- *Distillation*: from its pooled output and from its last hidden states, two linear maps predict the pooled features
  and the patch features of a network that has learned from photographs (`distillation.py`). This carries what
  photographs taught that network, without a photograph.
- *Captions*: SigLIP's sigmoid loss (Zhai et al. 2023, equation 1) of pooled outputs of pictures and texts, over all
  pairs of a batch. A caption describes a part of its picture, so it can be true of several pictures. The attributes
  are known, so the targets are exact: every picture of which a caption is true is a positive, and pairs that cannot be
  decided are left out. Texts are free combinations of phrases, the label space's own prompts, and "question answer"
  pairs, so that the text tower has seen prompts and questions.
- *Labels*: a small decoder with one query per attribute attends to the last hidden states and predicts the labels; it
  is not saved. SigLIP 2 trains a captioning decoder that attends to the patches for the same reason (Tschannen et al.
  2025): features of every patch.

Two more can be added: *self-distillation* (`--self-weight`), where the tower that is shown some patches predicts what
its own moving average makes of all of them, and *identity* (`--identity-weight`), where pictures of one person by two
cameras are to be alike. What each kind is worth was measured on photographs (docs/embedded.md).

The learning rate is constant after a warm-up, so that the run has no length that must be known before; `--decay`
starts from its last state and takes the rate to zero. A moving average of the weights is what is measured and saved.
Files of views that appear during the run are used from the next look on; those used least come first.

`RUN` receives `state.pt`, `train_log.jsonl`, and, with `--export` or at the end, the checkpoint as transformers saves
it in `RUN/checkpoint`.
"""

import argparse
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Siglip2ImageProcessorPil, Siglip2Processor

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL
from vlm_par_hf.labels.tables import get_schema

from .distillation import COMPONENTS, HELD_OUT_GROUPS
from .texts import build_targets, build_tokenizer, sample_texts, sigmoid_loss, tokenize
from .towers import build_model, patch_values, run_vision
from .views import PATCH


logger = logging.getLogger("vlm_par_hf.embedded.train_backbone")

MAX_PATCHES = 72
POOLED = 512  # width of the teacher's pooled features
IDENTITY = 128  # width of what is compared between pictures of one person


class AttributeDecoder(nn.Module):
    """One learned query per attribute attends to the patches and predicts the label; used in training only."""

    def __init__(self, schema, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(len(schema), width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.head_norm = nn.LayerNorm(width)
        self.classifier = nn.Parameter(torch.zeros(len(schema), width, schema.max_labels))
        self.register_buffer("label_mask", torch.tensor(schema.label_mask()))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits `(B, A, C)` of patches `(B, N, width)`."""
        patches = self.norm(patches)
        query = self.query(self.queries).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (heads, A, width / heads)
        key, value = (
            project(patches).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        seen = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        answers = self.head_norm(self.queries + self.output(seen))
        logits = torch.einsum("bad,adc->bac", answers, self.classifier)
        return logits.masked_fill(~self.label_mask, -1e4)


class Student(nn.Module):
    """The backbone and what is used in training only: maps to the teacher's features, a decoder per source of views.

    Args:
        schemas: name of the source -> its label space.
        parts: of `"self"` and `"identity"`, those whose losses are used.
    """

    def __init__(
        self, vocab_size: int, schemas: dict, width: int, depth: int, expansion: float, parts: Sequence[str] = ()
    ):
        super().__init__()
        self.backbone = build_model(vocab_size, width, depth, expansion)
        # The backward pass of sdpa is slow in bfloat16 on a CPU.
        self.backbone.set_attn_implementation("eager")
        self.to_pooled = nn.Linear(width, POOLED)
        self.to_patches = nn.Linear(width, COMPONENTS)
        for head in (self.to_pooled, self.to_patches):
            nn.init.normal_(head.weight, std=1e-3)
        self.decoders = nn.ModuleDict({name: AttributeDecoder(schema, width) for name, schema in schemas.items()})
        if "self" in parts:
            self.to_own = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        if "identity" in parts:
            self.to_identity = nn.Linear(width, IDENTITY)


class Views:
    """Files of views by source; those used least come first.

    Args:
        folders: name of the source -> folder.
        shares: how often each source is drawn.
    """

    def __init__(self, folders: dict[str, Path], shares: list[float], uses: dict[str, int]):
        self.folders, self.uses = folders, Counter(uses)
        self.shares = np.asarray(shares) / sum(shares)
        self.look()

    def look(self) -> None:
        """Finds files that have appeared since."""
        self.files = {
            name: sorted(str(path) for path in folder.glob("*.npz") if int(path.stem) >= HELD_OUT_GROUPS)
            for name, folder in self.folders.items()
        }

    def draw(self, rng: np.random.Generator) -> tuple[str, dict[str, np.ndarray]]:
        """Source and content of one file."""
        name = list(self.folders)[rng.choice(len(self.shares), p=self.shares)]
        uses = [self.uses[file] for file in self.files[name]]
        fewest = np.flatnonzero(np.asarray(uses) == min(uses))
        file = self.files[name][rng.choice(fewest)]
        self.uses[file] += 1
        return name, dict(np.load(file))

    def held_out(self, name: str) -> list[dict[str, np.ndarray]]:
        return [dict(np.load(self.folders[name] / f"{number:06d}.npz")) for number in range(HELD_OUT_GROUPS)]


def identity_loss(vectors: torch.Tensor, persons: np.ndarray, temperature: float = 0.1) -> torch.Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, equation 2): pictures of one person against all others.

    Args:
        vectors: float32 `(B, D)`.
        persons: int64 `(B,)`, negative for pictures that show no single person.

    Raises:
        ValueError: no two pictures show one person.
    """
    told = np.flatnonzero(persons >= 0)
    vectors, persons = F.normalize(vectors[told], dim=-1), torch.from_numpy(persons[told])
    itself = torch.eye(len(told), dtype=torch.bool)
    same = (persons[:, None] == persons) & ~itself
    logits = (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf)
    partners = same.sum(1)
    if not partners.any():
        raise ParValueError(f"no two of {len(told)} pictures show one person; expected views made with --pairs")
    log_shares = torch.where(same, logits.log_softmax(1), 0).sum(1)
    return -(log_shares / partners.clamp_min(1))[partners > 0].mean()


@torch.no_grad()
def own_targets(student: Student, average: "Average", group: dict, args) -> torch.Tensor:
    """The last hidden states `(B, N, width)` that the averaged weights make of all patches, each standardised over its
    channels."""
    average.swap(student)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        _, patches = run_vision(student.backbone, patch_values(group["pixels"], group["grid"]), group["grid"])
    average.swap(student)
    return F.layer_norm(patches.float(), patches.shape[-1:])


def losses_of(
    student: Student, name: str, group: dict, args, tokenizer, schema, rng, own: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Named losses of one group; those with weight 0 are left out. `own` is what `own_targets` gives."""
    model = student.backbone
    values = patch_values(group["pixels"], group["grid"])
    kept = None
    if args.keep < 1:
        count = round(args.keep * values.shape[1])
        kept = torch.from_numpy(np.argsort(rng.random(values.shape[:2]), axis=1)[:, :count])
    labels = group["labels"].astype(np.int64)
    told = np.flatnonzero((labels != UNKNOWN_LABEL).any(1))
    told = np.sort(rng.permutation(told)[: args.texts])
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        pooled, patches = run_vision(model, values, group["grid"], kept)
        found = {"pooled": student.to_pooled(pooled), "patches": student.to_patches(patches)}
        if own is not None:
            found["self"] = student.to_own(patches)
        if args.identity_weight:
            found["identity"] = student.to_identity(pooled)
        if args.label_weight:
            logits = student.decoders[name](patches).float()
        if args.caption_weight:
            texts, mentioned = sample_texts(labels[told], schema, rng)
            text_embeds = model.get_text_features(input_ids=tokenize(tokenizer, texts)).pooler_output.float()
    losses = {}
    if args.pooled_weight:
        losses["pooled"] = F.mse_loss(found["pooled"].float(), torch.from_numpy(group["pooled"]).float())
    if args.patch_weight:
        targets = torch.from_numpy(group["patches"]).float()
        if kept is not None:
            targets = targets.gather(1, kept[..., None].expand(-1, -1, COMPONENTS))
        losses["patches"] = (found["patches"].float() - targets).square().sum(-1).mean()
    if own is not None:
        if kept is not None:
            own = own.gather(1, kept[..., None].expand(-1, -1, own.shape[-1]))
        losses["self"] = F.smooth_l1_loss(found["self"].float(), own)
    if args.identity_weight:
        if "persons" not in group:
            raise ParValueError(f"views of {name!r} do not say who is in them; expected those made with --pairs")
        losses["identity"] = identity_loss(found["identity"].float(), group["persons"])
    if args.label_weight:
        truth = torch.from_numpy(labels).flatten()
        losses["labels"] = F.cross_entropy(logits.flatten(0, 1), truth, ignore_index=UNKNOWN_LABEL)
    if args.caption_weight:
        targets, mask = build_targets(labels[told], mentioned)
        losses["captions"] = sigmoid_loss(pooled.float()[told], text_embeds, model, targets, mask)
    return losses


def flip_group(group: dict[str, np.ndarray], schema) -> dict[str, np.ndarray]:
    """The views mirrored, with what their teacher said of them mirrored too.

    The teacher's answer to the mirrored view is nearly that (it was trained on pictures and their mirrored copies), so
    the student sees every view in two forms for one answer of the teacher.
    """
    rows, columns = group["grid"]
    patches = group["patches"].reshape(len(group["patches"]), rows, columns, -1)[:, :, ::-1]
    return group | {
        "pixels": np.ascontiguousarray(group["pixels"][:, :, ::-1]),
        "labels": schema.mirror_labels(group["labels"].astype(np.int64)),
        "patches": patches.reshape(group["patches"].shape),
    }


@torch.no_grad()
def explained_variance(student: Student, groups: list[dict]) -> dict[str, float]:
    """Share of the variance of the teacher's features over held-out views that the student predicts."""
    student.eval()
    errors = {"pooled": [], "patches": []}
    targets = {"pooled": [], "patches": []}
    for group in groups:
        pooled, patches = run_vision(student.backbone, patch_values(group["pixels"], group["grid"]), group["grid"])
        for name, found in (("pooled", student.to_pooled(pooled)), ("patches", student.to_patches(patches))):
            wanted = torch.from_numpy(group[name]).float()
            errors[name].append((found - wanted).square().flatten(0, -2))
            targets[name].append(wanted.flatten(0, -2))
    student.train()
    result = {}
    for name, parts in errors.items():
        variance = torch.cat(targets[name]).var(0, correction=0).mean()
        result[name] = round(1 - float(torch.cat(parts).mean() / variance), 4)
    return result


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.names = decay, [name for name, _ in module.named_parameters()]
        self.values = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        # The first steps are forgotten quickly.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in module.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges the averages with the parameters; a second call exchanges them back."""
        for value, parameter in zip(self.values, module.parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def build_optimizers(student: Student, args) -> list[torch.optim.Optimizer]:
    """AdamW for everything; or Muon for the matrices of the vision tower's layers, and AdamW for the rest."""
    matrices, decayed, others = [], [], []
    for name, parameter in student.named_parameters():
        hidden = ".vision_model.encoder.layers." in name or ".vision_model.head." in name
        if args.muon and hidden and parameter.ndim == 2:
            matrices.append(parameter)
        elif parameter.ndim > 1:
            decayed.append(parameter)
        else:
            others.append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))]
    if matrices:
        # The update is scaled to the size of AdamW's, so that one rate and decay suit both.
        optimizers.append(
            torch.optim.Muon(matrices, lr=args.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def export(student: Student, tokenizer, folder: Path) -> None:
    """The backbone as transformers saves it, in float16, with its processor."""
    student.backbone.eval().half().save_pretrained(folder)
    image_processor = Siglip2ImageProcessorPil(max_num_patches=MAX_PATCHES, patch_size=PATCH)
    Siglip2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with views/")
    parser.add_argument("--run", type=Path, required=True, help="folder for the resumable state and the checkpoint")
    parser.add_argument("--sources", nargs="+", default=["synthetic"], help="folders in WORK/views/")
    parser.add_argument("--shares", nargs="+", type=float, help="how often each source is drawn (default: equally)")
    parser.add_argument("--start", type=Path, help="state.pt of another run to take weights from")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--decay", type=int, help="so many steps more, with the rate falling to zero; then exports")
    parser.add_argument("--export", action="store_true", help="train nothing, export the averaged weights")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--expansion", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--muon-rate", type=float, default=2e-3)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--average", type=float, default=0.998, help="decay of the moving average of the weights")
    parser.add_argument("--keep", type=float, default=1.0, help="share of the patches that the student is shown")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=False, help="mirror half of the views"
    )
    parser.add_argument("--texts", type=int, default=32, help="captions per batch")
    parser.add_argument("--pooled-weight", type=float, default=1.0)
    parser.add_argument("--patch-weight", type=float, default=1.0)
    parser.add_argument("--label-weight", type=float, default=0.5)
    parser.add_argument("--caption-weight", type=float, default=0.03)
    parser.add_argument("--self-weight", type=float, default=0.0)
    parser.add_argument("--identity-weight", type=float, default=0.0, help="needs views that were made with --pairs")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.run.mkdir(parents=True, exist_ok=True)
    folders = {name: args.work / "views" / name for name in args.sources}
    schemas = {
        name: get_schema(json.loads((folder / "source.json").read_text())["schema"])
        for name, folder in folders.items()
    }
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    parts = [kind for kind in ("self", "identity") if getattr(args, f"{kind}_weight")]
    student = Student(len(tokenizer), schemas, args.width, args.depth, args.expansion, parts)
    average = Average(student, args.average)
    optimizers = build_optimizers(student, args)
    constant_file, decayed_file = args.run / "state.pt", args.run / "decayed.pt"
    state_file = decayed_file if args.decay and decayed_file.exists() else constant_file
    step, uses, decay_from = 0, {}, None
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        student.load_state_dict(state["student"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.values = [state["average"][name] for name in average.names]
        step, uses, decay_from = state["step"], state["uses"], state["decay_from"]
        logger.info("resumed at step %d", step)
    elif args.start is not None:
        take_weights(student, average, torch.load(args.start, weights_only=True))
    if args.decay and decay_from is None:
        decay_from = step
    if args.export:
        average.swap(student)
        export(student, tokenizer, args.run / "checkpoint")
        return
    last = decay_from + args.decay if args.decay else args.steps
    views = Views(folders, args.shares or [1.0] * len(folders), uses)
    held_out = {name: views.held_out(name) for name in folders}
    total = sum(p.numel() for p in student.backbone.parameters())
    logger.info("%.2f million parameters; %d files", total / 1e6, sum(map(len, views.files.values())))

    student.train()
    sums, counts, started = Counter(), Counter(), time.time()
    while step < last:
        rng = np.random.default_rng((args.seed, step))
        factor = min(1.0, (step + 1) / args.warm_up)
        if args.decay:
            factor *= max(0.0, 1 - (step - decay_from) / args.decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        name, group = views.draw(rng)
        if args.flip and rng.random() < 0.5:
            group = flip_group(group, schemas[name])
        own = own_targets(student, average, group, args) if args.self_weight else None
        losses = losses_of(student, name, group, args, tokenizer, schemas[name], rng, own)
        weights = {
            "pooled": args.pooled_weight,
            "patches": args.patch_weight,
            "labels": args.label_weight,
            "captions": args.caption_weight,
            "self": args.self_weight,
            "identity": args.identity_weight,
        }
        loss = sum(weights[kind] * value for kind, value in losses.items())
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        average.update(student, step)
        for kind, value in losses.items():
            sums[name, kind] += value.item()
            counts[name, kind] += 1
        if step % args.save_every == 0 or step == last:
            seconds = time.time() - started
            average.swap(student)
            explained = {one: explained_variance(student, groups) for one, groups in held_out.items()}
            average.swap(student)
            row = {
                "step": step,
                "losses": {f"{one} {kind}": round(sums[one, kind] / n, 4) for (one, kind), n in counts.items()},
                "explained_variance": explained,
                "views_per_second": round(len(group["pixels"]) * sum(counts.values()) / len(losses) / seconds, 1),
                "rate": round(factor, 4),
            }
            logger.info("%s", row)
            with (args.run / "train_log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            target = decayed_file if args.decay else constant_file
            save(target, student, average, optimizers, step=step, uses=dict(views.uses), decay_from=decay_from)
            views.look()
            sums, counts, started = Counter(), Counter(), time.time()
    average.swap(student)
    export(student, tokenizer, args.run / "checkpoint")


def take_weights(student: Student, average: Average, state: dict) -> None:
    """The averaged weights of another run; parts that it has not, or has in another shape, stay as they are."""
    own = dict(student.named_parameters())
    taken = {name: value for name, value in state["average"].items() if name in own and own[name].shape == value.shape}
    logger.info("took %d of %d parameters", len(taken), len(own))
    student.load_state_dict(taken, strict=False)
    average.values = [parameter.detach().clone() for parameter in student.parameters()]


def save(path: Path, student: Student, average: Average, optimizers, **numbers) -> None:
    state = {
        "student": student.state_dict(),
        "average": dict(zip(average.names, average.values, strict=True)),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        **numbers,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


if __name__ == "__main__":
    main()
