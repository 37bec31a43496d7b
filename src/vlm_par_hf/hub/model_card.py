"""Model cards: what a checkpoint is, what was measured, on what and how, and what it must not be used for.

Everything in a card comes from files: the configuration, the record of the training run, and evaluation records as
`vlm-par evaluate` writes them. What was not measured is not claimed: a card without records says that there are none,
and drawn pedestrians are called synthetic everywhere. Results go into the metadata as `model-index`, and for data sets
that have a Hub id also into `.eval_results/`, the form that the Hub's leaderboards read.
"""

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vlm_par_hf.families import find_family
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import atomic_write_text


__all__ = ["build_model_card", "eval_results_yaml", "find_records", "write_card_on_push", "write_model_card"]

CARD = "README.md"
EVAL_RESULTS = Path(".eval_results") / "vlm-par-hf.yaml"
TAGS = ("pedestrian-attributes", "pedestrian-attribute-recognition", "vlm-par-hf")
# No task of the Hub is ours; the closest one decides where people find the model.
PIPELINE_TAG = "image-classification"
DATASETS = {
    "pa100k": "PA-100K",
    "peta35": "PETA, 35 attributes",
    "peta65": "PETA, 65 attributes",
    "market1501": "Market-1501 Attribute",
    "market1501_30": "Market-1501 Attribute, 30 binary attributes",
    "rapv1": "RAP v1",
    "rapv2": "RAP v2",
    "upar": "UPAR",
    "synthetic": "SYNTHETIC drawings of pedestrians",
}
# A test split with another number of images is another test: its result is told, but not as one of the data set.
OFFICIAL_IMAGES = {("pa100k", "validation"): 10_000, ("pa100k", "test"): 10_000}
METRICS = {
    "mA": "mean over attributes of the mean recall over its labels",
    "plain_accuracy": "share of known labels whose predicted class is right",
    "instance_accuracy": "mean over images of (predicted and true) / (predicted or true)",
    "instance_precision": "mean over images of (predicted and true) / predicted",
    "instance_recall": "mean over images of (predicted and true) / true",
    "instance_f1_harmonic": "harmonic mean of mean instance precision and mean instance recall",
    "instance_f1_mean": "mean over images of each image's F1",
    "label_f1_macro": "mean over attributes of the F1 of yes",
    "f1_micro": "F1 of yes, counts pooled over attributes and images",
    "f1_weighted": "mean over attributes of the F1 of every label, weighted by how often it occurs",
    "mA_min_positives": "mA over the attributes with enough positives in the split",
}
_NEEDED = {"data": ("name", "split", "images"), "metrics": (), "attributes": (), "preset": ()}


def find_records(checkpoint: str | Path) -> list[Path]:
    """The evaluation records that lie in a checkpoint folder: `metrics.json` and `evaluation_*/metrics.json`."""
    folder = Path(checkpoint)
    return [
        path for path in (folder / "metrics.json", *sorted(folder.glob("evaluation_*/metrics.json"))) if path.is_file()
    ]


