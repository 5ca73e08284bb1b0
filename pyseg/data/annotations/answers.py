"""Tables of ratings, by one person or by several raters who answer questions; see `settle`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pyseg._paths import path_text
from pyseg._text import counted
from pyseg.data._tables import Row, find_delimiter, read_rows, read_table
from pyseg.data.annotations.interval import (
    AnnotationFile,
    Interval,
    check_interval,
    read_bounded,
)
from pyseg.errors import DataError

RATING_COLUMNS = ("video", "start", "end", "class", "score")
ANSWER_COLUMNS = ("rater", "reason", "time")
"""What the file of answers has behind `RATING_COLUMNS`."""

RANDOM = "random"
"""The reason of questions that were drawn at random: only these are a sample of all segments."""

UNDO = "undo"
"""The reason of a line that takes back the rater's answer before it."""

DECIMALS = 6
"""Those of a second as far as two times are the same."""


class Answer(NamedTuple):
    """A line of a table of ratings.

    Attributes:
        video: The video.
        start: The start of the interval in seconds.
        end: The end in seconds.
        name: The class.
        score: 1 for yes, 0 for no, or between them; None: skipped or taken back.
        rater: Who said it; empty where the table does not say.
        reason: Why it was asked; `UNDO` where the line takes back another.
        time: When it was said.
        line: The number of the line in its file.
    """

    video: str
    start: float
    end: float
    name: str
    score: float | None
    rater: str = ""
    reason: str = ""
    time: str = ""
    line: int = 0

    @property
    def question(self) -> tuple[str, float, float, str]:
        """What was asked: video, start, end and class."""
        return self.video, round(self.start, DECIMALS), round(self.end, DECIMALS), self.name


class Settled(NamedTuple):
    """What all raters together say about an interval and a class.

    Attributes:
        video: The video.
        start: The start of the interval in seconds.
        end: The end in seconds.
        name: The class.
        score: The rating, see `settle`; 0.5 where the raters disagree.
        raters: Those who have rated it.
        reason: Why it was asked first.
        tied: Whether as many raters say yes as no.
        line: The number of the last line that counts.
    """

    video: str
    start: float
    end: float
    name: str
    score: float
    raters: tuple[str, ...]
    reason: str = ""
    tied: bool = False
    line: int = 0


def settle(rows: Iterable[Answer]) -> list[Settled]:
    """Returns what several raters' answers say together.

    Of a rater's lines about the same interval and class the last one holds; without a score it says
    nothing. Then the majority of the raters decides between yes, above 0.5, and no: the score is
    the mean of theirs. As many yes as no are a disagreement.

    Args:
        rows: The lines, in the order of the file.

    Returns:
        One for each interval and class with a score, in the order of their first lines.

    Example:
        >>> ann = Answer("a", 0, 5, "dog", 1.0, "ann", "random")
        >>> bob = ann._replace(score=0.0, rater="bob")
        >>> eve = bob._replace(rater="eve")
        >>> [(found.score, found.tied) for found in settle([ann, bob])]
        [(0.5, True)]
        >>> [(found.score, found.raters) for found in settle([ann, bob, eve])]
        [(0.0, ('ann', 'bob', 'eve'))]
        >>> settle([ann, ann._replace(score=None, reason="undo")])
        []
    """
    first: dict[tuple[str, float, float, str], Answer] = {}
    last: dict[tuple[str, float, float, str], dict[str, Answer]] = {}
    for row in rows:
        known = first.setdefault(row.question, row)
        if known.reason == UNDO:
            first[row.question] = row
        last.setdefault(row.question, {})[row.rater] = row
    settled = []
    for question, by_rater in last.items():
        held = {rater: row for rater, row in by_rater.items() if row.score is not None}
        if not held:
            continue
        score, tied = _majority([row.score for row in held.values() if row.score is not None])
        line = max(row.line for row in held.values())
        settled.append(Settled(*question, score, tuple(held), first[question].reason, tied, line))
    return settled


def _majority(scores: Sequence[float]) -> tuple[float, bool]:
    """Returns the score of several raters, and whether as many say yes as no."""
    yes = [score for score in scores if score > 0.5]
    no = [score for score in scores if score < 0.5]
    if len(yes) == len(no):
        return 0.5, bool(yes)
    most = max(yes, no, key=len)
    return sum(most) / len(most), False


