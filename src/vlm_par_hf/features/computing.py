"""Training from features of a frozen backbone that are computed once.

The backbone of VLM-PAR is frozen, so its output for an image never changes: one pass gives everything that the heads
train on. Augmentations become views, each computed once: the flip, and random crops.
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
from vlm_par_hf.data.carried import read_labels, undecoded

from .dataset import FeatureDataset
from .store import DTYPES, FeatureStore, FeatureView, Shard, describe_features, join_batches


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
    """Run the frozen backbone over a dataset of images once per view, or take what a folder has of that already.

    A folder may be filled by several processes at once (the ranks of `torchrun`, two trainings that start together):
    they share the shards between them, and each returns when all are there. After an interruption, call it again.

    Args:
        model: a `VlmParModel`; it is run in eval mode, without gradients, on the device where it lies.
        dataset: map-style, items with `image` and, where known, `labels` (int64, length A).
        processor: the model's `VlmParProcessor`.
        batch_size: images per forward pass.
        directory: folder of this image set's features; None keeps them in memory.
        views: names, `"identity"` first: see `feature_views`.
        dtype: `"float32"`, `"float16"`, `"bfloat16"` (or torch's) or `"int8"` with a scale per patch. Half precision
            by default: a fifth significant digit of a frozen feature is below the noise of training.
        pad: how far random crops may move, as in `ParAugmentation`.
        crop_seed: of the random crops; not that of the training, so that several seeds share a folder.
        memory_gib: the limit without a folder.
        rows_per_shard: images per file; None: 64 MiB.
        workers: data loader processes that decode and preprocess.
        flip: probability of a mirrored view in training.
        seed: seed of the draw between views.
        progress: show a progress bar.

    Returns:
        A `FeatureDataset` with features on the CPU, or mapped from the files of the folder.

    Raises:
        ValueError: unknown views or dtype; the dataset is empty; the vision tower is trained; the features would take
            more than `memory_gib` or the free disk; a feature does not fit into `dtype`; the folder holds features of
            other weights, images or settings (every difference is named).
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    if not views or views[0] != "identity" or len(set(views)) != len(views):
        raise ValueError(f"views={tuple(views)!r}: expected different names, the first one 'identity'")
    if any(name.startswith("crop") for name in views) and pad == 0:
        raise ValueError("pad=0: random crops differ from the whole image only where it is padded first")
    chosen = {name: FeatureView.from_name(name, pad=pad, seed=crop_seed) for name in views}
    if len(dataset) == 0:
        raise ValueError("dataset is empty: expected at least one image")
    if not model.supports_features:
        raise ValueError(
            f"{type(model).__name__} trains a part of its vision tower, so its features cannot be computed once: "
            "train from images (precompute_features=False, no cache_features)"
        )
    if not model.supports_training:
        raise ValueError(
            f"{type(model).__name__} cannot be trained, and features are there to train from: compute them with the "
            "model that it was made from"
        )
    if not model.config.freeze_backbone:
        raise ValueError(
            "compute_features needs a frozen backbone, and config.freeze_backbone is False: features would be stale "
            "after the first step; train from images instead (precompute_features=False)"
        )
    schema = model.config.schema
    labels, images = read_labels(dataset), _Images(dataset)
    was_training = model.training
    model.eval()
    try:
        store = FeatureStore.create(
            len(images),
            lambda: _probe(model, processor, images),
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


class _Images:
    """The images of a data set, and nothing else of it."""

    def __init__(self, dataset):
        if hasattr(dataset, "select_columns"):
            dataset = dataset.select_columns(["image"])
        self.rows = undecoded(dataset)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"image": self.rows[index]["image"]}


class _Views:
    """Items are asked for as (view, row), those of a batch all of one view."""

    def __init__(self, images, schema, views: dict[str, FeatureView]):
        self.views = {}
        for name, view in views.items():
            change = ParAugmentation(schema, flip=float(view.mirrored), pad=view.pad)
            self.views[name] = AugmentedDataset(images, change if name != "identity" else None, seed=view.seed)
            self.views[name].set_epoch(view.draw)

    def __getitems__(self, items: Sequence[tuple[str, int]]):
        return self.views[items[0][0]].__getitems__([row for _, row in items])


class _Work:
    """Batches of the shards that this process could take, as a batch sampler.

    Shards are taken while batches are handed out, so that one data loader runs across all of them and processes that
    work at different speeds all finish at the same time.
    """

    def __init__(self, store: FeatureStore, todo: Sequence[Shard], batch_size: int):
        self.store, self.todo, self.batch_size = store, todo, batch_size
        self.taken: deque[Shard] = deque()
        self.busy: list[Shard] = []
        self.found = 0

    def __iter__(self):
        for shard in self.todo:
            if not self.store.claim(shard):
                self.busy.append(shard)
            elif self.store.has(shard):
                self.store.release(shard)
                self.found += len(shard)
            else:
                self.taken.append(shard)
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


def _probe(model, processor, images) -> tuple[int, int, int]:
    patch_embeds, image_embeds, _ = _forward(model, ParCollator(processor)([images[0]]))
    return *patch_embeds.shape[1:], image_embeds.shape[-1]


def _check_room(store: FeatureStore, memory_gib: float) -> None:
    """Says how large the features are, and refuses what does not fit, before anything is computed."""
    N, D, _ = store.shape
    what = (
        f"features of {len(store):,} images x {len(store.views)} view(s) x {N} patches x {D} as {store.dtype}: "
        f"{store.nbytes / _GIB:.2f} GiB"
    )
    if store.directory is None:
        if store.nbytes > memory_gib * _GIB:
            raise ValueError(
                f"the features would take {store.nbytes / _GIB:.2f} GiB and memory_gib={memory_gib:g} allows less: "
                "keep them in a folder (directory=, --cache-features), raise the limit, use fewer patches per image, "
                "or train from images (precompute_features=False)"
            )
        logger.info("%s of memory", what)
        return
    missing = sum(len(shard) for shard in store.missing())
    needed = store.nbytes * missing // (len(store) * len(store.views))
    free = shutil.disk_usage(store.directory).free
    logger.info(
        "%s in %s, %.2f GiB of it to be computed; %.1f GiB of disk are free",
        what, store.directory, needed / _GIB, free / _GIB,
    )  # fmt: skip
    if needed > free:
        raise ValueError(
            f"the features would take another {needed / _GIB:.2f} GiB in {str(store.directory)!r} and "
            f"{free / _GIB:.2f} GiB are free: name a folder on another disk, or use dtype='int8', fewer views, or "
            "fewer patches per image"
        )


def _fill(store, model, processor, images, schema, batch_size, workers, progress) -> None:
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
            work = _Work(store, todo, batch_size)
            _run(work, store, model, processor, images, schema, workers, bar)
            bar.update(work.found)
            if len(work.busy) == len(todo):
                if not waiting:
                    logger.info("waiting for %d shards that other processes compute", len(todo))
                waiting = True
                time.sleep(_WAIT_SECONDS)
            todo = work.busy


def _run(work, store, model, processor, images, schema, workers, bar) -> None:
    loader = DataLoader(
        _Views(images, schema, store.views),
        batch_sampler=work,
        num_workers=workers,
        collate_fn=ParCollator(processor),
        pin_memory=model.device.type == "cuda",
        # Its own, so that the training draws the same numbers whether the features were there already or not.
        generator=torch.Generator(),
    )
    batches: list[dict[str, torch.Tensor]] = []
    # One shard is written while the next one is computed.
    writer, written = ThreadPoolExecutor(1), None
    try:
        for batch in loader:
            batches.append(store.encode(*_forward(model, batch)))
            bar.update(len(batches[-1]["patch_mask"]))
            shard = work.taken[0]
            if sum(len(one["patch_mask"]) for one in batches) == len(shard):
                if written is not None:
                    written.result()
                written = writer.submit(_write, store, shard, batches)
                work.taken.popleft()
                batches = []
        if written is not None:
            written.result()
    finally:
        writer.shutdown()
        for shard in work.taken:
            store.release(shard)


def _write(store: FeatureStore, shard: Shard, batches: list[dict[str, Any]]) -> None:
    try:
        store.put(shard, join_batches(batches))
    finally:
        store.release(shard)
