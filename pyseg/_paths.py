"""Arguments that are paths."""

from __future__ import annotations

import os

from pyseg.errors import ArgumentError


def path_text(path: str | os.PathLike[str], argument: str = "path") -> str:
    """Returns a path as text.

    Args:
        path: What the caller was given for it.
        argument: The name of that argument, for the message.

    Raises:
        pyseg.errors.ArgumentError: It is no path. `open` would take a number for an open file.

    Example:
        >>> path_text(None, "run")
        Traceback (most recent call last):
        pyseg.errors.ArgumentError: run: expected a path, found None
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"{argument}: expected a path, found {path!r:.60}")
    return os.fsdecode(path)
