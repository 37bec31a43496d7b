"""`track`: the people of a video file, each with their attributes, in one file; a stopped run can be continued."""

import base64
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub.utils import tqdm
from PIL import Image

from vlm_par_hf.annotation.annotator import Annotator, check_finite, to_json
from vlm_par_hf.annotation.results import (
    check_earlier_work,
    finish,
    has_part,
    lock_parts,
    part_name,
    write_part,
    write_report,
)
from vlm_par_hf.errors import ParFileExistsError, ParRuntimeError, ParTypeError, ParValueError
from vlm_par_hf.inference.answering import NO_PICTURE, PeopleAnswerer
from vlm_par_hf.inference.following import Follower, Person, check_following
from vlm_par_hf.inference.track_files import TrackFile, read_track_file
from vlm_par_hf.inference.videos import Damage, Video
from vlm_par_hf.output_folders import open_output, refuse_overlap, sha256_of_file
from vlm_par_hf.utils import read_json_object, redact, shorten

from .cvat import write_cvat
from .detection import Detector, TransformersDetector, is_file_of_boxes, open_file
from .drawing import draw_video
from .tracker import ByteTracker, Tracker


__all__ = ["track"]

logger = logging.getLogger(__name__)

_LOW = 0.1  # score from which a box can keep a person who is already known
_MAX_GAP = 2.0  # seconds that a person may be unseen, of the built-in tracker
_FOREIGN_GAP = 10.0  # the same, of a tracker that does not say it: who comes back later is a new person


class _Stamp(NamedTuple):
    """A frame that was followed before: without pixels."""

    index: int
    time: float
    size: tuple[int, int]


