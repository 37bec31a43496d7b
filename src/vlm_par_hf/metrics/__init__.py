"""Metrics of pedestrian attribute recognition, each published convention under its own name. NumPy only."""

from .attributes import ParMetrics
from .presets import PRESETS, MetricPreset
from .ranking import average_precision, roc_auc
from .retrieval import attribute_categories, attribute_retrieval, image_to_text_recall, unseen_categories


__all__ = [
    "PRESETS",
    "MetricPreset",
    "ParMetrics",
    "attribute_categories",
    "attribute_retrieval",
    "average_precision",
    "image_to_text_recall",
    "roc_auc",
    "unseen_categories",
]
