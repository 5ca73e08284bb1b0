"""The ratings and labels of the videos of a collection, gathered from all files of annotations."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pyseg._paths import path_text
from pyseg._registry import suggestion
from pyseg._text import counted
from pyseg.data._tables import shown
from pyseg.data.annotations.covering import SegmentRatings, rate_segments
from pyseg.data.annotations.elan import ElanClasses
from pyseg.data.annotations.interval import AnnotationFile, Interval, check_name
from pyseg.data.annotations.names import VideoNames
from pyseg.data.annotations.reading import AnnotationFormat, Paths, read_annotations
from pyseg.data.annotations.tables import read_video_labels
from pyseg.data.features import FeatureSet
from pyseg.data.records import OnError, check_on_error
from pyseg.errors import ArgumentError, DataError

ALL = "all"

_TOLD = 3  # videos of the same name
_COMPARED = 10_000  # ids that an unknown name is compared with


@dataclass(frozen=True)
class Annotations:
    """What people said about the videos of a collection.

    Attributes:
        intervals: The rated intervals of each video that was looked at, by id.
        labels: The names of classes of whole videos, by id.
        complete: The classes that are rated throughout the videos that were looked at.
        notes: Lines for the user on what was left out, repeated or contradictory.

    Example:
        >>> here, there = Interval("a.mp4", 1.0, 8.0, "dog"), Interval("a.mp4", 8.0, 20.0, "dog", 0)
        >>> annotations = Annotations.match(["a", "b"], [here, there])
        >>> annotations.classes, annotations.of_video("a")
        (['dog'], ['dog'])
    """

    intervals: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    complete: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rated_classes(self) -> list[str]:
        """The names of the classes of intervals, sorted."""
        every = (rated for some in self.intervals.values() for rated in some)
        return sorted({rated.name for rated in every if rated.score is not None})

    @property
    def classes(self) -> list[str]:
        """The names of all classes, sorted; a class's number is its place here."""
        of_videos = {name for names in self.labels.values() for name in names}
        return sorted(of_videos.union(self.rated_classes))

    def of_video(self, id: str) -> list[str]:
        """Returns the labels of a video: its own, and the classes with an interval above 0.5."""
        rated = {rated.name for rated in self.intervals.get(id, ()) if (rated.score or 0) > 0.5}
        return sorted(rated.union(self.labels.get(id, ())))

    def of_segments(self, id: str, num_frames: int, features: FeatureSet) -> SegmentRatings:
        """Returns the ratings of a video's segments, see `rate_segments`."""
        complete = self.complete if id in self.intervals else ()
        return rate_segments(self.intervals.get(id, ()), num_frames, features, complete)

    def within(
        self, num_frames: Mapping[str, int], features: FeatureSet, on_error: OnError = "raise"
    ) -> Annotations:
        """Checks that the intervals are within their videos; returns those that are.

        An interval may end up to a segment after the last frame, and is then cut.

        Args:
            num_frames: The frames of every video, by id.
            features: The duration of a frame, and the frames of a segment.
            on_error: "raise", or "skip" to leave out the others and note it.

        Raises:
            pyseg.errors.DataError: One is not; the message names file and line.
        """
        kept: dict[str, list[Interval]] = {}
        problems = []
        for id, some in self.intervals.items():
            seconds = num_frames[id] * features.frame_seconds
            kept[id] = []
            for interval in some:
                if interval.start < seconds and interval.end <= seconds + features.segment_seconds:
                    kept[id].append(interval)
                    continue
                problems.append(
                    f"{_where(interval.source)}expected times within the {seconds:g} s of {id!r}, "
                    f"found {interval.start:g} to {interval.end:g}"
                )
        notes = _left_out("intervals outside of their videos", problems, on_error)
        return Annotations(kept, self.labels, self.complete, self.notes + notes)

    @staticmethod
    def match(
        ids: Iterable[str],
        intervals: AnnotationFile | Iterable[Interval] = (),
        labels: Iterable[tuple[str, str] | tuple[str, str, str]] = (),
        *,
        complete: str | Sequence[str] = (),
        on_error: OnError = "raise",
        paths: Mapping[str, str] | None = None,
    ) -> Annotations:
        """Returns the annotations of the videos with the given ids.

        The names of videos may be ids, or paths of the videos' files: see `VideoNames`.

        Args:
            ids: The ids of all videos.
            intervals: Rated intervals, or the content of files.
            labels: Video, class, and optionally the place for messages.
            complete: Classes of which every segment without an interval is rated 0, in videos that
                were looked at: names, lists of names as a,b or in JSON, or "all".
            on_error: "raise" at annotations of an unknown video, or "skip" and note it.
            paths: The file of each video, by id, where names may also be those of files.

        Raises:
            pyseg.errors.DataError: A video is unknown, several have its name, or a value is out of
                its range.
            pyseg.errors.ArgumentError: A class of ``complete`` is unknown.
        """
        check_on_error(on_error)
        if isinstance(intervals, AnnotationFile):
            content = intervals
        else:
            content = AnnotationFile()
            for interval in intervals:
                content.add(Interval(*interval))
        matching = _Matching(ids, paths or {})
        by_video: dict[str, list[Interval]] = {}
        for name, source in content.videos.items():
            if (id := matching.find(name, source)) is not None:
                by_video.setdefault(id, [])
        for interval in content.intervals:
            if (id := matching.find(interval.video, interval.source)) is not None:
                by_video[id].append(interval._replace(video=id))
        by_label: dict[str, list[str]] = {}
        for name, label, *rest in labels:
            source = "".join(rest)
            check_name("class", label, _where(source))
            if (id := matching.find(name, source)) is not None:
                by_label.setdefault(id, []).append(label)
        notes = _left_out("annotations of unknown videos", matching.problems, on_error)
        notes = (*content.notes, *notes, *_drop_repeated(by_video))
        unfinished = Annotations(by_video, by_label)
        chosen = _completed(complete, unfinished.rated_classes)
        return Annotations(by_video, by_label, chosen, notes)

    @staticmethod
    def read(
        ids: Iterable[str],
        ratings: Paths | None = None,
        labels: str | os.PathLike[str] | None = None,
        *,
        complete: str | Sequence[str] = (),
        format: AnnotationFormat | None = None,
        fps: float | None = None,
        elan_classes: ElanClasses = "tiers",
        on_error: OnError = "raise",
        paths: Mapping[str, str] | None = None,
    ) -> Annotations:
        """Returns the annotations in files, of the videos with the given ids.

        Args:
            ids: The ids of all videos.
            ratings: Files of rated intervals, see `read_annotations`.
            labels: A table of the labels of whole videos, with the columns video and class.
            complete: See `match`.
            format: See `read_annotations`.
            fps: See `read_annotations`.
            elan_classes: See `read_annotations`.
            on_error: See `match` and `read_annotations`.
            paths: See `match`.

        Raises:
            pyseg.errors.DataError: A file is malformed, a video is unknown, or several have its
                name.
            pyseg.errors.ArgumentError: An argument is missing or out of range.
            OSError: A file cannot be read.
        """
        content = AnnotationFile()
        if ratings is not None:
            content = read_annotations(
                ratings, format=format, fps=fps, elan_classes=elan_classes, on_error=on_error
            )
        rows = [] if labels is None else read_video_labels(path_text(labels, "labels"))
        return Annotations.match(
            ids, content, rows, complete=complete, on_error=on_error, paths=paths
        )


