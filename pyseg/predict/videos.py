"""The scores of single videos over time, of records or a video file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyseg import _cli
from pyseg._text import counted
from pyseg.data.segments import SegmentBlock, read_segments
from pyseg.errors import DataError, UserError
from pyseg.extract.manifest import Video, list_videos
from pyseg.predict.classes import event_thresholds, probabilities
from pyseg.predict.config import PLACE, PredictConfig
from pyseg.predict.predictor import Predictor, read_frames
from pyseg.predict.scorer import Scorer
from pyseg.runs import open_data
from pyseg.timeline import Event, Rating, Timeline, clock
from pyseg.timeline.events import ON, per_class
from pyseg.video import find_videos

_LOG = logging.getLogger("pyseg")
_MOST_EVENTS = 50  # to print


def timelines(
    scorer: Scorer, shards: Sequence[str], ratings: Mapping[str, Sequence[Rating]]
) -> Iterator[Timeline]:
    """Yields the scores of some videos over time, in the order of the records.

    They have a window for each segment of a submission, and the classes that the scorer scores; the
    rated ones that the model knows are there in addition.

    Args:
        scorer: Scores their segments.
        shards: The records to look for them in.
        ratings: The ratings of every requested video, by id.

    Raises:
        pyseg.errors.RecordError: A record is damaged.
    """
    left = set(ratings)
    blocks = read_segments(
        shards, scorer.schema, 1, keep=left.__contains__, on_error=scorer.config.on_error
    )
    while left and (block := next(blocks, None)) is not None:
        [video] = block.ids
        left.remove(video)
        yield _timeline(scorer, block, ratings[video])


def _timeline(scorer: Scorer, block: SegmentBlock, ratings: Sequence[Rating]) -> Timeline:
    """Returns the scores over time of the only video of a block."""
    classes = scorer.classes
    # Ratings may be of any class of the model, not only of those in a submission.
    rated = {rating.number for rating in ratings} & classes.column.keys()
    numbers = [*classes.numbers, *sorted(rated - set(classes.numbers))]
    columns = classes.columns(numbers)
    scores = probabilities(scorer.logits(block), scorer.calibration).cpu().numpy()
    frame_seconds = scorer.features.frame_seconds
    return Timeline(
        title=block.ids[0],
        starts=block.starts * frame_seconds,
        ends=(block.starts + block.num_frames) * frame_seconds,
        scores=scores[:, columns],
        names=classes.names(numbers),
        numbers=numbers,
        ratings=ratings,
        segment_seconds=scorer.features.segment_seconds,
        on=event_thresholds(scorer.calibration, columns),
    )


def timeline(config: PredictConfig) -> Timeline:
    """Scores the video of `config.video` over time, prints its events, and writes the exports.

    Raises:
        pyseg.errors.UserError: There is no such video, or the options do not fit the run.
        pyseg.errors.RecordError: A record is damaged.
    """
    assert config.video is not None
    scorer = Scorer(config)
    ratings = {config.video: _ratings(scorer, config.video)}
    found = next(timelines(scorer, scorer.shards, ratings), None)
    if found is None:
        shards = counted(len(scorer.shards), "shard")
        raise UserError(f"--video {config.video}: no such video in {shards}")
    _report(found, config)
    return found


def check_outputs(config: PredictConfig, **read: str | None) -> None:
    """Checks before any work that the files of scores over time can be written.

    Args:
        config: The options.
        read: Options with input files, from which they must differ.

    Raises:
        pyseg.errors.UserError: One cannot; or several videos would be written to the same file.
        pyseg.errors.MissingFileError: There is no such video.
    """
    videos = _video_files(config)
    outputs = [("timeline", config.timeline)] if config.timeline else []
    for name, path in [*outputs, *(("export", path) for path in config.export)]:
        if len(videos) > 1 and PLACE not in path:
            example = Path(path).with_stem(f"{Path(path).stem}-{PLACE}")
            raise UserError(
                f"--{name} {path}: expected {PLACE} in the name, as in {example}, which stands for "
                f"the name of each of the {len(videos)} videos"
            )
    sources: list[tuple[PredictConfig, str | None]]
    sources = [(config.for_video(video.id), video.path) for video in videos]
    for own, source in sources or [(config, None)]:
        _cli.check_out("timeline", own.timeline, video_file=source, **read)
        for path in own.export:
            _cli.check_out("export", path, timeline=own.timeline, video_file=source, **read)


def _video_files(config: PredictConfig) -> list[Video]:
    """Returns the video files that the options name, each with a name of its own."""
    with _cli.path_option("video_file"):
        return list_videos(find_videos(config.video_file)) if config.video_file else []


def file_timelines(config: PredictConfig) -> Iterator[Timeline]:
    """Scores video files, or the frames of a video, over time.

    Prints the events of each, and writes its exports, before it is yielded.

    Raises:
        pyseg.errors.UserError: The options do not fit the run, or a package is missing.
        pyseg.errors.DataError: A file holds no video that can be decoded, or no such frames.
        OSError: A file cannot be read.
    """
    predictor = Predictor(
        config.run,
        classes=config.classes,
        backbone=config.backbone,
        weights=config.weights,
        batch_size=config.batch_size,
        calibrate=config.calibrate,
        device=config.device,
        precision=config.precision,
        tf32=config.tf32,
    )
    predictor.run.warn_unfinished()
    if config.frames_file is not None:
        with _cli.option("frames_file", config.frames_file):
            frames = read_frames(config.frames_file, predictor.features)
            found = predictor.predict(frames, title=Path(config.frames_file).stem)
        _report(found, config)
        yield found
    videos = _video_files(config)
    skipped = []
    for video in videos:
        try:
            with _cli.option_group(""):  # of the options backbone and weights
                found = predictor.predict(video.path)
        except (DataError, OSError) as error:
            if config.on_error == "raise":
                raise
            skipped.append(f"{error}")
            continue
        if len(videos) > 1:
            print(f"{video.path}:")
        _report(found, config.for_video(video.id))
        yield found
    if skipped:
        print(f"{len(skipped)} of {counted(len(videos), 'video')} could not be read:")
        for reason in skipped:
            print(f"  {reason}")


def _report(timeline: Timeline, config: PredictConfig) -> None:
    """Prints the events, and writes the picture or page of the best classes and the exports."""
    on = per_class("on", timeline.on if config.on is None else config.on, timeline.names, ON)
    off = None if config.off is None else np.minimum(on, config.off)
    timeline = replace(timeline, on=on, off=off)
    if config.timeline is not None:
        timeline.best(config.timeline_classes).save(config.timeline)
    for path in config.export:
        timeline.save(path)
    events = timeline.events()
    for line in _event_lines(events):
        print(line)
    if not events:
        reached = "its threshold" if config.on is None else f"{config.on:g}"
        print(f"no class reaches {reached}; the highest scores are:")
        best = timeline.best(3)
        for column in range(len(best.numbers)):
            print(_peak(best, column))
    if config.timeline is not None:
        print(f"timeline: {config.timeline}")
    for path in config.export:
        print(f"export: {path}")


def _event_lines(events: Sequence[Event]) -> Iterator[str]:
    """Yields the lines of a table of events."""
    shown = events[:_MOST_EVENTS]
    tenths = any(time % 1 for event in shown for time in event[:2])
    times = [[clock(time, tenths=tenths) for time in event[:2]] for event in shown]
    width = max((len(text) for pair in times for text in pair), default=0)
    for (start, end), event in zip(times, shown, strict=True):
        yield f"{start:>{width}} to {end:>{width}}  {event.peak:.2f}  {event.label}"
    if more := len(events) - len(shown):
        yield f"... and {more} more, which --export events.csv lists"


def _peak(timeline: Timeline, column: int) -> str:
    """Returns a line on the highest score of a class."""
    number, name = timeline.numbers[column], timeline.names[column]
    named = name if name == str(number) else f"{number} {name}"
    return f"{timeline.peaks[column]:.3f} at {timeline.peak_clock(column)}  {named}"


def _ratings(scorer: Scorer, video: str) -> list[Rating]:
    """Returns the ratings of a video; none where the records are not labeled.

    Nor where the run's vocabulary or labels need a secret, which no option of this command gives.
    """
    try:
        collection = open_data(scorer.trained, scorer.config.data)
        rated = collection.segments("all", cache=False, keep=video.__eq__, rank=0, world_size=1)
    except DataError:
        return []
    except UserError as error:
        _LOG.warning("%s, of another command; the ratings are left out", error)
        return []
    return [
        scorer.rating(example.id, number, score > 0.5)
        for example in (() if rated is None else rated)
        for number, score in zip(example.classes.tolist(), example.scores.tolist(), strict=True)
    ]
