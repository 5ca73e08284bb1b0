"""Collections: a folder of data, opened for training and evaluation.

See :func:`open_collection`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from pyseg._paths import path_text
from pyseg._registry import Registry
from pyseg._remote import asking_once
from pyseg._urls import is_url
from pyseg.data.datasets import (
    VIEW_OPTIONS,
    FrameDataset,
    RecordDataset,
    SegmentDataset,
    VideoDataset,
)
from pyseg.data.features import FeatureSet
from pyseg.data.formats import Found, OpenOptions, look
from pyseg.data.hashing import held_out
from pyseg.data.label_lists import read_label_records
from pyseg.data.records import OnError, ReadReport, check_on_error, without_record_warnings
from pyseg.data.shards import Paths
from pyseg.data.vocabulary import FILE as VOCABULARY
from pyseg.data.vocabulary import SEGMENT_FILE as SEGMENT_VOCABULARY
from pyseg.data.vocabulary import (
    read_segment_vocabulary,
    read_vocabulary,
)
from pyseg.errors import ArgumentError, DataError, MissingFileError

Part = Literal["train", "test", "all"]
_SOURCES: Registry[Callable[[], str | os.PathLike[str]]] = Registry("source of data")


@dataclass(frozen=True)
class Split:
    """A predicate of a video's shard and id: whether it belongs to a part of a collection.

    Attributes:
        part: "train" or "test".
        fraction: The fraction of the videos that is held out, "test".
        seed: The seed of the split.
        train_paths: Shards whose videos are all "train".
        within: The split whose videos it divides; None: it divides all videos.
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
    """Videos with labels and, if there are any, rated segments; from `open_collection`.

    Videos are split by id into "train" and "test": a video and all its segments are in the same
    part. Unrated shards of the published train partition (``train*``) beside others are not split:
    all their videos are "train".

    `dataclasses.replace` makes a collection with the same split of other shards, or of the same
    shards as other data sets, say with other ratings.

    Attributes:
        name: The name of the format or the source, such as "youtube8m" or "sample".
        features: The features of a frame: their names and widths, its duration, and the length of a
            segment.
        num_classes: C, of video labels and ratings alike.
        class_names: C names, if known.
        segment_classes: The classes whose segments are rated, if known: a subset of the C.
        level: "frame", or "video" if there are only mean features of whole videos.
        notes: Lines for the user on what was left out or not found.
        test_fraction: The fraction of the videos that is held out.
        seed: The seed of the split.
        make_videos: Makes the data set that `videos` returns, from shards and the options of
            `RecordDataset`.
        make_segments: Likewise for `segments`; None: there are no rated segments.
        video_paths: The shards of videos.
        segment_paths: The shards of videos with rated segments.
        train_paths: Those of the shards of which no video is held out.
        within: The split to which videos are restricted, if any (`without_test`).
        on_error: The default of the data sets' option: "raise" or "skip" faulty records.
        standardize: Whether training standardises frames unless the options say otherwise.
    """

    name: str
    features: FeatureSet
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
    train_paths: frozenset[str] = field(repr=False, default=frozenset())
    within: Split | None = None
    on_error: OnError = "raise"
    standardize: bool = False
    _caches: dict[Any, RecordDataset] = field(repr=False, compare=False, default_factory=dict)

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Widths of the features that make up a frame."""
        return self.features.feature_sizes

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
        """Returns whether a part has no example; reads only as much as it must.

        Args:
            part: "train", "test" or "all".
            rated: Whether to look for rated segments, or for videos; default: segments if the
                collection has any.
            classes: See `pyseg.data.RecordDataset`.

        Raises:
            ValueError: There is no such part.
            pyseg.errors.RecordError: A record is faulty.
        """
        if part == "test" and self.test_fraction == 0:
            return True
        make = self.segments if rated or (rated is None and self.has_segments) else self.videos
        # Not divided: all processes get the same answer.
        examples = make(part, classes=classes, cache=False, rank=0, world_size=1)
        with without_record_warnings():  # a reader that gets further reports them
            return examples is None or next(iter(examples), None) is None

    def label_lists(
        self, part: Part, report: ReadReport | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the label lists of videos, without decoding anything else.

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
        split = self.split(part)
        for path in self.video_paths:
            keep = None if split is None else functools.partial(split, path)
            for lists in read_label_records(
                path, keep=keep, id_key=self.features.id_key, on_error=self.on_error, report=report
            ):
                yield lists.offsets, lists.labels

    def without_test(self, test_fraction: float, seed: int) -> Collection:
        """Returns the "train" part with a split of its own, for choosing between models.

        Args:
            test_fraction: The fraction of its videos that the new collection holds out.
            seed: The seed of its split, not that of this collection, which holds out the same ids.

        Raises:
            ValueError: ``test_fraction`` is not in [0, 1].
        """
        held_out("", test_fraction)
        return replace(self, test_fraction=test_fraction, seed=seed, within=self.split("train"))

    def split(self, part: Part) -> Split | None:
        """Returns what tells whether a video is in a part, by shard and id; None: all are.

        Args:
            part: "train", "test" or "all".

        Raises:
            ValueError: There is no such part.
        """
        if part not in ("train", "test", "all"):
            raise ArgumentError(f'part: expected "train", "test" or "all", found {part!r}')
        if part == "all":
            return self.within
        return Split(part, self.test_fraction, self.seed, self.train_paths, self.within)

    def _dataset(
        self,
        make: Callable[..., RecordDataset],
        paths: tuple[str, ...],
        part: Part,
        options: dict[str, Any],
    ) -> RecordDataset:
        split = self.split(part)
        if not options.get("cache"):
            if part == "test":  # none of their videos is in this part
                paths = tuple(path for path in paths if path not in self.train_paths)
            return make(paths, select=split, **options)
        view = {name: options.pop(name) for name in VIEW_OPTIONS if name in options}
        key = (make, paths, repr(sorted(options.items())))
        if key not in self._caches:
            self._caches[key] = make(paths, **options)
        return self._caches[key].subset(select=split, **view)


def register_source(name: str, make: Callable[[], str | os.PathLike[str]]) -> None:
    """Registers a name for data that is generated or fetched, which ``--data NAME`` then uses.

    Args:
        name: The name, which must be new.
        make: Returns the folder, glob or file of the records; called at every use.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.
    """
    _SOURCES.register(name)(make)


def find_data(data: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns the folder, glob or file of the records that a path or the name of a source names.

    Raises:
        FileNotFoundError: It is a name, but neither a file nor registered.
    """
    name = path_text(data, "data", remote=True)
    if name in _SOURCES:
        return _SOURCES[name]()
    if name.isidentifier() and not os.path.exists(name):
        raise MissingFileError(
            f"{name}: no such file or folder, nor one of the sources {', '.join(_SOURCES)}; your "
            "own has to be registered (--plugin)"
        )
    return name if is_url(name) else data


