"""Reading and writing records: the native engine and the reference must agree, in errors too."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import pickle
import random
import struct
import threading
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyseg import _ext
from pyseg.data import _records_reference as reference
from pyseg.data import records as module
from pyseg.data.records import (
    FrameSchema,
    Ratings,
    ReadReport,
    RecordError,
    RecordWarning,
    VideoSchema,
    encode_frames,
    encode_video,
    read_frames,
    read_records,
    read_videos,
    sniff,
    write_records,
)
from pyseg.errors import ArgumentError, UserError

# PYSEG_FAULTS=full runs the fault tests at full length: minutes instead of seconds.
FULL = os.environ.get("PYSEG_FAULTS") == "full"
NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(_ext.records is None, reason=f"no _records: {_ext.RECORDS_REASON}"),
)
SMALL = FrameSchema(features=(("rgb", 6), ("audio", 3)))
TINY = VideoSchema(features=(("mean_rgb", 3), ("mean_audio", 2)))
AUDIOSET = FrameSchema(features=(("audio_embedding", 128),), id_key="video_id")


@pytest.fixture(params=[NATIVE, "reference"])
def engine(request, monkeypatch):
    """Runs a test with both engines."""
    if request.param == "reference":
        monkeypatch.setattr(_ext, "records", None)
    return module._engine()


@contextlib.contextmanager
def using(name: str):
    """The same for hypothesis, whose examples cannot use function-scoped fixtures."""
    kept = _ext.records
    _ext.records = kept if name == "native" else None
    try:
        yield
    finally:
        _ext.records = kept


# --------------------------------------------------------------- an encoder that shares no code


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_list(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def float_list(*values: float) -> bytes:
    return field(2, field(1, np.array(values, "<f4").tobytes()))


def int_list(*values: int) -> bytes:
    return field(3, field(1, b"".join(map(varint, values))))


def feature_map(entries: dict[str, bytes]) -> bytes:
    return b"".join(
        field(1, field(1, name.encode()) + field(2, value)) for name, value in entries.items()
    )


def sequence(context: dict[str, bytes], lists: dict[str, list[bytes]]) -> bytes:
    encoded = {
        name: b"".join(field(1, feature) for feature in features)
        for name, features in lists.items()
    }
    return field(1, feature_map(context)) + field(2, feature_map(encoded))


def masked(data: bytes) -> bytes:
    return struct.pack("<I", reference.mask(reference.crc32c(data)))


def framed(*payloads: bytes) -> bytes:
    out = b""
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        out += length + masked(length) + payload + masked(payload)
    return out


def frame_parts(frames: int = 2) -> tuple[dict[str, bytes], dict[str, list[bytes]]]:
    """Context and feature lists of a valid record of SMALL, to be damaged."""
    context = {"id": bytes_list(b"06xy"), "labels": int_list(4, 9)}
    lists = {
        "rgb": [bytes_list(bytes(range(6 * t, 6 * t + 6))) for t in range(frames)],
        "audio": [bytes_list(bytes(range(3 * t, 3 * t + 3))) for t in range(frames)],
    }
    return context, lists


def rated_parts(starts, classes, scores, frames=12, ends=None):
    context, lists = frame_parts(frames)
    context["segment_start_times"] = int_list(*starts)
    context["segment_labels"] = int_list(*classes)
    context["segment_scores"] = float_list(*scores)
    if ends is not None:
        context["segment_end_times"] = int_list(*ends)
    return context, lists


def same(a, b) -> bool:
    """Whether two records or blocks are equal, in types too."""
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def outcome(read, path, *arguments, **options):
    """Returns all records read, and the error that ended reading."""
    found = []
    try:
        for record in read(path, *arguments, **options):
            found.append(record)
    except RecordError as error:
        return found, str(error)
    return found, None


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "file.tfrecord") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def sample_frames(records: int = 5, seed: int = 0, schema: FrameSchema = SMALL) -> list[bytes]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(records):
        frames = rng.integers(0, 256, (rng.integers(3, 20), schema.width), dtype=np.uint8)
        ratings = None
        if i % 2:
            ratings = Ratings(np.array([0, 1]), np.array([3, i]), np.array([1.0, 0.0]))
        out.append(encode_frames(f"{i:04d}", frames, [i, 2 * i], ratings, schema))
    return out


# ------------------------------------------------------------------------------------------ CRC32C


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (
            bytes.fromhex(
                "01c00000000000000000000000000000140000000000040000000014"
                "0000001828000000000000000200000000000000"
            ),
            0xD9963A56,
        ),
    ],
)
def test_crc32c_vectors(engine, data, expected):
    assert engine.crc32c(data) == expected
    assert engine.crc32c(bytearray(data)) == expected
    if engine is not reference:
        assert engine.crc32c_portable(data) == expected


def test_crc32c_of_all_lengths_and_alignments():
    """Lengths around the three-stream blocks of the hardware version, from odd addresses."""
    if _ext.records is None:
        pytest.skip(f"no _records: {_ext.RECORDS_REASON}")
    data = random.Random(0).randbytes(80_000)
    view = memoryview(data)
    lengths = [*range(100), 767, 768, 769, 775, 12287, 12288, 12289, 13057, 24576, 36864, 79_990]
    for length in lengths:
        for start in (0, 1, 7):
            piece = view[start : start + length]
            expected = reference.crc32c(piece)
            assert _ext.records.crc32c(piece) == expected
            assert _ext.records.crc32c_portable(bytes(piece)) == expected


def test_crc32c_continues_from_a_checksum(engine):
    data = random.Random(1).randbytes(30_000)
    for cut in (0, 1, 13, 4096, 29_999):
        assert engine.crc32c(data[cut:], engine.crc32c(data[:cut])) == engine.crc32c(data)


def test_crc32c_refuses_what_is_not_contiguous():
    if _ext.records is None:
        pytest.skip(f"no _records: {_ext.RECORDS_REASON}")
    with pytest.raises(TypeError, match="contiguous"):
        _ext.records.crc32c(np.zeros((4, 4), dtype=np.uint8)[:, ::2])


# ----------------------------------------------------------------------------------------- framing

# What tf.io.TFRecordWriter writes for b"pyseg" and b"".
TENSORFLOWS = bytes.fromhex(
    "0500000000000000eab2043e70797365678c0384ce000000000000000029039807d8ea82a2"
)


def test_framing_is_tensorflows(engine, write, tmp_path):
    assert list(read_records(write(TENSORFLOWS))) == [b"pyseg", b""]
    assert write_records(tmp_path / "out", [b"pyseg", b""]) == 2
    assert (tmp_path / "out").read_bytes() == TENSORFLOWS


@pytest.mark.parametrize("compress", [False, True])
def test_records_of_all_sizes_come_back(engine, tmp_path, compress):
    """Records smaller and larger than the buffer, and across its end, in any order."""
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
    """Even with a valid checksum, such a length must not be allocated."""
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
def test_a_length_is_not_trusted_beyond_the_file(engine, knows_size):
    """Memory is bounded by the file's size, or by a multiple of the bytes read so far."""
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
    """An error of the disk names the position too."""
    path = write(framed(b"one", b"two"))

    class Failing:
        def __init__(self, file):
            self.file = file

        def readinto(self, buffer):
            if self.file.tell() >= 19:
                raise OSError(5, "Input/output error")
            return self.file.readinto(buffer[:19])

    original = module._File._open

    def failing(self):
        original(self)
        self._reader = self._engine.Reader(Failing(self._file), -1)

    monkeypatch.setattr(module._File, "_open", failing)
    found, error = outcome(read_records, path)
    assert found == [b"one"]
    assert error == f"{path}: record 1 at byte 19: reading failed: Input/output error"


