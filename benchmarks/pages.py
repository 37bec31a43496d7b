"""The measured parts of pages in docs/, written from the results of the benchmarks.

    python benchmarks/pages.py      # writes all from benchmarks/results/, measures nothing

`speed.py`, `quality.py`, `decisions.py`, `loss_weighting.py`, `fine_tuning.py` and `cross_domain.py` do the same for
their own page after writing results to `benchmarks/results/`. The text depends on the results alone and stands between
`<!-- NAME:begin -->` and `<!-- NAME:end -->`. The rest of a page is written by hand, also what the numbers mean: read
it again when they change.
"""

import json
import math
import re
import shlex
import textwrap
from pathlib import Path


RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"

COMPARED_DRAWINGS = 512  # images on which speed.py compares decisions


def paragraph(text: str) -> str:
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows])


# Speed

WORDS = {  # of the results: how the page says it
    "openvino": "OpenVINO",
    "onnx": "ONNX Runtime",
    " looking at the mix tokens": ", without the tower",
}
BASELINES = {
    "full": "full checkpoint",
    "model alone": "the model alone, on ready tensors",
    "zero-shot-image-classification with 52 prompts": "transformers' zero-shot pipeline, 52 prompts",
}
BYTES_PER_GB = {"bytes": 1e9, "GB": 1.0}


def speed_text(parts: dict[str, dict]) -> str:
    """The text from the content of speed.json: part -> {"rows": [...], "machine": ..., "torch": ..., ...}."""
    rows = [row for part in parts.values() for row in part["rows"]]
    machines = sorted({f"{part['machine']}, torch {part['torch']}" for part in parts.values()})
    text = [
        "![Cost of the heads beside the vision tower](../benchmarks/results/speed.png)",
        paragraph(
            "Each ratio compares the medians of two things that took turns in one process (`make bench`). The model "
            "has the size of SigLIP 2 base NaFlex and random weights; images have 128 patches, numbers are float32 "
            "unless a row says otherwise, and a ratio is one of time unless sizes stand beside it. Machine: "
            f"{'; '.join(machines)}. All numbers: [speed.json](../benchmarks/results/speed.json)."
        ),
    ]
    differences = [row["largest_difference_to_plain"] for row in rows if "largest_difference_to_plain" in row]
    if differences:
        text.append(
            paragraph(
                "The *plain form* is the model as the paper writes it: the text tower runs in every call, and every "
                "attribute has its own attention module. Its logits differ from ours by at most "
                f"{_rounded_up(max(differences))}."
            )
        )
    # The part `growth` is the picture.
    cells = [line for name, part in parts.items() if name != "growth" for line in _speed_rows(part["rows"])]
    text.append(markdown_table(["measured", "compared with", "ratio", "ratio of the plain form"], cells))
    shares = {_runtime(row): row["unchanged_decisions"] for row in rows if "unchanged_decisions" in row}
    if shares:
        sources = list(dict.fromkeys(source for found in shares.values() for source in found))
        titles = {"drawings": f"{COMPARED_DRAWINGS} drawings", "real crops": "real PA-100K crops"}
        text += [
            "Share of the embedded model's decisions that are the same as in float32:",
            markdown_table(
                ["runtime and precision", *(titles[source] for source in sources)],
                [
                    [name, *(f"{100 * found[source]:.2f} %" if source in found else "" for source in sources)]
                    for name, found in shares.items()
                ],
            ),
        ]
    return "\n\n".join(text)