@asking_once()
def open_collection(
    data: str | os.PathLike[str],
    *,
    labels: Paths | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    on_error: OnError = "raise",
) -> Collection:
    """Opens the collection in a folder; its records determine the format.

    * ``features.json`` beside the records, or above them, describes the features of their frames.
      ``vocabulary.csv`` names the classes.
    * Feature list ``audio_embedding``: AudioSet. Beside the records, ``class_labels_indices.csv``
      names the classes, and all of ``strong_labels.tsv``, ``audioset_train_strong.tsv`` and
      ``audioset_eval_strong.tsv`` (or .gz) that exist have the times of the sounds.
    * Feature lists ``rgb`` and ``audio``: YouTube-8M, frames, with rated segments if there are any.
      ``vocabulary.csv`` beside the records, or above them, names the classes (without it there are
      3,862, if the widths are YouTube-8M's), ``segment_vocabulary.csv`` the rated ones.
    * ``mean_rgb`` and ``mean_audio``: YouTube-8M, mean features of whole videos.
    * Formats that `pyseg.data.register_format` has added.

    If a folder holds several formats, that of most files is used; ``notes`` lists what is left out,
    such as the unlabelled test partition.

    Args:
        data: A folder, a glob or a file, or a URL of one of these (``"s3://bucket/yt8m"``, by
            fsspec); or the name of a source (`register_source`), such as
            ``"sample"``, which is generated at first use.
        labels: Tables of labels, for a format that takes them, such as AudioSet's: a file, a glob,
            or a list of these; default: those beside the records.
        vocabulary: The classes; default: the file beside the records.
        test_fraction: The fraction of the videos to hold out, in [0, 1].
        seed: The seed of the split.
        on_error: "raise" an error at a faulty record, or "skip" it, here and in the data sets of
            the collection.

    Raises:
        FileNotFoundError: There is nothing at ``data``, or a required file is missing.
        pyseg.errors.UserError: A URL cannot be read.
        pyseg.errors.DataError: The format of the records is unknown, or a table is malformed.
        pyseg.errors.RecordError: A file cannot be read as TFRecords.
        ValueError: ``test_fraction`` is not in [0, 1].

    Example:
        >>> collection = open_collection("sample")
        >>> collection.feature_sizes, collection.level, collection.has_segments
        ((1024, 128), 'frame', True)
    """
    held_out("", test_fraction)
    check_on_error(on_error)
    if vocabulary is not None:
        vocabulary = path_text(vocabulary, "vocabulary", remote=True)
    found = look(find_data(data), on_error)
    if labels is not None and not found.format.takes_labels:
        raise DataError(
            f"{found.paths[0]}: expected records of a format that takes --labels, found "
            f"{found.format.title}"
        )
    options = OpenOptions(labels, vocabulary, test_fraction, seed, on_error)
    collection: object = found.format.open(found, options)
    if not isinstance(collection, Collection):
        raise ArgumentError(
            f"format {found.format.name}: expected a Collection of its open, found {collection!r}"
        )
    name = str(data) if data in _SOURCES else collection.name
    return replace(collection, name=name, on_error=on_error, standardize=found.format.standardize)


