"""`vlm-par train-retrieval`: train the retrieval head of a checkpoint."""

import argparse

from vlm_par_hf.errors import ParValueError

from .options import add_data_options, add_overwrite_options, data_arguments, quiet_transformers, say


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train-retrieval",
        help="train a head that finds people by attributes",
        description="Train the adapters of CLEAR over the frozen vectors of a checkpoint: people and queries in one "
        "space. The checkpoint itself stays as it is.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or repository")
    add_data_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--attributes", metavar="NAMES", help="what queries ask for, such as Hat,Backpack (default: all)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default: 20; the best on validation is kept")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="of AdamW")
    parser.add_argument("--seed", type=int, metavar="N", help="of weights and order (default: 0)")
    group = parser.add_argument_group("head")
    group.add_argument("--embedding-size", type=int, metavar="N", help="default: 256")
    group.add_argument("--text-form", choices=("slots", "words", "flatten"), help="how a sentence becomes a vector")
    group.add_argument("--text-model", metavar="NAME", help="language model of soft queries (default: the text tower)")
    group.add_argument("--template", choices=("prompts", "paper"), help="sentence of soft queries")
    group.add_argument("--hard-weight", type=float, metavar="W", help="of hard queries (default: 0.3; 0: without)")
    group.add_argument("--soft-weight", type=float, metavar="W", help="of soft queries (default: 0.7; 0: without)")
    group.add_argument(
        "--open-share", type=float, metavar="P", help="of training steps with partly open queries (default: 0)"
    )
    parser.add_argument("--cache-features", metavar="DIR", help="features that vlm-par train keeps there")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures per pass (default: 64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data loader processes")
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR")
    add_overwrite_options(parser, "replace the run in DIR")
    parser.set_defaults(run=run)
    return parser


def split_names(text: str | None) -> list[str] | None:
    """The names in a list with commas; None for None.

    Raises:
        ValueError: no name.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ParValueError(f"--attributes {text!r} names none, expected names such as Hat,Backpack")
    return names


def _given(args, names: tuple[str, ...]) -> dict:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def run(args) -> None:
    quiet_transformers()
    data = data_arguments(args)
    from vlm_par_hf.training.fitting_adapters import RetrievalSettings
    from vlm_par_hf.training.retrieval import train_retrieval

    head = (
        "embedding_size", "text_form", "text_model", "template", "hard_weight", "soft_weight", "open_share",
    )  # fmt: skip
    result = train_retrieval(
        args.checkpoint,
        args.dataset,
        args.out,
        attributes=split_names(args.attributes),
        head=_given(args, head),
        settings=RetrievalSettings(**_given(args, ("epochs", "learning_rate", "seed"))),
        cache_features=args.cache_features,
        batch_size=args.batch_size,
        workers=args.workers,
        resume=args.resume,
        overwrite=args.overwrite,
        delete_listed=args.delete_listed,
        command=args.command_line,
        **data,
    )
    say(
        f"validation mAP {100 * result.fit.best_mAP:.2f} after epoch {result.fit.best_epoch} of "
        f"{len(result.fit.history)}"
    )
    say(f"retrieval head: {args.out}")
