"""Probabilities that mean what they say, and the thresholds of events that follow from them.

A model's logits rank well, but training with few ratings and weighted classes does not make
``sigmoid(logit)`` a probability: of the pairs that get 0.7, another share may be positive. A
`Calibration` maps the logits of each class, by a temperature and a bias, to probabilities that
rated pairs agree with. Within a class the order of scores stays.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseg._containers import is_number, read_json
from pyseg._files import write_file
from pyseg._paths import path_text
from pyseg.errors import ArgumentError, DataError
from pyseg.metrics import Reliability, reliability

FORMAT_VERSION = 1
"""Version of the file that `Calibration.write` writes."""

_Floats = npt.NDArray[np.float64]

_FOLDS = 5
_STEPS = 50  # of Newton's method, which needs less than ten
_SHARED = np.array([0.7, 2.0])  # deviations of the logarithm of the shared slope, and of its bias
# Deviations of a class from the shared ones; the smaller, the more ratings a class needs for its
# own. The first is the calibration that all classes share.
_OF_CLASS = ((0.0, 0.0), (0.1, 0.3), (0.2, 0.6), (0.4, 1.2))
_LARGEST = 1e6  # slope or bias in a file


class Pairs(NamedTuple):
    """Rated pairs of a segment and a class.

    Attributes:
        logits: (R,) a model's logits.
        labels: (R,) int64, numbers of classes.
        scores: (R,) the ratings in [0, 1].
        groups: (R,) int64, equal for pairs of the same video.
        weights: (R,) at least 0.
    """

    logits: _Floats
    labels: npt.NDArray[np.int64]
    scores: _Floats
    groups: npt.NDArray[np.int64]
    weights: _Floats

    def take(self, chosen: np.ndarray) -> Pairs:
        """Returns some of the pairs."""
        return Pairs(*(values[chosen] for values in self))


@dataclass(frozen=True, eq=False)
class Calibration:
    """A map from the logits of C classes to probabilities, and the thresholds of events.

    Attributes:
        slopes: (C,) above 0, one over the temperatures.
        biases: (C,) what is added to logit times slope.
        rated: (C,) int64, the rated pairs that it rests on.
        positives: (C,) int64, those of them that are positive.
        before: The reliability of the probabilities without it.
        after: The reliability with it, for each pair fitted on other groups (cross-validation).
        thresholds: (C,) the probability that an event of the class reaches; None: not chosen.
        source: What it rests on, in words.
        is_sample: Whether the pairs were drawn at random: otherwise the probabilities are those of
            pairs as somebody chose them.
        date: When it was made.
        weights: The digest of the model's weights.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.normal(-1.0, 1.5, 2000)                  # logits that are right
        >>> scores = rng.random(2000) < 1 / (1 + np.exp(-truth))
        >>> found = Calibration.fit(3 * truth + 2, np.zeros(2000, int), scores, num_classes=1)
        >>> found.before.error > 0.1, found.after.error < 0.03
        (True, True)
        >>> print(found.probabilities(np.array([[2.0]])).round(1))  # of a logit that should be 0
        [[0.5]]
    """

    slopes: _Floats
    biases: _Floats
    rated: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    before: Reliability
    after: Reliability
    thresholds: _Floats | None = None
    source: str = ""
    is_sample: bool = False
    date: str = ""
    weights: str = ""

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.slopes)

    @property
    def changes(self) -> bool:
        """Whether it changes any probability."""
        return bool((self.slopes != 1).any() or self.biases.any())

    def probabilities(self, logits: np.ndarray | Tensor) -> Any:
        """Returns the probabilities (..., C) of a model's logits, of the same type."""
        if isinstance(logits, Tensor):
            slopes, biases = (
                torch.as_tensor(values, dtype=logits.dtype, device=logits.device)
                for values in (self.slopes, self.biases)
            )
            return (logits * slopes + biases).sigmoid()
        return sigmoid(logits * self.slopes + self.biases).astype(logits.dtype)

    @staticmethod
    def fit(
        logits: npt.ArrayLike,
        labels: npt.ArrayLike,
        scores: npt.ArrayLike,
        *,
        num_classes: int,
        groups: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Calibration:
        """Fits temperatures and biases to rated pairs, by penalised maximum likelihood.

        All classes share a temperature and a bias, from which a class deviates as far as its own
        ratings tell. How far it may, and whether anything is changed at all, is decided by
        cross-validation over groups: without evidence that it predicts the ratings of other groups
        better than the model does, the probabilities stay those of the model.

        Source: Platt, *Probabilistic outputs for support vector machines*, 1999; Guo et al., *On
        calibration of modern neural networks*, 2017.

        Args:
            logits: (R,) a model's logits of pairs of a segment and a class.
            labels: (R,) the numbers of their classes.
            scores: (R,) their ratings, in [0, 1].
            num_classes: The number of classes C.
            groups: (R,) numbers, equal for pairs that are not independent: those of a video;
                default: all are.
            weights: (R,) the weights of the pairs; default: 1.

        Raises:
            pyseg.errors.ArgumentError: The shapes differ, or a value is out of its range.
        """
        pairs = _checked(logits, labels, scores, num_classes, groups, weights)
        slopes, biases = _choose(pairs, num_classes)
        predicted = _cross_validated(pairs, num_classes)
        better = _losses(pairs.logits, pairs.scores) - _losses(predicted, pairs.scores)
        if pairs.weights @ better <= 0 or not ((slopes != 1).any() or biases.any()):
            slopes, biases = _unchanged(num_classes)
            predicted = pairs.logits
        before, after = (reliability(sigmoid(z), pairs.scores) for z in (pairs.logits, predicted))
        return Calibration(
            slopes=slopes,
            biases=biases,
            rated=np.bincount(pairs.labels, minlength=num_classes),
            positives=np.bincount(pairs.labels[pairs.scores > 0.5], minlength=num_classes),
            before=before,
            after=after,
        )

    def with_thresholds(self, logits: np.ndarray) -> Calibration:
        """Chooses the threshold of each class that maximises the expected F1 of its segments.

        Of segments with the probabilities p, the expected F1 of those above a threshold is about
        2 sum(p above it) / (number above it + sum(p)). It is largest at half of its own maximum, so
        that no threshold is above 0.5. Classes of which less than one positive is expected get the
        threshold of all classes together.

        Source: Lipton, Elkan and Naryanaswamy, *Optimal thresholding of classifiers to maximize F1
        measure*, 2014.

        Args:
            logits: (S, C) a model's logits of segments, rated or not, of videos that it was not
                trained on.

        Raises:
            pyseg.errors.ArgumentError: There is no segment, or the number of classes differs.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or not len(logits):
            raise ArgumentError(
                f"logits: expected the shape (S, {self.num_classes}) with S of at least 1, found "
                f"{logits.shape}"
            )
        probabilities = self.probabilities(logits)
        common = _best_f1(probabilities.reshape(-1, 1))
        own = _best_f1(probabilities)
        few = probabilities.sum(0, dtype=np.float64) < 1
        return replace(self, thresholds=np.where(few, common, own) / 2)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `read` reads, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        columns: dict[str, list[Any]] = {
            "temperature": (1 / self.slopes).tolist(),
            "bias": self.biases.tolist(),
            "rated": self.rated.tolist(),
            "positives": self.positives.tolist(),
        }
        if self.thresholds is not None:
            columns["threshold"] = self.thresholds.tolist()
        content = {
            "format_version": FORMAT_VERSION,
            "source": self.source,
            "is_sample": self.is_sample,
            "date": self.date,
            "weights": self.weights,
            "before": _described(self.before),
            "after": _described(self.after),
            "classes": columns,
        }
        write_file(
            Path(path_text(path)), (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
        )

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Calibration:
        """Reads a file that `write` wrote.

        Raises:
            pyseg.errors.DataError: Its content is something else; the message names the file.
            OSError: It cannot be read.
        """
        content = _File(path_text(path), read_json(path_text(path)))
        content.check(content.value("format_version", int) == FORMAT_VERSION, "format_version", "1")
        columns = _File(content.path, content.value("classes", dict), "classes.")
        temperatures = columns.numbers("temperature", 1 / _LARGEST, _LARGEST)
        count = len(temperatures)
        rated, positives = (
            columns.numbers(name, 0, 2**53, count, whole=True) for name in ("rated", "positives")
        )
        thresholds = None
        if "threshold" in columns.content:
            thresholds = columns.numbers("threshold", 0, 1, count)
        return Calibration(
            slopes=1 / temperatures,
            biases=columns.numbers("bias", -_LARGEST, _LARGEST, count),
            rated=rated.astype(np.int64),
            positives=positives.astype(np.int64),
            before=_reliability_in(content, "before"),
            after=_reliability_in(content, "after"),
            thresholds=thresholds,
            source=content.value("source", str),
            is_sample=content.value("is_sample", bool),
            date=content.value("date", str),
            weights=content.value("weights", str),
        )


def _best_f1(probabilities: np.ndarray) -> _Floats:
    """Returns the largest expected F1 (C,) that thresholds of probabilities (S, C) have."""
    best = np.empty(probabilities.shape[1])
    for column, values in enumerate(probabilities.T):  # one at a time, for its memory
        ranked = np.sort(values.astype(np.float64))[::-1]
        hits = np.cumsum(ranked)
        best[column] = (2 * hits / (np.arange(1, len(ranked) + 1) + hits[-1])).max()
    return best


class _File:
    """A JSON object of a file, whose values are checked.

    Args:
        path: The file.
        content: The object.
        prefix: The place of its keys, for messages.
    """

    def __init__(self, path: str, content: Any, prefix: str = "") -> None:
        self.path, self.content, self._prefix = path, content, prefix
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}")

    def check(self, good: bool, key: str, expected: str) -> None:
        if not good:
            found = f"{self.content[key]!r:.60}" if key in self.content else "none"
            raise DataError(f"{self.path}: {self._prefix}{key}: expected {expected}, found {found}")

    def value(self, key: str, kind: type) -> Any:
        self.check(type(self.content.get(key)) is kind, key, f"a value of type {kind.__name__}")
        return self.content[key]

    def number(self, key: str) -> float:
        value = self.content.get(key)
        self.check(is_number(value) and 0 <= value <= 1, key, "a number in [0, 1]")
        return float(self.content[key])

    def numbers(
        self, key: str, least: float, most: float, count: int | None = None, *, whole: bool = False
    ) -> _Floats:
        values = self.value(key, list)
        kinds = (int,) if whole else (int, float)
        good = values and all(type(value) in kinds and least <= value <= most for value in values)
        self.check(
            bool(good) and count in (None, len(values)),
            key,
            f"{'' if count is None else f'{count} '}numbers in [{least:g}, {most:g}]",
        )
        return np.array(values, np.float64)


def _described(found: Reliability) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in vars(found).items()
    }


def _reliability_in(content: _File, key: str) -> Reliability:
    part = _File(content.path, content.value(key, dict), f"{key}.")
    probabilities = part.numbers("probabilities", 0, 1)
    count = len(probabilities)
    return Reliability(
        probabilities=probabilities,
        shares=part.numbers("shares", 0, 1, count),
        counts=part.numbers("counts", 1, 2**53, count, whole=True).astype(np.int64),
        **{name: part.number(name) for name in ("error", "noise", "brier")},
    )


_Parameters = tuple[_Floats, _Floats]
"""The slopes and biases of all classes, (C,) each."""


def _checked(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    num_classes: int,
    groups: npt.ArrayLike | None,
    weights: npt.ArrayLike | None,
) -> Pairs:
    """Checks the arguments of `Calibration.fit`."""
    values = np.asarray(logits, np.float64)
    count = values.shape
    pairs = Pairs(
        values,
        np.asarray(labels, np.int64),
        np.asarray(scores, np.float64),
        np.arange(values.size) if groups is None else np.asarray(groups, np.int64),
        np.ones(count) if weights is None else np.asarray(weights, np.float64),
    )
    for name, array in pairs._asdict().items():
        if array.shape != count or array.ndim != 1 or not array.size:
            raise ArgumentError(
                f"{name}: expected one number for each of at least one pair, found the shape "
                f"{array.shape}"
            )
    if not np.isfinite(pairs.logits).all():
        raise ArgumentError("logits: expected finite numbers, found others")
    if not ((pairs.scores >= 0) & (pairs.scores <= 1)).all():
        raise ArgumentError("scores: expected numbers in [0, 1], found others")
    if not ((pairs.labels >= 0) & (pairs.labels < num_classes)).all():
        raise ArgumentError(f"labels: expected classes below {num_classes}, found others")
    if not ((pairs.weights >= 0) & np.isfinite(pairs.weights)).all():
        raise ArgumentError("weights: expected finite numbers of at least 0, found others")
    return pairs


def _folds(groups: np.ndarray) -> np.ndarray:
    """Returns the fold of each pair; pairs of a group are in the same one."""
    names, members = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    return (order % min(_FOLDS, len(names)))[members]


def _cross_validated(pairs: Pairs, num_classes: int) -> _Floats:
    """Returns calibrated logits of each pair, chosen and fitted on other groups only."""
    folds = _folds(pairs.groups)
    found = pairs.logits.copy()
    for fold in np.unique(folds):
        inside = folds == fold
        if not inside.all():
            found[inside] = _mapped(_choose(pairs.take(~inside), num_classes), pairs.take(inside))
    return found


def _choose(pairs: Pairs, num_classes: int) -> _Parameters:
    """Fits pairs, with the deviations of classes that predict those of other groups best."""
    same = _unchanged(num_classes)
    folds = _folds(pairs.groups)
    if not folds.any():
        return same
    losses = np.zeros((len(_OF_CLASS), len(pairs.logits)))
    for fold in np.unique(folds):
        inside = folds == fold
        others, own = pairs.take(~inside), pairs.take(inside)
        for losses_of, deviations in zip(losses, _OF_CLASS, strict=True):
            fitted = _fit(others, num_classes, np.array(deviations))
            losses_of[inside] = _losses(_mapped(fitted, own), own.scores)
    change = (losses - _losses(pairs.logits, pairs.scores)) @ pairs.weights
    best = int(change.argmin())
    return _fit(pairs, num_classes, np.array(_OF_CLASS[best])) if change[best] < 0 else same


def _unchanged(num_classes: int) -> _Parameters:
    return np.ones(num_classes), np.zeros(num_classes)


def _mapped(parameters: _Parameters, pairs: Pairs) -> _Floats:
    slopes, biases = parameters
    return slopes[pairs.labels] * pairs.logits + biases[pairs.labels]


def _fit(pairs: Pairs, num_classes: int, deviations: np.ndarray) -> _Parameters:
    """Returns the parameters of the largest penalised likelihood, by Newton's method.

    The parameters are the logarithm of the slope, around the mean logit, and the bias: two shared
    ones, and two of each class that are added to them. Their penalties are those of normal
    distributions around 0. The second derivatives are replaced by Fisher's information, whose
    blocks of classes are independent of each other given the shared ones.

    Args:
        pairs: The pairs.
        num_classes: The number of classes C.
        deviations: (2,) the standard deviations of the classes' parameters; 0: they have none.
    """
    present, members = np.unique(pairs.labels, return_inverse=True)
    pivot = float(pairs.logits.mean())
    x = pairs.logits - pivot
    shared, own = np.zeros(2), np.zeros((len(present), 2))
    shared_penalty = 1 / _SHARED**2
    own_penalty = 1 / deviations**2 if deviations.all() else None

    def objective(shared: np.ndarray, own: np.ndarray) -> float:
        z = _moved(x, pivot, shared, own, members)
        total = pairs.weights @ _losses(z, pairs.scores) + shared_penalty @ shared**2 / 2
        return float(total if own_penalty is None else total + (own**2 @ own_penalty).sum() / 2)

    value = objective(shared, own)
    for _ in range(_STEPS):
        gradient, information = _derivatives(pairs, x, pivot, shared, own, members)
        step, own_step = _newton(
            gradient, information, shared, own, np.diag(shared_penalty), own_penalty
        )
        size = 1.0
        while (next_value := objective(shared - size * step, own - size * own_step)) > value:
            size /= 2
            if size < 1e-6:
                break
        if next_value > value - 1e-9 * len(x):
            break
        shared, own, value = shared - size * step, own - size * own_step, next_value
    total = np.broadcast_to(shared, (num_classes, 2)).copy()
    total[present] += own
    slopes = np.exp(total[:, 0])
    return slopes, pivot * (1 - slopes) + total[:, 1]


def _moved(
    x: np.ndarray, pivot: float, shared: np.ndarray, own: np.ndarray, members: np.ndarray
) -> _Floats:
    """Returns calibrated logits of logits around a pivot."""
    total = (shared + own)[members]
    moved: _Floats = np.exp(total[:, 0]) * x + pivot + total[:, 1]
    return moved


def _derivatives(
    pairs: Pairs,
    x: np.ndarray,
    pivot: float,
    shared: np.ndarray,
    own: np.ndarray,
    members: np.ndarray,
) -> tuple[_Floats, _Floats]:
    """Returns the gradient (P, 2) and the information (P, 2, 2) of the P classes' likelihoods."""
    z = _moved(x, pivot, shared, own, members)
    p = sigmoid(z)
    jacobian = np.stack((z - pivot - (shared + own)[members, 1], np.ones(len(x))))
    errors, curvatures = pairs.weights * (p - pairs.scores), pairs.weights * p * (1 - p)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(members, values, minlength=len(own))

    gradient = np.stack([sums(errors * row) for row in jacobian], -1)
    information = np.stack(
        [np.stack([sums(curvatures * a * b) for a in jacobian], -1) for b in jacobian], -1
    )
    return gradient, information


def _newton(
    gradient: np.ndarray,
    information: np.ndarray,
    shared: np.ndarray,
    own: np.ndarray,
    shared_penalty: np.ndarray,
    own_penalty: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps of the shared parameters (2,) and of the classes' (P, 2)."""
    total = gradient.sum(0) + shared_penalty @ shared
    square = information.sum(0) + shared_penalty
    if own_penalty is None:
        return np.linalg.solve(square, total), np.zeros_like(own)
    of_class = gradient + own * own_penalty
    blocks = information + np.diag(own_penalty)
    solved = np.linalg.solve(blocks, np.concatenate((information, of_class[..., None]), -1))
    square = square - (information @ solved[..., :2]).sum(0)
    total = total - (information @ solved[..., 2:])[..., 0].sum(0)
    step = np.linalg.solve(square, total)
    return step, solved[..., 2] - solved[..., :2] @ step


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities that logits stand for, of the same shape and type."""
    values: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits))  # no overflow
    return values


def _losses(logits: np.ndarray, scores: np.ndarray) -> _Floats:
    """Returns the negative logarithm of the probability of each score."""
    losses: _Floats = np.logaddexp(0.0, logits) - scores * logits
    return losses
