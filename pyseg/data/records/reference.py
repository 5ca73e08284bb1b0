"""The reader of records in plain Python, which defines what the native `pyseg._records` does.

It is the fallback if the native module is not built, and the oracle of its tests: both give the
same records and the same error texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from pyseg._text import counted
from pyseg.data.records.framing import LARGEST_RECORD, crc32c, mask
from pyseg.data.records.schema import LONGEST_ID, RATING_KEYS
from pyseg.data.records.wire import (
    BYTES,
    FLOAT,
    INT64,
    KINDS,
    NONE,
    ContentError,
    Message,
    Value,
    parse_feature,
    quote,
    row_header,
)

__all__ = ["Fault", "FrameDecoder", "Reader", "VideoDecoder", "crc32c"]

_PIECE = 1 << 24  # bytes allocated at a time, as a record's length may be wrong


class Source(Protocol):
    """A source of bytes: a raw binary file, or a stream that unpacks one."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fills the start of `buffer`; returns the number of bytes, 0 at the end."""


class Fault(Exception):  # noqa: N818 - internal; users see a `RecordError`
    """Something is wrong with a record: `(text, record, offset, fatal)`.

    `text` says what was expected and found, `offset` is the start of the record, and `fatal` means
    that the place of the next record is unknown.
    """


class Reader:
    """Reads the records of a source in order, and verifies every checksum.

    Args:
        source: The source.
        size: The size of the source in bytes, or -1 if unknown.
        largest: The size of the largest record to accept, in bytes.
    """

    def __init__(self, source: Source, size: int = -1, largest: int = LARGEST_RECORD) -> None:
        self._source = source
        self._size = size
        self._largest = largest
        self._next_offset = 0
        self._next_record = 0
        self.record = 0  # number of the current or last record
        self.offset = 0  # its start

    def _take(self, count: int) -> bytearray:
        """Returns the next `count` bytes; fewer at the end of the source."""
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
            if self.offset < self._size:  # truncated since it was opened
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
                except ContentError as wrong:
                    self._fault(str(wrong), fatal=False)
        return None

    def next_record(self, index: int, count: int) -> bytes | None:
        """Returns the next payload whose number is `index` modulo `count`; None at the end."""
        payload: bytes | None = self._decode(bytes, index, count)
        return payload

    def next_frames(self, decoder: FrameDecoder, index: int, count: int) -> FrameTuple | None:
        """Returns the next such record, decoded; None at the end."""
        frames: FrameTuple | None = self._decode(decoder.decode, index, count)
        return frames

    def fill(self, block: VideoBlock, index: int, count: int) -> bool:
        """Appends such records to `block` until it is full (True) or the source ends (False)."""
        while len(block) < block.capacity:
            if self._decode(block.append, index, count) is None:
                return False
        return True


def _missing(message: Message, what: str, name: bytes) -> NoReturn:
    def listed(names: Sequence[bytes], none: str) -> str:
        shown = ", ".join(quote(name) for name in sorted(names)[:10])
        return (shown + (", ..." if len(names) > 10 else "")) or none

    context = listed(list(message.context), "none")
    lists = listed(list(message.lists), "none")
    raise ContentError(
        f"expected {what} {quote(name)}, found context features: {context}; feature lists: {lists}"
    )


def _context(message: Message, name: bytes, kind: int | None, size: int | None) -> Value | None:
    """Returns a context feature or None; checks its kind and size unless these are None."""
    spans = message.context.get(name)
    if spans is None:
        return None
    value = parse_feature(message.data, spans)
    if value.kind == NONE:  # TensorFlow, too, treats it as missing
        return None
    if kind is not None and value.kind != kind:
        raise ContentError(
            f"expected {KINDS[kind]} in context feature {quote(name)}, found {KINDS[value.kind]}"
        )
    if size is not None and value.size != size:
        raise ContentError(
            f"expected {counted(size, 'value')} in context feature {quote(name)}, found "
            f"{value.size}"
        )
    return value


def _required(message: Message, name: bytes, kind: int | None, size: int | None) -> Value:
    value = _context(message, name, kind, size)
    if value is None:
        _missing(message, "context feature", name)
    return value


def _id(message: Message, name: bytes) -> str:
    start, end = _required(message, name, BYTES, 1).strings[0]
    if end - start > LONGEST_ID:
        raise ContentError(
            f"expected at most {LONGEST_ID} bytes in context feature {quote(name)},"
            f" found {end - start}"
        )
    try:
        return message.data[start:end].decode()
    except UnicodeDecodeError:
        shown = quote(message.data[start:end])
        raise ContentError(
            f"expected UTF-8 text in context feature {quote(name)}, found {shown}"
        ) from None


def _labels(message: Message, name: bytes) -> tuple[np.ndarray, bool]:
    """Returns the classes, and whether the record lacks their feature."""
    value = _context(message, name, INT64, None) if name else None
    if value is None:
        return np.zeros(0, dtype=np.int64), bool(name)
    return _classes(value.ints, name), False


def _classes(numbers: list[int], name: bytes) -> np.ndarray:
    for number in numbers:
        if number < 0:
            raise ContentError(
                f"expected numbers of at least 0 in context feature {quote(name)}, found {number}"
            )
    return np.array(numbers, dtype=np.int64)


