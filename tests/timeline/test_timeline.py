"""pyseg.timeline: scores at a time, what its pictures and tables show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseg.errors import ArgumentError
from pyseg.timeline import Rating, Timeline, picture
from tests.timeline.example import make


@st.composite
def overlapping(draw: st.DrawFn) -> Timeline:
    """Windows on a grid of halves, with gaps and overlaps, in the order of time."""
    steps = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=12))
    starts, ends, start, end = [], [], 0, 1
    for forward, longer in steps:
        start += forward
        end = max(end, start + 1) + longer
        starts.append(start / 2)
        ends.append(end / 2)
    scores = draw(
        st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=2), min_size=len(starts))
    )
    rows = np.array(scores[: len(starts)], float).reshape(-1, 2) / 8
    return Timeline("a", starts, ends, rows, ["x", "y"])


def at(timeline: Timeline, time: float) -> np.ndarray | None:
    """The mean of the windows that cover a time."""
    covering = (timeline.starts <= time) & (time < timeline.ends)
    return timeline.scores[covering].mean(axis=0) if covering.any() else None


@given(overlapping())
def test_scores_at_a_time_are_means_of_the_windows_that_cover_it(timeline: Timeline) -> None:
    averaged = timeline.averaged()
    assert (averaged.starts[1:] >= averaged.ends[:-1]).all()
    assert averaged.averaged() is averaged
    for time in np.arange(0.25, timeline.duration + 1, 0.5):
        expected, found = at(timeline, time), at(averaged, time)
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(timeline.peaks, averaged.scores.max(axis=0, initial=0))


@given(overlapping(), st.sampled_from([0.5, 1.0, 1.5]))
def test_scores_of_seconds_are_means_over_time(timeline: Timeline, seconds: float) -> None:
    found = timeline.per_second(seconds)
    rows = iter(range(len(found.starts)))
    for start in np.arange(0, timeline.duration, seconds):
        times = np.arange(start + 0.125, min(start + seconds, timeline.duration), 0.25)
        scores = [score for time in times if (score := at(timeline, time)) is not None]
        if scores:
            row = next(rows)
            assert found.starts[row] == start
            assert found.ends[row] == min(start + seconds, timeline.duration)
            np.testing.assert_allclose(found.scores[row], np.mean(scores, axis=0), atol=1e-6)
    assert next(rows, None) is None


def test_best_classes_and_rated_ones() -> None:
    names = ["a", "b", "c", "d"]
    ratings = [Rating(0, 5, 4, False), Rating(0, 5, 1, True), Rating(0, 5, 99, True)]
    timeline = Timeline("v", [0], [5], [[0.1, 0.9, 0.2, 0.3]], names, [4, 3, 2, 1], ratings)
    best = timeline.best(1)
    assert (best.names, best.numbers) == (("b", "d", "a"), (3, 1, 4))
    np.testing.assert_allclose(best.scores, [[0.9, 0.3, 0.1]])
    assert timeline.select([2]).numbers == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": [0, 1.5]}, r"^ends: expected the shape \(2,\), found \(3,\)"),
        (
            {"scores": [[0.5], [0.5], [0.5]]},
            r"^scores: expected the shape \(3, 2\), found \(3, 1\)",
        ),
        ({"scores": [[0.5, 0.0], [1.5, 0], [0, 0]]}, r"^scores: expected numbers in \[0, 1\]"),
        ({"scores": [[0.5, 0.0], [float("nan"), 0], [0, 0]]}, r"^scores: expected numbers in"),
        ({"starts": [0, 3, 1.5]}, "^ends: expected finite times after starts"),
        ({"ends": [3.5, 3, 4]}, "^starts: expected windows in the order of time"),
        ({"ends": [1.5, 3, np.inf]}, "^ends: expected finite times"),
        ({"numbers": [7]}, "^numbers: expected those of 2 classes, found 1"),
        ({"numbers": [7, 7]}, "^numbers: expected those of 2 classes, found 1"),
    ],
)
def test_values_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(**changes)


def test_table_of_pandas() -> None:
    pytest.importorskip("pandas")
    table = make().to_pandas()
    assert table.index.tolist() == [0, 1.5, 3]
    assert table["<seven>"].tolist() == [0.5, 1.0, 0.25]
    assert (table.index.name, table.columns.name) == ("start", "class")


def test_table_in_notebooks() -> None:
    root = ElementTree.fromstring(make()._repr_html_())
    assert "".join(root.find("caption").itertext()) == 'a "b" <c>, 0:04'
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert rows[1:] == [["<seven>", "1.00", "0:01", ""], ["two", "0.00", "0:00", ""]]
    curve, _ = root.find(".//svg").iter("path")
    assert curve.get("d") == "M0.0 28V14.0H180.0V28ZM180.0 28V0.0H360.0V28ZM360.0 28V21.0H480.0V28Z"
    ElementTree.fromstring(Timeline("x", [], [], np.zeros((0, 1)), ["a"])._repr_html_())
    many = Timeline("x", [0], [1], np.full((1, 30), 0.5), ["a"] * 30, ratings=make().ratings)
    assert "20 more classes" in many._repr_html_()


def test_rated_segments_are_framed_at_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(picture, "png", lambda figure: figure)
    [axes] = make().picture().axes
    frames = [patch for patch in axes.patches if not patch.get_fill()]
    assert [(f.get_x(), f.get_width(), f.get_y()) for f in frames] == [(1.5, 1.5, 1)]
    bars = [patch for patch in axes.patches if patch.get_fill()]
    assert [(b.get_x(), b.get_width()) for b in bars[:3]] == [(0, 1.5), (1.5, 1.5), (3, 1)]
    np.testing.assert_allclose([b.get_height() for b in bars[:3]], [0.425, 0.85, 0.2125], rtol=1e-6)
    assert axes.get_xlim() == (0, 4)
    assert any("segments of 1.5 s" in text.get_text() for text in axes.texts)
