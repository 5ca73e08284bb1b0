"""Small record files for the tests of data sets, and what is in these."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    FrameDataset,
    FrameSchema,
    Ratings,
    SegmentDataset,
    VideoDataset,
    VideoSchema,
    encode_frames,
    encode_video,
    loader,
    write_records,
)

FRAMES = FrameSchema(features=(("rgb", 3), ("audio", 2)))
VIDEOS = VideoSchema(features=(("mean_rgb", 3), ("mean_audio", 2)))
Frames = functools.partial(FrameDataset, schema=FRAMES)
Segments = functools.partial(SegmentDataset, schema=FRAMES)
Videos = functools.partial(VideoDataset, schema=VIDEOS)


def ids(dataset) -> list[str]:
    return [example.id for example in dataset]


def loaded_ids(dataset, batch_size: int = 4, workers: int = 0) -> list[list[str]]:
    return [batch.ids for batch in loader(dataset, batch_size, workers=workers)]


def flat(batches: list[list[str]]) -> list[str]:
    return [id for batch in batches for id in batch]


def keep_even(id: str) -> bool:
    return int(id[-1]) % 2 == 0


def ratings_of(rows: Sequence[tuple[int, int, float]]) -> Ratings:
    """Ratings from (start, class, score)."""
    starts, classes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Ratings(
        np.array(starts, np.int64), np.array(classes, np.int64), np.array(scores, np.float32)
    )


@pytest.fixture
def frame_shards(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes shards of `counts` videos; video v of shard s, "s<s>v<v>", has 3 + v % 5 frames."""

    def write(counts: Sequence[int], rated: bool = False) -> list[Path]:
        paths = []
        for shard, count in enumerate(counts):
            records = []
            for video in range(count):
                length = 3 + video % 5
                frames = np.full((length, FRAMES.width), shard, np.uint8)
                frames[:, 0] = np.arange(length)
                labels = [video % 7, 7 + shard]
                ratings = ratings_of([(0, video % 7, 1.0), (2, 7 + shard, 0.0)]) if rated else None
                records.append(encode_frames(f"s{shard}v{video}", frames, labels, ratings, FRAMES))
            path = tmp_path / f"train{shard:04d}.tfrecord"
            write_records(path, records, compress=shard % 2 == 1)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def video_shards(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes shards of `counts` video-level records, as `frame_shards` names them."""

    def write(counts: Sequence[int]) -> list[Path]:
        paths = []
        for shard, count in enumerate(counts):
            records = [
                encode_video(f"s{shard}v{video}", np.full(5, video / 4), [video % 7], VIDEOS)
                for video in range(count)
            ]
            path = tmp_path / f"video{shard:04d}.tfrecord"
            write_records(path, records)
            paths.append(path)
        return paths

    return write
