"""Features of a frozen backbone, computed once and held in memory.

The backbone of VLM-PAR is frozen, so without image augmentation its output for an image never changes: one pass gives
everything that the heads train on. A horizontal flip is kept as a second view with its own mirrored labels.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader, Dataset

from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator


__all__ = ["VIEWS", "FeatureDataset", "compute_features"]

logger = logging.getLogger(__name__)

VIEWS = ("identity", "flip")
_GIB = 2**30


class FeatureDataset(Dataset):
    """Precomputed features of one split as a map-style dataset for the Trainer.

    An item is a dict: `patch_embeds` float32 `(N, D)`, `image_embeds` float32 `(D,)`, `patch_mask` bool `(N,)`,
    `labels` int64 `(A,)`. With two views, which one an item shows is drawn from `(seed, epoch, index)`: the order in
    which items are asked for, the number of workers and an interruption change nothing.

    Args:
        patch_embeds: `(V, S, N, D)`, V views of S samples.
        image_embeds: `(V, S, D)`.
        patch_mask: bool `(V, S, N)`.
        labels: int64 `(V, S, A)`, -100 unknown.
        views: the names of the V views, the first is `"identity"`.
        flip: probability of the second view.
        seed: seed of the draw.
    """

    def __init__(
        self,
        patch_embeds: torch.Tensor,
        image_embeds: torch.Tensor,
        patch_mask: torch.Tensor,
        labels: torch.Tensor,
        *,
        views: Sequence[str] = ("identity",),
        flip: float = 0.5,
        seed: int = 0,
    ):
        if patch_embeds.ndim != 4 or len(views) != patch_embeds.shape[0]:
            raise ValueError(
                f"patch_embeds has shape {tuple(patch_embeds.shape)}: expected (views, samples, patches, width) "
                f"with {len(views)} views"
            )
        lengths = {tuple(tensor.shape[:2]) for tensor in (patch_embeds, image_embeds, patch_mask, labels)}
        if len(lengths) != 1:
            raise ValueError(f"views and samples differ between the feature tensors: {sorted(lengths)}")
        self.patch_embeds = patch_embeds
        self.image_embeds = image_embeds
        self.patch_mask = patch_mask
        self.labels = labels
        self.views = tuple(views)
        self.flip = flip
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the views of this epoch; called by the data loader at the start of each one."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.patch_embeds.shape[1]

    def _view(self, index: int) -> int:
        if len(self.views) == 1:
            return 0
        return int(np.random.default_rng((self.seed, self.epoch, index)).random() < self.flip)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside of {len(self)} samples")
        index = index % len(self)
        view = self._view(index)
        return {
            "patch_embeds": self.patch_embeds[view, index].float(),
            "image_embeds": self.image_embeds[view, index].float(),
            "patch_mask": self.patch_mask[view, index],
            "labels": self.labels[view, index],
        }

    def batches(self, batch_size: int = 256):
        """The first view in order, as dicts of stacked tensors: what statistics are fitted on."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield {
                "patch_embeds": self.patch_embeds[0, rows].float(),
                "image_embeds": self.image_embeds[0, rows].float(),
                "patch_mask": self.patch_mask[0, rows],
                "labels": self.labels[0, rows],
            }

    @property
    def nbytes(self) -> int:
        """Memory that the features take, in bytes."""
        tensors = (self.patch_embeds, self.image_embeds, self.patch_mask, self.labels)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compute_features(
    model,
    dataset,
    processor,
    batch_size: int = 64,
    *,
    views: Sequence[str] = ("identity",),
    dtype: torch.dtype = torch.float16,
    memory_gib: float = 4.0,
    workers: int = 0,
    flip: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> FeatureDataset:
    """Run the frozen backbone over a dataset of images once per view.

    Args:
        model: a `VlmParModel`; it is run in eval mode, without gradients, on the device where it lies.
        dataset: map-style, items with `image` and `labels` (int64, length A).
        processor: the model's `VlmParProcessor`.
        batch_size: images per forward pass.
        views: `("identity",)` or `("identity", "flip")`.
        dtype: what features are stored as; half precision by default, a fifth significant digit of a frozen feature
            is below the noise of training. Values beyond its range are refused.
        memory_gib: the limit; the size is known after the first batch, before anything large is allocated.
        workers: data loader processes that decode and preprocess.
        flip: probability of the flipped view in training.
        seed: seed of the draw between views.
        progress: show a progress bar.

    Returns:
        A `FeatureDataset` with features on the CPU.

    Raises:
        ValueError: `views` is neither of the two forms; the dataset is empty; the backbone is not frozen; the features
            would take more than `memory_gib`; a feature does not fit into `dtype`.
    """
    views = tuple(views)
    if views not in (VIEWS[:1], VIEWS):
        raise ValueError(f"views={views!r}: expected {VIEWS[:1]!r} or {VIEWS!r}")
    if len(dataset) == 0:
        raise ValueError("dataset is empty: expected at least one image")
    if not model.config.freeze_backbone:
        raise ValueError(
            "compute_features needs a frozen backbone, and config.freeze_backbone is False: features would be stale "
            "after the first step; train from images instead (precompute_features=False)"
        )
    mirror = ParAugmentation(model.config.schema, flip=1.0, pad=0.0)
    was_training = model.training
    model.eval()
    store: dict[str, torch.Tensor] = {}
    bar = tqdm(
        total=len(views) * len(dataset), desc="backbone features", unit="image", disable=not progress, leave=False
    )
    try:
        for view_index, view in enumerate(views):
            loader = DataLoader(
                AugmentedDataset(dataset, mirror if view == "flip" else None),
                batch_size=batch_size,
                num_workers=workers,
                collate_fn=ParCollator(processor),
            )
            start = 0
            for batch in loader:
                labels = batch.pop("labels")
                with torch.inference_mode():
                    inputs = {name: value.to(model.device) for name, value in batch.items()}
                    patch_embeds, image_embeds, patch_mask = model.get_image_features(**inputs)
                if patch_mask is None:
                    patch_mask = torch.ones(patch_embeds.shape[:2], dtype=torch.bool)
                found = {
                    "patch_embeds": _as_stored(patch_embeds, dtype, "patch_embeds"),
                    "image_embeds": _as_stored(image_embeds, dtype, "image_embeds"),
                    "patch_mask": patch_mask.bool().cpu(),
                    "labels": labels.to(torch.int64).cpu(),
                }
                if not store:
                    store = _allocate(found, len(views), len(dataset), memory_gib)
                elif found["patch_embeds"].shape[1] > store["patch_embeds"].shape[2]:
                    store = _widen(store, found["patch_embeds"].shape[1], memory_gib)
                stop = start + len(labels)
                for name, value in found.items():
                    if name in ("patch_embeds", "patch_mask"):
                        # A batch may be padded to fewer patches than the widest one: the rest stays masked.
                        store[name][view_index, start:stop, : value.shape[1]] = value
                    else:
                        store[name][view_index, start:stop] = value
                bar.update(stop - start)
                start = stop
    finally:
        bar.close()
        model.train(was_training)
    features = FeatureDataset(**store, views=views, flip=flip, seed=seed)
    logger.info(
        "features of %d images, %d view(s), %d patches: %.2f GiB in memory",
        len(features), len(views), store["patch_embeds"].shape[2], features.nbytes / _GIB,
    )  # fmt: skip
    return features


def _as_stored(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    stored = values.to(device="cpu", dtype=dtype)
    if not torch.isfinite(stored).all():
        if torch.isfinite(values).all():
            raise ValueError(
                f"{name} reaches {values.abs().max().item():.3g}, beyond the range of {dtype}: "
                "pass dtype=torch.float32"
            )
        raise ValueError(f"{name} of the backbone is not finite: check the checkpoint and its precision")
    return stored


def _check_memory(needed: int, memory_gib: float) -> None:
    if needed > memory_gib * _GIB:
        raise ValueError(
            f"the features would take {needed / _GIB:.2f} GiB and memory_gib={memory_gib:g} allows less: train from "
            "images instead (precompute_features=False), raise the limit, or use fewer patches per image"
        )


def _allocate(found: dict[str, torch.Tensor], views: int, samples: int, memory_gib: float) -> dict[str, torch.Tensor]:
    shapes = {name: (views, samples, *value.shape[1:]) for name, value in found.items()}
    _check_memory(sum(int(np.prod(shapes[name])) * value.element_size() for name, value in found.items()), memory_gib)
    return {name: torch.zeros(shapes[name], dtype=value.dtype) for name, value in found.items()}


def _widen(store: dict[str, torch.Tensor], patches: int, memory_gib: float) -> dict[str, torch.Tensor]:
    grown = dict(store)
    for name in ("patch_embeds", "patch_mask"):
        old = store[name]
        shape = (*old.shape[:2], patches, *old.shape[3:])
        _check_memory(int(np.prod(shape)) * old.element_size(), memory_gib)
        grown[name] = old.new_zeros(shape)
        grown[name][:, :, : old.shape[2]] = old
    return grown
