"""Files of records: whole, damaged, cut short, or something else altogether."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import struct
import threading
import zlib

import numpy as np
import pytest

from pyseg.data.records import (
    ReadReport,
    RecordError,
    RecordWarning,
    encode_video,
    read_frames,
    read_records,
    read_videos,
    sniff,
    write_records,
)
from pyseg.data.records.file import RecordFile
from pyseg.errors import UserError

from .encoding import SMALL, TENSORFLOWS, TINY, framed, masked, outcome, sample_frames


def test_framing_is_tensorflows(engine, write, tmp_path):
    assert list(read_records(write(TENSORFLOWS))) == [b"pyseg", b""]
    assert write_records(tmp_path / "out", [b"pyseg", b""]) == 2
    assert (tmp_path / "out").read_bytes() == TENSORFLOWS


@pytest.mark.parametrize("compress", [False, True])
def test_records_of_all_sizes_come_back(engine, tmp_path, compress):
    """Small ones, many to a buffer; ones that cross its end; ones larger than it; in any order."""
    rng = random.Random(0)
    sizes = [0, 1, 11, 12, 300_000, 5, 262_128, 262_144, 262_145, 1, 700_000]
    sizes += [rng.randrange(9000) for _ in range(200)] + [1_000_000, 3]
    payloads = [rng.randbytes(size) for size in sizes]
    path = tmp_path / "sizes"
    assert write_records(path, payloads, compress=compress) == len(payloads)
    assert list(read_records(path)) == payloads


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (3, "record 0 at byte 0: expected 8 bytes of record length, found 3 before the end"),
        (8, "record 0 at byte 0: expected 4 bytes of length checksum, found 0 before the end"),
        (11, "record 0 at byte 0: expected 4 bytes of length checksum, found 3 before the end"),
        (12, "record 0 at byte 0: expected 5 bytes of payload, found 0 before the end"),
        (16, "record 0 at byte 0: expected 5 bytes of payload, found 4 before the end"),
        (17, "record 0 at byte 0: expected 4 bytes of payload checksum, found 0 before the end"),
        (20, "record 0 at byte 0: expected 4 bytes of payload checksum, found 3 before the end"),
        (22, "record 1 at byte 21: expected 8 bytes of record length, found 1 before the end"),
        (36, "record 1 at byte 21: expected 4 bytes of payload checksum, found 3 before the end"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_truncated(engine, write, length, expected, compress):
    data = TENSORFLOWS[:length]
    path = write(gzip.compress(data) if compress else data)
    found, error = outcome(read_records, path)
    assert found == [b"pyseg"][: length // 21]
    expected = expected.replace(":", " of the unpacked data:", 1) if compress else expected
    assert error.startswith(f"{path}: {expected}")


def test_error_names_file_record_and_byte(engine, write):
    path = write(TENSORFLOWS[:-1])
    with pytest.raises(RecordError) as caught:
        list(read_records(path))
    error = caught.value
    assert (error.path, error.record, error.offset) == (str(path), 1, 21)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.record, copy.offset) == (str(error), str(path), 1, 21)
    assert str(RecordError("as a DataLoader raises it again")) == "as a DataLoader raises it again"


def test_damaged_checksums(engine, write):
    payload = bytearray(TENSORFLOWS)
    payload[12] ^= 1
    with pytest.raises(RecordError, match="expected payload checksum 0xce84038c, found 0x"):
        list(read_records(write(payload)))
    length = bytearray(TENSORFLOWS)
    length[21] ^= 1
    found, error = outcome(read_records, write(length))
    assert found == [b"pyseg"]
    assert "record 1 at byte 21: expected length checksum 0x07980329, found 0x" in error


@pytest.mark.parametrize("length", [2**20, 2**31 - 1, 2**31, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("compress", [False, True])
def test_absurd_length_is_refused_before_allocating(engine, write, length, compress):
    """The length's checksum is right, and still nobody may allocate that much."""
    header = struct.pack("<Q", length)
    data = framed(b"good") + header + masked(header) + b"some bytes"
    found, error = outcome(read_records, write(gzip.compress(data) if compress else data))
    assert found == [b"good"]
    if length < 2**28:
        assert f"expected {length} bytes of payload, found 10 before the end" in error
    else:
        bound = "expected at most 268435456 bytes in a record (PYSEG_MAX_RECORD_BYTES)"
        assert f"{bound}, found a length of {length}" in error


