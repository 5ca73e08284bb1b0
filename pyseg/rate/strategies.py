"""Which questions to ask next; see `choose` and `register_strategy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyseg._registry import Make, Registry
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.rate.learner import RATED_WEIGHT, UNRATED_WEIGHT, Beliefs
from pyseg.rate.pool import Pool
from pyseg.rate.questions import RANDOM, Question

GROUP = 5
"""Questions about one class in a row, one of which is drawn at random."""


@dataclass(frozen=True)
class State:
    """What is known when questions are chosen.

    Attributes:
        pool: The segments.
        beliefs: What a model believes of them, and the answers that it learned from.
        asked: (Q, 2) int64, the segment and the class of each question so far: answered, skipped,
            or waiting for its answer.
        correlation: P' of the pool's classes; None: no relations.
        seed: The seed of random choices.
    """

    pool: Pool
    beliefs: Beliefs
    asked: npt.NDArray[np.int64]
    correlation: LabelCorrelation | None = None
    seed: int = 0

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers that the seed and the number of questions so far determine."""
        return np.random.default_rng((self.seed, len(self.asked)))

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(S, C) float32, the probability that a segment shows a class."""
        return 1 / (1 + np.exp(-np.clip(self.beliefs.logits, -60, 60)))


Strategy = Callable[[State], npt.NDArray[np.float32]]
_STRATEGIES: Registry[Strategy] = Registry("strategy")


def register_strategy(name: str) -> Callable[[Make], Make]:
    """Registers a strategy, which ``--strategy NAME`` then chooses.

    It is called as ``strategy(state)`` and returns the worth of asking about each segment and class
    as an array (S, C) of finite numbers: of a class, the segment of the greatest worth is asked
    first.

    Args:
        name: The name of the strategy, which must be new.

    Returns:
        A decorator that returns its argument.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.

    Example:
        >>> @register_strategy("likely")
        ... def likely(state: State) -> np.ndarray:
        ...     return state.beliefs.logits
    """
    return _STRATEGIES.register(name)


def find_strategy(name: str, argument: str = "strategy") -> Strategy:
    """Returns the strategy of a name.

    Raises:
        pyseg.errors.ArgumentError: There is none.
    """
    return _STRATEGIES.find(name, argument)


@register_strategy(RANDOM)
def random(state: State) -> npt.NDArray[np.float32]:
    """All segments are worth the same, on average."""
    return state.rng.random(state.beliefs.logits.shape, np.float32)


@register_strategy("uncertain")
def uncertain(state: State) -> npt.NDArray[np.float32]:
    """The less certain the model is, the more an answer is worth."""
    return -np.abs(state.beliefs.logits)


@register_strategy("change")
def change(state: State) -> npt.NDArray[np.float32]:
    """Expected change of the targets of the loss.

    A "yes" moves the target of the class itself by 1 - p, and those of the classes that the label
    correlation relates to it (eq. 6); a "no" moves the target of the class by p. Changes weigh as
    in the loss.
    """
    p = state.probabilities
    worth = 2 * RATED_WEIGHT * p * (1 - p)
    if state.correlation is not None:
        related = state.correlation.dense().numpy()
        worth += UNRATED_WEIGHT * p * ((1 - p) @ related.T)
    return worth


def choose(state: State, count: int, strategy: Strategy | str = "change") -> list[Question]:
    """Chooses questions.

    Classes are asked in groups of `GROUP` questions, those with the fewest questions so far first.
    One question in five is drawn at random, at a random place of each five. No pair is asked twice,
    and no pair whose class was asked in a neighboring segment while there are others.

    Args:
        state: What is known.
        count: The number of questions.
        strategy: A strategy, or its name.

    Returns:
        ``count`` questions, or fewer if all others have been asked.
    """
    if count < 0:
        raise ArgumentError(f"count: expected at least 0, found {count}")
    worth_of = find_strategy(strategy) if isinstance(strategy, str) else strategy
    name = strategy if isinstance(strategy, str) else getattr(strategy, "__name__", "strategy")
    worth = np.asarray(worth_of(state))
    if worth.shape != state.beliefs.logits.shape or not np.isfinite(worth).all():
        raise ArgumentError(
            f"strategy {name}: expected finite numbers of shape {state.beliefs.logits.shape}, "
            f"found shape {worth.shape}"
        )
    rng = state.rng
    classes = len(state.pool.class_names)
    labels = state.asked[:, 1]
    counts = _counts(state, labels, classes)
    order = np.lexsort((rng.random(classes), counts))
    places = _random_places(state, count)
    questions: list[Question] = []
    candidates: dict[int, _Candidates] = {}
    while len(questions) < count and len(order):
        left = []
        for label in order.tolist():
            if label not in candidates:
                asked = state.asked[labels == label, 0]
                candidates[label] = _Candidates(state.pool, worth[:, label], asked, rng)
            group = 0
            while group < GROUP and len(questions) < count:
                is_random = next(places)
                segment = candidates[label].take(is_random)
                if segment is None:
                    break
                questions.append(Question(segment, label, RANDOM if is_random else name))
                group += 1
            if group == GROUP:
                left.append(label)
        order = np.array(left, np.int64)
    return questions


def _counts(state: State, labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    return np.bincount(labels, minlength=classes)


def _random_places(state: State, count: int) -> Iterator[bool]:
    """Yields whether each next question is drawn at random: one of every five."""
    number = len(state.asked)
    while True:
        block, place = divmod(number, GROUP)
        drawn = np.random.default_rng((state.seed, block, 1)).integers(GROUP)
        yield place == drawn
        number += 1


class _Candidates:
    """The segments that can be asked about one class."""

    def __init__(
        self,
        pool: Pool,
        worth: npt.NDArray[np.float32],
        asked: npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        self._pool, self._rng = pool, rng
        self._worth = worth
        self._free = np.ones(len(pool), bool)  # may be asked
        self._apart = np.ones(len(pool), bool)  # and is no neighbor of what was asked
        for segment in asked.tolist():
            self._exclude(segment)

    def _exclude(self, segment: int) -> None:
        self._free[segment] = False
        self._apart[[segment, *self._pool.neighbors(segment)]] = False

    def take(self, is_random: bool) -> int | None:
        """Returns the next segment, None if there is none."""
        found = np.flatnonzero(self._apart)
        if not len(found):
            found = np.flatnonzero(self._free)
        if not len(found):
            return None
        if is_random:
            segment = int(self._rng.choice(found))
        else:
            worth = self._worth[found]
            best = np.flatnonzero(worth == worth.max())
            segment = int(found[self._rng.choice(best)])
        self._exclude(segment)
        return segment
