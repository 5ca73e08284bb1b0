"""Files at URLs: listing, opening, reading ahead, failures."""

from __future__ import annotations

import collections
import errno
import functools
import http.server
import json
import os
import pickle
import random
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pyseg import _files, _remote, _urls
from pyseg._remote import RemoteFile
from pyseg.data import FrameDataset, find_shards, open_collection, read_records, write_records
from pyseg.data.records import find_features, is_record_file
from pyseg.data.sample import make_sample
from pyseg.data.shards import fingerprints
from pyseg.errors import MissingFileError, RecordError, UserError

PAYLOADS = [random.Random(number).randbytes(20_000) for number in range(40)]


class Parts(MemoryFileSystem):
    """A store in memory that is read in parts by several threads, and fails when it is told to."""

    protocol = "parts"
    async_impl = True
    failures: ClassVar[list[Exception]] = []  # of the next requests
    cut = 0  # bytes that are missing at the end of a part
    delay = 0.0  # seconds
    asked: ClassVar[list[tuple[int, int]]] = []
    most_at_once = at_once = 0
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("parts://", "memory://"))

    def cat_file(self, path: str, version: Any = None, *, start: int, end: int) -> bytes:
        with self.lock:
            Parts.at_once += 1
            Parts.most_at_once = max(Parts.most_at_once, Parts.at_once)
            self.asked.append((start, min(end, self.size(path))))
            failure = self.failures.pop() if self.failures else None
        time.sleep(self.delay)
        with self.lock:
            Parts.at_once -= 1
        if failure is not None:
            raise failure
        return super().cat_file(path, start, end - self.cut)


