"""The HTML page of a timeline, which plays its video; jinja2 is in the extra `report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pyseg import _html
from pyseg._html import strips
from pyseg._table import Table
from pyseg.timeline.events import Event
from pyseg.timeline.thumbnails import Thumbnail, thumbnails
from pyseg.timeline.times import clock

if TYPE_CHECKING:
    from pyseg.timeline.timeline import Timeline

_MOST_SCORES = 8_000_000  # in a page, of a byte each; ten hours of 200 classes have fewer
_FEWEST_CLASSES = 20  # of the longest videos


def page(
    timeline: Timeline,
    events: Sequence[Event] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> str:
    """Returns an HTML page of the scores over time.

    It contains everything but the video, which it plays from its file where there is one. Without
    scripts it lists the events, the highest scores and the ratings. Of classes too many for a page
    it shows those with the highest scores, and the rated ones.

    Args:
        timeline: The scores.
        events: The events to list; default: those of `Timeline.events`.
        folder: The folder that the page is written to, from which the address of the video is
            relative; default: its address is absolute.

    Raises:
        pyseg.errors.UserError: A package of the extra `report` is not installed.
    """
    fine = timeline.averaged()
    most = max(_FEWEST_CLASSES, _MOST_SCORES // max(1, len(fine.starts)))
    total = len(timeline.names)
    if total > most:
        fine = timeline = fine.best(most)
    shown = set(timeline.numbers)
    found = timeline.events() if events is None else [e for e in events if e.number in shown]
    has_video = timeline.video is not None and Path(timeline.video).is_file()
    pictures = thumbnails(timeline.video) if has_video and timeline.video else []
    return _html.render(
        Path(__file__).with_name("timeline.html.jinja"),
        title=timeline.title,
        duration=clock(timeline.duration),
        total=total,
        video=_address(timeline.video, folder) if has_video and timeline.video else None,
        missing=timeline.video if timeline.video and not has_video else None,
        events=[
            {
                "start": round(event.start, 3),
                "end": round(event.end, 3),
                "column": timeline.columns[event.number],
                "times": f"{clock(event.start)} – {clock(event.end)}",
                "name": event.name,
                "peak": f"{event.peak:.2f}",
            }
            for event in found
        ],
        classes=peak_table(fine.best(len(fine.names))),
        ratings=_ratings(timeline),
        data=data(timeline, found, pictures),
    )


def data(
    timeline: Timeline, events: Sequence[Event], pictures: Sequence[Thumbnail] = ()
) -> dict[str, Any]:
    """Returns what ``strips.js`` draws.

    Args:
        timeline: The scores; those of windows that overlap are averaged.
        events: The events to mark.
        pictures: Thumbnails of the video.
    """
    fine, columns = timeline.averaged(), timeline.columns
    return strips.encode(
        fine.starts,
        fine.ends,
        fine.scores,
        timeline.names,
        ratings=[
            (columns[rating.number], rating.start, rating.end, rating.positive)
            for rating in timeline.ratings
            if rating.number in columns
        ],
        events=[(columns[event.number], event.start, event.end, event.peak) for event in events],
        thumbnails=pictures,
    )


def peak_table(timeline: Timeline) -> Table:
    """Returns the table of the highest score of each class and its time."""
    rows = [
        (name, f"{timeline.peaks[column]:.2f}", timeline.peak_clock(column))
        for column, name in enumerate(timeline.names)
    ]
    return Table(("class", "highest score", "at"), rows, numeric=(1, 2))


def _ratings(timeline: Timeline) -> Table:
    names = dict(zip(timeline.numbers, timeline.names, strict=True))
    rows = [
        (
            clock(rating.start),
            clock(rating.end),
            names.get(rating.number, str(rating.number)),
            "yes" if rating.positive else "no",
        )
        for rating in sorted(timeline.ratings, key=lambda rating: rating.start)
    ]
    return Table(("from", "to", "class", "shown"), rows)


def _address(video: str, folder: str | os.PathLike[str] | None) -> str:
    """Returns the address of a file for a page in a folder.

    Example:
        >>> _address("/films/a #1?.mp4", "/films/out"), _address("/films/a b.mp4", None)
        ('../a%20%231%3F.mp4', 'file:///films/a%20b.mp4')
    """
    path = Path(video).resolve()
    if folder is not None:
        try:
            relative = os.path.relpath(path, Path(folder).resolve())
        except ValueError:  # on another drive
            return path.as_uri()
        return quote(os.fsencode(relative.replace(os.sep, "/")))
    return path.as_uri()
