"""The command that installs an extra of pyseg's distribution."""

from __future__ import annotations

from pathlib import Path

from pyseg import _build


def install_command(extra: str) -> str:
    """Returns the command that adds ``extra`` to this installation."""
    if _build.INSTALLED:
        return f"pip install '{_build.DISTRIBUTION}[{extra}]'"
    checkout = _build.PACKAGE.parent
    folder = "." if checkout == Path.cwd() else checkout
    return f"pip install -e '{folder}[{extra}]'"
