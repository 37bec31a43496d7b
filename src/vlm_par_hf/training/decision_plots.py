"""Pictures of fitted decisions: what they cost one metric for another, and whether probabilities can be believed."""

from pathlib import Path
from typing import Any

from vlm_par_hf.utils import require

from .plots import _INK, _MUTED, _SCORE, _TRAIN, _VALIDATION, _save, _style_axes, _words


__all__ = ["plot_reliability", "plot_risk_coverage", "plot_trade_off"]


def plot_trade_off(curves: dict[str, Any], path: str | Path, *, title: str = "") -> Path:
    """Draw instance F1 against mA: the curve of the pooled rule, and the fitted points with their names.

    Args:
        curves: `pooled`, a list of pairs (mA, instance F1) in [0, 1], and `points`, such a pair by name.
        path: a `.png` (or any format that matplotlib writes by suffix).
        title: one line above the picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = require("matplotlib.figure", "demo").Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    mean_recall, f1 = zip(*curves["pooled"])
    axes.plot(*([100 * one for one in values] for values in (mean_recall, f1)), color=_MUTED, linewidth=1.5)
    for name, (x, y) in curves["points"].items():
        axes.plot(100 * x, 100 * y, marker="o", markersize=7, color=_VALIDATION if name == "before" else _SCORE)
        axes.annotate(
            name, (100 * x, 100 * y), textcoords="offset points", xytext=(7, 5), color=_INK, fontsize=9,
            parse_math=False,
        )  # fmt: skip
    axes.set_xlabel("mA (%)")
    axes.set_ylabel("instance F1 (%)")
    axes.margins(0.12)
    _style_axes(axes)
    if title:
        figure.suptitle(**_words(title, 11), color=_INK)
    return _save(figure, path)


def plot_reliability(bins: dict[str, list[dict[str, float]]], path: str | Path, *, title: str = "") -> Path:
    """Draw what was claimed against what was true, before and after.

    Args:
        bins: by the name of a panel, what `reliability_bins` returned.
        path: a `.png` (or any format that matplotlib writes by suffix).
        title: one line above the picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = require("matplotlib.figure", "demo").Figure(figsize=(3.6 * len(bins), 4.5), layout="constrained")
    panels = figure.subplots(1, len(bins), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, bins.items()):
        axes.plot([0, 100], [0, 100], color=_MUTED, linewidth=1)
        claimed, true = ([100 * one[key] for one in found] for key in ("claimed", "true"))
        axes.plot(claimed, true, color=_TRAIN, marker="o", markersize=4, linewidth=1.2)
        axes.set_title(name, color=_INK, fontsize=10)
        axes.set_xlabel("claimed (%)")
        axes.set_aspect("equal")
        _style_axes(axes)
    panels[0].set_ylabel("true (%)")
    if title:
        figure.suptitle(**_words(title, 11), color=_INK)
    return _save(figure, path)


def plot_risk_coverage(found: dict[str, Any], path: str | Path, *, title: str = "") -> Path:
    """Draw the share of wrong answers against the share of answers that are given, the surest ones first.

    Args:
        found: what `selective_report` returned.
        path: a `.png` (or any format that matplotlib writes by suffix).
        title: one line above the picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = require("matplotlib.figure", "demo").Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    coverage, risk = ([100 * one for one in values] for values in zip(*found["curve"]))
    axes.plot(coverage, risk, color=_SCORE, marker="o", markersize=4, linewidth=1.5)
    axes.set_xlabel(f"answers given (%); AURC {found['aurc']:.3f}")
    axes.set_ylabel("wrong ones among them (%)")
    axes.set_ylim(bottom=0)
    _style_axes(axes)
    if title:
        figure.suptitle(**_words(title, 11), color=_INK)
    return _save(figure, path)
