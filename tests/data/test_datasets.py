from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import pickle
import resource
import warnings
from collections import Counter
from multiprocessing import reduction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyseg.data import (
    FrameDataset,
    RecordError,
    RecordWarning,
    SegmentDataset,
    VideoDataset,
    encode_frames,
    find_shards,
    held_out,
    loader,
    read_frames,
    write_records,
)
from pyseg.data.datasets import WorkerError, divide, stable_hash, worker_errors
from pyseg.errors import ArgumentError, MissingFileError

from .conftest import FRAMES, VIDEOS, ratings_of

pytestmark = [
    # More workers than processors, on purpose.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # From Python 3.12 on: torch's threads are not used in the forked workers.
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]

Frames = functools.partial(FrameDataset, schema=FRAMES)
Segments = functools.partial(SegmentDataset, schema=FRAMES)
Videos = functools.partial(VideoDataset, schema=VIDEOS)


def ids(dataset) -> list[str]:
    return [example.id for example in dataset]


def loaded_ids(dataset, batch_size: int = 4, workers: int = 0) -> list[list[str]]:
    return [batch.ids for batch in loader(dataset, batch_size, workers=workers)]


def flat(batches: list[list[str]]) -> list[str]:
    return [id for batch in batches for id in batch]


# ------------------------------------------------------------------------------------------ paths


def test_paths_as_folder_glob_file_and_list(frame_shards, tmp_path: Path) -> None:
    shards = [str(path) for path in frame_shards([1, 1, 1])]
    (tmp_path / "vocabulary.csv").write_text("Index\n0\n")
    deep = tmp_path / "more"
    deep.mkdir()
    extra = Path(shards[0]).rename(deep / "train0000.tfrecord")
    everything = [str(extra), *shards[1:]]
    assert find_shards(tmp_path) == everything
    assert find_shards(f"{tmp_path}/train*.tfrecord") == shards[1:]
    assert find_shards(f"{tmp_path}/**/train*.tfrecord") == everything
    assert find_shards(shards[2]) == [shards[2]]
    assert find_shards([shards[2], shards[1]]) == [shards[2], shards[1]]


def test_a_shard_that_comes_up_twice_is_read_once(frame_shards, tmp_path: Path) -> None:
    [shard] = frame_shards([3])
    link = tmp_path / "link.tfrecord"
    link.symlink_to(shard)
    assert ids(Frames([tmp_path, shard, str(shard), link])) == ["s0v0", "s0v1", "s0v2"]


def test_a_name_with_glob_characters_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shard[0].tfrecord"
    write_records(path, [b"payload"])
    assert find_shards(path) == [str(path)]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("none/*.tfrecord", r"none/\*\.tfrecord: no file matches"),
        ("none.tfrecord", "none.tfrecord: no such file or folder"),
        ([], "paths: expected at least one file"),
    ],
)
def test_nothing_to_read_names_the_pattern(paths, message: str) -> None:
    with pytest.raises((MissingFileError, ArgumentError), match=message):
        Frames(paths)


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file in this folder ends in \.tfrecord or"):
        Frames(tmp_path)


# ------------------------------------------------------------------------------------- hold out


def test_held_out_is_a_property_of_the_id() -> None:
    names = [f"{number:04d}" for number in range(5000)]
    test = {name for name in names if held_out(name)}
    assert 900 < len(test) < 1100
    assert {name for name in names if held_out(name, 0.1)} < test  # a larger part only adds
    assert test != {name for name in names if held_out(name, seed=1)}
    # Not Python's own hash(), which differs between processes.
    digest = hashlib.blake2b(b"0:1e10", digest_size=8).digest()
    assert stable_hash("1e10", 0) == int.from_bytes(digest, "little") == 4988866014025950649
    assert not any(held_out(name, 0) for name in names)
    assert all(held_out(name, 1) for name in names)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 20"):
        held_out("abcd", 20)


