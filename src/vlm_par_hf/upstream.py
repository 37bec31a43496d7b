"""All uses of undocumented parts of transformers. If one of them changes, only this file must be changed.

For each use, a test in `modeling_tests/test_upstream.py` checks what it relies on. Documented extension points of
transformers are used directly elsewhere: the methods of `Pipeline`, `ProcessorMixin` and `TrainerCallback`, and the
class attributes of `PreTrainedModel`.

Letters: B people, N patches, K additional tokens, Z texts, L positions of a text, D width of a tower, E width of the
space in which pictures and texts are compared, H heads.
"""

import functools
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import transformers.pipelines
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging as transformers_logging


__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
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
    "build_branch",
    "collect_load_report",
    "hide_default_messages",
    "hide_progress_bar",
    "infer_task",
    "init",
    "is_task_registered",
    "last_stages",
    "load_branch",
    "naflex_embeddings",
    "naflex_image_size",
    "names_in_memory",
    "refuse_auto_class",
    "refuse_other_tasks",
    "register_task",
    "run_swin",
    "run_vit",
    "sample_with",
    "saves_adapter_alone",
    "unused_parameters",
    "vit_image_processor",
]


# Models


@runtime_checkable
class OwnParameters(Protocol):
    """A module of this package that initialises its own parameters and buffers."""

    def init_parameters(self) -> None:
        """Sets the initial values with the functions of `init`, which skip tensors that a checkpoint has filled."""


class TransformersModel(PreTrainedModel):
    """`PreTrainedModel` that initialises modules with `OwnParameters` and supports all attention backends."""

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
    """The attention backend that a model or tower uses, such as `"sdpa"`."""
    return module.config._attn_implementation


def saves_adapter_alone(model: PreTrainedModel) -> bool:
    """Whether `save_pretrained` of transformers writes the adapter of `add_adapter` and nothing else."""
    return model._hf_peft_config_loaded


@contextmanager
def collect_load_report() -> Iterator[list[str]]:
    """Collects transformers' report of missing and unexpected tensors instead of logging it.

    That a backbone's checkpoint lacks our heads is normal and needs no warning. If the weights do not fit, the report
    is part of our error message.

    Yields:
        The texts of the report; empty as long as there is none.
    """
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            messages.append(record.getMessage())
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(collect)
    try:
        yield messages
    finally:
        logger.removeFilter(collect)


