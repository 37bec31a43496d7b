"""`track`: a line per person, the same after being stopped anywhere; faults of input are named, nothing is lost."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import transformers
from PIL import Image

from modeling_tests.videos import SIZE, damage_packet, walkers, write_numbered, write_tracks, write_video
from vlm_par_hf.errors import ParError
from vlm_par_hf.inference.tracklets import Tracklet
from vlm_par_hf.inference.videos import Video
from vlm_par_hf.models.vlm_par import VlmParModel
from vlm_par_hf.tracking import running as tracking_running
from vlm_par_hf.tracking import track


pytest.importorskip("av")


def run(video, out, model, **options):
    return track(
        video, out, model=model, **{"every": 0.5, "batch_size": 4, "frames_per_part": 8, "progress": False, **options}
    )


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def boxes_of(path):
    with path.open() as file:
        return [[float(cell) for cell in row] for row in csv.reader(file)]


def detect(image, threshold=0.0):
    """A detector of `walkers`: their columns are noisy."""
    pixels = np.asarray(image).astype(int)
    found = []
    for person in range(2):
        y = 30 + 20 * person
        columns = np.flatnonzero(pixels[y : y + 40].std((0, 2)) > 12)
        columns = columns[(columns >= 10 + 60 * person) & (columns < 70 + 60 * person)]
        if len(columns):
            corners = {"xmin": int(columns[0]), "ymin": y, "xmax": int(columns[-1]) + 1, "ymax": y + 40}
            found.append({"label": "person", "score": 0.9, "box": corners})
    return found


def test_a_line_per_person(street, model, tmp_path):
    video, tracks = street
    report = run(video, tmp_path / "out.jsonl", model, detector=tracks)
    assert (report["frames"], report["people"], report["asked"]) == (30, 2, 12)
    assert report["damaged"] == report["unanswered"] == [] and report["too_short"] == report["left_out"] == 0
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["first_frame"], row["last_frame"], row["seen"]) == (0, 29, 30) and row["last_time"] == 2.9
        assert len(row["frames"]) == 6 and all(5 * k <= frame < 5 * k + 5 for k, frame in enumerate(row["frames"]))
        assert row["times"] == [frame / 10 for frame in row["frames"]] and row["best"]["frame"] in row["frames"]
        assert all(len(labels) == 6 for labels in row["timeline"].values())
        x = 10 + 60 * (row["id"] - 1) + row["best"]["frame"]
        assert row["best"]["box"] == [x, 10 + 20 * row["id"], x + 20, 50 + 20 * row["id"]]
        assert Image.open(tmp_path / row["image"]).size == (20, 40)
    written = boxes_of(tmp_path / "out.mot.txt")
    assert len(written) == 60 and written[3][:6] == [2, 2, 71, 50, 20, 40]
    assert not (tmp_path / "out.jsonl.partial").exists()
    assert run(video, tmp_path / "out.jsonl", model, detector=tracks) == report


def test_the_answer_is_that_of_the_pictures(street, model, tmp_path):
    """As the pipeline answers for the same parts of the same frames, their logits averaged."""
    video, tracks = street
    run(video, tmp_path / "out.jsonl", model, detector=tracks)
    row = read(tmp_path / "out.jsonl")[0]
    pipe = transformers.pipeline("pedestrian-attributes", model=model)
    frames = {frame.index: frame for frame in Video(video).frames()}
    crops = [frames[index].crop((10 + index, 30, 30 + index, 70)) for index in row["frames"]]
    answer = pipe(Tracklet(crops))
    for name, one in row["attributes"].items():
        assert one["label"] == answer["attributes"][name]["label"]
        assert one["score"] == pytest.approx(answer["attributes"][name]["score"], abs=1e-5)
    single = pipe(crops)
    assert row["timeline"] == {name: [one["attributes"][name]["label"] for one in single] for name in row["timeline"]}


@pytest.mark.parametrize("budget", [0, 3])
@pytest.mark.parametrize("with_tracker", [False, True])
def test_a_run_that_was_stopped_gives_the_same(street, model, tmp_path, monkeypatch, budget, with_tracker):
    video, tracks = street
    options = {"detector": detect if with_tracker else tracks, "budget": budget, "detector_threshold": 0.5}
    run(video, tmp_path / "whole" / "out.jsonl", model, **options)
    real = VlmParModel.forward
    out = tmp_path / "stopped" / "out.jsonl"
    stops = 0
    for stop in (1, 0, 1, 0, 1, 0):
        calls = iter(range(100))

        def answer(self, *inputs, stop=stop, calls=calls, **named):
            if next(calls) == stop:
                raise RuntimeError("out of memory")
            return real(self, *inputs, **named)

        with monkeypatch.context() as patch:
            patch.setattr(VlmParModel, "forward", answer)
            try:
                run(video, out, model, **options)
            except RuntimeError:
                stops += 1
    run(video, out, model, **options)
    assert stops >= (4 if budget == 0 else 3)
    for name in ("out.jsonl", "out.mot.txt", "out.crops/000001.jpg", "out.crops/000002.jpg"):
        assert (tmp_path / "whole" / name).read_bytes() == (out.parent / name).read_bytes(), name


def test_a_run_that_was_stopped_between_frames_gives_the_same(street, model, tmp_path, monkeypatch):
    """Stopped inside each part in turn."""
    real = tracking_running.TransformersDetector.find

    def failing_at(stop):
        def find(self, frame):
            if frame.index == stop:
                raise RuntimeError("killed")
            return real(self, frame)

        return find

    video, _ = street
    run(video, tmp_path / "whole" / "out.jsonl", model, detector=detect, budget=2)
    out = tmp_path / "stopped" / "out.jsonl"
    for stop in (3, 12, 17, 29):
        with monkeypatch.context() as patch:
            patch.setattr(tracking_running.TransformersDetector, "find", failing_at(stop))
            with pytest.raises(RuntimeError, match="killed"):
                run(video, out, model, detector=detect, budget=2)
    run(video, out, model, detector=detect, budget=2)
    for name in ("out.jsonl", "out.mot.txt", "out.crops/000002.jpg"):
        assert (tmp_path / "whole" / name).read_bytes() == (out.parent / name).read_bytes(), name


def test_another_run_is_not_overwritten(street, model, tmp_path):
    video, tracks = street
    out = tmp_path / "out.jsonl"
    run(video, out, model, detector=tracks, budget=2)
    with pytest.raises(ParError, match="is the work of another run: budget was 2 and is 3"):
        run(video, out, model, detector=tracks, budget=3)
    run(video, out, model, detector=tracks, budget=3, overwrite=True)
    (tmp_path / "out.mot.txt").write_text("mine")
    with pytest.raises(ParError, match="out.mot.txt' is there already and not as a run"):
        run(video, out, model, detector=tracks, budget=2, overwrite=True)
    run(video, out, model, detector=tracks, budget=2, overwrite=True, delete_listed=True)
    assert len(boxes_of(tmp_path / "out.mot.txt")) == 60


def test_its_boxes_are_a_track_file(street, model, tmp_path):
    """What was found and numbered is read again as tracks, and gives the same answers."""
    video, _ = street
    run(video, tmp_path / "a.jsonl", model, detector=detect)
    run(video, tmp_path / "b.jsonl", model, detector=tmp_path / "a.mot.txt", least_seen=3)
    first, second = ([row["attributes"] for row in read(tmp_path / name)] for name in ("a.jsonl", "b.jsonl"))
    assert len(first) == 2 and first == second


def test_the_pipeline_answers_for_a_video_with_its_tracks(street, model, tmp_path):
    video, tracks = street
    run(video, tmp_path / "out.jsonl", model, detector=tracks, budget=2)
    pipe = transformers.pipeline("pedestrian-attributes", model=model)
    people = pipe(video, tracks=tracks, every=0.5, budget=2, batch_size=4)
    expected = [
        {name: value for name, value in row.items() if name not in ("video", "image")}
        for row in read(tmp_path / "out.jsonl")
    ]
    assert people == expected
    names = list(people[0]["attributes"])
    few = pipe(str(video), tracks=str(tracks), attributes=names[:2], threshold=0.9, aggregate="vote", budget=0)
    assert list(few[0]["attributes"]) == names[:2] and len(few) == 2
    with pytest.raises(ParError, match=r"street.mp4' is a video, expected tracks="):
        pipe(str(video))
    with pytest.raises(ParError, match="tracks were given with boxes"):
        pipe(video, tracks=tracks, boxes=[[0, 0, 5, 5]])
    with pytest.raises(ParError, match="aggregate is 'best', expected one of mean_logits, quality, vote"):
        pipe(video, tracks=tracks, aggregate="best")
    without = write_tracks(tmp_path / "det.txt", [(1, -1, 5, 5, 9, 9)])
    with pytest.raises(ParError, match="holds boxes without ids"):
        pipe(video, tracks=without)


def test_a_damaged_frame_loses_nothing_else(street, model, tmp_path):
    video = tmp_path / "damaged.mp4"
    video.write_bytes(street[0].read_bytes())
    damage_packet(video, 13)
    report = run(video, tmp_path / "out.jsonl", model, detector=street[1])
    (damage,) = report["damaged"]
    assert damage["first"] <= 13 <= damage["last"] and "cannot be decoded" in damage["reason"]
    missing = damage["last"] - damage["first"] + 1
    assert report["frames"] == 30 - missing
    for row in read(tmp_path / "out.jsonl"):
        assert row["seen"] == 30 - missing and not set(row["frames"]) & set(range(damage["first"], damage["last"] + 1))


def test_a_truncated_file(street, model, tmp_path):
    pictures, rows = walkers(30)
    video = write_video(tmp_path / "cut.mp4", pictures, movflags="faststart")
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    report = run(video, tmp_path / "out.jsonl", model, detector=detect)
    assert report["people"] == 2 and report["frames"] < 30 and report["damaged"][-1]["last"] == 29
    # A file of boxes for the whole video names frames that are not there.
    tracks = write_tracks(tmp_path / "t.txt", rows)
    with pytest.raises(ParError, match=r"t.txt', line \d+ names frame \d+, and the video has \d+ frames"):
        run(video, tmp_path / "other.jsonl", model, detector=tracks)


def test_nobody(model, tmp_path):
    video = write_numbered(tmp_path / "a.mp4", 10)
    report = run(
        video, tmp_path / "out.jsonl", model, detector=lambda image, threshold: [], draw=tmp_path / "d.mp4",
        cvat=tmp_path / "c.xml",
    )  # fmt: skip
    assert report["people"] == 0 and read(tmp_path / "out.jsonl") == [] and boxes_of(tmp_path / "out.mot.txt") == []
    assert Video(tmp_path / "d.mp4").num_frames == 10
    assert ElementTree.parse(tmp_path / "c.xml").findall("track") == []


def test_one_frame(model, tmp_path):
    pictures, rows = walkers(1)
    video = write_video(tmp_path / "a.mp4", pictures)
    report = run(video, tmp_path / "out.jsonl", model, detector=write_tracks(tmp_path / "t.txt", rows))
    assert report["people"] == 2 and [row["frames"] for row in read(tmp_path / "out.jsonl")] == [[0], [0]]


def test_people_without_a_picture_and_people_seen_seldom(street, model, tmp_path):
    video, _ = street
    rows = [(1, 1, 10, 30, 20, 40), (1, 2, 900, 30, 20, 40), (2, 1, 150, 100, 40, 60), (30, 9, -5, -5, 30, 40)]
    tracks = write_tracks(tmp_path / "t.txt", rows)
    report = run(video, tmp_path / "out.jsonl", model, detector=tracks)
    assert report["unanswered"] == [
        {"id": 2, "error": "no box of this person holds a pixel of a frame that can be decoded"}
    ]
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == [1, 9]
    assert read(tmp_path / "out.jsonl")[1]["best"]["box"] == [0, 0, 25, 35]
    report = run(video, tmp_path / "b.jsonl", model, detector=tracks, least_seen=2)
    assert report["too_short"] == 2 and [row["id"] for row in read(tmp_path / "b.jsonl")] == [1]
    people = transformers.pipeline("pedestrian-attributes", model=model)(video, tracks=tracks)
    assert [one.get("error") is None for one in people] == [True, False, True]


def test_other_trackers_stand_in(street, model, tmp_path):
    class Left:
        """Everybody on the left is one person, and nobody else is anybody."""

        def update(self, boxes, scores):
            return [7 if one[0] < 60 else -1 for one in boxes]

    video, _ = street
    report = run(video, tmp_path / "out.jsonl", model, detector=detect, tracker=Left())
    (row,) = read(tmp_path / "out.jsonl")
    assert report["people"] == 1 and row["id"] == 1 and row["seen"] == 30

    class Again(Left):
        """Gives an id again after the person was gone for longer than it says."""

        max_gap = 3

        def __init__(self):
            self.frame = 0

        def update(self, boxes, scores):
            self.frame += 1
            return [-1] * len(boxes) if 10 <= self.frame < 20 else super().update(boxes, scores)

    run(video, tmp_path / "again.jsonl", model, detector=detect, tracker=Again())
    assert [(row["id"], row["last_frame"]) for row in read(tmp_path / "again.jsonl")] == [(1, 8), (2, 29)]

    class Wrong:
        def update(self, boxes, scores):
            return [1]

    with pytest.raises(ParError, match=r"tracker returned array\(\[1\]\), expected 2 ids, one for each box"):
        run(video, tmp_path / "b.jsonl", model, detector=detect, tracker=Wrong())


def test_detections_of_a_file_are_numbered(street, model, tmp_path):
    _, rows = walkers(30)
    detections = write_tracks(tmp_path / "det.txt", [(frame, -1, *box) for frame, _, *box in rows], 0.8)
    report = run(street[0], tmp_path / "out.jsonl", model, detector=detections)
    assert report["people"] == 2 and [row["seen"] for row in read(tmp_path / "out.jsonl")] == [30, 30]


def test_frames_may_count_from_0(street, model, tmp_path):
    _, rows = walkers(30)
    tracks = write_tracks(tmp_path / "t.txt", [(frame - 1, *more) for frame, *more in rows])
    run(street[0], tmp_path / "out.jsonl", model, detector=tracks, first_frame=0)
    run(street[0], tmp_path / "b.jsonl", model, detector=street[1])
    assert (tmp_path / "out.mot.txt").read_text() == (tmp_path / "b.mot.txt").read_text()
    with pytest.raises(ParError, match="line 1 names frame 0, expected 1"):
        run(street[0], tmp_path / "c.jsonl", model, detector=tracks)


def test_options_of_answers_are_those_of_the_pipeline(street, model, tmp_path):
    video, tracks = street
    run(video, tmp_path / "out.jsonl", model, detector=tracks, attributes=["Hat"], threshold=0.999, budget=1)
    (first, _) = read(tmp_path / "out.jsonl")
    assert list(first["attributes"]) == ["Hat"] and first["attributes"]["Hat"]["threshold"] == 0.999
    assert len(first["frames"]) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 0}, "every is 0"),
        ({"budget": -1}, "budget is -1"),
        ({"aggregate": "best"}, "aggregate is 'best'"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"least_seen": 0}, "least_seen=0: expected at least 1"),
        ({"draw": "a.txt"}, "draw='a.txt': expected a file ending in .mp4"),
        ({"cvat": "a.mp4"}, "cvat='a.mp4': expected a file ending in .xml"),
        ({"detector": None}, "detector is None"),
        ({"detector": "none.txt"}, "'none.txt': there is no such file"),
        ({"detector": "none.xml"}, "there is no file 'none.xml'"),
        ({"delete_listed": True}, "expected overwrite=True too"),
        ({"first_frame": 3}, "first_frame is 3"),
    ],
)
def test_wrong_arguments(street, model, tmp_path, options, expected):
    video, tracks = street
    with pytest.raises(ParError, match=expected):
        run(video, tmp_path / "out.jsonl", model, **{"detector": tracks, **options})
    assert not list(tmp_path.iterdir())


def test_inputs_are_not_written_over(street, model, tmp_path):
    video, tracks = street
    boxes = write_tracks(tmp_path / "out.mot.txt", [(1, 1, 5, 5, 9, 9)])
    options = {"overwrite": True, "delete_listed": True}
    with pytest.raises(ParError, match="out.mot.txt' is detector .* which is only read"):
        run(video, tmp_path / "out.jsonl", model, detector=boxes, **options)
    with pytest.raises(ParError, match="street.mp4' is video .* which is only read"):
        run(video, tmp_path / "out.jsonl", model, detector=tracks, draw=video, **options)
    with pytest.raises(ParError, match=r"out='.*out.csv': expected a file ending in .jsonl"):
        run(video, tmp_path / "out.csv", model, detector=tracks)


def test_a_drawn_video_and_a_file_for_annotators(street, model, tmp_path):
    video, tracks = street
    out, drawn, cvat = (tmp_path / name for name in ("out.jsonl", "drawn.mp4", "cvat.xml"))
    run(video, out, model, detector=tracks)
    report = run(video, out, model, detector=tracks, draw=drawn, cvat=cvat)  # of a run that is finished
    assert set(report["files"]) == {"out.mot.txt", "drawn.mp4", "cvat.xml"}
    movie = Video(drawn)
    assert movie.num_frames == 30 and movie.size == SIZE
    np.testing.assert_allclose(movie.times, np.arange(30) / 10, atol=1e-3)
    plain, framed = (next(Video(path).frames(20)).pixels.astype(int) for path in (video, drawn))
    # The lower edge of the first person's box, and a corner of the picture that nothing was drawn on.
    assert np.abs(framed[69, 32:48] - plain[69, 32:48]).mean() > 25 and np.abs(framed - plain)[118:, :25].max() < 25
    first = drawn.stat().st_mtime_ns
    run(video, out, model, detector=tracks, draw=drawn, cvat=cvat)
    assert drawn.stat().st_mtime_ns == first
    drawn.unlink()
    run(video, out, model, detector=tracks, draw=drawn, cvat=cvat)
    assert drawn.exists()
    cvat.write_text("mine")
    with pytest.raises(ParError, match="cvat.xml' is there already"):
        run(video, out, model, detector=tracks, cvat=cvat)


def test_a_model_that_reads_frames_together(street, tmp_path):
    """Its answer is that for all pictures of a person at once."""
    from modeling_tests.tiny import tiny_vtf_model, tiny_vtf_processor

    tiny_vtf_model().save_pretrained(tmp_path / "model")
    tiny_vtf_processor().save_pretrained(tmp_path / "model")
    video, tracks = street
    run(video, tmp_path / "out.jsonl", str(tmp_path / "model"), detector=tracks, budget=3)
    row = read(tmp_path / "out.jsonl")[0]
    pipe = transformers.pipeline("pedestrian-attributes", model=str(tmp_path / "model"))
    frames = {frame.index: frame for frame in Video(video).frames()}
    crops = [frames[index].crop((10 + index, 30, 30 + index, 70)) for index in row["frames"]]
    answer = pipe(Tracklet(crops))
    assert {name: one["label"] for name, one in row["attributes"].items()} == {
        name: one["label"] for name, one in answer["attributes"].items()
    }
    assert len(row["timeline"]["Hat"]) == 3
    with pytest.raises(ParError, match="budget is 0, but the model reads the pictures of a person together"):
        run(video, tmp_path / "b.jsonl", str(tmp_path / "model"), detector=tracks, budget=0)
    with pytest.raises(ParError, match="aggregate is 'vote', but VtfParModel takes all frames"):
        run(video, tmp_path / "b.jsonl", str(tmp_path / "model"), detector=tracks, aggregate="vote")