# ------------------------------------------------------------------------------------- division


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    consumers=st.integers(1, 20),
)
def test_shares_cover_every_record_once_and_evenly(counts: list[int], consumers: int) -> None:
    read: Counter[tuple[int, int]] = Counter()
    shards = []
    for consumer in range(consumers):
        shares = divide(len(counts), consumers, consumer)
        shards.append(sum(1 / share.part[1] for share in shares))
        for shard, (index, count) in shares:
            read.update(
                (shard, number) for number in range(counts[shard]) if number % count == index
            )
    assert read == {(shard, n): 1 for shard, count in enumerate(counts) for n in range(count)}
    assert max(shards) - min(shards) < 1e-9


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


# ------------------------------------------------------------------------------------------ order


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
    np.random.seed(5)  # the global state, on purpose
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
def test_chunks_are_shuffled_separately(frame_shards, buffer: int) -> None:
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


def test_examples_are_where_the_memory_is(frame_shards):
    """A data set that is sent to another process has its tensors moved to shared memory."""
    dataset = Frames(frame_shards([5]), cache=True)
    before = [example.frames.copy() for example in dataset]
    reduction.ForkingPickler.dumps(dataset)
    after = [example.frames for example in dataset]
    for found, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.shares_memory(found, dataset._memory.frames.numpy())


def test_cached_batches_of_all_ranks_are_those_of_one_process(frame_shards) -> None:
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


# ------------------------------------------------------------------------------------- selection


def keep_even(id: str) -> bool:
    return int(id[-1]) % 2 == 0


@pytest.mark.parametrize("cache", [False, True])
def test_keep_and_select(frame_shards, cache: bool) -> None:
    shards = frame_shards([4, 3])
    assert ids(Frames(shards, keep=keep_even, cache=cache)) == ["s0v0", "s0v2", "s1v0", "s1v2"]
    first = Frames(shards, cache=cache, select=lambda path, id: "0000" in path and id != "s0v1")
    assert ids(first) == ["s0v0", "s0v2", "s0v3"]


def test_segments_of_a_video_stay_together(frame_shards) -> None:
    shards = frame_shards([40], rated=True)
    parts = [
        {example.id.split(":")[0] for example in Segments(shards, keep=keep)}
        for keep in (held_out, lambda id: not held_out(id))
    ]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 40


@pytest.mark.parametrize("cache", [False, True])
def test_classes_restrict_and_renumber(frame_shards, cache: bool) -> None:
    shards = frame_shards([3], rated=True)  # video v: labels and ratings (v, 1.0) and (7, 0.0)
    videos = list(Frames(shards, classes=[7, 1], cache=cache))
    assert [example.classes.tolist() for example in videos] == [[0], [1, 0], [0]]
    assert [example.scores.tolist() for example in videos] == [[1], [1, 1], [1]]
    segments = list(Segments(shards, classes=[1], cache=cache))
    assert [(e.id, e.classes.tolist(), e.scores.tolist()) for e in segments] == [
        ("s0v1:0", [0], [1.0])
    ]
    # A video without any of the chosen labels stays: all classes are negatives.
    assert [e.classes.tolist() for e in Frames(shards, classes=[1])] == [[], [0], []]


def test_subset_shares_the_cache(frame_shards) -> None:
    full = Frames(frame_shards([4, 4]), cache=True)
    part = full.subset(keep=keep_even, shuffle=True, seed=3)
    assert part._memory is full._memory
    assert sorted(ids(part)) == ["s0v0", "s0v2", "s1v0", "s1v2"]
    assert len(part) == 4
    assert len(full) == len(ids(full)) == 8
    assert part.report == full.report
    again = full.subset(shuffle=True)
    order = ids(again)
    part.set_epoch(3)
    assert ids(full) == sorted(ids(full))
    assert ids(again) == order  # each data set has its own epoch
    with pytest.raises(TypeError, match="subset cannot change classes"):
        full.subset(classes=[1])
    with pytest.raises(ValueError, match="buffer must be at least 1, got 0"):
        full.subset(buffer=0)


