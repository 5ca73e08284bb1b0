"""Questions to a rater, and the answers so far; see `Question` and `Answers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg.data.annotations.answers import RANDOM as RANDOM


class Question(NamedTuple):
    """A question: does a segment show a class?

    Attributes:
        segment: The number of the segment in the pool.
        label: The number of the class in the pool.
        reason: Why it is asked: `RANDOM`, or the name of the strategy that chose it.
    """

    segment: int
    label: int
    reason: str


@dataclass(frozen=True, eq=False)
class Answers:
    """The answered questions about the segments of a pool, each pair at most once.

    Attributes:
        segments: (A,) int64, numbers of segments.
        labels: (A,) int64, numbers of classes.
        scores: (A,) float32, 1 for yes and 0 for no; between them where raters disagree.
        random: (A,) bool, whether the question was drawn at random.
    """

    segments: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    random: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Returns the number of answers A."""
        return len(self.segments)

    def take(self, chosen: npt.NDArray[Any] | slice) -> Answers:
        """Returns some answers, by their numbers, a mask or a slice."""
        return Answers(
            self.segments[chosen], self.labels[chosen], self.scores[chosen], self.random[chosen]
        )
