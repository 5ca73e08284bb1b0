"""Speed of average precision, against scikit-learn, torchmetrics and NumPy, and of the best k.

    pytest benchmarks/bench_metrics.py [--benchmark-json FILE]

Scores are generated, for 100,000 segments: `dense` has 100 classes (time is proportional, and the
peers need seconds for every ten), `full` 1,000. `rated_rows` has the 237,788 rated rows of 1,000
classes, 56 % of them positive, of the challenge's validation set. `top_k` keeps 100,000 of
2,000,000 segments for each of 100 classes, in blocks of 8,192 segments, against one maximum of each
block, in a process that keeps its memory, like pyseg.predict. Results are medians of contenders
that take turns; all give the same numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseg._memory import keep_memory
from pyseg.metrics import TopKPerClass, gap_at_k, map_at_k, map_at_k_dense

SEGMENTS, CLASSES, SOME_CLASSES, RATED = 100_000, 1000, 100, 237_788
K = 100_000


def ranked_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """AP of one class with NumPy: the k best by argpartition, then argsort."""
    negative = -scores
    best = np.argpartition(negative, K)[:K] if len(scores) > K else np.arange(len(scores))
    hits = relevant[best[np.argsort(negative[best])]]
    ranks = np.flatnonzero(hits) + 1
    precisions = np.arange(1, len(ranks) + 1) / ranks
    return float(precisions.sum() / max(1, min(K, np.count_nonzero(relevant))))


def matrix(classes: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    scores = random.standard_normal((SEGMENTS, classes), dtype=np.float32)
    relevant = random.random((SEGMENTS, classes), dtype=np.float32) < share
    relevant[0] = True
    return scores, relevant


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    relevant = random.random(RATED) < 0.56
    relevant[:CLASSES] = True
    classes = np.concatenate((np.arange(CLASSES), random.integers(0, CLASSES, RATED - CLASSES)))
    return classes, random.standard_normal(RATED, dtype=np.float32), relevant


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_dense(compare, share):
    metrics = pytest.importorskip("sklearn.metrics")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores, relevant = matrix(SOME_CLASSES, share)
    tensors = torch.from_numpy(scores).sigmoid(), torch.from_numpy(relevant).long()

    def sklearn() -> list[float]:
        return [
            metrics.average_precision_score(relevant[:, c], scores[:, c])
            for c in range(SOME_CLASSES)
        ]

    def numpy() -> list[float]:
        return [ranked_precision(scores[:, c], relevant[:, c]) for c in range(SOME_CLASSES)]

    def torchmetrics() -> torch.Tensor:
        return functional.multilabel_average_precision(
            *tensors, num_labels=SOME_CLASSES, average="none"
        )

    found = map_at_k_dense(scores, relevant).per_class
    for contender in (sklearn, numpy, torchmetrics):  # they order equal scores differently
        np.testing.assert_allclose(found, np.array(contender()), atol=1e-4)
    compare(
        {
            "pyseg": lambda: map_at_k_dense(scores, relevant),
            "scikit-learn": sklearn,
            "torchmetrics": torchmetrics,
            "NumPy": numpy,
            "one maximum": scores.max,
        }
    )


def test_full(compare):
    scores, relevant = matrix(CLASSES, 0.01)
    compare({"pyseg": lambda: map_at_k_dense(scores, relevant), "one maximum": scores.max})


def test_dense_rated(compare):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, relevant = matrix(CLASSES, 0.56)
    rated = np.zeros(scores.shape, bool)
    rated.ravel()[np.random.default_rng(1).integers(0, rated.size, RATED)] = True
    rated[0] = True

    def each(average_precision) -> list[float]:
        return [
            average_precision(relevant[rated[:, c], c], scores[rated[:, c], c])
            for c in range(CLASSES)
        ]

    def numpy() -> list[float]:
        return each(lambda hits, score: ranked_precision(score, hits))

    np.testing.assert_allclose(
        map_at_k_dense(scores, relevant, rated).per_class, numpy(), rtol=1e-9
    )
    compare(
        {
            "pyseg": lambda: map_at_k_dense(scores, relevant, rated),
            "scikit-learn": lambda: each(metrics.average_precision_score),
            "NumPy": numpy,
            "one maximum": scores.max,
        }
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rated_rows(compare, rows, dtype):
    metrics = pytest.importorskip("sklearn.metrics")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    classes, scores, relevant = rows
    scores = scores.astype(dtype)

    def each(average_precision) -> list[float]:
        order = np.argsort(classes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(classes))[:-1])
        return [float(average_precision(relevant[part], scores[part])) for part in parts]

    def numpy() -> list[float]:
        return each(lambda hits, score: ranked_precision(score, hits))

    def torchmetrics() -> list[float]:
        def one(hits: np.ndarray, score: np.ndarray) -> torch.Tensor:
            return functional.binary_average_precision(
                torch.from_numpy(score).sigmoid(), torch.from_numpy(hits).long()
            )

        return each(one)

    found = map_at_k(classes, scores, relevant, num_classes=CLASSES).per_class
    np.testing.assert_allclose(found, numpy(), rtol=1e-9)
    compare(
        {
            "pyseg": lambda: map_at_k(classes, scores, relevant, num_classes=CLASSES),
            "scikit-learn": lambda: each(metrics.average_precision_score),
            "torchmetrics": torchmetrics,
            "NumPy": numpy,
        }
    )


def test_gap(compare):
    random = np.random.default_rng(0)
    scores = random.random((10_000, 3862), dtype=np.float32)
    labels = random.random(scores.shape, dtype=np.float32) < 0.001

    def numpy() -> float:
        best = np.argpartition(-scores, 20, axis=1)[:, :20]
        order = np.argsort(-np.take_along_axis(scores, best, 1).ravel())
        hits = np.take_along_axis(labels, best, 1).ravel()[order]
        return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].sum() / labels.sum())

    assert gap_at_k(scores, labels) == pytest.approx(numpy(), rel=1e-4)
    compare({"pyseg": lambda: gap_at_k(scores, labels), "NumPy": numpy, "one maximum": scores.max})


def test_top_k(compare):
    keep_memory()
    segments, block = 2_000_000, 8192
    scores = np.random.default_rng(0).standard_normal((segments, SOME_CLASSES), dtype=np.float32)
    ids = np.arange(segments)
    starts = range(0, segments, block)

    def pyseg() -> TopKPerClass:
        best = TopKPerClass(SOME_CLASSES, K)
        for start in starts:
            best.update(ids[start : start + block], scores[start : start + block])
        return best.finish()

    result = pyseg()
    column = scores[:, 7]
    expected = np.sort(np.partition(column, segments - K)[segments - K :])[::-1]
    np.testing.assert_array_equal(result.scores[result.offsets[7] : result.offsets[8]], expected)
    compare(
        {
            "pyseg": pyseg,
            "one maximum": lambda: [scores[start : start + block].max() for start in starts],
        }
    )
