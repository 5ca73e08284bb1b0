"""Unfinished copies of files."""

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
    """The user asked to stop."""


def open_to_append(path: Path, buffering: int = -1) -> BinaryIO:
    """Opens a file that pyseg owns for reading and appending; creates it if missing.

    Raises:
        pyseg.errors.UserError: It is a symbolic link, whose target pyseg may not own.
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
    """The unfinished copy of a file; removed if it is left empty.

    Args:
        path: The file; existing content is its beginning.
        version: The server's version of the file, if known.
        stop: Stops the reading of existing content.

    Raises:
        StoppedError: The user asked to stop.
        pyseg.errors.UserError: It is a symbolic link.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path, version: str | None, stop: threading.Event) -> None:
        self.path = path
        self.version = version
        self.size = 0
        self.total: int | None = None  # the size of the complete file, if the server has given it
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
        """Closes the file, and removes it if it is empty."""
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
        """The checksum of the content so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Appends to the file."""
        self._file.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Discards the content so far."""
        self._file.truncate(0)
        self.version = self.total = None
        self.size = 0
        self._digest = hashlib.md5(usedforsecurity=False)

    def finish(self, path: Path) -> None:
        """Renames the file, once all of it is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
