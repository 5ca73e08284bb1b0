"""The picture of a timeline; matplotlib is in the extra `report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyseg._charts import GRAY, label, new_figure, png
from pyseg.timeline.times import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyseg.timeline.timeline import Timeline

_BAR_COLOR = "#4c78a8"
_FULL = 0.85  # the height of probability 1, in rows


def draw(timeline: Timeline) -> bytes:
    """Draws one row per class, with frames around rated segments; returns a PNG file.

    Raises:
        pyseg.errors.UserError: matplotlib is not installed.
    """
    averaged = timeline.averaged()
    rows = len(timeline.numbers)
    figure = new_figure(11, 1.1 + 0.5 * rows)
    axes = figure.add_subplot()
    for row in range(rows):
        _draw_row(axes, averaged, row, base=rows - 1 - row)
    axes.set_xlim(0, timeline.duration or 1)
    axes.set_ylim(-0.1, max(rows, 1))
    _draw_clock(axes)
    legend = (
        f"probability of segments of {timeline.segment_seconds:g} s, 0 to 1 a row; its maximum at "
        "the right"
    )
    if timeline.ratings:
        legend += "; frames: rated positive (solid green), rated negative (dotted red)"
    axes.set_title(f"{label(timeline.title)}\n", loc="left", fontweight="bold")
    axes.text(0, 1.0, legend, transform=axes.transAxes, va="bottom", fontsize=8, color=GRAY)
    return png(figure)


def _draw_row(axes: Axes, timeline: Timeline, row: int, base: float) -> None:
    """Draws a class above the height ``base``: its probabilities, ratings and name."""
    axes.axhline(base, color="0.85", linewidth=0.8, zorder=1)
    axes.bar(
        timeline.starts,
        _FULL * timeline.scores[:, row],
        timeline.ends - timeline.starts,
        base,
        align="edge",
        color=_BAR_COLOR,
        linewidth=0,
        zorder=2,
    )
    for rating in timeline.ratings:
        if rating.number == timeline.numbers[row]:
            axes.bar(
                rating.start,
                _FULL,
                rating.end - rating.start,
                base,
                align="edge",
                fill=False,
                edgecolor="#2a9d3a" if rating.positive else "#d62728",
                linewidth=1.8,
                linestyle="-" if rating.positive else ":",
                zorder=3,
            )
    place = ("axes fraction", "data")
    peak = timeline.peaks[row]
    axes.annotate(f" {peak:.2f}", (1, base), xycoords=place, va="bottom", color=GRAY)
    axes.annotate(
        label(timeline.names[row]),
        (0, base),
        xytext=(-6, 2),
        xycoords=place,
        textcoords="offset points",
        ha="right",
        va="bottom",
    )


def _draw_clock(axes: Axes) -> None:
    """Draws only the time axis, in minutes and seconds."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 3, 6, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: clock(second)))
    axes.set_xlabel("time")