def test_file_truncated_while_it_is_read(engine, tmp_path):
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
def test_file_truncated_between_records_while_it_is_read(engine, tmp_path, compress, on_error):
    path = tmp_path / "file"
    parts = [framed(random.Random(i).randbytes(400_000)) for i in range(3)]
    if compress:
        parts = [gzip.compress(part) for part in parts]
    path.write_bytes(b"".join(parts))
    report = ReadReport()
    reading = module._read(path, on_error, report, (0, 1), payloads)
    assert len(next(reading)) == 400_000
    os.truncate(path, len(parts[0] + parts[1]))
    expected = f"expected {sum(map(len, parts))} bytes in the file, found {path.stat().st_size}"
    assert len(next(reading)) == 400_000
    if on_error == "raise":
        with pytest.raises(RecordError, match=rf"record 2 at byte 800032.*: {expected}"):
            list(reading)
    else:
        assert list(reading) == []
        assert report.skipped == 1
        assert expected in report.first_error


def payloads(file):
    while (payload := file.take("next_record")) is not None:
        yield payload


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


# -------------------------------------------------------------------------------------------- gzip


def test_gzip_is_recognized_by_content(engine, write):
    assert list(read_records(write(gzip.compress(TENSORFLOWS), "a.tfrecord"))) == [b"pyseg", b""]
    assert list(read_records(write(TENSORFLOWS, "a.tfrecord.gz"))) == [b"pyseg", b""]


def test_record_whose_length_begins_like_gzip(engine, tmp_path):
    """35,615 is 1f 8b in little-endian."""
    path = tmp_path / "file"
    write_records(path, [bytes(0x8B1F), b"next"])
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert list(read_records(path)) == [bytes(0x8B1F), b"next"]


def test_gzip_members_and_padding(engine, write):
    data = framed(*[bytes([i]) * 70_000 for i in range(9)])
    parts = [data[:100], b"", data[100:300_000], data[300_000:]]
    packed = b"".join(map(gzip.compress, parts))
    for padding in (b"", bytes(1), bytes(100_000)):
        assert len(list(read_records(write(packed + padding)))) == 9
    spread = b"".join(gzip.compress(part) + bytes(3) for part in parts)
    assert len(list(read_records(write(spread)))) == 9
    found, error = outcome(read_records, write(packed + b"garbage"))
    assert len(found) == 9
    assert "record 9 at byte 630144 of the unpacked data: expected valid gzip data before" in error
    assert "found incorrect header check" in error


def test_gzip_trailer_is_verified(engine, write):
    packed = bytearray(gzip.compress(TENSORFLOWS))
    packed[-8] ^= 1
    _, error = outcome(read_records, write(packed))
    assert "expected valid gzip data before byte" in error
    assert "found incorrect data check" in error


@pytest.mark.parametrize("count", [1, 2000])
def test_records_before_a_wrong_trailer_come_first(engine, write, count):
    payloads = [random.Random(i).randbytes(i % 700) for i in range(count)]
    packed = bytearray(gzip.compress(framed(*payloads)))
    packed[-8] ^= 1
    found, error = outcome(read_records, write(packed))
    assert found == payloads
    assert f"record {count} at byte" in error
    assert "found incorrect data check" in error


def test_damaged_gzip_gives_all_that_can_be_unpacked(engine, write):
    rng = random.Random(0)
    whole = framed(*[rng.randbytes(100) * 5 for _ in range(30)])
    for _ in range(20):
        packed = bytearray(gzip.compress(whole))
        packed[rng.randrange(20, len(packed))] ^= 1 << rng.randrange(8)
        unpacker, unpacked = zlib.decompressobj(wbits=31), bytearray()
        with contextlib.suppress(zlib.error):
            for byte in packed:
                unpacked += unpacker.decompress(bytes([byte]))
        found = outcome(read_records, write(packed))[0]
        assert found == outcome(read_records, write(unpacked, "unpacked"))[0]


def test_large_record_of_unknown_size_is_moved_a_few_times_only(engine):
    """The decompressor returns small pieces: the buffer must not be reallocated for each."""
    data = memoryview(framed(bytes(40_000_000)))
    places, done = [], 0

    class Source:
        def readinto(self, buffer):
            nonlocal done
            count = min(len(buffer), 1 << 18, len(data) - done)
            buffer[:count] = data[done : done + count]
            start = np.frombuffer(buffer, np.uint8).ctypes.data
            places.append(start if engine is reference else start - done)
            done += count
            return count

    engine.Reader(Source()).next_record(0, 1)
    assert len(places) > 150
    assert sum(a != b for a, b in itertools.pairwise(places)) < 5


def test_gzip_cut_short(engine, write):
    payloads = [random.Random(i).randbytes(1000) for i in range(500)]
    packed = gzip.compress(framed(*payloads))
    for length in (3, 9, 10, 11, 1000, 200_000, len(packed) - 1):
        found, error = outcome(read_records, write(packed[:length]))
        assert found == payloads[: len(found)]
        assert f"found the end of the file after {length} bytes" in error
    assert len(found) == 500  # all that could be unpacked


def test_gzip_is_unpacked_in_bounded_memory(engine, tmp_path):
    """A megabyte of zeros in a kilobyte: only one piece at a time may be unpacked."""
    unpacker = module._Gunzip(open(tmp_path / "file", "w+b", buffering=0))  # noqa: SIM115
    unpacker._file.write(gzip.compress(bytes(1 << 24)))
    unpacker._file.seek(0)
    buffer = memoryview(bytearray(1 << 24))
    total = 0
    while count := unpacker.readinto(buffer):
        assert count <= module._UNPACKED
        total += count
    assert total == 1 << 24
    unpacker._file.close()


# ---------------------------------------------------------------------------------- frame records


def test_frames(engine, write):
    context, lists = frame_parts(3)
    [record] = read_frames(write(framed(sequence(context, lists))), SMALL)
    assert record.id == "06xy"
    assert record.frames.dtype == np.uint8
    assert record.frames.tolist() == [
        [*range(6 * t, 6 * t + 6), *range(3 * t, 3 * t + 3)] for t in range(3)
    ]
    assert record.frames.flags.writeable
    assert record.frames.flags.c_contiguous
    assert record.labels.dtype == np.int64
    assert record.labels.tolist() == [4, 9]
    assert record.ratings is None
    assert record.context == {}


