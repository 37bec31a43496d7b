"""`TrainSettings`: the settings of a training run, plain values with a sentence each.

Imports no torch, because the command line builds its options from these fields.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vlm_par_hf.errors import ParValueError


__all__ = ["TrainSettings"]

# Settings that may differ between a run and its continuation, because they change no weight.
_FREE_ON_RESUME = ("workers", "report_to", "save_total_limit", "logging_steps", "progress", "run_name", "bootstrap")


def _setting(default: Any, text: str, *, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(kw_only=True)
class TrainSettings:
    """Settings of one run; every field has a default that works on the embedded backbone.

    The two learning rates matter most: the classifiers and gates learn at `learning_rate`, the fusion projections at
    the smaller `fusion_learning_rate`, because Adam moves each of their entries by about the rate at every step. One
    rate for both costs more accuracy than any choice of architecture.

    Raises:
        ValueError: a value is out of its range or not one of its choices; the message names the field.
    """

    epochs: float = _setting(10.0, "passes over the training split")
    max_steps: int = _setting(-1, "stop after this many optimizer steps (overrides --epochs; -1: off)")
    batch_size: int = _setting(64, "images per forward pass of each process")
    gradient_accumulation_steps: int = _setting(1, "forward passes per optimizer step")
    eval_batch_size: int = _setting(128, "images per forward pass on validation")
    learning_rate: float = _setting(3e-3, "peak rate of classifiers and gates")
    fusion_learning_rate: float = _setting(0.0, "peak rate of the fusion projections (0: 0.128 / backbone width)")
    backbone_learning_rate: float = _setting(1e-5, "peak rate of the vision tower, where it is not frozen")
    lora: int = _setting(0, "rank of LoRA adapters in the frozen vision tower, trained with the heads (0: none)")
    lora_layers: int = _setting(0, "only the last layers of the vision tower get adapters, this many (0: all)")
    lora_targets: str = _setting("q_proj,v_proj", "the linear maps of a layer that get adapters (comma-separated)")
    adapter_learning_rate: float = _setting(2e-4, "peak rate of the adapters")
    train_layers: int = _setting(0, "train this many last layers of the vision tower, and what follows them (0: none)")
    weight_decay: float = _setting(0.01, "AdamW's decoupled weight decay")
    warmup: float = _setting(0.05, "warm-up: a fraction of all steps below 1, a number of steps from 1 on")
    schedule: str = _setting(
        "cosine", "shape of the learning rate", choices=("cosine", "linear", "constant", "constant_with_warmup")
    )
    max_grad_norm: float = _setting(1.0, "clip the gradient's norm here (0: off)")
    weighting: str = _setting(
        "auto",
        "class weights of the loss from the training priors (auto: sqrt; none with --paper or weighted_bce)",
        choices=("auto", "none", "balanced", "sqrt", "exp"),
    )
    logit_adjustment: float = _setting(0.0, "add this times the log prior to the logits in training")
    sampling_temperature: float = _setting(
        2.0,
        "of several data sets (a+b), one of n pictures is drawn from in proportion to n ** (1 / this); 1: as they are",
    )
    fit_pooled_statistics: bool = _setting(True, "standardise the pooled vector by training statistics first")
    fit_zero_shot: bool = _setting(
        True, "start new heads from the backbone's zero-shot answers, calibrated on training images"
    )
    precompute_features: bool = _setting(False, "run the frozen backbone once and train from features in memory")
    feature_memory_gib: float = _setting(4.0, "refuse to hold more than this many GiB of features in memory")
    feature_dtype: str = _setting(
        "float16", "what features are stored as", choices=("float32", "float16", "bfloat16", "int8")
    )
    feature_crops: int = _setting(0, "random crops (--pad) to keep of each image besides the whole one, with features")
    flip: float = _setting(0.5, "probability of a horizontal flip (labels follow the schema's mirror)")
    pad: float = _setting(0.05, "pad by this fraction of the sides, then crop at random (0: off)")
    erasing: float = _setting(0.0, "probability of erasing a random rectangle")
    eval_steps: int = _setting(0, "validate and save every this many steps (0: once per epoch)")
    select: str = _setting(
        "mA",
        "the validation metric that chooses the kept weights: mA at the preset's threshold, or auc_macro, which needs "
        "none",
        choices=("mA", "auc_macro"),
    )
    early_stopping_patience: int = _setting(0, "stop after this many validations without a better score (0: off)")
    metric_preset: str = _setting("rethinking", "metric conventions", choices=("rethinking", "vtb", "rap"))
    bf16: bool = _setting(False, "bfloat16 autocast")
    seed: int = _setting(42, "seed of initialisation, order and augmentation")
    full_determinism: bool = _setting(False, "deterministic kernels only (slower on GPU)")
    workers: int = _setting(0, "data loader processes")
    save_total_limit: int = _setting(2, "intermediate checkpoints to keep, the best one always among them")
    logging_steps: int = _setting(10, "steps between two points of the learning curve")
    report_to: str = _setting("none", "tracker: none, tensorboard, wandb, trackio, ... (comma-separated)")
    run_name: str = _setting("", "name of the run in the tracker")
    progress: bool = _setting(True, "progress bars")

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "gradient_accumulation_steps", "save_total_limit"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "backbone_learning_rate", "adapter_learning_rate", "feature_memory_gib"):
            self._expect(name, getattr(self, name) > 0, "above 0")
        for name in (
            "fusion_learning_rate", "weight_decay", "warmup", "max_grad_norm", "logit_adjustment", "eval_steps",
            "early_stopping_patience", "workers", "seed", "feature_crops", "lora", "lora_layers", "train_layers",
        ):  # fmt: skip
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        for name in ("flip", "erasing"):
            self._expect(name, 0 <= getattr(self, name) <= 1, "a probability from 0 to 1")
        self._expect("pad", 0 <= self.pad <= 0.5, "a fraction from 0 to 0.5")
        self._expect("sampling_temperature", self.sampling_temperature >= 1, "1 or more")
        self._expect("epochs", self.epochs > 0, "above 0")
        self._expect("max_steps", self.max_steps == -1 or self.max_steps > 0, "-1 (off) or above 0")
        for item in dataclasses.fields(self):
            choices = item.metadata["choices"]
            if choices:
                self._expect(item.name, getattr(self, item.name) in choices, f"one of {', '.join(choices)}")

        self._check_what_trains()

    def _check_what_trains(self) -> None:
        """Refuses settings of what trains inside the vision tower that contradict each other."""
        targets = [one.strip() for one in self.lora_targets.split(",")]
        self._expect(
            "lora_targets", all(targets), "names of linear maps with commas between them, such as q_proj,v_proj"
        )
        if self.lora_layers and not self.lora:
            raise ParValueError(f"lora_layers={self.lora_layers} without lora: expected a rank (lora=8, --lora 8) too")
        if self.lora and self.train_layers:
            raise ParValueError(
                f"lora={self.lora} and train_layers={self.train_layers}: expected one of them; adapters leave the "
                "layers as they are, train_layers changes them"
            )
        for name in ("lora", "train_layers"):
            if getattr(self, name) and self.precompute_features:
                raise ParValueError(
                    f"{name}={getattr(self, name)} with precomputed features (cache_features, --cache-features): the "
                    "vision tower changes at every step, so its features cannot be computed once; train from images"
                )

    def _expect(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ParValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Settings in `other` (an earlier `to_dict()`) that differ and would change the result of a continued run."""
        mine = self.to_dict()
        return [
            f"{name}: {other.get(name)!r} then, {mine[name]!r} now"
            for name in mine
            if name not in _FREE_ON_RESUME and name in other and other[name] != mine[name]
        ]
