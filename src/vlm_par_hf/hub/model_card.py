"""Model cards: what a checkpoint is, what was measured, on what and how, and what it must not be used for.

Everything in a card comes from files: the configuration, the record of the training run, and evaluation records as
`vlm-par evaluate` writes them. Nothing is claimed that was not measured: a card without records says that there are no
results, and results on drawings are called synthetic everywhere. Results are also written into the metadata as
`model-index`, and for data sets with a Hub id into `.eval_results/`, which the leaderboards of the Hub read.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileExistsError, ParFileNotFoundError, ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import atomic_write_text, read_json

from .card_sections import (
    attributes_section,
    head_section,
    intended_use_section,
    limits_section,
    results_section,
    training_section,
    use_section,
)
from .records import (
    backbone_repositories,
    convention_text,
    dataset_title,
    find_records,
    finite_metrics,
    interval_note,
    is_dataset_result,
    is_partial,
    is_repository,
    metric_text,
    read_record,
)


__all__ = ["build_model_card", "eval_results_yaml", "find_records", "write_card_on_push", "write_model_card"]

CARD = "README.md"
EVAL_RESULTS = Path(".eval_results") / "vlm-par-hf.yaml"
# The Hub has no task for pedestrian attributes. By the tag of the closest one people find the model.
TAGS = ("pedestrian-attributes", "pedestrian-attribute-recognition", "vlm-par-hf", "image-classification")
# `pipeline(model=repository)` makes the pipeline of this name.
PIPELINE_TAG = "pedestrian-attributes"
# The task of a result in `model-index`, one of those that the Hub has.
RESULT_TASK = "image-classification"


def build_model_card(
    checkpoint: str | Path,
    metrics: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]] | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
    tags: Iterable[str] = (),
    recipe: Mapping[str, Any] | None = None,
):
    """The card of a checkpoint.

    Args:
        checkpoint: its folder. `config.json` must exist; `run.json` and `training.json` say how it was trained.
        metrics: evaluation records or their files; None: those found in the folder (`find_records`); an empty list:
            none.
        name: `"organisation/name"` on the Hub; None: the folder's name is the title, and the example holds a
            placeholder.
        license: of the weights, an identifier that the Hub knows; None: the card names no license.
        tags: further tags.
        recipe: training settings to list if there is no `run.json`.

    Returns:
        `huggingface_hub.ModelCard`. It was checked that its text gives the same metadata when it is read again.

    Raises:
        FileNotFoundError: there is no configuration, or no such record.
        ValueError: the configuration has no attributes, a file is no record, or the Hub would refuse the metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    checkpoint = Path(checkpoint)
    config = _read_config(checkpoint)
    schema = AttributeSchema(config["attributes"])
    records = [read_record(source) for source in _as_list(find_records(checkpoint) if metrics is None else metrics)]
    title = name or checkpoint.resolve().name
    backbones = backbone_repositories(config.get("backbone_name"))
    training = {**_read_json(checkpoint / "run.json"), "result": _read_json(checkpoint / "training.json")}
    trained_on = (training.get("data") or {}).get("name")
    data = ModelCardData(
        model_name=title.rpartition("/")[2],
        license=license,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(dict.fromkeys([*TAGS, config["model_type"], *tags])),
        base_model=backbones[0] if len(backbones) == 1 else backbones or None,
        datasets=[trained_on] if is_repository(trained_on) else None,
        eval_results=_eval_results(records) or None,
    )
    if "settings" not in training and recipe:
        training["settings"] = dict(recipe)
    sections = [
        head_section(title, config, schema, training, records),
        use_section(name),
        results_section(records),
        training_section(config, training),
        attributes_section(schema),
        intended_use_section(schema),
        limits_section(config, records),
    ]
    if not data.eval_results:
        del data.model_name  # it is a part of model-index, which does not exist without results
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
    _check_metadata(card)
    return card


