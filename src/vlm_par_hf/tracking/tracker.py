"""A small tracker: boxes of one frame after another to ids of people, from boxes and scores alone.

After ByteTrack: Multi-Object Tracking by Associating Every Detection Box (Zhang et al., ECCV 2022), section 3: a
Kalman filter with constant velocity predicts where each person is now; boxes of high score are assigned to predictions
first, those of low score (people behind others) then to people who are still without a box; a person whom no box was
assigned to is kept for a while. Own: the filter has no aspect ratio as its state (centre, width and height are
filtered, as in later trackers), ids are given with the first box, so that nothing of a person is lost (what stays a
single box is for the caller to leave out), and people who overlap are never merged: one may stand behind the other.
"""

from typing import Any, Protocol

import numpy as np

from vlm_par_hf.errors import ParValueError


__all__ = ["ByteTracker", "Tracker", "assign", "overlaps"]

# Uncertainty of position and velocity as shares of the box's size (Wojke et al., 2017, whose filter ByteTrack uses).
_POSITION, _VELOCITY = 1 / 20, 1 / 160
# Least overlap of a box and a prediction, by stage.
_FIRST, _SECOND, _UNSURE = 0.2, 0.5, 0.3


class Tracker(Protocol):
    """What numbers the boxes of a video. Others than `ByteTracker` may be given to `track`.

    A tracker may have the attribute `max_gap`: after so many frames in which it has not seen a person, it never gives
    that person's id again.
    """

    def update(self, boxes: np.ndarray, scores: np.ndarray) -> Any:
        """Takes the boxes of the next frame.

        Args:
            boxes: float64 `(N, 4)`: x0, y0, x1, y1 in pixels. N may be 0.
            scores: float64 `(N,)`, 0 to 1.

        Returns:
            N whole numbers: an id per box, -1 for a box that is nobody's.
        """
        ...


