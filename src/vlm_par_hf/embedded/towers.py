"""The embedded backbone's architecture and its first weights."""

import math

import numpy as np
import torch
from torch import nn
from transformers import Siglip2Config, Siglip2Model

from .texts import BOS, EOS, PAD, TEXT_LENGTH
from .views import PATCH


__all__ = ["build_model", "patch_values", "run_vision"]

GRID = 12  # the position embeddings are a grid of 12 x 12, resized to the rows and columns of each picture


def build_model(vocab_size: int, width: int = 256, depth: int = 6, expansion: float = 3.0) -> Siglip2Model:
    """A SigLIP 2 model with NaFlex: a vision tower of the given size and a small text tower.

    The vision tower starts as Trockman & Kolter (2023, "Mimetic initialization of self-attention layers") propose, so
    that it learns from few pictures: in each head queries and keys agree (their product is near the identity), values
    and outputs nearly undo each other, and positions are sines.
    """
    config = Siglip2Config(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "projection_size": width,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "bos_token_id": BOS,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": int(width * expansion),
            "num_hidden_layers": depth,
            "num_attention_heads": width // 32,
            "patch_size": PATCH,
            "num_patches": GRID * GRID,
        },
    )
    model = Siglip2Model(config)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-3.0)  # short captions are true of many pictures, so positives are not rare
        vision = model.vision_model
        vision.embeddings.position_embedding.weight.copy_(0.3 * sine_positions(GRID, width))
        for layer in vision.encoder.layers:
            start_like_trained(layer.self_attn, width // 32)
    return model


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of rows and of columns, `(side * side, width)`."""
    frequencies = torch.exp(torch.arange(width // 4) * (-math.log(1000.0) / (width // 4 - 1)))
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, -1)


def start_like_trained(attention: nn.Module, heads: int) -> None:
    """Sets queries and keys so that each head's product is about 0.7 (Z + I), and values and outputs so that their
    product is about 0.4 (Z - I), with Z random."""
    width = attention.q_proj.weight.shape[0]
    size = width // heads

    def noise() -> torch.Tensor:
        return torch.randn(width, width) / math.sqrt(width)

    for head in range(heads):
        left, values, right = torch.linalg.svd(0.7 * (noise() + torch.eye(width)))
        scale = values[:size].sqrt()[:, None]
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = left[:, :size].T * scale
        attention.k_proj.weight[rows] = right[:size] * scale
    left, values, right = torch.linalg.svd(0.4 * (noise() - torch.eye(width)))
    attention.v_proj.weight.copy_(values.sqrt()[:, None] * right)
    attention.out_proj.weight.copy_(left * values.sqrt())


def patch_values(pixels: np.ndarray, grid) -> torch.Tensor:
    """uint8 `(B, rows * 16, columns * 16, 3)` to NaFlex `pixel_values` `(B, rows * columns, 16 * 16 * 3)`, [-1, 1]."""
    rows, columns = (int(side) for side in grid)
    values = torch.from_numpy(pixels).view(len(pixels), rows, PATCH, columns, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return values.reshape(len(pixels), rows * columns, -1).float().div_(127.5).sub_(1.0)


def run_vision(model: Siglip2Model, values: torch.Tensor, grid, kept: torch.Tensor | None = None):
    """Pooled output `(B, D)` and last hidden states `(B, N, D)` of views of one grid.

    Args:
        kept: int64 `(B, K)`, the patches that the tower is shown; None shows all.
    """
    vision = model.vision_model
    shapes = torch.tensor([[int(side) for side in grid]]).expand(len(values), -1)
    hidden = vision.embeddings(values, shapes)
    if kept is not None:
        hidden = hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))
    hidden = vision.post_layernorm(vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state)
    return vision.head(hidden, None), hidden