def read_record(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation record from its file, checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no record of `vlm-par evaluate`; the message names what is missing.
    """
    if isinstance(source, Mapping):
        record, name = dict(source), "metrics"
    else:
        name = f"metrics={str(source)!r}"
        if not Path(source).is_file():
            raise FileNotFoundError(f"{name}: no such file, expected the metrics.json that vlm-par evaluate writes")
        try:
            record = json.loads(Path(source).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name} is no JSON file: {error}") from error
    for part, keys in _NEEDED.items():
        lacks = part if not isinstance(record, dict) or part not in record else None
        lacks = lacks or next((f"{part}.{key}" for key in keys if key not in record[part]), None)
        if lacks:
            raise ValueError(f"{name} lacks {lacks!r}, expected a record as vlm-par evaluate writes it (metrics.json)")
    return record


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
        checkpoint: its folder; `config.json` is needed, `run.json` and `training.json` say how it was trained.
        metrics: evaluation records or their files; None takes those that lie in the folder (`find_records`), an empty
            list none.
        name: `"organisation/name"` on the Hub; None: the folder's name, and the example says where to put the id.
        license: of the weights, an identifier that the Hub knows; left out when None.
        tags: further tags.
        recipe: training settings to list when there is no `run.json`.

    Returns:
        `huggingface_hub.ModelCard`, parsed again from its own text and equal to it.

    Raises:
        FileNotFoundError: no configuration, or no such record.
        ValueError: the configuration names no attributes, a record is none, or the metadata is not what the Hub takes.
    """
    from huggingface_hub import ModelCard, ModelCardData

    checkpoint = Path(checkpoint)
    config = _read_config(checkpoint)
    schema = AttributeSchema(config["attributes"])
    records = [read_record(source) for source in _as_list(find_records(checkpoint) if metrics is None else metrics)]
    title = name or checkpoint.resolve().name
    backbone = config.get("backbone_name")
    training = {**_read_json(checkpoint / "run.json"), "result": _read_json(checkpoint / "training.json")}
    trained_on = (training.get("data") or {}).get("name")
    data = ModelCardData(
        model_name=title.rpartition("/")[2],
        license=license,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(dict.fromkeys([*TAGS, config["model_type"], *tags])),
        base_model=backbone if _is_repository(backbone) else None,
        datasets=[trained_on] if _is_repository(trained_on) else None,
        eval_results=_eval_results(records) or None,
    )
    if "settings" not in training and recipe:
        training["settings"] = dict(recipe)
    sections = [
        _head(title, config, schema, training, records),
        _use(name),
        _results(records),
        _training(config, training),
        _attributes(schema),
        _uses(schema),
        _limits(config, records),
    ]
    if not data.eval_results:
        del data.model_name  # without results there is no model-index to bear it
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
    """Writes the card, and beside it `.eval_results/vlm-par-hf.yaml` where a data set has a Hub id.

    Args:
        checkpoint, metrics, options: as for `build_model_card`.
        out: the file; None: `README.md` in the checkpoint.
        dataset_ids: the Hub id of a data set by its name in the records. Names that are ids already need none.
        overwrite: replace a card that is there.

    Returns:
        The files written.

    Raises:
        FileExistsError: there is a card already, and `overwrite` is False.
    """
    out = Path(checkpoint) / CARD if out is None else Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"out={str(out)!r} exists and may have been edited; pass overwrite=True (--overwrite)")
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

    The task of an entry names split, metric and convention (`test_mA_rethinking`), because the same word means other
    numbers elsewhere. Values are shares in 0 to 1.

    Returns:
        YAML, or None when no record belongs there: results on drawings and on part of a test split do not.

    Raises:
        ValueError: a data set id is none.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import validate_repo_id

    entries = []
    for record in records:
        name = record["data"]["name"]
        dataset_id = (dataset_ids or {}).get(name, name)
        if "/" not in dataset_id or not _is_result_of_data_set(record):
            continue
        validate_repo_id(dataset_id)
        entries += [
            EvalResultEntry(
                dataset_id=dataset_id,
                task_id=f"{record['data']['split']}_{metric}_{record['preset']}",
                value=round(value, 6),
                notes=f"{METRICS.get(metric, metric)}; {_how(record)}{_interval_note(record, metric)}",
            )
            for metric, value in _defined(record)
        ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, width=1000) if entries else None


