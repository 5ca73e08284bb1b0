"""The segments that questions can be about; see `Pool`."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyseg._progress import Progress
from pyseg.data import FeatureSet, find_shards
from pyseg.data.collection import find_data
from pyseg.data.formats import frames_of
from pyseg.data.hashing import held_out
from pyseg.data.records import OnError, ReadReport
from pyseg.data.segments import read_segments
from pyseg.errors import DataError

_BLOCK = 4096  # segments read or summed at once

# The deviation that rounding to whole bytes adds: that of a uniform distribution of width 1.
_ROUNDING = 12**-0.5


@dataclass(frozen=True)
class Pool:
    """All segments of some videos, in the order of videos and time.

    Only the means of segments are in memory: 4 * N bytes a segment, 0.9 GB for 200,000 segments of
    YouTube-8M's 1,152 values.

    Attributes:
        ids: The ids of the V videos.
        videos: (S,) int64, the place in ``ids`` of each segment's video; not decreasing.
        starts: (S,) int64, the first frame of each segment.
        num_frames: (S,) int64, the frames of each segment: ``features.segment_size``, or fewer in
            the last segment of a video.
        means: (S, N) float32, the mean of each segment's dequantised frames, standardised: the
            mean of a column over all segments is 0, its standard deviation 1, or less in a column
            that hardly varies.
        class_names: The names of the C classes.
        features: What the frames are: the duration of a frame, the frames of a segment.

    Example:
        >>> from pyseg.data.sample import make_sample
        >>> pool = Pool.read(make_sample() / "validate", ["car", "sun"])
        >>> pool.means.shape[1], pool.times(1)
        (1152, (5.0, 10.0))
        >>> pool.find(pool.ids[0], 5.0, 10.0)
        1
    """

    ids: Sequence[str]
    videos: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    num_frames: npt.NDArray[np.int64]
    means: npt.NDArray[np.float32]
    class_names: Sequence[str]
    features: FeatureSet

    @staticmethod
    def read(
        data: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        ids: Collection[str] | None = None,
        on_error: OnError = "raise",
    ) -> Pool:
        """Reads all segments of videos from records of frames, with labels or without.

        Args:
            data: The records: a folder, a glob, a file or a registered source.
            class_names: The names of the C classes that can be asked about.
            ids: The ids of the videos to read; default: all. Of records with the same id only the
                first is read.
            on_error: "raise" an error at a damaged record, or "skip" it.

        Raises:
            pyseg.errors.DataError: The records hold something else than frames, or no video has
                one of ``ids``.
            pyseg.errors.RecordError: A record is faulty.
            FileNotFoundError: There is nothing at ``data``.
        """
        place = find_data(data)
        shards = find_shards(place)
        features = frames_of(place, shards, on_error)
        wanted = None if ids is None else set(ids)
        seen: set[str] = set()

        def keep(id: str) -> bool:
            new = id not in seen and (wanted is None or id in wanted)
            seen.add(id)
            return new

        read: list[str] = []
        videos, starts, num_frames, means = [], [], [], []
        report = ReadReport()
        with Progress("reading segments", "videos") as bar:
            for block in read_segments(
                shards, features.schema, _BLOCK, keep=keep, on_error=on_error, report=report
            ):
                counts = np.diff(block.offsets)
                videos.append(np.repeat(np.arange(len(block.ids)) + len(read), counts))
                read += block.ids
                starts.append(block.starts)
                num_frames.append(block.num_frames)
                sums = block.frames.sum(1, dtype=np.float32)  # exact; 0 past the last frame
                means.append(sums / block.num_frames[:, None].astype(np.float32))
                bar.update(len(block.ids))
        report.warn("Pool.read")
        if not read:
            which = "" if wanted is None else f" with one of the {len(wanted)} ids"
            raise DataError(f"{os.fspath(data)}: expected a video{which}, found none")
        # Bytes stand for values by an increasing linear map a column, which standardising undoes.
        least = _ROUNDING / features.segment_size**0.5
        return Pool(
            ids=read,
            videos=np.concatenate(videos),
            starts=np.concatenate(starts),
            num_frames=np.concatenate(num_frames),
            means=standardize(means, least),
            class_names=list(class_names),
            features=features,
        )

    def __len__(self) -> int:
        """Returns the number of segments S."""
        return len(self.starts)

    def video_of(self, segment: int) -> str:
        """Returns the id of a segment's video."""
        return self.ids[self.videos[segment]]

    def times(self, segment: int) -> tuple[float, float]:
        """Returns the start and the end of a segment in seconds."""
        start = int(self.starts[segment])
        end = start + int(self.num_frames[segment])
        return start * self.features.frame_seconds, end * self.features.frame_seconds

    def neighbors(self, segment: int) -> list[int]:
        """Returns the segments right before and after a segment in its video."""
        found = [other for other in (segment - 1, segment + 1) if 0 <= other < len(self)]
        return [other for other in found if self.videos[other] == self.videos[segment]]

    def find(self, id: str, start: float, end: float) -> int | None:
        """Returns the segment of a video with these times, or None if there is none.

        Args:
            id: The id of the video.
            start: The start in seconds; it and the end may be off by less than half a frame.
            end: The end in seconds.
        """
        video = self._places.get(id)
        if video is None:
            return None
        first, last = np.searchsorted(self.videos, [video, video + 1])
        seconds = self.features.frame_seconds
        starts = self.starts[first:last]
        off = np.maximum(
            abs(starts - start / seconds), abs(starts + self.num_frames[first:last] - end / seconds)
        )
        found = np.flatnonzero(off < 0.5)
        return int(first + found[0]) if len(found) else None

    def held_out(self, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
        """Returns (S,) bool, the segments of the videos that training holds out.

        Args:
            fraction: The fraction of the videos.
            seed: The seed of the split, see `pyseg.data.held_out`.
        """
        chosen = np.array([held_out(id, fraction, seed) for id in self.ids], np.bool_)
        return chosen[self.videos]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}


def standardize(blocks: list[npt.NDArray[np.float32]], least: float) -> npt.NDArray[np.float32]:
    """Returns the rows of all blocks, standardised by column; empties the list.

    Args:
        blocks: Arrays (rows, N).
        least: The least deviation to divide by, above 0: that of a column which hardly varies.

    Returns:
        (S, N) float32.

    Example:
        >>> standardize([np.float32([[1, 7], [3, 7]])], 0.5).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    rows = np.empty((sum(map(len, blocks)), blocks[0].shape[1]), np.float32)
    at = len(rows)
    while blocks:  # each is freed once it is copied
        block = blocks.pop()
        at -= len(block)
        rows[at : at + len(block)] = block
    parts = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(rows)
    for part in parts:
        part -= mean
    squares = sum(np.square(part).sum(0, dtype=np.float64) for part in parts) / len(rows)
    scale = 1 / np.maximum(np.sqrt(squares), least)
    for part in parts:
        part *= scale
    return rows