def test_subset_without_a_cache(frame_shards) -> None:
    assert ids(Frames(frame_shards([4])).subset(keep=keep_even)) == ["s0v0", "s0v2"]


# ------------------------------------------------------------------------------------- contents


def test_frames_and_labels(frame_shards) -> None:
    example = list(Frames(frame_shards([1, 2])))[2]
    assert example.id == "s1v1"
    assert example.frames.dtype == np.uint8
    assert example.frames.tolist() == [[t, 1, 1, 1, 1] for t in range(4)]
    assert example.classes.tolist() == [1, 8]
    assert example.scores.tolist() == [1, 1]


def test_ids_are_text(tmp_path: Path) -> None:
    names = ["1e10", "0012", "None", "-_9a", "00e1"]
    records = [encode_frames(name, np.zeros((6, 5)).astype(np.uint8), [0],
                             ratings_of([(0, 0, 1.0)]), FRAMES) for name in names]  # fmt: skip
    path = tmp_path / "ids.tfrecord"
    write_records(path, records)
    for cache in (False, True):
        assert ids(Frames(path, cache=cache)) == names
        assert ids(Segments(path, cache=cache)) == [f"{name}:0" for name in names]
        assert flat(loaded_ids(Frames(path, cache=cache), workers=1)) == names


@pytest.mark.parametrize("cache", [False, True])
def test_max_frames_keeps_the_start(tmp_path: Path, cache: bool) -> None:
    frames = np.arange(301, dtype=np.int64).astype(np.uint8)[:, None].repeat(5, 1)
    write_records(tmp_path / "a.tfrecord", [encode_frames("abcd", frames, [1], None, FRAMES)])
    [example] = Frames(tmp_path, cache=cache)
    assert np.array_equal(example.frames, frames[:300])
    [example] = Frames(tmp_path, cache=cache, max_frames=7)
    assert np.array_equal(example.frames, frames[:7])
    [example] = Frames(tmp_path, cache=cache, max_frames=None)
    assert np.array_equal(example.frames, frames)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("sampling", ["random-frames", "random-sequence"])
def test_sampling(frame_shards, sampling: str, cache: bool) -> None:
    shards = frame_shards([30])
    dataset = Frames(shards, sampling=sampling, num_samples=4, cache=cache)

    def draw(dataset, **options) -> dict[str, list[int]]:
        return {example.id: example.frames[:, 0].tolist() for example in dataset}

    first = draw(dataset)
    assert all(rows == sorted(rows) and len(rows) == 4 for rows in first.values())  # order in time
    assert draw(dataset) == first
    of_seven = {tuple(rows) for id, rows in first.items() if int(id[3:]) % 5 == 4}  # frames
    assert len(of_seven) > 1  # not the same draw for every video
    dataset.set_epoch(1)
    assert draw(dataset) != first
    # Neither order nor sharding changes the draws from a video.
    shuffled = Frames(shards, sampling=sampling, num_samples=4, shuffle=True, cache=cache)
    assert draw(shuffled) == first
    for batch in loader(shuffled, 7, workers=3):
        for id, frames in zip(batch.ids, batch.frames, strict=True):
            assert frames[:, 0].tolist() == first[id]
    if sampling == "random-sequence":
        lengths = {example.id: len(example.frames) for example in Frames(shards)}
        for id, rows in first.items():
            assert rows == [min(rows[0] + i, lengths[id] - 1) for i in range(4)]


