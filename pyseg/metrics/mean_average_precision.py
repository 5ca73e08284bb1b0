"""Mean average precision at k over classes: the measure of the YouTube-8M segment challenge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from pyseg.metrics._inputs import (
    Array,
    as_array,
    as_integers,
    as_scores,
    check_k,
    refuse_nan,
    same_shape,
)

EmptyClasses = Literal["zero", "skip"]

# `map_at_k_dense` takes so many scores together, in whole columns (some 400 MB of work space).
_BLOCK = 4_000_000


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Average precision of every class, and its mean.

    Attributes:
        map: the mean over all classes, or over those with positives, as was asked for.
        per_class: (C,) float64, the average precision of each class; 0 where there is no positive.
        positives: (C,) int64, how many rated rows of each class are relevant.
        rated: (C,) int64, how many rows of each class there are.
    """

    map: float
    per_class: np.ndarray = field(repr=False)
    positives: np.ndarray = field(repr=False)
    rated: np.ndarray = field(repr=False)

    def table(self, class_names: Sequence[str] | None = None, limit: int | None = None) -> str:
        """Lists the rated classes, the best first.

        Args:
            class_names: name of each class, in order of index. ``None``: the index alone.
            limit: how many classes at most. ``None``: all.

        Returns:
            One line a class: average precision, positives, rated rows, index and name.

        Raises:
            ValueError: there are not as many names as classes.

        Example:
            >>> result = map_at_k([0, 0, 1], [0.9, 0.4, 0.5], [0, 1, 1], num_classes=2)
            >>> print(result.table(["cat", "dog"]))
                AP  positives  rated  class
            1.0000          1      1  1 dog
            0.5000          1      2  0 cat
        """
        if class_names is not None and len(class_names) != len(self.per_class):
            raise ValueError(
                f"class_names: expected {len(self.per_class)} names, found {len(class_names)}"
            )
        order = np.argsort(-self.per_class, kind="stable")
        lines = ["    AP  positives  rated  class"]
        for index in order[self.rated[order] > 0][:limit].tolist():
            name = f"{index}" if class_names is None else f"{index} {class_names[index]}"
            lines.append(
                f"{self.per_class[index]:.4f} {self.positives[index]:10d} "
                f"{self.rated[index]:6d}  {name}"
            )
        return "\n".join(lines)


def map_at_k(
    classes: Array,
    scores: Array,
    relevance: Array,
    *,
    num_classes: int,
    k: int = 100_000,
    empty_classes: EmptyClasses = "zero",
) -> MeanAveragePrecision:
    """Mean average precision at k of rated (segment, class) pairs.

    Row i says that some segment was predicted to show ``classes[i]`` with ``scores[i]``, and was
    rated relevant or not; pairs that nobody rated are left out and so do not count. For a class
    whose rows, highest score first, are relevant or not as rel(1), rel(2), ... (0 or 1),

        AP = sum over i <= min(rows, k) of P(i) rel(i) / min(positives, k),
        P(i) = (rel(1) + ... + rel(i)) / i

    where positives counts all relevant rows, also those beyond rank k. Rows with equal scores stay
    in the order in which they are given; no random numbers are used.

    Source: equation (7) of the paper and the challenge's rules; the starter code's
    average_precision_calculator.py orders ties at random.

    Args:
        classes: (R,) integers in 0..num_classes - 1.
        scores: (R,) numbers, larger is better; only their order matters. Infinities are allowed.
        relevance: (R,) bools or numbers; a row is relevant where it is above 0.
        num_classes: number of classes C.
        k: how many rows of each class are looked at.
        empty_classes: what a class without a positive counts: ``"zero"``: 0, as in the challenge
            (mean over all C classes); ``"skip"``: it is left out, as in the starter code (the mean
            is NaN if that leaves no class).

    Returns:
        The mean, and the average precision of each class.

    Raises:
        TypeError: an input does not hold numbers, or `classes` no integers.
        ValueError: shapes differ, a class is out of range, an input holds a NaN, or an option has
            an unknown value. The message names the argument.

    Example:
        >>> result = map_at_k([0, 0, 0, 1], [0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], num_classes=2)
        >>> result.per_class.round(4).tolist()  # (1/1 + 2/3) / 2
        [0.8333, 0.0]
        >>> round(result.map, 4)
        0.4167
    """
    class_index = as_integers("classes", classes, 1)
    score = as_scores("scores", scores, 1)
    rating = as_array("relevance", relevance, 1)
    same_shape("scores", score, "classes", class_index)
    same_shape("relevance", rating, "classes", class_index)
    refuse_nan("relevance", rating)
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, found {num_classes}")
    check_k(k)
    outside = (class_index < 0) | (class_index >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"classes: expected values in 0..{num_classes - 1}, found {class_index[row]} at {row}"
        )
    return _mean(*_average_precision(class_index, score, rating > 0, num_classes, k), empty_classes)


