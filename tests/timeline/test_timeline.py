"""pyseg.timeline: what its pictures and pages show."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from pyseg.timeline import Rating, Timeline, picture

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


def make(**changes) -> Timeline:
    """A video of 8 frames of half a second, in segments of 3 frames."""
    options = {
        "title": 'a "b" <c>',
        "starts": [0, 1.5, 3],
        "ends": [1.5, 3, 4],
        "scores": [[0.5, 0.0], [1.0, 0.0], [0.25, 0.0]],
        "numbers": [7, 2],
        "names": ["<seven>", "two"],
        "ratings": [Rating(1.5, 3, 7, True), Rating(0, 1.5, 9, False)],
    }
    return Timeline(**(options | changes))


def test_rated_segments_are_framed_at_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "png", lambda figure: figure)
    [axes] = make().picture().axes
    frames = [patch for patch in axes.patches if not patch.get_fill()]
    assert [(f.get_x(), f.get_width(), f.get_y()) for f in frames] == [(1.5, 1.5, 1)]
    bars = [patch for patch in axes.patches if patch.get_fill()]
    assert [(b.get_x(), b.get_width()) for b in bars[:3]] == [(0, 1.5), (1.5, 1.5), (3, 1)]
    np.testing.assert_allclose([b.get_height() for b in bars[:3]], [0.425, 0.85, 0.2125], rtol=1e-6)
    assert axes.get_xlim() == (0, 4)
    assert any("segments of 1.5 s" in text.get_text() for text in axes.texts)


class Cells(HTMLParser):
    """The texts of a page's cells and its title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tag = ""
        self.feed(page)

    def handle_starttag(self, tag, _):
        self.tag = tag

    def handle_endtag(self, _):
        self.tag = ""

    def handle_data(self, data):
        if self.tag in ("td", "th", "title"):
            self.found.append(data)


def test_page_lists_all_ratings_by_time() -> None:
    page = make().page()
    found = Cells(page).found
    assert found[:4] == ['a "b" <c>', "from", "class", "shown"]
    assert found[4:] == ["0:00", "9", "no", "0:01", "<seven>", "yes"]
    assert "<table>" not in make(ratings=[]).page()
