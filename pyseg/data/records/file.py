"""An open file of records: opens the source of its bytes and handles faults."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pyseg._files import open_shard
from pyseg._remote import RemoteFile
from pyseg._urls import is_url
from pyseg.data.records.engine import engine
from pyseg.data.records.framing import LARGEST_RECORD, mask
from pyseg.data.records.report import ReadReport
from pyseg.data.records.sources import HEAD, Gunzip, Rest, looks_like
from pyseg.data.records.wire import LONGEST_VARINT
from pyseg.errors import MissingFileError, RecordError, UserError

_LARGEST_RECORD = 1 << 28  # bytes, by default
_CONTEXT = 512  # bytes that usually hold a record's context features


class RecordFile:
    """An open file of records, which an engine reads.

    Args:
        path: A TFRecord file, plain or gzip-compressed, or the name of the URL of one.
        on_error: "raise" an error at a faulty record, or "skip" it.
        report: Counts skipped records.
        shard: `(i, n)`: only records whose number is i modulo n are taken.

    Raises:
        RecordError: It cannot be read.
    """

    def __init__(
        self,
        path: str,
        on_error: str = "raise",
        report: ReadReport | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.report = ReadReport() if report is None else report
        self.shard = shard
        self._path = path
        self._skip = on_error == "skip"
        self._engine = engine()
        try:
            self._file: Any = open_shard(path)
        except IsADirectoryError:
            raise RecordError(f"{path}: expected a TFRecord file, found a folder", path) from None
        except (MissingFileError, UserError) as error:  # of a URL
            raise RecordError(str(error), path) from error
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
        head = self._read_head()
        if isinstance(self._file, RemoteFile):
            size, source = self._file.size, Rest(head, cast(BinaryIO, self._file))
        elif stat.S_ISREG((status := os.fstat(self._file.fileno())).st_mode):
            size = status.st_size or -1  # files of the kernel have size 0, whatever they hold
            self._file.seek(0)
            source = self._file
        else:
            source = Rest(head, self._file)
        self._head = head
        self._copy = ""  # what to say of a fault in the local copy of a file at a URL
        if is_url(self._path) and not isinstance(self._file, RemoteFile):
            self._copy = f"; read from the copy {self._file.name}: delete it to fetch it again"
        self._unpacked: Gunzip | None = None
        # A record length of 35,615 bytes begins with 1f 8b too; its checksum tells the two apart.
        if head[:2] == b"\x1f\x8b" and not self._is_header(head[:12]):
            source, size = Gunzip(source, size), -1
            self._unpacked = source
        self._reader = self._engine.Reader(source, size, _largest_record())

    def _read_head(self) -> bytes:
        head = b""
        try:
            while len(head) < HEAD and (piece := self._file.read(HEAD - len(head))):
                head += piece
        except UserError as error:  # of a URL
            raise RecordError(str(error), self._path) from error
        except OSError as error:
            found = error.strerror or str(error)
            text = f"{self._path}: expected a readable file, found: {found}"
            raise RecordError(text, self._path) from error
        return head

    def _is_header(self, header: bytes) -> bool:
        checksum = mask(self._engine.crc32c(header[:8]))
        return len(header) == 12 and int.from_bytes(header[8:], "little") == checksum

    def __enter__(self) -> RecordFile:
        """Returns itself; the file is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def compressed(self) -> bool:
        """Whether the file is gzip-compressed."""
        return self._unpacked is not None

    def begins_as_records(self) -> bool:
        """Returns whether the first 12 bytes are a record's length and its checksum."""
        if self._unpacked is None:
            return self._is_header(self._head[:12])
        with contextlib.suppress(OSError):
            self._unpacked.readinto(memoryview(bytearray(1)))
        return self._is_header(self._unpacked.head[:12])

    def contexts(self) -> Iterator[bytes]:
        """Yields the part of each record with its context features, unverified."""
        if self.compressed or not self._file.seekable():
            while (record := self.take("next_record")) is not None:
                yield record
            return
        size, largest = os.fstat(self._file.fileno()).st_size, _largest_record()
        with open(self._file.name, "rb", buffering=1 << 13) as file:
            offset = 0
            while self._is_header(header := file.read(12)):
                length = int.from_bytes(header[:8], "little")
                if offset + 16 + length > size or length > largest:
                    return
                yield _context(file, length)
                offset += 16 + length
                file.seek(offset)

    def take(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the engine's reader until it succeeds; None after the last record."""
        while True:
            try:
                return getattr(self._reader, method)(*arguments, *self.shard)
            except self._engine.Fault as fault:
                text, record, offset, fatal = fault.args
                head = self._unpacked.head if self._unpacked else self._head
                if fatal and record == 0 and head and not self._is_header(head[:12]):
                    text += f"; {looks_like(head)}"
            except OSError as error:
                record, offset, fatal = self._reader.record, self._reader.offset, True
                text = f"reading failed: {error.strerror}" if error.strerror else str(error)
            except UserError as error:  # of a URL: what a server did not send is never skipped
                record, offset = self._reader.record, self._reader.offset
                text = f"{error} (in record {record} at byte {offset})"
                raise RecordError(text, self._path, record, offset) from error
            if fatal or "checksum" in text:
                text += self._copy
            self._skip_or_raise(text, record, offset)
            if fatal:
                return None

    def refuse(self, text: str) -> None:
        """Skips the last record or raises, for the reason in `text`."""
        self._skip_or_raise(text, self._reader.record, self._reader.offset)

    def _skip_or_raise(self, text: str, record: int, offset: int) -> None:
        unpacked = " of the unpacked data" if self.compressed else ""
        message = f"{self._path}: record {record} at byte {offset}{unpacked}: {text}"
        if not self._skip:
            raise RecordError(message, self._path, record, offset)
        index, count = self.shard
        if record % count == index:  # other readers count the faults of their records
            self.report.skip(message)


def _largest_record() -> int:
    name = "PYSEG_MAX_RECORD_BYTES"
    text = os.environ.get(name) or str(_LARGEST_RECORD)
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= LARGEST_RECORD:
        raise UserError(f"{name}: expected 1 to {LARGEST_RECORD}, found {text[:40]!r}")
    return int(text)


def _context(file: BinaryIO, length: int) -> bytes:
    """Returns the part of a record with its context features; all of it if that is uncertain."""
    head = file.read(min(length, _CONTEXT))
    if head[:1] == b"\x0a":  # field 1: the context, or a tf.Example's features
        count, at = _read_number(head, 1)
        end = at + count
        if end == length:
            return head + file.read(length - len(head))
        if end + LONGEST_VARINT <= length:
            head += file.read(max(0, end + LONGEST_VARINT - len(head)))
            if head[end : end + 1] == b"\x12":  # field 2: the feature lists, to the end
                count, at = _read_number(head, end + 1)
                if at + count == length:
                    return head[:end]
    return head + file.read(length - len(head))


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number and its end, which is beyond all bounds if the data is too short."""
    value = 0
    for place, byte in enumerate(data[at : at + LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 1 << 64, at
