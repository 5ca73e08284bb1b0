"""The registry of formats: every one recognizes its own records, and opens them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    DataError,
    FeatureSet,
    Format,
    RecordError,
    RecordWarning,
    VideoSchema,
    encode_frames,
    encode_video,
    formats,
    open_collection,
    open_records,
    register_format,
    write_records,
)
from pyseg.data.formats import look
from pyseg.errors import MissingFileError

from .conftest import ratings_of


def videos_of(features: FeatureSet, level: str = "frame") -> list[bytes]:
    """Returns records of three videos of features."""
    schema, width = features.schema, features.schema.width
    if level == "frame":
        frames = np.zeros((7, width), np.uint8)
        return [encode_frames(f"v{n}", frames, [n], schema=schema) for n in range(3)]
    means = VideoSchema(features.features, features.id_key)
    return [encode_video(f"v{n}", np.zeros(width, np.float32), [n], means) for n in range(3)]


@pytest.mark.parametrize("format", formats(), ids=lambda format: format.name)
def test_every_format_recognizes_and_opens_its_records(format, tmp_path: Path) -> None:
    features = format.features or FeatureSet((("clip", 4),), id_key="name")
    path = tmp_path / "a.tfrecord"
    write_records(path, videos_of(features, format.level))
    if format.described_by:
        features.write(tmp_path / format.described_by)
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n2,c\n")
    found = look(path)
    assert (found.format.name, found.features) == (format.name, features)
    collection = open_collection(tmp_path, test_fraction=0.0)
    assert (collection.level, collection.features) == (format.level, features)
    videos = {video.id: video.classes.tolist() for video in collection.videos("train")}
    assert videos == {"v0": [0], "v1": [1], "v2": [2]}


CLIP = FeatureSet((("clip", 4),), frame_seconds=0.5, segment_size=6, ranges=((0.0, 1.0),))


def described(folder: Path, features: FeatureSet = CLIP, name: str = "a.tfrecord") -> Path:
    """Writes records, the file that describes them, and a vocabulary; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / name, videos_of(features))
    features.write(folder / "features.json")
    (folder / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n2,c\n")
    return folder


@pytest.mark.parametrize("where", ["x", "x/records", "x/records/shards"])
def test_a_description_is_beside_the_records_or_above(tmp_path: Path, where: str) -> None:
    described(tmp_path / "x")
    (tmp_path / "x/a.tfrecord").unlink()
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    write_records(tmp_path / where / "a.tfrecord", videos_of(CLIP))
    assert open_collection(tmp_path / "x").features == CLIP
    if where != "x/records/shards":
        assert open_collection(tmp_path / where).features == CLIP


def test_a_description_has_precedence_over_names(tmp_path: Path) -> None:
    """Frames called as YouTube-8M's, at two a second."""
    features = FeatureSet((("rgb", 3), ("audio", 2)), frame_seconds=0.5)
    described(tmp_path, features)
    collection = open_collection(tmp_path)
    assert (collection.name, collection.features) == ("features", features)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((("clip", 5),), r"expected 4 bytes a frame in feature list 'clip', .* found 5 bytes"),
        ((("dino", 4),), r"expected 4 bytes a frame .* found the features id \(2\), labels"),
    ],
)
def test_records_that_are_not_as_described(tmp_path: Path, found, message: str) -> None:
    described(tmp_path)
    write_records(tmp_path / "a.tfrecord", videos_of(FeatureSet(found)))
    where = rf"a\.tfrecord: record 0: {message}"
    with pytest.raises(DataError, match=where):
        open_collection(tmp_path)
    with pytest.raises(DataError, match=r"a\.tfrecord holds the features id"):
        open_collection(tmp_path, on_error="skip")
    write_records(tmp_path / "b.tfrecord", videos_of(CLIP))
    notes = open_collection(tmp_path, on_error="skip").notes
    assert f"left out 1 file of other records: {tmp_path / 'a.tfrecord'}" in notes


def test_a_described_id_that_is_missing(tmp_path: Path) -> None:
    described(tmp_path)
    replace(CLIP, id_key="name").write(tmp_path / "features.json")
    with pytest.raises(DataError, match=r"expected the id in context feature 'name', as .*json"):
        open_collection(tmp_path)


def test_classes_of_described_records_come_from_a_vocabulary(tmp_path: Path) -> None:
    described(tmp_path)
    (tmp_path / "vocabulary.csv").unlink()
    with pytest.raises(DataError, match=r"expected a vocabulary\.csv beside it .*Index,Name"):
        open_collection(tmp_path)


