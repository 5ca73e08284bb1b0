"""The registry of formats: kinds of records, recognized by content, and how to open them.

See :class:`Format`, :func:`register_format` and :func:`look`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pyseg._progress import Progress
from pyseg._registry import Registry
from pyseg._remote import asking_once, is_file, is_folder, size_of
from pyseg._text import counted
from pyseg._threads import map_in_order
from pyseg._urls import beside, is_url, parents, split
from pyseg.data.features import FeatureSet
from pyseg.data.records import (
    FeatureKind,
    FrameSchema,
    OnError,
    RecordKind,
    VideoSchema,
    find_features,
    is_record_file,
    sniff,
)
from pyseg.data.shards import Paths, find_shards, named_as_records
from pyseg.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from pyseg.data.collection import Collection

_SNIFFED = 16  # files of a series whose first record is read
_THREADS = 8  # threads that wait for the disk
_SEARCHED = 1 << 32  # bytes of a series at URLs that is searched in full
_LOOKED_INTO = 1 << 26  # bytes that are searched of the files of a sample of a longer one
_NOTHING = FeatureKind("nothing", 0)
_LOG = logging.getLogger("pyseg")
_ID_KEYS = ("id", "video_id")  # the second: YouTube-8M's releases of 2016 and 2017
_USELESS = {
    "unlabelled": "records without labels",
    "empty": "no records",
    "unknown": "other records",
}
_FORMATS: Registry[Format] = Registry("format")


@dataclass(frozen=True)
class OpenOptions:
    """The options of `pyseg.data.open_collection`, except the records.

    Attributes:
        labels: Tables of labels, for a format that takes them; None: those beside the records.
        vocabulary: The file that names the classes; None: the one beside the records.
        test_fraction: The fraction of the videos to hold out, in [0, 1].
        seed: The seed of the split.
        on_error: "raise" an error at a damaged record, or "skip" it.
    """

    labels: Paths | None = None
    vocabulary: str | os.PathLike[str] | None = None
    test_fraction: float = 0.2
    seed: int = 0
    on_error: OnError = "raise"


@dataclass(frozen=True)
class Format:
    """A kind of record that the commands can read.

    Records have it if their features are called as ``features`` says, and then any widths; or if
    the file ``described_by`` is beside them or above them, which takes precedence.

    Attributes:
        name: Its name.
        title: The name of its records in messages, in the plural.
        features: The features of its records; None: each collection has a file that describes them.
        open: Makes the collection of such records: ``open(found, options)``.
        level: The level of a record's features: "frame", or "video" for means of whole videos.
        takes_labels: Whether it takes tables of ``--labels``.
        standardize: Whether training standardises its frames unless the options say otherwise.
        recognize: Returns whether a file with this first record has the format, instead of its
            features' names.
        described_by: The name of the file that describes the features of a collection.
        describe: Reads that file, by its path or its URL; default: `FeatureSet.read`.

    Example:
        >>> from pyseg.data import open_records
        >>> clip = FeatureSet((("clip", 512),), frame_seconds=0.5)
        >>> format = Format("clip", "CLIP features (clip)", clip, open_records)
        >>> register_format(format).level
        'frame'
    """

    name: str
    title: str
    features: FeatureSet | None
    open: Callable[[Found, OpenOptions], Collection]
    level: Literal["frame", "video"] = "frame"
    takes_labels: bool = False
    standardize: bool = False
    recognize: Callable[[RecordKind], bool] | None = None
    described_by: str | None = None
    describe: Callable[[Path | str], FeatureSet] | None = None

    def matches(self, kind: RecordKind) -> bool:
        """Returns whether a file with this first record has the format, by its features' names."""
        if self.features is None:
            return False
        if self.recognize is not None:
            return self.recognize(kind)
        return {name for name, _ in self.features.features} <= self._holding(kind).keys()

    def found_in(self, kind: RecordKind) -> FeatureSet:
        """Returns the features with the widths that they have in a file with this first record."""
        assert self.features is not None
        holding, type = self._holding(kind), "bytes" if self.level == "frame" else "float"
        widths = tuple(
            (name, holding[name].size)
            if holding.get(name, _NOTHING).type == type and holding[name].size
            else (name, width)
            for name, width in self.features.features
        )
        return replace(self.features, features=widths, id_key=_id_key(kind, self.features.id_key))

    def _holding(self, kind: RecordKind) -> dict[str, FeatureKind]:
        """Returns the part of a record that holds features of this level."""
        return kind.lists if self.level == "frame" else kind.context


