"""Failures of servers and connections: those that pass and those that last."""

from __future__ import annotations

import itertools
import re
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import format_datetime
from pathlib import Path

import pytest

from pyseg.data.download import DownloadConfig, download
from pyseg.data.download import client as clients
from pyseg.data.download.client import Client, LastingError, PassingError, retry_after
from pyseg.data.download.part import Part, StoppedError
from pyseg.errors import UserError

from .servers import (
    SHARDS,
    SIZE,
    STALLED,
    Fetch,
    Handler,
    Server,
    answers,
    content_of,
    drips,
    ignores_range,
    md5,
    names,
    resets,
    sends,
    stalls,
    truncates,
)


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
    monkeypatch.setattr(clients, "monotonic", lambda: next(clock))  # every look takes a second
    server.publish("trainaa.tfrecord")
    path = SHARDS + "trainaa.tfrecord"
    server.faults[path] = [fault] * 3
    report = fetch(retries=2)
    slow = f"{server.url}{path}: fewer than 1000 bytes a second came for 20 s (3 times in a row)"
    assert report.missing == {"train0000.tfrecord": slow}
    assert len(server.requests[path]) == 3
    assert fetch().complete
    assert (folder / "train0000.tfrecord").read_bytes() == content_of("trainaa.tfrecord")


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
    monkeypatch.setattr(clients, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        config = DownloadConfig("frame", "train", str(tmp_path), server=url, retries=1)
        with pytest.raises(UserError, match=r"refused \(2 times in a row\)"):
            download(config)


def test_nothing_is_written_after_a_stop(server: Server, tmp_path: Path) -> None:
    stop, path = threading.Event(), tmp_path / "part"
    server.files["/it"] = bytes(SIZE)

    def waits_for_the_stop(handler: Handler) -> None:
        handler.head(200, SIZE)
        handler.wfile.write(bytes(10))
        stop.wait(5)
        handler.wfile.write(bytes(SIZE - 10))

    server.faults["/it"] = [waits_for_the_stop]
    with Part(path, None, stop) as part, pytest.raises(StoppedError):
        Client(10.0, 0, stop).fetch(
            f"{server.url}/it", part, md5(bytes(SIZE)), lambda *_: None, lambda _: stop.set()
        )
    assert path.read_bytes() == bytes(10)
    with pytest.raises(StoppedError):
        Part(path, None, stop)


def test_servers_may_ask_to_wait() -> None:
    def asked(value: str) -> float:
        headers = Message()
        headers["Retry-After"] = value
        return retry_after(headers)

    assert [asked("7"), asked(" 0 "), asked("-3"), asked("soon"), asked("")] == [7, 0, 0, 0, 0]
    later = datetime.now(timezone.utc) + timedelta(seconds=90)
    assert 80 < asked(format_datetime(later)) <= 90
    assert asked("Wed, 21 Oct 2015 07:28:00 -0000") == 0


def test_waits_grow_and_are_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    waits: list[float | None] = []
    asked = iter([0, 0, 30, 9999, *[0] * 9])
    client = Client(1.0, 9, Stop())

    def attempt() -> None:
        raise PassingError("no", next(asked))

    with pytest.raises(LastingError, match=r"no \(10 times in a row\)"):
        client.retried(attempt, lambda: 0)
    assert waits == [1, 2, 30, 600, 16, 32, 60, 60, 60]


def test_bad_hosts_are_not_tried_again(tmp_path: Path) -> None:
    for host in ("a b", "a:b", "."):
        config = DownloadConfig("frame", "train", str(tmp_path), server=f"http://{host}", timeout=1)
        with pytest.raises(UserError, match=re.escape(f"http://{host}/2/download_plans/")):
            download(config)