def test_frames_are_neither_padded_nor_dequantized(engine, write):
    """Padding comes later, after dequantisation."""
    frames = np.arange(4 * 1152, dtype=np.uint32).astype(np.uint8).reshape(4, 1152)
    [record] = read_frames(write(framed(encode_frames("a", frames, []))))
    assert same(record.frames, frames)


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_max_frames(engine, write, length):
    payload = sequence(*rated_parts([0, 1, 2], [1, 1, 1], [1, 1, 1], frames=3))
    [record] = read_frames(write(framed(payload)), SMALL, max_frames=length, report=ReadReport())
    assert len(record.frames) == min(3, length)
    assert record.ratings.starts.tolist() == [0, 1, 2][:length]


@pytest.mark.parametrize("name", ["0012", "1e10", "-Nan", "True", "", "größe", "\U0001f3a5"])
def test_ids_stay_text(engine, write, name):
    context, lists = frame_parts()
    context["id"] = bytes_list(name.encode())
    [record] = read_frames(write(framed(sequence(context, lists))), SMALL)
    assert same(record.id, name)


def test_context_keys(engine, write):
    context, lists = frame_parts()
    context["start"] = float_list(0.1)
    context["n"] = int_list(-(2**63))
    context["url"] = bytes_list(b"\xff\x00")
    path = write(framed(sequence(context, lists)))
    [record] = read_frames(path, SMALL, context_keys=["url", "start", "n", "id"])
    expected = {"url": b"\xff\x00", "start": float(np.float32(0.1)), "n": -(2**63), "id": b"06xy"}
    assert record.context == expected
    assert [type(value) for value in record.context.values()] == [bytes, float, int, bytes]
    with pytest.raises(RecordError, match="expected context feature 'end', found context feat"):
        list(read_frames(path, SMALL, context_keys=["end"]))
    with pytest.raises(RecordError, match="expected 1 value in context feature 'labels', found 2"):
        list(read_frames(path, SMALL, context_keys=["labels"]))


def test_records_without_labels(engine, write):
    context, lists = frame_parts()
    labelled = sequence(context, lists)
    empty = sequence({**context, "labels": int_list()}, lists)
    nothing = sequence({**context, "labels": b""}, lists)
    del context["labels"]
    path = write(framed(labelled, sequence(context, lists), empty, nothing))
    report = ReadReport()
    assert [r.labels.tolist() for r in read_frames(path, SMALL, report=report)] == [
        [4, 9],
        [],
        [],
        [],
    ]
    assert report == ReadReport(records=4, unlabelled=2)
    with pytest.warns(RecordWarning, match=rf"^{path}: found 2 records without labels$"):
        list(read_frames(path, SMALL))
    report = ReadReport()
    for record in read_frames(path, FrameSchema(SMALL.features, labels_key=None), report=report):
        assert same(record.labels, np.zeros(0, dtype=np.int64))
    assert report == ReadReport(records=4)


def test_videos_without_labels(engine, write):
    parts = video_parts()
    labelled = field(1, feature_map(parts))
    del parts["labels"]
    path = write(framed(labelled, field(1, feature_map(parts)), labelled))
    report = ReadReport()
    for schema in (TINY, VideoSchema(features=())):
        [videos] = read_videos(path, schema, report=report)
        assert videos.label_offsets.tolist() == [0, 2, 2, 4]
    assert report == ReadReport(records=6, unlabelled=2)


