"""Events: the stretches of a timeline in which a class is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg._registry import unknown
from pyseg.errors import ArgumentError

SAME = 1e-6
"""Seconds by which equal times may differ, as they are computed in several ways."""

ON = 0.5
OFF_SHARE = 0.7
"""An event ends where the score falls below this share of the threshold that it reaches."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")

Thresholds = float | Sequence[float] | npt.NDArray[np.floating] | Mapping[str, float]
"""A threshold of all classes, one for each, or those of some classes by name."""


class Event(NamedTuple):
    """A stretch of time in which a class is shown.

    Attributes:
        start: Its start in seconds.
        end: Its end in seconds.
        number: The class.
        name: Its name.
        peak: Its highest score in that time.
    """

    start: float
    end: float
    number: int
    name: str
    peak: float

    @property
    def label(self) -> str:
        r"""The name as one line of text, without control characters.

        Example:
            >>> Event(0.0, 1.0, 7, " a\n\tb\x00", 0.9).label
            'a b'
        """
        return " ".join(_CONTROLS.sub(" ", self.name).split()) or f"class {self.number}"


def find_stretches(
    starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, on: float, off: float
) -> list[tuple[float, float, float]]:
    """Finds the stretches of one class by hysteresis.

    A stretch begins and ends where the score crosses `off`, and counts if its score reaches `on`.
    It also ends where nothing is scored.

    Args:
        starts: (S,) start of each score's time, increasing.
        ends: (S,) its end; the times do not overlap.
        scores: (S,) the scores.
        on: The least peak of a stretch.
        off: The least score within a stretch, at most `on`.

    Returns:
        Start, end and peak of each stretch.

    Example:
        >>> times = np.arange(6.0)
        >>> scores = np.array([0.4, 0.9, 0.4, 0.1, 0.4, 0.4])
        >>> find_stretches(times, times + 1, scores, on=0.5, off=0.35)
        [(0.0, 3.0, 0.9)]
    """
    inside = scores >= off
    follows = np.zeros(len(scores), bool)
    follows[1:] = inside[:-1] & (starts[1:] <= ends[:-1] + SAME)
    firsts = np.flatnonzero(inside & ~follows)
    continues = np.zeros(len(scores), bool)
    continues[:-1] = follows[1:] & inside[1:]
    lasts = np.flatnonzero(inside & ~continues)
    found = []
    for first, last in zip(firsts, lasts, strict=True):
        peak = scores[first : last + 1].max()
        if peak >= on:
            found.append((float(starts[first]), float(ends[last]), round(float(peak), 6)))
    return found


def per_class(
    argument: str,
    thresholds: Thresholds,
    names: Sequence[str],
    default: float | npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Returns a threshold for each class.

    Args:
        argument: The argument that gives them, for messages.
        thresholds: One of all classes, one for each, or those of some classes by name.
        names: The classes.
        default: The threshold of classes that a mapping leaves out, or (C,) of them.

    Raises:
        pyseg.errors.ArgumentError: There is no such class, their number differs, or one is not in
            [0, 1].
    """
    if isinstance(thresholds, Mapping):
        for name in thresholds:
            if name not in names:
                raise ArgumentError(f"{argument}: {unknown('class', name, dict.fromkeys(names))}")
        defaults = np.broadcast_to(default, len(names)).tolist()
        values = np.array(
            [thresholds.get(name, other) for name, other in zip(names, defaults, strict=True)]
        )
    else:
        try:
            values = np.asarray(thresholds, np.float64)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"{argument}: expected numbers in [0, 1], found {thresholds!r}"
            ) from None
        if values.ndim and values.shape != (len(names),):
            raise ArgumentError(
                f"{argument}: expected one number, or one for each of {len(names)} classes, found "
                f"the shape {values.shape}"
            )
        values = np.broadcast_to(values, len(names))
    if not ((values >= 0) & (values <= 1)).all():
        raise ArgumentError(f"{argument}: expected numbers in [0, 1], found {thresholds!r}")
    return values
