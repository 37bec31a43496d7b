"""Tiny models for tests: real classes, real tokenizer, random weights, built in milliseconds."""

import functools
import json
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPTokenizer, PreTrainedConfig, Siglip2Config, Siglip2Tokenizer, SiglipConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.models.clear_par import ClearParConfig, ClearParModel, ClearParProcessor
from vlm_par_hf.models.focus_par import FocusParConfig, FocusParModel, FocusParProcessor
from vlm_par_hf.models.vlm_par import VlmParConfig, VlmParModel, VlmParProcessor
from vlm_par_hf.models.vtf_par import VtfParConfig, VtfParModel, VtfParProcessor


__all__ = [
    "PATCH_SIZE",
    "TINY_KINDS",
    "randomize",
    "save_backbone",
    "tiny_backbone_config",
    "tiny_clear_config",
    "tiny_clear_model",
    "tiny_clear_processor",
    "tiny_focus_model",
    "tiny_focus_processor",
    "tiny_inputs",
    "tiny_model",
    "tiny_processor",
    "tiny_schema",
    "tiny_tokenizer",
    "tiny_vtf_inputs",
    "tiny_vtf_model",
    "tiny_vtf_processor",
]

PATCH_SIZE = 4
TEXT_LENGTH = 64
TINY_KINDS = ("naflex", "fixed", "kway")
_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def tiny_schema(kway: bool = False) -> AttributeSchema:
    """Three binary attributes; with `kway` one of four labels and one of three as well."""
    attributes: list[dict[str, Any]] = [
        {
            "name": "Hat",
            "question": "is the person wearing a hat?",
            "prompts": ["a person without a hat", "a person wearing a hat"],
            "region": "head",
        },
        {
            "name": "Backpack",
            "question": "is there a backpack?",
            "prompts": ["a person without a backpack", "a person carrying a backpack on the back"],
            "region": "attachment",
            "threshold": 0.4,
        },
        {
            "name": "Female",
            "question": "does the person look like a woman?",
            "prompts": ["a photo of a man", "a photo of a woman"],
            "region": "whole",
            "sensitive": True,
        },
    ]
    if kway:
        colors = ["black", "white", "red", "blue"]
        attributes.append(
            {
                "name": "UpperColor",
                "question": "what color are the clothes of the upper body?",
                "labels": colors,
                "prompts": [f"a person in {color} upper clothes" for color in colors],
                "region": "upper",
            }
        )
        sides = ["left", "right", "none"]
        attributes.append(
            {
                "name": "BagSide",
                "question": "on which side is the bag?",
                "labels": sides,
                "prompts": ["a bag on the left", "a bag on the right", "no bag"],
                "region": "attachment",
                "mirror": [1, 0, 2],
            }
        )
    return AttributeSchema(attributes)


@functools.cache
def _trained_vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    tokenizer.decoder = decoders.ByteFallback()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    corpus = [text for one in tiny_schema(kway=True) for text in (one.question, *one.prompts)]
    tokenizer.train_from_iterator(corpus, trainer)
    vocabulary = tokenizer.get_vocab()
    # The merges are not public on the model object; its JSON form holds them, as pairs.
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return vocabulary, tuple((left, right) for left, right in merges)


def tiny_tokenizer() -> Siglip2Tokenizer:
    """A Gemma-like tokenizer of some 400 tokens: lower-cases, ends with `<eos>`, pads to the right."""
    vocabulary, merges = _trained_vocabulary()
    return Siglip2Tokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
        model_max_length=TEXT_LENGTH,
    )


