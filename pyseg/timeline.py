"""Pictures of the scores of a video over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyseg import _html
from pyseg._charts import GRAY, label, new_figure, png
from pyseg._files import atomic_write
from pyseg._table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR_COLOR = "#4c78a8"
_FULL = 0.85  # the height of probability 1, in rows


class Rating(NamedTuple):
    """A rating of a segment for a class.

    Attributes:
        number: The class.
        start: The segment's first frame.
        positive: Whether the segment shows the class.
    """

    number: int
    start: int
    positive: bool


def clock(seconds: float) -> str:
    """Returns a time as minutes and seconds.

    Example:
        >>> clock(65.9)
        '1:05'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass(frozen=True)
class Timeline:
    """The probabilities of a video's classes over time, and its ratings.

    Attributes:
        title: The video's name.
        starts: (S,) first frame of each segment, increasing.
        ends: (S,) end of each segment: the frame after its last one.
        probabilities: (S, C) in [0, 1].
        numbers: The C classes.
        names: Their names.
        ratings: The video's ratings; those of other classes are not drawn.
        frame_seconds: The duration of a frame in seconds.
        segment_size: Frames of a rated segment.
    """

    title: str
    starts: np.ndarray
    ends: np.ndarray
    probabilities: np.ndarray
    numbers: Sequence[int]
    names: Sequence[str]
    ratings: Sequence[Rating] = ()
    frame_seconds: float = 1.0
    segment_size: int = 5

    def picture(self) -> bytes:
        """Draws one row per class, with frames around rated segments; returns a PNG file.

        Raises:
            pyseg.errors.UserError: matplotlib is not installed.
        """
        rows = len(self.numbers)
        figure = new_figure(11, 1.1 + 0.5 * rows)
        axes = figure.add_subplot()
        for row in range(rows):
            self._draw_row(axes, row, base=rows - 1 - row)
        axes.set_xlim(0, self.ends[-1] * self.frame_seconds if len(self.ends) else 1)
        axes.set_ylim(-0.1, rows)
        _draw_clock(axes)
        legend = (
            f"probability of each {self.segment_size}-frame segment, 0 to 1 a row; its maximum at "
            "the right"
        )
        if self.ratings:
            legend += "; frames: rated positive (solid green), rated negative (dotted red)"
        axes.set_title(f"{label(self.title)}\n", loc="left", fontweight="bold")
        axes.text(0, 1.0, legend, transform=axes.transAxes, va="bottom", fontsize=8, color=GRAY)
        return png(figure)

    def _draw_row(self, axes: Axes, row: int, base: float) -> None:
        """Draws a class above the height ``base``: its probabilities, ratings and name."""
        axes.axhline(base, color="0.85", linewidth=0.8, zorder=1)
        left, right = self.starts * self.frame_seconds, self.ends * self.frame_seconds
        axes.bar(
            left,
            _FULL * self.probabilities[:, row],
            right - left,
            base,
            align="edge",
            color=_BAR_COLOR,
            linewidth=0,
            zorder=2,
        )
        for rating in self.ratings:
            if rating.number == self.numbers[row]:
                axes.bar(
                    rating.start * self.frame_seconds,
                    _FULL,
                    self.segment_size * self.frame_seconds,
                    base,
                    align="edge",
                    fill=False,
                    edgecolor="#2a9d3a" if rating.positive else "#d62728",
                    linewidth=1.8,
                    linestyle="-" if rating.positive else ":",
                    zorder=3,
                )
        peak = self.probabilities[:, row].max() if len(self.starts) else 0.0
        place = ("axes fraction", "data")
        axes.annotate(f" {peak:.2f}", (1, base), xycoords=place, va="bottom", color=GRAY)
        axes.annotate(
            label(self.names[row]),
            (0, base),
            xytext=(-6, 2),
            xycoords=place,
            textcoords="offset points",
            ha="right",
            va="bottom",
        )

    def page(self) -> str:
        """Returns a self-contained HTML page with the picture and a table of the ratings.

        Raises:
            pyseg.errors.UserError: A package of the extra `report` is not installed.
        """
        names = dict(zip(self.numbers, self.names, strict=True))
        rows = [
            (
                clock(rating.start * self.frame_seconds),
                names.get(rating.number, str(rating.number)),
                "yes" if rating.positive else "no",
            )
            for rating in sorted(self.ratings, key=lambda rating: rating.start)
        ]
        return _html.render(
            Path(__file__).with_name("timeline.html.jinja"),
            title=self.title,
            picture=self.picture(),
            table=Table(("from", "class", "shown"), rows),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture as a .png file or the page as an .html file.

        Raises:
            pyseg.errors.UserError: A package of the extra `report` is not installed.
        """
        path = Path(path)
        content = self.picture() if path.suffix == ".png" else self.page().encode()
        with atomic_write(path) as file:
            file.write(content)


def _draw_clock(axes: Axes) -> None:
    """Draws only the time axis, in minutes and seconds."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 3, 6, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: clock(second)))
    axes.set_xlabel("time")
