from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    DataError,
    StrongSegmentDataset,
    encode_frames,
    open_collection,
    write_records,
)
from pyseg.data.audioset import (
    SCHEMA,
    is_present,
    label_space,
    labels_by_id,
    merge_events,
    read_class_labels,
    read_display_names,
    read_strong_labels,
)

HEADER = "filename\tevent_label\tonset\toffset\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips: "long" of 10 frames, "short" of 7, "none" without strong labels."""
    records = []
    for name, length, start in (("long", 10, 30.0), ("short", 7, 0.0), ("none", 10, 5.0)):
        frames = np.arange(length, dtype=np.uint8)[:, None].repeat(128, 1)
        context = {"start_time_seconds": start}
        records.append(encode_frames(name, frames, [0], None, SCHEMA, context=context))
    write_records(tmp_path / "eval00.tfrecord", records)
    write(
        tmp_path / "strong_labels.tsv",
        HEADER
        + "long_30000\t/m/a\t0.0\t10.0\n"  # all the time
        + "long_30000\t/m/b\t0.5\t0.9\n"  # briefly in the first segment
        + "long_30000\t/m/b\t0.7\t1.1\n"
        + "long_30000\t/m/c\t9.7\t10.0\n"  # past the last frame
        + "short_0\t/m/b\t5.0\t6.72\n"
        + "short_0\t/m/a\t2.0\t6.0\n"  # 1.2 of the last segment's 1.92 s
        + "none_0\t/m/a\t0.0\t9.0\n",  # another clip of that video
    )
    write(
        tmp_path / "class_labels_indices.csv",
        'index,mid,display_name\n0,/m/b,"Bark, dog"\n1,/m/a,Music\n',
    )
    return tmp_path


def dataset(folder: Path, **options) -> StrongSegmentDataset:
    strong = read_strong_labels(folder / "strong_labels.tsv")
    ids, _ = label_space(["/m/b", "/m/a"], strong)
    return StrongSegmentDataset(folder, strong, ids, **options)


def rated(data: StrongSegmentDataset) -> dict[str, dict[int, float]]:
    return {e.id: dict(zip(e.classes.tolist(), e.scores.tolist(), strict=True)) for e in data}


def test_complete_ratings(clips: Path) -> None:
    data = dataset(clips, rated_per_segment=None)
    assert rated(data) == {
        "long:0": {0: 1.0, 1: 1.0, 2: 0.0},
        "long:5": {0: 0.0, 1: 1.0, 2: 0.0},
        "short:0": {0: 0.0, 1: 1.0},  # 5.0 to 6.72 s lies in the second
        "short:5": {0: 1.0, 1: 1.0},
    }
    assert data.clips_without_labels == 1
    assert [len(e.frames) for e in data] == [5, 5, 5, 2]  # the rest of a clip is a segment
    assert [e.frames[0, 0] for e in data] == [0, 5, 0, 5]
    assert data.clips_without_labels == 1  # of this pass, not of both


@pytest.mark.parametrize("cache", [False, True])
def test_some_classes_are_drawn_per_segment(clips: Path, cache: bool) -> None:
    complete = rated(dataset(clips, rated_per_segment=None))
    one = rated(dataset(clips, cache=cache))
    assert {id: len(classes) for id, classes in one.items()} == dict.fromkeys(complete, 1)
    two = rated(dataset(clips, rated_per_segment=2, cache=cache))
    assert [len(classes) for classes in two.values()] == [2, 2, 2, 2]
    assert rated(dataset(clips, rated_per_segment=9, cache=cache)) == complete
    for drawn in (one, two):
        for id, classes in drawn.items():
            assert classes.items() <= complete[id].items()
    assert rated(dataset(clips, shuffle=True)) == one  # a property of the data, not of the order
    others = [rated(dataset(clips, rating_seed=seed)) for seed in range(20)]
    assert {min(o["long:0"]) for o in others} == {0, 1, 2}


def test_thresholds(clips: Path) -> None:
    # The event of /m/b lies entirely in the first segment, but takes little of its 4.8 s.
    assert rated(dataset(clips, rated_per_segment=None, event_share=2.0))["long:0"][0] == 0
    strict = rated(dataset(clips, rated_per_segment=None, event_share=2.0, segment_share=0.1))
    assert strict["long:0"][0] == 1


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], False),
        ([(0.0, 2.4)], True),  # half of the segment
        ([(0.0, 2.3), (7.0, 20.0)], True),  # all of an event
        ([(4.0, 9.0)], False),  # 0.8 s of 5
        ([(2.5, 9.0)], False),
        ([(2.4, 9.0)], True),
        ([(3.8, 5.8)], True),  # half of the event
        ([(3.7, 5.9)], True),
        ([(3.9, 5.9)], False),
        ([(-1.0, 1.2), (3.6, 9.9)], True),  # together half of the segment
        ([(4.8, 9.0)], False),  # touches
    ],
)
def test_half_of_the_segment_or_of_the_event(events, expected: bool) -> None:
    assert is_present(events, 0.0, 4.8) is expected


