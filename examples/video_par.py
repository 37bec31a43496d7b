"""Attributes of the people in a video file, by a model that reads several frames of a person.

    python examples/video_par.py                       # trains, renders a video, tracks and answers its people
    python examples/video_par.py --video street.mp4 --detector PekingU/rtdetr_v2_r18vd --model folder

It trains VTF and, for comparison, VLM-PAR on rendered tracklets in which 40 % of the frames are occluded, over the
embedded backbone, and measures both on tracklets of other people (`ablation.md`). Then it renders a video with three
people who cross each other's way, follows them, and asks VTF about each of them. Their boxes come from the renderer,
as detections in a MOT file (`street.txt`), which does not say who is who; `--detector` takes any other. The result:
the video (`street.mp4`), the same with boxes and answers (`drawn.mp4`), a line per person (`people.jsonl`), a page
with a row per person (`people.png`), and a file for CVAT (`people.xml`).

SYNTHETIC: the numbers say which way of using several frames is better here, nothing about photographs.
"""

import argparse
import json
import logging
from fractions import Fraction
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from vlm_par_hf import ParMetrics, VlmParProcessor, VtfParProcessor, dataset_schema
from vlm_par_hf.data.synthetic.rendered import RenderedPerson, Walker, render_street
from vlm_par_hf.data.synthetic.tracklets import build_rendered_tracklets
from vlm_par_hf.inference.tracklets import predict_tracklets
from vlm_par_hf.tracking import contact_sheet, track
from vlm_par_hf.training import TrainSettings, train


OCCLUDED = 0.4
PEOPLE_SEED, PEOPLE = 5, (1, 2, 3)  # who walks: of a population that nobody in training is from
SIZE, SEED = (960, 540), 11  # of the picture, and of the place
WAYS = (((-5.0, -0.5), (5.0, 0.3)), ((5.2, 1.6), (-4.8, 1.2)), ((1.2, -4.5), (-0.6, 2.6)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=200, help="tracklets to train on")
    parser.add_argument("--num-test", type=int, default=80, help="tracklets to measure on")
    parser.add_argument("--epochs", type=float, default=30, help="of VTF; VLM-PAR sees each frame and gets an eighth")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the video")
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--model", help="a checkpoint of any family; none: VTF is trained")
    parser.add_argument("--video", help="a video file; none: one is rendered")
    parser.add_argument("--detector", help="as for vlm-par track")
    parser.add_argument("--out", type=Path, default=Path("outputs/video"))
    options = parser.parse_args()
    if options.video and not options.detector:
        parser.error("--video needs --detector, which finds people in it")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("vlm_par_hf").setLevel(logging.INFO)
    options.out.mkdir(parents=True, exist_ok=True)

    model = options.model or train_and_compare(options)
    video, detector = options.video, options.detector
    if video is None:
        video, boxes = render_video(options.out, options.seconds)
        detector = detector or boxes
    people = options.out / "people.jsonl"
    report = track(
        video, people, detector=detector, model=model, every=0.5, budget=12, draw=options.out / "drawn.mp4",
        cvat=options.out / "people.xml", overwrite=True, delete_listed=True,
    )  # fmt: skip
    rows = [json.loads(line) for line in people.read_text(encoding="utf-8").splitlines()]
    contact_sheet(rows, [options.out / row["image"] for row in rows]).save(options.out / "people.png")
    print(f"{report['people']} people in {report['frames']} frames, from {report['asked']} pictures")
    print(f"look at {options.out / 'drawn.mp4'} and {options.out / 'people.png'}")


def train_and_compare(options) -> Path:
    """Trains both families on the same tracklets, writes how they compare, and returns the folder of VTF."""
    sizes = {"num_train": options.num_train, "num_validation": max(2, options.num_train // 5)}
    data = build_rendered_tracklets(**sizes, num_test=options.num_test, length=8, occluded=OCCLUDED)
    families = {
        "vtf_par": {"model_options": {"temporal": "attention", "num_frames": 4, "fusion_width": 128}},
        "vlm_par": {},
    }
    # Both read the same grid of patches, so that the features of the frames are computed once.
    several = VtfParProcessor.from_backbone(options.backbone)
    single = VlmParProcessor(several.image_processor, several.tokenizer, several.patch_grid)
    for family, more in families.items():
        frames_per_step = 4 if family == "vtf_par" else 1
        settings = TrainSettings(
            epochs=options.epochs if family == "vtf_par" else max(1, options.epochs / 8),
            batch_size=64 // frames_per_step, learning_rate=1e-3 if family == "vtf_par" else 3e-3,
            precompute_features=True, flip=0.0,
        )  # fmt: skip
        train(
            data, options.out / family, family=family, backbone=options.backbone, settings=settings, overwrite=True,
            processor=several if family == "vtf_par" else single, cache_features=options.out / "features", **more,
        )  # fmt: skip
    free = build_rendered_tracklets(**sizes, num_test=options.num_test, length=8, occluded=0.0)
    splits = {f"{100 * OCCLUDED:.0f} % occluded": data["test"], "none occluded": free["test"]}
    methods = [("vlm_par", "mean_logits"), ("vlm_par", "quality"), ("vlm_par", "vote"), ("vtf_par", None)]
    lines = [f"| {options.num_test} tracklets of 8 frames, macro-F1 in % | {' | '.join(splits)} |", "|---|---|---|"]
    for family, aggregate in methods:
        folder, cells = options.out / family, []
        parts = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        for split in splits.values():
            metrics = ParMetrics(dataset_schema(split))(predict_tracklets(*parts, split, aggregate=aggregate))
            cells.append(f"{100 * metrics['label_f1_macro']:.1f}")
        name = "VTF, attention over time" if aggregate is None else f"VLM-PAR per frame, {aggregate}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "SYNTHETIC: rendered people.\n\n" + "\n".join(lines) + "\n"
    (options.out / "ablation.md").write_text(table, encoding="utf-8")
    print(table)
    return options.out / "vtf_par"


def render_video(out: Path, seconds: float, rate: int = 10) -> tuple[Path, Path]:
    """A video of three people who cross each other's way, and the MOT file of their boxes."""
    import av

    walkers = [
        Walker(RenderedPerson.sample(PEOPLE_SEED, number), start, end) for number, (start, end) in zip(PEOPLE, WAYS)
    ]
    frames = render_street(walkers, seconds=seconds, rate=rate, size=SIZE, seed=SEED)
    rows = []
    with av.open(str(out / "street.mp4"), "w") as file:
        stream = file.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
        (stream.width, stream.height), stream.pix_fmt, stream.bit_rate = SIZE, "yuv420p", 3_000_000
        for index, (picture, boxes) in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            file.mux(stream.encode(frame))
            rows += [f"{index + 1},-1,{x0},{y0},{x1 - x0},{y1 - y0},0.9\n" for _, (x0, y0, x1, y1) in boxes]
        file.mux(stream.encode(None))
    (out / "street.txt").write_text("".join(rows))
    return out / "street.mp4", out / "street.txt"


if __name__ == "__main__":
    main()
