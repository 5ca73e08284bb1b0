"""The parts of the report's page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyseg import _html
from pyseg._table import Table


@dataclass(frozen=True)
class PageTable(Table):
    """A table of the page.

    Attributes:
        colors: The numbers of the runs of all columns but the first, which determine their colors.
        summary: The text shown while the table is folded; empty if it cannot be folded.
        searchable: Whether its rows can be sorted and searched.
        unfolded: Whether it is unfolded at first.
    """

    colors: Sequence[int] = ()
    summary: str = ""
    searchable: bool = False
    unfolded: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        kind: "chart": curves or points; "strips": scores over time; "bars"; "graph": names and
            arrows.
        title: What it shows, in a few words.
        label: The same in a sentence, for readers who cannot see it.
        content: What the page's template or script draws: `pyseg.report.charts`.
        caption: How to read it.
        table: Its numbers, for readers without scripts.
        wide: Whether it spans the page.
        tall: Whether it stands beside two rows of figures.
    """

    kind: Literal["chart", "strips", "bars", "graph"]
    title: str
    label: str
    content: Any
    caption: str = ""
    table: PageTable | None = None
    wide: bool = False
    tall: bool = False


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: Its heading.
        source: What it shows, and the source of its data.
        tables: Its tables.
        figures: Its figures.
        missing: What is missing, and why.
    """

    title: str
    source: str
    tables: list[PageTable] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The name of the section in addresses.

        Example:
            >>> Section("Label graph", "").anchor
            'label-graph'
        """
        return re.sub(r"\W+", "-", self.title.lower())


def render(title: str, subtitle: str, sections: Sequence[Section], versions: str) -> str:
    """Returns the page, which needs no other files, and has all numbers as tables.

    Args:
        title: Its heading.
        subtitle: The line below.
        sections: The sections.
        versions: The line at the end.

    Raises:
        pyseg.errors.UserError: jinja2 is not installed.
    """
    return _html.render(
        Path(__file__).with_name("report.html.jinja"),
        title=title,
        subtitle=subtitle,
        sections=sections,
        versions=versions,
    )
