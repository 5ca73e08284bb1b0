"""Pools: segments read from records of any format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    FeatureSet,
    FrameSchema,
    RecordWarning,
    encode_frames,
    encode_video,
    write_records,
)
from pyseg.errors import DataError, RecordError
from pyseg.rate.pool import Pool, standardize

CLIP = FeatureSet((("clip", 4),), 0.5, 4, ranges=((-0.5, 3.5),))


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Three described videos of 8, 10 and 3 frames, without labels; the last column is constant."""
    rng, records = np.random.default_rng(0), []
    for id, length in (("long one", 8), ("longer", 10), ("short", 3)):
        frames = rng.integers(0, 256, (length, 4), np.uint8)
        frames[:, 3] = 7
        records.append(encode_frames(id, frames, [], schema=CLIP.schema))
    write_records(tmp_path / "videos-00000.tfrecord", records[:2])
    write_records(tmp_path / "videos-00001.tfrecord", records[1:])  # "longer" again
    CLIP.write(tmp_path / "features.json")
    return tmp_path


def test_segments_of_unlabelled_videos(unlabelled: Path) -> None:
    pool = Pool.read(unlabelled, ["a", "b"])
    assert pool.ids == ["long one", "longer", "short"]
    assert pool.videos.tolist() == [0, 0, 1, 1, 1, 2]
    assert pool.starts.tolist() == [0, 4, 0, 4, 8, 0]
    assert pool.num_frames.tolist() == [4, 4, 4, 4, 2, 3]
    assert pool.features == CLIP
    assert pool.class_names == ["a", "b"]
    assert pool.times(4) == (4.0, 5.0)
    assert pool.neighbors(2) == [3]
    assert pool.neighbors(3) == [2, 4]


def test_means_are_standardised(unlabelled: Path) -> None:
    from pyseg.data import find_shards, read_frames

    records = {
        record.id: record.frames
        for path in find_shards(unlabelled)
        for record in read_frames(path, CLIP.schema)
    }
    pool = Pool.read(unlabelled, ["a"])
    rows = []
    for video, start, length in zip(pool.videos, pool.starts, pool.num_frames, strict=True):
        frames = records[pool.ids[video]][start : start + length]
        rows.append(CLIP.dequantize(frames).mean(0))
    expected = np.array(rows, np.float64)[:, :3]
    expected = (expected - expected.mean(0)) / expected.std(0)
    np.testing.assert_allclose(pool.means[:, :3], expected, atol=1e-5)
    assert pool.means.dtype == np.float32
    assert not pool.means[:, 3].any()


def test_a_column_that_hardly_varies_stays_small() -> None:
    column = np.zeros((1000, 1), np.float32)
    column[5] = 0.2  # one byte of one frame
    assert standardize([column], 0.1).max() < 2.1


def test_chosen_videos(unlabelled: Path) -> None:
    assert Pool.read(unlabelled, ["a"], ids={"short", "longer"}).ids == ["longer", "short"]
    with pytest.raises(DataError, match="expected a video with one of the 1 ids, found none"):
        Pool.read(unlabelled, ["a"], ids=["other"])


def test_find(unlabelled: Path) -> None:
    pool = Pool.read(unlabelled, ["a"])
    for segment in range(len(pool)):
        video = pool.ids[pool.videos[segment]]
        start, end = pool.times(segment)
        assert pool.find(video, start + 0.1, end - 0.1) == segment
        assert pool.find(video, start, end + 0.3) is None
        assert pool.find(video, start + 1.0, end + 1.0) is None
    assert pool.find("other", 0.0, 2.0) is None


@pytest.mark.parametrize("name", ["rgb", "audio_embedding"])
def test_public_formats(tmp_path: Path, name: str) -> None:
    frames = np.arange(6, dtype=np.uint8)[:, None] * np.ones(1152, np.uint8)
    schema = FrameSchema()
    if name == "audio_embedding":
        frames, schema = frames[:, :128], FrameSchema((("audio_embedding", 128),), "video_id")
    write_records(tmp_path / "test0000.tfrecord", [encode_frames("ab", frames, [], schema=schema)])
    pool = Pool.read(tmp_path, ["a"])
    assert pool.num_frames.tolist() == [5, 1]
    assert pool.features.frame_seconds == (1.0 if name == "rgb" else 0.96)


def test_other_records_are_refused(tmp_path: Path) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-means"
    folder.mkdir()
    write_records(folder / "train0000.tfrecord", [encode_video("ab", np.zeros(1152), [3])])
    with pytest.raises(DataError, match="expected records of frames, found the features"):
        Pool.read(folder / "train0000.tfrecord", ["a"])
    with pytest.raises(FileNotFoundError):
        Pool.read(tmp_path / "nowhere", ["a"])


def test_damaged_records(unlabelled: Path) -> None:
    path = unlabelled / "videos-00000.tfrecord"
    content = bytearray(path.read_bytes())
    content[-20] ^= 255  # in the second record
    path.write_bytes(bytes(content))
    with pytest.raises(RecordError):
        Pool.read(unlabelled, ["a"])
    with pytest.warns(RecordWarning, match="skipped 1 record"):
        assert Pool.read(unlabelled, ["a"], on_error="skip").ids == ["long one", "longer", "short"]
