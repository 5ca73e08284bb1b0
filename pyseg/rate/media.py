"""What a rater is shown of a video: its file, some of its frames, or a page elsewhere."""

from __future__ import annotations

import base64
import functools
import io
import math
import os
import threading
import urllib.parse
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from pyseg._extras import requires
from pyseg._files import Paths
from pyseg._paths import path_text
from pyseg._text import counted
from pyseg.data._tables import read_table, shown
from pyseg.data.annotations.names import VideoNames
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError
from pyseg.video import find_videos, probe, read_excerpt

_TYPES = {
    **dict.fromkeys((".mp4", ".m4v"), "video/mp4"),
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".ogv": "video/ogg",
    ".mkv": "video/x-matroska",
    **dict.fromkeys((".ts", ".mts", ".m2ts"), "video/mp2t"),
    **dict.fromkeys((".mpg", ".mpeg"), "video/mpeg"),
    ".avi": "video/x-msvideo",
    ".wmv": "video/x-ms-wmv",
    ".asf": "video/x-ms-asf",
    ".flv": "video/x-flv",
    ".3gp": "video/3gpp",
}
_PLAYED = (".mp4", ".m4v", ".mov", ".webm", ".ogv", ".ogg")  # suffixes of links to media files
_YOUTUBE = ("youtube.com", "youtube-nocookie.com", "youtu.be")
_MOST_FRAMES = 40
_FASTEST = 8.0  # frames a second
_LONGEST_SIDE = 640  # pixels
_LONGEST_PART = 3600.0  # seconds
_CACHED = 8  # parts
_SAME = 0.1  # seconds between clocks that nobody notices


class Link(NamedTuple):
    """A video elsewhere.

    Attributes:
        url: Its address, http or https.
        offset: The second of it at which the frames of the features begin.
    """

    url: str
    offset: float = 0.0

    @property
    def plays(self) -> bool:
        """Whether it is a media file, by the suffix of its path, and no page."""
        path = urllib.parse.urlsplit(self.url).path
        return PurePath(path).suffix.lower() in _PLAYED

    def at(self, start: float, end: float) -> str:
        """Returns the address that starts at a second.

        YouTube gets the parameter ``t``, in whole seconds; others a media fragment, unless they
        have a fragment already.

        Example:
            >>> Link("https://www.youtube.com/watch?v=abc", 30).at(5, 10)
            'https://www.youtube.com/watch?v=abc&t=35s'
            >>> Link("https://example.org/film").at(5, 10)
            'https://example.org/film#t=5,10'
        """
        start, end = start + self.offset, end + self.offset
        parts = urllib.parse.urlsplit(self.url)
        host = (parts.hostname or "").lower()
        if any(host == name or host.endswith("." + name) for name in _YOUTUBE):
            given = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
            query = [pair for pair in given if pair[0] not in ("t", "start")]
            query.append(("t", f"{math.floor(start)}s"))
            return parts._replace(query=urllib.parse.urlencode(query), fragment="").geturl()
        if parts.fragment:
            return self.url
        return parts._replace(fragment=f"t={start:g},{end:g}").geturl()


class Frames(NamedTuple):
    """Frames of a part of a video.

    Attributes:
        fps: Frames a second.
        images: JPEG files.
    """

    fps: float
    images: tuple[bytes, ...]