fsspec.register_implementation("parts", Parts, clobber=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empties the memory, and what is known of URLs."""
    monkeypatch.setattr(_remote, "_files", set())
    monkeypatch.setattr(_remote, "_PAUSE", 0.0)
    monkeypatch.setattr(_urls, "_users", {})
    monkeypatch.setattr(_urls, "_urls", {})
    for name, value in (("failures", []), ("asked", []), ("cut", 0), ("delay", 0.0)):
        monkeypatch.setattr(Parts, name, value)
    monkeypatch.setattr(Parts, "most_at_once", 0)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., bytes]:
    """Writes records to a URL of the memory, as they would be in a local file."""

    def write(url: str, payloads: list[bytes] = PAYLOADS, *, compress: bool = False) -> bytes:
        write_records(tmp_path / "made", payloads, compress=compress)
        data = (tmp_path / "made").read_bytes()
        fsspec.filesystem("memory").pipe_file(url.partition("://")[2], data)
        return data

    return write


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder: whole files only, and some in a way that fails."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server: Any = self.server
        server.requests.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path.startswith("/denied"):
            self.send_error(403)
        elif path.startswith("/broken"):
            self.send_error(500)
        elif path.startswith("/cut"):
            data = Path(self.directory, path[5:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:-1000] if server.cuts else data)
            server.cuts -= bool(server.cuts)
        elif path.startswith("/busy") and server.refusals:
            server.refusals -= 1
            self.send_error(503)
        elif path.startswith("/lost"):
            server.ended.wait(10)
        elif path.startswith("/stalls"):
            data = Path(self.directory, path[8:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100_000])
            self.wfile.flush()
            server.ended.wait(10)
        elif path.startswith("/chunks"):
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            data = Path(self.directory, path[8:]).read_bytes()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            if path.startswith(("/says", "/busy")):
                self.path = "/" + path[1:].partition("/")[2]
            super().do_GET()

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        kind, _, rest = self.path[1:].partition("/")
        if kind in ("cut", "stalls"):
            self.path = f"/{rest}"
            super().do_HEAD()
        elif kind.startswith("says"):
            self.send_response(200)
            self.send_header("Content-Length", kind[4:])
            self.end_headers()
        elif self.path.startswith(("/chunks", "/denied", "/broken", "/busy")):
            self.send_error(405)
        else:
            super().do_HEAD()


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Says nothing of clients that have read enough."""


class Server6(Server):
    address_family = socket.AF_INET6


@pytest.fixture(params=["127.0.0.1"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    (tmp_path / "www" / "in").mkdir(parents=True)
    handler = functools.partial(Handler, directory=str(tmp_path / "www"))
    address = request.param
    make = Server6 if ":" in address else Server
    try:
        started = make((address, 0), handler)
    except OSError:
        pytest.skip(f"no address {address} here")
    with started as running:
        running.folder, running.requests, running.asked = tmp_path / "www", [], []
        running.cuts = running.refusals = 0
        running.ended = threading.Event()
        host = f"[{address}]" if ":" in address else address
        running.url = f"http://{host}:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.ended.set()
        running.shutdown()


def outcome(url: str, on_error: str = "raise") -> tuple[list[bytes], str]:
    found, error = [], ""
    try:
        for payload in read_records(url, on_error):
            found.append(payload)
    except RecordError as raised:
        error = str(raised)
    return found, error


@pytest.mark.parametrize("scheme", ["memory", "parts"])
@pytest.mark.parametrize("compress", [False, True])
def test_records_are_those_of_the_file(put, scheme: str, compress: bool) -> None:
    put("memory://a/b.tfrecord", compress=compress)
    assert list(read_records(f"{scheme}://a/b.tfrecord")) == PAYLOADS


def test_bytes_are_those_of_the_file(put, monkeypatch) -> None:
    monkeypatch.setattr(_remote, "FIRST", 1000)
    monkeypatch.setattr(_remote, "BLOCK", 30_000)
    data = put("memory://b.tfrecord")
    rng = random.Random(0)
    for url in ("memory://b.tfrecord", "parts://b.tfrecord"):
        with RemoteFile(url) as file:
            assert file.size == len(data)
            read = bytearray()
            while piece := file.read(rng.randrange(1, 50_000)):
                read += piece
                assert file.tell() == len(read)
        assert read == data


def test_an_empty_file(put) -> None:
    fsspec.filesystem("memory").pipe_file("/b", b"")
    assert list(read_records("memory://b")) == []
    assert not is_record_file("memory://b")


def test_blocks_are_read_ahead_within_bounds(put, monkeypatch) -> None:
    monkeypatch.setattr(_remote, "FIRST", 1000)
    monkeypatch.setattr(_remote, "BLOCK", 4000)
    monkeypatch.setattr(Parts, "delay", 0.002)
    data = put("memory://b.tfrecord")
    with RemoteFile("parts://b.tfrecord") as file:
        file.read(1)
        assert len(Parts.asked) == 1  # looking at the start of a file costs little
        for _ in range(20):
            taken = file.tell()
            file.read(4000)
            assert Parts.asked[-1][1] <= taken + 4000 * (_remote.AHEAD + 2)
        file.readall()
    assert 2 <= Parts.most_at_once <= _remote.AHEAD
    spans = sorted(Parts.asked)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(data)


def test_a_closed_file_asks_for_nothing_more(put) -> None:
    put("memory://b.tfrecord", PAYLOADS * 20)
    next(read_records("parts://b.tfrecord"))
    assert len(Parts.asked) == 1


def test_a_failure_is_tried_again(put, monkeypatch) -> None:
    put("memory://b.tfrecord")
    monkeypatch.setattr(Parts, "failures", [OSError("reset"), TimeoutError()])
    assert outcome("parts://b.tfrecord") == (PAYLOADS, "")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_lasting_failure_names_the_url(put, monkeypatch, on_error: str) -> None:
    """What was not sent is never skipped, whatever becomes of damaged records."""
    monkeypatch.setattr(_remote, "FIRST", 30_000)
    put("memory://b.tfrecord")

    def cat_file(self, path, *, start, end):
        if start:
            raise OSError("connection reset")
        return MemoryFileSystem.cat_file(self, path, start, end)

    monkeypatch.setattr(Parts, "cat_file", cat_file)
    found, error = outcome("parts://b.tfrecord", on_error)
    assert found == PAYLOADS[: len(found)]
    assert len(found) == 1
    assert error.startswith("parts://b.tfrecord: reading failed: connection reset (in record 1 at")


@pytest.mark.parametrize("compress", [False, True])
def test_a_transfer_that_ends_early(put, monkeypatch, compress: bool) -> None:
    data = put("memory://b.tfrecord", compress=compress)
    monkeypatch.setattr(Parts, "cut", 1000)
    found, error = outcome("parts://b.tfrecord", "skip")
    assert found == PAYLOADS[: len(found)]
    assert (
        f"parts://b.tfrecord: reading failed: expected {len(data)} bytes in the file, found"
        in error
    )
    with RemoteFile("parts://b.tfrecord") as file:
        for _ in range(2):  # and again: an error is no end of the file
            with pytest.raises(UserError, match="ended early"):
                file.readall()


def test_a_truncated_file(put) -> None:
    data = put("memory://b.tfrecord")
    fsspec.filesystem("memory").pipe_file("/b.tfrecord", data[:-9])
    found, error = outcome("memory://b.tfrecord")
    assert found == PAYLOADS[:-1]
    assert error.startswith("memory://b.tfrecord: record 39 at byte")


def test_find_shards(put) -> None:
    for name in ("b/train2.tfrecord", "b/in/train1.tfrecord.gz", "b/.hidden.tfrecord", "b/x.csv"):
        put(f"memory://{name}", PAYLOADS[:1])
    inside = ["memory://b/.hidden.tfrecord", "memory://b/in/train1.tfrecord.gz"]
    assert find_shards("memory://b") == [*inside, "memory://b/train2.tfrecord"]
    assert find_shards("memory://b/") == find_shards("memory://b")
    assert find_shards("memory://b/*.tfrecord") == ["memory://b/train2.tfrecord"]
    assert find_shards("memory://b/train?.tfrecord") == ["memory://b/train2.tfrecord"]
    assert find_shards("memory://b/**/*.gz") == ["memory://b/in/train1.tfrecord.gz"]
    both = find_shards(["memory://b/train2.tfrecord", "memory://b/*"])
    assert both == ["memory://b/train2.tfrecord", "memory://b/x.csv"]


def test_a_folder_without_names_of_records(put) -> None:
    put("memory://b/one", PAYLOADS[:1])
    fsspec.filesystem("memory").pipe_file("/b/two", b"text")
    assert find_shards("memory://b") == ["memory://b/one"]


@pytest.mark.parametrize("url", ["memory://b", "memory://b/*.tfrecord", "parts://x.tfrecord"])
def test_nothing_there(url: str) -> None:
    with pytest.raises(MissingFileError, match=rf"^{url.replace('*', '[*]')}: no such file"):
        find_shards(url)
    with pytest.raises(RecordError, match="no such file"):
        list(read_records("memory://b"))


def test_a_folder_is_no_file(put) -> None:
    put("memory://b/one", PAYLOADS[:1])
    with pytest.raises(RecordError, match=r"^memory://b: expected a file, found a folder"):
        list(read_records("memory://b"))


def test_what_may_not_be_read(put, monkeypatch) -> None:
    put("memory://b.tfrecord")
    monkeypatch.setattr(Parts, "failures", [PermissionError("Access Denied")])
    with pytest.raises(RecordError, match=r"parts://b.tfrecord: expected a file that you may read"):
        list(read_records("parts://b.tfrecord"))
    assert len(Parts.asked) == 1


def test_a_file_beside_that_may_not_be_read(put, monkeypatch, caplog) -> None:
    def info(self, path):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(Parts, "info", info)
    assert not _remote.is_file("parts://b/vocabulary.csv")
    reason = "expected a file that you may read, found: Forbidden; taken for missing"
    hint = "; a vocabulary.csv that exists can be given with --vocabulary"
    assert caplog.messages == [f"parts://b/vocabulary.csv: {reason}{hint}"]
    caplog.clear()
    with _remote.asking_once():
        for name in ("a", "b", "c", "a"):
            assert not _remote.is_file(f"parts://b/{name}.csv")
        assert caplog.messages == []
    assert caplog.messages == [f"parts://b/a.csv: {reason}, and so are 2 more"]


def test_an_unreadable_file_is_not_left_out(put, monkeypatch) -> None:
    """A folder's files without names of records are looked at; a failure there is no answer."""
    put("memory://b/one")
    monkeypatch.setattr(Parts, "failures", [OSError("reset")] * _remote.ATTEMPTS)
    with pytest.raises(RecordError, match="parts://b/one: reading failed: reset"):
        is_record_file("parts://b/one")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nothing://b", "nothing://b: expected a protocol that fsspec knows, found none"),
        ("http://ann:p/w@host/x", r"http://\*\*\*@host/x: expected /, # and \? in a password as"),
        ("HTTP:///x", "http:///x: expected a host after ://, found none"),
        ("file://root/s", "file://root/s: expected file:///absolute/path, found a relative one"),
        ("http:/ann:pw@host/x", r"http:/\*\*\*@host/x: no file matches"),
        ("gs://b", "reading gs://b needs gcsfs: pip install gcsfs"),
    ],
)
def test_protocols_that_are_not_there(url: str, error: str) -> None:
    with pytest.raises((UserError, MissingFileError), match=error):
        find_shards(url)


def test_http_without_its_package(monkeypatch) -> None:
    """Which the extra installs, other than those of other protocols."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "http", raising=False)
    with pytest.raises(UserError, match=r"reading http://h/a needs aiohttp: pip .*\[remote\]'"):
        find_shards("http://h/a")


def test_without_fsspec(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"reading s3://b needs fsspec: pip install .*\[remote\]"):
        find_shards("s3://b")


def test_import_leaves_fsspec_alone(python) -> None:
    done = python("-c", "import sys, pyseg, pyseg.data; print('fsspec' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_fingerprints_do_not_depend_on_the_place(put, tmp_path) -> None:
    for name in ("b/train1", "b/in/train2", "c"):
        data = put(f"memory://{name}")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for names in (["b/train1", "b/in/train2"], ["c"]):
        local = fingerprints([str(tmp_path / name) for name in names])
        assert fingerprints([f"parts://{name}" for name in names]) == local
    before = fingerprints(["memory://c"])
    put("memory://c", PAYLOADS[::-1])
    assert fingerprints(["memory://c"]) != before


def test_features_that_only_later_records_have(put, tmp_path) -> None:
    import numpy as np

    from pyseg.data import encode_frames

    frames = np.zeros((2, 1152), np.uint8)
    put("memory://b", [encode_frames("a", frames, []), encode_frames("b", frames, [1])])
    assert find_features("memory://b", ["labels", "segment_labels"]) == {"labels"}


def test_a_cache_keeps_whole_files(put, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "deep" / "cache"
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(cache))
    data = put("memory://b.tfrecord")
    for _ in range(2):
        assert outcome("parts://b.tfrecord") == (PAYLOADS, "")
        assert find_features("parts://b.tfrecord", ["x"]) == set()
    [copy] = cache.iterdir()
    assert copy.read_bytes() == data
    assert copy.name.endswith("-b.tfrecord")
    assert sum(end - start for start, end in Parts.asked) == len(data)
    put("memory://b.tfrecord", PAYLOADS[:3])  # another version of the file
    assert outcome("parts://b.tfrecord") == (PAYLOADS[:3], "")


def test_a_cache_has_no_broken_files(put, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(tmp_path / "cache"))
    put("memory://b.tfrecord")
    monkeypatch.setattr(Parts, "cut", 1000)
    assert "ended early" in outcome("parts://b.tfrecord")[1]
    assert list((tmp_path / "cache").glob("[!.]*")) == []
    monkeypatch.setattr(Parts, "cut", 0)
    assert outcome("parts://b.tfrecord") == (PAYLOADS, "")


def test_a_copy_of_another_size_is_made_again(put, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(tmp_path / "cache"))
    data = put("memory://b.tfrecord")
    assert outcome("parts://b.tfrecord") == (PAYLOADS, "")
    [copy] = (tmp_path / "cache").iterdir()
    copy.write_bytes(data[:-1000])
    assert outcome("parts://b.tfrecord") == (PAYLOADS, "")
    assert copy.read_bytes() == data
    assert sum(end - start for start, end in Parts.asked) == 2 * len(data)


@pytest.mark.parametrize("compress", [False, True])
def test_a_damaged_copy_is_named(put, tmp_path, monkeypatch, compress: bool) -> None:
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(tmp_path / "cache"))
    data = bytearray(put("memory://b.tfrecord", compress=compress))
    assert outcome("parts://b.tfrecord") == (PAYLOADS, "")
    [copy] = (tmp_path / "cache").iterdir()
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    _, error = outcome("parts://b.tfrecord")
    assert error.startswith("parts://b.tfrecord: record ")
    assert error.endswith(f"; read from the copy {copy}: delete it to fetch it again")
    monkeypatch.delenv("PYSEG_REMOTE_CACHE")
    fsspec.filesystem("memory").pipe_file("/b.tfrecord", bytes(data))
    assert "copy" not in outcome("parts://b.tfrecord")[1]


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        ("/proc/nope", "found: No such file or directory"),
        ("file", "found: File exists"),
        ("file/in", "found: Not a directory"),
        ("http://ann:pw@host/x", "expected a local path, found the URL http://***@host/x"),
    ],
)
def test_an_unusable_cache(put, tmp_path, monkeypatch, folder: str, found: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", folder)
    put("memory://b.tfrecord")
    _, error = outcome("memory://b.tfrecord")
    assert error.startswith("PYSEG_REMOTE_CACHE")
    assert error.endswith(found)
    if "://" not in folder:
        assert f" {folder}: expected a folder that can be made, written to and read, for a" in error
        assert "copy of memory://b.tfrecord; found" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]


def test_a_cache_with_a_blank_name(put, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", " ")
    put("memory://b.tfrecord")
    with pytest.raises(UserError, match=r"^PYSEG_REMOTE_CACHE: expected .*, found the blank ' '$"):
        _files.open_shard("memory://b.tfrecord")
    assert not Path(" ").exists()


def test_a_folder_where_a_copy_belongs(put, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(tmp_path / "cache"))
    put("memory://b.tfrecord")
    assert outcome("memory://b.tfrecord")[1] == ""
    [copy] = (tmp_path / "cache").iterdir()
    copy.unlink()
    copy.mkdir()
    assert outcome("memory://b.tfrecord")[1] == (
        f"PYSEG_REMOTE_CACHE {copy}: expected a file, found a folder, where the copy of "
        "memory://b.tfrecord belongs"
    )


def test_a_full_cache(put, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(tmp_path / "cache"))
    put("memory://b.tfrecord")
    with monkeypatch.context() as patch:
        patch.setattr(_files.shutil, "copyfileobj", full)
        _, error = outcome("memory://b.tfrecord")
    assert error.startswith(f"PYSEG_REMOTE_CACHE {tmp_path / 'cache'}: expected a folder that can")
    assert error.endswith("found: No space left on device")
    assert list((tmp_path / "cache").glob("[!.]*")) == []
    assert "no such file" in outcome("memory://none.tfrecord")[1]  # which is not the cache's fault


def test_readers_share_one_copy(put, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYSEG_REMOTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Parts, "delay", 0.01)
    data = put("memory://b.tfrecord")
    from pyseg._threads import map_in_order

    assert all(map_in_order(lambda u: outcome(u) == (PAYLOADS, ""), ["parts://b.tfrecord"] * 6, 6))
    assert sum(end - start for start, end in Parts.asked) == len(data)


def test_chained_urls(put, tmp_path, monkeypatch) -> None:
    """fsspec's own caches and archives need no code of ours."""
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path / "c")})
    put("memory://b/one.tfrecord")
    [url] = find_shards("simplecache::memory://b/*.tfrecord")
    assert url == "simplecache::memory://b/one.tfrecord"
    assert outcome(url) == (PAYLOADS, "")
    assert len(list((tmp_path / "c").iterdir())) == 1
    with fsspec.open("memory://x.zip", "wb") as file:
        import zipfile

        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("in/one.tfrecord", fsspec.filesystem("memory").cat("/b/one.tfrecord"))
    [url] = find_shards("zip://in/*.tfrecord::memory://x.zip")
    assert url == "zip://in/one.tfrecord::memory://x.zip"
    assert outcome(url) == (PAYLOADS, "")


