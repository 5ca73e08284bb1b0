"""What the files of a collection hold, told by their content.

See :func:`look` and :func:`frame_schema`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pyseg._progress import Progress
from pyseg.data import audioset
from pyseg.data.records import (
    FrameSchema,
    OnError,
    RecordKind,
    VideoSchema,
    find_features,
    is_record_file,
    sniff,
)
from pyseg.data.shards import find_shards, named_as_records
from pyseg.errors import ArgumentError, DataError

_SNIFFED = 16  # files of a series whose first record is looked at
_THREADS = 8  # that wait for the disk at a time
_ID_KEYS = ("id", "video_id")  # the releases of 2016 and 2017 have the second
_SCHEMAS: dict[str, FrameSchema | VideoSchema] = {
    "audioset": audioset.SCHEMA,
    "frame": FrameSchema(),
    "video": VideoSchema(),
}
_TITLES = {
    "audioset": "AudioSet frames (audio_embedding)",
    "frame": "YouTube-8M frames (rgb, audio)",
    "video": "YouTube-8M mean features (mean_rgb, mean_audio)",
    "unlabelled": "records without labels",
    "empty": "no records",
    "unknown": "other records",
}


class Kind(NamedTuple):
    """What a file holds.

    Attributes:
        name: "audioset", "frame" or "video"; or why it is of no use: "unlabelled", "empty" or
            "unknown".
        id_key: The feature with the id.
    """

    name: str
    id_key: str = ""


@dataclass(frozen=True)
class Found:
    """The files of a collection: all of one kind, with labels.

    Attributes:
        kind: "audioset", "frame" or "video".
        schema: What the features are called.
        paths: The files.
        rated: Those of a series in which a record has ratings.
        folders: Where tables are looked for.
        notes: What was left out, a line each.
    """

    kind: str
    schema: FrameSchema | VideoSchema
    paths: tuple[str, ...]
    rated: tuple[str, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]

    def beside(self, *names: str) -> Path | None:
        """Returns the first file of one of the names that lies beside the records or above them."""
        places = (folder / name for folder in self.folders for name in names)
        return next((place for place in places if place.is_file()), None)


def look(data: str | os.PathLike[str], on_error: OnError = "raise") -> Found:
    """Looks at what the records in a folder, glob or file hold, and chooses those of one kind.

    Of files whose names differ only in the number of the shard some are looked at, unless these
    differ. Ratings are searched for in all records, but no further than to the first of a series.

    Args:
        data: A folder, a glob or a file.
        on_error: "raise", or "skip" to look past damaged records.

    Raises:
        FileNotFoundError: There is nothing at ``data``.
        pyseg.errors.DataError: There are no labelled records of a known kind.
        pyseg.errors.RecordError: A file cannot be read as TFRecords.
    """
    # A glob such as folder/* takes in the tables beside the records.
    files = find_shards(data)
    records = [path for path in files if named_as_records(path) or is_record_file(path)] or files
    kinds: dict[Kind, list[str]] = {}
    rated: set[str] = set()
    strange = ""

    def empty(path: str) -> bool:
        return os.path.isfile(path) and not os.path.getsize(path)

    for path in filter(empty, records):
        kinds.setdefault(Kind("empty"), []).append(path)
    for paths in _series([path for path in records if not empty(path)]):
        seen = {path: sniff(path, on_error) for path in paths[:: -(-len(paths) // _SNIFFED)]}
        if len({_kind(kind) for kind in seen.values()}) > 1 or None in seen.values():
            seen = {path: sniff(path, on_error) for path in paths}
        first = seen[paths[0]]
        unlabelled = [p for p in paths if _kind(seen.get(p, first)).name == "unlabelled"]
        labelled = set(_holding("labels", unlabelled))
        for path in paths:
            kind = _kind(seen.get(path, first), path in labelled)
            kinds.setdefault(kind, []).append(path)
            if kind.name == "unknown":
                strange = strange or f"{path} holds {_describe(seen.get(path, first))}"
            if kind.name == "unlabelled":
                strange = strange or f"{path} has no labels"
        frames = [p for p in paths if _kind(seen.get(p, first), p in labelled).name == "frame"]
        known = any(kind and "segment_labels" in kind.context for kind in seen.values())
        if frames and (known or _holding("segment_labels", frames, first=True)):
            rated.update(frames)
    chosen = max(
        (kind for kind in kinds if kind.name in _SCHEMAS),
        key=lambda kind: (len(kinds[kind]), -list(_SCHEMAS).index(kind.name)),
        default=None,
    )
    if chosen is None:
        expected = ", ".join(_TITLES[name] for name in _SCHEMAS)
        strange = strange or f"{kinds[Kind('empty')][0]} has no records"
        raise DataError(f"{os.fspath(data)}: expected {expected}; {strange}")
    of_kind = set(kinds[chosen])
    used = tuple(path for path in records if path in of_kind)
    near = [Path(data)] if os.path.isdir(data) else []
    near += [folder for path in used for folder in list(Path(path).parents)[:2]]
    return Found(
        kind=chosen.name,
        schema=replace(_SCHEMAS[chosen.name], id_key=chosen.id_key),
        paths=used,
        rated=tuple(path for path in used if path in rated),
        folders=tuple(dict.fromkeys(near)),
        notes=tuple(
            _left_out(chosen, kind, paths) for kind, paths in kinds.items() if kind != chosen
        ),
    )


def _left_out(chosen: Kind, kind: Kind, paths: Sequence[str]) -> str:
    number = f"{len(paths)} file" + "s" * (len(paths) > 1)
    what = _TITLES[kind.name]
    if kind.name == chosen.name:
        what += f" with ids called {kind.id_key} instead of {chosen.id_key}"
    return f"left out {number} of {what}: {paths[0]}" + ", ..." * (len(paths) > 1)


def _series(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yields the paths that differ only in the number of the shard, the end of the name."""
    series: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        stem = re.sub(r"-of-\d+", "", name).split(".")[0]
        match = re.fullmatch(r"(.*?)(\d+|[0-9A-Za-z]{2})", stem)
        series.setdefault((folder, match[1] if match else stem), []).append(path)
    yield from series.values()