def test_segments_have_their_frames_and_all_their_ratings(tmp_path: Path) -> None:
    frames = np.arange(12, dtype=np.uint8)[:, None].repeat(5, 1)
    ratings = ratings_of([(5, 3, 1.0), (0, 1, 0.0), (5, 4, 0.0), (10, 2, 1.0)])
    write_records(
        tmp_path / "a.tfrecord",
        [
            encode_frames("none", frames, [1], None, FRAMES),
            encode_frames("06xy", frames, [1], ratings, FRAMES),
        ],
    )
    for cache in (False, True):
        dataset = Segments(tmp_path, cache=cache)
        found = [(e.id, e.frames[:, 0].tolist(), e.classes.tolist(), e.scores.tolist())
                 for e in dataset]  # fmt: skip
        assert found == [
            ("06xy:5", [5, 6, 7, 8, 9], [3, 4], [1.0, 0.0]),
            ("06xy:0", [0, 1, 2, 3, 4], [1], [0.0]),
            ("06xy:10", [10, 11], [2], [1.0]),  # cut by the end of the video
        ]
        assert dataset.report.cut_segments == 1
        batch = next(iter(loader(dataset, 3)))
        assert batch.num_frames.tolist() == [5, 5, 2]
        assert not batch.frames[2, 2:].any()


def test_known_faults_of_the_public_data_are_counted(tmp_path: Path) -> None:
    frames = np.ones((12, 5), np.uint8)
    ratings = ratings_of([(0, 1, 0.0), (12, 2, 1.0), (299, 2, 1.0), (0, 1, 1.0), (5, 1, 1.0)])
    write_records(tmp_path / "a.tfrecord", [encode_frames("06xy", frames, [1], ratings, FRAMES)])
    dataset = Segments(tmp_path)
    with pytest.warns(RecordWarning, match="SegmentDataset: dropped 2 rated segments past the end"):
        found = [(e.id, e.scores.tolist()) for e in dataset]
    assert found == [("06xy:0", [1.0]), ("06xy:5", [1.0])]  # of duplicates, the last
    assert dataset.report.dropped_segments == 2
    assert dataset.report.duplicate_ratings == 1


def test_segments_do_not_hold_on_to_their_videos(frame_shards) -> None:
    for example in Segments(frame_shards([2], rated=True)):
        assert example.frames.base is None


@pytest.mark.parametrize("cache", [False, True])
def test_videos_are_one_frame(video_shards, cache: bool) -> None:
    examples = list(Videos(video_shards([600, 3]), cache=cache))
    assert len(examples) == 603
    assert examples[599].id == "s0v599"
    assert examples[599].frames.dtype == np.float32
    assert examples[599].frames.tolist() == [[599 / 4] * 5]
    assert examples[599].classes.tolist() == [599 % 7]


def test_cache_is_contiguous_and_read_only(frame_shards) -> None:
    dataset = Frames(frame_shards([4, 3]), cache=True)
    streamed = list(Frames(frame_shards([4, 3])))
    examples = list(dataset)
    assert sum(len(e.frames) for e in streamed) == len(dataset._memory.frames)
    for cached, other in zip(examples, streamed, strict=True):
        assert np.array_equal(cached.frames, other.frames)
        assert cached.classes.tolist() == other.classes.tolist()
        assert np.shares_memory(cached.frames, dataset._memory.frames.numpy())
        with pytest.raises(ValueError, match="read-only"):
            cached.frames[0] = 1


def test_cached_frames_are_not_in_the_heap(frame_shards) -> None:
    """In the heap they would be copied as they grow, and training never returns heap memory."""
    frames = Frames(frame_shards([4]), cache=True)._memory.frames
    maps = Path("/proc/self/maps").read_text().splitlines()
    files = [line.split()[0].split("-") for line in maps if "memfd:pyseg" in line]
    assert any(int(a, 16) <= frames.data_ptr() < int(b, 16) for a, b in files)


def test_length_is_known_in_memory_only(frame_shards) -> None:
    shards = frame_shards([5])
    assert len(Frames(shards, cache=True, rank=0, world_size=2)) == 3
    assert len(Frames(shards, cache=True, rank=1, world_size=2)) == 2
    assert len(loader(Frames(shards, cache=True), 2, workers=2)) == 3
    with pytest.raises(TypeError, match="FrameDataset has a length only with cache=True"):
        len(Frames(shards))


# ---------------------------------------------------------------------------- faults and reports


def damage(path: Path, record: int) -> None:
    payloads = [len(bytes(p)) for p in _payloads(path)]
    data = bytearray(path.read_bytes())
    at = sum(size + 16 for size in payloads[:record]) + 12 + payloads[record] // 2
    data[at] ^= 0xFF
    path.write_bytes(data)


