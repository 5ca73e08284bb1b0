"""What is shown of a video: its file, frames of it, or a link."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.rate.media import Link, Media, media_type
from tests.rate.fake_session import write_film
from tests.video.make_videos import Sound, Video, numbers_of

pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("film")
    return [str(folder / name) for name in names]


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    a, b, other = touch(tmp_path, "a.mp4", "more/b c.mkv", "other.webm")
    media, notes = Media.find(["a", "b c", "d"], str(tmp_path))
    assert set(media.ids) == {"a", "b c"}
    assert "a" in media
    assert "d" not in media
    assert {media.file(number) for number in range(len(media))} == {a, b}
    assert notes == (f"files of no known video, which are not shown: {other}",)
    number = media.ids.index("a")
    shown = {"kind": "file", "number": number, "offset": 0.0, "plays": True}
    assert media.describe("a", 1, 2) == shown
    assert media.describe("d", 1, 2) == {"kind": "none"}
    assert media.file(-1) is None
    assert media.file(2) is None


def test_files_whose_ids_have_a_digest(tmp_path: Path) -> None:
    one, two = touch(tmp_path, "x/a.mp4", "y/a.mp4")
    media, _ = Media.find(["a-1", "a-2"], [one, two], known={"a-1": one, "a-2": two})
    assert media.file(media.ids.index("a-2")) == two
    with pytest.raises(DataError, match=r"a.mp4: expected one file of .*, found .*a.mp4"):
        Media.find(["a"], [one, two])


def test_paths_may_be_relative_and_the_working_folder_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = touch(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)
    media, _ = Media.find(["a"], "a.mp4")
    monkeypatch.chdir("/")
    assert media.file(0) == path


def test_nothing_to_show(tmp_path: Path) -> None:
    [path] = touch(tmp_path, "other.mp4")
    with pytest.raises(ArgumentError, match="videos: expected files, or links, found neither"):
        Media.find(["a"])
    with pytest.raises(ArgumentError, match=r"links of the 5 videos .*'a', 'b', 'c' and 2 more"):
        Media.find(["a", "b", "c", "d", "e"], path)
    with pytest.raises(MissingFileError, match="no such file"):
        Media.find(["a"], str(tmp_path / "gone.mp4"))


# Links


def write_links(tmp_path: Path, *lines: str, header: str = "video,url") -> Path:
    path = tmp_path / "links.csv"
    path.write_text("\n".join([header, *lines, ""]))
    return path


def test_links(tmp_path: Path) -> None:
    [a] = touch(tmp_path, "a.mp4")
    links = write_links(
        tmp_path,
        "a,https://example.org/a.mp4,",
        "b,https://example.org/b.MP4?x=1,2.5",
        "c,https://youtu.be/abc,30",
        "nobody,http://example.org/,",
        header="video,url,offset",
    )
    media, notes = Media.find(["a", "b", "c", "d"], a, links)
    assert set(media.ids) == {"a", "b", "c"}
    assert media.describe("a", 0, 5)["kind"] == "file"  # it is here
    assert media.describe("b", 1, 5) == {
        "kind": "stream",
        "url": "https://example.org/b.MP4?x=1",
        "offset": 2.5,
        "page": "https://example.org/b.MP4?x=1#t=3.5,7.5",
    }
    assert media.describe("c", 5, 10) == {"kind": "page", "page": "https://youtu.be/abc?t=35s"}
    assert notes == (f"{links}: links of no known video: 'nobody'",)
    assert media.file(media.ids.index("b")) is None
    assert media.schemes == ("https:",)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://youtube.com/watch?v=a", "https://youtube.com/watch?v=a&t=4s"),
        ("https://m.youtube.com/watch?t=9&v=a#x", "https://m.youtube.com/watch?v=a&t=4s"),
        ("https://www.youtube-nocookie.com/v/a", "https://www.youtube-nocookie.com/v/a?t=4s"),
        ("https://notyoutube.com/watch?v=a", "https://notyoutube.com/watch?v=a#t=4.5,9"),
        ("https://example.org/page#chapter", "https://example.org/page#chapter"),
        ("http://127.0.0.1:80/x", "http://127.0.0.1:80/x#t=4.5,9"),
    ],
)
def test_links_start_at_the_segment(url: str, expected: str) -> None:
    assert Link(url).at(4.5, 9.0) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("javascript:alert(1)", "JavaScript:alert(1)", "data:text/html,x", "file:///etc/passwd"),
        *("//example.org/x", "example.org", "ftp://example.org/", "https://", "https://[::1", "x"),
        *("https://exa mple.org/", "https://example.org:x/", 'https://example.org/"onclick=x'),
        *("https://example.org/<b>", "https://example.org/\x01", "blob:https://example.org/x"),
    ],
)
def test_only_web_addresses_are_links(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="expected a URL of http or https, found"):
        Media({}, {"a": Link(url)})
    quoted = '"' + url.replace('"', '""') + '"'
    with pytest.raises(DataError, match=r"links.csv, line 3: expected a URL of http or https"):
        Media.find(["a"], links=write_links(tmp_path, "a,https://example.org/", f"a,{quoted}"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,"], "line 2: expected a value for url, found none"),
        (["a"], "line 2: expected 2 fields, found 1"),
        (["a,https://a.org/", "a,https://b.org/"], "line 3: expected one link of the video 'a'"),
        (["b,https://a.org/"], "videos: expected files or links of the 1 video "),
    ],
)
def test_lines_of_links_that_are_wrong(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises((DataError, ArgumentError), match=message):
        Media.find(["a"], links=write_links(tmp_path, *lines))


def test_offsets_that_are_wrong(tmp_path: Path) -> None:
    for offset, message in (("x", "offset to be a number, found 'x'"), ("-1", "at least 0")):
        path = write_links(tmp_path, f"a,https://a.org/,{offset}", header="video,url,offset")
        with pytest.raises(DataError, match=message):
            Media.find(["a"], links=path)


# Frames


def test_frames_show_the_segment(tmp_path: Path) -> None:
    path = Video(range(250), size=(48, 64)).write(tmp_path / "a.mp4")
    media = Media({"a": path})
    found = media.frames(0, 4.0, 6.0)
    assert found is not None
    images = [np.asarray(Image.open(io.BytesIO(content))) for content in found.images]
    assert found.fps == 8
    assert numbers_of(images) == [100 + int(25 * k / 8 + 1e-9) for k in range(16)]
    few = media.frames(0, 0.0, 10.0)
    assert few is not None
    assert len(few.images) == 40
    assert few.fps == 4
    path.unlink()
    assert media.frames(0, 4.0, 6.0) is found  # kept
    with pytest.raises(MissingFileError, match=r"a.mp4"):
        media.frames(0, 5.0, 6.0)


def test_the_clock_of_the_player(tmp_path: Path) -> None:
    """A player counts from where the file begins, which is before the first frame if sound is."""
    videos = {
        "plain.mp4": Video(range(50)),
        "late.mp4": Video(range(50), start=0.6, sound=Sound(3)),
        "cut.mkv": Video(range(50), start=3.0),
    }
    media = Media({name: video.write(tmp_path / name) for name, video in videos.items()})
    found = [media.describe(name, 0, 1) for name in videos]
    assert [media["offset"] for media in found] == [0.0, pytest.approx(0.6, abs=0.03), 3.0]
    assert [media["plays"] for media in found] == [True, True, False]


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    path = Video(range(5), size=(200, 1600)).write(tmp_path / "a.mp4")
    found = Media({"a": path}).frames(0, 0.0, 0.1)
    assert found is not None
    assert Image.open(io.BytesIO(found.images[0])).size == (640, 80)


def test_no_frames(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.webm", seconds=2)
    media = Media({"a": path}, {"b": Link("https://example.org/b.mp4")})
    with pytest.raises(DataError, match=r"a.webm: expected frames from 50 s on, found none"):
        media.frames(0, 50.0, 55.0)
    parts = [(1, 0, 1), (9, 0, 1), (-1, 0, 1), (0, 2, 1), (0, 1, 1), (0, -1, 1), (0, 0, 9999)]
    for number, start, end in parts:
        assert media.frames(number, start, end) is None
    assert media.frames(0, 0, float("nan")) is None
    (tmp_path / "a.webm").write_text("no film")
    with pytest.raises(DataError, match=r"a.webm: expected a video"):
        media.frames(0, 0.0, 1.0)


def test_types() -> None:
    types = {"a.mp4": "video/mp4", "a.MOV": "video/quicktime", "a.mkv": "video/x-matroska"}
    types |= {"a.webm": "video/webm", "a": "application/octet-stream"}
    assert {path: media_type(path) for path in types} == types
