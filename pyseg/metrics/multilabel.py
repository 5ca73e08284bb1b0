"""The other measures of the YouTube-8M starter code: GAP, Hit@1 and PERR.

Source: google/youtube-8m, eval_util.py and average_precision_calculator.py.
"""

from __future__ import annotations

import numpy as np

from pyseg import _threads
from pyseg.errors import ArgumentError
from pyseg.metrics import _ranking
from pyseg.metrics._inputs import (
    Array,
    above_zero,
    as_array,
    as_scores,
    check_k,
    refuse_nan,
    refuse_outside,
    same_shape,
)

# Scores that are enough for a thread.
_WORK = 2**16


def gap_at_k(scores: Array, labels: Array, k: int = 20) -> float:
    """Global average precision: average precision of the pooled k best predictions of every row.

    All rows' k best (score, label) pairs are put into one list, highest score first; GAP is the
    sum of P(i) rel(i) over that list, divided by the number of all labels, also of those that are
    not among a row's k best. Equal scores: within a row the lower class comes first, in the pool
    the earlier row (the starter code orders both at random).

    Args:
        scores: (S, C) numbers, larger is better, comparable between rows. Infinities are allowed.
        labels: (S, C) bools or numbers; a class is a label of the row where it is above 0.
        k: how many predictions of each row are pooled; more than C means all.

    Returns:
        GAP in 0..1; 0 where there is no label.

    Raises:
        TypeError: an input does not hold numbers.
        ValueError: shapes differ, or an input holds a NaN.

    Example:
        >>> round(gap_at_k([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]], [[1, 0, 0], [1, 0, 1]], k=2), 4)
        0.5
    """
    score, label = label_rows(scores, labels)
    check_k(k)
    return pooled_precision(*best_of_rows(score, above_zero(label), k))


def hit_at_1(scores: Array, labels: Array) -> float:
    """Fraction of rows whose best prediction is one of their labels.

    As in the starter code it is the mean value of the labels there, so a label between 0 and 1
    counts partly. Equal scores: the lower class is the best.

    Args:
        scores: (S, C) numbers, larger is better.
        labels: (S, C) bools or numbers in 0..1.

    Returns:
        The fraction, in 0..1.

    Raises:
        TypeError: an input does not hold numbers.
        ValueError: shapes differ, there is no row or no class, an input holds a NaN, or a label is
            not in 0..1.

    Example:
        >>> hit_at_1([[0.9, 0.5], [0.2, 0.8]], [[1, 0], [1, 0]])
        0.5
    """
    score, label = label_rows(scores, labels)
    refuse_empty(score.shape)
    return mean_of(*best_labels(score, label))


def perr(scores: Array, labels: Array) -> float:
    """Precision at equal recall rate: the fraction of labels among a row's n best, if it has n.

    It is the mean over all rows; a row without labels counts 0. As in the starter code, only
    predictions above 0 can be right: give probabilities, not logits. Equal scores: the lower class
    is better.

    Args:
        scores: (S, C) probabilities.
        labels: (S, C) bools or numbers; a class is a label of the row where it is above 0.

    Returns:
        The mean precision, in 0..1.

    Raises:
        TypeError: an input does not hold numbers.
        ValueError: shapes differ, there is no row or no class, or an input holds a NaN.

    Example:
        >>> perr([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]], [[1, 0, 1], [0, 1, 0]])
        0.75
    """
    score, label = label_rows(scores, labels)
    refuse_empty(score.shape)
    return mean_precision(right_labels(score, above_zero(label)), len(score))


def label_rows(scores: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns checked matrices: (S, C) float32 or float64, and (S, C) numbers."""
    score, label = as_scores("scores", scores, 2), as_array("labels", labels, 2)
    refuse_nan("labels", label)
    same_shape("labels", label, "scores", score)
    return score, label


def refuse_empty(shape: tuple[int, ...]) -> None:
    """Raises where there is no row or no class to average over."""
    if 0 in shape:
        raise ArgumentError(f"scores: expected at least one row and class, found shape {shape}")


def best_of_rows(
    scores: np.ndarray, relevant: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the inputs of GAP from (S, C) scores and bools.

    Returns:
        The min(k, C) best scores of every row, one row after the other, in the order of classes;
        bools, whether they are relevant; the number of all relevant values.
    """
    rows, k = len(scores), min(k, scores.shape[1])
    best, hits = np.empty((rows, k), scores.dtype), np.empty((rows, k), bool)
    if best.size == 0:
        return best.ravel(), hits.ravel(), 0
    totals = _by_rows("best_of_rows", scores, relevant, best, hits)
    return best.ravel(), hits.ravel(), sum(totals)


def pooled_precision(scores: np.ndarray, hits: np.ndarray, total: int) -> float:
    """Returns GAP from the outputs of `best_of_rows`."""
    if total == 0:
        return 0.0
    sums, *_ = _ranking.precision_sums_dense(scores[:, None], hits[:, None], None, len(scores))
    return float(sums[0] / total)


def best_labels(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct label values, float64, at the rows' best classes, and their counts.

    Raises:
        ArgumentError: a label is not in 0..1.
    """
    refuse_outside("labels", labels)
    values = labels[np.arange(len(scores)), scores.argmax(axis=1)]
    return np.unique(values.astype(np.float64), return_counts=True)


def mean_of(values: np.ndarray, counts: np.ndarray) -> float:
    """Returns Hit@1 from `best_labels`."""
    return float((values * counts).sum() / counts.sum())


def right_labels(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns for each n how many labels of rows with n are right (see `perr`): (C + 1,)."""
    right, numbers = np.empty((2, len(scores)), np.int64)
    _by_rows("right_of_rows", scores, relevant, right, numbers)
    size = scores.shape[1] + 1
    return np.bincount(numbers, weights=right, minlength=size).astype(np.int64)


def mean_precision(right: np.ndarray, rows: int) -> float:
    """Returns PERR from `right_labels`."""
    return float((right / np.maximum(np.arange(len(right)), 1)).sum() / rows)


def _by_rows(kernel: str, scores: np.ndarray, relevant: np.ndarray, *outputs: np.ndarray) -> list:
    inputs = np.ascontiguousarray(scores), np.ascontiguousarray(relevant)
    parts = _threads.shares(len(scores), -(-_WORK // scores.shape[1]))
    calls = [(*inputs, *outputs, begin, end) for begin, end in parts]
    return _threads.run_all(getattr(_ranking.load_kernels(), kernel), calls)
