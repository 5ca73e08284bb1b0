"""Features of any network and ratings of any tool to a collection: ``python -m pyseg.data import``.

See :func:`import_features`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg import _cli
from pyseg._containers import Shapes
from pyseg._extras import requires
from pyseg._paths import path_text
from pyseg._progress import Progress
from pyseg._remote import version
from pyseg._table import Table
from pyseg._text import counted
from pyseg._urls import is_url
from pyseg.data.annotations import AnnotationFormat, Annotations, ElanClasses
from pyseg.data.annotations.reading import Paths
from pyseg.data.features import FeatureSet
from pyseg.data.importing_files import SUFFIXES, Found, Source, in_numpy, in_tar
from pyseg.data.records import OnError, check_on_error, why_not_an_id
from pyseg.data.rerating import rate_collection
from pyseg.data.shards import named_as_records
from pyseg.data.writing import SourceVideo, WriteReport, write_collection
from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.ops.frames import RANGE

RANGE_VIDEOS = 100
"""The videos whose values determine the ranges of the features."""

_SUFFIXES = (*SUFFIXES, ".tar", ".parquet")
_KINDS = ", ".join(_SUFFIXES[:-1]) + f" or {_SUFFIXES[-1]}"
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")
_OF_FILES = ("fps", "segment_seconds", "ranges", "feature_name")  # options
_SHOWN_CLASSES = 20  # in the table of a command
_CLOSE = 1e-6  # relative: segments are whole numbers of frames, as far as a decimal can say

Ranges = Mapping[str, Sequence[float]] | Sequence[float]


@dataclass
class ImportReport(WriteReport):
    """What `import_features` has written.

    Attributes:
        features: The features of the collection.
        range_notes: Lines on where the ranges of the features come from.
    """

    features: FeatureSet | None = None
    range_notes: list[str] = field(default_factory=list)


def import_features(
    features: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ratings: Paths | None = None,
    labels: str | os.PathLike[str] | None = None,
    fps: float = 1.0,
    segment_seconds: float = 5.0,
    complete: str | Sequence[str] = (),
    format: AnnotationFormat | None = None,
    annotation_fps: float | None = None,
    elan_classes: ElanClasses = "tiers",
    ranges: Ranges | None = None,
    feature_name: str = "features",
    on_error: OnError = "raise",
) -> ImportReport:
    r"""Writes features from files and the ratings of their videos as a collection.

    Every ``.npy`` file has the features (T, N) of one video; an ``.npz`` file has several features
    (T, N_i) by name, with the same T. The name of the file without its suffix is the id of the
    video, with the subfolders before it. A ``.tar`` file has samples as WebDataset's: the members
    ``ID.npy``, ``ID.npz``, or one ``ID.NAME.npy`` for each feature; an id has no dot after its last
    slash, and members that are no NumPy files are ignored. A ``.parquet`` file has columns of
    lists, which are features by name: in a row for each frame lists of N_i numbers, with the id in
    the column ``video`` or ``id``, the rows of a video together, in the order of ``frame`` or
    ``time`` if there is such a column; in a row for each video lists of such lists. Other columns
    are ignored. A folder may have files of several kinds.

    Values may be float16, float32 or float64; they are stored as bytes, of which a feature's least
    and greatest value in the first 100 videos are the ends. Values of type uint8 are taken for
    stored bytes, whose range is [-2, 2] unless ``ranges`` says otherwise. What is written is
    described by `write_collection`.

    Args:
        features: The folder of the files.
        out: The folder to write.
        ratings: Rated intervals, see `read_annotations`.
        labels: A table of the labels of whole videos, with the columns video and class.
        fps: Frames a second of the features.
        segment_seconds: The duration of a segment, a multiple of a frame's.
        complete: Classes of which every segment without an interval is rated 0, in videos with any
            rating: names, or "all". All else that nobody rated stays unrated.
        format: The format of ``ratings``; default: each file's content decides.
        annotation_fps: Frames a second, which Label Studio's numbers of frames need.
        elan_classes: Whether the names of the "tiers" or the "values" of annotations are ELAN's
            classes.
        ranges: (low, high) of all features or by the name of a feature; default: see above.
        feature_name: The name of the feature in ``.npy`` files and ``ID.npy`` of tar files.
        on_error: "raise" at a file that cannot be read or an annotation that fits no video, or
            "skip" and report it.

    Raises:
        pyseg.errors.DataError: A file is malformed, or does not fit the others; the message names
            it. Or ``out`` has a collection.
        pyseg.errors.MissingFileError: There is no such folder, or no file in it.
        pyseg.errors.ArgumentError: An argument is out of range.
        pyseg.errors.UserError: Another process is writing to the folder, or a Parquet file needs
            pyarrow.
        OSError: A file cannot be read or written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("garden", "street"):
        ...     np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(20, 8)))
        >>> table = folder / "ratings.csv"
        >>> _ = table.write_text("video,start,end,class,score\ngarden,0,10,dog,1\n")
        >>> report = import_features(folder, folder / "clips", ratings=table, feature_name="clip")
        >>> report.videos, report.segments, report.rated["dog"]
        (2, 2, 2)
        >>> FeatureSet.read(folder / "clips" / "features.json").features
        (('clip', 8),)
    """
    check_on_error(on_error)
    folder, out = Path(path_text(features, "features")), path_text(out, "out")
    if os.path.realpath(out) == os.path.realpath(folder):
        raise ArgumentError(f"out: expected another folder than that of the features, found {out}")
    frames = frames_of_a_segment(fps, segment_seconds)
    videos, left_out = _look(folder, feature_name, on_error)
    names = list(videos[0].shapes)
    annotations = Annotations.read(
        [video.source.id for video in videos],
        ratings,
        labels,
        complete=complete,
        format=format,
        fps=annotation_fps,
        elan_classes=elan_classes,
        on_error=on_error,
    )
    sizes = tuple((name, shape[1]) for name, (shape, _) in videos[0].shapes.items())
    described = FeatureSet(sizes, frame_seconds=1 / fps, segment_size=frames)
    described, range_notes = _with_ranges(described, videos, ranges, on_error)
    sources = [video.written(names) for video in videos]
    written = write_collection(out, described, sources, annotations, on_error=on_error)
    report = ImportReport(**vars(written), features=described, range_notes=range_notes)
    report.left_out = left_out + report.left_out
    return report


def holds_collection(folder: Path) -> bool:
    """Returns whether a folder has the records of a collection, not files to import.

    A collection may have such files besides, and a folder of these may have one that was made of
    them in a folder of its own.
    """
    if not folder.is_dir():
        return False
    if any(named_as_records(path.name) for path in folder.iterdir()):
        return True
    paths = list(folder.rglob("*"))
    has_files = any(path.suffix in _SUFFIXES and _is_meant(path, folder) for path in paths)
    return not has_files and any(named_as_records(path.name) for path in paths)


def frames_of_a_segment(fps: float, segment_seconds: float) -> int:
    """Returns the frames of a segment.

    Raises:
        pyseg.errors.ArgumentError: They are no whole number, or an argument is out of range.

    Example:
        >>> frames_of_a_segment(2.0, 2.5)
        5
    """
    _cli.check_above("fps", fps, 0)
    _cli.check_above("segment_seconds", segment_seconds, 0)
    frames = segment_seconds * fps
    whole = max(1, round(frames))
    if abs(frames - whole) > _CLOSE * whole:
        raise ArgumentError(
            f"segment_seconds: expected a multiple of a frame of {1 / fps:g} s, such as "
            f"{whole / fps:g}, found {segment_seconds:g}"
        )
    return whole


class _Video(NamedTuple):
    """The features of a video, which fit together.

    Attributes:
        source: Where they are.
        shapes: Shape and type by the name of the feature.
    """

    source: Source
    shapes: Shapes

    def widths(self) -> dict[str, tuple[int, str]]:
        """Returns the width of each feature, and whether it has bytes or numbers."""
        return {
            name: (shape[1], "bytes" if dtype == np.uint8 else "numbers")
            for name, (shape, dtype) in self.shapes.items()
        }

    def read(self, names: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Returns the arrays of features: bytes as stored, or finite float32 values.

        Raises:
            pyseg.errors.DataError: It cannot be read, or a value is not finite.
        """
        arrays = self.source.read()
        found = []
        for name in names:
            array = arrays.get(name)
            if array is None or array.shape != self.shapes[name][0]:
                raise DataError(
                    f"{self.source.name}: expected the same arrays as before, found others"
                )
            if array.dtype != np.uint8:
                with np.errstate(over="ignore"):
                    array = array.astype(np.float32)
                if not (finite := np.isfinite(array)).all():
                    row, column = np.argwhere(~finite)[0]
                    raise DataError(
                        f"{self.source.name}: expected finite numbers, found {array[row, column]} "
                        f"in row {row}, column {column} of {name}"
                    )
            found.append(array)
        return found

    def written(self, names: Sequence[str]) -> SourceVideo:
        """Returns what `write_collection` takes."""
        stamp = version(os.fspath(self.source.path))
        [num_frames, *_] = {shape[0] for shape, _ in self.shapes.values()}
        return SourceVideo(self.source.id, num_frames, functools.partial(self.read, names), stamp)


