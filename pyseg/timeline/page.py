"""The HTML page of a timeline; jinja2 is in the extra `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyseg import _html
from pyseg._table import Table
from pyseg.timeline.picture import draw
from pyseg.timeline.times import clock

if TYPE_CHECKING:
    from pyseg.timeline.timeline import Timeline


def page(timeline: Timeline) -> str:
    """Returns a self-contained HTML page with the picture and a table of the ratings.

    Raises:
        pyseg.errors.UserError: A package of the extra `report` is not installed.
    """
    names = dict(zip(timeline.numbers, timeline.names, strict=True))
    rows = [
        (
            clock(rating.start),
            names.get(rating.number, str(rating.number)),
            "yes" if rating.positive else "no",
        )
        for rating in sorted(timeline.ratings, key=lambda rating: rating.start)
    ]
    return _html.render(
        Path(__file__).with_name("timeline.html.jinja"),
        title=timeline.title,
        picture=draw(timeline),
        table=Table(("from", "class", "shown"), rows),
    )