def track(
    video: str | os.PathLike,
    out: str | os.PathLike,
    *,
    detector: Any,
    model: str | os.PathLike | None = None,
    tracker: Tracker | None = None,
    every: float = 1.0,
    budget: int = 12,
    aggregate: str | None = None,
    least_seen: int | None = None,
    batch_size: int = 16,
    first_frame: int = 1,
    detector_label: str | int | None = None,
    detector_threshold: float = 0.5,
    only_positive: bool = False,
    sensitive: bool = True,
    attributes: Any = None,
    threshold: float | None = None,
    thresholds: Mapping[str, float] | None = None,
    decide: str | None = None,
    abstain: float | None = None,
    consistent: bool | None = None,
    device: Any = None,
    dtype: Any = None,
    draw: str | os.PathLike | None = None,
    cvat: str | os.PathLike | None = None,
    overwrite: bool = False,
    delete_listed: bool = False,
    frames_per_part: int = 500,
    progress: bool = True,
) -> dict[str, Any]:
    """Finds, follows and answers the people of a video file; continues an earlier run that was stopped.

    `out` (`.jsonl`) has a line per person, sorted by id: what `PeopleAnswerer.answer` returns, with `"video"` and
    `"image"`, the best picture, in the folder `out.crops` beside it (its path starts at the folder of `out`). The
    boxes of all frames stand beside it as `out.mot.txt`, a track file as the MOT Challenge has it, whose frames count
    from 1. Frames that cannot be decoded and people without a picture are named in the report.

    Args:
        video: the file.
        out: the file to write.
        detector: finds people: a track file (`.txt`, `.csv`, see `read_track_file`), which may say who is who, an
            OpenVINO detector (`.xml`), or what the pipeline takes: the name of a model, or a function.
        model, only_positive, sensitive, attributes, threshold, thresholds, decide, abstain, consistent, device, dtype:
            as for `Annotator`.
        tracker: numbers the boxes where no file does; None: `ByteTracker`.
        every, budget: how often a person is asked about, as for `Follower`.
        aggregate: as for `PeopleAnswerer`.
        least_seen: people seen in fewer frames are left out, as detectors err; None: 3, and 1 for a file of tracks.
        batch_size: pictures per forward.
        first_frame: number of the first frame in a track file, 1 (as MOT has it) or 0.
        detector_label: of people; by default "person", of an OpenVINO detector the only one. That of an OpenVINO
            detector is a number.
        detector_threshold: the lowest score of a box that begins a person. Lower ones, from 0.1, only keep people who
            are there already.
        draw: a video file (`.mp4`) to write, with boxes and answers.
        cvat: a file to write, for annotation tools: CVAT for video 1.1 (`.xml`).
        overwrite: start anew if `out` or `out.partial` hold other work.
        delete_listed: with `overwrite`: replace files also if they were changed since they were written.
        frames_per_part: so many frames at most are followed again after a run was killed.
        progress: show a bar on standard error.

    Returns:
        The report: `frames`, `people`, `asked` (pictures), `damaged` (`{"first", "last", "reason"}` of frames),
        `unanswered` (`{"id", "error"}`), `too_short` (how many people were seen in fewer than `least_seen` frames),
        `left_out` (rows of a track file that it marks as not to be used), and `run`: what video, model and options
        were.

    Raises:
        ValueError: a wrong argument, video, track file or detector; `out` or `out.partial` hold other work; another
            process is writing `out`.
        FileExistsError: a file to write was changed or is of something else, and `delete_listed` is not set.
        What loading the models raises. Parts that are complete are kept.
    """
    out = Path(out)
    _check_arguments(out, frames_per_part, batch_size, least_seen, overwrite, delete_listed, draw, cvat, detector)
    check_following(every, budget)
    read = {"video": video, "detector": detector if isinstance(detector, (str, os.PathLike)) else None}
    for path in (out, _boxes_path(out), draw, cvat):
        if path is not None:
            refuse_overlap(path, read)
    movie = Video(video)
    from_file = is_file_of_boxes(detector)
    annotator = Annotator(
        model, batch_size=batch_size, only_positive=only_positive, sensitive=sensitive, attributes=attributes,
        threshold=threshold, thresholds=thresholds, decide=decide, abstain=abstain, consistent=consistent,
        device=device, dtype=dtype,
        detector=None if from_file or isinstance(detector, Detector) else detector,
        detector_label="person" if detector_label is None else str(detector_label),
    )  # fmt: skip
    low = min(_LOW, detector_threshold)
    if isinstance(detector, Detector):
        finder = detector
    elif from_file:
        finder = open_file(detector, movie, label=detector_label, threshold=low, first_frame=first_frame)
    else:
        finder = TransformersDetector(
            annotator.find_people, label=annotator.detector_options["detector_label"], threshold=low
        )
    least_seen = least_seen or (3 if finder.tracks is None else 1)
    people = PeopleAnswerer(annotator.pipe, batch_size=batch_size, aggregate=aggregate, keep_pictures=True)
    if people.reads_tracklets and not budget:
        raise ParValueError(
            "budget is 0, but the model reads the pictures of a person together, which would all be kept in memory: "
            "expected a number of pictures"
        )
    schema = annotator.pipe.label_space
    run = {
        "images": movie.num_frames,
        "images_digest": _digest(sha256_of_file(movie.path), finder.digest),
        "images_per_part": frames_per_part,
        "video": redact(str(movie.path)),
        "detector": _name(detector),
        "detector_label": detector_label,
        "detector_threshold": detector_threshold,
        "first_frame": first_frame,
        "tracker": "ByteTracker" if tracker is None else type(tracker).__name__,
        "model": "embedded" if model is None else os.fspath(model),
        "model_digest": annotator.fingerprint(),
        "every": every,
        "budget": budget,
        "aggregate": aggregate,
        "least_seen": least_seen,
        "batch_size": batch_size,
        "only_positive": only_positive,
        "sensitive": sensitive,
        "attributes": list(schema.names),
        "prompts": None if attributes is None else [list(one.prompts) for one in schema],
        "thresholds": {one.name: one.threshold for one in schema if one.is_binary},
        "decide": decide,
        "abstain": abstain,
        "consistent": consistent,
    }
    status = movie.path.stat()
    listing = to_json([str(movie.path), status.st_size, status.st_mtime_ns]) + "\n"
    partial = out.with_name(f"{out.name}.partial")
    with lock_parts(partial, out):
        _check_outputs(out, [_boxes_path(out), draw, cvat], replace=overwrite and delete_listed)
        report = check_earlier_work(out, partial, run, listing, overwrite, delete_listed)
        if report is None:
            job = TrackRun(movie, finder, tracker, people, run)
            with tqdm(total=movie.num_frames, desc="track", unit="frame", disable=not progress) as bar:
                job.follow(partial, bar)
            report = _assemble(out, partial, job, run)
    for path, write in ((draw, _draw), (cvat, _write_cvat)):
        if path is not None and report["files"].get(Path(path).name) is None:
            write(movie, out, Path(path), annotator, progress)
            report["files"][Path(path).name] = sha256_of_file(Path(path))
            write_report(out, report)
    return report


