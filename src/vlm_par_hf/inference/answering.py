"""Answers about people over time: their pictures go through the model in batches across people, and what it says of
the pictures of one person becomes one answer."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import shorten

from .following import Follower, Person, Sighting
from .track_files import read_track_file
from .tracklets import aggregate_logits, chosen_aggregate
from .trust import trust_note
from .videos import Video


__all__ = ["FOLLOWING_OPTIONS", "NO_PICTURE", "PeopleAnswerer", "answer_tracks"]

logger = logging.get_logger(__name__)

NO_PICTURE = "no box of this person holds a pixel of a frame that can be decoded"

FOLLOWING_OPTIONS = ("first_frame", "every", "budget")  # of `answer_tracks`


class PeopleAnswerer:
    """Asks a pipeline about sightings.

    Args:
        pipe: the pipeline.
        batch_size: pictures per forward.
        aggregate: how the answers for the pictures of a person become one, see `aggregate_logits`; None:
            `"mean_logits"`. Must be None for a model that takes several frames.
        keep_pictures: sightings keep their pictures after they were asked about.
        forward, postprocess: in place of the parameters that the pipeline was made with.

    Raises:
        ValueError: an unknown `aggregate`, or one for a model that takes several frames.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        batch_size: int = 16,
        aggregate: str | None = None,
        keep_pictures: bool = False,
        forward: Mapping[str, Any] | None = None,
        postprocess: Mapping[str, Any] | None = None,
    ):
        self.pipe, self.batch_size = pipe, batch_size
        self.aggregate = chosen_aggregate(pipe.model, aggregate)
        self.reads_tracklets = self.aggregate is None
        self.keep_pictures = keep_pictures or self.reads_tracklets
        self._forward = {**pipe._forward_params, **(forward or {}), "explain": False}
        self._postprocess = {**pipe._postprocess_params, **(postprocess or {}), "explain": False}
        self._schema, self._thresholds, self._biases = pipe.frame_decisions(self._postprocess)
        note = trust_note(pipe.model)
        self._notes = {} if note is None else {"note": note}
        self._waiting: list[Sighting] = []

    def add(self, sightings: Iterable[Sighting]) -> None:
        """Takes sightings to ask about; full batches are asked at once."""
        waiting = {id(one) for one in self._waiting}
        self._waiting += [one for one in sightings if one.logits is None and id(one) not in waiting]
        while len(self._waiting) >= self.batch_size:
            self._ask(self.batch_size)

    def flush(self) -> None:
        """Asks about all that wait."""
        while self._waiting:
            self._ask(self.batch_size)

    def _ask(self, count: int) -> None:
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        images = [one.image for one in batch]
        # A tracklet of one frame is what a model of tracklets says of a single picture.
        pictures = {"videos": [[image] for image in images]} if self.reads_tracklets else {"images": images}
        names = [f"a person in frame {one.frame}" for one in batch]
        for one, logits in zip(batch, self._score(names, **pictures)):
            one.logits = logits
            if not self.keep_pictures:
                one.image = None

    def _score(self, names: list[str], **pictures: Any) -> np.ndarray:
        inputs = dict(self.pipe.processor(**pictures, return_tensors="pt"))
        return self.pipe._forward(inputs, names=names, **self._forward)["logits"].numpy()

    def _together(self, person: Person) -> np.ndarray:
        """The logits `(A, C)` for all sightings of a person."""
        if self.reads_tracklets:
            return self._score([f"person {person.id}"], videos=[[one.image for one in person.sightings]])[0]
        return aggregate_logits(
            np.stack([one.logits for one in person.sightings]), self._schema, self.aggregate,
            thresholds=self._thresholds, biases=self._biases,
        )  # fmt: skip

    def _decide(self, logits: np.ndarray, heights: list[int], **options: Any) -> list[dict[str, Any]]:
        return self.pipe.postprocess(
            {"logits": torch.from_numpy(logits)}, heights=heights, **self._postprocess, **options
        )

    def answer(self, person: Person) -> dict[str, Any]:
        """What the model says of a person all of whose sightings were asked.

        Returns:
            `{"id", "attributes", "frames" and "times" that were asked, "first_frame", "last_frame", "first_time",
            "last_time", "seen", "best", "timeline"}`: `best` is the frame, time, box and quality of the best picture;
            `timeline` holds for each attribute the answers to the single pictures, in the order of `times`.
        """
        sightings, best = person.sightings, person.best
        heights = [one.box[3] - one.box[1] for one in sightings]
        (answer,) = self._decide(self._together(person)[None], [max(heights)], majority=self.aggregate == "vote")
        single = self._decide(np.stack([one.logits for one in sightings]), heights)
        return {
            "id": person.id,
            **self._notes,
            **answer,
            "frames": [one.frame for one in sightings],
            "times": [round(one.time, 3) for one in sightings],
            "first_frame": person.first[0],
            "last_frame": person.last[0],
            "first_time": round(person.first[1], 3),
            "last_time": round(person.last[1], 3),
            "seen": person.seen,
            "best": {
                "frame": best.frame,
                "time": round(best.time, 3),
                "box": list(best.box),
                "quality": best.quality,
            },
            "timeline": {
                name: [one["attributes"][name]["label"] if name in one["attributes"] else None for one in single]
                for name in answer["attributes"]
            },
        }


def answer_tracks(
    people: PeopleAnswerer,
    video: str | os.PathLike,
    tracks: str | os.PathLike,
    *,
    first_frame: int = 1,
    every: float = 1.0,
    budget: int = 12,
) -> list[dict[str, Any]]:
    """The people of a video whose tracks a file holds.

    Args:
        people: asks the model.
        video: the file.
        tracks: a track file, see `read_track_file`.
        first_frame: the number of the video's first frame in it, 1 (as MOT has it) or 0.
        every, budget: how often a person is asked about, as for `Follower`.

    Returns:
        By id, what `PeopleAnswerer.answer` returns; for a person of whom no picture can be seen `{"id", "error"}`.
        Frames that cannot be decoded are named in a warning.

    Raises:
        ValueError: the file holds detections without ids. What `Video` and `read_track_file` raise.
    """
    movie = Video(video)
    file = read_track_file(tracks, first_frame=first_frame, num_frames=movie.num_frames)
    if file.ids is None:
        raise ParValueError(
            f"track file {shorten(file.path)} holds boxes without ids (-1), expected tracks: `vlm-par track` makes "
            "them"
        )
    ends = file.ends()
    follower = Follower(every=every, budget=budget)
    gone: list[Person] = []
    for frame in movie.frames(int(file.frames[0]) if len(file.frames) else movie.num_frames):
        rows = file.of(frame.index)
        _, final = follower.observe(frame, file.ids[rows], file.boxes[rows], file.scores[rows])
        people.add(final)
        for person in follower.leave(ends.get(frame.index, ())):
            people.add(person.sightings)
            gone.append(person)
    for person in follower.leave():
        people.add(person.sightings)
        gone.append(person)
    people.flush()
    for damage in movie.damages:
        logger.warning("video %s, %s", shorten(str(movie.path)), damage)
    seen = {person.id: person for person in gone}
    return [_answer(people, seen.get(number), number) for number in sorted(set(file.ids.tolist()))]


def _answer(people: PeopleAnswerer, person: Person | None, number: int) -> dict[str, Any]:
    if person is None or not person.sightings:
        return {"id": number, "error": NO_PICTURE}
    return people.answer(person)