def write_model_card(
    checkpoint: str | Path,
    metrics=None,
    *,
    out: str | Path | None = None,
    dataset_ids: Mapping[str, str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> list[Path]:
    """Writes the card, and beside it `.eval_results/vlm-par-hf.yaml` if a data set has a Hub id.

    Args:
        checkpoint, metrics, options: as for `build_model_card`.
        out: the file; None: `README.md` in the checkpoint.
        dataset_ids: name of a data set in the records -> its Hub id; not needed for names that are Hub ids already.
        overwrite: replace an existing card.

    Returns:
        The files written.

    Raises:
        FileExistsError: there is a card already, and `overwrite` is False. Others as for `build_model_card`.
    """
    out = Path(checkpoint) / CARD if out is None else Path(out)
    if out.exists() and not overwrite:
        raise ParFileExistsError(
            f"out={str(out)!r} exists and may have been edited; pass overwrite=True (--overwrite)"
        )
    sources = _as_list(find_records(checkpoint) if metrics is None else metrics)
    records = [read_record(source) for source in sources]
    card = build_model_card(checkpoint, records, **options)
    results = eval_results_yaml(records, dataset_ids)
    atomic_write_text(out, str(card))
    if results is None:
        return [out]
    atomic_write_text(out.parent / EVAL_RESULTS, results)
    return [out, out.parent / EVAL_RESULTS]


def eval_results_yaml(
    records: Iterable[Mapping[str, Any]], dataset_ids: Mapping[str, str] | None = None
) -> str | None:
    """The Hub's file of evaluation results: one entry per metric of each test result on a data set with a Hub id.

    The task id of an entry names split, metric and convention (`test_mA_rethinking`), because other projects use the
    same metric names for other numbers. Values are shares in 0 to 1.

    Returns:
        YAML; None if no record may be listed. Results on drawings and on a part of a test split may not.

    Raises:
        ValueError: a data set id is not a valid repository id.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import validate_repo_id

    entries = []
    for record in records:
        name = record["data"]["name"]
        dataset_id = (dataset_ids or {}).get(name, name)
        if "/" not in dataset_id or not is_dataset_result(record):
            continue
        validate_repo_id(dataset_id)
        entries += [
            EvalResultEntry(
                dataset_id=dataset_id,
                task_id=f"{record['data']['split']}_{metric}_{record['preset']}",
                value=round(value, 6),
                notes=f"{metric_text(metric) or metric}; {convention_text(record, metric)}"
                + interval_note(record, metric),
            )
            for metric, value in finite_metrics(record)
        ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, width=1000) if entries else None


def write_card_on_push(trainer, metrics=None, **options: Any) -> None:
    """Makes `trainer.push_to_hub()` push this package's card instead of the Trainer's own draft.

    The draft lists metrics without their convention and says nothing about use. A `README.md` that exists already in
    `trainer.args.output_dir` is kept. A model that `model.push_to_hub` refuses, because nobody else could load it, is
    refused here too: at once if `trainer.args.push_to_hub` is set, otherwise before the upload.

    Args:
        trainer: a `transformers.Trainer` over a model of this package.
        metrics: as for `build_model_card`; None: the records in `output_dir`.
        options: further keywords of `build_model_card`.

    Raises:
        ValueError: the model would be pushed, but nobody else could load it.
    """

    def check() -> None:
        check_pushable = getattr(trainer.model, "check_pushable", None)
        if check_pushable is not None:
            check_pushable()

    def create_model_card(model_name: str | None = None, tags: str | list[str] | None = None, **ignored: Any) -> None:
        check()
        folder = Path(trainer.args.output_dir)
        if not trainer.is_world_process_zero() or (folder / CARD).exists():
            return
        recipe_fields = (
            "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
            "gradient_accumulation_steps", "weight_decay", "lr_scheduler_type", "seed", "bf16",
        )  # fmt: skip
        arguments = trainer.args.to_dict()
        values = {
            "recipe": {key: arguments[key] for key in recipe_fields if key in arguments},
            "name": trainer.hub_model_id or trainer.args.hub_model_id or model_name,
            "tags": [tags] if isinstance(tags, str) else list(tags or ()),
            **options,
        }
        write_model_card(folder, metrics, **values)

    if trainer.args.push_to_hub:
        check()
    trainer.create_model_card = create_model_card


def _as_list(metrics) -> list:
    return [metrics] if isinstance(metrics, (str, os.PathLike, Mapping)) else list(metrics)


def _read_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise ParFileNotFoundError(f"checkpoint={str(checkpoint)!r} has no config.json, expected a checkpoint folder")
    config = _read_json(path)
    if not config.get("attributes") or "model_type" not in config:
        raise ParValueError(f"{path} names no attributes, expected the configuration of a model of this package")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ParValueError(f"{path} is no JSON file: {error}") from error


def _eval_results(records: Sequence[Mapping[str, Any]]) -> list:
    """Test results in the form of `model-index`. Results on other splits appear only in the text of the card."""
    from huggingface_hub import EvalResult

    results = []
    for record in records:
        data = record["data"]
        if data["split"] != "test":
            continue
        for metric, value in finite_metrics(record):
            interval = (record.get("intervals") or {}).get(metric)
            arguments: dict[str, Any] = {"convention": record["preset"], "images": data["images"]}
            if interval:
                arguments |= {
                    "confidence": record.get("confidence", 0.95),
                    "interval": [round(float(bound), 6) for bound in interval],
                    "resampled": record.get("resampled", "images"),
                }
            results.append(
                EvalResult(
                    task_type=RESULT_TASK,
                    task_name="Pedestrian attribute recognition",
                    dataset_type=data["name"],
                    dataset_name=dataset_title(record),
                    # The Hub's library merges all results of one data set under the name of the first. The number of
                    # images keeps the results on a part of it apart.
                    dataset_config=f"{data['images']} images" if is_partial(record) else None,
                    dataset_split=data["split"],
                    metric_type=metric,
                    metric_name=f"{metric} ({convention_text(record)})",
                    metric_value=round(value, 6),
                    metric_args=arguments,
                )
            )
    return results


def _check_metadata(card) -> None:
    """Checks that the Hub's library accepts the metadata, and that reading the card's text gives the same metadata.

    Raises:
        ValueError: it does not.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from huggingface_hub.utils import validate_repo_id

    text = str(card)
    if not REGEX_YAML_BLOCK.search(text):
        raise ParValueError("the card has no metadata block as the Hub expects it")
    reread = ModelCard(text)
    if reread.data.to_dict() != card.data.to_dict():
        raise ParValueError("the card's metadata does not survive being read again")
    base = reread.data.base_model
    for name in filter(None, [*(base if isinstance(base, list) else [base]), *(reread.data.datasets or ())]):
        validate_repo_id(name)
