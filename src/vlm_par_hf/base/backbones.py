"""Build, freeze, save and load models over a backbone: full checkpoints and checkpoints of the heads alone."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from vlm_par_hf.errors import ParValueError, check_folder
from vlm_par_hf.upstream import TOWERS, saves_adapter_alone
from vlm_par_hf.utils import EMBEDDED_BACKBONES, backbone_files

from .adapters import (
    adapter_parameters,
    add_lora,
    base_names,
    check_lora,
    group_parameters,
    has_adapters,
    merge_adapters,
)
from .configuration import LARGEST_OWN
from .kept import fingerprint
from .modeling import HUB_KEYS, ParPreTrainedModel, check_keys, evaluation_mode, loading_weights
from .numerics import no_autocast
from .weights import check_dtypes, find_weights, hash_weights


__all__ = ["BackbonePreTrainedModel"]


class BackbonePreTrainedModel(ParPreTrainedModel):
    """Base of the models over a pretrained vision-language backbone.

    In addition to what `ParPreTrainedModel` asks for, a family must provide
        - the attribute `vlm`, a vision-language model with `vision_model` and `text_model`;
        - in its `config_class` the fields `vlm_config`, `backbone_name`, `backbone_revision`, `backbone_hash`,
          `save_backbone`, `freeze_backbone` and `lora`, for whose adapters it calls `_build_adapters` once `vlm` is
          there;
        - `_prepare_texts(processor)`, called after the model was built (with the processor) and after it was loaded
          (with None: the token ids are in the configuration);
        - `_part_of(name, parameter)`, `parameter_rates` and `fusion_width`, from which `parameter_groups` follows.
    """

    base_model_prefix = "vlm"  # so that the checkpoint of a backbone without heads loads into `vlm`
    supports_gradient_checkpointing = True
    supports_partial_training = True

    # Part of the model -> the keyword of `parameter_groups` that is its learning rate.
    parameter_rates: ClassVar[dict[str, str]]

    # Fingerprint of the backbone as it was loaded by its name; None for one that came another way.
    _loaded_backbone: tuple | None = None

    @abstractmethod
    def _prepare_texts(self, processor: Any) -> None:
        """Encodes the texts of the label space; tokenizes them first if a processor is given."""

    def get_text_features(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        """The backbone's features of texts, in the form in which its own `get_text_features` returns them.

        Args:
            input_ids: int64 `(texts, length)`, what `processor(text=...)` makes.
            kwargs: of the text tower, such as `output_hidden_states`.

        Returns:
            transformers' `BaseModelOutputWithPooling`: `last_hidden_state` `(texts, length, width)` and
            `pooler_output` `(texts, E)`, not normalised.
        """
        return self.vlm.get_text_features(input_ids, **kwargs)

    def _encode_text(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """States `(texts, length, width)` and pooled vectors `(texts, projection)` of token ids. Padded to the right
        and without a mask, as the backbone was trained."""
        length = self.config.vlm_config.text_config.max_position_embeddings
        padding = self.config.text_pad_token_id
        padded = torch.tensor([(one + [padding] * length)[:length] for one in ids], device=self.device)
        with no_autocast(padded), evaluation_mode(self.vlm.text_model):
            outputs = [self.vlm.get_text_features(chunk) for chunk in padded.split(64)]
        return torch.cat([one.last_hidden_state for one in outputs]), torch.cat([one.pooler_output for one in outputs])

    # Adapters

    def _build_adapters(self) -> None:
        """Puts the adapters of `config.lora` into the vision tower. B of a new one is 0."""
        lora = self.config.lora
        if lora is not None:
            count = len(list(TOWERS[self.config.vlm_config.model_type].layers(self.vlm)))
            layers = range(count - lora["layers"], count)
            add_lora(self.vlm.vision_model, layers, rank=lora["rank"], alpha=lora["alpha"], targets=lora["targets"])

    def add_lora(
        self,
        rank: int,
        *,
        layers: int | None = None,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        alpha: float | None = None,
    ) -> None:
        """Puts LoRA adapters into the frozen vision tower, to be trained with the heads; no answer changes yet.

        They are saved with the model (`config.lora` says which there are), with `save_backbone=False` too. This is
        what `vlm-par train --lora` does. For other adapters, and for files in the format of peft, use
        `peft.get_peft_model`.

        Args:
            rank: of the adapters.
            layers: how many layers get some, counted from the last one; None: all.
            targets: the linear maps of a layer that get one.
            alpha: the product of the adapter's matrices counts alpha / rank times; None: 2 * rank.

        Raises:
            ImportError: peft is not installed.
            ValueError: there are adapters already, the vision tower trains as a whole, or a value is out of its range.
        """
        if has_adapters(self):
            raise ParValueError("this model has adapters already: merge them first (merge_lora, merge_and_unload)")
        if self.trains_vision_tower:
            raise ParValueError(
                "parameters of the vision tower require gradients (freeze_backbone=False, --train-backbone?): LoRA is "
                "there to leave them as they are; freeze them, or train the tower without LoRA"
            )
        count = self.config.vlm_config.vision_config.num_hidden_layers
        lora = {
            "rank": rank,
            "alpha": 2 * rank if alpha is None else alpha,
            "layers": count if layers is None else layers,
            "targets": list(targets),
        }
        check_lora(lora, count, LARGEST_OWN)
        self.config.lora = lora
        try:
            self._build_adapters()
        except BaseException:
            self.config.lora = None
            raise
        self.train(self.training)

    def merge_lora(self) -> None:
        """Merges the adapters of `add_lora` into the weights of the vision tower: the same answers, no adapters.

        The backbone is then another one than that of its name, so the heads cannot be saved without it any more.
        """
        if self.config.lora is None:
            raise ParValueError("lora is None: this model has no adapters of add_lora")
        merge_adapters(self.vlm)
        self.config.lora = None
        self.train(self.training)

    # What trains

    def train_last_layers(self, count: int) -> None:
        """Lets the last layers of the vision tower learn, and what follows them: the last LayerNorm and the pooling
        head or projection. The rest of the backbone is frozen.

        Args:
            count: of layers.

        Raises:
            ValueError: there are adapters, or not so many layers.
        """
        towers = TOWERS[self.config.vlm_config.model_type]
        layers = list(towers.layers(self.vlm))
        if not 1 <= count <= len(layers):
            raise ParValueError(f"train_layers is {count}, expected from 1 to the {len(layers)} layers of the tower")
        if has_adapters(self):
            raise ParValueError("this model has adapters (LoRA): train them, or merge them and train whole layers")
        self.vlm.requires_grad_(False)
        for module in (*layers[-count:], *towers.modules_after_layers(self.vlm)):
            module.requires_grad_(True)
        self._freeze_unused()
        self.train(self.training)

    def _freeze(self) -> None:
        self.vlm.requires_grad_(False)
        if not self.config.freeze_backbone:
            self.vlm.vision_model.requires_grad_(True)
            self._freeze_unused()
        self.train(self.training)  # because the mode of the towers follows from what trains

    def _freeze_unused(self) -> None:
        """Called if the vision tower is trained: freezes its parameters that no score depends on, and unfreezes what
        else must be trained with it."""

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`, but a tower of which no parameter trains stays in eval mode."""
        super().train(mode)
        if mode:
            for part in (self.vlm, self.vlm.vision_model, self.vlm.text_model):
                if not _trains(part):
                    part.eval()
        return self

    @property
    def trains_vision_tower(self) -> bool:
        """Whether a parameter of the vision tower requires gradients."""
        return _trains(self.vlm.vision_model)

    @property
    def trains_backbone_weights(self) -> bool:
        """Whether a weight of the backbone itself, and not of an adapter in it, requires gradients."""
        adapters = set(adapter_parameters(self.vlm))
        return any(one.requires_grad for one in self.vlm.parameters() if one not in adapters)

    # Optimisation

    @property
    @abstractmethod
    def fusion_width(self) -> int:
        """Number of terms in an inner product of the fusion; the default of `fusion_learning_rate` depends on it."""

    @abstractmethod
    def _part_of(self, name: str, parameter: nn.Parameter) -> tuple[str, bool]:
        """The part of the model that a parameter belongs to (a key of `parameter_rates`), and whether weight decay
        applies to it."""

    def parameter_groups(
        self,
        learning_rate: float,
        fusion_learning_rate: float | None = None,
        *,
        backbone_learning_rate: float = 1e-5,
        adapter_learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
    ) -> list[dict[str, Any]]:
        """Every trainable parameter exactly once, grouped for an optimizer such as AdamW.

        Args:
            learning_rate: of small new parts: classifiers, gates and prompts (VLM-PAR), mix tokens and prompts
                (FOCUS).
            fusion_learning_rate: of the cross-attention; None takes 0.128 / width. Adam moves every entry of a
                projection by about this much at each step, so an inner product over D entries moves by about D times
                as much. A wide backbone therefore needs a smaller rate: 1e-3 for the embedded backbone (width 128),
                1.7e-4 for width 768.
            backbone_learning_rate: of the vision tower, if it is trained.
            adapter_learning_rate: of adapters in it, such as LoRA.
            weight_decay: of matrices; biases, gates, tokens, prompts and LayerNorm have none.
        """
        if fusion_learning_rate is None:
            fusion_learning_rate = 0.128 / self.fusion_width
        rates = {
            "learning_rate": learning_rate,
            "fusion_learning_rate": fusion_learning_rate,
            "backbone_learning_rate": backbone_learning_rate,
            "adapter_learning_rate": adapter_learning_rate,
        }
        keywords = {**self.parameter_rates, "adapter": "adapter_learning_rate"}
        return group_parameters(
            self, self._part_of, {part: rates[keyword] for part, keyword in keywords.items()}, weight_decay
        )

    # Saving

    @property
    def _keys_to_ignore_on_save(self) -> set[str] | None:
        # transformers reads this when it saves, and when Trainer loads its own checkpoint again.
        return None if self.config.save_backbone else {f"vlm.{name}" for name in base_names(self.vlm)}

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, value: Any) -> None:
        pass  # `post_init` assigns the class's value, but the value here depends on the configuration

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves the model; with `config.save_backbone=False` without the backbone's weights.

        Raises:
            ValueError: heads alone, but the backbone has no name to load it from, or was trained; or the model was
                quantised when it was loaded.
        """
        config = self.config
        if getattr(self, "is_quantized", False):
            raise ParValueError(
                "this model was quantised when it was loaded, and what would be saved could not be loaded again: save "
                "it as it was before, and quantise it at each load; a folded model can be saved quantised"
            )
        if self.config.lora is None and not saves_adapter_alone(self) and has_adapters(self):
            raise ParValueError(
                "this model holds adapters of peft, which save_pretrained of the PeftModel saves (peft_model."
                "save_pretrained); for a checkpoint with the adapters in its weights merge them first, "
                "peft_model.merge_and_unload().save_pretrained(...)"
            )
        # Encode the texts now if no forward pass has done so: their states are buffers of the checkpoint.
        self._prepare_texts(None)
        if not config.save_backbone:
            if config.backbone_name is None:
                raise ParValueError(
                    "save_backbone is False, but backbone_name is None: a checkpoint of the heads alone could never "
                    f"be loaded; build the model with {type(self).__name__}.from_backbone(name, ...) or set "
                    "save_backbone=True"
                )
            if self.trains_backbone_weights:
                raise ParValueError(
                    "save_backbone is False, but parameters of the backbone require gradients: the trained vision "
                    "tower would be lost; set save_backbone=True"
                )
            self._check_backbone_unchanged()
            if config.backbone_hash is None:
                config.backbone_hash = hash_weights(
                    backbone_files(config.backbone_name), config.backbone_revision, token=kwargs.get("token")
                )
        super()._save_files(save_directory, **kwargs)

    def _check_backbone_unchanged(self) -> None:
        """Refuses to save heads alone if the backbone is not the one that would be loaded with them: because it was
        trained and frozen again, adapters were merged into it, or a checkpoint was loaded into it.

        Raises:
            ValueError: names a tensor that differs.
        """
        tensors = self.vlm.state_dict()
        state = {plain: tensors[name] for name, plain in base_names(self.vlm).items()}
        if self._loaded_backbone is not None and fingerprint(state.values()) == self._loaded_backbone:
            return
        config = self.config
        source = backbone_files(config.backbone_name)
        with loading_weights(source):
            original = AutoModel.from_pretrained(source, revision=config.backbone_revision or "main").state_dict()
        for name, tensor in state.items():
            found = original.get(name)
            # A backbone in half precision, or one that was in half precision for a time, is the same backbone.
            rounded = () if found is None else (found.to(kind) for kind in (tensor.dtype, torch.half, torch.bfloat16))
            if not any(torch.equal(tensor.cpu(), one.to(tensor.dtype)) for one in rounded):
                raise ParValueError(
                    f"save_backbone is False, but the backbone is not that of {config.backbone_name!r} any more "
                    f"(tensor {name!r} {'is not there' if found is None else 'differs'}): the change would be lost; "
                    "set save_backbone=True"
                )

    def check_pushable(self) -> None:
        """Refuses to publish heads whose backbone exists on this machine only.

        Raises:
            ValueError: `save_backbone` is False and `backbone_name` is a local folder.
        """
        config = self.config
        name = config.backbone_name
        if not config.save_backbone and name not in (None, *EMBEDDED_BACKBONES) and Path(name).is_dir():
            raise ParValueError(
                f"save_backbone is False and backbone_name is {name!r}, a folder of this machine: nobody else could "
                "load the heads; set config.save_backbone=True, or push the backbone and build the model with "
                f"{type(self).__name__}.from_backbone(repository, ...)"
            )

    @classmethod
    def from_backbone(
        cls,
        name: str | Path,
        *,
        attributes: Any,
        tokenizer: Any = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """A fresh model over a pretrained backbone, with its texts tokenized and encoded.

        Args:
            name: a repository or folder with a backbone of a supported model type, `"embedded"`, or
                `"embedded-drawings"`, its first edition.
            attributes: `AttributeSchema` or list of dicts.
            tokenizer: the backbone's tokenizer, or the model's processor; None loads the one of the checkpoint.
            revision: of the repository.
            kwargs: fields of the configuration; all others go to `from_pretrained` (`dtype`, `token`, ...).

        Raises:
            ValueError: the checkpoint is of another kind, or does not hold all weights of its configuration.
            OSError: it does not exist, or a file is missing.
        """
        settings = cls._take_settings(kwargs)
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        if revision is not None:
            hub["revision"] = kwargs["revision"] = revision
        name = str(name)
        if name not in EMBEDDED_BACKBONES and Path(name).is_dir():
            name = str(Path(name).resolve())
        check_folder(name, "the backbone")
        vlm_config = AutoConfig.from_pretrained(backbone_files(name), **hub)
        # Keep local paths out of saved checkpoints; `backbone_name` says which backbone it is.
        vlm_config.name_or_path = ""
        config = cls.config_class(
            vlm_config=vlm_config,
            attributes=attributes,
            **{"backbone_name": name, "backbone_revision": revision, **settings},
        )
        if vlm_config.dtype is not None and not {"dtype", "torch_dtype"} & kwargs.keys():
            # What the backbone's configuration says, as transformers loads the backbone alone; the new configuration
            # says nothing, and then the dtype in the files would count.
            kwargs["dtype"] = vlm_config.dtype
        model, missing = cls._load_backbone(backbone_files(name), config, **kwargs)
        if not isinstance(tokenizer, cls.processor_class):
            tokenizer = cls.processor_class.from_backbone(name, tokenizer=tokenizer, **hub)
        model._prepare_texts(tokenizer)
        return model

    @classmethod
    def _load_backbone(cls, source: str, config: PreTrainedConfig, **kwargs: Any) -> tuple[Self, set[str]]:
        """Loads the backbone of `source` into a new model.

        Returns:
            The model, and the names of its tensors that the backbone's checkpoint does not hold.

        Raises:
            ValueError: the checkpoint does not hold all tensors of its backbone, or a file of weights is damaged.
        """
        lora, config.lora = config.lora, None  # the backbone was saved without adapters
        with loading_weights(source) as report:
            try:
                model, info = cls._from_pretrained(source, config=config, **kwargs)
            except RuntimeError as error:
                raise ParValueError(f"{source} does not fit its own configuration: {error} {report}") from error
        model._loaded_backbone = fingerprint(model.vlm.state_dict().values())
        # Not the folder of the backbone: adapters that peft saves would name it as what they belong to, and would be
        # loaded into a backbone without heads.
        model.config._name_or_path = model.name_or_path = ""
        model.config.lora = lora
        model._build_adapters()
        missing = set(info["missing_keys"])
        absent = sorted(key for key in missing if key.startswith("vlm."))
        if absent:
            raise ParValueError(f"{source} lacks {len(absent)} tensors of the backbone, the first is {absent[0]!r}")
        return model, missing

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Self:
        """As `PreTrainedModel.from_pretrained`, for full checkpoints and for checkpoints of the heads alone.

        For the heads alone, the backbone is loaded by its name, and its weights must equal those that the heads were
        trained on. Fields of the configuration that are given as keywords override the saved ones, where these do not
        say what the weights mean. `attributes=` exchanges the label space: what was trained is kept for attributes of
        equal name and labels, the others start fresh, and a warning says which.

        Raises:
            ValueError: the folder holds another kind of model, a tensor is missing, unknown or of another size, a
                field cannot be overridden, or the backbone is not the one that the heads were trained on.
            OSError: the checkpoint does not exist, or a file is missing.
        """
        name = pretrained_model_name_or_path
        with_info = kwargs.pop("output_loading_info", False)
        if name is None:
            model, info = cls._from_pretrained(None, *model_args, config=config, **kwargs)
            return (model, info) if with_info else model
        saved = cls._read_saved_config(name, kwargs)
        is_own = saved.get("model_type") == cls.config_class.model_type
        wanted = None
        if not is_own and config is not None and config.lora is not None:
            raise ParValueError(
                f"{name} holds a {saved.get('model_type')!r} model without adapters, and lora of the configuration is "
                f"{config.lora!r}: load it without, then call add_lora"
            )
        if is_own or config is None:
            config, wanted = cls._settle_config(name, saved, config, kwargs)
        if is_own and not saved.get("save_backbone", True):
            model, info = cls._load_heads(name, config, **kwargs)
        else:
            model, info = cls._load_whole(name, *model_args, config=config, **kwargs)
            if is_own:  # the checkpoint of a backbone has no heads, so missing tensors are no error there
                check_keys(name, info["missing_keys"], info["unexpected_keys"])
        model._prepare_texts(None)
        if wanted is not None:
            hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
            model._exchange_attributes(wanted, cls.processor_class.from_pretrained(name, **hub))
        return (model, info) if with_info else model

    def _accept_old_tensors(self, heads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint of the heads alone without those that only an earlier version had, which a
        family takes into its configuration."""
        return heads

    @classmethod
    def _creation_hint(cls) -> str:
        return f"; to start from a backbone, call {cls.__name__}.from_backbone(name, attributes=...)"

    @classmethod
    def _load_heads(cls, name: str | Path, config: PreTrainedConfig, **kwargs: Any) -> tuple[Self, dict[str, Any]]:
        """Loads a checkpoint of the heads alone and the backbone that it names.

        Returns:
            The model, and loading info in the form of transformers.

        Raises:
            ValueError: the backbone has other weights than the heads were trained on, or the heads do not fit.
        """
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        source = backbone_files(config.backbone_name)
        access = {
            key: hub[key] for key in hub.keys() - {"revision", "subfolder"}
        }  # these two are of the heads' repository
        if config.backbone_hash is None:
            raise ParValueError(
                f"{name}: config.json has no backbone_hash, so nothing shows that {config.backbone_name!r} is the "
                "backbone that the heads were trained on; save the heads again with save_pretrained"
            )
        found = hash_weights(source, config.backbone_revision, **access)
        if found != config.backbone_hash and config.backbone_name == "embedded":
            # Saved when an earlier edition had this name.
            config.backbone_name = _find_edition(name, config.backbone_hash)
            source = backbone_files(config.backbone_name)
        elif found != config.backbone_hash:
            raise ParValueError(
                f"backbone {config.backbone_name!r} (revision {config.backbone_revision}) has weights {found}, but "
                f"the heads in {name} were trained on {config.backbone_hash} (backbone_hash)"
            )
        heads_only = ("revision", "subfolder", "state_dict", "use_safetensors", "variant")
        options = {key: value for key, value in kwargs.items() if key not in heads_only}
        if "_adapter_model_path" not in (options.get("adapter_kwargs") or {}):
            options.pop("adapter_kwargs", None)  # of the heads' repository; its revision is none of the backbone's
        model, missing = cls._load_backbone(source, config, revision=config.backbone_revision or "main", **options)
        heads: dict[str, torch.Tensor] = {}
        with loading_weights(name):
            for path in find_weights(name, variant=kwargs.get("variant"), **hub):
                heads.update(load_file(path))
                check_dtypes(path, model.state_dict())
        heads = model._accept_old_tensors(heads)
        try:
            result = model.load_state_dict(heads, strict=False)
        except RuntimeError as error:
            raise ParValueError(f"{name}: the heads do not fit the configuration: {error}") from error
        adapters = {f"vlm.{one}" for one in model.vlm.state_dict().keys() - base_names(model.vlm).keys()}
        check_keys(name, (missing | adapters) - heads.keys(), result.unexpected_keys)
        model._freeze()
        model.config._name_or_path = model.name_or_path = str(name)
        model.eval()
        return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _find_edition(heads: str | Path, wanted: str) -> str:
    """The name of the embedded backbone whose weights have a hash.

    Raises:
        ValueError: no edition has it.
    """
    hashes = {edition: hash_weights(backbone_files(edition)) for edition in EMBEDDED_BACKBONES}
    for edition, found in hashes.items():
        if found == wanted:
            return edition
    editions = ", ".join(f"{edition!r} with weights {found}" for edition, found in hashes.items())
    raise ParValueError(
        f"the heads in {heads} were trained on backbone 'embedded' with weights {wanted} (backbone_hash), but this "
        f"version of the package holds {editions}"
    )
