"""Which questions to ask next; see `choose` and `register_strategy`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
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

_SAME_VIDEO, _NEIGHBOR, _ASKED = 1, 2, 3  # what keeps a segment from being asked about

AMONG = 20
"""Segments of the greatest worth, of which that is asked about which is least like those before."""


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
        sample: (S,) bool, the segments that random questions are about, and no others while there
            are any left: those of videos that training holds out. None: of all videos.
    """

    pool: Pool
    beliefs: Beliefs
    asked: npt.NDArray[np.int64]
    correlation: LabelCorrelation | None = None
    seed: int = 0
    sample: npt.NDArray[np.bool_] | None = None

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers that the seed and the number of questions so far determine."""
        return np.random.default_rng((self.seed, len(self.asked)))

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """(S, C) float32, the probability that a segment shows a class."""
        logits = self.beliefs.logits.clip(-60, 60)
        return (1 / (1 + np.exp(-logits))).astype(np.float32, copy=False)


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
    """Expected change of the targets of the loss, against what the model expects of the answer.

    The target of class i itself is 1 after a "yes" and 0 after a "no", and that of class j, which
    the label correlation relates to it, is P'[i, j] or 0 (eq. 6). So they differ from their
    expectations by 2 p (1 - p), and by P'[i, j] times that, in the mean. Changes weigh as in the
    loss. So segments rank by the uncertainty of the class, and classes also by what they say of
    others.
    """
    p = state.probabilities
    worth = 2 * RATED_WEIGHT * p * (1 - p)
    if state.correlation is not None:
        related = state.correlation.dense().numpy().sum(1)
        worth *= 1 + UNRATED_WEIGHT / RATED_WEIGHT * related
    return worth


def choose(
    state: State, count: int, strategy: Strategy | str = "change", *, with_random: bool = True
) -> list[Question]:
    """Chooses questions.

    * One question in five is drawn at random from what has not been asked, of `State.sample` if
      there is one: of each five in a row exactly one, at a random place.
    * The others are chosen by worth: of the `AMONG` segments of a class that the strategy gives the
      greatest worth, the one whose mean is least like those of the segments that the class was
      asked about. Without an answer to learn from, all segments have the same worth.
    * Classes with the fewest questions so far come first, of these the one with the segment of the
      greatest worth, and each is asked about in a group of `GROUP` questions.
    * No pair of a segment and a class is asked twice. Pairs whose class was asked about in a
      neighboring segment are left out while there are others; and so is, within a call, a second
      segment of a video.

    Args:
        state: What is known.
        count: The number of questions.
        strategy: A strategy or its name, which is the reason of the questions that it chooses.
        with_random: Whether one question in five is drawn at random.

    Returns:
        ``count`` questions, or fewer if nothing else is left to ask.

    Raises:
        pyseg.errors.ArgumentError: There is no such strategy, or what it returns is no worth; or
            ``count`` is negative.

    Example:
        >>> from pyseg.data.sample import make_sample
        >>> from pyseg.rate.learner import Learner
        >>> from pyseg.rate.questions import Answers
        >>> pool = Pool.read(make_sample() / "validate", ["car", "sun"])
        >>> none = np.zeros(0, np.int64)
        >>> answers = Answers(none, none, none.astype(np.float32), none.astype(bool))
        >>> state = State(pool, Learner(pool).fit(answers), np.zeros((0, 2), np.int64))
        >>> questions = choose(state, 10)
        >>> len({question.label for question in questions[:5]})
        1
        >>> sum(question.reason == RANDOM for question in questions)
        2
    """
    if count < 0:
        raise ArgumentError(f"count: expected at least 0, found {count}")
    name = strategy if isinstance(strategy, str) else strategy.__name__
    worth = _worth(state, find_strategy(strategy) if isinstance(strategy, str) else strategy, name)
    rng = np.random.default_rng((state.seed, len(state.asked), 1))  # others than the strategy's
    classes = len(state.pool.class_names)
    counts = np.bincount(state.asked[:, 1], minlength=classes)
    best = worth.max(0, initial=-np.inf)
    order = np.lexsort((rng.random(classes), -best, counts)).tolist()
    places = _random_places(state) if with_random else itertools.repeat(False)
    candidates: dict[int, _Candidates] = {}
    questions: list[Question] = []
    while order and len(questions) < count:
        label = order.pop(0)
        if label not in candidates:
            candidates[label] = _Candidates(state, label, worth[:, label], rng)
        for _ in range(min(GROUP, count - len(questions))):
            is_random = name == RANDOM or next(places)
            segment = candidates[label].take(is_random)
            if segment is None:
                break
            questions.append(Question(segment, label, RANDOM if is_random else name))
        else:
            order.append(label)
    return questions


def _worth(state: State, strategy: Strategy, name: str) -> npt.NDArray[np.float32]:
    """Returns what a strategy returns, checked."""
    shape = state.beliefs.logits.shape
    worth = np.asarray(strategy(state))
    if worth.shape != shape or worth.dtype.kind != "f" or np.isnan(worth).any():
        raise ArgumentError(
            f"strategy {name}: expected floating numbers of shape {shape}, found {worth.dtype} of "
            f"shape {worth.shape}" + ", some NaN" * (worth.dtype.kind == "f")
        )
    return worth


def _random_places(state: State) -> Iterator[bool]:
    """Yields whether each next question is drawn at random: one of each five is."""
    for number in itertools.count(len(state.asked)):
        five, place = divmod(number, GROUP)
        yield place == np.random.default_rng((state.seed, five)).integers(GROUP)


class _Candidates:
    """The segments that a class can be asked about."""

    def __init__(
        self, state: State, label: int, worth: npt.NDArray[np.float32], rng: np.random.Generator
    ) -> None:
        self._pool, self._worth, self._rng = state.pool, worth, rng
        self._blocked = np.zeros(len(state.pool), np.int8)  # how strictly not to be asked about
        # Those for random questions and for the others, each then followed by the rest.
        if state.sample is None:
            every = np.ones(len(state.pool), np.bool_)
            self._parts = {True: [every], False: [every]}
        else:
            rest = ~state.sample
            self._parts = {True: [state.sample, rest], False: [rest, state.sample]}
        self._asked = state.asked[state.asked[:, 1] == label, 0].tolist()
        for segment in self._asked:
            self._block(segment)

    def _block(self, segment: int) -> None:
        """Leaves out a segment, and its neighbors while there are others."""
        near = self._blocked[self._pool.neighbors(segment)]
        self._blocked[self._pool.neighbors(segment)] = np.maximum(near, _NEIGHBOR)
        self._blocked[segment] = _ASKED

    def _block_video(self, segment: int) -> None:
        """Leaves out a segment's video while there are others."""
        first, last = np.searchsorted(self._pool.videos, self._pool.videos[segment] + np.arange(2))
        video = self._blocked[first:last]
        np.maximum(video, _SAME_VIDEO, out=video)

    def take(self, is_random: bool) -> int | None:
        """Returns the next segment; None if there is none."""
        for part in self._parts[is_random]:
            least = self._blocked.min(where=part, initial=_ASKED)
            if least < _ASKED:
                break
        else:
            return None
        if is_random and least < _NEIGHBOR:  # the other segments of a video are part of a sample
            least = _SAME_VIDEO
        found = np.flatnonzero(part & (self._blocked <= least))
        segment = int(self._rng.choice(found)) if is_random else self._best(found)
        self._block(segment)
        self._block_video(segment)
        self._asked.append(segment)
        return segment

    def _best(self, found: npt.NDArray[np.int64]) -> int:
        """Returns the segment least like those asked about, among those of the greatest worth."""
        found = self._rng.permutation(found)  # so that equal ones are in a random order
        worth = self._worth[found]
        if len(found) > AMONG:
            found = found[np.argpartition(-worth, AMONG - 1)[:AMONG]]
        if not self._asked:
            return int(found[self._worth[found].argmax()])
        likeness = _units(self._pool, found) @ _units(self._pool, self._asked).T
        return int(found[likeness.max(1).argmin()])


def _units(pool: Pool, segments: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Returns the means of segments, scaled to length 1."""
    means = pool.means[segments]
    scaled: npt.NDArray[np.float32] = means / np.maximum(
        np.linalg.norm(means, axis=1, keepdims=True), 1e-6
    )
    return scaled