def _check_arguments(out, frames_per_part, batch_size, least_seen, overwrite, delete_listed, draw, cvat, detector):
    for name, path, suffix in (("out", out, ".jsonl"), ("draw", draw, ".mp4"), ("cvat", cvat, ".xml")):
        if path is not None and Path(path).suffix.lower() != suffix:
            raise ParValueError(f"{name}={os.fspath(path)!r}: expected a file ending in {suffix}")
        if path is not None and Path(path).is_dir():
            raise ParValueError(f"{name}={os.fspath(path)!r} is a folder: expected a file to write")
    for name, value, least in (
        ("frames_per_part", frames_per_part, 1),
        ("batch_size", batch_size, 1),
        ("least_seen", 1 if least_seen is None else least_seen, 1),
    ):
        if value < least:
            raise ParValueError(f"{name}={value}: expected at least {least}")
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    if detector is None:
        raise ParTypeError("detector is None, expected a track file, an OpenVINO file or the name of a detector")


def _boxes_path(out: Path) -> Path:
    return out.with_suffix(".mot.txt")


def _check_outputs(out: Path, paths: list[Any], *, replace: bool) -> None:
    """Refuses files that are there and that no run wrote as they are; forgets those in the report that are gone."""
    report = read_json_object(out.with_suffix(".report.json")) or {}
    known = report.get("files") if isinstance(report.get("files"), dict) else {}
    for path in (Path(one) for one in paths if one is not None):
        if path.exists() and not replace and known.get(path.name) != sha256_of_file(path):
            raise ParFileExistsError(
                f"{str(path)!r} is there already and not as a run into {str(out)!r} wrote it: move it, or replace it "
                "(overwrite=True and delete_listed=True, --overwrite --delete-listed)"
            )
    gone = [name for name in known if not (out.parent / name).exists() and name.endswith((".mp4", ".xml"))]
    if gone:
        report["files"] = {name: one for name, one in known.items() if name not in gone}
        write_report(out, report)


def _name(detector: Any) -> str:
    """A detector for the record of a run, the same in every process."""
    if isinstance(detector, (str, os.PathLike)):
        return redact(os.fspath(detector))
    return shorten(getattr(detector, "__qualname__", type(detector).__name__))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


