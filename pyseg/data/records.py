"""Reading and writing YouTube-8M records: TFRecord files of tf.Example and tf.SequenceExample.

Three kinds of file are read: frame-level features, frame-level features with rated segments, and
video-level mean features, plain or gzip-compressed (recognised by content). Nothing of TensorFlow
or protobuf is needed. The work is done by the native module `pyseg._records`; where that is not
built, by `pyseg.data._records_reference`, with the same results and the same errors.

Every record's checksums are verified, and bad input is an error that names the file, the record,
its place, and what was expected and found (`RecordError`). Faults that the public data is known to
contain are mended and counted instead (`ReadReport`): see `Ratings`. A record may have 256 MiB, 64
hours of frames, or what the environment variable `PYSEG_MAX_RECORD_BYTES` says; a longer one is
refused before memory is taken for it.

Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> frames = np.zeros((3, 1152), dtype=np.uint8)  # 3 seconds of rgb (1024) and audio (128)
    >>> path = os.path.join(tempfile.mkdtemp(), "train0000.tfrecord")
    >>> write_records(path, [encode_frames("06xy", frames, labels=[3, 12])])
    1
    >>> for record in read_frames(path):
    ...     print(record.id, record.frames.shape, record.labels)
    06xy (3, 1152) [ 3 12]
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from pyseg import _ext
from pyseg._files import atomic_write
from pyseg.data import _records_reference as reference
from pyseg.data._tables import is_zlib
from pyseg.errors import ArgumentError, RecordError, UserError

PathLike = str | os.PathLike[str]
_Result = TypeVar("_Result")

_LARGEST_RECORD = 1 << 28  # bytes, by default
_MOST_FEATURES = 10_000  # of a record that is sniffed
_CONTEXT = 512  # bytes of a record that usually hold its context features
_VARINT = 10  # bytes of the longest number
_HEAD = 512  # bytes from the start of a file that tell what it is
_PACKED = 1 << 16  # compressed bytes read at a time
_UNPACKED = 1 << 18  # and the most that are unpacked at a time


# ------------------------------------------------------------------------------- what users handle


class RecordWarning(UserWarning):
    """Something was skipped, dropped or overwritten while reading: one line at the end."""


@contextlib.contextmanager
def without_record_warnings() -> Iterator[None]:
    """Leaves out every `RecordWarning`, where what they say is told in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        yield


@dataclass
class ReadReport:
    """What happened while reading; several reports add up with `+=`.

    Attributes:
        records: Records that were decoded.
        skipped: Records that could not be (`on_error="skip"`). A file that breaks off counts as
            one, whatever it lost.
        unlabelled: Records without the feature that the schema names for labels, read as records
            of no labels.
        dropped_segments: Rated segments that start at or past the end of their video.
        cut_segments: Rated segments, kept, that the end of their video cuts short.
        duplicate_ratings: Ratings overwritten by a later one of the same segment and class.
        first_error: The first error that was skipped.
    """

    records: int = 0
    skipped: int = 0
    unlabelled: int = 0
    dropped_segments: int = 0
    cut_segments: int = 0
    duplicate_ratings: int = 0
    first_error: str | None = None

    def skip(self, error: str) -> None:
        """Count a record that is left out, because of this error."""
        self.skipped += 1
        self.first_error = self.first_error or error

    def merge(self, other: ReadReport) -> ReadReport:
        """Add the counts of `other` to this report, and return it."""
        self.records += other.records
        self.skipped += other.skipped
        self.unlabelled += other.unlabelled
        self.dropped_segments += other.dropped_segments
        self.cut_segments += other.cut_segments
        self.duplicate_ratings += other.duplicate_ratings
        self.first_error = self.first_error or other.first_error
        return self

    __iadd__ = merge

    def summary(self) -> str:
        """One line on what was skipped, dropped and overwritten; empty where nothing was.

        Example:
            >>> ReadReport(records=10, skipped=1, first_error="a.tfrecord: ...").summary()
            'skipped 1 record (the first: a.tfrecord: ...)'
        """
        parts = []
        if self.skipped:
            records = _count(self.skipped, "record")
            parts.append(f"skipped {records} (the first: {self.first_error})")
        if self.unlabelled:
            parts.append(f"found {_count(self.unlabelled, 'record')} without labels")
        if self.dropped_segments:
            segments = _count(self.dropped_segments, "rated segment")
            parts.append(f"dropped {segments} past the end of the video")
        if self.duplicate_ratings:
            parts.append(f"overwrote {_count(self.duplicate_ratings, 'rating')} by later ones")
        return ", ".join(parts)

    def warn(self, what: str, stacklevel: int = 2) -> None:
        """Give the summary as a `RecordWarning` that starts with `what`, unless it is empty."""
        if summary := self.summary():
            warnings.warn(f"{what}: {summary}", RecordWarning, stacklevel=stacklevel + 1)