def _look(folder: Path, feature_name: str, on_error: OnError) -> tuple[list[_Video], list[str]]:
    """Returns the videos in a folder, which fit together, and why others are left out.

    Raises:
        pyseg.errors.DataError: One cannot be read, or does not fit the others.
        pyseg.errors.MissingFileError: There is no file.
    """
    if not folder.is_dir():
        there = "a file" if folder.exists() else "none"
        raise MissingFileError(f"{folder}: expected a folder of {_KINDS} files, found {there}")
    paths = sorted(path for path in folder.rglob("*") if _is_meant(path, folder))
    if not paths:
        raise MissingFileError(f"{folder}: no file in this folder ends in {_KINDS}")
    videos: dict[str, _Video] = {}
    left_out: list[str] = []

    @contextlib.contextmanager
    def may_fail() -> Iterator[None]:
        try:
            yield
        except (DataError, OSError) as error:
            if on_error == "raise":
                raise
            left_out.append(str(error))

    with Progress("looking at features", "files", len(paths)) as bar:
        for path in paths:
            bar.update()
            found = Found([], [])
            with may_fail():
                found = _in_file(path, folder, feature_name)
            left_out += found.left_out
            for source in found.sources:
                with may_fail():
                    video = _Video(source, _shapes(source, videos))
                    _compare(video, next(iter(videos.values()), video))
                    videos[source.id] = video
    if not videos:
        reason = left_out[0] if left_out else f"{paths[0]} has none"
        raise DataError(f"{folder}: expected a video, found none; {reason}")
    return list(videos.values()), left_out


