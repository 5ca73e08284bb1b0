"""What the answers so far say about the segments of a pool; see `Ledger`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyseg.rate.answers import Answer, Settled, lines_that_stand, settle
from pyseg.rate.pool import Pool
from pyseg.rate.questions import RANDOM, Answers
from pyseg.rate.views import Verdict

Pair = tuple[int, int]
"""A segment and a class, by their numbers in a pool."""


@dataclass(frozen=True)
class Known:
    """What the lines of a file of answers say about a pool.

    Attributes:
        answers: What all raters together say, in the order of their first lines, after the ratings
            of the data.
        asked: The pairs that somebody has answered or skipped, and those that the data rate.
        own: What the rater says.
        last: The rater's last line that was not taken back.
        yes: (C,) int64, the pairs of each class that raters answered with yes.
        no: (C,) int64, likewise with no.
        skipped: (C,) int64, the pairs of each class that were only skipped.
        rated: The pairs that only the data rate.
        ties: Where as many raters say yes as no.
        elsewhere: The lines about other videos, segments or classes.
    """

    answers: Answers
    asked: frozenset[Pair]
    own: dict[Pair, Verdict]
    last: Answer | None
    yes: npt.NDArray[np.int64]
    no: npt.NDArray[np.int64]
    skipped: npt.NDArray[np.int64]
    rated: int
    ties: tuple[Settled, ...]
    elsewhere: int


class Ledger:
    """Finds what the lines of a file of answers say about a pool.

    A line whose times are those of no segment is about all segments that it covers by half, as when
    ratings are imported.

    Args:
        pool: The segments.
        rater: The rater whose answers are told apart.
        rated: The ratings of the data, which the rater is not asked about.
    """

    def __init__(self, pool: Pool, rater: str, rated: Answers | None = None) -> None:
        self._pool, self._rater, self._rated = pool, rater, _of(rated)
        self._labels = {name: label for label, name in enumerate(pool.class_names)}
        self._places: dict[tuple[str, float, float, str], list[Pair]] = {}
        self._videos = {id: video for video, id in enumerate(pool.ids)}

    def pairs(self, answer: Answer | Settled) -> list[Pair]:
        """Returns the pairs of segment and class that a line is about."""
        question = answer.video, answer.start, answer.end, answer.name
        if question not in self._places:
            self._places[question] = self._find(*question)
        return self._places[question]

    def _find(self, video: str, start: float, end: float, name: str) -> list[Pair]:
        label, number = self._labels.get(name), self._videos.get(video)
        if label is None or number is None:
            return []
        if (segment := self._pool.find(video, start, end)) is not None:
            return [(segment, label)]
        first, last = np.searchsorted(self._pool.videos, [number, number + 1]).tolist()
        times = [self._pool.times(segment) for segment in range(first, last)]
        return [
            (first + place, label)
            for place, (begin, stop) in enumerate(times)
            if min(end, stop) - max(start, begin) >= (stop - begin) / 2
        ]

    def read(self, rows: Sequence[Answer]) -> Known:
        """Returns what the lines of a file say, in their order."""
        standing = lines_that_stand(rows)
        own: dict[Pair, Verdict] = {}
        for row in standing.get(self._rater, ()):
            own |= dict.fromkeys(self.pairs(row), verdict_of(row.score))
        said = {pair for lines in standing.values() for row in lines for pair in self.pairs(row)}
        scores: dict[Pair, tuple[float, bool]] = {}
        settled = settle(rows)
        for found in settled:
            for pair in self.pairs(found):
                scores.pop(pair, None)  # to be behind those that came before
                scores[pair] = found.score, found.reason == RANDOM
        every = self._rated | scores
        classes = len(self._pool.class_names)
        by_score = np.array([(pair[1], score) for pair, (score, _) in scores.items()])
        labels, values = by_score.reshape(-1, 2).T
        skipped = [label for segment, label in said - scores.keys()]

        def count(chosen: Iterable[float]) -> npt.NDArray[np.int64]:
            return np.bincount(np.array(list(chosen), np.int64), minlength=classes)

        return Known(
            answers=_answers(every),
            asked=frozenset(said | every.keys()),
            own=own,
            last=next(reversed(standing.get(self._rater, [])), None),
            yes=count(labels[values > 0.5]),
            no=count(labels[values < 0.5]),
            skipped=count(skipped),
            rated=len(every) - len(scores),
            ties=tuple(found for found in settled if found.tied and self.pairs(found)),
            elsewhere=sum(not self.pairs(row) for lines in standing.values() for row in lines),
        )


def verdict_of(score: float | None) -> Verdict:
    """Returns the answer that a score in the file stands for."""
    if score is None:
        return "skip"
    return "yes" if score > 0.5 else "no"


def _of(answers: Answers | None) -> dict[Pair, tuple[float, bool]]:
    if answers is None:
        return {}
    pairs = zip(answers.segments.tolist(), answers.labels.tolist(), strict=True)
    said = zip(answers.scores.tolist(), answers.random.tolist(), strict=True)
    return dict(zip(pairs, said, strict=True))


def _answers(scores: dict[Pair, tuple[float, bool]]) -> Answers:
    return Answers(
        np.array([segment for segment, _ in scores], np.int64),
        np.array([label for _, label in scores], np.int64),
        np.array([score for score, _ in scores.values()], np.float32),
        np.array([random for _, random in scores.values()], np.bool_),
    )
