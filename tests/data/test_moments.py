"""frame_moments: mean and deviation against NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pyseg.data import Example, FeatureSet, frame_moments
from pyseg.errors import ArgumentError, DataError

FEATURES = FeatureSet((("a", 3), ("b", 2)), ranges=((-0.2, 0.3), (0.0, 30.0)))


def examples(dtype: type, number: int = 20) -> Iterator[Example]:
    random = np.random.default_rng(0)
    for index in range(number):
        frames = random.integers(0, 256, (index % 4, 5)).astype(dtype)
        frames[:, 1] = 7
        if dtype is not np.uint8:
            frames = frames + np.float32(1e4)
        yield Example(f"v{index}", frames, np.array([0]), np.array([1], np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_is_numpys(dtype: type) -> None:
    mean, deviation = frame_moments(examples(dtype), FEATURES)
    rows = np.concatenate([example.frames for example in examples(dtype)])
    if dtype is np.uint8:
        limits = np.repeat(np.array(FEATURES.ranges), FEATURES.feature_sizes, axis=0)
        low, high = limits.T
        rows = rows * (high - low) / 255 + low + (high - low) / 512
    expected = rows.std(0, dtype=np.float64)
    if dtype is np.uint8:  # a constant keeps the deviation of rounding
        expected[1] = 0.5 / 255 / 12**0.5
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(deviation, expected, rtol=1e-10, atol=0)
    assert mean.dtype == deviation.dtype == np.float64


def test_reads_no_more_than_it_needs() -> None:
    read = []

    def watched() -> Iterator[Example]:
        for example in examples(np.uint8):
            read.append(len(example.frames))
            yield example

    found = frame_moments(watched(), FEATURES, most_frames=4)
    assert read == [0, 1, 2, 3]
    rows = np.concatenate([example.frames for example in examples(np.uint8)])
    whole = Example("all", rows[:4], np.array([0]), np.array([1], np.float32))
    np.testing.assert_array_equal(found, frame_moments([whole], FEATURES))


def test_bad_examples() -> None:
    with pytest.raises(ArgumentError, match="examples: expected at least one frame, found none"):
        frame_moments(examples(np.uint8, 1), FEATURES)
    wrong = Example("film a", np.zeros((2, 4), np.uint8), np.array([0]), np.array([1], np.float32))
    with pytest.raises(DataError, match=r"film a: expected frames of width 5, found .*\(2, 4\)"):
        frame_moments([wrong], FEATURES)
    frames = np.zeros((2, 5), np.float32)
    frames[1, 2] = np.nan
    with pytest.raises(DataError, match="film a: expected finite frames, found NaN"):
        frame_moments([wrong._replace(frames=frames)], FEATURES)
