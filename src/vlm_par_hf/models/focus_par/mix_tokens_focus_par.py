"""Multi-granularity mix tokens of FOCUS: learnable tokens beside the patches of a vision tower (equations 2 and 3).

Global tokens look at all patches, local ones at one region. Patches never look at mix tokens, so the tower's own
stream is what it always was, and the tokens run beside it through the same layers.

Letters: B people, N patches, K mix tokens, D vision width, E width of the space in which pictures and texts are
compared.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlm_par_hf.base.numerics import wide
from vlm_par_hf.upstream import AttentionParts, Towers

from .configuration_focus_par import FocusParConfig
from .texts_focus_par import unit_rms


__all__ = ["PictureTokens", "look_at_pictures", "patch_regions", "patches_as_tokens"]


class PictureTokens(NamedTuple):
    """What the texts look at.

    Attributes:
        tokens: `(B, K, E)`, mix tokens or, where there are none, the patches.
        token_mask: bool `(B, K)`, False for padding; None: all count.
        image_embeds: `(B, D)`, the tower's own pooled output.
        patch_mask: bool `(B, N)`.
        maps: float32 `(B, K, N)`, where each token looked, mean over layers and heads; None: not asked for.
    """

    tokens: torch.Tensor
    token_mask: torch.Tensor | None
    image_embeds: torch.Tensor
    patch_mask: torch.Tensor
    maps: torch.Tensor | None


def patch_regions(config: FocusParConfig, mask: torch.Tensor) -> torch.Tensor:
    """Which patches each mix token looks at, bool `(B, K, N)`, from which patches count, bool `(B, N)`.

    Region i of r holds patches floor(i n / r) to ceil((i + 1) n / r) of the n patches of a picture, as adaptive
    pooling divides: no region is empty, and where r does not divide n, neighbours share a patch.
    """
    count = mask.sum(-1)[:, None, None]
    place = mask.cumsum(-1)[:, None] - 1
    region = (torch.arange(config.num_local_tokens, device=mask.device) % config.num_regions)[None, :, None]
    start = region * count // config.num_regions
    stop = -(-(region + 1) * count // config.num_regions)
    local = (place >= start) & (place < stop) & mask[:, None]
    everywhere = mask[:, None].expand(-1, config.num_global_tokens, -1)
    return torch.cat([everywhere, local], 1)


def look_at_pictures(
    vlm: PreTrainedModel,
    towers: Towers,
    config: FocusParConfig,
    mix_tokens: torch.Tensor,
    probe_share: torch.Tensor | None,
    pixel_values: torch.Tensor,
    pixel_attention_mask: torch.Tensor | None,
    spatial_shapes: torch.Tensor | None,
    *,
    output_maps: bool,
) -> PictureTokens:
    """The vision tower with mix tokens beside it.

    Args:
        vlm: the backbone, and `towers` its insides.
        config: of the model.
        mix_tokens: `(K, D)`.
        probe_share: `(K,)`, how much of a mix token is added to the probe of the pooling head; None: the tower has no
            such head.
        pixel_values, pixel_attention_mask, spatial_shapes: as in `FocusParModel.forward`; the mask for NaFlex only.
        output_maps: whether to say where each token looked.
    """
    learns = torch.is_grad_enabled()
    tower_learns = learns and not config.freeze_backbone
    with torch.set_grad_enabled(tower_learns):
        hidden = towers.embed_images(vlm, pixel_values, spatial_shapes)
    tokens = towers.enter(vlm, mix_tokens.to(hidden.dtype).expand(len(hidden), -1, -1))
    length, K, skipped = hidden.shape[1], tokens.shape[1], towers.num_class_tokens
    if pixel_attention_mask is not None:
        patch_mask = pixel_attention_mask.bool()
    else:
        patch_mask = torch.ones(hidden[:, skipped:].shape[:2], dtype=torch.bool, device=hidden.device)
    # Patches see the class token, mix tokens do not.
    seen_by_patches = F.pad(patch_mask, (skipped, 0), value=True)[:, None]
    seen_by_tokens = F.pad(patch_regions(config, patch_mask), (skipped, 0))
    looks: list[torch.Tensor] = []
    if output_maps or learns and not tower_learns:
        # Frozen tower: run the tokens separately, so that backward skips the patch stream.
        patch_bias = None if pixel_attention_mask is None else _attention_bias(seen_by_patches, hidden.dtype)
        token_bias = _attention_bias(seen_by_tokens, hidden.dtype)
        for layer in towers.layers(vlm):
            tokens, parts = towers.attend(layer, tokens, hidden, token_bias)
            if output_maps:
                looks.append(_attention_map(parts, token_bias))
            with torch.set_grad_enabled(tower_learns):
                hidden = layer(hidden, attention_mask=patch_bias)
    else:
        seen = F.pad(torch.cat([seen_by_patches.expand(-1, length, -1), seen_by_tokens], 1), (0, K))
        bias = _attention_bias(seen, hidden.dtype)
        hidden, tokens = towers.encode_images(vlm, torch.cat([hidden, tokens], 1), bias).split([length, K], 1)
    tokens = towers.leave(vlm, tokens)
    if towers.has_pooling_head:
        # The probe itself asks for the pooled picture, probes mixed with tokens for what the tokens stand for.
        probe = towers.probe(vlm)
        mixed = probe + probe_share[:, None].to(tokens.dtype) * tokens
        probes = torch.cat([probe.expand(len(tokens), -1, -1), mixed], 1)
        bias = _attention_bias(torch.cat([seen_by_patches, seen_by_tokens], 1), hidden.dtype)
        pooled, parts = towers.pool(vlm, probes, towers.leave(vlm, hidden), bias)
        image_embeds, tokens = pooled[:, 0], pooled[:, 1:]
        if output_maps:
            looks.append(_attention_map(parts, bias)[:, 1:])
    else:
        image_embeds = towers.project(vlm, towers.leave(vlm, hidden[:, 0]))
        tokens = towers.project(vlm, tokens)
    maps = torch.stack(looks).mean(0)[..., skipped:] if output_maps else None
    image_embeds = image_embeds if tower_learns else image_embeds.detach()
    return PictureTokens(unit_rms(tokens), None, image_embeds, patch_mask, maps)


def patches_as_tokens(
    vlm: PreTrainedModel, towers: Towers, states: torch.Tensor, image_embeds: torch.Tensor, patch_mask: torch.Tensor
) -> PictureTokens:
    """What the texts look at in a model without mix tokens: the patches themselves.

    Args:
        vlm: the backbone, and `towers` its insides.
        states: `(B, N, D)`, patches after the tower's last LayerNorm.
        image_embeds: `(B, D)`.
        patch_mask: bool `(B, N)`.
    """
    maps = torch.eye(states.shape[1], device=states.device)[None] * patch_mask[:, None]
    tokens = unit_rms(towers.project(vlm, torch.where(patch_mask[..., None], states, 0)))
    return PictureTokens(tokens, patch_mask, image_embeds, patch_mask, maps)


def _attention_bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores `(B, 1, queries, keys)`, from bool `(B, queries, keys)`."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _attention_map(parts: AttentionParts, bias: torch.Tensor) -> torch.Tensor:
    """Where each query looked, float32 `(B, queries, keys)`, mean over the heads."""
    return (wide(parts.queries @ parts.keys.mT) * parts.scaling + wide(bias)).softmax(-1).mean(1)
