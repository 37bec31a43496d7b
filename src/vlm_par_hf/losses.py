"""The losses under their public name; see `vlm_par_hf.base.losses`."""

from vlm_par_hf.base.losses import (
    LOSSES,
    ParLoss,
    ce_focal_loss,
    check_labels_on_cpu,
    compute_class_weights,
    compute_priors,
    cross_entropy_loss,
    focal_loss,
    fused_loss,
    weighted_bce_loss,
)


__all__ = [
    "LOSSES",
    "ParLoss",
    "ce_focal_loss",
    "check_labels_on_cpu",
    "compute_class_weights",
    "compute_priors",
    "cross_entropy_loss",
    "focal_loss",
    "fused_loss",
    "weighted_bce_loss",
]
