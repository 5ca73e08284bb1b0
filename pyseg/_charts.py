"""The style of pyseg's charts, which are PNG pictures.

matplotlib is in the extra `report` and is imported on use.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyseg._extras import requires

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""The palette of Okabe and Ito, which color-blind readers can distinguish."""

GRAY = "0.35"


def color(number: int) -> str:
    """Returns the color of a run or another series, by its number."""
    return COLORS[number % len(COLORS)]


def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of a size in inches, independent of any display.

    Raises:
        pyseg.errors.UserError: matplotlib is not installed.
    """
    with requires("report", "a chart"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(
    figure: Figure, title: str, x_label: str, place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    """Returns axes in a figure, at a place in the format of matplotlib's ``add_subplot``."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x_label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
    return axes


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    with without_glyph_warnings():
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Silences matplotlib's warnings about missing glyphs, for which it draws boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing", category=UserWarning)
        yield


def label(name: str, limit: int = 32) -> str:
    r"""Returns a name as one line of literal text for matplotlib, of at most `limit` characters.

    Example:
        >>> print(label("a  b\n$x$y", 6))
        a b \$…
    """
    name = shorten(name, limit)
    # A dollar would start a formula, and legends omit names that start with an underscore.
    return ("\N{HAIR SPACE}" if name.startswith("_") else "") + name.replace("$", r"\$")


def shorten(name: str, limit: int) -> str:
    """Returns a name as one line of at most `limit` characters.

    Example:
        >>> shorten("a  b c d", 6)
        'a b c…'
    """
    name = " ".join(name.split())
    return name if len(name) <= limit else name[: limit - 1] + "…"
