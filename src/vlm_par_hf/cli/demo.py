"""`vlm-par demo`: train, evaluate and predict once, on rendered pedestrians and, if there are any, on real ones.

It uses only what a user can call: `load_par_dataset`, `train`, `evaluate`, the pipeline, `people_grid`.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.hub.records import SYNTHETIC
from vlm_par_hf.training.settings import TrainSettings

from .options import quiet_transformers, say


__all__ = ["add_parser", "run", "run_demo"]

_RECIPE = {"precompute_features": True, "progress": False}
_HEADLINE = ("mA", "instance_accuracy", "instance_f1_harmonic", "plain_accuracy")
_PEOPLE = 9
# With fewer positives in the test split the recall of an attribute says little.
_REAL_MIN_POSITIVES = 8


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "demo",
        help="train, evaluate and predict on rendered pedestrians in a few minutes",
        description="Render pedestrians, train VLM-PAR heads on them with the embedded backbone, evaluate, predict on "
        "pictures. With the environment variable PAR_DATA also on the real images of $PAR_DATA/pa100k_mini.",
    )
    parser.add_argument("--out", default="demo_output", metavar="DIR", help="result folder (default: %(default)s)")
    parser.add_argument(
        "--data", choices=("rendered", "synthetic"), default="rendered",
        help="what is made to learn from: rendered people, or drawings, which is quicker (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--num-train", type=int, default=3000, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=6.0, help="passes over them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and training (default: %(default)s)")
    parser.add_argument("--no-real", action="store_true", help="skip pa100k_mini even where PAR_DATA is set")
    parser.add_argument(
        "--delete-listed", action="store_true",
        help="also replace checkpoints of an earlier demo that were changed, or written by an earlier version",
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    quiet_transformers()
    run_demo(
        args.out,
        data_name=args.data,
        num_train=args.num_train,
        epochs=args.epochs,
        seed=args.seed,
        real_root=None if args.no_real else os.environ.get("PAR_DATA"),
        delete_listed=args.delete_listed,
        command=args.command_line,
        say=say,
    )


def run_demo(
    out: str | Path,
    *,
    data_name: str = "rendered",
    num_train: int = 3000,
    epochs: float = 6.0,
    seed: int = 0,
    backbone: str = "embedded",
    real_root: str | os.PathLike | None = None,
    delete_listed: bool = False,
    command: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Train, evaluate and predict; write the results below `out` and say which file holds what.

    Args:
        out: result folder. An earlier demo in it is replaced.
        data_name: `"rendered"` or `"synthetic"` (drawings).
        num_train: pictures to train on; a sixth as many for validation, a third as many for the test.
        epochs: passes over their features.
        seed: of pictures and training.
        backbone: as in `train`.
        real_root: folder that may hold `pa100k_mini`; None: no real images.
        delete_listed: as in `train`, for the checkpoints of an earlier demo.
        command: the command line to record.
        say: is called with each line of text for the user.

    Returns:
        The records of `evaluate` by data set: `data_name` and, if its images were there, `"pa100k_mini"`.

    Raises:
        ValueError: `num_train` is below 60, too few for every split.
    """
    from vlm_par_hf.data import load_par_dataset

    if num_train < 60:
        raise ParValueError(f"num_train={num_train}: expected at least 60, a sixth of it is the validation split")
    out = Path(out)
    started = time.monotonic()
    numbers = {"num_train": num_train, "num_validation": num_train // 6, "num_test": num_train // 3}
    word = SYNTHETIC[data_name]
    say(f"1/2  {word} of pedestrians, made now: {num_train:,} to train on, {num_train // 3:,} for the test")
    data = load_par_dataset(data_name, seed=seed, **numbers)
    settings = TrainSettings(epochs=epochs, seed=seed, **_RECIPE)
    records = {
        data_name: _run_once(
            data,
            out,
            settings,
            backbone=backbone,
            name=data_name,
            title=f"SYNTHETIC {word}",
            command=command,
            delete_listed=delete_listed,
        )
    }
    _say_results(records[data_name], out, "SYNTHETIC", say)
    real = None if real_root is None else Path(real_root) / "pa100k_mini"
    if real is not None and real.is_dir():
        say("")
        say("2/2  real images: pa100k_mini (1,600 images of PA-100K), through a backbone that has seen none of them")
        data = load_par_dataset("pa100k", real)
        folder = out / "pa100k_mini"
        records["pa100k_mini"] = _run_once(
            data, folder, settings, backbone=backbone, name="pa100k_mini", title="PA-100K images (pa100k_mini)",
            command=command, min_positives=_REAL_MIN_POSITIVES, delete_listed=delete_listed,
        )  # fmt: skip
        _say_results(records["pa100k_mini"], folder, "REAL, backbone trained on drawn and rendered people", say)
    else:
        say("2/2  real images: skipped (set PAR_DATA to a folder that holds pa100k_mini)")
    say("")
    say(f"done in {time.monotonic() - started:.0f} s. Use the checkpoint:")
    say("")
    say("    import vlm_par_hf")
    say("    from transformers import pipeline")
    say(f'    pipeline("pedestrian-attributes", model="{out / "checkpoint"}")("person.jpg")')
    return records


def _run_once(
    data, out: Path, settings: TrainSettings, *, backbone, name, title, command, delete_listed, min_positives=None
):
    from transformers import pipeline

    from vlm_par_hf.data import dataset_schema
    from vlm_par_hf.training import evaluate, train
    from vlm_par_hf.visualization import people_grid

    checkpoint = out / "checkpoint"
    result = train(
        data, checkpoint, backbone=backbone, settings=settings, overwrite=True, delete_listed=delete_listed,
        command=command,
    )  # fmt: skip
    record = evaluate(
        result.model,
        data,
        processor=result.processor,
        output_dir=out,
        dataset_name=name,
        min_positives=min_positives,
        progress=False,
        command=command,
        seed=settings.seed,
    )
    curve = checkpoint / "learning_curve.png"
    if curve.exists():
        shutil.copyfile(curve, out / curve.name)
    # The model is loaded from the folder, as a user does. The people are evenly spread over the test split, so that
    # they are not selected by how well they were recognised.
    count = len(data["test"])
    people = data["test"].select([count * index // _PEOPLE for index in range(min(_PEOPLE, count))])
    pipe = pipeline("pedestrian-attributes", model=str(checkpoint))
    images = [row["image"] for row in people]
    # The picture may be shown to others, so it leaves out the perceived gender and age of real people.
    answers = pipe(images, batch_size=_PEOPLE, sensitive=name in SYNTHETIC)
    people_grid(
        images,
        [answer["attributes"] for answer in answers],
        labels=[row["labels"] for row in people],
        schema=dataset_schema(people),
        title=f"{title}: predicted attributes of {len(images)} test images, not selected",
    ).save(out / "people.png")
    return record


def _say_results(record: dict[str, Any], out: Path, label: str, say: Callable[[str], None]) -> None:
    images = record["data"]["images"]
    say(f"     {label}, test split, {images:,} images, conventions of {record['preset']}, 95% intervals:")
    for name in (*_HEADLINE, "mA_min_positives"):
        if name in record["metrics"]:
            low, high = record["intervals"][name]
            say(f"       {name:<22} {100 * record['metrics'][name]:5.1f}   ({100 * low:.1f} to {100 * high:.1f})")
    for name, what in (
        ("checkpoint", "checkpoint folder"),
        ("metrics.json", "every metric, interval and attribute"),
        ("attributes.png", "mean recall per attribute"),
        ("learning_curve.png", "loss and validation mA"),
        ("people.png", "people with predicted and true attributes"),
    ):
        if (out / name).exists():
            say(f"     {str(out / name):<40} {what}")
