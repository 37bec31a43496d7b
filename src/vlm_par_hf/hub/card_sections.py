"""The sections of a model card as Markdown texts, from a configuration, a training record and evaluation records."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vlm_par_hf.escaping import markdown_code, markdown_text
from vlm_par_hf.families import find_family
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import format_percent

from .records import (
    DATASETS,
    backbone_repositories,
    consistency_note,
    convention_text,
    dataset_title,
    has_synthetic,
    is_partial,
    is_synthetic,
    label_space_note,
    left_out_of_ranking,
    metric_text,
    slice_table,
)


__all__ = [
    "attributes_section",
    "head_section",
    "intended_use_section",
    "limits_section",
    "results_section",
    "training_section",
    "use_section",
]


_EMBEDDED = {
    "embedded": "trained on drawn and rendered pedestrians, with a small re-identification network as a teacher",
    "embedded-drawings": "in its first edition, which has only seen drawn pedestrians",
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def head_section(title, config, schema, training, records) -> str:
    family = find_family(config["model_type"])
    family_title = config["model_type"] if family is None else family.title
    answers_from = "one image of that person" if family is None else family.card_input
    trained_on = (training.get("data") or {}).get("name")
    is_made_up = has_synthetic(trained_on) or any(is_synthetic(record) for record in records)
    backbone = config.get("backbone_name")
    lines = [
        f"# {markdown_text(title)}",
        "",
        f"{markdown_text(family_title)}: {len(schema)} attributes of a person from {answers_from}, as a transformers "
        "model.",
    ]
    if repositories := backbone_repositories(backbone):
        lines += ["", f"Backbone: {' and '.join(map(markdown_code, repositories))}."]
    elif backbone in _EMBEDDED:
        lines += ["", f"Backbone: the one embedded in the package, {_EMBEDDED[backbone]}."]
    if is_made_up:
        lines += [
            "",
            "> **SYNTHETIC.** Trained or measured on drawn or rendered pedestrians. No number from them says anything "
            "about photographs, and none is comparable with published results.",
        ]
    return "\n".join(lines)


def use_section(name: str | None) -> str:
    return f"""## Use

