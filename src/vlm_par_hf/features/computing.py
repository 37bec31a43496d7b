"""`compute_features`: the features of a frozen backbone, computed once and trained from many times.

A frozen backbone gives the same output for an image in every epoch, so one pass gives everything that the heads train
on. Augmentations become views, each computed once: the flip, and random crops.
"""

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader

from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator
from vlm_par_hf.data.carried import disable_decoding, read_labels
from vlm_par_hf.errors import ParValueError

from .dataset import FeatureDataset
from .describing import describe_features
from .store import DTYPES, FeatureStore, Shard, join_batches
from .views import FeatureView


__all__ = ["compute_features"]

logger = logging.getLogger(__name__)

_GIB = 2**30
_WAIT_SECONDS = 1.0


def compute_features(
    model,
    dataset,
    processor,
    batch_size: int = 64,
    *,
    directory: str | Path | None = None,
    views: Sequence[str] = ("identity",),
    dtype: torch.dtype | str = "float16",
    pad: float = 0.05,
    crop_seed: int = 0,
    memory_gib: float = 4.0,
    rows_per_shard: int | None = None,
    workers: int = 0,
    flip: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> FeatureDataset:
    """Run the frozen backbone over a dataset of images, once per view; what the folder already has is not recomputed.

    Several processes may fill a folder at once (the ranks of `torchrun`, two trainings that start together): each
    computes a part of the shards and returns when all shards exist. After an interruption call it again: it continues.

    Args:
        model: a `VlmParModel`; it is run in eval mode, without gradients, on its own device.
        dataset: map-style, items with `image` and, if known, `labels` (int64, length A).
        processor: the model's `VlmParProcessor`.
        batch_size: images per forward pass.
        directory: folder of this image set's features; None keeps them in memory.
        views: names, `"identity"` first: see `feature_views`.
        dtype: `"float32"`, `"float16"`, `"bfloat16"` (or torch's) or `"int8"` with a scale per patch. Half precision
            by default: its rounding error is below the noise of training.
        pad: how far random crops may move, as in `ParAugmentation`.
        crop_seed: seed of the random crops; apart from `seed`, so that trainings with several seeds share a folder.
        memory_gib: the limit for features in memory.
        rows_per_shard: images per file; None: 64 MiB.
        workers: data loader processes that decode and preprocess images.
        flip: probability of a mirrored view in training.
        seed: seed of the draw between views.
        progress: show a progress bar.

    Returns:
        A `FeatureDataset` with features on the CPU, or mapped from the files of the folder.

    Raises:
        ValueError: unknown views or dtype; the dataset is empty; the vision tower is trained; the features would take
            more than `memory_gib` or the free disk; a value is out of the range of `dtype`; the folder holds features
            of other weights, images or settings (every difference is named).
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ParValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    if not views or views[0] != "identity" or len(set(views)) != len(views):
        raise ParValueError(f"views={tuple(views)!r}: expected different names, the first one 'identity'")
    if any(name.startswith("crop") for name in views) and pad == 0:
        raise ParValueError("pad=0: random crops differ from the whole image only where it is padded first")
    chosen = {name: FeatureView.from_name(name, pad=pad, seed=crop_seed) for name in views}
    if len(dataset) == 0:
        raise ParValueError("dataset is empty: expected at least one image")
    if not model.supports_features:
        raise ParValueError(
            f"{type(model).__name__} trains a part of its vision tower, so its features cannot be computed once: "
            "train from images (precompute_features=False, no cache_features)"
        )
    if not model.supports_training:
        raise ParValueError(
            f"{type(model).__name__} cannot be trained, and features are there to train from: compute them with the "
            "model that it was made from"
        )
    if model.trains_vision_tower:
        raise ParValueError(
            "compute_features needs a frozen backbone, and parameters of the vision tower require gradients "
            "(freeze_backbone=False, or adapters such as LoRA?): features would be stale after the first step; train "
            "from images instead (precompute_features=False)"
        )
    schema = model.config.schema
    labels, images = read_labels(dataset), _ImagesOnly(dataset)
    was_training = model.training
    model.eval()
    try:
        store = FeatureStore.create(
            len(images),
            lambda: _feature_shape(model, processor, images),
            dtype,
            chosen,
            directory=directory,
            describe=None if directory is None else describe_features(model, processor, images, progress=progress),
            rows_per_shard=rows_per_shard,
        )
        _check_room(store, memory_gib)
        _fill(store, model, processor, images, schema, batch_size, workers, progress)
    finally:
        model.train(was_training)
    return FeatureDataset(store, labels, schema=schema, flip=flip, seed=seed)


class _ImagesOnly:
    """The images of a data set without its other columns, which are then not read."""

    def __init__(self, dataset):
        if hasattr(dataset, "select_columns"):
            dataset = dataset.select_columns(["image"])
        self.rows = disable_decoding(dataset)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"image": self.rows[index]["image"]}


class _AugmentedViews:
    """The images in each view. An item is asked for as (view, row); a batch holds items of one view only."""

    def __init__(self, images, schema, views: dict[str, FeatureView]):
        self.views = {}
        for name, view in views.items():
            augmentation = ParAugmentation(schema, flip=float(view.mirrored), pad=view.pad)
            self.views[name] = AugmentedDataset(images, augmentation if name != "identity" else None, seed=view.seed)
            self.views[name].set_epoch(view.draw)

    def __getitems__(self, items: Sequence[tuple[str, int]]):
        return self.views[items[0][0]].__getitems__([row for _, row in items])


class _ShardSampler:
    """A batch sampler over the shards that this process could claim.

    A shard is claimed when its first batch is asked for. So one data loader runs across all shards, and a faster
    process claims more of them.

    Attributes:
        claimed: shards whose batches were handed out and that are not written yet, in order.
        busy: shards that another process holds.
        num_done: rows of shards that another process finished meanwhile.
    """

    def __init__(self, store: FeatureStore, todo: Sequence[Shard], batch_size: int):
        self.store, self.todo, self.batch_size = store, todo, batch_size
        self.claimed: deque[Shard] = deque()
        self.busy: list[Shard] = []
        self.num_done = 0

    def __iter__(self):
        for shard in self.todo:
            if not self.store.claim(shard):
                self.busy.append(shard)
            elif self.store.has(shard):
                self.store.release(shard)
                self.num_done += len(shard)
            else:
                self.claimed.append(shard)
                for start in range(shard.start, shard.stop, self.batch_size):
                    stop = min(start + self.batch_size, shard.stop)
                    yield [(shard.view, row) for row in range(start, stop)]


@torch.no_grad()
def _forward(model, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = {name: value.to(model.device, non_blocking=True) for name, value in batch.items() if name != "labels"}
    patch_embeds, image_embeds, patch_mask = model.get_image_features(**inputs)
    if patch_mask is None:
        patch_mask = torch.ones(patch_embeds.shape[:2], dtype=torch.bool, device=patch_embeds.device)
    return patch_embeds, image_embeds, patch_mask


def _feature_shape(model, processor, images) -> tuple[int, int, int]:
    """Patches N, their width D, and the width of the pooled output, from a forward pass over the first image."""
    patch_embeds, image_embeds, _ = _forward(model, ParCollator(processor)([images[0]]))
    return *patch_embeds.shape[1:], image_embeds.shape[-1]


def _check_room(store: FeatureStore, memory_gib: float) -> None:
    """Logs how large the features are, and raises if they do not fit, before anything is computed."""
    N, D, _ = store.shape
    description = (
        f"features of {len(store):,} images x {len(store.views)} view(s) x {N} patches x {D} as {store.dtype}: "
        f"{store.nbytes / _GIB:.2f} GiB"
    )
    if store.directory is None:
        if store.nbytes > memory_gib * _GIB:
            raise ParValueError(
                f"the features would take {store.nbytes / _GIB:.2f} GiB and memory_gib={memory_gib:g} allows less: "
                "keep them in a folder (directory=, --cache-features), raise the limit, use fewer patches per image, "
                "or train from images (precompute_features=False)"
            )
        logger.info("%s of memory", description)
        return
    missing = sum(len(shard) for shard in store.missing())
    needed = store.nbytes * missing // (len(store) * len(store.views))
    free = shutil.disk_usage(store.directory).free
    logger.info(
        "%s in %s, %.2f GiB of it to be computed; %.1f GiB of disk are free",
        description, store.directory, needed / _GIB, free / _GIB,
    )  # fmt: skip
    if needed > free:
        raise ParValueError(
            f"the features would take another {needed / _GIB:.2f} GiB in {str(store.directory)!r} and "
            f"{free / _GIB:.2f} GiB are free: name a folder on another disk, or use dtype='int8', fewer views, or "
            "fewer patches per image"
        )


def _fill(store, model, processor, images, schema, batch_size, workers, progress) -> None:
    """Computes the missing shards, together with other processes that fill the same folder."""
    todo = store.missing()
    if not todo:
        return
    total = sum(len(shard) for shard in todo)
    first_process = int(os.environ.get("RANK", "0")) == 0
    bar = tqdm(
        total=total, desc="backbone features", unit="image", disable=not (progress and first_process), leave=False
    )
    waiting = False
    with bar:
        while todo:
            sampler = _ShardSampler(store, todo, batch_size)
            _compute_shards(sampler, store, model, processor, images, schema, workers, bar)
            bar.update(sampler.num_done)
            if len(sampler.busy) == len(todo):
                if not waiting:
                    logger.info("waiting for %d shards that other processes compute", len(todo))
                waiting = True
                time.sleep(_WAIT_SECONDS)
            todo = sampler.busy


def _compute_shards(sampler, store, model, processor, images, schema, workers, bar) -> None:
    loader = DataLoader(
        _AugmentedViews(images, schema, store.views),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=ParCollator(processor),
        pin_memory=model.device.type == "cuda",
        # Its own generator: otherwise computing features would change the random numbers of the training.
        generator=torch.Generator(),
    )
    batches: list[dict[str, torch.Tensor]] = []
    # One shard is written while the next one is computed.
    writer, writing = ThreadPoolExecutor(1), None
    try:
        for batch in loader:
            shard = sampler.claimed[0]
            first = shard.start + sum(len(one["patch_mask"]) for one in batches)
            batches.append(store.encode(*_forward(model, batch), first=first))
            bar.update(len(batches[-1]["patch_mask"]))
            if sum(len(one["patch_mask"]) for one in batches) == len(shard):
                if writing is not None:
                    writing.result()
                writing = writer.submit(_write_shard, store, shard, batches)
                sampler.claimed.popleft()
                batches = []
        if writing is not None:
            writing.result()
    finally:
        writer.shutdown()
        for shard in sampler.claimed:
            store.release(shard)


def _write_shard(store: FeatureStore, shard: Shard, batches: list[dict[str, Any]]) -> None:
    try:
        store.put(shard, join_batches(batches))
    finally:
        store.release(shard)
