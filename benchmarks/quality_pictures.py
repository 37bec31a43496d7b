"""The pictures of quality.py."""

from pathlib import Path
from typing import Any


__all__ = ["draw_attention_gain", "draw_methods"]

COLORS = {"probe": "#9a9a9a", "VLM-PAR": "#2c6fbb"}


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_methods(sets: dict[str, Any], path: Path) -> None:
    """AUC of every method with its interval, a panel per feature set."""
    plt = _pyplot()
    rows = max(len(one["methods"]) for one in sets.values())
    size = (1.5 + 4.6 * len(sets), 0.9 + 0.3 * rows)
    figure, axes = plt.subplots(1, len(sets), figsize=size, squeeze=False, layout="constrained")
    for axis, part in zip(axes[0], sets.values(), strict=True):
        methods = list(part["methods"].values())[::-1]
        for y, row in enumerate(methods):
            value, low, high = (100 * row["auc"][name] if row["auc"][name] is not None else None
                                for name in ("value", "low", "high"))  # fmt: skip
            color = COLORS["probe" if "probe" in row["label"] or "zero-shot" in row["label"] else "VLM-PAR"]
            error = None if low is None else [[max(0, value - low)], [max(0, high - value)]]
            # Points, not bars: the axis does not begin at 0.
            axis.errorbar(value, y, xerr=error, fmt="o", color=color, capsize=2, lw=1)
        axis.set_yticks(range(len(methods)), [row["label"] for row in methods])
        axis.set_title(f"{part['title']}\n{part['seeds']} seed(s), {part['folds']} fold(s)", fontsize=8)
        axis.set_xlabel("AUC (%), 95 % over persons", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_attention_gain(result: dict[str, Any], path: Path) -> None:
    """Accuracy of each attribute after one epoch, without and with cross-attention (VLM-PAR, figure 4)."""
    plt = _pyplot()
    kinds = list(result["accuracy"])
    names = list(result["accuracy"][kinds[0]])[::-1]
    figure, axis = plt.subplots(figsize=(6.4, 0.8 + 0.24 * len(names)), layout="constrained")
    for kind, color, marker in zip(kinds, ("#9a9a9a", "#d08c2e", "#2c6fbb"), "osD", strict=True):
        values = [100 * result["accuracy"][kind][name] for name in names]
        axis.plot(
            values, range(len(names)), marker, color=color, label=f"{kind}: mean {sum(values) / len(values):.1f}"
        )
    axis.set_yticks(range(len(names)), names)
    axis.set_title(f"{result['title']}: accuracy after one epoch (%)", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    figure.legend(fontsize=7, loc="outside lower center")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