def register_format(format: Format) -> Format:
    """Registers a format for all commands. Of several that match, the last one is used.

    Args:
        format: The format; its name must be new.

    Returns:
        The format.

    Raises:
        pyseg.errors.ArgumentError: The name is taken, or a field is not what it should be.
    """
    if not isinstance(format, Format):
        raise ArgumentError(f"format: expected a Format, found {format!r}")
    described = format.described_by is not None
    if not isinstance(format.features, FeatureSet) and (format.features, described) != (None, True):
        raise ArgumentError(f"features: expected a FeatureSet, found {format.features!r}")
    if format.level not in ("frame", "video"):
        raise ArgumentError(f'level: expected "frame" or "video", found {format.level!r}')
    if described and not (isinstance(format.described_by, str) and format.described_by):
        raise ArgumentError(f"described_by: expected a name, found {format.described_by!r}")
    for name in ("open", "recognize", "describe"):
        value = getattr(format, name)
        if not callable(value) and (name == "open" or value is not None):
            raise ArgumentError(f"{name}: expected a function, found {value!r}")
    _FORMATS.add(format.name, format)
    return format


def formats() -> list[Format]:
    """Lists the formats in the order of registration.

    Example:
        >>> [format.name for format in formats()][:3]
        ['youtube8m-videos', 'youtube8m', 'audioset']
    """
    return list(_FORMATS.values())


class Kind(NamedTuple):
    """The kind of a file.

    Attributes:
        name: A format's name; or why the file cannot be used: "unlabelled", "empty" or "unknown".
        features: The features of its records, if it has a format.
    """

    name: str
    features: FeatureSet | None = None


@dataclass(frozen=True)
class Found:
    """The files of a collection, all with labels and of one format.

    Attributes:
        format: The format.
        features: The features of these files' records.
        paths: The files.
        rated: The files of every series in which a record has ratings.
        folders: The folders to search for tables; those at URLs are text.
        notes: Lines on what was left out.
    """

    format: Format
    features: FeatureSet
    paths: tuple[str, ...]
    rated: tuple[str, ...]
    folders: tuple[Path | str, ...]
    notes: tuple[str, ...]

    @property
    def schema(self) -> FrameSchema | VideoSchema:
        """The schema that reads the records."""
        if self.format.level == "frame":
            return self.features.schema
        return VideoSchema(self.features.features, self.features.id_key)

    def beside(self, *names: str) -> Path | str | None:
        """Returns the first existing file of these names beside the records or above them."""
        places = (beside(folder, name) for folder in self.folders for name in names)
        return next(filter(is_file, places), None)


class Inspector:
    """Tells the kinds of files, from their first records and from files that describe them.

    Args:
        data: The folder, glob or file that was asked for.
        on_error: "raise" an error at a damaged record or one that is not as described, or "skip".
    """

    def __init__(self, data: str | os.PathLike[str], on_error: OnError) -> None:
        self.data = _as_folder(data)  # what was asked for, if it is a folder
        self._on_error = on_error
        self._described: dict[Path | str, tuple[Format, FeatureSet, Path | str] | None] = {}

    def folders(self, path: str) -> list[Path | str]:
        """Returns the folders with tables that belong to a file, the nearest one first."""
        return [*parents(path), *self.data]

    def inspect(self, path: str) -> tuple[RecordKind | None, Kind]:
        """Returns the first record of a file, and the kind that the file has if it has labels.

        Raises:
            pyseg.errors.DataError: The record does not fit the file that describes it.
            pyseg.errors.RecordError: The file cannot be read.
        """
        record = sniff(path, self._on_error)
        if record is None:
            return None, Kind("empty")
        format, features, source = self._description(path) or _recognize(record)
        if format is None or features is None:
            return record, Kind("unknown")
        if wrong := _misfit(record, features, format.level, source):
            if self._on_error == "raise":
                raise DataError(f"{path}: record 0: {wrong}")
            return record, Kind("unknown")
        return record, Kind(format.name, features)

    def id_key(self, path: str) -> str:
        """Returns the name of the id in a file: the described one, or one that it has.

        Raises:
            pyseg.errors.DataError: The file that describes it is malformed.
            pyseg.errors.RecordError: The file cannot be read.
        """
        described = self._description(path)
        return id_key(path) if described is None else described[1].id_key

    def _description(self, path: str) -> tuple[Format, FeatureSet, Path | str] | None:
        """Returns the format and the features of a file that is described, and the description."""
        folder = parents(path)[0]
        if folder not in self._described:
            self._described[folder] = next(
                (
                    (format, (format.describe or FeatureSet.read)(place), place)
                    for near in self.folders(path)
                    for format in reversed(_FORMATS.values())
                    if format.described_by and is_file(place := beside(near, format.described_by))
                ),
                None,
            )
        return self._described[folder]


