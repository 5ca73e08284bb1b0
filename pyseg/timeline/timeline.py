"""The scores of a video over time."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyseg._extras import requires
from pyseg._paths import path_text
from pyseg.errors import ArgumentError
from pyseg.timeline import exports, notebook, picture
from pyseg.timeline import page as html
from pyseg.timeline.events import OFF_SHARE, ON, SAME, Event, Thresholds, find_stretches, per_class
from pyseg.timeline.times import clock

if TYPE_CHECKING:
    import pandas

_COLUMNS = 256  # averaged at once


class Rating(NamedTuple):
    """A rating of a stretch of time for a class.

    Attributes:
        start: Its start in seconds.
        end: Its end in seconds.
        number: The class.
        positive: Whether the class is shown.
    """

    start: float
    end: float
    number: int
    positive: bool


@dataclass(frozen=True, eq=False)
class Timeline:
    """The scores of a video's classes over time, and its ratings.

    Each of S windows has a score of each of C classes. Windows may overlap: the score at a time is
    then the mean of the windows that cover it (`averaged`).

    Attributes:
        title: The video's id.
        starts: (S,) start of each window in seconds, increasing.
        ends: (S,) its end.
        scores: (S, C) probabilities in [0, 1].
        names: The names of the C classes.
        numbers: Their numbers in the data; default: 0 to C - 1.
        ratings: The video's ratings, also those of other classes.
        video: The video's file, if known.
        segment_seconds: The duration of the segments that were scored, of which the last may be
            shorter; default: that of the first.
        on: (C,) the score that an event of each class reaches unless `events` gets others, as those
            of calibrated scores (`pyseg.calibration`); default: 0.5.
        off: (C,) the score below which it ends; default: 0.7 of `on`, so 0.35.

    Raises:
        pyseg.errors.ArgumentError: The shapes do not fit each other, the times are not in order, or
            a score is not in [0, 1].

    Example:
        >>> scores = [[0.25], [0.75], [0.5], [0.25]]
        >>> timeline = Timeline("trip", [0, 1, 2, 3], [2, 3, 4, 5], scores, ["cat"])
        >>> print(timeline.averaged().scores[:, 0])
        [0.25  0.5   0.625 0.375 0.25 ]
        >>> timeline.events()
        [Event(start=1.0, end=4.0, number=0, name='cat', peak=0.625)]
    """

    title: str
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    names: Sequence[str]
    numbers: Sequence[int] = ()
    ratings: Sequence[Rating] = ()
    video: str | None = None
    segment_seconds: float = 0.0
    on: Thresholds = ON
    off: Thresholds | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        starts, ends = (np.asarray(times, np.float64) for times in (self.starts, self.ends))
        scores = np.asarray(self.scores, np.float32)
        for name, values, shape in (
            ("starts", starts, (len(starts),)),
            ("ends", ends, (len(starts),)),
            ("scores", scores, (len(starts), len(self.names))),
        ):
            if values.shape != shape:
                raise ArgumentError(f"{name}: expected the shape {shape}, found {values.shape}")
        if not (np.isfinite(ends).all() and (starts >= 0).all() and (starts < ends).all()):
            raise ArgumentError("ends: expected finite times after starts >= 0, found others")
        if (starts[1:] < starts[:-1]).any() or (ends[1:] < ends[:-1]).any():
            raise ArgumentError("starts: expected windows in the order of time, found others")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ArgumentError("scores: expected numbers in [0, 1], found others")
        numbers = self.numbers if len(self.numbers) else range(len(self.names))
        if len({*numbers}) != len(self.names):
            raise ArgumentError(
                f"numbers: expected those of {len(self.names)} classes, found {len({*numbers})}"
            )
        on, off = _thresholds(self.on, self.off, self.names)
        seconds = self.segment_seconds or (float(ends[0] - starts[0]) if len(starts) else 0.0)
        checked = {
            "starts": starts,
            "ends": ends,
            "scores": scores,
            "names": tuple(self.names),
            "numbers": tuple(map(int, numbers)),
            "ratings": tuple(self.ratings),
            "segment_seconds": seconds,
            "on": on,
            "off": off,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """Says what it is of, in one line."""
        return (
            f"Timeline({self.title!r}, {len(self.starts)} windows in {self.duration:g} s, "
            f"{len(self.names)} classes)"
        )

    @property
    def duration(self) -> float:
        """The end of the last window in seconds, 0 without any."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    @property
    def peaks(self) -> np.ndarray:
        """(C,) the highest score of each class, of `averaged`; 0 without any window."""
        return self._averaged.scores.max(axis=0, initial=0.0)

    def peak_clock(self, column: int) -> str:
        """Returns when a class has its highest score, as a clock shows it; "" without any window.

        Example:
            >>> Timeline("trip", [0, 60], [5, 65], [[0.1], [0.9]], ["cat"]).peak_clock(0)
            '1:00'
        """
        fine = self._averaged
        return clock(fine.starts[fine.scores[:, column].argmax()]) if len(fine.starts) else ""

    @functools.cached_property
    def columns(self) -> dict[int, int]:
        """The column of each class, by its number."""
        return {number: column for column, number in enumerate(self.numbers)}

    def averaged(self) -> Timeline:
        """Returns the timeline with windows that do not overlap: means of those that cover a time.

        A new window begins wherever one of these windows begins or ends.
        """
        return self._averaged

    @functools.cached_property
    def _averaged(self) -> Timeline:
        if (self.starts[1:] >= self.ends[:-1] - SAME).all():
            return self
        moments = np.unique(np.concatenate((self.starts, self.ends)))
        moments = moments[np.diff(moments, prepend=-np.inf) > SAME]
        first, last = (
            np.searchsorted(moments, times + SAME, side="right") - 1
            for times in (self.starts, self.ends)
        )
        change = np.zeros(len(moments), np.int64)
        np.add.at(change, first, 1)
        np.add.at(change, last, -1)
        count = np.cumsum(change)[:-1]
        covered = count > 0
        scores = np.empty((int(covered.sum()), len(self.names)), np.float32)
        for begin in range(0, len(self.names), _COLUMNS):
            columns = slice(begin, begin + _COLUMNS)
            part = self.scores[:, columns].astype(np.float64)
            sums = np.zeros((len(moments), part.shape[1]))
            np.add.at(sums, first, part)
            np.subtract.at(sums, last, part)
            means = np.cumsum(sums, axis=0)[:-1][covered] / count[covered, None]
            scores[:, columns] = np.clip(means, 0.0, 1.0)
        return replace(self, starts=moments[:-1][covered], ends=moments[1:][covered], scores=scores)

    def per_second(self, seconds: float = 1.0) -> Timeline:
        """Returns the timeline with one window for each second: the mean score over that second.

        Seconds in which nothing is scored are left out; the last window may be shorter.

        Args:
            seconds: The duration of its windows.

        Raises:
            pyseg.errors.ArgumentError: It is not above 0.

        Example:
            >>> half = Timeline("trip", [0, 0.5], [0.5, 1.0], [[0.2], [0.4]], ["cat"])
            >>> print(half.per_second().scores)
            [[0.3]]
        """
        if not 0 < seconds < np.inf:
            raise ArgumentError(f"seconds: expected above 0, found {seconds}")
        if not len(self.starts):
            return self
        fine = self._averaged
        count = int(np.ceil((self.duration - SAME) / seconds))
        edges = np.arange(count + 1) * seconds
        # The integral of the score up to each edge; it is linear between the ends of windows.
        lengths = fine.ends - fine.starts
        at = np.ravel(np.column_stack((fine.starts, fine.ends)))
        covered = np.diff(_interpolated(edges, at, lengths[:, None]), axis=0)[:, 0]
        areas = np.diff(_interpolated(edges, at, lengths[:, None] * fine.scores), axis=0)
        kept = covered > SAME
        means = np.clip(areas[kept] / covered[kept, None], 0.0, 1.0)
        ends = np.minimum(edges[1:][kept], self.duration)
        return replace(self, starts=edges[:-1][kept], ends=ends, scores=means)

    def events(self, on: Thresholds | None = None, off: Thresholds | None = None) -> list[Event]:
        """Finds when classes are shown, by hysteresis, in the order of time.

        An event is a longest stretch in which the class's score (`averaged`) is at least `off`, if
        it reaches `on` somewhere. So a score that wavers about one threshold makes one event.

        Args:
            on: The threshold that an event reaches: one of all classes, one for each, or those of
                some classes by name, the others having the default; default: the timeline's.
            off: The threshold below which it ends; default: 0.7 of `on`.

        Raises:
            pyseg.errors.ArgumentError: There is no such class, a threshold is not in [0, 1], or
                `off` is above `on`.
        """
        off = self.off if on is None and off is None else off
        high, low = _thresholds(self.on if on is None else on, off, self.names, self.on)
        fine = self._averaged
        found = [
            Event(*stretch[:2], self.numbers[column], self.names[column], stretch[2])
            for column in np.flatnonzero(self.peaks >= high).tolist()
            for stretch in find_stretches(
                fine.starts, fine.ends, fine.scores[:, column], high[column], low[column]
            )
        ]
        return sorted(found, key=lambda event: (event.start, event.end))

    def select(self, columns: Sequence[int]) -> Timeline:
        """Returns the timeline of some classes, by their columns, in that order."""
        columns = list(columns)
        return replace(
            self,
            scores=self.scores[:, columns],
            names=[self.names[column] for column in columns],
            numbers=[self.numbers[column] for column in columns],
            on=np.asarray(self.on)[columns],
            off=np.asarray(self.off)[columns],
        )

    def best(self, count: int) -> Timeline:
        """Returns the timeline of the classes with the highest scores, best first.

        Rated classes that are not among them follow.

        Example:
            >>> timeline = Timeline("trip", [0], [5], [[0.1, 0.9, 0.3]], ["cat", "dog", "sea"])
            >>> timeline.best(2).names
            ('dog', 'sea')
        """
        order = np.argsort(-self.peaks, kind="stable")
        rated = {rating.number for rating in self.ratings}
        others = sorted(
            (column for column in order[count:] if self.numbers[column] in rated),
            key=lambda column: self.numbers[column],
        )
        return self.select([*order[:count].tolist(), *others])

    def to_pandas(self) -> pandas.DataFrame:
        """Returns the scores as a table: a row for each window, a column for each class.

        The index is the start of the window in seconds; `ends` are the ends. Call it on
        `per_second()` or `averaged()` for scores at a time.

        Raises:
            pyseg.errors.UserError: pandas is not installed.

        Example:
            >>> timeline = Timeline("trip", [0, 5], [5, 7], [[0.25], [0.5]], ["cat"])
            >>> print(timeline.to_pandas())
            class      cat
            start
            0.0       0.25
            5.0       0.50
        """
        with requires("tables", "a table"):
            import pandas
        return pandas.DataFrame(
            self.scores,
            index=pandas.Index(self.starts, name="start"),
            columns=pandas.Index(self.names, name="class"),
        )

    def picture(self) -> bytes:
        """Draws one row per class, with frames around rated segments; returns a PNG file.

        Raises:
            pyseg.errors.UserError: matplotlib is not installed.
        """
        return picture.draw(self)

    def page(self) -> str:
        """Returns an HTML page.

        Raises:
            pyseg.errors.UserError: A package of the extra `report` is not installed.
        """
        return html.page(self)

    def save(
        self,
        path: str | os.PathLike[str],
        on: Thresholds | None = None,
        off: Thresholds | None = None,
    ) -> None:
        """Writes a file in the format of its suffix; see `pyseg.timeline.exports`.

        Args:
            path: The file.
            on: See `events`.
            off: See `events`.

        Raises:
            pyseg.errors.ArgumentError: The suffix is unknown, or a threshold is wrong.
            pyseg.errors.UserError: A package that the format needs is not installed.
        """
        exports.save(self, Path(path_text(path)), on, off)

    def _repr_html_(self) -> str:
        """Returns the table that notebooks show."""
        return notebook.table(self)


