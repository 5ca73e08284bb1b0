"""Ranking of rows by score, and the sums of precision that average precision needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyseg import _threads
from pyseg.errors import ArgumentError

# Columns whose keys are made together: their float32 scores fill a cache line.
_WIDTH = 16
# Most bytes of keys in all threads; beyond it a tile has fewer columns.
_KEYS = 2**29
# Below this rated fraction of a matrix, only the rated pairs are read.
_FEW = 1 / 16
# Rows of a class that a key can number.
_MOST_ROWS = 2**31


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns which are the k best scores, of equal ones the first; 1 <= k <= len(scores).

    For k of 100,000 NumPy's partition is ten times as fast as a heap.
    """
    cutoff = -np.partition(-scores, k - 1)[k - 1]
    best: np.ndarray = scores > cutoff
    best[np.flatnonzero(scores == cutoff)[: k - best.sum()]] = True
    return best


def precision_sums(
    classes: np.ndarray, scores: np.ndarray, relevant: np.ndarray, num_classes: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums precision over the ranks of each class's relevant rows: sum of P(i) rel(i), i <= k.

    Equal scores keep the order in which they are given.

    Args:
        classes: (R,) int64 in 0..num_classes - 1.
        scores: (R,) float32 or float64, no NaN.
        relevant: (R,) bool.
        num_classes: number of classes C.
        k: the last rank that counts.

    Returns:
        The sums, (C,) float64, and the numbers of relevant and of all rows, (C,) int64 each.

    Raises:
        ValueError: there are 2^31 rows or more.
    """
    _refuse_too_many(len(scores))
    kernels = load_kernels()
    counts = np.bincount(classes, minlength=num_classes)
    ends = np.cumsum(counts)
    starts = ends - counts
    keys = np.empty(len(scores), np.uint64)
    rows, positives = np.zeros((2, num_classes), np.int64)
    if scores.dtype == np.float64:
        bits = np.ascontiguousarray(scores).view(np.uint64)
        low = int(counts.max()).bit_length() + 1  # of a key: the row within its class, and the hit
        full = np.empty(len(scores), np.uint64)
        inputs = classes, bits, relevant, starts
        kernels.wide_rows_to_keys(*inputs, low, rows, keys, full, positives)
        _sort(keys, starts, ends, positives)
        if kernels.in_order(keys, full, starts[positives > 0], ends[positives > 0], low):
            return _sums(keys, starts, ends, positives, k), positives, counts
        rows, positives = np.zeros((2, num_classes), np.int64)  # rare: `_bits` ranks them first
    kernels.rows_to_keys(classes, _bits(scores), relevant, starts, rows, keys, positives)
    _sort(keys, starts, ends, positives)
    return _sums(keys, starts, ends, positives, k), positives, counts


def precision_sums_dense(
    scores: np.ndarray, relevant: np.ndarray, rated: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`precision_sums` of the rated pairs of a matrix, column by column.

    Args:
        scores: (S, C) float32 or float64, no NaN.
        relevant: (S, C) bool.
        rated: (S, C) bool. ``None``: all are.
        k: the last rank that counts.

    Returns:
        As `precision_sums`.

    Raises:
        ValueError: there are 2^31 rows or more.
    """
    total, num_classes = scores.shape
    _refuse_too_many(total)
    scores, relevant = np.ascontiguousarray(scores), np.ascontiguousarray(relevant)
    mask = np.empty((0, 0), bool)
    if rated is not None:
        mask = np.ascontiguousarray(rated)
        if np.count_nonzero(mask) < _FEW * mask.size:
            pairs = np.flatnonzero(mask)
            scores, relevant = scores.ravel()[pairs], relevant.ravel()[pairs]
            return precision_sums(pairs % num_classes, scores, relevant, num_classes, k)
    kernels = load_kernels()
    sums = np.zeros(num_classes)
    positives, rows = np.zeros((2, num_classes), np.int64)
    threads = len(_threads.shares(num_classes, 1))
    width = max(1, min(_WIDTH, -(-num_classes // threads), _KEYS // (8 * max(total, 1) * threads)))
    spare = [np.empty((width, total), np.uint64) for _ in range(threads)]

    def tile(first: int) -> None:
        part = slice(first, first + width)
        keys = spare.pop()
        size = len(sums[part])
        if scores.dtype == np.float32:
            bits, hits, seen, at = scores.view(np.uint32), relevant, mask, first
        else:
            bits = np.stack([_bits(column) for column in scores[:, part].T], axis=1)
            hits, seen, at = relevant[:, part].copy(), mask[:, part].copy(), 0
        kernels.columns_to_keys(
            bits, hits, seen, rated is not None, at, keys[:size], rows[part], positives[part]
        )
        starts = np.arange(size) * total
        ranges = keys.ravel(), starts, starts + rows[part], positives[part]
        _sort(*ranges)
        sums[part] = _sums(*ranges, k)
        spare.append(keys)

    _threads.run_all(tile, [(first,) for first in range(0, num_classes, width)])
    return sums, positives, rows


def _sort(keys: np.ndarray, starts: np.ndarray, ends: np.ndarray, positives: np.ndarray) -> None:
    """Sorts the keys of each class with a positive: the others need no ranking."""
    kept = np.flatnonzero(positives)
    for start, end in zip(starts[kept].tolist(), ends[kept].tolist(), strict=True):
        keys[start:end].sort()


def _sums(
    keys: np.ndarray, starts: np.ndarray, ends: np.ndarray, positives: np.ndarray, k: int
) -> np.ndarray:
    kept = np.flatnonzero(positives)
    sums = np.zeros(len(positives))
    some = np.empty(len(kept))
    load_kernels().precision_sums(keys, starts[kept], ends[kept], min(k, _MOST_ROWS), some)
    sums[kept] = some
    return sums


def _bits(scores: np.ndarray) -> np.ndarray:
    """Returns float32 bits that order as the scores do."""
    if scores.dtype == np.float32:
        return np.ascontiguousarray(scores).view(np.uint32)
    # The rank among the distinct scores: a number below 2^31 has the bits of a float >= 0.
    return np.unique(scores, return_inverse=True)[1].astype(np.uint32)


def _refuse_too_many(rows: int) -> None:
    if rows >= _MOST_ROWS:
        raise ArgumentError(f"scores: expected fewer than 2^31 rows, found {rows}")


def load_kernels() -> Any:
    """Returns the compiled loops; numba loads with the first metric that needs them."""
    from pyseg.metrics import _kernels

    return _kernels
