"""Writing records: encoding them as protobuf messages, and writing files."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg._files import atomic_write
from pyseg._paths import path_text
from pyseg.data.records.engine import engine
from pyseg.data.records.framing import LARGEST_RECORD, mask
from pyseg.data.records.schema import (
    RATING_KEYS,
    FrameSchema,
    Ratings,
    VideoSchema,
    why_not_an_id,
)
from pyseg.data.records.wire import encode_varint, row_header
from pyseg.errors import ArgumentError


def write_records(
    path: str | os.PathLike[str], records: Iterable[bytes], *, compress: bool = False
) -> int:
    """Writes a TFRecord file.

    The file is written under another name in the same folder and then renamed, so that it appears
    only when complete. The same records give the same bytes.

    Args:
        path: The file; an existing one is replaced.
        records: The payload of each record, for example from `encode_frames`; at least one.
        compress: Whether to compress with gzip.

    Returns:
        Number of records written.

    Raises:
        ValueError: There is no record, or one is too large for protobuf.
        OSError: The file cannot be written.

    Example:
        >>> import os, tempfile
        >>> from pyseg.data import read_records
        >>> path = os.path.join(tempfile.mkdtemp(), "one.tfrecord.gz")
        >>> write_records(path, [b"payload"], compress=True)
        1
        >>> list(read_records(path))
        [b'payload']
    """
    crc32c = engine().crc32c
    count = 0
    with atomic_write(Path(path_text(path))) as output, contextlib.ExitStack() as stack:
        file: Any = output
        if compress:  # without name and time, so that the same records give the same bytes
            file = stack.enter_context(
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=output, mtime=0)
            )
        for record in records:
            if not isinstance(record, bytes | bytearray | memoryview):
                raise ArgumentError(
                    f"records: expected bytes, found {type(record).__name__} in record {count}"
                )
            if len(record) > LARGEST_RECORD:
                raise ArgumentError(
                    f"records: expected at most {LARGEST_RECORD} bytes in record"
                    f" {count}, found {len(record)}"
                )
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", mask(crc32c(length))))
            file.write(record)
            file.write(struct.pack("<I", mask(crc32c(record))))
            count += 1
        if not count:
            raise ArgumentError("records: expected at least one, found none")
    return count


def encode_frames(
    id: str,
    frames: npt.ArrayLike,
    labels: npt.ArrayLike,
    ratings: Ratings | None = None,
    schema: FrameSchema = FrameSchema(),  # noqa: B008 - immutable
    *,
    segment_ends: npt.ArrayLike | None = None,
    context: Mapping[str, float | int | bytes | str] | None = None,
) -> bytes:
    """Encodes a frame-level record as tf.SequenceExample.

    Args:
        id: Id of the video: a line of text of at most 1,024 bytes, without white space at its ends.
        frames: (T, schema.width) uint8, T >= 1.
        labels: (L,) class numbers.
        ratings: Rated segments, stored unchanged, even those that a reader would drop.
        schema: What the features are called.
        segment_ends: (R,) first frame after each segment; by default its start + segment_size.
        context: Further context features of one value each.

    Returns:
        The payload of the record.

    Raises:
        ValueError: An argument does not have the shape, type or range that a reader expects.

    Example:
        >>> import numpy as np
        >>> len(encode_frames("06xy", np.zeros((1, 1152), dtype=np.uint8), [3]))
        1232
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 2 or not len(frames):
        raise ArgumentError(
            f"frames: expected uint8 of shape (T >= 1, {schema.width}),"
            f" found {frames.dtype} of shape {frames.shape}"
        )
    if frames.shape[1] != schema.width:
        raise ArgumentError(f"frames: expected a width of {schema.width}, found {frames.shape[1]}")
    entries = _identity(id, labels, schema)
    own = {schema.id_key, schema.labels_key, *RATING_KEYS}
    for key, value in (context or {}).items():
        if key in own:
            raise ArgumentError(
                f"context: expected other features than the record's own, found {key!r}"
            )
        entries.append((key, _scalar(key, value)))
    if ratings is not None:
        entries += _rated(ratings, schema.segment_size, segment_ends)
    elif segment_ends is not None:
        raise ArgumentError("segment_ends: expected none without ratings, found some")
    lists = [(name, _rows(frames[:, columns])) for name, columns in _columns(schema)]
    return _field(1, _map(entries)) + _field(2, _map(lists))


