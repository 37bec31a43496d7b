"""Every use of what transformers does not promise to keep: when it moves, this is the one file to mend.

`modeling_tests/test_upstream.py` says of each use what it relies on, and fails with its name. Extension points that
transformers documents are used where they apply and are not listed here: the methods of `Pipeline`, `ProcessorMixin`
and `TrainerCallback`, and the class attributes of `PreTrainedModel`.

Letters: B people, N patches, K further tokens, Z texts, L places of a text, D width of a tower, E width of the space
in which pictures and texts are compared, H heads.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.image_utils import SizeDict
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset


__all__ = [
    "TOWERS",
    "AttentionParts",
    "ClipTowers",
    "KeyDataset",
    "NaflexEmbeddings",
    "OwnParameters",
    "SiglipTowers",
    "SizeDict",
    "SubConfigSpec",
    "Towers",
    "TransformersModel",
    "attention_implementation",
    "collect_load_report",
    "init",
    "is_task_registered",
    "naflex_embeddings",
    "naflex_image_size",
    "register_task",
]


# Models


@runtime_checkable
class OwnParameters(Protocol):
    """A module of this package that says itself how its parameters and buffers start."""

    def init_parameters(self) -> None:
        """Sets them with the functions of `init`, which leave alone what a checkpoint has filled."""


class TransformersModel(PreTrainedModel):
    """`PreTrainedModel` for modules with parameters of their own (`OwnParameters`), its attention by any backend."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OwnParameters):
            module.init_parameters()


def attention_implementation(module: PreTrainedModel) -> str:
    """The attention backend that a model or tower computes with, such as `"sdpa"`."""
    return module.config._attn_implementation


@contextmanager
def collect_load_report() -> Iterator[list[str]]:
    """Collects transformers' report of missing and unexpected tensors in place of printing it.

    That our heads are not in a backbone's checkpoint is no news; where the weights do not fit, the report says why.
    """
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            messages.append(record.getMessage())
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield messages
    finally:
        logger.removeFilter(keep)


# Pipelines


def is_task_registered(task: str, pipeline_class: type) -> bool:
    return PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl") is pipeline_class


def register_task(task: str, pipeline_class: type, *, model_class: type, default_model: str) -> None:
    """Makes `transformers.pipeline(task)` know a pipeline.

    Args:
        task: its name.
        pipeline_class: what answers.
        model_class: what loads a checkpoint for it. `AutoModel`, not a class of ours: transformers looks for those of
            a custom task in its own namespace.
        default_model: folder or repository of the model that is used where none is named.
    """
    PIPELINE_REGISTRY.register_pipeline(
        task,
        pipeline_class=pipeline_class,
        pt_model=model_class,
        default={"model": (default_model, None)},
        type="image",
    )


# Images