def _speed_rows(rows: list[dict]) -> list[list[str]]:
    """Cells of the table; what was measured with several batch sizes is one row ("batch 1 and 8", "0.4x and 0.5x")."""
    groups: dict[tuple[str, str], list[tuple[str, dict]]] = {}
    baseline = ""
    for row in rows:
        what, slash, rest = row["what"].partition(" / ")
        if slash:  # a row that names no baseline has the one of the row before
            baseline, comma, batch = rest.partition(", ")
            what += comma + batch
        sizes = re.findall(r"batch (\d+)", what)
        groups.setdefault((re.sub(r"batch \d+", "batch #", what), baseline), []).append(("".join(sizes), row))
    table = []
    for (what, baseline), group in groups.items():
        ratios = " and ".join(_ratio(row["ratio"]) for _, row in group)
        unit = BYTES_PER_GB.get(group[0][1]["unit"])
        if unit is not None:
            sizes = [f"{row['ours'] / unit:.2f} GB instead of {row['baseline'] / unit:.2f} GB" for _, row in group]
            ratios += f" ({'; '.join(sizes)})"
        table.append(
            [
                _words(what.replace("#", " and ".join(size for size, _ in group))),
                BASELINES.get(baseline, baseline),
                ratios,
                " and ".join(_ratio(row["naive_ratio"]) for _, row in group if "naive_ratio" in row),
            ]
        )
    return table


def _ratio(value: float) -> str:
    return f"{value:.3f}x" if value < 0.11 else f"{value:.2f}x"


def _words(text: str) -> str:
    for word, shown in WORDS.items():
        text = text.replace(word, shown)
    return text


def _runtime(row: dict) -> str:
    """`torch bfloat16` of `whole model, torch bfloat16, batch 1 / torch float32`."""
    return _words(row["what"].split(", ")[1])


def _rounded_up(value: float) -> str:
    """One digit, such as 3e-6."""
    exponent = math.floor(math.log10(value))
    return f"{math.ceil(value / 10**exponent)}e{exponent}"


def command_of(words: list[str]) -> str:
    """A command as the reader would type it, from `sys.argv`: without folders of this machine."""
    script, *words = words
    folders = {
        position + 1
        for position, word in enumerate(words)
        if word in ("--work", "--out", "--backbone", "--text-model")
    }
    shown = ["DIR" if position in folders and "/" in word else word for position, word in enumerate(words)]
    return f"python benchmarks/{Path(script).name} {shlex.join(shown)}".rstrip()


# Quality


def quality_text(result: dict) -> str:
    """The text from the content of quality.json: `sets` by name, `variants` of them and `attention_gain` if they were
    measured."""
    if not result["sets"]:
        return "Nothing is measured yet."
    text = ["![AUC of linear probes and of VLM-PAR on frozen features](../benchmarks/results/quality.png)"]
    for part in result["sets"].values():
        text += _quality_part(part, part["title"])
    for variant, parts in result.get("variants", {}).items():
        for part in parts.values():
            text += _quality_part(part, f"{part['title']}: {variant}")
    text.append(
        paragraph(
            "Brackets are 95 % intervals over persons. *One shift* is mA after one number for all attributes was "
            "fitted on validation, *fitted* is by the decisions of [decisions.md](decisions.md), fitted there for mA "
            "and for instance F1. *M* is the number of trained parameters in millions. All numbers: "
            "[quality.json](../benchmarks/results/quality.json)."
        )
    )
    if "attention_gain" in result:
        gain = result["attention_gain"]
        means = [f"{kind} {100 * sum(one.values()) / len(one):.1f}" for kind, one in gain["accuracy"].items()]
        text += [
            "![Accuracy of each attribute after one epoch](../benchmarks/results/attention_gain.png)",
            paragraph(
                f"As the paper's figure 4, on {gain['title']}: accuracy of each attribute after one epoch. Mean "
                f"accuracy: {', '.join(means)}."
            ),
        ]
    return "\n\n".join(text)


def _quality_part(part: dict, title: str) -> list[str]:
    pictures, folds = part["pictures"], part["folds"]
    split = (
        f"{folds} folds without a common person ({pictures['train']:,} pictures to train on in the first one)"
        if folds > 1
        else f"{pictures['train']:,} pictures to train on"
    )
    seeds = f"{part['seeds']} seeds" if part["seeds"] > 1 else "one seed"
    return [
        f"### {title}",
        paragraph(
            f"{split}, {part['tested']:,} tested, {len(part['scored'])} attributes scored, {seeds}; class weights "
            f"`{part['recipe']['weighting']}`. Differences are to *{_label(part, part['best_probe'])}*, the probe "
            f"with the best validation AUC. Measured with `{part['command']}` on {part['machine']}."
        ),
        markdown_table(
            [
                "method",
                "AUC",
                "difference",
                "AP",
                "mA at 0.5",
                "one shift",
                "mA, fitted",
                "F1 at 0.5",
                "F1, fitted",
                "train - validation AUC",
                "M",
            ],
            [_quality_row(row) for row in part["methods"].values()],
        ),
    ]


