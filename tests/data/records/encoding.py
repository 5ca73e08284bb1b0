"""An encoder of records that shares no code with pyseg's, and good records to be spoilt."""

from __future__ import annotations

import struct

import numpy as np

from pyseg.data.records import (
    FrameSchema,
    Ratings,
    RecordError,
    VideoSchema,
    encode_frames,
)
from pyseg.data.records.framing import crc32c, mask

SMALL = FrameSchema(features=(("rgb", 6), ("audio", 3)))
TINY = VideoSchema(features=(("mean_rgb", 3), ("mean_audio", 2)))
AUDIOSET = FrameSchema(features=(("audio_embedding", 128),), id_key="video_id")
# What tf.io.TFRecordWriter writes for b"pyseg" and b"".
TENSORFLOWS = bytes.fromhex(
    "0500000000000000eab2043e70797365678c0384ce000000000000000029039807d8ea82a2"
)


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
    return struct.pack("<I", mask(crc32c(data)))


def framed(*payloads: bytes) -> bytes:
    out = b""
    for payload in payloads:
        length = struct.pack("<Q", len(payload))
        out += length + masked(length) + payload + masked(payload)
    return out


def frame_parts(frames: int = 2) -> tuple[dict[str, bytes], dict[str, list[bytes]]]:
    """Context and feature lists of a good record of SMALL, to be spoilt."""
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


def video_parts(name=b"06xy"):
    return {
        "id": bytes_list(name),
        "labels": int_list(4, 9),
        "mean_rgb": float_list(1, 2, 3),
        "mean_audio": float_list(-1, np.nan),
    }


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
    """What reading gives: all records, and the error that ended it."""
    found = []
    try:
        for record in read(path, *arguments, **options):
            found.append(record)
    except RecordError as error:
        return found, str(error)
    return found, None
