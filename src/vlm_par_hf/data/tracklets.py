"""Tracklets: the frames of one person in a row.

A data set of tracklets is a data set of images with two more columns, `tracklet_id` and `frame`. All rows of a
tracklet have the labels of the tracklet. So models of single pictures train and are measured on its frames as on any
images, and its features are cached as theirs; `TrackletDataset` gives the tracklets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParError, ParValueError
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import shorten, thread_map

from .carried import read_labels
from .transforms import AugmentedDataset


__all__ = [
    "TrackletDataset",
    "combine_labels",
    "group_tracklets",
    "has_tracklets",
    "one_row_per_tracklet",
    "sample_frames",
]


def has_tracklets(dataset: Any) -> bool:
    """Whether the rows of a data set say which tracklet they belong to."""
    return "tracklet_id" in (getattr(dataset, "column_names", None) or ())


def sample_frames(count: int, num_frames: int, rng: np.random.Generator | None = None) -> list[int]:
    """Positions of `num_frames` of `count` frames, in order; all of them if there are no more.

    The frames are divided into as many segments of equal length. Of each one frame is taken: the middle one, or with
    `rng` a random one.

    Raises:
        ValueError: a number below 1.
    """
    if count < 1 or num_frames < 1:
        raise ParValueError(f"count={count} and num_frames={num_frames}, expected at least 1 of both")
    if count <= num_frames:
        return list(range(count))
    edges = [count * place // num_frames for place in range(num_frames + 1)]
    if rng is None:
        return [(first + last - 1) // 2 for first, last in zip(edges, edges[1:])]
    return [int(rng.integers(first, last)) for first, last in zip(edges, edges[1:])]


def group_tracklets(dataset: Any) -> list[np.ndarray]:
    """The rows of each tracklet in the order of its frames, int64; tracklets in the order of their first row. A row
    without `tracklet_id` is a tracklet of its own.

    Raises:
        ValueError: the data set has no tracklets, a frame is there twice, or the labels of a tracklet differ.
    """
    if not has_tracklets(dataset):
        raise ParValueError(
            f"the data set has no column tracklet_id (it has {shorten(getattr(dataset, 'column_names', None))}); "
            "expected one, and a column frame, such as those of rendered_tracklets, mars and tracklets"
        )
    groups: dict[Any, list[int]] = {}
    names = dataset["tracklet_id"][:]
    for row, name in enumerate(names):
        groups.setdefault(("alone", row) if name is None else name, []).append(row)
    frames = dataset["frame"][:] if "frame" in dataset.column_names else list(range(len(dataset)))
    labels = read_labels(dataset)
    found = []
    for name, rows in groups.items():
        ordered = sorted(rows, key=lambda row: frames[row])
        numbers = [frames[row] for row in ordered]
        if len(set(numbers)) < len(numbers):
            twice = next(one for one, following in zip(numbers, numbers[1:]) if one == following)
            raise ParValueError(f"tracklet {shorten(name)} has frame {twice} twice; expected each once")
        if labels is not None and (labels[ordered] != labels[ordered[0]]).any():
            raise ParValueError(
                f"tracklet {shorten(name)}: its frames have different labels; expected those of the tracklet in every "
                "row"
            )
        found.append(np.asarray(ordered))
    return found


def one_row_per_tracklet(dataset: Any) -> Any:
    """The first row of each tracklet, for what is known of a person: labels, `person_id`."""
    return dataset.select([rows[0] for rows in group_tracklets(dataset)])


def combine_labels(labels: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """Labels of a tracklet, int64 `(A,)`, from those of its frames `(T, A)`: of each attribute the most frequent known
    one; -100 where no frame shows it."""
    found = np.full(len(schema), -100, np.int64)
    for place, column in enumerate(np.asarray(labels).T):
        known = column[column >= 0]
        if len(known):
            found[place] = np.bincount(known).argmax()
    return found


class TrackletDataset(AugmentedDataset):
    """The tracklets of a data set as a map-style data set: an item is a dict of `frames`, PIL RGB pictures, and
    `labels`, int64 `(A,)`, if there are any.

    In training the frames are random within segments, and the augmentation is a function of (seed, epoch, index) as
    that of `AugmentedDataset`; one draw decides whether a tracklet is flipped. Otherwise they are spread evenly.

    Args:
        dataset: rows with `image`, `tracklet_id`, `frame` and, if known, `labels`.
        num_frames: at most so many frames per tracklet; None: all.
        transform: `ParAugmentation`; None changes nothing.
        random: whether frames are drawn at random.
        seed: a non-negative integer.

    Raises:
        ValueError: as `group_tracklets`; `num_frames` is below 1.
    """

    def __init__(
        self,
        dataset: Any,
        num_frames: int | None = None,
        transform: Any = None,
        *,
        random: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, transform, seed)
        if num_frames is not None and num_frames < 1:
            raise ParValueError(f"num_frames is {num_frames!r}; expected at least 1, or None for all")
        self.num_frames, self.random = num_frames, random
        self.tracklets = group_tracklets(dataset)

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The tracklets at `indices`; several threads read and transform them."""
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for {len(self)} tracklets")
        return thread_map(self._read, [int(index) % len(self) for index in indices])

    def _read(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        rows = self.tracklets[index]
        if self.num_frames is not None:
            rows = rows[sample_frames(len(rows), self.num_frames, rng if self.random else None)]
        given = [self._rows[int(row)] for row in rows]
        frames = [self._open(row) for row in given]
        labels = given[0].get("labels")
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        if self.transform is not None:
            frames, labels = self.transform.augment_frames(frames, labels, rng)
        return {"frames": frames} if labels is None else {"frames": frames, "labels": labels}

    @staticmethod
    def _open(row: dict[str, Any]) -> Any:
        try:
            return open_image(row["image"])
        except ParError as error:
            where = f"tracklet {shorten(row['tracklet_id'])}, frame {row.get('frame')}"
            raise type(error)(f"{where}: {error}") from error
