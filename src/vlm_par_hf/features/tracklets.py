"""Features of the frames of tracklets, as a data set of tracklets."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vlm_par_hf.data.collator import StackedRows
from vlm_par_hf.data.tracklets import group_tracklets, sample_frames

from .dataset import FeatureDataset


__all__ = ["TrackletFeatures"]


class TrackletFeatures(FeatureDataset):
    """Precomputed features of frames, tracklet by tracklet, with the draws of `TrackletDataset`.

    An item is a dict as that of `FeatureDataset` with an axis of frames, `(T, ...)`, and `frame_mask`, bool `(T,)`.
    Among several views, one draw decides whether a tracklet is mirrored; each frame then takes one of those views.

    Args:
        features: of the rows of `dataset`, from `compute_features`.
        dataset: rows with `tracklet_id` and `frame`.
        num_frames: at most so many frames per tracklet; None: all.
        random: whether frames are drawn at random within segments, or spread evenly.

    Raises:
        ValueError: as `group_tracklets`.
    """

    def __init__(
        self, features: FeatureDataset, dataset: Any, num_frames: int | None = None, *, random: bool = False
    ) -> None:
        self.__dict__.update(features.__dict__)  # its store, labels, views and seed
        self.tracklets = group_tracklets(dataset)
        self.num_frames, self.random = num_frames, random

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitems__(self, indices: Sequence[int]) -> StackedRows:
        """The tracklets of a batch in one tensor per key; short ones are filled up with their last frame, masked."""
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is outside of {len(self)} tracklets")
        chosen, views, labels, epoch = [], [], [], self.epoch
        for index in (int(one) % len(self) for one in indices):
            rng = np.random.default_rng((self.seed, epoch, index))
            rows = self.tracklets[index]
            if self.num_frames is not None:
                rows = rows[sample_frames(len(rows), self.num_frames, rng if self.random else None)]
            mirrored = bool(self._mirrored) and len(self.views) > 1 and rng.random() < self.flip
            group = self._mirrored if mirrored else self._not_mirrored
            chosen.append(rows.tolist())
            views.append([group[rng.integers(len(group))] for _ in rows])
            if self.labels is not None:
                labels.append((self._mirrored_labels if mirrored else self.labels)[rows[0]])
        lengths = torch.tensor([len(rows) for rows in chosen])
        T = int(lengths.max())
        for rows, names in zip(chosen, views):
            names += names[-1:] * (T - len(names))
            rows += rows[-1:] * (T - len(rows))
        flat = self.store.read([row for rows in chosen for row in rows], [name for names in views for name in names])
        tensors = {name: value.unflatten(0, (len(chosen), T)) for name, value in flat.items()}
        tensors["frame_mask"] = torch.arange(T) < lengths[:, None]
        if labels:
            tensors["labels"] = torch.from_numpy(np.stack(labels))
        return StackedRows(tensors)

    def batches(self, batch_size: int = 256, rows: Sequence[int] | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """The tracklets `rows` (None: all), in order, as dicts of stacked tensors."""
        rows = range(len(self)) if rows is None else rows
        for start in range(0, len(rows), batch_size):
            yield dict(self.__getitems__(list(rows[start : start + batch_size])).tensors)
