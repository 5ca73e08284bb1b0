"""The video files that globs and folders name."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from pyseg._files import Paths, find_files

_LOG = logging.getLogger("pyseg")
_TOLD = 5  # suffixes of files that are left out

SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""The suffixes of files that a folder of videos is searched for."""


def find_videos(paths: Paths) -> list[str]:
    """Returns the files of a glob, a folder, a file, or a list of these.

    A folder stands for every file in it, at any depth, that has the suffix of a video, in lower or
    upper case; a line is logged on the others. Hidden files are none of them. The order is that of
    the names (of a list: of its elements), and repeated files are listed once.

    Raises:
        pyseg.errors.MissingFileError: One of ``paths`` matches nothing; the message names it.
        pyseg.errors.ArgumentError: The list is empty.

    Example:
        >>> find_videos("no/such/**/*.mp4")
        Traceback (most recent call last):
        ...
        pyseg.errors.MissingFileError: no/such/**/*.mp4: no file matches
    """
    return find_files(paths, _videos_in, "no file in this folder has the suffix of a video")


def _videos_in(folder: str) -> list[str]:
    found, others = [], Counter[str]()
    for path in Path(folder).rglob("*"):
        if path.name[0] == "." or not path.is_file():
            continue
        if (suffix := path.suffix.lower()) in SUFFIXES:
            found.append(str(path))
        else:
            others[suffix or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(_TOLD))
        _LOG.info(
            "%s: left out %d files without the suffix of a video: %s%s",
            *(folder, others.total(), kinds, ", ..." * (len(others) > _TOLD)),
        )
    return sorted(found)
