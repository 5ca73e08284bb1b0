"""The scores of single videos over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pyseg.data.segments import SegmentBlock, read_segments
from pyseg.errors import DataError, UserError
from pyseg.predict.config import PredictConfig
from pyseg.predict.scorer import Scorer
from pyseg.runs import open_data
from pyseg.timeline import Rating, Timeline, clock


def timelines(
    scorer: Scorer, shards: Sequence[str], ratings: Mapping[str, Sequence[Rating]], top: int
) -> Iterator[Timeline]:
    """Yields the scores of some videos over time, in the order of the records.

    Args:
        scorer: Scores their segments.
        shards: The records to look for them in.
        ratings: The ratings of every requested video, by id.
        top: Classes to show, those with the highest scores; rated classes are shown in addition.

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
        yield _timeline(scorer, block, ratings[video], top)


def _timeline(scorer: Scorer, block: SegmentBlock, ratings: Sequence[Rating], top: int) -> Timeline:
    """Returns the scores over time of the only video of a block."""
    probabilities = scorer.logits(block).sigmoid().cpu().numpy()
    column = scorer.column
    peaks = {number: probabilities[:, column[number]].max() for number in scorer.classes}
    shown = sorted(peaks, key=lambda number: -peaks[number])[:top]
    # Ratings may be of any class of the model, not only of those in a submission.
    rated = {rating.number for rating in ratings}
    shown += sorted(rated & column.keys() - set(shown))
    columns = [column[number] for number in shown]
    names = scorer.model.config.class_names
    frame_seconds = scorer.format.frame_seconds
    return Timeline(
        title=block.ids[0],
        starts=block.starts * frame_seconds,
        ends=(block.starts + block.num_frames) * frame_seconds,
        scores=probabilities[:, columns],
        numbers=shown,
        names=[str(n) for n in shown] if names is None else [names[c] for c in columns],
        ratings=ratings,
        segment_seconds=scorer.schema.segment_size * frame_seconds,
    )


def timeline(config: PredictConfig) -> Path:
    """Draws the scores of one video over time; returns the path of the picture.

    Raises:
        pyseg.errors.UserError: There is no such video, or the options do not fit the run.
        pyseg.errors.RecordError: A record is damaged.
    """
    assert config.video is not None
    assert config.timeline is not None
    scorer = Scorer(config)
    ratings = {config.video: _ratings(scorer, config.video)}
    drawn = next(timelines(scorer, scorer.shards, ratings, config.timeline_classes), None)
    if drawn is None:
        raise UserError(f"--video {config.video}: no such video in {len(scorer.shards)} shards")
    drawn.save(config.timeline)
    for column, number in enumerate(drawn.numbers[: config.timeline_classes]):
        scores = drawn.scores[:, column]
        best = int(scores.argmax())
        name = drawn.names[column]
        named = name if name == str(number) else f"{number} {name}"
        print(f"{scores[best]:.3f} at {clock(drawn.starts[best])}  {named}")
    print(f"timeline: {config.timeline}")
    return Path(config.timeline)


def _ratings(scorer: Scorer, video: str) -> list[Rating]:
    """Returns the ratings of a video; none where the records are not labeled."""
    try:
        collection = open_data(scorer.trained, scorer.config.data)
        rated = collection.segments("all", cache=False, keep=video.__eq__, rank=0, world_size=1)
    except DataError:
        return []
    return [
        scorer.rating(example.id, number, score > 0.5)
        for example in (() if rated is None else rated)
        for number, score in zip(example.classes.tolist(), example.scores.tolist(), strict=True)
    ]
