"""Every data set that is read from a folder, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema

from .duke_video import read_duke_video
from .folder import read_folder_and_rest
from .label_check import check_labels, count_positives
from .market1501 import read_market1501
from .mars import read_mars
from .mivia import read_mivia
from .pa100k import PA100K_SPLITS, read_pa100k
from .peta import read_peta
from .rap import read_rapv1, read_rapv2
from .records import PedestrianRecord
from .tracklet_folder import read_tracklets
from .upar import read_upar


__all__ = [
    "READERS",
    "DatasetReader",
]


@dataclass(frozen=True)
class DatasetReader:
    """How a data set on disk is read, and what its card says.

    `read(root, schema, partition, seed, **options)` returns the schema, per split the records, and JSON-plain notes
    (who divided the data, what was left out) that travel with the data set.
    """

    read: Callable[..., tuple[AttributeSchema, dict[str, list[PedestrianRecord]], dict[str, Any]]]
    how_to_get: str
    num_partitions: int = 1
    options: tuple[str, ...] = ()  # names of further keywords of `load_par_dataset`
    homepage: str = ""
    license: str = ""
    citation: str = ""


_PA100K_IMAGES = 100_000


def _read_pa100k_splits(root, schema, partition, seed, ignore=()):
    schema = get_schema("pa100k")
    splits = {split: read_pa100k(root, split) for split in PA100K_SPLITS}
    complete = sum(map(len, splits.values())) == _PA100K_IMAGES
    # Other names than the 26 are refused when the file is read.
    notes = check_labels(root, count_positives(schema, splits), {}, complete=complete, ignore=ignore)
    return schema, splits, {"division": "official", **notes}


def _read_folder_splits(root, schema, partition, seed, **options):
    schema, splits, unread = read_folder_and_rest(root, schema, seed=seed, **options)
    notes = {"columns_not_read": sorted(unread)[:20]} if unread else {}
    return schema, splits, {**check_labels(root, count_positives(schema, splits), {}, complete=False), **notes}


def _read_tracklet_splits(root, schema, partition, seed, **options):
    schema, splits, unread = read_tracklets(root, schema, seed=seed, **options)
    notes = {"columns_not_read": sorted(unread)[:20]} if unread else {}
    return schema, splits, {**check_labels(root, count_positives(schema, splits), {}, complete=False), **notes}


_PETA = {
    "how_to_get": "PETA.mat with the folder images, or the unpacked PETA archive, for research only, from "
    "http://mmlab.ie.cuhk.edu.hk/projects/PETA.html",
    "num_partitions": 5,
    "options": ("ignore",),
    "homepage": "http://mmlab.ie.cuhk.edu.hk/projects/PETA.html",
    "license": "research only; no redistribution",
    "citation": "Yubin Deng et al. Pedestrian Attribute Recognition At Far Distance. ACM Multimedia 2014.",
}
_MARKET = {
    "how_to_get": "the unpacked Market-1501-v15.09.15, for research only, with market_attribute.mat from "
    "https://github.com/vana77/Market-1501_Attribute beside its folders",
    "options": ("ignore",),
    "homepage": "https://github.com/vana77/Market-1501_Attribute",
    "license": "research only; no redistribution",
    "citation": "Liang Zheng et al. Scalable Person Re-identification: A Benchmark. ICCV 2015. Yutian Lin et al. "
    "Improving Person Re-identification by Attribute and Identity Learning. Pattern Recognition 2019.",
}
_RAP = {
    "how_to_get": "the folders RAP_annotation and RAP_dataset, given out by their authors under a signed agreement",
    "num_partitions": 5,
    "options": ("ignore",),
    "license": "signed agreement; no redistribution",
}
READERS = {
    "duke_video": DatasetReader(
        lambda root, schema, partition, seed, **options: read_duke_video(root, seed=seed, **options),
        "the folder of DukeMTMC-VideoReID with duke_attributes.csv in it; the data set was withdrawn by its authors",
        options=("ignore", "num_frames"),
        license="withdrawn by its authors",
        citation="Yu Wu et al. Exploit the Unknown Gradually: One-Shot Video-Based Person Re-Identification by "
        "Stepwise Learning. CVPR 2018. Attributes: Zhiyuan Chen et al. A Temporal Attentive Approach for Video-Based "
        "Pedestrian Attribute Recognition. PRCV 2019.",
    ),
    "market1501": DatasetReader(
        lambda root, schema, partition, seed, **options: read_market1501(root, seed=seed, **options), **_MARKET
    ),
    "market1501_30": DatasetReader(
        lambda root, schema, partition, seed, **options: read_market1501(root, "market1501_30", seed=seed, **options),
        **_MARKET,
    ),
    "mars": DatasetReader(
        lambda root, schema, partition, seed, **options: read_mars(root, seed=seed, **options),
        "the unpacked MARS (bbox_train and bbox_test), given out by its authors, with mars_attributes.csv in it, "
        "https://github.com/yuange250/MARS-Attribute",
        options=("ignore", "num_frames"),
        homepage="https://github.com/yuange250/MARS-Attribute",
        license="research only; no redistribution of the images",
        citation="Liang Zheng et al. MARS: A Video Benchmark for Large-Scale Person Re-Identification. ECCV 2016. "
        "Attributes: Zhiyuan Chen et al. A Temporal Attentive Approach for Video-Based Pedestrian Attribute "
        "Recognition. PRCV 2019.",
    ),
    "mivia5": DatasetReader(
        lambda root, schema, partition, seed, **options: read_mivia(root, **options),
        "the tables training_set.txt and validation_set.txt with the folders training_set and validation_set, given "
        "out by the organisers of the PAR contests, https://mivia.unisa.it/par2025",
        options=("ignore",),
        homepage="https://mivia.unisa.it/par2025",
        license="terms of its organisers; no redistribution",
        citation="Antonio Greco and Bruno Vento. PAR Contest 2023: Pedestrian Attributes Recognition with Multi-task "
        "Learning. CAIP 2023.",
    ),
    "pa100k": DatasetReader(
        _read_pa100k_splits,
        "the unpacked PA-100K archives (annotation.mat and the images), free for download under CC-BY 4.0 from "
        "https://github.com/xh-liu/HydraPlus-Net",
        options=("ignore",),
        homepage="https://github.com/xh-liu/HydraPlus-Net",
        license="CC-BY-4.0",
        citation="Xihui Liu et al. HydraPlus-Net: Attentive Deep Features for Pedestrian Analysis. ICCV 2017.",
    ),
    "folder": DatasetReader(
        _read_folder_splits,
        "a folder of your own with schema.json, labels.csv (or labels.jsonl) and the images",
        options=("negative", "unknown", "box_format", "ignore"),
    ),
    "peta35": DatasetReader(
        lambda root, schema, partition, seed, **options: read_peta(root, partition=partition, seed=seed, **options),
        **_PETA,
    ),
    "peta65": DatasetReader(
        lambda root, schema, partition, seed, **options: read_peta(
            root, "peta65", partition=partition, seed=seed, **options
        ),
        **_PETA,
    ),
    "rapv1": DatasetReader(
        lambda root, schema, partition, seed, **options: read_rapv1(root, partition=partition, seed=seed, **options),
        citation="Dangwei Li et al. A Richly Annotated Dataset for Pedestrian Attribute Recognition. arXiv 2016.",
        **_RAP,
    ),
    "rapv2": DatasetReader(
        lambda root, schema, partition, seed, **options: read_rapv2(root, partition=partition, **options),
        citation="Dangwei Li et al. A Richly Annotated Pedestrian Dataset for Person Retrieval in Real Surveillance "
        "Scenarios. IEEE Transactions on Image Processing 2019.",
        **_RAP,
    ),
    "tracklets": DatasetReader(
        _read_tracklet_splits,
        "a folder of your own with schema.json, labels.csv with a column tracklet, and a folder of frames for each",
        options=("negative", "unknown", "ignore", "num_frames"),
    ),
    "upar": DatasetReader(
        lambda root, schema, partition, seed, **options: read_upar(root, **options),
        "the folder of a UPAR challenge with its annotations (CC BY-NC-SA 3.0) and, under data, the images of "
        "Market-1501, PA-100K and PETA, from https://github.com/speckean/upar_dataset",
        options=("ignore",),
        homepage="https://github.com/speckean/upar_dataset",
        license="CC-BY-NC-SA-3.0 (annotations); no redistribution of the images",
        citation="Andreas Specker et al. UPAR: Unified Pedestrian Attribute Recognition and Person Retrieval. WACV "
        "2023.",
    ),
}