def _holding(name: str, paths: Sequence[str], *, first: bool = False) -> list[str]:
    """Returns the files with a context feature in some record; of ``first``, only one of them."""
    found: list[str] = []
    if not paths:
        return found
    pool = ThreadPoolExecutor(min(_THREADS, len(paths)))
    try:
        searched = pool.map(lambda path: find_features(path, [name]), paths)
        with Progress(f"looking for {name}", "shards", len(paths)) as bar:
            for path, names in zip(paths, searched, strict=True):
                bar.update()
                if names:
                    found.append(path)
                    if first:
                        break
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _id_key(kind: RecordKind | None, default: str) -> str:
    has = () if kind is None else kind.context
    return next((key for key in (default, *_ID_KEYS) if key in has), default)


def id_key(path: str, default: str = "id") -> str:
    """Returns which of the known features with an id a file has; the default if none or all.

    Raises:
        pyseg.errors.RecordError: The file cannot be read.
    """
    return _id_key(sniff(path, "skip"), default)


def _kind(kind: RecordKind | None, labelled: bool = False) -> Kind:
    """Returns what a file holds, by its first record and whether others have labels."""
    if kind is None:
        return Kind("empty")
    for name, schema in _SCHEMAS.items():
        features = kind.context if isinstance(schema, VideoSchema) else kind.lists
        if {feature for feature, _ in schema.features} <= features.keys():
            if labelled or "labels" in kind.context:
                return Kind(name, _id_key(kind, schema.id_key))
            return Kind("unlabelled")
    return Kind("unknown")


def _describe(kind: RecordKind | None) -> str:
    if kind is None:
        return "no records"
    names = [f"{name} ({feature.size})" for name, feature in (kind.context | kind.lists).items()]
    return "the features " + ", ".join(names) if names else "no features"


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
    known = [schema for schema in _SCHEMAS.values() if isinstance(schema, FrameSchema)]
    for schema in known:
        if tuple(feature_sizes) == tuple(width for _, width in schema.features):
            return replace(schema, labels_key=None)
    sizes = " or ".join(str(tuple(width for _, width in schema.features)) for schema in known[::-1])
    raise ArgumentError(f"feature_sizes: expected {sizes}, found {tuple(feature_sizes)}")


def frame_seconds(schema: FrameSchema) -> float:
    """Returns the length of a frame of a known collection.

    Example:
        >>> frame_seconds(FrameSchema())
        1.0
    """
    return audioset.FRAME_SECONDS if schema.features == audioset.SCHEMA.features else 1.0