```
pip install .     # in a clone of the repository of vlm_par_hf, which is not on PyPI
```
```python
import vlm_par_hf  # registers the model with transformers; without it, loading asks for trust_remote_code
from transformers import pipeline

pipe = pipeline("pedestrian-attributes", model={json.dumps(name or "organisation/name")})
pipe("crop.jpg")["attributes"]
```"""


def results_section(records) -> str:
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
        convention = markdown_text(convention_text(record))
        resampled = markdown_text(record.get("resampled", "images"))
        if is_partial(record) and not data.get("skipped_images"):
            note = f"{note} {data['images']:,} images are not the official {data['split']} split.".strip()
        left_out = left_out_of_ranking(record)
        rows = []
        for metric, value in record["metrics"].items():
            interval = intervals.get(metric)
            interval_text = f"{format_percent(interval[0])} to {format_percent(interval[1])}" if interval else ""
            shown = format_percent(value) or "undefined"
            rows.append([markdown_code(metric), shown, interval_text, markdown_text(metric_text(metric))])
        lines += [
            "",
            f"### {markdown_text(dataset_title(record))}, {markdown_text(data['split'])}: {data['images']:,} images",
            "",
            f"{convention[0].upper()}{convention[1:]}. Percent."
            + (f" Intervals: bootstrap over {resampled}." if intervals else " No intervals.")
            + (f" {data['unknown_labels']:,} unknown labels are left out." if data.get("unknown_labels") else ""),
            *(["", f"**{markdown_text(note)}**"] if note else []),
            "",
            _table(["metric", "value", level, "what it is"], rows),
            "",
            *([markdown_text(left_out), ""] if left_out else []),
            *_notes_and_slices(record),
            "<details><summary>Per attribute</summary>",
            "",
            _table(
                ["attribute", "mean recall", "rarest label", "known"],
                [
                    [
                        markdown_text(row["name"]),
                        format_percent(row.get("mA")),
                        markdown_text(min((label["support"] for label in row["labels"].values()), default=0)),
                        markdown_text(row["known"]),
                    ]
                    for row in record["attributes"]
                ],
            ),
            "",
            "</details>",
        ]
        if record.get("command"):
            lines += ["", f"Measured by {_command(record)} with {_versions(record)}."]
    return "\n".join(lines)


def _notes_and_slices(record: Mapping[str, Any]) -> list[str]:
    sentences = [markdown_text(note) for note in (label_space_note(record), consistency_note(record)) if note]
    lines = [line for sentence in sentences for line in (sentence, "")]
    slicings = (record.get("slices") or {}).get("by", ())
    if slicings:
        lines += ["#### Who is served how well", ""]
    for slicing in slicings:
        lines += [*slice_table(record, slicing), ""]
    return lines


def training_section(config, training) -> str:
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
        lines += ["", f"Data: {markdown_text(DATASETS.get(data['name'], data['name']))}{count}."]
    if result and isinstance(result.get("validation_mA"), (int, float)):
        chosen_by = str(result.get("selected_by", "mA"))
        lines += [
            "",
            f"The weights are those with the best {markdown_text(chosen_by)} on the validation split "
            f"({'' if chosen_by == 'mA' else 'mA '}{format_percent(result['validation_mA'])}%, step "
            f"{result['best_step']} of {result['steps']}); the test split took no part.",
        ]
    loss = {key: value for key, value in (config.get("loss") or {}).items() if key != "priors"}
    family = find_family(config["model_type"])
    choices = {key: config[key] for key in (() if family is None else family.card_settings) if key in config}
    rows = {**choices, **({"loss": json.dumps(loss)} if loss else {}), **(settings or {})}
    if rows:
        cells = [[markdown_code(key), markdown_code(value)] for key, value in rows.items()]
        lines += ["", _table(["setting", "value"], cells)]
    if training.get("command"):
        lines += ["", f"Trained by {_command(training)} with {_versions(training)}."]
    return "\n".join(lines)


def _versions(record: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in (record.get("versions") or {}).items() if key != "platform"}
    texts = [markdown_text(f"{key} {value}") for key, value in shown.items()]
    return ", ".join(texts) or "versions that were not recorded"


def _command(record: Mapping[str, Any]) -> str:
    """The command line of a record as code; paths that start at the root or at home are replaced by their last part,
    so that no local folder is published."""
    command = str(record["command"])
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return markdown_code(
        shlex.join(
            PurePath(word).name if PurePath(word).is_absolute() or word.startswith("~") else word for word in words
        )
    )


def attributes_section(schema: AttributeSchema) -> str:
    rows = [
        [
            *(markdown_text(text) for text in (one.name, one.question, ", ".join(one.labels), one.region or "")),
            "yes" if one.sensitive else "",
        ]
        for one in schema
    ]
    return "## Attributes\n\n" + _table(["name", "question", "labels", "region", "sensitive"], rows)


def intended_use_section(schema: AttributeSchema) -> str:
    names = [markdown_code(one.name) for one in schema if one.sensitive]
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


def limits_section(config, records) -> str:
    lines = [
        "## Limits",
        "",
        "- One image is one person: crop people first, or pass boxes or a detector.",
        "- The data decide what the answers mean. Other cameras, seasons, clothes and places lower the quality by an "
        "amount that was not measured here.",
        f"- {_calibration_sentence(config)}",
        "- An interval says how far a number would move with other test images, not with other training runs.",
    ]
    if records:
        lines.append("- Numbers of another convention are not comparable, even under the same name.")
    family = find_family(config["model_type"])
    lines += [f"- {sentence}" for sentence in (() if family is None else family.card_limits)]
    if config.get("save_backbone") is False:
        lines.append("- The heads alone: the backbone is fetched by its name and refused if its weights differ.")
    return "\n".join(lines)


def _calibration_sentence(config) -> str:
    """What was fitted for the answers, from `config.decisions`, if `vlm_par_hf.calibration` fitted it."""
    decisions = None if config.get("decisions") is None else Decisions.from_dict(config["decisions"])
    if decisions is None or decisions.objective is None:
        return "Scores are not calibrated unless a threshold of the schema says otherwise."
    record = decisions.record
    data = record.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    where = "" if name is None else f" of {markdown_text(str(name))}"
    if record.get("priors_only"):
        where += " without labels, under the assumption that only the shares of the labels differ"
    return (
        f"Probabilities were calibrated on {markdown_text(str(record.get('pictures', 'some')))} pictures{where}, and "
        f"thresholds chosen for {markdown_code(decisions.objective)}: on other cameras fit them again "
        "(`vlm-par calibrate`)."
    )
