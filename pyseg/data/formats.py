"""The registry of formats: kinds of records, recognized by content, and how to open them.

See :class:`Format`, :func:`register_format` and :func:`look`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pyseg._progress import Progress
from pyseg._registry import Registry
from pyseg._threads import map_in_order
from pyseg.data.records import (
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

    Attributes:
        name: Its name.
        title: The name of its records in messages, in the plural.
        schema: The names of a record's features; for frames also the length of a segment.
        open: Makes the collection of such records: ``open(found, options)``.
        frame_seconds: The duration of a frame in seconds.
        takes_labels: Whether it takes tables of ``--labels``.
        recognize: Returns whether a file with this first record has the format; default: whether
            the record has the schema's features.

    Example:
        >>> from pyseg.data import open_records
        >>> schema = FrameSchema(features=(("clip", 512),))
        >>> format = Format("clip", "CLIP features (clip)", schema, open_records, frame_seconds=0.5)
        >>> register_format(format).feature_sizes
        (512,)
    """

    name: str
    title: str
    schema: FrameSchema | VideoSchema
    open: Callable[[Found, OpenOptions], Collection]
    frame_seconds: float = 1.0
    takes_labels: bool = False
    recognize: Callable[[RecordKind], bool] | None = None

    @property
    def level(self) -> Literal["frame", "video"]:
        """The level of a record's features: "frame", or "video" for means of whole videos."""
        return "frame" if isinstance(self.schema, FrameSchema) else "video"

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Widths of the features that make up a frame."""
        return tuple(width for _, width in self.schema.features)

    def matches(self, kind: RecordKind) -> bool:
        """Returns whether a file with this first record has the format."""
        if self.recognize is not None:
            return self.recognize(kind)
        features = kind.lists if self.level == "frame" else kind.context
        return {name for name, _ in self.schema.features} <= features.keys()


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
    if not isinstance(format.schema, FrameSchema | VideoSchema):
        raise ArgumentError(
            f"schema: expected a FrameSchema or a VideoSchema, found {format.schema!r}"
        )
    for name in ("open", "recognize"):
        value = getattr(format, name)
        if not callable(value) and (name, value) != ("recognize", None):
            raise ArgumentError(f"{name}: expected a function, found {value!r}")
    if not isinstance(format.frame_seconds, int | float) or not 0 < format.frame_seconds < math.inf:
        raise ArgumentError(f"frame_seconds: expected above 0, found {format.frame_seconds!r}")
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
        id_key: The feature with the id.
    """

    name: str
    id_key: str = ""


@dataclass(frozen=True)
class Found:
    """The files of a collection, all with labels and of one format.

    Attributes:
        format: The format; its schema has these files' name of the id.
        paths: The files.
        rated: The files of every series in which a record has ratings.
        folders: The folders to search for tables.
        notes: Lines on what was left out.
    """

    format: Format
    paths: tuple[str, ...]
    rated: tuple[str, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]

    def beside(self, *names: str) -> Path | None:
        """Returns the first existing file of these names beside the records or above them."""
        places = (folder / name for folder in self.folders for name in names)
        return next((place for place in places if place.is_file()), None)


def look(data: str | os.PathLike[str], on_error: OnError = "raise") -> Found:
    """Finds the records in a folder, glob or file, and chooses those of one format.

    Of a series, files whose names differ only in the shard's number, a sample is read, and all if
    the sample is not uniform. All records are searched for ratings, until the first in a series.

    Args:
        data: A folder, a glob or a file.
        on_error: "raise" an error at a damaged record, or "skip" it.

    Raises:
        FileNotFoundError: There is nothing at ``data``.
        pyseg.errors.DataError: There is no labelled record of a known format.
        pyseg.errors.RecordError: A file cannot be read as TFRecords.
    """
    # A glob such as folder/* also matches the tables beside the records.
    files = find_shards(data)
    records = [path for path in files if named_as_records(path) or is_record_file(path)] or files
    kinds, rated, unusable = _sort(records, on_error)
    order = list(_FORMATS)
    chosen = max(
        (kind for kind in kinds if kind.name in _FORMATS),
        key=lambda kind: (len(kinds[kind]), order.index(kind.name)),
        default=None,
    )
    if chosen is None:
        expected = ", ".join(format.title for format in reversed(_FORMATS.values()))
        unusable = unusable or f"{kinds[Kind('empty')][0]} has no records"
        raise DataError(f"{os.fspath(data)}: expected {expected}; {unusable}")
    of_kind = set(kinds[chosen])
    used = tuple(path for path in records if path in of_kind)
    near = [Path(data)] if os.path.isdir(data) else []
    near += [folder for path in used for folder in list(Path(path).parents)[:2]]
    return Found(
        format=_with_schema(_FORMATS[chosen.name], id_key=chosen.id_key),
        paths=used,
        rated=tuple(path for path in used if path in rated),
        folders=tuple(dict.fromkeys(near)),
        notes=tuple(
            _left_out(chosen, kind, paths) for kind, paths in kinds.items() if kind != chosen
        ),
    )