def test_http(server) -> None:
    for name in ("train1.tfrecord", "in/train2.tfrecord.gz"):
        write_records(server.folder / name, PAYLOADS, compress=name.endswith("gz"))
    shards = [f"{server.url}/in/train2.tfrecord.gz", f"{server.url}/train1.tfrecord"]
    assert find_shards(server.url) == shards
    assert find_shards(f"{server.url}/*.tfrecord") == shards[1:]
    for url in shards:
        assert outcome(url) == (PAYLOADS, "")
    assert outcome(f"{server.url}/chunks/train1.tfrecord") == (PAYLOADS, "")
    assert _remote.size_of(f"{server.url}/chunks/train1.tfrecord") == -1
    assert len(fingerprints(shards)) == 2


def test_http_transfers_that_end_early(server) -> None:
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    server.cuts = 1
    assert outcome(f"{server.url}/cut/a.tfrecord")[1] == "", server.requests
    server.cuts = 99
    found, error = outcome(f"{server.url}/cut/a.tfrecord", "skip")
    assert found == PAYLOADS[: len(found)]
    host = server.url.partition("//")[2]
    assert error.startswith(
        f"{server.url}/cut/a.tfrecord: reading failed: the server {host} ended the transfer early "
    )


@pytest.mark.parametrize("kept", [0, 10, 39])
def test_a_size_that_is_too_small(server, put, monkeypatch, kept: int) -> None:
    """Not even where the size that the server names is that of some whole records."""
    size = kept * (len(PAYLOADS[0]) + 16)
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    url = f"{server.url}/says{size}/a.tfrecord"
    error = f"reading failed: expected {size} bytes in the file, found more: the server names"
    assert error in outcome(url, "skip")[1]
    if kept:  # a store knows when a file has no bytes
        put("memory://b.tfrecord")
        monkeypatch.setattr(Parts, "info", lambda *_: {"size": size, "type": "file"})
        assert error in outcome("parts://b.tfrecord")[1]


