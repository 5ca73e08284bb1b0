"""Pictures of a video's scores over time."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyseg._charts import GRAY, label, new_figure, png
from pyseg._files import atomic_write


class Rating(NamedTuple):
    """That somebody rated a class for a segment.

    Attributes:
        number: The class.
        start: The frame at which the segment starts.
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
    """How likely each class is over time, and the rated segments.

    Attributes:
        title: What the video is called.
        starts: (S,) the first frame of each segment, increasing.
        ends: (S,) the frame after its last one.
        probabilities: (S, C) in [0, 1].
        numbers: The C classes.
        names: What they are called.
        ratings: Rated segments; those of other classes are not drawn.
        frame_seconds: The length of a frame.
    """

    title: str
    starts: np.ndarray
    ends: np.ndarray
    probabilities: np.ndarray
    numbers: Sequence[int]
    names: Sequence[str]
    ratings: Sequence[Rating] = ()
    frame_seconds: float = 1.0

    def picture(self) -> bytes:
        """Draws a row a class, with the rated segments marked; returns a PNG file.

        Raises:
            pyseg.errors.UserError: matplotlib is not installed.
        """
        rows = len(self.numbers)
        figure = new_figure(11, 1.1 + 0.5 * rows)  # which says if there is no matplotlib
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.add_subplot()
        left, right = self.starts * self.frame_seconds, self.ends * self.frame_seconds
        for row, (number, name) in enumerate(zip(self.numbers, self.names, strict=True)):
            base = rows - 1 - row
            axes.axhline(base, color="0.85", linewidth=0.8, zorder=1)
            heights = 0.85 * self.probabilities[:, row]
            axes.bar(
                left,
                heights,
                right - left,
                base,
                align="edge",
                color="#4c78a8",
                linewidth=0,
                zorder=2,
            )
            for rating in self.ratings:
                if rating.number == number:
                    axes.bar(
                        rating.start * self.frame_seconds,
                        0.85,
                        5 * self.frame_seconds,
                        base,
                        align="edge",
                        fill=False,
                        edgecolor="#2a9d3a" if rating.positive else "#d62728",
                        linewidth=1.8,
                        linestyle="-" if rating.positive else ":",
                        zorder=3,
                    )
            peak = self.probabilities[:, row].max() if len(self.starts) else 0.0
            axes.annotate(
                f" {peak:.2f}",
                (1, base),
                xycoords=("axes fraction", "data"),
                va="bottom",
                color=GRAY,
            )
            axes.annotate(
                label(name),
                (0, base),
                xytext=(-6, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="bottom",
            )
        axes.set_xlim(0, right[-1] if len(right) else 1)
        axes.set_ylim(-0.1, rows)
        axes.set_yticks([])
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 3, 6, 10], integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: clock(second)))
        axes.set_xlabel("time")
        legend = "probability of each 5-frame segment, 0 to 1 a row; its maximum at the right"
        if self.ratings:
            legend += "; frames: rated positive (solid green), rated negative (dotted red)"
        axes.set_title(f"{label(self.title)}\n", loc="left", fontweight="bold")
        axes.text(0, 1.0, legend, transform=axes.transAxes, va="bottom", fontsize=8, color=GRAY)
        return png(figure)

    def page(self) -> str:
        """Returns an HTML page of its own, picture included."""
        called = dict(zip(self.numbers, self.names, strict=True))
        lines = "".join(
            f"<tr><td>{clock(start * self.frame_seconds)}</td>"
            f"<td>{html.escape(called.get(number, str(number)))}</td>"
            f"<td>{'yes' if positive else 'no'}</td></tr>\n"
            for number, start, positive in sorted(self.ratings, key=lambda rating: rating.start)
        )
        table = (
            "<h2>Rated segments</h2>\n<table>\n"
            f"<tr><th>from</th><th>class</th><th>shown</th></tr>\n{lines}</table>\n"
            if self.ratings
            else ""
        )
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{html.escape(self.title)}</title>
<style>
body {{ font-family: sans-serif; margin: 2em; color: #222 }}
img {{ max-width: 100% }}
td, th {{ text-align: left; padding: 0.2em 1.5em 0.2em 0 }}
</style>
</head>
<body>
<img alt="Scores of {html.escape(self.title)} over time"
 src="data:image/png;base64,{base64.b64encode(self.picture()).decode()}">
{table}</body>
</html>
"""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .png file, or a page as an .html file.

        Raises:
            pyseg.errors.UserError: matplotlib is not installed.
        """
        path = Path(path)
        content = self.picture() if path.suffix == ".png" else self.page().encode()
        with atomic_write(path) as file:
            file.write(content)
