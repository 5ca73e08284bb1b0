"""Readers of annotations that are tables of VIA and Audacity, and of the labels of videos."""

from __future__ import annotations

from typing import Any

from pyseg._containers import parse_json
from pyseg._text import counted
from pyseg.data._tables import Row, find_delimiter, read_rows, read_table, shown
from pyseg.data.annotations.interval import AnnotationFile, Interval, check_name, stem
from pyseg.errors import DataError

LABEL_COLUMNS = ("video", "class")
VIA_COLUMNS = (
    "metadata_id",
    "file_list",
    "temporal_segment_start",
    "temporal_segment_end",
    "metadata",
)
VIA_HEADER = "# CSV_HEADER = "
_VIA_TIMELINE = "TEMPORAL-SEGMENTS"  # the attribute of VIA's own timelines


def read_video_labels(path: str) -> list[tuple[str, str, str]]:
    """Returns video, class, and the place for messages of every line of a table of labels.

    Raises:
        pyseg.errors.DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.
    """
    labels = []
    delimiter = find_delimiter(path, LABEL_COLUMNS)
    for row in read_table(path, [[name] for name in LABEL_COLUMNS], delimiter=delimiter):
        where = f"{row.path}, line {row.line}"
        check_name("class", row.text("class"), f"{where}: ")
        labels.append((row.text("video"), row.text("class"), where))
    return labels


def read_audacity(path: str) -> AnnotationFile:
    r"""Reads a label file of Audacity; the video has the file's name, the classes are the labels.

    A line has start and end in seconds and the text of the label, with tabs between them. A line
    that begins with a backslash has the frequencies of the label before it, and is ignored. Points,
    which end where they start, and labels without text are left out and counted.

    Source: https://manual.audacityteam.org/man/importing_and_exporting_labels.html

    Raises:
        pyseg.errors.DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.
    """
    video = stem(path)
    found = AnnotationFile(videos={video: path})
    points = unnamed = 0
    for line, fields in read_rows(path, "\t"):
        if fields[0] == "\\":
            continue
        if len(fields) < 3:
            raise DataError(
                f"{path}, line {line}: expected start, end and label with tabs between them, "
                f"found {shown(' '.join(fields))}"
            )
        label = " ".join(fields[2:]).strip()
        row = Row(path, line, {"start": fields[0], "end": fields[1], "label": label})
        start, end = row.number("start"), row.number("end")
        points += start == end
        unnamed += start != end and not label
        if start != end and label:
            source = f"{path}, line {line}"
            found.add(Interval(video, start, end, row.text("label"), source=source))
    found.left_out(points, "point", path, " in time")
    found.left_out(unnamed, "label", path, " without text")
    return found


def read_via(path: str) -> AnnotationFile:
    """Reads VIA's export "Only Temporal Segments as CSV"; the classes are the timelines.

    They are the values of the attribute TEMPORAL-SEGMENTS, or of the only attribute there is. Rows
    without start or end, of regions of a frame, are left out.

    Source: https://gitlab.com/vgg/via, via-3.x.y/src/js/_via_import_export.js

    Raises:
        pyseg.errors.DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.
    """
    found = AnnotationFile()
    header = list(VIA_COLUMNS)
    others = 0
    for line, fields in read_rows(path):
        if fields[0].startswith(VIA_HEADER):
            header = [name.strip() for name in [fields[0][len(VIA_HEADER) :], *fields[1:]] if name]
            if missing := [name for name in VIA_COLUMNS if name not in header]:
                raise DataError(
                    f"{path}, line {line}: expected VIA's export of only temporal segments, with "
                    f"a column {missing[0]}, found {shown(', '.join(header))}"
                )
        if fields[0].startswith("#") or fields[0].strip() == VIA_COLUMNS[0]:
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {line}: expected {len(header)} fields, found {len(fields)}"
            )
        row = Row(path, line, dict(zip(header, fields, strict=True)))
        if _is_no_segment(row):
            others += 1
            continue
        found.add(
            Interval(
                video=_via_video(row),
                start=row.number("temporal_segment_start"),
                end=row.number("temporal_segment_end"),
                name=_via_class(row),
                source=f"{path}, line {line}",
            )
        )
    if others:
        found.notes.append(f"{path}: left out {counted(others, 'row')} without a temporal segment")
    return found


def _is_no_segment(row: Row) -> bool:
    times = (row.fields["temporal_segment_start"], row.fields["temporal_segment_end"])
    return any(time.strip() in ("", "undefined", "null") for time in times)


def _via_video(row: Row) -> str:
    files = _json(row, "file_list")
    if not isinstance(files, list) or not files or not isinstance(files[0], str):
        row.fail(f"a JSON list of file names in file_list, found {shown(row.text('file_list'))}")
    return files[0]


def _via_class(row: Row) -> str:
    attributes = _json(row, "metadata")
    if not isinstance(attributes, dict):
        row.fail(f"a JSON object in metadata, found {shown(row.text('metadata'))}")
    if _VIA_TIMELINE in attributes:
        attributes = {_VIA_TIMELINE: attributes[_VIA_TIMELINE]}
    if len(attributes) != 1:
        row.fail(
            f"the attribute {_VIA_TIMELINE} or one other in metadata, found "
            f"{shown(', '.join(attributes)) if attributes else 'none'}"
        )
    [name] = attributes.values()
    if not isinstance(name, str) or not name.strip():
        row.fail(f"the name of a class in metadata, found {name!r}")
    return name.strip()


def _json(row: Row, column: str) -> Any:
    return parse_json(row.text(column), f"{row.path}, line {row.line}, {column}")