def test_an_empty_file_of_http(server) -> None:
    (server.folder / "a.tfrecord").touch()
    assert outcome(f"{server.url}/a.tfrecord") == ([], "")


def test_a_server_that_stalls(server, monkeypatch) -> None:
    monkeypatch.setattr(_remote, "_TIMEOUTS", {"sock_connect": 10.0, "sock_read": 0.1})
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    error = f"the server {server.url.partition('//')[2]} did not answer in time"
    assert error in outcome(f"{server.url}/stalls/a.tfrecord")[1]
    assert len(server.requests) == _remote.ATTEMPTS


@pytest.mark.parametrize("named", [{"client_kwargs": {"read_timeout": 7}}, {"timeout": 7}, {}])
def test_timeouts_of_the_user(named: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "http", named)
    fs, _ = _remote._resolve("https://host/a")
    if "client_kwargs" in named:
        assert fs.client_kwargs == named["client_kwargs"]
    else:
        timeout = fs.client_kwargs["timeout"]
        assert (timeout.total, timeout.sock_read, fs.kwargs) == (None, 60.0, named)
    cached, _ = _remote._resolve("simplecache::http://host/a?u=::https://b")
    assert cached.fs.client_kwargs == fs.client_kwargs


@pytest.mark.parametrize("place", ["a.tfrecord", "", "*.tfrecord"])
def test_the_first_question_is_tried_again(server, caplog, place: str) -> None:
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    server.refusals = _remote.ATTEMPTS - 1
    assert find_shards(f"{server.url}/busy/{place}") == [f"{server.url}/busy/a.tfrecord"]
    assert caplog.text.count("(Service Unavailable); trying again") == _remote.ATTEMPTS - 1
    _remote._files.clear()
    server.refusals = 99
    with pytest.raises(UserError, match=r"answered with the status 503 \(Service Unavailable\)$"):
        find_shards(f"{server.url}/busy/{place}")