def _payloads(path: Path) -> list[bytes]:
    from pyseg.data import read_records

    return list(read_records(path))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_stops_and_names_the_file(frame_shards, workers: int) -> None:
    shards = frame_shards([4, 3, 5])
    damage(shards[2], 3)
    batches = loader(Frames(shards), 1, workers=workers)
    for _ in range(2):
        with pytest.raises(RecordError, match=r"train0002\.tfrecord: record 3 at byte"):
            list(batches)
        assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_skipping_counts_once_whatever_the_workers(frame_shards, workers: int) -> None:
    shards = frame_shards([4, 3, 5])
    damage(shards[2], 3)
    dataset = Frames(shards, on_error="skip")
    batches = loader(dataset, 4, workers=workers)
    for _ in range(2):  # each pass counts anew
        if workers:  # each of which warns
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RecordWarning)
                found = {id for batch in batches for id in batch.ids}
        else:
            with pytest.warns(RecordWarning, match="FrameDataset: skipped 1 record"):
                found = {id for batch in batches for id in batch.ids}
        assert len(found) == 11
        assert "s2v3" not in found
        assert dataset.report.records == 11
        assert dataset.report.skipped == 1
        assert "train0002.tfrecord: record 3" in dataset.report.first_error


def test_report_is_of_the_last_pass_only(frame_shards) -> None:
    dataset = Frames(frame_shards([4, 3, 5]))
    for workers in (3, 2, 0):
        loaded_ids(dataset, workers=workers)
        assert dataset.report.records == 12


@pytest.mark.parametrize("cache", [False, True])
def test_a_video_without_labels_stays_and_is_counted(frame_shards, cache: bool) -> None:
    [shard] = frame_shards([3])
    unlabelled = dataclasses.replace(FRAMES, labels_key=None)
    more = encode_frames("none", np.zeros((3, 5), np.uint8), [], None, unlabelled)
    write_records(shard, [*_payloads(shard), more])
    with pytest.warns(RecordWarning, match="FrameDataset: found 1 record without labels"):
        examples = list(dataset := Frames([shard], cache=cache))
    assert [len(example.classes) for example in examples] == [2, 2, 2, 0]
    assert dataset.report.unlabelled == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("counts", [[20], [8, 6, 6]])
