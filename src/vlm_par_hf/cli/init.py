"""`vlm-par init`: draft the schema.json of a table."""

import argparse
import os
import shlex
from pathlib import Path

from vlm_par_hf.errors import ParError, ParValueError

from .options import refuse_existing, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "init",
        help="draft the schema.json of your own table of labels",
        description="Draft the schema.json of a table (.csv, .tsv, .txt, .jsonl) from its header and cells: columns "
        "of 0 and 1, or yes and no, and columns of few different texts become attributes; columns of paths, splits, "
        "persons and boxes are known by their names; the others are left out, with the reason. Then the table is read "
        "as training reads it. Questions and prompts are made from the names: read them before training.",
    )
    parser.add_argument("table", metavar="TABLE", help="the table, or the folder that holds it")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: schema.json in the folder)")
    parser.add_argument(
        "--names", metavar="A,B,...", help="attributes of a list without a header ('path 0 1 0'), in its order"
    )
    parser.add_argument(
        "--labels", action="append", default=[], metavar="COLUMN=A|B|...",
        help="names of the classes 0, 1, ... of a column of numbers; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--max-labels", type=int, default=30, metavar="N",
        help="a column of more different texts is free text (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--negative", metavar="CELL", help='cell that means "no", such as -1')
    parser.add_argument("--unknown", metavar="CELL", help='cell that means "not annotated"')
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.set_defaults(run=run)
    return parser


def run(args) -> int:
    from vlm_par_hf.data.drafting import draft_schema

    labels = {}
    for item in args.labels:
        column, equals, names = item.partition("=")
        if not (column and equals and "|" in names):
            raise ParValueError(f"labels={item!r}: expected COLUMN=A|B|..., such as Color=red|green|blue")
        labels[column.strip()] = [name.strip() for name in names.split("|")]
    names = None if args.names is None else [name.strip() for name in args.names.split(",")]
    draft = draft_schema(args.table, names=names, labels=labels, max_labels=args.max_labels)
    out = Path(args.out) if args.out else draft.root / "schema.json"
    refuse_existing(str(out), args.overwrite)
    say(f"{', '.join(table.path.name for table in draft.tables)}: {draft.rows:,} rows")
    _say_columns(draft.columns)
    if draft.left_out:
        say("left out:")
        _say_columns(draft.left_out)
    if draft.schema is None:
        raise ParValueError(f"{args.table}: no column holds labels, so there is no schema to write")
    for remark in draft.remarks:
        say(f"note: {remark}")
    draft.schema.to_json(out)
    say(f"{len(draft.schema)} attributes: {out}; read its questions and prompts, they are made from names")
    return _try_reading(args, draft, out)


def _say_columns(columns: list[tuple[str, str]]) -> None:
    width = min(max(len(name) for name, _ in columns), 30)
    for name, text in columns:
        say(f"  {name:<{width}}  {text if len(text) <= 100 else text[:97] + '...'}")


def _try_reading(args, draft, out: Path) -> int:
    """Reads the table as training does; says what is wanted, or how to train."""
    from vlm_par_hf.data import read_folder
    from vlm_par_hf.data.readers.files import check_image_files
    from vlm_par_hf.data.readers.own_tables import find_tables

    given = {name: getattr(args, name) for name in ("negative", "unknown") if getattr(args, name) is not None}
    try:
        read = find_tables(draft.root)
        if [table.path for table in read] != [table.path for table in draft.tables]:
            found = ", ".join(table.path.name for table in read)
            raise ParValueError(f"training reads {found} in this folder: rename {draft.tables[0].path.name}")
        _, splits = read_folder(draft.root, draft.schema, **given)
        images = [record.image for records in splits.values() for record in records]
        missing = [image for image, exists in zip(images, check_image_files(draft.root, images)) if not exists]
        if missing:
            raise ParValueError(f"{len(missing)} of {len(images)} images do not exist, the first is {missing[0]!r}")
    except ParError as error:
        say(f"before training: {error}")
        return 1
    say("read: " + ", ".join(f"{split} {len(records):,}" for split, records in splits.items()))
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    if out.resolve() != draft.root / "schema.json":
        flags += ["--schema", str(out)]
    if not {"train", "validation"} <= set(splits):
        say("before training: training needs the splits train and validation")
        return 1
    root = os.path.relpath(draft.root)
    root = str(draft.root) if root.startswith(os.pardir) else root
    say(f"train: {shlex.join(['vlm-par', 'train', 'folder', '--root', root, *flags, '--out', 'runs/mine'])}")
    return 0
