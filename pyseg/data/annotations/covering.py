"""Ratings of segments from ratings of intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pyseg.data.annotations.interval import Interval, merge_events
from pyseg.data.features import FeatureSet

_ROUNDING = 1e-6  # seconds


class SegmentRatings(NamedTuple):
    """The rated pairs of a segment and a class of one video.

    Attributes:
        scores: The score by (number of the segment, name of the class), in their order.
        conflicts: The pairs that intervals of several scores cover, whose score is the mean.
        too_short: The number of intervals that help to cover no segment.
    """

    scores: Mapping[tuple[int, str], float]
    conflicts: list[tuple[int, str]]
    too_short: int


def rate_segments(
    intervals: Iterable[Interval],
    num_frames: int,
    features: FeatureSet,
    complete: Iterable[str] = (),
) -> SegmentRatings:
    """Returns the ratings of a video's segments from those of its intervals.

    A segment is rated for a class if intervals of the class with the same score cover at least half
    of it. Where those of several scores do, the score is their mean. All else is not rated, and
    neither is what only intervals without a score cover.

    Args:
        intervals: The intervals of one video.
        num_frames: The frames of the video; the last segment may be shorter.
        features: The duration of a frame, and the frames of a segment.
        complete: Classes of which every segment is rated: 0 where no interval covers it.

    Example:
        >>> features = FeatureSet((("clip", 512),))  # segments of 5 seconds
        >>> found = rate_segments([Interval("a", 1.0, 8.0, "dog")], 12, features, ["dog"])
        >>> found.scores
        {(0, 'dog'): 1.0, (1, 'dog'): 1.0, (2, 'dog'): 0.0}
    """
    by_class: dict[str, dict[float, list[tuple[float, float]]]] = {name: {} for name in complete}
    undecided: dict[str, list[tuple[float, float]]] = {}
    for _, start, end, name, score, _ in intervals:
        if score is None:
            undecided.setdefault(name, []).append((start, end))
        else:
            by_class.setdefault(name, {}).setdefault(score, []).append((start, end))
    segments = -(-num_frames // features.segment_size)
    scores: dict[tuple[int, str], float] = {}
    conflicts = []
    too_short = 0
    completed = {*complete}
    for name, by_score in by_class.items():
        found: dict[int, list[float]] = {}
        for score in sorted(by_score):
            covered = {*_covered(by_score[score], num_frames, features)}
            too_short += sum(
                covered.isdisjoint(_touched(*interval, features)) for interval in by_score[score]
            )
            for segment in covered:
                found.setdefault(segment, []).append(score)
        if name in completed:
            unrated = {*_covered(undecided.get(name, ()), num_frames, features)}
            for segment in {*range(segments)} - unrated:
                found.setdefault(segment, [0.0])
        for segment, several in sorted(found.items()):
            scores[segment, name] = sum(several) / len(several)
            if len(several) > 1:
                conflicts.append((segment, name))
    return SegmentRatings(dict(sorted(scores.items())), conflicts, too_short)


def _touched(start: float, end: float, features: FeatureSet) -> range:
    """Returns the segments of which an interval has a part."""
    step = features.segment_seconds
    return range(int(start / step), int((end - _ROUNDING) / step) + 1)


def _covered(
    intervals: Iterable[tuple[float, float]], num_frames: int, features: FeatureSet
) -> Iterator[int]:
    """Yields the segments of which the union of intervals covers at least half."""
    step, end_of_video = features.segment_seconds, num_frames * features.frame_seconds
    seconds: dict[int, float] = {}
    for start, end in merge_events(intervals):
        end = min(end, end_of_video)
        for segment in _touched(start, end, features):
            overlap = min(end, (segment + 1) * step) - max(start, segment * step)
            seconds[segment] = seconds.get(segment, 0.0) + overlap
    for segment, covered in seconds.items():
        length = min(step, end_of_video - segment * step)
        if covered >= length / 2 - _ROUNDING:
            yield segment