class Media:
    """The videos that a rater can be shown: files, and links.

    Videos are numbered, so that no address of the local server names a file.

    Args:
        files: The file of a video, by id.
        links: Where to see a video that has no file here, by id.
    """

    def __init__(
        self, files: Mapping[str, str | os.PathLike[str]], links: Mapping[str, Link] | None = None
    ) -> None:
        self._links = dict(links or {})
        for id, link in self._links.items():
            _check_url(link.url, f"links: the URL of {shown(id)}")
        self._files = {id: os.path.abspath(path_text(path, "files")) for id, path in files.items()}
        self._ids = [*self._files, *(id for id in self._links if id not in self._files)]
        self._numbers = {id: number for number, id in enumerate(self._ids)}
        self._decoding = threading.Semaphore(2)
        self._frames = functools.lru_cache(_CACHED)(self._read_frames)
        self._clock = functools.cache(self._read_clock)

    @staticmethod
    def find(
        ids: Collection[str],
        videos: Paths | None = None,
        links: str | os.PathLike[str] | None = None,
        *,
        known: Mapping[str, str] | None = None,
    ) -> tuple[Media, tuple[str, ...]]:
        """Finds the videos of a feature set.

        Args:
            ids: The ids of its videos.
            videos: Files, folders or globs; a file is found by its name, as in ratings.
            links: A table with the columns ``video`` and ``url``, and optionally ``offset``: the
                second of the linked video at which the features begin.
            known: The files that the features were made of, by id, where ids differ from names.

        Returns:
            The media, and notes about what was left out.

        Raises:
            pyseg.errors.ArgumentError: Neither videos nor links are given, or none fits.
            pyseg.errors.DataError: A line of the table is wrong, or two files fit one video.
            pyseg.errors.MissingFileError: A path matches no file.
        """
        if videos is None and links is None:
            raise ArgumentError("videos: expected files, or links, found neither")
        names, notes = VideoNames(ids, known), []
        files: dict[str, str] = {}
        unknown = []
        for path in find_videos(videos) if videos is not None else ():
            found = names.find(path)
            if len(found) != 1:
                unknown.append(path)
            elif found[0] in files:
                raise DataError(
                    f"{path}: expected one file of the video {shown(found[0])}, "
                    f"found {files[found[0]]} too"
                )
            else:
                files[found[0]] = path
        if unknown:
            notes.append(f"files of no known video, which are not shown: {_some(unknown)}")
        linked = {} if links is None else _read_links(links, names, notes)
        if not files and not linked:
            raise ArgumentError(
                f"videos: expected files or links of the {counted(len(ids), 'video')} of the "
                f"features ({_some(map(shown, ids))}), found none"
            )
        return Media(files, linked), tuple(notes)

    def __contains__(self, id: object) -> bool:
        """Returns whether a video can be shown."""
        return id in self._numbers

    def __len__(self) -> int:
        """Returns how many videos can be shown."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the videos that can be shown, in the order of their numbers."""
        return tuple(self._ids)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of linked media files, such as "https:", that a page has to play."""
        urls = (link.url for link in self._links.values() if link.plays)
        return tuple(sorted({urllib.parse.urlsplit(url).scheme + ":" for url in urls}))

    def describe(self, id: str, start: float, end: float) -> dict[str, Any]:
        """Returns how a page shows a part of a video, as values of JSON.

        ``kind`` is "file" (``number`` names it to the server; ``plays`` tells whether a browser may
        be able to play it), "stream" (``url`` is a media file elsewhere), "page" (to be opened) or
        "none". ``offset`` is the second of the player's clock at which the video begins, and
        ``page`` the address of a link that starts at the part.

        Args:
            id: The id of the video.
            start: The start of the part in seconds.
            end: Its end.
        """
        if id in self._files:
            number = self._numbers[id]
            offset, plays = self._clock(number)
            return {"kind": "file", "number": number, "offset": offset, "plays": plays}
        link = self._links.get(id)
        if link is None:
            return {"kind": "none"}
        page = link.at(start, end)
        if link.plays:
            return {"kind": "stream", "url": link.url, "offset": link.offset, "page": page}
        return {"kind": "page", "page": page}

    def file(self, number: int) -> str | None:
        """Returns the file of a number; None if no video with a file has it."""
        if not 0 <= number < len(self._files):
            return None
        return self._files[self._ids[number]]

    def frames(self, number: int, start: float, end: float) -> Frames | None:
        """Returns frames of a part of a video, at most 8 a second and 40 in all.

        Args:
            number: The number of the video.
            start: The start of the part in seconds.
            end: Its end.

        Returns:
            The frames; None if no video with a file has the number, or the part is none.

        Raises:
            pyseg.errors.DataError: The file cannot be decoded, or ends before the part.
            pyseg.errors.MissingFileError: It is gone.
            pyseg.errors.UserError: A package of the extra `video` is not installed.
        """
        if self.file(number) is None or not 0 <= start < end <= start + _LONGEST_PART:
            return None
        return self._frames(number, start, end)

    def _read_clock(self, number: int) -> tuple[float, bool]:
        """Returns the second of a player's clock at which a file's first frame is shown.

        The clock of a player begins at 0 or where the file begins, depending on the browser: where
        these differ, single frames are shown instead. The flag tells whether they are the same.
        """
        try:
            info = probe(self._files[self._ids[number]])
        except (DataError, MissingFileError, UserError):  # the page will tell
            return 0.0, True
        return info.begin + info.delay, abs(info.begin) < _SAME

    def _read_frames(self, number: int, start: float, end: float) -> Frames:
        path = self._files[self._ids[number]]
        fps = min(_FASTEST, _MOST_FRAMES / (end - start))
        with self._decoding:
            images = read_excerpt(path, start, end, fps=fps, longest=_LONGEST_SIDE)
            if not images:
                raise DataError(f"{path}: expected frames from {start:g} s on, found none")
            return Frames(fps, tuple(map(_jpeg, images)))


def media_type(path: str) -> str:
    """Returns the media type of a video file, by its suffix.

    Example:
        >>> media_type("a.MP4"), media_type("a.rm")
        ('video/mp4', 'application/octet-stream')
    """
    return _TYPES.get(os.path.splitext(path)[1].lower(), "application/octet-stream")


def data_address(jpeg: bytes) -> str:
    """Returns a JPEG file as a data address."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _jpeg(image: Any) -> bytes:
    with requires("video", "showing frames"):
        from PIL import Image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80)
    return file.getvalue()


def _read_links(
    path: str | os.PathLike[str], names: VideoNames, notes: list[str]
) -> dict[str, Link]:
    """Reads the table of links; adds a note about unknown videos."""
    links: dict[str, Link] = {}
    name, unknown = path_text(path, "links"), []
    for row in read_table(name, [["video"], ["url"]], optional=["offset"]):
        video, url = row.text("video"), row.text("url")
        _check_url(url, f"{row.path}, line {row.line}")
        offset = row.number("offset") if row.fields["offset"].strip() else 0.0
        if offset < 0:
            row.fail("an offset of at least 0")
        found = names.find(video)
        if len(found) != 1:
            unknown.append(video)
        elif links.setdefault(found[0], Link(url, offset)) != Link(url, offset):
            row.fail(f"one link of the video {shown(found[0])}")
    if unknown:
        notes.append(f"{name}: links of no known video: {_some(map(shown, unknown))}")
    return links


def _check_url(url: str, where: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or any(ord(c) <= 32 or ord(c) == 127 or c in '"<>\\^`{|}' for c in url):
        raise DataError(f"{where}: expected a URL of http or https, found {shown(url)}")


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
