"""Any byte changed, any length cut: the same records or a clear error."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from pyseg.data.records import (
    read_frames,
    read_videos,
    write_records,
)

from .conftest import FULL
from .encoding import SMALL, outcome, same, sample_frames


def check_faults(data: bytes, path: Path, read, corruptions: int, truncations: int, seed=0) -> None:
    """Any single byte changed, any length cut: the same records, or a clear error. Nothing else.

    A plain file that is cut right between two records is a good file of fewer records.
    """
    rng = random.Random(seed)
    ends = []
    if data[:2] != b"\x1f\x8b":
        end = 0
        while end < len(data):
            end += int.from_bytes(data[end : end + 8], "little") + 16
            ends.append(end)
    path.write_bytes(data)
    whole, error = outcome(read, path)
    assert error is None
    assert whole
    for trial in range(corruptions + truncations):
        spoilt = bytearray(data)
        if trial < corruptions:
            at = rng.randrange(len(data))
            spoilt[at] ^= rng.randrange(1, 256)
            what = f"byte {at} set to {spoilt[at]:#x}"
        else:
            del spoilt[rng.randrange(len(data)) :]
            what = f"cut to {len(spoilt)} bytes"
        path.write_bytes(spoilt)
        found, error = outcome(read, path)
        assert same(found, whole[: len(found)]), what
        if error is None and len(spoilt) in ends:
            assert len(found) == ends.index(len(spoilt)) + 1, what
        elif error is None:
            assert len(found) == (len(whole) if spoilt else 0), what
        else:
            assert error.startswith(f"{path}: record "), (what, error)
            assert ": expected " in error or "malformed" in error, (what, error)


@pytest.mark.parametrize("compress", [False, True])
def test_faults_in_frames(engine, tmp_path, compress):
    write_records(tmp_path / "good", sample_frames(8), compress=compress)
    data = (tmp_path / "good").read_bytes()
    check_faults(
        data,
        tmp_path / "spoilt",
        lambda path: read_frames(path, SMALL),
        *((2000, 500) if FULL else (300, 100)),
    )


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["frame", "video"])
def test_faults_in_real_data(shared, tmp_path, name, compress):
    """The shards as they were published, and the same with the compression swapped."""
    if name == "frame":
        data = (shared / "data/yt8m/frame_level_example.tfrecord").read_bytes()
        data = gzip.compress(data) if compress else data
        read = read_frames
    else:
        data = (shared / "data/yt8m/video_level_validate0000.tfrecord.gz").read_bytes()
        data = data if compress else gzip.decompress(data)

        def read(path):  # record by record, so that what came before a fault can be compared
            for block in read_videos(path, block=1):
                yield tuple(block)

    check_faults(data, tmp_path / "spoilt", read, *((2000, 500) if FULL else (40, 10)))
