"""The page of a timeline: what it shows without scripts, and the data of its script."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from pyseg.timeline import Rating, Timeline, page, thumbnails
from tests.timeline.example import make

pytest.importorskip("jinja2")


class Page(HTMLParser):
    """The cells, buttons and data of a page; checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]
        if tag not in ("meta", "input", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "title"):
            self.cells.append(data)
        if self.open and self.open[-1] == "script" and data.startswith("{"):
            self.data = json.loads(data)


def test_page_lists_all_ratings_and_peaks() -> None:
    page = Page(make().page())
    assert page.cells[0] == 'a "b" <c>'
    assert page.cells[1:10] == [
        "class", "highest score", "at", "<seven>", "1.00", "0:01", "two", "0.00", "0:00"
    ]  # fmt: skip
    assert page.cells[10:14] == ["from", "to", "class", "shown"]
    assert page.cells[14:] == ["0:00", "0:01", "9", "no", "0:01", "0:03", "<seven>", "yes"]
    assert "details" not in Page(make(ratings=[]).page()).tags


def test_page_has_scores_events_and_ratings() -> None:
    rng = np.random.default_rng(0)
    names = ["</script><script>", "a & b", "\u2028<!--", "\ud800"]
    starts = np.arange(50) / 3
    scores = rng.random((50, 4))
    ratings = [Rating(1, 2.5, 1, True), Rating(1, 2, 77, False)]
    timeline = Timeline("t", starts, starts + 1 / 3, scores, names, ratings=ratings)
    data = Page(timeline.page()).data
    assert data["names"] == names
    decoded = np.frombuffer(base64.b64decode(data["scores"]), np.uint8).reshape(4, 50)
    np.testing.assert_allclose(decoded.T / 255, scores, atol=0.51 / 255)
    times = np.frombuffer(base64.b64decode(data["starts"]), "<u4")
    np.testing.assert_allclose(times / 1000, starts, atol=6e-4)
    assert data["duration"] == pytest.approx(50 / 3)
    assert data["ratings"] == [[1, 1.0, 2.5, True]]
    expected = [[e.number, e.start, e.end, e.peak] for e in timeline.events()]
    np.testing.assert_allclose(data["events"], expected, atol=1e-3)


def test_page_without_any_window(tmp_path: Path) -> None:
    empty = Timeline("none", [], [], np.zeros((0, 1)), ["a"])
    assert Page(empty.page()).data["duration"] == 0
    empty.save(tmp_path / "t.html")
    assert "No score reaches" in (tmp_path / "t.html").read_text()


def test_page_of_hours_is_small() -> None:
    """It has a byte for each score."""
    starts = np.arange(36_000)
    scores = np.random.default_rng(0).random((36_000, 20), np.float32)
    names = [str(number) for number in range(20)]
    timeline = Timeline("t", starts, starts + 1, scores, names)
    assert len(page.page(timeline, events=[])) < 1.34 * 36_000 * (20 + 8) + 100_000


def test_page_of_too_many_classes_has_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_MOST_SCORES", 90)
    scores = np.linspace(0.0, 1.0, 30)[None].repeat(3, axis=0)
    names = [f"class {number}" for number in range(30)]
    starts = np.arange(3)
    ratings = [Rating(0, 1, 2, True)]
    timeline = Timeline("t", starts, starts + 1, scores, names, ratings=ratings)
    assert len(Page(timeline.page()).data["names"]) == 30
    monkeypatch.setattr(page, "_MOST_SCORES", 75)
    text = page.page(timeline, timeline.events())
    data = Page(text).data
    assert data["names"] == [*names[:4:-1], "class 2"]
    assert "the 26 of 30 classes with the highest scores" in text
    assert data["ratings"] == [[25, 0, 1, True]]
    assert sorted(event[0] for event in data["events"]) == list(range(15))


def test_address_of_the_video(tmp_path: Path) -> None:
    name = "javascript:a 'b' \"c\" <d> #1?&amp;.mp4"
    (tmp_path / "films").mkdir()
    video = tmp_path / "films" / name
    video.write_bytes(b"no video")
    timeline = make(video=str(video))
    timeline.save(tmp_path / "t.html")
    [source] = Page((tmp_path / "t.html").read_text()).sources
    assert source.startswith("films/javascript%3Aa%20")
    assert unquote(source) == f"films/{name}"
    timeline.save(tmp_path / "films" / "t.html")
    [source] = Page((tmp_path / "films" / "t.html").read_text()).sources
    assert source.startswith("javascript%3A")  # a path, not an address with a scheme
    [source] = Page(timeline.page()).sources
    assert source.startswith("file:///")
    assert Path(unquote(urlsplit(source).path)) == video


def test_thumbnails_are_upright_and_in_order(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        stream.codec_context.gop_size = 250  # one key frame
        for number in range(50):
            frame = np.full((48, 96, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    found = thumbnails.thumbnails(str(path))
    assert len(found) >= 12
    assert [thumbnail.time for thumbnail in found] == sorted({t.time for t in found})
    for time, address, width in found:
        kind, _, content = address.partition(",")
        assert kind == "data:image/jpeg;base64"
        picture = image.open(io.BytesIO(base64.b64decode(content)))
        assert (picture.height, picture.width) == (108, 2 * width) == (108, 216)
        assert np.asarray(picture).mean() == pytest.approx(25 * time, abs=8)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert thumbnails.thumbnails(str(tmp_path / "b.mp4")) == []
