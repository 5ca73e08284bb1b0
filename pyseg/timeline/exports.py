"""The formats of files that a timeline is saved in, by suffix.

=================== ================================================================================
suffix              content
=================== ================================================================================
``.png``            the picture; of many classes, the best 60
``.html``           the page
``.csv``            events: ``start,end,class,peak``, times in seconds
``.json``           everything: windows, scores, events, ratings
``.parquet``        scores: a row for each window and class, ``start, end, class, number, score``
``.vtt``            events as WebVTT cues
``.srt``            events as SubRip subtitles
``.txt``            events as labels of Audacity
``.eaf``            events as annotations of ELAN, a tier for each class
``.ffmeta``,        events as chapters in ffmpeg's metadata format; where events overlap, the
``.ffmetadata``     chapter names all of them
=================== ================================================================================

Times in subtitles, annotations and chapters are rounded to milliseconds.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyseg._extras import requires
from pyseg._files import write_file
from pyseg.errors import ArgumentError
from pyseg.timeline.events import Event, Thresholds
from pyseg.timeline.page import page
from pyseg.timeline.picture import draw
from pyseg.timeline.times import timecode

if TYPE_CHECKING:
    from pyseg.timeline.timeline import Timeline

Encode = Callable[["Timeline", Sequence[Event], Path], bytes]
"""Returns the content of a file, from a timeline, its events, and the path to write to."""

_MOST_ROWS = 60

FORMATS: dict[str, Encode] = {}
"""The formats by suffix."""


def suffix(path: str | os.PathLike[str], argument: str = "path") -> str:
    """Returns the suffix of a path if there is a format for it.

    Args:
        path: The path of a file to write.
        argument: The argument that gives it, for the message.

    Raises:
        pyseg.errors.ArgumentError: There is none.

    Example:
        >>> suffix("a.VTT")
        '.vtt'
        >>> suffix("a.doc")
        Traceback (most recent call last):
        pyseg.errors.ArgumentError: path: expected a file that ends in .png, ... found a.doc
    """
    if (found := Path(path).suffix.lower()) not in FORMATS:
        known = ", ".join(FORMATS)
        raise ArgumentError(f"{argument}: expected a file that ends in {known}; found {path}")
    return found


def save(timeline: Timeline, path: Path, on: Thresholds | None, off: Thresholds | None) -> None:
    """Writes a timeline in the format of the path's suffix; see `Timeline.save`."""
    encode = FORMATS[suffix(path)]
    content = encode(timeline, timeline.events(on, off), path)
    write_file(path, content)


def _format(*suffixes: str) -> Callable[[Encode], Encode]:
    """Adds a function to the formats."""

    def add(encode: Encode) -> Encode:
        FORMATS.update(dict.fromkeys(suffixes, encode))
        return encode

    return add


class Stretch(NamedTuple):
    """An event with times in milliseconds.

    Attributes:
        start: Its start.
        end: Its end, after the start.
        text: The name of its class as one line of text.
        event: The event.
    """

    start: int
    end: int
    text: str
    event: Event


def stretches(events: Sequence[Event]) -> list[Stretch]:
    """Rounds the times of events to milliseconds.

    Events of a class that did not overlap do not overlap, and none is empty.
    """
    ends: dict[int, int] = {}
    found = []
    for event in events:
        start = max(round(event.start * 1000), ends.get(event.number, 0))
        end = ends[event.number] = max(round(event.end * 1000), start + 1)
        found.append(Stretch(start, end, event.label, event))
    return found


