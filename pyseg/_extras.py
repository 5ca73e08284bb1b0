"""The extras of pyseg's distribution, and the message where one is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pyseg import _build
from pyseg.errors import UserError


def install_command(extra: str) -> str:
    """Returns the command that adds ``extra`` to this installation."""
    if _build.INSTALLED:
        return f"pip install '{_build.DISTRIBUTION}[{extra}]'"
    checkout = _build.PACKAGE.parent
    folder = "." if checkout == Path.cwd() else checkout
    return f"pip install -e '{folder}[{extra}]'"


@contextlib.contextmanager
def requires(extra: str, what: str) -> Iterator[None]:
    """Turns a failed import in its block into the advice to install an extra.

    Args:
        extra: The extra that the imported packages belong to.
        what: What they are needed for, for the message.

    Raises:
        pyseg.errors.UserError: One of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {error.name}: {install_command(extra)} ({error})") from error
