"""Writing a collection: videos with any features, their ratings and labels, to records and tables.

See :func:`write_collection`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg._containers import read_json
from pyseg._files import LOCK, sole_owner, write_file
from pyseg._paths import path_text
from pyseg._progress import Progress
from pyseg._text import counted
from pyseg.data import features as feature_set
from pyseg.data import vocabulary
from pyseg.data.annotations import Annotations
from pyseg.data.features import FeatureSet
from pyseg.data.records import (
    OnError,
    Ratings,
    check_on_error,
    encode_frames,
    why_not_an_id,
    write_records,
)
from pyseg.data.shards import named_as_records
from pyseg.errors import ArgumentError, DataError, PysegError

SHARD_BYTES = 1 << 26
"""Bytes of frames after which the next shard begins."""

_WORK = ".collection"
_REQUEST = "request.json"
_Scores = dict[tuple[int, int], float]  # by the first frame of a segment, and the class
_TABLES = (feature_set.FILE, vocabulary.FILE, vocabulary.SEGMENT_FILE)


class Stored(NamedTuple):
    """What a record says about its video.

    Attributes:
        labels: (L,) int64, class numbers.
        ratings: The rated segments, if there are any.
    """

    labels: npt.NDArray[np.int64]
    ratings: Ratings | None = None


class SourceVideo(NamedTuple):
    """A video to write.

    Attributes:
        id: Its id, see `encode_frames`.
        num_frames: The number of its frames T.
        read: Returns its features, an array (T, width) for each: uint8 are bytes as stored, other
            numbers are values to be quantized.
        stamp: What changes with the content, such as size and time of a file. A video with another
            stamp is written anew when an interrupted command is repeated.
        stored: Returns the labels and ratings that it has beside the annotations, after `read`.
    """

    id: str
    num_frames: int
    read: Callable[[], Sequence[npt.NDArray[Any]]]
    stamp: str = ""
    stored: Callable[[], Stored] | None = None


@dataclass
class WriteReport:
    """What `write_collection` has written.

    Attributes:
        videos: The number of videos.
        frames: The number of frames.
        segments: The number of segments with a rating.
        rated: The number of rated segments of each class, by name.
        positive: The number of those with a score above 0.5.
        values: The number of values of each feature that were quantized.
        clipped: The number of those that were outside of the feature's range.
        conflicts: A line for each video with contradictory ratings, whose mean counts.
        too_short: The number of intervals that cover no segment.
        kept: The number of ratings that records had before, and still have.
        replaced: The number of those that annotations have changed.
        left_out: The reasons why videos were left out.
        notes: Lines on annotations that were left out or repeated.
    """

    videos: int = 0
    frames: int = 0
    segments: int = 0
    rated: Counter[str] = field(default_factory=Counter)
    positive: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    clipped: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)
    too_short: int = 0
    kept: int = 0
    replaced: int = 0
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: WriteReport) -> None:
        """Adds what was written to another shard."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @staticmethod
    def of(values: dict[str, Any]) -> WriteReport:
        """Returns a report from the values of its attributes, as JSON has them."""
        report = WriteReport()
        for attribute in fields(report):
            kind = type(getattr(report, attribute.name))
            setattr(report, attribute.name, kind(values[attribute.name]))
        return report

    def lines(self) -> Iterator[str]:
        """Yields lines on what was written and what was left out, except the table of classes."""
        yield (
            f"{counted(self.videos, 'video')}, {counted(self.frames, 'frame')}; "
            f"{counted(self.segments, 'rated segment')}, {counted(self.rated.total(), 'rating')}"
        )
        if self.kept or self.replaced:
            yield f"of the ratings before, {self.kept} are kept and {self.replaced} are changed"
        for name, values in self.values.items():
            yield f"{name}: {self.clipped[name] / max(values, 1):.2%} of the values were clipped"
        if self.conflicts:
            yield (
                f"contradictory ratings in {counted(len(self.conflicts), 'video')} count as their "
                f"mean: {self.conflicts[0]}"
            )
        if self.too_short:
            yield f"rated intervals that cover less than half of every segment: {self.too_short}"
        yield from self.notes
        if self.left_out:
            yield f"left out {counted(len(self.left_out), 'video')}: {self.left_out[0]}"


