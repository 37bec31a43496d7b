"""Frozen features that quality.py trains heads on, by name: drawings, rendered people, and real crops in five folds.

| name | pictures | backbone |
|---|---|---|
| `drawings` | the data set `synthetic`, another population per seed | embedded |
| `rendered` | the data set `rendered`, another population per seed | embedded |
| `real` | `pa100k_mini`, five folds without a common person (`folds.py`) | embedded |
| `real-reid` | the same | person-reidentification-retail-0277 of the Open Model Zoo, by OpenVINO |

The last one is no vision-language model: its 128 patches of width 512 are the strongest real features of people that
are at hand. Questions are read by the embedded backbone's text tower there, and there is no stage 1, because pictures
and texts have no common space.
"""

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from folds import NUM_FOLDS, person_folds, real_crops, scored_attributes, split_of_fold
from torch import nn
from transformers import AutoConfig, AutoModel

from vlm_par_hf import VlmParConfig, VlmParModel, VlmParProcessor, dataset_schema, load_par_dataset
from vlm_par_hf.training import compute_features, feature_views
from vlm_par_hf.utils import embedded_path, require


__all__ = ["SETS", "FeatureSet", "Features", "load_feature_set"]

NETWORK = "person-reidentification-retail-0277"
PATCHES, POOLED = "1126", "1135"  # names of its tensors, (1, 512, 16, 8) and (1, 512, 1, 1)
SETS = ("drawings", "rendered", "real", "real-reid")