@dataclass(frozen=True)
class FrameSchema:
    """What the features of frame-level records are called.

    The default is YouTube-8M's. AudioSet's embeddings, for example, are
    `FrameSchema(features=(("audio_embedding", 128),), id_key="video_id")`.

    Attributes:
        features: Name and bytes a frame of each feature list, in the order of the output.
        id_key: Context feature with the id (text).
        labels_key: Context feature with the class numbers, which a record may lack
            (`ReadReport.unlabelled`); None to read no labels.
        segment_size: Frames of a rated segment.

    Example:
        >>> FrameSchema().width
        1152
    """

    features: tuple[tuple[str, int], ...] = (("rgb", 1024), ("audio", 128))
    id_key: str = "id"
    labels_key: str | None = "labels"
    segment_size: int = 5

    def __post_init__(self) -> None:
        """Check the values."""
        _check_schema(self.features, self.id_key, self.labels_key)
        if self.segment_size < 1:
            raise ArgumentError(
                f"segment_size: expected at least 1 frame, found {self.segment_size}"
            )

    @property
    def width(self) -> int:
        """Bytes a frame of all features together."""
        return sum(width for _, width in self.features)


@dataclass(frozen=True)
class VideoSchema:
    """What the features of video-level records are called; the default is YouTube-8M's.

    Attributes:
        features: Name and number of values of each float feature, in the order of the output; none
            to read ids and labels alone, of frame-level records too.
        id_key: Feature with the id (text).
        labels_key: Feature with the class numbers, which a record may lack
            (`ReadReport.unlabelled`); None to read no labels.

    Example:
        >>> VideoSchema().width
        1152
    """

    features: tuple[tuple[str, int], ...] = (("mean_rgb", 1024), ("mean_audio", 128))
    id_key: str = "id"
    labels_key: str | None = "labels"

    def __post_init__(self) -> None:
        """Check the values."""
        _check_schema(self.features, self.id_key, self.labels_key, fewest=0)

    @property
    def width(self) -> int:
        """Values of all features together."""
        return sum(width for _, width in self.features)


class Ratings(NamedTuple):
    """The rated segments of a video: R pairs of a segment and a class, with their scores.

    They are clean: a segment that starts past the last frame is dropped, and of several ratings of
    the same segment and class the last one is kept, in the place of the first (the reader that came
    with YouTube-8M does the same). A segment that the end of the video cuts short is kept.

    Attributes:
        starts: (R,) int64, frame at which the segment starts.
        classes: (R,) int64, class number.
        scores: (R,) float32, 0 to 1.
    """

    starts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


class FrameRecord(NamedTuple):
    """A frame-level record.

    Attributes:
        id: Id of the video.
        frames: (T, width) uint8, T >= 1: the quantised features of each frame, those of several
            feature lists side by side in the order of the schema.
        labels: (L,) int64, class numbers of the video, as stored.
        ratings: The rated segments; None where the record has none of the `segment_*` features.
        context: The values of the `context_keys`.
    """

    id: str
    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    ratings: Ratings | None
    context: dict[str, float | int | bytes]


class VideoRecords(NamedTuple):
    """A block of n video-level records, column by column.

    Attributes:
        ids: n ids.
        features: (n, width) float32, several features side by side in the order of the schema.
        label_offsets: (n + 1,) int64; the classes of video i are
            `labels[label_offsets[i]:label_offsets[i + 1]]`.
        labels: int64, class numbers of all videos.
    """

    ids: list[str]
    features: npt.NDArray[np.float32]
    label_offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


class FeatureKind(NamedTuple):
    """Type and size of a feature.

    Attributes:
        type: "bytes", "float", "int64", or "nothing" where it is there but empty.
        size: Number of values; of a single byte string its length, and of a feature list the size
            of its first frame (0 where there is no frame).
    """

    type: str
    size: int


class RecordKind(NamedTuple):
    """What the first record of a file holds.

    Attributes:
        context: Context features (of a tf.Example: features) by name.
        lists: Feature lists by name.
        compressed: Whether the file is gzip-compressed.
    """

    context: dict[str, FeatureKind]
    lists: dict[str, FeatureKind]
    compressed: bool


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _check_schema(
    features: Sequence[tuple[str, int]], id_key: str, labels_key: str | None, fewest: int = 1
) -> None:
    names = [name for name, _ in features]
    wide = all(1 <= width < 2**31 for _, width in features)
    if len(names) < fewest or len(set(names)) != len(names) or not wide:
        raise ArgumentError(
            f"features: expected different names, each with a width of at least 1, found {features}"
        )
    if not id_key or labels_key == "":
        raise ArgumentError(
            f"id_key and labels_key: expected names, found {id_key!r} and {labels_key!r}"
        )


