"""What the native module has to take care of beyond the reference: memory, and Python's errors."""

from __future__ import annotations

import gc
import io
from types import SimpleNamespace

import numpy as np
import pytest

from pyseg import _ext
from pyseg.data import FrameSchema, encode_frames, read_frames, write_records

from .conftest import needs_native
from .encoding import framed

pytestmark = needs_native


def frames_of(path, count: int, width: int) -> np.ndarray:
    """Writes one record of random bytes, and returns what is read of it."""
    schema = FrameSchema(features=(("rgb", width),))
    frames = np.random.default_rng(0).integers(0, 256, (count, width), dtype=np.uint8)
    write_records(path, [encode_frames("a", frames, [], schema=schema)])
    [record] = read_frames(path, schema)
    assert np.array_equal(record.frames, frames)
    return record.frames


@pytest.mark.parametrize("count", [3, 300])
def test_frames_are_writable_and_outlive_their_reader(tmp_path, count):
    """Small frames lie in memory of Python, large ones in the pool."""
    frames = frames_of(tmp_path / "a", count, 1024)
    before = frames.copy()
    gc.collect()
    others = [frames_of(tmp_path / "b", count, 1024) for _ in range(3)]
    assert frames.flags.c_contiguous
    assert frames.flags.aligned
    frames += 1
    assert np.array_equal(frames, before + 1)
    assert all(np.array_equal(other, before) for other in others)


def test_memory_of_dropped_frames_is_used_again(tmp_path):
    first = frames_of(tmp_path / "a", 300, 1024)
    place = first.ctypes.data
    view = first[5:]
    del first
    assert frames_of(tmp_path / "a", 300, 1024).ctypes.data != place, "a view is still there"
    del view
    assert place in [frames_of(tmp_path / "a", 300, 1024).ctypes.data for _ in range(2)]


def test_an_interrupted_source_ends_with_its_exception():
    class Source:
        def readinto(self, buffer):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _ext.records.Reader(Source()).next_record(0, 1)


@pytest.mark.parametrize("answer", [1 << 40, -1, "much"])
def test_a_source_that_lies_about_what_it_read(answer):
    class Source:
        def readinto(self, buffer):
            return answer

    with pytest.raises((ValueError, OverflowError, TypeError)):
        _ext.records.Reader(Source()).next_record(0, 1)


def test_wrong_arguments_are_errors_of_python():
    records = _ext.records
    reader = records.Reader(SimpleNamespace(readinto=io.BytesIO(framed(b"one")).readinto))
    decoder = records.VideoDecoder([(b"mean_rgb", 4)], b"id", b"labels")
    with pytest.raises(TypeError):
        reader.next_frames(decoder, 0, 1)
    with pytest.raises(ValueError, match="count: expected at least 1, found 0"):
        reader.next_record(0, 0)
    with pytest.raises(TypeError):
        records.VideoDecoder([("mean_rgb", 4)], b"id", b"labels")
    with pytest.raises((MemoryError, ValueError)):
        decoder.block(2**61)
    with pytest.raises(AttributeError, match="readinto"):
        records.Reader(object())
    for name in ("VideoBlock", "Block"):
        with pytest.raises(TypeError, match="cannot create"):
            getattr(records, name)()
