"""The base class of every model: what a family must provide, what it may provide, and what all families share."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.hub.pushing import PushToHub
from vlm_par_hf.hub.remote_code import write_remote_code
from vlm_par_hf.upstream import TransformersModel, collect_load_report

from .kept import Kept
from .losses import ParLoss


__all__ = ["HUB_KEYS", "ParPreTrainedModel", "check_keys", "loading_weights"]

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ParPreTrainedModel(PushToHub, TransformersModel):
    """Base of every model of this package.

    A family must provide
        - `config_class`, whose `schema` is the label space, and `processor_class` (None: its checkpoints carry the
          processor of another family);
        - `forward(pixel_values, ..., labels=None, **kwargs) -> ParOutput`, logits float32 `(B, A, C)` whatever the
          dtype of the model.

    A family may provide more, and announces it by a class attribute. Pipeline, trainer and commands read only these
    attributes to find out what a model can do:

    | attribute | what the model then has |
    |---|---|
    | `supports_training` | parameters to train: `parameter_groups`, `forward(labels=)` with gradients |
    | `supports_features` | `get_image_features(**inputs)` -> patch_embeds, image_embeds, patch_mask; `forward` and
      `explain` take these in place of pixels, and `vision_tower` is the module that computes them |
    | `supports_explain` | `explain(attribute=None, **inputs)` -> float32 `(B, A, N)`, the relevance of each patch |
    | `supports_attributes` | attributes named at call time: `encode_attributes(attributes, processor)`, whose result
      `forward` and `explain` take as `attributes=`; `set_attributes(attributes, processor)` |
    | `supports_fold` | `fold()` -> a model with the same answers that holds only what inference needs |
    | `supports_decisions` | `fit_decisions(logits, labels)`, to be called with the validation split |
    | `supports_pooled_statistics` | `fit_pooled_statistics(batches)`, to be called with training images |
    | `starts_from_priors` | `init_bias_from_priors(priors)`, to be called on a fresh model before training |
    """

    processor_class: ClassVar[type | None] = None

    supports_training: ClassVar[bool] = True
    supports_features: ClassVar[bool] = False
    supports_explain: ClassVar[bool] = False
    supports_attributes: ClassVar[bool] = False
    supports_fold: ClassVar[bool] = False
    supports_decisions: ClassVar[bool] = False
    supports_pooled_statistics: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.schema = config.schema
        self._kept = Kept()
        self._built_loss: tuple | None = None

    @property
    def starts_from_priors(self) -> bool:
        """Whether a fresh model gives all labels the same score, so that it should start from the labels' priors."""
        return False

    # Loss

    def _build_loss(self) -> nn.Module:
        """The loss with the settings of `config.loss`; a family with another loss class overrides it."""
        return ParLoss(self.schema, **self.config.loss)

    @property
    def loss_module(self) -> nn.Module:
        """The loss, in training mode if the model is. Built again only when `config.loss` or the schema changed."""
        settings = (self.config.loss, self.schema)
        # In a tuple, so that torch does not register it as a submodule: it must not enter the checkpoint.
        if self._built_loss is None or self._built_loss[0] != settings:
            self._built_loss = ((dict(self.config.loss), self.schema), self._build_loss())
        return self._built_loss[1].train(self.training)

    # Inputs

    def _check_pixels(
        self, backbone_type: str, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor | None
    ) -> bool:
        """Checks that the inputs have the form that the backbone takes.

        Returns:
            Whether that form is NaFlex.

        Raises:
            ValueError: the wrong number of dimensions, or NaFlex without `spatial_shapes`.
        """
        naflex = backbone_type == "siglip2"
        if pixel_values.ndim != (3 if naflex else 4):
            raise ParValueError(
                f"pixel_values must have shape {'(B, N, values of a patch)' if naflex else '(B, 3, height, width)'} "
                f"for a {backbone_type} backbone, got {tuple(pixel_values.shape)}"
            )
        if naflex and spatial_shapes is None:
            raise ParValueError("spatial_shapes is None, expected int64 (B, 2): this backbone takes NaFlex patches")
        return naflex

    def _run_tower(
        self,
        tower: nn.Module,
        naflex: bool,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None,
        spatial_shapes: torch.Tensor | None,
    ) -> Any:
        """The outputs of the vision tower; computed without gradients if it is frozen."""
        if naflex:
            inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        else:
            size = (tower.config.image_size,) * 2
            inputs = {"interpolate_pos_encoding": tuple(pixel_values.shape[-2:]) != size}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            return tower(pixel_values=pixel_values, **inputs)

    @staticmethod
    def _patch_mask(patches: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Which patches count, bool `(B, N)`: those of `mask`, or all if it is None."""
        if mask is not None:
            return mask.bool()
        return torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)

    @staticmethod
    def _choose_attributes(
        relevance: torch.Tensor, schema: Any, attribute: str | int | Sequence[str | int] | None
    ) -> torch.Tensor:
        """Selects the rows of `relevance` `(B, A, N)` that `explain` was asked for."""
        if attribute is None:
            return relevance
        chosen = [attribute] if isinstance(attribute, (str, int)) else list(attribute)
        return relevance[:, [schema.index(one) if isinstance(one, str) else one for one in chosen]]

    # Values that are cached until a parameter changes

    def _clear_kept(self) -> None:
        self._kept.clear()

    def _apply(self, fn, recurse=True):
        self._clear_kept()  # `.to()` exchanges a parameter's data, which `Kept` does not notice
        return super()._apply(fn, recurse)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self._clear_kept()
        return super().load_state_dict(state_dict, strict, assign)

    # Saving and loading

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> None:
        classes = {"AutoConfig": type(self.config).__name__, "AutoModel": type(self).__name__}
        if self.processor_class is not None:
            classes["AutoProcessor"] = self.processor_class.__name__
        self.config.auto_map = write_remote_code(save_directory, self.config.model_type, **classes)
        super()._save_files(save_directory, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Self:
        """As `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: the folder holds another kind of model, a tensor is missing, unknown or of another size.
            OSError: the checkpoint does not exist, or a file is missing.
        """
        name = pretrained_model_name_or_path
        if config is None:
            cls._check_kind(name, cls._read_saved_config(name, kwargs))
        with_info = kwargs.pop("output_loading_info", False)
        model, info = cls._load_whole(name, *model_args, config=config, **kwargs)
        check_keys(name, info["missing_keys"], info["unexpected_keys"])
        return (model, info) if with_info else model

    @classmethod
    def _check_kind(cls, name: str | Path, saved: dict[str, Any]) -> None:
        """Refuses a saved configuration whose model type is not that of this class.

        Raises:
            ValueError: names both model types.
        """
        found, expected = saved.get("model_type"), cls.config_class.model_type
        if found != expected:
            raise ParValueError(f"{name} holds a {found!r} model, expected {expected!r}{cls._creation_hint()}")

    @classmethod
    def _creation_hint(cls) -> str:
        """End of the message of `_check_kind`: how to make a checkpoint of this class. Starts with punctuation."""
        return ""

    @classmethod
    def _read_saved_config(cls, name: str | Path, kwargs: dict[str, Any]) -> dict[str, Any]:
        saved, _ = PreTrainedConfig.get_config_dict(name, **{key: kwargs[key] for key in HUB_KEYS if key in kwargs})
        if not saved:
            raise ParFileNotFoundError(f"{name} has no config.json, expected a checkpoint of {cls.__name__}")
        return saved

    @classmethod
    def _load_whole(cls, name: str | Path | None, *model_args: Any, **kwargs: Any) -> tuple[Self, dict[str, Any]]:
        """Loads a full checkpoint; returns the model and transformers' loading info.

        Raises:
            ValueError: the weights do not fit the configuration, or a file of weights is damaged.
        """
        with loading_weights(name) as report:
            try:
                return cls._from_pretrained(name, *model_args, **kwargs)
            except RuntimeError as error:
                if not report:
                    raise  # no load report, so the error is not about the weights
                raise ParValueError(f"{name}: the weights do not fit the configuration: {error} {report}") from error

    @classmethod
    def _from_pretrained(cls, name: str | Path | None, *model_args: Any, **kwargs: Any) -> tuple[Self, dict[str, Any]]:
        """transformers' own `from_pretrained`, which does not call our override; returns model and loading info."""
        return super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)


@contextmanager
def loading_weights(source: str | Path | None) -> Iterator[list[str]]:
    """Collects transformers' load report instead of printing it, and explains an error about a damaged file.

    Yields:
        The texts of the report; empty as long as there is none.

    Raises:
        ValueError: a file of weights in `source` is damaged.
    """
    with collect_load_report() as report:
        try:
            yield report
        except SafetensorError as error:
            raise ParValueError(
                f"{source}: a file of weights is damaged ({error}); downloaded or copied in part?"
            ) from error


def check_keys(name: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuses the checkpoint `name` if tensors are missing or unknown.

    Raises:
        ValueError: the message names the first three.
    """
    for problem, keys in (("lacks", sorted(missing)), ("has unknown", sorted(unexpected))):
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise ParValueError(
                f"{name}: model.safetensors {problem} {len(keys)} tensors for its config.json: {shown}"
            )
