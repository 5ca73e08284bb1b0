"""AudioSet with strong labels: clips of ten seconds, and the times of the sounds in them.

TFRecords hold the frames (0.96 s each) and the weak labels of each clip, a table of events the
strong labels. Together they have the structure of YouTube-8M: videos with labels, and 5-frame
segments for which one or some classes are rated. See :class:`StrongSegmentDataset`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from pyseg._progress import Progress
from pyseg.data._tables import read_table, shown
from pyseg.data.annotations import merge_events
from pyseg.data.batch import Example
from pyseg.data.collection import Collection
from pyseg.data.datasets import FrameDataset, SegmentDataset
from pyseg.data.features import FeatureSet
from pyseg.data.formats import Format, Found, OpenOptions
from pyseg.data.hashing import stable_hash
from pyseg.data.records import (
    FrameRecord,
    FrameSchema,
    OnError,
    Ratings,
    ReadReport,
    read_frames,
)
from pyseg.data.shards import Paths, find_shards
from pyseg.errors import ArgumentError, DataError, MissingFileError

NUM_CLASSES = 527  # weak labels
FRAME_SECONDS = 0.96
FEATURES = FeatureSet((("audio_embedding", 128),), FRAME_SECONDS, id_key="video_id")
SCHEMA = FEATURES.schema
STRONG_TABLES = ("strong_labels.tsv", "audioset_train_strong.tsv", "audioset_eval_strong.tsv")
"""File names of tables of strong labels, published ones included; .gz may follow."""

Interval = tuple[float, float]
StrongLabels = Mapping[str, Mapping[str, Sequence[Interval]]]
"""Clip name to label id to events: disjoint (onset, offset) in seconds, in order."""


def read_class_labels(path: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Returns the ids and the names of the weak classes, from ``class_labels_indices.csv``.

    Raises:
        pyseg.errors.DataError: The file is malformed, or its indices are not 0, 1, 2, ....
        OSError: It cannot be read.
    """
    names: dict[str, str] = {}
    for row in read_table(path, [["index"], ["mid"], ["display_name"]]):
        if row.integer("index") != len(names):
            row.fail(f"index {len(names)}, found {row.text('index')}")
        if row.text("mid") in names:
            row.fail(f"every class once, found {shown(row.text('mid'))} again")
        names[row.text("mid")] = row.text("display_name")
    if not names:
        raise DataError(f"{os.fspath(path)}: expected at least one class, found none")
    return list(names), list(names.values())