def write_card_on_push(trainer, metrics=None, **options: Any) -> None:
    """Makes `trainer.push_to_hub()` push this package's card in place of the Trainer's draft.

    The draft lists losses under names without a convention and says nothing about use. A `README.md` that is already
    in `trainer.args.output_dir` stays. What `model.push_to_hub` refuses, because nobody else could load it, is refused
    here too: at once where `trainer.args.push_to_hub` is set, else before the upload.

    Args:
        trainer: a `transformers.Trainer` over a model of this package.
        metrics: as for `build_model_card`; what lies in `output_dir` when None.
        options: further keywords of `build_model_card`.

    Raises:
        ValueError: the model is to be pushed and cannot be loaded by anybody else.
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
        wanted = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
                  "gradient_accumulation_steps", "weight_decay", "lr_scheduler_type", "seed", "bf16")  # fmt: skip
        given = trainer.args.to_dict()
        values = {
            "recipe": {key: given[key] for key in wanted if key in given},
            "name": trainer.hub_model_id or trainer.args.hub_model_id or model_name,
            "tags": [tags] if isinstance(tags, str) else list(tags or ()),
            **options,
        }
        write_model_card(folder, metrics, **values)

    if trainer.args.push_to_hub:
        check()
    trainer.create_model_card = create_model_card


# Reading


def _as_list(metrics) -> list:
    return [metrics] if isinstance(metrics, (str, os.PathLike, Mapping)) else list(metrics)


def _read_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={str(checkpoint)!r} has no config.json, expected a checkpoint folder")
    config = _read_json(path)
    if not config.get("attributes") or "model_type" not in config:
        raise ValueError(f"{path} names no attributes, expected the configuration of a model of this package")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


def _is_repository(name: str | None) -> bool:
    """Whether a backbone or a data set has a name on the Hub: no folder of this machine, no word of ours."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not name or "/" not in name or Path(name).is_absolute() or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


# What a record may claim


def _is_synthetic(record: Mapping[str, Any]) -> bool:
    return bool(record["data"].get("synthetic")) or record["data"]["name"] == "synthetic"


def _is_part(record: Mapping[str, Any]) -> bool:
    data = record["data"]
    official = OFFICIAL_IMAGES.get((data["name"], data["split"]))
    return bool(data.get("skipped_images")) or (official is not None and data["images"] != official)


def _is_result_of_data_set(record: Mapping[str, Any]) -> bool:
    return record["data"]["split"] == "test" and not _is_synthetic(record) and not _is_part(record)


def _dataset_name(record: Mapping[str, Any]) -> str:
    name = DATASETS.get(record["data"]["name"], record["data"]["name"])
    return f"part of {name}" if _is_part(record) else name


def _defined(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [
        (name, float(value))
        for name, value in record["metrics"].items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def _how(record: Mapping[str, Any]) -> str:
    threshold = record.get("threshold")
    if threshold is None:
        threshold = (record.get("convention") or {}).get("threshold")
    spoken = "each attribute's own threshold" if threshold == "schema" else f"threshold {threshold}"
    return f"convention {record['preset']}" + (f", {spoken}" if threshold is not None else "")


def _interval_note(record: Mapping[str, Any], metric: str) -> str:
    interval = (record.get("intervals") or {}).get(metric)
    if not interval:
        return ""
    level = f"{100 * record.get('confidence', 0.95):g}%"
    return (
        f"; {level} bootstrap interval over {record.get('resampled', 'images')} {interval[0]:.4f} to {interval[1]:.4f}"
    )


def _eval_results(records: Sequence[Mapping[str, Any]]) -> list:
    """Test results as `model-index` takes them. Other splits are told in the text only."""
    from huggingface_hub import EvalResult

    results = []
    for record in records:
        data = record["data"]
        if data["split"] != "test":
            continue
        for metric, value in _defined(record):
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
                    task_type=PIPELINE_TAG,
                    task_name="Pedestrian attribute recognition",
                    dataset_type=data["name"],
                    dataset_name=_dataset_name(record),
                    # The Hub's library puts results of one data set under the first one's name: this keeps them apart.
                    dataset_config=f"{data['images']} images" if _is_part(record) else None,
                    dataset_split=data["split"],
                    metric_type=metric,
                    metric_name=f"{metric} ({_how(record)})",
                    metric_value=round(value, 6),
                    metric_args=arguments,
                )
            )
    return results