class TrackRun:
    """The state of a run; its parts hold all that another process needs to go on."""

    def __init__(self, video: Video, finder: Detector, tracker: Tracker | None, people: PeopleAnswerer, run: dict):
        self.video, self.finder, self.people, self.run = video, finder, people, run
        if tracker is None:
            high = run["detector_threshold"]
            gap = max(1, round(_MAX_GAP * video.rate))
            tracker = ByteTracker(high=high, low=min(_LOW, high), max_gap=gap)
        self.tracker = tracker
        self._ends = {} if finder.tracks is None else finder.tracks.ends()
        max_gap = None
        if finder.tracks is None:
            max_gap = getattr(tracker, "max_gap", None) or max(1, round(_FOREIGN_GAP * video.rate))
        self.follower = Follower(every=run["every"], budget=run["budget"], max_gap=max_gap)
        self._names: dict[int, int] = {}  # the tracker's id of a person on screen -> ours
        self._next_name = 1
        self.left: list[Person] = []  # people who have left and are to be answered
        self._written: set[tuple[int, int]] = set()  # (id, frame) of pictures and scores that parts hold
        self.count = run["images_per_part"]

    def parts(self) -> list[range]:
        size = self.video.num_frames
        return [range(start, min(start + self.count, size)) for start in range(0, size, self.count)]

    def follow(self, partial: Path, bar: Any) -> None:
        """Follows the frames of all parts that are missing."""
        ranges = self.parts()
        done = 0
        while done < len(ranges) and has_part(partial / part_name(done), len(ranges[done]), self.run):
            done += 1
        for number in range(done):
            self._replay(partial / part_name(number))
        self._load_pictures(partial, done)
        start = ranges[done].start if done < len(ranges) else self.video.num_frames
        if done:
            logger.info("going on: %d of %d frames were done before", start, self.video.num_frames)
        bar.update(start)
        frames = self.video.frames(start)
        ahead = next(frames, None) if done < len(ranges) else None
        for number in range(done, len(ranges)):
            part = ranges[number]
            lines = [""] * len(part)
            while ahead is not None and ahead.index in part:
                lines[ahead.index - part.start] = self._observe(ahead)
                bar.update(ahead.index + 1 - bar.n)
                ahead = next(frames, None)
            if number == len(ranges) - 1:
                self._take_leave(self.follower.leave())
            lines[-1] += "".join(self._end_part(part))
            lines[-1] += "".join(to_json({"damaged": list(one)}) + "\n" for one in self.video.damages)
            write_part(partial / part_name(number), lines, self.run)
        bar.update(self.video.num_frames - bar.n)

    def _observe(self, frame: Any) -> str:
        boxes, scores = self.finder.find(frame)
        ids = self._number(frame.index, boxes, scores)
        qualities, final = self.follower.observe(frame, ids, boxes, scores)
        self.people.add(final)
        self._take_leave(self._leave(frame))
        row = [frame.index, frame.time, [int(one) for one in ids], boxes.tolist(), scores.tolist(), qualities]
        return to_json({"seen": row}) + "\n"

    def _number(self, index: int, boxes: np.ndarray, scores: np.ndarray) -> Any:
        if self.finder.tracks is not None:
            return self.finder.tracks.ids[self.finder.tracks.of(index)]
        ids = np.asarray(self.tracker.update(boxes, scores))
        if ids.shape != (len(boxes),):
            raise ParValueError(f"tracker returned {shorten(ids)}, expected {len(boxes)} ids, one for each box")
        return [-1 if one < 0 else self._name_of(one) for one in ids.tolist()]

    def _name_of(self, number: int) -> int:
        if number not in self._names:
            self._names[number] = self._next_name
            self._next_name += 1
        return self._names[number]

    def _leave(self, frame: Any) -> list[Person]:
        gone = self.follower.leave(self._ends.get(frame.index, ()))
        here = self.follower.people
        if gone:
            self._names = {number: name for number, name in self._names.items() if name in here}
        return gone

    def _take_leave(self, people: list[Person]) -> None:
        """People who have left wait for their answers; who was seen too seldom is not asked about."""
        for person in people:
            if person.seen >= self.run["least_seen"]:
                self.people.add(person.sightings)
        self.left += people

    def _end_part(self, part: range) -> Iterator[str]:
        """Lines about the people who left in a part, and what the next part needs of those who are still there."""
        self.people.flush()
        for person in self.left:
            yield to_json(self._row(person)) + "\n"
        self.left = []
        for person in self.follower.people.values():
            best = person.best
            for one in (*person.sightings, *([person.candidate] if person.candidate else [])):
                key = (person.id, one.frame)
                if one.logits is not None:
                    if key not in self._written:
                        yield to_json({"scores": [*key, one.logits.tolist()]}) + "\n"
                        self._written.add(key)
                    if one is not best:
                        one.image = None
                if one.image is not None and one.frame in part:
                    yield to_json({"picture": [*key, _encode(one.image, "PNG", compress_level=1)]}) + "\n"
        self._written = {key for key in self._written if key[0] in self.follower.people}

    def _row(self, person: Person) -> dict[str, Any]:
        if person.seen < self.run["least_seen"]:
            return {"short": person.id}
        if not person.sightings:
            return {"error": NO_PICTURE, "id": person.id}
        row = self.people.answer(person)
        check_finite([row], f"person {person.id}")
        return {"person": row, "crop": _encode(person.best.image, "JPEG", quality=92)}

    def _replay(self, path: Path) -> None:
        """Brings tracker and follower to where they were at the end of a part."""
        scores: dict[tuple[int, int], np.ndarray] = {}
        for line in _lines(path):
            if "seen" in line:
                index, time, ids, boxes, found, qualities = line["seen"]
                frame = _Stamp(index, time, self.video.size)
                boxes = np.array(boxes, np.float64).reshape(-1, 4)
                if list(self._number(index, boxes, np.array(found))) != ids:
                    raise ParRuntimeError(
                        f"the tracker gives other ids for frame {index} than before: a run with it cannot be "
                        "continued; start anew (overwrite=True, --overwrite)"
                    )
                self.follower.observe(frame, ids, boxes, found, qualities)
                self._leave(frame)  # they were answered then
            elif "scores" in line:
                person, index, logits = line["scores"]
                scores[person, index] = np.array(logits, np.float32)
        for person in self.follower.people.values():
            for one in person.sightings:
                if (person.id, one.frame) in scores:
                    one.logits = scores[person.id, one.frame]
                    self._written.add((person.id, one.frame))

    def _load_pictures(self, partial: Path, done: int) -> None:
        """Pictures that are still needed of the people on screen."""
        needed = {
            (person.id, one.frame): one
            for person in self.follower.people.values()
            for one in (*person.sightings, *([person.candidate] if person.candidate else []))
            if one.logits is None or one is person.best
        }
        for number in range(done):
            for line in _lines(partial / part_name(number)):
                if "picture" in line:
                    person, index, data = line["picture"]
                    if (person, index) in needed:
                        needed[person, index].image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _encode(image: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """What a part holds, after its head."""
    with path.open(encoding="utf-8") as file:
        for line in islice(file, 1, None):
            yield json.loads(line)


def _assemble(out: Path, partial: Path, job: TrackRun, run: dict) -> dict[str, Any]:
    """Joins the parts to the output, the file of boxes and the folder of pictures, and returns the report."""
    people: dict[int, dict[str, Any]] = {}
    unanswered: list[dict[str, Any]] = []
    damages: set[tuple] = set()
    too_short = asked = frames = 0
    paths = [partial / part_name(number) for number in range(len(job.parts()))]
    for line in (line for path in paths for line in _lines(path)):
        if "seen" in line:
            frames += 1
        elif "person" in line:
            people[line["person"]["id"]] = line
            asked += len(line["person"]["frames"])
        elif "short" in line:
            too_short += 1
        elif "error" in line:
            unanswered.append({"id": line["id"], "error": line["error"]})
        elif "damaged" in line:
            damages.add(tuple(line["damaged"]))
    boxes_path = _boxes_path(out)
    temporary = partial / "assembled.txt"
    with temporary.open("w", encoding="ascii", newline="\n") as file:
        for line in (line for path in paths for line in _lines(path)):
            if "seen" in line:
                index, _, ids, boxes, scores, _ = line["seen"]
                for number, (x0, y0, x1, y1), score in zip(ids, boxes, scores):
                    if number in people:
                        edges = f"{x0:.2f},{y0:.2f},{x1 - x0:.2f},{y1 - y0:.2f}"
                        file.write(f"{index + 1},{number},{edges},{score:.4f},-1,-1,-1\n")
    os.replace(temporary, boxes_path)
    pictures = _write_pictures(out.with_suffix(".crops"), people)
    temporary = partial / "assembled.jsonl"
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        for number, line in sorted(people.items()):
            row = line["person"]
            head = {"id": row.pop("id"), "video": run["video"], "image": pictures[number]}
            file.write(to_json({**head, **row}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    left_out = 0 if job.finder.tracks is None else job.finder.tracks.left_out
    report = {
        "frames": frames,
        "people": len(people),
        "asked": asked,
        "damaged": [one._asdict() for one in _outermost(Damage(*one) for one in damages)],
        "unanswered": unanswered,
        "too_short": too_short,
        "left_out": left_out,
        "files": {boxes_path.name: sha256_of_file(boxes_path)},
        "output_sha256": {out.suffix: sha256_of_file(temporary)},
        "run": run,
    }
    finish(out, partial, run, temporary, report)
    return report


def _outermost(damages: Iterable[Damage]) -> list[Damage]:
    """Without those that lie within another one: a run that was continued meets the rest of it again."""
    found: list[Damage] = []
    for one in sorted(damages, key=lambda one: (one.first, -one.last)):
        if not found or one.last > found[-1].last:
            found.append(one)
    return found


def _write_pictures(folder: Path, people: dict[int, dict[str, Any]]) -> dict[int, str]:
    """The best picture of each person as a file; their paths as rows of the output have them."""
    names = {number: f"{number:06d}.jpg" for number in people}
    if not names:
        return {}
    with open_output(folder, "pictures of tracks") as output, output.staging() as staging:
        for number, line in people.items():
            (staging / names[number]).write_bytes(base64.b64decode(line["crop"]))
        output.publish(staging, last=max(names.values()), replace_all=True)
    return {number: f"{folder.name}/{name}" for number, name in names.items()}


def _read_output(out: Path) -> tuple[list[dict[str, Any]], TrackFile]:
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return rows, read_track_file(_boxes_path(out))


def _draw(movie: Video, out: Path, path: Path, annotator: Annotator, progress: bool) -> None:
    draw_video(movie, *_read_output(out), path, progress=progress)


def _write_cvat(movie: Video, out: Path, path: Path, annotator: Annotator, progress: bool) -> None:
    write_cvat(movie, *_read_output(out), path, annotator.pipe.label_space)
