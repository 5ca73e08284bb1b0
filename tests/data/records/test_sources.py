"""Gzip files, of several members and damaged ones among them."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import random
import zlib

import numpy as np
import pytest

from pyseg.data.records import (
    read_records,
    reference,
    write_records,
)
from pyseg.data.records.sources import MOST_UNPACKED, Gunzip

from .encoding import TENSORFLOWS, framed, outcome


def test_gzip_is_recognised_by_content(engine, write):
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


def test_damaged_gzip_gives_all_that_could_be_unpacked(engine, write):
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


def test_large_record_of_unknown_end_is_moved_a_few_times_only(engine):
    """What unpacks it hands out small pieces: no new memory is taken for each of them."""
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
    """A megabyte of zeros in a kilobyte: no more than a piece may be unpacked at a time."""
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    buffer = memoryview(bytearray(1 << 24))
    total = 0
    with open(path, "rb", buffering=0) as file:
        unpacker = Gunzip(file)
        while count := unpacker.readinto(buffer):
            assert count <= MOST_UNPACKED
            total += count
    assert total == 1 << 24