def _check_metadata(card) -> None:
    """What the Hub's own library refuses, as it refuses it, and that the text gives back what went in."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from huggingface_hub.utils import validate_repo_id

    text = str(card)
    if not REGEX_YAML_BLOCK.search(text):
        raise ValueError("the card has no metadata block as the Hub expects it")
    again = ModelCard(text)
    if again.data.to_dict() != card.data.to_dict():
        raise ValueError("the card's metadata does not survive being read again")
    for name in filter(None, [again.data.base_model, *(again.data.datasets or ())]):
        validate_repo_id(name)


# Sections


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _percent(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def _head(title, config, schema, training, records) -> str:
    family = find_family(config["model_type"])
    family_title = config["model_type"] if family is None else family.title
    trained_on = (training.get("data") or {}).get("name")
    drawn = trained_on == "synthetic" or any(_is_synthetic(record) for record in records)
    backbone = config.get("backbone_name")
    lines = [
        f"# {title}",
        "",
        f"{family_title}: {len(schema)} attributes of a person from one image of that person, as a transformers "
        "model.",
    ]
    if _is_repository(backbone):
        lines += ["", f"Backbone: `{backbone}`."]
    elif backbone == "embedded":
        lines += ["", "Backbone: the one embedded in the package, which has only seen drawn pedestrians."]
    if drawn:
        lines += [
            "",
            "> **SYNTHETIC.** Trained or measured on drawings of pedestrians. No number from drawings says anything "
            "about photographs, and none is comparable with published results.",
        ]
    return "\n".join(lines)


def _use(name: str | None) -> str:
    return f"""## Use

```
pip install vlm-par-hf
```
```python
import vlm_par_hf  # registers the model with transformers; without it, loading asks for trust_remote_code
from transformers import pipeline

pipe = pipeline("pedestrian-attributes", model="{name or "organisation/name"}")
pipe("crop.jpg")["attributes"]
```"""


def _results(records) -> str:
    lines = ["## Results"]
    if not records:
        lines += [
            "",
            "No results: no evaluation record came with this checkpoint, so nothing is claimed about it.",
        ]
    for record in records:
        data = record["data"]
        intervals = record.get("intervals") or {}
        level = f"{100 * record.get('confidence', 0.95):g}% interval"
        note = record.get("note") or ""
        if _is_part(record) and not data.get("skipped_images"):
            note = f"{note} {data['images']:,} images are not the official {data['split']} split.".strip()
        rows = []
        for metric, value in record["metrics"].items():
            interval = intervals.get(metric)
            spoken = f"{_percent(interval[0])} to {_percent(interval[1])}" if interval else ""
            rows.append([f"`{metric}`", _percent(value) or "undefined", spoken, METRICS.get(metric, "")])
        lines += [
            "",
            f"### {_dataset_name(record)}, {data['split']}: {data['images']:,} images",
            "",
            f"{_how(record)[0].upper()}{_how(record)[1:]}. Percent."
            + (f" Intervals: bootstrap over {record.get('resampled', 'images')}." if intervals else " No intervals.")
            + (f" {data['unknown_labels']:,} unknown labels are left out." if data.get("unknown_labels") else ""),
            *(["", f"**{note}**"] if note else []),
            "",
            _table(["metric", "value", level, "what it is"], rows),
            "",
            "<details><summary>Per attribute</summary>",
            "",
            _table(
                ["attribute", "mean recall", "rarest label", "known"],
                [
                    [
                        row["name"],
                        _percent(row.get("mA")),
                        min((label["support"] for label in row["labels"].values()), default=0),
                        row["known"],
                    ]
                    for row in record["attributes"]
                ],
            ),
            "",
            "</details>",
        ]
        if record.get("command"):
            lines += ["", f"Measured by `{_public(record['command'])}` with {_versions(record)}."]
    return "\n".join(lines)


def _training(config, training) -> str:
    lines = ["## Training"]
    data, settings, result = training.get("data"), training.get("settings"), training.get("result")
    if not data and not settings:
        lines += ["", "How this checkpoint was trained is not recorded."]
    if data:
        count = "".join(
            f", {data[key]:,} {word} images"
            for key, word in (("train_images", "training"), ("validation_images", "validation"))
            if isinstance(data.get(key), int)
        )
        lines += ["", f"Data: {DATASETS.get(data['name'], data['name'])}{count}."]
    if result and isinstance(result.get("validation_mA"), (int, float)):
        lines += [
            "",
            f"The weights are those with the best mA on the validation split ({_percent(result['validation_mA'])}%, "
            f"step {result['best_step']} of {result['steps']}); the test split took no part.",
        ]
    loss = {key: value for key, value in (config.get("loss") or {}).items() if key != "priors"}
    family = find_family(config["model_type"])
    choices = {key: config[key] for key in (() if family is None else family.card_settings) if key in config}
    rows = {**choices, **({"loss": json.dumps(loss)} if loss else {}), **(settings or {})}
    if rows:
        lines += ["", _table(["setting", "value"], [[f"`{key}`", f"`{value}`"] for key, value in rows.items()])]
    if training.get("command"):
        lines += ["", f"Trained by `{_public(training['command'])}` with {_versions(training)}."]
    return "\n".join(lines)


def _versions(record: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in (record.get("versions") or {}).items() if key != "platform"}
    return ", ".join(f"{key} {value}" for key, value in shown.items()) or "versions that were not recorded"


def _public(command: str) -> str:
    """A command line without the folders of the machine that it ran on."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(PurePath(word).name if PurePath(word).is_absolute() else word for word in words)