class _Matching:
    """Finds the videos of annotations, and collects the problems."""

    def __init__(self, ids: Iterable[str], paths: Mapping[str, str]) -> None:
        self._ids, self._paths = list(ids), paths
        self._names = VideoNames(self._ids, paths)
        self._found: dict[str, str | None] = {}
        self.problems: list[str] = []

    def find(self, name: str, source: str) -> str | None:
        if name not in self._found:
            ids = self._names.find(name)
            self._found[name] = ids[0] if len(ids) == 1 else None
            if len(ids) > 1:
                some = ", ".join(map(self._described, ids[:_TOLD])) + ", ..." * (len(ids) > _TOLD)
                self.problems.append(
                    f"{_where(source)}expected the name of one video, found that {len(ids)} videos "
                    f"are called {shown(name)}: {some}"
                )
            elif not ids:
                self.problems.append(
                    f"{_where(source)}expected one of {counted(len(self._ids), 'video')}, found "
                    f"{shown(name)}{self._suggestion(name)}"
                )
        return self._found[name]

    def _described(self, id: str) -> str:
        return f"{id} ({self._paths[id]})" if id in self._paths else id

    def _suggestion(self, name: str) -> str:
        """Returns the closest id, or the closest path where the name is one."""
        known = self._ids[:_COMPARED]
        files = [self._paths[id] for id in known if id in self._paths]
        if "/" not in name:
            files = [os.path.basename(path) for path in files]
        return suggestion(name, [*files, *known], "{!r}")


def _where(source: str) -> str:
    return f"{source}: " if source else ""


def _left_out(what: str, problems: Sequence[str], on_error: OnError) -> tuple[str, ...]:
    """Returns a line on problems, if there are any; raises the first one if asked to."""
    if not problems:
        return ()
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if on_error == "raise":
        raise DataError(problems[0] + more)
    return (f"left out {what}: {problems[0]}{more}",)


def _drop_repeated(by_video: dict[str, list[Interval]]) -> list[str]:
    """Drops intervals that are the same as others, and returns a line on these."""
    repeated: list[Interval] = []
    for id, some in by_video.items():
        kept: dict[tuple[object, ...], Interval] = {}
        for interval in some:
            if interval[:5] in kept:
                repeated.append(interval)
            else:
                kept[interval[:5]] = interval
        by_video[id] = list(kept.values())
    if not repeated:
        return []
    example = repeated[0].source or repr(repeated[0][:5])
    what = counted(len(repeated), "repeated rating")
    return [f"{what} {'counts' if len(repeated) == 1 else 'count'} once, such as {example}"]


def _completed(complete: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes of ``complete``, of those that are known."""
    given = [complete] if isinstance(complete, str) else list(complete)
    if ALL in given:
        return tuple(known)
    names = [name for text in given for name in ([text] if text in known else _listed(text))]
    for name in names:
        if name not in known:
            some = ", ".join(known[:10]) + ", ..." * (len(known) > 10)
            raise ArgumentError(
                f"complete: expected rated classes ({some or 'there are none'}) or {ALL}, found "
                f"{name!r}{suggestion(name, known, '{!r}')}"
            )
    return tuple(dict.fromkeys(names))


def _listed(text: str) -> list[str]:
    """Returns the names in a list, in JSON or with commas, which CSV's quotes may enclose."""
    with contextlib.suppress(ValueError):
        names = json.loads(text)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return names
    with contextlib.suppress(csv.Error, StopIteration):
        return [name.strip() for name in next(csv.reader([text], strict=True))]
    return [text]