def tiny_backbone_config(kind: str = "siglip2") -> PreTrainedConfig:
    """Two layers of width 32; the towers' widths differ, as in the giant checkpoints."""
    common = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **common,
        "hidden_size": 24,
        "projection_size": 32,
        "vocab_size": max(_trained_vocabulary()[0].values()) + 1,
        "max_position_embeddings": TEXT_LENGTH,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {**common, "hidden_size": 32, "patch_size": PATCH_SIZE}
    if kind == "siglip2":
        return Siglip2Config(text_config=text, vision_config={**vision, "num_patches": 16})
    if kind == "siglip":
        return SiglipConfig(text_config=text, vision_config={**vision, "image_size": 16})
    if kind == "clip":
        text |= {"vocab_size": 514, "pad_token_id": 513, "eos_token_id": 513, "bos_token_id": 512}
        vision |= {"image_size": 16, "projection_dim": 16}
        return CLIPConfig(text_config={**text, "projection_dim": 16}, vision_config=vision, projection_dim=16)
    raise ValueError(f"kind must be 'siglip2', 'siglip' or 'clip', got {kind!r}")


def tiny_processor(kind: str = "naflex") -> VlmParProcessor:
    """The processor of `tiny_model(kind)`: 12 patches for NaFlex, 16x16 pixels for fixed resolution."""
    if kind == "fixed":
        image_processor = SiglipImageProcessorPil(
            size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
    else:
        image_processor = Siglip2ImageProcessorPil(patch_size=PATCH_SIZE, max_num_patches=12)
    return VlmParProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer())


