"""The local server: the page's requests, and those of others, which get nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest

from pyseg.errors import ArgumentError, UserError
from pyseg.rate import server as rate_server
from pyseg.rate import web
from pyseg.rate.media import Link, Media
from pyseg.rate.server import RatingServer, serve
from tests.rate.fake_session import QUESTIONS, FakeSession

pytest.importorskip("jinja2")

CONTENT = bytes(range(256)) * 40
SECRET = b"the content of another file"


class Answer(NamedTuple):
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """Speaks to the server through a socket, so that nothing is corrected on the way."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, server: RatingServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.file = self.socket.makefile("rb")
        self.opened.append(self)

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, content: bytes | str) -> None:
        with contextlib.suppress(ConnectionError):  # the answer may be there already
            self.socket.sendall(content if isinstance(content, bytes) else content.encode())

    def read(self, method: str = "GET") -> Answer:
        """Reads one answer."""
        status = self.file.readline()
        assert status.startswith(b"HTTP/1.1 "), status
        lines = iter(lambda: self.file.readline().strip(), b"")
        headers = dict(line.decode().lower().split(": ", 1) for line in lines)
        length = 0 if method == "HEAD" else int(headers["content-length"])
        return Answer(int(status.split()[1]), headers, self.file.read(length))

    def is_closed(self) -> bool:
        """Returns whether the server has ended the connection; waits for what it does."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    yield
    for client in Client.opened:
        client.close()
    Client.opened.clear()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RatingServer]:
    folder = tmp_path_factory.mktemp("films")
    files = {"film-0": folder / "film 0.webm", "film-1": folder / "film-1.mp4"}
    with RatingServer(FakeSession(), Media(files)) as running:
        yield running


@pytest.fixture
def server(running: RatingServer) -> RatingServer:
    """The server, with a new session."""
    running.session = FakeSession()
    return running


@pytest.fixture
def folder(running: RatingServer) -> Path:
    """The folder of the videos."""
    folder = Path(running.media.file(0)).parent
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "secret.txt").write_bytes(SECRET)
    (folder / "film 0.webm").write_bytes(CONTENT)
    (folder / "film-1.mp4").write_bytes(CONTENT[:100])
    return folder


@pytest.fixture
def ask(server: RatingServer, folder: Path):
    """Sends a request on a connection of its own; returns the answer."""

    def send(
        path: str = "",
        method: str = "GET",
        body: object = None,
        token: str | None = None,
        **headers,
    ) -> Answer:
        port, secret = server.port, server.token if token is None else token
        content = b"" if body is None else json.dumps(body).encode()
        given = {"host": f"127.0.0.1:{port}"}
        if method == "POST":
            given |= {"origin": f"http://127.0.0.1:{port}", "content-type": "application/json"}
            given["content-length"] = str(len(content))
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
        client = Client(server)
        head = "\r\n".join([f"{method} /{secret}/{path} HTTP/1.1", *lines, "", ""])
        client.send(head.encode("latin-1") + content)
        return client.read(method)

    return send


def test_a_session(ask, server) -> None:
    state = ask("state").json
    assert state["question"] == {
        **QUESTIONS[0]._asdict(),
        "media": {"kind": "file", "number": 0, "offset": 0.0, "plays": True},
    }
    assert state["next"]["id"] == "q1"
    assert state["progress"]["classes"][0] == {"name": "sun", "yes": 0, "no": 0}
    answer = ask("answer", "POST", {"id": "q0", "verdict": "yes"}).json
    assert answer["holds"]
    assert answer["question"]["id"] == "q1"
    assert answer["progress"]["answered"] == 1
    assert answer["progress"]["undoable"] == "q0"
    assert ask("answer", "POST", {"id": "q0", "verdict": "yes"}).json["holds"]  # sent again
    assert not ask("answer", "POST", {"id": "q0", "verdict": "no"}).json["holds"]
    assert server.session.stored == [("q0", "yes")]
    ask("answer", "POST", {"id": "q1", "verdict": "skip"})
    assert not ask("undo", "POST", {"id": "q0"}).json["holds"]  # it is not the last one
    undone = ask("undo", "POST", {"id": "q1"}).json
    assert undone["holds"]
    assert undone["question"]["id"] == "q1"
    assert not ask("undo", "POST", {"id": "q1"}).json["holds"]  # sent again
    assert server.session.stored == [("q0", "yes"), ("q1", "skip"), ("q1", "undo")]
    for question in QUESTIONS[1:]:
        end = ask("answer", "POST", {"id": question.id, "verdict": "no"}).json
    assert end["question"] is None
    assert end["next"] is None


def test_the_page_and_the_headers_of_every_answer(ask) -> None:
    page = ask()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "media-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert ask(method="HEAD").headers["content-length"] == str(len(page.body))
    for answer in (page, ask("state"), ask("video/0"), ask("nothing"), ask(token="x")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert not {"server", "set-cookie", "access-control-allow-origin"} & answer.headers.keys()


def test_videos_elsewhere_may_be_played_and_nothing_else(tmp_path: Path) -> None:
    links = {"a": Link("https://example.org/a.mp4"), "b": Link("http://example.org/page")}
    server = RatingServer(FakeSession(), Media({}, links))
    server.server_close()
    assert "media-src 'self' https:;" in server.policy


def test_a_connection_is_kept(server) -> None:
    client = Client(server)
    request = f"GET /{server.token}/state HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n"
    for _ in range(3):
        client.send(request)
        assert client.read().status == 200
    client.send(request * 3)  # before the first answer
    assert [client.read().status for _ in range(3)] == [200] * 3
    client.send(request.replace("HTTP/1.1", "HTTP/1.0"))
    assert client.read().headers["connection"] == "close"
    assert client.is_closed()


# Ranges of bytes


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=10-10", 10, 10),
        ("bytes=10000-", 10000, 10239),
        ("bytes=10000-99999", 10000, 10239),
        ("bytes=-40", 10200, 10239),
        ("bytes=-99999", 0, 10239),
    ],
)
def test_a_range(ask, header: str, first: int, last: int) -> None:
    answer = ask("video/0", range=header)
    assert answer.status == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/10240"
    assert answer.headers["content-type"] == "video/webm"
    assert answer.body == CONTENT[first : last + 1]


@pytest.mark.parametrize(
    "header",
    [
        *("bytes=", "bytes=-", "bytes=5-2", "bytes=0-1,3-4", "bytes=a-b", "bytes=--1", "lines=0-1"),
        *("bytes=0x1-2", "bytes=1-2-3", "bytes=٣-٤", "bytes=" + "9" * 99 + "-", "bytes =0-1"),
    ],
)
def test_what_is_no_range_gets_the_whole_file(ask, header: str) -> None:
    answer = ask("video/0", range=header.encode().decode("latin-1"))
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("header", ["bytes=10240-", "bytes=99999999999999-", "bytes=-0"])
def test_a_range_behind_the_end(ask, header: str) -> None:
    answer = ask("video/0", range=header)
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */10240"


def test_a_range_of_another_version_of_the_file(ask, folder: Path) -> None:
    tag = ask("video/0").headers["etag"]
    assert ask("video/0", range="bytes=0-9", if_range=tag).status == 206
    os.utime(folder / "film 0.webm", ns=(1, 1))
    assert ask("video/0", range="bytes=0-9", if_range=tag).status == 200
    assert ask("video/0", range="bytes=0-9", if_range="Tue, 1 Jan 2030 00:00:00 GMT").status == 200


def test_head_of_a_video(ask) -> None:
    answer = ask("video/1", "HEAD", range="bytes=0-9")
    assert (answer.status, answer.headers["content-length"]) == (200, "100")
    assert answer.headers["content-type"] == "video/mp4"


def test_an_open_range_ends_after_some_megabytes(ask, folder: Path) -> None:
    with open(folder / "film 0.webm", "wb") as file:
        file.truncate(3 * 1024**3)
    answer = ask("video/0", range="bytes=100-")
    assert answer.headers["content-range"] == f"bytes 100-{100 + 4 * 1024**2 - 1}/{3 * 1024**3}"
    assert len(answer.body) == 4 * 1024**2
    last = ask("video/0", range=f"bytes={3 * 1024**3 - 5}-")
    assert last.body == bytes(5)


def test_files_that_are_gone_or_no_files(ask, folder: Path) -> None:
    (folder / "film 0.webm").unlink()
    assert ask("video/0").status == 404
    os.mkfifo(folder / "film 0.webm")
    assert ask("video/0").status == 404  # and does not wait for a writer
    (folder / "film 0.webm").unlink()
    (folder / "film 0.webm").mkdir()
    assert ask("video/0").status == 404
    assert ask("frames/0/0-1000").status == 404
    (folder / "film-1.mp4").write_bytes(b"")
    assert ask("video/1").body == b""
    assert ask("video/1", range="bytes=0-").status == 416


# Requests of others


@pytest.mark.parametrize(
    "host",
    [
        *(None, "", "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1"),
        *("localhost:{port}0", "127.0.0.1:{port}@evil.example", "127.0.0.1.evil.example:{port}"),
        *("0.0.0.0:{port}", "[::1]:{port}", "127.1:{port}", "localhost.:{port}"),
        "127.0.0.1:{port}, evil.example",
    ],
)
def test_another_host(ask, server, host: str | None) -> None:
    given = host and host.format(port=server.port)
    for path, method in (("", "GET"), ("state", "GET"), ("video/0", "GET")):
        assert ask(path, method, host=given).status == 403
    answer = ask("answer", "POST", {"id": "q0", "verdict": "yes"}, host=given)
    assert answer.status == 403
    assert server.session.stored == []
    assert ask(host=f"LocalHost:{server.port}").status == 200


def test_two_hosts(server) -> None:
    client = Client(server)
    host = f"Host: 127.0.0.1:{server.port}\r\n"
    client.send(f"GET /{server.token}/ HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n")
    assert client.read().status == 400


@pytest.mark.parametrize(
    "token", ["", "x", "open", "..", "%2e", "{token}x", "{Token}", "{token:.10}"]
)
def test_no_token_or_a_wrong_one(ask, server, token: str) -> None:
    given = token.format(token=server.token, Token=server.token.swapcase())
    for path in ("", "state", "video/0", "frames/0/0-1000", "favicon.ico"):
        answer = ask(path, token=given)
        assert (answer.status, answer.body) == (403, b"expected the address of the page\n")
    assert ask("answer", "POST", {"id": "q0", "verdict": "yes"}, token=given).status == 403
    assert server.session.stored == []


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": None},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "https://127.0.0.1:{port}"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://127.0.0.1:{port}.evil.example"},
        {"origin": "http://localhost:{port}"},  # the page is at 127.0.0.1
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_dest": "document"},
    ],
)
def test_a_post_of_another_page(ask, server, changes: dict) -> None:
    given = {name: value and value.format(port=server.port) for name, value in changes.items()}
    for path, body in (("answer", {"id": "q0", "verdict": "yes"}), ("undo", {"id": "q0"})):
        assert ask(path, "POST", body, **given).status == 403
    assert server.session.stored == []


def test_what_another_page_embeds(ask) -> None:
    for path in ("", "state", "video/0", "frames/0/0-1000"):
        assert ask(path, sec_fetch_site="cross-site", sec_fetch_dest="iframe").status == 403
        assert ask(path, sec_fetch_site="same-site").status == 403  # another port of this host
    assert ask(sec_fetch_site="cross-site", sec_fetch_dest="document").status == 200  # a link
    assert ask("state", sec_fetch_site="same-origin").status == 200


def test_a_ticket_works_once(server, monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(url: str, method: str = "GET") -> Answer:
        client = Client(server)
        path = "/" + url.split("/", 3)[3]
        client.send(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n")
        return client.read(method)

    url = server.ticket()
    assert server.token not in url
    assert follow(url, "HEAD").status == 403  # a look ahead does not use it up
    answer = follow(url)
    assert (answer.status, answer.headers["location"]) == (303, f"/{server.token}/".lower())
    assert follow(url).status == 403
    late = server.ticket()
    now = time.monotonic
    monkeypatch.setattr(web.time, "monotonic", lambda: now() + 61)
    assert not server.redeem(late.rsplit("/", 1)[1])


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "video/../../secret.txt",
        "video/..%2f..%2fsecret.txt",
        "video/%2e%2e/secret.txt",
        "video/..%5csecret.txt",
        "video/..%252fsecret.txt",
        "video/%c0%ae%c0%ae/secret.txt",
        "video//etc/passwd",
        "video/{folder}/secret.txt",
        "video/0/../../secret.txt",
        "video/0%00",
        "video/0?",
        "video/0/",
        "video/00000000000",
        "video/-1",
        "video/+0",
        "video/²",
        "video/٠",
        "video/2",
        "video/film-0",
        "video/film 0.webm",
        "video/",
        "video",
        "frames/0",
        "frames/0/5000-1000",
        "frames/0/0-0",
        "frames/0/0-99999999999",
        "frames/9/0-1000",
        "frames/../0-1000",
        "static/kit.js",
        "state/",
        "State",
        "%73tate",
        ";state",
        "state#",
    ],
)
def test_no_other_file_and_no_other_address(ask, folder: Path, path: str) -> None:
    given = path.format(folder=folder).encode().decode("latin-1")
    answer = ask(given)
    assert answer.status in (400, 404), answer
    assert SECRET not in answer.body
    assert str(folder).encode() not in answer.body


@pytest.mark.parametrize(
    "target", ["*", "state", "http://127.0.0.1:{port}/{token}/", "//{token}x/"]
)
def test_targets_that_are_no_paths(server, target: str) -> None:
    client = Client(server)
    target = target.format(port=server.port, token=server.token)
    client.send(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n")
    assert client.read().status == 403


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"id"',
        b"{}",
        b'{"id": "q0"}',
        b'{"id": "q0", "verdict": "perhaps"}',
        b'{"id": "q0", "verdict": "yes", "more": "x"}',
        b'{"id": 0, "verdict": "yes"}',
        b'{"id": ["q0"], "verdict": "yes"}',
        b'{"id": "q0", "verdict": null}',
        b'{"id": NaN, "verdict": "yes"}',
        b"\xff\xfe",
        b'{"id": "\\ud800", "verdict": "yes"}',
        b"[" * 4000,
        b"9" * 4000,
    ],
)
def test_bodies_that_are_no_answer(server, body: bytes) -> None:
    client = Client(server)
    client.send(head(server, f"Content-Length: {len(body)}") + body)
    assert client.read().status == 400
    assert client.is_closed()
    assert server.session.stored == []


def head(server: RatingServer, *lines: str, path: str = "answer") -> bytes:
    """Returns the head of a POST with further headers."""
    host = f"127.0.0.1:{server.port}"
    given = [f"Host: {host}", f"Origin: http://{host}", "Content-Type: application/json", *lines]
    return "\r\n".join([f"POST /{server.token}/{path} HTTP/1.1", *given, "", ""]).encode()


BODY = b'{"id": "q0", "verdict": "yes"}'


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 411),
        (["Content-Length: -1"], 411),
        (["Content-Length: +30"], 411),
        (["Content-Length: 0x1e"], 411),
        (["Content-Length: 3 0"], 411),
        (["Content-Length: ³"], 411),
        (["Content-Length: 4097"], 413),
        (["Content-Length: 99999999999999999999999"], 413),
        (["Content-Length: 30", "Content-Length: 31"], 400),
        (["Transfer-Encoding: chunked"], 411),
        (["Transfer-Encoding: chunked", "Content-Length: 30"], 411),
        (["Transfer-Encoding: identity", "Content-Length: 30"], 411),
        (["Content-Length: 30", "Content-Type: text/plain"], 400),
        (["Content-Length: 30", "Expect: 100-continue"], 417),
        (["Content-Length: 30", "no header"], 400),
        (["Content-Length: 30", " folded: x", "Host : x"], 400),
    ],
)
def test_lengths_and_headers(server, lines: list[str], status: int) -> None:
    client = Client(server)
    client.send(head(server, *lines) + BODY)
    assert client.read().status == status
    assert client.is_closed()
    assert server.session.stored == []


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json", None]
)
def test_other_types_of_bodies(ask, server, kind: str | None) -> None:
    answer = ask("answer", "POST", {"id": "q0", "verdict": "yes"}, content_type=kind)
    assert answer.status in (400, 415)
    assert server.session.stored == []
    typed = {"content_type": "application/json; charset=utf-8"}
    assert ask("answer", "POST", {"id": "q0", "verdict": "yes"}, **typed).status == 200


def test_unknown_questions_and_methods(ask) -> None:
    assert ask("answer", "POST", {"id": "q9", "verdict": "yes"}).status == 404
    assert ask("undo", "POST", {"id": "q9"}).json["holds"] is False
    assert ask("undo", "POST", {"id": "q9", "verdict": "yes"}).status == 400
    for path in ("answer", "undo"):
        assert ask(path).headers["allow"] == "post"
        assert ask(path).status == 405
    for path in ("", "state", "video/0", "frames/0/0-1000"):
        assert ask(path, "POST", {}).status == 405
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "BREW", "get"):
        assert ask("state", method).status == 501
    assert ask("state", content_length="5").status == 400
    assert ask("state", transfer_encoding="chunked").status == 400


def test_errors_tell_nothing_of_the_program(ask, server, caplog) -> None:
    server.session.error = UserError("ratings.csv: no space is left")
    answer = ask("answer", "POST", {"id": "q0", "verdict": "yes"})
    assert (answer.status, answer.body) == (503, b"ratings.csv: no space is left\n")
    assert caplog.records == []
    server.session.error = RuntimeError("a secret")
    answer = ask("answer", "POST", {"id": "q0", "verdict": "yes"})
    assert (answer.status, answer.body) == (500, b"see the output of the command\n")
    assert "a secret" in caplog.text
    server.session.error = None
    assert ask("answer", "POST", {"id": "q0", "verdict": "yes"}).status == 200


# Requests that are too long, too slow or too many


def test_long_lines_and_many_headers(server) -> None:
    start = f"GET /{server.token}/ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
    for content in (
        b"GET /" + b"a" * 200_000,
        b"a" * 10_000_000,
        start + b"X: " + b"a" * 200_000,
        start + (b"X: " + b"a" * 60_000 + b"\r\n") * 50,
        start + b"X: y\r\n" * 101 + b"\r\n",
        start + b"X: y\r\n" * 200_000,
    ):
        client = Client(server)
        client.send(content)
        assert client.read().status in (414, 431)
        assert client.is_closed()
    client = Client(server)
    client.send(start + b"X: y\r\n" * 50 + b"\r\n")
    assert client.read().status == 200


@pytest.mark.parametrize(
    "content",
    [
        *(b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n"),
        *(b"\x16\x03\x01\x02\0\x01", b"\0" * 100 + b"\n", b"GET / HTTP/1.1 x\r\n\r\n"),
        *(b"\xff\xfe / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ],
)
def test_what_is_no_request(server, ask, content: bytes) -> None:
    client = Client(server)
    client.send(content)
    client.socket.shutdown(socket.SHUT_WR)
    answer = client.file.read()
    assert answer == b"" or re.match(rb"HTTP/1.1 (400|403|501|505) ", answer)
    assert ask("state").status == 200


def drip(client: Client, seconds: int) -> None:
    """Sends a byte now and then."""
    for _ in range(20 * seconds):
        client.socket.sendall(b"G")
        time.sleep(0.05)


def test_slow_requests_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep a connection; one that has the secret may be idle."""
    monkeypatch.setattr(web, "_REQUEST", 0.3)
    with RatingServer(FakeSession(), Media({})) as server:
        contents = [b"", b"GET / HT", head(server, "Content-Length: 30") + BODY[:5]]
        request = f"GET /{server.token}/state HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n"
        idle = Client(server)
        idle.send(request)
        idle.read()
        clients = [Client(server) for _ in contents]
        for client, content in zip(clients, contents, strict=True):
            client.send(content)
        with pytest.raises(ConnectionError):
            drip(Client(server), seconds=10)
        assert all(client.is_closed() for client in clients)
        idle.send(request)
        assert idle.read().status == 200
        assert server.session.stored == []


