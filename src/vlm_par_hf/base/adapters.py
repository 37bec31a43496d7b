"""Adapters of `peft` (LoRA and its like) inside a model: put them in, find them, merge them.

peft puts a wrapper in the place of each module that it adapts. A layer with an adapter holds the original as
`base_layer`; a module that is trained in full beside the adapters (`modules_to_save`, such as the heads) is kept as
`original_module`, beside a copy for each adapter, and the copy of the active one answers.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import find_adapter_config_file

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import read_json_object, require, shorten


__all__ = [
    "adapted_modules",
    "adapter_parameters",
    "adapter_state",
    "add_lora",
    "base_names",
    "check_lora",
    "group_parameters",
    "has_adapters",
    "merge_adapters",
    "plain_name",
    "read_adapter_base",
]


def adapted_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost wrappers of peft in a module, by name."""
    if "peft" not in sys.modules:  # then nothing of it can be there
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inside = None
    for name, one in module.named_modules():
        if (inside is None or not name.startswith(inside)) and isinstance(
            one, (BaseTunerLayer, AuxiliaryTrainingWrapper)
        ):
            inside = f"{name}." if name else ""
            yield name, one


def has_adapters(module: nn.Module) -> bool:
    """Whether a part of the module is wrapped by peft."""
    return next(adapted_modules(module), None) is not None


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that belong to adapters alone: neither the original weights nor copies of whole modules."""
    return [
        parameter
        for _, one in adapted_modules(module)
        for name, parameter in one.named_parameters()
        if name.partition(".")[0] not in ("base_layer", "original_module", "modules_to_save")
    ]


def adapter_state(*modules: nn.Module) -> list:
    """What answers depend on beside all tensors, as plain JSON: which adapters are active, merged and switched off,
    and how much each counts. Empty without adapters."""
    return [
        [
            name,
            list(one.active_adapters),
            one.disable_adapters,
            list(one.merged_adapters),
            sorted(getattr(one, "scaling", {}).items()),
        ]
        for module in modules
        for name, one in adapted_modules(module)
    ]


def base_names(module: nn.Module) -> dict[str, str]:
    """The name of each tensor of `module.state_dict()` -> the name that it has without adapters. Tensors that adapters
    brought are left out."""
    wrapped = {name for name, _ in adapted_modules(module)}
    found = {}
    for key in module.state_dict():
        owner = next((name for name in wrapped if key.startswith(f"{name}.")), None)
        if owner is None:
            found[key] = key
            continue
        first, _, inner = key.removeprefix(f"{owner}.").partition(".")
        if first in ("base_layer", "original_module"):
            found[key] = f"{owner}.{inner}"
    return found


def plain_name(name: str) -> str:
    """The name of a parameter without peft's part of it: that of the module whose original or copy it belongs to."""
    parts, kept = iter(name.split(".")), []
    for part in parts:
        if part == "modules_to_save":
            next(parts)  # the name of the adapter
        elif part not in ("base_layer", "original_module"):
            kept.append(part)
    return ".".join(kept)


def group_parameters(
    model: nn.Module,
    part_of: Callable[[str, nn.Parameter], tuple[str, bool]],
    rates: Mapping[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups of an optimizer, by the part of the model; those of adapters are the part `"adapter"`.

    Args:
        model: each of its parameters that requires gradients is in one group.
        part_of: `(name without peft's part of it, parameter)` -> the part, and whether weight decay applies.
        rates: part -> learning rate.
        weight_decay: where it applies.
    """
    adapters = set(adapter_parameters(model))
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = ("adapter", True) if parameter in adapters else part_of(plain_name(name), parameter)
            groups.setdefault(part, []).append(parameter)
    return [
        {"name": part, "params": parameters, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
        for (part, decays), parameters in groups.items()
    ]


def add_lora(tower: nn.Module, layers: Sequence[int], *, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Puts LoRA (Hu et al., 2021) into linear maps of a transformer tower: W becomes W + alpha / rank * B A, of which
    only A and B require gradients. B starts at 0, so no answer changes.

    Args:
        tower: with `encoder.layers`.
        layers: positions of the layers.
        rank: of A and B.
        alpha: see above.
        targets: names of the linear maps of a layer, `"q_proj"` or `"mlp.fc1"`.

    Raises:
        ImportError: peft is not installed.
        ValueError: a target is no linear map of these layers.
    """
    peft = require("peft", "peft")
    chosen: list[str] = []
    for layer in layers:
        prefix = f"encoder.layers.{layer}."
        linear = [
            name.removeprefix(prefix)
            for name, one in tower.named_modules()
            if name.startswith(prefix) and isinstance(one, nn.Linear)
        ]
        for target in targets:
            matching = [name for name in linear if f".{name}".endswith(f".{target}")]
            if not matching:
                raise ParValueError(
                    f"lora_targets names {shorten(target)}, which is no linear map of a layer of the vision tower; "
                    f"expected some of {', '.join(name.rpartition('.')[2] for name in linear)}"
                )
            chosen += [prefix + name for name in matching]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)
    peft.inject_adapter_in_model(config, tower)


def merge_adapters(module: nn.Module) -> None:
    """Merges the active adapters into the weights and removes all adapters; wrapped modules give way to the copies
    that answer. What is switched off is not merged.

    Raises:
        ValueError: a weight would become NaN or infinite.
    """
    for name, one in list(adapted_modules(module)):
        if hasattr(one, "modules_to_save"):
            active = next(iter(one.active_adapters), None)
            answers = not one.disable_adapters and active in one.modules_to_save
            plain = one.modules_to_save[active] if answers else one.original_module
        else:
            if not one.disable_adapters:
                one.merge(safe_merge=True)
            plain = one.get_base_layer()
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, plain)
    for one in module.modules():
        one.__dict__.pop("peft_config", None)


def read_adapter_base(name: str | Path, access: dict[str, Any]) -> str | None:
    """The model that an adapter in a folder or repository names as its own: "" if it names none; None if there is no
    adapter.

    Args:
        name: folder or repository.
        access: how to reach it, as in `from_pretrained`.
    """
    path = find_adapter_config_file(name, **{key: value for key, value in access.items() if value is not None})
    if path is None:
        return None
    found = read_json_object(Path(path)) or {}
    return str(found.get("base_model_name_or_path") or "")


def check_lora(lora: Any, num_layers: int, largest: int) -> None:
    """Refuses a field `lora` of a configuration that does not say which adapters a model has.

    Args:
        lora: the field; None: no adapters.
        num_layers: of the vision tower.
        largest: the largest rank.

    Raises:
        ValueError: names what is wrong.
    """
    if lora is None:
        return
    fields = {"rank", "alpha", "layers", "targets"}
    if not isinstance(lora, dict) or set(lora) != fields:
        raise ParValueError(f"lora must be None or a dict of {', '.join(sorted(fields))}, got {shorten(lora)}")
    for name, limit in (("rank", largest), ("layers", num_layers)):
        value = lora[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise ParValueError(f"lora {name} is {shorten(value)}, expected a whole number from 1 to {limit}")
    if isinstance(lora["alpha"], bool) or not isinstance(lora["alpha"], (int, float)) or not 0 < lora["alpha"] < 1e6:
        raise ParValueError(f"lora alpha is {shorten(lora['alpha'])}, expected a number above 0")
    targets = lora["targets"]
    if not isinstance(targets, list) or not targets or not all(isinstance(one, str) and one for one in targets):
        raise ParValueError(f"lora targets is {shorten(targets)}, expected a list of names of linear maps")
