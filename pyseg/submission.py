"""Submission files of the YouTube-8M segment challenge: writing, and judging, them.

A submission is a text file: the header ``Class,Segments``, then for every class its number and up
to 100,000 segments, the best first, as ``3,06xy:25 1e10:0 ...``. A segment is the id of its video,
which is text, and the frame at which it starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from pyseg._files import atomic_write
from pyseg.data._tables import Row, read_rows, read_table, shown, whole_number
from pyseg.data.datasets import RecordDataset
from pyseg.errors import DataError
from pyseg.metrics import MeanAveragePrecision, map_at_k

HEADER = "Class,Segments"
_MAX_CLASSES = 1_000_000  # there is an average precision for every number up to the largest
TOP = 100_000
"""The challenge looks at so many segments of a class."""


def segment_id(video: str, start: int) -> str:
    """Returns how a submission calls a segment.

    Example:
        >>> segment_id("06xy", 25)
        '06xy:25'
    """
    return f"{video}:{start}"


_SEGMENT = re.compile(r".+:(0|[1-9][0-9]{0,8})", re.DOTALL)
_UNFIT = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def fits_submission(video: str) -> bool:
    r"""Returns whether a submission can name a video: its id has no white space or controls.

    Nor may it be empty or hold surrogates, which stand for bytes that are no UTF-8.

    Example:
        >>> [fits_submission(id) for id in ("06xy", 'a,"b"', "a b", "", "a\x00")]
        [True, True, False, False, False]
    """
    return bool(video) and not _UNFIT.search(video)


def is_segment(text: str) -> bool:
    """Returns whether a text is what `segment_id` returns: numbers have one form.

    Example:
        >>> [is_segment(text) for text in ("06xy:25", "a:b:0", "06xy:5.0", "06xy:05", "06xy")]
        [True, True, False, False, False]
    """
    return _SEGMENT.fullmatch(text) is not None


def write_submission(
    path: str | os.PathLike[str], ranked: Iterable[tuple[int, Iterable[str]]]
) -> None:
    """Writes a submission; the file appears when it is whole.

    Args:
        path: The file.
        ranked: Classes, and the segments of each, the best first.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "submission.csv")
        >>> write_submission(path, [(3, ["06xy:25", "1e10:0"]), (7, [])])
        >>> print(Path(path).read_text(), end="")
        Class,Segments
        3,06xy:25 1e10:0
        7,
    """
    with atomic_write(Path(path)) as file:
        file.write(f"{HEADER}\n".encode())
        for number, segments in ranked:
            field = " ".join(segments)
            if "," in field or '"' in field:
                field = '"' + field.replace('"', '""') + '"'
            file.write(f"{number},{field}\n".encode())


def read_submission(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the classes of a submission and the segments of each, as they stand in the file.

    One line is held at a time. It is read as CSV is; gzip is seen by content. The header may be any
    line whose first column is not a number and whose second names no segment, or missing.

    Args:
        path: The file, UTF-8, or UTF-16 with a byte order mark.

    Yields:
        Class, and its segments, the best first; they need not be what `is_segment` takes.

    Raises:
        pyseg.errors.DataError: There is no line at all, not even a header; or one is malformed or
            names a class again. The message names file and line.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    seen: dict[int, int] = {}
    row = None
    for row, (line, fields) in enumerate(read_rows(path)):

        def fail(expected: str, line: int = line) -> NoReturn:
            raise DataError(f"{name}, line {line}: expected {expected}")

        first = fields[0].strip()
        segments = fields[1].split() if len(fields) > 1 else []
        if row == 0 and not _is_number(first) and segments and not any(map(is_segment, segments)):
            continue
        if len(fields) != 2:
            fail(f'two columns, "class,segment segment ...", found {len(fields)}')
        number = whole_number(first)
        if number is None:
            fail(f"the number of a class, found {shown(first)}")
        if number in seen:
            fail(f"every class once, found class {number} of line {seen[number]} again")
        seen[number] = line
        yield number, segments
    if row is None:
        raise DataError(f"{name}: expected a submission, found no line")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Truth:
    """What was rated.

    Attributes:
        ratings: For every class, its rated segments, and whether each is relevant.
        videos: The ids of all rated videos.
        source: What it was read from, for messages.
        overwritten: Ratings of a pair that a later one of the same pair replaced.
    """

    ratings: Mapping[int, Mapping[str, bool]] = field(repr=False)
    videos: frozenset[str] = field(repr=False)
    source: str
    overwritten: int = 0

    @property
    def num_ratings(self) -> int:
        """How many pairs of a segment and a class are rated."""
        return sum(map(len, self.ratings.values()))


def _truth(rated: Iterable[tuple[str, int, float]], source: str) -> Truth:
    ratings: dict[int, dict[str, bool]] = {}
    videos = set()
    overwritten = 0
    for segment, number, score in rated:
        overwritten += segment in ratings.get(number, ())
        ratings.setdefault(number, {})[segment] = score > 0.5
        videos.add(segment.rpartition(":")[0])
    if not ratings:
        raise DataError(f"{source}: expected ratings of segments, found none")
    return Truth(ratings, frozenset(videos), source, overwritten)


def truth_of_segments(dataset: RecordDataset, source: str) -> Truth:
    """Returns what a data set of rated segments says.

    Args:
        dataset: `pyseg.data.SegmentDataset` or one like it.
        source: What it reads, for messages.

    Raises:
        pyseg.errors.DataError: There is no rating.
        pyseg.errors.RecordError: A record is faulty.
    """
    return _truth(
        (
            (example.id, number, score)
            for example in dataset
            for number, score in zip(example.classes.tolist(), example.scores.tolist(), strict=True)
        ),
        source,
    )


def read_truth(path: str | os.PathLike[str]) -> Truth:
    """Returns the ratings of a table: a segment, a class and a score a line.

    Its first line names the columns ``segment``, ``class`` and ``score``; the cache files of the
    starter code's segment_eval_inference.py, which have no such line, are read as well. A score
    above 0.5 is a positive. Of several ratings of one pair the last one counts.

    Args:
        path: The file, plain or gzip-compressed.

    Raises:
        pyseg.errors.DataError: The table is malformed or empty; the message names file and line.
        OSError: It cannot be read.
    """

    def rated(row: Row) -> tuple[str, int, float]:
        segment, number, score = row.text("segment"), row.integer("class"), row.number("score")
        if not is_segment(segment):
            row.fail(f"a segment such as 06xy:25, found {shown(segment)}")
        if number >= _MAX_CLASSES:
            row.fail(f"a class below {_MAX_CLASSES}, found {number}")
        if not 0.0 <= score <= 1.0:
            row.fail(f"a score in [0, 1], found {score:g}")
        return segment, number, score

    columns = [["segment", "Segment", "seg"], ["class", "Class", "label"], ["score", "Score"]]
    table = read_table(path, columns, header=[names[0] for names in columns])
    return _truth(map(rated, table), os.fspath(path))


class SubmissionReport(NamedTuple):
    """What a submission has that the truth does not, and the other way round.

    Attributes:
        classes: Classes in the submission.
        missing_classes: Classes with a rated positive that the submission lacks; each counts 0.
        unknown_classes: Classes in the submission without a rating.
        duplicates: Segments that a class names again; the first place counts.
        beyond: Segments past the first `k` of a class, which do not count.
        malformed: Different entries that are no segments (`is_segment`), and one of them.
        unknown: Different segments that are none of a rated video, and one of them.
        unlisted: Rated pairs that the submission does not have; the positives count as missed.
    """

    classes: int
    missing_classes: list[int]
    unknown_classes: list[int]
    duplicates: int
    beyond: int
    malformed: tuple[int, str]
    unknown: tuple[int, str]
    unlisted: int

    def lines(self) -> Iterator[str]:
        """Yields a line for everything that deserves the user's attention."""
        for text, numbers in (
            ("with a rated positive are missing and count 0", self.missing_classes),
            ("have no rating and do not count", self.unknown_classes),
        ):
            if numbers:
                some = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
                yield f"{len(numbers)} classes {text}: {some}"
        if self.duplicates:
            yield f"{self.duplicates} segments are named again by the same class: the first counts"
        if self.beyond:
            yield f"{self.beyond} segments past the allowed number of a class do not count"
        if self.malformed[0]:
            yield (
                f"{self.malformed[0]} different entries are not id:number, with a whole number "
                f"without zeros before it, and do not count, for example {shown(self.malformed[1])}"
            )
        if self.unknown[0]:
            yield (
                f"{self.unknown[0]} different segments are of no rated video and do not count, "
                f"for example {shown(self.unknown[1])}"
            )
        if self.unlisted:
            yield f"{self.unlisted} rated pairs are not in the submission"


