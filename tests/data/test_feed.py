"""Feed: a resumed run sees the same batches as an uninterrupted one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pyseg.data import (
    Batch,
    Feed,
    FrameDataset,
    FrameSchema,
    Ratings,
    SegmentDataset,
    encode_frames,
    write_records,
)
from pyseg.data import feed as feeding
from pyseg.errors import DataError

SCHEMA = FrameSchema(features=(("f", 3),))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of 9, 4 and 6 videos of 6 frames; every second video has two rated segments."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    paths = []
    for shard, count in enumerate([9, 4, 6]):
        records = []
        for number in range(count):
            frames = rng.integers(0, 256, (6, 3), np.uint8)
            rated = Ratings(np.array([0, 5]), np.array([1, 2]), np.array([0.0, 1.0]))
            ratings = rated if number % 2 else None
            records.append(encode_frames(f"s{shard}v{number}", frames, [1], ratings, SCHEMA))
        paths.append(str(folder / f"{shard}.tfrecord"))
        write_records(paths[-1], records)
    return paths


def content(batch: Batch) -> tuple:
    return batch.ids, batch.frames.tolist(), batch.classes.tolist(), batch.scores.tolist()


OPTIONS = [
    {"shuffle": True, "buffer": 4},
    {"shuffle": True, "buffer": 1000},
    {"shuffle": False},
    {"shuffle": True, "cache": True},
    {"shuffle": True, "buffer": 5, "rank": 1, "world_size": 2},
    {"shuffle": True, "cache": True, "rank": 1, "world_size": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [FrameDataset, SegmentDataset])
def test_resuming_at_any_batch(shards: list[str], kind, options: dict) -> None:
    dataset = kind(shards, SCHEMA, repeat=True, seed=3, **options)
    feed = Feed(dataset, 4)
    expected, states = [], []
    for _ in range(16):  # several passes
        states.append(json.loads(json.dumps(feed.state())))
        expected.append(content(next(feed)))
    assert len({tuple(ids) for ids, *_ in expected}) > 4
    for at in range(0, 16, 3):
        again = Feed(dataset, 4, state=states[at])
        assert again.state() == states[at]
        assert [content(next(again)) for _ in range(16 - at)] == expected[at:]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_resuming_with_workers_that_had_read_ahead(
    shards: list[str], workers: int, cache: bool
) -> None:
    dataset = FrameDataset(shards, SCHEMA, repeat=True, shuffle=True, buffer=3, cache=cache)
    feed = Feed(dataset, 2, workers=workers)
    expected = [content(next(feed)) for _ in range(7)]
    state = feed.state()
    expected += [content(next(feed)) for _ in range(9)]
    again = Feed(dataset, 2, workers=workers, state=state)
    assert [content(next(again)) for _ in range(9)] == expected[7:]


def test_sampled_frames_are_the_same_again(shards: list[str]) -> None:
    options = {"sampling": "random-frames", "num_samples": 2, "buffer": 3}
    dataset = FrameDataset(shards, SCHEMA, repeat=True, shuffle=True, **options)
    feed = Feed(dataset, 5)
    for _ in range(6):
        next(feed)
    again = Feed(dataset, 5, state=feed.state())
    assert content(next(feed)) == content(next(again))


def test_cached_data_resume_with_any_number_of_workers(shards: list[str]) -> None:
    dataset = FrameDataset(shards, SCHEMA, repeat=True, shuffle=True, cache=True)
    feed = Feed(dataset, 4)
    for _ in range(6):
        next(feed)
    again = Feed(dataset, 4, workers=2, state=feed.state())
    assert [content(next(again)) for _ in range(3)] == [content(next(feed)) for _ in range(3)]


def test_another_number_of_workers_begins_the_next_pass(shards: list[str]) -> None:
    dataset = FrameDataset(shards, SCHEMA, repeat=True, shuffle=True)
    feed = Feed(dataset, 4)
    for _ in range(3):
        next(feed)
    again = Feed(dataset, 4, workers=2, state=feed.state())
    dataset.set_epoch(1)
    expected = Feed(dataset, 4, workers=2)
    # The next worker in turn has the fourth batch, number 3.
    found = [sorted(next(again).ids) for _ in range(4)]
    wanted = [sorted(next(expected).ids) for _ in range(4)]
    assert found == [wanted[k] for k in (1, 0, 3, 2)]
    assert again.state()["batches"] == 7


def test_states_that_do_not_fit(shards: list[str]) -> None:
    dataset = FrameDataset(shards, SCHEMA, repeat=True)
    state = Feed(dataset, 4).state()
    with pytest.raises(ValueError, match="batch_size: expected 4, as before; found 5"):
        Feed(dataset, 5, state=state)
    with pytest.raises(ValueError, match="world_size: expected 1, as before; found 2"):
        Feed(dataset.subset(rank=0, world_size=2), 4, state=state)
    with pytest.raises(ValueError, match="dataset: expected one with repeat=True"):
        Feed(FrameDataset(shards, SCHEMA), 4)


def test_no_example(shards: list[str]) -> None:
    dataset = FrameDataset(shards, SCHEMA, repeat=True, keep=lambda id: False)
    with pytest.raises(StopIteration):
        next(Feed(dataset, 4))


class NoUpload:
    """Takes the place of copies to a GPU, and counts them."""

    count = 0

    def __init__(self, device: Any, *tensors: Any) -> None:
        NoUpload.count += 1
        self.tensors = lambda: list(tensors)


@pytest.mark.parametrize("cache", [False, True])
def test_reading_ahead_changes_neither_batches_nor_position(shards, monkeypatch, cache) -> None:
    loader = feeding.loader

    def unpinned(*args: Any, pin_memory: bool, **options: Any) -> Any:
        assert pin_memory  # a GPU copies from pageable memory only while the process waits
        return loader(*args, pin_memory=False, **options)

    dataset = FrameDataset(shards, SCHEMA, repeat=True, shuffle=True, buffer=4, cache=cache)
    expected = Feed(dataset, 4)
    monkeypatch.setattr(feeding, "loader", unpinned)
    monkeypatch.setattr(feeding, "Upload", NoUpload)
    feed, state = Feed(dataset, 4, device="cuda"), None
    for number in range(12):
        if number % 3 == 0 and state is not None:
            feed = Feed(dataset, 4, device="cuda", state=state)
        before = NoUpload.count
        assert content(next(feed)) == content(next(expected))
        feed.read_ahead()
        feed.read_ahead()  # no further than one batch
        assert NoUpload.count == before + (2 if number % 3 == 0 else 1)
        state = feed.state()
        assert state == expected.state()


def test_reading_ahead_is_for_gpus(shards) -> None:
    feed = Feed(FrameDataset(shards, SCHEMA, repeat=True), 4)
    state = feed.state()
    feed.read_ahead()
    assert feed.state() == state


def test_classes_are_checked_and_frames_padded(shards) -> None:
    dataset = FrameDataset(shards, SCHEMA, repeat=True)
    assert next(Feed(dataset, 4, num_classes=2, frames=9)).frames.shape == (4, 9, 3)
    with pytest.raises(DataError, match=r"s0v0: expected classes in \[0, 1\), found 1"):
        next(Feed(dataset, 4, num_classes=1))
