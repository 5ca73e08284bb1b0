"""Writing collections: whole or not there, resumed, and what is told about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    Annotations,
    FeatureSet,
    Interval,
    SourceVideo,
    open_collection,
    read_frames,
    write_collection,
    writing,
)
from pyseg.data.vocabulary import read_segment_vocabulary, read_vocabulary
from pyseg.errors import ArgumentError, DataError

FEATURES = FeatureSet((("clip", 3), ("sound", 2)), ranges=((0.0, 1.0), (-1.0, 1.0)))


def video(id: str, frames: int = 12) -> SourceVideo:
    values = np.linspace(0, 1, 3 * frames).reshape(frames, 3)
    return SourceVideo(id, frames, lambda: [values, np.full((frames, 2), 7, np.uint8)])


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 100)  # two videos of 12 frames


def test_what_is_written_is_read(tmp_path: Path) -> None:
    said = [
        Interval("a", 0, 5, "dog", 1.0),
        Interval("a", 0, 5, "dog", 0.0),
        Interval("a", 5, 12, "cat, big", 0.0),
        Interval("b", 1, 2, "bird", 1.0),
    ]
    annotations = Annotations.match(["a", "b", "c"], said, [("c", "zebra")])
    report = write_collection(
        tmp_path / "x" / "out", FEATURES, [video(id) for id in "abc"], annotations
    )
    folder = tmp_path / "x" / "out"
    assert listing(folder) == [
        "features.json", "segment_vocabulary.csv", "videos-00000.tfrecord", "vocabulary.csv",
    ]  # fmt: skip
    names = ["bird", "cat, big", "dog", "zebra"]
    assert read_vocabulary(folder / "vocabulary.csv") == names
    assert read_segment_vocabulary(folder / "segment_vocabulary.csv") == ([1, 2], names[1:3])
    assert FeatureSet.read(folder / "features.json") == FEATURES
    a, b, c = read_frames(folder / "videos-00000.tfrecord", FEATURES.schema)
    assert a.ratings is not None
    assert [part.tolist() for part in a.ratings] == [[0, 5, 10], [2, 1, 1], [0.5, 0.0, 0.0]]
    assert [record.labels.tolist() for record in (a, b, c)] == [[2], [0], [3]]
    assert (b.ratings, c.ratings) == (None, None)
    assert a.frames[0, 0] == 0
    assert a.frames[-1, 2] == 255
    assert (a.frames[:, 3:] == 7).all()
    assert (report.videos, report.frames, report.segments) == (3, 36, 3)
    assert report.rated == {"dog": 1, "cat, big": 2}
    assert report.too_short == 1
    assert report.conflicts == ["1 in 'a', such as dog in the segment at 0 s"]
    assert (report.values, report.clipped) == ({"clip": 108}, {})
    collection = open_collection(folder)
    assert collection.features == FEATURES
    assert (collection.class_names, collection.segment_classes) == (names, [1, 2])


def test_clipped_values_are_counted_by_feature(tmp_path: Path) -> None:
    values = [np.array([[0, 0.5, 1.5]] * 4), np.array([[-1.0, 1.0]] * 4)]
    report = write_collection(tmp_path, FEATURES, [SourceVideo("a", 4, lambda: values)])
    assert report.clipped == {"clip": 4}
    assert "clip: 33.33% of the values were clipped" in list(report.lines())
    assert "sound: 0.00% of the values were clipped" in list(report.lines())


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_command_continues(tmp_path: Path) -> None:
    reads: list[str] = []

    def counted(id: str, stamp: str = "") -> SourceVideo:
        def read() -> list[np.ndarray]:
            reads.append(id)
            if stop and id == "e":
                raise KeyboardInterrupt
            return list(video(id).read())

        return SourceVideo(id, 12, read, stamp)

    stop = True
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        write_collection(broken, FEATURES, [counted(id) for id in "abcdef"])
    assert [name for name in listing(broken) if not name.startswith(".collection")] == []
    with pytest.raises(FileNotFoundError):
        open_collection(broken)  # no part of it is taken for a collection
    stop = False
    reads.clear()
    report = write_collection(broken, FEATURES, [counted(id) for id in "abcdef"])
    assert reads == ["e", "f"]
    expected = write_collection(whole, FEATURES, [video(id) for id in "abcdef"])
    assert report == expected
    assert listing(broken) == listing(whole)
    for name in listing(whole):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("change", ["stamp", "ratings", "ranges"])
def test_another_command_begins_anew(tmp_path: Path, change: str) -> None:
    def stopped() -> list[np.ndarray]:
        raise KeyboardInterrupt

    begun = [video("a"), video("b"), SourceVideo("c", 12, stopped)]
    with pytest.raises(KeyboardInterrupt):
        write_collection(tmp_path, FEATURES, begun)
    features = FEATURES
    if change == "ranges":
        features = FeatureSet(FEATURES.features, ranges=((0.0, 2.0), (-1.0, 1.0)))
    annotations = Annotations.match(
        "a", [Interval("a", 0, 5, "dog")] if change == "ratings" else []
    )
    videos = [video("a"), video("b"), video("c")]
    if change == "stamp":
        zeros = [np.zeros((12, 3)), np.zeros((12, 2))]
        videos[0] = SourceVideo("a", 12, lambda: zeros, "another time")
    write_collection(tmp_path, features, videos, annotations)
    [a, _] = read_frames(tmp_path / "videos-00000.tfrecord", FEATURES.schema)
    assert a.labels.tolist() == ([0] if change == "ratings" else [])
    assert a.frames[-1, 2] == {"ranges": 127, "stamp": 0, "ratings": 255}[change]


@pytest.mark.usefixtures("small_shards")
def test_a_collection_is_only_replaced_if_asked_to(tmp_path: Path) -> None:
    write_collection(tmp_path, FEATURES, [video(id) for id in "abcd"])
    (tmp_path / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(DataError, match=r"features\.json: expected a folder without a collection"):
        write_collection(tmp_path, FEATURES, [video("z")])
    assert listing(tmp_path) == before
    write_collection(tmp_path, FEATURES, [video("z")], replace=True)
    assert listing(tmp_path) == ["features.json", "notes.txt", "videos-00000.tfrecord"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: [np.zeros((12, 3))], r"video 'b': expected the shapes"),
        (lambda: [np.zeros((11, 3)), np.zeros((11, 2))], r"video 'b': .* found \[\(11, 3\)"),
        (lambda: [np.full((12, 3), np.nan), np.zeros((12, 2))], "video 'b', clip: .*NaN"),
    ],
)
def test_a_video_that_cannot_be_read(
    tmp_path: Path, wrong: Callable[[], list[np.ndarray]], expected: str
) -> None:
    videos = [video("a"), SourceVideo("b", 12, wrong)]
    with pytest.raises(DataError, match=expected):
        write_collection(tmp_path / "out", FEATURES, videos)
    assert listing(tmp_path) == []
    report = write_collection(tmp_path / "out", FEATURES, videos, on_error="skip")
    assert (report.videos, len(report.left_out)) == (1, 1)
    with pytest.raises(DataError, match="no video can be read: video 'b'"):
        write_collection(tmp_path / "none", FEATURES, videos[1:], on_error="skip")
    assert listing(tmp_path / "out") == ["features.json", "videos-00000.tfrecord"]
    assert not (tmp_path / "none").exists()


def test_bad_arguments(tmp_path: Path) -> None:
    for videos, expected in (
        ([], "videos: expected at least one"),
        ([video("a"), video("a")], "id: expected every id once, found 'a' again"),
        ([video("a\nb")], r"id: expected a line of text .* found 'a\\nb'"),
    ):
        with pytest.raises(ArgumentError, match=expected):
            write_collection(tmp_path / "out", FEATURES, videos)
    outside = Annotations.match("a", [Interval("a", 50, 60, "dog", 1.0, "r.csv, line 2")])
    with pytest.raises(DataError, match=r"r\.csv, line 2: expected times within the 12 s of 'a'"):
        write_collection(tmp_path / "out", FEATURES, [video("a")], outside)
    assert listing(tmp_path) == []