def _is_meant(path: Path, folder: Path) -> bool:
    """Returns whether a file is to be imported; one that is compressed is meant, and refused."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    named = path.suffix in _SUFFIXES or _COMPRESSED.search(path.name) is not None
    return named and not hidden and path.is_file()


def _in_file(path: Path, folder: Path, feature_name: str) -> Found:
    """Returns the videos of a file.

    Raises:
        pyseg.errors.DataError: It is damaged, or compressed.
        pyseg.errors.UserError: A package that reads it is missing.
    """
    if path.suffix == ".parquet":
        with requires("tables", "a .parquet file"):
            from pyseg.data.importing_parquet import in_parquet
        return in_parquet(path)
    if path.suffix == ".tar":
        return in_tar(path, feature_name)
    if path.suffix in SUFFIXES:
        return in_numpy(path, folder, feature_name)
    raise DataError(
        f"{path}: expected a tar file that is not compressed, found {path.suffix}: decompress it "
        "to a .tar file, or move it elsewhere"
    )


def _shapes(source: Source, videos: Mapping[str, _Video]) -> Shapes:
    """Returns shape and type of the features of a video that is not among others, by name."""
    name = source.name
    if (wrong := why_not_an_id(source.id)) is not None:
        raise DataError(f"{name}: the id of the video: {wrong}")
    if (same := videos.get(source.id)) is not None:
        torn = source.path == same.source.path and f"{source.path}, rows " in name
        hint = "; the rows of a video have to follow each other" if torn else ""
        raise DataError(
            f"{name}: expected every video once, found {source.id!r} in {same.source.name}, too"
            f"{hint}"
        )
    shapes = source.shapes()
    if not shapes:
        raise DataError(f"{name}: expected arrays of features, found none")
    for feature, (shape, dtype) in shapes.items():
        if len(shape) != 2 or 0 in shape:
            raise DataError(
                f"{name}: expected features of shape (T, N), found {feature} of shape {shape}"
            )
        if dtype != np.uint8 and (dtype.kind != "f" or dtype.itemsize > 8):
            raise DataError(
                f"{name}: expected float16, float32, float64 or uint8, found {dtype} in {feature}"
            )
    lengths = {feature: shape[0] for feature, (shape, _) in shapes.items()}
    if len({*lengths.values()}) > 1:
        raise DataError(f"{name}: expected as many frames of every feature, found {lengths}")
    return shapes


def _compare(video: _Video, first: _Video) -> None:
    """Checks that a video has the same features as the first one."""
    expected, found = first.widths(), video.widths()
    if expected != found:
        raise DataError(
            f"{video.source.name}: expected {_described(expected)} as in {first.source.name}, "
            f"found {_described(found)}"
        )


def _described(features: Mapping[str, tuple[int, str]]) -> str:
    return ", ".join(f"{name} ({width} {kind})" for name, (width, kind) in features.items())


def _with_ranges(
    features: FeatureSet, videos: Sequence[_Video], ranges: Ranges | None, on_error: OnError
) -> tuple[FeatureSet, list[str]]:
    """Returns the features with the ranges of their values, and lines on where these come from."""
    given = _given_ranges(ranges, [name for name, _ in features.features])
    types = {name: dtype for name, (_, dtype) in videos[0].shapes.items()}
    measured = [
        name for name, _ in features.features if name not in given and types[name] != np.uint8
    ]
    several = min(RANGE_VIDEOS, len(videos))
    if measured:
        some = tuple((name, width) for name, width in features.features if name in measured)
        samples = _samples(videos[:RANGE_VIDEOS], measured, on_error)
        found = FeatureSet(some).with_ranges_of(samples).ranges
        given = {**given, **dict(zip(measured, found, strict=True))}
    chosen, notes = [], []
    for name, _ in features.features:
        low, high = given.get(name, RANGE)
        chosen.append((low, high))
        source = "as given"
        if name in measured:
            source = f"the least and the greatest value of the first {counted(several, 'video')}"
        elif name not in given:
            source = "the default for bytes, see ranges"
        notes.append(f"{name}: range {low:.6g} to {high:.6g}, {source}")
    return replace(features, ranges=tuple(chosen)), notes


def _samples(
    videos: Sequence[_Video], names: Sequence[str], on_error: OnError
) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the values of some videos, the features side by side."""
    with Progress("finding ranges", "videos", len(videos)) as bar:
        for video in videos:
            bar.update()
            try:
                yield np.concatenate(video.read(names), axis=1)
            except (DataError, OSError):
                if on_error == "raise":
                    raise