def tiny_model(kind: str = "naflex", *, seed: int = 0, encode: bool = True, **config: Any) -> VlmParModel:
    """A model in eval mode with seeded random backbone weights and encoded questions.

    Args:
        kind: "naflex" (siglip2), "fixed" (siglip) or "kway" (siglip2 with categorical attributes).
        seed: of the weights.
        encode: False leaves the questions untokenized.
        config: fields of `VlmParConfig` that override the defaults.
    """
    if kind not in TINY_KINDS:
        raise ValueError(f"kind must be one of {TINY_KINDS}, got {kind!r}")
    settings: dict[str, Any] = {
        "vlm_config": tiny_backbone_config("siglip" if kind == "fixed" else "siglip2"),
        "attributes": tiny_schema(kway=kind == "kway"),
        "num_fusion_heads": 4,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VlmParModel(VlmParConfig(**settings))
        with torch.no_grad():  # zero in a fresh backbone, about this in a trained one
            model.vlm.logit_scale.fill_(2.0)
            model.vlm.logit_bias.fill_(-3.0)
    model.eval()
    if encode:
        model.encode_questions(tiny_processor(kind))
    return model


def tiny_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: a token per byte."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)


def tiny_focus_processor(kind: str = "naflex") -> FocusParProcessor:
    """The processor of `tiny_focus_model(kind)`."""
    if kind == "clip":
        image_processor = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
        return FocusParProcessor(image_processor=image_processor, tokenizer=tiny_clip_tokenizer())
    common = tiny_processor(kind)
    return FocusParProcessor(image_processor=common.image_processor, tokenizer=common.tokenizer)


def tiny_focus_model(kind: str = "naflex", *, seed: int = 0, **config: Any) -> FocusParModel:
    """As `tiny_model`, of the FOCUS family; `kind` may also be "clip", with inputs of the kind "fixed"."""
    schema = tiny_schema(kway=kind in ("kway", "clip"))
    towers = {"fixed": "siglip", "clip": "clip"}
    settings: dict[str, Any] = {
        "vlm_config": tiny_backbone_config(towers.get(kind, "siglip2")),
        "attributes": schema,
        "num_global_tokens": 3,
        "num_attention_heads": 4,
        "num_prompt_tokens": 2,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FocusParModel(FocusParConfig(**settings))
        model._prepare_texts(tiny_focus_processor(kind))
        model.reset_tokens()
        with torch.no_grad():
            model.vlm.logit_scale.fill_(2.0)
    return model.eval()


def tiny_vtf_processor(kind: str = "naflex") -> VtfParProcessor:
    """The processor of `tiny_vtf_model(kind)`: a grid of 4 x 3 patches for NaFlex."""
    common = tiny_focus_processor(kind)
    grid = None if kind in ("fixed", "clip") else [4, 3]
    return VtfParProcessor(common.image_processor, common.tokenizer, patch_grid=grid)


def tiny_vtf_model(kind: str = "naflex", *, seed: int = 0, **config: Any) -> VtfParModel:
    """As `tiny_focus_model`, of the VTF family; its inputs are `tiny_vtf_inputs(kind)`."""
    towers = {"fixed": "siglip", "clip": "clip"}
    settings: dict[str, Any] = {
        "vlm_config": tiny_backbone_config(towers.get(kind, "siglip2")),
        "attributes": tiny_schema(kway=kind in ("kway", "clip")),
        "num_fusion_heads": 4,
        "mlp_ratio": 2.0,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VtfParModel(VtfParConfig(**settings)).eval()
        model._prepare_texts(tiny_vtf_processor(kind))
    return model


def tiny_vtf_inputs(kind: str = "naflex", batch: int = 3, seed: int = 0, frames: int = 3) -> dict[str, torch.Tensor]:
    """Random tracklets: row i has 1 + i % `frames` valid frames."""
    flat = tiny_inputs("fixed" if kind in ("fixed", "clip") else "naflex", batch * frames, seed)
    inputs = {name: value.unflatten(0, (batch, frames)) for name, value in flat.items()}
    lengths = torch.arange(batch) % frames + 1
    return {**inputs, "frame_mask": torch.arange(frames) < lengths[:, None]}


CLEAR_SIZE = (32, 16)


def tiny_clear_config(kway: bool = True, **config: Any) -> ClearParConfig:
    """Branches of different widths (32 and 24) over pictures of 32 x 16; the Swin has two stages."""
    vit = {
        "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "patch_size": PATCH_SIZE, "image_size": list(CLEAR_SIZE),
    }  # fmt: skip
    swin = {
        "model_type": "swin", "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
        "patch_size": PATCH_SIZE, "image_size": list(CLEAR_SIZE), "drop_path_rate": 0.0,
    }  # fmt: skip
    settings = {
        "vit_config": vit, "swin_config": swin, "attributes": tiny_schema(kway=kway), "image_size": list(CLEAR_SIZE),
        "num_fusion_heads": 4, "attention_dropout": 0.0,
    }  # fmt: skip
    return ClearParConfig(**{**settings, **config})


def tiny_clear_processor() -> ClearParProcessor:
    """The processor of `tiny_clear_model()`."""
    return ClearParProcessor.from_backbone("fresh-tiny", image_size=CLEAR_SIZE)


def tiny_clear_model(kway: bool = True, *, seed: int = 0, **config: Any) -> ClearParModel:
    """As `tiny_model`, of the CLEAR family; its inputs are those of the kind "clear"."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ClearParModel(tiny_clear_config(kway, **config)).eval()


def save_backbone(folder: Any, model: Any, processor: Any) -> None:
    """A folder as a user would name it: the plain backbone of a model, with its image processor and tokenizer."""
    model.vlm.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def randomize(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """Adds seeded noise to every trainable parameter, so that nothing stands at its starting value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                width = parameter.shape[-2] if parameter.ndim > 2 else 1
                parameter.add_((scale * noise / width**0.5).to(parameter))
    return model


def tiny_inputs(kind: str = "naflex", batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pixels as the processor of `tiny_model(kind)` makes them; NaFlex rows have unequal numbers of patches."""
    generator = torch.Generator().manual_seed(seed)
    if kind in ("fixed", "clear"):
        height, width = CLEAR_SIZE if kind == "clear" else (16, 16)
        return {"pixel_values": torch.rand(batch, 3, height, width, generator=generator) * 2 - 1}
    shapes = torch.tensor([[4, 3], [5, 2], [2, 4], [3, 3]])[torch.arange(batch) % 4]
    patches = torch.rand(batch, 12, 3 * PATCH_SIZE**2, generator=generator) * 2 - 1
    mask = torch.arange(12)[None] < shapes.prod(1)[:, None]
    return {
        "pixel_values": patches * mask[..., None],
        "pixel_attention_mask": mask.int(),
        "spatial_shapes": shapes,
    }