def _label(part: dict, method: str | None) -> str:
    return "none" if method is None else part["methods"][method]["label"]


def _quality_row(row: dict) -> list[str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    auc, difference = row["auc"], row["auc"].get("difference")
    gap = None if row["validation_auc"] is None else row["train_auc"] - row["validation_auc"]
    return [
        row["label"],
        f"{percent(auc['value'])} [{percent(auc['low'])}, {percent(auc['high'])}]",
        "" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(
            *(100 * (difference[name] if difference[name] is not None else 0) for name in ("value", "low", "high"))
        ),
        *(percent(row[name]["value"]) for name in ("ap", "mA", "mA_shift", "mA_fitted", "f1", "f1_fitted")),
        percent(gap),
        f"{row['parameters'] / 1e6:.2f}" if "parameters" in row else "",
    ]  # fmt: skip


# Decisions


def decisions_text(result: dict) -> str:
    """The text from the content of decisions.json: `sets` by name."""
    if not result["sets"]:
        return "Nothing is measured yet."
    text = []
    for part in result["sets"].values():
        split = f"{part['folds']} folds without a common person" if part["folds"] > 1 else "one split"
        text += [
            f"### {part['title']}",
            paragraph(
                f"{split}, fitted on {min(part['fitted_on']):,} validation pictures each time, {part['tested']:,} "
                f"tested, {part['scored']} attributes scored by mA. Measured with `{part['command']}` on "
                f"{part['machine']}."
            ),
            markdown_table(
                [
                    "class weights", "method", "ECE", "Brier", "mA at 0.5", "one shift", "mA, fitted", "difference",
                    "F1 at 0.5", "F1, fitted", "AURC", "coverage", "exact", "unsure", "contradictory",
                ],
                [
                    _decisions_row(weighting, row)
                    for weighting, recipe in part["recipes"].items()
                    for row in recipe["methods"].values()
                ],
            ),
        ]  # fmt: skip
        beside = [
            f"{_with_interval(row['mA_fitted']['to_probe'], '+')} with `{weighting}`"
            for weighting, recipe in part["recipes"].items()
            for row in recipe["methods"].values()
            if "to_probe" in row["mA_fitted"]
        ]
        if beside:
            text.append(
                paragraph(
                    "Fitted mA of VLM-PAR less that of the probe with the best validation AUC: "
                    + "; ".join(beside)
                    + "."
                )
            )
        changes = [
            f"{recipe['methods'][method]['label']} with `{weighting}` "
            + ", ".join(
                f"{name} {100 * row['alone'][key]:.1f} to {100 * row['consistent'][key]:.1f}"
                for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1_harmonic"))
            )
            for weighting, recipe in part["recipes"].items()
            for method, row in recipe["methods"].items()
            if "to_probe" in row["mA_fitted"]
        ]
        if changes:
            text.append(
                paragraph("What making answers consistent changes (instance metrics): " + "; ".join(changes) + ".")
            )
        wide = [
            row["wide"] for recipe in part["recipes"].values() for row in recipe["methods"].values() if "wide" in row
        ]
        wide = [one for one in wide if one["labels"]]
        if wide:
            shares = [one["coverage"] for one in wide]
            lowest, highest = min(one["lowest"] for one in wide), max(one["highest"] for one in wide)
            text.append(
                paragraph(
                    f"With {wide[0]['pictures']:,} pictures to fit on, the {wide[0]['labels']} labels that have 1,000 "
                    f"examples are covered exactly in {100 * min(shares):.1f} to {100 * max(shares):.1f} % of the "
                    f"other pictures, depending on weights and method; a single label in {100 * lowest:.1f} to "
                    f"{100 * highest:.1f} %."
                )
            )
    text.append(
        paragraph(
            "ECE and Brier: before -> after. *One shift* is mA after one number for all attributes was fitted. "
            "*Difference* is that of the fitted mA to that at 0.5; brackets are 95 % intervals over persons. F1 is "
            "instance F1. *Coverage* is how often the set of answers for 90 % holds the right one, *exact* the same "
            "before empty sets are filled with the most probable label, *unsure* the share of sets with more than one "
            "answer, *contradictory* that of pictures whose answers for F1 break a rule of the label space (none does "
            "after they are made consistent). "
            "All numbers: [decisions.json](../benchmarks/results/decisions.json)."
        )
    )
    return "\n\n".join(text)


def _decisions_row(weighting: str, row: dict) -> list[str]:
    return [
        f"`{weighting}`",
        row["label"],
        f"{row['ece_before']:.3f} -> {row['ece_after']:.3f}",
        f"{row['brier_before']:.3f} -> {row['brier_after']:.3f}",
        *(f"{100 * row[name]['value']:.1f}" for name in ("mA", "mA_shift", "mA_fitted")),
        _with_interval(row["mA_fitted"]["difference"], "+"),
        f"{100 * row['f1']:.1f}",
        f"{100 * row['f1_fitted']:.1f}",
        f"{row['aurc']:.3f}",
        f"{100 * row['coverage']:.1f}",
        f"{100 * row['coverage_exact']:.1f}",
        f"{100 * row['unsure']:.0f}",
        f"{100 * row['contradictions']['instance_f1']:.0f}",
    ]


LOSSES = {
    "ce": "cross-entropy",
    "ce_focal": "the paper's (`ce_focal`)",
    "ce_focal_sqrt": "`ce_focal`, weights `sqrt` (default)",
    "ce_focal_balanced": "`ce_focal`, weights `balanced`",
    "weighted_bce": "weighted cross-entropy (`weighted_bce`)",
    "focal": "focal, gamma 2",
    "focal_by_attribute": "focal, gamma per attribute",
    "asl": "asymmetric (ASL)",
    "resampled": "label-balanced re-sampling per attribute",
}


def loss_weighting_text(result: dict) -> str:
    """The text from the content of loss_weighting.json: `sets` by name."""
    text = []
    for part in result["sets"].values():
        split = f"{part['folds']} folds without a common person" if part["folds"] > 1 else "one split"
        first = next(iter(part["losses"]))
        text += [
            f"### {part['title']}: losses",
            paragraph(
                f"Linear probe on pooled output and mean patch, {split}, fitted on {min(part['fitted_on']):,} "
                f"validation pictures each time, {part['tested']:,} tested, {part['scored']} attributes. "
                f"Measured with `{part['command']}` on {part['machine']}."
            ),
            markdown_table(
                [
                    "loss", "AUC", f"beside {LOSSES[first]}", "mA at 0.5", "mA, fitted",
                    f"beside {LOSSES[first]}", "F1 at 0.5", "F1, fitted",
                ],
                [
                    [
                        LOSSES[name],
                        f"{100 * row['auc']['value']:.1f}",
                        _with_interval(row["auc"]["difference"], "+") if "difference" in row["auc"] else "",
                        f"{100 * row['mA']['value']:.1f}",
                        f"{100 * row['mA_fitted']['value']:.1f}",
                        _with_interval(row["mA_fitted"]["difference"], "+") if "difference" in row["auc"] else "",
                        f"{100 * row['f1']:.1f}",
                        f"{100 * row['f1_fitted']:.1f}",
                    ]
                    for name, row in part["losses"].items()
                ],
            ),
        ]  # fmt: skip
    return "\n\n".join([*text, "All numbers: [loss_weighting.json](../benchmarks/results/loss_weighting.json)."])


# Across domains


def cross_domain_text(result: dict) -> str:
    """The text from the content of cross_domain.json: `rows`, one per pair of domains, and `sizes`."""
    head = ["trained on", "tested on", "attributes", "mA", "there", "lost", "AUC", "there", "lost"]
    rows = []
    for row in result["rows"]:
        cells = [row["trained"], row["tested"], str(row["attributes"])]
        for one in (row["mA"], row["auc"]):
            cells += [
                f"{one['value']:.1f} ({one['low']:.1f} to {one['high']:.1f})",
                f"{one['there']:.1f}",
                f"{one['there'] - one['value']:.1f}",
            ]
        rows.append(cells)
    sizes = result["sizes"]
    return "\n\n".join(
        [
            paragraph(
                f"`{result['command']}`: rendered domains have {sizes['num_train']:,} training and "
                f"{sizes['num_test']:,} test pictures. *There* is the checkpoint that was trained on the tested "
                "domain, on the same attributes. Intervals are 95 %, over persons. SYNTHETIC where a rendered domain "
                f"is tested. Machine: {result['machine']}. All numbers: "
                "[cross_domain.json](../benchmarks/results/cross_domain.json)."
            ),
            markdown_table(head, rows),
        ]
    )


# Fine-tuning


def fine_tuning_text(result: dict) -> str:
    """The text from the content of fine_tuning.json."""
    recipe = result["recipe"]
    folds = "one fold of five" if result["folds"] == 1 else f"{result['folds']} folds of five"
    rows = []
    for method in result["methods"].values():
        notes = method["notes"]
        cells = [_with_interval(method[number]) for number in ("auc", "mA_shift")]
        gain = method["auc"].get("difference")
        seconds = sum(one["seconds_per_epoch"] for one in notes) / len(notes)
        rate = ", ".join(dict.fromkeys(f"{one['rate']:g}" for one in notes))
        rows.append([
            method["label"], f"{notes[0]['parameters'] / 1e6:.2f}", rate, cells[0],
            "" if gain is None else _with_interval(gain, "+"), cells[1], f"{seconds:.0f} s",
        ])  # fmt: skip
    return "\n\n".join(
        [
            paragraph(
                f"{result['tested']} crops of `pa100k_mini` of {result['persons']} persons are tested, {folds}; no "
                f"person is in two folds. All start from the embedded backbone, with at most {recipe['patches']} "
                f"patches of a picture, and see the training folds {recipe['epochs']} times; the epoch is chosen by "
                f"validation AUC. Mean over {len(result['scored'])} attributes in percent, with 95 % intervals over "
                "persons; mA after its threshold was fitted on validation. All numbers: "
                "[fine_tuning.json](../benchmarks/results/fine_tuning.json)."
            ),
            markdown_table(
                [
                    "trained",
                    "million parameters",
                    "rate",
                    "AUC",
                    "more than the heads alone",
                    "mA, fitted",
                    "time of an epoch",
                ],
                rows,
            ),
            f"`{result['command']}`; {result['machine']}.",
        ]
    )


def _with_interval(entry: dict[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * entry[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


# Pages

TEXTS = {
    "speed": speed_text,
    "quality": quality_text,
    "decisions": decisions_text,
    "loss_weighting": loss_weighting_text,
    "fine_tuning": fine_tuning_text,
    "cross_domain": cross_domain_text,
}
PAGES = {name: name for name in TEXTS} | {  # of docs/
    "loss_weighting": "decisions",
    "fine_tuning": "training",
    "cross_domain": "evaluation",
}


def measured_part(page: str, name: str) -> tuple[int, int]:
    """Where the measured part of a page begins and ends.

    Raises:
        ValueError: the page has none, or several.
    """
    found = re.findall(rf"<!-- {name}:(?:begin|end) -->", page)
    if found != [f"<!-- {name}:begin -->", f"<!-- {name}:end -->"]:
        raise ValueError(f"markers of {name!r} are {found}: expected one <!-- begin --> and one <!-- end --> after it")
    return page.index(found[0]) + len(found[0]) + 1, page.index(found[1]) - 1


def write_page(name: str) -> Path:
    """Write the measured part of its page from benchmarks/results/NAME.json."""
    path = DOCS / f"{PAGES[name]}.md"
    page = path.read_text(encoding="utf-8")
    start, end = measured_part(page, name)
    text = TEXTS[name](json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
    path.write_text(page[:start] + text + page[end:], encoding="utf-8")
    return path


def main() -> None:
    for name in TEXTS:
        print(f"wrote {write_page(name)}")


if __name__ == "__main__":
    main()