def _as_folder(data: str | os.PathLike[str]) -> list[Path | str]:
    """Returns what was asked for, if it is a folder."""
    if not is_folder(data):
        return []
    return [str(data) if is_url(data) else Path(data)]


def look(data: str | os.PathLike[str], on_error: OnError = "raise") -> Found:
    """Finds the records in a folder, glob or file, and chooses those of one format.

    Of a series, files whose names differ only in the shard's number, a sample is read, and all if
    the sample is not uniform. All records are searched for ratings, until the first in a series; of
    more than 4 GiB at URLs the first 64 MiB of a sample of the files, and a line is logged.

    Args:
        data: A folder, a glob or a file.
        on_error: "raise" an error at a damaged record, or "skip" it.

    Raises:
        FileNotFoundError: There is nothing at ``data``.
        pyseg.errors.DataError: There is no labelled record of a known format, or a record does not
            fit the file that describes it.
        pyseg.errors.RecordError: A file cannot be read as TFRecords.
    """
    # A glob such as folder/* also matches the tables beside the records.
    files = find_shards(data)
    records = [path for path in files if named_as_records(path) or is_record_file(path)] or files
    inspector = Inspector(data, on_error)
    kinds, rated, unusable = _sort(records, inspector)
    order = list(_FORMATS)
    chosen = max(
        (kind for kind in kinds if kind.features is not None),
        key=lambda kind: (len(kinds[kind]), order.index(kind.name)),
        default=None,
    )
    if chosen is None or chosen.features is None:
        expected = ", ".join(format.title for format in reversed(_FORMATS.values()))
        unusable = unusable or f"{kinds[Kind('empty')][0]} has no records"
        raise DataError(f"{os.fspath(data)}: expected {expected}; {unusable}")
    of_kind = set(kinds[chosen])
    used = tuple(path for path in records if path in of_kind)
    near = [*inspector.data, *(folder for path in used for folder in inspector.folders(path))]
    return Found(
        format=_FORMATS[chosen.name],
        features=chosen.features,
        paths=used,
        rated=tuple(path for path in used if path in rated),
        folders=tuple(dict.fromkeys(near)),
        notes=tuple(
            _left_out(chosen, kind, paths) for kind, paths in kinds.items() if kind != chosen
        ),
    )


def _sort(
    paths: Sequence[str], inspector: Inspector
) -> tuple[dict[Kind, list[str]], set[str], str]:
    """Groups files by kind.

    Returns:
        The files of each kind; those of every series in which a record has ratings; and an example
        of an unusable file, for a message.
    """
    kinds: dict[Kind, list[str]] = {}
    rated: set[str] = set()
    unusable = ""
    empty = {path: None for path in paths if is_file(path) and not size_of(path)}
    if empty:
        kinds[Kind("empty")] = list(empty)
        paths = [path for path in paths if path not in empty]
    for series in _series(paths):
        seen = {path: inspector.inspect(path) for path in sample_of(series)}
        kinds_seen = {_labelled(*found) for found in seen.values()}
        if len(kinds_seen) > 1 or Kind("empty") in kinds_seen:
            seen = {path: inspector.inspect(path) for path in series}
        first = seen[series[0]]
        of_path = {path: _labelled(*seen.get(path, first)) for path in series}
        unlabelled = [path for path in series if of_path[path].name == "unlabelled"]
        for path in _holding("labels", unlabelled):
            of_path[path] = seen.get(path, first)[1]
        for path, kind in of_path.items():
            kinds.setdefault(kind, []).append(path)
            if kind.name == "unknown":
                unusable = unusable or f"{path} holds {_contents(seen.get(path, first)[0])}"
            if kind.name == "unlabelled":
                unusable = unusable or f"{path} has no labels"
        frames = [path for path, kind in of_path.items() if _may_be_rated(kind)]
        known = any(record and "segment_labels" in record.context for record, _ in seen.values())
        if frames and (known or _holding("segment_labels", frames, first=True)):
            rated.update(frames)
    return kinds, rated, unusable