def write_collection(
    out: str | os.PathLike[str],
    features: FeatureSet,
    videos: Sequence[SourceVideo],
    annotations: Annotations | None = None,
    *,
    replace: bool = False,
    on_error: OnError = "raise",
    class_names: Sequence[str] = (),
    segment_classes: Collection[int] = (),
) -> WriteReport:
    """Writes videos with their ratings and labels to a folder that ``--data`` takes.

    The folder gets shards ``videos-00000.tfrecord``, ..., ``vocabulary.csv`` and
    ``segment_vocabulary.csv`` if there are classes, and last ``features.json``, without which it is
    no collection. One video at a time is in memory. After an interruption, the same call continues:
    finished shards wait in ``.collection`` in the folder.

    Args:
        out: The folder; it may have other files than those above.
        features: The features, with the ranges of their values.
        videos: The videos, in the order of the records.
        annotations: Their ratings and labels.
        replace: Whether an existing collection in the folder is replaced.
        on_error: "raise" at an annotation outside of its video or a video that cannot be read, or
            "skip" and report it.
        class_names: The classes that the videos' records have before, by number; those of the
            annotations that are new follow. Default: the annotations' classes, sorted.
        segment_classes: The numbers of those of ``class_names`` whose segments are rated.

    Raises:
        pyseg.errors.DataError: A video cannot be read or does not have these features, an
            annotation is outside of its video, or the folder has a collection.
        pyseg.errors.ArgumentError: There is no video, or an id is repeated or cannot be written.
        pyseg.errors.UserError: Another process is writing to the folder.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> from pyseg.data import Annotations, Interval, read_frames
        >>> clip = FeatureSet((("clip", 4),), ranges=((-1.0, 1.0),))
        >>> values = np.linspace(-1, 1, 40).reshape(10, 4)
        >>> dog = Annotations.match(["a"], [Interval("a", 0.0, 4.0, "dog")])
        >>> folder = Path(tempfile.mkdtemp())
        >>> report = write_collection(folder, clip, [SourceVideo("a", 10, lambda: [values])], dog)
        >>> [record] = read_frames(folder / "videos-00000.tfrecord", clip.schema)
        >>> record.frames.shape, record.ratings.starts, report.positive["dog"]
        ((10, 4), array([0]), 1)
    """
    folder = Path(path_text(out, "out"))
    check_on_error(on_error)
    _check_videos(videos)
    lengths = {video.id: video.num_frames for video in videos}
    annotations = (annotations or Annotations()).within(lengths, features, on_error)
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    classes = _Classes.of(class_names, segment_classes, annotations)
    work = _Work(folder, features, videos, annotations, on_error, classes)
    try:
        with sole_owner(work.folder):
            work.resume(replace)
            report = work.write()
            work.publish(report)
    finally:
        for empty in (work.folder, folder) if created else (work.folder,):
            with contextlib.suppress(OSError):  # not empty, or not there
                empty.rmdir()
    report.notes += annotations.notes
    return report


def _check_videos(videos: Sequence[SourceVideo]) -> None:
    if not videos:
        raise ArgumentError("videos: expected at least one, found none")
    seen: set[str] = set()
    for video in videos:
        if (wrong := why_not_an_id(video.id)) is not None:
            raise ArgumentError(f"id: {wrong}")
        if video.id in seen:
            raise ArgumentError(f"id: expected every id once, found {video.id!r} again")
        seen.add(video.id)


class _Classes(NamedTuple):
    """The classes of a collection.

    Attributes:
        names: The names of all, by number.
        numbers: The numbers by name.
        rated: Those whose segments are rated, whatever the annotations say.
    """

    names: list[str]
    numbers: dict[str, int]
    rated: frozenset[int]

    @staticmethod
    def of(names: Sequence[str], rated: Collection[int], annotations: Annotations) -> _Classes:
        """Returns the classes of records, and those that annotations add.

        Raises:
            pyseg.errors.DataError: The annotations name a class whose name several have.
        """
        own, used = [*names], annotations.classes
        numbers = {name.strip(): number for number, name in enumerate(own)}
        if len(numbers) < len(own):
            often = Counter(name.strip() for name in own)
            for name in used:
                if often[name] > 1:
                    raise DataError(f"class {name!r}: expected one class, found {often[name]}")
        for name in used:
            if name not in numbers:
                numbers[name] = len(own)
                own.append(name)
        return _Classes(own, numbers, frozenset(rated))


class _Shard(NamedTuple):
    name: str
    videos: Sequence[SourceVideo]


