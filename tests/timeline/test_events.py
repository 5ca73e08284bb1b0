"""Events by hysteresis, against a state machine that walks over time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseg.errors import ArgumentError
from pyseg.timeline import Event, Timeline


def walk(starts, ends, scores, on, off):
    """The stretches of a class, found one window after the other."""
    found, begun, peak, last = [], None, 0.0, None
    for start, end, score in zip(starts, ends, scores, strict=True):
        if begun is not None and (score < off or start > last):
            if peak >= on:
                found.append((begun, last, peak))
            begun = None
        if score >= off:
            if begun is None:
                begun, peak = start, 0.0
            peak, last = max(peak, score), end
    if begun is not None and peak >= on:
        found.append((begun, last, peak))
    return found


@given(
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=30),
    st.integers(0, 10),
    st.integers(0, 10),
)
def test_hysteresis(windows: list[tuple[int, bool]], first: int, second: int) -> None:
    off, on = sorted((first / 10, second / 10))
    starts, time = [], 0.0
    for _, gap in windows:
        time += 2.0 if gap else 1.0
        starts.append(time)
    scores = np.array([score / 10 for score, _ in windows], np.float32)
    timeline = Timeline("a", starts, [s + 1 for s in starts], scores[:, None], ["x"])
    on, off = (float(np.float32(value)) for value in (on, off))
    expected = walk(starts, [s + 1 for s in starts], scores.tolist(), on, off)
    found = timeline.events(on, off)
    assert [(e.start, e.end) for e in found] == [stretch[:2] for stretch in expected]
    assert [e.peak for e in found] == pytest.approx([stretch[2] for stretch in expected])


def of(scores: dict[str, list[float]]) -> Timeline:
    """A timeline of windows of a second."""
    rows = np.array(list(scores.values())).T
    starts = np.arange(len(rows))
    return Timeline("a", starts, starts + 1, rows, list(scores), numbers=[7, 3][: len(scores)])


def test_events_of_several_classes_come_in_the_order_of_time() -> None:
    timeline = of({"cat": [0.1, 0.75, 0.375, 0.1], "dog": [0.5, 0.1, 0.1, 0.9]})
    assert timeline.events() == [
        Event(0.0, 1.0, 3, "dog", 0.5),
        Event(1.0, 3.0, 7, "cat", 0.75),
        Event(3.0, 4.0, 3, "dog", 0.9),
    ]
    assert timeline.events(0.75, 0.75) == [
        Event(1.0, 2.0, 7, "cat", 0.75),
        Event(3.0, 4.0, 3, "dog", 0.9),
    ]


def test_thresholds_of_classes() -> None:
    timeline = of({"cat": [0.1, 0.75, 0.375, 0.1], "dog": [0.5, 0.1, 0.1, 0.9]})
    by_name = timeline.events(on={"cat": 0.9}, off={"dog": 0.05})
    assert by_name == [Event(0.0, 4.0, 3, "dog", 0.9)]
    assert timeline.events(on=[0.9, 0.5], off=np.array([0.35, 0.05])) == by_name
    # Without an off of its own, a class ends at 0.7 of its on.
    assert timeline.events(on={"cat": 0.5625, "dog": 1.0}) == [Event(1.0, 2.0, 7, "cat", 0.75)]


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"on": {"cot": 0.5}}, r"^on: expected one of cat, dog; .*\(did you mean 'cat'\?\)"),
        ({"on": [0.5]}, r"^on: expected one number, or one for each of 2 classes, found .*\(1,\)"),
        ({"on": 1.5}, r"^on: expected numbers in \[0, 1\], found 1.5"),
        ({"off": float("nan")}, r"^off: expected numbers in \[0, 1\], found nan"),
        ({"off": 0.6}, "^off: expected at most on, 0.5, found 0.6"),
        ({"on": {"dog": 0.1}, "off": {"dog": 0.2}}, "^off: expected at most on, 0.1, found 0.2"),
    ],
)
def test_thresholds_that_cannot_be(thresholds: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        of({"cat": [0.1], "dog": [0.5]}).events(**thresholds)


def test_a_timeline_has_thresholds_of_its_own() -> None:
    scores = {"cat": [0.1, 0.3, 0.1], "dog": [0.1, 0.6, 0.4]}
    timeline = replace(of(scores), on={"cat": 0.3}, off=[0.2, 0.5])
    assert timeline.on.tolist() == [0.3, 0.5]
    assert [(e.name, e.start, e.end) for e in timeline.events()] == [("cat", 1, 2), ("dog", 1, 2)]
    # Others replace them: without `off`, an event ends below 0.7 of `on`.
    assert [e.name for e in timeline.events(on=0.6)] == ["dog"]
    assert [(e.start, e.end) for e in timeline.events(on={"cat": 1.0})] == [(1, 3)]
    assert [e.end for e in timeline.events(off=0.05)] == [3, 3]
    # They stay with their classes.
    chosen = timeline.averaged().per_second().best(1)
    assert (chosen.names, chosen.on.tolist(), chosen.off.tolist()) == (("dog",), [0.5], [0.5])
    assert sorted(timeline.select([1, 0]).events()) == sorted(timeline.events())
    with pytest.raises(ArgumentError, match=r"off: expected at most on, 0\.3, found 0\.4"):
        replace(of(scores), on=0.3, off=0.4)
    with pytest.raises(ArgumentError, match="on: expected one number, or one for each"):
        replace(of(scores), on=[0.3])
