"""Data sets for pedestrian attribute recognition: readers, synthetic pedestrians, augmentation, collator.

Nothing here imports torch or `datasets` before it is needed: reading annotations needs neither.
"""

from vlm_par_hf.data.readers.duke_video import read_duke_video
from vlm_par_hf.data.readers.folder import read_folder
from vlm_par_hf.data.readers.market1501 import read_market1501
from vlm_par_hf.data.readers.mars import read_mars
from vlm_par_hf.data.readers.mivia import read_mivia
from vlm_par_hf.data.readers.pa100k import read_pa100k
from vlm_par_hf.data.readers.peta import read_peta
from vlm_par_hf.data.readers.rap import read_rapv1, read_rapv2
from vlm_par_hf.data.readers.records import PedestrianRecord
from vlm_par_hf.data.readers.tracklet_folder import read_tracklets
from vlm_par_hf.data.readers.upar import UparQueries, read_upar, read_upar_queries

from .carried import attach_schema, dataset_schema
from .collator import ParCollator
from .loading import list_par_datasets, load_par_dataset
from .prepare import prepare_dataset
from .tracklets import TrackletDataset
from .transforms import AugmentedDataset, ParAugmentation
from .union import TemperatureSampler, unite_datasets, unite_schemas


__all__ = [
    "AugmentedDataset",
    "ParAugmentation",
    "ParCollator",
    "PedestrianRecord",
    "TemperatureSampler",
    "TrackletDataset",
    "UparQueries",
    "attach_schema",
    "dataset_schema",
    "list_par_datasets",
    "load_par_dataset",
    "prepare_dataset",
    "read_duke_video",
    "read_folder",
    "read_market1501",
    "read_mars",
    "read_mivia",
    "read_pa100k",
    "read_peta",
    "read_rapv1",
    "read_rapv2",
    "read_tracklets",
    "read_upar",
    "read_upar_queries",
    "unite_datasets",
    "unite_schemas",
]
