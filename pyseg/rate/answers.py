"""The file of answers, which several raters may write at the same time; see `AnswerFile`."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from pyseg._files import atomic_write, locked, why_not_a_file
from pyseg._paths import path_text
from pyseg.data._tables import shown
from pyseg.data.annotations import Answer, Settled, settle
from pyseg.data.annotations.answers import (
    ANSWER_COLUMNS,
    DECIMALS,
    RATING_COLUMNS,
    UNDO,
    header_of,
    interval_of,
    read_answers,
)
from pyseg.data.annotations.interval import LARGEST_FILE
from pyseg.data.records import why_not_an_id
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError

__all__ = ["UNDO", "Answer", "AnswerFile", "Settled", "lines_that_stand", "settle"]

_HEADER = ",".join((*RATING_COLUMNS, *ANSWER_COLUMNS)).encode() + b"\n"
_KNOWN = 256  # bytes that tell whether a file still has what was read before
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"
_NOT_UTF8 = b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b"  # UTF-16 and gzip


class AnswerFile:
    r"""The answers of raters in a table, to which every answer is appended at once.

    The columns are ``video,start,end,class,score,rater,reason,time``, with times of the video in
    seconds, and the score empty for a skipped question. An answer is on the disk when `add`
    returns. Several processes may have the same file: a lock keeps their lines apart. What a killed
    process has left of its last line is removed. A table that a person has written goes on with its
    own delimiter and line ends; where it has only the columns of ratings, it gets the others.

    Args:
        path: The file, which is created if it is missing.
        rater: The name of the rater.

    Raises:
        pyseg.errors.ArgumentError: The name is no line of text.
        pyseg.errors.DataError: The file is no such table; the message names file and line.
        pyseg.errors.MissingFileError: There is no such folder.
        pyseg.errors.UserError: The path is something else than a regular file.
        OSError: The file cannot be read or written; it is as it was before.

    Example:
        >>> import tempfile
        >>> answers = AnswerFile(Path(tempfile.mkdtemp(), "ratings.csv"), "ann")
        >>> answers.add("clip", 0, 5, "dog", 1, "random")
        >>> answers.add("clip", 5, 10, "dog", None, "change")
        >>> answers.undo().start
        5.0
        >>> [(row.start, row.score, row.reason) for row in answers.rows()]
        [(0.0, 1.0, 'random'), (5.0, None, 'change'), (5.0, None, 'undo')]
        >>> [(found.name, found.score) for found in settle(answers.rows())]
        [('dog', 1.0)]
    """

    def __init__(self, path: str | os.PathLike[str], rater: str) -> None:
        if (wrong := why_not_an_id(rater)) is not None:
            raise ArgumentError(f"rater: {wrong}")
        self.path, self.rater = Path(path_text(path)), rater
        if (problem := why_not_a_file(self.path)) is not None:
            raise UserError(f"{self.path}: {problem}")
        if not self.path.parent.is_dir():
            raise MissingFileError(f"{self.path}: expected a folder {self.path.parent}, found none")
        self._lock = threading.Lock()
        self._forget()
        with self._opened():
            pass

    def rows(self) -> list[Answer]:
        """Returns the lines of all raters that are known, in the order of the file."""
        with self._lock:
            return list(self._rows)

    def refresh(self) -> bool:
        """Reads what other processes have appended; returns whether the lines have changed.

        Raises:
            pyseg.errors.DataError: Somebody has changed the file to something else.
            OSError: It cannot be read.
        """
        before = self.rows()
        with self._opened():
            return before != self._rows

    def add(
        self, video: str, start: float, end: float, name: str, score: float | None, reason: str
    ) -> None:
        """Appends an answer.

        Args:
            video: The video.
            start: The start of the segment in seconds.
            end: Its end in seconds.
            name: The class.
            score: 1 for yes, 0 for no; None: skipped.
            reason: Why it was asked.

        Raises:
            pyseg.errors.ArgumentError: A value is out of its range.
            pyseg.errors.DataError: Somebody has changed the file to something else.
            OSError: It cannot be written; it is as it was before.
        """
        if reason == UNDO:
            raise ArgumentError(f"reason: expected another than {UNDO!r}, which undo() writes")
        times = round(float(start), DECIMALS), round(float(end), DECIMALS)
        answer = Answer(video, *times, name, score, self.rater, reason)
        _check(answer)
        with self._opened() as file:
            self._append(file, answer)

    def undo(self) -> Answer | None:
        """Takes back the rater's last answer that is not taken back yet.

        It appends a line with what the rater had said before about the same question.

        Returns:
            The line that was taken back; None: there is none.

        Raises:
            pyseg.errors.DataError: Somebody has changed the file to something else.
            OSError: It cannot be written; it is as it was before.
        """
        with self._opened() as file:
            held = lines_that_stand(self._rows).get(self.rater)
            if not held:
                return None
            taken = held.pop()
            before = [row.score for row in held if row.question == taken.question]
            score = before[-1] if before else None
            self._append(file, taken._replace(score=score, reason=UNDO))
            return taken

    def _forget(self) -> None:
        self._rows: list[Answer] = []
        self._size = 0  # of what was read
        self._lines = 0  # the line ends in it
        self._known = b""  # its last bytes
        self._table = _Table()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        """Opens and locks the file, of which that is read that is new.

        Raises:
            pyseg.errors.DataError: It is no table of answers.
            OSError: It cannot be read or written.
        """
        with self._lock, contextlib.ExitStack() as stack:
            while True:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                file = stack.enter_context(open(descriptor, "r+b", buffering=0))
                stack.enter_context(locked(file))
                if self._is_at_path(file) and self._read(file):
                    break
                stack.close()  # the path has another file now
            yield file

    def _is_at_path(self, file: io.FileIO) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        return False

    def _read(self, file: io.FileIO) -> bool:
        """Reads what is new; returns False if the file was replaced to get more columns."""
        since = self._size - len(self._known)
        new = self._bytes(file, since)
        if self._size and new.startswith(self._known):
            with contextlib.suppress(DataError):  # it was changed: all of it is read again
                self._take(file, self._table.header + new[len(self._known) :])
                return True
        self._forget()
        content = self._bytes(file, 0)
        if _HEADER.startswith(content):  # a new file, or what a killed process has left of one
            self._write(file, 0, _HEADER)
            content = _HEADER
        if content.startswith(_NOT_UTF8):
            raise DataError(
                f"{self.path}: expected UTF-8 text, found UTF-16 or gzip; save it as UTF-8, or "
                "choose another file"
            )
        self._table = _Table.of(self.path, content)
        if not self._table.has_answers:
            self._add_columns(content, os.fstat(file.fileno()).st_mode)
            return False
        self._take(file, content)
        return True

    def _take(self, file: io.FileIO, content: bytes) -> None:
        """Takes the lines of new content, which begins with the names of the columns.

        A part of a line, which a killed process has left at the end, is removed from the file.
        """
        rows, size = read_answers(self.path, content)
        earlier = max(self._lines - 1, 0)
        self._rows += [row._replace(line=row.line + earlier) for row in rows]
        before = self._size - len(self._table.header) if self._size else 0
        self._lines = earlier + len(_LINE_END.findall(content[:size]))
        self._size = before + size
        if size < len(content):
            file.truncate(self._size)
        self._known = self._bytes(file, max(self._size - _KNOWN, 0))

    def _append(self, file: io.FileIO, answer: Answer) -> None:
        time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = self._table.line(answer._replace(time=time))
        if self._known[-1:] not in (b"\n", b"\r"):  # of a person's editor
            line = self._table.end + line
        self._write(file, self._size, line)
        self._read(file)

    def _write(self, file: io.FileIO, place: int, content: bytes) -> None:
        """Writes all of the content at the end of the file, and to the disk, or nothing."""
        try:
            file.seek(place)
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException as error:
            with contextlib.suppress(OSError):
                file.truncate(place)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            raise

    def _bytes(self, file: io.FileIO, place: int) -> bytes:
        """Returns the content of the file from a place on."""
        file.seek(place)
        content = file.read(LARGEST_FILE + 1) or b""
        if len(content) > LARGEST_FILE:
            raise DataError(f"{self.path}: expected at most {LARGEST_FILE} bytes, found more")
        return content

    def _add_columns(self, content: bytes, mode: int) -> None:
        """Replaces a table of ratings by one that has the other columns too.

        Raises:
            pyseg.errors.DataError: A line is malformed.
            OSError: The folder cannot be written to; the file is as it was before.
        """
        rows, _ = read_answers(self.path, content)
        wider = self._table.with_answers(content)
        if read_answers(self.path, wider)[0] != rows:
            raise DataError(
                f"{self.path}: expected the columns {','.join(ANSWER_COLUMNS)} at the end, found "
                "none; add them, or choose another file"
            )
        with atomic_write(self.path) as new:
            os.fchmod(new.fileno(), stat.S_IMODE(mode))
            new.write(wider)


def lines_that_stand(rows: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Returns the lines of each rater that were not taken back."""
    standing: dict[str, list[Answer]] = {}
    for row in rows:
        lines = standing.setdefault(row.rater, [])
        if row.reason != UNDO:
            lines.append(row)
        elif lines:
            lines.pop()
    return standing


