"""Metrics of pedestrian attribute recognition, each published convention under its own name. NumPy only."""

from .attributes import ParMetrics
from .presets import PRESETS, MetricPreset
from .ranking import average_precision, roc_auc
from .retrieval import image_to_text_recall


__all__ = ["PRESETS", "MetricPreset", "ParMetrics", "average_precision", "image_to_text_recall", "roc_auc"]
