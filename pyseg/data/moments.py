"""Mean and standard deviation of each dimension of frames.

See :func:`frame_moments`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pyseg.data.batch import Example
from pyseg.data.features import FeatureSet
from pyseg.errors import ArgumentError, DataError
from pyseg.ops.frames import values_of_bytes

# What rounding to steps of 1 adds to a deviation: that of a uniform distribution of width 1.
_ROUNDING = 12**-0.5


def frame_moments(
    examples: Iterable[Example], features: FeatureSet, *, most_frames: int = 200_000
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the mean and the standard deviation of each dimension of dequantised frames.

    They are the arguments ``mean`` and ``deviation`` of `pyseg.nn.FrameNormalization`. Examples are
    read one by one, only until there are enough frames: of a shuffled data set these are a random
    sample, which its seed determines. Sums are in float64, those of bytes exact.

    Bytes are rounded values, and rounding alone has a deviation of 1/sqrt(12) steps. No dimension
    of bytes gets a smaller one: of a dimension that hardly varies, dividing by less would make one
    step as large as the outliers of others.

    Args:
        examples: Videos or segments, such as ``collection.videos("train", shuffle=True, seed=0)``;
            bytes, or values as they are.
        features: What the bytes stand for.
        most_frames: Frames to use, from the start.

    Returns:
        Mean and deviation, (N,) each, in the units of the values.

    Raises:
        pyseg.errors.ArgumentError: There is no frame.
        pyseg.errors.DataError: A value is not finite, or frames have another width; the message
            names the example.

    Example:
        >>> features = FeatureSet((("clip", 2),), ranges=((0.0, 255.0),))
        >>> frames = np.array([[10, 7], [30, 7]], np.uint8)
        >>> example = Example("a", frames, np.array([0]), np.array([1.0], np.float32))
        >>> mean, deviation = frame_moments([example], features)
        >>> mean.round(2).tolist(), deviation.round(2).tolist()
        ([20.5, 7.5], [10.0, 0.29])
    """
    width = sum(features.feature_sizes)
    count = 0
    start: npt.NDArray[np.float64] | None = None  # near the mean, so that no digits cancel
    sums = np.zeros((2, width))
    stored = True
    for example in examples:
        frames = example.frames[: most_frames - count]
        if frames.shape[1:] != (width,):
            raise DataError(
                f"{example.id}: expected frames of width {width}, found shape {frames.shape}"
            )
        if not len(frames):
            continue
        if start is None:
            stored = frames.dtype == np.uint8
            start = np.zeros(width) if stored else frames[0].astype(np.float64)
        x = frames - start
        if not np.isfinite(x).all():
            raise DataError(f"{example.id}: expected finite frames, found NaN or infinite values")
        sums += x.sum(0), np.square(x).sum(0)
        count += len(frames)
        if count >= most_frames:
            break
    if start is None:
        raise ArgumentError("examples: expected at least one frame, found none")
    mean = sums[0] / count
    # Not a difference of two means of squares: the sums of bytes are whole numbers.
    deviation = np.sqrt(np.maximum(count * sums[1] - sums[0] ** 2, 0.0)) / count
    if not stored:
        return start + mean, deviation
    step, offset = values_of_bytes(*features.limits(np.float64))
    return offset + step * mean, step * np.maximum(deviation, _ROUNDING)
