"""Batches from worker processes, and what becomes of these."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    loader,
)
from pyseg.data.loading import worker_errors
from pyseg.errors import RecordError, WorkerError

from .conftest import Frames

pytestmark = [
    # More workers than processors: asked for.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # Python 3.12 on: torch's threads are not used in the forked workers.
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


def test_bad_loader_options(frame_shards) -> None:
    dataset = Frames(frame_shards([1]))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        loader(dataset, 0)
    with pytest.raises(ValueError, match="workers: expected 0 to 128, found 129"):
        loader(dataset, 1, workers=129)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("unable to allocate shared memory(shm) for file </t>", "found too little in /dev/shm"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. ", "--shm-size"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", r"a signal \(Killed\)"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "ended unexpectedly"),
    ],
)
def test_what_becomes_of_workers(told: str, message: str) -> None:
    with pytest.raises(WorkerError, match=f"^--workers: .*{message}"), worker_errors():
        raise RuntimeError(told)


@pytest.mark.parametrize("error", [RuntimeError("size of tensor"), ConnectionResetError("x")])
def test_other_errors_are_not_the_workers(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), worker_errors():
        raise error


def test_the_error_of_a_worker_is_its_line(frame_shards) -> None:
    """Without the worker's traceback, which torch puts before it; that is the cause's."""
    [shard] = frame_shards([6])
    data = Path(shard).read_bytes()
    Path(shard).write_bytes(data[:-1])
    with pytest.raises(RecordError) as alone:
        list(loader(Frames([shard]), 3))
    with pytest.raises(RecordError) as raised:
        list(loader(Frames([shard]), 3, workers=1))
    assert str(raised.value) == str(alone.value)
    assert "\n" not in str(raised.value)
    assert "in DataLoader worker" in str(raised.value.__cause__)


def test_batches_from_workers_are_whole(frame_shards) -> None:
    shards = frame_shards([6, 5])
    expected = {example.id: example for example in Frames(shards)}
    for batch in loader(Frames(shards), 3, workers=2, frames=10):
        assert batch.frames.shape[1:] == (10, 5)
        for row, id in enumerate(batch.ids):
            length = len(expected[id].frames)
            assert np.array_equal(batch.frames[row, :length].numpy(), expected[id].frames)
            assert not batch.frames[row, length:].any()
            labels = batch.classes[batch.offsets[row] : batch.offsets[row + 1]]
            assert labels.tolist() == expected[id].classes.tolist()


def test_a_waiting_batch_holds_one_file(frame_shards) -> None:
    """Batches that pile up soon meet the limit of open files, often 1,024."""
    dataset = Frames(frame_shards([150]), cache=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with_room = len(list(Path("/proc/self/fd").iterdir())) + 220
    resource.setrlimit(resource.RLIMIT_NOFILE, (with_room, limits[1]))
    try:
        batches = list(loader(dataset, 1, workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(batches) == 150