class _Table(NamedTuple):
    """How a table is written.

    Attributes:
        columns: The names of its columns.
        delimiter: What is between the fields.
        end: What ends a line.
    """

    columns: Sequence[str] = (*RATING_COLUMNS, *ANSWER_COLUMNS)
    delimiter: str = ","
    end: bytes = b"\n"

    @staticmethod
    def of(path: Path, content: bytes) -> _Table:
        """Returns that of a table of ratings.

        Raises:
            pyseg.errors.DataError: Columns are missing, or in an order that cannot be continued.
        """
        delimiter, columns = header_of(path, content)
        if (remedy := _remedy(columns)) is not None:
            raise DataError(
                f"{path}, line 1: expected the columns {','.join(RATING_COLUMNS)}, and at the end "
                f"{','.join(ANSWER_COLUMNS)} or the first of these, found "
                f"{shown(','.join(columns))}; {remedy}"
            )
        end = _LINE_END.search(content)
        return _Table(columns, delimiter, end[0] if end else b"\n")

    @property
    def has_answers(self) -> bool:
        """Whether it has all columns of answers."""
        return ANSWER_COLUMNS[-1] in self.columns

    @property
    def header(self) -> bytes:
        """The line with the names of the columns."""
        return self._joined(self.columns)

    def line(self, answer: Answer) -> bytes:
        """Returns the line of an answer."""
        times = [repr(number).removesuffix(".0") for number in (answer.start, answer.end)]
        score = "" if answer.score is None else repr(float(answer.score)).removesuffix(".0")
        said = (answer.rater, answer.reason, answer.time)
        values = dict(zip(RATING_COLUMNS, (answer.video, *times, answer.name, score), strict=True))
        values |= zip(ANSWER_COLUMNS, said, strict=True)
        return self._joined([values.get(name, "") for name in self.columns])

    def _joined(self, fields: Sequence[str]) -> bytes:
        if self.delimiter == "\t":  # without quotes
            return "\t".join(fields).encode() + self.end
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="").writerow(fields)
        return text.getvalue().encode() + self.end

    def with_answers(self, content: bytes) -> bytes:
        """Returns the content of a table with the columns of answers at the end of every line."""
        new = [name for name in ANSWER_COLUMNS if name not in self.columns]
        names = "".join(self.delimiter + name for name in new).encode()
        lines, quotes = [], 0
        for line in content.splitlines(keepends=True):  # at LF, CR LF and CR
            text = line.rstrip(b"\r\n")
            quotes += line.count(b'"') if self.delimiter != "\t" else 0
            if not text.removeprefix(_BOM).strip(b" ") or quotes % 2:  # empty, or to be continued
                lines.append(line)
                continue
            lines.append(text + names + (line[len(text) :] or self.end))
            names = self.delimiter.encode() * len(new)
        return b"".join(lines)