def test_what_lasts_is_asked_once(server) -> None:
    for path in ("none", "denied"):
        server.requests.clear()
        with pytest.raises((UserError, MissingFileError)):
            find_shards(f"{server.url}/{path}/a.tfrecord")
        assert len(server.requests) == 1


def test_no_page_of_a_list_is_left_out(server, monkeypatch) -> None:
    """As fsspec does with one that takes too long."""
    monkeypatch.setattr(_remote, "_TIMEOUTS", {"sock_connect": 10.0, "sock_read": 0.1})
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    (server.folder / "lost").mkdir()
    with pytest.raises(UserError, match=r"/: reading failed: the server .* in time$"):
        find_shards(f"{server.url}/")
    assert len(find_shards(f"{server.url}/*.tfrecord")) == 1


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("none", "no such file or folder"),
        ("denied", "expected a file that you may read, found: {} status 403 (Forbidden)"),
        ("broken", "reading failed: {} status 500 (Internal Server Error)"),
    ],
)
def test_http_failures(server, path: str, error: str) -> None:
    url = f"{server.url}/{path}/a.tfrecord"
    with pytest.raises(RecordError) as raised:
        list(read_records(url))
    answer = f"the server {server.url.partition('//')[2]} answered with the"
    assert str(raised.value) == f"{url}: {error.format(answer)}"