def _divide(videos: Sequence[SourceVideo], width: int) -> Iterator[_Shard]:
    """Yields shards of about `SHARD_BYTES`."""
    first, size, number = 0, 0, 0
    for place, video in enumerate(videos):
        size += video.num_frames * width
        if size >= SHARD_BYTES or place == len(videos) - 1:
            yield _Shard(f"videos-{number:05d}.tfrecord", videos[first : place + 1])
            first, size, number = place + 1, 0, number + 1


class _Work:
    """A collection that is being written; its finished shards wait in a folder of their own."""

    def __init__(
        self,
        out: Path,
        features: FeatureSet,
        videos: Sequence[SourceVideo],
        annotations: Annotations,
        on_error: OnError,
        classes: _Classes,
    ) -> None:
        self.folder = out / _WORK
        self._out, self._features, self._annotations = out, features, annotations
        self._on_error = on_error
        self._classes = classes
        self._shards = list(_divide(videos, sum(features.feature_sizes)))
        self._columns = [
            FeatureSet((feature,), ranges=(limits,))
            for feature, limits in zip(features.features, features.ranges, strict=True)
        ]

    def resume(self, replace: bool) -> None:
        """Keeps the finished shards of the same request, and discards those of any other.

        Raises:
            pyseg.errors.DataError: The final folder has another collection.
        """
        request, digest = self.folder / _REQUEST, self._digest()
        with contextlib.suppress(FileNotFoundError, DataError):
            if read_json(request) == digest:
                return
        self._clear()
        if not replace and (existing := self._existing()):
            raise DataError(
                f"{existing[0]}: expected a folder without a collection; delete what it has, or "
                "choose another folder"
            )
        write_file(request, json.dumps(digest).encode())

    def _digest(self) -> str:
        """Returns a digest of all that determines the records."""
        digest = hashlib.sha256()
        for shard in self._shards:
            for video in shard.videos:
                told = (shard.name, video.id, video.num_frames, video.stamp)
                digest.update(repr(told).encode())
        known = self._annotations
        said = [(id, *rated[1:5]) for id, some in known.intervals.items() for rated in some]
        looked_at = list(known.intervals)
        classes = self._classes.names, sorted(self._classes.rated)
        said_of_videos = known.labels, known.complete
        for part in (asdict(self._features), classes, said, looked_at, *said_of_videos):
            digest.update(repr(part).encode())
        digest.update(self._on_error.encode())
        return digest.hexdigest()

    def _existing(self) -> list[Path]:
        """Returns the files of a collection in the final folder."""
        tables = [self._out / name for name in _TABLES]
        records = sorted(path for path in self._out.iterdir() if named_as_records(path.name))
        return [path for path in tables + records if path.exists()]

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink()

    def write(self) -> WriteReport:
        """Writes the shards that are not finished; returns what all have.

        Raises:
            pyseg.errors.DataError: A video cannot be read, or all of them.
        """
        total = WriteReport()
        try:
            count = sum(len(shard.videos) for shard in self._shards)
            with Progress("writing", "videos", count) as bar:
                for shard in self._shards:
                    report = self._finished(shard)
                    if report is None:
                        report = self._write_shard(shard, bar)
                    else:
                        bar.update(len(shard.videos))
                    total.add(report)
            if not total.videos:
                raise DataError(f"no video can be read: {total.left_out[0]}")
        except PysegError:
            self._clear()
            raise
        return total

    def _finished(self, shard: _Shard) -> WriteReport | None:
        """Returns what a shard has; None: it has to be written."""
        try:
            found = read_json(self._state(shard))
            size, report = found["bytes"], WriteReport.of(found["report"])
            places = [self._unfinished(shard), self._out / shard.name]
            written = any(path.is_file() and path.stat().st_size == size for path in places)
        except (OSError, DataError, KeyError, TypeError):
            return None
        return report if written or not report.videos else None

    def _write_shard(self, shard: _Shard, bar: Progress) -> WriteReport:
        report = WriteReport()

        def records() -> Iterator[bytes]:
            for video in shard.videos:
                try:
                    yield self._encode(video, report)
                except (DataError, OSError) as error:
                    if self._on_error == "raise":
                        raise
                    report.left_out.append(str(error))
                bar.update()

        rest = records()
        size = 0
        if (first := next(rest, None)) is not None:
            write_records(self._unfinished(shard), itertools.chain([first], rest))
            size = self._unfinished(shard).stat().st_size
        write_file(self._state(shard), json.dumps({"bytes": size, "report": vars(report)}).encode())
        return report

    def _state(self, shard: _Shard) -> Path:
        return self.folder / f"{shard.name}.json"

    def _unfinished(self, shard: _Shard) -> Path:
        return self.folder / f"{shard.name}.part"

    def _encode(self, video: SourceVideo, report: WriteReport) -> bytes:
        """Returns the record of a video, and adds it to the report.

        Raises:
            pyseg.errors.DataError: The video cannot be read, or does not have these features.
        """
        frames = self._quantize(video, report)
        known, size = self._annotations, self._features.segment_size
        scores, conflicts, too_short = known.of_segments(video.id, len(frames), self._features)
        numbers = self._classes.numbers
        said = {(size * segment, numbers[name]): score for (segment, name), score in scores.items()}
        stored = Stored(np.empty(0, np.int64)) if video.stored is None else video.stored()
        rated = self._merge(video.id, len(frames), said, stored, report)
        own = stored.labels.tolist()
        new = [numbers[name] for name in known.of_video(video.id)]
        record = encode_frames(
            video.id,
            frames,
            np.array([*own, *(label for label in new if label not in own)], np.int64),
            Ratings(
                starts=np.array([start for start, _ in rated], np.int64),
                classes=np.array([number for _, number in rated], np.int64),
                scores=np.array(list(rated.values()), np.float32),
            )
            if rated
            else None,
            self._features.schema,
        )
        names = self._classes.names
        report.videos += 1
        report.frames += len(frames)
        report.segments += len({start for start, _ in rated})
        report.rated.update(names[number] for _, number in rated)
        report.positive.update(names[number] for (_, number), score in rated.items() if score > 0.5)
        if conflicts:
            segment, name = conflicts[0]
            report.conflicts.append(
                f"{len(conflicts)} in {video.id!r}, such as {name} in the segment at "
                f"{segment * self._features.segment_seconds:g} s"
            )
        report.too_short += too_short
        return record

    def _merge(
        self,
        id: str,
        num_frames: int,
        said: _Scores,
        stored: Stored,
        report: WriteReport,
    ) -> _Scores:
        """Returns what annotations say, and what the record of a video has said besides.

        A class that is rated 0 only because it is complete keeps the ratings that it had.
        """
        if stored.ratings is None:
            return said
        starts, classes, scores = (column.tolist() for column in stored.ratings)
        before: _Scores = dict(zip(zip(starts, classes, strict=True), scores, strict=True))
        known, size = self._annotations, self._features.segment_size
        rated = replace(known, complete=()).of_segments(id, num_frames, self._features).scores
        explicit = {(size * segment, self._classes.numbers[name]) for segment, name in rated}
        new = {pair: said[pair] for pair in said if pair in explicit or pair not in before}
        changed = sum(np.float32(score) != new.get(pair, score) for pair, score in before.items())
        report.replaced += int(changed)
        report.kept += len(before) - int(changed)
        return dict(sorted({**before, **new}.items()))

    def _quantize(self, video: SourceVideo, report: WriteReport) -> npt.NDArray[np.uint8]:
        """Returns the stored frames (T, width) of a video, and counts the clipped values."""
        arrays = [np.asarray(array) for array in video.read()]
        expected = [(video.num_frames, width) for width in self._features.feature_sizes]
        if (found := [array.shape for array in arrays]) != expected:
            raise DataError(f"video {video.id!r}: expected the shapes {expected}, found {found}")
        columns = []
        for features, array in zip(self._columns, arrays, strict=True):
            [(name, _)] = features.features
            if array.dtype != np.uint8:
                try:
                    array, clipped = features.quantize(array)
                except ArgumentError as error:
                    raise DataError(f"video {video.id!r}, {name}: {error}") from error
                report.values[name] += array.size
                report.clipped[name] += clipped
            columns.append(array)
        return np.concatenate(columns, axis=1)

    def publish(self, report: WriteReport) -> None:
        """Moves the shards to the final folder, and writes the tables; features.json is last."""
        shards = {shard.name for shard in self._shards}
        for path in self._existing():
            if path.name not in shards:
                path.unlink()
        for shard in self._shards:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._unfinished(shard), self._out / shard.name)
        names = self._classes.names
        if names:
            vocabulary.write_vocabulary(self._out / vocabulary.FILE, names)
        kept = self._classes.rated
        if rated := [n for n, name in enumerate(names) if n in kept or report.rated[name]]:
            path = self._out / vocabulary.SEGMENT_FILE
            vocabulary.write_segment_vocabulary(path, rated, names)
        self._features.write(self._out / feature_set.FILE)
        self._clear()
