"""Train the embedded backbone: a small SigLIP-2-shaped (NaFlex) model on drawn pedestrians and their captions.

    python -m vlm_par_hf.embedded.train_backbone --work WORK --out OUT

Under an hour on two CPU cores. Two losses:

- SigLIP's sigmoid loss (Zhai et al. 2023, equation 1) of pooled outputs of pictures and texts, over all pairs of a
  batch. A caption describes a part of its picture, so it can be true of several pictures. The attributes of drawings
  are known, so the targets are exact: every picture of which a caption is true is a positive, and pairs that cannot be
  decided are left out. Texts are free combinations of phrases, the label space's own prompts, and "question answer"
  pairs, so that the text tower has seen prompts and questions.
- An auxiliary loss on the patches: a small decoder with one query per attribute attends to the last hidden states and
  predicts the labels; it is not saved. SigLIP 2 trains a captioning decoder that attends to the patches for the same
  reason (Tschannen et al. 2025): features of every patch.

So the backbone has been trained on the synthetic attributes. It is for demonstration: its results on drawings do not
show what a backbone trained on web images does on photographs. Pictures with rare attributes are sampled more often
(square root of the inverse frequency).

The shipped weights: `--steps 8000 --bf16`.

After an interruption the same command resumes from `WORK/state.pt`. `OUT` receives the checkpoint as transformers
saves it, `train_log.jsonl` and `zero_shot.md`. The people drawn here (population seed 1000) are in no split that
`load_par_dataset("synthetic")` makes.
"""

import argparse
import json
import logging
import math
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, trainers
from torch import nn
from transformers import (
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
)

from vlm_par_hf.data.synthetic import (
    HEIGHT,
    UNKNOWN,
    WIDTH,
    Frame,
    SyntheticPerson,
    caption,
    person_labels,
    render_person,
)
from vlm_par_hf.labels.tables import get_schema


logger = logging.getLogger("vlm_par_hf.embedded.train_backbone")

POPULATION = 1000  # seed of the people drawn for pre-training
PATCH, ROWS, COLUMNS = 16, HEIGHT // 16, WIDTH // 16
TEXT_LENGTH = 64
PAD, EOS, BOS, UNK, MASK = range(5)
# The tokenizer is trained on the questions and prompts of these label spaces. The list is fixed, because another one
# would give another vocabulary.
TEXT_SCHEMAS = ("market1501", "market1501_30", "pa100k", "peta35", "peta65", "synthetic")


