"""The handling of faulty records: an error, or skipped, counted and reported at the end."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from pyseg._text import counted
from pyseg.errors import ArgumentError

OnError = Literal["raise", "skip"]
"""At a faulty record: raise an error, or leave it out and count it."""


class RecordWarning(UserWarning):
    """Something was skipped, dropped or overwritten while reading; issued once, at the end."""


@contextlib.contextmanager
def without_record_warnings() -> Iterator[None]:
    """Silences every `RecordWarning`, for callers that report its content themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        yield


@dataclass
class ReadReport:
    """Counts of the problems found while reading; `+=` adds up reports.

    Attributes:
        records: Records that were decoded.
        skipped: Records that could not be decoded (`on_error="skip"`). A truncated file counts as
            one, however many records it lost.
        unlabelled: Records without the feature that the schema names for labels; they are read as
            records with no label.
        dropped_segments: Rated segments that start at or past the end of their video.
        cut_segments: Rated segments, kept, that the end of their video cuts short.
        duplicate_ratings: Ratings overwritten by a later one of the same segment and class.
        first_error: The first error that was skipped.
    """

    records: int = 0
    skipped: int = 0
    unlabelled: int = 0
    dropped_segments: int = 0
    cut_segments: int = 0
    duplicate_ratings: int = 0
    first_error: str | None = None

    def skip(self, error: str) -> None:
        """Counts a record that is skipped because of this error."""
        self.skipped += 1
        self.first_error = self.first_error or error

    def merge(self, other: ReadReport) -> ReadReport:
        """Adds the counts of `other` to this report, and returns it."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_error = self.first_error or other.first_error
        return self

    __iadd__ = merge

    def summary(self) -> str:
        """Returns a line on skipped, dropped and overwritten data; empty if there is none.

        Example:
            >>> ReadReport(records=10, skipped=1, first_error="a.tfrecord: ...").summary()
            'skipped 1 record (the first: a.tfrecord: ...)'
        """
        parts = []
        if self.skipped:
            records = counted(self.skipped, "record")
            parts.append(f"skipped {records} (the first: {self.first_error})")
        if self.unlabelled:
            parts.append(f"found {counted(self.unlabelled, 'record')} without labels")
        if self.dropped_segments:
            segments = counted(self.dropped_segments, "rated segment")
            parts.append(f"dropped {segments} past the end of the video")
        if self.duplicate_ratings:
            parts.append(f"overwrote {counted(self.duplicate_ratings, 'rating')} by later ones")
        return ", ".join(parts)

    def warn(self, what: str, stacklevel: int = 2) -> None:
        """Issues the summary as a `RecordWarning` that starts with `what`, unless it is empty."""
        if summary := self.summary():
            warnings.warn(f"{what}: {summary}", RecordWarning, stacklevel=stacklevel + 1)


COUNTS = tuple(field.name for field in fields(ReadReport) if field.name != "first_error")
"""The counts of a report."""


def check_on_error(on_error: str) -> None:
    """Checks the value of an argument `on_error`.

    Raises:
        ValueError: It is neither "raise" nor "skip".
    """
    if on_error not in ("raise", "skip"):
        raise ArgumentError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
