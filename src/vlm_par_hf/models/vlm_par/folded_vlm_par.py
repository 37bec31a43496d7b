"""VLM-PAR for answers only: the vision tower and what parameters and text fold into (`VlmParModel.fold`).

There is no text tower, and of the heads only the constants of `heads_vlm_par`. The answers are those of the model that
it was folded from: both compute them with the same code.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from vlm_par_hf.backbones import HUB_KEYS, check_keys, collect_load_report
from vlm_par_hf.hub import PushToHub, take_hub_options
from vlm_par_hf.remote_code import write_remote_code

from .configuration_vlm_par import FoldedVlmParConfig
from .heads_vlm_par import FoldedHeads
from .modeling_vlm_par import VlmParForward, VlmParModel


__all__ = ["FoldedVlmParModel", "fold_vlm_par"]

# Small, and LayerNorm and logits need them: float32 in a half-precision checkpoint too.
FLOAT32_CONSTANTS = ("direction", "gram", "label_bias", "prompts")


class FoldedVlmParModel(PushToHub, VlmParForward, PreTrainedModel):
    """What `VlmParModel.fold` returns; answers as that model does and cannot be trained.

    `labels` give the loss that an evaluation measures. Without alignment the vision tower has no pooling head, so
    `image_embeds` is None.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    config_class = FoldedVlmParConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {f"attribute_heads.{name}" for name in FLOAT32_CONSTANTS}

    def __init__(self, config: FoldedVlmParConfig) -> None:
        super().__init__(config)
        self.schema = config.schema
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
        self._loss: tuple | None = None
        self.post_init()
        self.eval()

    @property
    def _vision_tower(self) -> PreTrainedModel:
        return self.vision_model

    def _constants(self) -> dict[str, torch.Tensor]:
        return self.attribute_heads.constants()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FoldedHeads):
            module.init_label_mask()
            for name in module.names:
                init.zeros_(getattr(module, name))

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

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`."""
        hub_options = take_hub_options(save_directory, kwargs)
        self.config.auto_map = write_remote_code(
            save_directory,
            self.config.model_type,
            AutoConfig="FoldedVlmParConfig",
            AutoModel="FoldedVlmParModel",
            AutoProcessor="VlmParProcessor",
        )
        super().save_pretrained(save_directory, **kwargs)
        if hub_options is not None:
            self.push_to_hub(**hub_options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *model_args: Any, **kwargs: Any
    ) -> "FoldedVlmParModel":
        """As `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: the folder holds another kind of model, a tensor is missing, unknown or of another size.
            OSError: the checkpoint does not exist, or a file is missing.
        """
        name = pretrained_model_name_or_path
        if kwargs.get("config") is None:
            saved, _ = PreTrainedConfig.get_config_dict(
                name, **{key: kwargs[key] for key in HUB_KEYS if key in kwargs}
            )
            if saved.get("model_type") != cls.config_class.model_type:
                raise ValueError(
                    f"{name} holds a {saved.get('model_type')!r} model, expected {cls.config_class.model_type!r}: "
                    "VlmParModel.fold() makes one"
                )
        with_info = kwargs.pop("output_loading_info", False)
        with collect_load_report(name) as report:
            try:
                model, info = super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)
            except RuntimeError as error:
                if not report:
                    raise  # not about the weights
                raise ValueError(f"{name}: the weights do not fit the configuration: {error} {report}") from error
        check_keys(name, info["missing_keys"], info["unexpected_keys"])
        return (model, info) if with_info else model


@torch.no_grad()
def fold_vlm_par(model: VlmParModel) -> FoldedVlmParModel:
    """See `VlmParModel.fold`."""
    constants = model._constants()  # raises where the questions were never tokenized
    config, tower = model.config, model._vision_tower
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
            attn_implementation=tower.config._attn_implementation,
        )
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    return folded.to(model.device)
