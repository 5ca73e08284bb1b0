"""Reading the small text tables that come with a collection.

See :func:`read_table`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NoReturn, cast

from pyseg.errors import DataError


@dataclass(frozen=True)
class Row:
    """A line of a table, which knows where it stands.

    Attributes:
        path: The file.
        line: Its line number, from 1.
        fields: The text of each column that the line has.
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
        """Returns a column that must be a whole number, at least 0."""
        value = self.text(column)
        if not (value.isascii() and value.isdigit()):
            self.fail(f"{column} to be a whole number, found {value!r}")
        return int(value)

    def number(self, column: str) -> float:
        """Returns a column that must be a finite number."""
        value = self.text(column)
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            self.fail(f"{column} to be a number, found {value!r}")
        return number


@contextlib.contextmanager
def open_unpacked(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for reading; gzip is seen by content.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        compressed = file.peek(2)[:2] == b"\x1f\x8b"
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[Sequence[str]],
    *,
    delimiter: str = ",",
    optional: Sequence[str] = (),
    header: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Yields the lines of a table whose first line names the columns; gzip is seen by content.

    Args:
        path: The file, UTF-8.
        columns: The columns that must be there; each may go by several names, and the rows know it
            by the first.
        delimiter: ``","``, with quotes, or a tab, without.
        optional: Columns that may be there, empty where they are not.
        header: The columns of a file whose first line does not name them.

    Raises:
        DataError: A column is missing, a line has too few or too many fields, or the file is not
            text.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    with open_unpacked(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        if delimiter == "\t":
            reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            if header is None:
                header = next(reader, [])
            places = {}
            for names in columns:
                found = [header.index(name) for name in names if name in header]
                if not found:
                    wanted = " or ".join(names)
                    raise DataError(
                        f"{name}, line 1: expected a column {wanted}, found {', '.join(header)}"
                    )
                places[names[0]] = found[0]
            places |= {column: header.index(column) for column in optional if column in header}
            empty = dict.fromkeys(optional, "")
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(
                        f"{name}, line {reader.line_num}: expected {len(header)} fields, "
                        f"found {len(fields)}"
                    )
                values = {column: fields[place] for column, place in places.items()}
                yield Row(name, reader.line_num, empty | values)
        except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{name}, line {reader.line_num}: not a text table: {error}") from error
