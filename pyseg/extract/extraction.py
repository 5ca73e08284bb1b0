"""Features of many videos, and the collection that they become."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyseg import _cli, distributed
from pyseg._files import remove_unfinished
from pyseg._progress import Progress
from pyseg._text import counted
from pyseg.backbones import Backbone, make_backbone
from pyseg.data import Annotations, FeatureSet, SourceVideo, WriteReport, write_collection
from pyseg.data import features as feature_set
from pyseg.data.importing import RANGE_VIDEOS
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError
from pyseg.extract import manifest
from pyseg.extract.config import ExtractConfig
from pyseg.extract.features import check_backbone
from pyseg.extract.manifest import Outcome, Video
from pyseg.extract.parts import Parts
from pyseg.extract.snapshot import Snapshot
from pyseg.extract.worker import StoppedError, Work, run_here, run_processes

_LOG = logging.getLogger("pyseg")

Ranges = tuple[tuple[float, float], ...]

_PARTS = "parts"
_CORES_PER_PROCESS = 4
_BLOCK = 4096  # rows read at once
_BYTES_PER_SECOND = 125_000  # of video, where no file states its duration


@dataclass
class Extraction:
    """What `extract` has written.

    Attributes:
        features: The features of the collection.
        outcomes: The videos, and what became of each.
        report: What the collection has.
    """

    features: FeatureSet
    outcomes: list[tuple[Video, Outcome]]
    report: WriteReport


def extract(config: ExtractConfig) -> Extraction:
    """Computes the features of videos and writes them as a collection.

    Raises:
        pyseg.errors.UserError: The options do not fit what is there.
        pyseg.errors.DataError: No video can be read, or annotations do not fit the videos.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: The user asked to stop; finished videos are kept.
    """
    from pyseg.video import find_videos

    with _cli.path_option("videos"):
        videos = manifest.list_videos(find_videos(config.videos))
    annotations = Annotations.read(
        [video.id for video in videos],
        config.ratings,
        config.labels,
        complete=config.complete,
        format=config.format,
        fps=config.annotation_fps,
        elan_classes=config.elan_classes,
        paths={video.id: video.path for video in videos},
    )
    if config.ratings is not None and not any(annotations.intervals.values()):
        notes = (*annotations.notes, f"{config.ratings} has no ratings")
        annotations = replace(annotations, notes=notes)
    out, device = Path(config.out), distributed.pick_device(config.device)
    _cli.check_out_folder("out", out)
    _check_other_collection(out)
    backbone = make_backbone(config.backbone, config.weights, device=device)
    features = _describe(config, backbone)
    _check_times(config, videos, annotations, features)
    parts = Parts(out / _PARTS, backbone.width)
    like = None if config.like is None else _ranges_like(Path(config.like), features, backbone)
    fixed = backbone.ranges
    del backbone  # every process makes its own
    created = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with parts.owned(_request(config, features)):
            before = Snapshot.read(out)
            ranges = like or _ranges_before(out, parts) or fixed
            outcomes = _compute(config, videos, _work(config, features, parts, str(device)))
            remove_unfinished(parts.folder)
            manifest.write_manifest(out, outcomes, videos)
            good = [video for video in videos if outcomes[video.key].status != "skipped"]
            if not good:
                reason = outcomes[videos[0].key].reason
                raise DataError(f"none of {counted(len(videos), 'video')} can be read: {reason}")
            features = _with_ranges(features, ranges, parts, good)
            features.write(parts.features)  # `out` has no such file while it is replaced
            report = _write(out, features, parts, good, annotations)
            report.notes += before.losses(Snapshot.read(out), out)
            if not config.keep_parts:
                parts.remove()
    finally:
        if created and not os.listdir(out):
            out.rmdir()
    return Extraction(features, [(v, outcomes[v.key]) for v in videos], report)


def _check_times(
    config: ExtractConfig, videos: Sequence[Video], known: Annotations, features: FeatureSet
) -> None:
    """Checks that ratings are within the times that the files state, before anything is decoded.

    Stated times may be short: what is less than a segment too late is checked when the frames have
    been counted.

    Raises:
        pyseg.errors.DataError: One is not; the message names file and line.
    """
    from pyseg.video import probe

    rated = [video for video in videos if known.intervals.get(video.id)]
    lengths, late = {}, {}
    with Progress("looking at videos", "videos", len(rated)) as bar:
        for video in rated:
            bar.update()
            try:
                duration = probe(video.path).duration
            except (DataError, OSError):  # told of when it is decoded
                continue
            if duration:
                seconds = min(duration, config.max_seconds or duration)
                lengths[video.id] = math.ceil(seconds * config.fps)
                end = seconds + features.segment_seconds
                some = known.intervals[video.id]
                late[video.id] = [interval for interval in some if interval.end > end]
    replace(known, intervals=late).within(lengths, features)


def _check_other_collection(out: Path) -> None:
    """Checks that the collection in the folder, if any, can be continued.

    Raises:
        pyseg.errors.UserError: It is of another origin, or its parts were not kept.
    """
    if (out / feature_set.FILE).exists() and not (out / _PARTS).exists():
        raise UserError(
            f"--out {out}: expected a new folder or one with {_PARTS} to continue from, found a "
            "finished collection; delete it or choose another folder"
        )


def _describe(config: ExtractConfig, backbone: Backbone) -> FeatureSet:
    """Returns the features of the collection, without ranges."""
    rule = "row k: the frame on display at k * frame_seconds after the first frame"
    if config.fast:
        rule += ", or a neighbor of it"
    if config.max_seconds is not None:
        rule += f", of the first {config.max_seconds:g} s"
    return FeatureSet(
        backbone.features,
        frame_seconds=1 / config.fps,
        segment_size=config.segment_size,
        backbone=backbone.description,
        sampling=rule,
    )


def _ranges_like(folder: Path, features: FeatureSet, backbone: Backbone) -> Ranges:
    """Returns the ranges of a run or a collection in a folder, whose features are the same.

    Raises:
        pyseg.errors.ArgumentError: Its features are others.
        pyseg.errors.MissingFileError: The folder has no features.json.
    """
    path = folder / feature_set.FILE
    if not path.is_file():
        raise MissingFileError(f"like: expected a folder with {feature_set.FILE}, found {folder}")
    other = FeatureSet.read(path)
    try:
        # The network of imported features is unknown.
        check_backbone(
            backbone, replace(other, backbone=other.backbone or backbone.description, ranges=())
        )
    except ArgumentError as error:
        raise ArgumentError(f"like: {path}: {error}") from error
    times = [
        f"--fps {1 / one.frame_seconds:.10g} --segment_seconds {one.segment_seconds:.10g}"
        for one in (other, features)
    ]
    if times[0] != times[1]:
        raise ArgumentError(f"like: expected {times[0]} as in {path}, found {times[1]}")
    return other.ranges


def _ranges_before(out: Path, parts: Parts) -> Ranges | None:
    """Returns the ranges that the collection has, or had before it was being replaced, if any.

    Raises:
        pyseg.errors.DataError: Its description cannot be read.
    """
    for path in (out / feature_set.FILE, parts.features):
        if path.exists():
            return FeatureSet.read(path).ranges
    return None


def _request(config: ExtractConfig, features: FeatureSet) -> dict[str, Any]:
    """Returns everything but the videos that determines the parts."""
    assert features.backbone is not None
    return {
        "backbone": features.backbone.sha256,
        "preprocessing": features.backbone.preprocessing,
        "features": features.features,
        "fps": config.fps,
        "fast": config.fast,
        "max_seconds": config.max_seconds,
    }


def _work(config: ExtractConfig, features: FeatureSet, parts: Parts, device: str) -> Work:
    """Returns what is to be done with each video."""
    cores = len(os.sched_getaffinity(0))
    # One of the cores decodes while the others compute.
    threads = cores // max(1, _processes(config)) - 1
    return Work(
        config.backbone,
        config.weights,
        device,
        config.fps,
        config.batch_size,
        config.fast,
        config.max_seconds,
        parts,
        threads=max(1, min(threads, torch.get_num_threads())),
        expected=features,
    )


def _processes(config: ExtractConfig) -> int:
    if config.processes is not None:
        return config.processes
    return max(1, len(os.sched_getaffinity(0)) // _CORES_PER_PROCESS)


def _compute(config: ExtractConfig, videos: Sequence[Video], work: Work) -> dict[str, Outcome]:
    """Computes the features that are not there; returns what became of every video, by its key."""
    outcomes: dict[str, Outcome] = {}
    for video in videos:
        if (outcome := work.parts.find(video)) is not None:
            outcomes[video.key] = outcome
        elif work.parts.has(video):
            _LOG.info("%s has changed: its features are computed again", video.path)
    todo = [video for video in videos if video.key not in outcomes]
    if outcomes:
        _LOG.info("%d of %d videos are done already", len(outcomes), len(videos))
    seconds = _durations(videos, outcomes, config.max_seconds)
    done = sum(seconds[key] for key in outcomes)
    count = _processes(config)
    with (
        _cli.stop_requests() as stopped,
        Progress("extract", "seconds of video", sum(seconds.values()), initial=done) as bar,
    ):
        bar.note(videos=f"{len(outcomes)} of {len(videos)}")
        hear = _Ledger(outcomes, bar, seconds)
        run = partial(run_processes, count=count) if count else run_here
        try:
            run(todo, work, stopped, hear)
        except StoppedError:
            manifest.write_manifest(work.parts.folder.parent, outcomes, videos)
            bar.write(
                f"stopped after {counted(len(outcomes), 'video')}: the same command continues"
            )
            raise KeyboardInterrupt from None
    return outcomes


def _durations(
    videos: Sequence[Video], outcomes: Mapping[str, Outcome], most: float | None
) -> dict[str, int]:
    """Returns the seconds of every video, by its key, for the progress.

    The work is roughly in proportion to them, but not to the bytes of the files. Those of a file
    that states no duration are estimated from its size, at the mean bit rate of the others.

    Args:
        videos: The videos.
        outcomes: What became of the finished ones, by their keys.
        most: The seconds of a video that are used, at most; None: all.
    """
    from pyseg.video import stated_duration

    known: dict[str, float | None] = {}
    with Progress("durations", "videos", len(videos)) as bar:
        for video in videos:
            if (outcome := outcomes.get(video.key)) is not None:
                known[video.key] = outcome.duration
            else:
                try:
                    known[video.key] = stated_duration(video.path)
                except (DataError, OSError):  # its process will say so
                    known[video.key] = 0.0
            bar.update()
    stated = [(seconds, v.size) for v in videos if (seconds := known[v.key])]
    size = sum(size for _, size in stated)
    rate = sum(seconds for seconds, _ in stated) / size if size else 1 / _BYTES_PER_SECOND
    most = math.inf if most is None else most
    found = {v.key: v.size * rate if (s := known[v.key]) is None else s for v in videos}
    return {key: round(min(seconds, most)) for key, seconds in found.items()}


class _Ledger:
    """Notes what became of every video, and shows the progress.

    Args:
        outcomes: What became of every video, by its key.
        bar: The progress, in seconds of video.
        seconds: Those of every video, by its key.
    """

    def __init__(
        self, outcomes: dict[str, Outcome], bar: Progress, seconds: Mapping[str, int]
    ) -> None:
        self._outcomes, self._bar, self._seconds = outcomes, bar, seconds
        self._done: dict[str, int] = {}  # seconds, by the key of the video

    def __call__(self, video: Video, said: float | Outcome) -> None:
        if isinstance(said, Outcome):
            self._outcomes[video.key] = said
            self._bar.note(videos=f"{len(self._outcomes)} of {len(self._seconds)}")
        done = round(self._seconds[video.key] * (said if isinstance(said, float) else 1.0))
        before = self._done.get(video.key, 0)
        if done > before:
            self._done[video.key] = done
            self._bar.update(done - before)


def _with_ranges(
    features: FeatureSet,
    ranges: Ranges | None,
    parts: Parts,
    videos: Sequence[Video],
) -> FeatureSet:
    """Returns the features with the given ranges, or else those of the values of the first videos.

    They depend on the videos alone, not on the order in which these were done.
    """
    if ranges is not None:
        return replace(features, ranges=ranges)

    def samples() -> Iterator[npt.NDArray[np.float32]]:
        for video in videos[:RANGE_VIDEOS]:
            rows = parts.rows(video)
            for first in range(0, len(rows), _BLOCK):
                yield rows[first : first + _BLOCK]

    return features.with_ranges_of(samples())


def _write(
    out: Path, features: FeatureSet, parts: Parts, videos: Sequence[Video], known: Annotations
) -> WriteReport:
    """Writes the collection."""
    ends = np.cumsum(features.feature_sizes)[:-1]

    def read(video: Video) -> list[npt.NDArray[np.float32]]:
        return np.split(parts.rows(video), ends, axis=1)

    sources = [
        SourceVideo(video.id, len(parts.rows(video)), partial(read, video), f"{video.mtime}")
        for video in videos
    ]
    ids = {video.id for video in videos}
    lost = {*known.intervals, *known.labels} - ids
    notes = known.notes
    if lost:
        unread = counted(len(lost), "video")
        notes = (*notes, f"left out the annotations of {unread} that cannot be read")
    kept = replace(
        known,
        intervals={id: some for id, some in known.intervals.items() if id in ids},
        labels={id: some for id, some in known.labels.items() if id in ids},
        notes=notes,
    )
    return write_collection(out, features, sources, kept, replace=True)
