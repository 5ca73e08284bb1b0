"""CRC32C, of all that computes it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pyseg import _ext
from pyseg.data.records import (
    reference,
)
from pyseg.data.records.framing import crc32c


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
            expected = crc32c(piece)
            assert _ext.records.crc32c(piece) == expected
            assert _ext.records.crc32c_portable(bytes(piece)) == expected


def test_crc32c_goes_on_from_a_checksum(engine):
    data = random.Random(1).randbytes(30_000)
    for cut in (0, 1, 13, 4096, 29_999):
        assert engine.crc32c(data[cut:], engine.crc32c(data[:cut])) == engine.crc32c(data)


def test_crc32c_refuses_what_is_not_contiguous():
    if _ext.records is None:
        pytest.skip(f"no _records: {_ext.RECORDS_REASON}")
    with pytest.raises(TypeError, match="contiguous"):
        _ext.records.crc32c(np.zeros((4, 4), dtype=np.uint8)[:, ::2])
