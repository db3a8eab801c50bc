"""The curves of a run as one PNG, from the rows of its `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SMOOTHING = 0.9  # of the exponential mean that is drawn over the raw loss
COLOURS = ("#1478ff", "#ff7814", "#14a05a", "#a03cc8", "#8c8c14")


def save_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Losses, learning rate and validation metrics over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train, val = [row for row in rows if "loss" in row], [row for row in rows if "val" in row]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    (losses, parts), (rate, metrics) = figure.subplots(2, 2)
    _draw(losses, train, {"loss": lambda row: row["loss"]}, "total loss", smooth=True)
    named = {name: _reader(name) for name in ("class", "bce", "dice", "choice")}
    if any(row.get("anchors") for row in train):
        named["anchors, weighted"] = _reader("anchors")
    _draw(parts, train, named, "its parts, before their weights", smooth=True)
    _draw(rate, train, {"lr": lambda row: row["lr"]}, "learning rate")
    _draw(metrics, val, _VALIDATION, f"validation, percent ({val[0]['val']['data'] if val else 'none'})")
    figure.savefig(path, dpi=110, format="png")


def _reader(name: str) -> Any:
    return lambda row: row.get(name)


_VALIDATION = {
    "mIoU": lambda row: 100 * row["val"]["chosen_query"]["miou"],
    "oIoU": lambda row: 100 * row["val"]["chosen_query"]["oiou"],
    "Pr@0.5": lambda row: 100 * row["val"]["chosen_query"].get("pr@0.5", 0.0),
    "best of Q: mIoU": lambda row: 100 * row["val"]["best_of_q"]["miou"],
}


def _draw(
    axes: Any, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, Any], title: str, smooth: bool = False
) -> None:
    for (name, read), colour in zip(lines.items(), COLOURS, strict=False):
        # a step whose loss was not finite has no point
        points = [(row["step"], value) for row in rows if (value := read(row)) is not None]
        steps, values = [step for step, _ in points], [value for _, value in points]
        if smooth:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = smoothed(values)
        axes.plot(steps, values, color=colour, label=name, marker="" if len(steps) > 30 else ".")
    if rows:
        axes.legend(fontsize=8, frameon=False)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start.

    >>> [round(v, 3) for v in smoothed([2.0, 2.0, 4.0])]
    [2.0, 2.0, 2.738]
    """
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        out.append(mean / weight)
    return out
