"""The errors that pyseg raises on purpose.

A message names the argument, option or file, what was expected and what was found:
``name: expected ..., found ...``. The commands show these errors as one line, except for an
`ArgumentError`: where the argument comes from an option, they raise a `UserError` that names the
option. Every other exception is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

from typing import Any


class PysegError(Exception):
    """The base of all errors that pyseg raises on purpose."""


class ArgumentError(PysegError, ValueError):
    """An argument of a function or class has an invalid value."""


class UserError(PysegError):
    """A command cannot do what it was asked to; the message is all that its user needs."""


class DataError(PysegError, ValueError):
    """A file has unexpected content; the message names the file, and the line if there is one."""


class MissingFileError(PysegError, FileNotFoundError):
    """A file or folder does not exist; the message names it."""


class RecordError(PysegError, ValueError):
    """A file of records, or a record in it, cannot be read.

    The message reads `<path>: record 12 at byte 34567: expected ..., found ...`. The byte is where
    the record starts in the file, or in the unpacked data of a compressed file.

    Attributes:
        path: The file.
        record: Number of the record, from 0; None if the whole file is at fault.
        offset: Byte at which the record starts; None likewise.
    """

    def __init__(
        self, message: str, path: str = "", record: int | None = None, offset: int | None = None
    ) -> None:
        """Makes the error; `message` is the whole text."""
        super().__init__(message)
        self.path = path
        self.record = record
        self.offset = offset

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the attributes too, for errors of worker processes."""
        return type(self), (str(self), self.path, self.record, self.offset)


class WorkerError(UserError):
    """A worker process has died, or has no memory that it could share with this one."""
