"""pyseg.video.find_videos: the files of globs and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyseg.errors import ArgumentError, MissingFileError
from pyseg.video import find_videos


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


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file in this folder has the suffix of a video"):
        find_videos(tmp_path)
    with pytest.raises(MissingFileError, match=r"\*\.mp4: no file matches"):
        find_videos(str(tmp_path / "*.mp4"))
    with pytest.raises(ArgumentError, match="at least one file"):
        find_videos([])