def sample_of(series: Sequence[str]) -> Sequence[str]:
    """Returns some files of a series, the first one included."""
    return series[:: -(-len(series) // _SNIFFED)]


def _labelled(record: RecordKind | None, kind: Kind) -> Kind:
    """Returns the kind of a file, given whether its first record has labels."""
    if kind.features is None or (record is not None and "labels" in record.context):
        return kind
    return Kind("unlabelled")


def _may_be_rated(kind: Kind) -> bool:
    """Returns whether records of a kind may contain ratings, instead of a table."""
    format = _FORMATS.get(kind.name)
    return format is not None and format.level == "frame" and not format.takes_labels


def _left_out(chosen: Kind, kind: Kind, paths: Sequence[str]) -> str:
    what = _USELESS.get(kind.name) or _FORMATS[kind.name].title
    if kind.name == chosen.name and chosen.features is not None and kind.features is not None:
        differences = chosen.features.differences(kind.features)
        if kind.features.id_key != chosen.features.id_key:
            differences.append(
                f"id_key: expected {chosen.features.id_key}, found {kind.features.id_key}"
            )
        what += f" ({'; '.join(differences)})"
    more = ", ..." * (len(paths) > 1)
    return f"left out {counted(len(paths), 'file')} of {what}: {paths[0]}{more}"


def _series(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yields lists of paths that differ only in the number of the shard, the end of the name."""
    series: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        folder, name = split(path)
        stem = re.sub(r"-of-\d+", "", name).split(".")[0]
        match = re.fullmatch(r"(.*?)(\d+|[0-9A-Za-z]{2})", stem)
        series.setdefault((folder, match[1] if match else stem), []).append(path)
    yield from series.values()


def _holding(name: str, paths: Sequence[str], *, first: bool = False) -> list[str]:
    """Returns the files with a context feature in some record; with ``first``, only one."""
    if _is_long(paths):
        sample = sample_of(paths)
        found = _search(name, sample, first, _LOOKED_INTO)
        if not found:
            _LOG.warning(
                "%s, ...: no %s in the first %d MiB of %d of %d files; the rest was not searched",
                *(paths[0], name, _LOOKED_INTO >> 20, len(sample), len(paths)),
            )
        if first or not found:
            return found
    return _search(name, paths, first)


def _is_long(paths: Sequence[str]) -> bool:
    """Returns whether a series is too long to be searched in full: much data, and at URLs."""
    total = 0
    for path in filter(is_url, paths):
        total += max(0, size_of(path))
        if total > _SEARCHED:
            return True
    return False


def _search(name: str, paths: Sequence[str], first: bool, most: int | None = None) -> list[str]:
    """Returns what `_holding` does, after a search of so many bytes of each file."""
    found: list[str] = []
    if not paths:
        return found
    with (
        contextlib.closing(
            map_in_order(lambda path: find_features(path, [name], most), paths, _THREADS)
        ) as searched,
        Progress(f"looking for {name}", "shards", len(paths)) as bar,
    ):
        for path, names in zip(paths, searched, strict=False):
            bar.update()
            if names:
                found.append(path)
                if first:
                    break
    return found


def _id_key(kind: RecordKind | None, default: str) -> str:
    has = () if kind is None else kind.context
    return next((key for key in (default, *_ID_KEYS) if key in has), default)


def id_key(path: str, default: str = "id") -> str:
    """Returns the name of the id in a file: the default, unless it has only another known one.

    Raises:
        pyseg.errors.RecordError: The file cannot be read.
    """
    return _id_key(sniff(path, "skip"), default)


def _recognize(record: RecordKind) -> tuple[Format | None, FeatureSet | None, None]:
    """Returns the format of a file with this first record, and its features, if known.

    Of several formats, one whose widths are those of the record has precedence.
    """
    best: tuple[Format | None, FeatureSet | None] = None, None
    best_fits = False
    for format in _FORMATS.values():
        if format.features is not None and format.matches(record):
            features = format.found_in(record)
            fits = format.recognize is not None or features.features == format.features.features
            if fits >= best_fits:
                best, best_fits = (format, features), fits
    return *best, None


def _misfit(
    record: RecordKind, features: FeatureSet, level: str, source: Path | str | None
) -> str | None:
    """Returns in what a record is not as its features say, if anything.

    Args:
        record: The record.
        features: The features that it should have.
        level: Their level.
        source: The file that describes them, if any.
    """
    says = "" if source is None else f", as {source} says"
    if record.context.get(features.id_key, _NOTHING).type != "bytes":
        return (
            f"expected the id in context feature {features.id_key!r}{says}, found "
            f"{_contents(record)}"
        )
    if level == "video":
        return None
    for name, width in features.features:
        found = record.lists.get(name)
        if found is None or found != ("bytes", width):
            what = _contents(record) if found is None else f"{found.size} {found.type}"
            return f"expected {width} bytes a frame in feature list {name!r}{says}, found {what}"
    return None


def _contents(kind: RecordKind | None) -> str:
    if kind is None:
        return "no records"
    names = [f"{name} ({feature.size})" for name, feature in (kind.context | kind.lists).items()]
    return "the features " + ", ".join(names) if names else "no features"


@asking_once()
def frames_like(
    trained: FeatureSet,
    level: Literal["frame", "video"],
    data: str | os.PathLike[str],
    paths: Sequence[str],
) -> FeatureSet:
    """Returns the features with which the frames of records are read for a model.

    The first records of a sample of the files must have what the model was trained on. A model of
    mean features of whole videos takes frames of the same widths; that records have means, too, is
    found when their frames are read.

    Args:
        trained: The features that the model was trained on.
        level: Their level.
        data: The folder, glob or file with the records, with labels or without.
        paths: Its files.

    Raises:
        pyseg.errors.DataError: The records have other features; the message says which.
        pyseg.errors.RecordError: A file cannot be read.
    """
    inspector = Inspector(data, "skip")
    features = trained
    for path in sample_of(paths):
        record, kind = inspector.inspect(path)
        if record is None:
            continue
        found = None if kind.features is None else _FORMATS[kind.name].level
        if kind.features is not None and (found, level) != ("video", "frame"):
            differences = trained.differences(kind.features, same_level=found == level)
            features = trained if found == level else kind.features
        else:  # without a format, or means instead of frames
            wrong = _misfit(record, trained, "frame", None)
            differences = [] if wrong is None else [wrong]
        if differences:
            raise DataError(f"{path}: {'; '.join(differences)}")
    return features


def frames_of(
    data: str | os.PathLike[str], paths: Sequence[str], on_error: OnError = "raise"
) -> FeatureSet:
    """Returns the features of records of frames, with labels or without.

    The first records of a sample of the files are read, and must have the same features.

    Args:
        data: The folder, glob or file with the records.
        paths: Its files.
        on_error: "raise" an error at a damaged record or one that is not as described, or "skip".

    Raises:
        pyseg.errors.DataError: A file holds something else, or other features than the first.
        pyseg.errors.RecordError: A file cannot be read.
    """
    inspector, features = Inspector(data, on_error), None
    for path in sample_of(paths):
        record, kind = inspector.inspect(path)
        if record is None:
            continue
        if kind.features is None or _FORMATS[kind.name].level != "frame":
            raise DataError(f"{path}: expected records of frames, found {_contents(record)}")
        if features is None:
            features = kind.features
        elif differences := features.differences(kind.features):
            raise DataError(f"{path}: {'; '.join(differences)}")
    if features is None:
        raise DataError(f"{os.fspath(data)}: expected records of frames, found no record")
    return features