def map_at_k_dense(
    scores: Array,
    relevance: Array,
    rated: Array | None = None,
    *,
    k: int = 100_000,
    empty_classes: EmptyClasses = "zero",
) -> MeanAveragePrecision:
    """Mean average precision at k of a matrix of scores; see `map_at_k`.

    Args:
        scores: (S, C) numbers, a row for each segment. No NaN, also where nothing is rated.
        relevance: (S, C) bools or numbers; relevant where above 0. Looked at only where rated.
        rated: (S, C) bools or numbers; a pair counts where it is not 0. ``None``: all pairs do.
        k: how many rows of each class are looked at.
        empty_classes: ``"zero"`` or ``"skip"``, see `map_at_k`.

    Returns:
        The mean, and the average precision of each class. Ties: earlier rows first.

    Raises:
        TypeError: an input does not hold numbers.
        ValueError: shapes differ, there is no class, or an input holds a NaN.

    Example:
        >>> scores = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]
        >>> map_at_k_dense(scores, [[1, 0], [0, 1], [1, 0]]).per_class.round(4).tolist()
        [0.8333, 0.5]
    """
    score = as_scores("scores", scores, 2)
    rating = as_array("relevance", relevance, 2)
    same_shape("relevance", rating, "scores", score)
    mask = None
    if rated is not None:
        mask = as_array("rated", rated, 2)
        same_shape("rated", mask, "scores", score)
        refuse_nan("rated", mask)
        mask = mask != 0
    rows, num_classes = score.shape
    if num_classes < 1:
        raise ValueError(f"scores: expected at least one class, found shape {score.shape}")
    check_k(k)
    per_block = max(1, _BLOCK // max(rows, 1))
    blocks = []
    for start in range(0, num_classes, per_block):
        columns = slice(start, start + per_block)
        block = rating[:, columns]
        width = block.shape[1]
        # Column after column, so that each class has its rows in order.
        picked = np.arange(block.size) if mask is None else np.flatnonzero(mask[:, columns].T)
        block = block.T.ravel()[picked]
        refuse_nan("relevance", block)
        blocks.append(
            _average_precision(
                picked // max(rows, 1), score[:, columns].T.ravel()[picked], block > 0, width, k
            )
        )
    parts = [np.concatenate(part) for part in zip(*blocks, strict=True)]
    return _mean(parts[0], parts[1], parts[2], empty_classes)


def _average_precision(
    classes: np.ndarray, scores: np.ndarray, relevant: np.ndarray, num_classes: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average precision, positives and rows of each class."""
    rated = np.bincount(classes, minlength=num_classes)
    positives = np.bincount(classes[relevant], minlength=num_classes)
    kept = np.where(positives > 0, rated, 0)  # a class without a positive needs no ranking
    if kept.sum() < len(classes):
        rows = positives[classes] > 0
        classes, scores, relevant = classes[rows], scores[rows], relevant[rows]
    order = np.lexsort((-scores, classes))  # stable: equal scores keep their order
    ranked, hit = classes[order], relevant[order]
    first = np.cumsum(kept) - kept  # where each class starts among the ranked rows
    rank = np.arange(len(ranked)) - first[ranked] + 1
    before = np.concatenate(([0], np.cumsum(hit)))
    hits = before[1:] - before[first[ranked]]
    counted = hit & (rank <= k)
    sums = np.bincount(
        ranked[counted], weights=hits[counted] / rank[counted], minlength=num_classes
    )
    return sums / np.maximum(np.minimum(positives, k), 1), positives, rated


def _mean(
    per_class: np.ndarray, positives: np.ndarray, rated: np.ndarray, empty_classes: EmptyClasses
) -> MeanAveragePrecision:
    if empty_classes == "zero":
        mean = float(per_class.mean())
    elif empty_classes == "skip":
        kept = per_class[positives > 0]
        mean = float(kept.mean()) if kept.size else float("nan")
    else:
        raise ValueError(
            f"empty_classes: expected one of {', '.join(get_args(EmptyClasses))}; "
            f"found {empty_classes!r}"
        )
    return MeanAveragePrecision(mean, per_class, positives, rated)
