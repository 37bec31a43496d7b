"""`FeatureDataset`: features of a frozen backbone as a data set for the Trainer."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vlm_par_hf.data.collator import StackedRows
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema

from .store import FeatureStore


__all__ = ["FeatureDataset"]


class FeatureDataset(Dataset):
    """Precomputed features of one split as a map-style dataset for the Trainer.

    An item is a dict: `patch_embeds` float32 `(N, D)`, `image_embeds` float32 `(D,)`, `patch_mask` bool `(N,)`,
    `labels` int64 `(A,)`. Its view is drawn from `(seed, epoch, index)` alone, so the order in which items are read,
    the number of workers and an interruption change nothing.

    Args:
        store: the features of S images.
        labels: int64 `(S, A)`, -100 unknown; None: items have none.
        schema: of the labels; says how they change in a mirrored view.
        flip: probability of a mirrored view, if the store has one; among several views the draw is uniform.
        seed: seed of the draw.

    Raises:
        ValueError: the number of labels differs from that of images, or mirrored views and labels without a schema.
    """

    def __init__(
        self,
        store: FeatureStore,
        labels: np.ndarray | None = None,
        *,
        schema: AttributeSchema | None = None,
        flip: float = 0.5,
        seed: int = 0,
    ):
        self.store = store
        self.views = tuple(store.views)
        self.flip = flip
        self.seed = seed
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        if labels is not None and len(labels) != len(store):
            raise ParValueError(f"labels has {len(labels)} rows and the features are of {len(store)} images")
        self._not_mirrored = [name for name, view in store.views.items() if not view.mirrored]
        self._mirrored = [name for name, view in store.views.items() if view.mirrored]
        self._mirrored_labels = None
        if self._mirrored and labels is not None:
            if schema is None:
                raise ParValueError(f"schema is None: the labels of the views {self._mirrored} follow its mirror")
            self._mirrored_labels = schema.mirror_labels(self.labels)
        # In shared memory: persistent workers keep the copy of this object that they got in the first epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose views are drawn; the data loader calls it at the start of each one."""
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self.store)

    def _view(self, index: int, epoch: int) -> str:
        if len(self.views) == 1:
            return self.views[0]
        rng = np.random.default_rng((self.seed, epoch, index))
        group = self._mirrored if self._mirrored and rng.random() < self.flip else self._not_mirrored
        return group[0] if len(group) == 1 else group[rng.integers(len(group))]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> StackedRows:
        """The rows of a batch in one tensor per key; a data loader calls this method where it exists."""
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is outside of {len(self)} samples")
        rows, epoch = [int(index) % len(self) for index in indices], self.epoch
        views = [self._view(row, epoch) for row in rows]
        tensors = self.store.read(rows, views)
        if self.labels is not None:
            labels = self.labels[rows]
            mirrored = np.array([view in self._mirrored for view in views])
            if mirrored.any():
                labels[mirrored] = self._mirrored_labels[np.array(rows)[mirrored]]
            tensors["labels"] = torch.from_numpy(labels)
        return StackedRows(tensors)

    def batches(self, batch_size: int = 256, rows: Sequence[int] | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """The first view of `rows` (None: all), in order, as dicts of stacked tensors."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            tensors = self.store.read(part.tolist())
            if self.labels is not None:
                tensors["labels"] = torch.from_numpy(self.labels[part])
            yield tensors

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.store.nbytes
