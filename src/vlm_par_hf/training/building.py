"""The model that a run trains: built over a backbone, loaded, or given; and the settings of its loss."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.base.priors import compute_class_weights
from vlm_par_hf.errors import ParValueError, argument_in_errors

from .settings import TrainSettings


__all__ = ["build_model", "loss_settings", "starting_shares"]


def build_model(family, backbone, schema, model, processor, options: dict[str, Any], max_num_patches: int | None):
    """The model to train and its processor; the arguments are those of `train`. A checkpoint of another label space is
    loaded with that of the data.

    Raises:
        ValueError: an option that the family does not have, options for a given model, or a model in memory without
            its processor.
        OSError: the backbone or the model cannot be loaded.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from vlm_par_hf.auto import get_family
    from vlm_par_hf.families import find_family, trainable_families

    if model is None:
        config_class, model_class, processor_class = get_family(family)
        backbone = find_family(family).default_backbone if backbone is None else backbone
        options = dict(options)
        paper = options.pop("paper", False)
        known = {
            name: {field.name for field in dataclasses.fields(get_family(name)[0])} for name in trainable_families()
        }
        for name in options:
            if name not in known[family] and any(name in fields for fields in known.values()):
                raise ParValueError(f"model_options names {name!r}, which the family {family!r} does not have")
        if paper:
            default, as_in_paper = config_class(attributes=schema), config_class.paper(attributes=schema)
            choices = {name: getattr(as_in_paper, name) for name in known[family] - {*config_class.sub_configs}}
            choices = {name: value for name, value in choices.items() if value != getattr(default, name)}
            options = {**choices, **options}
        extra = {} if max_num_patches is None else {"max_num_patches": max_num_patches}
        with argument_in_errors("backbone", backbone):
            model = model_class.from_backbone(backbone, attributes=schema, **options)
            return model, processor or processor_class.from_backbone(backbone, **extra)
    if options:
        raise ParValueError(f"model_options={options!r}: a given model already has its configuration")
    if isinstance(model, (str, Path)):
        with argument_in_errors("model", str(model)):
            processor = processor or AutoProcessor.from_pretrained(str(model))
            config = AutoConfig.from_pretrained(str(model))
            # Heads of attributes that the data have too are kept, the others start afresh; the model logs which.
            meanings = [[(one.name, one.labels) for one in space] for space in (config.schema, schema)]
            exchanged = {} if meanings[0] == meanings[1] else {"attributes": schema.to_list()}
            return AutoModel.from_pretrained(str(model), **exchanged), processor
    if processor is None:
        raise ParValueError("processor is None: a model in memory needs its processor beside it")
    return model, processor


def loss_settings(model, settings: TrainSettings, priors: list[list[float]], *, paper: bool) -> dict[str, Any]:
    """The `config.loss` of a run: that of the model, with the weighting of the settings.

    Args:
        model: the model to train.
        settings: of the run.
        priors: per attribute the share of each label in the training split.
        paper: whether every choice is that of the paper.
    """
    loss = dict(model.config.loss or {})
    weighting = settings.weighting
    if weighting == "auto":
        # The paper's loss has no weights, and the weighted BCE brings its own.
        weighting = "none" if paper or loss.get("kind") == "weighted_bce" else "sqrt"
    if weighting != "none":
        loss["weighting"] = weighting
    if settings.logit_adjustment:
        loss["logit_adjustment"] = settings.logit_adjustment
    if loss.get("weighting") or loss.get("logit_adjustment") or loss.get("kind") == "weighted_bce":
        loss["priors"] = priors
    return loss


def starting_shares(loss: dict[str, Any], priors: list[list[float]]) -> list[list[float]]:
    """The shares of the labels whose logarithms are the best constant logits for the loss of a run.

    Class weights multiply the shares of the training split, and logit adjustment takes from them what it adds in
    training; label smoothing and the focal factor are left out. With balanced weights the start is therefore even.

    Args:
        loss: `config.loss` of the run.
        priors: per attribute the share of each label in the training split.

    Returns:
        Per attribute the share of each label, with sum 1.
    """
    weighting = "exp" if loss.get("kind") == "weighted_bce" else loss.get("weighting")
    limit = {name: loss[name] for name in ("max_class_weight",) if name in loss}
    weights = [[1.0] * len(one) for one in priors]
    if weighting is not None:
        weights = compute_class_weights(priors, weighting, **limit)
    power = 1 - loss.get("logit_adjustment", 0.0)
    starts = []
    for prior, weight in zip(priors, weights):
        share = np.asarray(weight) * np.asarray(prior) ** power
        starts.append((share / share.sum()).tolist())
    return starts
