"""HTTP on 127.0.0.1 with limits, for a page of this machine's user alone; see `LocalServer`."""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import logging
import os
import re
import secrets
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from pyseg._containers import parse_json
from pyseg.errors import ArgumentError, DataError, PysegError

Self = TypeVar("Self", bound="LocalServer")

_LOG = logging.getLogger("pyseg")
_HOST = "127.0.0.1"
_CONNECTIONS = 64
_IDLE = 60.0  # seconds that a connection may wait after a request with the secret
_REQUEST = 10.0  # seconds in which the first request has to begin, and every one to be complete
_STALLED = 20.0  # seconds in which a client has to take some of the answer
_LINGER = 1.0  # seconds to read what a refused request still sends
_TICKET = 60.0  # seconds for which a ticket is valid
_LONGEST_REQUEST = 64 * 1024  # bytes
_LONGEST_BODY = 4096
_LONGEST_LINGER = 1024**2
_LONGEST_PIECE = 4 * 1024**2  # bytes of a file, where the client asks for all from some byte on
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SINGLE = ("Host", "Origin", "Content-Length", "Content-Type", "Range", "If-Range")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class RefusedError(Exception):
    """A request that is not carried out.

    Attributes:
        status: The status of the answer.
        headers: Further headers of the answer.
    """

    def __init__(
        self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Makes the error; `text` is what the answer says."""
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})


class LocalServer(ThreadingHTTPServer):
    """A server on 127.0.0.1 that answers requests with its secret while it is open.

    Other users of the machine, pages of other sites in the user's browser, and names that are made
    to point at this machine (DNS rebinding) can reach its port, but not its content:

    - It answers only requests whose ``Host`` is 127.0.0.1 or localhost, with its port.
    - Every address begins with a random token. Unlike a cookie, which a browser sends to every port
      of a host and with requests that other pages cause, an address is sent nowhere else; the
      header ``Referrer-Policy`` keeps it from links. A browser is started with a ticket, an address
      that works once and for a minute, as other users can read the arguments of a process.
    - Requests that change something are POST with JSON, from this origin: ``Origin`` is required,
      and ``Sec-Fetch-Site``, where it is sent, must agree, except where a link is followed.
    - The length and duration of requests and the number of connections are limited. What is wrong
      is answered with a short text, and its connection is closed.

    Args:
        handler: Answers the requests.
        port: The port; 0: a free one.
        token: The secret; default: a random one.

    Attributes:
        port: The port.
        token: The secret.
        hosts: The hosts that requests may be sent to.
        url: The address of the first page, with the secret.

    Raises:
        pyseg.errors.ArgumentError: The port is invalid, taken or not allowed.
    """

    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, handler: type[Handler], port: int = 0, token: str | None = None) -> None:
        if not 0 <= port <= 65535:
            raise ArgumentError(f"port: expected 0 to 65535, found {port}")
        self.token = token or secrets.token_urlsafe(24)
        self._tickets: dict[str, float] = {}
        self._free = threading.Semaphore(_CONNECTIONS)
        self._connections: set[socket.socket] = set()
        self._thread: threading.Thread | None = None
        try:
            super().__init__((_HOST, port), handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ArgumentError(f"port: expected a free port, found {port}: {reason}") from error
        self.port: int = self.server_address[1]
        names = (_HOST, "localhost")
        self.hosts = {f"{name}:{self.port}" for name in names}
        if self.port == 80:
            self.hosts.update(names)
        self.url = f"http://{_HOST}:{self.port}/{self.token}/"

    def __enter__(self: Self) -> Self:
        """Starts to answer, in threads."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops, and ends all connections."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def ticket(self) -> str:
        """Returns an address that leads to the first page once, within a minute."""
        code = secrets.token_urlsafe(24)
        self._tickets[code] = time.monotonic() + _TICKET
        return f"http://{_HOST}:{self.port}/open/{code}"

    def redeem(self, code: str) -> bool:
        """Returns whether a code is that of a ticket, which is used up."""
        end = self._tickets.pop(code, None)
        return end is not None and time.monotonic() < end

    def server_bind(self) -> None:
        """Binds the socket, without a look-up of the host's name."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers a connection in a thread, or closes it if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a connection."""
        self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.discard(request)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs an error of a connection."""
        _LOG.debug("port %d: a connection failed", self.port, exc_info=True)


class _TooLongError(Exception):
    """A request has too many bytes."""


class _Reader(io.RawIOBase):
    """Reads a limited number of bytes from a socket until a time, however slowly they come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = 0.0
        self._left = 0
        self._is_waiting = False

    def allow(self, seconds: float, count: int, *, waiting: bool = False) -> None:
        """Sets what is left; with `waiting`, the time until a request begins."""
        self._until = time.monotonic() + seconds
        self._left = count
        self._is_waiting = waiting

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        if self._left <= 0:
            raise _TooLongError
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self._left -= count
        if self._is_waiting:
            self.allow(_REQUEST, self._left)
        return count


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection; subclasses say how, in `route`."""

    server: LocalServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def route(self, path: str) -> None:
        """Answers a request that has passed the checks.

        Args:
            path: The part of its address behind the token.

        Raises:
            RefusedError: It cannot be answered.
        """
        raise NotImplementedError

    def setup(self) -> None:
        """Prepares reading with limits."""
        super().setup()
        self._reader = _Reader(self.connection)
        self.rfile = io.BufferedReader(self._reader)
        self._idle = _REQUEST

    def handle_one_request(self) -> None:
        """Answers the next request, or closes the connection."""
        self._has_begun = False
        self.requestline, self.command, self.request_version = "", "", self.protocol_version
        self._reader.allow(self._idle, _LONGEST_REQUEST, waiting=True)
        try:
            super().handle_one_request()
        except _TooLongError:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Answers a request."""
        try:
            self.route(self._checked_path())
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except RefusedError as error:
            self._refuse(error.status, str(error), error.headers)
        except PysegError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception:
            _LOG.exception("port %d: a request failed", self.server.port)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "see the output of the command")

    def do_HEAD(self) -> None:
        """Answers a request without the content."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answers a request that changes something."""
        self.do_GET()

    def _checked_path(self) -> str:
        """Returns the path behind the token, of a request that may be answered."""
        headers = self.headers
        if self.request_version == "HTTP/0.9" or headers.defects or headers.get_payload():
            self.request_version = self.protocol_version
            raise RefusedError(HTTPStatus.BAD_REQUEST, "expected HTTP/1.1")
        for name in _SINGLE:
            if len(headers.get_all(name, [])) > 1:
                raise RefusedError(HTTPStatus.BAD_REQUEST, f"expected {name} once")
        host = headers.get("Host", "")
        if host.lower() not in self.server.hosts:
            allowed = " or ".join(sorted(self.server.hosts))
            raise RefusedError(HTTPStatus.FORBIDDEN, f"expected the host {allowed}")
        followed = self.command == "GET" and headers.get("Sec-Fetch-Dest") == "document"
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not followed:
            raise RefusedError(HTTPStatus.FORBIDDEN, "expected a request of the page itself")
        if self.command == "POST":
            if headers.get("Origin") != f"http://{host}":
                raise RefusedError(HTTPStatus.FORBIDDEN, "expected the origin of the page")
        elif headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "expected no body")
        token, slash, path = self.path.removeprefix("/").partition("/")
        if self.command == "GET" and token == "open" and self.server.redeem(path):
            location = {"Location": f"/{self.server.token}/"}
            raise RefusedError(HTTPStatus.SEE_OTHER, "the page has another address", location)
        same = hmac.compare_digest(token.encode(), self.server.token.encode())
        if not (same and slash and self.path[0] == "/"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "expected the address of the page")
        self._idle = _IDLE
        return path

    def expect(self, method: str) -> None:
        """Refuses other methods than ``"POST"``, or than ``"GET"`` and HEAD.

        Raises:
            RefusedError: It is another one.
        """
        allowed = ("POST",) if method == "POST" else ("GET", "HEAD")
        if self.command not in allowed:
            text, names = f"expected {method}", {"Allow": ", ".join(allowed)}
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, text, names)

    def read_texts(self) -> dict[str, str]:
        """Returns the body of a request, an object of texts in JSON.

        Raises:
            RefusedError: It is something else, or too long.
        """
        headers = self.headers
        if "Content-Type" not in headers or headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = headers.get("Content-Length", "")
        if "Transfer-Encoding" in headers or not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected Content-Length")
        if len(length) > 9 or int(length) > _LONGEST_BODY:
            text = f"expected at most {_LONGEST_BODY} bytes"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise ConnectionError("the request is incomplete")
        try:
            value = parse_json(content, "the request")
        except DataError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "expected an object of texts")
        return value

    def send_json(self, value: Any) -> None:
        """Answers with a value as JSON."""
        self.send(json.dumps(value, allow_nan=False).encode(), "application/json")

    def send(
        self,
        content: bytes,
        kind: str,
        headers: Mapping[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        """Answers with a content of a media type."""
        self._begin(status, kind, len(content), headers or {})
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, path: str, kind: str) -> None:
        """Answers with a file, or with the range of its bytes that is asked for.

        Args:
            path: The file.
            kind: Its media type.

        Raises:
            RefusedError: It is gone, or does not have the bytes.
        """
        with _opened(path) as (file, found):
            size = found.st_size
            tag = f'"{found.st_mtime_ns:x}-{size:x}"'
            headers = {"Accept-Ranges": "bytes", "ETag": tag}
            part = None
            if self.command == "GET" and self.headers.get("If-Range", tag) == tag:
                part = _byte_range(self.headers.get("Range", ""), size)
            first, count, status = 0, size, HTTPStatus.OK
            if part is not None:
                (first, count), status = part, HTTPStatus.PARTIAL_CONTENT
                headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{size}"
            self._begin(status, kind, count, headers)
            if self.command == "GET":
                sent = self.connection.sendfile(file, first, count) if count else 0
                if sent != count:
                    raise ConnectionError("the file has become shorter")

    def _begin(self, status: HTTPStatus, kind: str, length: int, more: Mapping[str, str]) -> None:
        """Sends the head of an answer."""
        self._has_begun = True
        self.connection.settimeout(_STALLED)
        self.send_response_only(status)
        headers = {**_HEADERS, "Content-Type": kind, "Content-Length": str(length), **more}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(
        self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answers with a text, and closes the connection."""
        self.close_connection = True
        if self._has_begun:
            return
        policy = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'"}
        content = f"{text}\n".encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError, _TooLongError):
            self.send(content, "text/plain; charset=utf-8", {**policy, **(headers or {})}, status)
            # Closing while the client still sends would take the answer from it.
            self.connection.shutdown(socket.SHUT_WR)
            self._reader.allow(_LINGER, _LONGEST_LINGER)
            while self.rfile.read1(65536):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses a request that cannot be read."""
        self.request_version = self.protocol_version
        self._refuse(HTTPStatus(code), "expected another request")

    def handle_expect_100(self) -> bool:
        """Refuses ``Expect: 100-continue``: bodies are short."""
        self.send_error(HTTPStatus.EXPECTATION_FAILED)
        return False

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: addresses have the token."""


def _byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Returns the first byte and the number of bytes that a header asks for.

    Several ranges, and what is no range, are ignored, as HTTP allows. Where no last byte is given,
    the range ends after some megabytes: clients ask for more when they need it, and a video that
    is paused keeps no connection busy.

    Raises:
        RefusedError: There is no such byte.

    Example:
        >>> _byte_range("bytes=10-19", 100), _byte_range("bytes=-5", 100)
        ((10, 10), (95, 5))
        >>> _byte_range("bytes=90-500", 100), _byte_range("bytes=5-2", 100)
        ((90, 10), None)
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    if match[1] == "":
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first = int(match[1])
        last = int(match[2]) if match[2] else first + _LONGEST_PIECE - 1
        if last < first:
            return None
    if first >= size:
        where = {"Content-Range": f"bytes */{size}"}
        text = f"expected a range of {size} bytes"
        raise RefusedError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, text, where)
    return first, min(last, size - 1) - first + 1


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[io.FileIO, os.stat_result]]:
    """Opens a regular file, and nothing else: a pipe would wait for its writer."""
    gone = RefusedError(HTTPStatus.NOT_FOUND, "the file is gone")
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115
    except OSError as error:
        raise gone from error
    with file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise gone
        yield file, found


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
