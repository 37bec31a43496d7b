"""Features of a frozen backbone: computed once, stored in shards, read by every training."""

from .computing import compute_features
from .dataset import FeatureDataset
from .store import FeatureStore
from .tracklets import TrackletFeatures
from .views import FeatureView, feature_views


__all__ = ["FeatureDataset", "FeatureStore", "FeatureView", "TrackletFeatures", "compute_features", "feature_views"]
