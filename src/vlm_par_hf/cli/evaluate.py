"""`vlm-par evaluate`: measure a checkpoint on a split."""

import argparse
from pathlib import Path

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.hub.records import consistency_note, label_space_note, left_out_of_ranking, slice_lines, source_table

from .options import add_data_options, data_arguments, quiet_transformers, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="measure a checkpoint on a split",
        description="Measure a checkpoint; writes metrics.json, attributes.csv, attributes.md and attributes.png. "
        "Metrics follow --preset; with _fitted behind their names they are of the checkpoint's own answers, by its "
        "fitted thresholds.",
    )
    parser.add_argument("model", help="checkpoint folder or repository")
    add_data_options(parser)
    parser.add_argument("--out", metavar="DIR", help="result folder (default: MODEL/evaluation_DATASET_SPLIT)")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="default: test")
    parser.add_argument(
        "--preset", choices=("rethinking", "vtb", "rap", "mivia"), default="rethinking", help="conventions"
    )
    parser.add_argument("--threshold", metavar="T", help="a number, or schema for each attribute's own")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples for intervals (0: none)")
    parser.add_argument("--by-person", action="store_true", help="resample persons, not images")
    parser.add_argument(
        "--slices", metavar="NAMES",
        help="also metrics per slice of people: attributes or groups of the data set, or size (of pictures), such as "
        "Age,Female,size",
    )  # fmt: skip
    parser.add_argument(
        "--mapping", metavar="FILE",
        help="JSON file for a data set with another label space: its attributes -> those of the checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--zero-shot", action="store_true",
        help="also answer attributes that the checkpoint was not trained on, from their texts (another label space)",
    )  # fmt: skip
    parser.add_argument(
        "--aggregate", choices=("mean_logits", "quality", "vote"),
        help="measure tracklets, with the scores of their frames put together so (models of single pictures)",
    )  # fmt: skip
    parser.add_argument("--min-positives", type=int, metavar="N", help="also mA over attributes with so many samples")
    parser.add_argument(
        "--selective", action="store_true", help="also what it is worth to answer only where it is sure"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data loader processes")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.set_defaults(run=run)
    return parser


def _threshold(text: str | None):
    if text is None or text == "schema":
        return text
    try:
        return float(text)
    except ValueError:
        raise ParValueError(f"threshold={text!r}: expected a number or 'schema'") from None


def run(args) -> None:
    quiet_transformers()
    threshold = _threshold(args.threshold)
    folder = args.out
    if folder is None:
        if not Path(args.model).is_dir():
            raise ParValueError(f"model={args.model!r} is no folder: name the result folder with --out")
        folder = Path(args.model) / f"evaluation_{args.dataset}_{args.split}"
    data = data_arguments(args)
    from vlm_par_hf.training import evaluate

    record = evaluate(
        args.model,
        args.dataset,
        split=args.split,
        output_dir=folder,
        preset=args.preset,
        threshold=threshold,
        bootstrap=args.bootstrap,
        min_positives=args.min_positives,
        by_person=args.by_person,
        selective=args.selective,
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
        command=args.command_line,
        slices=[name.strip() for name in args.slices.split(",") if name.strip()] if args.slices is not None else (),
        mapping=args.mapping,
        zero_shot=args.zero_shot,
        aggregate=args.aggregate,
        **data,
    )
    say(f"{args.dataset}, {args.split}, {record['data']['images']} images, conventions of {args.preset}")
    if record["note"]:
        say(record["note"])
    for name, value in record["metrics"].items():
        low, high = record["intervals"].get(name) or (None, None)
        interval = "" if low is None else f"   {100 * low:.2f} to {100 * high:.2f}"
        say(f"  {name:<28} " + ("undefined" if value is None else f"{100 * value:6.2f}{interval}"))
    if table := source_table(record):
        for row in (table[0], *table[1]):
            say(
                "  " + "  ".join(f"{cell:<24}" if not position else f"{cell:>10}" for position, cell in enumerate(row))
            )
    for sentence in (left_out_of_ranking(record), label_space_note(record), consistency_note(record)):
        if sentence:
            say(sentence)
    for convention, values in (record.get("video") or {}).items():
        found = ", ".join(f"{name} {100 * value:.2f}" for name, value in values.items())
        say(f"  tracklets as {convention} counts them: {found}")
    for slicing in (record.get("slices") or {}).get("by", ()):
        for line in slice_lines(record, slicing):
            say(line)
    if "selective" in record:
        found = record["selective"]
        say(f"  wrong answers {100 * found['error']:.2f}; area under the risk-coverage curve {found['aurc']:.4f}")
        if "sets" in found:
            sets = found["sets"]
            say(
                f"  sets for {100 * sets['level']:g} %: right one inside {100 * sets['coverage']:.2f}, left open "
                f"{100 * sets['unsure']:.2f}"
            )
    say(f"record, tables and picture: {folder}")
