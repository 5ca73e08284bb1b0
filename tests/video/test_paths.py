"""pyseg.video.find_videos: the files of globs and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyseg.errors import ArgumentError, MissingFileError
from pyseg.video import find_videos
from pyseg.video.paths import SUFFIXES


def test_find_videos(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = ["b.mp4", "a, ü.MKV", "deep/c.webm", "notes.txt", ".hidden.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(b"")

    def found(*paths: str) -> list[str]:
        return [
            str(Path(p).relative_to(tmp_path)) for p in find_videos([tmp_path / p for p in paths])
        ]

    assert found("") == ["a, ü.MKV", "b.mp4", "deep/c.webm"]
    assert found("**/*.mp4") == ["b.mp4"]
    assert found("notes.txt", "b.mp4", "*") == ["notes.txt", "b.mp4", "a, ü.MKV"]
    assert find_videos(str(tmp_path / "b.mp4")) == [str(tmp_path / "b.mp4")]


def test_other_files_of_a_folder_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pyseg")
    (tmp_path / "deep").mkdir()
    for name in ("a.mp4", ".hidden.txt"):
        (tmp_path / name).touch()
    find_videos(tmp_path)
    assert caplog.messages == []
    for name in ("b.RM", "deep/c.rm", "deep/film"):
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == [str(tmp_path / "a.mp4")]
    told = "left out 3 files without the suffix of a video: 2 .rm, 1 no suffix"
    assert caplog.messages == [f"{tmp_path}: {told}"]
    for number in range(5):
        (tmp_path / f"x.{number}").touch()
    find_videos(str(tmp_path))
    assert caplog.messages[1].startswith(f"{tmp_path}: left out 8 files")
    assert caplog.messages[1].endswith(", ...")


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file in this folder has the suffix of a video"):
        find_videos(tmp_path)
    with pytest.raises(MissingFileError, match=r"\*\.mp4: no file matches"):
        find_videos(str(tmp_path / "*.mp4"))
    with pytest.raises(ArgumentError, match="at least one file"):
        find_videos([])


def test_the_suffixes_are_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "own_videos.md"
    words = page.read_text(encoding="utf-8")
    assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in words] == []
