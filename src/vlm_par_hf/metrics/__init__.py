"""Metrics of pedestrian attribute recognition, each published convention under its own name. NumPy only."""

from .attributes import ParMetrics
from .presets import PRESETS, MetricPreset
from .ranking import average_precision, roc_auc
from .reliability import area_under_risk_coverage, brier_score, calibration_error, risk_coverage, set_coverage
from .retrieval import attribute_categories, attribute_retrieval, image_to_text_recall, unseen_categories
from .video import answer_flips, flips_per_minute, video_metrics


__all__ = [
    "PRESETS",
    "MetricPreset",
    "ParMetrics",
    "answer_flips",
    "area_under_risk_coverage",
    "attribute_categories",
    "attribute_retrieval",
    "average_precision",
    "brier_score",
    "calibration_error",
    "flips_per_minute",
    "image_to_text_recall",
    "risk_coverage",
    "roc_auc",
    "set_coverage",
    "unseen_categories",
    "video_metrics",
]
