"""Answers about people over time: their pictures go through the model in batches across people, and what it says of
the pictures of one person becomes one answer."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from vlm_par_hf.errors import ParValueError

from .following import Person, Sighting
from .trust import trust_note


__all__ = ["AGGREGATIONS", "PeopleAnswerer", "aggregate_logits"]

AGGREGATIONS = ("mean_logits", "quality", "vote")


def aggregate_logits(logits: np.ndarray, qualities: np.ndarray, how: str) -> np.ndarray:
    """One answer of several: float32 `(A, C)` of `(T, A, C)`."""
    if how == "mean_logits":
        return logits.mean(0)
    if how == "quality":
        weights = np.asarray(qualities, np.float64) / np.sum(qualities)
        return np.tensordot(weights, logits, 1).astype(np.float32)
    if how == "vote":
        votes = (logits == logits.max(-1, keepdims=True)).mean(0)
        return np.where(logits.max(0) <= -1e3, logits.max(0), np.log(np.maximum(votes, 1e-3))).astype(np.float32)
    raise ParValueError(f"aggregate is {how!r}, expected one of {', '.join(AGGREGATIONS)}")


class PeopleAnswerer:
    """Asks a pipeline about sightings.

    Args:
        pipe: the pipeline.
        batch_size: pictures per forward.
        aggregate: how the answers for the pictures of a person become one.
    """

    def __init__(self, pipe: Any, *, batch_size: int = 16, aggregate: str = "mean_logits"):
        if aggregate not in AGGREGATIONS:
            raise ParValueError(f"aggregate is {aggregate!r}, expected one of {', '.join(AGGREGATIONS)}")
        self.pipe, self.batch_size, self.aggregate = pipe, batch_size, aggregate
        note = trust_note(pipe.model)
        self._notes = {} if note is None else {"note": note}
        self._waiting: list[Sighting] = []
        self.asked = 0

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
        inputs = dict(self.pipe.processor(images=[one.image for one in batch], return_tensors="pt"))
        names = [f"a person in frame {one.frame}" for one in batch]
        for one, logits in zip(batch, self.pipe.score_batch(inputs, names=names).numpy()):
            one.logits = logits
        self.asked += len(batch)

    def answer(self, person: Person) -> dict[str, Any]:
        """What the model says of a person all of whose sightings were asked.

        Returns:
            `{"id", "attributes", "frames" and "times" that were asked, "first_frame", "last_frame", "first_time",
            "last_time", "seen", "best", "timeline"}`: `best` is the frame, time, box and quality of the best picture;
            `timeline` holds for each attribute the answers to the single pictures, in the order of `times`.
        """
        sightings, best = person.sightings, person.best
        logits = np.stack([one.logits for one in sightings])
        qualities = np.array([one.quality for one in sightings])
        height = best.box[3] - best.box[1]
        rows = np.concatenate([aggregate_logits(logits, qualities, self.aggregate)[None], logits])
        answer, *single = self.pipe.answer_scores(torch.from_numpy(rows), heights=[height] * len(rows))
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
