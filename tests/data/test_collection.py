from __future__ import annotations

import functools
import gzip
import itertools
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    DataError,
    FrameDataset,
    FrameSchema,
    ReadReport,
    RecordError,
    VideoDataset,
    VideoSchema,
    encode_frames,
    encode_video,
    find_shards,
    held_out,
    open_collection,
    read_records,
    write_records,
)
from pyseg.data.audioset import SCHEMA
from pyseg.data.records import RecordWarning

from .conftest import ratings_of

IDS = [f"v{number:03d}" for number in range(40)]
HELD = {id for id in IDS if held_out(id)}
RATED = ratings_of([(0, 1, 1.0), (5, 2, 0.0)])


def frames(path: Path, ids: list[str], rated: bool = False, labels: tuple[int, ...] = (1,)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = np.ones((12, 1152), np.uint8)
    write_records(
        path, [encode_frames(id, features, labels, RATED if rated else None) for id in ids]
    )


def unlabelled(path: Path) -> None:
    schema = FrameSchema(labels_key=None)
    write_records(path, [encode_frames("test", np.ones((3, 1152), np.uint8), [], None, schema)])


def vocabulary(folder: Path, names: list[str], file: str = "vocabulary.csv") -> None:
    rows = "".join(f"{number},{name}\n" for number, name in enumerate(names))
    (folder / file).write_text("Index,Name\n" + rows)


def ids(dataset) -> set[str]:
    found = [example.id.split(":")[0] for example in dataset]
    return set(found)


def test_sample() -> None:
    collection = open_collection("sample")
    assert collection.name == "sample"
    assert collection.num_classes == len(collection.class_names) == 44
    assert collection.segment_classes == list(range(40))
    assert collection.notes == ()
    assert len(collection.segments("train")) + len(collection.segments("test")) == 2400
    parts = [ids(collection.videos(part)) for part in ("train", "test")]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 500
    assert ids(collection.segments("test")) == parts[1]
    assert ids(collection.segments("train")) < parts[0]


def test_the_train_partition_is_not_split(tmp_path: Path) -> None:
    frames(tmp_path / "train00.tfrecord", IDS[:20])
    frames(tmp_path / "validate00.tfrecord", IDS[20:], rated=True)
    collection = open_collection(tmp_path)
    for cache in (False, True):
        held = HELD & set(IDS[20:])
        assert 0 < len(held) < 20
        assert ids(collection.videos("test", cache=cache)) == held
        assert ids(collection.videos("train", cache=cache)) == set(IDS) - held
        assert ids(collection.videos("all", cache=cache)) == set(IDS)
        assert ids(collection.segments("test", cache=cache)) == held
        assert ids(collection.segments("train", cache=cache)) == set(IDS[20:]) - held


@pytest.mark.parametrize("rated", [False, True])
def test_a_train_partition_alone_or_rated_is_split(tmp_path: Path, rated: bool) -> None:
    """Otherwise evaluation would have no videos, or only training videos."""
    frames(tmp_path / "train00.tfrecord", IDS, rated=rated)
    if rated:
        frames(tmp_path / "validate00.tfrecord", ["abcd"])
    collection = open_collection(tmp_path)
    assert ids(collection.videos("test")) - {"abcd"} == HELD
    assert not ids(collection.videos("train")) & HELD
    if rated:
        assert ids(collection.segments("test")) == HELD
    else:
        assert collection.segments("test") is None
        assert not collection.has_segments
        assert "no rated segments in these records" in collection.notes


def test_ratings_may_come_late_in_a_file(tmp_path: Path) -> None:
    features = np.ones((12, 1152), np.uint8)
    records = [encode_frames(id, features, [1], RATED if id == "v030" else None) for id in IDS]
    write_records(tmp_path / "validate0000.tfrecord", records)
    assert ids(open_collection(tmp_path).segments("all")) == {"v030"}


@pytest.mark.parametrize(
    "name", ["rated00", "train00", "train/validate0000", "train/train0000", "trainspotting/x00"]
)
@pytest.mark.parametrize("compress", [False, True])
def test_ratings_are_found_under_any_name(tmp_path: Path, name: str, compress: bool) -> None:
    """In the last record only, and in another file than the first."""
    for shard in range(3):
        path = tmp_path / f"{name}{shard}.tfrecord"
        path.parent.mkdir(exist_ok=True)
        features = np.ones((2, 1152), np.uint8)
        last = shard == 1
        records = [encode_frames(f"s{shard}v{k}", features, [1]) for k in range(70)]
        if last:
            rated = ratings_of([(0, 1, 1.0)])
            # A context longer than the part of a record that is read first.
            context = {"note": "segment" * 300}
            records.append(encode_frames("rated", features, [1], rated, context=context))
        write_records(path, records, compress=compress)
    collection = open_collection(tmp_path)
    assert ids(collection.segments("all")) == {"rated"}
    assert not collection.train_paths


def test_a_name_in_a_value_is_no_rating(tmp_path: Path) -> None:
    record = encode_frames("segment_labels", np.ones((2, 1152), np.uint8), [1])
    write_records(tmp_path / "x.tfrecord", [record])
    assert not open_collection(tmp_path).has_segments


def test_labels_may_come_late_in_a_file(tmp_path: Path) -> None:
    unlabelled(tmp_path / "a.tfrecord")
    [first] = read_records(tmp_path / "a.tfrecord")
    rest = [encode_frames(id, np.ones((3, 1152), np.uint8), [1]) for id in IDS]
    write_records(tmp_path / "a.tfrecord", [first, *rest])
    with pytest.warns(RecordWarning, match="found 1 record without labels"):
        assert ids(open_collection(tmp_path).videos("all")) == {"test", *IDS}


@pytest.mark.parametrize("level", ["frame", "video"])
def test_ids_may_have_the_key_of_the_first_releases(tmp_path: Path, level: str) -> None:
    for number, key in enumerate(["video_id", "video_id", "id"]):
        name = IDS[number]
        if level == "frame":
            schema = FrameSchema(id_key=key)
            record = encode_frames(name, np.ones((12, 1152), np.uint8), [number], RATED, schema)
        else:
            schema = VideoSchema(id_key=key)
            record = encode_video(name, np.ones(1152), [number], schema)
        write_records(tmp_path / f"x{number}.tfrecord", [record])
    collection = open_collection(tmp_path)
    assert (collection.name, collection.level) == ("youtube8m", level)
    assert ids(collection.videos("all")) == set(IDS[:2])
    if level == "frame":
        assert ids(collection.segments("all")) == set(IDS[:2])
    assert [labels.tolist() for _, labels in collection.label_lists("all")] == [[0], [1]]
    assert "(id_key: expected video_id, found id)" in collection.notes[0]


def test_names_of_records(tmp_path: Path) -> None:
    frames(tmp_path / "a.tfrecord", ["a"], rated=True)
    names = ["a.tfrecords", "a.tfrec.gz", "a.tfrecord-00000-of-00002", "a.tfrecord-00001-of-00002"]
    for name in names:
        shutil.copy(tmp_path / "a.tfrecord", tmp_path / name)
    (tmp_path / "a.tfrecord.part").write_bytes(b"")
    (tmp_path / "tfrecord.txt").write_text("text")
    assert {Path(path).name for path in find_shards(tmp_path)} == {"a.tfrecord", *names}
    assert open_collection(tmp_path).has_segments


def test_records_without_their_usual_name(tmp_path: Path) -> None:
    frames(tmp_path / "part-00000-of-00001", IDS, rated=True)
    for name in (".hidden", "x.part"):
        shutil.copy(tmp_path / "part-00000-of-00001", tmp_path / name)
    vocabulary(tmp_path, ["a", "b", "c"])
    for data in (tmp_path, f"{tmp_path}/*[01v]*", tmp_path / "part-00000-of-00001"):
        collection = open_collection(data)
        assert len(collection.videos("all", cache=True)) == len(IDS)
        assert collection.has_segments
        assert collection.num_classes == 3


def test_damaged_records_are_skipped_with_on_error_skip(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    frames(path, IDS, rated=True)
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # in the first record
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match="record 0"):
        open_collection(path)
    collection = open_collection(path, on_error="skip")
    with pytest.warns(RecordWarning, match="skipped 2 records"):
        assert ids(collection.segments("all")) == set(IDS[1:-1])
    report = ReadReport()
    lists = list(collection.label_lists("all", report))
    assert sum(len(offsets) - 1 for offsets, _ in lists) == len(IDS) - 2
    assert report.skipped == 2
    with pytest.raises(ValueError, match="on_error: expected 'raise' or 'skip'"):
        open_collection(path, on_error="no")


def test_whether_a_part_is_empty(tmp_path: Path) -> None:
    frames(tmp_path / "a00.tfrecord", IDS)
    held, free = min(HELD), min(set(IDS) - HELD)
    frames(tmp_path / "b00.tfrecord", [free], rated=True)
    collection = open_collection(tmp_path)
    assert collection.is_empty("test")
    assert not collection.is_empty("test", rated=False)
    assert not collection.is_empty("train")
    assert collection.is_empty("train", classes=[3])
    frames(tmp_path / "b00.tfrecord", [held], rated=True)
    assert collection.is_empty("train")
    assert not collection.is_empty("test")
    assert replace(collection, test_fraction=0.0).is_empty("test")
    (tmp_path / "b00.tfrecord").unlink()
    assert open_collection(tmp_path).is_empty("all", rated=True)


def test_labels_are_for_audioset_alone(tmp_path: Path) -> None:
    frames(tmp_path / "a00.tfrecord", IDS)
    with pytest.raises(DataError, match=r"a00.tfrecord: expected .* takes --labels"):
        open_collection(tmp_path, labels="x.tsv")


def test_split_follows_fraction_and_seed(tmp_path: Path) -> None:
    frames(tmp_path / "a00.tfrecord", IDS, rated=True)
    half = open_collection(tmp_path, test_fraction=0.5, seed=3)
    expected = {id for id in IDS if held_out(id, 0.5, 3)}
    assert ids(half.videos("test")) == ids(half.segments("test")) == expected
    none = open_collection(tmp_path, test_fraction=0)
    assert ids(none.videos("test")) == set()
    assert ids(none.segments("train")) == set(IDS)
    with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\], found 1.5"):
        open_collection(tmp_path, test_fraction=1.5)
    with pytest.raises(ValueError, match='part: expected "train", "test" or "all", found \'val\''):
        half.videos("val")


