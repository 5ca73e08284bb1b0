"""Arguments that are paths."""

from __future__ import annotations

import os

from pyseg import _urls
from pyseg.errors import ArgumentError, UserError


def path_text(path: str | os.PathLike[str], argument: str = "path", *, remote: bool = False) -> str:
    """Returns a path as text, and of a URL the name that hides its secrets.

    Args:
        path: What the caller was given for it.
        argument: The name of that argument, for the message.
        remote: Whether it may be a URL.

    Raises:
        pyseg.errors.ArgumentError: It is no path. `open` would take a number for an open file.
        pyseg.errors.UserError: It is a URL where only a local path will do.

    Example:
        >>> path_text(None, "run")
        Traceback (most recent call last):
        pyseg.errors.ArgumentError: run: expected a path, found None
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"{argument}: expected a path, found {path!r:.60}")
    text: str = _urls.named(os.fsdecode(path))
    if not remote and _urls.is_url(text):
        raise UserError(f"{argument}: expected a local path, found the URL {text}")
    return text