def _given_ranges(ranges: Ranges | None, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns the given ranges by the names of features.

    Raises:
        pyseg.errors.ArgumentError: A name is unknown, or a range is no pair of numbers.
    """
    if ranges is None:
        return {}
    by_name = ranges if isinstance(ranges, Mapping) else dict.fromkeys(names, ranges)
    found = {}
    for name, pair in by_name.items():
        if name not in names:
            raise ArgumentError(f"ranges: expected the features {', '.join(names)}, found {name!r}")
        try:
            low, high = (float(number) for number in pair)
        except (TypeError, ValueError):
            raise ArgumentError(f"ranges: expected low and high, found {pair!r}") from None
        found[name] = (low, high)
    return found


@dataclass
class ImportConfig:
    """Which features and ratings to import, and what they are.

    Args:
        features: A folder of .npy files (T, N) or .npz files (named arrays (T, N)), one a video;
            the name of the file without its suffix is the id of the video. Or of .tar files of
            WebDataset with such members, or of .parquet files with a row a frame or a video. Or a
            collection, whose frames are written with more ratings.
        out: The folder to write.
        ratings: Rated intervals: a file, a folder or a glob. A table video,start,end,class,score;
            VIA's "Only Temporal Segments as CSV"; Label Studio's JSON; Audacity's labels; or .eaf
            files of ELAN.
        labels: The labels of whole videos: a table video,class.
        fps: Frames a second of the features.
        segment_seconds: The duration of a segment, the unit of ratings and predictions.
        complete: Classes, as a,b or all, of which every segment without an interval is rated 0 in
            videos with any rating; may be repeated, for names with commas; default: what nobody
            rated stays unrated.
        format: The format of --ratings; default: each file's content decides.
        annotation_fps: Frames a second of the videos; Label Studio counts frames.
        elan_classes: Whether ELAN's tiers or the values of its annotations are the classes.
        ranges: The least and the greatest value of a feature, as low,high of all features or
            name:low,high;name:low,high; default: those of the first 100 videos, for bytes -2,2.
        feature_name: The name of the feature in .npy files, also of .tar files.
        on_error: "raise" at a file that cannot be read or a rating that fits no video, or "skip"
            and report it.

    Raises:
        ValueError: A value is out of its range.
    """

    features: str
    out: str
    ratings: str | None = None
    labels: str | None = None
    fps: float = 1.0
    segment_seconds: float = 5.0
    complete: list[str] = field(default_factory=list, metadata={"repeated": True})
    format: AnnotationFormat | None = None
    annotation_fps: float | None = None
    elan_classes: ElanClasses = "tiers"
    ranges: str | None = field(default=None, metadata={"word": True})
    feature_name: str = field(default="features", metadata={"word": True})
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        frames_of_a_segment(self.fps, self.segment_seconds)
        _cli.check_above("annotation_fps", self.annotation_fps, 0)
        self.parsed_ranges()

    def check_of_collection(self) -> None:
        """Checks the options where the features are a collection, which says what they are.

        Raises:
            pyseg.errors.ArgumentError: One is given that has no use.
        """
        for option in fields(self):
            given = getattr(self, option.name)
            if option.name in _OF_FILES and given != option.default:
                raise ArgumentError(
                    f"{option.name}: expected none with --features {self.features}, a collection "
                    f"that says what its features are, found {given}"
                )
        if self.ratings is None and self.labels is None:
            raise ArgumentError(
                f"ratings: expected --ratings or --labels with --features {self.features}, a "
                "collection, found none"
            )

    def parsed_ranges(self) -> Ranges | None:
        """Returns the numbers in ``ranges``."""
        if self.ranges is None:
            return None
        pairs: dict[str, list[float]] = {}
        parts = self.ranges.split(";")
        for part in parts:
            name, _, numbers = part.rpartition(":")
            with contextlib.suppress(ValueError):
                low, high = map(float, numbers.split(","))
                pairs[name.strip()] = [low, high]
        if len(pairs) != len(parts) or ("" in pairs and len(parts) > 1):
            raise ArgumentError(
                f"ranges: expected low,high or name:low,high;name:low,high, found {self.ranges!r}"
            )
        return pairs.get("", pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.data import``.

    Raises:
        pyseg.errors.UserError: An option is out of range.
        pyseg.errors.DataError: See `import_features`.
    """
    parser = _cli.make_parser(
        ImportConfig,
        "pyseg.data import",
        "Writes features from NumPy, tar or Parquet files, or the frames of a collection, and the "
        "ratings of their videos as a collection that --data takes.",
    )
    config = _cli.parse(parser, ImportConfig, argv)
    _cli.check_out_folder("out", Path(config.out))
    with _cli.option_group(""), _says_how_to_continue():
        report, notes = _run(config)
    for line in itertools.chain(notes, report.lines(), class_table(report)):
        print(line)
    if not report.rated and config.labels is None:
        print(f"written to {config.out}; it has no ratings to train on")
        return
    print(f"written to {config.out}; next:")
    print(_cli.follow_up(f"pyseg.train --data {shlex.quote(config.out)} --model linear"))


def _run(config: ImportConfig) -> tuple[WriteReport, Sequence[str]]:
    """Returns what was written, and lines on the ranges of the features."""
    common: dict[str, Any] = {
        "ratings": config.ratings,
        "labels": config.labels,
        "complete": config.complete,
        "format": config.format,
        "annotation_fps": config.annotation_fps,
        "elan_classes": config.elan_classes,
        "on_error": config.on_error,
    }
    if is_url(config.features) or holds_collection(Path(config.features)):
        config.check_of_collection()
        return rate_collection(config.features, config.out, **common), ()
    report = import_features(
        config.features,
        config.out,
        fps=config.fps,
        segment_seconds=config.segment_seconds,
        ranges=config.parsed_ranges(),
        feature_name=config.feature_name,
        **common,
    )
    return report, report.range_notes


@contextlib.contextmanager
def _says_how_to_continue() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: the same command continues")
        raise


def class_table(report: WriteReport) -> Iterable[str]:
    """Returns the lines of a table of the classes that most segments are rated for."""
    if not report.rated:
        return []
    most = report.rated.most_common(_SHOWN_CLASSES)
    rows = [[name, str(count), str(report.positive[name])] for name, count in most]
    table = Table(["class", "rated segments", "positive"], rows, numeric=(1, 2))
    more = len(report.rated) - len(most)
    return [table.markdown(), *([f"and {counted(more, 'more class')}"] if more else [])]
