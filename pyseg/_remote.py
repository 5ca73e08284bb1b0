"""Files that may lie at a URL: listing, opening, and reading ahead, by fsspec.

Every function takes a local path or the name of a URL (`pyseg._urls.named`). fsspec is imported at
the first URL.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import re
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pyseg import _urls
from pyseg._extras import requires, requires_package
from pyseg.errors import MissingFileError, PysegError, UserError

Answer = TypeVar("Answer")

FIRST = 1 << 18
"""Bytes of the first block that is read of a file; each one is twice as long as the one before."""

BLOCK = 1 << 22
"""Bytes of the largest blocks."""

AHEAD = 4
"""Blocks that are read ahead, at once, where files can be read in parts; elsewhere it is one."""

ATTEMPTS = 3
"""How often a question or a block is tried, beside the retries of fsspec."""

_PAUSE = 0.5  # seconds before the second attempt, and four times as many before the third
_PATIENCE = 1.0  # seconds to wait for the blocks that nobody wants any more
_TIMEOUTS = {"sock_connect": 30.0, "sock_read": 60.0}  # of HTTP, in seconds
_LASTING = (FileNotFoundError, PermissionError, ValueError, NotImplementedError, ImportError)
_VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "blob_id")
_LINKS_OF_HTTP = re.compile(r"(?:^|::)(https?)://")
_LOG = logging.getLogger("pyseg")
_files: set[str] = set()  # URLs that were found to be files


@dataclass
class _Answers:
    """What servers say of files, and the errors of those that are taken for missing."""

    known: dict[str, dict[str, Any] | PysegError] = field(default_factory=dict)
    refused: dict[str, None] = field(default_factory=dict)


_answers: ContextVar[_Answers | None] = ContextVar("_answers", default=None)


@contextlib.contextmanager
def asking_once() -> Iterator[None]:
    """Keeps what servers say of files while the block runs, so that each is asked once for it.

    Its threads share that, if they see its context variables (`pyseg._threads.map_in_order`).
    """
    if _answers.get() is not None:
        yield
        return
    token = _answers.set(answers := _Answers())
    try:
        yield
    finally:
        _answers.reset(token)
        _warn_of(answers)


def _warn_of(answers: _Answers) -> None:
    """Logs one line on the files that are taken for missing, if there are any."""
    if answers.refused:
        text = f"{next(iter(answers.refused))}; taken for missing"
        if more := len(answers.refused) - 1:
            text += f", and so are {more} more"
        if any("/vocabulary.csv" in error for error in answers.refused):
            text += "; a vocabulary.csv that exists can be given with --vocabulary"
        _LOG.warning("%s", text)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Makes an error of pyseg of any failure of fsspec, whose errors have no common base."""
    try:
        yield
    except PysegError:
        raise
    except Exception as error:
        # A traceback shows the messages of causes too.
        raise _error(url, error) from (error if _urls.revealed(url) == url else None)


def _error(url: str, error: Exception) -> PysegError:
    """Returns the error of pyseg for a failure at a URL."""
    cause, status = _cause(error)
    reason = _reason(url, cause, status)
    if isinstance(cause, PermissionError) or status in (401, 403):
        return UserError(f"{url}: expected a file that you may read, found: {reason}")
    if isinstance(error, FileNotFoundError) and (cause is error or status in (404, 410)):
        return MissingFileError(f"{url}: no such file or folder")
    return UserError(f"{url}: reading failed: {reason}")


def _cause(error: Exception) -> tuple[Exception, int | None]:
    """Returns what went wrong, and its status of HTTP, if it is one.

    For fsspec a file of HTTP is missing when asking for its size fails in any way.
    """
    cause = error.__cause__
    of_aiohttp = type(cause).__module__.startswith("aiohttp")
    if of_aiohttp or isinstance(cause, TimeoutError | ConnectionError):
        error = cast(Exception, cause)
    status = getattr(error, "status", None)
    return error, status if isinstance(status, int) else None


def _tried(url: str, fetch: Callable[[], Answer]) -> Answer:
    """Returns what ``fetch`` returns, which is tried `ATTEMPTS` times if that may help."""
    for attempt in itertools.count(1):
        try:
            return fetch()
        except PysegError:
            raise
        except Exception as error:
            cause, status = _cause(error)
            lasting = isinstance(cause, _LASTING) if status is None else status // 100 == 4
            if attempt == ATTEMPTS or (lasting and status not in (408, 429)):
                raise
            _LOG.warning("%s; trying again", _error(url, error))
        time.sleep(_PAUSE * 4 ** (attempt - 1))
    raise AssertionError("unreachable")


