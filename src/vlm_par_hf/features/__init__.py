"""Features of a frozen backbone: computed once, kept in shards, trained from."""

from .computing import compute_features
from .dataset import FeatureDataset
from .store import FeatureStore, FeatureView, feature_views


__all__ = ["FeatureDataset", "FeatureStore", "FeatureView", "compute_features", "feature_views"]
