"""More ratings for a collection that exists: from answers about it to another one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pyseg import _cli
from pyseg.data import (
    FeatureSet,
    FrameRecord,
    FrameSchema,
    encode_frames,
    encode_video,
    open_collection,
    rate_collection,
    read_frames,
    write_records,
    writing,
)
from pyseg.data import __main__ as data_command
from pyseg.data.audioset import SCHEMA
from pyseg.errors import ArgumentError, DataError, RecordError

RATINGS = "video,start,end,class,score\n"
ANSWERS = "video,start,end,class,score,rater,reason,time\n"


def run(*words: str | Path) -> None:
    data_command.main(["import", *map(str, words)])


def records_of(folder: Path) -> dict[str, FrameRecord]:
    collection = open_collection(folder)
    schema = collection.features.schema
    return {
        record.id: record for path in collection.video_paths for record in read_frames(path, schema)
    }


def ratings_of(record: FrameRecord) -> dict[tuple[int, int], float]:
    if record.ratings is None:
        return {}
    starts, classes, scores = (part.tolist() for part in record.ratings)
    return dict(zip(zip(starts, classes, strict=True), scores, strict=True))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_answers_about_a_collection_become_its_ratings(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = content(clips)
    lines = [
        "v00,0,3,Dog,0,ann,random,\n",  # was 1
        "v00,3,6,Dog,1,ann,random,\n",  # as before
        'v00,0,3,"Cars, red",1,ann,change,\n',  # a new class
        "v01,0,3,Dog,0,ann,change,\n",  # new
        "v01,0,3,Cat,0,ann,change,\n",  # was 1, but the raters disagree
        "v01,0,3,Cat,1,bob,change,\n",
        "v02,0,3,Car,,ann,change,\n",  # skipped
        "v02,0,3,Ca",  # of a killed process
    ]
    (tmp_path / "ratings.csv").write_text(ANSWERS + "".join(lines))
    (tmp_path / "labels.csv").write_text("video,class\nv02,Dog\n")
    out = tmp_path / "rated"
    ratings, labels = tmp_path / "ratings.csv", tmp_path / "labels.csv"
    run("--features", clips, "--ratings", ratings, "--labels", labels, "--out", out)

    printed = capsys.readouterr().out
    assert "24 videos, 576 frames; 96 rated segments, 98 ratings" in printed
    assert "of the ratings before, 95 are kept and 1 are changed" in printed
    assert "raters disagree on 1 rating" in printed
    assert f"python -m pyseg.train --data {out}" in printed
    assert content(clips) == original
    assert FeatureSet.read(out / "features.json") == FeatureSet.read(clips / "features.json")
    rated = open_collection(out)
    assert rated.class_names == ["Dog", "Cat", "Car", "Cars, red"]
    before, after = records_of(clips), records_of(out)
    assert list(after) == list(before)
    for id, record in before.items():
        assert np.array_equal(record.frames, after[id].frames)
    expected = ratings_of(before["v00"])
    assert (expected[0, 0], expected[6, 0]) == (1, 1)
    assert ratings_of(after["v00"]) == {**expected, (0, 0): 0, (0, 3): 1}
    assert ratings_of(after["v01"]) == {**ratings_of(before["v01"]), (0, 0): 0}
    assert ratings_of(after["v02"]) == ratings_of(before["v02"])
    assert [after[id].labels.tolist() for id in ("v00", "v01", "v02")] == [[0, 3], [1], [2, 0]]
    segments = rated.segments("all")
    assert segments is not None
    [first] = [segment for segment in segments if segment.id == "v00:0"]
    assert dict(zip(first.classes.tolist(), first.scores.tolist(), strict=True)) == {0: 0, 3: 1}


def test_a_complete_class_does_not_replace_ratings(clips: Path, tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    table.write_text(RATINGS + "v00,0,3,Cat,1\nv01,9,12,Dog,1\n")
    report = rate_collection(clips, tmp_path / "rated", ratings=table, complete="Dog,Cat")
    after = records_of(tmp_path / "rated")
    before = ratings_of(records_of(clips)["v00"])
    cat = {(0, 1): 1.0, (6, 1): 0.0, (12, 1): 0.0, (18, 1): 0.0}
    assert ratings_of(after["v00"]) == {**before, **cat}
    assert report.replaced == 0


def test_audioset_keeps_its_strong_labels(tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "rated"
    folder.mkdir()
    records = []
    for name, start in (("a", 30.0), ("b", 0.0)):
        frames = np.random.default_rng(0).integers(0, 256, (10, 128), np.uint8)
        context = {"start_time_seconds": start}
        records.append(encode_frames(name, frames, [1], None, SCHEMA, context=context))
    write_records(folder / "eval00.tfrecord", records)
    (folder / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/b,"Bark, dog"\n1,/m/a,Music\n'
    )
    (folder / "strong_labels.tsv").write_text(
        "filename\tevent_label\tonset\toffset\na_30000\t/m/a\t0\t9.6\na_30000\t/m/b\t0\t4.8\n"
    )
    (tmp_path / "ratings.csv").write_text(
        RATINGS + 'a,4.8,9.6,"Bark, dog",1\nb,0,4.8,Music,1\nb,4.8,9.6,Wind,0\n'
    )
    report = rate_collection(folder, out, ratings=tmp_path / "ratings.csv")
    rated = open_collection(out)
    assert rated.features.features == (("audio_embedding", 128),)
    assert (rated.features.frame_seconds, rated.features.id_key) == (0.96, "video_id")
    assert rated.class_names == ["Bark, dog", "Music", "Wind"]
    before, after = records_of(folder), records_of(out)
    assert all(np.array_equal(before[id].frames, after[id].frames) for id in "ab")
    assert ratings_of(after["a"]) == {(0, 0): 1, (0, 1): 1, (5, 0): 1, (5, 1): 1}
    assert ratings_of(after["b"]) == {(0, 1): 1, (5, 2): 0}
    assert [after[id].labels.tolist() for id in "ab"] == [[1, 0], [1]]
    assert (report.kept, report.replaced) == (3, 1)


def test_youtube8m_keeps_its_classes(tmp_path: Path) -> None:
    schema = FrameSchema((("rgb", 8), ("audio", 4)))
    frames = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
    (tmp_path / "frames").mkdir()
    write_records(
        tmp_path / "frames" / "validate00.tfrecord",
        [encode_frames("06xy", frames, [2], None, schema)],
    )
    (tmp_path / "frames" / "vocabulary.csv").write_text("Index,Name\n0,Car\n1,Game\n2,Game\n")
    table = tmp_path / "ratings.csv"
    table.write_text(RATINGS + "06xy,5,10,Car,1\n")
    rate_collection(tmp_path / "frames", tmp_path / "rated", ratings=table)
    [record] = records_of(tmp_path / "rated").values()
    assert np.array_equal(record.frames, frames)
    assert (record.labels.tolist(), ratings_of(record)) == ([2, 0], {(5, 0): 1})
    assert open_collection(tmp_path / "rated").features.schema == schema
    table.write_text(RATINGS + "06xy,5,10,Game,1\n")
    with pytest.raises(DataError, match="class 'Game': expected one class, found 2"):
        rate_collection(tmp_path / "frames", tmp_path / "other", ratings=table)


def test_an_interrupted_command_continues(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 5 * 24 * 512)
    table = tmp_path / "ratings.csv"
    table.write_text(RATINGS + "v20,0,3,Dog,1\n")
    done: list[str] = []

    def encode(id: str, *rest: object) -> bytes:
        if id == stop:
            raise KeyboardInterrupt
        done.append(id)
        return encode_frames(id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "encode_frames", encode)
    stop = "v12"
    with pytest.raises(KeyboardInterrupt):
        rate_collection(clips, tmp_path / "rated", ratings=table)
    assert not (tmp_path / "rated" / "features.json").exists()
    stop = ""
    done.clear()
    report = rate_collection(clips, tmp_path / "rated", ratings=table)
    assert done == [f"v{number:02d}" for number in range(10, 24)]
    assert report == rate_collection(clips, tmp_path / "whole", ratings=table)
    assert content(tmp_path / "rated") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out={clips}"], "--out: expected a folder outside of the collection"),
        (["--out={clips}/more"], "--out: expected a folder outside of the collection"),
        (["--fps=2"], "--fps: expected none with --features .*, found 2"),
        (["--feature_name=clip"], "--feature_name: expected none with --features"),
        (["--ratings={none}"], "none.csv: no such file"),
        (["--ratings={late}"], r"late.csv, line 2: expected times within the 12 s of 'v00'"),
        (["--ratings={stranger}"], r"stranger.csv, line 2: expected one of 24 videos, found 'w'"),
    ],
)
def test_what_is_refused(
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    for name, line in (
        ("good", "v00,0,3,Dog,1"),
        ("late", "v00,30,33,Dog,1"),
        ("stranger", "w,0,3,Dog,1"),
    ):
        (tmp_path / f"{name}.csv").write_text(f"{RATINGS}{line}\n")
    places = {name: tmp_path / f"{name}.csv" for name in ("good", "late", "none", "stranger")}
    given: dict[str, str | Path] = {
        "--features": clips,
        "--out": tmp_path / "out",
        "--ratings": places["good"],
    }
    for word in words:
        name, _, value = word.partition("=")
        given[name] = value.format(clips=clips, **places)
    before = content(clips)
    with pytest.raises(SystemExit):
        _cli.run(lambda: run(*(f"{name}={value}" for name, value in given.items())))
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(expected, error), error
    assert content(clips) == before
    assert not (tmp_path / "out").exists()


def test_other_collections_are_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        _cli.run(lambda: run("--features", clips, "--out", tmp_path / "out"))
    (tmp_path / "means").mkdir()
    write_records(
        tmp_path / "means" / "train00.tfrecord", [encode_video("06xy", np.zeros(1152), [1])]
    )
    with pytest.raises(DataError, match=r"means: expected frames, .* found the mean features"):
        rate_collection(tmp_path / "means", tmp_path / "out")
    link = tmp_path / "link"
    link.symlink_to(clips)
    with pytest.raises(ArgumentError, match="out: expected a folder outside"):
        rate_collection(link, clips)


def test_damaged_and_repeated_records_are_left_out_if_asked(clips: Path, tmp_path: Path) -> None:
    features = FeatureSet.read(clips / "features.json")
    frames = np.zeros((6, 512), np.uint8)
    records = [encode_frames(id, frames, [0], None, features.schema) for id in ("a", "b", "a", "c")]
    folder = tmp_path / "clips"
    folder.mkdir()
    write_records(folder / "videos.tfrecord", [*records[:2], b"no record", *records[2:]])
    for name in ("features.json", "vocabulary.csv"):
        (folder / name).write_bytes((clips / name).read_bytes())
    table = tmp_path / "ratings.csv"
    table.write_text(RATINGS + "c,0,3,Cat,1\n")
    with pytest.raises(RecordError, match=r"videos\.tfrecord: record 2"):
        rate_collection(folder, tmp_path / "rated", ratings=table)
    report = rate_collection(folder, tmp_path / "rated", ratings=table, on_error="skip")
    assert [*records_of(tmp_path / "rated")] == ["a", "b", "c"]
    assert ratings_of(records_of(tmp_path / "rated")["c"]) == {(0, 1): 1}
    assert any("found 'a' again" in reason for reason in report.left_out)
    assert any("skipped 1 record" in reason for reason in report.left_out)
