"""A server of shards with faults, and what is expected of it."""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import random
import socket
import struct
import termios
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pyseg.data.download import DownloadReport

PLAN = "/2/download_plans/frame_train.json"
SHARDS = "/2/frame/train/"
SIZE = 100_000
STALLED = 0.5  # seconds, long enough for a server on a busy machine


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def content_of(name: str, size: int = SIZE) -> bytes:
    return random.Random(name).randbytes(size)


class Handler(BaseHTTPRequestHandler):
    """Serves the files of its server, or does what the next of the file's faults says."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests[self.path].append(dict(self.headers))
        faults = self.server.faults[self.path]
        (faults.pop(0) if faults else Handler.serve)(self)

    @property
    def body(self) -> bytes | None:
        return self.server.files.get(self.path)

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def serve(self, cut: int | None = None, ranges: bool = True) -> None:
        """Serves the file, or what is asked for of it, or as much of that as `cut` says."""
        if self.body is None:
            self.head(404, 0)
            return
        version = f'"{md5(self.body)}"'
        wanted = self.headers.get("Range") if ranges else None
        if self.headers.get("If-Range", version) != version:
            wanted = None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        rest = self.body[start:]
        if wanted and not rest:
            self.head(416, 0, Content_Range=f"bytes */{len(self.body)}")
        elif wanted:
            spread = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
            self.head(206, len(rest), Content_Range=spread, ETag=version)
        else:
            self.head(200, len(rest), ETag=version)
        self.wfile.write(rest[:cut])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Files by path, what goes wrong with the next requests of each, and the requests so far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Callable[[Handler], None]]] = defaultdict(list)
        self.requests: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.closing = threading.Event()

    def publish(self, *names: str, size: int = SIZE) -> None:
        for name in names:
            self.files[SHARDS + name] = content_of(name, size)
        files = {path.removeprefix(SHARDS): md5(self.files[path]) for path in self.shards()}
        self.files[PLAN] = json.dumps({"files": files}).encode()

    def shards(self) -> list[str]:
        return [path for path in self.files if path.startswith(SHARDS)]

    def ranges(self, name: str) -> list[str | None]:
        return [headers.get("Range") for headers in self.requests[SHARDS + name]]

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are what this is about


def truncates(size: int) -> Callable[[Handler], None]:
    return lambda handler: handler.serve(cut=size)


def stalls(size: int) -> Callable[[Handler], None]:
    def fault(handler: Handler) -> None:
        handler.serve(cut=size)
        handler.server.closing.wait(5)

    return fault


def until_all_is_sent(connection: socket.socket) -> None:
    waiting = array.array("i", [1])
    while waiting[0]:
        fcntl.ioctl(connection, termios.TIOCOUTQ, waiting)
        time.sleep(0.001)


def resets(size: int) -> Callable[[Handler], None]:
    def fault(handler: Handler) -> None:
        handler.serve(cut=size)
        until_all_is_sent(handler.connection)  # or the rest is dropped with the connection
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()

    return fault


def answers(status: int, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.head(status, 0, **headers)


def sends(content: bytes) -> Callable[[Handler], None]:
    def fault(handler: Handler) -> None:
        handler.head(200, len(content))
        handler.wfile.write(content)

    return fault


def ignores_range(handler: Handler) -> None:
    handler.serve(ranges=False)


def drips(before: bytes, piece: bytes) -> Callable[[Handler], None]:
    """Sends some bytes, and then next to nothing for as long as anybody listens."""

    def fault(handler: Handler) -> None:
        handler.wfile.write(before)
        while not handler.server.closing.wait(0.001):
            handler.wfile.write(piece)

    return fault


Fetch = Callable[..., DownloadReport]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".download.jsonl")