@dataclass
class Features:
    """Features of some pictures in memory, float16, once as they are and once mirrored.

    Args:
        views: two dicts of `patch_embeds` `(N, P, D)`, `image_embeds` `(N, D)` (float32) and `patch_mask` `(N, P)`.
        labels: int64 `(2, N, A)`, of both views.
        persons: int `(N,)`, None if every picture shows somebody else.
    """

    views: list[dict[str, torch.Tensor]]
    labels: torch.Tensor
    persons: np.ndarray | None = None

    def __len__(self) -> int:
        return self.labels.shape[1]

    def subset(self, rows: np.ndarray) -> "Features":
        index = torch.as_tensor(rows)
        return Features(
            [{name: value[index] for name, value in view.items()} for view in self.views],
            self.labels[:, index],
            None if self.persons is None else self.persons[rows],
        )

    def batch(self, rows: torch.Tensor, mirrored: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Keyword arguments of `forward`; `mirrored` says of each row which view is taken (None: no mirrored one)."""
        first, second = self.views[0], self.views[-1]
        found = {name: value[rows] for name, value in first.items()}
        labels = self.labels[0, rows]
        if mirrored is not None and bool(mirrored.any()):
            own = rows[mirrored]
            for name, value in found.items():
                value[mirrored] = second[name][own]
            labels[mirrored] = self.labels[1, own]
        found["patch_embeds"] = found["patch_embeds"].float()
        return {**found, "labels": labels}

    def batches(self, size: int = 256) -> Iterator[dict[str, torch.Tensor]]:
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows)


@dataclass
class FeatureSet:
    """What quality.py measures on.

    Args:
        name: one of `SETS`.
        title: for pictures and tables.
        schema: the label space.
        scored: positions of the attributes that count.
        parts: one dict of `train`, `validation` and `test` per fold, or a single one.
        build: makes a fresh model of keyword settings of `VlmParConfig`.
        has_prompts: whether pictures can be compared with prompts (stage 1, zero-shot).
    """

    name: str
    title: str
    schema: Any
    scored: np.ndarray
    parts: list[dict[str, Features]]
    build: Callable[..., nn.Module]
    has_prompts: bool


def load_feature_set(name: str, seed: int, cache: Path, sizes: dict[str, int]) -> FeatureSet:
    """A set by its name.

    Args:
        name: one of `SETS`.
        seed: of the population, where it is drawn or rendered.
        cache: folder for the features, which are computed once.
        sizes: `num_train`, `num_validation` and `num_test`, where the population is drawn or rendered.

    Raises:
        SystemExit: real crops or the network are not below `PAR_DATA`.
    """
    if name in ("drawings", "rendered"):
        data = load_par_dataset({"drawings": "synthetic"}.get(name, name), seed=seed, **sizes)
        schema = dataset_schema(data)
        folder = cache / f"{name}_{sizes['num_train']}_seed{seed}"
        parts = [{split: embedded_features(data[split], schema, folder / split) for split in data}]
        kind = "SYNTHETIC drawings" if name == "drawings" else "SYNTHETIC rendered people"
        scored = np.arange(len(schema))
        return FeatureSet(name, kind, schema, scored, parts, embedded_builder(schema), has_prompts=True)
    crops = real_crops()
    schema = dataset_schema(crops)
    if name == "real":
        features = embedded_features(crops, schema, cache / "real")
        builder, title = embedded_builder(schema), "real crops, embedded backbone"
    else:
        features = network_features(crops, schema, cache / "real-reid")
        builder, title = foreign_builder(schema, features.views[0]["image_embeds"].shape[1]), f"real crops, {NETWORK}"
    folds = person_folds(features.persons)
    parts = [
        {split: features.subset(rows) for split, rows in split_of_fold(folds, fold).items()}
        for fold in range(NUM_FOLDS)
    ]
    scored = scored_attributes(features.labels[0].numpy())
    return FeatureSet(name, title, schema, scored, parts, builder, has_prompts=name == "real")


def _with_labels(views: list[dict[str, torch.Tensor]], data, schema) -> Features:
    labels = np.asarray(data.with_format("numpy", columns=["labels"])[:]["labels"])
    persons = np.asarray(data["person_id"]) if "person_id" in data.column_names else None
    return Features(views, torch.from_numpy(np.stack([labels, schema.mirror_labels(labels)])), persons)


def embedded_features(data, schema, folder: Path) -> Features:
    """Features of the embedded backbone, kept in `folder`."""
    processor = VlmParProcessor.from_backbone("embedded")
    model = VlmParModel.from_backbone("embedded", attributes=schema, fusion="none")
    store = compute_features(
        model, data, processor, 128, directory=folder, views=feature_views(True), dtype="float16", progress=False
    ).store
    views = []
    for view in store.views:
        tensors = store.read(list(range(len(store))), [view] * len(store))
        views.append({**tensors, "patch_embeds": tensors["patch_embeds"].half()})
    return _with_labels(views, data, schema)


def network_features(data, schema, folder: Path) -> Features:
    """Features of the re-identification network, kept in `folder`.

    Raises:
        SystemExit: its files are not below `PAR_DATA`.
    """
    file = folder / "features.pt"
    if not file.is_file():
        path = Path(os.environ["PAR_DATA"]) / "networks" / f"{NETWORK}.xml"
        if not path.is_file():
            raise SystemExit(f"{path} is not there: PAR_DATA must hold networks/{NETWORK}.xml and .bin")
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        torch.save([run_network(path, data["image"], mirrored) for mirrored in (False, True)], part)
        part.rename(file)
    return _with_labels(torch.load(file, weights_only=True), data, schema)


def run_network(path: Path, images, mirrored: bool, batch_size: int = 16) -> dict[str, torch.Tensor]:
    """Patches and pooled output of the network; its input is BGR in [0, 255], squashed to its size."""
    core = require("openvino", extra="export").Core()
    model = core.read_model(path)
    model.add_outputs([PATCHES, POOLED])
    height, width = (side.get_length() for side in list(model.input(0).partial_shape)[2:])
    model.reshape([-1, 3, height, width])
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": "NO"}
    )
    patches, pooled = [], []
    for start in range(0, len(images), batch_size):
        pictures = [np.asarray(one.convert("RGB").resize((width, height), 2)) for one in images[start:][:batch_size]]
        values = np.stack(pictures)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        if mirrored:
            values = values[..., ::-1]
        output = compiled(np.ascontiguousarray(values))
        patches.append(torch.from_numpy(output[PATCHES].copy()).flatten(2).mT.half())
        pooled.append(torch.from_numpy(output[POOLED].reshape(len(pictures), -1).copy()))
    tensors = {"patch_embeds": torch.cat(patches).contiguous(), "image_embeds": torch.cat(pooled)}
    return tensors | {"patch_mask": torch.ones(tensors["patch_embeds"].shape[:2], dtype=torch.bool)}


def embedded_builder(schema) -> Callable[..., nn.Module]:
    processor = VlmParProcessor.from_backbone("embedded")

    def build(**settings: Any) -> nn.Module:
        return VlmParModel.from_backbone("embedded", attributes=schema, tokenizer=processor, **settings)

    return build


def foreign_builder(schema, width: int) -> Callable[..., nn.Module]:
    """Models over features of another network: a vision tower of their width that never runs, and the text tower of
    the embedded backbone."""
    processor = VlmParProcessor.from_backbone("embedded")
    source = embedded_path("backbone")
    text_state = AutoModel.from_pretrained(source).text_model.state_dict()
    vlm_config = AutoConfig.from_pretrained(source)
    sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 8}
    for field, value in sizes.items():
        setattr(vlm_config.vision_config, field, value)

    def build(**settings: Any) -> nn.Module:
        model = VlmParModel(VlmParConfig(vlm_config=copy.deepcopy(vlm_config), attributes=schema, **settings)).eval()
        model.vlm.text_model.load_state_dict(text_state)
        model.encode_questions(processor)
        return model

    return build
