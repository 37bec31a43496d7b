"""VLM-PAR for answers only: the vision tower and what parameters and text fold into (`VlmParModel.fold`).

There is no text tower, and of the heads only the constants of `heads_vlm_par`. The answers are those of the model that
it was folded from: both compute them with the same code.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import logging

from vlm_par_hf.base.modeling import ParPreTrainedModel
from vlm_par_hf.upstream import attention_implementation

from .answering_vlm_par import VlmParForward
from .configuration_vlm_par import FoldedVlmParConfig
from .heads_vlm_par import FoldedHeads
from .processing_vlm_par import VlmParProcessor


if TYPE_CHECKING:
    from .modeling_vlm_par import VlmParModel

__all__ = ["FoldedVlmParModel", "fold_vlm_par"]

# Small, and LayerNorm and logits need them: float32 in a half-precision checkpoint too.
FLOAT32_CONSTANTS = ("direction", "gram", "label_bias", "prompts")


class FoldedVlmParModel(VlmParForward, ParPreTrainedModel):
    """What `VlmParModel.fold` returns; answers as that model does and cannot be trained.

    `labels` give the loss that an evaluation measures. Without alignment the vision tower has no pooling head, so
    `image_embeds` is None.

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
            num_heads=config.num_fusion_heads,
            eps=config.layer_norm_eps,
        )
        self.post_init()
        self.eval()

    def fold(self) -> "FoldedVlmParModel":
        """A copy: there is nothing left to fold."""
        return copy.deepcopy(self)

    @property
    def vision_tower(self) -> nn.Module:
        return self.vision_model

    def _constants(self) -> dict[str, torch.Tensor]:
        return self.attribute_heads.constants()

    def train(self, mode: bool = True) -> "FoldedVlmParModel":
        """Leaves it as it is: in eval mode and without gradients.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError(
                "a folded model is for answers only and cannot be trained: train the VlmParModel and fold it again"
            )
        # Loading makes new parameters that want gradients; `from_pretrained` ends with `eval()`, which is this.
        self.requires_grad_(False)
        return super().train(False)

    @classmethod
    def _how_to_make_one(cls) -> str:
        return ": VlmParModel.fold() makes one"


@torch.no_grad()
def fold_vlm_par(model: "VlmParModel") -> FoldedVlmParModel:
    """See `VlmParModel.fold`."""
    constants = model._constants()  # raises where the questions were never tokenized
    config, tower = model.config, model.vision_tower
    vision_config = copy.deepcopy(tower.config)
    vision_config.vision_use_head = config.alignment == "logit"  # nothing else reads the pooled output
    folded_config = FoldedVlmParConfig(
        vision_config=vision_config,
        attributes=config.attributes,
        alignment=config.alignment,
        fusion=config.fusion,
        num_fusion_heads=config.num_fusion_heads,
        layer_norm_eps=config.layer_norm_eps,
        question_lengths=list(model.attribute_heads.question_lengths) if config.fusion == "image_to_text" else None,
        backbone_name=config.backbone_name,
        backbone_revision=config.backbone_revision,
        loss=config.loss,
    )
    state = {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    if config.alignment != "logit":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("vision_model.head.")}
    state.update({f"attribute_heads.{name}": tensor for name, tensor in constants.items()})
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # nothing is read from a disk here
    try:
        folded = FoldedVlmParModel.from_pretrained(
            None,
            config=folded_config,
            state_dict={name: tensor.detach().clone() for name, tensor in state.items()},
            dtype=model.dtype,
            attn_implementation=attention_implementation(tower),
        )
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    return folded.to(model.device)
