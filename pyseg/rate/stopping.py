"""Says when further answers no longer pay; see `Stopping`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg.calibration import Calibration
from pyseg.rate.learner import Beliefs, Learner
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers

LEAST_ANSWERS = 30
"""The answers of a class with which a gain can be estimated."""

LEAST_OF_EACH = 5
"""The answers yes, and the answers no, that this also takes."""

HOPELESS = 100
"""The answers of a class after which it counts as absent if hardly any of them was yes."""

_SEGMENTS = 20_000  # that predictions are compared on, at most
_ROUND = 10  # numbers of further answers are multiples of it
_NAMED = 5  # classes that are named in a sentence


class ClassAdvice(NamedTuple):
    """Whether further answers about a class pay.

    Attributes:
        name: The class.
        answers: The answers about it.
        gain: What twice as many would add to its average precision; NaN where there are too few
            answers to say.
        more: About how many more pay, 0 if none do; None where there are too few to say.
    """

    name: str
    answers: int
    gain: float
    more: int | None


class Advice(NamedTuple):
    """Whether further answers pay.

    Attributes:
        gain: What twice as many answers would add to the mean average precision, at most; NaN where
            there are too few answers about some class to say.
        threshold: The gain from which on answers pay.
        enough: Whether the gain was below the threshold twice in a row.
        classes: The advice on each class with answers.
    """

    gain: float
    threshold: float
    enough: bool
    classes: tuple[ClassAdvice, ...]

    def __str__(self) -> str:
        """Says it in a few sentences."""
        few = [one.name for one in self.classes if one.more is None]
        if math.isnan(self.gain):
            if not few:
                return "Too early to say whether further answers pay."
            return f"Too early to say whether further answers pay: too few about {_some(few)}."
        gain = f"twice as many would add at most {self.gain:.3f} to the mean average precision"
        if self.enough:
            return f"Enough: {gain}."
        if self.gain < self.threshold:
            return f"Nearly enough: {gain}. The next answers decide."
        wanted = sorted((one for one in self.classes if one.more), key=lambda one: -one.gain)
        named = [f"{one.name} ({one.more} more)" for one in wanted]
        most = f" Most for {_some(named)}." if named else ""
        return f"Further answers pay: {gain}.{most}"


def _some(names: Sequence[str]) -> str:
    """Lists the first names."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more classes" if rest > 0 else "")


