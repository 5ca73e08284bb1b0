"""Sources of bytes: gzip files and pipes, read with bounded memory."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from pyseg.data._tables import is_zlib
from pyseg.data.records.wire import quote

HEAD = 512  # first bytes of a file that identify its kind
MOST_UNPACKED = 1 << 18  # bytes unpacked at a time
_PACKED = 1 << 16  # compressed bytes read at a time

# The first bytes of other kinds of files, and their names.
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


class Gunzip:
    """Unpacks a gzip file of one or more members, in bounded memory.

    Unlike `gzip.GzipFile`, it returns all data that can be unpacked before it reports a fault, so
    that the records before the fault are not lost.
    """

    def __init__(self, file: BinaryIO, size: int = -1) -> None:
        self.head = b""  # of the unpacked data
        self._file = file
        self._size = size
        self._consumed = 0
        self._packed = b""
        self._piece = _PACKED  # bytes passed to zlib at a time
        self._unpacker = zlib.decompressobj(wbits=31)
        self._ready = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills the start of `buffer`; returns the number of bytes, 0 at the end."""
        while not self._ready:
            if not self._step():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _step(self) -> bool:
        """Unpacks a piece; returns False at the end."""
        if not self._packed:
            self._packed = self._file.read(_PACKED)
            self._consumed += len(self._packed)
        if self._unpacker.eof:  # another member may follow, or the zeros that pad a tape block
            if not self._packed:
                if self._consumed < self._size:  # truncated since it was opened
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
            self._ready = memoryview(self._unpacker.decompress(piece, MOST_UNPACKED))
        except zlib.error as error:
            if len(piece) > 1:  # zlib drops data unpacked before the fault: retry with less
                self._unpacker, self._piece = before, len(piece) // 2
                return True
            found = str(error).rpartition(": ")[2]
            raise OSError(
                f"expected valid gzip data before byte {self._consumed} of the file, found {found}"
            ) from None
        self._packed = (self._unpacker.unconsumed_tail or self._unpacker.unused_data) + rest
        if not self.head:
            self.head = bytes(self._ready[:HEAD])
        return True


class Rest:
    """A file that cannot be rewound (a pipe), with the bytes read so far put back."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def read(self, count: int) -> bytes:
        """Returns up to `count` bytes, none at the end."""
        head, self._head = self._head[:count], self._head[count:]
        return head or self._file.read(count)

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fills the start of `buffer`; returns the number of bytes, 0 at the end."""
        if not self._head:
            return self._file.readinto(buffer)  # type: ignore[attr-defined]
        head = self.read(len(buffer))
        buffer[: len(head)] = head
        return len(head)


def looks_like(head: bytes) -> str:
    """Returns the apparent kind of a file that is not a TFRecord file, by its first bytes."""
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
        return f"it looks like {what} that begins {quote(line)}"
    return "it is no TFRecord file, or its first 12 bytes are damaged"