def _sort(paths: Sequence[str], on_error: OnError) -> tuple[dict[Kind, list[str]], set[str], str]:
    """Groups files by kind.

    Returns:
        The files of each kind; those of every series in which a record has ratings; and an example
        of an unusable file, for a message.
    """
    kinds: dict[Kind, list[str]] = {}
    rated: set[str] = set()
    unusable = ""

    def empty(path: str) -> bool:
        return os.path.isfile(path) and not os.path.getsize(path)

    for path in filter(empty, paths):
        kinds.setdefault(Kind("empty"), []).append(path)
    for series in _series([path for path in paths if not empty(path)]):
        seen = {path: sniff(path, on_error) for path in series[:: -(-len(series) // _SNIFFED)]}
        if len({_kind(kind) for kind in seen.values()}) > 1 or None in seen.values():
            seen = {path: sniff(path, on_error) for path in series}
        first = seen[series[0]]
        unlabelled = [p for p in series if _kind(seen.get(p, first)).name == "unlabelled"]
        labelled = set(_holding("labels", unlabelled))
        of_path = {path: _kind(seen.get(path, first), path in labelled) for path in series}
        for path, kind in of_path.items():
            kinds.setdefault(kind, []).append(path)
            if kind.name == "unknown":
                unusable = unusable or f"{path} holds {_describe(seen.get(path, first))}"
            if kind.name == "unlabelled":
                unusable = unusable or f"{path} has no labels"
        frames = [path for path, kind in of_path.items() if _may_be_rated(kind)]
        known = any(kind and "segment_labels" in kind.context for kind in seen.values())
        if frames and (known or _holding("segment_labels", frames, first=True)):
            rated.update(frames)
    return kinds, rated, unusable


def _may_be_rated(kind: Kind) -> bool:
    """Returns whether records of a kind may contain ratings, instead of a table."""
    format = _FORMATS.get(kind.name)
    return format is not None and format.level == "frame" and not format.takes_labels


def _with_schema(format: Format, **changes: Any) -> Format:
    """Returns a format whose schema has other keys."""
    return replace(format, schema=replace(format.schema, **changes))


def _left_out(chosen: Kind, kind: Kind, paths: Sequence[str]) -> str:
    number = f"{len(paths)} file" + "s" * (len(paths) > 1)
    what = _USELESS.get(kind.name) or _FORMATS[kind.name].title
    if kind.name == chosen.name:
        what += f" with ids called {kind.id_key} instead of {chosen.id_key}"
    return f"left out {number} of {what}: {paths[0]}" + ", ..." * (len(paths) > 1)


def _series(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yields lists of paths that differ only in the number of the shard, the end of the name."""
    series: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        stem = re.sub(r"-of-\d+", "", name).split(".")[0]
        match = re.fullmatch(r"(.*?)(\d+|[0-9A-Za-z]{2})", stem)
        series.setdefault((folder, match[1] if match else stem), []).append(path)
    yield from series.values()


def _holding(name: str, paths: Sequence[str], *, first: bool = False) -> list[str]:
    """Returns the files with a context feature in some record; with ``first``, only one."""
    found: list[str] = []
    if not paths:
        return found
    with (
        contextlib.closing(
            map_in_order(lambda path: find_features(path, [name]), paths, _THREADS)
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


def _recognize(kind: RecordKind) -> Format | None:
    """Returns the format of a file with this first record, if known."""
    return next((format for format in reversed(_FORMATS.values()) if format.matches(kind)), None)


def _kind(kind: RecordKind | None, labelled: bool = False) -> Kind:
    """Returns the kind of a file, from its first record and whether others have labels."""
    if kind is None:
        return Kind("empty")
    format = _recognize(kind)
    if format is None:
        return Kind("unknown")
    if labelled or "labels" in kind.context:
        return Kind(format.name, _id_key(kind, format.schema.id_key))
    return Kind("unlabelled")


def _describe(kind: RecordKind | None) -> str:
    if kind is None:
        return "no records"
    names = [f"{name} ({feature.size})" for name, feature in (kind.context | kind.lists).items()]
    return "the features " + ", ".join(names) if names else "no features"


def frame_format(feature_sizes: Sequence[int], paths: Sequence[str] = ()) -> Format:
    """Returns the frame format for a model of such features.

    Args:
        feature_sizes: Widths of the features that make up a frame.
        paths: Files whose first record decides if its format is known; else the widths decide.

    Returns:
        The format, with a schema that reads records with labels or without.

    Raises:
        pyseg.errors.ArgumentError: No format has such features.
        pyseg.errors.RecordError: A file cannot be read.

    Example:
        >>> frame_format((1024, 128)).schema.features
        (('rgb', 1024), ('audio', 128))
    """
    sizes = tuple(feature_sizes)
    known = [format for format in _FORMATS.values() if format.level == "frame"]
    first = next((kind for path in paths if (kind := sniff(path, "skip")) is not None), None)
    met = None if first is None else _recognize(first)
    for format in ([] if met is None else [met]) + known:
        if format.level == "frame" and format.feature_sizes == sizes:
            return _with_schema(format, labels_key=None)
    expected = " or ".join(str(format.feature_sizes) for format in known)
    raise ArgumentError(f"feature_sizes: expected {expected}, found {sizes}")
