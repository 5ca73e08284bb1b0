"""Files that are written whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyseg.errors import MissingFileError, UserError

_UNFINISHED = ".part"
_LOCK = ".lock"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when the block ends, on disk and complete.

    It is written under another name in the same folder, then renamed over what may be there; where
    the block raises, nothing is left of it. What a killed process has left of the same file is
    removed. Of a symbolic link the file behind it is written.

    Raises:
        pyseg.errors.MissingFileError: There is no such folder.
        pyseg.errors.UserError: What is there is no regular file, which nothing may be renamed over.
        OSError: The folder cannot be written to.
    """
    wrong = why_not_a_file(path)
    if wrong is not None:
        raise UserError(f"{path}: {wrong}")
    path = behind_links(path)
    if not path.parent.is_dir():
        raise MissingFileError(f"{path}: expected a folder {path.parent}, found none")
    remove_unfinished(path.parent, path.name)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:
            _lock(file)  # the mark of a process that is still writing
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def behind_links(path: str | os.PathLike[str]) -> Path:
    """Returns the name of what is written under a name: another one if this is a symbolic link."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def why_not_a_file(path: str | os.PathLike[str]) -> str | None:
    """Returns what is wrong with a name that a regular file is to have; None: nothing."""
    if not os.path.basename(path):
        return "expected the name of a file, found that of a folder"
    if os.path.isdir(path):
        return "expected a file, found a folder"
    if os.path.exists(path) and not os.path.isfile(path):
        return "expected a regular file, found a device, a pipe or a socket"
    return None


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Removes what `atomic_write` left in a folder where its process was killed.

    Args:
        folder: Where to look.
        name: The file that was to be written; default: any.
    """
    # Eight digits: a name that few others give to their files.
    digits = "[0-9a-f]" * 8
    pattern = f".{'*' if name is None else glob.escape(name)}.{digits}{_UNFINISHED}"
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if _lock(file):
                path.unlink()


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a folder while the block runs.

    The system takes the lock back where the process is killed. On a file system without locks
    nobody is kept out.

    Args:
        folder: Created where it is not there; removed at the end if it was, and is empty then.

    Raises:
        pyseg.errors.UserError: Another process is at work there.
        OSError: The folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        path, made = folder / _LOCK, False
        while True:
            try:
                folder.mkdir()
                made = True
            except FileExistsError:  # where it is a file, the lock cannot be opened
                pass
            try:
                file = open(path, "a+b")  # noqa: SIM115 - closed by the stack
            except FileNotFoundError:  # its last owner has just removed the folder
                continue
            stack.enter_context(file)
            if not _lock(file):
                file.seek(0)
                owner = file.read(200).decode("utf-8", "replace") or "unknown"
                raise UserError(
                    f"{folder}: another process is at work there ({owner}); nothing was changed"
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            # Removed by its last owner after it was opened here.
            file.close()
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()


def _lock(file: BinaryIO) -> bool:
    """Locks a file until it is closed; returns False where another process has."""
    try:
        # Unlike flock's, such a lock is not handed down: workers that survive do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks
    return True
