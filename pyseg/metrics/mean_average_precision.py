"""Mean average precision at k over classes: the measure of the YouTube-8M segment challenge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from pyseg.errors import ArgumentError
from pyseg.metrics import _ranking
from pyseg.metrics._inputs import (
    Array,
    above_zero,
    as_array,
    as_integers,
    as_scores,
    check_classes,
    check_k,
    refuse_nan,
    same_shape,
)

EmptyClasses = Literal["zero", "skip"]


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Average precision of every class, and its mean.

    Attributes:
        map: the mean over all classes, or over those with positives (`empty_classes`).
        per_class: (C,) float64, the average precision of each class; 0 where there is no positive.
        positives: (C,) int64, number of relevant rows of each class.
        rated: (C,) int64, number of rows of each class.
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
            One line per class: average precision, positives, rated rows, index and name.

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
            raise ArgumentError(
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

    Row i is a segment that was predicted to show ``classes[i]`` with ``scores[i]``, and was rated
    relevant or not; unrated pairs are left out. For a class whose rows, highest score first, have
    the relevance rel(1), rel(2), ... (0 or 1)::

        AP = sum over i <= min(rows, k) of P(i) rel(i) / min(positives, k),
        P(i) = (rel(1) + ... + rel(i)) / i

    where positives counts all relevant rows, also those beyond rank k. Rows with equal scores keep
    the order in which they are given.

    Source: equation (7) of the paper and the challenge's rules; the starter code's
    average_precision_calculator.py orders ties at random.

    Args:
        classes: (R,) integers in 0..num_classes - 1.
        scores: (R,) numbers, larger is better; only their order matters. Infinities are allowed.
        relevance: (R,) bools or numbers; a row is relevant where it is above 0.
        num_classes: number of classes C.
        k: how many rows of each class are ranked.
        empty_classes: how a class without a positive counts: ``"zero"``: as 0, as in the challenge
            (mean over all C classes); ``"skip"``: not at all, as in the starter code (the mean is
            NaN if that leaves no class).

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
    check_options(num_classes, k, empty_classes)
    rows = flat_rows(classes, scores, relevance, num_classes)
    sums, positives, rated = _ranking.precision_sums(*rows, num_classes, k)
    return from_sums(sums, positives, rated, k, empty_classes)


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
        relevance: (S, C) bools or numbers; relevant where above 0. Read only where rated.
        rated: (S, C) bools or numbers; a pair counts where it is not 0. ``None``: all pairs do.
        k: how many rows of each class are ranked.
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
    score, relevant, mask = dense_rows(scores, relevance, rated)
    check_options(score.shape[1], k, empty_classes)
    sums, positives, rows = _ranking.precision_sums_dense(score, relevant, mask, k)
    return from_sums(sums, positives, rows, k, empty_classes)


def check_options(num_classes: int, k: int, empty_classes: EmptyClasses) -> None:
    """Raises where an option of `map_at_k` has a value that it cannot have."""
    check_classes(num_classes)
    check_k(k)
    if empty_classes not in get_args(EmptyClasses):
        raise ArgumentError(
            f"empty_classes: expected one of {', '.join(get_args(EmptyClasses))}; "
            f"found {empty_classes!r}"
        )


def flat_rows(
    classes: Array, scores: Array, relevance: Array, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows of `map_at_k`, checked: (R,) int64, float32 or float64, and bool."""
    class_index = as_integers("classes", classes, 1)
    score = as_scores("scores", scores, 1)
    rating = as_array("relevance", relevance, 1)
    same_shape("scores", score, "classes", class_index)
    same_shape("relevance", rating, "classes", class_index)
    refuse_nan("relevance", rating)
    if len(class_index) and not 0 <= class_index.min() <= class_index.max() < num_classes:
        row = int(((class_index < 0) | (class_index >= num_classes)).argmax())
        raise ArgumentError(
            f"classes: expected values in 0..{num_classes - 1}, found {class_index[row]} at {row}"
        )
    return class_index, score, above_zero(rating)


def dense_rows(
    scores: Array, relevance: Array, rated: Array | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns the matrices of `map_at_k_dense`, checked: float32 or float64, bool, and bool."""
    score = as_scores("scores", scores, 2)
    rating = as_array("relevance", relevance, 2)
    same_shape("relevance", rating, "scores", score)
    mask = None
    if rated is not None:
        mask = as_array("rated", rated, 2)
        same_shape("rated", mask, "scores", score)
        refuse_nan("rated", mask)
        mask = mask.astype(bool, copy=False)
    if score.shape[1] < 1:
        raise ArgumentError(f"scores: expected at least one class, found shape {score.shape}")
    refuse_nan("relevance", rating, mask)
    return score, above_zero(rating), mask


def from_sums(
    sums: np.ndarray,
    positives: np.ndarray,
    rated: np.ndarray,
    k: int,
    empty_classes: EmptyClasses,
) -> MeanAveragePrecision:
    """Returns the result from the outputs of `_ranking.precision_sums`, each of size C."""
    per_class = sums / np.maximum(np.minimum(positives, k), 1)
    if empty_classes == "zero":
        mean = float(per_class.mean())
    else:
        kept = per_class[positives > 0]
        mean = float(kept.mean()) if kept.size else float("nan")
    return MeanAveragePrecision(mean, per_class, positives, rated)
