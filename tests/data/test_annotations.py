"""Readers of annotations, matching their videos, and the segments that they rate."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyseg.data import Annotations, FeatureSet, Interval, read_annotations
from pyseg.data.annotations import VideoNames, rate_segments
from pyseg.errors import ArgumentError, DataError, MissingFileError

SECONDS = FeatureSet((("clip", 4),))  # segments of 5 frames of a second


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    return [interval[:5] for interval in read_annotations(path, **options).intervals]


def via(*rows: tuple[str, float | str, float | str, dict[str, str]]) -> str:
    """Returns VIA's export of temporal segments."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for number, (video, start, end, attributes) in enumerate(rows):
        compact = json.dumps(attributes, separators=(",", ":"))
        writer.writerow([f"1_{number}", json.dumps([video]), start, end, compact])
    return (
        "# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)\n"
        "# CSV_HEADER = metadata_id,file_list,temporal_segment_start,temporal_segment_end,"
        "metadata\n" + table.getvalue()
    )


def label_studio(video: str, *results: tuple[int, int, str], **annotation: Any) -> dict[str, Any]:
    regions = [
        {
            "type": "timelinelabels",
            "value": {"ranges": [{"start": first, "end": last}], "timelinelabels": [label]},
        }
        for first, last, label in results
    ]
    return {"id": 7, "data": {"video": video}, "annotations": [{"result": regions, **annotation}]}


def elan(tiers: str, media: str = "", slots: str = "") -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ANNOTATION_DOCUMENT AUTHOR="" DATE="" FORMAT="3.0" VERSION="3.0">\n'
        f'<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">{media}</HEADER>\n'
        '<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="1500"/>'
        f'<TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="4000"/>{slots}</TIME_ORDER>\n'
        f"{tiers}\n</ANNOTATION_DOCUMENT>\n"
    )


def annotation(first: str, last: str, value: str = "") -> str:
    return (
        '<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" '
        f'TIME_SLOT_REF1="{first}" TIME_SLOT_REF2="{last}"><ANNOTATION_VALUE>{value}'
        "</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
    )


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_own_table(write, separator: str, mark: str) -> None:
    lines = [
        ("score", "video", "start", "end", "class", "rater"),
        ("1", "my video", "0", "2.5", "dog", "me"),
        ("0.25", "ünï", "1e1", "20", " cat ", ""),
    ]
    text = mark + "".join(separator.join(line) + "\r\n" for line in lines)
    assert read(write("anything.txt", text)) == [
        ("my video", 0.0, 2.5, "dog", 1.0),
        ("ünï", 10.0, 20.0, "cat", 0.25),
    ]


def test_quotes_in_an_own_table(write) -> None:
    path = write("r.csv", 'video;start;end;class;score\n"a;b, c";0;1;"dog; ""big""";1\n')
    assert read(path) == [("a;b, c", 0.0, 1.0, 'dog; "big"', 1.0)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a,5,5,dog,1", "line 2: expected 0 <= start < end, found 5 and 5"),
        ("a,-1,5,dog,1", "line 2: expected 0 <= start < end, found -1 and 5"),
        ("a,0,5,dog,1.5", r"line 2: expected a score in \[0, 1\], found 1.5"),
        ("a,0,5,dog,yes", "line 2: expected score to be a number, found 'yes'"),
        ("a,0,nan,dog,1", "line 2: expected end to be a number, found 'nan'"),
        ("a,0,5,dog,", "line 2: expected a value for score, found none"),
        ("a,0,5,,1", "line 2: expected a value for class, found none"),
        (",0,5,dog,1", "line 2: expected a value for video, found none"),
        ("a,0,5,dog", "line 2: expected 5 fields, found 4"),
        ('a,0,5,"do\ng",1', r"line 2: class: expected a line of text .* found 'do\\ng'"),
    ],
)
def test_a_bad_line_of_an_own_table(write, line: str, expected: str) -> None:
    path = write("r.csv", f"video,start,end,class,score\n{line}\n")
    with pytest.raises(DataError, match=rf"r\.csv, {expected}"):
        read(path)


