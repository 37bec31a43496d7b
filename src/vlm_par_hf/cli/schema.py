"""`vlm-par schema`: a label space from a few words."""

import argparse
import json

from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.texts import SUBJECT

from .options import refuse_existing, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "schema",
        help="write a schema.json from a few words",
        description="Write the attributes of your data from a few words each: a text is answered yes or no, texts "
        "divided by | exclude each other. The question and the sentences that describe each label are made from the "
        "words; read them and change them in the file. A name in front is the column of your table.",
        epilog='example: vlm-par schema "Hat=wearing a hat" "Bag=a backpack | a handbag | no bag" --out schema.json',
    )
    parser.add_argument(
        "texts", nargs="+", metavar="[NAME=]TEXT", help='"wearing a hat", "Bag=a backpack | a handbag | no bag"'
    )
    parser.add_argument("--out", metavar="FILE", help="JSON file to write (default: standard output)")
    parser.add_argument(
        "--subject", default=SUBJECT, metavar="TEXT", help="beginning of sentences (default: %(default)r)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    attributes = []
    for text in args.texts:
        name, equals, words = text.partition("=")
        one = AttributeSchema.from_texts({name.strip(): words} if equals else [text], subject=args.subject)
        attributes += one
    schema = AttributeSchema(attributes)
    if args.out is None:
        say(json.dumps(schema.to_list(), indent=2, ensure_ascii=False))
        return
    refuse_existing(args.out, args.overwrite)
    schema.to_json(args.out)
    say(f"{len(schema)} attributes: {args.out}")