class ByteTracker:
    """Kalman filter and association in two stages.

    Args:
        high: boxes of at least this score are assigned first, and only they begin a person.
        low: boxes below this score are not used.
        max_gap: frames that a person may be unseen.

    Raises:
        ValueError: not 0 <= `low` <= `high` <= 1, or `max_gap` is below 0.
    """

    def __init__(self, *, high: float = 0.5, low: float = 0.1, max_gap: int = 30):
        if not 0 <= low <= high <= 1:
            raise ParValueError(f"low is {low} and high is {high}, expected 0 <= low <= high <= 1")
        if max_gap < 0:
            raise ParValueError(f"max_gap is {max_gap}, expected a number of frames")
        self.high, self.low, self.max_gap = high, low, max_gap
        self._next = 1
        self._ids = np.zeros(0, np.int64)
        self._unseen = np.zeros(0, np.int64)  # frames since the last box
        self._seen = np.zeros(0, np.int64)  # boxes so far
        self._mean = np.zeros((0, 8))  # centre x and y, width, height, and their velocities
        self._covariance = np.zeros((0, 8, 8))

    def update(self, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """As `Tracker.update`; int64 `(N,)`."""
        boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)
        ids = np.full(len(boxes), -1, np.int64)
        self._predict()
        predicted = _corners(self._mean[:, :4])
        similarity = overlaps(predicted, boxes)
        strong, weak = np.flatnonzero(scores >= self.high), np.flatnonzero((scores >= self.low) & (scores < self.high))
        known, unsure = np.flatnonzero(self._seen > 1), np.flatnonzero(self._seen == 1)
        pairs: list[tuple[int, int]] = []

        def match(tracks: np.ndarray, found: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
            """Assigns boxes to people; those of both that are left."""
            some = [
                (tracks[row], found[column])
                for row, column in assign(similarity[np.ix_(tracks, found)])
                if similarity[tracks[row], found[column]] >= least
            ]
            pairs.extend(some)
            return (
                np.setdiff1d(tracks, [one for one, _ in some]).astype(np.int64),
                np.setdiff1d(found, [one for _, one in some]).astype(np.int64),
            )

        known, strong = match(known, strong, _FIRST)
        seen_just_now = known[self._unseen[known] == 0]
        match(seen_just_now, weak, _SECOND)
        _, strong = match(unsure, strong, _UNSURE)
        self._unseen += 1
        if pairs:
            tracks, found = (np.array(one, np.int64) for one in zip(*pairs))
            self._correct(tracks, boxes[found])
            self._unseen[tracks] = 0
            self._seen[tracks] += 1
            ids[found] = self._ids[tracks]
        ids[strong] = self._begin(boxes[strong])
        self._forget()
        return ids

    def _begin(self, boxes: np.ndarray) -> np.ndarray:
        """New people."""
        count = len(boxes)
        ids = np.arange(self._next, self._next + count)
        self._next += count
        state = _centres(boxes)
        deviation = np.concatenate([2 * _POSITION * _scale(state), 10 * _VELOCITY * _scale(state)], 1)
        self._ids = np.concatenate([self._ids, ids])
        self._unseen = np.concatenate([self._unseen, np.zeros(count, np.int64)])
        self._seen = np.concatenate([self._seen, np.ones(count, np.int64)])
        self._mean = np.concatenate([self._mean, np.concatenate([state, np.zeros((count, 4))], 1)])
        self._covariance = np.concatenate([self._covariance, deviation[:, :, None] ** 2 * np.eye(8)])
        return ids

    def _predict(self) -> None:
        """One frame later: x' = F x, P' = F P F^T + Q."""
        if not len(self._ids):
            return
        scale = _scale(self._mean[:, :4])
        noise = np.concatenate([_POSITION * scale, _VELOCITY * scale], 1)
        # A person who is not seen does not go on shrinking or growing.
        self._mean[self._unseen > 0, 6:] = 0
        step = np.eye(8)
        step[:4, 4:] = np.eye(4)
        self._mean = self._mean @ step.T
        self._mean[:, 2:4] = np.maximum(self._mean[:, 2:4], 1.0)
        self._covariance = step @ self._covariance @ step.T + noise[:, :, None] ** 2 * np.eye(8)

    def _correct(self, tracks: np.ndarray, boxes: np.ndarray) -> None:
        """What was measured: K = P H^T (H P H^T + R)^-1, x += K (z - H x), P -= K H P."""
        mean, covariance = self._mean[tracks], self._covariance[tracks]
        noise = (_POSITION * _scale(mean[:, :4]))[:, :, None] ** 2 * np.eye(4)
        gain = np.linalg.solve(covariance[:, :4, :4] + noise, covariance[:, :4, :]).transpose(0, 2, 1)
        self._mean[tracks] = mean + (gain @ (_centres(boxes) - mean[:, :4])[:, :, None])[:, :, 0]
        self._covariance[tracks] = covariance - gain @ covariance[:, :4, :]

    def _forget(self) -> None:
        """Drops who was unseen for too long, and a single box that nothing followed."""
        keep = self._unseen <= np.where(self._seen > 1, self.max_gap, 0)
        for name in ("_ids", "_unseen", "_seen", "_mean", "_covariance"):
            setattr(self, name, getattr(self, name)[keep])


def _centres(boxes: np.ndarray) -> np.ndarray:
    """Corners to centre, width and height."""
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def _corners(states: np.ndarray) -> np.ndarray:
    half = states[:, 2:4] / 2
    return np.concatenate([states[:, :2] - half, states[:, :2] + half], 1)


def _scale(states: np.ndarray) -> np.ndarray:
    """The size that the uncertainty of each of the four numbers is a share of."""
    return np.maximum(states[:, [2, 3, 2, 3]], 1.0)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes x0, y0, x1, y1, float64 `(N, M)`."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas, other_areas = ((one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas[None] - shared, 1e-9)


def assign(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows and columns with the largest sum of similarities: the Hungarian method, by shortest augmenting
    paths (Jonker and Volgenant, 1987).

    Args:
        similarity: finite numbers `(N, M)`.

    Returns:
        min(N, M) pairs, sorted by row.
    """
    rows, columns = similarity.shape
    if rows > columns:
        return sorted((row, column) for column, row in assign(similarity.T))
    cost = -np.asarray(similarity, np.float64)
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.full(columns + 1, rows)  # the row of each column; the last column is where a path begins
    for row in range(rows):
        owner[columns] = row
        column = columns
        distance, before = np.full(columns, np.inf), np.full(columns, columns)
        done = np.zeros(columns + 1, bool)
        while owner[column] < rows:
            done[column] = True
            current = owner[column]
            free = np.flatnonzero(~done[:columns])
            through = cost[current, free] - row_price[current] - column_price[free]
            nearer = through < distance[free]
            distance[free[nearer]], before[free[nearer]] = through[nearer], column
            nearest = free[np.argmin(distance[free])]
            step = distance[nearest]
            row_price[owner[done]] += step
            column_price[done] -= step
            distance[free] -= step
            column = nearest
        while column != columns:
            owner[column] = owner[before[column]]
            column = before[column]
        owner[columns] = rows
    return sorted((int(owner[column]), column) for column in range(columns) if owner[column] < rows)
