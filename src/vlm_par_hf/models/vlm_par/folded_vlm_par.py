"""VLM-PAR for inference only: the vision tower, and the heads with the text multiplied in (`VlmParModel.fold`).

There is no text tower, and the heads are reduced to the constants of `heads_vlm_par`. The answers equal those of the
model that was folded, because both compute them with the same code.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel

from vlm_par_hf.base.adapters import has_adapters, merge_adapters
from vlm_par_hf.base.modeling import ParPreTrainedModel
from vlm_par_hf.errors import ParRuntimeError, ParValueError
from vlm_par_hf.upstream import attention_implementation, hide_progress_bar

from .answering_vlm_par import VlmParForward
from .configuration_vlm_par import FoldedVlmParConfig
from .heads_vlm_par import FoldedHeads
from .processing_vlm_par import VlmParProcessor


if TYPE_CHECKING:
    from .modeling_vlm_par import VlmParModel

__all__ = ["FoldedVlmParModel", "fold_vlm_par"]

# Kept in float32 in a half-precision checkpoint too: they are small, and LayerNorm and logits need the precision.
FLOAT32_CONSTANTS = ("direction", "gram", "image_direction", "label_bias", "prompts")


class FoldedVlmParModel(VlmParForward, ParPreTrainedModel):
    """The result of `VlmParModel.fold`: gives the answers of that model and cannot be trained.

    `labels` may be given to measure the loss. If no logit depends on the tower's pooled output (`alignment="none"` and
    `pooled_classifier=False`), the vision tower has no pooling head, and `image_embeds` is None.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    config_class = FoldedVlmParConfig
    processor_class = VlmParProcessor
    base_model_prefix = "vision_model"
    supports_training = False
    supports_fold = True
    _keep_in_fp32_modules_strict = {f"attribute_heads.{name}" for name in FLOAT32_CONSTANTS}

    def __init__(self, config: FoldedVlmParConfig) -> None:
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config)
        self.attribute_heads = FoldedHeads(
            self.schema.num_labels,
            config.vision_config.hidden_size,
            config.question_lengths or (),
            fusion=config.fusion,
            alignment=config.alignment,
            pooled_classifier=config.pooled_classifier,
            num_heads=config.num_fusion_heads,
            eps=config.layer_norm_eps,
        )
        self.post_init()
        self._freeze()
        self.eval()

    def fold(self) -> "FoldedVlmParModel":
        """A copy, because the model is folded already."""
        return copy.deepcopy(self)

    @property
    def why_no_texts(self) -> str:
        return "a folded model has no text tower, so it cannot read others in words: ask the model that was folded"

    @property
    def vision_tower(self) -> nn.Module:
        return self.vision_model

    def get_text_features(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: there is no text tower.

        Raises:
            RuntimeError: always.
        """
        raise ParRuntimeError(
            "a folded model has no text tower: load the model that was folded, or the backbone "
            f"{self.config.backbone_name!r} (config.backbone_name), for get_text_features"
        )

    def _constants(self) -> dict[str, torch.Tensor]:
        return self.attribute_heads.constants()

    def train(self, mode: bool = True) -> "FoldedVlmParModel":
        """Accepts only `mode=False`.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise ParRuntimeError(
                "a folded model is for answers only and cannot be trained: train the VlmParModel and fold it again"
            )
        return super().train(False)

    def _freeze(self) -> None:
        self.requires_grad_(False)

    @classmethod
    def _creation_hint(cls) -> str:
        return ": VlmParModel.fold() makes one"


@torch.no_grad()
def fold_vlm_par(model: "VlmParModel") -> FoldedVlmParModel:
    """See `VlmParModel.fold`."""
    if getattr(model, "is_quantized", False):
        raise ParValueError(
            "this model was quantised when it was loaded, and its weights cannot be copied: load it without "
            "quantization_config, fold it, save that, and quantise it when it is loaded"
        )
    constants = model._constants()  # raises a ValueError if the questions were never tokenized
    config, tower = model.config, model.vision_tower
    if has_adapters(tower):
        tower = copy.deepcopy(tower)
        merge_adapters(tower)
    vision_config = copy.deepcopy(tower.config)
    vision_config.vision_use_head = config.reads_pooled_output
    folded_config = FoldedVlmParConfig(
        vision_config=vision_config,
        attributes=config.attributes,
        alignment=config.alignment,
        pooled_classifier=config.pooled_classifier,
        fusion=config.fusion,
        num_fusion_heads=config.num_fusion_heads,
        layer_norm_eps=config.layer_norm_eps,
        question_lengths=list(model.attribute_heads.question_lengths) if config.fusion == "image_to_text" else None,
        backbone_name=config.backbone_name,
        backbone_revision=config.backbone_revision,
        loss=config.loss,
    )
    state = {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    if not config.reads_pooled_output:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("vision_model.head.")}
    state.update({f"attribute_heads.{name}": tensor for name, tensor in constants.items()})
    with hide_progress_bar():  # the tensors are in memory
        folded = FoldedVlmParModel.from_pretrained(
            None,
            config=folded_config,
            state_dict={name: tensor.detach().clone() for name, tensor in state.items()},
            dtype=model.dtype,
            attn_implementation=attention_implementation(tower),
        )
    return folded.to(model.device)
