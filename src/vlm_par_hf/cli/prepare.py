"""`vlm-par prepare`: check a data set and write it as parquet."""

import argparse

from .options import add_folder_options, add_overwrite_options, data_arguments, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "prepare",
        help="check a data set and write it as parquet",
        description="Open every image, check every label, count, and write parquet files with the images inside, the "
        'schema, a report and a card: what load_dataset and load_par_dataset("hub", DIR) read. Goes on where it was '
        "interrupted.",
    )
    parser.add_argument("dataset", help="name of a data set: pa100k, peta35, market1501, rapv2, upar, folder, ...")
    parser.add_argument(
        "root", nargs="?", metavar="ROOT", help="where the data set lies (none for synthetic and rendered)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--schema", metavar="FILE", help="JSON file with the attributes to keep")
    parser.add_argument("--partition", type=int, default=0, help="which of the official partitions (default: 0)")
    parser.add_argument("--missing", choices=("error", "skip"), default="error", help="files that are not there")
    parser.add_argument("--broken", choices=("error", "skip"), default="error", help="files that cannot be read")
    parser.add_argument("--data-seed", type=int, default=0, help="of random splits and drawings (default: 0)")
    add_folder_options(parser)
    for split in ("train", "validation", "test"):
        parser.add_argument(
            f"--num-{split}", type=int, metavar="N", help=f"{split} pictures (data sets synthetic and rendered)"
        )
    parser.add_argument("--images-per-file", type=int, default=5000, metavar="N", help="default: %(default)s")
    add_overwrite_options(parser, "start anew where DIR holds other work")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload to this data set repository, made private")
    parser.add_argument("--public", action="store_true", help="make that repository public")
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    data = data_arguments(args)
    from vlm_par_hf.data import prepare_dataset

    report = prepare_dataset(
        args.dataset,
        data["root"],
        args.out,
        broken=args.broken,
        images_per_file=args.images_per_file,
        overwrite=args.overwrite,
        delete_listed=args.delete_listed,
        push_to_hub=args.push_to_hub,
        private=not args.public,
        schema=data["schema"],
        **data["dataset_options"],
    )
    for split, part in report["splits"].items():
        say(f"{split}: {part['images']} images" + (f" of {part['persons']} persons" if part["persons"] else ""))
    for key, text in (
        ("broken_images", "broken images left out"),
        ("same_content_within_a_split", "images with the content of another in their split"),
        ("same_content_across_splits", "images with the content of one in another split"),
        ("persons_in_several_splits", "persons in several splits"),
    ):
        say(f"{report[key]['count']} {text}")
    say(f"parquet, schema.json, report.json: {args.out}")
    if args.push_to_hub:
        say(f"uploaded to {args.push_to_hub}")
