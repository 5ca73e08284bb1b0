"""The table of a timeline in notebooks: self-contained HTML without scripts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from pyseg.timeline.times import clock

if TYPE_CHECKING:
    from pyseg.timeline.timeline import Timeline

_MOST = 10  # classes
_WIDTH, _HEIGHT = 480, 28
_POINTS = 480


def table(timeline: Timeline) -> str:
    """Returns a table of the classes with the highest scores, with their curves over time."""
    best = timeline.best(_MOST).select(range(min(_MOST, len(timeline.names))))
    fine = best.averaged()
    rows = "".join(_row(fine, column) for column in range(len(best.names)))
    more = len(timeline.names) - len(best.names)
    note = f", {more} more classes" if more > 0 else ""
    return (
        '<table style="border-collapse: collapse">'
        f'<caption style="text-align: left; font-weight: bold">{escape(timeline.title)}, '
        f"{clock(timeline.duration)}{note}</caption>"
        "<thead><tr><th>class</th><th>peak</th><th>at</th>"
        f"<th>0:00 to {clock(timeline.duration)}</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(timeline: Timeline, column: int) -> str:
    scores = timeline.scores[:, column]
    return (
        f"<tr><th>{escape(timeline.names[column])}</th><td>{timeline.peaks[column]:.2f}</td>"
        f"<td>{timeline.peak_clock(column)}</td><td>{_curve(timeline, scores)}</td></tr>"
    )


def _curve(timeline: Timeline, scores: np.ndarray) -> str:
    """Returns the scores over time as an SVG picture; of many, the maxima of neighbors."""
    step = -(-len(scores) // _POINTS) or 1
    scale = _WIDTH / (timeline.duration or 1)
    path = []
    for first in range(0, len(scores), step):
        part = slice(first, first + step)
        left, right = timeline.starts[first] * scale, timeline.ends[part][-1] * scale
        top = _HEIGHT * (1 - float(scores[part].max()))
        path.append(f"M{left:.1f} {_HEIGHT}V{top:.1f}H{right:.1f}V{_HEIGHT}Z")
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'aria-hidden="true">'
        f'<path d="{"".join(path)}" fill="#4c78a8"/>'
        f'<path d="M0 {_HEIGHT - 0.5}H{_WIDTH}" stroke="#bbb"/></svg>'
    )
