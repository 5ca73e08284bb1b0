"""New ratings for a collection whose frames are there already: ``python -m pyseg.data import``.

See :func:`rate_collection`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg._paths import path_text
from pyseg._progress import Progress
from pyseg._remote import location, version
from pyseg._urls import parents
from pyseg.data.annotations import AnnotationFormat, Annotations, ElanClasses
from pyseg.data.annotations.reading import Paths
from pyseg.data.audioset import StrongSegmentDataset
from pyseg.data.collection import Collection, open_collection
from pyseg.data.datasets import SegmentDataset
from pyseg.data.records import (
    FrameRecord,
    OnError,
    ReadReport,
    check_on_error,
    read_frames,
    why_not_an_id,
)
from pyseg.data.writing import SourceVideo, Stored, WriteReport, write_collection
from pyseg.errors import ArgumentError, DataError


def rate_collection(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ratings: Paths | None = None,
    labels: str | os.PathLike[str] | None = None,
    complete: str | Sequence[str] = (),
    format: AnnotationFormat | None = None,
    annotation_fps: float | None = None,
    elan_classes: ElanClasses = "tiers",
    on_error: OnError = "raise",
) -> WriteReport:
    r"""Writes the frames of a collection with more ratings and labels as another collection.

    The bytes of the frames, their features and the numbers of the classes stay; new classes follow.
    Labels of videos are kept, and ratings too, unless the new ones say otherwise. Of AudioSet these
    are the strong labels, of all classes that a clip has. What is written is described by
    `write_collection`; ``features.json`` describes the features of any format.

    Args:
        data: The collection: a folder of frames with ``features.json``, AudioSet, or YouTube-8M.
        out: The folder to write.
        ratings: Rated intervals, see `read_annotations`.
        labels: A table of the labels of whole videos, with the columns video and class.
        complete: See `import_features`.
        format: See `import_features`.
        annotation_fps: See `import_features`.
        elan_classes: See `import_features`.
        on_error: "raise" at a damaged record or an annotation that fits no video, or "skip" and
            report it.

    Raises:
        pyseg.errors.DataError: The collection has no frames, a file is malformed, an annotation
            fits no video, or ``out`` has a collection.
        pyseg.errors.RecordError: A record is damaged.
        pyseg.errors.ArgumentError: An argument is out of range, or ``out`` is in ``data``.
        OSError: A file cannot be read or written.

    Example:
        >>> import tempfile
        >>> from pyseg.data.sample import make_sample
        >>> folder = Path(tempfile.mkdtemp())
        >>> collection = open_collection(make_sample() / "validate")
        >>> segment = next(iter(collection.segments("all")))
        >>> video, name = segment.id.split(":")[0], collection.class_names[segment.classes[0]]
        >>> lines = f"video,start,end,class,score\n{video},0,5,{name},0.25\n{video},0,5,rare,1\n"
        >>> _ = (folder / "ratings.csv").write_text(lines)
        >>> report = rate_collection(
        ...     make_sample() / "validate", folder / "rated", ratings=folder / "ratings.csv"
        ... )
        >>> report.rated["rare"], open_collection(folder / "rated").class_names[-1]
        (1, 'rare')
    """
    check_on_error(on_error)
    name, out = path_text(data, "data", remote=True), path_text(out, "out")
    collection = open_collection(data, test_fraction=0, on_error=on_error)
    if collection.level != "frame":
        raise DataError(
            f"{name}: expected frames, of which segments can be rated, found the mean "
            "features of whole videos"
        )
    folders = (parents(path)[0] for path in collection.video_paths)
    _check_out(out, [name, *map(str, folders)])
    records = _Records(collection, on_error)
    videos, left_out = records.look()
    annotations = Annotations.read(
        [video.id for video in videos],
        ratings,
        labels,
        complete=complete,
        format=format,
        fps=annotation_fps,
        elan_classes=elan_classes,
        on_error=on_error,
    )
    names = collection.class_names or [str(number) for number in range(collection.num_classes)]
    with closing(records):
        report = write_collection(
            out,
            collection.features,
            videos,
            annotations,
            on_error=on_error,
            class_names=names,
            segment_classes=collection.segment_classes or (),
        )
    report.left_out = left_out + report.left_out
    report.notes = [*(f"{name}: {note}" for note in collection.notes), *report.notes]
    return report


def _check_out(out: str, folders: Sequence[str]) -> None:
    """Checks that what is written does not become a part of what is read."""
    place = Path(location(out))
    for folder in folders:
        source = Path(location(folder))
        if place == source or source in place.parents:
            raise ArgumentError(
                f"out: expected a folder outside of the collection {folder}, found {out}"
            )


class _Records:
    """The records of a collection, which are read again in the order of the first time.

    Args:
        collection: The collection.
        on_error: "raise" an error at a damaged record, or "skip" it.
    """

    def __init__(self, collection: Collection, on_error: OnError) -> None:
        self._collection, self._on_error = collection, on_error
        self._rated = {*collection.segment_paths}
        self._ratings: SegmentDataset | None = None
        if collection.make_segments is not None:
            dataset: Any = collection.make_segments(collection.segment_paths)
            if isinstance(dataset, StrongSegmentDataset):
                dataset.rated_per_segment = None
            self._ratings = dataset
        self._path, self._number = "", -1
        self._rest: Iterator[FrameRecord] = iter(())
        self._record: FrameRecord | None = None

    def look(self) -> tuple[list[SourceVideo], list[str]]:
        """Returns the videos, and why others are left out.

        Raises:
            pyseg.errors.RecordError: A record is damaged.
            pyseg.errors.DataError: An id is repeated, or cannot be written.
        """
        videos: list[SourceVideo] = []
        left_out: list[str] = []
        seen: set[str] = set()
        paths = self._collection.video_paths
        with Progress("looking at videos", "shards", len(paths)) as bar:
            for path in paths:
                stamp = f"{path} {version(path)}"
                report = ReadReport()
                for number, record in enumerate(self._frames(path, report)):
                    if (wrong := self._why_not(record.id, seen)) is not None:
                        if self._on_error == "raise":
                            raise DataError(f"{path}: {wrong}")
                        left_out.append(f"{path}: {wrong}")
                        continue
                    seen.add(record.id)
                    videos.append(
                        SourceVideo(
                            record.id,
                            len(record.frames),
                            functools.partial(self._read, path, number),
                            stamp,
                            self._stored,
                        )
                    )
                if report.skipped:
                    left_out.append(f"{path}: {report.summary()}")
                bar.update()
        if not videos:
            raise DataError(f"{paths[0]}: expected a record that can be read, found none")
        return videos, left_out

    @staticmethod
    def _why_not(id: str, seen: set[str]) -> str | None:
        wrong = why_not_an_id(id)
        if wrong is not None:
            return f"id: {wrong}"
        return f"id: expected every id once, found {id!r} again" if id in seen else None

    def _frames(self, path: str, report: ReadReport) -> Iterator[FrameRecord]:
        rated = path in self._rated
        return read_frames(
            path,
            self._collection.features.schema,
            on_error=self._on_error,
            report=report,
            context_keys=self._ratings.context_keys if self._ratings is not None and rated else (),
            check_ends=rated,
        )

    def _read(self, path: str, number: int) -> list[npt.NDArray[np.uint8]]:
        """Returns the features of a record."""
        if path != self._path:
            self.close()
            self._path, self._number = path, -1
            self._rest = self._frames(path, ReadReport())
        for record in self._rest:
            self._number += 1
            if self._number == number:
                self._record = record
                ends = np.cumsum(self._collection.features.feature_sizes)[:-1]
                return np.split(record.frames, ends, axis=1)
        raise DataError(f"{path}: expected the same records as before, found fewer")

    def _stored(self) -> Stored:
        """Returns what the record that was read last says."""
        record = self._record
        assert record is not None
        rated = self._ratings is not None and self._path in self._rated
        ratings = self._ratings.rate(record) if self._ratings is not None and rated else None
        return Stored(record.labels, ratings)

    def close(self) -> None:
        """Closes the file that is read."""
        if (close := getattr(self._rest, "close", None)) is not None:
            close()