# ----------------------------------------------------------------------------- opening and faults


def _engine() -> Any:
    return reference if _ext.records is None else _ext.records


class _Gunzip:
    """Unpacks a gzip file of one or more members, in bounded memory.

    Unlike `gzip.GzipFile`, it hands out all that could be unpacked before it reports a fault, so
    that the records before the fault are not lost.
    """

    def __init__(self, file: BinaryIO, size: int = -1) -> None:
        self.head = b""  # of the unpacked data
        self._file = file
        self._size = size
        self._consumed = 0
        self._packed = b""
        self._piece = _PACKED  # bytes that are given to the unpacker at a time
        self._unpacker = zlib.decompressobj(wbits=31)
        self._ready = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._ready:
            if not self._step():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _step(self) -> bool:
        """Unpack a piece; False at the end."""
        if not self._packed:
            self._packed = self._file.read(_PACKED)
            self._consumed += len(self._packed)
        if self._unpacker.eof:  # another member may follow, or zeros that fill up a tape block
            if not self._packed:
                if self._consumed < self._size:  # cut short since it was opened
                    raise OSError(
                        f"expected {self._size} bytes in the file, found {self._consumed}"
                    )
                return False
            self._packed = self._packed.lstrip(b"\0")
            if self._packed:
                self._unpacker = zlib.decompressobj(wbits=31)
            return True
        if not self._packed:
            raise OSError(
                "expected gzip data to go on, found the end of the file after"
                f" {self._consumed} bytes"
            )
        piece, rest = self._packed[: self._piece], self._packed[self._piece :]
        before = self._unpacker.copy()
        try:
            self._ready = memoryview(self._unpacker.decompress(piece, _UNPACKED))
        except zlib.error as error:
            if len(piece) > 1:  # zlib drops what it unpacked before the fault: take a smaller piece
                self._unpacker, self._piece = before, len(piece) // 2
                return True
            found = str(error).rpartition(": ")[2]
            raise OSError(
                f"expected valid gzip data before byte {self._consumed} of the file, found {found}"
            ) from None
        self._packed = (self._unpacker.unconsumed_tail or self._unpacker.unused_data) + rest
        if not self.head:
            self.head = bytes(self._ready[:_HEAD])
        return True


