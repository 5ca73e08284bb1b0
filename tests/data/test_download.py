"""``python -m pyseg.data download``, from a local server that fails as real ones do."""

from __future__ import annotations

import array
import errno
import fcntl
import hashlib
import itertools
import json
import os
import random
import re
import resource
import signal
import socket
import string
import struct
import termios
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pyseg.data import DataError, FrameDataset, __main__, _http
from pyseg.data import download as module
from pyseg.data.download import DownloadConfig, DownloadReport, download, read_plan
from pyseg.errors import UserError

from .conftest import FRAMES

PLAN = "/2/download_plans/frame_train.json"
SHARDS = "/2/frame/train/"
SIZE = 100_000
STALLED = 0.5  # seconds, long enough for a server on a busy machine


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def content_of(name: str, size: int = SIZE) -> bytes:
    return random.Random(name).randbytes(size)


class Handler(BaseHTTPRequestHandler):
    """Serves the files of its server, or fails with the next fault of the file."""

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
        """Serves the file or the requested range of it, or only its first `cut` bytes."""
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
    """Files by path, the faults of the next requests of each, and the requests so far."""

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
        pass  # clients hang up on purpose


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
        until_all_is_sent(handler.connection)  # else a reset drops what is not sent yet
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_http, "FIRST_WAIT", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., DownloadReport]:
    def fetch(**options: object) -> DownloadReport:
        given = {"server": server.url, "retries": 2, "timeout": 10.0, "folder": str(tmp_path)}
        return download(DownloadConfig("frame", "train", **(given | options)))  # type: ignore[arg-type]

    return fetch


Fetch = Callable[..., DownloadReport]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "frame-train"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".download.jsonl")


def test_shards_are_fetched_in_parallel(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord", "trainaB.tfrecord", "train99.tfrecord")
    together = threading.Barrier(3, timeout=5)

    def waits_for_the_others(handler: Handler) -> None:
        together.wait()
        handler.serve()

    for path in server.shards():
        server.faults[path] = [waits_for_the_others]
    report = fetch(jobs=3)
    assert names(folder) == ["train0000.tfrecord", "train0027.tfrecord", "train3843.tfrecord"]
    assert (folder / "train0027.tfrecord").read_bytes() == content_of("trainaB.tfrecord")
    assert (report.files, report.there, report.fetched, report.bytes) == (3, 0, 3, 3 * SIZE)
    assert report.complete
    assert [len(server.requests[path]) for path in server.shards()] == [1, 1, 1]


def test_fetched_shards_are_readable(
    server: Server, fetch: Fetch, folder: Path, tmp_path: Path, frame_shards: Callable
) -> None:
    for path in frame_shards([3, 1, 2]):
        server.files[SHARDS + path.name] = path.read_bytes()
        path.unlink()
    server.publish()
    server.faults[SHARDS + "train0000.tfrecord"] = [truncates(10)]
    assert fetch().complete
    records = FrameDataset(str(tmp_path), schema=FRAMES)
    assert sorted(example.id for example in records) == [
        "s0v0",
        "s0v1",
        "s0v2",
        "s1v0",
        "s2v0",
        "s2v1",
    ]


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([truncates(60_000)], [None, "bytes=60000-"]),
        ([truncates(0)], [None, None]),
        ([truncates(1), truncates(2), truncates(3), truncates(4)],
         [None, "bytes=1-", "bytes=3-", "bytes=6-", "bytes=10-"]),
        ([stalls(60_000)], [None, "bytes=60000-"]),
        ([resets(60_000)], [None, "bytes=60000-"]),
        ([answers(500), answers(503)], [None, None, None]),
        ([answers(429, Retry_After="0"), answers(408)], [None, None, None]),
        ([truncates(9), answers(502)], [None, "bytes=9-", "bytes=9-"]),
        ([truncates(9), ignores_range], [None, "bytes=9-"]),
        ([truncates(9), answers(416)], [None, "bytes=9-", None]),
        ([truncates(9), answers(206, Content_Range=f"bytes 8-{SIZE - 1}/{SIZE}")],
         [None, "bytes=9-", None]),
        ([truncates(9), answers(206)], [None, "bytes=9-", None]),
        ([truncates(9), answers(206, Content_Range=f"bytes 9-{SIZE}/{SIZE + 1}")],
         [None, "bytes=9-", None]),
        ([truncates(9), answers(206, Content_Range=f"bytes 9-{SIZE - 1}/{SIZE}", ETag='"new"')],
         [None, "bytes=9-", None]),
        ([truncates(9), answers(206, Content_Range=f"bytes 9-{SIZE - 1}/{SIZE}")],
         [None, "bytes=9-", "bytes=9-"]),
        ([sends(b"not it")], [None, None]),
        ([sends(bytes(SIZE))], [None, None]),
        ([truncates(9), sends(b"not it")], [None, "bytes=9-", None]),
    ],
)  # fmt: skip
def test_failures_that_pass(
    server: Server,
    fetch: Fetch,
    folder: Path,
    faults: list[Callable[[Handler], None]],
    ranges: list[str | None],
) -> None:
    server.publish("trainaa.tfrecord")
    server.faults[SHARDS + "trainaa.tfrecord"] = list(faults)
    report = fetch(timeout=STALLED)
    assert report.complete
    assert names(folder) == ["train0000.tfrecord"]
    assert (folder / "train0000.tfrecord").read_bytes() == content_of("trainaa.tfrecord")
    assert server.ranges("trainaa.tfrecord") == ranges


