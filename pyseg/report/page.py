"""The parts of the report's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pyseg import _html
from pyseg._table import Table


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        png: A PNG file.
        alt: What it shows, for readers who cannot see it.
        caption: How to read it.
        wide: Whether it spans the page.
        first: Whether it starts a new row.
    """

    png: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    first: bool = False


@dataclass(frozen=True)
class PageTable(Table):
    """A table of the page.

    Attributes:
        colors: The colors of the runs of all columns but the first.
        summary: The text shown while the table is folded; empty if it cannot be folded.
    """

    colors: Sequence[str] = ()
    summary: str = ""


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: Its heading.
        source: What it shows, and the source of its data.
        tables: Its tables.
        pictures: Its pictures.
        missing: What is missing, and why.
    """

    title: str
    source: str
    tables: list[PageTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def render(title: str, subtitle: str, sections: Sequence[Section], versions: str) -> str:
    """Returns the page, which needs neither scripts nor other files.

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