def _floats(message: Message, value: Value) -> np.ndarray:
    runs = [message.data[start:end] for start, end in value.floats]
    return np.frombuffer(b"".join(runs), dtype="<f4").astype(np.float32)


class RatingTuple(NamedTuple):
    """Ratings as an engine returns them, with the numbers of its repairs.

    ``misfit`` has start and end of the first kept segment that ends elsewhere than `segment_size`
    frames after its start or at the end of the video; it is empty if there is none.
    """

    starts: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    dropped: int
    cut: int
    duplicates: int
    misfit: np.ndarray


def _ratings(message: Message, frames: int, segment_size: int) -> RatingTuple | None:
    of_starts, of_ends, of_classes, of_scores = (key.encode() for key in RATING_KEYS)
    keys = {of_starts: INT64, of_classes: INT64, of_scores: FLOAT}
    found = {key: _context(message, key, kind, None) for key, kind in keys.items()}
    present = [value for value in found.values() if value is not None]
    if not present:
        return None
    for key, value in found.items():
        if value is None:
            _missing(message, "context feature", key)
    starts, classes, scores = present
    ends = _context(message, of_ends, INT64, None)
    for key, value in ((of_classes, classes), (of_scores, scores), (of_ends, ends)):
        if value is not None and value.size != starts.size:
            raise ContentError(
                f"expected as many values in context feature {quote(key)} as in {quote(of_starts)}"
                f" ({starts.size}), found {value.size}"
            )
    _classes(starts.ints, of_starts)
    _classes(classes.ints, of_classes)
    values = _floats(message, scores)
    for score in values:
        if not 0 <= score <= 1:
            shown = "nan" if math.isnan(score) else f"{float(score):g}"
            raise ContentError(f"expected scores from 0 to 1 in {quote(of_scores)}, found {shown}")

    rated: dict[tuple[int, int], np.float32] = {}
    dropped, cut, duplicates = set(), set(), 0
    for start, number, score in zip(starts.ints, classes.ints, values, strict=True):
        if start >= frames:
            dropped.add(start)
            continue
        if start > frames - segment_size:
            cut.add(start)
        duplicates += (start, number) in rated
        rated[start, number] = score  # the last rating wins, in the place of the first
    return RatingTuple(
        np.array([start for start, _ in rated], dtype=np.int64),
        np.array([number for _, number in rated], dtype=np.int64),
        np.array(list(rated.values()), dtype=np.float32),
        len(dropped),
        len(cut),
        duplicates,
        np.array(
            _misfit(starts.ints, [] if ends is None else ends.ints, frames, segment_size), np.int64
        ),
    )


def _misfit(starts: list[int], ends: list[int], frames: int, size: int) -> list[int]:
    """Returns `RatingTuple.misfit`."""
    for start, end in zip(starts, ends, strict=False):
        if start < frames and end != start + size and not frames <= end < start + size:
            return [start, end]
    return []


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
        """Decodes one record."""
        message = Message.parse(data)
        name = _id(message, self._id_key)
        labels, unlabelled = _labels(message, self._labels_key)
        extra = tuple(self._extra(message, key) for key in self._context_keys)
        columns = [self._column(message, key, width) for key, width in self._features]
        first = self._features[0][0]
        if len(columns[0]) == 0:
            raise ContentError(f"expected at least 1 frame in feature list {quote(first)}, found 0")
        for (other, _), column in zip(self._features[1:], columns[1:], strict=True):
            if len(column) != len(columns[0]):
                raise ContentError(
                    f"expected as many frames in feature list {quote(other)} as in {quote(first)}"
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
                return encoded[:, len(header) :]  # the usual encoding; a shortcut
        rows = []
        for number, element in enumerate(message.frames(name)):
            value = parse_feature(message.data, [element])
            where = f"frame {number} of feature list {quote(name)}"
            if value.kind != BYTES:
                raise ContentError(f"expected bytes in {where}, found {KINDS[value.kind]}")
            if value.size != 1:
                raise ContentError(f"expected 1 value in {where}, found {value.size}")
            start, end = value.strings[0]
            if end - start != width:
                raise ContentError(f"expected {width} bytes in {where}, found {end - start}")
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
        """Returns an empty block for up to `capacity` records."""
        return VideoBlock(self, capacity)

    def decode(self, data: bytes) -> tuple[str, np.ndarray, np.ndarray, bool]:
        """Decodes one record: id, features, labels, and whether it lacks its labels."""
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
        """Decodes a record and keeps it."""
        self._rows.append(self._decoder.decode(data))
        return True

    @property
    def unlabelled(self) -> int:
        """Number of records that lack their labels."""
        return sum(row[3] for row in self._rows)

    def columns(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Returns ids, features (n, width) float32, label offsets (n + 1,) and labels, int64."""
        ids = [row[0] for row in self._rows]
        features = np.stack([row[1] for row in self._rows])
        sizes = [0] + [len(row[2]) for row in self._rows]
        labels = np.concatenate([row[2] for row in self._rows])
        return ids, features, np.cumsum(sizes, dtype=np.int64), labels