def test_a_record_that_every_pass_skips_counts_once(frame_shards, counts, workers: int) -> None:
    """Even where workers divide a shard, and as soon as it has been read."""
    paths = frame_shards(counts)
    data = bytearray(paths[0].read_bytes())
    data[-10] ^= 1
    paths[0].write_bytes(data)
    dataset = Frames(paths, repeat=True, shuffle=True, buffer=2, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        batches = iter(loader(dataset, 1, workers=workers))
        for _ in range(2 * sum(counts) + 1):
            next(batches)
    assert (dataset.report.records, dataset.report.skipped) == (sum(counts) - 1, 1)


def test_report_of_a_cache(frame_shards) -> None:
    shards = frame_shards([4])
    damage(shards[0], 1)
    with pytest.raises(RecordError, match="record 1"):
        Frames(shards, cache=True)
    with pytest.warns(RecordWarning, match="skipped 1 record"):
        dataset = Frames(shards, cache=True, on_error="skip")
    assert dataset.report.records == 3
    assert dataset.report.skipped == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"buffer": 0}, "buffer must be at least 1, got 0"),
        ({"on_error": "ignore"}, 'on_error must be "raise" or "skip", got \'ignore\''),
        ({"rank": 0}, "rank and world_size must be given together"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"classes": []}, "classes must be different numbers"),
        ({"classes": [1, 1]}, "classes must be different numbers"),
        ({"classes": [-1]}, "classes must be different numbers"),
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"sampling": "some"}, "sampling must be"),
    ],
)
def test_bad_options(frame_shards, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(frame_shards([1]), **options)


def test_bad_loader_options(frame_shards) -> None:
    dataset = Frames(frame_shards([1]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        loader(dataset, 0)
    with pytest.raises(ValueError, match=r"workers must be in \[0, 128\], got 129"):
        loader(dataset, 1, workers=129)


# ------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("worker_error", "message"),
    [
        ("unable to allocate shared memory(shm) for file </t>", "found too little in /dev/shm"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. ", "--shm-size"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", r"a signal \(Killed\)"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "ended unexpectedly"),
    ],
)
def test_errors_of_lost_workers_are_explained(worker_error: str, message: str) -> None:
    with pytest.raises(WorkerError, match=f"^--workers: .*{message}"), worker_errors():
        raise RuntimeError(worker_error)


@pytest.mark.parametrize("error", [RuntimeError("size of tensor"), ConnectionResetError("x")])
def test_other_errors_are_not_taken_for_lost_workers(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), worker_errors():
        raise error


def test_data_sets_need_no_file_in_shared_memory(frame_shards) -> None:
    shared = Frames(frame_shards([3]))._shared
    tensors = [shared.epoch, shared.counts, shared.errors]
    assert not any(tensor.is_shared() for tensor in tensors)  # torch would share it through a file


def test_fingerprints(frame_shards) -> None:
    paths = frame_shards([3, 2], rated=True)
    found = Segments(paths, cache=True).fingerprint()
    assert list(found["shards"]) == [path.name for path in paths]
    assert found["examples"] == 10
    assert found == Segments(paths, cache=True, shuffle=True).fingerprint()
    other = Segments(paths, cache=True, keep=keep_even).fingerprint()
    assert other["shards"] == found["shards"]
    assert other["ratings"] != found["ratings"]
    frame_shards([3, 3], rated=True)
    changed = Segments(paths).fingerprint()["shards"]
    assert [changed[p.name] == found["shards"][p.name] for p in paths] == [True, False]


def test_batches_from_workers_are_complete(frame_shards) -> None:
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
    """Queued batches would soon reach the limit of open files, often 1,024."""
    dataset = Frames(frame_shards([150]), cache=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with_room = len(list(Path("/proc/self/fd").iterdir())) + 220
    resource.setrlimit(resource.RLIMIT_NOFILE, (with_room, limits[1]))
    try:
        batches = list(loader(dataset, 1, workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(batches) == 150


def test_spawned_workers(frame_shards) -> None:
    dataset = Frames(frame_shards([3, 3]), cache=True, keep=keep_even, shuffle=True)
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    assert sorted(example.id for example in batches) == ["s0v0", "s0v2", "s1v0", "s1v2"]


def test_pickling_fixes_the_rank(frame_shards, tmp_path: Path) -> None:
    dataset = Frames(frame_shards([4]))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        assert pickle.loads(pickle.dumps(dataset)).world_size == 1
    finally:
        torch.distributed.destroy_process_group()
    assert dataset.world_size is None


# ------------------------------------------------------------------------------------- real data


def test_the_real_frame_level_example(shared: Path) -> None:
    path = shared / "data/yt8m/frame_level_example.tfrecord"
    [example] = FrameDataset(path)
    assert example.frames.shape == (170, 1152)
    assert example.classes.tolist() == [11]
    [record] = read_frames(path)
    assert np.array_equal(example.frames, record.frames)
    [example] = FrameDataset(path, sampling="random-sequence")
    assert example.frames.shape == (30, 1152)


def test_real_videos_through_workers(shared: Path) -> None:
    dataset = VideoDataset(str(shared / "data/yt8m/video_level_*.tfrecord.gz"), shuffle=True)
    seen: Counter[str] = Counter()
    for batch in loader(dataset, 256, workers=3):
        seen.update(batch.ids)
        assert batch.frames.shape[1:] == (1, 1152)
        assert batch.targets(3862).sum() == len(batch.classes)
    assert len(seen) == dataset.report.records == 7719
    assert set(seen.values()) == {1}
