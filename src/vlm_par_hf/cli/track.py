"""`vlm-par track`: the people of a video file with their attributes."""

import argparse

from .options import (
    add_answer_options,
    add_device_options,
    add_overwrite_options,
    answer_arguments,
    quiet_transformers,
    say,
)


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "track",
        help="attributes of the people in a video file",
        description="Finds the people of a video file, follows them, and answers for each of them once: a line per "
        "person in --out, with their best picture, and beside it the boxes of all frames. A run that was stopped goes "
        "on when it is started again. Frames that cannot be decoded are named and left out (exit status 1).",
    )
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument(
        "--detector", required=True, metavar="NAME|FILE",
        help="what finds people: folder or repository of a model for object detection; an OpenVINO detector (.xml); "
        "or a MOT file of boxes (.txt, .csv: frame,id,x,y,width,height,score), which says who is who unless the ids "
        "are -1",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help=".jsonl, with a report beside it")
    parser.add_argument("--model", metavar="PATH", help="checkpoint folder or repository (default: the embedded one)")
    parser.add_argument("--draw", metavar="FILE", help="a video (.mp4) with boxes and answers")
    parser.add_argument("--cvat", metavar="FILE", help='tracks and answers as "CVAT for video 1.1" (.xml)')
    group = parser.add_argument_group("how often a person is asked about")
    group.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="the best picture of each such span (default: 1)"
    )
    group.add_argument(
        "--budget", type=int, default=12, metavar="N",
        help="pictures of a person at most, spread over the time; 0: no limit (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--aggregate", choices=("mean_logits", "quality", "vote"),
        help="how their answers become one (default: mean_logits; not for models that take several frames)",
    )  # fmt: skip
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures per forward (default: 16)")
    add_answer_options(parser)
    group = parser.add_argument_group("people")
    group.add_argument(
        "--detector-label", metavar="LABEL", help="of people (default: person); of an OpenVINO detector a number"
    )
    group.add_argument(
        "--detector-threshold", type=float, default=0.5, metavar="P",
        help="lowest score of a new person (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--least-seen", type=int, metavar="N",
        help="leave out people seen in fewer frames (default: 3; 1 for a file that says who is who)",
    )  # fmt: skip
    group.add_argument(
        "--first-frame", type=int, choices=(0, 1), default=1,
        help="number of the first frame in a file of boxes (default: 1, as MOT has it)",
    )  # fmt: skip
    add_overwrite_options(parser, "replace other work in --out")
    add_device_options(parser)
    parser.set_defaults(run=run)
    return parser


def run(args) -> int:
    quiet_transformers()
    from vlm_par_hf.tracking import track

    report = track(
        args.video,
        args.out,
        detector=args.detector,
        model=args.model,
        every=args.every,
        budget=args.budget,
        aggregate=args.aggregate,
        least_seen=args.least_seen,
        batch_size=args.batch_size,
        first_frame=args.first_frame,
        detector_label=args.detector_label,
        detector_threshold=args.detector_threshold,
        device=args.device,
        dtype=args.dtype,
        draw=args.draw,
        cvat=args.cvat,
        overwrite=args.overwrite,
        delete_listed=args.delete_listed,
        **answer_arguments(args),
    )
    say(f"{report['people']} people in {report['frames']} frames, from {report['asked']} pictures: {args.out}")
    if report["too_short"]:
        say(f"{report['too_short']} were seen in fewer than {report['run']['least_seen']} frames and left out")
    if report["left_out"]:
        say(f"{report['left_out']} rows of {args.detector} were left out: score 0 or no pedestrian")
    for one in report["unanswered"]:
        say(f"person {one['id']}: {one['error']}")
    for one in report["damaged"]:
        frames = f"frames {one['first']} to {one['last']}" if one["last"] > one["first"] else f"frame {one['first']}"
        say(f"{args.video}, {frames}: {one['reason']}")
    return 1 if report["damaged"] or report["unanswered"] else 0