def test_clients_that_do_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_STALLED", 0.3)
    with open(folder / "film 0.webm", "wb") as file:
        file.truncate(500 * 1024**2)
    with RatingServer(FakeSession(), Media({"film-0": folder / "film 0.webm"})) as server:
        client = Client(server)
        host = f"Host: 127.0.0.1:{server.port}"
        client.send(f"GET /{server.token}/video/0 HTTP/1.1\r\n{host}\r\n\r\n")
        time.sleep(1)
        assert server._free._value == web._CONNECTIONS  # the thread has ended
        received = 0
        with contextlib.suppress(ConnectionError):
            while content := client.socket.recv(1 << 20):
                received += len(content)
        assert received < 100 * 1024**2


def test_connections_that_break(server, ask) -> None:
    request = head(server, "Content-Length: 30") + BODY
    for end in (1, 20, len(request) - 20, len(request) - 1):
        client = Client(server)
        client.send(request[:end])
        client.close()
    assert ask("state").json["progress"]["answered"] == 0
    client = Client(server)  # the answer is stored, though nobody reads that it is
    client.send(request)
    client.close()
    until = time.monotonic() + 10
    while not server.session.stored and time.monotonic() < until:
        time.sleep(0.01)
    assert server.session.stored == [("q0", "yes")]
    assert ask("state").json["progress"]["answered"] == 1


