"""Inspecting the content of a file of records without decoding its frames."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pyseg._paths import path_text
from pyseg._urls import is_url
from pyseg.data.records import wire
from pyseg.data.records.file import RecordFile
from pyseg.errors import RecordError

_MOST_FEATURES = 10_000  # the most in a record


class FeatureKind(NamedTuple):
    """Type and size of a feature.

    Attributes:
        type: "bytes", "float", "int64", or "nothing" if the feature is empty.
        size: Number of values; for a single byte string its length, for a feature list the size of
            its first frame (0 without frames).
    """

    type: str
    size: int


class RecordKind(NamedTuple):
    """The features of the first record of a file.

    Attributes:
        context: Context features (of a tf.Example: features) by name.
        lists: Feature lists by name.
        compressed: Whether the file is gzip-compressed.
    """

    context: dict[str, FeatureKind]
    lists: dict[str, FeatureKind]
    compressed: bool


def sniff(path: str | os.PathLike[str], on_error: str = "raise") -> RecordKind | None:
    """Returns the features of the first record of a file; None if there is no record.

    Args:
        path: A file of records.
        on_error: "raise", or "skip" to inspect the first undamaged record.

    Raises:
        RecordError: The file cannot be read, or its first record is damaged or has more than 10,000
            features.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from pyseg.data import encode_frames, write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "frames.tfrecord")
        >>> write_records(path, [encode_frames("06xy", np.zeros((2, 1152), np.uint8), [4])])
        1
        >>> kind = sniff(path)
        >>> kind.lists["rgb"], kind.context["labels"], kind.compressed
        (FeatureKind(type='bytes', size=1024), FeatureKind(type='int64', size=1), False)
    """
    name = path_text(path, remote=True)
    with RecordFile(name, on_error) as file:
        data = file.take("next_record")
        if data is None:
            return None
        try:
            message = wire.Message.parse(data, _MOST_FEATURES)
            context = {
                _text(key): _feature_kind(data, spans) for key, spans in message.context.items()
            }
            lists = {
                _text(key): _feature_kind(data, list(itertools.islice(message.frames(key), 1)))
                for key in message.lists
            }
        except wire.ContentError as wrong:
            raise RecordError(f"{name}: record 0 at byte 0: {wrong}", name, 0, 0) from None
        return RecordKind(context, lists, file.compressed)


def is_record_file(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file starts like a TFRecord file, plain or gzip-compressed.

    False for an empty or unreadable file; a URL that cannot be read is an error.

    Example:
        >>> is_record_file(__file__)
        False
    """
    name = path_text(path, remote=True)
    try:
        with RecordFile(name) as file:
            return file.begins_as_records()
    except RecordError:
        if is_url(name):
            raise
        return False


def find_features(
    path: str | os.PathLike[str], names: Iterable[str], most: int | None = None
) -> set[str]:
    """Returns those of some context features that occur in a file's records.

    Frames are not read: of an uncompressed file, only the start of each record is. Checksums are
    not verified, and a truncated file is searched up to its end.

    Args:
        path: A TFRecord file, plain or gzip-compressed.
        names: The features; the search ends when all are found.
        most: The bytes after which it ends in any case; default: the whole file.

    Raises:
        RecordError: The file cannot be read.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from pyseg.data import encode_frames, write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "frames.tfrecord")
        >>> write_records(path, [encode_frames("06xy", np.zeros((2, 1152), np.uint8), [4])])
        1
        >>> find_features(path, ["labels", "segment_labels"])
        {'labels'}
    """
    wanted = {name.encode(): name for name in names}
    left, read = set(wanted), 0
    with RecordFile(path_text(path, remote=True), "skip") as file:
        for data in file.contexts():
            # A name that is not in the bytes needs no parsing.
            if any(name in data for name in left):
                with contextlib.suppress(wire.ContentError):
                    left -= wire.Message.parse(data, _MOST_FEATURES).context.keys()
            read += len(data)
            if not left or (most is not None and read >= most):
                break
    return {name for key, name in wanted.items() if key not in left}


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _feature_kind(data: bytes, spans: Sequence[wire.Span]) -> FeatureKind:
    value = wire.parse_feature(data, spans)
    if value.kind == wire.BYTES and value.size == 1:
        [(start, end)] = value.strings
        return FeatureKind("bytes", end - start)
    return FeatureKind(wire.KINDS[value.kind], value.size)