def naflex_image_size(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Height and width that the SigLIP 2 image processor resizes an image to, whole patches within the budget."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    return get_image_size_for_max_num_patches(height, width, patch_size, max_num_patches)


class NaflexEmbeddings(NamedTuple):
    """The patch embedding of SigLIP 2 in parts.

    Attributes:
        patch_embedding: linear, from the values of a patch to D.
        positions: `(side, side, D)`, the table that is resized to the grid of each image.
    """

    patch_embedding: nn.Module
    positions: torch.Tensor

    def resized_positions(self, rows: int, columns: int) -> torch.Tensor:
        """`(1, rows * columns, D)`, as the tower itself adds them to the patches of such an image."""
        grid = torch.tensor([[rows, columns]])
        return Siglip2VisionEmbeddings.resize_positional_embeddings(self.positions, grid, max_length=rows * columns)


def naflex_embeddings(module: nn.Module) -> NaflexEmbeddings | None:
    """The parts of a SigLIP 2 patch embedding; None for any other module."""
    if not isinstance(module, Siglip2VisionEmbeddings):
        return None
    side = module.position_embedding_size
    return NaflexEmbeddings(module.patch_embedding, module.position_embedding.weight.detach().view(side, side, -1))


# The insides of the towers


class AttentionParts(NamedTuple):
    """Queries `(B, H, K, D / H)`, keys and values `(B, H, N, D / H)`, and the factor of their products."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float


class Towers(ABC):
    """Vision and text tower of a vision-language model `vlm`, layer by layer; one object for each kind of model.

    It holds no tensor: every method is handed the model.

    Attributes:
        num_class_tokens: tokens in front of the patches, in every layer of the vision tower.
        num_start_tokens: tokens in front of every text.
        pools_last_place: whether a text is pooled at the last of all places, where padding stands, and not at the last
            of its own tokens. Then padding belongs to the text and is always there.
        has_pooling_head: whether a probe looks at the patches once more, in place of a class token.
    """

    num_class_tokens = 0
    num_start_tokens = 0
    pools_last_place = False
    has_pooling_head = False

    # Vision

    def embed_images(
        self, vlm: PreTrainedModel, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(B, class tokens + N, D)`: what enters the first layer."""
        vision = vlm.vision_model
        if vlm.config.model_type == "siglip2":
            return vision.embeddings(pixel_values, spatial_shapes)
        size = vlm.config.vision_config.image_size
        resizes = tuple(pixel_values.shape[-2:]) != (size, size)
        return self.enter(vlm, vision.embeddings(pixel_values, interpolate_pos_encoding=resizes))

    def enter(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """What the tower does to embeddings before its first layer."""
        return states

    def layers(self, vlm: PreTrainedModel) -> Iterator[nn.Module]:
        """The layers of the vision tower; each is called `layer(states, attention_mask=bias)`."""
        yield from vlm.vision_model.encoder.layers

    def encode_images(self, vlm: PreTrainedModel, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """All layers; `bias` `(B, 1, places, places)` is added to the scores of attention."""
        return vlm.vision_model.encoder(inputs_embeds=states, attention_mask=bias).last_hidden_state

    def leave(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """The LayerNorm after the last layer."""
        return vlm.vision_model.post_layernorm(states)

    def attend(
        self, layer: nn.Module, tokens: torch.Tensor, patches: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, AttentionParts]:
        """Further tokens through one layer: they look at the patches, and neither at themselves nor at one another.

        Args:
            layer: of the vision tower.
            tokens: `(B, K, D)`.
            patches: `(B, N, D)`, what the layer is given.
            bias: `(B, 1, K, N)`.

        Returns:
            The tokens after the layer, and what their attention was made of.
        """
        attention = layer.self_attn
        shape = (*tokens.shape[:1], -1, attention.num_heads, attention.head_dim)
        normal = layer.layer_norm1(patches)
        queries = attention.q_proj(layer.layer_norm1(tokens)).view(shape).transpose(1, 2)
        keys = attention.k_proj(normal).view(shape).transpose(1, 2)
        values = attention.v_proj(normal).view(shape).transpose(1, 2)
        backend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, _eager_attention)
        found, _ = backend(
            attention,
            queries,
            keys,
            values,
            bias,
            is_causal=False,
            scaling=attention.scale,
            dropout=attention.dropout if attention.training else 0.0,
        )
        tokens = tokens + attention.out_proj(found.reshape(tokens.shape))
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        return tokens, AttentionParts(queries, keys, values, attention.scale)

    @abstractmethod
    def start_of_tokens(self, vlm: PreTrainedModel, regions: torch.Tensor) -> torch.Tensor:
        """Where further tokens of the vision tower may start: `(K, D)`, or `(D,)` for all of them.

        Args:
            regions: `(K, places)`, the weight of each place of the position table for each token.
        """

    @abstractmethod
    def project(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """States after the last LayerNorm into the space of the texts, each by itself."""

    def unused_vision_parameters(self, vlm: PreTrainedModel, has_tokens: bool) -> list[nn.Parameter]:
        """Parameters of a vision tower that no score depends on; `has_tokens`: whether further tokens are pooled."""
        return []

    # Texts

    def embed_words(self, vlm: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
        """`(Z, L, width)`: token embeddings without positions."""
        return vlm.text_model.embeddings.token_embedding(input_ids)

    def word_table(self, vlm: PreTrainedModel) -> torch.Tensor:
        """`(vocabulary, width)`."""
        return vlm.text_model.embeddings.token_embedding.weight

    def encode_words(self, vlm: PreTrainedModel, words: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """`(Z, E)`: token embeddings through the text tower and its projection, pooled at the place `last` `(Z,)`."""
        text = vlm.text_model
        hidden = text.embeddings(inputs_embeds=words)
        hidden = text.encoder(inputs_embeds=hidden, **self._text_mask(vlm, hidden)).last_hidden_state
        hidden = text.final_layer_norm(hidden)
        return self._project_text(vlm, hidden[torch.arange(len(hidden), device=hidden.device), last])

    def _text_mask(self, vlm: PreTrainedModel, hidden: torch.Tensor) -> dict[str, Any]:
        return {"attention_mask": None}

    @abstractmethod
    def _project_text(self, vlm: PreTrainedModel, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled states into the space of the pictures."""


class ClipTowers(Towers):
    """CLIP: a class token, LayerNorm before the first layer, causal texts, linear projections of both."""

    num_class_tokens = 1
    num_start_tokens = 1

    def enter(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        return vlm.vision_model.pre_layrnorm(states)

    def project(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        return vlm.visual_projection(states)

    def start_of_tokens(self, vlm: PreTrainedModel, regions: torch.Tensor) -> torch.Tensor:
        embeddings = vlm.vision_model.embeddings
        return embeddings.class_embedding + embeddings.position_embedding.weight[0]

    def _text_mask(self, vlm: PreTrainedModel, hidden: torch.Tensor) -> dict[str, Any]:
        # By position: the name of the last one, the cache of a text that is written, changed in 5.24.
        mask = create_causal_mask(vlm.text_model.config, hidden, None, None)
        return {"attention_mask": mask, "is_causal": True}

    def _project_text(self, vlm: PreTrainedModel, pooled: torch.Tensor) -> torch.Tensor:
        return vlm.text_projection(pooled)


class SiglipTowers(Towers):
    """SigLIP and SigLIP 2: no class token, a pooling head over the patches, texts that see all their places."""

    pools_last_place = True
    has_pooling_head = True

    def probe(self, vlm: PreTrainedModel) -> torch.Tensor:
        """`(1, 1, D)`: what asks the patches for the pooled picture."""
        return vlm.vision_model.head.probe

    def pool(
        self, vlm: PreTrainedModel, probes: torch.Tensor, patches: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, AttentionParts]:
        """The pooling head for several probes, each seeing what it may see.

        Args:
            probes: `(B, K, D)`.
            patches: `(B, N, D)`, after the last LayerNorm.
            bias: `(B, 1, K, N)`.

        Returns:
            `(B, K, D)`, and what the attention was made of.
        """
        head = vlm.vision_model.head
        weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
        queries, keys, values = (
            F.linear(states, weight, offset).unflatten(-1, (head.attention.num_heads, -1)).transpose(1, 2)
            for states, weight, offset in zip((probes, patches, patches), weights, biases)
        )
        scaling = queries.shape[-1] ** -0.5
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scaling)
        pooled = head.attention.out_proj(found.transpose(1, 2).flatten(2))
        return pooled + head.mlp(head.layernorm(pooled)), AttentionParts(queries, keys, values, scaling)

    def project(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        # What the pooling head would answer if it saw this patch alone.
        head = vlm.vision_model.head
        weight, bias = head.attention.in_proj_weight.chunk(3)[2], head.attention.in_proj_bias.chunk(3)[2]
        pooled = head.attention.out_proj(F.linear(states, weight, bias))
        return pooled + head.mlp(head.layernorm(pooled))

    def start_of_tokens(self, vlm: PreTrainedModel, regions: torch.Tensor) -> torch.Tensor:
        embeddings = vlm.vision_model.embeddings
        positions = _at_least_float32(embeddings.position_embedding.weight)
        regions = regions.to(positions.dtype)
        # A patch of no content, at the mean position of what the token looks at.
        content = _at_least_float32(embeddings.patch_embedding.bias)
        return content + regions @ positions / regions.sum(-1, keepdim=True)

    def unused_vision_parameters(self, vlm: PreTrainedModel, has_tokens: bool) -> list[nn.Parameter]:
        return [] if has_tokens else [vlm.vision_model.head.probe]

    def _project_text(self, vlm: PreTrainedModel, pooled: torch.Tensor) -> torch.Tensor:
        return vlm.text_model.head(pooled)


TOWERS: dict[str, Towers] = {"clip": ClipTowers(), "siglip": SiglipTowers(), "siglip2": SiglipTowers()}


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    weights = (query @ key.mT * scaling + attention_mask).float().softmax(-1).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
