"""People over time: which of the many pictures of a person a model is asked about.

A person who is on screen for ten seconds is seen some 250 times, and most of these pictures say the same. Of every
`every` seconds the best picture is taken, and of a person at most `budget` in all: of two that are nearest in time the
better one stays. So the work grows with people, not with frames, and the pictures spread over the whole time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import shorten

from .videos import VideoFrame


__all__ = ["Follower", "Person", "Sighting", "check_following", "measure_quality", "pixel_box"]

_FULL_HEIGHT = 256  # of a person in pixels: more of them say no more to a model
_CUT_OFF = 0.5  # what a person is worth who touches the edge of the frame, and is probably cut off there
_SAMPLES = 48  # rows that sharpness is measured on


@dataclass
class Sighting:
    """A person in one frame.

    Attributes:
        frame, time: of the video.
        box: x0, y0, x1, y1 in whole pixels inside the frame.
        quality: 0 to 1, to compare pictures of one person.
        image: the picture; None after it was answered and is not the best one.
        logits: of the model, `(A, C)`; None as long as it was not asked.
    """

    frame: int
    time: float
    box: tuple[int, int, int, int]
    quality: float
    image: Image.Image | None = None
    logits: np.ndarray | None = None


@dataclass
class Person:
    """A person while they are on screen.

    Attributes:
        id: of the track.
        first, last: frame and time.
        seen: in so many frames.
        sightings: those that the model is asked about, in the order of time.
        candidate: the best one of the present span of `every` seconds.
    """

    id: int
    first: tuple[int, float]
    last: tuple[int, float]
    seen: int = 0
    sightings: list[Sighting] = field(default_factory=list)
    candidate: Sighting | None = None

    @property
    def best(self) -> Sighting | None:
        """The sighting of the highest quality."""
        return max(self.sightings, key=lambda one: one.quality, default=None)


class Follower:
    """Keeps the people on screen and the pictures of them that are worth an answer.

    Args:
        every: seconds; of each such span one picture is taken.
        budget: pictures of a person at most; 0: no limit.
        max_gap: a person who was not seen in more frames than that, one after another, has left; None: they may always
            come back.
    """

    def __init__(self, *, every: float = 1.0, budget: int = 12, max_gap: int | None = None):
        check_following(every, budget)
        self.every, self.budget, self.max_gap = float(every), budget, max_gap
        self.people: dict[int, Person] = {}
        self._frames = 0  # observed so far
        self._seen_at: dict[int, int] = {}  # person -> the last of them with that person

    def observe(
        self,
        frame: VideoFrame,
        ids: Sequence[int],
        boxes: np.ndarray,
        scores: Sequence[float],
        qualities: Sequence[float] | None = None,
    ) -> tuple[list[float], list[Sighting]]:
        """Takes the people of a frame.

        Args:
            frame: the frame; with `qualities` it needs no pixels, and sightings get no picture.
            ids: of the people; negative ones are nobody yet.
            boxes: `(N, 4)` x0, y0, x1, y1 in pixels.
            scores: of the boxes, 0 to 1.
            qualities: what an earlier call returned for the same frame.

        Returns:
            The quality of each box: 0 for one that cannot be better than the picture that there is. And the sightings
            that are final now: all those of a person whose span of `every` seconds has ended, without a budget.
        """
        found, final = [], []
        self._frames += 1
        for position, number in enumerate(ids):
            if number < 0:
                found.append(0.0)
                continue
            person = self.people.get(int(number))
            if person is None:
                person = self.people[int(number)] = Person(int(number), (frame.index, frame.time), (0, 0.0))
            final += self._end_span(person, frame.time)
            person.last, person.seen = (frame.index, frame.time), person.seen + 1
            self._seen_at[person.id] = self._frames
            box = pixel_box(boxes[position], frame.size)
            if qualities is None:
                least = 0.0 if person.candidate is None else person.candidate.quality
                quality = 0.0
                if box is not None:
                    quality = measure_quality(frame, boxes, position, box, float(scores[position]), least)
            else:
                quality = qualities[position]
            found.append(quality)
            if quality > 0 and (person.candidate is None or quality > person.candidate.quality):
                image = frame.crop(box) if qualities is None else None
                person.candidate = Sighting(frame.index, frame.time, box, quality, image)
        return found, final

    def _end_span(self, person: Person, time: float) -> list[Sighting]:
        """The candidate becomes a sighting when its span is over."""
        if person.candidate is None:
            return []
        start = person.first[1]
        if (time - start) // self.every == (person.candidate.time - start) // self.every:
            return []
        return self._keep(person)

    def _keep(self, person: Person) -> list[Sighting]:
        kept, person.candidate = person.candidate, None
        if kept is None:
            return []
        person.sightings.append(kept)
        if not self.budget:
            return [kept]
        if len(person.sightings) > self.budget:
            times = [one.time for one in person.sightings]
            first = int(np.argmin(np.diff(times))) if self.budget > 1 else 0
            pair = person.sightings[first : first + 2]
            del person.sightings[first if pair[0].quality < pair[1].quality else first + 1]
        return []

    def leave(self, ids: Iterable[int] | None = None) -> list[Person]:
        """The people who have left: those with `ids` and those not seen for `max_gap` frames; all for None."""
        gone = set(self.people if ids is None else ids) & self.people.keys()
        if self.max_gap is not None:
            gone |= {number for number, frame in self._seen_at.items() if self._frames - frame > self.max_gap}
        people = [self.people.pop(number) for number in sorted(gone)]
        for person in people:
            del self._seen_at[person.id]
            self._keep(person)
        return people


def check_following(every: Any, budget: Any) -> None:
    """Checks how often a person is asked about.

    Raises:
        ValueError: `every` is no number above 0, or `budget` no whole number of at least 0.
    """
    is_number = isinstance(every, (int, float)) and not isinstance(every, bool)
    if not is_number or not 0 < every < float("inf"):
        raise ParValueError(f"every is {shorten(every)}, expected a number of seconds above 0")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise ParValueError(
            f"budget is {shorten(budget)}, expected how many pictures of a person are asked about at most, 0 for all"
        )


def pixel_box(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """A box as whole pixels inside a frame; None if it holds no pixel of it."""
    width, height = size
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def measure_quality(
    frame: VideoFrame,
    boxes: np.ndarray,
    position: int,
    inside: tuple[int, int, int, int],
    score: float = 1.0,
    least: float = 0.0,
) -> float:
    """How much a picture of a person is worth, compared with others of the same person.

    The product of the height (full at 256 pixels), the share of the box inside the frame, halved where it touches the
    edge, the share that nobody in front covers, the detector's score and the sharpness (edges per contrast).

    Args:
        frame: the frame.
        boxes: of all people in it, `(N, 4)`.
        position: of the person among them.
        inside: the part of the box inside the frame, in whole pixels.
        score: of the box, 0 to 1.
        least: what is worth no more than this need not be measured to the end.

    Returns:
        A number in (0, 1]; 0 for `least` or below.
    """
    x0, y0, x1, y1 = inside
    width, height = frame.size
    box = boxes[position]
    area = max(float(box[2] - box[0]) * float(box[3] - box[1]), 1e-6)
    value = score * min(1.0, (y1 - y0) / _FULL_HEIGHT)
    value *= min(1.0, (x1 - x0) * (y1 - y0) / area)
    if x0 <= 0 or y0 <= 0 or x1 >= width or y1 >= height:
        value *= _CUT_OFF
    value *= 1 - _covered(boxes, position)
    if value <= least:
        return 0.0
    rows = frame.brightness(inside)
    step = max(1, rows.shape[0] // _SAMPLES)
    rows = rows[::step].astype(np.float32)
    edges = np.abs(np.diff(rows, 2, axis=1)).mean() if rows.shape[1] > 2 else 0.0
    value *= float(0.1 + 0.9 * min(1.0, edges / (float(rows.std()) + 1.0)))
    return round(value, 6) if value > least else 0.0


def _covered(boxes: np.ndarray, position: int) -> float:
    """The largest share of a box that another one covers whose lower edge is lower: that person is nearer."""
    box = boxes[position]
    others = boxes[boxes[:, 3] > box[3]]
    if not len(others):
        return 0.0
    low, high = np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])
    overlap = np.clip(high - low, 0, None).prod(1)
    return float(min(0.95, overlap.max() / max((box[2:] - box[:2]).prod(), 1e-6)))
