"""Shards are fetched, once, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyseg import _threads
from pyseg.data import FrameDataset, __main__
from pyseg.data.download import DownloadConfig, download
from pyseg.data.download import client as clients
from pyseg.data.download import fetch as fetching
from pyseg.errors import UserError

from ..conftest import FRAMES
from .servers import (
    PLAN,
    SHARDS,
    SIZE,
    STALLED,
    Fetch,
    Handler,
    Server,
    answers,
    content_of,
    md5,
    names,
    stalls,
    truncates,
)


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


def test_the_same_call_goes_on(server: Server, fetch: Fetch, folder: Path) -> None:
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
    # One that the server called something else then.
    (folder / "train0000.tfrecord.part").write_bytes(bytes(70_000))
    state = folder / ".download.jsonl"
    name = json.dumps(f'"{md5(content_of("trainaa.tfrecord"))}"')
    assert name in state.read_text()
    state.write_text(state.read_text().replace(name, json.dumps('"old"')))
    # And one that has another checksum.
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


def test_interruption(
    server: Server, fetch: Fetch, folder: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    monkeypatch.setattr(_threads, "_PATIENCE", 0.01)
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


def test_failures_now_and_then_do_not_end_the_run(server: Server, fetch: Fetch) -> None:
    server.publish(*(f"traina{letter}.tfrecord" for letter in string.ascii_lowercase), size=10)
    for path in server.shards()[::2]:
        server.faults[path] = [answers(404)]
    report = fetch(jobs=1)
    assert (report.fetched, len(report.missing), report.untried) == (13, 13, 0)


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
    monkeypatch.setattr(clients, "_LARGEST_READ", 20)
    with pytest.raises(UserError, match=f"^{server.url}{PLAN}: expected at most 20 bytes$"):
        fetch()


def test_where_everything_lies(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_PLANS", f"{server.url}/plans")
    monkeypatch.setattr(fetching, "_MIRROR", f"{server.url}/{{}}")
    monkeypatch.setattr(fetching, "_VOCABULARIES", f"{server.url}/tables")
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
    # What is no vocabulary is not kept, and does not keep the shards from being fetched.
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
    with pytest.raises(UserError, match=r"^1 of 2 files missing; the same command continues"):
        __main__.main(options)
    out, err = capsys.readouterr()
    assert out == f"{folder}: 2 files: 0 there before, 1 fetched (0.1 MB)\n"
    url = f"{server.url}{SHARDS}trainab.tfrecord"
    assert err == f"missing: train0001.tfrecord: {url}: 404 Not Found\n"
    (folder / "train0000.tfrecord").write_bytes(b"damaged")
    __main__.main(options)
    out, err = capsys.readouterr()
    assert out == f"{folder}: 2 files: 0 there before, 2 fetched (0.2 MB)\n"
    assert err == "damaged, fetched again: train0000.tfrecord\n"
    __main__.main(options)
    assert capsys.readouterr() == (f"{folder}: 2 files: 2 there before, 0 fetched (0.0 MB)\n", "")
