"""What became of every video: ``manifest.jsonl``."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pyseg._containers import parse_json
from pyseg._files import atomic_write
from pyseg.data.records import why_not_an_id
from pyseg.errors import DataError

FILE = "manifest.jsonl"

Status = Literal["ok", "truncated", "skipped"]


@dataclass(frozen=True)
class Video:
    """A video to compute features of.

    Attributes:
        path: Its path, as the user named it.
        id: Its id in the records.
        size: The size of the file, in bytes.
        mtime: The time of its last change, in nanoseconds.
        note: Why the id is not the name of the file.
    """

    path: str
    id: str
    size: int
    mtime: int
    note: str | None = None

    @property
    def key(self) -> str:
        """A name for files about it: a digest of its absolute path."""
        path = os.fsencode(os.path.abspath(self.path))
        return hashlib.sha256(path).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What became of a video.

    Attributes:
        status: "ok", "truncated" if the file ends early, or "skipped" if it has no features.
        reason: Why it is not ok.
        duration: Seconds from the first frame to the end of the last one.
        frames: Frames with features.
        decoded_frames: Frames that were decoded.
        corrupt_frames: Damaged ones among these.
        seconds: The time that it took.
    """

    status: Status
    reason: str | None = None
    duration: float = 0.0
    frames: int = 0
    decoded_frames: int = 0
    corrupt_frames: int = 0
    seconds: float = 0.0


def list_videos(paths: Sequence[str]) -> list[Video]:
    """Returns the videos in files, each with an id of its own.

    The id is the name of the file without its suffix. Where names repeat or are no ids, a digest of
    the path is added.

    Raises:
        OSError: A file cannot be read.
    """
    stems = [_printable(Path(path).stem) for path in paths]
    often = Counter(stems)
    videos = []
    for path, stem in zip(paths, stems, strict=True):
        found = os.stat(path)
        video = Video(path, stem, found.st_size, found.st_mtime_ns)
        note = None
        if (wrong := why_not_an_id(stem)) is not None:
            note = f"the name is no id: {wrong}"
            stem = "video"
        elif often[stem] > 1:
            note = f"{often[stem]} videos have this name"
        if note is not None:
            id = f"{stem}-{video.key[:8]}"
            video = Video(path, id, found.st_size, found.st_mtime_ns, note)
        videos.append(video)
    return videos


def _printable(text: str) -> str:
    """Returns a file's name with bytes that are not UTF-8 written as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def line(video: Video, outcome: Outcome) -> dict[str, Any]:
    """Returns what the manifest says about a video."""
    told = {"path": _printable(video.path), "id": video.id, "size": video.size}
    return {**told, "mtime": video.mtime / 1e9, **asdict(outcome), "note": video.note}


def write_manifest(folder: Path, outcomes: Mapping[str, Outcome], videos: Iterable[Video]) -> None:
    """Writes a line for every video with a known outcome, by its key."""
    with atomic_write(folder / FILE) as file:
        for video in videos:
            if (outcome := outcomes.get(video.key)) is not None:
                file.write((json.dumps(line(video, outcome)) + "\n").encode())


def read_manifest(folder: Path) -> list[tuple[str, str, str]]:
    """Returns the id, the path and the status of every video.

    Raises:
        pyseg.errors.DataError: The file has something else.
        OSError: It cannot be read.
    """
    path = folder / FILE
    found: list[tuple[str, str, str]] = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        told = parse_json(text, f"{path}, line {number}")
        match told:
            case {"id": str(id), "path": str(name), "status": str(status)}:
                found.append((id, name, status))
            case _:
                raise DataError(
                    f"{path}, line {number}: expected id, path and status, found {told!r:.60}"
                )
    return found