@_format(".png")
def _png(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    return draw(timeline if len(timeline.names) <= _MOST_ROWS else timeline.best(_MOST_ROWS))


@_format(".html")
def _html(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    # Names of files may have bytes that are not UTF-8.
    return page(timeline, events, path.parent).encode("utf-8", "replace")


@_format(".csv")
def _csv(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("start", "end", "class", "peak"))
    for event in events:
        table.writerow((_number(event.start), _number(event.end), event.name, f"{event.peak:.4f}"))
    return file.getvalue().encode("utf-8", "replace")


def _number(seconds: float) -> str:
    """Returns a time in seconds, to the microsecond."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


@_format(".json")
def _json(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    content = {
        "title": timeline.title,
        "video": timeline.video,
        "segment_seconds": timeline.segment_seconds,
        "classes": [
            {"number": number, "name": name}
            for number, name in zip(timeline.numbers, timeline.names, strict=True)
        ],
        "events": [
            {"start": e.start, "end": e.end, "class": e.name, "number": e.number, "peak": e.peak}
            for e in events
        ],
        "ratings": [rating._asdict() for rating in timeline.ratings],
        "starts": timeline.starts.tolist(),
        "ends": timeline.ends.tolist(),
        "scores": np.round(timeline.scores.astype(np.float64), 6).tolist(),
    }
    return (json.dumps(content, allow_nan=False) + "\n").encode()


@_format(".parquet")
def _parquet(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    with requires("tables", "a .parquet file"):
        import pyarrow
        from pyarrow import parquet
    windows, classes = timeline.scores.shape
    which = np.tile(np.arange(classes, dtype=np.int32), windows)
    names = [name.encode("utf-8", "replace").decode() for name in timeline.names]
    table = pyarrow.table(
        {
            "start": np.repeat(timeline.starts, classes),
            "end": np.repeat(timeline.ends, classes),
            "class": pyarrow.DictionaryArray.from_arrays(
                which, pyarrow.array(names, pyarrow.string())
            ),
            "number": np.tile(np.array(timeline.numbers, np.int64), windows),
            "score": timeline.scores.ravel(),
        }
    )
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


@_format(".vtt")
def _vtt(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    cues = ["WEBVTT\n"]
    for start, end, text, _ in stretches(events):
        cues.append(f"{timecode(start)} --> {timecode(end)}\n{escape(text, quote=False)}\n")
    return "\n".join(cues).encode()


@_format(".srt")
def _srt(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    cues = []
    for number, (start, end, text, _) in enumerate(stretches(events), 1):
        text = text.replace("-->", "→")  # the format has no escapes
        cues.append(f"{number}\n{timecode(start, ',')} --> {timecode(end, ',')}\n{text}\n")
    return "\n".join(cues).encode()


@_format(".txt")
def _audacity(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    lines = [f"{e.start:.6f}\t{e.end:.6f}\t{e.label}\n" for e in events]
    return "".join(lines).encode()


@_format(".eaf")
def _elan(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    """Returns annotations of ELAN; pympi-ling requires the attribute with the schema."""
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "pyseg",
            "DATE": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = ElementTree.SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    if timeline.video is not None:
        path = Path(timeline.video).absolute()
        ElementTree.SubElement(
            header, "MEDIA_DESCRIPTOR", MEDIA_URL=path.as_uri(), MIME_TYPE=_mime_type(path)
        )
    order = ElementTree.SubElement(root, "TIME_ORDER")
    tiers: dict[int, ElementTree.Element] = {}
    taken: set[str] = set()
    for at, (start, end, text, event) in enumerate(stretches(events)):
        slots = [f"ts{2 * at + 1}", f"ts{2 * at + 2}"]
        for slot, time in zip(slots, (start, end), strict=True):
            ElementTree.SubElement(order, "TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(time))
        if event.number not in tiers:
            name = text if text not in taken else f"{text} ({event.number})"
            taken.add(name)
            tiers[event.number] = ElementTree.SubElement(
                root, "TIER", LINGUISTIC_TYPE_REF="event", TIER_ID=name
            )
        annotation = ElementTree.SubElement(
            ElementTree.SubElement(tiers[event.number], "ANNOTATION"),
            "ALIGNABLE_ANNOTATION",
            ANNOTATION_ID=f"a{at + 1}",
            TIME_SLOT_REF1=slots[0],
            TIME_SLOT_REF2=slots[1],
        )
        ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = text
    ElementTree.SubElement(
        root,
        "LINGUISTIC_TYPE",
        LINGUISTIC_TYPE_ID="event",
        TIME_ALIGNABLE="true",
        GRAPHIC_REFERENCES="false",
    )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _mime_type(path: Path) -> str:
    """Returns the type of a video, as ELAN names it."""
    import mimetypes

    return mimetypes.guess_type(path.name)[0] or "unknown"


@_format(".ffmeta", ".ffmetadata")
def _ffmetadata(timeline: Timeline, events: Sequence[Event], path: Path) -> bytes:
    lines = [";FFMETADATA1"]
    for start, end, title in chapters(stretches(events)):
        times = ["[CHAPTER]", "TIMEBASE=1/1000", f"START={start}", f"END={end}"]
        if title.endswith("\\"):
            title += " "  # ffmpeg takes even an escaped backslash before a line break for an escape
        lines += [*times, "title=" + re.sub(r"([=;#\\])", r"\\\1", title)]
    return ("\n".join(lines) + "\n").encode()


def chapters(events: Sequence[Stretch]) -> list[tuple[int, int, str]]:
    """Divides the time of events into chapters, which may not overlap.

    Returns:
        Start, end in milliseconds, and title: the names of all classes that are shown.

    Example:
        >>> events = [Event(0.0, 5.0, 0, "cat", 0.9), Event(2.0, 9.0, 1, "dog", 0.9)]
        >>> chapters(stretches(events))
        [(0, 2000, 'cat'), (2000, 5000, 'cat, dog'), (5000, 9000, 'dog')]
    """
    moments = sorted({moment for event in events for moment in event[:2]})
    found = []
    shown: list[Stretch] = []
    waiting = list(reversed(events))
    for start, end in itertools.pairwise(moments):
        shown = [event for event in shown if event.end > start]
        while waiting and waiting[-1].start <= start:
            shown.append(waiting.pop())
        if shown:
            found.append((start, end, ", ".join(event.text for event in shown)))
    return found