def test_overlapping_events_are_one(clips: Path) -> None:
    assert merge_events([(5, 6), (0, 1), (1, 2), (0.5, 0.7), (5.5, 7)]) == [(0, 2), (5, 7)]
    strong = read_strong_labels(clips / "strong_labels.tsv")
    assert strong["long_30000"]["/m/b"] == [(0.5, 1.1)]
    # Apart, the first event would be half in a segment that ends at 4; merged it is a fifth.
    assert is_present([(3.0, 5.0)], 0.0, 4.0)
    assert not is_present(merge_events([(3.0, 5.0), (4.5, 8.0)]), 0.0, 4.0)


def test_published_column_names_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "audioset_eval_strong.tsv"
    text = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\nx_y_0\t0.5\t1.5\t/m/a\n"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_strong_labels(path) == {"x_y_0": {"/m/a": [(0.5, 1.5)]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\tlabel\n", "line 1: expected a column filename or segment_id, found 'file, label'"),
        (HEADER, "expected at least one event, found none"),
        (HEADER + "a_0\t/m/a\t0.0\t1.0\na_0\t/m/a\t0.0\n", "line 3: expected 4 fields, found 3"),
        (HEADER + "a_0\t/m/a\tx\t1.0\n", "line 2: expected onset to be a number, found 'x'"),
        (HEADER + "a_0\t/m/a\t0\tnan\n", "line 2: expected offset to be a number, found 'nan'"),
        (HEADER + "a_0\t/m/a\t0\tinf\n", "line 2: expected offset to be a number, found 'inf'"),
        (HEADER + "a_0\t/m/a\t2\t1\n", "line 2: expected 0 <= onset < offset, found 2.0 and 1.0"),
        (HEADER + "a_0\t/m/a\t1\t1\n", "line 2: expected 0 <= onset < offset"),
        (HEADER + "a_0\t/m/a\t-1\t1\n", "line 2: expected 0 <= onset < offset"),
        (HEADER + "a_0\t\t0\t1\n", "line 2: expected a value for event_label, found none"),
    ],
)
def test_malformed_strong_labels(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "strong.tsv", text)
    with pytest.raises(DataError, match=message) as error:
        read_strong_labels(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,mid,display_name\n1,/m/a,A\n", "line 2: expected index 0, found 1"),
        ("index,mid,display_name\n0,/m/a,A\n1,/m/a,B\n", "line 3: expected every class once"),
        ("index,mid,display_name\n", "expected at least one class, found none"),
    ],
)
def test_malformed_class_labels(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_class_labels(write(tmp_path / "class_labels_indices.csv", text))


def test_strong_only_classes_follow_the_weak_ones() -> None:
    strong = {"a_0": {"/t/z": [], "/m/a": [], "/t/y": []}}
    ids, names = label_space(["/m/b", "/m/a"], strong, {"/m/a": "Music", "/t/y": "Yes"})
    assert ids == ["/m/b", "/m/a", "/t/y", "/t/z"]
    assert names == ["/m/b", "Music", "Yes", "/t/z"]


def test_classes_named_by_their_display_names() -> None:
    names = {"/m/a": "Male speech, man speaking", "/m/b": "Tap", "/m/c": "Tap", "/m/d": "/m/e"}
    strong = {
        "a_0": {"male_speech,_man  speaking": [(0, 2)], "/m/a": [(1, 3)], "Tap": [(0, 1)]},
        "b_0": {"/m/a": [(4, 5)], "Cat": [(0, 1)]},
    }
    mapped, by_name = labels_by_id(strong, names)
    assert mapped == {
        "a_0": {"/m/a": [(0, 3)], "Tap": [(0, 1)]},  # two classes are called Tap
        "b_0": {"/m/a": [(4, 5)], "Cat": [(0, 1)]},
    }
    assert by_name == {"male_speech,_man  speaking": "/m/a"}
    assert labels_by_id(mapped, names) == (mapped, {})


def clip_shards(folder: Path, *names: str) -> None:
    """Writes 4 clips per name, "<name>0" to "<name>3", which start at 30 s."""
    for name in names:
        frames = np.ones((10, 128), np.uint8)
        context = {"start_time_seconds": 30.0}
        ids = [f"{name}{k}" for k in range(4)]
        records = [encode_frames(id, frames, [0], None, SCHEMA, context=context) for id in ids]
        write_records(folder / f"{name}.tfrecord", records)
    write(
        folder / "class_labels_indices.csv",
        "index,mid,display_name\n0,/m/a,Speech\n1,/m/b,Dog\n",
    )


def events(*clips: str, label: str = "/m/a") -> str:
    return HEADER + "".join(f"{clip}\t{label}\t0.0\t4.0\n" for clip in clips)


def test_published_tables_are_read_together(tmp_path: Path) -> None:
    clip_shards(tmp_path, "aa", "bb")
    write(tmp_path / "audioset_train_strong.tsv", events("aa0_30000"))
    only = open_collection(tmp_path)
    assert only.notes == ("strong labels: 1 of 8 clips have some, aa1_30000 for example has none",)
    (tmp_path / "audioset_eval_strong.tsv.gz").write_bytes(
        gzip.compress(events("bb3_30000", "bb3_0", label="/m/b").encode())
    )
    both = open_collection(tmp_path)
    assert both.notes == (
        "strong labels: 2 of 8 clips have some, aa1_30000 for example has none",
        "strong labels: 1 names match no clip, such as bb3_0",
    )
    assert both.segment_classes == [0, 1]
    assert {e.id for e in both.segments("all")} == {"aa0:0", "aa0:5", "bb3:0", "bb3:5"}
    for labels in (str(tmp_path / "*_train_*"), [tmp_path / "audioset_train_strong.tsv"]):
        assert open_collection(tmp_path, labels=labels).segment_classes == [0]
    with pytest.raises(FileNotFoundError, match=r"none\.tsv: no such file"):
        open_collection(tmp_path, labels=tmp_path / "none.tsv")


@pytest.mark.parametrize("name", ["aa0_30", "Yaa0_30.000_40.000.wav", "aa0"])
def test_strong_labels_of_no_clip_are_refused(tmp_path: Path, name: str) -> None:
    clip_shards(tmp_path, "aa")
    write(tmp_path / "strong_labels.tsv", events(name, "zz9_0"))
    with pytest.raises(DataError) as error:
        open_collection(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/strong_labels.tsv: expected names of the 4 clips, such as aa0_30000; found 2 "
        f"names of no clip, such as {min(name, 'zz9_0')}"
    )


def test_strong_labels_by_display_name_are_no_new_classes(tmp_path: Path) -> None:
    clip_shards(tmp_path, "aa")
    clips = [f"aa{k}_30000" for k in range(4)]
    write(tmp_path / "strong_labels.tsv", events(*clips, label="dog"))
    collection = open_collection(tmp_path)
    assert (collection.class_names, collection.segment_classes) == (["Speech", "Dog"], [1])
    assert collection.notes == ("strong labels: 1 names stand for ids, such as dog for /m/b",)
    write(tmp_path / "strong_labels.tsv", events(*clips, label="Cat"))
    collection = open_collection(tmp_path)
    assert collection.class_names == ["Speech", "Dog", "Cat"]
    assert collection.notes == (
        "strong labels: 1 classes are new beside the 2 of weak labels, such as Cat",
    )


def test_events_of_unknown_classes_are_not_rated(clips: Path) -> None:
    strong = read_strong_labels(clips / "strong_labels.tsv")
    data = StrongSegmentDataset(clips, strong, ["/m/c"], rated_per_segment=None)
    assert rated(data) == {"long:0": {0: 0.0}, "long:5": {0: 0.0}}
    assert data.clips_without_labels == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rated_per_segment": 0}, "rated_per_segment: expected at least 1, found 0"),
        ({"segment_share": 0}, "segment_share: expected above 0, found 0"),
        ({"event_share": float("nan")}, "event_share: expected above 0, found nan"),
    ],
)
def test_bad_options(clips: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(clips, **options)


def test_the_real_clips(shared: Path) -> None:
    folder = shared / "data/audioset"
    collection = open_collection(folder)
    assert (collection.name, collection.level, collection.feature_sizes) == (
        "audioset", "frame", (128,)
    )  # fmt: skip
    assert collection.num_classes == len(collection.class_names) == 527 + 9
    assert len(collection.segment_classes) == 110
    assert collection.class_names[0] == "Speech"
    names = read_display_names(folder / "mid_to_display_name.tsv")
    assert set(collection.class_names[527:]) <= set(names.values())
    [note] = collection.notes
    assert note.startswith(
        "strong labels: 9 classes are new beside the 527 of weak labels, such as /"
    )

    clips = list(collection.videos("all"))
    assert len(clips) == len({clip.id for clip in clips}) == 10_000
    lengths = Counter(len(clip.frames) for clip in clips)
    assert lengths[10] == 9829
    assert set(lengths) <= set(range(1, 11))
    assert max(clip.classes.max() for clip in clips) < 527
    train, test = ({e.id for e in collection.videos(part)} for part in ("train", "test"))
    assert not train & test
    assert len(train | test) == 10_000
    assert 1800 < len(test) < 2200

    one = {part: list(collection.segments(part)) for part in ("train", "test", "all")}
    assert len(one["train"]) + len(one["test"]) == len(one["all"])
    assert {e.id.rpartition(":")[0] for e in one["test"]} <= test
    assert len({e.id for e in one["all"]}) == len(one["all"])
    expected = sum(-(-length // 5) * count for length, count in lengths.items())
    assert len(one["all"]) == expected  # every clip has strong labels
    assert all(len(e.classes) == 1 for e in one["all"])
    complete = list(collection.segments("all", rated_per_segment=None))
    assert len(complete) == expected
    scores = np.concatenate([e.scores for e in complete])
    assert 2.5 < len(scores) / expected < 3.5
    assert set(np.unique(scores)) == {0.0, 1.0}
    assert 0.7 < scores.mean() < 0.9
    used = np.unique(np.concatenate([e.classes for e in complete]))
    assert set(used.tolist()) == set(collection.segment_classes)