@pytest.mark.parametrize("letter", ["a", "ä"])
def test_bound_of_an_id(engine, write, letter):
    longest = letter * (1024 // len(letter.encode()))
    schema = FrameSchema(SMALL.features, labels_key=None)
    path = write(
        framed(damage(id=bytes_list(longest.encode())), damage(id=bytes_list(bytes(1025))))
    )
    found, error = outcome(read_frames, path, schema)
    assert [record.id for record in found] == [longest]
    assert "record 1 at byte" in error
    assert error.endswith("expected at most 1024 bytes in context feature 'id', found 1025")
    encode_video(longest, np.zeros(5), [], TINY)
    with pytest.raises(ArgumentError, match=r"^id: expected at most 1024 bytes, found"):
        encode_video(longest + "a", np.zeros(5), [], TINY)
    with pytest.raises(ArgumentError, match=r"^id: expected at most 1024 bytes, found"):
        encode_frames(longest + "a", np.zeros((1, 9), np.uint8), [], None, SMALL)


def test_many_large_records_keep_apart(engine, tmp_path):
    """Memory of dropped frames is reused, but never while they are referenced."""
    rng = np.random.default_rng(0)
    originals = [rng.integers(0, 256, (100 + i % 7, 1152), dtype=np.uint8) for i in range(30)]
    path = tmp_path / "file"
    write_records(path, [encode_frames(str(i), x, []) for i, x in enumerate(originals)])
    for _ in range(2):
        kept = [record.frames for record in read_frames(path)]
        assert all(map(same, kept, originals))
        part = kept[3][5:, 7:]
        del kept
        for record, original in zip(read_frames(path), originals, strict=True):
            assert same(record.frames, original)
            record.frames[:] = 0
        assert (part == originals[3][5:, 7:]).all()


def damage(**changes):
    """A valid record of SMALL with these context features or feature lists replaced or removed."""
    context, lists = frame_parts(2)
    for name, value in changes.items():
        target = lists if name in ("rgb", "audio") else context
        if value is None:
            del target[name]
        else:
            target[name] = value
    return sequence(context, lists)


BAD_FRAMES = {
    "no id": (
        damage(id=None),
        "expected context feature 'id', found context features: 'labels';"
        " feature lists: 'audio', 'rgb'",
    ),
    "id of kind nothing": (
        damage(id=b""),
        "expected context feature 'id', found context features: 'id', 'labels'",
    ),
    "id is a number": (
        damage(id=int_list(7)),
        "expected bytes in context feature 'id', found int64",
    ),
    "two ids": (
        damage(id=bytes_list(b"a", b"b")),
        "expected 1 value in context feature 'id', found 2",
    ),
    "id is not text": (
        damage(id=bytes_list(b"a\xff'\\b")),
        r"expected UTF-8 text in context feature 'id', found 'a\xff\x27\x5cb'",
    ),
    "labels are floats": (
        damage(labels=float_list(1)),
        "expected int64 in context feature 'labels', found float",
    ),
    "negative label": (
        damage(labels=int_list(1, -3)),
        "expected numbers of at least 0 in context feature 'labels', found -3",
    ),
    "no rgb": (
        damage(rgb=None),
        "expected feature list 'rgb', found context features: 'id', 'labels';"
        " feature lists: 'audio'",
    ),
    "no lists": (
        damage(rgb=None, audio=None),
        "found context features: 'id', 'labels'; feature lists: none",
    ),
    "no frames": (
        damage(rgb=[], audio=[]),
        "expected at least 1 frame in feature list 'rgb', foun",
    ),
    "fewer audio frames": (
        damage(audio=[bytes_list(b"123")]),
        "expected as many frames in feature list 'audio' as in 'rgb' (2), found 1",
    ),
    "more audio frames": (
        damage(audio=[bytes_list(b"123")] * 3),
        "expected as many frames in feature list 'audio' as in 'rgb' (2), found 3",
    ),
    "narrow frame": (
        damage(audio=[bytes_list(b"123"), bytes_list(b"12")]),
        "expected 3 bytes in frame 1 of feature list 'audio', found 2",
    ),
    "frame of floats": (
        damage(rgb=[float_list(*range(6))]),
        "expected bytes in frame 0 of feature list 'rgb', found float",
    ),
    "empty frame": (
        damage(rgb=[b""]),
        "expected bytes in frame 0 of feature list 'rgb', found noth",
    ),
    "frame of two strings": (
        damage(rgb=[bytes_list(b"123456", b"123456")]),
        "expected 1 value in frame 0 of feature list 'rgb', found 2",
    ),
    "start without class": (
        damage(segment_start_times=int_list(0), segment_scores=float_list(1)),
        "expected context feature 'segment_labels', found context features: 'id', 'labels',"
        " 'segment_scores', 'segment_start_times'",
    ),
    "scores only": (
        damage(segment_scores=float_list(1)),
        "expected context feature 'segment_start_times', found",
    ),
    "empty record": (
        b"",
        "expected context feature 'id', found context features: none; feature lists: none",
    ),
    "cut in a message": (
        damage()[:-1],
        "malformed protobuf at byte 38 of the record: expected 62 bytes, found 61 to the end of"
        " their message",
    ),
    "many features": (
        sequence({f"f{i:02}": int_list(i) for i in range(12)}, {}),
        "found context features: 'f00', 'f01', 'f02', 'f03', 'f04', 'f05', 'f06', 'f07', 'f08',"
        " 'f09', ...; feature lists: none",
    ),
    "field 0": (b"\x02\x00", "malformed protobuf at byte 0 of the record: expected a field number"),
    "wire type 7": (b"\x1f", "byte 0 of the record: expected a wire type from 0 to 5, found 7"),
    "endless varint": (b"\x80" * 12, "expected a varint of at most 64 bits, found a longer one"),
    "varint of 65 bits": (
        b"\x18" + b"\xff" * 9 + b"\x02",
        "byte 1 of the record: expected a varint of at most 64 bits, found a longer one",
    ),
    "tag of 33 bits": (b"\x8a\x80\x80\x80\x10", "to 536870911, found 536870913"),
    "varint cut": (b"\x18\x80", "byte 1 of the record: expected a varint, found the end of its m"),
    "fixed64 cut": (b"\x19\x00", "byte 1 of the record: expected 8 bytes, found 1 to the end of t"),
    "fixed32 cut": (b"\x1d\x00", "byte 1 of the record: expected 4 bytes, found 1 to the end of t"),
    "group that ends only": (b"\x1c", "expected a field, found the end of group 3"),
    "group that ends another": (
        b"\x1b\x24",
        "byte 1 of the record: expected a field, found the en",
    ),
    "group without end": (b"\x1b", "expected a varint, found the end of its message"),
    "deep groups": (b"\x1b" * 5000, "expected at most 100 nested groups, found more"),
    "length past the end": (
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        "byte 11 of the record: expected 18446744073709551615 bytes, found 0 to the end of their",
    ),
    "odd floats": (
        damage(
            segment_start_times=int_list(0),
            segment_labels=int_list(1),
            segment_scores=field(2, field(1, b"\x00\x00\x80")),
        ),
        "expected floats of 4 bytes, found 3 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames(engine, write, name):
    payload, expected = BAD_FRAMES[name]
    good = damage()
    path = write(framed(good, payload, good))
    found, error = outcome(read_frames, path, SMALL)
    assert len(found) == 1
    assert error.startswith(f"{path}: record 1 at byte {len(good) + 16}: ")
    assert expected in error

    report = ReadReport()
    found = list(read_frames(path, SMALL, on_error="skip", report=report))
    assert len(found) == 2
    assert same(*found)
    assert report == ReadReport(records=2, skipped=1, first_error=error)


@pytest.mark.parametrize(
    ("starts", "classes", "scores", "ends", "expected"),
    [
        ([0, 5], [1], [1, 1], None, "in context feature 'segment_labels' as in 'segment_start_tim"),
        ([0, 5], [1, 1], [1], None, "in context feature 'segment_scores' as in 'segment_start_tim"),
        (
            [0, 5],
            [1, 1],
            [1, 1],
            [5],
            "'segment_end_times' as in 'segment_start_times' (2), found 1",
        ),
        ([-1], [1], [1], None, "at least 0 in context feature 'segment_start_times', found -1"),
        ([0], [-7], [1], None, "at least 0 in context feature 'segment_labels', found -7"),
        ([0], [1], [1.5], None, "expected scores from 0 to 1 in 'segment_scores', found 1.5"),
        ([0], [1], [-0.25], None, "expected scores from 0 to 1 in 'segment_scores', found -0.25"),
        ([0], [1], [1e20], None, "expected scores from 0 to 1 in 'segment_scores', found 1e+20"),
        ([0], [1], [np.nan], None, "expected scores from 0 to 1 in 'segment_scores', found nan"),
        ([0], [1], [-np.nan], None, "expected scores from 0 to 1 in 'segment_scores', found nan"),
        ([0], [1], [-np.inf], None, "expected scores from 0 to 1 in 'segment_scores', found -inf"),
    ],
)
def test_bad_ratings(engine, write, starts, classes, scores, ends, expected):
    payload = sequence(*rated_parts(starts, classes, scores, ends=ends))
    found, error = outcome(read_frames, write(framed(payload)), SMALL)
    assert not found
    assert expected in error


def test_ratings(engine, write):
    """Segments past the end, cut by the end, and rated twice."""
    starts = [0, 5, 12, 5, 9, 5, 400, 12, 7, 8, 9]
    classes = [3, 3, 3, 4, 3, 3, 9, 8, 1, 1, 3]
    scores = [1, 0, 1, 1, 0, 0.5, 1, 1, 1, 1, 1]
    payload = sequence(*rated_parts(starts, classes, scores, frames=12))
    path = write(framed(payload))
    report = ReadReport()
    [record] = read_frames(path, SMALL, report=report)
    # (5, 3) and (9, 3) are rated twice; 12 and 400 are past the end; 8 and 9 end after it.
    assert record.ratings.starts.tolist() == [0, 5, 5, 9, 7, 8]
    assert record.ratings.classes.tolist() == [3, 3, 4, 3, 1, 1]
    assert record.ratings.scores.tolist() == [1, 0.5, 1, 1, 1, 1]
    assert [x.dtype for x in record.ratings] == [np.int64, np.int64, np.float32]
    assert report == ReadReport(records=1, dropped_segments=2, cut_segments=2, duplicate_ratings=2)
    with pytest.warns(RecordWarning) as caught:
        list(read_frames(path, SMALL))
    [warning] = caught
    assert str(warning.message) == (
        f"{path}: dropped 2 rated segments past the end of the video,"
        " overwrote 2 ratings by later ones"
    )
    assert warning.filename == __file__


def test_cut_segments_cause_no_warning(engine, write):
    payload = sequence(*rated_parts([11], [3], [1], frames=12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [record] = read_frames(write(framed(payload)), SMALL)
    assert record.ratings.starts.tolist() == [11]


def test_empty_ratings(engine, write):
    payload = sequence(*rated_parts([], [], []))
    [record] = read_frames(write(framed(payload)), SMALL)
    assert [x.shape for x in record.ratings] == [(0,), (0,), (0,)]
    dropped = sequence(*rated_parts([100], [1], [1]))
    [record] = read_frames(write(framed(dropped)), SMALL, report=ReadReport())
    assert [x.shape for x in record.ratings] == [(0,), (0,), (0,)]


def test_many_ratings_take_no_quadratic_time(engine, write):
    count = 100_000
    payload = sequence(*rated_parts([0] * count, range(count), [1] * count))
    [record] = read_frames(write(framed(payload)), SMALL, report=ReadReport())
    assert len(record.ratings.classes) == count


# ---------------------------------------------------------------------------------- video records


def video_parts(name=b"06xy"):
    return {
        "id": bytes_list(name),
        "labels": int_list(4, 9),
        "mean_rgb": float_list(1, 2, 3),
        "mean_audio": float_list(-1, np.nan),
    }


@pytest.mark.parametrize("message", ["Example", "SequenceExample"])
def test_videos(engine, write, message):
    """The public shards come as either message."""
    payload = field(1, feature_map(video_parts())) + (field(2, b"") if "Seq" in message else b"")
    [block] = read_videos(write(framed(payload, payload)), TINY)
    assert block.ids == ["06xy", "06xy"]
    expected = np.array([[1, 2, 3, -1, np.nan]] * 2, dtype=np.float32)
    np.testing.assert_array_equal(block.features, expected)
    assert block.features.dtype == np.float32
    assert block.label_offsets.dtype == block.labels.dtype == np.int64
    assert block.label_offsets.tolist() == [0, 2, 4]
    assert block.labels.tolist() == [4, 9, 4, 9]


@pytest.mark.parametrize("block", [1, 3, 7, 8, 1000])
def test_video_blocks(engine, write, block):
    names = [f"{i:04d}".encode() for i in range(7)]
    path = write(framed(*[field(1, feature_map(video_parts(name))) for name in names]))
    blocks = list(read_videos(path, TINY, block=block))
    assert [len(videos.ids) for videos in blocks][:-1] == [block] * (len(blocks) - 1)
    assert all(len(videos.ids) == len(videos.features) for videos in blocks)
    assert [name.encode() for videos in blocks for name in videos.ids] == names


def test_videos_before_a_bad_one_come_first(engine, write):
    good = field(1, feature_map(video_parts()))
    bad = field(1, feature_map(video_parts() | {"mean_audio": float_list(1)}))
    path = write(framed(good, good, good, bad, good))
    found, error = outcome(read_videos, path, TINY, block=2)
    assert [len(block.ids) for block in found] == [2, 1]
    assert "record 3 at byte" in error
    assert "expected 2 values in context feature 'mean_audio', found 1" in error
    with pytest.warns(RecordWarning, match="skipped 1 record "):
        found = list(read_videos(path, TINY, block=2, on_error="skip"))
    assert [len(block.ids) for block in found] == [2, 2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"mean_rgb": int_list(1, 2, 3)},
            "expected float in context feature 'mean_rgb', found int",
        ),
        ({"mean_rgb": float_list()}, "expected 3 values in context feature 'mean_rgb', found 0"),
        ({"id": bytes_list(b"\xed\xa0\x80")}, "expected UTF-8 text in context feature 'id', found"),
        (
            {"labels": int_list(-1)},
            "expected numbers of at least 0 in context feature 'labels', fo",
        ),
    ],
)
def test_bad_videos(engine, write, changes, expected):
    path = write(framed(field(1, feature_map(video_parts() | changes))))
    found, error = outcome(read_videos, path, TINY)
    assert not found
    assert expected in error


def test_frames_read_as_videos(engine, write):
    path = write(framed(*sample_frames()))
    with pytest.raises(RecordError, match=r"'mean_rgb', found .*; feature lists: 'audio', 'rgb'"):
        list(read_videos(path, TINY))


# ------------------------------------------------------------------------------ protobuf encodings

# TensorFlow's example.proto and feature.proto: messages, and per field its name, number and type.
MESSAGES = {
    "BytesList": [("value", 1, "repeated bytes")],
    "FloatList": [("value", 1, "repeated float")],
    "Int64List": [("value", 1, "repeated int64")],
    "Feature": [
        ("bytes_list", 1, "oneof BytesList"),
        ("float_list", 2, "oneof FloatList"),
        ("int64_list", 3, "oneof Int64List"),
    ],
    "Features": [("feature", 1, "map Feature")],
    "FeatureList": [("feature", 1, "repeated Feature")],
    "FeatureLists": [("feature_list", 1, "map FeatureList")],
    "Example": [("features", 1, "one Features")],
    "SequenceExample": [("context", 1, "one Features"), ("feature_lists", 2, "one FeatureLists")],
}


@pytest.fixture(scope="module")
def protobuf():
    """These messages as classes of Google's protobuf.

    They have their own pool: the packages that define them cannot share one process.
    """
    pytest.importorskip("google.protobuf", reason="protobuf comes with tensorboard")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="p", syntax="proto3")

    def add_field(message, name, number, description):
        count, kind = description.split()
        field = message.field.add(name=name, number=number)
        field.label = field.LABEL_REPEATED if count in ("repeated", "map") else field.LABEL_OPTIONAL
        if count == "oneof":
            field.oneof_index = 0
        if count == "map":  # repeated entries of a key and a value
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            add_field(entry, "key", 1, "one string")
            add_field(entry, "value", 2, f"one {kind}")
            kind = f"{message.name}.{entry.name}"
        if kind.islower():
            field.type = getattr(field, f"TYPE_{kind.upper()}")
        else:
            field.type, field.type_name = field.TYPE_MESSAGE, f".{file.package}.{kind}"

    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if any(description.startswith("oneof") for _, _, description in fields):
            message.oneof_decl.add(name="kind")
        for field in fields:
            add_field(message, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return SimpleNamespace(
        **{name: message_factory.GetMessageClass(find(f"p.{name}")) for name in MESSAGES}
    )


@st.composite
def features(draw, kind):
    """A feature of the kind, its values packed or not, split over several occurrences."""
    if kind == 1:
        values = draw(st.lists(st.binary(max_size=4), max_size=3))
        encoded = [field(1, value) for value in values]
    elif kind == 2:
        values = draw(st.lists(st.floats(width=32), max_size=5))
        encoded = [b"\x0d" + struct.pack("<f", value) for value in values]
        if draw(st.booleans()):
            encoded = [field(1, b"".join(item[1:] for item in encoded))]
    else:
        values = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
        encoded = [b"\x08" + varint(value) for value in values]
        if draw(st.booleans()):
            encoded = [field(1, b"".join(item[1:] for item in encoded))]
    cut = draw(st.integers(0, len(encoded)))
    parts = [b"".join(encoded[:cut]), b"".join(encoded[cut:])]
    return b"".join(field(kind, part + draw(unknown)) for part in parts)


any_feature = st.integers(1, 3).flatmap(features)
# Unknown fields, of every wire type. (Field 1 in another wire type is unknown too.)
unknown = st.sampled_from(
    [b""] * 6
    + [
        b"\x78\x01",
        b"\x79" + bytes(8),
        b"\x7a\x03abc",
        b"\x7d" + bytes(4),
        b"\x7b\x7c",
        b"\x7b\x08\x01\x83\x01\x84\x01\x12\x01x\x7c",
        b"\x0b\x0c",
    ]
)


@st.composite
def map_fields(draw, names, value):
    """Entries of a map: in any order, some twice, without key or value, in one part or several."""
    entries = []
    for name in draw(st.lists(st.sampled_from(names), max_size=6)):
        parts = [field(1, name.encode())] * draw(st.sampled_from([0, 1, 1, 1, 1, 2]))
        parts += [field(2, draw(value)) for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2])))]
        # No unknown fields here: protobuf implementations differ in whether they drop the entry.
        entries.append(field(1, b"".join(draw(st.permutations(parts)))))
    return b"".join(entries)