class _Rest:
    """A file that cannot be rewound (a pipe), from its beginning again."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def read(self, count: int) -> bytes:
        head, self._head = self._head[:count], self._head[count:]
        return head or self._file.read(count)

    def readinto(self, buffer: memoryview, /) -> int | None:
        if not self._head:
            return self._file.readinto(buffer)  # type: ignore[attr-defined]
        head = self.read(len(buffer))
        buffer[: len(head)] = head
        return len(head)


# What a file that is no TFRecord starts with, and what it then is.
_LOOKS = (
    (b"<", "an HTML or XML page, such as a storage server answers instead of a missing file"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself"),
    (b"\x1f\x8b", "gzip-compressed data (compressed twice, or damaged)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "HDF5"),
    (b"ustar", "a tar archive"),
)


def _looks_like(head: bytes) -> str:
    """What a file that is no TFRecord seems to be, from its first bytes."""
    if head[257:262] == b"ustar":
        return "it looks like a tar archive"
    if is_zlib(head):
        return "it looks like zlib-compressed data (TensorFlow's ZLIB option), not gzip"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in _LOOKS:
        if start.startswith(magic):
            return f"it looks like {what}"
    if head and all(byte >= 0x20 or byte in b"\t\r\n" for byte in head):
        line = head.splitlines()[0]
        what = "a table of comma-separated values" if b"," in line else "text"
        return f"it looks like {what} that begins {reference.show(line)}"
    return "it is no TFRecord file, or its first 12 bytes are damaged"


def _largest_record() -> int:
    name = "PYSEG_MAX_RECORD_BYTES"
    text = os.environ.get(name) or str(_LARGEST_RECORD)
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= reference.LARGEST_RECORD:
        raise UserError(f"{name}: expected 1 to {reference.LARGEST_RECORD}, found {text[:40]!r}")
    return int(text)


def _context(file: BinaryIO, length: int) -> bytes:
    """The beginning of a record that holds its context; all of it where the rest may have more."""
    head = file.read(min(length, _CONTEXT))
    if head[:1] == b"\x0a":  # field 1: the context, or the features of a tf.Example
        count, at = _varint(head, 1)
        end = at + count
        if end == length:
            return head + file.read(length - len(head))
        if end + _VARINT <= length:
            head += file.read(max(0, end + _VARINT - len(head)))
            if (
                head[end : end + 1] == b"\x12"
            ):  # field 2: the feature lists, up to the end of the record
                count, at = _varint(head, end + 1)
                if at + count == length:
                    return head[:end]
    return head + file.read(length - len(head))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends; beyond all bounds where the data is too short."""
    value = 0
    for place, byte in enumerate(data[at : at + _VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 1 << 64, at


class _File:
    """An open file of records: takes from it with an engine, and decides what a fault leads to."""

    def __init__(
        self,
        path: str,
        on_error: str,
        report: ReadReport,
        shard: tuple[int, int],
    ) -> None:
        self.report = report
        self.shard = shard
        self._path = path
        self._skip = on_error == "skip"
        self._engine = _engine()
        try:
            self._file: Any = open(path, "rb", buffering=0)  # noqa: SIM115 - closed in __exit__
        except IsADirectoryError:
            raise RecordError(f"{path}: expected a TFRecord file, found a folder", path) from None
        except OSError as error:
            found = error.strerror or str(error)
            raise RecordError(f"{path}: expected a readable file, found: {found}", path) from error
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        size = -1
        source: Any
        status = os.fstat(self._file.fileno())
        head = self._read_head()
        if stat.S_ISREG(status.st_mode):
            size = status.st_size or -1  # the kernel's own files say 0, whatever they hold
            self._file.seek(0)
            source = self._file
        else:
            source = _Rest(head, self._file)
        self._head = head
        self._unpacked: _Gunzip | None = None
        # A length of 35,615 bytes, too, begins 1f 8b: the checksum tells.
        if head[:2] == b"\x1f\x8b" and not self._is_header(head[:12]):
            source, size = _Gunzip(source, size), -1
            self._unpacked = source
        self._reader = self._engine.Reader(source, size, _largest_record())

    def _read_head(self) -> bytes:
        head = b""
        try:
            while len(head) < _HEAD and (piece := self._file.read(_HEAD - len(head))):
                head += piece
        except OSError as error:
            found = error.strerror or str(error)
            text = f"{self._path}: expected a readable file, found: {found}"
            raise RecordError(text, self._path) from error
        return head

    def _is_header(self, header: bytes) -> bool:
        checksum = reference.mask(self._engine.crc32c(header[:8]))
        return len(header) == 12 and int.from_bytes(header[8:], "little") == checksum

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def compressed(self) -> bool:
        return self._unpacked is not None

    def begins_as_records(self) -> bool:
        if self._unpacked is None:
            return self._is_header(self._head[:12])
        with contextlib.suppress(OSError):
            self._unpacked.readinto(memoryview(bytearray(1)))
        return self._is_header(self._unpacked.head[:12])

    def contexts(self) -> Iterator[bytes]:
        """What holds the context features of each record: its beginning, or all of it."""
        if self.compressed or not self._file.seekable():
            while (record := self.take("next_record")) is not None:
                yield record
            return
        size, largest = os.fstat(self._file.fileno()).st_size, _largest_record()
        with open(self._path, "rb", buffering=1 << 13) as file:
            offset = 0
            while self._is_header(header := file.read(12)):
                length = int.from_bytes(header[:8], "little")
                if offset + 16 + length > size or length > largest:
                    return
                yield _context(file, length)
                offset += 16 + length
                file.seek(offset)

    def take(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine's reader until it succeeds; None after the last record."""
        while True:
            try:
                return getattr(self._reader, method)(*arguments, *self.shard)
            except self._engine.Fault as fault:
                text, record, offset, fatal = fault.args
                head = self._unpacked.head if self._unpacked else self._head
                if fatal and record == 0 and head and not self._is_header(head[:12]):
                    text += f"; {_looks_like(head)}"
            except OSError as error:
                record, offset, fatal = self._reader.record, self._reader.offset, True
                text = f"reading failed: {error.strerror}" if error.strerror else str(error)
            self._skip_or_raise(text, record, offset)
            if fatal:
                return None

    def refuse(self, text: str) -> None:
        """Skip the record that was taken last, or raise, because of what `text` says."""
        self._skip_or_raise(text, self._reader.record, self._reader.offset)

    def _skip_or_raise(self, text: str, record: int, offset: int) -> None:
        unpacked = " of the unpacked data" if self.compressed else ""
        message = f"{self._path}: record {record} at byte {offset}{unpacked}: {text}"
        if not self._skip:
            raise RecordError(message, self._path, record, offset)
        index, count = self.shard
        if record % count == index:  # the others' faults are theirs to count
            self.report.skip(message)


def _read(
    path: PathLike,
    on_error: str,
    report: ReadReport | None,
    shard: tuple[int, int],
    records: Callable[[_File], Iterator[_Result]],
) -> Iterator[_Result]:
    """Check the arguments that all readers share, now; read when the first record is wanted."""
    name = os.fsdecode(path)
    if on_error not in ("raise", "skip"):
        raise ArgumentError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
    index, count = shard
    if not 0 <= index < count:
        raise ArgumentError(
            f"shard: expected (index, count) with 0 <= index < count, found {shard}"
        )

    def generate() -> Iterator[_Result]:
        filled = ReadReport() if report is None else report
        with _File(name, on_error, filled, (index, count)) as file:
            yield from records(file)
        if report is None:
            filled.warn(name)

    return generate()


# ----------------------------------------------------------------------------------------- reading


def read_records(path: PathLike, on_error: str = "raise") -> Iterator[bytes]:
    """Read the payloads of a TFRecord file, as they are.

    Args:
        path: A TFRecord file, plain or gzip-compressed.
        on_error: "raise", or "skip" to go on with the next record after one that is damaged. Where
            the place of the next record is not known, the file ends there. What was skipped is told
            by a `RecordWarning` at the end.

    Yields:
        The bytes of each record.

    Raises:
        RecordError: The file cannot be read, or a record is damaged.
        ValueError: `on_error` is neither of the two.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "two.tfrecord")
        >>> write_records(path, [b"first", b"second"])
        2
        >>> list(read_records(path))
        [b'first', b'second']
    """

    def records(file: _File) -> Iterator[bytes]:
        while (payload := file.take("next_record")) is not None:
            file.report.records += 1
            yield payload

    return _read(path, on_error, None, (0, 1), records)


def read_frames(
    path: PathLike,
    schema: FrameSchema = FrameSchema(),
    *,
    max_frames: int | None = None,
    on_error: str = "raise",
    report: ReadReport | None = None,
    shard: tuple[int, int] = (0, 1),
    context_keys: Sequence[str] = (),
    sound: Callable[[str], bool] | None = None,
) -> Iterator[FrameRecord]:
    """Read frame-level records (tf.SequenceExample), with rated segments where there are any.

    Args:
        path: A TFRecord file, plain or gzip-compressed.
        schema: What the features are called.
        max_frames: Frames to keep of a longer video; ratings that start past them are dropped.
            None keeps all.
        on_error: "raise", or "skip" to go on with the next record after one that is damaged or not
            as expected. Where the place of the next record is not known, the file ends there. A
            file that cannot be opened is an error all the same.
        report: Counts are added to it while reading, and what to say of them is then the caller's
            affair; without it a `RecordWarning` at the end says what was skipped, dropped or
            overwritten.
        shard: `(i, n)`: only records whose number is i modulo n are decoded. The checksums of the
            others are verified all the same.
        context_keys: Further context features of one value each, handed out as `context`.
        sound: Which ids can be written where they are to be; a record with another one is faulty.

    Yields:
        The records.

    Raises:
        RecordError: The file cannot be read, or a record is damaged or not as expected.
        ValueError: An argument is out of range.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> path = os.path.join(tempfile.mkdtemp(), "rated.tfrecord")
        >>> frames = np.full((12, 1152), 7, dtype=np.uint8)
        >>> ratings = Ratings(np.array([0, 5]), np.array([4, 4]), np.array([1.0, 0.0]))
        >>> write_records(path, [encode_frames("06xy", frames, [4], ratings)])
        1
        >>> [record] = read_frames(path, max_frames=10)
        >>> record.frames.shape, record.ratings.starts, record.ratings.scores
        ((10, 1152), array([0, 5]), array([1., 0.], dtype=float32))
    """
    if max_frames is not None and not (
        isinstance(max_frames, (int, np.integer)) and max_frames >= 1
    ):
        raise ArgumentError(
            f"max_frames: expected a whole number of at least 1, or None, found {max_frames}"
        )
    decoder = _engine().FrameDecoder(
        [(name.encode(), width) for name, width in schema.features],
        schema.id_key.encode(),
        (schema.labels_key or "").encode(),
        schema.segment_size,
        max_frames or 0,
        [key.encode() for key in context_keys],
    )

    def records(file: _File) -> Iterator[FrameRecord]:
        while (record := file.take("next_frames", decoder)) is not None:
            name, frames, labels, rated, extra, unlabelled = record
            if sound is not None and not sound(name):
                found = reference.show(name.encode())
                file.refuse(
                    f"expected an id without white space and control characters, found {found}"
                )
                continue
            file.report.records += 1
            file.report.unlabelled += unlabelled
            ratings = None
            if rated is not None:
                starts, classes, scores, dropped, cut, duplicates = rated
                ratings = Ratings(starts, classes, scores)
                file.report.dropped_segments += dropped
                file.report.cut_segments += cut
                file.report.duplicate_ratings += duplicates
            context = dict(zip(context_keys, extra, strict=True))
            yield FrameRecord(name, frames, labels, ratings, context)

    return _read(path, on_error, report, shard, records)


def read_videos(
    path: PathLike,
    schema: VideoSchema = VideoSchema(),
    *,
    block: int = 1024,
    on_error: str = "raise",
    report: ReadReport | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[VideoRecords]:
    """Read video-level records (tf.Example, or tf.SequenceExample with context features) in blocks.

    Args:
        path: A TFRecord file, plain or gzip-compressed.
        schema: What the features are called.
        block: Most records of a block. All blocks but the last of a file are full.
        on_error: As for `read_frames`. With "raise", the records before the bad one come first.
        report: As for `read_frames`.
        shard: As for `read_frames`.

    Yields:
        Blocks of at least one record.

    Raises:
        RecordError: The file cannot be read, or a record is damaged or not as expected.
        ValueError: An argument is out of range.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> path = os.path.join(tempfile.mkdtemp(), "video.tfrecord")
        >>> features = np.zeros(1152, dtype=np.float32)
        >>> write_records(path, [encode_video(name, features, [1, 5]) for name in ("a", "b")])
        2
        >>> [videos] = read_videos(path)
        >>> videos.ids, videos.features.shape, videos.label_offsets, videos.labels
        (['a', 'b'], (2, 1152), array([0, 2, 4]), array([1, 5, 1, 5]))
    """
    if block < 1:
        raise ArgumentError(f"block: expected at least 1 record, found {block}")
    decoder = _engine().VideoDecoder(
        [(name.encode(), width) for name, width in schema.features],
        schema.id_key.encode(),
        (schema.labels_key or "").encode(),
    )

    def records(file: _File) -> Iterator[VideoRecords]:
        more = True
        while more:
            videos = decoder.block(block)
            error = None
            try:
                more = bool(file.take("fill", videos))
            except RecordError as found:
                error, more = found, False
            if len(videos):
                file.report.records += len(videos)
                file.report.unlabelled += videos.unlabelled
                yield VideoRecords(*videos.columns())
            if error is not None:
                raise error

    return _read(path, on_error, report, shard, records)


def sniff(path: PathLike, on_error: str = "raise") -> RecordKind | None:
    """Look at the first record of a file and say what it holds; None where there is no record.

    Args:
        path: A file of records.
        on_error: "raise", or "skip" to look at the first record that is not damaged.

    Raises:
        RecordError: The file cannot be read, or its first record is damaged or has more than 10,000
            features.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> path = os.path.join(tempfile.mkdtemp(), "frames.tfrecord")
        >>> write_records(path, [encode_frames("06xy", np.zeros((2, 1152), np.uint8), [4])])
        1
        >>> kind = sniff(path)
        >>> kind.lists["rgb"], kind.context["labels"], kind.compressed
        (FeatureKind(type='bytes', size=1024), FeatureKind(type='int64', size=1), False)
    """
    name = os.fsdecode(path)
    with _File(name, on_error, ReadReport(), (0, 1)) as file:
        data = file.take("next_record")
        if data is None:
            return None
        try:
            message = reference.Message.parse(data, _MOST_FEATURES)
            context = {
                _text(key): _feature_kind(data, spans) for key, spans in message.context.items()
            }
            lists = {
                _text(key): _feature_kind(data, list(itertools.islice(message.frames(key), 1)))
                for key in message.lists
            }
        except reference.Wrong as wrong:
            raise RecordError(f"{name}: record 0 at byte 0: {wrong}", name, 0, 0) from None
        return RecordKind(context, lists, file.compressed)


def is_record_file(path: PathLike) -> bool:
    """Say whether a file begins as TFRecords do, plain or gzip-compressed.

    It does not where it is empty or cannot be read.

    Example:
        >>> is_record_file(__file__)
        False
    """
    try:
        with _File(os.fsdecode(path), "raise", ReadReport(), (0, 1)) as file:
            return file.begins_as_records()
    except RecordError:
        return False


def find_features(path: PathLike, names: Iterable[str]) -> set[str]:
    """Say which of some context features occur in the records of a file.

    Frames are not read: of a file that is not compressed only the beginning of each record is. Nor
    are the checksums of records verified; a file that breaks off is searched as far as it goes.

    Args:
        path: A TFRecord file, plain or gzip-compressed.
        names: The features; the search ends when all have been found.

    Raises:
        RecordError: The file cannot be read.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> path = os.path.join(tempfile.mkdtemp(), "frames.tfrecord")
        >>> write_records(path, [encode_frames("06xy", np.zeros((2, 1152), np.uint8), [4])])
        1
        >>> find_features(path, ["labels", "segment_labels"])
        {'labels'}
    """
    wanted = {name.encode(): name for name in names}
    left = set(wanted)
    with _File(os.fsdecode(path), "skip", ReadReport(), (0, 1)) as file:
        for data in file.contexts():
            # A name that the bytes do not hold needs no parsing.
            if any(name in data for name in left):
                with contextlib.suppress(reference.Wrong):
                    left -= reference.Message.parse(data, _MOST_FEATURES).context.keys()
            if not left:
                break
    return {name for key, name in wanted.items() if key not in left}


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _feature_kind(data: bytes, spans: Sequence[reference.Span]) -> FeatureKind:
    value = reference.feature(data, spans)
    if value.kind == reference.BYTES and value.size == 1:
        [(start, end)] = value.strings
        return FeatureKind("bytes", end - start)
    return FeatureKind(reference.KINDS[value.kind], value.size)


# ----------------------------------------------------------------------------------------- writing


def write_records(path: PathLike, records: Iterable[bytes], *, compress: bool = False) -> int:
    """Write a TFRecord file.

    The file appears under its name when it is complete, not before: it is written under another
    name in the same folder, then renamed. The same records give the same bytes.

    Args:
        path: The file; one that exists is replaced.
        records: The payload of each record, for example from `encode_frames`; at least one.
        compress: Whether to compress with gzip.

    Returns:
        Number of records written.

    Raises:
        ValueError: There is no record, or one is too large for protobuf.
        OSError: The file cannot be written.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "one.tfrecord.gz")
        >>> write_records(path, [b"payload"], compress=True)
        1
        >>> list(read_records(path))
        [b'payload']
    """
    crc32c = _engine().crc32c
    count = 0
    with atomic_write(Path(os.fsdecode(path))) as whole, contextlib.ExitStack() as stack:
        file: Any = whole
        if compress:  # no name and no time in it, so that the same records give the same bytes
            file = stack.enter_context(
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=whole, mtime=0)
            )
        for record in records:
            if not isinstance(record, bytes | bytearray | memoryview):
                raise ArgumentError(
                    f"records: expected bytes, found {type(record).__name__} in record {count}"
                )
            if len(record) > reference.LARGEST_RECORD:
                raise ArgumentError(
                    f"records: expected at most {reference.LARGEST_RECORD} bytes in record"
                    f" {count}, found {len(record)}"
                )
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", reference.mask(crc32c(length))))
            file.write(record)
            file.write(struct.pack("<I", reference.mask(crc32c(record))))
            count += 1
        if not count:
            raise ArgumentError("records: expected at least one, found none")
    return count


_RATING_KEYS = (
    "segment_start_times",
    "segment_end_times",
    "segment_labels",
    "segment_scores",
)


def encode_frames(
    id: str,
    frames: npt.ArrayLike,
    labels: npt.ArrayLike,
    ratings: Ratings | None = None,
    schema: FrameSchema = FrameSchema(),
    *,
    segment_ends: npt.ArrayLike | None = None,
    context: Mapping[str, float | int | bytes | str] | None = None,
) -> bytes:
    """Encode a frame-level record as tf.SequenceExample.

    Args:
        id: Id of the video.
        frames: (T, schema.width) uint8, T >= 1.
        labels: (L,) class numbers.
        ratings: Rated segments, stored as they are: even those that a reader would drop.
        schema: What the features are called.
        segment_ends: (R,) first frame after each segment; by default its start + segment_size.
        context: Further context features of one value each.

    Returns:
        The payload of the record.

    Raises:
        ValueError: An argument does not have the shape, type or range that a reader expects.

    Example:
        >>> import numpy as np
        >>> len(encode_frames("06xy", np.zeros((1, 1152), dtype=np.uint8), [3]))
        1232
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 2 or not len(frames):
        raise ArgumentError(
            f"frames: expected uint8 of shape (T >= 1, {schema.width}),"
            f" found {frames.dtype} of shape {frames.shape}"
        )
    if frames.shape[1] != schema.width:
        raise ArgumentError(f"frames: expected a width of {schema.width}, found {frames.shape[1]}")
    entries = _identity(id, labels, schema)
    own = {schema.id_key, schema.labels_key, *_RATING_KEYS}
    for key, value in (context or {}).items():
        if key in own:
            raise ArgumentError(
                f"context: expected other features than the record's own, found {key!r}"
            )
        entries.append((key, _scalar(key, value)))
    if ratings is None:
        if segment_ends is not None:
            raise ArgumentError("segment_ends: expected none without ratings")
    else:
        starts = _whole("ratings.starts", ratings.starts)
        ends = starts + schema.segment_size
        if segment_ends is not None:
            ends = _whole("segment_ends", segment_ends)
        classes = _whole("ratings.classes", ratings.classes)
        scores = np.asarray(ratings.scores, dtype=np.float32)
        sizes = (starts.shape, ends.shape, classes.shape, scores.shape)
        if len(set(sizes)) != 1:
            raise ArgumentError(
                "ratings: expected as many starts, ends, classes and scores, found shapes "
                + ", ".join(map(str, sizes))
            )
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ArgumentError(f"ratings.scores: expected 0 to 1, found {scores}")
        values = _ints(starts), _ints(ends), _ints(classes), _floats(scores)
        entries += zip(_RATING_KEYS, values, strict=True)
    lists = [(name, _rows(frames[:, columns])) for name, columns in _columns(schema)]
    return _field(1, _map(entries)) + _field(2, _map(lists))


def encode_video(
    id: str,
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    schema: VideoSchema = VideoSchema(),
) -> bytes:
    """Encode a video-level record as tf.Example.

    Args:
        id: Id of the video.
        features: (schema.width,) floats, stored as float32.
        labels: (L,) class numbers.
        schema: What the features are called.

    Returns:
        The payload of the record.

    Raises:
        ValueError: An argument does not have the shape, type or range that a reader expects.

    Example:
        >>> import numpy as np
        >>> len(encode_video("06xy", np.zeros(1152), [3]))
        4690
    """
    values = np.asarray(features, dtype=np.float32)
    if values.shape != (schema.width,):
        raise ArgumentError(f"features: expected shape ({schema.width},), found {values.shape}")
    entries = _identity(id, labels, schema)
    entries += [(name, _floats(values[columns])) for name, columns in _columns(schema)]
    return _field(1, _map(entries))


def _identity(
    id: str, labels: npt.ArrayLike, schema: FrameSchema | VideoSchema
) -> list[tuple[str, bytes]]:
    """The features that every record has."""
    numbers = _whole("labels", labels)
    try:
        name = id.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ArgumentError(f"id: expected text, found {id!r}") from None
    if len(name) > reference.LONGEST_ID:
        raise ArgumentError(f"id: expected at most {reference.LONGEST_ID} bytes, found {len(name)}")
    entries = [(schema.id_key, _field(1, _field(1, name)))]
    if schema.labels_key is not None:
        entries.append((schema.labels_key, _ints(numbers)))
    elif numbers.size:
        raise ArgumentError(
            f"labels: expected none without schema.labels_key, found {numbers.size}"
        )
    return entries


def _columns(schema: FrameSchema | VideoSchema) -> Iterator[tuple[str, slice]]:
    """Each feature's name, and which columns of the features side by side are its own."""
    start = 0
    for name, width in schema.features:
        yield name, slice(start, start + width)
        start += width


def _whole(name: str, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Numbers of at least 0 as int64."""
    array = np.asarray(numbers)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError(
            f"{name}: expected integers of shape (n,), found {array.dtype} of shape {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise ArgumentError(
            f"{name}: expected 0 to 2**63 - 1, found {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of wire type 2: a message, text, bytes or packed numbers."""
    return reference.varint(number << 3 | 2) + reference.varint(len(content)) + content


def _map(entries: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(_field(1, _field(1, key.encode()) + _field(2, value)) for key, value in entries)


def _ints(values: Iterable[int]) -> bytes:
    packed = b"".join(reference.varint(int(value) & (1 << 64) - 1) for value in values)
    return _field(3, _field(1, packed) if packed else b"")


def _floats(values: npt.ArrayLike) -> bytes:
    packed = np.asarray(values, dtype="<f4").tobytes()
    return _field(2, _field(1, packed) if packed else b"")


def _scalar(key: str, value: float | int | bytes | str) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _field(1, _field(1, value))
    if isinstance(value, (int, np.integer)):
        return _ints([int(value)])
    if not isinstance(value, (float, np.floating)) or not math.isfinite(value):
        raise ArgumentError(f"context[{key!r}]: expected text or a finite number, found {value!r}")
    return _floats([value])


def _rows(frames: npt.NDArray[np.uint8]) -> bytes:
    """A tf.FeatureList with one byte string a frame."""
    header = np.frombuffer(reference.row_header(frames.shape[1]), dtype=np.uint8)
    return np.hstack([np.broadcast_to(header, (len(frames), len(header))), frames]).tobytes()
