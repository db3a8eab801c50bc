"""Histograms of a data set: bars in a terminal, and a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

BAR = 40  # characters of the longest bar in a terminal
PNG_BARS = 24  # categories that a chart can name legibly

Bars = Mapping[str, int]
"""Label -> count, in the order to draw."""


def text_bars(title: str, bars: Bars, *, most: int = 12) -> str:
    """The bars as lines of text; of more than `most` the rest is summed up in a line.

    >>> print(text_bars("words", {"1": 2, "2": 4}))
    words
      1  2 ####################
      2  4 ########################################
    """
    shown = dict(list(bars.items())[:most])
    width, longest = max(map(len, shown), default=0), max([1, *shown.values()])
    digits = len(str(longest))
    lines = [
        f"  {name:>{width}}  {count:>{digits}} {'#' * round(BAR * count / longest)}".rstrip()
        for name, count in shown.items()
    ]
    if len(bars) > most:
        lines.append(f"  and {len(bars) - most} more with {sum(bars.values()) - sum(shown.values())}")
    return "\n".join([title, *lines])


def share_bars(shares: Sequence[float]) -> dict[str, int]:
    """Mask areas as fractions of the picture, in classes that double: most referents are small.

    >>> share_bars([0.004, 0.3, 0.6])
    {'< 1 %': 1, '1-2 %': 0, '2-4 %': 0, '4-8 %': 0, '8-16 %': 0, '16-32 %': 1, '32-64 %': 1, '> 64 %': 0}
    """
    edges = [0.01 * 2**i for i in range(7)]
    labels = ["< 1 %", *(f"{2**i}-{2 ** (i + 1)} %" for i in range(6)), "> 64 %"]
    return {
        label: sum(low <= share < high for share in shares)
        for label, low, high in zip(labels, [0.0, *edges], [*edges, float("inf")], strict=True)
    }


def save_charts(charts: Mapping[str, Bars], path: Path) -> None:
    """One PNG with a bar chart below another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(charts)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, bars) in zip(figure.subplots(len(charts), 1, squeeze=False)[:, 0], charts.items(), strict=True):
        shown = dict(list(bars.items())[:PNG_BARS])
        axes.bar(range(len(shown)), list(shown.values()), color="#1478ff")
        axes.set_xticks(range(len(shown)), list(shown), rotation=60 if max(map(len, shown), default=0) > 5 else 0)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
