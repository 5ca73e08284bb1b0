"""The other measures of the YouTube-8M starter code: GAP, Hit@1 and PERR.

Source: google/youtube-8m, eval_util.py and average_precision_calculator.py.
"""

from __future__ import annotations

import numpy as np

from pyseg.metrics._inputs import Array, as_scores, check_k, same_shape


def gap_at_k(scores: Array, labels: Array, k: int = 20) -> float:
    """Global average precision: that of the k best predictions of every row, pooled.

    All rows' k best (score, label) pairs are put into one list, highest score first; GAP is the
    sum of P(i) rel(i) over that list, divided by the number of all labels, also of those that are
    not among a row's k best. Equal scores: within a row the lower class comes first, in the pool
    the earlier row (the starter code orders both at random).

    Args:
        scores: (S, C) numbers, larger is better, comparable between rows. Infinities are allowed.
        labels: (S, C) bools or numbers; a class is a label of the row where it is above 0.
        k: how many predictions of each row are looked at; more than C means all.

    Returns:
        GAP in 0..1; 0 where there is no label.

    Raises:
        TypeError: an input does not hold numbers.
        ValueError: shapes differ, or an input holds a NaN.

    Example:
        >>> round(gap_at_k([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]], [[1, 0, 0], [1, 0, 1]], k=2), 4)
        0.5
    """
    score, label = _inputs(scores, labels)
    check_k(k)
    relevant = label > 0
    total = int(relevant.sum())
    if total == 0:
        return 0.0
    best = np.argsort(-score, axis=1, kind="stable")[:, :k]
    pooled = np.take_along_axis(score, best, axis=1).ravel()
    hit = np.take_along_axis(relevant, best, axis=1).ravel()[np.argsort(-pooled, kind="stable")]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return float(precision[hit].sum() / total)


def hit_at_1(scores: Array, labels: Array) -> float:
    """Share of the rows whose best prediction is one of their labels.

    As in the starter code it is the mean of the labels' values there, so labels between 0 and 1
    count as such. Equal scores: the lower class is the best.

    Args:
        scores: (S, C) numbers, larger is better.
        labels: (S, C) bools or numbers.

    Returns:
        The share, in 0..1 for labels in 0..1.

    Raises:
        TypeError: an input does not hold numbers.
        ValueError: shapes differ, there is no row or no class, or an input holds a NaN.

    Example:
        >>> hit_at_1([[0.9, 0.5], [0.2, 0.8]], [[1, 0], [1, 0]])
        0.5
    """
    score, label = _inputs(scores, labels)
    _refuse_empty(score)
    return float(label[np.arange(len(score)), score.argmax(axis=1)].mean())


def perr(scores: Array, labels: Array) -> float:
    """Precision at equal recall rate: of a row with n labels, how many of its n best are labels.

    The mean over all rows; a row without labels counts 0. As in the starter code, only predictions
    above 0 can be right: give probabilities, not logits. Equal scores: the lower class is better.

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
    score, label = _inputs(scores, labels)
    _refuse_empty(score)
    relevant = label > 0
    number = relevant.sum(axis=1)
    best = np.argsort(-score, axis=1, kind="stable")
    hit = np.take_along_axis(relevant & (score > 0), best, axis=1)
    hit &= np.arange(score.shape[1]) < number[:, None]
    return float((hit.sum(axis=1) / np.maximum(number, 1)).mean())


def _inputs(scores: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    score, label = as_scores("scores", scores, 2), as_scores("labels", labels, 2)
    same_shape("labels", label, "scores", score)
    return score, label


def _refuse_empty(score: np.ndarray) -> None:
    if score.size == 0:
        raise ValueError(f"scores: expected at least one row and class, found shape {score.shape}")
