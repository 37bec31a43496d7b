"""Data sets for pedestrian attribute recognition: readers, synthetic pedestrians, augmentation, collator.

Nothing here imports torch or `datasets` before it is needed: reading annotations needs neither.
"""

from .collator import ParCollator
from .folder import read_folder
from .loading import attach_schema, dataset_schema, list_par_datasets, load_par_dataset
from .pa100k import read_pa100k
from .records import PedestrianRecord
from .transforms import AugmentedDataset, ParAugmentation


__all__ = [
    "AugmentedDataset",
    "ParAugmentation",
    "ParCollator",
    "PedestrianRecord",
    "attach_schema",
    "dataset_schema",
    "list_par_datasets",
    "load_par_dataset",
    "read_folder",
    "read_pa100k",
]
