"""Submission files of the YouTube-8M segment challenge: writing, reading and judging them.

A submission is a text file: the header ``Class,Segments``, then for every class its number and up
to 100,000 segments, the best first, as ``3,06xy:25 1e10:0 ...``. The name of a segment is the id of
its video, which is text, and its first frame.
"""

from __future__ import annotations

import itertools
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from pyseg import _threads
from pyseg._files import atomic_write
from pyseg._paths import path_text
from pyseg.data._tables import Row, is_numeric, read_rows, read_table, shown, whole_number
from pyseg.data.datasets import RecordDataset
from pyseg.data.records import is_line_of_text
from pyseg.errors import DataError
from pyseg.metrics import MeanAveragePrecision, map_at_k

HEADER = "Class,Segments"
TOP = 100_000
"""Segments per class that count in the challenge."""

_JOINED = 64  # classes whose names are joined by all threads before they are written
_MAX_CLASSES = 1_000_000  # results have an average precision for every number up to the largest


def segment_id(video: str, start: int) -> str:
    """Returns the name of a segment in a submission.

    Example:
        >>> segment_id("06xy", 25)
        '06xy:25'
    """
    return f"{video}:{start}"


_SEGMENT = re.compile(r".+:(0|[1-9][0-9]{0,8})", re.DOTALL)
_SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]
_ESCAPES = {text: urllib.parse.quote(text, safe="") for text in ("%", *_SPACES)}
_UNESCAPES = {escape: text for text, escape in _ESCAPES.items()}
_TO_ESCAPE = re.compile("[" + "".join(map(re.escape, set(_ESCAPES) - {"\n"})) + "]")
_TO_UNESCAPE = re.compile("|".join(_UNESCAPES))


def fits_submission(video: str) -> bool:
    r"""Returns whether a video's id can be written to a submission.

    It must not be empty or have line breaks, other control characters, or surrogates, which stand
    for bytes that are not UTF-8.

    Example:
        >>> [fits_submission(id) for id in ("06xy", 'a,"b"', "a b", "", "a\x00")]
        [True, True, True, False, False]
    """
    return is_line_of_text(video)


def is_segment(text: str) -> bool:
    """Returns whether a text is a result of `segment_id`, with the start in canonical form.

    Example:
        >>> [is_segment(text) for text in ("06xy:25", "a:b:0", "06xy:5.0", "06xy:05", "06xy")]
        [True, True, False, False, False]
    """
    return _SEGMENT.fullmatch(text) is not None


def write_submission(
    path: str | os.PathLike[str], ranked: Iterable[tuple[int, Iterable[str]]]
) -> None:
    """Writes a submission; the file appears only when complete.

    Args:
        path: The file.
        ranked: Classes with their segments, the best first, whose ids all satisfy
            `fits_submission`.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "submission.csv")
        >>> write_submission(path, [(3, ["06xy:25", "my video:0"]), (7, [])])
        >>> print(Path(path).read_text(), end="")
        Class,Segments
        3,06xy:25 my%20video:0
        7,
    """
    _write(path, ((number, _lines(segments)) for number, segments in ranked))


def write_numbered(
    path: str | os.PathLike[str], ranked: Iterable[tuple[int, np.ndarray]], names: Sequence[str]
) -> None:
    """Does what `write_submission` does, several times as fast, for segments that have numbers.

    Args:
        path: The file.
        ranked: Classes with the numbers of their segments, integers from 0, the best first.
        names: The names of the segments by their numbers.
    """
    text = np.frombuffer(_lines(names) + b"\n", np.uint8)
    ends = np.flatnonzero(text == ord("\n")) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts

    def joined(numbers: np.ndarray) -> bytes:
        own = lengths[numbers]
        places = np.repeat(starts[numbers] - np.cumsum(own) + own, own)
        return text[places + np.arange(len(places))].tobytes()[:-1]

    def classes() -> Iterator[tuple[int, bytes]]:
        left = iter(ranked)
        while some := list(itertools.islice(left, _JOINED)):
            lines = _threads.run_all(joined, [(numbers,) for _, numbers in some])
            yield from zip((number for number, _ in some), lines, strict=True)

    _write(path, classes())


def _lines(names: Iterable[str]) -> bytes:
    """Returns names as lines, escaped."""
    text = "\n".join(names)  # no id has a line break
    if "%" in text or " " in text or not text.isascii():
        text = _TO_ESCAPE.sub(lambda found: _ESCAPES[found[0]], text)
    return text.encode()