def test_a_missing_column(write) -> None:
    with pytest.raises(DataError, match=r"r\.csv, line 1: expected a column score, found"):
        read(write("r.csv", "video,start,end,class\n"))


def test_via(write) -> None:
    path = write(
        "export.csv",
        via(
            ("my film.mp4", 1.25, 3.5, {"TEMPORAL-SEGMENTS": "dog", "note": "x"}),
            ("my film.mp4", 4, 6, {"Activity": "cat, big"}),
            ("my film.mp4", 7, "", {"Activity": "a region of a frame"}),
        ),
    )
    assert read(path) == [
        ("my film.mp4", 1.25, 3.5, "dog", 1.0),
        ("my film.mp4", 4.0, 6.0, "cat, big", 1.0),
    ]
    assert "left out 1 row without" in read_annotations(path).notes[0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("a", 1, 2, {}), "line 3: expected the attribute TEMPORAL-SEGMENTS or one other"),
        (("a", 1, 2, {"x": "1", "y": "2"}), "line 3: expected the attribute .* found 'x, y'"),
        (("a", 3, 2, {"x": "dog"}), "line 3: expected 0 <= start < end, found 3 and 2"),
        (("a", 1, 2, {"x": " "}), "line 3: expected the name of a class"),
    ],
)
def test_a_bad_line_of_via(write, row, expected: str) -> None:
    with pytest.raises(DataError, match=rf"export\.csv, {expected}"):
        read(write("export.csv", via(row)))


def test_vias_other_export_says_which_one_to_choose(write) -> None:
    header = "metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata"
    path = write("export.csv", f"# Exported using VGG Image Annotator\n# CSV_HEADER = {header}\n")
    with pytest.raises(DataError, match="line 2: expected VIA's export of only temporal segments"):
        read(path)


def test_label_studio_counts_frames_from_1_to_the_last_one(write) -> None:
    tasks = [
        label_studio("/data/upload/1/0a1b2c3d-film.mp4", (1, 25, "dog"), (51, 75, "cat")),
        label_studio("/data/local-files/?d=films/b%20c.mp4", (26, 26, "dog")),
        label_studio("d.mp4"),
        label_studio("e.mp4", (1, 25, "dog"), was_cancelled=True),
    ]
    tasks[0]["annotations"][0]["result"].append({"type": "choices", "value": {"choices": ["x"]}})
    path = write("project.json", "\ufeff" + json.dumps(tasks))
    assert read(path, fps=25) == [
        ("/data/upload/1/0a1b2c3d-film.mp4", 0.0, 1.0, "dog", 1.0),
        ("/data/upload/1/0a1b2c3d-film.mp4", 2.0, 3.0, "cat", 1.0),
        ("/data/local-files/?d=films/b%20c.mp4", 1.0, 1.04, "dog", 1.0),
    ]
    found = read_annotations(path, fps=25)
    assert list(found.videos)[2:] == ["d.mp4"]  # looked at, nothing found
    assert found.notes == [f"{path}: left out 1 result without timelinelabels"]
    ids = ["film", "films/b c", "d", "e"]
    assert list(Annotations.match(ids, found).intervals) == ["film", "films/b c", "d"]


