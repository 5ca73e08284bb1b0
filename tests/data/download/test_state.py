"""What is known of the files in a folder is used, and does no harm."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pyseg.errors import UserError

from .servers import SHARDS, SIZE, Fetch, Handler, Server, content_of, names


def test_files_that_are_there_are_read_once(
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
        patch.setattr(hashlib, "md5", only_of_names)
        assert fetch().there == 3
    path = folder / "trainab.tfrecord"
    times = path.stat()
    path.write_bytes(bytes(SIZE))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert fetch().damaged == ["train0001.tfrecord"]
    # Damage that keeps size and time is found where it is asked for.
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
