"""The base class of every model: what a family must provide, what it may provide, and what all families share."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers.quantizers import AutoQuantizationConfig

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError, check_folder, unreadable
from vlm_par_hf.hub.pushing import PushToHub
from vlm_par_hf.hub.remote_code import write_remote_code
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import TransformersModel, collect_load_report, hide_progress_bar, saves_adapter_alone
from vlm_par_hf.utils import is_embedded

from .adapters import read_adapter_base
from .configuration import DERIVED_FIELDS, differing_fields
from .decisions import Calibration
from .kept import Kept
from .losses import ParLoss
from .weights import check_dtypes, find_weights


__all__ = ["HUB_KEYS", "ExchangedAttributes", "ParPreTrainedModel", "check_keys", "evaluation_mode", "loading_weights"]

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class ExchangedAttributes(NamedTuple):
    """What became of a model's attributes when its label space was exchanged: their names.

    Attributes:
        kept: what was trained for them is used on.
        fresh: nothing was trained for them yet.
        left_out: the model was trained for them and does not answer for them any more.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]


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
    | `supports_partial_training` | `add_lora`, `merge_lora`, `train_last_layers` for a frozen vision tower |
    | `supports_features` | `get_image_features(**inputs)` -> `ParImageFeatures`; `forward` and `explain` take its
      `as_inputs()` in place of pixels, and `vision_tower` is the module that computes them |
    | `supports_explain` | `explain(attribute=None, **inputs)` -> float32 `(B, A, N)`, the relevance of each patch |
    | `supports_attributes` | attributes described in words at call time: `encode_attributes(attributes, processor)`,
      whose result has `schema` and `explained` (the names that `explain` has a relevance for), and which `forward`
      and `explain` take as `attributes=` |
    | `supports_fold` | `fold()` -> a model with the same answers that holds only what inference needs |
    | `supports_tracklets` | several frames of a person at once: `forward` takes inputs with an axis of frames,
      `(B, T, ...)`, and `frame_mask`, bool `(B, T)`; its processor takes `videos=` |
    | `supports_pooled_statistics` | `fit_pooled_statistics(batches)`, to be called with training images |
    | `starts_from_priors` | `init_bias_from_priors(priors)`, to be called on a fresh model before training |
    | `starts_from_zero_shot` | `fit_zero_shot(batches)`, to be called after it with training images and labels |
    """

    processor_class: ClassVar[type | None] = None

    # Set when `attributes=` of `from_pretrained`, or a method of the family, exchanged the label space.
    exchanged_attributes: ExchangedAttributes | None = None

    # Left as they are when a model is quantised at load. The towers of SigLIP 2 convert pixels to the dtype of the
    # patch embedding's weights, and the attention of the pooling head reads the weights of this module directly.
    not_quantized: ClassVar[tuple[str, ...]] = ("patch_embedding", "head.attention.out_proj")

    supports_training: ClassVar[bool] = True
    supports_partial_training: ClassVar[bool] = False
    supports_features: ClassVar[bool] = False
    supports_explain: ClassVar[bool] = False
    supports_attributes: ClassVar[bool] = False
    supports_fold: ClassVar[bool] = False
    supports_tracklets: ClassVar[bool] = False
    supports_pooled_statistics: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.schema = config.schema
        self._kept = Kept()
        self._built_loss: tuple | None = None
        self._built_calibration: tuple | None = None

    @property
    def trains_vision_tower(self) -> bool:
        """Whether a parameter of the vision tower requires gradients, so that its features change."""
        return False

    @property
    def starts_from_priors(self) -> bool:
        """Whether a fresh model gives all labels the same score, so that it should start from the labels' priors."""
        return False

    @property
    def starts_from_zero_shot(self) -> bool:
        """Whether a fresh model can start from the backbone's zero-shot answers, calibrated on training images."""
        return False

    @property
    def why_no_texts(self) -> str:
        """Why this model cannot read attributes in words, and which one can: the end of a message."""
        return (
            f"{type(self).__name__} knows only those that it was trained on; expected a model that recognises "
            "attributes by their text, such as FocusParModel"
        )

    @property
    def text_subject(self) -> str:
        """The beginning of the sentences that are made from attributes in words."""
        return self.schema.usual_subject()

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

    def _guard_padding(self, logits: torch.Tensor) -> None:
        """Refuses a loss outside the model that was computed over the entries past an attribute's own labels.

        They hold -1e4, so cross-entropy gives them no gradient, but a label smoother counts them as labels: its loss
        is wrong by hundreds. Only the gradient shows it.
        """
        if not logits.requires_grad or torch.compiler.is_compiling() or len(set(self.schema.num_labels)) == 1:
            return
        outside = torch.from_numpy(~self.schema.label_mask()).to(logits.device)

        def check(gradient: torch.Tensor) -> None:
            if bool((gradient[:, outside] != 0).any()):
                raise ParValueError(
                    "a loss outside the model was computed over entries of `logits` past an attribute's own labels, "
                    "which hold -1e4. For label smoothing set "
                    'model.config.loss = {**model.config.loss, "label_smoothing": 0.1} in place of '
                    "TrainingArguments(label_smoothing_factor=...); for a loss of your own take "
                    "output.split_logits(model.config.schema), the logits of one attribute after another"
                )

        logits.register_hook(check)

    # Calibration

    def _own_calibration(self) -> Calibration | None:
        """What `config.decisions` does to logits; None if there are none."""
        given = self.config.decisions
        if given is None:
            return None
        built = self._built_calibration
        if built is None or built[0] is not given or built[1] is not self.schema or built[2] != self.device:
            calibration = Calibration(Decisions.from_dict(given), self.schema, self.device)
            # In a tuple, so that torch does not register its tensors: the configuration holds them.
            self._built_calibration = built = (given, self.schema, self.device, calibration)
        return built[3]

    def _calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits `(B, A, C)` that answers are given by: those of the heads, after `config.decisions`. In training
        mode they stay as they are, because what learns must not learn through a calibration of the past."""
        calibration = None if self.training else self._own_calibration()
        return logits if calibration is None else calibration(logits)

    # Label space

    def _set_label_space(self, schema: AttributeSchema) -> None:
        """Makes `schema` the label space of model and configuration. Weighting and priors of the loss belong to the
        old one and are removed, and so are decisions of attributes that are not the same any more."""
        self.config.keep_decisions_of(self.schema, schema)
        self.schema = schema
        self.config.set_schema(schema)
        dropped = ("weighting", "priors")
        self.config.loss = {name: value for name, value in self.config.loss.items() if name not in dropped}

    def _exchange_attributes(self, schema: AttributeSchema, processor: Any) -> None:
        """Called by `from_pretrained` when `attributes=` names another label space than the saved one.

        Here only what is done with the answers may differ, such as thresholds; a family that can go on with other
        attributes overrides this.

        Raises:
            ValueError: the attributes, or what is asked about them, differ.
        """
        asked = ("name", "labels", "question", "prompts")
        if [[getattr(one, name) for name in asked] for one in schema] != [
            [getattr(one, name) for name in asked] for one in self.schema
        ]:
            raise ParValueError(
                f"attributes= names another label space than the checkpoint's ({self.schema.diff(schema)[0]}), and a "
                f"{type(self).__name__} answers for that one only: load it without attributes="
            )
        self.schema = schema
        self.config.set_schema(schema)

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
        **kwargs: Any,
    ) -> Any:
        """The outputs of the vision tower, to which `kwargs` go. Gradients flow through it if a parameter of it, or
        the input, requires them."""
        if naflex:
            inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        else:
            size = (tower.config.image_size,) * 2
            inputs = {"interpolate_pos_encoding": tuple(pixel_values.shape[-2:]) != size}
        return tower(pixel_values=pixel_values, **inputs, **{**kwargs, "return_dict": True})

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

    # What trains

    def _freeze(self) -> None:
        """Sets `requires_grad` of the parameters as the configuration says. Called once when a model is built and once
        when it was loaded, which makes new parameters; afterwards `requires_grad` is the user's."""

    # Saving and loading

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> None:
        if saves_adapter_alone(self):  # without a configuration, so nothing that it could name
            super()._save_files(save_directory, **kwargs)
            return
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
            ValueError: the folder holds another kind of model, a tensor is missing, unknown or of another size, or the
                configuration that is given contradicts the saved one.
            OSError: the checkpoint does not exist, or a file is missing.
        """
        name = pretrained_model_name_or_path
        with_info = kwargs.pop("output_loading_info", False)
        if name is None:
            model, info = cls._from_pretrained(None, *model_args, config=config, **kwargs)
            return (model, info) if with_info else model
        config, wanted = cls._settle_config(name, cls._read_saved_config(name, kwargs), config, kwargs)
        model, info = cls._load_whole(name, *model_args, config=config, **kwargs)
        check_keys(name, info["missing_keys"], info["unexpected_keys"])
        if wanted is not None:
            model._exchange_attributes(wanted, None)
        return (model, info) if with_info else model

    @classmethod
    def _take_settings(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Removes the fields of the configuration from `kwargs` and returns them."""
        own = {*cls.config_class.own_fields(), *DERIVED_FIELDS}
        return {key: kwargs.pop(key) for key in list(kwargs) if key in own}

    @classmethod
    def _settle_config(
        cls, name: str | Path, saved: dict[str, Any], config: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, AttributeSchema | None]:
        """The configuration to load a checkpoint of this class with.

        Args:
            name: folder or repository.
            saved: its config.json.
            config: the configuration that was given; None: the saved one.
            kwargs: of `from_pretrained`. Fields of the configuration are taken out of it and override the saved ones.

        Returns:
            The configuration with the saved label space, and the label space that was asked for if it is another one.

        Raises:
            ValueError: another kind of model, or a field that says what the weights mean differs from the saved one.
        """
        cls._check_kind(name, saved)
        with unreadable(name, "config.json"):
            original = cls.config_class.from_dict(copy.deepcopy(saved))
        if config is None:
            config = cls.config_class.from_dict(copy.deepcopy(saved), **cls._take_settings(kwargs))
        differing = differing_fields(config, original)
        wanted = None
        if "attributes" in differing and config.attributes is not None:
            differing.remove("attributes")
            wanted = config.schema
        if differing:
            field = differing[0]
            free = ", ".join(one for one in config.own_fields() if one in config.free_at_load)
            raise ParValueError(
                f"{field}={getattr(config, field)!r:.200} is not what the weights in {name} were trained with "
                f"({getattr(original, field)!r:.200}), so it cannot be changed when they are loaded; what can be: "
                f"attributes, {free}"
            )
        if wanted is not None:
            config = copy.deepcopy(config)
            config.set_schema(original.schema)
        return config, wanted

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
        check_folder(name)
        access = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        with unreadable(name, "config.json"):
            saved, _ = PreTrainedConfig.get_config_dict(name, **access)
        if not saved:
            adapter = read_adapter_base(name, access)
            if adapter is not None:
                raise ParValueError(
                    f"{name} holds an adapter of peft and no model: load the model that it belongs to "
                    f"({adapter or 'it names none'}), then peft.PeftModel.from_pretrained(model, {str(name)!r})"
                )
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
                model, info = cls._from_pretrained(name, *model_args, **kwargs)
            except RuntimeError as error:
                if not report and "ignore_mismatched_sizes" not in str(error):
                    raise  # the error is not about the weights
                raise ParValueError(f"{name}: the weights do not fit the configuration: {error} {report}") from error
        access = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
        if name is not None and not getattr(model, "is_quantized", False):
            for path in find_weights(name, variant=kwargs.get("variant"), **access):
                check_dtypes(path, model.state_dict())
        return model, info

    @classmethod
    def _spare_modules(cls, quantization_config: Any) -> Any:
        """A copy of a quantisation's settings that leaves out the modules of `not_quantized`.

        Raises:
            ValueError: the settings have no list of modules to leave out.
        """
        settings = copy.deepcopy(quantization_config)
        if isinstance(settings, dict):
            settings = AutoQuantizationConfig.from_dict(settings)
        for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
            if hasattr(settings, name):
                setattr(settings, name, [*(getattr(settings, name) or ()), *cls.not_quantized])
                return settings
        raise ParValueError(
            f"quantization_config is {quantization_config!r:.200}, in which no modules can be named that are left out "
            f"(llm_int8_skip_modules or modules_to_not_convert): {', '.join(cls.not_quantized)} must be, or answers "
            "change"
        )

    @classmethod
    def _from_pretrained(cls, name: str | Path | None, *model_args: Any, **kwargs: Any) -> tuple[Self, dict[str, Any]]:
        """transformers' own `from_pretrained`, which does not call our override; returns model and loading info."""
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = cls._spare_modules(kwargs["quantization_config"])
        model, info = super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)
        model._freeze()
        return model, info


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and restores the mode of each of its modules at the end."""
    were_training = [module for module in model.modules() if module.training]
    if were_training:
        model.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


@contextmanager
def loading_weights(source: str | Path | None) -> Iterator[list[str]]:
    """Collects transformers' load report instead of printing it, and explains an error about a damaged file. For what
    ships in the package, which takes no time, there is no progress bar.

    Yields:
        The texts of the report; empty as long as there is none.

    Raises:
        ValueError: a file of weights in `source` is damaged.
    """
    bar = hide_progress_bar() if is_embedded(source) else nullcontext()
    with collect_load_report() as report, bar:
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