def _remedy(columns: Sequence[str]) -> str | None:
    """Returns how a table can get columns that can be continued; None: they can be.

    Only if the time is last, a part of a line cannot be taken for a whole one.
    """
    if not {*RATING_COLUMNS} <= {*columns}:
        return "choose another file"
    own = [name for name in columns if name in ANSWER_COLUMNS]
    first = [*itertools.takewhile(own.__contains__, ANSWER_COLUMNS)]
    if sorted(own) != sorted(first):  # without those before them, or twice
        wrong = dict.fromkeys(x for x in own if x not in first or own.count(x) > 1)
        return f"rename or delete {_named(wrong)}"
    if own != first:
        return f"move the columns {','.join(first)} to the end, in this order"
    behind = [x for x in columns[columns.index(own[0]) :] if x not in own] if own else []
    if not behind:
        return None
    if {*behind} & {*RATING_COLUMNS}:
        return f"move {_named(behind)} before {own[0]}"
    return f"delete {_named(behind)}, or move {'them' if behind[1:] else 'it'} before {own[0]}"


def _named(columns: Iterable[str]) -> str:
    names = list(columns)
    return f"the column{'s' if names[1:] else ''} {','.join(names)}"


def _check(answer: Answer) -> None:
    """Raises an ArgumentError if a value is out of its range."""
    for name, text in (("video", answer.video), ("reason", answer.reason)):
        if (wrong := why_not_an_id(text)) is not None:
            raise ArgumentError(f"{name}: {wrong}")
    try:
        interval_of(answer)
    except DataError as error:
        raise ArgumentError(str(error)) from None