def test_folders_may_have_descriptions_of_their_own(tmp_path: Path) -> None:
    """The same features may be described twice; others are left out."""
    for name in ("a", "b"):
        described(tmp_path / name, name=f"{name}.tfrecord")
    described(tmp_path / "c", replace(CLIP, frame_seconds=1.0), "c.tfrecord")
    (tmp_path / "a/vocabulary.csv").rename(tmp_path / "vocabulary.csv")
    collection = open_collection(tmp_path)
    assert (len(collection.video_paths), collection.features) == (2, CLIP)
    assert "(frame_seconds: expected 0.5, found 1.0)" in collection.notes[0]


def test_a_malformed_description_names_itself(tmp_path: Path) -> None:
    described(tmp_path)
    (tmp_path / "features.json").write_text('{"format_version": 1}')
    with pytest.raises(DataError, match=r"features\.json: features: expected list, found None"):
        open_collection(tmp_path)


def test_strangers_may_describe_their_records_in_another_file(tmp_path: Path) -> None:
    described(tmp_path)
    (tmp_path / "features.json").rename(tmp_path / "width.txt")
    (tmp_path / "width.txt").write_text("4")

    def describe(path: Path) -> FeatureSet:
        return FeatureSet((("clip", int(path.read_text())),))

    register_format(
        Format("own", "own", None, open_records, described_by="width.txt", describe=describe)
    )
    collection = open_collection(tmp_path)
    assert (collection.name, collection.feature_sizes) == ("own", (4,))


@pytest.mark.parametrize(
    ("format", "sizes", "classes"),
    [
        ("youtube8m", (512, 128), "vocabulary.csv"),
        ("youtube8m-videos", (512, 128), "vocabulary.csv"),
        ("audioset", (512,), "class_labels_indices.csv"),
    ],
)
def test_widths_are_those_of_the_records(
    tmp_path: Path, format: str, sizes: tuple[int, ...], classes: str
) -> None:
    """The number of classes is then not the published one: it must be said."""
    known = next(known for known in formats() if known.name == format)
    names = [name for name, _ in known.features.features]
    features = replace(known.features, features=tuple(zip(names, sizes, strict=True)))
    write_records(tmp_path / "a.tfrecord", videos_of(features, known.level))
    with pytest.raises((DataError, MissingFileError), match=classes):
        open_collection(tmp_path)
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n2,c\n")
    (tmp_path / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n0,/m/a,a\n1,/m/b,b\n2,/m/c,c\n"
    )
    collection = open_collection(tmp_path, test_fraction=0.0)
    assert (collection.features, collection.num_classes) == (features, 3)
    widths = {video.frames.shape[1] for video in collection.videos("train")}
    assert widths == {sum(sizes)}


def test_files_of_other_widths_are_left_out(tmp_path: Path) -> None:
    for number, width in enumerate((8, 8, 4)):
        features = FeatureSet((("rgb", width), ("audio", 2)))
        write_records(tmp_path / f"{number}.tfrecord", videos_of(features))
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n2,c\n")
    collection = open_collection(tmp_path)
    assert collection.feature_sizes == (8, 2)
    assert "features: expected rgb (8), audio (2), found rgb (4), audio (2)" in collection.notes[0]


def test_records_like_audiosets_with_another_id(tmp_path: Path) -> None:
    features = FeatureSet((("audio_embedding", 128),), 0.96)
    write_records(tmp_path / "a.tfrecord", videos_of(features))
    assert open_collection(tmp_path).features == features
    write_records(tmp_path / "a.tfrecord", videos_of(replace(features, id_key="clip_id")))
    with pytest.raises(DataError, match=r"record 0: expected the id in .* 'video_id', found"):
        open_collection(tmp_path)


@pytest.mark.parametrize("compress", [False, True])
def test_segments_of_other_lengths_are_refused(tmp_path: Path, compress: bool) -> None:
    """Not cut: the features say how long segments are, and the records where they end."""
    described(tmp_path)
    ratings, records = ratings_of([(0, 1, 1.0), (12, 1, 0.0), (18, 1, 1.0)]), []
    for id, ends in (("a", (6, 18, 20)), ("b", (6, 22, 24))):  # 20: the end of the video
        frames = np.zeros((20, 4), np.uint8)
        records.append(
            encode_frames(id, frames, [1], ratings, CLIP.schema, segment_ends=np.array(ends))
        )
    write_records(tmp_path / "a.tfrecord", records, compress=compress)
    collection = open_collection(tmp_path)
    with pytest.raises(
        RecordError, match=r"a\.tfrecord: record 1 .* of 6 frames, found one of 10, .* 12 to 22"
    ):
        collection.segments("all")
    assert len(list(collection.videos("all"))) == 2
    skipping = open_collection(tmp_path, on_error="skip")
    with pytest.warns(RecordWarning, match="skipped 1 record"):
        kept = skipping.segments("all")
    assert [segment.id for segment in kept] == ["a:0", "a:12", "a:18"]
