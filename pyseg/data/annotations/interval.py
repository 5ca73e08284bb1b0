"""Intervals of videos with the rating of a class, which every reader of annotations yields."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pyseg._text import counted
from pyseg.data.records import why_not_an_id
from pyseg.errors import DataError


class Interval(NamedTuple):
    """A part of a video with the rating of one class.

    Attributes:
        video: The video: its id, or the name of its file.
        start: The start in seconds from the beginning of the video.
        end: The end in seconds.
        name: The name of the class.
        score: The rating, from 0 (absent) to 1 (present); None: people have looked at it and have
            not decided, so that a complete class is not rated 0 there.
        source: The place of the rating, for messages: file and line.
    """

    video: str
    start: float
    end: float
    name: str
    score: float | None = 1.0
    source: str = ""


@dataclass
class AnnotationFile:
    """The content of a file that people rated videos with.

    Attributes:
        intervals: The intervals.
        videos: The videos that were looked at, also those without an interval, each with the place
            for messages.
        notes: Lines on what was left out.
    """

    intervals: list[Interval] = field(default_factory=list)
    videos: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, interval: Interval) -> None:
        """Adds an interval, whose values are checked.

        Raises:
            pyseg.errors.DataError: A value is out of its range; the message names the place.
        """
        check_interval(interval)
        self.intervals.append(interval)
        self.videos.setdefault(interval.video, interval.source)

    def left_out(self, number: int, noun: str, path: str, which: str = "") -> None:
        """Notes that a file has parts which rate nothing: such nouns, with words after them."""
        if number:
            self.notes.append(f"left out {counted(number, noun)}{which} of {path}")

    def extend(self, other: AnnotationFile) -> None:
        """Adds the content of another file."""
        self.intervals += other.intervals
        self.videos = {**other.videos, **self.videos}
        self.notes += other.notes


def check_interval(interval: Interval) -> None:
    """Checks the values of an interval.

    Raises:
        pyseg.errors.DataError: One is out of its range; the message names the place.
    """
    video, start, end, name, score, source = interval
    where = f"{source}: " if source else ""
    if not 0 <= start < end < float("inf"):
        raise DataError(f"{where}expected 0 <= start < end, found {start:g} and {end:g}")
    if score is not None and not 0 <= score <= 1:
        raise DataError(f"{where}expected a score in [0, 1], found {score:g}")
    check_name("class", name, where)
    if not video:
        raise DataError(f"{where}expected the name of a video, found none")


def check_name(what: str, name: str, where: str) -> None:
    """Checks the name of a class, to which the rules for ids apply.

    Raises:
        pyseg.errors.DataError: It is not such a text; the message begins with ``where``.
    """
    if (wrong := why_not_an_id(name)) is not None:
        raise DataError(f"{where}{what}: {wrong}")


def merge_events(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the union of intervals as disjoint ones, in order.

    Example:
        >>> merge_events([(3, 4), (0, 2), (1, 3)])
        [(0, 4)]
    """
    merged: list[tuple[float, float]] = []
    for onset, offset in sorted(intervals):
        if merged and onset <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], offset)
        else:
            merged.append((onset, offset))
    return merged


LARGEST_FILE = 1 << 28
"""The largest file in bytes that is read at once."""


def read_bounded(path: str) -> bytes:
    """Returns the content of a file of at most `LARGEST_FILE` bytes.

    Raises:
        pyseg.errors.DataError: It is larger.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise DataError(f"{path}: expected at most {LARGEST_FILE} bytes, found more")
    return content


def stem(path: str) -> str:
    """Returns the name of a file without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]