feature_lists = st.lists(any_feature, max_size=3).map(
    lambda items: b"".join(field(1, item) for item in items)
)
NAMES = ["id", "labels", "a", "segment_scores"]
messages = st.lists(
    st.one_of(
        map_fields(
            NAMES, st.one_of(any_feature, st.tuples(any_feature, any_feature).map(b"".join))
        ).map(lambda content: field(1, content)),
        map_fields(["rgb", "audio", "b"], feature_lists).map(lambda content: field(2, content)),
        unknown.filter(lambda content: content[:1] != b"\x0b"),
    ),
    max_size=4,
).map(b"".join)


def plain(data: bytes, spans) -> tuple:
    """A feature as plain values; floats as their bits."""
    value = reference.feature(data, spans)
    floats = b"".join(data[start:end] for start, end in value.floats)
    return value.kind, [data[start:end] for start, end in value.strings], floats, value.ints


@settings(max_examples=1000 if FULL else 100, deadline=None)
@given(messages)
def test_reference_parses_as_protobuf_does(protobuf, data):
    def expected(feature) -> tuple:
        return (
            (None, "bytes_list", "float_list", "int64_list").index(feature.WhichOneof("kind")),
            list(feature.bytes_list.value),
            np.array(feature.float_list.value, "<f4").tobytes(),
            list(feature.int64_list.value),
        )

    theirs = protobuf.SequenceExample.FromString(data)
    ours = reference.Message.parse(data)
    assert {name.decode(): plain(data, spans) for name, spans in ours.context.items()} == {
        name: expected(feature) for name, feature in theirs.context.feature.items()
    }
    assert {
        name.decode(): [plain(data, [span]) for span in ours.frames(name)] for name in ours.lists
    } == {
        name: [expected(feature) for feature in value.feature]
        for name, value in theirs.feature_lists.feature_list.items()
    }


