"""The model card of a retrieval head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParFileExistsError, ParValueError
from vlm_par_hf.escaping import markdown_code, markdown_text
from vlm_par_hf.hub.card_sections import attributes_section, intended_use_section
from vlm_par_hf.hub.model_card import CARD
from vlm_par_hf.utils import atomic_write_text, format_percent, read_json_object

from .configuration_retriever import RetrieverConfig


__all__ = ["TAGS", "retriever_card", "write_retriever_card"]

TAGS = ("person-retrieval", "pedestrian-attributes", "vlm-par-hf")
_SHOWN = ("rank_1", "rank_5", "rank_10", "mAP_standard", "mAP_trapezoid", "mINP", "mADM")
MISUSE = """Search may serve lost persons, one's own footage where the law allows it, and work on data sets. It must
not serve tracking or profiling of individuals, and its first hits are candidates for a human to look at, never an
identification: people who dress alike are found alike. Queries for perceived gender or age are refused unless
`allow_sensitive=True` (`--allow-sensitive`) is set, on purpose."""


def retriever_card(
    config: RetrieverConfig,
    *,
    name: str | None = None,
    tags: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    records: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card as Markdown.

    Args:
        config: of the head.
        name: of the repository or folder, for the example.
        tags: beside the usual ones.
        run: the record of its training (`run.json`).
        records: what `evaluate_retrieval` returned.
    """
    schema = config.schema
    data = (run or {}).get("data") or {}
    head = [
        "---",
        "library_name: transformers",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys([*TAGS, *tags])),
        "---",
    ]
    recognizer = config.recognizer_type if config.recognizer is None else config.recognizer
    shown = name or "your-name/your-head"
    parts = [
        "\n".join(head),
        f"# {markdown_text(name or 'Retrieval head')}",
        "Finds people by what they wear: the adapters of CLEAR (Bui et al., 2024) over the frozen vectors of a "
        f"recogniser, {markdown_code(str(recognizer))} (`{config.recognizer_type}`). It is of no use with another "
        "one, and loading it beside one with other weights is refused."
        + (f" Trained on {markdown_text(str(data['name']))}, {data['train_images']:,} pictures." if data else ""),
        f"""## Use

```python
from transformers import AutoModel
from vlm_par_hf import Query

head = AutoModel.from_pretrained("{shown}")
query = Query.parse("backpack, not hat", head.schema)
people = head.embed_images(image_embeds, probabilities)  # of the recogniser: ParOutput.image_embeds and probabilities
similarity = head.embed_queries([query]) @ people.T
```""",
        f"Embeddings of {config.embedding_size} numbers; soft queries as {config.text_form} of the sentence "
        f"'{config.template}', read by {config.text_model or 'the text tower of the recogniser'}; weights of hard and "
        f"soft queries {config.hard_weight:g} and {config.soft_weight:g}; {config.num_categories:,} attribute vectors "
        "in training.",
        _results(records),
        attributes_section(schema),
        intended_use_section(schema),
        f"## What search may serve\n\n{MISUSE}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_retriever_card(
    checkpoint: str | Path,
    metrics: Sequence[str | Path] | None = None,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the card of a head's folder.

    Args:
        checkpoint: the folder.
        metrics: files that `evaluate_retrieval` wrote (`retrieval.json`); None: those below the folder.
        out: the file; None: `README.md` in the folder.
        name: of the repository; None: that of the folder.
        overwrite: replace a card that is there.

    Raises:
        FileExistsError: there is a card, and `overwrite` is not set.
        ValueError: a file holds no such record.
    """
    checkpoint = Path(checkpoint)
    out = checkpoint / CARD if out is None else Path(out)
    if out.exists() and not overwrite:
        raise ParFileExistsError(f"out={str(out)!r} exists: replace it (overwrite=True, --overwrite)")
    paths = sorted(checkpoint.glob("*/retrieval.json")) if metrics is None else [Path(one) for one in metrics]
    records = []
    for path in paths:
        record = read_json_object(path)
        if record is None or not isinstance(record.get("scorings"), dict):
            raise ParValueError(f"{path} is no record of evaluate-retrieval, expected its retrieval.json")
        records.append(record)
    config = RetrieverConfig.from_pretrained(checkpoint)
    run = read_json_object(checkpoint / "run.json")
    atomic_write_text(out, retriever_card(config, name=name or checkpoint.name, run=run, records=records))
    return out


def _results(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "## Results\n\nNothing was measured with this head yet (`vlm-par evaluate-retrieval`)."
    lines = [
        "## Results",
        "",
        f"| data | scores | queries | {' | '.join(_SHOWN)} |",
        f"|---|---|---|{'---|' * len(_SHOWN)}",
    ]
    for record in records:
        data = record["data"]
        kind = f"{'SYNTHETIC ' if data['synthetic'] else ''}{markdown_text(data['name'])}, {data['split']}"
        for scoring, found in record["scorings"].items():
            for which, one in (("all", found), ("unseen", found["unseen"])):
                numbers = " | ".join(format_percent(one[key]) for key in _SHOWN)
                lines.append(f"| {kind} | {scoring} | {which}, {one['queries']} | {numbers} |")
    return "\n".join(lines)
