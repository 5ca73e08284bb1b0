"""What data sets hold, choose and count."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg.data import (
    FrameDataset,
    RecordError,
    RecordWarning,
    VideoDataset,
    encode_frames,
    held_out,
    loader,
    read_frames,
    write_records,
)
from pyseg.data.memory import ExampleMemory

from .conftest import FRAMES, Frames, Segments, Videos, flat, ids, keep_even, loaded_ids, ratings_of

pytestmark = [
    # More workers than processors, on purpose.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # From Python 3.12 on: torch's threads are not used in the forked workers.
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


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
    frames = {example.id: example.frames for example in full}
    assert all(np.shares_memory(example.frames, frames[example.id]) for example in part)
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
    with pytest.raises(ValueError, match="buffer: expected at least 1, found 0"):
        full.subset(buffer=0)


def test_subset_without_a_cache(frame_shards) -> None:
    assert ids(Frames(frame_shards([4])).subset(keep=keep_even)) == ["s0v0", "s0v2"]


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


def test_length_is_known_in_memory_only(frame_shards) -> None:
    shards = frame_shards([5])
    assert len(Frames(shards, cache=True, rank=0, world_size=2)) == 3
    assert len(Frames(shards, cache=True, rank=1, world_size=2)) == 2
    assert len(loader(Frames(shards, cache=True), 2, workers=2)) == 3
    with pytest.raises(TypeError, match="FrameDataset has a length only with cache=True"):
        len(Frames(shards))


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
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"buffer": 0}, "buffer: expected at least 1, found 0"),
        ({"on_error": "ignore"}, "on_error: expected 'raise' or 'skip', found 'ignore'"),
        ({"rank": 0}, "rank and world_size: expected both or none, found 0 and None"),
        ({"rank": 2, "world_size": 2}, r"rank: expected a number in \[0, 2\), found 2"),
        ({"classes": []}, r"classes: expected different numbers, .*, found \[\]"),
        ({"classes": [1, 1]}, "classes: expected different numbers"),
        ({"classes": [-1]}, "classes: expected different numbers"),
        ({"max_frames": 0}, "max_frames: expected at least 1, found 0"),
        ({"num_samples": 0}, "num_samples: expected at least 1, found 0"),
        ({"sampling": "some"}, "sampling: expected .*, found 'some'"),
    ],
)
def test_bad_options(frame_shards, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frames(frame_shards([1]), **options)


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


def test_class_counts(frame_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = frame_shards([3, 2], rated=True)
    whole = Segments(paths, cache=True, rank=1, world_size=2)
    some = whole.subset(keep=keep_even, repeat=True)
    expected = []
    for segments in (whole, some):
        once = segments.subset(rank=0, world_size=1, repeat=False)
        expected.append(np.bincount(np.concatenate([e.classes for e in once])).tolist())
    monkeypatch.delattr(ExampleMemory, "__getitem__")  # none of them is made
    for segments, counts in zip((whole, some), expected, strict=True):
        found = segments.class_counts().tolist()
        assert found[: len(counts)] == counts
        assert not any(found[len(counts) :])
        assert sum(counts) > 0
    with pytest.raises(TypeError, match="counts its classes only with cache=True"):
        Segments(paths).class_counts()


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
