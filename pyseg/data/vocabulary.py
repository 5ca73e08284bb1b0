"""Vocabulary files: the names of all classes, and the classes whose segments are rated.

Their columns are those of the files that YouTube-8M publishes.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pyseg._files import write_file
from pyseg._paths import path_text
from pyseg.data._tables import read_table
from pyseg.errors import DataError

FILE = "vocabulary.csv"
"""The name of the file of all classes, beside records."""

SEGMENT_FILE = "segment_vocabulary.csv"
"""The name of the file of the rated classes, beside records and in a run."""


class SegmentVocabulary(NamedTuple):
    """The classes whose segments are rated.

    Attributes:
        classes: Their numbers in the vocabulary of the videos, in the order of the file.
        names: Their names.
    """

    classes: list[int]
    names: list[str]


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Returns the names of all classes, by number, from a ``vocabulary.csv``.

    The columns Index and Name are read; the name of a nameless class (the file has some) is its
    KnowledgeGraphId, or else its number. The lines may be in any order.

    Raises:
        pyseg.errors.DataError: The file is malformed, names a class twice, or leaves one out.
        OSError: It cannot be read.
    """
    classes, names = _read(path)
    if sorted(classes) != list(range(len(classes))):
        missing = min(set(range(len(classes))) - set(classes))
        raise DataError(
            f"{os.fspath(path)}: expected the classes 0 to {len(classes) - 1}, one a line; "
            f"class {missing} is missing"
        )
    return [name for _, name in sorted(zip(classes, names, strict=True))]


def read_segment_vocabulary(path: str | os.PathLike[str]) -> SegmentVocabulary:
    """Returns the rated classes from a ``segment_vocabulary.csv``.

    The challenge's ``segment_label_ids.csv``, which has only the column Index, is accepted too.

    Raises:
        pyseg.errors.DataError: The file is malformed or names a class twice.
        OSError: It cannot be read.
    """
    return SegmentVocabulary(*_read(path))


def write_segment_vocabulary(
    path: str | os.PathLike[str], classes: Sequence[int], names: Sequence[str] | None = None
) -> None:
    """Writes a file that `read_segment_vocabulary` reads.

    Args:
        path: The file.
        classes: The rated classes.
        names: The names of all classes, by number; default: no names.

    Raises:
        OSError: It cannot be written.
    """
    header = ["Index"] if names is None else ["Index", "Name"]
    _write(path, [header, *([c] if names is None else [c, names[c]] for c in classes)])


def write_vocabulary(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Writes a file that `read_vocabulary` reads.

    Args:
        path: The file.
        names: The names of all classes, by number.

    Raises:
        OSError: It cannot be written.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "vocabulary.csv")
        >>> write_vocabulary(path, ["dog", "dog, barking"])
        >>> read_vocabulary(path)
        ['dog', 'dog, barking']
    """
    _write(path, [["Index", "Name"], *enumerate(names)])


def _write(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> None:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_file(Path(path_text(path)), table.getvalue().encode())


def _read(path: str | os.PathLike[str]) -> tuple[list[int], list[str]]:
    names: dict[int, str] = {}
    for row in read_table(path, [["Index"]], optional=["Name", "KnowledgeGraphId"]):
        number = row.integer("Index")
        if number in names:
            row.fail(f"every class once, found class {number} again")
        names[number] = row.fields["Name"] or row.fields["KnowledgeGraphId"] or str(number)
    if not names:
        raise DataError(f"{os.fspath(path)}: expected at least one class, found none")
    return list(names), list(names.values())
