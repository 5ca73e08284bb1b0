"""Finding the video that an annotation names."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator

_UPLOAD = re.compile("[0-9a-f]{8}-")  # Label Studio puts it before the names of uploaded files


class VideoNames:
    r"""Finds the id of a video by the name that a tool gives it: an id, a path or a URL.

    The folders and the suffix of a name, or the folders of an id, may be missing in the other.

    Args:
        ids: The ids of all videos.

    Example:
        >>> names = VideoNames(["a", "films/b", "more/b"])
        >>> names.find("file:///home/me/a.mp4"), names.find("C:\\films\\b.mp4")
        (['a'], ['films/b'])
        >>> names.find("b.mp4"), names.find("c.mp4")
        (['films/b', 'more/b'], [])
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = set(ids)
        self._ends: dict[str, list[str]] = {}
        for id in self._ids:
            for end in set(_forms(id.rpartition("/")[2])):
                self._ends.setdefault(end, []).append(id)

    def find(self, name: str) -> list[str]:
        """Returns the ids that a name may stand for: one, none, or several."""
        if name in self._ids:
            return [name]
        parts = _path(name).split("/")
        for first in range(len(parts)):
            for form in _forms("/".join(parts[first:])):
                if form in self._ids:
                    return [form]
        for last in (parts[-1], _UPLOAD.sub("", parts[-1], count=1)):
            for form in _forms(last):
                if form in self._ids:
                    return [form]
                if form in self._ends:
                    return sorted(self._ends[form])
        return []


def _path(name: str) -> str:
    """Returns the path in a name: without the scheme and host of a URL, with slashes."""
    before, query, behind = name.partition("?d=")  # Label Studio's local files
    if query and before.endswith("/local-files/"):
        return urllib.parse.unquote(behind)
    if "://" in name:
        try:
            return urllib.parse.unquote(urllib.parse.urlsplit(name).path)
        except ValueError:
            return name
    return name.replace("\\", "/")


def _forms(path: str) -> Iterator[str]:
    yield path
    yield os.path.splitext(path)[0]
