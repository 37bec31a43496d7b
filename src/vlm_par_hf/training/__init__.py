"""Training and evaluation with the plain `transformers.Trainer`.

Names are resolved on first use, so that the command line can read `TrainSettings` without loading the Trainer.
"""

import importlib


_HOMES = {
    "FeatureDataset": "features",
    "FeatureStore": "cache",
    "TrainResult": "trainer",
    "TrainSettings": "settings",
    "check_schema": "evaluation",
    "compute_features": "features",
    "evaluate": "evaluation",
    "feature_views": "cache",
    "plot_attributes": "plots",
    "plot_learning_curve": "plots",
    "predict_logits": "evaluation",
    "train": "trainer",
}

__all__ = [
    "FeatureDataset",
    "FeatureStore",
    "TrainResult",
    "TrainSettings",
    "check_schema",
    "compute_features",
    "evaluate",
    "feature_views",
    "plot_attributes",
    "plot_learning_curve",
    "predict_logits",
    "train",
]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vlm_par_hf.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
