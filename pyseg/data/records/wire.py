"""The wire format of protobuf, and the messages of a record: `tf.train.Example` and its like.

A record is a `tf.train.Example` (features = 1) or a `tf.train.SequenceExample` (context = 1,
feature_lists = 2), so that context features have the same place in both. It is decoded by
protobuf's rules: fields come in any order, a field that occurs several times is merged, the last
entry of a map key wins, repeated numbers may be packed or not, unknown fields are skipped.
Features that are not requested are not parsed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

NONE, BYTES, FLOAT, INT64 = 0, 1, 2, 3  # tf.train.Feature's oneof, by field number
KINDS = ("nothing", "bytes", "float", "int64")
DEEPEST_GROUP = 100  # protobuf's limit of nesting
LONGEST_VARINT = 10  # bytes

_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)


class ContentError(Exception):
    """The content of a record is not what was expected."""


class Span(NamedTuple):
    """The bytes `start` to `end` of a payload."""

    start: int
    end: int


def _malformed(at: int, text: str) -> NoReturn:
    raise ContentError(f"malformed protobuf at byte {at} of the record: {text}")


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Returns the number at `at`, and its end."""
    value = 0
    for i in range(LONGEST_VARINT):
        if at + i == end:
            _malformed(at, "expected a varint, found the end of its message")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + i + 1
    _malformed(at, "expected a varint of at most 64 bits, found a longer one")


