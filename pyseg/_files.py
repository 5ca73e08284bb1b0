"""Files of globs and folders, atomic writes, and folders with one owning process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from pyseg import _remote, _urls
from pyseg._paths import path_text
from pyseg._remote import RemoteFile
from pyseg.errors import ArgumentError, MissingFileError, PysegError, UserError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of errors of writing, which carry no name of a file."""

_CACHE = "PYSEG_REMOTE_CACHE"
_UNFINISHED = ".part"
LOCK = ".lock"
"""The name of the lock in a folder that a process owns (`sole_owner`)."""


def find_files(
    paths: Paths, of_folder: Callable[[str], list[str]], missing: str, *, remote: bool = False
) -> list[str]:
    """Returns the files of a glob, a folder, a file, or a list of these, each once.

    Args:
        paths: What the user named. A glob's files are in the order of their names.
        of_folder: Returns the files that a folder stands for.
        missing: The message where a folder has none.
        remote: Whether they may be URLs.

    Raises:
        pyseg.errors.MissingFileError: One of `paths` matches nothing; the message names it.
        pyseg.errors.ArgumentError: The list is empty.
        pyseg.errors.UserError: A URL cannot be read, or must not be given.
    """
    if not isinstance(paths, Sequence) or isinstance(paths, str):
        paths = [paths]
    found: dict[str, str] = {}
    for path in paths:
        text = path_text(path, "paths", remote=remote)
        if _urls.is_url(text):
            files, is_folder = _remote.find(text, of_folder)
            problem = missing if is_folder else "no such file or folder, or none that matches"
            if (query := _urls.query(text)) and "=" not in query:
                problem += "; over HTTP a ? begins a query: write * or [0-9] in a glob"
        elif os.path.isdir(text):
            files, problem = of_folder(text), missing
        elif os.path.exists(text):
            files, problem = [text], ""
        elif glob.has_magic(text):
            files = sorted(p for p in glob.glob(text, recursive=True) if os.path.isfile(p))
            problem = "no file matches"
        else:
            files, problem = [], "no such file or folder"
        if not files:
            raise MissingFileError(f"{text}: {problem}")
        for file in files:
            found.setdefault(_remote.location(file), file)
    if not found:
        raise ArgumentError("paths: expected at least one file, found none")
    return list(found.values())


def open_shard(path: str) -> io.RawIOBase:
    """Opens a file of records, unbuffered: a local one, or one at a URL.

    Where the environment variable PYSEG_REMOTE_CACHE names a folder, files at URLs are copied there
    first, each version of a file once, whatever the number of processes that read it. A copy whose
    size is not the file's is made again.

    Args:
        path: The file, or the name of its URL (`pyseg._urls.named`).

    Raises:
        pyseg.errors.PysegError: The URL cannot be read, or the copy cannot be written.
        OSError: The local file cannot be read.
    """
    if not _urls.is_url(path):
        return open(path, "rb", buffering=0)
    cache = os.environ.get(_CACHE)
    if not cache:
        return RemoteFile(path)
    if not cache.strip():
        raise UserError(f"{_CACHE}: expected the name of a folder, found the blank {cache!r}")
    folder = Path(path_text(cache, _CACHE))
    try:
        return open(_copy_of(path, folder), "rb", buffering=0)
    except PysegError:
        raise
    except OSError as error:
        raise UserError(
            f"{_CACHE} {folder}: expected a folder that can be made, written to and read, for a "
            f"copy of {path}; found: {error.strerror or error}"
        ) from error


def _copy_of(url: str, folder: Path) -> Path:
    """Returns the local copy of a file at a URL, after making it if there is none of its size."""
    folder.mkdir(parents=True, exist_ok=True)
    with _remote.asking_once():
        size = _remote.size_of(url)
        digest = hashlib.sha256(f"{url} {_remote.version(url)}".encode()).hexdigest()[:24]
        copy, lock = folder / f"{digest}-{_urls.split(url)[1]}", folder / f".{digest}{LOCK}"
        if problem := why_not_a_file(copy):
            raise UserError(f"{_CACHE} {copy}: {problem}, where the copy of {url} belongs")
        if not _is_whole(copy, size):
            with open(lock, "ab") as file, locked(file):
                if not _is_whole(copy, size):
                    with RemoteFile(url) as source, atomic_write(copy) as whole:
                        shutil.copyfileobj(source, whole, 1 << 20)
                lock.unlink(missing_ok=True)
    return copy


def _is_whole(copy: Path, size: int) -> bool:
    """Returns whether there is a copy of so many bytes; of any number where size is -1."""
    return copy.is_file() and size in (-1, copy.stat().st_size)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name when the block ends, on disk and complete.

    It is written under a temporary name in the same folder, then renamed over an existing file; if
    the block raises, it is removed, and so is what a killed process left of the same file. A
    symbolic link stays, and its target is written.

    Raises:
        pyseg.errors.MissingFileError: There is no such folder.
        pyseg.errors.UserError: The path is something else than a regular file; it is not replaced.
        OSError: The folder cannot be written to.
    """
    problem = why_not_a_file(path)
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    path = behind_links(path)
    if not path.parent.is_dir():
        raise MissingFileError(f"{path}: expected a folder {path.parent}, found none")
    remove_unfinished(path.parent, path.name)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:
            _lock(file)  # tells `remove_unfinished` that this process is still writing
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Writes a whole file by `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def behind_links(path: str | os.PathLike[str]) -> Path:
    """Returns the target of a symbolic link, and any other path as it is."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def why_not_a_file(path: str | os.PathLike[str]) -> str | None:
    """Returns why a regular file cannot be written at `path`; None: it can."""
    if not os.path.basename(path):
        return "expected the name of a file, found that of a folder"
    if os.path.isdir(path):
        return "expected a file, found a folder"
    if os.path.exists(path) and not os.path.isfile(path):
        return "expected a regular file, found a device, a pipe or a socket"
    return None


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files that killed processes in `atomic_write` left in a folder.

    Args:
        folder: The folder.
        name: Name of the file that was to be written; default: any.
    """
    # Eight digits: users' own files hardly have such names.
    digits = "[0-9a-f]" * 8
    pattern = f".{'*' if name is None else glob.escape(name)}.{digits}{_UNFINISHED}"
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if _lock(file):
                path.unlink()


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes in `sole_owner` while the block runs.

    The system releases the lock of a killed process. A file system without locks excludes nobody.

    Args:
        folder: Created if it is missing, and then removed at the end if it is empty.

    Raises:
        pyseg.errors.UserError: Another process owns the folder.
        OSError: The folder cannot be created or written to.
    """
    with contextlib.ExitStack() as stack:
        path, created = folder / LOCK, False
        while True:
            try:
                folder.mkdir()
                created = True
            except FileExistsError:  # if it is a file, opening the lock raises
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
            # Its last owner removed the lock after it was opened here.
            file.close()
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)
            if created:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()


@contextlib.contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Locks an open file while the block runs; waits until no other has locked it, in any process.

    A file system without locks excludes nobody.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: BinaryIO) -> bool:
    """Locks a file until it is closed; returns False if another process holds the lock."""
    try:
        # Unlike flock's, this lock is not inherited: workers that survive do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks
    return True
