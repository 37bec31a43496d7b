"""Pictures of a learning curve and of the results per attribute, and the same numbers as tables.

Figures are drawn without pyplot, which would have global state, open windows and change the user's backend.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.escaping import csv_cell
from vlm_par_hf.images.fonts import fit_text
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, require


__all__ = ["curve_rows", "plot_attributes", "plot_learning_curve", "table_text", "write_history"]

_INK = "#1f2933"
_MUTED = "#8a94a0"
_TRAIN = "#3366aa"
_VALIDATION = "#cc6633"
_SCORE = "#2a7f62"


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one table as CSV text; columns in the order of their first appearance, missing cells empty.

    Text that a spreadsheet would compute gets an apostrophe in front (`csv_cell`).
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n", restval="")
    writer.writerow({name: csv_cell(name) for name in columns})
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def curve_rows(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per step of `Trainer.state.log_history`: training and validation values of a step joined.

    The summary that the Trainer appends at the end of a run (`train_runtime`, ...) is left out: it is no point of the
    curve.
    """
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "train_runtime" in entry:
            continue
        row = rows.setdefault(entry["step"], {"step": entry["step"], "epoch": entry.get("epoch")})
        row.update({name: value for name, value in entry.items() if name not in ("step", "epoch")})
    return [rows[step] for step in sorted(rows)]


def write_history(log_history: Sequence[dict[str, Any]], folder: str | Path) -> list[Path]:
    """Write the learning curve as `learning_curve.json` (the rows of `curve_rows`) and `learning_curve.csv`."""
    folder = Path(folder)
    rows = curve_rows(log_history)
    json_path, csv_path = folder / "learning_curve.json", folder / "learning_curve.csv"
    atomic_write_json(json_path, rows)
    atomic_write_text(csv_path, table_text(rows))
    return [json_path, csv_path]


def plot_learning_curve(
    log_history: Sequence[dict[str, Any]], path: str | Path, *, title: str = "", best_step: int | None = None
) -> Path:
    """Draw loss (training and validation) above validation mA, over epochs; the step that was kept is marked.

    Args:
        log_history: `Trainer.state.log_history`.
        path: a `.png` (or any format that matplotlib writes by suffix).
        title: one line above the picture.
        best_step: the optimizer step of the checkpoint that was kept.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the history has no point to draw.
    """
    figure_class = require("matplotlib.figure", "demo").Figure
    rows = curve_rows(log_history)
    train = [(row["epoch"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["epoch"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    scores = [(row["epoch"], row["eval_mA"], row["step"]) for row in rows if "eval_mA" in row]
    if not train and not scores:
        raise ParValueError("log_history has neither a training loss nor a validation mA: nothing to draw")
    figure = figure_class(figsize=(7.2, 6.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    if train:
        top.plot(*zip(*train), color=_TRAIN, linewidth=1.5, label="training")
    if validation:
        top.plot(*zip(*validation), color=_VALIDATION, linewidth=1.5, marker="o", markersize=4, label="validation")
    top.set_ylabel("loss")
    if train or validation:
        top.legend(frameon=False)
    if scores:
        epochs, values, steps = zip(*scores)
        percent = [100 * value for value in values]
        bottom.plot(epochs, percent, color=_SCORE, linewidth=1.5, marker="o", markersize=4)
        if best_step in steps:
            at = steps.index(best_step)
            bottom.plot(epochs[at], percent[at], marker="o", markersize=11, markerfacecolor="none", color=_INK)
            # The label is on the side with more room, so that it stays inside the picture.
            on_right = epochs[at] > (min(epochs) + max(epochs)) / 2
            bottom.annotate(
                f"kept: {percent[at]:.1f}", (epochs[at], percent[at]), textcoords="offset points", color=_INK,
                xytext=(-10 if on_right else 10, -16), ha="right" if on_right else "left",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    bottom.set_ylabel("validation mA (%)")
    bottom.set_xlabel("epoch")
    for axes in (top, bottom):
        _style_axes(axes)
    if title:
        figure.suptitle(**_words(title, 12), color=_INK)
    return _save(figure, path)


def plot_attributes(table: Sequence[dict[str, Any]], path: str | Path, *, title: str = "") -> Path:
    """Draw one bar per attribute, its mean recall over labels (the attribute's term of mA), best first.

    A tick marks chance. The number of samples of the rarest label is written at each bar, because a bar over few
    samples is not reliable.

    Args:
        table: rows with `name`, `mA` in [0, 1] or None (no samples), `chance` in [0, 1], the mA of guessing, and
            `rarest`, the number of samples of the rarest label.
        path: a `.png` (or any format that matplotlib writes by suffix).
        title: one line above the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the table is empty.
    """
    figure_class = require("matplotlib.figure", "demo").Figure
    if not table:
        raise ParValueError("table is empty: expected one row per attribute")
    order = sorted(table, key=lambda row: (row["mA"] is not None and row["mA"] == row["mA"], row["mA"] or 0.0))
    figure = figure_class(figsize=(8.0, 1.2 + 0.27 * len(order)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(order):
        value = row["mA"]
        known = value is not None and value == value  # not NaN
        if known:
            axes.barh(place, 100 * value, color=_SCORE, height=0.72, alpha=0.85)
            axes.plot([100 * row["chance"]] * 2, [place - 0.36, place + 0.36], color=_INK, linewidth=1.2)
        text = f"{100 * value:.1f}" if known else "no samples"
        axes.text((100 * value if known else 0) + 1, place, text, va="center", fontsize=8, color=_INK)
        axes.text(
            1.01, place, f"{row['rarest']:,}", va="center", fontsize=8, color=_MUTED, transform=_right_margin(axes)
        )
    axes.text(1.01, len(order), "rarest label", va="center", fontsize=8, color=_MUTED, transform=_right_margin(axes))
    names = [_words(row["name"], 8) for row in order]
    axes.set_yticks(range(len(order)), [words.pop("t") for words in names])
    for tick, words in zip(axes.get_yticklabels(), names):
        tick.set(**words)
    axes.set_ylim(-0.7, len(order) + 0.4)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("mean recall over the attribute's labels (%); tick: chance")
    _style_axes(axes)
    if title:
        figure.suptitle(**_words(title, 10), color=_INK)
    return _save(figure, path)


def _words(text: str, size: int) -> dict[str, Any]:
    """A line of a user as arguments of matplotlib: not read as a formula, in a font that has its letters."""
    from matplotlib.font_manager import FontProperties

    path, text = fit_text(text.replace("\n", "\\n"))
    return {"t": text, "parse_math": False, "fontproperties": FontProperties(fname=path, size=size)}


def _right_margin(axes):
    """Coordinates for text beside the bars: x as a share of the width of the axes, y as in the data."""
    return axes.get_yaxis_transform()


def _style_axes(axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(_MUTED)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelcolor=_INK)


def _save(figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, dpi=130)
    partial.replace(path)
    return path
