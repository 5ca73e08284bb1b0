"""Results over several seeds, and their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyseg.reproduce.comparisons import Variant


@dataclass(frozen=True)
class Outcome:
    """The results of a variant's runs.

    Attributes:
        variant: The variant.
        values: One value per seed for every measure.
        seconds: The mean duration of a run.
    """

    variant: Variant
    values: dict[str, list[float]]
    seconds: float


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: The mean.
        error: Its standard error; NaN for a single value.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Returns the estimate of some values.

        Example:
            >>> Estimate.of([1.0, 2.0, 3.0])
            Estimate(mean=2.0, error=0.5773502691896258)
        """
        several = len(values) > 1
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if several else math.nan
        return cls(float(np.mean(values)), error)

    @property
    def is_clear(self) -> bool:
        """Whether it is more than two standard errors away from 0."""
        return abs(self.mean) > 2 * self.error

    def text(self, form: str) -> str:
        """Formats it as ``0.353 ± 0.004``; `form` is the format of a number."""
        error = "" if math.isnan(self.error) else f" ± {self.error:{form.replace('+', '')}}"
        return f"{self.mean:{form}}{error}"


def differences(outcomes: Sequence[Outcome], measure: str) -> list[Estimate]:
    """Returns the differences from the first outcome, paired by seed."""
    first = np.array(outcomes[0].values[measure])
    return [Estimate.of(np.array(outcome.values[measure]) - first) for outcome in outcomes]


def gaps_closed(outcomes: Sequence[Outcome], measure: str) -> list[Estimate] | None:
    """Returns the share of the gap between the first and the last outcome that each one closes.

    Shares are paired by seed. None if these two do not clearly differ, so that there is no gap.
    With a single seed any difference counts as clear.
    """
    gap = differences(outcomes, measure)[-1]
    if gap.mean == 0 or not (gap.is_clear or math.isnan(gap.error)):
        return None
    values = np.array([outcome.values[measure] for outcome in outcomes])
    return [Estimate.of(row) for row in (values - values[0]) / (values[-1] - values[0])]