def test_label_studio_needs_the_frame_rate(write) -> None:
    path = write("p.json", json.dumps([label_studio("a", (1, 2, "dog"))]))
    with pytest.raises(ArgumentError, match="annotation_fps: expected the frames a second"):
        read(path)
    with pytest.raises(ArgumentError, match="annotation_fps: expected above 0, found -1"):
        read(path, fps=-1)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([label_studio("a", (0, 2, "dog"))], "task 7: expected a range of frames from 1"),
        ([label_studio("a", (3, 2, "dog"))], "task 7: expected a range .* found 3 to 2"),
        ([label_studio("a", (1, 2, ""))], "task 7: expected the names of classes"),
        ([label_studio("", (1, 2, "dog"))], "task 7: expected the path of a video"),
        ([{"video": "a", "timelinelabels": []}], "task 0: expected annotations of the task"),
        ([{"annotations": [{"result": 3}]}], "task 0: expected result of an annotation"),
        (7, "expected a JSON list of tasks, found int"),
    ],
)
def test_bad_label_studio(write, tasks, expected: str) -> None:
    with pytest.raises(DataError, match=rf"p\.json.*{expected}"):
        read(write("p.json", json.dumps(tasks)), fps=25, format="label_studio")


def test_audacity(write) -> None:
    path = write("my film.txt", "1.500000\t2.750000\tdog\n\\\t100.0\t200.0\n3\t4\tbig cat\n")
    assert read(path) == [
        ("my film", 1.5, 2.75, "dog", 1.0),
        ("my film", 3.0, 4.0, "big cat", 1.0),
    ]


def test_audacity_points_and_labels_without_text_rate_nothing(write) -> None:
    path = write("a.txt", "1\t1\tpoint\n2\t3\t\n3\t4\tdog\n5\t5\t\n")
    found = read_annotations(path)
    assert [interval.name for interval in found.intervals] == ["dog"]
    assert found.notes == [
        f"left out 2 points in time of {path}",
        f"left out 1 label without text of {path}",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("3\t2\tdog", "line 1: expected 0 <= start < end, found 3 and 2"),
        ("2\t3", "line 1: expected start, end and label"),
    ],
)
def test_a_bad_line_of_audacity(write, line: str, expected: str) -> None:
    with pytest.raises(DataError, match=rf"a\.txt, {expected}"):
        read(write("a.txt", line + "\n"))


def test_elan(write) -> None:
    media = (
        '<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/my%20film.mp4" MIME_TYPE="video/mp4"/>'
        '<MEDIA_DESCRIPTOR MEDIA_URL="file:///sound.wav" MIME_TYPE="audio/x-wav"/>'
    )
    reference = (
        '<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a9" ANNOTATION_REF="a1"><ANNOTATION_VALUE>x'
        "</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
    )
    tiers = (
        f'<TIER TIER_ID="dog">{annotation("t1", "t2", "barks &amp; runs")}</TIER>'
        f'<TIER TIER_ID="words">{reference}</TIER>'
    )
    path = write("other name.eaf", elan(tiers, media))
    [tier] = read(path)
    assert tier == ("file:///C:/films/my%20film.mp4", 1.5, 4.0, "dog", 1.0)
    [value] = read(path, elan_classes="values")
    assert value[3] == "barks & runs"
    assert read_annotations(path).notes == [f"{path}: left out 1 reference to other annotations"]
    unnamed = (
        f'<TIER TIER_ID="dog">{annotation("t1", "t2", " ")}{annotation("t1", "t2", "cat")}</TIER>'
    )
    found = read_annotations(write("empty.eaf", elan(unnamed)), elan_classes="values")
    assert [interval.name for interval in found.intervals] == ["cat"]
    assert found.notes == [f"left out 1 annotation without text of {path.with_name('empty.eaf')}"]
    assert list(Annotations.match(["my film"], read_annotations(path)).intervals) == ["my film"]
    shifted = media.replace("MIME_TYPE", 'TIME_ORIGIN="500" MIME_TYPE', 1)
    assert read(write("b.eaf", elan(tiers, shifted)))[0][1:3] == (2.0, 4.5)
    without = read_annotations(write("film.eaf", elan("")))
    assert (without.intervals, list(without.videos)) == ([], ["film"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (elan(f'<TIER TIER_ID="dog">{annotation("t2", "t1")}</TIER>'), "line 5: .* start < end"),
        (
            elan(f'<TIER TIER_ID="dog">{annotation("t1", "t3")}</TIER>'),
            "line 5: .*a TIME_SLOT 't3'",
        ),
        (
            elan(
                f'<TIER TIER_ID="dog">{annotation("t1", "t3")}</TIER>',
                slots='<TIME_SLOT TIME_SLOT_ID="t3"/>',
            ),
            "line 5: expected a TIME_VALUE of TIME_SLOT 't3', found none",
        ),
        (elan(f"<TIER>{annotation('t1', 't2')}</TIER>"), "line 5: expected the attribute TIER_ID"),
        (elan("").replace("1500", "soon"), "line 4: expected TIME_VALUE in milliseconds"),
        (elan("").replace("milliseconds", "seconds"), "line 3: expected TIME_UNITS"),
        (elan("<TIER"), "line 6: expected XML of ELAN, found"),
        (elan("<a>" * 100 + "</a>" * 100), "line 5: expected at most 32 nested elements"),
        ("<svg/>", "line 1: expected the element ANNOTATION_DOCUMENT of ELAN, found 'svg'"),
        (
            '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
            + elan("&b;").partition("\n")[2],
            "line 1: expected XML without a DOCTYPE",
        ),
        (elan("&nbsp;"), "line 5: expected XML of ELAN, found: undefined entity"),
        (elan("").replace("UTF-8", "no-such"), "line 1: expected XML of ELAN"),
    ],
)
def test_bad_elan(write, content: str, expected: str) -> None:
    with pytest.raises(DataError, match=rf"a\.eaf, {expected}"):
        read(write("a.eaf", content))