def open_records(
    found: Found,
    options: OpenOptions,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    is_train: Callable[[str], bool] = lambda _: False,
) -> Collection:
    """Opens records that contain their labels and ratings, as those of YouTube-8M do.

    ``vocabulary.csv`` beside the records, or above them, names the classes;
    ``segment_vocabulary.csv`` says which of them are rated.

    Args:
        found: The records.
        options: The options of `open_collection`.
        name: The collection's name; default: the format's.
        num_classes: The number of classes without a vocabulary; None: a vocabulary is required.
        is_train: Whether a file of unrated videos is of a published train partition, by its path;
            none of its videos is held out, unless all files are of that partition.

    Raises:
        pyseg.errors.DataError: A vocabulary is malformed, or required and missing.
    """
    notes, schema = found.notes, cast(Any, found.schema)
    names, rated = None, None
    path = options.vocabulary or found.beside(VOCABULARY)
    if path is not None:
        names = read_vocabulary(path)
        num_classes = len(names)
    elif num_classes is None:
        raise DataError(
            f"{found.paths[0]}: expected a vocabulary.csv beside it with the columns Index,Name, "
            "which says what the classes are, found none"
        )
    else:
        notes += (f"no vocabulary.csv: {num_classes} classes without names",)
    path = found.beside(SEGMENT_VOCABULARY, "segment_label_ids.csv")
    if path is not None:
        rated = read_segment_vocabulary(path).classes
        if max(rated) >= num_classes:
            raise DataError(f"{path}: expected classes below {num_classes}, found {max(rated)}")
    of_frames = found.format.level == "frame"
    if of_frames and not found.rated:
        notes += ("no rated segments in these records",)
    train = {path for path in found.paths if is_train(path) and path not in found.rated}
    return Collection(
        name=name or found.format.name,
        features=found.features,
        num_classes=num_classes,
        class_names=names,
        segment_classes=rated if found.rated else None,
        level=found.format.level,
        notes=notes,
        test_fraction=options.test_fraction,
        seed=options.seed,
        make_videos=functools.partial(FrameDataset if of_frames else VideoDataset, schema=schema),
        make_segments=functools.partial(SegmentDataset, schema=schema) if found.rated else None,
        video_paths=found.paths,
        segment_paths=found.rated,
        train_paths=frozenset(train) if len(train) < len(found.paths) else frozenset(),
    )
