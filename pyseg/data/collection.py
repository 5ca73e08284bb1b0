"""What training needs to know about a folder of data.

See :func:`open_collection`.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pyseg.data import audioset, youtube8m
from pyseg.data.datasets import (
    SUFFIXES,
    VIEW_OPTIONS,
    FrameDataset,
    RecordDataset,
    SegmentDataset,
    VideoDataset,
    find_shards,
    held_out,
)
from pyseg.data.records import FrameSchema, RecordKind, VideoSchema, read_frames, sniff
from pyseg.errors import ArgumentError, DataError, MissingFileError

Part = Literal["train", "test", "all"]
Kind = Literal["audioset", "frame", "video"]

_SNIFFED = 16  # files of a series whose first record is looked at
_RECORDS_READ = 50  # of a file, in search of ratings
_STRONG_LABELS = ("strong_labels.tsv", "strong_labels.tsv.gz", "audioset_eval_strong.tsv")


@dataclass(frozen=True)
class Split:
    """Whether a video belongs to a part of a collection: a function of its shard and id.

    Attributes:
        part: "train" or "test".
        fraction: The part of the videos that is held out, "test".
        seed: Decides which.
        train_paths: Shards whose videos are all "train".
        within: What it is a split of; None: of all videos.
    """

    part: Literal["train", "test"]
    fraction: float
    seed: int
    train_paths: frozenset[str] = frozenset()
    within: Split | None = None

    def __call__(self, path: str, id: str) -> bool:
        """Returns whether the video ``id``, from the shard ``path``, belongs to the part."""
        if self.within is not None and not self.within(path, id):
            return False
        test = path not in self.train_paths and held_out(id, self.fraction, self.seed)
        return test == (self.part == "test")


@dataclass(frozen=True)
class Collection:
    """Videos with labels and, where there are any, rated segments; from `open_collection`.

    Videos are split by id into a "train" and a "test" part: a video and its segments are all in one
    of them. Where unrated shards of the published train partition (``train*``) lie beside others,
    they are not split: all their videos are "train".

    `dataclasses.replace` makes another collection of one: of other shards, or of the same ones read
    as other data sets, say with other ratings. It is split in the same way.

    Attributes:
        name: "youtube8m", "audioset" or "sample".
        feature_sizes: Widths of the features that make up a frame, (1024, 128) for example.
        num_classes: C, of video labels and ratings alike.
        class_names: C names, if known.
        segment_classes: The classes whose segments are rated, if known: a subset of the C.
        level: "frame", or "video" where there are only mean features of whole videos.
        notes: What was left out or not found, a line each, for the user to see.
        test_fraction: The part of the videos that is held out.
        seed: Decides which.
        make_videos: Makes what `videos` returns, of shards and the options of `RecordDataset`.
        make_segments: Likewise for `segments`; None: there are no rated segments.
        video_paths: The shards of videos.
        segment_paths: The shards of videos with rated segments.
        within: The videos that there are, if not all (`without_test`).
    """

    name: str
    feature_sizes: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None
    segment_classes: list[int] | None
    level: Literal["frame", "video"]
    notes: tuple[str, ...]
    test_fraction: float
    seed: int
    make_videos: Callable[..., RecordDataset] = field(repr=False)
    make_segments: Callable[..., RecordDataset] | None = field(repr=False)
    video_paths: tuple[str, ...] = field(repr=False)
    segment_paths: tuple[str, ...] = field(repr=False)
    _train_paths: frozenset[str] = field(repr=False)
    _id_key: str = field(repr=False)
    within: Split | None = None
    _caches: dict[Any, RecordDataset] = field(repr=False, compare=False, default_factory=dict)

    @property
    def has_segments(self) -> bool:
        """Whether there are rated segments."""
        return self.make_segments is not None

    def videos(self, part: Part, **options: Any) -> RecordDataset:
        """Returns videos with their labels.

        Args:
            part: "train", "test" or "all".
            options: Those of `FrameDataset`, or of `VideoDataset` where ``level`` is "video". With
                ``cache=True`` all parts share one cache.

        Raises:
            ValueError: There is no such part, or an option is out of range.
        """
        return self._dataset(self.make_videos, self.video_paths, part, options)

    def segments(self, part: Part, **options: Any) -> RecordDataset | None:
        """Returns rated segments, or None where the collection has none.

        Args:
            part: "train", "test" or "all", of the same split as `videos`.
            options: Those of `SegmentDataset`, for AudioSet of `StrongSegmentDataset`. Here
                ``cache`` is on unless turned off; all parts share one cache.

        Raises:
            ValueError: There is no such part, or an option is out of range.
            pyseg.errors.RecordError: A record is faulty.
        """
        if self.make_segments is None:
            return None
        options = {"cache": True, **options}
        return self._dataset(self.make_segments, self.segment_paths, part, options)

    def label_lists(self, part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the label lists of videos, without reading anything else of them.

        Args:
            part: "train", "test" or "all", of the same split as `videos`.

        Yields:
            Blocks of offsets (V + 1,) and labels (L,), as `pyseg.labels.count_cooccurrence` takes
            them.

        Raises:
            ValueError: There is no such part.
            pyseg.errors.RecordError: A record is faulty.
        """
        from pyseg.labels import read_label_records

        split = self._split(part)
        for path in self.video_paths:
            keep = None if split is None else functools.partial(split, path)
            for lists in read_label_records(path, keep=keep, id_key=self._id_key):
                yield lists.offsets, lists.labels

    def without_test(self, test_fraction: float, seed: int) -> Collection:
        """Returns the "train" part, divided in its turn: to choose between models by.

        Args:
            test_fraction: The part of its videos that the new collection holds out.
            seed: Decides which; not that of this collection, or the same ones are.

        Raises:
            ValueError: ``test_fraction`` is not in [0, 1].
        """
        held_out("", test_fraction)
        return replace(self, test_fraction=test_fraction, seed=seed, within=self._split("train"))

    def _split(self, part: Part) -> Split | None:
        if part not in ("train", "test", "all"):
            raise ArgumentError(f'part must be "train", "test" or "all", got {part!r}')
        if part == "all":
            return self.within
        return Split(part, self.test_fraction, self.seed, self._train_paths, self.within)

    def _dataset(
        self,
        make: Callable[..., RecordDataset],
        paths: tuple[str, ...],
        part: Part,
        options: dict[str, Any],
    ) -> RecordDataset:
        split = self._split(part)
        if not options.get("cache"):
            if part == "test":  # without reading all of the others for nothing
                paths = tuple(path for path in paths if path not in self._train_paths)
            return make(paths, select=split, **options)
        view = {name: options.pop(name) for name in VIEW_OPTIONS if name in options}
        key = (make, paths, repr(sorted(options.items())))
        if key not in self._caches:
            self._caches[key] = make(paths, **options)
        return self._caches[key].subset(select=split, **view)