@st.composite
def shuffled_records(draw):
    """A valid record in an unusual encoding."""
    frames = draw(st.integers(1, 4))
    context, lists = rated_parts([0, 1], [5, 6], [0, 1], frames=frames)
    context["labels"] = b"".join(field(3, b"\x08" + varint(n)) for n in (300, 4)) + draw(unknown)
    context["segment_scores"] = field(2, b"".join(b"\x0d" + struct.pack("<f", x) for x in (0, 1)))
    context["spare"] = draw(any_feature)
    lists["spare"] = [draw(any_feature)]
    lists["rgb"] = [draw(unknown) + item for item in lists["rgb"]]
    parts = [(1, name, value) for name, value in context.items()]
    for name, items in lists.items():
        whole = b"".join(field(1, item) + draw(unknown) for item in items)
        parts.append((2, name, whole))
    out = b""
    for number, name, value in draw(st.permutations(parts)):
        key, half = field(1, name.encode()), draw(st.booleans())
        stale = field(1, key + field(2, b"")) if draw(st.booleans()) else b""
        body = field(2, value) + key if half else draw(unknown) + key + field(2, value)
        out += field(number, stale + field(1, body)) + draw(unknown)
    return frames, out


@pytest.mark.parametrize("name", [NATIVE, "reference"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(example=shuffled_records())
def test_unusual_encodings_of_valid_records(tmp_path, name, example):
    frames, payload = example
    path = tmp_path / "unusual"
    path.write_bytes(framed(payload))
    with using(name):
        [record] = read_frames(path, SMALL, report=ReadReport())
    assert record.id == "06xy"
    assert record.labels.tolist() == [300, 4]
    assert record.frames.tolist() == [
        [*range(6 * t, 6 * t + 6), *range(3 * t, 3 * t + 3)] for t in range(frames)
    ]
    kept = slice(None) if frames > 1 else slice(1)
    assert record.ratings.starts.tolist() == [0, 1][kept]
    assert record.ratings.scores.tolist() == [0, 1][kept]


@st.composite
def mutated(draw, payloads):
    """A record with some bytes changed, inserted or removed."""
    data = bytearray(draw(payloads))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["set", "insert", "remove", "cut", "repeat"]))
        if change == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif change == "insert":
            data[at:at] = draw(st.binary(max_size=4))
        elif change == "remove":
            del data[at : at + draw(st.integers(1, 4))]
        elif change == "cut":
            del data[at:]
        elif change == "repeat":
            data += data[at:]
    return bytes(data)


def check_engines_agree(path: Path, read, *arguments, **options) -> None:
    results = []
    for name in ("native", "reference"):
        with using(name):
            report = ReadReport()
            results.append((outcome(read, path, *arguments, report=report, **options), report))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.skipif(_ext.records is None, reason=f"no _records: {_ext.RECORDS_REASON}")
@settings(
    max_examples=2000 if FULL else 300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    payload=mutated(
        st.one_of(
            messages,
            shuffled_records().map(lambda example: example[1]),
            st.sampled_from(sample_frames()),
            st.just(sequence(*rated_parts([0, 5, 9, 5], [1, 2, 3, 2], [1, 0, 1, 0.5], 10))),
        )
    ),
    max_frames=st.sampled_from([None, 1, 7]),
    extra=st.sampled_from([(), ("a", "labels"), ("spare",)]),
)
def test_engines_agree_on_frames(tmp_path, payload, max_frames, extra):
    path = tmp_path / "mutated"
    path.write_bytes(framed(payload))
    check_engines_agree(path, read_frames, SMALL, max_frames=max_frames, context_keys=extra)


@pytest.mark.skipif(_ext.records is None, reason=f"no _records: {_ext.RECORDS_REASON}")
@settings(
    max_examples=1000 if FULL else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    payloads=st.lists(
        mutated(
            st.one_of(
                messages,
                st.just(field(1, feature_map(video_parts()))),
                st.just(encode_video("größe", np.arange(5), [1, 300], TINY)),
            )
        ),
        min_size=1,
        max_size=4,
    ),
    on_error=st.sampled_from(["raise", "skip"]),
)
def test_engines_agree_on_videos(tmp_path, payloads, on_error):
    path = tmp_path / "mutated"
    path.write_bytes(framed(*payloads))
    check_engines_agree(path, read_videos, TINY, block=2, on_error=on_error)