def names_in_memory(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a saved checkpoint under the names that they have in the model.

    transformers saves ViT, DINOv2 and Swin under the names of their first versions. `from_pretrained` renames them,
    `Trainer` does not when it reads its own checkpoint (huggingface/transformers#48805).
    """
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    return {rename_source_key(name, renamings, [])[0]: tensor for name, tensor in state.items()}


@contextmanager
def hide_progress_bar() -> Iterator[None]:
    """Hides transformers' progress bars, such as that of loading weights, where the work takes no time."""
    shows = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows:
            transformers_logging.enable_progress_bar()


# Whenever transformers compares a configuration of SigLIP with the defaults of its class, it builds these defaults and
# warns of them: their token ids are those of another tokenizer. No checkpoint can be mended so that it does not.
_SIGLIP_DEFAULTS = re.compile(r"[be]os_token_id must be .*between 0 and 31999\), got 4940[67]\.")


def sample_with(trainer: Any, sampler: Any) -> None:
    """Makes a Trainer draw its training rows with a sampler of one's own; torchrun's processes share its order."""
    trainer._get_train_sampler = lambda train_dataset=None: sampler


def hide_default_messages(default_model: str) -> None:
    """Hides two messages of transformers about what nobody asked for, so that what is left is read.

    They are warnings about the default token ids of SigLIP's configuration class, and "No model was supplied" where
    the default is `default_model`: the pipeline says itself which model answers and how good it is.
    """
    hidden = f"No model was supplied, defaulted to {default_model} "

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not message.startswith(hidden) and _SIGLIP_DEFAULTS.search(message) is None

    for name in ("transformers.pipelines", "transformers.configuration_utils"):
        logging.getLogger(name).addFilter(keep)


def refuse_auto_class(auto_class: type, config_class: type, error: Exception) -> None:
    """Makes an Auto class that does not fit a kind of model say which one does.

    Without it transformers lists the hundreds of configurations that it knows.

    Args:
        auto_class: such as `AutoModelForImageClassification`.
        config_class: the configuration of the models.
        error: raised when such a model is asked of the Auto class.
    """

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    refusing = type("Refusing", (), {"config_class": config_class, "from_pretrained": refuse, "_from_config": refuse})
    auto_class.register(config_class, refusing, exist_ok=True)


# Pipelines


def is_task_registered(task: str, pipeline_class: type) -> bool:
    """Whether `transformers.pipeline(task)` makes a `pipeline_class`."""
    return PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl") is pipeline_class


def register_task(task: str, pipeline_class: type, *, model_class: type, default_model: str) -> None:
    """Registers a pipeline, so that `transformers.pipeline(task)` makes one.

    Args:
        task: its name.
        pipeline_class: its class.
        model_class: the class that loads its checkpoints. It must be a class of transformers, such as `AutoModel`,
            because transformers looks for its name in its own namespace.
        default_model: folder or repository of the model that is used if none is named.
    """
    PIPELINE_REGISTRY.register_pipeline(
        task,
        pipeline_class=pipeline_class,
        pt_model=model_class,
        default={"model": (default_model, None)},
        type="image",
    )


def infer_task(task: str, model_types: Iterable[str]) -> None:
    """Has `transformers.pipeline(model=...)`, without a task, make the pipeline of `task` for folders of our models.

    transformers asks the Hub for the task of a repository, and knows none of a folder.

    Args:
        task: as registered.
        model_types: as in their config.json.
    """
    ask_hub = transformers.pipelines.get_task

    @functools.wraps(ask_hub)
    def get_task(model: str, *args: Any, **kwargs: Any) -> str:
        if Path(model).is_dir():
            config, _ = PreTrainedConfig.get_config_dict(model)
            if config.get("model_type") in model_types:
                return task
        return ask_hub(model, *args, **kwargs)

    transformers.pipelines.get_task = get_task


def refuse_other_tasks(model_types: Iterable[str], error: Exception) -> None:
    """Has pipelines that check the class of their model raise an error for our models.

    transformers only logs that the model is not supported, and then takes its output for that of another kind.

    Args:
        model_types: as in their configuration.
        error: raised when such a pipeline is made.
    """
    only_log = transformers.Pipeline.check_model_type

    @functools.wraps(only_log)
    def check_model_type(self: transformers.Pipeline, supported_models: Any) -> None:
        if self.model.config.model_type in model_types:
            raise error
        only_log(self, supported_models)

    transformers.Pipeline.check_model_type = check_model_type


# Images

IMAGENET_MEAN, IMAGENET_STD = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def vit_image_processor(height: int, width: int, mean: list[float], std: list[float]) -> Any:
    """A `ViTImageProcessor` (Pillow) that resizes to a height and a width and normalises."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=mean, image_std=std)


def naflex_image_size(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    """Height and width to which the SigLIP 2 image processor resizes an image: whole patches, at most
    `max_num_patches`."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    return get_image_size_for_max_num_patches(height, width, patch_size, max_num_patches)


class NaflexEmbeddings(NamedTuple):
    """The parts of the patch embedding of SigLIP 2.

    Attributes:
        patch_embedding: a linear layer from the values of a patch to D.
        positions: `(side, side, D)`, the table of position embeddings, which is resized to the grid of each image.
    """

    patch_embedding: nn.Module
    positions: torch.Tensor

    def resized_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings of an image with this grid of patches, `(1, rows * columns, D)`, as the tower adds
        them."""
        grid = torch.tensor([[rows, columns]])
        return Siglip2VisionEmbeddings.resize_positional_embeddings(self.positions, grid, max_length=rows * columns)


def naflex_embeddings(module: nn.Module) -> NaflexEmbeddings | None:
    """The parts of a SigLIP 2 patch embedding; None for any other module."""
    if not isinstance(module, Siglip2VisionEmbeddings):
        return None
    side = module.position_embedding_size
    return NaflexEmbeddings(module.patch_embedding, module.position_embedding.weight.detach().view(side, side, -1))


# Layers of the vision and text towers


class AttentionParts(NamedTuple):
    """Queries `(B, H, K, D / H)`, keys and values `(B, H, N, D / H)`, and the factor of the attention scores."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float


class Towers(ABC):
    """Runs the vision and text tower of a vision-language model `vlm` layer by layer; one object per kind of model.

    It holds no tensors; every method gets the model as an argument.

    Attributes:
        num_class_tokens: number of tokens in front of the patches, in every layer of the vision tower.
        num_start_tokens: number of tokens in front of every text.
        pools_last_place: whether a text is pooled at its last position after padding, and not at the last of its own
            tokens. Then every text must be padded to full length.
        has_pooling_head: whether a learned probe attends to the patches after the last layer, instead of a class
            token.
    """

    num_class_tokens = 0
    num_start_tokens = 0
    pools_last_place = False
    has_pooling_head = False

    # Vision

    def embed_images(
        self, vlm: PreTrainedModel, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The input of the first layer: `(B, class tokens + N, D)`."""
        vision = vlm.vision_model
        if vlm.config.model_type == "siglip2":
            return vision.embeddings(pixel_values, spatial_shapes)
        size = vlm.config.vision_config.image_size
        resizes = tuple(pixel_values.shape[-2:]) != (size, size)
        return self.enter(vlm, vision.embeddings(pixel_values, interpolate_pos_encoding=resizes))

    def enter(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """The step between embeddings and first layer."""
        return states

    def layers(self, vlm: PreTrainedModel) -> Iterator[nn.Module]:
        """Yields the layers of the vision tower; each can be called as `layer(states, attention_mask=bias)`."""
        yield from vlm.vision_model.encoder.layers

    def modules_after_layers(self, vlm: PreTrainedModel) -> tuple[nn.Module, ...]:
        """The modules of the vision tower that work after its last layer."""
        return (vlm.vision_model.post_layernorm,)

    def encode_images(self, vlm: PreTrainedModel, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Runs all layers; `bias` `(B, 1, positions, positions)` is added to the attention scores."""
        return vlm.vision_model.encoder(inputs_embeds=states, attention_mask=bias).last_hidden_state

    def leave(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """Applies the LayerNorm after the last layer."""
        return vlm.vision_model.post_layernorm(states)

    def attend(
        self, layer: nn.Module, tokens: torch.Tensor, patches: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, AttentionParts]:
        """Runs additional tokens through one layer. They attend to the patches only, not to themselves or each other.

        Args:
            layer: of the vision tower.
            tokens: `(B, K, D)`.
            patches: `(B, N, D)`, the layer's input for the patches.
            bias: `(B, 1, K, N)`, added to the attention scores.

        Returns:
            The tokens after the layer, and the parts of their attention.
        """
        attention = layer.self_attn
        shape = (*tokens.shape[:1], -1, attention.num_heads, attention.head_dim)
        normalised = layer.layer_norm1(patches)
        queries = attention.q_proj(layer.layer_norm1(tokens)).view(shape).transpose(1, 2)
        keys = attention.k_proj(normalised).view(shape).transpose(1, 2)
        values = attention.v_proj(normalised).view(shape).transpose(1, 2)
        backend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, _eager_attention)
        result, _ = backend(
            attention,
            queries,
            keys,
            values,
            bias,
            is_causal=False,
            scaling=attention.scale,
            dropout=attention.dropout if attention.training else 0.0,
        )
        tokens = tokens + attention.out_proj(result.reshape(tokens.shape))
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        return tokens, AttentionParts(queries, keys, values, attention.scale)

    @abstractmethod
    def start_of_tokens(self, vlm: PreTrainedModel, regions: torch.Tensor) -> torch.Tensor:
        """Suitable initial values of additional tokens of the vision tower: `(K, D)`, or `(D,)` for all of them.

        Args:
            regions: `(K, positions)`, the weight of each position of the position table for each token.
        """

    @abstractmethod
    def project(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """Projects states after the last LayerNorm into the space of the texts, each state by itself."""

    def unused_vision_parameters(self, vlm: PreTrainedModel, has_tokens: bool) -> list[nn.Parameter]:
        """Parameters of the vision tower that no score depends on; `has_tokens`: whether additional tokens are
        pooled."""
        return []

    # Texts

    def embed_words(self, vlm: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings without positions, `(Z, L, width)`."""
        return vlm.text_model.embeddings.token_embedding(input_ids)

    def word_table(self, vlm: PreTrainedModel) -> torch.Tensor:
        """The table of token embeddings, `(vocabulary, width)`."""
        return vlm.text_model.embeddings.token_embedding.weight

    def text_modules(self, vlm: PreTrainedModel) -> tuple[nn.Module, ...]:
        """The modules that `embed_words` and `encode_words` use."""
        return (vlm.text_model,)

    def encode_words(self, vlm: PreTrainedModel, words: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Text embeddings `(Z, E)`: runs token embeddings through the text tower, pools at the position `last` `(Z,)`
        and projects."""
        hidden = self.read_words(vlm, words)
        return self._project_text(vlm, hidden[torch.arange(len(hidden), device=hidden.device), last])

    def read_words(self, vlm: PreTrainedModel, words: torch.Tensor) -> torch.Tensor:
        """Runs token embeddings through the text tower: the states after the last LayerNorm, `(Z, L, width)`."""
        text = vlm.text_model
        hidden = text.embeddings(inputs_embeds=words)
        hidden = text.encoder(inputs_embeds=hidden, **self._text_mask(vlm, hidden)).last_hidden_state
        return text.final_layer_norm(hidden)

    def _text_mask(self, vlm: PreTrainedModel, hidden: torch.Tensor) -> dict[str, Any]:
        return {"attention_mask": None}

    @abstractmethod
    def _project_text(self, vlm: PreTrainedModel, pooled: torch.Tensor) -> torch.Tensor:
        """Projects pooled states into the space in which pictures and texts are compared."""


class ClipTowers(Towers):
    """CLIP: a class token, a LayerNorm before the first layer, a causal text tower, linear projections of both."""

    num_class_tokens = 1
    num_start_tokens = 1

    def text_modules(self, vlm: PreTrainedModel) -> tuple[nn.Module, ...]:
        return (vlm.text_model, vlm.text_projection)

    def enter(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        return vlm.vision_model.pre_layrnorm(states)

    def project(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        return vlm.visual_projection(states)

    def start_of_tokens(self, vlm: PreTrainedModel, regions: torch.Tensor) -> torch.Tensor:
        embeddings = vlm.vision_model.embeddings
        return embeddings.class_embedding + embeddings.position_embedding.weight[0]

    def _text_mask(self, vlm: PreTrainedModel, hidden: torch.Tensor) -> dict[str, Any]:
        # Positional arguments, because transformers 5.24 renamed the last one (the cache of text generation).
        mask = create_causal_mask(vlm.text_model.config, hidden, None, None)
        return {"attention_mask": mask, "is_causal": True}

    def _project_text(self, vlm: PreTrainedModel, pooled: torch.Tensor) -> torch.Tensor:
        return vlm.text_projection(pooled)


class SiglipTowers(Towers):
    """SigLIP and SigLIP 2: no class token, a pooling head over the patches, a bidirectional text tower."""

    pools_last_place = True
    has_pooling_head = True

    def modules_after_layers(self, vlm: PreTrainedModel) -> tuple[nn.Module, ...]:
        return (*super().modules_after_layers(vlm), vlm.vision_model.head)

    def probe(self, vlm: PreTrainedModel) -> torch.Tensor:
        """The learned query of the pooling head, `(1, 1, D)`."""
        return vlm.vision_model.head.probe

    def pool(
        self, vlm: PreTrainedModel, probes: torch.Tensor, patches: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, AttentionParts]:
        """Runs the pooling head with several probes.

        Args:
            probes: `(B, K, D)`.
            patches: `(B, N, D)`, after the last LayerNorm.
            bias: `(B, 1, K, N)`, added to the attention scores; it says which patches each probe attends to.

        Returns:
            The pooled vectors `(B, K, D)`, and the parts of the attention.
        """
        head = vlm.vision_model.head
        weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
        queries, keys, values = (
            F.linear(states, weight, offset).unflatten(-1, (head.attention.num_heads, -1)).transpose(1, 2)
            for states, weight, offset in zip((probes, patches, patches), weights, biases)
        )
        scaling = queries.shape[-1] ** -0.5
        result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scaling)
        pooled = head.attention.out_proj(result.transpose(1, 2).flatten(2))
        return pooled + head.mlp(head.layernorm(pooled)), AttentionParts(queries, keys, values, scaling)

    def project(self, vlm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        # The output of the pooling head if this patch were the only one: then attention returns the patch's value.
        head = vlm.vision_model.head
        weight, bias = head.attention.in_proj_weight.chunk(3)[2], head.attention.in_proj_bias.chunk(3)[2]
        pooled = head.attention.out_proj(F.linear(states, weight, bias))
        return pooled + head.mlp(head.layernorm(pooled))

    def start_of_tokens(self, vlm: PreTrainedModel, regions: torch.Tensor) -> torch.Tensor:
        embeddings = vlm.vision_model.embeddings
        positions = _at_least_float32(embeddings.position_embedding.weight)
        regions = regions.to(positions.dtype)
        # An all-zero patch, at the mean position of the patches that the token attends to.
        content = _at_least_float32(embeddings.patch_embedding.bias)
        return content + regions @ positions / regions.sum(-1, keepdim=True)

    def unused_vision_parameters(self, vlm: PreTrainedModel, has_tokens: bool) -> list[nn.Parameter]:
        return [] if has_tokens else [vlm.vision_model.head.probe]

    def _project_text(self, vlm: PreTrainedModel, pooled: torch.Tensor) -> torch.Tensor:
        return vlm.text_model.head(pooled)


TOWERS: dict[str, Towers] = {"clip": ClipTowers(), "siglip": SiglipTowers(), "siglip2": SiglipTowers()}


# Vision towers without texts: ViT, DINOv2 and Swin

_NO_POOLER = {"add_pooling_layer": False}  # its class token is read directly, so the layer would get no gradients


def build_branch(config: PreTrainedConfig) -> PreTrainedModel:
    """A `ViTModel`, `Dinov2Model` or `SwinModel` with random weights."""
    return AutoModel.from_config(config, **(_NO_POOLER if config.model_type == "vit" else {}))


def load_branch(name: str, config: PreTrainedConfig, **kwargs: Any) -> tuple[PreTrainedModel, set[str]]:
    """Such a model of a repository or folder, and the names of its tensors that the checkpoint does not hold.

    Args:
        name: repository or folder; its checkpoint may have a head, which is left out.
        config: its configuration.
        kwargs: of `from_pretrained`.
    """
    kwargs |= _NO_POOLER if config.model_type == "vit" else {}
    model, info = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    return model, set(info["missing_keys"])


def run_vit(vit: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Class token and patches of a ViT or DINOv2 after the last LayerNorm, `(B, 1 + N, D)`. A square table of
    positions is resized to the picture where the sizes differ."""
    # DINOv2 resizes its table whenever it must and has no argument for it.
    resizes = {} if vit.config.model_type == "dinov2" else {"interpolate_pos_encoding": _resizes(vit, pixel_values)}
    return vit(pixel_values, **resizes).last_hidden_state


def run_swin(
    swin: PreTrainedModel, pixel_values: torch.Tensor, before_stages: Sequence[Callable[[torch.Tensor], torch.Tensor]]
) -> torch.Tensor:
    """Tokens of a Swin after the last LayerNorm, `(B, N, D)`.

    Args:
        swin: the model.
        pixel_values: `(B, 3, height, width)`.
        before_stages: for each stage what its input `(B, N, C)` passes first.
    """
    pixels = pixel_values.to(swin.embeddings.patch_embeddings.projection.weight.dtype)
    states, grid = swin.embeddings(pixels, interpolate_pos_encoding=_resizes(swin, pixels))
    for stage, before in zip(swin.encoder.layers, before_stages):
        # Without `always_partition` a window that is larger than the grid is made smaller, and its table of position
        # biases is not: a fresh model then fails at 256x128.
        states = stage(before(states), grid, always_partition=True)[0]
        grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)  # every stage but the last ends by merging 2 x 2 tokens
    return swin.layernorm(states)


def _resizes(tower: PreTrainedModel, pixel_values: torch.Tensor) -> bool:
    size = tower.config.image_size
    own = (size, size) if isinstance(size, int) else tuple(size)
    return tuple(pixel_values.shape[-2:]) != own


def last_stages(branch: PreTrainedModel) -> list[nn.Module]:
    """The modules at the end of such a model: the last stage of a Swin, the last quarter of the layers of a ViT or
    DINOv2 (at least one), and the last LayerNorm."""
    if branch.config.model_type == "swin":
        return [branch.encoder.layers[-1], branch.layernorm]
    layers = branch.encoder.layer if branch.config.model_type == "dinov2" else branch.layers
    return [*layers[-max(1, len(layers) // 4) :], branch.layernorm]


def unused_parameters(branch: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters on which the result of `run_vit` and `run_swin` does not depend: the token of masked patches."""
    token = branch.embeddings.mask_token
    return [] if token is None else [token]


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention without a fused kernel, with the signature of transformers' attention backends."""
    weights = (query @ key.mT * scaling + attention_mask).float().softmax(-1).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