def judge(
    submission: Iterable[tuple[int, Sequence[str]]],
    truth: Truth,
    *,
    k: int = TOP,
    progress: Callable[[], object] = lambda: None,
) -> tuple[MeanAveragePrecision, SubmissionReport]:
    """Returns the average precision of every class of a submission: paper, equation (7).

    The first `k` different segments of a class are looked at; those that were not rated for the
    class are then left out, and ranks are counted among the others. Every rated positive counts as
    one, also where the submission lacks it. Compare the faults of the starter code's
    segment_eval_inference.py: it fails on a header, loses the last segment of each line, and does
    not count classes that are missing.

    Args:
        submission: What `read_submission` yields.
        truth: What was rated.
        k: How many segments of a class are looked at.
        progress: Called after every class.

    Returns:
        A result over 1 + the largest rated class classes, whose ``map`` is the mean over those with
        a rated positive, and what was noticed.

    Example:
        >>> truth = Truth({3: {"a:0": True, "a:5": False, "b:0": True}}, frozenset("ab"), "here")
        >>> result, report = judge([(3, ["a:0", "z:0", "a:5", "b:0"])], truth)
        >>> round(result.map, 4)  # (1/1 + 2/3) / 2
        0.8333
        >>> list(report.lines())
        ["1 different segments are of no rated video and do not count, for example 'z:0'"]
    """
    num_classes = max(truth.ratings) + 1
    totals = np.zeros(num_classes, np.int64)
    rated = np.zeros(num_classes, np.int64)
    for number, ratings in truth.ratings.items():
        totals[number] = sum(ratings.values())
        rated[number] = len(ratings)
    classes: list[np.ndarray] = []
    relevance: list[list[bool]] = []
    found: set[int] = set()
    unknown_classes = []
    duplicates = beyond = 0
    malformed: list[str] = []
    unknown: list[str] = []
    known: set[str] = set()  # segments that were looked up before
    for number, segments in submission:
        different = dict.fromkeys(segments)  # in order, each once
        duplicates += len(segments) - len(different)
        beyond += max(0, len(different) - k)
        new = different.keys() - known
        known |= new
        for segment in new:
            if not is_segment(segment):
                malformed.append(segment)
            elif segment.rpartition(":")[0] not in truth.videos:
                unknown.append(segment)
        found.add(number)
        ratings_of_class = truth.ratings.get(number)
        if ratings_of_class is None:
            unknown_classes.append(number)
        else:
            first = list(different)[:k] if len(different) > k else different
            hits = [ratings_of_class[s] for s in first if s in ratings_of_class]
            classes.append(np.full(len(hits), number, np.int64))
            relevance.append(hits)
        progress()
    flat = np.concatenate([np.empty(0, np.int64), *classes])
    hit = np.concatenate([np.empty(0, bool), *(np.array(h, bool) for h in relevance)])
    # The submission gives an order, so equal scores say all: earlier rows come first.
    listed = map_at_k(flat, np.zeros(len(flat)), hit, num_classes=num_classes, k=k)
    # What is not listed is missed: it belongs to the denominator, min(positives, k), alone.
    share = np.minimum(listed.positives, k) / np.maximum(np.minimum(totals, k), 1)
    per_class = listed.per_class * share
    positive = totals > 0
    mean = float(per_class[positive].mean()) if positive.any() else float("nan")
    report = SubmissionReport(
        classes=len(found),
        missing_classes=[c for c in np.flatnonzero(positive).tolist() if c not in found],
        unknown_classes=unknown_classes,
        duplicates=duplicates,
        beyond=beyond,
        malformed=(len(malformed), min(malformed, default="")),
        unknown=(len(unknown), min(unknown, default="")),
        unlisted=int(rated.sum() - listed.rated.sum()),
    )
    return MeanAveragePrecision(mean, per_class, totals, rated), report
