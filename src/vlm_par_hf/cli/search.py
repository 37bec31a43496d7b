"""`vlm-par search`: people of a gallery by attributes, by an example picture, or by words.

Attributes need no model: the probabilities are in the gallery. So torch is imported for the other two only.
"""

import argparse
import json
import sys

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.escaping import printable

from .index import add_gallery_options, gallery_options
from .options import quiet_transformers, say


__all__ = ["add_parser", "run"]

_SCORES = ("log_likelihood", "l1", "adapters", "adapters_hard", "adapters_soft")
_MARKS = {True: "+", False: "-"}


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "search",
        help="find people by what they wear",
        description='Find people of a gallery that `vlm-par index` made: by attributes in words ("red top, backpack, '
        'not hat"), by an example picture, or by free words. Prints a table; --json prints all that is known.',
    )
    parser.add_argument("gallery", metavar="GALLERY", help="a folder, or s3://BUCKET/NAME")
    parser.add_argument("query", nargs="?", metavar="QUERY", help='attributes: "red top, backpack, not hat"')
    parser.add_argument("--image", metavar="FILE", help="a picture of a person: who looks alike")
    parser.add_argument("--text", metavar="WORDS", help="free words, compared by the text tower of the model")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--score", choices=_SCORES, metavar="NAME",
        help="how a query ranks: log_likelihood of its conditions (default), l1, or by a retrieval head: adapters, "
        "adapters_hard, adapters_soft",
    )  # fmt: skip
    parser.add_argument("--filter", metavar="QUERY", help="only people whose answers meet all of this")
    parser.add_argument("--where", metavar="SQL", help='only rows that meet this: "time < 60 AND quality > 0.8"')
    parser.add_argument(
        "--allow-sensitive", action="store_true",
        help="admit queries for perceived gender and age, which is a decision to take on purpose",
    )  # fmt: skip
    parser.add_argument("--draw", metavar="FILE", help="save a sheet of the people, with why, .png or .jpg")
    parser.add_argument("--json", action="store_true", help="print an object with people, counts and reasons")
    parser.add_argument(
        "--model", metavar="PATH", help="what the gallery was built with (default: as the gallery names it)"
    )
    parser.add_argument("--recognizer", metavar="PATH", help="the recogniser of a retrieval head, if it was moved")
    add_gallery_options(parser)
    parser.set_defaults(run=run)
    return parser


def run(args) -> int:
    quiet_transformers()
    from vlm_par_hf.retrieval.gallery import Gallery

    given = [name for name in ("query", "image", "text") if getattr(args, name) is not None]
    if not given:
        raise ParValueError("nothing is searched for: expected a query, --image or --text")
    if args.image and args.text:
        raise ParValueError("both --image and --text were given: expected one of them")
    if args.score and len(given) > 1:
        raise ParValueError(f"--score {args.score} is for queries, and --{given[1]} ranks: expected one of them")
    gallery = Gallery.open(args.gallery, storage_options=gallery_options(args))
    vector, score = _vector(args, gallery), args.score
    result = gallery.search(
        args.query,
        vector=vector,
        top=args.top,
        score=None if vector is not None else score,
        filter=args.filter,
        where=args.where,
        allow_sensitive=args.allow_sensitive,
    )
    if args.draw:
        from vlm_par_hf.retrieval.sheets import draw_search

        draw_search(result, args.draw, title=args.query or args.text or "people like this picture")
    if args.json:
        sys.stdout.write(json.dumps(result.to_dict(), ensure_ascii=False, indent=2) + "\n")
        return 0
    for line in _table(result):
        say(line)
    return 0


def _vector(args, gallery):
    """What the gallery's vectors are compared with; None for a query that is scored by probabilities."""
    is_adapter = (args.score or "").startswith("adapters")
    if not (args.image or args.text or is_adapter or args.model):
        return None
    from vlm_par_hf.auto import register
    from vlm_par_hf.retrieval.encoding import PersonEncoder

    register()
    embedding = gallery.info.embedding
    name = args.model or (embedding["name"] if embedding["source"] == "retriever" else gallery.info.model)
    recognizer = args.recognizer
    if args.model is None and embedding["source"] == "retriever" and recognizer is None:
        recognizer = gallery.info.model
    encoder = PersonEncoder(None if name == "embedded" else name, recognizer=recognizer)
    gallery.info.check_same(encoder.info(), args.gallery)
    if args.image:
        return encoder.embed([args.image])[0]
    if args.text:
        return encoder.embed_text(args.text, allow_sensitive=args.allow_sensitive)
    if is_adapter:
        from vlm_par_hf.retrieval.queries import Query

        query = Query.parse(args.query, gallery.schema, allow_sensitive=args.allow_sensitive)
        return encoder.embed_query(query, args.score)
    return None


def _table(result) -> list[str]:
    """The result as lines."""
    counts = result.counts
    lines = []
    asked = [f"query {result.query}"] if result.query else []
    asked += [f"filter {result.filter}"] if result.filter else []
    lines.append(f"{'; '.join([*asked, 'by ' + result.score])}: {counts['passed']} of {counts['people']} people")
    if "conditions" in counts and counts["passed"]:
        each = ", ".join(f"{name} {count}" for name, count in counts["conditions"].items())
        lines.append(f"answers that meet it: all {counts['all']}; {each}")
    if result.message:
        lines.append(result.message)
    for one in result.people:
        where = one["path"] if one["row"] is None else f"{one['path']}#{one['row']}"
        notes = [f"box {','.join(map(str, one['box']))}"] if one["box"] else []
        notes += [f"{one['time']:.1f} s"] if one["time"] is not None else []
        notes += [f"track {one['track']}"] if one["track"] is not None else []
        why = [f"{_MARKS[each['met']]} {each['condition']} {100 * each['probability']:.0f}%" for each in one["why"]]
        lines.append(printable("  ".join([f"{one['rank']:>3}  {one['score']:8.3f}", where, *notes, "; ".join(why)])))
    return lines
