"""The framing of TFRecords, as in TensorFlow's `lib/io/record_writer.h`.

    uint64 length, uint32 masked CRC32C of the length, payload, uint32 masked CRC32C of the payload

all little-endian. The CRC32C here is the fallback for the native module's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

LARGEST_RECORD = 2**31 - 1  # bytes: protobuf cannot hold a longer message


@functools.cache
def _crc_kernel() -> tuple[Callable[[np.ndarray, np.ndarray, int], np.uint32], np.ndarray]:
    from pyseg._jit import njit  # late: importing numba takes longer than the rest of pyseg.data

    table = np.zeros((8, 256), dtype=np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table[0, byte] = value
    for k in range(1, 8):  # table[k] is table[0] followed by k zero bytes
        table[k] = (table[k - 1] >> 8) ^ table[0, table[k - 1] & 0xFF]

    @njit
    def kernel(data: np.ndarray, table: np.ndarray, crc: int) -> np.uint32:
        state = np.uint32(crc) ^ np.uint32(0xFFFFFFFF)
        blocks = len(data) // 8
        for block in range(blocks):  # eight independent table look-ups
            i = block * 8
            state ^= (
                np.uint32(data[i])
                | np.uint32(data[i + 1]) << np.uint32(8)
                | np.uint32(data[i + 2]) << np.uint32(16)
                | np.uint32(data[i + 3]) << np.uint32(24)
            )
            state = (
                table[7, state & np.uint32(0xFF)]
                ^ table[6, (state >> np.uint32(8)) & np.uint32(0xFF)]
                ^ table[5, (state >> np.uint32(16)) & np.uint32(0xFF)]
                ^ table[4, state >> np.uint32(24)]
                ^ table[3, data[i + 4]]
                ^ table[2, data[i + 5]]
                ^ table[1, data[i + 6]]
                ^ table[0, data[i + 7]]
            )
        for i in range(blocks * 8, len(data)):
            state = table[0, (state ^ data[i]) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
        return state ^ np.uint32(0xFFFFFFFF)

    return kernel, table


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Returns the CRC32C (Castagnoli, RFC 3720 appendix B.4) of `data`, continuing from `crc`."""
    kernel, table = _crc_kernel()
    return int(kernel(np.frombuffer(data, dtype=np.uint8), table, crc))


def mask(crc: int) -> int:
    """Returns a CRC masked as TensorFlow stores it, since CRCs of data with CRCs are weak."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
