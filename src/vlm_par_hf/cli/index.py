"""`vlm-par index`: people of folders, tables and videos into a gallery, to be found by what they wear."""

import argparse

from vlm_par_hf.images.regions import REGION_FORMATS
from vlm_par_hf.utils import atomic_write_json

from .options import quiet_transformers, say


__all__ = ["add_gallery_options", "add_parser", "gallery_options", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "index",
        help="put people into a gallery, to be searched",
        description="Put the people of folders, parquet files, or of a .jsonl file that `vlm-par track` or `vlm-par "
        "predict` wrote, into a gallery for `vlm-par search`. Started again it reads what is new or has changed, and "
        "goes on where a stopped run was. Images that cannot be read are named and left out (exit status 1).",
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES",
        help="image files, folders, parquet files, globs in quotes; or one .jsonl file with a line per person. None: "
        "only what --create-index and --compact do",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="GALLERY", help="a folder, or s3://BUCKET/NAME")
    parser.add_argument(
        "--model", metavar="PATH",
        help="checkpoint folder or repository: a recogniser, or a retrieval head of `vlm-par train-retrieval` "
        "(default: the embedded recogniser)",
    )  # fmt: skip
    parser.add_argument("--recognizer", metavar="PATH", help="the recogniser of a retrieval head, if it was moved")
    add_gallery_options(parser)
    parser.add_argument("--remove-gone", action="store_true", help="delete people of files that are gone")
    parser.add_argument("--create-index", action="store_true", help="then index the vectors (from 100,000 people)")
    parser.add_argument("--compact", action="store_true", help="then join small files, remove old versions")
    parser.add_argument("--report", metavar="FILE", help="write what was read and what was not, .json")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--people-per-commit", type=int, default=512, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: as transformers chooses)")
    group = parser.add_argument_group("images", "paths in tables and links in folders lead nowhere out of them")
    group.add_argument("--image-column", default="image", metavar="NAME", help="of parquet files (default: image)")
    group.add_argument("--image-root", metavar="DIR", help="paths in tables and lists lie below it")
    group.add_argument("--follow-links", action="store_true", help="links in folders may lead out of them")
    group = parser.add_argument_group("where people are")
    group.add_argument("--boxes", metavar="FILE", help="file of boxes, or a column of parquet files")
    group.add_argument("--box-format", choices=REGION_FORMATS, help="default: what the file says, else xyxy")
    group.add_argument("--box-margin", type=float, default=0.0, metavar="SHARE", help="around each box (default: 0)")
    group.add_argument("--detector", metavar="PATH", help="model for object detection that finds the people")
    group.add_argument("--detector-label", default="person", metavar="LABEL", help="default: %(default)s")
    group.add_argument("--detector-threshold", type=float, default=0.5, metavar="P", help="default: %(default)s")
    group = parser.add_argument_group("several processes or machines")
    group.add_argument("--ray-workers", type=int, default=0, metavar="N", help="processes of Ray (default: this one)")
    group.add_argument("--cpus-per-worker", type=int, default=1, metavar="N", help="default: %(default)s")
    group.add_argument("--gpus-per-worker", type=float, default=0, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=run)
    return parser


def add_gallery_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a gallery on an object store is reached."""
    parser.add_argument(
        "--storage-option", action="append", metavar="NAME=VALUE",
        help="of an object store, such as endpoint=http://localhost:9000; more than once for several. Keys belong "
        "into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    )  # fmt: skip


def gallery_options(args) -> dict[str, str] | None:
    """The storage options that were given."""
    from vlm_par_hf.errors import ParValueError

    if not args.storage_option:
        return None
    pairs = [one.partition("=") for one in args.storage_option]
    for name, sign, _ in pairs:
        if not name or not sign:
            raise ParValueError(f"--storage-option {name!r:.100}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def run(args) -> int:
    quiet_transformers()
    from vlm_par_hf.errors import ParValueError
    from vlm_par_hf.retrieval.gallery import Gallery

    storage_options = gallery_options(args)
    if not args.images and not (args.create_index or args.compact):
        raise ParValueError("no images were named: expected a folder, files, or --create-index or --compact alone")
    report = _index(args, storage_options) if args.images else None
    gallery = Gallery.open(args.out, storage_options=storage_options)
    if args.create_index:
        gallery.create_index()
    if args.compact:
        gallery.compact()
    stats = gallery.stats()
    index = "no index" if stats["index"] is None else f"{stats['people_not_in_index']} of them not in the index"
    say(f"{args.out}: {stats['people']} people of {stats['files']} files, {stats['bytes'] / 1e6:.1f} MB, {index}")
    if args.report and report is not None:
        atomic_write_json(args.report, report)
    return 1 if report is not None and report["broken"] else 0


def _index(args, storage_options) -> dict:
    from vlm_par_hf.retrieval.encoding import PersonEncoder
    from vlm_par_hf.retrieval.indexing import index_people

    encoder = PersonEncoder(
        args.model, recognizer=args.recognizer, batch_size=args.batch_size, device=args.device,
        box_margin=args.box_margin, detector=args.detector, detector_label=args.detector_label,
        detector_threshold=args.detector_threshold,
    )  # fmt: skip
    report = index_people(
        args.images, args.out, encoder=encoder, storage_options=storage_options, image_column=args.image_column,
        image_root=args.image_root, boxes=args.boxes, box_format=args.box_format, follow_links=args.follow_links,
        remove_gone=args.remove_gone, people_per_commit=args.people_per_commit, ray_workers=args.ray_workers,
        cpus_per_worker=args.cpus_per_worker, gpus_per_worker=args.gpus_per_worker,
    )  # fmt: skip
    say(
        f"{report['images']} images: {report['new']} new, {report['changed']} changed, {report['unchanged']} "
        f"unchanged; {report['added']} people added"
    )
    gone = report["gone"]
    if gone:
        done = f"their {report['removed']} people were removed" if args.remove_gone else (
            "their people stay in the gallery (--remove-gone deletes them)"
        )  # fmt: skip
        say(f"{len(gone)} files are gone, the first {gone[0]}: {done}")
    if report["duplicates"]:
        first = report["duplicates"][0]
        say(
            f"{len(report['duplicates'])} images are copies of others and were not added, the first "
            f"{first['image']} of {first['same_as']}"
        )
    if report["without_people"]["count"]:
        say(f"{report['without_people']['count']} images have no people, the first "
            f"{report['without_people']['first']}")  # fmt: skip
    for one in report["broken"][:20]:
        say(f"not read: {one['image']}: {one['error']}")
    if len(report["broken"]) > 20:
        say(f"... and {len(report['broken']) - 20} more that could not be read (--report FILE names all)")
    return report
