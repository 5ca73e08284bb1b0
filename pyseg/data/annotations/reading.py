"""Reading files of any of the known formats of annotations, recognized by content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pyseg._files import Paths as Paths
from pyseg._files import find_files
from pyseg._registry import unknown
from pyseg.data._tables import find_delimiter, is_numeric, read_rows, shown
from pyseg.data.annotations.answers import RATING_COLUMNS, read_ratings
from pyseg.data.annotations.elan import ElanClasses, read_elan
from pyseg.data.annotations.interval import AnnotationFile
from pyseg.data.annotations.label_studio import read_label_studio
from pyseg.data.annotations.tables import (
    VIA_COLUMNS,
    VIA_HEADER,
    read_audacity,
    read_via,
)
from pyseg.data.records import OnError, check_on_error
from pyseg.errors import ArgumentError, DataError

AnnotationFormat = Literal["ratings", "via", "label_studio", "audacity", "elan"]

_HEAD = 4096  # bytes that decide the format
_EXPECTED = (
    f"a table with the columns {','.join(RATING_COLUMNS)}, VIA's temporal segments as CSV, Label "
    "Studio's JSON, Audacity's labels or an ELAN file"
)


def read_annotations(
    paths: Paths,
    *,
    format: AnnotationFormat | None = None,
    fps: float | None = None,
    elan_classes: ElanClasses = "tiers",
    on_error: OnError = "raise",
) -> AnnotationFile:
    r"""Reads what people rated videos with.

    * "ratings": pyseg's own table ``video,start,end,class,score``.
    * "via": VIA's export "Only Temporal Segments as CSV".
    * "label_studio": Label Studio's export "JSON" of TimelineLabels, whose times are the numbers of
      frames.
    * "audacity": Audacity's label files, each with the name of its video.
    * "elan": ELAN's .eaf files.

    All but the first only mark where a class is: the score is 1.

    Args:
        paths: A file, a folder of files, a glob, or a list of files.
        format: The format of all files; default: each file's content decides.
        fps: Frames a second, which Label Studio's numbers of frames need.
        elan_classes: Whether the names of the "tiers" or the "values" of annotations are ELAN's
            classes.
        on_error: "raise" at a file that is malformed or of no known format, such as an empty one,
            or "skip" and note it.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: A file is of no known format or malformed, or all of them are; the
            message names file and line.
        pyseg.errors.ArgumentError: ``fps`` is missing, or an argument is out of range.
        OSError: A file cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "holiday.txt")
        >>> _ = path.write_text("2.0\t6.5\tdog\n")
        >>> read_annotations(path).intervals[0][:5]
        ('holiday', 2.0, 6.5, 'dog', 1.0)
    """
    if format is not None and format not in get_args(AnnotationFormat):
        known = get_args(AnnotationFormat)
        raise ArgumentError(f"format: {unknown('format of annotations', format, known)}")
    if elan_classes not in get_args(ElanClasses):
        raise ArgumentError(f"elan_classes: expected tiers or values, found {elan_classes!r}")
    check_on_error(on_error)
    if fps is not None and not 0 < fps < float("inf"):
        raise ArgumentError(f"annotation_fps: expected above 0, found {fps}")
    readers: dict[str, Callable[[str], AnnotationFile]] = {
        "ratings": read_ratings,
        "via": read_via,
        "label_studio": lambda path: read_label_studio(path, fps),
        "audacity": read_audacity,
        "elan": lambda path: read_elan(path, elan_classes),
    }
    found = AnnotationFile()
    missing = "expected a folder with files of annotations, found none"
    files = find_files(paths, _files_in, missing) if paths != [] else []
    problems: list[DataError] = []
    for path in files:
        try:
            found.extend(readers[format or _recognize(path)](path))
        except DataError as error:
            problems.append(error)
            if on_error == "raise" or len(problems) == len(files):
                raise
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        found.notes.append(f"left out files of annotations: {problems[0]}{more}")
    return found


def _files_in(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).rglob("[!.]*") if path.is_file())


def _recognize(path: str) -> str:
    """Returns the name of a file's format.

    Raises:
        pyseg.errors.DataError: It is unknown.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head and Path(path).suffix.lower() == ".txt":
        return "audacity"  # of a video without labels
    if not head:
        raise DataError(f"{path}: expected {_EXPECTED}, found an empty file")
    if head[:1] == b"<" or head[:4] in (b"\xff\xfe<\0", b"\xfe\xff\0<"):
        return "elan"
    if head[:1] in b"[{":
        return "label_studio"
    line, fields = next(read_rows(path, "\t"), (1, [""]))
    text = "\t".join(fields)
    if text.startswith((VIA_HEADER, "# Exported using VGG")) or text.startswith(VIA_COLUMNS[0]):
        return "via"
    delimiter = find_delimiter(path, RATING_COLUMNS[:3])
    if {*RATING_COLUMNS[:3]} <= {name.strip(' "') for name in text.split(delimiter)}:
        return "ratings"
    if len(fields) >= 2 and all(map(is_numeric, fields[:2])):
        return "audacity"
    raise DataError(f"{path}, line {line}: expected {_EXPECTED}; found {shown(text)}")