def _thresholds(
    on: Thresholds, off: Thresholds | None, names: Sequence[str], default: Thresholds = ON
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the thresholds (C,) that events reach, and those below which they end."""
    high = per_class("on", on, names, np.asarray(default, np.float64))
    low = per_class("off", OFF_SHARE * high if off is None else off, names, OFF_SHARE * high)
    if (low > high).any():
        column = int(np.argmax(low > high))
        raise ArgumentError(f"off: expected at most on, {high[column]:g}, found {low[column]:g}")
    return high, low


def _interpolated(edges: np.ndarray, at: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Returns the sums of areas up to some edges.

    Args:
        edges: (E,) increasing.
        at: (2S,) start and end of each area's stretch.
        areas: (S, C).

    Returns:
        (E, C).
    """
    sums = np.zeros((len(at), areas.shape[1]))
    sums[1::2] = np.cumsum(areas, axis=0)
    sums[2::2] = sums[1:-1:2]
    index = np.clip(np.searchsorted(at, edges, side="right") - 1, 0, len(at) - 2)
    span = at[index + 1] - at[index]
    share = np.divide(edges - at[index], span, out=np.zeros(len(edges)), where=span > 0)
    share = np.clip(share, 0.0, 1.0)[:, None]
    return sums[index] * (1 - share) + sums[index + 1] * share
