"""Multi-granularity mix tokens of FOCUS: learnable tokens beside the patches of a vision tower (equations 2 and 3).

Global tokens attend to all patches, local tokens to one region. Patches do not attend to mix tokens, so the patches
are computed exactly as in the backbone alone, and the tokens pass through the same layers in addition.

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
    """The tokens of pictures that the texts attend to.

    Attributes:
        tokens: `(B, K, E)`, the mix tokens, or the patches in a model without mix tokens.
        token_mask: bool `(B, K)`, False for padding; None: there is no padding.
        image_embeds: `(B, D)`, the tower's own pooled output.
        patch_mask: bool `(B, N)`, False for padding.
        maps: float32 `(B, K, N)`, attention of each token over the patches, mean over layers and heads; None if not
            asked for.
    """

    tokens: torch.Tensor
    token_mask: torch.Tensor | None
    image_embeds: torch.Tensor
    patch_mask: torch.Tensor
    maps: torch.Tensor | None


def patch_regions(config: FocusParConfig, mask: torch.Tensor) -> torch.Tensor:
    """Which patches each mix token attends to: bool `(B, K, N)`. Global tokens come first.

    Region i of r holds patches floor(i n / r) up to, not including, ceil((i + 1) n / r) of the n patches of a picture,
    as in adaptive pooling: no region is empty, and where r does not divide n, neighbouring regions share a patch.

    Args:
        config: of the model.
        mask: bool `(B, N)`, False for padding.
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
    trains_tower: bool,
    output_maps: bool,
) -> PictureTokens:
    """Runs the vision tower together with the mix tokens.

    Args:
        vlm: the backbone.
        towers: the layers of its kind of model, from `TOWERS`.
        config: of the model.
        mix_tokens: `(K, D)`.
        probe_share: `(K,)`, the factor with which each mix token is added to the probe of the pooling head; None if
            the tower has no pooling head.
        pixel_values, pixel_attention_mask, spatial_shapes: as in `FocusParModel.forward`; the mask for NaFlex only.
        trains_tower: whether a parameter of the vision tower requires gradients.
        output_maps: whether to return the attention of each token over the patches.
    """
    hidden = towers.embed_images(vlm, pixel_values, spatial_shapes)
    tokens = towers.enter(vlm, mix_tokens.to(hidden.dtype).expand(len(hidden), -1, -1))
    length, K, num_class_tokens = hidden.shape[1], tokens.shape[1], towers.num_class_tokens
    if pixel_attention_mask is not None:
        patch_mask = pixel_attention_mask.bool()
    else:
        patch_mask = torch.ones(hidden[:, num_class_tokens:].shape[:2], dtype=torch.bool, device=hidden.device)
    # Patches attend to the class token, mix tokens do not.
    patches_attend_to = F.pad(patch_mask, (num_class_tokens, 0), value=True)[:, None]
    tokens_attend_to = F.pad(patch_regions(config, patch_mask), (num_class_tokens, 0))
    attention_maps: list[torch.Tensor] = []
    if output_maps or torch.is_grad_enabled() and not trains_tower:
        # Frozen tower: run the tokens separately, so that backward skips the patch stream.
        patch_bias = None if pixel_attention_mask is None else _attention_bias(patches_attend_to, hidden.dtype)
        token_bias = _attention_bias(tokens_attend_to, hidden.dtype)
        for layer in towers.layers(vlm):
            tokens, parts = towers.attend(layer, tokens, hidden, token_bias)
            if output_maps:
                attention_maps.append(_attention_map(parts, token_bias))
            hidden = layer(hidden, attention_mask=patch_bias)
    else:
        allowed = F.pad(torch.cat([patches_attend_to.expand(-1, length, -1), tokens_attend_to], 1), (0, K))
        bias = _attention_bias(allowed, hidden.dtype)
        hidden, tokens = towers.encode_images(vlm, torch.cat([hidden, tokens], 1), bias).split([length, K], 1)
    tokens = towers.leave(vlm, tokens)
    if towers.has_pooling_head:
        # The first query is the probe itself, which gives the backbone's pooled output; then one query per mix token.
        probe = towers.probe(vlm)
        mixed = probe + probe_share[:, None].to(tokens.dtype) * tokens
        probes = torch.cat([probe.expand(len(tokens), -1, -1), mixed], 1)
        bias = _attention_bias(torch.cat([patches_attend_to, tokens_attend_to], 1), hidden.dtype)
        pooled, parts = towers.pool(vlm, probes, towers.leave(vlm, hidden), bias)
        image_embeds, tokens = pooled[:, 0], pooled[:, 1:]
        if output_maps:
            attention_maps.append(_attention_map(parts, bias)[:, 1:])
    else:
        image_embeds = towers.project(vlm, towers.leave(vlm, hidden[:, 0]))
        tokens = towers.project(vlm, tokens)
    maps = torch.stack(attention_maps).mean(0)[..., num_class_tokens:] if output_maps else None
    # Of a frozen tower the mix tokens are the only part with gradients, and the pooled output does not depend on them.
    image_embeds = image_embeds if trains_tower or hidden.requires_grad else image_embeds.detach()
    return PictureTokens(unit_rms(tokens), None, image_embeds, patch_mask, maps)


def patches_as_tokens(
    vlm: PreTrainedModel, towers: Towers, states: torch.Tensor, image_embeds: torch.Tensor, patch_mask: torch.Tensor
) -> PictureTokens:
    """In a model without mix tokens, the tokens that the texts attend to are the patches.

    Args:
        vlm: the backbone.
        towers: the layers of its kind of model, from `TOWERS`.
        states: `(B, N, D)`, patches after the tower's last LayerNorm.
        image_embeds: `(B, D)`.
        patch_mask: bool `(B, N)`.
    """
    maps = torch.eye(states.shape[1], device=states.device)[None] * patch_mask[:, None]
    tokens = unit_rms(towers.project(vlm, torch.where(patch_mask[..., None], states, 0)))
    return PictureTokens(tokens, patch_mask, image_embeds, patch_mask, maps)


def _attention_bias(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bias for attention scores, `(B, 1, queries, keys)`: 0 where `allowed`, bool `(B, queries, keys)`, is True."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _attention_map(parts: AttentionParts, bias: torch.Tensor) -> torch.Tensor:
    """Attention of each query over the keys, float32 `(B, queries, keys)`, mean over the heads."""
    return (wide(parts.queries @ parts.keys.mT) * parts.scaling + wide(bias)).softmax(-1).mean(1)
