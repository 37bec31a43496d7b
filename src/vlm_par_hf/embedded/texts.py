"""Texts for the training of the embedded backbone: tokenizer, sentences about pictures, SigLIP's sigmoid loss."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import Siglip2Tokenizer

from vlm_par_hf.data.synthetic import UNKNOWN, Frame, SyntheticPerson, caption, person_labels
from vlm_par_hf.data.synthetic.rendered import caption as caption_of_render
from vlm_par_hf.labels.tables import get_schema

from .views import POPULATION


__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "TEXT_LENGTH",
    "build_targets",
    "build_tokenizer",
    "sample_texts",
    "sigmoid_loss",
    "tokenize",
]

TEXT_LENGTH = 64
PAD, EOS, BOS, UNK, MASK = range(5)
# The tokenizer is trained on the questions and prompts of these label spaces. The list is fixed, because another one
# would give another vocabulary.
TEXT_SCHEMAS = ("market1501", "market1501_30", "pa100k", "peta35", "peta65", "rendered", "synthetic")
# Names of a label space -> what writes a sentence about labels, and names the attributes that it tells.
CAPTIONS = {
    tuple(get_schema("rendered").names): caption_of_render,
    tuple(get_schema("synthetic").names): caption,
}


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


def sample_texts(labels: np.ndarray, schema, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """One true sentence per picture, and bool `(B, A)`: which attributes it mentions. Every picture has a known label.

    Label spaces without captions of their own have prompts and questions only.
    """
    describe = CAPTIONS.get(tuple(schema.names))
    texts, mentioned = [], np.zeros(labels.shape, bool)
    for i, row in enumerate(labels):
        kind = rng.random()
        if kind < 0.55 and describe is not None:
            text, positions = describe(row, rng)
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


def tokenize(tokenizer, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    return batch["input_ids"]
