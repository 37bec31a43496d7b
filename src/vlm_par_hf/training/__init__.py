"""Training and evaluation with the plain `transformers.Trainer`.

A name is imported at its first use, so that the command line can read `TrainSettings` without loading the Trainer.
"""

import importlib


_MODULE_OF = {
    "FeatureDataset": "features",
    "FeatureStore": "features",
    "RetrievalSettings": "training.fitting_adapters",
    "TrainResult": "training.trainer",
    "TrainSettings": "training.settings",
    "check_schema": "training.provenance",
    "compute_features": "features",
    "evaluate": "training.evaluation",
    "evaluate_retrieval": "training.retrieval",
    "feature_views": "features",
    "plot_attributes": "training.plots",
    "plot_learning_curve": "training.plots",
    "predict_logits": "inference.predicting",
    "train": "training.trainer",
    "train_retrieval": "training.retrieval",
}

__all__ = [
    "FeatureDataset",
    "FeatureStore",
    "RetrievalSettings",
    "TrainResult",
    "TrainSettings",
    "check_schema",
    "compute_features",
    "evaluate",
    "evaluate_retrieval",
    "feature_views",
    "plot_attributes",
    "plot_learning_curve",
    "predict_logits",
    "train",
    "train_retrieval",
]


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"vlm_par_hf.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
