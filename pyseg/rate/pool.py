"""The segments that questions can be about; see `Pool`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyseg.data import FeatureSet


@dataclass(frozen=True)
class Pool:
    """All segments of some videos, in the order of videos and time.

    Attributes:
        ids: The ids of the V videos.
        videos: (S,) int64, the place in ``ids`` of each segment's video; not decreasing.
        starts: (S,) int64, the first frame of each segment.
        num_frames: (S,) int64, the frames of each segment: ``features.segment_size``, or fewer in
            the last segment of a video.
        means: (S, N) float32, the mean of each segment's dequantised frames, standardised: the
            mean of a column over all segments is 0, its standard deviation 1.
        class_names: The names of the C classes.
        features: What the frames are: the duration of a frame, the frames of a segment.
    """

    ids: Sequence[str]
    videos: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    num_frames: npt.NDArray[np.int64]
    means: npt.NDArray[np.float32]
    class_names: Sequence[str]
    features: FeatureSet

    def __len__(self) -> int:
        """Returns the number of segments S."""
        return len(self.starts)

    def times(self, segment: int) -> tuple[float, float]:
        """Returns the start and the end of a segment in seconds."""
        start = int(self.starts[segment])
        end = start + int(self.num_frames[segment])
        return start * self.features.frame_seconds, end * self.features.frame_seconds

    def neighbors(self, segment: int) -> list[int]:
        """Returns the segments right before and after a segment in its video."""
        found = [other for other in (segment - 1, segment + 1) if 0 <= other < len(self)]
        return [other for other in found if self.videos[other] == self.videos[segment]]