def _draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    person = SyntheticPerson.sample(POPULATION, number // 2)
    frame = Frame.sample(person, number % 2, camera=int(number % 10 == 0))
    return np.asarray(render_person(person, frame)), person_labels(person, frame)


def draw_pictures(count: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures as uint8 `(count, 192, 96, 3)` and labels int64 `(count, A)`, drawn once and memory-mapped."""
    pictures, labels = work / f"pictures_{count}.npy", work / f"labels_{count}.npy"
    if not labels.exists():  # the labels are written last, so that with them the pictures are complete
        logger.info("drawing %d pictures", count)
        target = np.lib.format.open_memmap(pictures, "w+", np.uint8, (count, HEIGHT, WIDTH, 3))
        rows = []
        with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
            for number, (picture, row) in enumerate(pool.imap(_draw, range(count), chunksize=64)):
                target[number] = picture
                rows.append(row)
        target.flush()
        np.save(labels, np.stack(rows))
    return np.load(pictures, mmap_mode="r"), np.load(labels)


def build_tokenizer(vocab_size: int = 1024) -> Siglip2Tokenizer:
    """A byte-pair tokenizer in the form of SigLIP 2's, trained on captions and on the questions and prompts of
    `TEXT_SCHEMAS`."""
    rng = np.random.default_rng(0)
    texts = [text.lower() for name in TEXT_SCHEMAS for a in get_schema(name) for text in (a.question, *a.prompts)]
    for number in range(4000):
        person = SyntheticPerson.sample(POPULATION, number)
        texts.append(caption(person_labels(person, Frame.sample(person, 0)), rng)[0])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special))
    state = json.loads(tokenizer.to_str())["model"]
    return Siglip2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in state["merges"]],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
        model_max_length=TEXT_LENGTH,
    )


def build_model(vocab_size: int) -> Siglip2Model:
    """A SigLIP 2 model with NaFlex, 1.5 million parameters and width 128."""
    config = Siglip2Config(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "projection_size": 128,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "bos_token_id": BOS,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": PATCH,
            "num_patches": 144,
        },
    )
    model = Siglip2Model(config)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-3.0)  # short captions are true of many pictures, so positives are not rare
    return model


def to_patches(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 `(B, H, W, 3)` to NaFlex `pixel_values` `(B, N, 16 * 16 * 3)` in [-1, 1]."""
    batch = pictures.shape[0]
    grid = pictures.view(batch, ROWS, PATCH, COLUMNS, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, ROWS * COLUMNS, -1).float().div_(127.5).sub_(1.0)


def augment(pictures: np.ndarray, labels: np.ndarray, schema, rng: np.random.Generator):
    """Flip half, shift by up to 8 pixels, change light and color a little."""
    pictures, labels = pictures.copy(), labels.copy()
    flip = rng.random(len(pictures)) < 0.5
    pictures[flip] = pictures[flip, :, ::-1]
    labels[flip] = schema.mirror_labels(labels[flip])
    padded = np.pad(pictures, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="edge")
    for i, (dy, dx) in enumerate(rng.integers(0, 17, (len(pictures), 2))):
        pictures[i] = padded[i, dy : dy + HEIGHT, dx : dx + WIDTH]
    gain = rng.uniform(0.8, 1.2, (len(pictures), 1, 1, 1)) * rng.uniform(0.93, 1.07, (len(pictures), 1, 1, 3))
    return np.clip(pictures * gain.astype(np.float32), 0, 255).astype(np.uint8), labels


def sample_texts(labels: np.ndarray, schema, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """One true sentence per picture, and bool `(B, A)`: which attributes it mentions."""
    texts, mentioned = [], np.zeros(labels.shape, bool)
    for i, row in enumerate(labels):
        kind = rng.random()
        if kind < 0.55:
            text, positions = caption(row, rng, schema=schema)
        else:
            known = np.flatnonzero(row != UNKNOWN)
            # Attributes that a person has are chosen more often than those that she has not.
            weights = np.where([schema[int(k)].is_binary and row[k] == 0 for k in known], 0.35, 1.0)
            position = int(rng.choice(known, p=weights / weights.sum()))
            attribute, label = schema[position], int(row[position])
            text = attribute.prompts[label] if kind < 0.85 else f"{attribute.question} {attribute.labels[label]}"
            positions = [position]
        texts.append(text.lower())
        mentioned[i, positions] = True
    return texts, mentioned


def build_targets(labels: np.ndarray, mentioned: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of the sigmoid loss, text by picture: +1 where the text is true of the picture, else -1; and a float
    mask, 0 where an unknown label leaves that undecided. Both `(B, B)`."""
    same = labels[None] == labels[:, None]
    undecided = (labels[None] == UNKNOWN) & mentioned[:, None]
    false = (mentioned[:, None] & ~same & ~undecided).any(-1)
    true = ~false & ~undecided.any(-1)
    return torch.from_numpy(np.where(true, 1.0, -1.0)).float(), torch.from_numpy((true | false).astype(np.float32))


def sigmoid_loss(image_embeds, text_embeds, model, targets, mask) -> torch.Tensor:
    """SigLIP's loss: -sum log sigmoid(target * (scale * cosine + bias)) / B."""
    cosine = F.normalize(text_embeds, dim=-1) @ F.normalize(image_embeds, dim=-1).T
    logits = cosine * model.logit_scale.exp() + model.logit_bias
    return -(F.logsigmoid(targets * logits) * mask).sum() / len(targets)


class AttributeDecoder(nn.Module):
    """One learned query per attribute attends to the patches and predicts the label; used in training only."""

    def __init__(self, schema, width: int, heads: int = 4):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(schema), width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.head_norm = nn.LayerNorm(width)
        self.classifier = nn.Parameter(torch.zeros(len(schema), width, schema.max_labels))
        self.register_buffer("label_mask", torch.tensor(schema.label_mask()))

    def forward(self, patches: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the known labels `(B, A)`, patches `(B, N, width)`."""
        patches = self.norm(patches)
        queries = self.queries.expand(len(patches), -1, -1)
        answers = self.head_norm(queries + self.attention(queries, patches, patches, need_weights=False)[0])
        logits = torch.einsum("bad,adc->bac", answers, self.classifier).masked_fill(~self.label_mask, -1e4)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNKNOWN)


def schedule(step: int, steps: int, warm_up: int = 150) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to 1 %."""
    return min((step + 1) / warm_up, 0.01 + 0.495 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def tokenize(tokenizer, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    return batch["input_ids"]


def image_features(model, pictures: np.ndarray):
    """Output of the vision tower: `pooler_output (B, D)`, `last_hidden_state (B, N, D)`."""
    values = to_patches(torch.from_numpy(np.array(pictures)))
    shapes = torch.tensor([[ROWS, COLUMNS]] * len(values))
    return model.get_image_features(pixel_values=values, spatial_shapes=shapes)


@torch.no_grad()
def zero_shot(model, tokenizer, pictures, labels, schema) -> dict[str, float]:
    """Mean recall over the labels that occur, per attribute, of the zero-shot classifier (arg-max over the cosine with
    each label's prompt)."""
    model.eval()
    chunks = range(0, len(pictures), 250)
    images = torch.cat([image_features(model, pictures[i : i + 250]).pooler_output for i in chunks])
    images = F.normalize(images, dim=-1)
    result = {}
    for position, attribute in enumerate(schema):
        prompts = model.get_text_features(input_ids=tokenize(tokenizer, [p.lower() for p in attribute.prompts]))
        predicted = (images @ F.normalize(prompts.pooler_output, dim=-1).T).argmax(-1).numpy()
        truth = labels[:, position]
        if (truth == UNKNOWN).all():
            continue
        recalls = [(predicted[truth == k] == k).mean() for k in range(attribute.num_labels) if (truth == k).any()]
        result[attribute.name] = float(np.mean(recalls))
    model.train()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for drawings and the resumable state")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=48_000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decoder-weight", type=float, default=20.0, help="the sigmoid loss is a sum over texts")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="attributes that it is not told of")
    parser.add_argument("--bf16", action="store_true", help="1.5 times faster where the processor multiplies bfloat16")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)

    schema = get_schema("synthetic")
    pictures, labels = draw_pictures(args.pictures, args.work)
    labels[:, [schema.index(name) for name in args.without]] = UNKNOWN
    held_out = 1000
    frequency = [np.bincount(labels[:, k][labels[:, k] >= 0], minlength=a.num_labels) / len(labels)
                 for k, a in enumerate(schema)]  # fmt: skip
    rarity = np.ones(len(labels))
    for k in range(len(schema)):
        known = labels[:, k] >= 0
        rarity[known] = np.maximum(rarity[known], frequency[k][labels[known, k]] ** -0.5)
    rarity[-held_out:] = 0.0

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    if args.bf16:
        model.set_attn_implementation("eager")  # the backward pass of sdpa is slow in bfloat16 on a CPU
    decoder = AttributeDecoder(schema, model.config.vision_config.hidden_size)
    parameters = [*model.parameters(), *decoder.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
    state_file, log_file = args.work / "state.pt", args.work / "train_log.jsonl"
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        logger.info("resumed at step %d", step)

    model.train()
    losses, started = [], time.time()
    while step < args.steps:
        rng = np.random.default_rng((7, step))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule(step, args.steps)
        chosen = np.sort(rng.choice(len(labels), args.batch_size, replace=False, p=rarity / rarity.sum()))
        batch, batch_labels = augment(pictures[chosen], labels[chosen], schema, rng)
        texts, mentioned = sample_texts(batch_labels, schema, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            text_embeds = model.get_text_features(input_ids=tokenize(tokenizer, texts)).pooler_output.float()
            images = image_features(model, batch)
            image_embeds, patches = images.pooler_output.float(), images.last_hidden_state.float()
        pair_loss = sigmoid_loss(image_embeds, text_embeds, model, *build_targets(batch_labels, mentioned))
        decoder_loss = decoder(patches, torch.from_numpy(batch_labels))
        loss = pair_loss + args.decoder_weight * decoder_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        step += 1
        losses.append((pair_loss.item(), decoder_loss.item()))
        if step % args.save_every == 0 or step == args.steps:
            recalls = zero_shot(model, tokenizer, pictures[-held_out:], labels[-held_out:], schema)
            row = {
                "step": step,
                "sigmoid_loss": round(float(np.mean(losses, axis=0)[0]), 3),
                "decoder_loss": round(float(np.mean(losses, axis=0)[1]), 4),
                "zero_shot_mean_recall": round(float(np.mean(list(recalls.values()))), 4),
                "images_per_second": round(args.batch_size * len(losses) / (time.time() - started), 1),
            }
            logger.info("%s", row)
            with log_file.open("a") as log:
                log.write(json.dumps(row) + "\n")
            parts = {"model": model, "decoder": decoder, "optimizer": optimizer}
            partial = state_file.with_suffix(".partial")
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, partial)
            os.replace(partial, state_file)
            losses, started = [], time.time()

    model.eval().save_pretrained(args.out)
    image_processor = Siglip2ImageProcessorPil(max_num_patches=ROWS * COLUMNS, patch_size=PATCH)
    Siglip2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(args.out)
    (args.out / "train_log.jsonl").write_text(log_file.read_text())
    recalls = zero_shot(model, tokenizer, pictures[-held_out:], labels[-held_out:], schema)
    lines = [
        "# Zero-shot, synthetic\n",
        f"Mean recall (%) over the labels that occur, arg-max over the prompts' cosines, {held_out} held-out",
        "drawings; chance is 100 / number of labels. Drawings only: this says nothing of photographs.\n",
        "| attribute | labels | mean recall |",
        "|---|---|---|",
        *(f"| {name} | {schema[name].num_labels} | {100 * recall:.1f} |" for name, recall in recalls.items()),
        f"| **mean** | | **{100 * np.mean(list(recalls.values())):.1f}** |",
    ]
    (args.out / "zero_shot.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
