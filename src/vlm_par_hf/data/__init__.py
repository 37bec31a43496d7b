"""Data sets for pedestrian attribute recognition: readers, synthetic pedestrians, augmentation, collator.

Nothing here imports torch or `datasets` before it is needed: reading annotations needs neither.
"""

from .carried import attach_schema, dataset_schema
from .collator import ParCollator
from .folder import read_folder
from .loading import list_par_datasets, load_par_dataset
from .market1501 import read_market1501
from .pa100k import read_pa100k
from .peta import read_peta
from .prepare import prepare_dataset
from .rap import read_rapv1, read_rapv2
from .records import PedestrianRecord
from .transforms import AugmentedDataset, ParAugmentation
from .upar import UparQueries, read_upar, read_upar_queries


__all__ = [
    "AugmentedDataset",
    "ParAugmentation",
    "ParCollator",
    "PedestrianRecord",
    "UparQueries",
    "attach_schema",
    "dataset_schema",
    "list_par_datasets",
    "load_par_dataset",
    "prepare_dataset",
    "read_folder",
    "read_market1501",
    "read_pa100k",
    "read_peta",
    "read_rapv1",
    "read_rapv2",
    "read_upar",
    "read_upar_queries",
]