def test_too_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_CONNECTIONS", 5)
    with RatingServer(FakeSession(), Media({})) as server:
        before = threading.active_count()
        clients = [Client(server) for _ in range(5)]
        refused = [Client(server) for _ in range(20)]
        assert all(client.is_closed() for client in refused)
        assert threading.active_count() <= before + 5
        for client in clients:
            client.socket.shutdown(socket.SHUT_RDWR)
            client.is_closed()
        until = time.monotonic() + 10
        while server._free._value < 5 and time.monotonic() < until:
            time.sleep(0.01)
        client = Client(server)
        client.send(f"GET /{server.token}/state HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n")
        assert client.read().status == 200


def test_answers_of_many_connections(server, ask) -> None:
    """Two tabs answer the same questions at the same time: each is stored once."""
    results: list[Answer] = []

    def rate() -> None:
        for question in QUESTIONS:
            results.append(ask("answer", "POST", {"id": question.id, "verdict": "yes"}))

    threads = [threading.Thread(target=rate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in results] == [200] * 16
    assert sorted(server.session.stored) == [(question.id, "yes") for question in QUESTIONS]


# Start and end


def test_only_this_machine_can_connect(server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=2)


def test_tokens_are_random() -> None:
    tokens = set()
    for _ in range(3):
        server = RatingServer(FakeSession(), Media({}))
        server.server_close()
        tokens.add(server.token)
    assert len(tokens) == 3
    assert all(len(token) >= 32 for token in tokens)


def test_ports(server) -> None:
    message = f"port: expected a free port, found {server.port}: Address already in use"
    with pytest.raises(ArgumentError, match=message):
        RatingServer(FakeSession(), Media({}), port=server.port)
    with pytest.raises(ArgumentError, match="port: expected 0 to 65535, found 70000"):
        RatingServer(FakeSession(), Media({}), port=70000)


def test_the_end_of_the_server() -> None:
    """It ends open connections, stores nothing more, and its port is free at once."""
    with RatingServer(FakeSession(), Media({})) as server:
        client = Client(server)
        client.send(f"GET /{server.token}/state HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n")
        client.read()
        late = Client(server)
        with server.changing:  # the answer waits for another one, and comes too late
            late.send(head(server, "Content-Length: 30") + BODY)
            server.has_ended = True
        assert late.read().status == 503
    assert client.is_closed()
    assert server.session.stored == []
    with RatingServer(FakeSession(), Media({}), port=server.port) as again:
        assert again.port == server.port


@pytest.mark.parametrize("display", [None, ":0"])
def test_serve_until_ctrl_c(
    ctrl_c: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    display: str | None,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(rate_server.webbrowser, "open", opened.append)
    monkeypatch.setattr(rate_server.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)

    def interrupt(_: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(rate_server.time, "sleep", interrupt)
    serve(FakeSession(), Media({}))
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"rating page: http://127\.0\.0\.1:\d+/[\w-]{32}/", first)
    assert second == "every answer is stored at once; Ctrl-C ends"
    assert len(opened) == (display is not None)
    assert all("/open/" in url for url in opened)  # without the token
