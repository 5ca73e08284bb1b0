"""Reading text tables: those of a collection, submissions, lists of ids.

All of them are read by :func:`read_rows` as CSV; :func:`read_table` finds columns by name.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NoReturn, cast

from pyseg import _remote
from pyseg._paths import path_text
from pyseg.errors import DataError

MAX_LINE = 2**27
"""The longest line in characters: 100,000 segments of videos with ids of 1,024 bytes."""

DAMAGED_GZIP = EOFError, gzip.BadGzipFile, zlib.error
"""The exceptions that reading damaged gzip data raises."""

_UTF16 = b"\xff\xfe", b"\xfe\xff"
_UTF32 = b"\xff\xfe\0\0", b"\0\0\xfe\xff"


def shown(text: str) -> str:
    """Quotes the beginning of a text for a message."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def is_numeric(text: str) -> bool:
    """Returns whether a text is a number, as `float` reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def whole_number(text: str) -> int | None:
    """Returns the value of up to 9 ASCII digits, None for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


@dataclass(frozen=True)
class Row:
    """A line of a table, with its place for messages.

    Attributes:
        path: The file.
        line: Its line number, from 1.
        fields: The text of each column of the line.
    """

    path: str
    line: int
    fields: dict[str, str]

    def fail(self, expected: str) -> NoReturn:
        """Raises a DataError that names file and line."""
        raise DataError(f"{self.path}, line {self.line}: expected {expected}")

    def text(self, column: str) -> str:
        """Returns a column that must not be empty."""
        value = self.fields[column].strip()
        if not value:
            self.fail(f"a value for {column}, found none")
        return value

    def integer(self, column: str) -> int:
        """Returns a column that must be a whole number of at most 9 digits."""
        value = self.text(column)
        number = whole_number(value)
        if number is None:
            limit = " of at most 9 digits" if value.isdigit() else ""
            self.fail(f"{column} to be a whole number{limit}, found {shown(value)}")
        return number

    def number(self, column: str) -> float:
        """Returns a column that must be a finite number."""
        value = self.text(column)
        try:
            number = float(value if "_" not in value else "nan")
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            self.fail(f"{column} to be a number, found {shown(value)}")
        return number


@contextlib.contextmanager
def open_unpacked(path: str | os.PathLike[str], content: bytes | None = None) -> Iterator[BinaryIO]:
    """Opens a file for reading; gzip is recognised by content.

    Args:
        path: The file.
        content: Its content, where that was read already.

    Raises:
        OSError: It cannot be read. Reading it may also raise `DAMAGED_GZIP`.
    """
    of_memory = None if content is None else io.BufferedReader(io.BytesIO(content))
    with of_memory or _remote.open_file(path_text(path, remote=True)) as file:
        compressed = cast(io.BufferedReader, file).peek(2)[:2] == b"\x1f\x8b"
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file


def is_zlib(head: bytes) -> bool:
    """Returns whether the first bytes of a file are those of zlib data (RFC 1950), not gzip."""
    if len(head) < 2 or head[0] & 15 != 8 or int.from_bytes(head[:2], "big") % 31:
        return False
    with contextlib.suppress(zlib.error):
        zlib.decompressobj().decompress(head)
        return True
    return False


