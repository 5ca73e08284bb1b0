"""Memory that a data set shares with its copies in other processes."""

from __future__ import annotations

from multiprocessing import reduction
from pathlib import Path

import numpy as np
import pytest

from pyseg.data.memory import Counters, ExampleMemory

from .conftest import Frames


def remember(paths: list[Path]) -> ExampleMemory:
    return ExampleMemory(("shard", example.id, example) for example in Frames(paths))


def test_examples_are_where_the_memory_is(frame_shards) -> None:
    """What goes to another process has its tensors moved to shared memory."""
    memory = remember(frame_shards([5]))
    before = [memory[number].frames.copy() for number in range(len(memory))]
    reduction.ForkingPickler.dumps(memory)
    for number, expected in enumerate(before):
        found = memory[number].frames
        np.testing.assert_array_equal(found, expected)
        assert np.shares_memory(found, memory.frames.numpy())


def test_memory_is_contiguous_and_read_only(frame_shards) -> None:
    paths = frame_shards([4, 3])
    memory, examples = remember(paths), list(Frames(paths))
    assert len(memory) == len(examples)
    assert sum(len(example.frames) for example in examples) == len(memory.frames)
    for number, example in enumerate(examples):
        found = memory[number]
        assert found.id == example.id
        assert np.array_equal(found.frames, example.frames)
        assert found.classes.tolist() == example.classes.tolist()
        assert np.shares_memory(found.frames, memory.frames.numpy())
        with pytest.raises(ValueError, match="read-only"):
            found.frames[0] = 1


def test_frames_in_memory_are_not_in_the_heap(frame_shards) -> None:
    """There, they would be copied as they grow: in training the heap gives nothing back."""
    frames = remember(frame_shards([4])).frames
    maps = Path("/proc/self/maps").read_text().splitlines()
    files = [line.split()[0].split("-") for line in maps if "memfd:pyseg" in line]
    assert any(int(a, 16) <= frames.data_ptr() < int(b, 16) for a, b in files)


def test_counters_need_no_file_in_shared_memory() -> None:
    counters = Counters(3)
    tensors = [counters.epoch, counters.counts, counters.errors]
    assert not any(tensor.is_shared() for tensor in tensors)  # as torch shares it, by a file


def test_counters_add_up_what_the_workers_counted() -> None:
    counters = Counters(2)
    counters.write(0, [1, 2], None)
    counters.write(2, [10, 20], "größe " * 300)
    counters.write(3, [100, 200], "second")
    assert counters.total() == [111, 222]
    assert counters.error().startswith("größe größe")
    other = Counters(2)
    other.copy_counts(counters)
    counters.clear(1)
    assert (counters.total(), counters.error()) == ([1, 2], None)
    assert other.total() == [111, 222]
