"""The unfinished copies of files."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import BinaryIO

from pyseg.errors import UserError

CHUNK = 1 << 18  # bytes read at once


class StoppedError(Exception):
    """The work has been told to stop."""


def open_to_append(path: Path, buffering: int = -1) -> BinaryIO:
    """Opens a file that pyseg owns for reading and appending; creates it where it is missing.

    Raises:
        pyseg.errors.UserError: It is a symbolic link: it would lead to a file of somebody else.
        OSError: It cannot be opened.
    """

    def without_links(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)

    try:
        return open(path, "a+b", buffering, opener=without_links)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: expected a file, found a symbolic link; remove it") from error


class Part:
    """The unfinished copy of a file; it is removed again where it is left empty.

    Args:
        path: Where it is; what is there already is its beginning.
        version: How the server called the version that it belongs to, if that is known.
        stop: Ends reading what is there already.

    Raises:
        StoppedError: The work has been told to stop.
        pyseg.errors.UserError: It is a symbolic link.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path, version: str | None, stop: threading.Event) -> None:
        self.path = path
        self.version = version
        self.size = 0
        self.total: int | None = None  # of the whole file, where the server has said it
        self._digest = hashlib.md5(usedforsecurity=False)
        self._file = open_to_append(path)
        try:
            self._file.seek(0)
            while chunk := self._file.read(CHUNK):
                if stop.is_set():
                    raise StoppedError
                self._count(chunk)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Part:
        """Returns itself; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, and removes it where it is empty."""
        with self._file:
            self._file.flush()
            empty = os.fstat(self._file.fileno()).st_size == 0
        if empty:
            self.path.unlink(missing_ok=True)

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._digest.update(chunk)

    @property
    def md5(self) -> str:
        """The checksum of what has come so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Appends to the file."""
        self._file.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Discards what has come so far."""
        self._file.truncate(0)
        self.version = self.total = None
        self.size = 0
        self._digest = hashlib.md5(usedforsecurity=False)

    def finish(self, path: Path) -> None:
        """Renames the file, once all of it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
