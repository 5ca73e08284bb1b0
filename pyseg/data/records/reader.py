"""Reading records: raw payloads, frame-level records, or blocks of video-level records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from pyseg._paths import path_text
from pyseg.data.records.engine import engine
from pyseg.data.records.file import RecordFile
from pyseg.data.records.reference import RatingTuple
from pyseg.data.records.report import ReadReport, check_on_error
from pyseg.data.records.schema import (
    FrameRecord,
    FrameSchema,
    Ratings,
    VideoRecords,
    VideoSchema,
)
from pyseg.data.records.wire import quote
from pyseg.errors import ArgumentError, RecordError

PathLike = str | os.PathLike[str]
_Result = TypeVar("_Result")


def read_records(path: PathLike, on_error: str = "raise") -> Iterator[bytes]:
    """Reads the payloads of a TFRecord file, undecoded.

    Args:
        path: A TFRecord file, plain or gzip-compressed, or its URL.
        on_error: "raise", or "skip" to leave out damaged records. If the place of the next record
            is unknown, the rest of the file is skipped. A `RecordWarning` at the end says what was
            skipped.

    Yields:
        The bytes of each record.

    Raises:
        RecordError: The file cannot be read, or a record is damaged.
        ValueError: `on_error` is neither of the two.

    Example:
        >>> import os, tempfile
        >>> from pyseg.data import write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "two.tfrecord")
        >>> write_records(path, [b"first", b"second"])
        2
        >>> list(read_records(path))
        [b'first', b'second']
    """

    def records(file: RecordFile) -> Iterator[bytes]:
        while (payload := file.take("next_record")) is not None:
            file.report.records += 1
            yield payload

    return _read(path, on_error, None, (0, 1), records)


def read_frames(
    path: PathLike,
    schema: FrameSchema = FrameSchema(),  # noqa: B008 - immutable
    *,
    max_frames: int | None = None,
    on_error: str = "raise",
    report: ReadReport | None = None,
    shard: tuple[int, int] = (0, 1),
    context_keys: Sequence[str] = (),
    sound: Callable[[str], bool] | None = None,
    check_ends: bool = False,
) -> Iterator[FrameRecord]:
    """Reads frame-level records (tf.SequenceExample), with rated segments if there are any.

    Args:
        path: A TFRecord file, plain or gzip-compressed, or its URL.
        schema: The names of the features.
        max_frames: Frames to keep of a longer video; ratings that start past them are dropped.
            None keeps all.
        on_error: "raise", or "skip" to leave out records that are damaged or not as expected. If
            the place of the next record is unknown, the rest of the file is skipped. A file that
            cannot be opened is always an error.
        report: Receives the counts while reading, for the caller to report; without it, a
            `RecordWarning` at the end says what was skipped, dropped or overwritten.
        shard: `(i, n)`: only records whose number is i modulo n are decoded. The checksums of all
            records are verified.
        context_keys: Further context features of one value each, returned as `context`.
        sound: Returns whether an id is usable; a record with an unusable one is faulty.
        check_ends: Whether a record is faulty if one of its rated segments ends elsewhere than
            `schema.segment_size` frames after its start or at the end of the video.

    Yields:
        The records.

    Raises:
        RecordError: The file cannot be read, or a record is damaged or not as expected.
        ValueError: An argument is out of range.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from pyseg.data import encode_frames, write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "rated.tfrecord")
        >>> frames = np.full((12, 1152), 7, dtype=np.uint8)
        >>> ratings = Ratings(np.array([0, 5]), np.array([4, 4]), np.array([1.0, 0.0]))
        >>> write_records(path, [encode_frames("06xy", frames, [4], ratings)])
        1
        >>> [record] = read_frames(path, max_frames=10)
        >>> record.frames.shape, record.ratings.starts, record.ratings.scores
        ((10, 1152), array([0, 5]), array([1., 0.], dtype=float32))
    """
    if max_frames is not None and not (
        isinstance(max_frames, (int, np.integer)) and max_frames >= 1
    ):
        raise ArgumentError(
            f"max_frames: expected a whole number of at least 1, or None, found {max_frames}"
        )
    decoder = engine().FrameDecoder(
        *_encoded(schema),
        schema.segment_size,
        max_frames or 0,
        [key.encode() for key in context_keys],
    )

    def records(file: RecordFile) -> Iterator[FrameRecord]:
        while (record := file.take("next_frames", decoder)) is not None:
            name, frames, labels, rated, extra, unlabelled = record
            if check_ends and rated is not None and len(misfit := rated[-1]):
                start, end = misfit.tolist()
                file.refuse(
                    f"expected rated segments of {schema.segment_size} frames, found one of "
                    f"{end - start}, from frame {start} to {end}"
                )
                continue
            if sound is not None and not sound(name):
                found = quote(name.encode())
                file.refuse(f"expected an id of one line without control characters, found {found}")
                continue
            file.report.records += 1
            file.report.unlabelled += unlabelled
            ratings = None if rated is None else _ratings(rated, file.report)
            context = dict(zip(context_keys, extra, strict=True))
            yield FrameRecord(name, frames, labels, ratings, context)

    return _read(path, on_error, report, shard, records)


def _encoded(schema: FrameSchema | VideoSchema) -> tuple[list[tuple[bytes, int]], bytes, bytes]:
    """Returns features, id and labels as the decoders take them; no name stands for no labels."""
    features = [(name.encode(), width) for name, width in schema.features]
    return features, schema.id_key.encode(), (schema.labels_key or "").encode()


def _ratings(rated: RatingTuple, report: ReadReport) -> Ratings:
    """Returns the ratings that an engine found, and counts its repairs."""
    starts, classes, scores, dropped, cut, duplicates, _ = rated
    report.dropped_segments += dropped
    report.cut_segments += cut
    report.duplicate_ratings += duplicates
    return Ratings(starts, classes, scores)


def read_videos(
    path: PathLike,
    schema: VideoSchema = VideoSchema(),  # noqa: B008 - immutable
    *,
    block: int = 1024,
    on_error: str = "raise",
    report: ReadReport | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[VideoRecords]:
    """Reads video-level records in blocks.

    They are tf.Example, or tf.SequenceExample with the values in context features.

    Args:
        path: A TFRecord file, plain or gzip-compressed, or its URL.
        schema: The names of the features.
        block: Records per block; only the last block of a file may have fewer.
        on_error: As for `read_frames`. "raise" yields the records before the faulty one first.
        report: As for `read_frames`.
        shard: As for `read_frames`.

    Yields:
        Blocks of at least one record.

    Raises:
        RecordError: The file cannot be read, or a record is damaged or not as expected.
        ValueError: An argument is out of range.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from pyseg.data import encode_video, write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "video.tfrecord")
        >>> features = np.zeros(1152, dtype=np.float32)
        >>> write_records(path, [encode_video(name, features, [1, 5]) for name in ("a", "b")])
        2
        >>> [videos] = read_videos(path)
        >>> videos.ids, videos.features.shape, videos.label_offsets, videos.labels
        (['a', 'b'], (2, 1152), array([0, 2, 4]), array([1, 5, 1, 5]))
    """
    if block < 1:
        raise ArgumentError(f"block: expected at least 1 record, found {block}")
    decoder = engine().VideoDecoder(*_encoded(schema))

    def records(file: RecordFile) -> Iterator[VideoRecords]:
        more = True
        while more:
            videos = decoder.block(block)
            error = None
            try:
                more = bool(file.take("fill", videos))
            except RecordError as found:
                error, more = found, False
            if len(videos):
                file.report.records += len(videos)
                file.report.unlabelled += videos.unlabelled
                yield VideoRecords(*videos.columns())
            if error is not None:
                raise error

    return _read(path, on_error, report, shard, records)


def _read(
    path: PathLike,
    on_error: str,
    report: ReadReport | None,
    shard: tuple[int, int],
    records: Callable[[RecordFile], Iterator[_Result]],
) -> Iterator[_Result]:
    """Checks the arguments of all readers immediately; reads when iteration starts."""
    name = path_text(path, remote=True)
    check_on_error(on_error)
    index, count = shard
    if not 0 <= index < count:
        raise ArgumentError(
            f"shard: expected (index, count) with 0 <= index < count, found {shard}"
        )

    def generate() -> Iterator[_Result]:
        filled = ReadReport() if report is None else report
        with RecordFile(name, on_error, filled, (index, count)) as file:
            yield from records(file)
        if report is None:
            filled.warn(name)

    return generate()