def read_tag(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Returns field number, wire type, and the start of the field's content."""
    tag, after = read_varint(data, at, end)
    if not 8 <= tag < 1 << 32:
        _malformed(at, f"expected a field number from 1 to 536870911, found {tag >> 3}")
    if tag & 7 > _FIXED32:
        _malformed(at, f"expected a wire type from 0 to 5, found {tag & 7}")
    return tag >> 3, tag & 7, after


def _advance(count: int, at: int, end: int) -> int:
    """Returns the place `count` bytes further on; raises if the message ends before it."""
    if count > end - at:
        _malformed(at, f"expected {count} bytes, found {end - at} to the end of their message")
    return at + count


def read_length(data: bytes, at: int, end: int) -> Span:
    """Returns the content of a length-delimited field, whose length is at `at`."""
    count, after = read_varint(data, at, end)
    return Span(after, _advance(count, after, end))


def skip_field(data: bytes, field: int, wire: int, start: int, at: int, end: int) -> int:
    """Returns the end of the field whose tag is at `start` and whose content is at `at`."""
    open_groups: list[int] = []
    while True:
        if wire == _VARINT:
            _, at = read_varint(data, at, end)
        elif wire == _FIXED64:
            at = _advance(8, at, end)
        elif wire == _LENGTH:
            at = read_length(data, at, end).end
        elif wire == _FIXED32:
            at = _advance(4, at, end)
        elif wire == _GROUP:
            if len(open_groups) == DEEPEST_GROUP:
                _malformed(start, f"expected at most {DEEPEST_GROUP} nested groups, found more")
            open_groups.append(field)
        elif not open_groups or open_groups.pop() != field:
            _malformed(start, f"expected a field, found the end of group {field}")
        if not open_groups:
            return at
        start = at
        field, wire, at = read_tag(data, at, end)


class Value(NamedTuple):
    """A `tf.train.Feature`: its kind and its values."""

    kind: int
    strings: list[Span]
    floats: list[Span]  # runs of packed little-endian float32
    ints: list[int]

    @property
    def size(self) -> int:
        """Number of values."""
        floats = sum(span.end - span.start for span in self.floats) // 4
        return len(self.strings) + floats + len(self.ints)


def parse_feature(data: bytes, spans: Sequence[Span]) -> Value:
    """Returns the feature that the spans encode together; protobuf merges by concatenation."""
    value = Value(NONE, [], [], [])
    for at, end in spans:
        while at < end:
            start = at
            field, wire, at = read_tag(data, at, end)
            if not (BYTES <= field <= INT64 and wire == _LENGTH):
                at = skip_field(data, field, wire, start, at, end)
                continue
            if field != value.kind:  # a oneof: the last kind replaces the others
                value = Value(field, [], [], [])
            content = read_length(data, at, end)
            _add_values(value, data, content)
            at = content.end
    return value


def _add_values(value: Value, data: bytes, content: Span) -> None:
    """Adds the values of a `BytesList`, `FloatList` or `Int64List`, depending on its kind."""
    at, end = content
    while at < end:
        start = at
        field, wire, at = read_tag(data, at, end)
        if field == 1 and value.kind == BYTES and wire == _LENGTH:
            value.strings.append(read_length(data, at, end))
            at = value.strings[-1].end
        elif field == 1 and value.kind == FLOAT and wire == _LENGTH:
            packed = read_length(data, at, end)
            if (size := packed.end - packed.start) % 4:
                _malformed(packed.start, f"expected floats of 4 bytes, found {size} bytes")
            value.floats.append(packed)
            at = packed.end
        elif field == 1 and value.kind == FLOAT and wire == _FIXED32:
            value.floats.append(Span(at, _advance(4, at, end)))
            at += 4
        elif field == 1 and value.kind == INT64 and wire == _LENGTH:
            at, stop = read_length(data, at, end)
            while at < stop:
                number, at = read_varint(data, at, stop)
                value.ints.append(_signed(number))
        elif field == 1 and value.kind == INT64 and wire == _VARINT:
            number, at = read_varint(data, at, end)
            value.ints.append(_signed(number))
        else:
            at = skip_field(data, field, wire, start, at, end)


def packed_ints(data: bytes, key: bytes) -> list[int] | None:
    """Returns the numbers of an int64 feature without parsing the rest of the record.

    Returns:
        What follows the last occurrence of the feature's name as common writers encode it, each
        number at least 0; None if something else does.
    """
    name = b"\x0a" + encode_varint(len(key)) + key
    at = data.rfind(name) + len(name)
    end = len(data)
    if at < len(name):
        return None
    for tag in b"\x12\x1a\x0a":  # the Feature in its entry, the list in it, the numbers in that
        if data[at : at + 1] != bytes((tag,)):
            return None
        length = stop = 0
        for stop in range(at + 1, min(at + 1 + LONGEST_VARINT, end)):
            length |= (data[stop] & 0x7F) << 7 * (stop - at - 1)
            if data[stop] < 0x80:
                break
        at = stop + 1
        if tag != 0x12 and at + length != end:
            return None
        end = at + length
    numbers, value, shift = [], 0, 0
    for byte in data[at:end]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _entries(data: bytes, span: Span) -> Iterator[tuple[bytes, list[Span]]]:
    """Yields key and value of the entries of a map (a `Features` or `FeatureLists` message)."""
    at, end = span
    while at < end:
        start = at
        field, wire, at = read_tag(data, at, end)
        if field != 1 or wire != _LENGTH:
            at = skip_field(data, field, wire, start, at, end)
            continue
        at, inner = read_length(data, at, end)
        key = b""
        values = []
        while at < inner:
            start = at
            field, wire, at = read_tag(data, at, inner)
            if field in (1, 2) and wire == _LENGTH:
                part = read_length(data, at, inner)
                if field == 1:
                    key = data[part.start : part.end]
                else:
                    values.append(part)
                at = part.end
            else:
                at = skip_field(data, field, wire, start, at, inner)
        yield key, values


class Message(NamedTuple):
    """A record: context features and feature lists by name, not yet parsed."""

    data: bytes
    context: dict[bytes, list[Span]]
    lists: dict[bytes, list[Span]]

    @classmethod
    def parse(cls, data: bytes, most: float = math.inf) -> Message:
        """Finds the features of a `tf.train.Example` or `SequenceExample`, at most `most`."""
        message = cls(data, {}, {})
        count = 0
        at = 0
        while at < len(data):
            start = at
            field, wire, at = read_tag(data, at, len(data))
            if field in (1, 2) and wire == _LENGTH:
                span = read_length(data, at, len(data))
                for key, values in _entries(data, span):
                    (message.context if field == 1 else message.lists)[key] = values
                    count += 1
                    if count > most:
                        raise ContentError(f"expected at most {most} features, found more")
                at = span.end
            else:
                at = skip_field(data, field, wire, start, at, len(data))
        return message

    def frames(self, name: bytes) -> Iterator[Span]:
        """Yields the elements of a feature list, each one a feature; none if there is no list."""
        for at, end in self.lists.get(name, ()):
            while at < end:
                start = at
                field, wire, at = read_tag(self.data, at, end)
                if field == 1 and wire == _LENGTH:
                    element = read_length(self.data, at, end)
                    yield element
                    at = element.end
                else:
                    at = skip_field(self.data, field, wire, start, at, end)


def row_header(width: int) -> bytes:
    """Returns the bytes before those of a frame, as every known writer encodes them.

    These are the tags and lengths of the Feature in its FeatureList, of the BytesList in the
    Feature, and of the bytes in the BytesList.
    """
    header = b""
    for _ in range(3):
        header = b"\x0a" + encode_varint(len(header) + width) + header
    return header


def encode_varint(value: int) -> bytes:
    """Returns the encoding of a number from 0 to 2**64 - 1, seven bits a byte."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def quote(data: bytes, limit: int = 40) -> str:
    """Quotes bytes for error texts: the first `limit`, with non-ASCII ones escaped."""
    shown = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in data[:limit]
    )
    return f"'{shown}'" + ("..." if len(data) > limit else "")