@pytest.mark.skipif(_ext.records is None, reason=f"no _records: {_ext.RECORDS_REASON}")
@settings(
    max_examples=1000 if FULL else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    data=mutated(st.just(framed(*sample_frames(3)))),
    compress=st.booleans(),
    on_error=st.sampled_from(["raise", "skip"]),
    shard=st.sampled_from([(0, 1), (0, 2), (1, 2)]),
)
def test_engines_agree_on_framing(tmp_path, data, compress, on_error, shard):
    path = tmp_path / "mutated"
    path.write_bytes(gzip.compress(data, 1) if compress else data)
    check_engines_agree(path, read_frames, SMALL, on_error=on_error, shard=shard)


def test_without_the_native_module_the_reference_is_used(monkeypatch):
    monkeypatch.setattr(_ext, "records", None)
    assert module._engine() is reference


# ---------------------------------------------------------------------------- skipping and sharing


def test_skip_continues_where_framing_allows(engine, write):
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

    data[places[4]] ^= 1  # the length of record 4: the start of record 5 is unknown
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
def test_shards_lose_and_repeat_nothing(engine, tmp_path, count, compress):
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
    path = write(data[:-1])  # truncated in the last record
    total = ReadReport()
    for i in range(3):
        list(read_frames(path, SMALL, shard=(i, 3), on_error="skip", report=total))
    assert (total.records, total.skipped) == (4, 3)
    for i in range(3):  # a damaged file is an error in every shard
        with pytest.raises(RecordError, match="record 1 at byte"):
            list(read_frames(path, SMALL, shard=(i, 3)))


def test_reports_add_up():
    total = ReadReport()
    total += ReadReport(1, 2, 3, 4, 5, 6, None)
    total += ReadReport(10, 20, 30, 40, 50, 60, "first")
    total += ReadReport(0, 1, 0, 0, 0, 0, "second")
    assert total == ReadReport(11, 23, 33, 44, 55, 66, "first")
    assert ReadReport(records=3, cut_segments=1).summary() == ""


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda path: read_records(path, on_error="ignore"),
            "on_error: expected 'raise' or 'skip'",
        ),
        (lambda path: read_frames(path, shard=(2, 2)), "shard: expected"),
        (lambda path: read_frames(path, shard=(-1, 2)), "shard: expected"),
        (lambda path: read_frames(path, max_frames=0), "max_frames: expected a whole number of at"),
        (lambda path: read_frames(path, max_frames=2.5), "at least 1, or None, found 2.5"),
        (lambda path: read_videos(path, block=0), "block: expected at least 1"),
        (lambda path: FrameSchema(features=()), "features: expected different names"),
        (lambda path: FrameSchema(features=(("a", 1), ("a", 1))), "features: expected different"),
        (lambda path: VideoSchema(features=(("a", 0),)), "features: expected different names"),
        (lambda path: FrameSchema(id_key=""), "id_key and labels_key: expected names"),
        (lambda path: FrameSchema(segment_size=0), "segment_size: expected at least 1"),
    ],
)
def test_arguments_are_checked_at_once(engine, call, expected):
    with pytest.raises(ValueError, match=expected):
        call("nowhere")


# ----------------------------------------------------------------------------------------- sniffing


def test_sniff(engine, write, monkeypatch):
    context, lists = rated_parts([0], [1], [1], frames=3)
    context["empty"] = b""
    lists["none"] = []
    kind = sniff(write(gzip.compress(framed(sequence(context, lists)))))
    assert kind.compressed
    assert kind.lists == {"rgb": ("bytes", 6), "audio": ("bytes", 3), "none": ("nothing", 0)}
    assert kind.context["id"] == ("bytes", 4)
    assert kind.context["labels"] == ("int64", 2)
    assert kind.context["segment_scores"] == ("float", 1)
    assert kind.context["empty"] == ("nothing", 0)
    with pytest.raises(RecordError, match="record 0 at byte 0: malformed protobuf at byte 0"):
        sniff(write(framed(b"\x00")))
    monkeypatch.setattr(module, "_MOST_FEATURES", 100)
    few = sequence({f"f{i}": int_list(i) for i in range(100)}, {})
    assert len(sniff(write(framed(few))).context) == 100
    many = few + sequence({}, {"one more": []})
    with pytest.raises(RecordError, match="record 0 at byte 0: expected at most 100 features"):
        sniff(write(framed(many)))


# ----------------------------------------------------------------------------------------- writing


def test_encoded_frames_are_read_back(engine, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (300, 1152), dtype=np.uint8)
    ratings = Ratings(
        np.array([0, 295]), np.array([2**40, 0]), np.array([0.25, 1], dtype=np.float32)
    )
    payload = encode_frames(
        "größe", frames, [0, 127, 128, 2**63 - 1], ratings, context={"t": 0.5, "n": -3, "s": "ä"}
    )
    path = tmp_path / "file"
    write_records(path, [payload])
    [record] = read_frames(path, context_keys=["t", "n", "s"])
    assert record.id == "größe"
    assert same(record.frames, frames)
    assert record.labels.tolist() == [0, 127, 128, 2**63 - 1]
    assert same(record.ratings, ratings)
    assert record.context == {"t": 0.5, "n": -3, "s": "ä".encode()}


def test_encoded_videos_are_read_back(engine, tmp_path):
    features = np.random.default_rng(0).normal(size=1152).astype(np.float32)
    features[:3] = np.nan, np.inf, -0.0
    path = tmp_path / "file"
    write_records(path, [encode_video("a", features, []), encode_video("b", features, [3])])
    [block] = read_videos(path)
    assert same(block.features, np.stack([features, features]))
    assert block.label_offsets.tolist() == [0, 0, 1]


def test_protobuf_parses_encoded_records(protobuf):
    frames = np.arange(18, dtype=np.uint8).reshape(2, 9)
    ratings = Ratings(np.array([0]), np.array([7]), np.array([1.0]))
    message = protobuf.SequenceExample.FromString(
        encode_frames("id", frames, [1, 300], ratings, SMALL, context={"x": 1.5})
    )
    context = message.context.feature
    assert context["id"].bytes_list.value == [b"id"]
    assert context["labels"].int64_list.value == [1, 300]
    assert context["segment_start_times"].int64_list.value == [0]
    assert context["segment_end_times"].int64_list.value == [5]
    assert context["segment_labels"].int64_list.value == [7]
    assert context["segment_scores"].float_list.value == [1]
    assert context["x"].float_list.value == [1.5]
    lists = message.feature_lists.feature_list
    assert [f.bytes_list.value[0] for f in lists["rgb"].feature] == [
        b"\0\1\2\3\4\5",
        bytes(range(9, 15)),
    ]
    assert [f.bytes_list.value[0] for f in lists["audio"].feature] == [
        b"\6\7\x08",
        bytes((15, 16, 17)),
    ]
    video = protobuf.Example.FromString(encode_video("v", np.arange(5), [2], TINY))
    assert video.features.feature["mean_audio"].float_list.value == [3, 4]


