"""Finding the video that an annotation names."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyseg.video.paths import SUFFIXES as VIDEO_SUFFIXES

_UPLOAD = re.compile("[0-9a-f]{8}-")  # Label Studio puts it before the names of uploaded files
# What may be missing at the end of a name: `.2` of `talk.2` is no suffix.
_SUFFIXES = {*VIDEO_SUFFIXES, *(".npy", ".npz", ".gif"), *(".wav", ".mp3", ".m4a", ".flac", ".ogg")}


class VideoNames:
    r"""Finds the id of a video by the name that a tool gives it: an id, a path or a URL.

    The first folders and the suffix of a name, or of a video, may be missing in the other; folders
    that both have must agree. Where several videos have the same name, the folders before it tell
    them apart.

    Args:
        ids: The ids of all videos.
        paths: The file of each video, by id, where names may also be those of files.

    Example:
        >>> names = VideoNames(["a", "films/b", "more/b"])
        >>> names.find("file:///home/me/a.mp4"), names.find("C:\\films\\b.mp4")
        (['a'], ['films/b'])
        >>> names.find("b.mp4"), names.find("c.mp4")
        (['films/b', 'more/b'], [])
        >>> names = VideoNames(["b-1", "b-2"], {"b-1": "films/b.mp4", "b-2": "more/b.mp4"})
        >>> names.find("b"), names.find("more/b.mp4"), names.find("b-1")
        (['b-1', 'b-2'], ['b-2'], ['b-1'])
    """

    def __init__(self, ids: Iterable[str], paths: Mapping[str, str] | None = None) -> None:
        self._ids = set(ids)
        self._has_paths = bool(paths)
        self._places: dict[str, list[list[str]]] = {}  # the parts of each id, and of its path
        self._ends: dict[str, set[str]] = {}  # ids by the last parts of ids and paths
        self._uploaded: dict[str, set[str]] = {}  # ids by what Label Studio makes of their names
        files = ((id, os.path.abspath(path)) for id, path in (paths or {}).items())
        every = [(id, _parts(name)) for id, name in (*((id, id) for id in self._ids), *files)]
        for id, parts in every:
            self._places.setdefault(id, []).append(parts)
            self._add(id, parts[-1:])
            for form in _forms("/".join(parts[-1:])):
                self._uploaded.setdefault(_as_uploaded(form), set()).add(id)
        for id, parts in every:
            if any(len(self._ends[form]) > 1 for form in _forms("/".join(parts[-1:]))):
                for first in range(len(parts) - 1):
                    self._add(id, parts[first:])

    def _add(self, id: str, parts: Sequence[str]) -> None:
        for form in _forms("/".join(parts)):
            self._ends.setdefault(form, set()).add(id)

    def find(self, name: str) -> list[str]:
        """Returns the ids that a name may stand for: one, none, or several."""
        if name in self._ids:
            return [name]
        for path in _paths(name):
            if found := self._find(path):
                return found
        return []

    def _find(self, path: str) -> list[str]:
        parts = _parts(path)
        ends = ["/".join(parts[first:]) for first in range(len(parts))]
        if self._has_paths and "/" in path:
            ends.insert(0, "/".join(_parts(os.path.abspath(path))))
        uploaded = _UPLOAD.sub("", parts[-1], count=1) if parts else ""
        if parts and uploaded != parts[-1]:
            ends.append(uploaded)
        for end in ends:
            for form in _forms(end):
                if form in self._ids:
                    return [form]
                found = [id for id in self._ends.get(form, ()) if self._agrees(id, parts)]
                if found:
                    return sorted(found)
        if parts and uploaded != parts[-1]:
            for form in _forms(uploaded):
                if form in self._uploaded:
                    return sorted(self._uploaded[form])
        return []

    def _agrees(self, id: str, parts: Sequence[str]) -> bool:
        """Returns whether a name has the folders of a video, as far as both have some."""
        for place in self._places[id]:
            shared = min(len(place), len(parts)) - 1
            if place[len(place) - 1 - shared : -1] == list(parts[len(parts) - 1 - shared : -1]):
                return True
        return False


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _as_uploaded(name: str) -> str:
    """Returns the name that Label Studio gives to an uploaded file, without the digits before it.

    It is Django's `get_valid_filename`.
    """
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _paths(name: str) -> Iterator[str]:
    """Yields what a name may be as a path: without the scheme and host of a URL, with slashes.

    ELAN's paths may have percent signs that stand for themselves, or for characters as in a URL.
    """
    before, query, behind = name.partition("?d=")  # Label Studio's local files
    if query and before.endswith("/local-files/"):
        yield urllib.parse.unquote(behind)
        return
    path = name.replace("\\", "/")
    if "://" in name:
        with contextlib.suppress(ValueError):
            yield urllib.parse.unquote(urllib.parse.urlsplit(name).path)
        path = path.partition("://")[2]
    yield path
    if "%" in path:
        yield urllib.parse.unquote(path)


def _forms(path: str) -> Iterator[str]:
    yield path
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in _SUFFIXES:
        yield stem