def _asked(url: str, question: Callable[[Any, str], Answer]) -> Answer:
    """Returns what the file system of a URL answers to a question about the path in it."""
    with _explained(url):
        return _tried(url, lambda: question(*_resolve(url)))


def _reason(url: str, error: Exception, status: int | None) -> str:
    """Returns why reading failed, of HTTP in plain words: aiohttp's are those of its classes."""
    text = " ".join(_urls.redacted(str(error)).split())[:300] or type(error).__name__
    package, name = type(error).__module__.partition(".")[0], type(error).__name__
    server = f"the server {_urls.host(url)}".rstrip()
    if package in ("aiohttp", "asyncio", "builtins", "fsspec") and "Timeout" in name:
        return f"{server} did not answer in time"
    if package != "aiohttp":
        return text
    if any("Payload" in kind.__name__ for kind in type(error).__mro__):
        return f"{server} ended the transfer early"
    if type(error.__cause__).__module__ == "aiohttp.http_exceptions":  # its status is made up
        return f"{server} answered with something else than HTTP"
    if status is not None:
        phrase = HTTPStatus(status).phrase if status in [*HTTPStatus] else "no known status"
        return f"{server} answered with the status {status} ({phrase})"
    if "Disconnected" in name:
        return f"{server} closed the connection without an answer"
    found = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    if isinstance(found, ssl.SSLError):
        text = getattr(found, "verify_message", "") or (found.reason or text).replace("_", " ")
        return f"the TLS connection to {server} failed: {text.lower()}"
    if isinstance(found, OSError):
        number = found.errno or 0  # that of an unknown host is negative
        text = os.strerror(number) if number > 0 else found.strerror or text
        return f"the connection to {server} failed: {text}"
    return text