def test_the_training_part_is_split_in_its_turn(tmp_path: Path) -> None:
    """The test videos are then in no part, and their labels are not counted."""
    frames(tmp_path / "a00.tfrecord", IDS, rated=True)
    inner = open_collection(tmp_path).without_test(0.5, 1)
    rest = set(IDS) - HELD
    expected = {id for id in rest if held_out(id, 0.5, 1)}
    assert 0 < len(expected) < len(rest)
    for cache in (False, True):
        assert ids(inner.videos("test", cache=cache)) == expected
        assert ids(inner.segments("train", cache=cache)) == rest - expected
        assert ids(inner.videos("all", cache=cache)) == rest
    assert sum(len(offsets) - 1 for offsets, _ in inner.label_lists("all")) == len(rest)
    with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\], found 2"):
        inner.without_test(2, 1)


@pytest.mark.parametrize("level", ["frame", "video"])
def test_label_lists_are_those_of_the_videos(tmp_path: Path, level: str) -> None:
    path = tmp_path / "validate0000.tfrecord"
    labels = {id: [number % 3, 3 + number % 2] for number, id in enumerate(IDS)}
    if level == "frame":
        records = [encode_frames(id, np.ones((2, 1152), np.uint8), labels[id]) for id in IDS]
    else:
        records = [encode_video(id, np.ones(1152), labels[id]) for id in IDS]
    write_records(path, records)
    collection = open_collection(tmp_path)
    for part in ("train", "test", "all"):
        expected = [labels[id] for id in IDS if part == "all" or (id in HELD) == (part == "test")]
        found = []
        for offsets, flat in collection.label_lists(part):
            found += [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        assert found == expected
    with pytest.raises(ValueError, match='part: expected "train", "test" or "all"'):
        list(collection.label_lists("rest"))


def test_duplicate_labels_of_a_record_count_once(tmp_path: Path) -> None:
    path = tmp_path / "validate0000.tfrecord"
    records = [
        encode_frames("a", np.ones((2, 1152), np.uint8), [3, 1, 3, 2, 1]),
        encode_frames("b", np.ones((2, 1152), np.uint8), [5, 4]),
    ]
    write_records(path, records)
    found = {example.id: example.classes.tolist() for example in FrameDataset(path)}
    assert found == {"a": [3, 1, 2], "b": [5, 4]}
    write_records(path, [encode_video("a", np.ones(1152), [2, 2, 0])])
    [video] = VideoDataset(path)
    assert (video.classes.tolist(), video.scores.tolist()) == ([2, 0], [1.0, 1.0])


def test_segments_are_read_once(tmp_path: Path) -> None:
    frames(tmp_path / "a00.tfrecord", IDS, rated=True)
    collection = open_collection(tmp_path)
    train, test = collection.segments("train", shuffle=True, seed=1), collection.segments("test")
    assert train._memory is test._memory
    assert collection.segments("train", classes=[1])._memory is not train._memory
    assert len(train) + len(test) == 2 * len(IDS)
    kept = collection.segments("all", keep=lambda id: id < "v010")
    assert ids(kept) == set(IDS[:10])
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        collection.segments("train", cache=True, colour="red")


def test_a_collection_is_read_in_another_way(tmp_path: Path) -> None:
    """A cache is shared only by data sets that read the same files in the same way."""
    frames(tmp_path / "a00.tfrecord", IDS[:20], rated=True)
    frames(tmp_path / "a01.tfrecord", IDS[20:], rated=True)
    collection = open_collection(tmp_path)
    assert ids(collection.segments("all")) == set(IDS)
    first = replace(collection, segment_paths=collection.segment_paths[:1])
    assert ids(first.segments("test")) == HELD & set(IDS[:20])
    assert ids(first.videos("all")) == set(IDS)
    make = functools.partial(collection.make_segments, classes=[2])
    other = replace(collection, make_segments=make)
    assert {tuple(example.classes) for example in other.segments("all")} == {(0,)}
    assert len(other.segments("all")) == len(IDS)
    assert len(collection.segments("all")) == 2 * len(IDS)


def test_data_sets_can_be_sent_to_workers(tmp_path: Path) -> None:
    frames(tmp_path / "a00.tfrecord", IDS, rated=True)
    collection = open_collection(tmp_path)
    for dataset in (collection.videos("test"), collection.segments("test")):
        assert ids(pickle.loads(pickle.dumps(dataset))) == HELD


def test_vocabulary_beside_or_above_the_records(tmp_path: Path) -> None:
    frames(tmp_path / "frames/validate/validate00.tfrecord", ["abcd"], rated=True)
    data = tmp_path / "frames/validate"
    bare = open_collection(data)
    assert (bare.num_classes, bare.class_names, bare.segment_classes) == (3862, None, None)
    assert bare.notes == ("no vocabulary.csv: 3862 classes without names",)
    vocabulary(tmp_path / "frames", ["a", "b", "c"])
    vocabulary(tmp_path / "frames", ["a", "b"], "segment_vocabulary.csv")
    above = open_collection(data)
    assert (above.num_classes, above.class_names, above.segment_classes) == (
        3, ["a", "b", "c"], [0, 1]
    )  # fmt: skip
    assert above.notes == ()
    vocabulary(tmp_path, ["x", "y", "z", "w"], "mine.csv")
    assert open_collection(data, vocabulary=tmp_path / "mine.csv").class_names == list("xyzw")
    vocabulary(tmp_path / "frames", ["a"] * 9, "segment_vocabulary.csv")
    with pytest.raises(DataError, match="expected classes below 3, found 8"):
        open_collection(data)


def test_the_most_common_kind_is_taken(tmp_path: Path) -> None:
    video = encode_video("abcd", np.zeros(1152), [1])
    for shard in range(3):
        write_records(tmp_path / f"video{shard:02d}.tfrecord", [video])
    frames(tmp_path / "frames.tfrecord", ["efgh"])
    unlabelled(tmp_path / "test00.tfrecord")
    write_records(tmp_path / "zzz.tfrecord", [b""])
    collection = open_collection(tmp_path)
    assert collection.level == "video"
    assert collection.segments("all") is None
    assert ids(collection.videos("all")) == {"abcd"}
    assert collection.notes[:3] == (
        f"left out 1 file of YouTube-8M frames (rgb, audio): {tmp_path}/frames.tfrecord",
        f"left out 1 file of records without labels: {tmp_path}/test00.tfrecord",
        f"left out 1 file of other records: {tmp_path}/zzz.tfrecord",
    )


def test_the_unlabeled_test_partition_is_left_out(tmp_path: Path) -> None:
    frames(tmp_path / "validate00.tfrecord", IDS)
    for shard in range(3):
        unlabelled(tmp_path / f"test0{shard}.tfrecord")
    collection = open_collection(tmp_path)
    assert ids(collection.videos("all")) == set(IDS)
    assert collection.notes[0].startswith("left out 3 files of records without labels: ")


def test_shards_without_records_are_passed_over(tmp_path: Path) -> None:
    frames(tmp_path / "part00.tfrecord", IDS, rated=True)
    for number in range(1, 40):
        (tmp_path / f"part{number:02d}.tfrecord").touch()
    (tmp_path / "other.tfrecord.gz").write_bytes(gzip.compress(b""))
    collection = open_collection(tmp_path)
    assert (
        f"left out 40 files of no records: {tmp_path / 'part01.tfrecord'}, ..." in collection.notes
    )
    assert collection.video_paths == (str(tmp_path / "part00.tfrecord"),)
    assert ids(collection.segments("all")) == set(IDS)
    with pytest.raises(
        DataError, match=r"expected frames that .*AudioSet frames.*; .*part01.tfrecord has no rec"
    ):
        open_collection(tmp_path / "part01.tfrecord")


def test_a_series_of_two_kinds(tmp_path: Path) -> None:
    """Names do not tell them apart: every file is opened."""
    video = encode_video("abcd", np.zeros(1152), [1])
    for shard in range(40):
        path = tmp_path / f"data{shard:02d}.tfrecord"
        if shard % 5 == 0:
            write_records(path, [video])
        else:
            frames(path, [f"f{shard}"])
    collection = open_collection(tmp_path)
    assert len(ids(collection.videos("all"))) == 32
    assert "left out 8 files of YouTube-8M mean features" in collection.notes[0]


def test_a_glob_may_take_in_the_tables(tmp_path: Path) -> None:
    frames(tmp_path / "train00.tfrecord", ["abcd"])
    vocabulary(tmp_path, ["a", "b"])
    assert open_collection(f"{tmp_path}/*").num_classes == 2


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\*\.tfrecord: no file matches"):
        open_collection(str(tmp_path / "none*.tfrecord"))
    with pytest.raises(FileNotFoundError, match="no file in this folder ends in"):
        open_collection(tmp_path)


def test_records_of_no_known_kind(tmp_path: Path) -> None:
    schema = type(SCHEMA)(features=(("depth", 4),))
    path = tmp_path / "x00.tfrecord"
    write_records(path, [encode_frames("abcd", np.ones((3, 4), np.uint8), [1], None, schema)])
    with pytest.raises(
        DataError,
        match=r"features.json .*AudioSet .*x00.tfrecord holds the features id",
    ):
        open_collection(tmp_path)
    path.unlink()
    unlabelled(tmp_path / "test00.tfrecord")
    with pytest.raises(DataError, match=r"expected .*test00.tfrecord has no labels"):
        open_collection(tmp_path)


def test_not_records(tmp_path: Path) -> None:
    path = tmp_path / "train00.tfrecord"
    path.write_text("<html>404</html>" * 10)
    with pytest.raises(RecordError, match=r"train00.tfrecord.*HTML"):
        open_collection(tmp_path)


def test_audioset_without_its_tables(tmp_path: Path) -> None:
    record = encode_frames("abcd", np.ones((10, 128), np.uint8), [3], None, SCHEMA,
                           context={"start_time_seconds": 0.0})  # fmt: skip
    write_records(tmp_path / "eval00.tfrecord", [record])
    bare = open_collection(tmp_path)
    assert (bare.name, bare.num_classes, bare.class_names) == ("audioset", 527, None)
    assert bare.segments("all") is None
    assert bare.notes == ("no strong_labels.tsv: no rated segments",)
    labels = tmp_path / "elsewhere.tsv"
    labels.write_text("filename\tevent_label\tonset\toffset\nabcd_0\t/m/a\t0\t9\n")
    with pytest.raises(FileNotFoundError, match=r"class_labels_indices.csv is not beside"):
        open_collection(tmp_path, labels=labels)
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/b,B\n")
    full = open_collection(tmp_path, labels=labels)
    assert full.class_names == ["B", "/m/a"]
    assert full.segment_classes == [1]
    assert [e.scores.tolist() for e in full.segments("all")] == [[1.0], [1.0]]


def test_the_real_video_level_shards(shared: Path) -> None:
    collection = open_collection(shared / "data/yt8m")
    assert (collection.name, collection.level) == ("youtube8m", "video")
    assert collection.feature_sizes == (1024, 128)
    assert collection.num_classes == len(collection.class_names) == 3862
    [note] = collection.notes
    assert note.startswith("left out 1 file of YouTube-8M frames (rgb, audio): ")
    videos = collection.videos("all", cache=True)
    assert len(videos) == 7719
    labels = np.concatenate([video.classes for video in videos])
    assert labels.max() < 3862
    assert 2.5 < len(labels) / len(videos) < 3.5
    train, test = (collection.videos(part, cache=True) for part in ("train", "test"))
    assert len(train) + len(test) == 7719
    assert not ids(train) & ids(test)
    frame = open_collection(shared / "data/yt8m/frame_level_example.tfrecord")
    assert (frame.level, frame.num_classes) == ("frame", 3862)