class Stopping:
    """Says whether further answers pay, from how much the last ones have changed the predictions.

    A model that learned from the first half of the answers is compared with the one that learned
    from all, by the average precision that each is expected to have on all segments if the
    probabilities of the latter are true. These are calibrated on cross-fitted logits, so that
    neither their level nor their sharpness is taken on trust. What the last doubling of the answers
    has added bounds what the next one will, as learning curves flatten: it is reduced in the ratio
    in which the last two doublings have, by half at most. A standard error is added: the root mean
    square of the classes' gains, divided by the root of their number.

    No labels other than the answers are needed, and no answers need to be held back.

    Args:
        learner: Learns from parts of the answers, as that of the beliefs does from all. It needs no
            cross-fitting, and nobody else may use it.
        threshold: The gain in mean average precision of twice as many answers that is worth them.
        seed: The seed of the sample of segments, where there are very many.
    """

    def __init__(self, learner: Learner, *, threshold: float = 0.02, seed: int = 0) -> None:
        self._learner, self.threshold = learner, threshold
        self._names = learner.pool.class_names
        size = len(learner.pool)
        self._sample = np.arange(size)
        if size > _SEGMENTS:
            rng = np.random.default_rng(seed)
            self._sample = np.sort(rng.choice(size, _SEGMENTS, replace=False))
        self._below = 0  # times in a row that the gain was below the threshold

    def advise(self, beliefs: Beliefs) -> Advice:
        """Returns whether further answers pay.

        Args:
            beliefs: The beliefs after all answers, in the order in which these were given.
        """
        answers = beliefs.answers
        classes = len(self._names)
        yes = np.bincount(answers.labels[answers.scores > 0.5], minlength=classes)
        counts = np.bincount(answers.labels, minlength=classes)
        absent = (counts >= HOPELESS) & (yes < LEAST_OF_EACH)
        ready = (counts >= LEAST_ANSWERS) & (np.minimum(yes, counts - yes) >= LEAST_OF_EACH)
        gains = np.full(classes, np.nan)
        if ready.any():
            gains[ready] = self._gains(beliefs, np.flatnonzero(ready))
        known = (counts > 0) & ~absent
        gain = math.nan
        if known.any() and ready[known].all():
            error = np.sqrt(np.mean(gains[known] ** 2) / known.sum())
            gain = float(np.mean(gains[known]) + error)
        self._below = self._below + 1 if gain < self.threshold else 0
        gains[absent] = 0.0
        return Advice(
            gain,
            self.threshold,
            self._below >= 2,
            tuple(
                ClassAdvice(
                    self._names[label],
                    int(counts[label]),
                    float(gains[label]),
                    self._more(float(gains[label]), int(counts[label])),
                )
                for label in np.flatnonzero(counts).tolist()
            ),
        )

    def _gains(self, beliefs: Beliefs, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns what twice as many answers would add to each class."""
        answers = beliefs.answers
        calibration = calibrate(self._learner.pool, beliefs)
        logits = beliefs.logits[self._sample]
        true = calibration.probabilities(logits)[:, classes].astype(np.float64)
        logits = logits[:, classes]
        half, quarter = _first(answers, 2), _first(answers, 4)
        precisions = [
            expected_precision(self._learner.fit(part).logits[self._sample][:, classes], true)
            for part in (quarter, half)
        ]
        before = precisions[1] - precisions[0]
        last = expected_precision(logits, true) - precisions[1]
        decline = 1.0  # as far as is known
        if len(quarter) >= LEAST_ANSWERS * len(classes) and min(before.sum(), last.sum()) > 0:
            decline = float(np.clip(last.sum() / before.sum(), 0.5, 1.0))
        return decline * last

    def _more(self, gain: float, answers: int) -> int | None:
        """Returns how many more answers pay, if gains fall with the root of the answers."""
        if math.isnan(gain):
            return None
        if gain < self.threshold:
            return 0
        wanted = min(answers * ((gain / self.threshold) ** 2 - 1), answers)
        return max(_ROUND, _ROUND * math.ceil(wanted / _ROUND))


def _first(answers: Answers, part: int) -> Answers:
    """Returns the first half, third, ... of the answers about each class."""
    number = np.arange(len(answers))
    order = np.argsort(answers.labels, kind="stable")
    labels = answers.labels[order]
    begins = np.searchsorted(labels, labels)
    ends = np.searchsorted(labels, labels, side="right")
    return answers.take(np.sort(order[part * (number - begins) < ends - begins]))


def calibrate(pool: Pool, beliefs: Beliefs) -> Calibration:
    """Returns what makes probabilities of logits, from cross-fitted ones of all answers.

    Which questions were asked does not matter, as a class's probability depends on its logit only.

    Args:
        pool: The segments.
        beliefs: The beliefs, with cross-fitting.
    """
    answers = beliefs.answers
    return Calibration.fit(
        beliefs.held_out,
        answers.labels,
        answers.scores,
        num_classes=len(pool.class_names),
        groups=pool.videos[answers.segments],
    )


def expected_precision(
    scores: npt.NDArray[np.floating], probabilities: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the average precision that is expected of scores if probabilities are true.

    Labels are independent given the probabilities; the number of positives counts as known.

    Args:
        scores: (S, C), which rank the segments of each class.
        probabilities: (S, C), those that the segments show the classes.

    Returns:
        (C,).

    Example:
        >>> true = np.array([[0.9], [0.1]])
        >>> expected_precision(true, true) > expected_precision(-true, true)
        array([ True])
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(probabilities, order, 0)
    above = np.cumsum(ranked, axis=0) - ranked
    rank = np.arange(1, len(ranked) + 1)[:, None]
    found: npt.NDArray[np.float64] = ((1 + above) / rank * ranked).sum(0) / ranked.sum(0)
    return found
