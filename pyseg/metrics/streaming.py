"""The metrics over a stream of blocks, and over the processes of a distributed run.

Each gives exactly what its function gives for the concatenated blocks, whatever their sizes::

    metric = HitAt1(num_classes)
    for scores, labels in blocks:
        metric.update(scores, labels)
    metric.compute()

In a distributed run `compute` covers the updates of all processes: every process must call it, and
all get the same result. A process may have had any number of updates, including none. Rows are in
the order of ranks, then of updates, which decides between equal scores. `compute` leaves the state
of a process unchanged, so that updates may follow; `reset` clears it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from pyseg.errors import ArgumentError
from pyseg.metrics import _ranking, multilabel
from pyseg.metrics._distributed import gather
from pyseg.metrics._inputs import Array, above_zero, check_classes, check_k
from pyseg.metrics.mean_average_precision import (
    EmptyClasses,
    MeanAveragePrecision,
    check_options,
    dense_rows,
    flat_rows,
    from_sums,
)

Self = TypeVar("Self", bound="_Metric[Any]")
Result = TypeVar("Result")

# Rows that `MeanAveragePrecisionAtK` collects before it drops those beyond rank k.
_PENDING_ROWS = 2**20


class _Metric(ABC, Generic[Result]):
    """A metric whose state is a few arrays."""

    num_classes: int

    def reset(self) -> None:
        """Clears the state."""
        self._start()

    def merge(self: Self, other: Self) -> None:
        """Adds the updates of another metric with the same options, after its own.

        Raises:
            TypeError: `other` is of another class.
            ValueError: an option differs.
        """
        if type(self) is not type(other):
            raise TypeError(f"other: expected {type(self).__name__}, found {type(other).__name__}")
        found = other._options()
        for name, own in self._options().items():
            if own != found[name]:
                raise ArgumentError(f"other: expected {name} {own!r}, found {found[name]!r}")
        self._add(other._state())

    def compute(self) -> Result:
        """Returns the result of all updates so far, in a distributed run those of all processes.

        Raises:
            ValueError: no process has a row, and the metric is a mean over rows.
        """
        return self.result_of(gather(self._state()))

    def take(self) -> list[np.ndarray]:
        """Returns the state as one-dimensional arrays, and clears it."""
        arrays = self._state()
        self.reset()
        return arrays

    def result_of(self, states: Iterable[Sequence[np.ndarray]]) -> Result:
        """Returns the result of what `take` returned of metrics with the same options.

        Args:
            states: their arrays, one metric after the other.

        Raises:
            ValueError: there is no row, and the metric is a mean over rows.
        """
        total = type(self)(**self._options())
        for arrays in states:
            total._add(list(arrays))
        return total._result()

    def _check(self, scores: np.ndarray) -> None:
        if scores.shape[1] != self.num_classes:
            raise ArgumentError(
                f"scores: expected {self.num_classes} classes, found shape {scores.shape}"
            )

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""

    @abstractmethod
    def _start(self) -> None:
        """Sets the empty state."""

    @abstractmethod
    def _state(self) -> list[np.ndarray]:
        """Returns the state as one-dimensional arrays."""

    @abstractmethod
    def _add(self, arrays: list[np.ndarray]) -> None:
        """Adds the state of another metric."""

    @abstractmethod
    def _result(self) -> Result:
        """Returns the result of this state."""


class MeanAveragePrecisionAtK(_Metric[MeanAveragePrecision]):
    """`map_at_k` and `map_at_k_dense` over a stream.

    It keeps at most the k best rows of each class, 9 bytes per row (13 with float64 scores), and as
    many again, or 2^20, that are not ranked yet; of the others it keeps the counts.

    Args:
        num_classes: number of classes C.
        k: how many rows of each class are ranked.
        empty_classes: ``"zero"`` or ``"skip"``, see `map_at_k`.

    Raises:
        ValueError: an option has a value that it cannot have.

    Example:
        >>> metric = MeanAveragePrecisionAtK(num_classes=2)
        >>> metric.update([0, 0], [0.9, 0.8], [1, 0])
        >>> metric.update_dense([[0.7, 0.1]], [[1, 0]])
        >>> metric.compute().per_class.round(4).tolist()
        [0.8333, 0.0]
    """

    _blocks: list[list[np.ndarray]]  # classes, scores, relevance; those after the first are pending
    _pending: int  # rows

    def __init__(
        self, num_classes: int, k: int = 100_000, empty_classes: EmptyClasses = "zero"
    ) -> None:
        check_options(num_classes, k, empty_classes)
        self.num_classes = num_classes
        self.k = k
        self.empty_classes: EmptyClasses = empty_classes
        self._start()

    def update(self, classes: Array, scores: Array, relevance: Array) -> None:
        """Adds rows; arguments and errors are those of `map_at_k`."""
        index, score, relevant = flat_rows(classes, scores, relevance, self.num_classes)
        self._add_rows(index, score.copy(), relevant.copy())  # the caller may overwrite them

    def update_dense(self, scores: Array, relevance: Array, rated: Array | None = None) -> None:
        """Adds the rated pairs of a matrix; arguments and errors are those of `map_at_k_dense`."""
        score, relevant, mask = dense_rows(scores, relevance, rated)
        self._check(score)
        pairs = np.arange(score.size) if mask is None else np.flatnonzero(mask)
        self._add_rows(pairs % self.num_classes, score.ravel()[pairs], relevant.ravel()[pairs])

    def _add_rows(self, classes: np.ndarray, scores: np.ndarray, relevant: np.ndarray) -> None:
        self._rated += np.bincount(classes, minlength=self.num_classes)
        self._positives += np.bincount(classes[relevant], minlength=self.num_classes)
        self._append([classes.astype(np.int32), scores, relevant])

    def _append(self, rows: list[np.ndarray]) -> None:
        self._blocks.append(rows)
        self._pending += len(rows[0])
        if self._pending > max(_PENDING_ROWS, len(self._blocks[0][0])):
            self._settle()

    def _settle(self) -> list[np.ndarray]:
        """Drops rows beyond rank k; returns the others, in their order, as the only block."""
        if not self._pending:
            return self._blocks[0]
        classes, scores, relevant = (
            np.concatenate(parts) for parts in zip(*self._blocks, strict=True)
        )
        counts = np.bincount(classes, minlength=self.num_classes)
        full = np.flatnonzero(counts > self.k)
        kept = np.ones(len(classes), bool)
        if len(full):
            order = np.argsort(classes, kind="stable")
            ends = np.cumsum(counts)
            for index in full.tolist():
                rows = order[ends[index] - counts[index] : ends[index]]
                kept[rows] = _ranking.best_rows(scores[rows], self.k)
        self._blocks = [[classes[kept], scores[kept], relevant[kept]]]
        self._pending = 0
        return self._blocks[0]

    def _options(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "k": self.k, "empty_classes": self.empty_classes}

    def _start(self) -> None:
        self._positives, self._rated = np.zeros((2, self.num_classes), np.int64)
        # The first block is settled, the others are pending.
        self._blocks: list[list[np.ndarray]] = [
            [np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, bool)]
        ]
        self._pending = 0

    def _state(self) -> list[np.ndarray]:
        return [self._positives, self._rated, *self._settle()]

    def _add(self, arrays: list[np.ndarray]) -> None:
        self._positives += arrays[0]
        self._rated += arrays[1]
        self._append(arrays[2:])

    def _result(self) -> MeanAveragePrecision:
        classes, scores, relevant = self._settle()
        sums, *_ = _ranking.precision_sums(
            classes.astype(np.int64), scores, relevant, self.num_classes, self.k
        )
        return from_sums(sums, self._positives, self._rated, self.k, self.empty_classes)


class GlobalAveragePrecisionAtK(_Metric[float]):
    """`gap_at_k` over a stream. It keeps k scores of every row, 5 bytes each (9 in float64).

    Args:
        num_classes: number of classes C.
        k: how many predictions of each row are pooled.

    Raises:
        ValueError: `num_classes` or `k` is less than 1.

    Example:
        >>> metric = GlobalAveragePrecisionAtK(num_classes=3, k=2)
        >>> metric.update([[0.9, 0.5, 0.1]], [[1, 0, 0]])
        >>> metric.update([[0.2, 0.8, 0.3]], [[1, 0, 1]])
        >>> round(metric.compute(), 4)
        0.5
    """

    def __init__(self, num_classes: int, k: int = 20) -> None:
        check_classes(num_classes)
        check_k(k)
        self.num_classes = num_classes
        self.k = k
        self._start()

    def update(self, scores: Array, labels: Array) -> None:
        """Adds rows; arguments and errors are those of `gap_at_k`."""
        score, label = multilabel.label_rows(scores, labels)
        self._check(score)
        best, hits, total = multilabel.best_of_rows(score, above_zero(label), self.k)
        self._add([best, hits, np.array([total])])

    def _options(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "k": self.k}

    def _start(self) -> None:
        self._scores, self._hits, self._total = [np.empty(0, np.float32)], [np.empty(0, bool)], 0

    def _state(self) -> list[np.ndarray]:
        self._scores, self._hits = [np.concatenate(self._scores)], [np.concatenate(self._hits)]
        return [*self._scores, *self._hits, np.array([self._total])]

    def _add(self, arrays: list[np.ndarray]) -> None:
        self._scores.append(arrays[0])
        self._hits.append(arrays[1])
        self._total += int(arrays[2][0])

    def _result(self) -> float:
        scores, hits, _ = self._state()
        return multilabel.pooled_precision(scores, hits, self._total)


class HitAt1(_Metric[float]):
    """`hit_at_1` over a stream. It counts the label values at the rows' best predictions.

    Args:
        num_classes: number of classes C.

    Raises:
        ValueError: `num_classes` is less than 1.

    Example:
        >>> metric = HitAt1(num_classes=2)
        >>> metric.update([[0.9, 0.5]], [[1, 0]])
        >>> metric.update([[0.2, 0.8]], [[1, 0]])
        >>> metric.compute()
        0.5
    """

    def __init__(self, num_classes: int) -> None:
        check_classes(num_classes)
        self.num_classes = num_classes
        self._start()

    def update(self, scores: Array, labels: Array) -> None:
        """Adds rows; arguments and errors are those of `hit_at_1`, but there may be no row."""
        score, label = multilabel.label_rows(scores, labels)
        self._check(score)
        self._add([*multilabel.best_labels(score, label)])

    def _options(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def _start(self) -> None:
        self._values, self._counts = np.empty(0), np.empty(0, np.int64)

    def _state(self) -> list[np.ndarray]:
        return [self._values, self._counts]

    def _add(self, arrays: list[np.ndarray]) -> None:
        values = np.concatenate((self._values, arrays[0]))
        counts = np.concatenate((self._counts, arrays[1]))
        self._values, places = np.unique(values, return_inverse=True)
        self._counts = np.zeros(len(self._values), np.int64)
        np.add.at(self._counts, places, counts)

    def _result(self) -> float:
        multilabel.refuse_empty((int(self._counts.sum()), self.num_classes))
        return multilabel.mean_of(self._values, self._counts)


class PrecisionAtEqualRecallRate(_Metric[float]):
    """`perr` over a stream. It counts the right labels by the number of labels of their row.

    Args:
        num_classes: number of classes C.

    Raises:
        ValueError: `num_classes` is less than 1.

    Example:
        >>> metric = PrecisionAtEqualRecallRate(num_classes=3)
        >>> metric.update([[0.9, 0.5, 0.1]], [[1, 0, 1]])
        >>> metric.update([[0.2, 0.8, 0.3]], [[0, 1, 0]])
        >>> metric.compute()
        0.75
    """

    def __init__(self, num_classes: int) -> None:
        check_classes(num_classes)
        self.num_classes = num_classes
        self._start()

    def update(self, scores: Array, labels: Array) -> None:
        """Adds rows; arguments and errors are those of `perr`, but there may be no row."""
        score, label = multilabel.label_rows(scores, labels)
        self._check(score)
        self._add([multilabel.right_labels(score, above_zero(label)), np.array([len(score)])])

    def _options(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def _start(self) -> None:
        self._right, self._rows = np.zeros(self.num_classes + 1, np.int64), 0

    def _state(self) -> list[np.ndarray]:
        return [self._right, np.array([self._rows])]

    def _add(self, arrays: list[np.ndarray]) -> None:
        self._right += arrays[0]
        self._rows += int(arrays[1][0])

    def _result(self) -> float:
        multilabel.refuse_empty((self._rows, self.num_classes))
        return multilabel.mean_precision(self._right, self._rows)