FRAMES = np.zeros((2, 9), dtype=np.uint8)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: encode_frames("a", FRAMES.astype(int), [], schema=SMALL),
            "frames: expected uint8",
        ),
        (
            lambda: encode_frames("a", FRAMES[:0], [], schema=SMALL),
            "frames: expected uint8 of shape",
        ),
        (
            lambda: encode_frames("a", FRAMES[0], [], schema=SMALL),
            "frames: expected uint8 of shape",
        ),
        (lambda: encode_frames("a", FRAMES, []), "frames: expected a width of 1152, found 9"),
        (lambda: encode_frames("a", FRAMES, [-1], schema=SMALL), "labels: expected 0 to"),
        (lambda: encode_frames("a", FRAMES, [0.5], schema=SMALL), "labels: expected integers"),
        (lambda: encode_frames("a", FRAMES, 3, schema=SMALL), "labels: expected integers of shape"),
        (
            lambda: encode_frames("a", FRAMES, [], Ratings([0], [1, 2], [1, 1]), SMALL),
            "ratings: expected as many",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], Ratings([0], [1], [np.nan]), SMALL),
            "ratings.scores: expected 0 to 1",
        ),
        (lambda: encode_video("a", np.zeros(4), [], TINY), r"features: expected shape \(5,\)"),
        (
            lambda: encode_frames(
                "a", FRAMES, [1], schema=FrameSchema(SMALL.features, labels_key=None)
            ),
            "labels: expected none",
        ),
        (
            lambda: encode_frames("a", FRAMES, [1], schema=SMALL, context={"labels": 3}),
            "context: expected other features than the record's own, found 'labels'",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, context={"segment_labels": 3}),
            "context: expected other features than the record's own, found 'segment_labels'",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, context={"x": [1, 2]}),
            r"context\['x'\]: expected text or a finite number, found \[1, 2\]",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, segment_ends=[5]),
            "segment_ends: expected none without ratings",
        ),
        (lambda: encode_frames(b"a", FRAMES, [], schema=SMALL), "id: expected text, found b'a'"),
        (lambda: encode_frames("\ud800", FRAMES, [], schema=SMALL), "id: expected text, found '"),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, context={"x": np.inf}),
            r"context\['x'\]: expected text or a finite number, found inf",
        ),
    ],
)
def test_encoders_check_like_readers(call, expected):
    with pytest.raises(ValueError, match=expected):
        call()


def test_writing_is_atomic(engine, tmp_path):
    path = tmp_path / "file"
    write_records(path, [b"old"])

    def failing():
        yield b"new"
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_records(path, failing())
    with pytest.raises(ValueError, match="records: expected at least one"):
        write_records(path, [])
    assert list(read_records(path)) == [b"old"]
    assert os.listdir(tmp_path) == ["file"]
    for record in ("new", None, 3):
        with pytest.raises(ValueError, match=r"records: expected bytes, found .* in record 1"):
            write_records(path, [b"new", record])
    with pytest.raises(
        FileNotFoundError, match=r"no folder/file: expected a folder .*, found none"
    ):
        write_records(tmp_path / "no folder" / "file", [b"new"])


def test_writing_is_reproducible(engine, tmp_path):
    for name in ("one", "two"):
        write_records(tmp_path / name, sample_frames(), compress=True)
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    assert data[:8] == b"\x1f\x8b\x08\x00" + bytes(4)  # no name, no time
    assert zlib.decompress(data, wbits=31) == framed(*sample_frames())


# ------------------------------------------------------------------------------------------ faults


def check_faults(data: bytes, path: Path, read, corruptions: int, truncations: int, seed=0) -> None:
    """Changes any byte or truncates anywhere: the result must be the same records or an error.

    An uncompressed file that is truncated between two records is valid and has fewer records.
    """
    rng = random.Random(seed)
    ends = []
    if data[:2] != b"\x1f\x8b":
        end = 0
        while end < len(data):
            end += int.from_bytes(data[end : end + 8], "little") + 16
            ends.append(end)
    path.write_bytes(data)
    whole, error = outcome(read, path)
    assert error is None
    assert whole
    for trial in range(corruptions + truncations):
        damaged = bytearray(data)
        if trial < corruptions:
            at = rng.randrange(len(data))
            damaged[at] ^= rng.randrange(1, 256)
            what = f"byte {at} set to {damaged[at]:#x}"
        else:
            del damaged[rng.randrange(len(data)) :]
            what = f"cut to {len(damaged)} bytes"
        path.write_bytes(damaged)
        found, error = outcome(read, path)
        assert same(found, whole[: len(found)]), what
        if error is None and len(damaged) in ends:
            assert len(found) == ends.index(len(damaged)) + 1, what
        elif error is None:
            assert len(found) == (len(whole) if damaged else 0), what
        else:
            assert error.startswith(f"{path}: record "), (what, error)
            assert ": expected " in error or "malformed" in error, (what, error)


@pytest.mark.parametrize("compress", [False, True])
def test_faults_in_frames(engine, tmp_path, compress):
    write_records(tmp_path / "good", sample_frames(8), compress=compress)
    data = (tmp_path / "good").read_bytes()
    check_faults(
        data,
        tmp_path / "damaged",
        lambda path: read_frames(path, SMALL),
        *((2000, 500) if FULL else (300, 100)),
    )


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["frame", "video"])
def test_faults_in_real_data(shared, tmp_path, name, compress):
    """The shards as published, and recompressed or uncompressed."""
    if name == "frame":
        data = (shared / "data/yt8m/frame_level_example.tfrecord").read_bytes()
        data = gzip.compress(data) if compress else data
        read = read_frames
    else:
        data = (shared / "data/yt8m/video_level_validate0000.tfrecord.gz").read_bytes()
        data = data if compress else gzip.decompress(data)

        def read(path):  # record by record, to compare those before a fault
            for block in read_videos(path, block=1):
                yield tuple(block)

    check_faults(data, tmp_path / "damaged", read, *((2000, 500) if FULL else (40, 10)))


# --------------------------------------------------------------------------------------- real data


def test_youtube8m_frames(engine, shared):
    [record] = read_frames(shared / "data/yt8m/frame_level_example.tfrecord")
    assert (record.id, record.frames.shape, record.labels.tolist()) == ("SjJ3", (170, 1152), [11])
    assert record.ratings is None


def test_youtube8m_videos(engine, shared):
    report = ReadReport()
    ids, labels = set(), 0
    for path in sorted((shared / "data/yt8m").glob("video_level_validate*.tfrecord.gz")):
        for block in read_videos(path, report=report):
            assert np.isfinite(block.features).all()
            assert np.abs(block.features).max() < 3  # dequantised: -2 to 2, up to rounding
            assert block.labels.max() < 3862
            ids.update(block.ids)
            labels += len(block.labels)
    assert report == ReadReport(records=len(ids))
    assert len(ids) == 7719
    assert 2.9 < labels / len(ids) < 3.1


def test_audioset(engine, shared):
    report = ReadReport()
    ids = set()
    for path in sorted((shared / "data/audioset").glob("eval*.tfrecord.gz")):
        keys = ("start_time_seconds", "end_time_seconds")
        for record in read_frames(path, AUDIOSET, report=report, context_keys=keys):
            ids.add(record.id)
            assert 1 <= len(record.frames) <= 10
            assert record.labels.max() < 527
            start, end = (record.context[key] for key in keys)
            assert 0 <= start < end <= start + 10
    assert report == ReadReport(records=10_000)
    assert len(ids) == 10_000