def test_nobody_answers() -> None:
    with pytest.raises(UserError) as raised:
        find_shards("http://127.0.0.1:9/a")
    assert str(raised.value) == (
        "http://127.0.0.1:9/a: reading failed: the connection to the server 127.0.0.1:9 "
        "failed: Connection refused"
    )


def test_reasons_in_plain_words(server) -> None:
    """No text of aiohttp, such as ssl:default, remains; a bare port does not speak TLS."""
    url = server.url.replace("http:", "https:")
    with pytest.raises(
        UserError, match=r"the TLS connection to the server [\d.:]+ failed: [a-z ]+$"
    ):
        find_shards(f"{url}/a")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            aiohttp.ClientOSError(-2, "Name or service not known"),
            "the connection to the server failed: Name or",
        ),
        (aiohttp.ServerDisconnectedError(), "the server closed the connection without an answer"),
        (aiohttp.ClientPayloadError("400, message='x'"), "the server ended the transfer early"),
        (TimeoutError(), "the server did not answer in time"),
    ],
)
def test_reasons_of_stores(put, monkeypatch, failure: Exception, reason: str) -> None:
    put("memory://b.tfrecord")
    monkeypatch.setattr(Parts, "failures", [failure] * _remote.ATTEMPTS)
    error = outcome("parts://b.tfrecord")[1]
    assert error.startswith(f"parts://b.tfrecord: reading failed: {reason}")


