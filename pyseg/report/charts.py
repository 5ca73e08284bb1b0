"""The charts of the report: what the page's template and its script ``charts.js`` draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyseg.report.page import Figure, PageTable

COLORS = 7
"""The colors of runs and other series; more of them repeat."""

_LOG_RATIO = 10.0  # curves with a larger ratio of values have a logarithmic scale
_TABLE_ROWS = 40  # of each curve in a table
_DIGITS = 5

_Borders = Sequence[tuple[int, float]]


def color(number: int) -> int:
    """Returns the color of a run or another series, by its number."""
    return number % COLORS


@dataclass(frozen=True)
class Series:
    """A curve or the points of a run.

    Attributes:
        run: The number of the run, which determines the color.
        name: Its name in the legend.
        x: (n,) numbers.
        y: (n,) numbers; those that are not finite leave gaps.
        names: A text for each point, shown with its values; may be empty.
        notes: A second one.
    """

    run: int
    name: str
    x: np.ndarray
    y: np.ndarray
    names: Sequence[str] = ()
    notes: Sequence[str] = ()

    def data(self, **options: Any) -> dict[str, Any]:
        """Returns it as values of JSON, with options of its drawing."""
        texts = {
            key: list(value)
            for key, value in (("names", self.names), ("notes", self.notes))
            if value
        }
        values = {"x": _numbers(self.x), "y": _numbers(self.y)}
        return {"name": self.name, "color": color(self.run), **values, **texts, **options}


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


def curves(
    title: str,
    label: str,
    x_label: str,
    series: Sequence[Series],
    *,
    caption: str = "",
    smooth: bool = False,
    marks: bool = False,
    from_zero: bool = False,
    borders: _Borders = (),
) -> Figure:
    """Returns curves over steps.

    Args:
        title: What the y axis shows.
        label: The same in a sentence.
        x_label: What the x axis shows.
        series: The curves.
        caption: How to read them.
        smooth: Draw a moving average, and the curve itself pale.
        marks: Mark every point; otherwise the y axis is logarithmic where the values differ by
            orders of magnitude.
        from_zero: Start the y axis at 0, unless it is logarithmic.
        borders: A run and the x at which one of its stages ends, for each dotted line.
    """
    lines = []
    for one in series:
        if smooth:
            lines.append(one.data(pale=True))
        shown = Series(one.run, one.name, one.x, moving_average(one.y)) if smooth else one
        lines.append(shown.data(marks=marks))
    values = np.concatenate([np.asarray(one.y, np.float64) for one in series])
    values = values[np.isfinite(values)]
    lowest, highest = values.min(initial=math.inf), values.max(initial=-math.inf)
    content = {
        "kind": "lines",
        "x": x_label,
        "y": title,
        "series": lines,
        "log": [False, bool(not marks and 0 < lowest * _LOG_RATIO < highest)],
        "fromZero": [True, from_zero],
        "borders": [{"x": float(end), "color": color(run)} for run, end in borders],
    }
    return Figure("chart", title, label, content, caption, _table(x_label, title, series))


def steps(
    title: str,
    label: str,
    x_label: str,
    series: Sequence[Series],
    points: Sequence[tuple[float, float]] = (),
    *,
    caption: str = "",
    borders: _Borders = (),
    stepped: bool = True,
) -> Figure:
    """Returns functions in the unit square.

    Args:
        title: What the y axis shows.
        label: The same in a sentence.
        x_label: What the x axis shows.
        series: The curves.
        points: A marked point of each curve.
        caption: How to read them.
        borders: A run and the x of each dotted line.
        stepped: Draw step functions, in which a step has the value at its right end.
    """
    lines = [one.data(step=stepped) for one in series]
    for one, (x, y) in zip(series, points, strict=False):
        lines.append(Series(one.run, one.name, np.array([x]), np.array([y])).data(pale=True))
    content = {
        "kind": "lines",
        "x": x_label,
        "y": title,
        "series": lines,
        "log": [False, False],
        "domain": [[0, 1], [0, 1.02]],
        "borders": [{"x": float(x), "color": color(run)} for run, x in borders],
        "legend": True,
    }
    return Figure("chart", title, label, content, caption, _table(x_label, title, series))


def shares(
    title: str,
    label: str,
    axes: tuple[str, str],
    series: Sequence[tuple[Series, np.ndarray, np.ndarray]],
    *,
    caption: str = "",
) -> Figure:
    """Returns shares of bins over their probabilities, in the unit square with its diagonal.

    Args:
        title: What the chart shows.
        label: The same in a sentence.
        axes: What the x axis and the y axis show.
        series: The shares of each kind of probability, and the ends of their intervals.
        caption: How to read it.
    """
    ends = np.array([0.0, 1.0])
    lines = [Series(COLORS - 1, "", ends, ends).data(pale=True)]
    lines += [
        one.data(marks=True, low=_numbers(low), high=_numbers(high)) for one, low, high in series
    ]
    content = {
        "kind": "lines",
        "x": axes[0],
        "y": axes[1],
        "series": lines,
        "log": [False, False],
        "domain": [[0, 1], [0, 1]],
        "legend": True,
    }
    rows = [
        (one.name, f"{x:.3f}", f"{y:.3f}", f"{least:.3f} to {most:.3f}", text)
        for one, low, high in series
        for x, y, least, most, text in zip(one.x, one.y, low, high, one.notes, strict=True)
    ]
    head = ("", *axes, "95% interval", "ratings")
    table = PageTable(head, rows, numeric=(1, 2, 3, 4), summary="Numbers as a table")
    return Figure("chart", title, label, content, caption, table)


def points(
    title: str,
    label: str,
    axes: tuple[str, str],
    series: Sequence[Series],
    *,
    caption: str = "",
    log: bool = False,
) -> Figure:
    """Returns a point per class, which can be searched by name.

    Args:
        title: What the chart shows.
        label: The same in a sentence.
        axes: What the x axis and the y axis show.
        series: The points of each run, with their names.
        caption: How to read it.
        log: Whether the x axis is logarithmic.
    """
    content = {
        "kind": "points",
        "x": axes[0],
        "y": axes[1],
        "series": [one.data() for one in series],
        "log": [log, False],
        "search": True,
    }
    return Figure("chart", title, label, content, caption)


def class_bars(
    title: str,
    label: str,
    groups: Sequence[tuple[str, Sequence[ClassBar]]],
    runs: Sequence[tuple[int, str]],
    *,
    caption: str = "",
    signed: bool = False,
    tall: bool = False,
) -> Figure:
    """Returns a value per class: bars from 0 for the first run, marks for the others.

    Args:
        title: What the chart shows.
        label: The same in a sentence.
        groups: Headings, and their classes from top to bottom.
        runs: Number and name of every run, in the order of each class's values.
        caption: How to read it.
        signed: Values may be negative: 0 is in the middle, and the scale fits them; otherwise they
            are in [0, 1].
        tall: Whether it stands beside two rows of charts.
    """
    every = [abs(value) for _, bars in groups for bar in bars for value in bar.values]
    most = max(every, default=0.0) or 1.0

    def at(value: float) -> float:
        return round(50 + 50 * value / most if signed else 100 * value, 2)

    content = {
        "runs": [{"name": name, "color": color(number)} for number, name in runs],
        "groups": [
            {"title": heading, "rows": [_bar_row(bar, runs, at, signed) for bar in bars]}
            for heading, bars in groups
        ],
    }
    return Figure("bars", title, label, content, caption, tall=tall)


def _bar_row(
    bar: ClassBar, runs: Sequence[tuple[int, str]], at: Any, signed: bool
) -> dict[str, Any]:
    texts = [f"{value:+.3f}" if signed else f"{value:.3f}" for value in bar.values]
    tip = [bar.name, *(f"{name}: {text}" for (_, name), text in zip(runs, texts, strict=True))]
    tip.append(f"positives: {bar.positives:,}")
    if bar.chance is not None:
        tip.append(f"chance: {bar.chance:.3f}")
    low, high = sorted((at(0.0), at(bar.values[0])))
    return {
        "name": bar.name,
        "positives": f"{bar.positives:,}",
        "left": low,
        "width": round(high - low, 2),
        "others": [
            {"left": at(value), "color": color(number)}
            for (number, _), value in zip(runs[1:], bar.values[1:], strict=True)
        ],
        "chance": None if bar.chance is None else at(bar.chance),
        "text": texts[0],
        "tip": "\n".join(tip),
    }


def _table(x_label: str, y_label: str, series: Sequence[Series]) -> PageTable:
    """Returns the values of curves, of long ones some at equal distances."""
    rows = []
    for one in series:
        finite = np.flatnonzero(np.isfinite(one.y))
        for i in thin(finite, _TABLE_ROWS).tolist():
            rows.append((one.name, f"{one.x[i]:.{_DIGITS}g}", f"{one.y[i]:.{_DIGITS}g}"))
    return PageTable(("", x_label, y_label), rows, numeric=(1, 2), summary="Numbers as a table")


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """Returns at most some of the values, at equal distances, both ends included.

    Example:
        >>> thin(np.arange(101), 3).tolist()
        [0, 50, 100]
    """
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(np.int64))
    return values[kept]


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Returns numbers as JSON has them: of few digits, and null where they are not finite."""
    found: list[float | int | None] = []
    for value in np.asarray(values, np.float64).tolist():
        if not math.isfinite(value):
            found.append(None)
        elif value.is_integer():
            found.append(int(value))
        else:
            found.append(float(f"{value:.{_DIGITS}g}"))
    return found


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