def _write(path: str | os.PathLike[str], classes: Iterable[tuple[int, bytes]]) -> None:
    """Writes a submission of the lines of each class's names."""
    with atomic_write(Path(path_text(path))) as file:
        file.write(f"{HEADER}\n".encode())
        for number, lines in classes:
            field = lines.replace(b"\n", b" ")
            if b"," in field or b'"' in field:
                field = b'"' + field.replace(b'"', b'""') + b'"'
            file.write(b"%d,%b\n" % (number, field))


def read_submission(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the classes of a submission with their segments, in the order of the file.

    The file is CSV, plain or gzip-compressed, and read line by line. The header is optional: a
    first line without a number in the first and a segment in the second column.

    Args:
        path: The file, UTF-8, or UTF-16 with a byte order mark.

    Yields:
        Class, and its segments, the best first; they need not satisfy `is_segment`.

    Raises:
        pyseg.errors.DataError: The file is empty, or a line is malformed or repeats a class. The
            message names file and line.
        OSError: The file cannot be read.
    """
    name = path_text(path)
    seen: dict[int, int] = {}
    row = None
    for row, (line, fields) in enumerate(read_rows(path)):

        def fail(expected: str, line: int = line) -> NoReturn:
            raise DataError(f"{name}, line {line}: expected {expected}")

        first = fields[0].strip()
        text = fields[1] if len(fields) > 1 else ""
        segments = text.split()
        if "%" in text:
            segments = [_TO_UNESCAPE.sub(_unescape, segment) for segment in segments]
        if row == 0 and not is_numeric(first) and segments and not any(map(is_segment, segments)):
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


def _unescape(found: re.Match[str]) -> str:
    return _UNESCAPES[found[0]]


@dataclass(frozen=True)
class Truth:
    """The ratings to judge submissions by.

    Attributes:
        ratings: The rated segments of every class, and whether each is positive.
        videos: The ids of all rated videos.
        source: Their source, for messages.
        overwritten: The number of ratings replaced by a later one of the same segment and class.
    """

    ratings: Mapping[int, Mapping[str, bool]] = field(repr=False)
    videos: frozenset[str] = field(repr=False)
    source: str
    overwritten: int = 0

    @property
    def num_ratings(self) -> int:
        """The number of rated pairs of a segment and a class."""
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
    """Returns the ratings of a data set of rated segments.

    Args:
        dataset: A `pyseg.data.SegmentDataset` or a similar data set.
        source: Its source, for messages.

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
    """Returns the ratings of a table with a segment, a class and a score in each line.

    Its first line names the columns ``segment``, ``class`` and ``score``; it is optional, as in the
    cache files of the starter code's segment_eval_inference.py. A score above 0.5 is positive. Of
    several ratings of a pair the last one counts.

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
    """The differences between a submission and the truth.

    Attributes:
        classes: The number of classes in the submission.
        missing_classes: Classes with a rated positive, but not in the submission; each counts 0.
        unknown_classes: Classes in the submission without a rating.
        duplicates: Repetitions of a segment in a class; the first place counts.
        beyond: Segments past the first `k` of a class, which do not count.
        malformed: The number of different entries that are not segments (`is_segment`), and an
            example.
        unknown: The number of different segments of videos without ratings, and an example.
        unlisted: Rated pairs that are not in the submission; positive ones count as missed.
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
        """Yields a line for each kind of difference that was found."""
        for text, numbers in (
            ("classes with a rated positive that are missing and count 0", self.missing_classes),
            ("classes without a rating, which do not count", self.unknown_classes),
        ):
            if numbers:
                some = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
                yield f"{text}: {len(numbers)} ({some})"
        if self.duplicates:
            yield f"segments repeated in a class, where the first place counts: {self.duplicates}"
        if self.beyond:
            yield f"segments beyond the allowed number per class, which do not count: {self.beyond}"
        if self.malformed[0]:
            yield (
                "different entries that are not id:number, with a whole number without leading "
                f"zeros, and do not count: {self.malformed[0]}, such as {shown(self.malformed[1])}"
            )
        if self.unknown[0]:
            yield (
                "different segments of no rated video, which do not count: "
                f"{self.unknown[0]}, such as {shown(self.unknown[1])}"
            )
        if self.unlisted:
            yield f"rated pairs that are not in the submission: {self.unlisted}"


def judge(
    submission: Iterable[tuple[int, Sequence[str]]],
    truth: Truth,
    *,
    k: int = TOP,
    progress: Callable[[], object] = lambda: None,
) -> tuple[MeanAveragePrecision, SubmissionReport]:
    """Returns the average precision of every class of a submission: paper, equation (7).

    The first `k` different segments of each class count. Those without a rating for the class are
    left out, and the others are ranked. Rated positives that are not in the submission count as
    missed. The starter code's segment_eval_inference.py differs: it fails on a header, loses the
    last segment of each line, and ignores missing classes.

    Args:
        submission: From `read_submission`.
        truth: The ratings.
        k: The number of segments per class that count.
        progress: Called after every class.

    Returns:
        A result for the classes up to the largest rated one, whose ``map`` is the mean over those
        with a rated positive, and the differences from the truth.

    Example:
        >>> truth = Truth({3: {"a:0": True, "a:5": False, "b:0": True}}, frozenset("ab"), "here")
        >>> result, report = judge([(3, ["a:0", "z:0", "a:5", "b:0"])], truth)
        >>> round(result.map, 4)  # (1/1 + 2/3) / 2
        0.8333
        >>> list(report.lines())
        ["different segments of no rated video, which do not count: 1, such as 'z:0'"]
    """
    classes: list[np.ndarray] = []
    relevance: list[list[bool]] = []
    checks = _Checks(truth, k)
    for number, segments in submission:
        different = dict.fromkeys(segments)  # in order, without repetitions
        checks.add(number, segments, different)
        if (ratings := truth.ratings.get(number)) is not None:
            first = list(different)[:k] if len(different) > k else different
            hits = [ratings[segment] for segment in first if segment in ratings]
            classes.append(np.full(len(hits), number, np.int64))
            relevance.append(hits)
        progress()
    flat = np.concatenate([np.empty(0, np.int64), *classes])
    hit = np.concatenate([np.empty(0, bool), *(np.array(h, bool) for h in relevance)])
    result = _average_precision(flat, hit, truth, k)
    return result, checks.report(result, listed=len(flat))


def _average_precision(
    classes: np.ndarray, relevant: np.ndarray, truth: Truth, k: int
) -> MeanAveragePrecision:
    """Returns the average precision of every class; unlisted positives count as missed.

    Args:
        classes: (R,) the classes of the listed rated pairs, by rank within each class.
        relevant: (R,) whether the pairs are positive.
        truth: The ratings.
        k: The number of segments per class that count.
    """
    num_classes = max(truth.ratings) + 1
    positives, rated = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    for number, ratings in truth.ratings.items():
        positives[number] = sum(ratings.values())
        rated[number] = len(ratings)
    # All scores are equal, so that earlier rows rank first.
    listed = map_at_k(classes, np.zeros(len(classes)), relevant, num_classes=num_classes, k=k)
    # An unlisted positive only contributes to the denominator, min(positives, k).
    share = np.minimum(listed.positives, k) / np.maximum(np.minimum(positives, k), 1)
    per_class = listed.per_class * share
    counted = per_class[positives > 0]
    mean = float(counted.mean()) if len(counted) else float("nan")
    return MeanAveragePrecision(mean, per_class, positives, rated)


class _Checks:
    """Finds the differences between a submission and the truth, class by class."""

    def __init__(self, truth: Truth, k: int) -> None:
        self._truth = truth
        self._k = k
        self._classes: set[int] = set()
        self._unknown_classes: list[int] = []
        self._duplicates = self._beyond = 0
        self._malformed: list[str] = []
        self._unknown: list[str] = []
        self._seen: set[str] = set()  # segments of all classes so far

    def add(self, number: int, segments: Sequence[str], different: Mapping[str, None]) -> None:
        """Adds a class with its segments, and these without repetitions."""
        self._classes.add(number)
        if number not in self._truth.ratings:
            self._unknown_classes.append(number)
        self._duplicates += len(segments) - len(different)
        self._beyond += max(0, len(different) - self._k)
        new = different.keys() - self._seen
        self._seen |= new
        for segment in new:
            if not is_segment(segment):
                self._malformed.append(segment)
            elif segment.rpartition(":")[0] not in self._truth.videos:
                self._unknown.append(segment)

    def report(self, result: MeanAveragePrecision, listed: int) -> SubmissionReport:
        """Returns the differences, given the number of listed rated pairs."""
        positive = np.flatnonzero(result.positives).tolist()
        return SubmissionReport(
            classes=len(self._classes),
            missing_classes=[number for number in positive if number not in self._classes],
            unknown_classes=self._unknown_classes,
            duplicates=self._duplicates,
            beyond=self._beyond,
            malformed=(len(self._malformed), min(self._malformed, default="")),
            unknown=(len(self._unknown), min(self._unknown, default="")),
            unlisted=self._truth.num_ratings - listed,
        )
