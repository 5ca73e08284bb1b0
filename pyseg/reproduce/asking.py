"""Simulated raters: how good a model gets with each answer, by the way of asking.

The complete labels of an experiment answer the questions of `pyseg.rate`; see `simulate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg.config import LossConfig
from pyseg.data import Example
from pyseg.labels import LabelCorrelation
from pyseg.metrics import map_at_k_dense
from pyseg.rate.learner import Beliefs, Learner
from pyseg.rate.pool import Pool, standardize
from pyseg.rate.questions import RANDOM, Answers, Question
from pyseg.rate.strategies import GROUP, State, choose
from pyseg.reproduce.experiments import Experiment

BUDGETS = tuple(range(GROUP, 101, GROUP))
"""Answers a class after which a model is measured."""

_CLASSES = {"audioset": 24, "yt8m": 50, "sample": 8}
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class Asking:
    """A way of asking: a row of the table.

    Attributes:
        name: The row's name.
        strategy: The strategy, see `pyseg.rate.strategies`.
        relates: Whether the strategy uses the label correlation.
        learns_relations: Whether the loss uses it.
        with_random: Whether one question in five is drawn at random.
        model: The model that is measured; that of the strategy is always "linear".
    """

    name: str
    strategy: str
    relates: bool = True
    learns_relations: bool = True
    with_random: bool = True
    model: str = "linear"


class Truth(NamedTuple):
    """Segments whose labels are complete, those that can be asked about first.

    Attributes:
        pool: All segments, with the classes that are asked about.
        labels: (S, C) bool.
        askable: The number of segments that can be asked about; the others are held out.
        correlation: P' of the classes.
    """

    pool: Pool
    labels: npt.NDArray[np.bool_]
    askable: int
    correlation: LabelCorrelation


def read_truth(experiment: Experiment) -> Truth:
    """Returns the segments of an experiment, with the classes of most training examples."""
    collection = experiment.collection(0, complete=True)
    features = collection.features
    ids: dict[str, int] = {}
    videos, starts, means, rows = [], [], [], []
    askable = 0
    for part in ("train", "test"):
        for example in _examples(experiment, part):
            id, _, start = example.id.rpartition(":") if collection.level == "frame" else (
                example.id, "", "0"
            )  # fmt: skip
            videos.append(ids.setdefault(id, len(ids)))
            starts.append(int(start))
            means.append(example.frames.mean(0, dtype=np.float32, keepdims=True))
            present = np.zeros(collection.num_classes, bool)
            present[example.classes[example.scores > 0.5]] = True
            rows.append(present)
        askable = askable or len(rows)
    labels = np.stack(rows)
    most = np.argsort(-labels[:askable].sum(0), kind="stable")
    classes = sorted(most[: _CLASSES[experiment.name]].tolist())
    names = collection.class_names or [str(number) for number in range(collection.num_classes)]
    pool = Pool(
        ids=list(ids),
        videos=np.array(videos),
        starts=np.array(starts),
        num_frames=np.full(len(rows), features.segment_size),
        means=standardize(means, _LEAST_DEVIATION),
        class_names=[names[number] for number in classes],
        features=features,
    )
    correlation = experiment.correlation(classes, LossConfig().threshold)
    return Truth(pool, labels[:, classes], askable, correlation)


def _examples(experiment: Experiment, part: str) -> Iterator[Example]:
    """Yields the examples of a part, those of a video one after the other."""
    found = experiment.collection(0, complete=True).segments("train" if part == "train" else "test")
    assert found is not None
    yield from found


def simulate(truth: Truth, asking: Asking, seed: int) -> list[float]:
    """Asks and answers questions, and measures the model that learns from the answers.

    The strategy's model learns after each `GROUP` answers a class.

    Args:
        truth: The segments and their labels, which answer.
        asking: The way of asking.
        seed: The seed of random choices.

    Returns:
        After each number of answers a class in `BUDGETS`: MAP over the held-out segments.
    """
    pool, count = truth.pool, truth.askable
    classes = len(pool.class_names)
    learned = truth.correlation if asking.learns_relations else None
    learner = measured = Learner(pool, correlation=learned, folds=0, seed=seed)
    if asking.model != "linear":
        measured = Learner(pool, correlation=learned, folds=0, seed=seed, model=asking.model)
    askable = replace(
        pool,
        videos=pool.videos[:count],
        starts=pool.starts[:count],
        num_frames=pool.num_frames[:count],
        means=pool.means[:count],
    )
    questions: list[Question] = []
    values: list[float] = []
    beliefs = learner.fit(_answer(truth, questions))
    for _ in BUDGETS:
        state = State(
            askable,
            Beliefs(beliefs.logits[:count], beliefs.held_out, beliefs.answers),
            np.array([question[:2] for question in questions], np.int64).reshape(-1, 2),
            truth.correlation if asking.relates else None,
            seed,
        )
        questions += choose(
            state, GROUP * classes, asking.strategy, with_random=asking.with_random
        )  # fmt: skip
        answers = _answer(truth, questions)
        beliefs = learner.fit(answers)
        values.append(_measure(truth, beliefs if measured is learner else measured.fit(answers)))
    return values


def _answer(truth: Truth, questions: list[Question]) -> Answers:
    segments = np.array([question.segment for question in questions], np.int64)
    labels = np.array([question.label for question in questions], np.int64)
    random = np.array([question.reason == RANDOM for question in questions], bool)
    return Answers(segments, labels, truth.labels[segments, labels].astype(np.float32), random)


def _measure(truth: Truth, beliefs: Beliefs) -> float:
    found = map_at_k_dense(
        beliefs.logits[truth.askable :], truth.labels[truth.askable :], empty_classes="skip"
    )
    return float(found.map)