def test_an_answer_that_is_not_http() -> None:
    """aiohttp makes a status 400 of it, which no server has sent."""

    class Other(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        host = f"127.0.0.1:{running.server_address[1]}"
        with pytest.raises(UserError) as raised:
            find_shards(f"http://{host}/a")
        running.shutdown()
    assert str(raised.value).endswith(f"the server {host} answered with something else than HTTP")


def test_requests_of_an_open_collection(server) -> None:
    """Each file is asked for once, and each shard is read from its start once or twice."""
    shards = make_sample()
    server.RequestHandlerClass.keywords["directory"] = str(shards)
    collection = open_collection(server.url)
    asked = collections.Counter(server.asked)
    got = collections.Counter(path for path, _ in server.requests)
    paths = [path.removeprefix(server.url) for path in collection.video_paths]
    assert len(paths) == 8
    assert set(asked.values()) == {1}, asked
    assert all(asked[path] == 1 and 1 <= got[path] <= 2 for path in paths), got
    server.asked.clear()
    fingerprints(collection.video_paths)
    assert collections.Counter(server.asked) == dict.fromkeys(paths, 1)


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"], indirect=True)
def test_http_globs(server) -> None:
    for name in ("train0", "train1", "train7", "in/train2", "odd[1]"):
        write_records(server.folder / f"{name}.tfrecord", PAYLOADS[:1])

    def found(glob: str) -> list[str]:
        return [url.split("/", 3)[3] for url in find_shards(f"{server.url}/{glob}")]

    assert found("train[0-2].tfrecord") == ["train0.tfrecord", "train1.tfrecord"]
    assert found("train[!0].tfrecord") == ["train1.tfrecord", "train7.tfrecord"]
    assert found("**/train[27].tfrecord") == ["in/train2.tfrecord", "train7.tfrecord"]
    assert found("i[n]/*") == ["in/train2.tfrecord"]
    assert found("in") == ["in/train2.tfrecord"]
    server.requests.clear()
    assert found("in/") == ["in/train2.tfrecord"]
    assert len(found("")) == 5
    assert "/in" not in [path for path, _ in server.requests]  # which not every server has
    assert found("odd[1].tfrecord") == ["odd[1].tfrecord"]  # what exists is no glob, as locally
    assert outcome(f"{server.url}/train0.tfrecord?part=1") == (PAYLOADS[:1], "")
    with pytest.raises(MissingFileError, match=r"none that matches$"):
        found("train[89].tfrecord")
    with pytest.raises(
        MissingFileError, match=r"a \? begins a query: write \* or \[0-9\] in a glob$"
    ):
        found("train?.tfrecord")


@pytest.mark.parametrize("place", ["?token=0f3a", "in/?token=0f3a", "*.tfrecord?token=0f3a"])
def test_a_list_takes_no_signature(server, place: str) -> None:
    for name in ("a.tfrecord", "in/a.tfrecord"):
        write_records(server.folder / name, PAYLOADS)
    with pytest.raises(UserError, match=r"token=\*\*\*: .* query, which cannot be listed: give a"):
        find_shards(f"{server.url}/{place}")


def test_secrets_reach_the_server_and_nothing_else(server, capsys) -> None:
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    secret = server.url.replace("//", "//ann:pw@")
    name = server.url.replace("//", "//***@")
    [shard] = find_shards(f"{secret}/a.tfrecord?X-Amz-Signature=0f3a")
    assert shard == f"{name}/a.tfrecord?X-Amz-Signature=***"
    assert outcome(shard) == (PAYLOADS, "")
    path, headers = server.requests[-1]
    assert path == "/a.tfrecord?X-Amz-Signature=0f3a"
    assert headers["Authorization"].startswith("Basic ")
    for wrong in ("denied/a", "none", "broken/a"):
        with pytest.raises(RecordError) as raised:
            list(read_records(f"{secret}/{wrong}?token=0f3a"))
        shown: BaseException | None = raised.value
        while shown is not None:  # a traceback shows causes too
            assert "0f3a" not in str(shown)
            assert "pw" not in str(shown)
            shown = None if shown.__suppress_context__ and not shown.__cause__ else shown.__cause__


def test_a_data_set_takes_its_secrets_along(server, monkeypatch) -> None:
    """To worker processes, which are not forked everywhere."""
    write_records(server.folder / "a.tfrecord", PAYLOADS)
    secret = server.url.replace("//", "//ann:pw@")
    sent = pickle.dumps(FrameDataset(f"{secret}/a.tfrecord?token=0f3a"))
    monkeypatch.setattr(_urls, "_users", {})
    monkeypatch.setattr(_urls, "_urls", {})
    [path] = pickle.loads(sent).paths
    assert "pw" not in path
    assert outcome(path) == (PAYLOADS, "")


def test_a_name_cannot_be_opened_by_itself() -> None:
    with pytest.raises(UserError, match=r"found them hidden, .* give the whole URL again"):
        find_shards("https://***@host/a")


def test_local_paths_only(tmp_path, monkeypatch) -> None:
    from pyseg.video import find_videos

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="paths: expected a local path, found the URL s3://b"):
        find_videos("s3://b/*.mp4")
    with pytest.raises(UserError, match="path: expected a local path, found the URL s3://b"):
        write_records("s3://b/a.tfrecord", PAYLOADS)
    assert list(tmp_path.iterdir()) == []


def test_local_files_are_opened_as_before(tmp_path) -> None:
    write_records(tmp_path / "a", PAYLOADS[:1])
    with _files.open_shard(str(tmp_path / "a")) as file:
        assert file.fileno() > 0


def test_json_and_tables(tmp_path) -> None:
    from pyseg._containers import read_json
    from pyseg.data._tables import read_ids

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/b.json", json.dumps([1]).encode())
    fs.pipe_file("/b.csv", b"\xef\xbb\xbfa,1\nb,2\n")
    assert read_json("memory://b.json") == [1]
    assert read_ids("memory://b.csv") == {"a", "b"}