def _attributes(schema: AttributeSchema) -> str:
    rows = [
        [one.name, one.question, ", ".join(one.labels), one.region or "", "yes" if one.sensitive else ""]
        for one in schema
    ]
    return "## Attributes\n\n" + _table(["name", "question", "labels", "region", "sensitive"], rows)


def _uses(schema: AttributeSchema) -> str:
    names = [f"`{one.name}`" for one in schema if one.sensitive]
    text = """## Intended use

Describing what a person in a crop visibly wears and carries: research on attribute recognition, sorting and searching
footage that may lawfully be processed, pre-annotation that a human checks.

## Not for

- Identifying a person, or following one person without a legal basis.
- Decisions about people (police work, access, employment, credit, insurance, care), alone or as the main ground.
- Covert or indiscriminate observation of public places.
- Anything that is not visible: ethnicity, origin, belief, health, mood, intent, character.

Appearance is weak evidence and the answers are often wrong; a wrong answer about a person harms that person."""
    if names:
        text += f"""

## Perceived gender and age

{", ".join(names)}: what annotators thought that they saw in a picture. It is neither identity nor a fact about the
person, it follows the annotators' stereotypes, and errors are not spread evenly over people. Leave these attributes
out unless they are needed: `pipe(image, sensitive=False)`, or `schema.without_sensitive()` before training."""
    return text


def _limits(config, records) -> str:
    lines = [
        "## Limits",
        "",
        "- One image is one person: crop people first, or pass boxes or a detector.",
        "- The data decide what the answers mean. Other cameras, seasons, clothes and places lower the quality by an "
        "amount that was not measured here.",
        "- Scores are not calibrated unless a threshold of the schema says otherwise.",
        "- An interval says how far a number would move with other test images, not with other training runs.",
    ]
    if records:
        lines.append("- Numbers of another convention are not comparable, even under the same name.")
    family = find_family(config["model_type"])
    lines += [f"- {sentence}" for sentence in (() if family is None else family.card_limits)]
    if config.get("save_backbone") is False:
        lines.append("- The heads alone: the backbone is fetched by its name and refused if its weights differ.")
    return "\n".join(lines)
