"""Parts of videos: the rows that decoding everything gives, found by seeking."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pyseg.errors import ArgumentError, DataError
from pyseg.video import excerpt, read_excerpt, sample_frames
from tests.video.make_videos import Video, numbers_of

av = pytest.importorskip("av")

LONG = Video(range(500), options={"g": "50", "bf": "2"})
VIDEOS = {
    "plain.mp4": LONG,
    "late.ts": Video(range(500), start=3.0),
    "late.mkv": Video(range(500), start=3.0),
    "plain.avi": Video(range(500), codec="mpeg4"),
    "vp9.webm": Video(range(300), codec="libvpx-vp9"),
    "open.mp4": Video(range(500), options={"g": "50", "x264-params": "open-gop=1:log-level=0"}),
    "one-key.mp4": Video(range(500), options={"g": "1000"}),
    "irregular.mkv": Video(range(6), times=[0, 0.04, 5, 5.04, 9, 20, 20.04]),
    "turned.mp4": Video(range(500), turned=1),
    "no-times.h264": Video(range(100)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize("name", VIDEOS)
def test_rows_are_those_of_the_whole_video(folder: Path, name: str) -> None:
    path = VIDEOS[name].write(folder / name)
    rows = list(sample_frames(path, fps=4))
    for first, last in ((0, 3), (5, 13), (30, 50), (len(rows) - 6, len(rows) + 9)):
        found = read_excerpt(path, first / 4, last / 4, fps=4)
        np.testing.assert_array_equal(numbers_of(found), numbers_of(rows[first:last]))
        assert all((a == b).all() for a, b in zip(found, rows[first:last], strict=True))
    assert read_excerpt(path, 1000, 1001) == []


def test_what_comes_before_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = LONG.write(folder / "a.mp4")
    reports = []
    opened = excerpt.opened
    monkeypatch.setattr(
        excerpt, "opened", lambda path, report: (reports.append(report), opened(path, report))[1]
    )
    assert numbers_of(read_excerpt(path, 18, 18.5, fps=10)) == [450, 452, 455, 457, 460]
    [report] = reports
    assert report.frames < 120  # at most two groups of pictures
    assert report.corrupt == 0


def test_a_place_too_far_ahead_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers are entered behind the time that was asked for."""
    path = LONG.write(folder / "a.mp4")
    for places in ((-4, 1), (-4,)):  # at last everything is decoded
        monkeypatch.setattr(excerpt, "_BEFORE", places)
        assert numbers_of(read_excerpt(path, 10, 10.2, fps=10)) == [250, 252]


def test_size_and_last_frame(folder: Path) -> None:
    path = Video(range(30), size=(100, 300)).write(folder / "wide.mp4")
    [image] = read_excerpt(path, 0, 0.1, fps=10, longest=150)
    assert image.shape == (50, 150, 3)
    [image] = read_excerpt(path, 1.18, 9, fps=10, longest=1000)
    assert image.shape == (100, 300, 3)
    assert numbers_of([image]) == [29]
    assert len(read_excerpt(path, 0, 1, fps=Fraction(1, 3))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "expected 0 <= start < end, found -1 and 5"),
        ({"start": 5}, "found 5 and 5"),
        ({"end": float("nan")}, "found 0 and nan"),
        ({"fps": 0}, "fps: expected a number above 0, found 0"),
        ({"longest": 0}, "longest: expected at least 1, found 0"),
    ],
)
def test_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_excerpt("a.mp4", **{"start": 0, "end": 5, **arguments})


def test_files_that_are_no_video(folder: Path) -> None:
    (folder / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4: expected a video"):
        read_excerpt(folder / "text.mp4", 0, 1)
