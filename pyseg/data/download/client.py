"""Downloads from HTTP servers that stall, fail and disconnect: retries and resumes."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import io
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from email.message import Message
from time import monotonic
from typing import Any, TypeVar, cast

import pyseg
from pyseg.data.download.part import CHUNK, Part, StoppedError

FIRST_WAIT = 1.0  # seconds, doubled with every failure
LONGEST_WAIT = 60.0
LONGEST_ASKED_WAIT = 600.0  # seconds, the most that Retry-After may ask for
SLOWEST = 1000  # bytes per second, over two timeouts, below which a connection counts as dead

_PASSING = {408, 425, 429}  # temporary statuses, besides all from 500
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CHECKSUM_TRIES = 2
_LARGEST_READ = 1 << 26

_Result = TypeVar("_Result")


class LastingError(Exception):
    """A file cannot be fetched: it failed too often, or a retry would not help."""


class PassingError(Exception):
    """A failure after which a retry may succeed."""

    def __init__(self, message: str, wait: float = 0.0, progress: float = 1) -> None:
        super().__init__(message)
        self.wait = wait  # seconds that the server asks to wait
        self.progress = progress  # new bytes after which it is not counted


class _RangeError(PassingError):
    """The server does not continue where the unfinished file ends."""


class _SlowError(OSError):
    """A connection transfers next to nothing."""


class _Watched(io.RawIOBase):
    """The bytes of a connection, headers included; raises an error if they come too slowly.

    Args:
        raw: The connection.
        window: Seconds of waiting after which the rate is checked.
    """

    def __init__(self, raw: io.RawIOBase, window: float) -> None:
        self._raw, self._window = raw, window
        self._waited, self._came = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        began = monotonic()
        count = cast(int | None, self._raw.readinto(buffer))
        self._waited += monotonic() - began
        self._came += count or 0
        if count and self._waited >= self._window:
            if self._came < SLOWEST * self._window:
                raise _SlowError(f"fewer than {SLOWEST} bytes a second came for {self._window:g} s")
            self._waited, self._came = 0.0, 0
        return count

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Watched(self.fp.detach(), 2 * cast(float, sock.gettimeout())))


def _watched(connect: Callable[..., http.client.HTTPConnection]) -> Any:
    def connect_watched(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = connect(host, **options)
        connection.response_class = _Response
        return connection

    return connect_watched


class _HTTPHandler(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, req: Any, **options: Any) -> http.client.HTTPResponse:
        return super().do_open(_watched(http_class), req, **options)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, req: Any, **options: Any) -> http.client.HTTPResponse:
        return super().do_open(_watched(http_class), req, **options)


class Client:
    """Sends requests to servers, and retries them.

    Args:
        timeout: Seconds without a byte after which a connection counts as dead; so does one with
            fewer than 1,000 bytes per second over twice as long.
        retries: Retries that may fail in a row without a new byte.
        stop: Ends all waits, except those for a server.
    """

    def __init__(self, timeout: float, retries: int, stop: threading.Event) -> None:
        self._timeout, self._retries, self.stop = timeout, retries, stop
        # Not build_opener, whose openers would also follow redirections to ftp:.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            _HTTPHandler,
            _HTTPSHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.UnknownHandler,
        ):
            self._opener.add_handler(handler())

    @contextlib.contextmanager
    def _get(self, url: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """Opens the answer to a request.

        Raises:
            PassingError: It failed; a retry may succeed.
            LastingError: It failed; a retry would fail too.
        """
        agent = {"User-Agent": f"pyseg/{pyseg.__version__}", "Accept-Encoding": "identity"}
        with self._errors(url):
            request = urllib.request.Request(url, headers={**agent, **headers})
            response = self._opener.open(request, timeout=self._timeout)
        with response:
            yield response

    def _chunks(self, response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
        """Yields the body as it arrives.

        Raises:
            PassingError: It ended early, or nothing arrived for too long.
            StoppedError: The user asked to stop.
        """
        expected, found = _length(response), 0
        while True:
            with self._errors(url):
                chunk = response.read1(CHUNK)
            if self.stop.is_set():
                raise StoppedError
            if not chunk:
                break
            found += len(chunk)
            yield chunk
        if expected is not None and found != expected:
            raise PassingError(f"{url}: expected {expected} bytes, found {found}")

    def read(self, url: str) -> bytes:
        """Returns a small file.

        Raises:
            LastingError: It cannot be fetched.
        """

        def attempt() -> bytes:
            content = bytearray()
            with self._get(url, {}) as response:
                for chunk in self._chunks(response, url):
                    content += chunk
                    if len(content) > _LARGEST_READ:
                        raise LastingError(f"{url}: expected at most {_LARGEST_READ} bytes")
            return bytes(content)

        return self.retried(attempt, lambda: 0)

    def fetch(
        self,
        url: str,
        part: Part,
        md5: str,
        on_start: Callable[[str | None, int], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        """Completes a file.

        Args:
            url: Its address.
            part: Its unfinished copy.
            md5: The checksum of the complete file.
            on_start: Called when the answer begins, with the server's version of the file and the
                number of bytes to come, if known.
            on_bytes: Called with the size of every chunk.

        Raises:
            LastingError: It cannot be fetched, or has another checksum and is deleted.
            StoppedError: The user asked to stop.
            OSError: It cannot be written.
        """
        wrong = 0

        def attempt() -> None:
            nonlocal wrong
            if part.size and part.md5 == md5:
                return
            self._continue(url, part, on_start, on_bytes)
            if (found := part.md5) != md5:
                part.restart()
                wrong += 1
                kind = LastingError if wrong == _CHECKSUM_TRIES else PassingError
                raise kind(f"{url}: expected the MD5 {md5}, found {found}")

        self.retried(attempt, lambda: part.size)

    def _continue(
        self,
        url: str,
        part: Part,
        on_start: Callable[[str | None, int], None],
        on_bytes: Callable[[int], None],
    ) -> None:
        headers = {}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.version is not None:
                headers["If-Range"] = part.version
        try:
            with self._get(url, headers) as response:
                version, length = _version(response.headers), _length(response)
                if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                    self._check_continues(url, part, response.headers)
                else:
                    part.restart()
                    part.total, part.version = length, version
                on_start(part.version, length or 0)
                for chunk in self._chunks(response, url):
                    part.write(chunk)
                    on_bytes(len(chunk))
        except _RangeError:
            part.restart()
            raise
        if part.total is not None and part.size != part.total:
            raise PassingError(f"{url}: expected {part.total} bytes, found {part.size}")

    @staticmethod
    def _check_continues(url: str, part: Part, headers: Message) -> None:
        text = headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text.strip())
        if match is None or int(match[1]) != part.size:
            raise _RangeError(
                f"{url}: expected the bytes from {part.size}, found Content-Range {text!r}"
            )
        total = None if match[2] == "*" else int(match[2])
        version = _version(headers)
        for before, now in ((part.total, total), (part.version, version)):
            if before is not None and now is not None and before != now:
                raise _RangeError(f"{url}: changed while it was fetched, from {before} to {now}")
        part.total, part.version = total or part.total, version or part.version

    def retried(self, attempt: Callable[[], _Result], reached: Callable[[], int]) -> _Result:
        """Returns the result of an attempt, which is retried after temporary failures.

        Args:
            attempt: The function to call.
            reached: Returns its progress; failures with more than any before are not counted.

        Raises:
            LastingError: It failed too often, or a retry would not help.
            StoppedError: The user asked to stop.
        """
        failures, furthest = 0, reached()
        while True:
            try:
                return attempt()
            except PassingError as error:
                if reached() - furthest >= error.progress:
                    failures = 0
                furthest = max(furthest, reached())
                failures += 1
                if failures > self._retries:
                    times = f" ({failures} times in a row)" if failures > 1 else ""
                    raise LastingError(f"{error}{times}") from error
                wait = min(FIRST_WAIT * 2.0 ** min(failures - 1, 30), LONGEST_WAIT)
                wait = max(wait, min(error.wait, LONGEST_ASKED_WAIT))
            if self.stop.wait(wait):
                raise StoppedError

    @contextlib.contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        """Turns the errors of a request into a `PassingError` or a `LastingError`."""
        try:
            yield
        except urllib.error.HTTPError as error:
            error.close()
            text = " ".join(f"{url}: {error.code} {error.reason}".split())
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _RangeError(text) from error
            if error.code in _PASSING or error.code >= 500:
                raise PassingError(text, retry_after(error.headers)) from error
            raise LastingError(text) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError):
                text = f"{url}: nothing came for {self._timeout:g} s"
            else:
                text = " ".join(f"{url}: {cause or type(cause).__name__}".split())
            # The cause is a string if this is not a URL, a ValueError if it is malformed.
            hopeless = (str, ValueError, http.client.InvalidURL, ssl.SSLCertVerificationError)
            if isinstance(cause, hopeless):
                raise LastingError(text) from error
            progress = 2 * self._timeout * SLOWEST if isinstance(cause, _SlowError) else 1
            raise PassingError(text, progress=progress) from error


def _length(response: http.client.HTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def retry_after(headers: Message) -> float:
    """Returns the seconds that a server asks to wait; default: 0."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return max(0.0, (then - datetime.now(timezone.utc)).total_seconds())


def _version(headers: Message) -> str | None:
    """Returns a version for If-Range: a strong ETag, or else the time of the last change."""
    etag: str = headers.get("ETag", "").strip()
    changed: str | None = headers.get("Last-Modified")
    return etag if etag.startswith('"') else changed
