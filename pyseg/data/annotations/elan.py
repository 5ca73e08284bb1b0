"""The reader of ELAN's annotation files."""

from __future__ import annotations

from typing import Literal, NoReturn
from xml.parsers import expat

from pyseg._text import counted
from pyseg.data.annotations.interval import AnnotationFile, Interval, read_bounded, stem
from pyseg.errors import DataError

ElanClasses = Literal["tiers", "values"]

_DEEPEST = 32  # nested elements; ELAN's files have 5


def read_elan(path: str, classes: ElanClasses) -> AnnotationFile:
    """Reads an ELAN annotation file (.eaf); the classes are the tiers, or the annotations' values.

    The video is that of the first MEDIA_DESCRIPTOR, else it has the file's name. Annotations that
    refer to others instead of times, and values without text, are left out and counted. Documents
    with a DOCTYPE are refused, so that nothing is expanded or fetched.

    Source: https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf

    Args:
        path: The file.
        classes: "tiers": an annotation on a tier is an interval of the class of that name,
            whatever its value; "values": the value of an annotation is the class.

    Raises:
        pyseg.errors.DataError: The content is something else; the message names file and line.
        OSError: The file cannot be read.
    """
    content = read_bounded(path)
    document = _Document(path, classes)
    document.parse(content)
    found = AnnotationFile(videos={document.video: path})
    for interval in document.intervals():
        found.add(interval)
    if document.references:
        references = counted(document.references, "reference")
        found.notes.append(f"{path}: left out {references} to other annotations")
    found.left_out(document.unnamed, "annotation", path, " without text")
    return found


class _Document:
    """The parts of a document that matter, collected while it is parsed."""

    def __init__(self, path: str, classes: ElanClasses) -> None:
        self.video = stem(path)
        self.references = 0
        self.unnamed = 0
        self._path, self._classes = path, classes
        self._parser = expat.ParserCreate()
        self._open: list[str] = []
        self._times: dict[str, int | None] = {}
        self._tier = ""
        self._media = False  # whether a media file is named
        self._origin = 0  # the time of the media at which the document's time begins, in ms
        self._text: list[str] | None = None
        self._begun: tuple[str, str, int] | None = None  # both time slots, line
        self._annotations: list[tuple[str, str, str, int]] = []  # class, time slots, line

    def fail(self, expected: str, line: int | None = None) -> NoReturn:
        line = self._parser.CurrentLineNumber if line is None else line
        raise DataError(f"{self._path}, line {line}: expected {expected}")

    def parse(self, content: bytes) -> None:
        parser = self._parser
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            reason = expat.ErrorString(error.code)
            self.fail(f"XML of ELAN, found: {reason}", error.lineno)
        except (LookupError, UnicodeError, ValueError) as error:  # an unknown encoding
            if isinstance(error, DataError):
                raise
            self.fail(f"XML of ELAN, found: {error}")

    def intervals(self) -> list[Interval]:
        found = []
        for name, first, last, line in self._annotations:
            begin, stop = self._time(first, line), self._time(last, line)
            if not begin < stop:
                self.fail(f"annotations with start < end, found {begin} and {stop} ms", line)
            start, end = (self._origin + begin) / 1000, (self._origin + stop) / 1000
            found.append(Interval(self.video, start, end, name, 1.0, f"{self._path}, line {line}"))
        return found

    def _time(self, slot: str, line: int) -> int:
        if slot not in self._times:
            self.fail(f"a TIME_SLOT {slot!r:.60}, found none", line)
        time = self._times[slot]
        if time is None:
            self.fail(f"a TIME_VALUE of TIME_SLOT {slot!r:.60}, found none", line)
        return time

    def _doctype(self, *_: object) -> None:
        self.fail("XML without a DOCTYPE, found one")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "ANNOTATION_DOCUMENT":
            self.fail(f"the element ANNOTATION_DOCUMENT of ELAN, found {tag!r:.60}")
        if len(self._open) == _DEEPEST:
            self.fail(f"at most {_DEEPEST} nested elements, found more")
        self._open.append(tag)
        if tag == "HEADER" and attributes.get("TIME_UNITS", "milliseconds") != "milliseconds":
            self.fail(f"TIME_UNITS in milliseconds, found {attributes['TIME_UNITS']!r:.60}")
        elif tag == "MEDIA_DESCRIPTOR" and not self._media:
            self._describe_media(attributes)
        elif tag == "TIME_SLOT":
            slot = self._attribute(attributes, "TIME_SLOT_ID")
            self._times[slot] = self._milliseconds(attributes, "TIME_VALUE")
        elif tag == "TIER":
            self._tier = self._attribute(attributes, "TIER_ID").strip()
        elif tag == "ALIGNABLE_ANNOTATION":
            first, last = (self._attribute(attributes, f"TIME_SLOT_REF{n}") for n in (1, 2))
            self._begun = first, last, self._parser.CurrentLineNumber
        elif tag == "REF_ANNOTATION":
            self.references += 1
        elif tag == "ANNOTATION_VALUE":
            self._text = []

    def _describe_media(self, attributes: dict[str, str]) -> None:
        url = attributes.get("RELATIVE_MEDIA_URL") or attributes.get("MEDIA_URL")
        if url:
            self.video, self._media = url, True
            self._origin = self._milliseconds(attributes, "TIME_ORIGIN") or 0

    def _milliseconds(self, attributes: dict[str, str], name: str) -> int | None:
        text = attributes.get(name)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 15):
            self.fail(f"{name} in milliseconds, found {text!r:.60}")
        return None if text is None else int(text)

    def _attribute(self, attributes: dict[str, str], name: str) -> str:
        if name not in attributes:
            self.fail(f"the attribute {name}, found none")
        return attributes[name]

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag != "ALIGNABLE_ANNOTATION" or self._begun is None:
            return
        first, last, line = self._begun
        name = self._tier
        if self._classes == "values":
            name = "".join(self._text or ()).strip()
            self.unnamed += not name
        if name or self._classes == "tiers":
            self._annotations.append((name, first, last, line))
        self._begun = self._text = None
