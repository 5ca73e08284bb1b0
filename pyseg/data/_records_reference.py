"""Reading TFRecords in plain Python: the definition of what `pyseg._records` does natively.

It is the fallback where the native module is not built, and the oracle its tests compare with: both
give the same records and the same error texts. Framing is TensorFlow's (`lib/io/record_writer.h`):

    uint64 length, uint32 masked CRC32C of the length, payload, uint32 masked CRC32C of the payload

all little-endian. The payload is a protobuf message, `tf.train.Example` (features = 1) or
`tf.train.SequenceExample` (context = 1, feature_lists = 2), so that context features lie at the
same place in both. It is decoded by protobuf's rules: fields in any order, a field that occurs
several times is merged, the last entry of a map key wins, repeated numbers may be packed or not,
unknown fields are skipped. Features that nobody asked for are not looked into.

An engine (this module or `pyseg._records`) offers `Fault`, `crc32c`, `Reader`, `FrameDecoder` and
`VideoDecoder`. It knows nothing of paths, gzip, or what is done about a fault: that is
`pyseg.data.records`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

LARGEST_RECORD = 2**31 - 1  # protobuf cannot hold a longer message
LONGEST_ID = 1024  # bytes
DEEPEST_GROUP = 100  # nesting that protobuf allows, too
_PIECE = 1 << 24  # a length is trusted only this far ahead of the bytes that have really arrived

NONE, BYTES, FLOAT, INT64 = 0, 1, 2, 3  # tf.train.Feature's oneof, by field number
KINDS = ("nothing", "bytes", "float", "int64")
_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)


class Source(Protocol):
    """Where bytes come from: a raw binary file, or a stream that unpacks one."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of `buffer` and return how many bytes; 0 at the end."""


class Fault(Exception):  # noqa: N818 - an engine's finding; `RecordError` is what users see
    """Something is wrong with a record: `(text, record, offset, fatal)`.

    `text` says what was expected and found, `offset` is where the record starts, and `fatal` says
    that the place of the next record is not known.
    """


class Wrong(Exception):  # noqa: N818
    """The content of a record is not what was expected."""


# ------------------------------------------------------------------------------------------ CRC32C