def _resolve(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it.

    No object keeps a file system, as it must not be used after a fork; fsspec keeps it, and makes
    another one then.
    """
    with requires("remote", f"reading {url}"):
        import fsspec

    check_whole(url)
    real = cast(str, _urls.revealed(url))
    if problem := _urls.problem(real):
        raise UserError(f"{url}: expected {problem}")
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(real, **_options(real)))
    except ImportError as error:
        cause = error.__cause__ or error
        name, what = getattr(cause, "name", None) or "a package", f"reading {url}"
        with requires("remote", what) if name == "aiohttp" else requires_package(name, what):
            raise cause from None
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise UserError(f"{url}: expected a protocol that fsspec knows, found none") from None
    raise AssertionError("unreachable")


def check_whole(path: str | None, option: str = "") -> None:
    """Checks that the URL that a name stands for is known, before anything is read there.

    Args:
        path: The name, a local path, or None.
        option: The option of commands whose value it is, if that is known.

    Raises:
        pyseg.errors.UserError: It is not.
    """
    if path is not None and _urls.is_url(path) and _urls.revealed(path) is None:
        again = f"with --{option}" if option else "such as with --data"
        raise UserError(
            f"{path}: expected the URL with its password or signature, found them hidden, as pyseg "
            f"does not store them: give the whole URL again, {again}"
        )


def _options(url: str) -> dict[str, Any]:
    """Returns fsspec's options for the links of HTTP in the chain of a URL: timeouts.

    By default aiohttp ends any request after five minutes. What the user's configuration of fsspec
    names goes first.
    """
    schemes = set(_LINKS_OF_HTTP.findall(url))
    if not schemes:
        return {}
    import aiohttp
    from fsspec.config import conf

    named = {**conf.get("http", {}), **conf.get("https", {})}.get("client_kwargs", {})
    if not named.keys() & {"timeout", "read_timeout", "conn_timeout"}:
        named = {**named, "timeout": aiohttp.ClientTimeout(total=None, **_TIMEOUTS)}
    return {scheme: {"client_kwargs": named} for scheme in schemes}


def _info(url: str) -> dict[str, Any]:
    """Returns what the server says of a file or folder; see `asking_once`."""
    answers = _answers.get()
    found = None if answers is None else answers.known.get(url)
    if found is None:
        try:
            found = _asked(url, lambda fs, path: dict(fs.info(path)))
        except PysegError as error:
            found = error
        if answers is not None:
            answers.known[url] = found
    if isinstance(found, PysegError):
        raise found
    return found


def _kind(url: str) -> str | None:
    """Returns "file" or "directory", as fsspec calls what is at a URL; None: there is nothing."""
    if url in _files:
        return "file"
    if _urls.has_magic(url):
        return None
    try:
        info = _info(url)
    except MissingFileError:
        return None
    if info.pop("mimetype", None) == "text/html":  # it may be a list of links
        is_page = _asked(url, lambda fs, path: bool(fs.isdir(path)))
        info["type"] = "directory" if is_page else "file"
    return cast(str, info["type"])


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether there is a folder at a path or URL."""
    if not _urls.is_url(path):
        return os.path.isdir(path)
    return _kind(cast(str, path)) == "directory"


def is_file(path: str | os.PathLike[str]) -> bool:
    """Returns whether there is a file at a path or URL.

    A store that lists nothing refuses what is not there, too: what may not be read counts as not
    there, with a warning, which is one for all that is asked in `asking_once`.
    """
    if not _urls.is_url(path):
        return os.path.isfile(path)
    try:
        return _kind(cast(str, path)) == "file"
    except UserError as error:
        if "that you may read" not in str(error):
            raise
        with asking_once():
            cast(_Answers, _answers.get()).refused[str(error)] = None
        return False


def size_of(path: str) -> int:
    """Returns the size of a file in bytes; -1: its server does not tell.

    Raises:
        pyseg.errors.MissingFileError: There is no file at a URL.
        OSError: There is no file at a local path.
    """
    if not _urls.is_url(path):
        return os.path.getsize(path)
    return _size(_info(path))


def _size(info: dict[str, Any]) -> int:
    size = info.get("size")
    return -1 if size is None else int(size)


def location(path: str) -> str:
    """Returns what identifies a file on this machine: its real path, or its URL."""
    return path if _urls.is_url(path) else os.path.realpath(path)


def version(path: str) -> str:
    """Returns a text that changes when a file does, as far as its server tells."""
    if not _urls.is_url(path):
        stamp = os.stat(path)
        return f"{stamp.st_size} {stamp.st_mtime_ns}"
    return _version(_info(path))


def _version(info: dict[str, Any]) -> str:
    return " ".join(str(info[name]) for name in ("size", *_VERSIONS) if info.get(name) is not None)


def ends_of(path: str, count: int) -> tuple[int, bytes]:
    """Returns the size of a file, and its first and last bytes, ``count`` of each.

    Of a server that sends files only from their start, the last ones are what it says of the
    version of the file.
    """
    if not _urls.is_url(path):
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            ends = file.read(count)
            file.seek(max(0, size - count))
            return size, ends + file.read()
    info = _info(path)
    size = _size(info)

    def both(fs: Any, place: str) -> bytes:
        if _has_ranges(fs, size):
            spans = (0, min(count, size)), (max(0, size - count), size)
            return b"".join(_part(fs, place, *span) for span in spans)
        with _open_stream(fs, place, size) as file:
            return cast(bytes, file.read(count)) + _version(info).encode()

    return size, _asked(path, both)


def files_below(folder: str) -> list[str]:
    """Returns all files in a folder, at any depth, in the order of their names."""
    if not _urls.is_url(folder):
        return sorted(str(path) for path in Path(folder).rglob("*") if not path.is_dir())
    return _names(folder, _asked(folder, _listed))


def find(url: str, of_folder: Callable[[str], list[str]]) -> tuple[list[str], bool]:
    """Returns the files of a glob, a folder or a file at a URL, and whether it is a folder."""
    if _urls.has_magic(url) and not _is_so_called(url):
        _refuse_query(url, "a glob")
        hidden = _urls.split(url)[1].startswith(".")
        files = _names(url, _asked(url, _glob))
        return [f for f in files if hidden or not _urls.split(f)[1].startswith(".")], False
    kind = _kind(url)
    if kind == "directory":
        _refuse_query(url, "a folder")
        return of_folder(url), True
    if kind is None:
        return [], False
    _files.add(url)
    return [url], False


def _is_so_called(url: str) -> bool:
    """Returns whether brackets belong to the name of a file; of HTTP only single files are sure."""
    if not _urls.is_http(url) or "*" in url:
        return False
    with contextlib.suppress(MissingFileError):
        _info(url)
        _files.add(url)
    return url in _files


def _refuse_query(url: str, what: str) -> None:
    """Raises where files would have to be listed with a query, which may hold for one file only."""
    if _urls.query(url):
        raise UserError(
            f"{url}: expected the URL of a file, or one without a query, found {what} with a "
            "query, which cannot be listed: give a file with its own signature, or the token as "
            "a header (FSSPEC_HTTPS)"
        )


def _glob(fs: Any, place: str) -> list[str]:
    """Returns the files of a glob."""
    if not _protocols(fs) & {"http", "https"}:
        return [at for at, info in fs.glob(place, detail=True).items() if info["type"] == "file"]
    from fsspec.utils import glob_translate

    # fsspec takes the brackets of an address, [::1], for a part of the glob.
    site, path = re.findall("(.*?://[^/]*/)(.*)", place, re.DOTALL)[0]
    folder = re.split(r"[*\[]", path, maxsplit=1)[0].rpartition("/")[:2]
    root = site + "".join(folder)
    matches = re.compile(glob_translate(path)).match
    depth = None if "**" in path else f"{site}{path}".count("/") - root.count("/") + 1
    return [at for at in _listed(fs, root, depth) if matches(at.removeprefix(site))]


def _listed(fs: Any, root: str, depth: int | None = None) -> list[str]:
    """Returns the files in a folder, down to a depth.

    fsspec leaves out the pages of HTTP that cannot be read now, and so their files. Pages are asked
    for with their slash, without which some servers have none.
    """
    if not _protocols(fs) & {"http", "https"}:
        return list(fs.find(root, maxdepth=depth))
    files: set[str] = set()
    pages, seen = [root], {root.rstrip("/")}
    while pages and depth != 0:
        found: set[str] = set()
        for page in pages:
            with contextlib.suppress(FileNotFoundError):  # a link to nothing
                for link in fs.ls(page):
                    (found if link["type"] == "directory" else files).add(link["name"])
        pages = sorted(page for page in found if page.rstrip("/") not in seen)
        seen.update(page.rstrip("/") for page in pages)
        depth = None if depth is None else depth - 1
    return sorted(files)


def _names(url: str, places: list[str]) -> list[str]:
    """Returns the names of the URLs of files in the same file system as a URL."""
    start, place, rest = _urls.parts(url)
    names = []
    for found in places:
        found = found.rpartition("://")[2]  # of HTTP it is the whole URL
        if not place.startswith("/"):
            found = found.lstrip("/")
        names.append(_urls.named(f"{start}{found}{rest}"))
    _files.update(names)
    return sorted(names)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a local file, or one at a URL, for reading it once.

    Raises:
        pyseg.errors.PysegError: A URL cannot be read.
        OSError: A local file cannot be read.
    """
    if not _urls.is_url(path):
        return open(path, "rb")
    return cast(BinaryIO, io.BufferedReader(RemoteFile(cast(str, path)), FIRST))


def _has_ranges(fs: Any, size: int) -> bool:
    """Returns whether any part of a file can be asked for, by several threads at once.

    That is so for object stores; a server of HTTP may ignore it and send the whole file.
    """
    return bool(fs.async_impl) and size >= 0 and not _protocols(fs) & {"http", "https"}


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}


def _part(fs: Any, path: str, start: int, end: int) -> bytes:
    return cast(bytes, fs.cat_file(path, start=start, end=end))  # their places are not the same


def _open_stream(fs: Any, path: str, size: int) -> Any:
    """Opens a file that is read from its start, in one request where that is possible."""
    protocols = _protocols(fs)
    whole = {"block_size": 0} if protocols & {"http", "https", "hf"} else {}
    if protocols & {"http", "https"} and size > 0:
        whole["size"] = size  # or fsspec asks for it again
    return fs.open(path, "rb", **whole)


class _Stream:
    """Fetches the blocks of a file one after the other; after a failure it opens the file again."""

    def __init__(self, fs: Any, path: str, size: int) -> None:
        self._fs, self._path, self._size = fs, path, size
        self._file: Any = None
        self._at = 0

    def __call__(self, start: int, count: int) -> bytes:
        try:
            return self._next(start, count)
        except BaseException:
            self.close()
            raise

    def _next(self, start: int, count: int) -> bytes:
        if self._file is None or self._at != start:
            self.close()
            self._file, self._at = _open_stream(self._fs, self._path, self._size), 0
            while self._at < start:
                if not self._read(min(start - self._at, BLOCK)):
                    raise OSError(f"expected at least {start} bytes, found {self._at}")
        pieces = []
        while count and (piece := self._read(count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _read(self, count: int) -> bytes:
        piece = cast(bytes, self._file.read(count))
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class RemoteFile(io.RawIOBase):
    """The bytes of a file at a URL in their order, read ahead by threads.

    While a block is used, the next ones are fetched: `AHEAD` at once from an object store, one from
    any other server, which sends the file in one stream. No more than AHEAD + 1 blocks of `BLOCK`
    bytes are held, which is 20 MiB. Blocks are small at first, so that looking at the first record
    of a file costs little.

    Args:
        url: The name of the URL.

    Attributes:
        size: The size of the file in bytes; -1: the server does not tell.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.UserError: The file cannot be read, or ends early: here, and while reading.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        info = _info(url)
        if info["type"] == "directory":
            raise UserError(f"{url}: expected a file, found a folder")
        self.size = _size(info)
        with _explained(url):
            fs, path = _resolve(url)
            self._ahead = 1
            self._fetch: Callable[[int, int], bytes] = _Stream(fs, path, self.size)
            # Some servers say of any file that it has no bytes.
            self._end = sys.maxsize if self.size < 0 else max(self.size, 1)
            if _has_ranges(fs, self.size):
                self._ahead, self._end = AHEAD, self.size
                self._fetch = lambda start, count: _part(fs, path, start, start + count)
        self._blocks: deque[tuple[int, Future[bytes]]] = deque()
        self._ready = memoryview(b"")
        self._block, self._taken = FIRST, 0
        self._asked = self._got = 0  # bytes
        self._ended = False

    def readable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the number of bytes that were read."""
        return self._got - len(self._ready)

    def readinto(self, buffer: Any, /) -> int:
        """Fills the start of ``buffer``; returns the number of bytes, 0 at the end."""
        if not self._ready and not self._ended:
            self._take()
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _take(self) -> None:
        """Waits for the next block, and asks for those after it."""
        self._ask(1)
        if not self._blocks:
            self._ended = True
            return
        expected, future = self._blocks[0]  # which stays there if it fails
        with _explained(self._url):
            data = future.result()
        self._blocks.popleft()
        self._got += len(data)
        self._ready = memoryview(data)
        self._ended = len(data) < expected
        if not self._ended:
            self._ask(min(self._taken, self._ahead))
        self._taken += 1

    def _ask(self, blocks: int) -> None:
        """Starts threads for the next blocks, until so many are on their way or waiting."""
        while len(self._blocks) < blocks and self._asked < self._end:
            count = min(self._block, self._end - self._asked)
            self._blocks.append((count, self._in_thread(self._asked, count)))
            self._asked += count
            self._block = min(2 * self._block, BLOCK)

    def _whole(self, start: int, count: int) -> bytes:
        """Fetches a block, and of the last one a byte more, which tells whether the file ends.

        It is shorter only where the size is unknown or 0, and the file ends.
        """
        if self.size < 0:
            return self._fetch(start, count)
        count = min(count, self.size - start)
        data = self._fetch(start, count + (start + count == self.size))
        if len(data) != count:
            found = f"{start + len(data)}: the transfer has ended early, or the file has changed"
            if len(data) > count:
                found = "more: the server names another size, or the file has changed"
            raise OSError(f"expected {self.size} bytes in the file, found {found}")
        return data

    def _in_thread(self, start: int, count: int) -> Future[bytes]:
        """Fetches a block in a thread that does not delay the end of the process."""
        future: Future[bytes] = Future()

        def run() -> None:
            try:
                future.set_result(_tried(self._url, lambda: self._whole(start, count)))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, name="pyseg-remote", daemon=True).start()
        return future

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            wait([future for _, future in self._blocks], _PATIENCE)
            self._blocks.clear()
            if isinstance(self._fetch, _Stream):
                with contextlib.suppress(Exception):
                    self._fetch.close()
        super().close()
