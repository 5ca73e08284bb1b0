"""Videos cut into segments, for scoring all segments instead of only the rated ones.

See :func:`read_segments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from pyseg.data.formats import id_key
from pyseg.data.records import FrameSchema, OnError, ReadReport, read_frames

UNRATED_ENDS = (6, 2)
"""Segments at either end of a video that YouTube-8M's raters were never shown."""

Item = TypeVar("Item")


class SegmentBlock(NamedTuple):
    """Some whole videos in the order of reading, cut into S segments.

    Attributes:
        ids: V ids.
        videos: V arrays (T, N) uint8: all frames of each video.
        offsets: (V + 1,) int64: video v has the segments ``offsets[v]`` to ``offsets[v + 1]``.
        starts: (S,) int64, the first frame of each segment.
        frames: (S, segment size, N) uint8, 0 past ``num_frames``.
        num_frames: (S,) int64, at least 1; less than the segment size only in a video's last
            segment.
        position: The shard, and the number of its records that have been read: where to resume.
    """

    ids: list[str]
    videos: list[np.ndarray]
    offsets: np.ndarray
    starts: np.ndarray
    frames: np.ndarray
    num_frames: np.ndarray
    position: tuple[int, int]


def read_segments(
    paths: Sequence[str],
    schema: FrameSchema,
    size: int,
    *,
    skip: tuple[int, int] = (0, 0),
    keep: Callable[[str], bool] | None = None,
    sound: Callable[[str], bool] | None = None,
    start: tuple[int, int] = (0, 0),
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> Iterator[SegmentBlock]:
    """Yields all segments of all videos: frames 0 to 4, 5 to 9, ..., and a last, shorter one.

    Args:
        paths: Shards.
        schema: The names of the features, except the id's, which is looked up in each shard; and
            the length of a segment.
        size: Segments per block; as a block holds whole videos, it may have more, the last one
            fewer.
        skip: The numbers of segments to leave out at the start and the end of every video, for
            example `UNRATED_ENDS`.
        keep: Returns whether to cut a video, by id; default: all.
        sound: See `pyseg.data.read_frames`.
        start: The ``position`` of the last processed block; reading resumes after it.
        on_error: See `pyseg.data.read_frames`.
        report: See `pyseg.data.read_frames`.

    Raises:
        pyseg.errors.RecordError: A record is faulty.

    Example:
        >>> from pyseg.data import find_shards
        >>> from pyseg.data.sample import make_sample
        >>> shards = find_shards(make_sample() / "validate")
        >>> block = next(read_segments(shards, FrameSchema(), 100))
        >>> block.frames.shape[1:], block.starts[:3].tolist()
        ((5, 1152), [0, 5, 10])
    """
    ids: list[str] = []
    videos: list[np.ndarray] = []
    counts: list[int] = []
    position = start

    def block() -> SegmentBlock:
        return _cut(ids, videos, schema.segment_size, skip, position)

    for shard in range(start[0], len(paths)):
        position = (shard, start[1] if shard == start[0] else 0)
        done = position[1]
        known = replace(schema, id_key=id_key(paths[shard], schema.id_key))
        for number, record in enumerate(
            read_frames(paths[shard], known, on_error=on_error, report=report, sound=sound), 1
        ):
            if number <= done:
                continue
            position = (shard, number)
            if keep is None or keep(record.id):
                ids.append(record.id)
                videos.append(record.frames)
                counts.append(-(-len(record.frames) // schema.segment_size))
            if sum(counts) >= size:
                yield block()
                ids, videos, counts = [], [], []
    if ids:
        yield block()


def _cut(
    ids: list[str],
    videos: list[np.ndarray],
    size: int,
    skip: tuple[int, int],
    position: tuple[int, int],
) -> SegmentBlock:
    first, last = skip
    spans = []  # the first segment of every video, and the end of the last
    for video in videos:
        count = -(-len(video) // size)
        spans.append((first, max(first, count - last)))
    offsets = np.cumsum([0, *(end - begin for begin, end in spans)])
    frames = np.zeros((offsets[-1], size, videos[0].shape[1]), videos[0].dtype)
    num_frames = np.full(offsets[-1], size, np.int64)
    starts = np.empty(offsets[-1], np.int64)
    for video, (begin, end), at in zip(videos, spans, offsets[:-1], strict=True):
        if begin == end:
            continue
        rows = video[begin * size : end * size]
        frames[at : at + end - begin].reshape(-1, video.shape[1])[: len(rows)] = rows
        num_frames[at + end - begin - 1] = len(rows) - (end - begin - 1) * size
        starts[at : at + end - begin] = np.arange(begin, end) * size
    return SegmentBlock(ids, videos, offsets, starts, frames, num_frames, position)