@functools.cache
def _crc_kernel() -> tuple[Callable[[np.ndarray, np.ndarray, int], np.uint32], np.ndarray]:
    from pyseg._jit import njit  # late: numba costs more to import than the rest of pyseg.data

    table = np.zeros((8, 256), dtype=np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table[0, byte] = value
    for k in range(1, 8):  # table[k] is table[0] followed by k zero bytes
        table[k] = (table[k - 1] >> 8) ^ table[0, table[k - 1] & 0xFF]

    @njit
    def kernel(data: np.ndarray, table: np.ndarray, crc: int) -> np.uint32:
        state = np.uint32(crc) ^ np.uint32(0xFFFFFFFF)
        blocks = len(data) // 8
        for block in range(blocks):  # eight table look-ups that do not wait for each other
            i = block * 8
            state ^= (
                np.uint32(data[i])
                | np.uint32(data[i + 1]) << np.uint32(8)
                | np.uint32(data[i + 2]) << np.uint32(16)
                | np.uint32(data[i + 3]) << np.uint32(24)
            )
            state = (
                table[7, state & np.uint32(0xFF)]
                ^ table[6, (state >> np.uint32(8)) & np.uint32(0xFF)]
                ^ table[5, (state >> np.uint32(16)) & np.uint32(0xFF)]
                ^ table[4, state >> np.uint32(24)]
                ^ table[3, data[i + 4]]
                ^ table[2, data[i + 5]]
                ^ table[1, data[i + 6]]
                ^ table[0, data[i + 7]]
            )
        for i in range(blocks * 8, len(data)):
            state = table[0, (state ^ data[i]) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
        return state ^ np.uint32(0xFFFFFFFF)

    return kernel, table


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC32C (Castagnoli, RFC 3720 appendix B.4) of `data`, going on from `crc`."""
    kernel, table = _crc_kernel()
    return int(kernel(np.frombuffer(data, dtype=np.uint8), table, crc))


def mask(crc: int) -> int:
    """TensorFlow's mask: a CRC stored beside the data it covers would otherwise cover itself."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# ----------------------------------------------------------------------------------------- framing


class Reader:
    """Takes the records out of a source, one after the other, and checks every checksum.

    Args:
        source: Where to read.
        size: Bytes that the source holds, or -1 where that is not known.
        largest: Bytes of the largest record that is not refused.
    """

    def __init__(self, source: Source, size: int = -1, largest: int = LARGEST_RECORD) -> None:
        self._source = source
        self._size = size
        self._largest = largest
        self._next_offset = 0
        self._next_record = 0
        self.record = 0  # number of the record that was read last, or is being read
        self.offset = 0  # where it starts

    def _take(self, count: int) -> bytearray:
        """The next `count` bytes; fewer at the end of the source."""
        taken = bytearray()
        piece = memoryview(bytearray(min(count, _PIECE)))
        while len(taken) < count:
            filled = self._source.readinto(piece[: count - len(taken)])
            if not filled:
                break
            taken += piece[:filled]
        return taken

    def _fault(self, text: str, *, fatal: bool) -> NoReturn:
        raise Fault(text, self.record, self.offset, fatal)

    def _payload(self) -> bytearray | None:
        self.record, self.offset = self._next_record, self._next_offset
        header = self._take(12)
        if not header:
            if self.offset < self._size:  # cut short since it was opened
                text = f"expected {self._size} bytes in the file, found {self.offset}"
                self._fault(text, fatal=True)
            return None
        ended = "before the end of the file"
        if len(header) < 8:
            text = f"expected 8 bytes of record length, found {len(header)} {ended}"
            self._fault(text, fatal=True)
        if len(header) < 12:
            text = f"expected 4 bytes of length checksum, found {len(header) - 8} {ended}"
            self._fault(text, fatal=True)
        length = int.from_bytes(header[:8], "little")
        stored = int.from_bytes(header[8:], "little")
        computed = mask(crc32c(header[:8]))
        if stored != computed:
            text = f"expected length checksum 0x{stored:08x}, found 0x{computed:08x}"
            self._fault(text + " (the length is damaged)", fatal=True)
        if length > self._largest:
            text = (
                f"expected at most {self._largest} bytes in a record (PYSEG_MAX_RECORD_BYTES),"
                f" found a length of {length}"
            )
            self._fault(text, fatal=True)
        there = length + 4
        if self._size >= 0:
            there = min(there, max(self._size - self.offset - 12, 0))
        body = self._take(length + 4) if there == length + 4 else None
        if body is not None:
            there = len(body)
        if there < length:
            self._fault(f"expected {length} bytes of payload, found {there} {ended}", fatal=True)
        if body is None or there < length + 4:
            text = f"expected 4 bytes of payload checksum, found {there - length} {ended}"
            self._fault(text, fatal=True)
        self._next_record += 1
        self._next_offset += length + 16
        stored = int.from_bytes(body[length:], "little")
        del body[length:]
        computed = mask(crc32c(body))
        if stored != computed:
            text = f"expected payload checksum 0x{stored:08x}, found 0x{computed:08x}"
            self._fault(text + f" ({length} bytes are damaged)", fatal=False)
        return body

    def _decode(self, decode: Callable[[bytes], Any], index: int, count: int) -> Any:
        while (payload := self._payload()) is not None:
            if self.record % count == index:
                try:
                    return decode(bytes(payload))
                except Wrong as wrong:
                    self._fault(str(wrong), fatal=False)
        return None

    def next_record(self, index: int, count: int) -> bytes | None:
        """The payload of the next record whose number is `index` modulo `count`, or None."""
        payload: bytes | None = self._decode(bytes, index, count)
        return payload

    def next_frames(self, decoder: FrameDecoder, index: int, count: int) -> FrameTuple | None:
        """The next such record, decoded, or None at the end."""
        frames: FrameTuple | None = self._decode(decoder.decode, index, count)
        return frames

    def fill(self, block: VideoBlock, index: int, count: int) -> bool:
        """Append such records to `block` until it is full (True) or the source ends (False)."""
        while len(block) < block.capacity:
            if self._decode(block.append, index, count) is None:
                return False
        return True


# ------------------------------------------------------------------------------- protobuf messages


class Span(NamedTuple):
    """Bytes `start` to `end` of a payload."""

    start: int
    end: int


def _malformed(at: int, text: str) -> NoReturn:
    raise Wrong(f"malformed protobuf at byte {at} of the record: {text}")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i == end:
            _malformed(at, "expected a varint, found the end of its message")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + i + 1
    _malformed(at, "expected a varint of at most 64 bits, found a longer one")


def _tag(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Field number, wire type, and where the field's content starts."""
    tag, after = _varint(data, at, end)
    if not 8 <= tag < 1 << 32:
        _malformed(at, f"expected a field number from 1 to 536870911, found {tag >> 3}")
    if tag & 7 > _FIXED32:
        _malformed(at, f"expected a wire type from 0 to 5, found {tag & 7}")
    return tag >> 3, tag & 7, after


def _bytes(count: int, at: int, end: int) -> int:
    """`count` bytes further on, checked against the end of the message."""
    if count > end - at:
        _malformed(at, f"expected {count} bytes, found {end - at} to the end of their message")
    return at + count


def _length(data: bytes, at: int, end: int) -> Span:
    count, after = _varint(data, at, end)
    return Span(after, _bytes(count, after, end))


def _skip(data: bytes, field: int, wire: int, start: int, at: int, end: int) -> int:
    """Where the field whose tag is at `start` and whose content is at `at` ends."""
    open_groups: list[int] = []
    while True:
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire == _FIXED64:
            at = _bytes(8, at, end)
        elif wire == _LENGTH:
            at = _length(data, at, end).end
        elif wire == _FIXED32:
            at = _bytes(4, at, end)
        elif wire == _GROUP:
            if len(open_groups) == DEEPEST_GROUP:
                _malformed(start, f"expected at most {DEEPEST_GROUP} nested groups, found more")
            open_groups.append(field)
        elif not open_groups or open_groups.pop() != field:
            _malformed(start, f"expected a field, found the end of group {field}")
        if not open_groups:
            return at
        start = at
        field, wire, at = _tag(data, at, end)


class Value(NamedTuple):
    """A `tf.train.Feature`: its kind and what it holds."""

    kind: int
    strings: list[Span]
    floats: list[Span]  # runs of packed little-endian float32
    ints: list[int]

    @property
    def size(self) -> int:
        """Number of values."""
        floats = sum(span.end - span.start for span in self.floats) // 4
        return len(self.strings) + floats + len(self.ints)


def feature(data: bytes, spans: Sequence[Span]) -> Value:
    """The feature whose encoding is `spans` one after the other (which is how protobuf merges)."""
    kind = NONE
    strings: list[Span] = []
    floats: list[Span] = []
    ints: list[int] = []
    for at, end in spans:
        while at < end:
            start = at
            field, wire, at = _tag(data, at, end)
            if not (BYTES <= field <= INT64 and wire == _LENGTH):
                at = _skip(data, field, wire, start, at, end)
                continue
            if field != kind:  # a oneof: the last kind set replaces another
                kind = field
                strings, floats, ints = [], [], []
            at, inner = _length(data, at, end)
            while at < inner:
                start = at
                field, wire, at = _tag(data, at, inner)
                if field == 1 and kind == BYTES and wire == _LENGTH:
                    strings.append(_length(data, at, inner))
                    at = strings[-1].end
                elif field == 1 and kind == FLOAT and wire == _LENGTH:
                    span = _length(data, at, inner)
                    if (span.end - span.start) % 4:
                        size = span.end - span.start
                        _malformed(span.start, f"expected floats of 4 bytes, found {size} bytes")
                    floats.append(span)
                    at = span.end
                elif field == 1 and kind == FLOAT and wire == _FIXED32:
                    floats.append(Span(at, _bytes(4, at, inner)))
                    at += 4
                elif field == 1 and kind == INT64 and wire == _LENGTH:
                    at, packed = _length(data, at, inner)
                    while at < packed:
                        value, at = _varint(data, at, packed)
                        ints.append(value - (1 << 64) if value >> 63 else value)
                elif field == 1 and kind == INT64 and wire == _VARINT:
                    value, at = _varint(data, at, inner)
                    ints.append(value - (1 << 64) if value >> 63 else value)
                else:
                    at = _skip(data, field, wire, start, at, inner)
    return Value(kind, strings, floats, ints)


def _entries(data: bytes, span: Span) -> Iterator[tuple[bytes, list[Span]]]:
    """Key and value of the entries of a map (a `Features` or `FeatureLists` message)."""
    at, end = span
    while at < end:
        start = at
        field, wire, at = _tag(data, at, end)
        if field != 1 or wire != _LENGTH:
            at = _skip(data, field, wire, start, at, end)
            continue
        at, inner = _length(data, at, end)
        key = b""
        values = []
        while at < inner:
            start = at
            field, wire, at = _tag(data, at, inner)
            if field in (1, 2) and wire == _LENGTH:
                part = _length(data, at, inner)
                if field == 1:
                    key = data[part.start : part.end]
                else:
                    values.append(part)
                at = part.end
            else:
                at = _skip(data, field, wire, start, at, inner)
        yield key, values


class Message(NamedTuple):
    """A record: context features and feature lists by name, not yet looked into."""

    data: bytes
    context: dict[bytes, list[Span]]
    lists: dict[bytes, list[Span]]

    @classmethod
    def parse(cls, data: bytes, most: float = math.inf) -> Message:
        """Find the features, at most so many, of a `tf.train.Example` or `SequenceExample`."""
        message = cls(data, {}, {})
        count = 0
        at = 0
        while at < len(data):
            start = at
            field, wire, at = _tag(data, at, len(data))
            if field in (1, 2) and wire == _LENGTH:
                span = _length(data, at, len(data))
                for key, values in _entries(data, span):
                    (message.context if field == 1 else message.lists)[key] = values
                    count += 1
                    if count > most:
                        raise Wrong(f"expected at most {most} features, found more")
                at = span.end
            else:
                at = _skip(data, field, wire, start, at, len(data))
        return message

    def frames(self, name: bytes) -> Iterator[Span]:
        """The elements of a feature list, each one feature; none where there is no such list."""
        for at, end in self.lists.get(name, ()):
            while at < end:
                start = at
                field, wire, at = _tag(self.data, at, end)
                if field == 1 and wire == _LENGTH:
                    element = _length(self.data, at, end)
                    yield element
                    at = element.end
                else:
                    at = _skip(self.data, field, wire, start, at, end)


def row_header(width: int) -> bytes:
    """What stands before the bytes of a frame as every writer known puts it.

    These are the tags and lengths of the Feature in its FeatureList, of the BytesList in the
    Feature, and of the bytes in the BytesList.
    """
    header = b""
    for _ in range(3):
        header = b"\x0a" + varint(len(header) + width) + header
    return header


def varint(value: int) -> bytes:
    """A number from 0 to 2**64 - 1, seven bits a byte."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# ----------------------------------------------------------------------------------------- content


def show(data: bytes, limit: int = 40) -> str:
    """Bytes as an error text shows them: printable ASCII, the rest escaped, cut at `limit`."""
    shown = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in data[:limit]
    )
    return f"'{shown}'" + ("..." if len(data) > limit else "")


def _missing(message: Message, what: str, name: bytes) -> NoReturn:
    def listed(names: Sequence[bytes], none: str) -> str:
        shown = ", ".join(show(name) for name in sorted(names)[:10])
        return (shown + (", ..." if len(names) > 10 else "")) or none

    context = listed(list(message.context), "none")
    lists = listed(list(message.lists), "none")
    raise Wrong(
        f"expected {what} {show(name)}, found context features: {context}; feature lists: {lists}"
    )


def _context(message: Message, name: bytes, kind: int | None, size: int | None) -> Value | None:
    """A context feature, its kind and size checked unless None; None where it is not there."""
    spans = message.context.get(name)
    if spans is None:
        return None
    value = feature(message.data, spans)
    if value.kind == NONE:  # what TensorFlow takes for missing, too
        return None
    if kind is not None and value.kind != kind:
        raise Wrong(
            f"expected {KINDS[kind]} in context feature {show(name)}, found {KINDS[value.kind]}"
        )
    if size is not None and value.size != size:
        values = "1 value" if size == 1 else f"{size} values"
        raise Wrong(f"expected {values} in context feature {show(name)}, found {value.size}")
    return value


def _required(message: Message, name: bytes, kind: int | None, size: int | None) -> Value:
    value = _context(message, name, kind, size)
    if value is None:
        _missing(message, "context feature", name)
    return value


def _id(message: Message, name: bytes) -> str:
    start, end = _required(message, name, BYTES, 1).strings[0]
    if end - start > LONGEST_ID:
        raise Wrong(
            f"expected at most {LONGEST_ID} bytes in context feature {show(name)},"
            f" found {end - start}"
        )
    try:
        return message.data[start:end].decode()
    except UnicodeDecodeError:
        shown = show(message.data[start:end])
        raise Wrong(f"expected UTF-8 text in context feature {show(name)}, found {shown}") from None


def _labels(message: Message, name: bytes) -> tuple[np.ndarray, bool]:
    """Class numbers, and whether the record lacks the feature that the schema names for them."""
    value = _context(message, name, INT64, None) if name else None
    if value is None:
        return np.zeros(0, dtype=np.int64), bool(name)
    return _classes(value.ints, name), False


def _classes(numbers: list[int], name: bytes) -> np.ndarray:
    for number in numbers:
        if number < 0:
            raise Wrong(
                f"expected numbers of at least 0 in context feature {show(name)}, found {number}"
            )
    return np.array(numbers, dtype=np.int64)


def _floats(message: Message, value: Value) -> np.ndarray:
    runs = [message.data[start:end] for start, end in value.floats]
    return np.frombuffer(b"".join(runs), dtype="<f4").astype(np.float32)


class RatingTuple(NamedTuple):
    """Ratings as an engine gives them, and what was mended."""

    starts: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    dropped: int
    cut: int
    duplicates: int


def _ratings(message: Message, frames: int, segment_size: int) -> RatingTuple | None:
    names = (b"segment_start_times", b"segment_labels", b"segment_scores")
    starts = _context(message, names[0], INT64, None)
    classes = _context(message, names[1], INT64, None)
    scores = _context(message, names[2], FLOAT, None)
    if starts is None and classes is None and scores is None:
        return None
    for name, value in zip(names, (starts, classes, scores), strict=True):
        if value is None:
            _missing(message, "context feature", name)
    assert starts is not None
    assert classes is not None
    assert scores is not None
    ends = _context(message, b"segment_end_times", INT64, None)
    for name, value in ((names[1], classes), (names[2], scores), (b"segment_end_times", ends)):
        if value is not None and value.size != starts.size:
            raise Wrong(
                f"expected as many values in context feature {show(name)} as in {show(names[0])}"
                f" ({starts.size}), found {value.size}"
            )
    _classes(starts.ints, names[0])
    _classes(classes.ints, names[1])
    values = _floats(message, scores)
    for score in values:
        if not 0 <= score <= 1:
            found = "nan" if math.isnan(score) else f"{float(score):g}"
            raise Wrong(f"expected scores from 0 to 1 in {show(names[2])}, found {found}")

    rated: dict[tuple[int, int], np.float32] = {}
    dropped, cut, duplicates = set(), set(), 0
    for start, number, score in zip(starts.ints, classes.ints, values, strict=True):
        if start >= frames:
            dropped.add(start)
            continue
        if start > frames - segment_size:
            cut.add(start)
        duplicates += (start, number) in rated
        rated[start, number] = score  # the last wins, in the place of the first
    return RatingTuple(
        np.array([start for start, _ in rated], dtype=np.int64),
        np.array([number for _, number in rated], dtype=np.int64),
        np.array(list(rated.values()), dtype=np.float32),
        len(dropped),
        len(cut),
        duplicates,
    )


# id, frames, labels, ratings, values of the context keys, whether the record lacks its labels
FrameTuple = tuple[
    str, np.ndarray, np.ndarray, RatingTuple | None, tuple[float | int | bytes, ...], bool
]


class FrameDecoder:
    """Decodes frame-level records.

    Args:
        features: Name and bytes a frame of each feature list, in the order of the output.
        id_key: Context feature with the id.
        labels_key: Context feature with the class numbers; empty for none.
        segment_size: Frames of a rated segment.
        max_frames: Frames kept of a longer video; 0 keeps all.
        context_keys: Further context features, of one value each.
    """

    def __init__(
        self,
        features: Sequence[tuple[bytes, int]],
        id_key: bytes,
        labels_key: bytes,
        segment_size: int,
        max_frames: int,
        context_keys: Sequence[bytes],
    ) -> None:
        self._features = tuple(features)
        self._id_key = id_key
        self._labels_key = labels_key
        self._segment_size = segment_size
        self._max_frames = max_frames
        self._context_keys = tuple(context_keys)

    def decode(self, data: bytes) -> FrameTuple:
        """Decode one record."""
        message = Message.parse(data)
        name = _id(message, self._id_key)
        labels, unlabelled = _labels(message, self._labels_key)
        extra = tuple(self._extra(message, key) for key in self._context_keys)
        columns = [self._column(message, key, width) for key, width in self._features]
        first = self._features[0][0]
        if len(columns[0]) == 0:
            raise Wrong(f"expected at least 1 frame in feature list {show(first)}, found 0")
        for (other, _), column in zip(self._features[1:], columns[1:], strict=True):
            if len(column) != len(columns[0]):
                raise Wrong(
                    f"expected as many frames in feature list {show(other)} as in {show(first)}"
                    f" ({len(columns[0])}), found {len(column)}"
                )
        frames = np.concatenate(columns, axis=1)
        if self._max_frames:
            frames = frames[: self._max_frames].copy()
        ratings = _ratings(message, len(frames), self._segment_size)
        return name, frames, labels, ratings, extra, unlabelled

    def _extra(self, message: Message, key: bytes) -> float | int | bytes:
        value = _required(message, key, None, 1)
        if value.kind == BYTES:
            start, end = value.strings[0]
            return message.data[start:end]
        return value.ints[0] if value.kind == INT64 else float(_floats(message, value)[0])

    def _column(self, message: Message, name: bytes, width: int) -> np.ndarray:
        if name not in message.lists:
            _missing(message, "feature list", name)
        spans = message.lists[name]
        header = row_header(width)
        size = len(header) + width
        if len(spans) == 1 and (spans[0].end - spans[0].start) % size == 0:
            encoded = np.frombuffer(message.data, np.uint8)[spans[0].start : spans[0].end]
            encoded = encoded.reshape(-1, size)
            if (encoded[:, : len(header)] == np.frombuffer(header, np.uint8)).all():
                return encoded[:, len(header) :]  # the usual encoding: what follows finds the same
        rows = []
        for number, element in enumerate(message.frames(name)):
            value = feature(message.data, [element])
            where = f"frame {number} of feature list {show(name)}"
            if value.kind != BYTES:
                raise Wrong(f"expected bytes in {where}, found {KINDS[value.kind]}")
            if value.size != 1:
                raise Wrong(f"expected 1 value in {where}, found {value.size}")
            start, end = value.strings[0]
            if end - start != width:
                raise Wrong(f"expected {width} bytes in {where}, found {end - start}")
            rows.append(message.data[start:end])
        return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), width)


class VideoDecoder:
    """Decodes video-level records.

    Args:
        features: Name and values of each float feature, in the order of the output.
        id_key: Context feature with the id.
        labels_key: Context feature with the class numbers; empty for none.
    """

    def __init__(
        self, features: Sequence[tuple[bytes, int]], id_key: bytes, labels_key: bytes
    ) -> None:
        self._features = tuple(features)
        self._id_key = id_key
        self._labels_key = labels_key

    def block(self, capacity: int) -> VideoBlock:
        """An empty block for up to `capacity` records."""
        return VideoBlock(self, capacity)

    def decode(self, data: bytes) -> tuple[str, np.ndarray, np.ndarray, bool]:
        """Decode one record: id, features, labels, and whether it lacks its labels."""
        message = Message.parse(data)
        name = _id(message, self._id_key)
        labels, unlabelled = _labels(message, self._labels_key)
        parts = [
            _floats(message, _required(message, key, FLOAT, width)) for key, width in self._features
        ]
        return name, np.concatenate(parts or [np.zeros(0, np.float32)]), labels, unlabelled


class VideoBlock:
    """Decoded video-level records, column by column."""

    def __init__(self, decoder: VideoDecoder, capacity: int) -> None:
        self._decoder = decoder
        self.capacity = capacity
        self._rows: list[tuple[str, np.ndarray, np.ndarray, bool]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, data: bytes) -> bool:
        """Decode a record and keep it."""
        self._rows.append(self._decoder.decode(data))
        return True

    @property
    def unlabelled(self) -> int:
        """Number of records that lack their labels."""
        return sum(row[3] for row in self._rows)

    def columns(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Ids, features (n, width) float32, label offsets (n + 1,) and labels, both int64."""
        ids = [row[0] for row in self._rows]
        features = np.stack([row[1] for row in self._rows])
        sizes = [0] + [len(row[2]) for row in self._rows]
        labels = np.concatenate([row[2] for row in self._rows])
        return ids, features, np.cumsum(sizes, dtype=np.int64), labels
