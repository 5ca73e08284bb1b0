"""Pools whose truth is known, and a rater who knows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyseg.data import FeatureSet, open_collection
from pyseg.metrics import map_at_k_dense
from pyseg.rate.learner import Beliefs, Learner
from pyseg.rate.pool import Pool
from pyseg.rate.questions import RANDOM, Answers
from pyseg.rate.strategies import State, choose

NOTHING = Answers(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.bool_)
)


class World(NamedTuple):
    """Segments, which of them show which classes, and those that are held out for tests."""

    pool: Pool
    truth: np.ndarray  # (S, C) bool
    held: np.ndarray  # (S,) bool, whole videos

    def precision(self, beliefs: Beliefs) -> float:
        """Returns the mean average precision of what was learned on the held-out segments."""
        return map_at_k_dense(beliefs.logits[self.held], self.truth[self.held]).map

    def held_pairs(self) -> np.ndarray:
        """Returns the pairs that are never asked about, (P, 2)."""
        segments, labels = np.meshgrid(
            np.flatnonzero(self.held), np.arange(self.truth.shape[1]), indexing="ij"
        )
        return np.stack((segments.ravel(), labels.ravel()), axis=1)


def make_pool(means: np.ndarray, videos: np.ndarray, names: list[str], size: int = 5) -> Pool:
    """Returns a pool of segments whose videos are numbered; each follows the last of its video."""
    places = np.arange(len(videos)) - np.searchsorted(videos, videos)
    return Pool(
        [f"v{video:04d}" for video in range(videos.max() + 1)],
        videos.astype(np.int64),
        places * size,
        np.full(len(videos), size),
        means.astype(np.float32),
        names,
        FeatureSet((("clip", means.shape[1]),), segment_size=size),
    )


def generated(
    seed: int, *, segments: int = 800, test: int = 0, width: int = 24, noise: float = 0.2
) -> World:
    """Draws four classes of falling frequency, each a direction in feature space and noise."""
    rng = np.random.default_rng(seed)
    names = ["sun", "car", "dog", "snow"]
    directions = rng.normal(size=(width, len(names)))
    directions /= np.linalg.norm(directions, axis=0)
    means = rng.normal(size=(segments + test, width)).astype(np.float32)
    values = means @ directions + noise * rng.normal(size=(len(means), len(names)))
    truth = values > np.array([0.3, 0.7, 1.0, 1.4])
    number = np.arange(segments + test)
    return World(make_pool(means, number // 4, names), truth, number >= segments)


def audioset(folder: Path, classes: int = 6, shards: str = "0[0-3]") -> World:
    """Reads real segments with complete strong labels; every fifth clip is held out."""
    collection = open_collection(str(folder / "data/audioset" / f"eval{shards}.tfrecord.gz"))
    found = collection.segments("all", cache=False, rated_per_segment=None)
    assert found is not None
    means, labels, ids = [], [], []
    for example in found:
        means.append(example.frames.mean(0))
        labels.append(np.bincount(example.classes[example.scores > 0], minlength=600) > 0)
        ids.append(example.id.rpartition(":")[0])
    rows, truth = np.array(means, np.float32), np.array(labels)
    rows = (rows - rows.mean(0)) / rows.std(0)
    frequent = np.argsort(-truth.sum(0))[[0, 1, 3, 6, 10, 14, 18, 22][:classes]]
    _, videos = np.unique(ids, return_inverse=True)
    order = np.argsort(videos, kind="stable")
    rows, truth, videos = rows[order], truth[order][:, frequent], videos[order]
    names = [str(number) for number in frequent]
    return World(make_pool(rows, videos, names), truth, videos % 5 == 0)


def answering(
    world: World,
    learner: Learner,
    *,
    step: int,
    seed: int = 0,
    strategy: str = "change",
    wrong: float = 0.0,
) -> Iterator[tuple[Beliefs, np.ndarray]]:
    """Yields beliefs after every ``step`` answers, and which answers were wrong on purpose."""
    rng = np.random.default_rng(seed)
    asked, random = np.zeros((0, 2), np.int64), np.zeros(0, np.bool_)
    held = world.held_pairs()
    slips, beliefs = np.zeros(0, np.bool_), learner.fit(NOTHING)
    while True:
        state = State(world.pool, beliefs, np.concatenate((asked, held)), None, seed)
        questions = choose(state, step, strategy)
        if not questions:
            return
        asked = np.concatenate((asked, [question[:2] for question in questions]))
        random = np.append(random, [question.reason == RANDOM for question in questions])
        slips = np.append(slips, rng.random(len(questions)) < wrong)
        scores = world.truth[asked[:, 0], asked[:, 1]] ^ slips
        beliefs = learner.fit(Answers(asked[:, 0], asked[:, 1], scores.astype(np.float32), random))
        yield beliefs, slips
