"""The extras of pyseg's distribution: what to say where one is not installed."""

from __future__ import annotations

from pathlib import Path

from pyseg import _build


def install_command(extra: str) -> str:
    """Returns the command that adds ``extra`` to the installation at hand."""
    if _build.INSTALLED:
        return f"pip install '{_build.DISTRIBUTION}[{extra}]'"
    checkout = _build.PACKAGE.parent
    folder = "." if checkout == Path.cwd() else checkout
    return f"pip install -e '{folder}[{extra}]'"