def read_display_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the names of classes by id, from ``mid_to_display_name.tsv``.

    Raises:
        pyseg.errors.DataError: The file is malformed.
        OSError: It cannot be read.
    """
    columns = ["mid", "name"]
    rows = read_table(path, [[name] for name in columns], delimiter="\t", header=columns)
    return {row.text("mid"): row.text("name") for row in rows}


def read_strong_labels(*paths: str | os.PathLike[str]) -> StrongLabels:
    """Returns the events of each clip by label, from one or more tables of events.

    A table has tab-separated columns ``filename`` (video id, "_", start of the clip in ms),
    ``event_label``, ``onset`` and ``offset`` (s from the clip's start), or those of the published
    files: ``segment_id``, ``label``, ``start_time_seconds``, ``end_time_seconds``.
    Events of one class that overlap or touch are one event.

    Raises:
        pyseg.errors.DataError: A line is malformed; the message names file and line.
        OSError: A file cannot be read.
    """
    columns = [
        ["filename", "segment_id"],
        ["event_label", "label"],
        ["onset", "start_time_seconds"],
        ["offset", "end_time_seconds"],
    ]
    events: dict[str, dict[str, list[Interval]]] = {}
    for path in paths:
        row = None
        for row in read_table(path, columns, delimiter="\t"):
            onset, offset = row.number("onset"), row.number("offset")
            if not 0 <= onset < offset:
                row.fail(f"0 <= onset < offset, found {onset} and {offset}")
            clip = events.setdefault(row.text("filename"), {})
            clip.setdefault(row.text("event_label"), []).append((onset, offset))
        if row is None:
            raise DataError(f"{os.fspath(path)}: expected at least one event, found none")
    return {
        name: {label: merge_events(intervals) for label, intervals in clip.items()}
        for name, clip in events.items()
    }


def labels_by_id(
    strong: StrongLabels, names: Mapping[str, str]
) -> tuple[StrongLabels, dict[str, str]]:
    """Returns strong labels in which ids replace the names of classes.

    Case, spaces and underscores do not matter. A name that several classes share is not replaced.

    Args:
        strong: From `read_strong_labels`.
        names: Names of known classes by id.

    Returns:
        The strong labels, and the ids by the names that they replaced.

    Example:
        >>> labels_by_id({"a_0": {"dog": [(0, 1)], "/m/b": [(1, 2)]}}, {"/m/a": "Dog", "/m/b": "B"})
        ({'a_0': {'/m/a': [(0, 1)], '/m/b': [(1, 2)]}}, {'dog': '/m/a'})
    """

    def plain(name: str) -> str:
        return " ".join(name.replace("_", " ").casefold().split())

    ids: dict[str, list[str]] = {}
    for id, name in names.items():
        ids.setdefault(plain(name), []).append(id)
    used = {label for clip in strong.values() for label in clip}
    found = {label: ids.get(plain(label), ()) for label in sorted(used - names.keys())}
    mapped = {label: of_name[0] for label, of_name in found.items() if len(of_name) == 1}
    if not mapped:
        return strong, {}
    replaced: dict[str, dict[str, Sequence[Interval]]] = {}
    for clip, events in strong.items():
        of_clip = replaced.setdefault(clip, {})
        for label, intervals in events.items():
            id = mapped.get(label, label)
            of_clip[id] = merge_events([*of_clip.get(id, ()), *intervals])
    return replaced, mapped


def clip_name(id: str, start_seconds: float) -> str:
    """Returns the name of a clip in tables of strong labels.

    Example:
        >>> clip_name("06xy", 30.0)
        '06xy_30000'
    """
    return f"{id}_{round(1000 * start_seconds)}"


def read_clip_names(
    paths: Sequence[str], schema: FrameSchema = SCHEMA, on_error: OnError = "raise"
) -> set[str]:
    """Returns the names in tables of strong labels of the clips of records; reads no frames.

    Args:
        paths: The records.
        schema: The names of the features.
        on_error: See `pyseg.data.read_frames`.

    Raises:
        pyseg.errors.RecordError: A record is faulty.
    """
    key, names = "start_time_seconds", set()
    with Progress("reading clip names", "shards", len(paths)) as bar:
        for path in paths:
            for record in read_frames(
                path,
                schema,
                max_frames=1,
                on_error=on_error,
                report=ReadReport(),
                context_keys=(key,),
            ):
                names.add(clip_name(record.id, float(record.context[key])))
            bar.update()
    return names


def open_strong_labels(
    tables: Sequence[str], clips: Set[str], weak_ids: Sequence[str], names: Mapping[str, str]
) -> tuple[StrongLabels, tuple[str, ...]]:
    """Returns the strong labels of clips, and lines about them for the user.

    Args:
        tables: See `read_strong_labels`.
        clips: From `read_clip_names`.
        weak_ids: From `read_class_labels`.
        names: Names of known classes by id (`labels_by_id`).

    Raises:
        pyseg.errors.DataError: A table is malformed, or names none of the clips.
        OSError: A table cannot be read.
    """
    strong, mapped = labels_by_id(read_strong_labels(*tables), names)
    where = " and ".join(tables)
    strangers, without = sorted(strong.keys() - clips), sorted(clips - strong.keys())
    if len(without) == len(clips):
        example = f", such as {without[0]}" if without else ""
        raise DataError(
            f"{where}: expected names of the {len(clips)} clips{example}; found {len(strangers)} "
            f"names of no clip, such as {strangers[0]}"
        )
    notes = []
    if without:
        notes.append(
            f"strong labels: {len(clips) - len(without)} of {len(clips)} clips have some, "
            f"{without[0]} for example has none"
        )
    if strangers:
        notes.append(f"strong labels: {len(strangers)} names match no clip, such as {strangers[0]}")
    if mapped:
        name, id = next(iter(mapped.items()))
        notes.append(f"strong labels: {len(mapped)} names stand for ids, such as {name} for {id}")
    new = sorted({label for clip in strong.values() for label in clip} - set(weak_ids))
    if new:
        notes.append(
            f"strong labels: {len(new)} classes are new beside the {len(weak_ids)} of weak labels, "
            f"such as {new[0]}"
        )
    return strong, tuple(notes)


def label_space(
    weak_ids: Sequence[str], strong: StrongLabels, names: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Returns the ids and names of all classes, with one numbering for weak and strong labels.

    The weak classes keep their numbers; classes that only strong labels use follow, in the order of
    their ids.

    Args:
        weak_ids: From `read_class_labels`.
        strong: From `read_strong_labels`.
        names: Names by id; default: the id.
    """
    used = {label for clip in strong.values() for label in clip}
    ids = [*weak_ids, *sorted(used - set(weak_ids))]
    names = names or {}
    return ids, [names.get(id, id) for id in ids]


def is_present(
    events: Sequence[Interval],
    begin: float,
    end: float,
    *,
    segment_share: float = 0.5,
    event_share: float = 0.5,
) -> bool:
    """Returns whether a class counts as present in a segment.

    It does if its events cover at least ``segment_share`` of the segment, or the segment covers at
    least ``event_share`` of one of them.

    Args:
        events: Disjoint events of the class, in seconds.
        begin: Start of the segment, in seconds.
        end: End of the segment, in seconds.
        segment_share: In (0, 1].
        event_share: In (0, 1]; a value above 1 disables the second condition.

    Example:
        >>> is_present([(0.0, 10.0)], 0.0, 4.8), is_present([(4.7, 4.9)], 0.0, 4.8)
        (True, True)
        >>> is_present([], 0.0, 4.8)
        False
    """
    overlaps = [max(0.0, min(end, offset) - max(begin, onset)) for onset, offset in events]
    rounding = 1e-6
    return sum(overlaps) >= segment_share * (end - begin) - rounding or any(
        overlap >= event_share * (offset - onset) - rounding
        for overlap, (onset, offset) in zip(overlaps, events, strict=True)
    )


class StrongSegmentDataset(SegmentDataset):
    """Segments of AudioSet clips, rated by strong labels.

    A clip is cut into segments of ``schema.segment_size`` frames; the last may be shorter. For
    each, some of the classes in the clip's strong labels are rated, 1 or 0 by `is_present`: a
    class that is present elsewhere in the clip is a hard negative. The choice depends only on
    ``rating_seed``, clip, segment and class. A clip without strong labels gives no segment.

    An example's id is ``"<video id>:<start frame>"``.

    Args:
        paths: See `RecordDataset`.
        strong: From `read_strong_labels`.
        class_ids: The id of every class, by number (`label_space`); events of others are not rated.
        schema: The names of the features, and the length of a segment.
        rated_per_segment: Classes rated per segment; None rates all classes of the clip, so that
            with 0 for all others a segment's labels are complete.
        segment_share: See `is_present`.
        event_share: See `is_present`.
        rating_seed: Another seed draws other classes to rate.
        options: See `RecordDataset`.

    Raises:
        ValueError: ``rated_per_segment`` is less than 1, or a share not above 0.
    """

    context_keys = ("start_time_seconds",)
    _counts = (*SegmentDataset._counts, "clips_without_labels")

    def __init__(
        self,
        paths: Paths,
        strong: StrongLabels,
        class_ids: Sequence[str],
        schema: FrameSchema = SCHEMA,
        *,
        rated_per_segment: int | None = 1,
        segment_share: float = 0.5,
        event_share: float = 0.5,
        rating_seed: int = 0,
        **options: Any,
    ) -> None:
        if rated_per_segment is not None and rated_per_segment < 1:
            raise ArgumentError(
                f"rated_per_segment: expected at least 1, found {rated_per_segment}"
            )
        for name, share in (("segment_share", segment_share), ("event_share", event_share)):
            if not share > 0:
                raise ArgumentError(f"{name}: expected above 0, found {share}")
        self.strong = strong
        self.class_numbers = {id: number for number, id in enumerate(class_ids)}
        self.rated_per_segment = rated_per_segment
        self.segment_share = segment_share
        self.event_share = event_share
        self.rating_seed = rating_seed
        self._without_labels = 0
        super().__init__(paths, schema, **options)

    @property
    def clips_without_labels(self) -> int:
        """Clips of the current or last pass without a strong label of a known class."""
        return int(self._shared.counts[:, self._counts.index("clips_without_labels")].sum())

    def rate(self, record: FrameRecord) -> Ratings | None:
        """Returns the ratings of a clip's segments; None if it has no strong label."""
        clip = clip_name(record.id, float(record.context["start_time_seconds"]))
        events = {
            label: intervals
            for label, intervals in self.strong.get(clip, {}).items()
            if label in self.class_numbers
        }
        if not events:
            self._without_labels += 1
            return None
        starts, classes, scores = [], [], []
        for start in range(0, len(record.frames), self.schema.segment_size):
            stop = min(start + self.schema.segment_size, len(record.frames))
            for label in self._draw(events, f"{clip}:{start}"):
                starts.append(start)
                classes.append(self.class_numbers[label])
                present = is_present(
                    events[label],
                    start * FRAME_SECONDS,
                    stop * FRAME_SECONDS,
                    segment_share=self.segment_share,
                    event_share=self.event_share,
                )
                scores.append(float(present))
        return Ratings(
            np.array(starts, np.int64), np.array(classes, np.int64), np.array(scores, np.float32)
        )

    def _draw(self, labels: Iterable[str], segment: str) -> list[str]:
        """Returns the clip's classes to rate in a segment."""
        if self.rated_per_segment is None:
            return sorted(labels)

        def order(label: str) -> int:
            return stable_hash(f"{segment}:{label}", self.rating_seed)

        return sorted(labels, key=order)[: self.rated_per_segment]

    def __iter__(self) -> Iterator[Example]:
        """Yields the examples of this rank and worker."""
        if self._memory is None:
            self._without_labels = 0
        return super().__iter__()

    def _count(self, report: ReadReport) -> list[int]:
        return [*super()._count(report), self._without_labels]


def _open(found: Found, options: OpenOptions) -> Collection:
    """Opens clips; strong labels, if any, rate their segments."""
    schema: Any = found.schema
    notes = found.notes
    ids: list[str] = []
    names: list[str] | None = None
    path = options.vocabulary or found.beside("class_labels_indices.csv")
    if path is not None:
        ids, names = read_class_labels(path)
    elif found.features.feature_sizes != FEATURES.feature_sizes:
        raise MissingFileError(
            f"class_labels_indices.csv is not beside {found.paths[0]}: without it the number of "
            f"classes is unknown, as AudioSet's frames have {FEATURES.schema.width} bytes, these "
            f"{found.features.schema.width}"
        )
    make_segments, segment_classes = None, None
    tables = _strong_tables(found, options.labels)
    if not tables:
        notes += ("no strong_labels.tsv: no rated segments",)
    elif not ids:
        raise MissingFileError(
            f"class_labels_indices.csv is not beside {found.paths[0]}: without it the strong "
            "labels have no class numbers (give its path as vocabulary)"
        )
    else:
        display = found.beside("mid_to_display_name.tsv")
        known = read_display_names(display) if display else {}
        known |= dict(zip(ids, names or (), strict=True))
        clips = read_clip_names(found.paths, schema, options.on_error)
        strong, more = open_strong_labels(tables, clips, ids, known)
        notes += more
        ids, names = label_space(ids, strong, known)
        used = {label for clip in strong.values() for label in clip}
        segment_classes = [number for number, id in enumerate(ids) if id in used]
        make_segments = functools.partial(
            StrongSegmentDataset, strong=strong, class_ids=ids, schema=schema
        )
    return Collection(
        name=found.format.name,
        features=found.features,
        num_classes=len(ids) or NUM_CLASSES,
        class_names=names,
        segment_classes=segment_classes,
        level="frame",
        notes=notes,
        test_fraction=options.test_fraction,
        seed=options.seed,
        make_videos=functools.partial(FrameDataset, schema=schema),
        make_segments=make_segments,
        video_paths=found.paths,
        segment_paths=found.paths,
    )


def _strong_tables(found: Found, labels: Paths | None) -> list[str]:
    if labels is not None:
        return find_shards(labels)
    tables = (found.beside(name, f"{name}.gz") for name in STRONG_TABLES)
    return [str(table) for table in tables if table is not None]


FORMAT = Format(
    "audioset",
    "AudioSet frames (audio_embedding)",
    FEATURES,
    _open,
    takes_labels=True,
)