@pytest.mark.parametrize(
    ("fault", "requests", "reason", "left"),
    [
        (answers(404), 1, ": 404 Not Found", None),
        (answers(403), 1, ": 403 Forbidden", None),
        (answers(500), 3, r": 500 .* \(3 times in a row\)", None),
        (stalls(0), 3, ": nothing came for 0.5 s", None),
        (sends(b"not it"), 2, f": expected the MD5 .*, found {md5(b'not it')}", None),
        (truncates(7), 3, f": expected {SIZE} bytes, found 7", 7),
        (answers(302, Location="file:///etc/hostname"), 1, ": 302 .*file:///etc/hostname", None),
        (answers(302, Location="ftp://127.0.0.1/x"), 1, ": unknown url type: ftp", None),
        (answers(302, Location="/2/frame/train/trainaa.tfrecord"), 5, ": 302 .*loop", None),
    ],
)
def test_failures_that_last(
    server: Server,
    fetch: Fetch,
    folder: Path,
    fault: Callable[[Handler], None],
    requests: int,
    reason: str,
    left: int | None,
) -> None:
    server.publish("trainaa.tfrecord", "trainab.tfrecord")

    def without_range(handler: Handler) -> None:
        del handler.headers["Range"]
        fault(handler)

    server.faults[SHARDS + "trainaa.tfrecord"] = [without_range] * 99
    report = fetch(timeout=STALLED, jobs=1)
    assert not report.complete
    assert (report.files, report.fetched, report.untried) == (2, 1, 0)
    url = f"{server.url}{SHARDS}trainaa.tfrecord"
    assert list(report.missing) == ["train0000.tfrecord"]
    assert re.fullmatch(re.escape(url) + reason + ".*", report.missing["train0000.tfrecord"])
    assert len(server.requests[SHARDS + "trainaa.tfrecord"]) == requests
    unfinished = [] if left is None else ["train0000.tfrecord.part"]
    assert names(folder) == [*unfinished, "train0001.tfrecord"]
    if left is not None:
        assert (folder / unfinished[0]).stat().st_size == left


def drips(before: bytes, piece: bytes) -> Callable[[Handler], None]:
    """Sends some bytes, and then a trickle for as long as the client listens."""

    def fault(handler: Handler) -> None:
        handler.wfile.write(before)
        while not handler.server.closing.wait(0.001):
            handler.wfile.write(piece)

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        drips(b"HTTP/1.1 ", b"2"),
        drips(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    ],
)
def test_a_connection_that_drips_is_given_up(
    server: Server,
    fetch: Fetch,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Handler], None],
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(_http, "monotonic", lambda: next(clock))  # every reading takes a second
    server.publish("trainaa.tfrecord")
    path = SHARDS + "trainaa.tfrecord"
    server.faults[path] = [fault] * 3
    report = fetch(retries=2)
    slow = f"{server.url}{path}: fewer than 1000 bytes a second came for 20 s (3 times in a row)"
    assert report.missing == {"train0000.tfrecord": slow}
    assert len(server.requests[path]) == 3
    assert fetch().complete
    assert (folder / "train0000.tfrecord").read_bytes() == content_of("trainaa.tfrecord")


