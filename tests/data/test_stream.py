"""Who reads which examples, and in which order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pyseg.data import (
    loader,
)
from pyseg.data.shards import Share
from pyseg.data.stream import Position, Stream

from .conftest import Frames, flat, ids, loaded_ids

pytestmark = [
    # More workers than processors: asked for.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # Python 3.12 on: torch's threads are not used in the forked workers.
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_divide_the_data(frame_shards, cache: bool, shuffle: bool, world_size: int) -> None:
    frame_shards([5, 4, 3])
    shards = frame_shards([5, 4, 3])
    everything = {f"s{s}v{v}" for s, n in enumerate([5, 4, 3]) for v in range(n)}
    found = Counter(
        id
        for rank in range(world_size)
        for id in ids(
            Frames(shards, rank=rank, world_size=world_size, shuffle=shuffle, cache=cache, buffer=3)
        )
    )
    assert found == dict.fromkeys(everything, 1)


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", [False, True])
def test_workers_divide_the_data(frame_shards, shards: int, workers: int, cache: bool) -> None:
    counts = [7, 1, 4, 2, 3][:shards]
    paths = frame_shards(counts)
    everything = {f"s{s}v{v}": 1 for s, n in enumerate(counts) for v in range(n)}
    dataset = Frames(paths, shuffle=True, cache=cache, buffer=3)
    batches = loader(dataset, 2, workers=workers)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert Counter(id for batch in batches for id in batch.ids) == everything


def test_ranks_times_workers(frame_shards) -> None:
    shards = frame_shards([9, 4])
    found: Counter[str] = Counter()
    for rank in range(2):
        found.update(flat(loaded_ids(Frames(shards, rank=rank, world_size=2), workers=2)))
    assert found == {f"s{s}v{v}": 1 for s, n in enumerate([9, 4]) for v in range(n)}


def test_unshuffled_order_is_that_of_the_records(frame_shards) -> None:
    shards = frame_shards([2, 3])
    expected = ["s0v0", "s0v1", "s1v0", "s1v1", "s1v2"]
    assert ids(Frames(shards)) == expected
    assert ids(Frames(shards, cache=True)) == expected


@pytest.mark.parametrize("cache", [False, True])
def test_shuffling_depends_on_seed_and_epoch_only(frame_shards, cache: bool) -> None:
    shards = frame_shards([20, 20, 20])
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        for _ in range(2):  # a second data set of the same seed and epoch
            dataset = Frames(shards, shuffle=True, seed=seed, buffer=10, cache=cache)
            dataset.set_epoch(epoch)
            order = ids(dataset)
            assert orders.setdefault((seed, epoch), order) == order
    assert len(set(map(tuple, orders.values()))) == 3


def test_global_random_state_is_left_alone(frame_shards) -> None:
    shards = frame_shards([9])
    torch.manual_seed(5)
    np.random.seed(5)  # the global one is the point
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    loaded_ids(Frames(shards, shuffle=True, sampling="random-frames", num_samples=2), workers=1)
    ids(Frames(shards, shuffle=True, sampling="random-sequence", num_samples=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("cache", [False, True])
def test_epochs_reach_persistent_workers(frame_shards, cache: bool) -> None:
    dataset = Frames(frame_shards([30, 30]), shuffle=True, cache=cache)
    batches = loader(dataset, 60, workers=1)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append([id for batch in batches for id in batch.ids])
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("buffer", [1, 7, 40, 41, 1000])
def test_chunks_are_shuffled_for_themselves(frame_shards, buffer: int) -> None:
    order = [int(id[3:]) for id in ids(Frames(frame_shards([40]), shuffle=True, buffer=buffer))]
    chunks = [sorted(order[at : at + buffer]) for at in range(0, 40, buffer)]
    assert [number for chunk in chunks for number in chunk] == list(range(40))
    assert (order == sorted(order)) == (buffer == 1)


def test_shuffling_mixes_shards(frame_shards) -> None:
    order = ids(Frames(frame_shards([50, 50]), shuffle=True, buffer=60))
    switches = sum(a[:2] != b[:2] for a, b in itertools.pairwise(order))
    assert switches > 10


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_cached_batches_do_not_depend_on_workers(frame_shards, workers: int, shuffle: bool) -> None:
    dataset = Frames(frame_shards([13, 10]), cache=True, shuffle=shuffle)
    assert loaded_ids(dataset, 4, workers) == loaded_ids(dataset, 4)


def test_cached_ranks_make_up_one_processs_batches(frame_shards) -> None:
    shards = frame_shards([13, 11])
    single = loaded_ids(Frames(shards, cache=True, shuffle=True), 6)
    ranks = [
        loaded_ids(Frames(shards, cache=True, shuffle=True, rank=rank, world_size=2), 3)
        for rank in range(2)
    ]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(b) for b in single]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_repeat_never_ends_and_reshuffles(frame_shards, cache: bool, workers: int) -> None:
    dataset = Frames(frame_shards([4, 3]), shuffle=True, cache=cache, repeat=True)
    batches = iter(loader(dataset, 7, workers=workers))
    passes = [next(batches).ids for _ in range(10)]
    assert all(len(batch) == 7 for batch in passes)
    assert len({tuple(batch) for batch in passes}) > 5
    counts = Counter(flat(passes))
    assert set(counts) == {f"s{s}v{v}" for s, n in enumerate([4, 3]) for v in range(n)}
    if cache:
        assert set(counts.values()) == {10}


def test_repeat_of_the_cache_divides_every_pass_over_ranks(frame_shards) -> None:
    shards = frame_shards([7])
    streams = [
        iter(Frames(shards, cache=True, repeat=True, shuffle=True, rank=rank, world_size=2))
        for rank in range(2)
    ]
    merged = [next(streams[place % 2]).id for place in range(21)]
    for first in (0, 7, 14):
        assert len(set(merged[first : first + 7])) == 7


@pytest.mark.parametrize("cache", [False, True])
def test_repeat_of_nothing_ends(frame_shards, cache: bool) -> None:
    dataset = Frames(frame_shards([4]), keep=lambda _: False, repeat=True, cache=cache)
    assert ids(dataset) == []


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("consumers", [1, 2, 3])
def test_a_stream_goes_on_from_every_position(shuffle: bool, consumers: int) -> None:
    counts = [7, 1, 4, 2]

    def read_share(share: Share) -> Iterator[tuple[int, int]]:
        index, of = share.part
        return ((share.shard, number) for number in range(index, counts[share.shard], of))

    found = Counter()
    for consumer in range(consumers):
        stream = Stream(len(counts), consumer, consumers, shuffle, seed=1, buffer=3)
        whole = list(stream.read(Position(2), read_share))
        found.update(item for _, item in whole)
        for at, (position, _) in enumerate(whole, 1):
            assert list(stream.read(position, read_share)) == whole[at:]
    assert found == {(shard, n): 1 for shard, count in enumerate(counts) for n in range(count)}