def open_collection(
    data: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Collection:
    """Returns the collection in a folder, having looked at what its records hold.

    * Feature list ``audio_embedding``: AudioSet. Beside the records, ``class_labels_indices.csv``
      names the classes, and ``strong_labels.tsv`` (or .gz) says what sounds when.
    * Feature lists ``rgb`` and ``audio``: YouTube-8M, frames, with rated segments where there are
      any. ``vocabulary.csv`` beside the records, or above them, names the classes (without it there
      are 3,862), ``segment_vocabulary.csv`` the rated ones.
    * ``mean_rgb`` and ``mean_audio``: YouTube-8M, mean features of whole videos.

    Where a folder holds several kinds, the one of most files is taken; ``notes`` says what is left
    out, such as the unlabelled test partition.

    Args:
        data: A folder, a glob or a file; or ``"sample"``, which is generated at first use.
        labels: The table of strong labels, for AudioSet; default: the one beside the records.
        vocabulary: The classes; default: the file beside the records.
        test_fraction: The part of the videos to hold out, in [0, 1].
        seed: Decides which.

    Raises:
        FileNotFoundError: There is nothing at ``data``, or a file that is needed is missing.
        pyseg.errors.DataError: The records are of no known kind, or a table is malformed.
        pyseg.errors.RecordError: A file cannot be read as TFRecords.
        ValueError: ``test_fraction`` is not in [0, 1].

    Example:
        >>> collection = open_collection("sample")
        >>> collection.feature_sizes, collection.level, collection.has_segments
        ((1024, 128), 'frame', True)
    """
    held_out("", test_fraction)
    name = None
    if data == "sample":
        from pyseg.data.sample import make_sample

        data, name = make_sample(), "sample"
    found = _Found.look(data)
    make = _audioset if found.kind == "audioset" else _youtube8m
    collection = make(found, labels, vocabulary, test_fraction, seed)
    return collection if name is None else replace(collection, name=name)


_KINDS = {
    "audioset": "AudioSet frames (audio_embedding)",
    "frame": "YouTube-8M frames (rgb, audio)",
    "video": "YouTube-8M mean features (mean_rgb, mean_audio)",
    "unlabelled": "records without labels",
    "empty": "no records",
}


@dataclass(frozen=True)
class _Found:
    """The files of a collection: all of one kind, with labels."""

    kind: Kind
    paths: tuple[str, ...]
    rated: tuple[str, ...]  # those of a series in which a record has been seen to have ratings
    folders: tuple[Path, ...]  # where tables are looked for
    notes: tuple[str, ...]

    @classmethod
    def look(cls, data: str | os.PathLike[str]) -> _Found:
        # A glob such as folder/* takes in the tables beside the records.
        files = find_shards(data)
        records = [path for path in files if path.endswith(SUFFIXES)] or files
        kinds: dict[str, list[str]] = {}
        if empty := [p for p in records if os.path.isfile(p) and not os.path.getsize(p)]:
            kinds["empty"] = empty
            records = [path for path in records if path not in set(empty)]
        rated: set[str] = set()
        strange = ""
        for paths in _series(records):
            seen = {path: sniff(path) for path in paths[:: -(-len(paths) // _SNIFFED)]}
            if len({_kind(kind) for kind in seen.values()}) > 1 or None in seen.values():
                seen = {path: sniff(path) for path in paths}
            for path in paths:
                kind = _kind(seen.get(path, seen[paths[0]]))
                kinds.setdefault(kind, []).append(path)
                if kind == "unknown":
                    strange = strange or f"{path} holds {_describe(seen[path])}"
                if kind == "unlabelled":
                    strange = strange or f"{path} has no labels"
            if _kind(seen[paths[0]]) == "frame" and _has_ratings(paths[0], seen.values()):
                rated.update(paths)
        known: tuple[Kind, ...] = ("audioset", "frame", "video")
        most = max(known, key=lambda kind: len(kinds.get(kind, ())))
        if most not in kinds:
            expected = ", ".join(_KINDS[kind] for kind in known)
            strange = strange or f"{kinds['empty'][0]} has no records"
            raise DataError(f"{os.fspath(data)}: expected {expected}; {strange}")
        notes = []
        for name, others in kinds.items():
            if name != most:
                number = f"{len(others)} file" + "s" * (len(others) > 1)
                which = others[0] + ", ..." * (len(others) > 1)
                what = _KINDS.get(name, "other records")
                notes.append(f"left out {number} of {what}: {which}")
        chosen = set(kinds[most])
        used = tuple(path for path in records if path in chosen)
        near = [Path(data)] if os.path.isdir(data) else []
        near += [folder for path in used for folder in list(Path(path).parents)[:2]]
        return cls(
            kind=most,
            paths=used,
            rated=tuple(path for path in used if path in rated),
            folders=tuple(dict.fromkeys(near)),
            notes=tuple(notes),
        )

    def beside(self, *names: str) -> Path | None:
        places = (folder / name for folder in self.folders for name in names)
        return next((place for place in places if place.is_file()), None)


def _series(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yields the paths that differ only in the number of the shard, the end of the name."""
    series: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        stem = name.split(".")[0]
        match = re.fullmatch(r"(.*?)(\d+|[0-9A-Za-z]{2})", stem)
        series.setdefault((folder, match[1] if match else stem), []).append(path)
    yield from series.values()


def frame_schema(feature_sizes: Sequence[int]) -> FrameSchema:
    """Returns what frame-level records of a known collection call their features.

    Args:
        feature_sizes: Widths of the features that make up a frame.

    Returns:
        A schema that reads records with labels or without.

    Raises:
        ValueError: No known collection has such features.

    Example:
        >>> frame_schema((1024, 128)).features
        (('rgb', 1024), ('audio', 128))
    """
    known = (FrameSchema(), audioset.SCHEMA)
    for schema in known:
        if tuple(feature_sizes) == tuple(width for _, width in schema.features):
            return replace(schema, labels_key=None)
    sizes = " or ".join(str(tuple(width for _, width in schema.features)) for schema in known)
    raise ArgumentError(f"feature_sizes: expected {sizes}, found {tuple(feature_sizes)}")


def _kind(kind: RecordKind | None) -> str:
    if kind is None:
        return "empty"
    audioset_lists = {name for name, _ in audioset.SCHEMA.features}
    for name, features, required in (
        ("audioset", kind.lists, audioset_lists),
        ("frame", kind.lists, {name for name, _ in FrameSchema().features}),
        ("video", kind.context, {name for name, _ in VideoSchema().features}),
    ):
        if required <= features.keys():
            return name if "labels" in kind.context else "unlabelled"
    return "unknown"


def _has_ratings(path: str, kinds: Iterable[RecordKind | None]) -> bool:
    """Returns whether a series holds ratings, from some first records and one file's beginning.

    Most videos of the published validate partition have none, those of the train partition never.
    """
    if any(kind is not None and "segment_labels" in kind.context for kind in kinds):
        return True
    if _is_train(path):
        return False
    records = itertools.islice(read_frames(path), _RECORDS_READ)
    return any(record.ratings is not None for record in records)


def _describe(kind: RecordKind | None) -> str:
    if kind is None:
        return "no records"
    names = [f"{name} ({feature.size})" for name, feature in (kind.context | kind.lists).items()]
    return "the features " + ", ".join(names) if names else "no features"


def _is_train(path: str) -> bool:
    """Returns whether a file is of the published train partition, by its name or its folder's."""
    return any(part.startswith("train") for part in Path(path).parts[-2:])


def _classes(
    found: _Found, vocabulary: str | os.PathLike[str] | None
) -> tuple[int, list[str] | None, list[int] | None, tuple[str, ...]]:
    """Returns num_classes, class_names, segment_classes and notes of YouTube-8M."""
    names, rated, notes = None, None, found.notes
    path = vocabulary or found.beside("vocabulary.csv")
    if path is None:
        notes += (f"no vocabulary.csv: {youtube8m.NUM_CLASSES} classes without names",)
    else:
        names = youtube8m.read_vocabulary(path)
    num_classes = youtube8m.NUM_CLASSES if names is None else len(names)
    path = found.beside("segment_vocabulary.csv", "segment_label_ids.csv")
    if path is not None:
        rated = youtube8m.read_segment_vocabulary(path).classes
        if max(rated) >= num_classes:
            raise DataError(f"{path}: class {max(rated)} is none of the {num_classes} classes")
    return num_classes, names, rated, notes


def _youtube8m(
    found: _Found,
    labels: str | os.PathLike[str] | None,
    vocabulary: str | os.PathLike[str] | None,
    test_fraction: float,
    seed: int,
) -> Collection:
    num_classes, names, rated, notes = _classes(found, vocabulary)
    of_frames = found.kind == "frame"
    if of_frames and not found.rated:
        notes += ("no rated segments in these records",)
    train = {path for path in found.paths if _is_train(path) and path not in found.rated}
    return Collection(
        name="youtube8m",
        feature_sizes=youtube8m.FEATURE_SIZES,
        num_classes=num_classes,
        class_names=names,
        segment_classes=rated if found.rated else None,
        level="frame" if of_frames else "video",
        notes=notes,
        test_fraction=test_fraction,
        seed=seed,
        make_videos=FrameDataset if of_frames else VideoDataset,
        make_segments=SegmentDataset if found.rated else None,
        video_paths=found.paths,
        segment_paths=found.rated,
        _train_paths=frozenset(train) if len(train) < len(found.paths) else frozenset(),
        _id_key=FrameSchema().id_key,
    )


def _audioset(
    found: _Found,
    labels: str | os.PathLike[str] | None,
    vocabulary: str | os.PathLike[str] | None,
    test_fraction: float,
    seed: int,
) -> Collection:
    notes = found.notes
    ids: list[str] = []
    names: list[str] | None = None
    path = vocabulary or found.beside("class_labels_indices.csv")
    if path is not None:
        ids, names = audioset.read_class_labels(path)
    num_classes = len(ids) or audioset.NUM_CLASSES
    make_segments, segment_classes = None, None
    table = labels or found.beside(*_STRONG_LABELS)
    if table is None:
        notes += ("no strong_labels.tsv: no rated segments",)
    elif not ids:
        raise MissingFileError(
            f"class_labels_indices.csv is not beside {found.paths[0]}: without it the strong "
            "labels have no class numbers (give its path as vocabulary)"
        )
    else:
        strong = audioset.read_strong_labels(table)
        display = found.beside("mid_to_display_name.tsv")
        more = audioset.read_display_names(display) if display else {}
        more |= dict(zip(ids, names or (), strict=True))
        ids, names = audioset.label_space(ids, strong, more)
        num_classes = len(ids)
        used = Counter(label for clip in strong.values() for label in clip)
        segment_classes = [number for number, id in enumerate(ids) if id in used]
        make_segments = functools.partial(
            audioset.StrongSegmentDataset, strong=strong, class_ids=ids
        )
    return Collection(
        name="audioset",
        feature_sizes=audioset.FEATURE_SIZES,
        num_classes=num_classes,
        class_names=names,
        segment_classes=segment_classes,
        level="frame",
        notes=notes,
        test_fraction=test_fraction,
        seed=seed,
        make_videos=functools.partial(FrameDataset, schema=audioset.SCHEMA),
        make_segments=make_segments,
        video_paths=found.paths,
        segment_paths=found.paths,
        _train_paths=frozenset(),
        _id_key=audioset.SCHEMA.id_key,
    )
