"""Results over several seeds, and their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pyseg.reproduce.comparisons import Variant

_RESAMPLES = 1000


@dataclass(frozen=True)
class Outcome:
    """The results of a variant's runs.

    Attributes:
        variant: The variant.
        classes: (seeds, C) for every measure: its value for each class; NaN for those that do not
            count.
        seconds: The mean duration of a run.
    """

    variant: Variant
    classes: Mapping[str, np.ndarray]
    seconds: float

    def values(self, measure: str) -> np.ndarray:
        """Returns the value of a measure for every seed, the mean over its classes, (seeds,)."""
        return np.nanmean(self.classes[measure], axis=1)


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: The mean.
        error: Its standard error over seeds; NaN for a single one.
        class_error: Its standard error over classes: that of the same seeds with classes drawn
            anew, with replacement (the bootstrap); NaN if it is not estimated.
    """

    mean: float
    error: float
    class_error: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Estimate:
        """Returns the estimate of some values.

        Example:
            >>> Estimate.of([1.0, 2.0, 3.0])
            Estimate(mean=2.0, error=0.5773502691896258, class_error=nan)
        """
        several = len(values) > 1
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if several else math.nan
        return cls(float(np.mean(values)), error)

    @property
    def is_clear(self) -> bool:
        """Whether it is more than two standard errors, of seeds and classes, away from 0."""
        errors = [error for error in (self.error, self.class_error) if not math.isnan(error)]
        return bool(errors) and abs(self.mean) > 2 * math.hypot(*errors)

    def text(self, form: str) -> str:
        """Formats it as ``+0.035 ± 0.001 ± 0.004``; `form` is the format of a number."""
        unsigned = form.replace("+", "")
        errors = (self.error, self.class_error)
        shown = [f" ± {error:{unsigned}}" for error in errors if not math.isnan(error)]
        return f"{self.mean:{form}}{''.join(shown)}"


def differences(outcomes: Sequence[Outcome], measure: str) -> list[Estimate]:
    """Returns the differences from the first outcome, paired by seed and by class."""
    first = outcomes[0]
    found = []
    for outcome in outcomes:
        estimate = Estimate.of(outcome.values(measure) - first.values(measure))
        resampled = _resampled(outcome.classes[measure] - first.classes[measure])
        found.append(estimate._replace(class_error=float(resampled.std(ddof=1))))
    return found


def gaps_closed(outcomes: Sequence[Outcome], measure: str) -> list[Estimate] | None:
    """Returns the share of the gap between the first and the last outcome that each one closes.

    Shares are paired by seed. None if these two do not clearly differ, so that there is no gap.
    With a single seed any difference counts as clear.
    """
    gap = differences(outcomes, measure)[-1]
    if gap.mean == 0 or not (gap.is_clear or math.isnan(gap.error)):
        return None
    values = np.array([outcome.values(measure) for outcome in outcomes])
    own = [outcome.classes[measure] for outcome in outcomes]
    resampled = np.array([_resampled(each - own[0]) for each in own])
    found = []
    for row, drawn in zip(values, resampled, strict=True):
        estimate = Estimate.of((row - values[0]) / (values[-1] - values[0]))
        found.append(estimate._replace(class_error=float((drawn / resampled[-1]).std(ddof=1))))
    return found


def _resampled(values: np.ndarray) -> np.ndarray:
    """Returns the mean of values (seeds, C) with classes drawn anew, (1000,): always the same."""
    count = values.shape[1]
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _RESAMPLES)
    sums = drawn @ np.nan_to_num(values).T
    return (sums / np.maximum(drawn @ np.isfinite(values).T, 1)).mean(1)