def test_what_another_writer_of_elan_files_writes(tmp_path: Path) -> None:
    pympi = pytest.importorskip("pympi")
    document = pympi.Elan.Eaf(author="me")
    document.remove_tier("default")
    document.add_linked_file("/films/a b.mp4", relpath="./a b.mp4", mimetype="video/mp4")
    for tier in ("dog", "cat <big>"):
        document.add_tier(tier)
    document.add_annotation("dog", 500, 2000, "")
    document.add_annotation("cat <big>", 1000, 61_500, "sleeps")
    path = tmp_path / "document.eaf"
    document.to_file(str(path))
    assert read(path) == [
        ("./a b.mp4", 0.5, 2.0, "dog", 1.0),
        ("./a b.mp4", 1.0, 61.5, "cat <big>", 1.0),
    ]


def test_a_folder_of_files_of_several_formats(write, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write("a.txt", "0\t1\tdog\n")
    write("more/b.eaf", elan(f'<TIER TIER_ID="cat">{annotation("t1", "t2")}</TIER>'))
    write("c.csv", "video,start,end,class,score\nc,0,1,dog,0\n")
    assert sorted(interval[0] for interval in read(tmp_path)) == ["a", "b", "c"]
    assert [interval[0] for interval in read(tmp_path / "*.txt")] == ["a"]
    with pytest.raises(MissingFileError, match="no such file or folder"):
        read(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="expected a folder with files"):
        read(tmp_path / "empty")


def test_files_that_are_no_annotations_are_left_out_if_asked(write, tmp_path: Path) -> None:
    write("a.csv", "video,start,end,class,score\na,0,1,dog,1\n")
    write("b.csv", "")
    write("picture.png", b"\x89PNG\r\n\x1a\n\0")
    write("other.json", '{"name": "package"}')
    with pytest.raises(DataError, match=r"b\.csv: .* found an empty file"):
        read(tmp_path)
    found = read_annotations(tmp_path, on_error="skip")
    assert [interval[0] for interval in found.intervals] == ["a"]
    [note] = found.notes
    assert re.fullmatch(r"left out files of annotations: .*b\.csv: .* \(and 2 more\)", note)
    annotations = Annotations.read("ab", tmp_path, on_error="skip")
    assert annotations.notes == (note,)
    with pytest.raises(DataError, match=r"b\.csv: .* found an empty file"):
        read(tmp_path / "b.csv", on_error="skip")


def test_an_unknown_format_and_a_forced_one(write) -> None:
    path = write("a.txt", "hello,world\n")
    with pytest.raises(DataError, match=r"a\.txt, line 1: expected a table .* 'hello,world'"):
        read(path)
    with pytest.raises(DataError, match=r"a\.txt, line 1: expected start, end and label"):
        read(path, format="audacity")
    with pytest.raises(DataError, match="found an empty file"):
        read(write("b.csv", ""))
    looked_at = read_annotations(write("b.txt", ""))  # Audacity's, without labels
    assert (looked_at.intervals, list(looked_at.videos)) == ([], ["b"])
    with pytest.raises(ArgumentError, match="format: expected one of ratings, via"):
        read(path, format="vai")
    with pytest.raises(DataError, match=r"a\.txt, line 1: expected text, found"):
        read(write("a.txt", b"PK\x03\x04\0\0\0"))


def test_names_of_videos() -> None:
    names = VideoNames(
        ["a", "films/b", "more/b", "c.v2", "0123abcd-d", "é, f", "clip 7 (50%)", "a%20b"]
    )
    for name, expected in {
        "a": ["a"],
        "a.mp4": ["a"],
        "/x/y/a.mp4": ["a"],
        "C:\\films\\b.mkv": ["films/b"],
        "https://host/films/b.mp4?x=1": ["films/b"],
        "file:///x/%C3%A9,%20f.mp4": ["é, f"],
        "b": ["films/b", "more/b"],
        "c.v2": ["c.v2"],
        "c.v2.mp4": ["c.v2"],
        "c.v3": [],  # another video, not c with a suffix
        "c": [],
        "films2/b": [],  # of another folder
        "/x/films/b.mp4": ["films/b"],
        "/x/b.mp4": [],
        "/data/upload/3/89abcdef-a.mp4": ["a"],
        "0123abcd-d.mp4": ["0123abcd-d"],
        "/data/upload/3/89abcdef-clip_7_50.mp4": ["clip 7 (50%)"],
        "clip_7_50.mp4": [],
        "./clip 7 (50%).mp4": ["clip 7 (50%)"],
        "./clip%207%20(50%25).mp4": ["clip 7 (50%)"],
        "file:///x/clip%207%20(50%25).mp4": ["clip 7 (50%)"],
        "./a%20b.mp4": ["a%20b"],
        "file:///x/a%20b.mp4": ["a%20b"],
        "aa": [],
        "": [],
        "http://[": [],
    }.items():
        assert names.find(name) == expected, name


def test_names_of_video_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {
        "same-1": "v/a/same.mp4",
        "same-2": str(tmp_path / "v/b/same.mp4"),
        "same-3": "v/b/same.mkv",
        "same-4": "a/same.mp4",
        "only": "v/only.mp4",
        "video-9": "v/two\nlines.mp4",
    }
    names = VideoNames(paths, paths)
    for name, expected in {
        "same-1": ["same-1"],
        "same": ["same-1", "same-2", "same-3", "same-4"],
        "same.mp4": ["same-1", "same-2", "same-4"],
        "same.mkv": ["same-3"],
        "v/a/same.mp4": ["same-1"],
        "v/a/same": ["same-1"],
        "./v//a/same.mp4": ["same-1"],
        "v/b/same": ["same-2", "same-3"],
        "b/same.mp4": ["same-2"],
        str(tmp_path / "v/a/same.mp4"): ["same-1"],
        f"file://{tmp_path}/v/b/same.mkv": ["same-3"],
        "/elsewhere/v/b/same.mp4": ["same-2"],  # rated on another machine
        "a/same.mp4": ["same-4"],  # of the working folder
        "v/../a/same.mp4": ["same-4"],
        "only": ["only"],
        "v/only.mp4": ["only"],
        "/x/only.avi": ["only"],
        "v/two\nlines.mp4": ["video-9"],
        "two\nlines": ["video-9"],
        "sam": [],
    }.items():
        assert names.find(name) == expected, name


def test_which_segments_are_covered() -> None:
    def rated(*intervals: tuple[float, float, float], frames: int = 20, **options: Any) -> Any:
        some = [Interval("a", start, end, "dog", score) for start, end, score in intervals]
        found = rate_segments(some, frames, SECONDS, **options)
        return {segment: score for (segment, _), score in found.scores.items()}, found

    assert rated((2.5, 7.5, 1))[0] == {0: 1.0, 1: 1.0}  # exactly half of both
    assert rated((2.6, 7.4, 1))[0] == {}
    assert rated((2.6, 7.4, 1))[1].too_short == 1
    assert rated((0, 1.5, 1), (3.5, 5, 1))[0] == {0: 1.0}  # together
    assert rated((0, 1.5, 1), (0.5, 2, 1))[0] == {}  # overlaps count once
    assert rated((0, 5, 0), (5, 10, 1))[0] == {0: 0.0, 1: 1.0}
    assert rated((10, 11, 1), frames=12)[0] == {2: 1.0}  # half of the last segment of 2 frames
    assert rated((10, 14, 1), frames=12)[0] == {2: 1.0}  # cut at the end of the video
    scores, found = rated((0, 5, 1), (0, 5, 0), (0, 5, 0.5), (5, 10, 1))
    assert scores == {0: 0.5, 1: 1.0}
    assert found.conflicts == [(0, "dog")]
    assert rated((5, 10, 1), complete=["dog"])[0] == {0: 0.0, 1: 1.0, 2: 0.0, 3: 0.0}
    assert rate_segments([], 7, SECONDS, ["dog", "cat"]).scores == {
        (0, "cat"): 0.0, (0, "dog"): 0.0, (1, "cat"): 0.0, (1, "dog"): 0.0,
    }  # fmt: skip
    half_seconds = FeatureSet((("clip", 4),), frame_seconds=0.5, segment_size=3)
    assert rate_segments([Interval("a", 1.5, 3, "dog")], 9, half_seconds).scores == {
        (1, "dog"): 1.0
    }


def test_decimal_times_cover_by_half_in_spite_of_rounding() -> None:
    tenths = FeatureSet((("clip", 4),), frame_seconds=0.1, segment_size=3)
    for segment in range(100):
        start = round(0.3 * segment, 10)
        found = rate_segments([Interval("a", start, start + 0.15, "dog")], 300, tenths)
        assert list(found.scores) == [(segment, "dog")]


def test_only_videos_that_were_looked_at_are_completed() -> None:
    intervals = [Interval("a", 0, 5, "dog"), Interval("b", 0, 5, "cat", 0.0)]
    for complete in ("all", ["dog", "cat"]):
        annotations = Annotations.match("abc", intervals, complete=complete)
        assert set(annotations.of_segments("a", 10, SECONDS).scores.values()) == {0.0, 1.0}
        assert len(annotations.of_segments("b", 10, SECONDS).scores) == 4
        assert not annotations.of_segments("c", 10, SECONDS).scores
    only = Annotations.match("abc", intervals, complete="dog").of_segments("b", 10, SECONDS)
    assert only.scores == {(0, "cat"): 0.0, (0, "dog"): 0.0, (1, "dog"): 0.0}
    commas = [Interval("a", 0, 5, "dog, big"), Interval("a", 0, 5, "cat"), intervals[1]]
    for complete, expected in (
        ("dog, big", ("dog, big",)),
        ('"dog, big",cat', ("dog, big", "cat")),
        ('["dog, big", "cat"]', ("dog, big", "cat")),
        (["cat", "dog, big"], ("cat", "dog, big")),
    ):
        assert Annotations.match("ab", commas, complete=complete).complete == expected
    with pytest.raises(ArgumentError, match=r"complete: .*cat, dog.* found 'dig' \(did you mean"):
        Annotations.match("abc", intervals, complete=["dig"])


def test_labels_of_videos(write) -> None:
    path = write("labels.csv", "video;class\na.mp4;cat\na;cat\nb;zebra\n")
    intervals = [Interval("a", 0, 1, "dog", 0.6), Interval("b", 0, 1, "dog", 0.5)]
    table = write("r.csv", "video,start,end,class,score\na,0,1,dog,0.6\nb,0,1,dog,0.5\n")
    found = Annotations.read("abc", table, path)
    assert [found.of_video(id) for id in "abc"] == [["cat", "dog"], ["zebra"], []]
    assert found.classes == ["cat", "dog", "zebra"]
    assert found.rated_classes == ["dog"]
    assert Annotations.match("abc", intervals).classes == ["dog"]
    with pytest.raises(DataError, match=r"labels\.csv, line 2: expected one of 1 video, found"):
        Annotations.read("b", None, path)


def test_unknown_and_ambiguous_videos(write) -> None:
    path = write(
        "r.csv", "video,start,end,class,score\nhomw,0,1,dog,1\nb,0,1,dog,1\nhome,0,1,dog,1\n"
    )
    ids = ["home", "x/b", "y/b"]
    with pytest.raises(
        DataError,
        match=r"r\.csv, line 2: .* found 'homw' \(did you mean 'home'\?\) \(and 1 more",
    ):
        Annotations.read(ids, path)
    found = Annotations.read(ids, path, on_error="skip")
    assert list(found.intervals) == ["home"]
    assert found.notes[0].startswith(f"left out annotations of unknown videos: {path}, line 2")
    with pytest.raises(DataError, match=r"that 2 videos are called 'b': x/b, y/b$"):
        Annotations.match(ids, [Interval("b", 0, 1, "dog")])


def test_unknown_and_ambiguous_video_files() -> None:
    paths = {"film-1": "v/a/film.mp4", "film-2": "v/b/film.mp4", "x": "v/x.mp4"}

    def match(name: str) -> Annotations:
        return Annotations.match(paths, [Interval(name, 0, 1, "dog")], paths=paths)

    assert list(match("b/film.mp4").intervals) == ["film-2"]
    for name, message in {
        "film": r"that 2 videos are called 'film': film-1 \(v/a/film\.mp4\), film-2 \(v/b/film\.m",
        "fim.mp4": r"^expected one of 3 videos, found 'fim\.mp4' \(did you mean 'film\.mp4'\?\)$",
        "v/b/fim.mp4": r"found 'v/b/fim\.mp4' \(did you mean 'v/b/film\.mp4'\?\)$",
        "film-3": r"\(did you mean 'film-[12]'\?\)$",
    }.items():
        with pytest.raises(DataError, match=message):
            match(name)


def test_repeated_ratings_count_once() -> None:
    rated = Interval("a", 0, 5, "dog", 1.0, "r.csv, line 2")
    found = Annotations.match("a", [rated, rated._replace(source="r.csv, line 3")])
    assert found.intervals["a"] == [rated]
    assert found.notes == ("1 repeated rating counts once, such as r.csv, line 3",)


def test_intervals_outside_of_their_video() -> None:
    inside, tail = Interval("a", 0, 5, "dog"), Interval("a", 9, 15, "dog")
    for outside in (Interval("a", 10, 12, "dog"), Interval("a", 9, 15.5, "dog")):
        found = Annotations.match("a", [inside, tail, outside._replace(source="r.csv, line 4")])
        with pytest.raises(
            DataError, match=r"r\.csv, line 4: expected times within the 10 s of 'a'"
        ):
            found.within({"a": 10}, SECONDS)
        kept = found.within({"a": 10}, SECONDS, "skip")
        assert kept.intervals["a"] == [inside, tail]
        assert "left out intervals outside of their videos: r.csv, line 4" in kept.notes[-1]
