"""The charts of the report, as PNG pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyseg._charts import color, label, new_axes, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HALF = (5.6, 3.5)  # inches: two charts of this size fit side by side
_LOG_RATIO = 10.0  # curves with a larger ratio of values have a logarithmic scale


class Series(NamedTuple):
    """A curve of a run.

    Attributes:
        run: The number of the run, which determines the color.
        name: Its name in the legend.
        x: (n,) increasing.
        y: (n,).
    """

    run: int
    name: str
    x: np.ndarray
    y: np.ndarray


class ClassBar(NamedTuple):
    """A class, as a row of a bar chart.

    Attributes:
        name: Its name.
        positives: The number of its positives, which is shown with the name.
        values: One value per run.
        chance: The value that a random ranking would have; None: not drawn.
    """

    name: str
    positives: int
    values: Sequence[float]
    chance: float | None = None


def draw_curves(
    title: str,
    x_label: str,
    series: Sequence[Series],
    *,
    smooth: bool = False,
    marks: bool = False,
    from_zero: bool = False,
    borders: Sequence[tuple[int, float]] = (),
) -> bytes:
    """Draws curves over steps.

    Args:
        title: What the y axis shows.
        x_label: What the x axis shows.
        series: The curves; numbers that are not finite leave gaps.
        smooth: Draw a moving average, and the curve itself pale.
        marks: Mark every point, and write the value of the last one; otherwise the y axis is
            logarithmic where the values differ by orders of magnitude.
        from_zero: Start the y axis at 0, unless it is logarithmic.
        borders: A run and the x at which one of its stages ends, for each dotted line.
    """
    figure = new_figure(*_HALF)
    axes = new_axes(figure, title, x_label)
    for run, end in borders:
        axes.axvline(end, color=color(run), linestyle=":", linewidth=1)
    lowest, highest = math.inf, -math.inf
    for run, name, x, values in series:
        y = moving_average(values) if smooth else values
        if smooth:
            axes.plot(x, values, color=color(run), alpha=0.3, linewidth=1)
        finite = y[np.isfinite(y)]
        if len(finite):
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
        marker = "o" if marks or len(x) == 1 else None
        axes.plot(x, y, color=color(run), marker=marker, markersize=4, label=label(name))
        if marks and len(x) and np.isfinite(y[-1]):
            axes.annotate(
                f"{float(y[-1]):.3f}",
                (x[-1], y[-1]),
                xytext=(0, 5),
                textcoords="offset points",
                ha="right",
                color=color(run),
            )
    if not marks and 0 < lowest * _LOG_RATIO < highest:
        _set_log_scale(axes)
    elif from_zero:
        axes.set_ylim(bottom=0)
    else:
        axes.margins(y=0.12)
    axes.set_xlim(left=0)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    return png(figure)


def _set_log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def moving_average(values: np.ndarray) -> np.ndarray:
    """Returns the exponential moving average of values, over about a fifteenth of them.

    The weights of each average sum to 1, so that the first one is the first value; values that are
    not finite are ignored.

    Example:
        >>> moving_average(np.array([2.0, np.nan, 2.0])).tolist()
        [2.0, 2.0, 2.0]
        >>> moving_average(np.repeat([1.0, 0.0], 30))[[29, 40, 59]].round(3).tolist()
        [1.0, 0.004, 0.0]
    """
    keep = 1 - 2 / (max(1.0, len(values) / 15) + 1)
    total = weight = 0.0
    averages = np.full(len(values), np.nan)
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        if weight:
            averages[i] = total / weight
    return averages


def draw_class_bars(
    title: str,
    x_label: str,
    groups: Sequence[Sequence[ClassBar]],
    runs: Sequence[tuple[int, str]],
) -> bytes:
    """Draws a value per class: bars from 0 for the first run, marks for the others.

    Args:
        title: What the chart shows.
        x_label: The name of the value.
        groups: Classes from top to bottom, with a gap between the groups.
        runs: Number and name of every run, in the order of each class's values.
    """
    rows = sum(map(len, groups)) + len(groups) - 1
    figure = new_figure(_HALF[0], 1.0 + 0.21 * rows)
    axes = new_axes(figure, title, x_label)
    axes.grid(visible=False, axis="y")
    places, names = [], []
    at = 0
    for group in groups:
        for name, positives, values, chance in group:
            axes.barh(at, values[0], 0.7, color=color(runs[0][0]), alpha=0.75)
            for (run, _), value in zip(runs[1:], values[1:], strict=True):
                axes.plot(value, at, "D", color=color(run), markersize=4)
            if chance is not None:
                axes.plot([chance] * 2, [at - 0.35, at + 0.35], color="black", linewidth=1.5)
            places.append(at)
            names.append(f"{label(name)} ({positives:,})")
            at += 1
        at += 1
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(at - 1.4, -0.6)
    if len(runs) > 1:
        _add_legend(figure, runs)
    return png(figure)


def _add_legend(figure: Figure, runs: Sequence[tuple[int, str]]) -> None:
    """Adds a legend of runs below a chart of bars for the first run and marks for the others."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=color(runs[0][0]), alpha=0.75)]
    handles += [
        Line2D([], [], color=color(run), marker="D", markersize=4, linewidth=0)
        for run, _ in runs[1:]
    ]
    names = [label(name) for _, name in runs]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)


def draw_class_points(
    titles: tuple[str, str], x_labels: tuple[str, str], series: Sequence[Series]
) -> bytes:
    """Draws a value in [0, 1] per class: in decreasing order, and against a count.

    Args:
        titles: What the two charts show, one below the other.
        x_labels: What their x axes show.
        series: Counts, at least 1, and values.
    """
    figure = new_figure(_HALF[0], 1.9 * _HALF[1])
    above, below = (
        new_axes(figure, *texts, place=(2, 1, number))
        for number, texts in enumerate(zip(titles, x_labels, strict=True), 1)
    )
    for run, name, x, y in series:
        ranks = np.arange(1, len(y) + 1)
        above.plot(ranks, -np.sort(-y), color=color(run), marker=".", label=label(name))
        below.plot(x, y, "o", color=color(run), alpha=0.5, markersize=4, linewidth=0)
    below.set_xscale("log")
    for axes in (above, below):
        axes.set_ylim(-0.03, 1.03)
    if len(series) > 1:
        above.legend(fontsize=8, frameon=False)
    return png(figure)


def draw_steps(
    title: str,
    x_label: str,
    series: Sequence[Series],
    points: Sequence[tuple[float, float]] = (),
) -> bytes:
    """Draws step functions in the unit square; a step has the value at its right end.

    Args:
        title: What the y axis shows.
        x_label: What the x axis shows.
        series: The curves.
        points: A marked point of each curve.
    """
    figure = new_figure(_HALF[0], 0.8 * _HALF[0])
    axes = new_axes(figure, title, x_label)
    for run, name, x, y in series:
        axes.plot(
            x, y, color=color(run), drawstyle="steps-pre", linewidth=1.5, label=label(name, 60)
        )
    for (run, *_), point in zip(series, points, strict=False):
        axes.plot(*point, "o", color=color(run), markersize=5, markeredgecolor="white")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, frameon=False, loc="best")
    return png(figure)
