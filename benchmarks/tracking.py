"""What attributes add to decoding, detecting and tracking a video, with and without a budget.

    PAR_DATA=data python benchmarks/tracking.py           # writes benchmarks/results/tracking.json
    PAR_DATA=data python benchmarks/tracking.py --seconds 4 --repeats 1 --out /tmp/tracking    # a quick try

Five real crops of PA-100K walk over a background for ten seconds, then five others; they are chosen among those that
the detector (`networks/pedestrian-detection-adas-0002`, OpenVINO) finds when they are pasted. All ways run in turn, on
one thread, as often as --repeats says; figures are medians, and of each run the share of the processor's time is
compared, which other programs on the machine disturb less than the clock. Models are loaded before.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from vlm_par_hf.inference.answering import PeopleAnswerer
from vlm_par_hf.inference.videos import Video
from vlm_par_hf.tracking import ByteTracker
from vlm_par_hf.tracking.detection import OpenVinoDetector
from vlm_par_hf.tracking.running import TrackRun


RATE, PEOPLE, STAY = 25, 5, 10.0  # frames per second; people on screen at a time, for so many seconds each
# name -> every, budget; None: no attributes
WAYS = {
    "attributes, budget 6": (1.0, 6),
    "attributes, budget 12 (default)": (1.0, 12),
    "attributes, each second": (1.0, 0),
    "attributes, each frame": (1 / RATE, 0),
}


class Silent:
    """A progress bar that shows nothing."""

    n = 0

    def update(self, count):
        self.n += count


def place(sprites, time_share, size, back):
    """A frame with a sprite in each of the lanes."""
    width, height = size
    frame = back.copy()
    for lane, sprite in enumerate(sprites):
        h, w = sprite.shape[:2]
        x = round(width * (0.1 + 0.8 * lane / (PEOPLE - 1) + 0.08 * (time_share - 0.5)) - w / 2)
        x, y = min(max(x, 4), width - w - 4), round(height * (0.15 + 0.1 * (lane % 2)))
        frame[y : y + h, x : x + w] = sprite
    return frame


def choose_sprites(data, size, back, detector_path, wanted):
    """Crops that the detector finds, scaled to half the height of the frame."""
    found, height = [], size[1] // 2
    detector = OpenVinoDetector(detector_path, threshold=0.9)
    for path in sorted((data / "pa100k_mini").rglob("*.jpg")):
        picture = Image.open(path).convert("RGB")
        if picture.height < 200:
            continue
        sprite = np.asarray(picture.resize((round(picture.width * height / picture.height), height)))
        boxes = [len(detector.find(Still(place([sprite], share, size, back)))[0]) for share in (0.0, 0.5, 1.0)]
        if boxes == [1, 1, 1]:
            found.append(sprite)
            if len(found) == wanted:
                return found
    raise SystemExit(f"only {len(found)} crops are found by the detector, expected {wanted}")


class Still:
    """A frame in memory, as detectors take it."""

    def __init__(self, pixels):
        self.pixels, self.size = pixels, pixels.shape[1::-1]

    def resized(self, size, order):
        return np.asarray(Image.fromarray(self.pixels).resize(size))[:, :, ::-1]


def write_video(path, data, detector_path, seconds, size):
    import av

    rng = np.random.default_rng(0)
    noise = rng.integers(90, 140, (size[1] // 40, size[0] // 40, 3), dtype=np.uint8)
    back = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)).copy()
    turns = max(1, round(seconds / STAY))
    sprites = choose_sprites(data, size, back, detector_path, PEOPLE * turns)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for index in range(round(seconds * RATE)):
            turn = min(int(index / RATE / STAY), turns - 1)
            here = sprites[PEOPLE * turn : PEOPLE * (turn + 1)]
            frame = av.VideoFrame.from_ndarray(place(here, index / RATE / STAY - turn, size, back), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def settings(every, budget):
    return {
        "images": 0, "images_digest": "", "model_digest": "", "images_per_part": 500, "detector_threshold": 0.5,
        "every": every, "budget": budget, "least_seen": 3,
    }  # fmt: skip


def run_way(name, path, detector, pipe, folder):
    """Seconds by the clock and of the processor, people and pictures."""
    started = time.perf_counter(), time.process_time()
    people = pictures = None
    if name in WAYS:
        every, budget = WAYS[name]
        job = TrackRun(Video(path), detector, None, PeopleAnswerer(pipe, keep_pictures=True), settings(every, budget))
        job.follow(folder, Silent())
    else:
        tracker = ByteTracker(max_gap=2 * RATE)
        for frame in Video(path).frames():
            if name != "decode":
                boxes, scores = detector.find(frame)
                if name == "decode, detect, track":
                    tracker.update(boxes, scores)
    spent = time.perf_counter() - started[0], time.process_time() - started[1]
    if name in WAYS:
        rows = [json.loads(line) for part in folder.glob("part-*") for line in part.read_text().splitlines()[1:]]
        people = sum("person" in row for row in rows)
        pictures = sum(len(row["person"]["frames"]) for row in rows if "person" in row)
    return *spent, people, pictures


def measure(args):
    data = Path(os.environ.get("PAR_DATA", ""))
    detector_path = data / "networks" / "pedestrian-detection-adas-0002.xml"
    if not detector_path.is_file():
        raise SystemExit(f"PAR_DATA: there is no {detector_path}")
    torch.set_num_threads(1)
    size = tuple(map(int, args.size.split("x")))
    names = ["decode", "decode, detect", "decode, detect, track", *WAYS]
    pipe = pipeline("pedestrian-attributes", model=args.model)
    detector = OpenVinoDetector(detector_path)
    runs: dict[str, list] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "street.mp4")
        write_video(path, data, detector_path, args.seconds, size)
        frames = Video(path).num_frames
        for repeat in range(args.repeats + 1):  # the first is a warm-up
            for name in names:
                parts = Path(folder, f"{repeat}-{name}")
                parts.mkdir()
                found = run_way(name, path, detector, pipe, parts)
                if repeat or args.repeats == 0:
                    runs[name].append(found)
                print(f"{repeat} {name}: {found[0]:.1f} s, {found[1]:.1f} s of the processor", flush=True)
    base = statistics.median(one[1] for one in runs["decode, detect, track"])
    rows = []
    for name in names:
        wall, processor = (statistics.median(one[k] for one in runs[name]) for k in (0, 1))
        rows.append(
            {
                "way": name,
                "frames_per_second": round(frames / wall, 1),
                "processor_ms_per_frame": round(1000 * processor / frames, 2),
                "over_decode_detect_track": round(processor / base, 3),
                "people": runs[name][0][2],
                "pictures": runs[name][0][3],
            }
        )
    return {
        "video": {"size": list(size), "frames": frames, "rate": RATE, "people_at_a_time": PEOPLE, "stay": STAY},
        "model": args.model or "embedded", "repeats": args.repeats, "rows": rows,
    }  # fmt: skip


def table(record):
    lines = [
        "| way | frames per second | ms of the processor per frame | over decode, detect, track | people | pictures |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        cells = [row["frames_per_second"], row["processor_ms_per_frame"]]
        over = f"{100 * (row['over_decode_detect_track'] - 1):+.1f} %" if row["people"] is not None else ""
        lines.append(
            f"| {row['way']} | {cells[0]} | {cells[1]} | {over} | {row['people'] or ''} | {row['pictures'] or ''} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the video")
    parser.add_argument("--size", default="1280x720", help="of its frames")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", help="checkpoint; default: the embedded one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    record = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tracking.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