def encode_video(
    id: str,
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    schema: VideoSchema = VideoSchema(),  # noqa: B008 - immutable
) -> bytes:
    """Encodes a video-level record as tf.Example.

    Args:
        id: Id of the video, as for `encode_frames`.
        features: (schema.width,) floats, stored as float32.
        labels: (L,) class numbers.
        schema: What the features are called.

    Returns:
        The payload of the record.

    Raises:
        ValueError: An argument does not have the shape, type or range that a reader expects.

    Example:
        >>> import numpy as np
        >>> len(encode_video("06xy", np.zeros(1152), [3]))
        4690
    """
    values = np.asarray(features, dtype=np.float32)
    if values.shape != (schema.width,):
        raise ArgumentError(f"features: expected shape ({schema.width},), found {values.shape}")
    entries = _identity(id, labels, schema)
    entries += [(name, _floats(values[columns])) for name, columns in _columns(schema)]
    return _field(1, _map(entries))


def _identity(
    id: str, labels: npt.ArrayLike, schema: FrameSchema | VideoSchema
) -> list[tuple[str, bytes]]:
    """Returns the features of every record."""
    numbers = _natural_numbers("labels", labels)
    if (wrong := why_not_an_id(id)) is not None:
        raise ArgumentError(f"id: {wrong}")
    entries = [(schema.id_key, _field(1, _field(1, id.encode())))]
    if schema.labels_key is not None:
        entries.append((schema.labels_key, _ints(numbers)))
    elif numbers.size:
        raise ArgumentError(
            f"labels: expected none without schema.labels_key, found {numbers.size}"
        )
    return entries


def _rated(
    ratings: Ratings, segment_size: int, segment_ends: npt.ArrayLike | None
) -> Iterator[tuple[str, bytes]]:
    """Returns the features of rated segments."""
    starts = _natural_numbers("ratings.starts", ratings.starts)
    ends = starts + segment_size
    if segment_ends is not None:
        ends = _natural_numbers("segment_ends", segment_ends)
    classes = _natural_numbers("ratings.classes", ratings.classes)
    scores = np.asarray(ratings.scores, dtype=np.float32)
    sizes = (starts.shape, ends.shape, classes.shape, scores.shape)
    if len(set(sizes)) != 1:
        raise ArgumentError(
            "ratings: expected as many starts, ends, classes and scores, found shapes "
            + ", ".join(map(str, sizes))
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ArgumentError(f"ratings.scores: expected 0 to 1, found {scores}")
    values = _ints(starts), _ints(ends), _ints(classes), _floats(scores)
    return zip(RATING_KEYS, values, strict=True)


def _columns(schema: FrameSchema | VideoSchema) -> Iterator[tuple[str, slice]]:
    """Yields the name of each feature, and its columns among the concatenated features."""
    start = 0
    for name, width in schema.features:
        yield name, slice(start, start + width)
        start += width


def _natural_numbers(name: str, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Returns natural numbers as int64."""
    array = np.asarray(numbers)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ArgumentError(
            f"{name}: expected integers of shape (n,), found {array.dtype} of shape {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise ArgumentError(
            f"{name}: expected 0 to 2**63 - 1, found {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)


def _field(number: int, content: bytes) -> bytes:
    """Returns a protobuf field of wire type 2: a message, text, bytes or packed numbers."""
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def _map(entries: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(_field(1, _field(1, key.encode()) + _field(2, value)) for key, value in entries)


def _ints(values: Iterable[int]) -> bytes:
    packed = b"".join(encode_varint(int(value) & (1 << 64) - 1) for value in values)
    return _field(3, _field(1, packed) if packed else b"")


def _floats(values: npt.ArrayLike) -> bytes:
    packed = np.asarray(values, dtype="<f4").tobytes()
    return _field(2, _field(1, packed) if packed else b"")


def _scalar(key: str, value: float | int | bytes | str) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _field(1, _field(1, value))
    if isinstance(value, (int, np.integer)):
        return _ints([int(value)])
    if not isinstance(value, (float, np.floating)) or not math.isfinite(value):
        raise ArgumentError(f"context[{key!r}]: expected text or a finite number, found {value!r}")
    return _floats([value])


def _rows(frames: npt.NDArray[np.uint8]) -> bytes:
    """Returns a tf.FeatureList with one byte string per frame."""
    header = np.frombuffer(row_header(frames.shape[1]), dtype=np.uint8)
    return np.hstack([np.broadcast_to(header, (len(frames), len(header))), frames]).tobytes()
