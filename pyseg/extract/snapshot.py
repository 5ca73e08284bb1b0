"""What a folder has, to tell what a repetition of the command leaves out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyseg._text import counted
from pyseg.data import features as feature_set
from pyseg.data import vocabulary
from pyseg.errors import DataError
from pyseg.extract import manifest

_TOLD = 5  # names in a line


@dataclass(frozen=True)
class Snapshot:
    """The videos and the classes of a collection; nothing of what is not there or damaged.

    Attributes:
        videos: The paths of the videos with features, by id.
        every: The ids and the paths of all videos, with features or without.
        classes: The names of all classes.
        rated: The names of the classes with rated segments.
    """

    videos: dict[str, str]
    every: set[str]
    classes: list[str]
    rated: list[str]

    @staticmethod
    def read(folder: Path) -> Snapshot:
        """Returns what a folder has.

        Raises:
            OSError: A file cannot be read.
        """
        lines, classes, rated = [], [], []
        if (folder / feature_set.FILE).exists():
            with contextlib.suppress(FileNotFoundError, DataError):
                lines = manifest.read_manifest(folder)
            with contextlib.suppress(FileNotFoundError, DataError):
                classes = vocabulary.read_vocabulary(folder / vocabulary.FILE)
            with contextlib.suppress(FileNotFoundError, DataError):
                rated = vocabulary.read_segment_vocabulary(folder / vocabulary.SEGMENT_FILE).names
        return Snapshot(
            {id: path for id, path, status in lines if status != "skipped"},
            {name for id, path, _ in lines for name in (id, path)},
            classes,
            rated,
        )

    def losses(self, now: Snapshot, folder: Path) -> Iterator[str]:
        """Yields lines on what is no longer there.

        Args:
            now: What the folder has now.
            folder: The folder, for the lines.
        """
        videos = [id for id, path in self.videos.items() if not {id, path} & now.every]
        rated = [name for name in self.rated if name not in now.rated]
        classes = [name for name in self.classes if name not in {*now.classes, *rated}]
        for what, noun, names in (
            ("{}", "video", videos),
            ("all ratings of {}", "class", rated),
            ("{}", "class", classes),
        ):
            if names:
                number = what.format(counted(len(names), noun))
                yield f"left out {number} that {folder} had: {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _TOLD} more"] if len(names) > _TOLD else []
    return ", ".join([*names[:_TOLD], *more])