@pytest.mark.parametrize("name", ["train0000.tfrecord.part", ".download.jsonl"])
def test_symbolic_links_are_not_followed(
    server: Server, fetch: Fetch, folder: Path, tmp_path: Path, name: str
) -> None:
    server.publish("trainaa.tfrecord")
    (tmp_path / "precious").write_bytes(b"precious")
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=f"^{folder / name}: expected a file, found a symbolic li"):
        fetch()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    (folder / name).unlink()
    assert fetch().complete


def test_redirections_are_followed(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord")
    server.files["/elsewhere"] = server.files[SHARDS + "trainaa.tfrecord"]
    there = answers(302, Location="/elsewhere")
    server.faults[SHARDS + "trainaa.tfrecord"] = [there, there]
    server.faults["/elsewhere"] = [truncates(50)]
    assert fetch().complete
    assert [headers.get("Range") for headers in server.requests["/elsewhere"]] == [
        None, "bytes=50-",
    ]  # fmt: skip


def test_a_refused_connection_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        config = DownloadConfig("frame", "train", str(tmp_path), server=url, retries=1)
        with pytest.raises(UserError, match=r"refused \(2 times in a row\)"):
            download(config)


def test_the_same_call_resumes(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord", "trainab.tfrecord")
    server.faults[SHARDS + "trainaa.tfrecord"] = [truncates(70_000), answers(404)]
    assert not fetch().complete
    server.requests.clear()
    report = fetch()
    assert (report.there, report.fetched, report.bytes) == (1, 1, 30_000)
    assert list(server.requests) == [PLAN, SHARDS + "trainaa.tfrecord"]
    (request,) = server.requests[SHARDS + "trainaa.tfrecord"]
    assert request["Range"] == "bytes=70000-"
    assert request["If-Range"] == f'"{md5(content_of("trainaa.tfrecord"))}"'
    server.requests.clear()
    assert (fetch().there, list(server.requests)) == (2, [PLAN])


def test_a_file_that_changed_in_between(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord", "trainab.tfrecord")
    for path in server.shards():
        server.faults[path] = [truncates(70_000), answers(404)]
    fetch()
    # A part that the server had under another name.
    (folder / "train0000.tfrecord.part").write_bytes(bytes(70_000))
    state = folder / ".download.jsonl"
    name = json.dumps(f'"{md5(content_of("trainaa.tfrecord"))}"')
    assert name in state.read_text()
    state.write_text(state.read_text().replace(name, json.dumps('"old"')))
    # And a file with another checksum.
    changed = content_of("changed")
    server.files[SHARDS + "trainab.tfrecord"] = changed
    server.publish()
    server.requests.clear()
    assert fetch().complete
    assert server.ranges("trainab.tfrecord") == [None]
    assert (folder / "train0001.tfrecord").read_bytes() == changed
    (request,) = server.requests[SHARDS + "trainaa.tfrecord"]
    assert (request["Range"], request["If-Range"]) == ("bytes=70000-", '"old"')
    assert (folder / "train0000.tfrecord").read_bytes() == content_of("trainaa.tfrecord")


def test_a_finished_part_needs_no_request(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord")
    folder.mkdir()
    (folder / "train0000.tfrecord.part").write_bytes(content_of("trainaa.tfrecord"))
    assert fetch().fetched == 1
    assert names(folder) == ["train0000.tfrecord"]
    assert not server.requests[SHARDS + "trainaa.tfrecord"]


def test_existing_files_are_verified_once(
    server: Server, fetch: Fetch, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("trainaa.tfrecord", "trainab.tfrecord", "trainac.tfrecord")
    folder.mkdir()
    (folder / "train0000.tfrecord").write_bytes(content_of("trainaa.tfrecord"))
    (folder / "trainab.tfrecord").write_bytes(content_of("trainab.tfrecord"))
    (folder / "train0002.tfrecord").write_bytes(b"damaged")

    def only_of_names(content: bytes, **_: object) -> object:
        return hashlib.new("md5", content)

    report = fetch()
    assert (report.there, report.damaged, report.fetched) == (2, ["train0002.tfrecord"], 1)
    assert names(folder) == ["train0000.tfrecord", "train0002.tfrecord", "trainab.tfrecord"]
    with monkeypatch.context() as patch:
        patch.setattr(module.hashlib, "md5", only_of_names)
        assert fetch().there == 3
    path = folder / "trainab.tfrecord"
    times = path.stat()
    path.write_bytes(bytes(SIZE))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert fetch().damaged == ["train0001.tfrecord"]
    # Damage that keeps size and time is found on request.
    times = path.stat()
    path.write_bytes(bytes(SIZE))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fetch().there == 3
    report = fetch(verify=True)
    assert (report.there, report.damaged) == (2, ["train0001.tfrecord"])
    assert path.read_bytes() == content_of("trainab.tfrecord")


def test_facts_that_were_cut_off_do_no_harm(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord")
    fetch()
    state = folder / ".download.jsonl"
    state.write_bytes(b'7\n[]\n{"name": 3}\n\xff\n' + state.read_bytes()[:-20])
    assert fetch().there == 1
    assert state.read_bytes().endswith(b"}\n")
    before = state.stat().st_size
    assert (fetch().there, state.stat().st_size) == (1, before)


def test_one_download_at_a_time_in_a_folder(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord")
    errors = []

    def another(handler: Handler) -> None:
        try:
            fetch()
        except UserError as error:
            errors.append(str(error))
        handler.serve()

    server.faults[SHARDS + "trainaa.tfrecord"] = [another]
    assert fetch().complete
    assert errors == [f"{folder}: another download is at work there"]


def test_interruption(
    server: Server, fetch: Fetch, folder: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    server.publish("trainaa.tfrecord", "trainab.tfrecord")
    part = folder / "train0000.tfrecord.part"

    def interrupts(handler: Handler) -> None:
        handler.serve(cut=60_000)
        while not (handler.server.closing.is_set() or part.stat().st_size == 60_000):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        handler.server.closing.wait(5)

    server.faults[SHARDS + "trainaa.tfrecord"] = [interrupts]
    with pytest.raises(KeyboardInterrupt):
        fetch(jobs=1)
    assert names(folder) == ["train0000.tfrecord.part"]
    assert fetch().complete
    assert server.ranges("trainaa.tfrecord") == [None, "bytes=60000-"]
    assert server.ranges("trainab.tfrecord") == [None]


def test_a_full_disk(server: Server, fetch: Fetch, folder: Path) -> None:
    server.publish("trainaa.tfrecord")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=f"^{folder}/train0000.tfrecord.part: {os.strerror(errno.EFBIG)};"
        ):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(folder) == ["train0000.tfrecord.part"]
    assert fetch().complete
    assert server.ranges("trainaa.tfrecord") == [None, "bytes=60000-"]


def test_a_dead_mirror_ends_the_run(server: Server, fetch: Fetch) -> None:
    server.publish(*(f"traina{letter}.tfrecord" for letter in "abcdefghijklmnopq"), size=10)
    for path in server.shards()[3:]:
        server.faults[path] = [answers(404)]
    report = fetch(jobs=1)
    assert (report.fetched, len(report.missing), report.untried) == (3, 10, 4)
    assert not report.complete


def test_occasional_failures_do_not_end_the_run(server: Server, fetch: Fetch) -> None:
    server.publish(*(f"traina{letter}.tfrecord" for letter in string.ascii_lowercase), size=10)
    for path in server.shards()[::2]:
        server.faults[path] = [answers(404)]
    report = fetch(jobs=1)
    assert (report.fetched, len(report.missing), report.untried) == (13, 13, 0)


def test_nothing_is_written_after_a_stop(server: Server, tmp_path: Path) -> None:
    stop, path = threading.Event(), tmp_path / "part"
    server.files["/it"] = bytes(SIZE)

    def waits_for_the_stop(handler: Handler) -> None:
        handler.head(200, SIZE)
        handler.wfile.write(bytes(10))
        stop.wait(5)
        handler.wfile.write(bytes(SIZE - 10))

    server.faults["/it"] = [waits_for_the_stop]
    with _http.Part(path, None, stop) as part, pytest.raises(_http.StoppedError):
        _http.Client(10.0, 0, stop).fetch(
            f"{server.url}/it", part, md5(bytes(SIZE)), lambda *_: None, lambda _: stop.set()
        )
    assert path.read_bytes() == bytes(10)
    with pytest.raises(_http.StoppedError):
        _http.Part(path, None, stop)


def test_servers_may_ask_to_wait() -> None:
    def asked(value: str) -> float:
        headers = Message()
        headers["Retry-After"] = value
        return _http._retry_after(headers)

    assert [asked("7"), asked(" 0 "), asked("-3"), asked("soon"), asked("")] == [7, 0, 0, 0, 0]
    later = datetime.now(timezone.utc) + timedelta(seconds=90)
    assert 80 < asked(format_datetime(later)) <= 90
    assert asked("Wed, 21 Oct 2015 07:28:00 -0000") == 0


def test_waits_grow_and_follow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    waits: list[float | None] = []
    asked = iter([0, 0, 30, 9999, *[0] * 9])
    client = _http.Client(1.0, 9, Stop())

    def attempt() -> None:
        raise _http._PassingError("no", next(asked))

    with pytest.raises(_http.LastingError, match=r"no \(10 times in a row\)"):
        client._retried(attempt, lambda: 0)
    assert waits == [1, 2, 30, 600, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>", "expected JSON, found b'<html>'"),
        (b"[" * 100_000, "expected JSON, found"),
        (b"\xff", "expected JSON, found"),
        (b"[]", "expected a plan"),
        (b'{"files": []}', "expected a plan"),
        (b'{"files": {}}', "expected a plan"),
        (b'{"files": {"a.tfrecord": 3}}', "a.tfrecord: expected an MD5 checksum, found '3'"),
        (b'{"files": {"a.tfrecord": "12"}}', "expected an MD5 checksum, found '12'"),
        *(
            (json.dumps({"files": {name: "0" * 32}}).encode(), "expected names of files in one")
            for name in (
                "../a",
                "/a",
                "a/b",
                "..",
                "",
                ".a",
                "a\n",
                "a\0",
                "a\\b",
                "a.part",
                "a" * 300,
            )
        ),
        (
            json.dumps(
                {"files": dict.fromkeys(["trainaa.tfrecord", "train0000.tfrecord"], "0" * 32)}
            ).encode(),
            "expected different names, found trainaa.tfrecord and train0000.tfrecord, both of",
        ),
    ],
)
def test_malformed_plans(
    server: Server, fetch: Fetch, tmp_path: Path, content: bytes, problem: str
) -> None:
    with pytest.raises(DataError, match=f"^here: .*{problem}"):
        read_plan(content, "here")
    server.files[PLAN] = content
    with pytest.raises(DataError, match=f"^{server.url}{PLAN}: "):
        fetch()
    assert not list(tmp_path.iterdir())


def test_the_plan_is_tried_again(
    server: Server, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish("trainaa.tfrecord")
    server.faults[PLAN] = [answers(500), truncates(5), stalls(3)]
    with pytest.raises(UserError, match=f"^{server.url}{PLAN}: nothing came for 0.5 s"):
        fetch(timeout=STALLED)
    server.faults[PLAN] = [answers(500), truncates(5)]
    assert fetch().complete
    server.faults[PLAN] = [answers(404)]
    with pytest.raises(UserError, match=f"^{server.url}{PLAN}: 404 Not Found$"):
        fetch()
    monkeypatch.setattr(_http, "_LARGEST_READ", 20)
    with pytest.raises(UserError, match=f"^{server.url}{PLAN}: expected at most 20 bytes$"):
        fetch()


def test_parts_are_those_of_the_published_script(
    server: Server, fetch: Fetch, folder: Path
) -> None:
    server.publish(*(f"traina{letter}.tfrecord" for letter in "abcdefgh"), size=10)
    taken = [fetch(shard=f"{i},3").files for i in (1, 2, 3)]
    assert sum(taken) == 8
    assert len(names(folder)) == 8
    first = sum(int(md5(f"traina{letter}.tfrecord".encode()), 16) % 3 == 0 for letter in "abcdefgh")
    assert taken[0] == first
    with pytest.raises(UserError, match=r"^shard: 1,999999 takes no file"):
        fetch(shard="1,999999")


def test_where_everything_lies(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PLANS", f"{server.url}/plans")
    monkeypatch.setattr(module, "_MIRROR", f"{server.url}/{{}}")
    monkeypatch.setattr(module, "_VOCABULARIES", f"{server.url}/tables")
    plan = json.dumps({"files": {"validateaa.tfrecord": md5(b"it").upper()}}).encode()
    server.files = {
        "/plans/3/download_plans/frame_validate.json": plan,
        "/asia/3/frame/validate/validateaa.tfrecord": b"it",
        "/tables/csv/2/vocabulary.csv": b"Index,Name\n0,a\n1,b\n",
        "/tables/csv/segments/vocabulary.csv": b"Index,Name\n1,b\n",
    }
    config = DownloadConfig(
        "segment", "validate", str(tmp_path), mirror="asia", vocabulary=True, retries=0
    )
    report = download(config)
    assert (report.files, report.fetched, report.complete) == (3, 3, True)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*[vd]"))
    assert found == [
        "segment-validate/validate0000.tfrecord", "segment_vocabulary.csv", "vocabulary.csv"
    ]  # fmt: skip
    server.requests.clear()
    assert download(config).there == 3
    assert len(server.requests) == 1
    # An invalid vocabulary is discarded, and the shards are still fetched.
    (tmp_path / "vocabulary.csv").unlink()
    (tmp_path / "segment_vocabulary.csv").unlink()
    (tmp_path / "segment-validate" / "validate0000.tfrecord").unlink()
    server.files["/tables/csv/2/vocabulary.csv"] = b"<html>"
    del server.files["/tables/csv/segments/vocabulary.csv"]
    report = download(config)
    assert report.fetched == 1
    assert (
        "expected a table with the column Index, found b'<html>'"
        in report.missing["vocabulary.csv"]
    )
    assert report.missing["segment_vocabulary.csv"].endswith(
        "csv/segments/vocabulary.csv: 404 Not Found"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["segment-validate"]


def test_command(
    server: Server, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    server.publish("trainaa.tfrecord", "trainab.tfrecord")
    server.faults[SHARDS + "trainab.tfrecord"] = [answers(404)]
    options = [
        "download", "--subset", "frame", "--partition", "train", "--server", server.url + "/",
        "--folder", str(tmp_path), "--shard", "1,1",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"^1 of 2 files are missing; the same command goes on"):
        __main__.main(options)
    out, err = capsys.readouterr()
    assert out == f"{folder}: 2 files: 0 were there, 1 fetched (0.1 MB)\n"
    url = f"{server.url}{SHARDS}trainab.tfrecord"
    assert err == f"missing: train0001.tfrecord: {url}: 404 Not Found\n"
    (folder / "train0000.tfrecord").write_bytes(b"damaged")
    __main__.main(options)
    out, err = capsys.readouterr()
    assert out == f"{folder}: 2 files: 0 were there, 2 fetched (0.2 MB)\n"
    assert err == "damaged, fetched again: train0000.tfrecord\n"
    __main__.main(options)
    assert capsys.readouterr() == (f"{folder}: 2 files: 2 were there, 0 fetched (0.0 MB)\n", "")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"subset": "segment"},
            "partition: expected validate or test of the subset segment, found",
        ),
        ({"subset": "all"}, "subset: expected one of frame, video, segment, found all"),
        ({"partition": "dev"}, "partition: expected train, validate or test, found dev"),
        ({"mirror": "mars"}, "mirror: expected us, eu or asia, found mars"),
        ({"server": "file:///etc"}, "server: expected an http or https URL, found file:///etc"),
        ({"server": "ftp://host"}, "server: expected an http"),
        ({"server": "host"}, "server: expected an http"),
        ({"server": "http://host/?a"}, r"server: expected a URL without \? and #"),
        ({"shard": "0,3"}, "shard: expected i,n with 1 <= i <= n, found 0,3"),
        ({"shard": "4,3"}, "shard: expected"),
        ({"shard": "3"}, "shard: expected"),
        ({"jobs": 0}, "jobs: expected at least 1, found 0"),
        ({"retries": -1}, "retries: expected at least 0, found -1"),
        ({"timeout": 0.0}, "timeout: expected more than 0 seconds, found 0.0"),
        ({"timeout": float("nan")}, "timeout: expected more than 0 seconds"),
    ],
)
def test_bad_options(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        DownloadConfig(**({"subset": "frame", "partition": "train"} | options))  # type: ignore[arg-type]


def test_bad_hosts_are_not_tried_again(tmp_path: Path) -> None:
    for host in ("a b", "a:b", "."):
        config = DownloadConfig("frame", "train", str(tmp_path), server=f"http://{host}", timeout=1)
        with pytest.raises(UserError, match=re.escape(f"http://{host}/2/download_plans/")):
            download(config)