@pytest.mark.parametrize("compress", [False, True])
def test_bound_of_a_record(engine, tmp_path, monkeypatch, compress):
    path = tmp_path / "file"
    write_records(path, [bytes(1000), bytes(1001)], compress=compress)
    monkeypatch.setenv("PYSEG_MAX_RECORD_BYTES", "1001")
    assert len(list(read_records(path))) == 2
    monkeypatch.setenv("PYSEG_MAX_RECORD_BYTES", "1000")
    found, error = outcome(read_records, path)
    assert found == [bytes(1000)]
    assert error.endswith(
        "expected at most 1000 bytes in a record (PYSEG_MAX_RECORD_BYTES), found a length of 1001"
    )
    for wrong in ("0", "-1", "2147483648", "many", "9" * 5000):
        monkeypatch.setenv("PYSEG_MAX_RECORD_BYTES", wrong)
        with pytest.raises(UserError, match="PYSEG_MAX_RECORD_BYTES: expected 1 to 2147483647"):
            list(read_records(path))


@pytest.mark.parametrize("knows_size", [True, False])
def test_no_more_is_asked_for_than_there_can_be(engine, knows_size):
    """A length is believed no further than the file's size, or some way ahead of what has come."""
    header = struct.pack("<Q", 2**31 - 1)
    data = header + masked(header) + bytes(1000)
    asked = []

    class Source:
        def readinto(self, buffer):
            asked.append(len(buffer))
            piece = data[sum(given) :][: len(buffer)]
            buffer[: len(piece)] = piece
            given.append(len(piece))
            return len(piece)

    given = []
    reader = engine.Reader(Source(), len(data) if knows_size else -1)
    with pytest.raises(engine.Fault, match="found 1000 before the end of the file"):
        reader.next_record(0, 1)
    assert max(asked) <= (1 << 18 if knows_size else 1 << 24)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "an HTML or XML page"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML or XML page"),
        (b"<a/>", "an HTML or XML page"),
        (b'{"error": {"code": 404, "message": "not found"}}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
        (b"Index,Label\n0,Game\n1,Video game\n", "a table of comma-separated values that begins"),
        (b"hello there, nobody\n", "comma-separated values that begins 'hello there, nobody'"),
        (b"just some words in a file\n", "text that begins 'just some words in a file'"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd-compressed data"),
        (zlib.compress(TENSORFLOWS), "zlib-compressed data (TensorFlow's ZLIB option), not gzip"),
        (zlib.compress(bytes(9000), 0), "zlib-compressed data"),
        (b"x\x9c is no zlib data" + bytes(40), "no TFRecord file, or its first 12 bytes are"),
        (bytes(257) + b"ustar\x0000" + bytes(200), "a tar archive"),
        (bytes(64), "no TFRecord file, or its first 12 bytes are damaged"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_not_a_record_file_at_all(engine, write, data, expected, compress):
    path = write(gzip.compress(data) if compress else data)
    with pytest.raises(RecordError, match=r"record 0 at byte 0.*; it ") as caught:
        list(read_records(path))
    assert expected in str(caught.value)
    with pytest.warns(RecordWarning):
        assert list(read_records(path, on_error="skip")) == []


def test_compressed_twice(engine, write):
    data = gzip.compress(gzip.compress(framed(b"payload")))
    with pytest.raises(RecordError, match="looks like gzip-compressed data"):
        list(read_records(write(data)))


def test_first_record_cut_short_still_looks_like_a_record_file(engine, write):
    _, error = outcome(read_records, write(TENSORFLOWS[:15]))
    assert "looks like" not in error
    assert "no TFRecord" not in error


def test_folder_and_missing_file(engine, tmp_path):
    with pytest.raises(RecordError, match="expected a TFRecord file, found a folder"):
        list(read_records(tmp_path))
    missing = tmp_path / "missing"
    for on_error in ("raise", "skip"):
        with pytest.raises(RecordError, match="expected a readable file, found: No such") as caught:
            list(read_frames(missing, on_error=on_error))
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        assert caught.value.path == str(missing)


def test_reading_error_in_the_middle(engine, write, monkeypatch):
    """A disk that fails is an error with its place, too."""
    path = write(framed(b"one", b"two"))

    class Failing:
        def __init__(self, file):
            self.file = file

        def readinto(self, buffer):
            if self.file.tell() >= 19:
                raise OSError(5, "Input/output error")
            return self.file.readinto(buffer[:19])

    original = RecordFile._open

    def failing(self):
        original(self)
        self._reader = self._engine.Reader(Failing(self._file), -1)

    monkeypatch.setattr(RecordFile, "_open", failing)
    found, error = outcome(read_records, path)
    assert found == [b"one"]
    assert error == f"{path}: record 1 at byte 19: reading failed: Input/output error"


def test_file_cut_short_while_it_is_read(engine, tmp_path):
    payloads = [bytes(400_000)] * 3
    path = tmp_path / "file"
    write_records(path, payloads)
    reading = read_records(path)
    assert next(reading) == payloads[0]
    os.truncate(path, 500_000)
    with pytest.raises(RecordError, match=r"record 1 at byte 400016: expected 400000 bytes of pay"):
        list(reading)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_file_cut_between_two_records_while_it_is_read(engine, tmp_path, compress, on_error):
    path = tmp_path / "file"
    parts = [framed(random.Random(i).randbytes(400_000)) for i in range(3)]
    if compress:
        parts = [gzip.compress(part) for part in parts]
    path.write_bytes(b"".join(parts))
    reading = read_records(path, on_error)
    assert len(next(reading)) == 400_000
    os.truncate(path, len(parts[0] + parts[1]))
    expected = f"expected {sum(map(len, parts))} bytes in the file, found {path.stat().st_size}"
    assert len(next(reading)) == 400_000
    if on_error == "raise":
        with pytest.raises(RecordError, match=rf"record 2 at byte 800032.*: {expected}"):
            list(reading)
    else:
        with pytest.warns(RecordWarning, match=f"skipped 1 record .*{expected}"):
            assert list(reading) == []


@pytest.mark.parametrize(
    "data",
    [b"", gzip.compress(b""), gzip.compress(b"") * 2 + bytes(9)],
    ids=["nothing", "gzip", "gzip of two members"],
)
def test_file_without_records(engine, write, data):
    path = write(data)
    assert list(read_records(path)) == []
    assert list(read_frames(path)) == []
    assert list(read_videos(path)) == []
    assert sniff(path) is None


@pytest.mark.parametrize("compress", [False, True])
def test_pipe(engine, tmp_path, compress):
    """A source without a size that cannot be rewound."""
    payloads = [bytes([i]) * 1000 * i for i in range(40)]
    write_records(tmp_path / "file", payloads, compress=compress)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = (tmp_path / "file").read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert list(read_records(pipe)) == payloads
    writer.join()


def test_several_readers_at_a_time(engine, tmp_path):
    payloads = [bytes([i]) * 5000 for i in range(100)]
    write_records(tmp_path / "file", payloads)
    pairs = zip(read_records(tmp_path / "file"), read_records(tmp_path / "file"), strict=True)
    assert all(a == b == payload for (a, b), payload in zip(pairs, payloads, strict=True))


def test_skip_goes_on_where_framing_allows(engine, write):
    payloads = sample_frames(6)
    data = bytearray(framed(*payloads))
    places = np.cumsum([0] + [len(payload) + 16 for payload in payloads])
    data[places[2] + 20] ^= 1  # in the payload of record 2
    path = write(data)
    report = ReadReport()
    found = list(read_frames(path, SMALL, on_error="skip", report=report))
    assert [record.id for record in found] == ["0000", "0001", "0003", "0004", "0005"]
    assert (report.records, report.skipped) == (5, 1)
    assert f"record 2 at byte {places[2]}: expected payload checksum" in report.first_error

    data[places[4]] ^= 1  # the length of record 4: where record 5 starts is not known
    path = write(data)
    with pytest.warns(RecordWarning) as caught:
        found = list(read_frames(path, SMALL, on_error="skip"))
    [warning] = caught
    assert [record.id for record in found] == ["0000", "0001", "0003"]
    first = f"{path}: record 2 at byte {places[2]}: expected payload checksum"
    assert str(warning.message).startswith(f"{path}: skipped 2 records (the first: {first}")


def test_skip_in_a_truncated_file(engine, write):
    payloads = sample_frames(3)
    with pytest.warns(RecordWarning, match="skipped 1 record "):
        assert len(list(read_records(write(framed(*payloads)[:-1]), on_error="skip"))) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("compress", [False, True])
def test_shards_lose_and_double_nothing(engine, tmp_path, count, compress):
    path = tmp_path / "file"
    write_records(path, sample_frames(7), compress=compress)
    shares = [
        [record.id for record in read_frames(path, SMALL, shard=(i, count))] for i in range(count)
    ]
    assert sorted(name for share in shares for name in share) == [f"{i:04d}" for i in range(7)]
    assert all(int(name) % count == i for i, share in enumerate(shares) for name in share)
    videos = tmp_path / "videos"
    write_records(videos, [encode_video(f"{i:04d}", np.arange(5), [], TINY) for i in range(7)])
    ids = [
        name
        for i in range(count)
        for block in read_videos(videos, TINY, shard=(i, count), block=2)
        for name in block.ids
    ]
    assert sorted(ids) == [f"{i:04d}" for i in range(7)]


def test_shards_count_every_fault_once(engine, write):
    payloads = sample_frames(7)
    payloads[3] = payloads[3][:-1]  # bad content
    data = bytearray(framed(*payloads))
    places = np.cumsum([0] + [len(payload) + 16 for payload in payloads])
    data[places[1] + 20] ^= 1  # bad payload
    path = write(data[:-1])  # breaks off in the last
    total = ReadReport()
    for i in range(3):
        list(read_frames(path, SMALL, shard=(i, 3), on_error="skip", report=total))
    assert (total.records, total.skipped) == (4, 3)
    for i in range(3):  # a damaged file is an error for everyone who reads it
        with pytest.raises(RecordError, match="record 1 at byte"):
            list(read_frames(path, SMALL, shard=(i, 3)))
