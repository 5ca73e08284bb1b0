"""What training needs to know about a folder of data.

See :func:`open_collection`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pyseg.data import audioset, youtube8m
from pyseg.data.datasets import (
    VIEW_OPTIONS,
    FrameDataset,
    RecordDataset,
    SegmentDataset,
    VideoDataset,
)
from pyseg.data.formats import Found, look
from pyseg.data.hashing import held_out
from pyseg.data.label_lists import read_label_records
from pyseg.data.records import OnError, ReadReport, without_record_warnings
from pyseg.data.shards import Paths, find_shards
from pyseg.errors import ArgumentError, DataError, MissingFileError

Part = Literal["train", "test", "all"]


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
        on_error: What a faulty record does where nothing else is asked for: "raise" or "skip".
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
    on_error: OnError = "raise"
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
        options = {"on_error": self.on_error, **options}
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
        options = {"on_error": self.on_error, "cache": True, **options}
        return self._dataset(self.make_segments, self.segment_paths, part, options)

    def is_empty(
        self, part: Part, *, rated: bool | None = None, classes: Sequence[int] | None = None
    ) -> bool:
        """Returns whether a part has no example; no more is read than is needed to know.

        Args:
            part: "train", "test" or "all".
            rated: Whether rated segments are meant, or videos; default: the former where there are
                any in the collection.
            classes: See `pyseg.data.RecordDataset`.

        Raises:
            ValueError: There is no such part.
            pyseg.errors.RecordError: A record is faulty.
        """
        if part == "test" and self.test_fraction == 0:
            return True
        make = self.segments if rated or (rated is None and self.has_segments) else self.videos
        # The same in all processes.
        examples = make(part, classes=classes, cache=False, rank=0, world_size=1)
        with without_record_warnings():  # whoever reads on will tell
            return examples is None or next(iter(examples), None) is None

    def label_lists(
        self, part: Part, report: ReadReport | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the label lists of videos, without reading anything else of them.

        Args:
            part: "train", "test" or "all", of the same split as `videos`.
            report: See `pyseg.data.read_frames`.

        Yields:
            Blocks of offsets (V + 1,) and labels (L,), as `pyseg.labels.count_cooccurrence` takes
            them.

        Raises:
            ValueError: There is no such part.
            pyseg.errors.RecordError: A record is faulty.
        """
        split = self._split(part)
        for path in self.video_paths:
            keep = None if split is None else functools.partial(split, path)
            for lists in read_label_records(
                path, keep=keep, id_key=self._id_key, on_error=self.on_error, report=report
            ):
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
    labels: Paths | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    on_error: OnError = "raise",
) -> Collection:
    """Returns the collection in a folder, having looked at what its records hold.

    * Feature list ``audio_embedding``: AudioSet. Beside the records, ``class_labels_indices.csv``
      names the classes, and ``strong_labels.tsv``, ``audioset_train_strong.tsv`` and
      ``audioset_eval_strong.tsv`` (or .gz), all that are there, say what sounds when.
    * Feature lists ``rgb`` and ``audio``: YouTube-8M, frames, with rated segments where there are
      any. ``vocabulary.csv`` beside the records, or above them, names the classes (without it there
      are 3,862), ``segment_vocabulary.csv`` the rated ones.
    * ``mean_rgb`` and ``mean_audio``: YouTube-8M, mean features of whole videos.

    Where a folder holds several kinds, the one of most files is taken; ``notes`` says what is left
    out, such as the unlabelled test partition.

    Args:
        data: A folder, a glob or a file; or ``"sample"``, which is generated at first use.
        labels: Tables of strong labels, for AudioSet: a file, a glob, or a list of these; default:
            those beside the records.
        vocabulary: The classes; default: the file beside the records.
        test_fraction: The part of the videos to hold out, in [0, 1].
        seed: Decides which.
        on_error: What a faulty record does, here and in the data sets of the collection: "raise"
            an error, or "skip" it.

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
    if on_error not in ("raise", "skip"):
        raise ArgumentError(f'on_error must be "raise" or "skip", got {on_error!r}')
    found = look(data, on_error)
    if found.kind == "audioset":
        tables = _strong_tables(found, labels)
        collection = _audioset(found, tables, vocabulary, test_fraction, seed, on_error)
    elif labels is not None:
        raise DataError(f"{found.paths[0]}: expected AudioSet's records, as labels are given")
    else:
        collection = _youtube8m(found, vocabulary, test_fraction, seed)
    return replace(collection, name=name or collection.name, on_error=on_error)


def _is_train(path: str) -> bool:
    """Returns whether a file is of the published train partition, by its name or its folder's."""
    folder, name = os.path.split(path)
    # Shards are called train0000 and so on, in the first releases train and two letters or digits.
    shard = re.match(r"train([^A-Za-z]|[\w-]{2}\.)", name)
    return bool(shard or re.match(r"train(ing)?(?![A-Za-z])", os.path.basename(folder)))


def _classes(
    found: Found, vocabulary: str | os.PathLike[str] | None
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
    found: Found,
    vocabulary: str | os.PathLike[str] | None,
    test_fraction: float,
    seed: int,
) -> Collection:
    num_classes, names, rated, notes = _classes(found, vocabulary)
    of_frames = found.kind == "frame"
    schema: Any = found.schema
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
        make_videos=functools.partial(FrameDataset if of_frames else VideoDataset, schema=schema),
        make_segments=functools.partial(SegmentDataset, schema=schema) if found.rated else None,
        video_paths=found.paths,
        segment_paths=found.rated,
        _train_paths=frozenset(train) if len(train) < len(found.paths) else frozenset(),
        _id_key=schema.id_key,
    )


def _strong_tables(found: Found, labels: Paths | None) -> list[str]:
    if labels is not None:
        return find_shards(labels)
    tables = (found.beside(name, f"{name}.gz") for name in audioset.STRONG_TABLES)
    return [str(table) for table in tables if table is not None]


def _audioset(
    found: Found,
    tables: Sequence[str],
    vocabulary: str | os.PathLike[str] | None,
    test_fraction: float,
    seed: int,
    on_error: OnError,
) -> Collection:
    notes = found.notes
    schema: Any = found.schema
    ids: list[str] = []
    names: list[str] | None = None
    path = vocabulary or found.beside("class_labels_indices.csv")
    if path is not None:
        ids, names = audioset.read_class_labels(path)
    num_classes = len(ids) or audioset.NUM_CLASSES
    make_segments, segment_classes = None, None
    if not tables:
        notes += ("no strong_labels.tsv: no rated segments",)
    elif not ids:
        raise MissingFileError(
            f"class_labels_indices.csv is not beside {found.paths[0]}: without it the strong "
            "labels have no class numbers (give its path as vocabulary)"
        )
    else:
        display = found.beside("mid_to_display_name.tsv")
        known = audioset.read_display_names(display) if display else {}
        known |= dict(zip(ids, names or (), strict=True))
        clips = audioset.read_clip_names(found.paths, schema, on_error)
        strong, more = audioset.open_strong_labels(tables, clips, ids, known)
        notes += more
        ids, names = audioset.label_space(ids, strong, known)
        num_classes = len(ids)
        used = {label for clip in strong.values() for label in clip}
        segment_classes = [number for number, id in enumerate(ids) if id in used]
        make_segments = functools.partial(
            audioset.StrongSegmentDataset, strong=strong, class_ids=ids, schema=schema
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
        make_videos=functools.partial(FrameDataset, schema=schema),
        make_segments=make_segments,
        video_paths=found.paths,
        segment_paths=found.paths,
        _train_paths=frozenset(),
        _id_key=schema.id_key,
    )