class _Lines:
    """The lines of a text file, with their ends, which may be LF, CR LF or CR.

    The text must be UTF-8, or UTF-16 with a byte order mark, without NUL.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self.number = 0
        """The number of the last line, from 1."""
        try:
            start = cast(io.BufferedReader, file).peek(64)[:64]
        except DAMAGED_GZIP:
            start = b""  # as for an empty file: reading a line raises the error
        self._start = start
        # Invalid bytes become surrogates, so that the error can name their line.
        self._encoding = "utf-16" if start[:2] in _UTF16 else "utf-8-sig"
        self._text = io.TextIOWrapper(file, self._encoding, "surrogateescape", newline="")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number += 1
        try:
            line = self._text.readline(MAX_LINE)
        except DAMAGED_GZIP as error:
            self.fail(f"expected more text, found damaged gzip data: {error}")
        except UnicodeError as error:
            self.fail(f"expected {self._encoding.upper()} text: {error}")
        if not line:
            raise StopIteration
        if len(line) == MAX_LINE:
            self.fail(f"expected lines of less than {MAX_LINE} characters")
        if "\0" in line:
            self.fail(f"expected text, found {self._other_kind() or f'a NUL in {shown(line)}'}")
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) & 0xFF
                text = line.encode(errors="surrogateescape").decode(errors="replace")
                found = f"the byte 0x{byte:02x} in {shown(text)}; save it as UTF-8"
                self.fail(f"expected UTF-8 text, found {self._other_kind() or found}")
        return line

    def _other_kind(self) -> str:
        """Returns the kind of a file that is not text, if its first bytes identify it."""
        if self._start[:4] in _UTF32:
            return "UTF-32"
        return "what looks like zlib-compressed data" if is_zlib(self._start) else ""

    def fail(self, problem: str) -> NoReturn:
        raise DataError(f"{self.name}, line {self.number}: {problem}")

    def quoted(self, line: str, delimiter: str) -> list[str]:
        """Returns the fields of a line with quotes, which may continue on the next lines."""
        limit = csv.field_size_limit(MAX_LINE)  # global to the process
        try:
            rest = itertools.chain([line], self)
            return next(csv.reader(rest, strict=True, delimiter=delimiter))
        except csv.Error as error:
            self.fail(f"expected quotes as CSV has them, found: {error}")
        finally:
            csv.field_size_limit(limit)


def read_rows(
    path: str | os.PathLike[str], delimiter: str = ",", content: bytes | None = None
) -> Iterator[tuple[int, list[str]]]:
    r"""Yields the lines of a table, except empty ones: their number and their fields.

    The format is CSV (RFC 4180): a field in double quotes may hold commas, line ends and doubled
    quotes. Lines end with LF, CR LF or CR. Gzip is recognised by content.

    Args:
        path: The file, UTF-8, or UTF-16 with a byte order mark.
        delimiter: ``","`` or ``";"``, with quotes, or a tab, without.
        content: The content of the file, where that was read already.

    Raises:
        DataError: The file is not such a text, or a line is too long; the message names file
            and line.
        OSError: The file cannot be read.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "table.csv")
        >>> with open(path, "w") as file:
        ...     _ = file.write('a,b c\n"d, ""e"" ",f\n')
        >>> list(read_rows(path))
        [(1, ['a', 'b c']), (2, ['d, "e" ', 'f'])]
    """
    with open_unpacked(path, content) as file:
        lines = _Lines(path_text(path, remote=True), file)
        for line in lines:
            number = lines.number
            if not line.strip(" \r\n"):
                continue
            if delimiter != "\t" and '"' in line:
                yield number, lines.quoted(line, delimiter)
            else:  # the result of csv.reader, in a third of the time
                yield number, line.rstrip("\r\n").split(delimiter)


def read_ids(path: str | os.PathLike[str]) -> set[str]:
    """Returns the ids of a list: the first column of any table that `read_rows` reads.

    Raises:
        DataError: It is not a text table; the message names file and line.
        OSError: It cannot be read.
    """
    return {fields[0].strip() for _, fields in read_rows(path)} - {""}


def find_delimiter(
    path: str | os.PathLike[str], columns: Iterable[str], content: bytes | None = None
) -> str:
    """Returns the character between the fields of a table: a comma, a semicolon or a tab.

    It is the one that splits the first line into fields with these names of columns; if none does,
    the comma.

    Args:
        path: The file, see `read_rows`.
        columns: The names of some columns, without these characters.
        content: See `read_rows`.

    Raises:
        DataError: It is not a text table; the message names file and line.
        OSError: It cannot be read.
    """
    _, fields = next(read_rows(path, "\t", content), (1, []))
    line = "\t".join(fields)
    for delimiter in ",;\t":
        if {*columns} <= {name.strip(' "') for name in line.split(delimiter)}:
            return delimiter
    return ","


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[Sequence[str]],
    *,
    delimiter: str = ",",
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
    content: bytes | None = None,
) -> Iterator[Row]:
    """Yields the lines of a table whose first line names the columns.

    Args:
        path: The file, see `read_rows`.
        columns: The required columns, each with its possible names; rows use the first.
        delimiter: See `read_rows`.
        optional: Optional columns; empty if missing.
        header: The columns of a file with as many, whose first line names none of `columns`.
        content: See `read_rows`.

    Raises:
        DataError: A column is missing, a line has too few or too many fields, or the file is not
            a text table; the message names file and line.
        OSError: The file cannot be read.
    """
    name = path_text(path, remote=True)
    rows = read_rows(path, delimiter, content)
    line, first = next(rows, (1, []))
    found = [name.strip() for name in first]
    known = {column for names in columns for column in names}
    if header is not None and not known & set(found) and len(found) == len(header):
        rows = itertools.chain([(line, first)], rows)
        found = list(header)
    places = {}
    for names in columns:
        at = [found.index(column) for column in names if column in found]
        if not at:
            raise DataError(
                f"{name}, line {line}: expected a column {' or '.join(names)}, "
                f"found {shown(', '.join(found))}"
            )
        places[names[0]] = at[0]
    places |= {column: found.index(column) for column in optional if column in found}
    empty = dict.fromkeys(optional, "")
    for line, fields in rows:
        if len(fields) != len(found):
            raise DataError(
                f"{name}, line {line}: expected {len(found)} fields, found {len(fields)}"
            )
        yield Row(name, line, empty | {column: fields[at] for column, at in places.items()})