def header_of(path: str | os.PathLike[str], content: bytes | None = None) -> tuple[str, list[str]]:
    """Returns the delimiter of a table of ratings, and the names of its columns.

    Raises:
        pyseg.errors.DataError: It is no text table; the message names file and line.
        OSError: It cannot be read.
    """
    delimiter = find_delimiter(path, RATING_COLUMNS, content)
    _, fields = next(read_rows(path, delimiter, content), (1, []))
    return delimiter, [name.strip() for name in fields]


def read_answers(
    path: str | os.PathLike[str], content: bytes | None = None
) -> tuple[list[Answer], int]:
    """Reads a table of ratings.

    In a file of answers, with a column rater, a killed process may have left a part of the last
    line, which is left out.

    Args:
        path: The file.
        content: Its content, where that was read already.

    Returns:
        Its lines, and the length in bytes of what they come from.

    Raises:
        pyseg.errors.DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.
    """
    name = path_text(path)
    content = read_bounded(name) if content is None else content
    try:
        return list(_answers(name, content)), len(content)
    except DataError:
        whole = max(content.rfind(end) for end in (b"\n", b"\r")) + 1
        if whole in (0, len(content)) or not _has_raters(name, content):
            raise
        try:
            return list(_answers(name, content[:whole])), whole
        except DataError:
            pass
        raise


def _has_raters(path: str, content: bytes | None = None) -> bool:
    return ANSWER_COLUMNS[0] in header_of(path, content)[1]


def _answers(path: str, content: bytes | None = None) -> Iterator[Answer]:
    delimiter, columns = header_of(path, content)
    required = [[name] for name in RATING_COLUMNS]
    for row in read_table(
        path, required, delimiter=delimiter, optional=ANSWER_COLUMNS, content=content
    ):
        yield _answer(row, may_be_empty=ANSWER_COLUMNS[0] in columns)


def _answer(row: Row, may_be_empty: bool) -> Answer:
    """Returns the values of a line, which are checked."""
    skipped = may_be_empty and not row.fields["score"].strip()
    answer = Answer(
        video=row.text("video"),
        start=row.number("start"),
        end=row.number("end"),
        name=row.text("class"),
        score=None if skipped else row.number("score"),
        line=row.line,
        **{name: row.fields[name].strip() for name in ANSWER_COLUMNS},
    )
    interval_of(answer, row.path)
    return answer


def interval_of(answer: Answer | Settled, path: str | None = None) -> Interval:
    """Returns the interval of a line, whose values are checked.

    Raises:
        pyseg.errors.DataError: A value is out of its range; the message names file and line if
            there is a file.
    """
    source = "" if path is None else f"{path}, line {answer.line}"
    interval = Interval(*answer[:5], source)
    check_interval(interval)
    return interval


def read_ratings(path: str) -> AnnotationFile:
    """Reads a table with the columns video, start, end, class and score; times are in seconds.

    Commas, semicolons or tabs separate the fields. With a column rater it is a file of answers:
    `settle` says what they rate. What was only skipped, and what as many raters affirm as deny,
    which is noted, has no score. Other columns are ignored.

    Raises:
        pyseg.errors.DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.
    """
    found = AnnotationFile()
    if not _has_raters(path):
        for answer in _answers(path):
            found.add(interval_of(answer, path))
        return found
    rows, _ = read_answers(path)
    for row in rows:
        found.videos.setdefault(row.video, f"{path}, line {row.line}")
    settled = settle(rows)
    ties = [together for together in settled if together.tied]
    for together in settled:
        interval = interval_of(together, path)
        found.add(interval._replace(score=None) if together.tied else interval)
    rated = {together[:4] for together in settled}
    skipped = {row.question: row for row in rows if row.score is None and row.reason != UNDO}
    for question, row in skipped.items():
        if question not in rated:
            found.add(interval_of(row, path))
    if ties:
        one = ties[0]
        found.notes.append(
            f"raters disagree on {counted(len(ties), 'rating')}, left out, such as {one.name!r} in "
            f"{one.video!r} from {one.start:g} to {one.end:g} s ({path}, line {one.line})"
        )
    return found
