"""The section of precision-recall curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pyseg.report.charts import Series, steps, thin
from pyseg.report.config import ReportConfig
from pyseg.report.page import Figure, Section
from pyseg.report.runs import (
    BEST_LABELS,
    EvaluatedRun,
    ReportedRun,
    comparable,
    evaluated,
    not_evaluated,
)

_CURVES = 6  # classes with their own precision-recall curve
_CURVE_POINTS = 1000
_THRESHOLDS = np.linspace(0.0, 1.0, 201)

_PAIRS = {
    True: "the rated pairs of a segment and a class",
    False: f"the {BEST_LABELS} best classes of every video; recall is of all labels",
}


def precision_recall_curves(runs: Sequence[ReportedRun], config: ReportConfig) -> Section:
    """Returns the section."""
    section = Section(
        "Precision and recall",
        "Precision and recall at every threshold of the probability, of all pairs together "
        f"(micro-averaged) and of the classes with the most positives, on {config.evaluated_on}.",
        missing=not_evaluated(runs),
    )
    for rated in (True, False):
        group = [member for member in evaluated(runs) if member.evaluation.rated == rated]
        if group:
            curves = [_micro_averaged(member) for member in group]
            section.figures.append(_all_classes(group, curves, _PAIRS[rated]))
            section.figures += list(map(_thresholds, group, curves))
    section.figures += [_single_classes(group[0]) for group in comparable(runs)]
    return section


_Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def _micro_averaged(member: EvaluatedRun) -> _Curve:
    """Returns the curve of all pairs together, see `precision_recall`."""
    own = member.evaluation
    return precision_recall(own.scores, own.relevant, int(own.precision.positives.sum()))


def _all_classes(group: Sequence[EvaluatedRun], curves: Sequence[_Curve], pairs: str) -> Figure:
    """Draws the micro-averaged curves of runs with the same kind of truth."""
    series, points = [], []
    for (number, run, _), curve in zip(group, curves, strict=True):
        best = _best_f1(*curve)
        series.append(_series(number, f"{run.name}: {best.text}", *curve))
        points.append((best.recall, best.precision))
    return steps(
        "precision, all classes",
        "Micro-averaged precision over recall: " + ", ".join(member.run.name for member in group),
        "recall",
        series,
        points,
        caption=f"Over {pairs}. Dot: the best F1, and the probabilities p taken for it.",
    )


def _thresholds(member: EvaluatedRun, curve: _Curve) -> Figure:
    """Draws precision, recall and F1 over the threshold."""
    run = member.run
    best = _best_f1(*curve)
    values = at_thresholds(*curve, _THRESHOLDS)
    names = ("precision", "recall", "F1")
    return steps(
        f"precision and recall by threshold: {run.name}",
        f"Precision, recall and F1 over the threshold of the probability: {run.name}",
        "threshold",
        [Series(place, name, _THRESHOLDS, values[place]) for place, name in enumerate(names)],
        caption=f"{run.name}, all classes together. Dotted: {best.text}.",
        borders=[(len(names) - 1, best.probability)],
        stepped=False,
    )


def _single_classes(member: EvaluatedRun) -> Figure:
    """Draws the curves of the classes with the most positives."""
    _, run, own = member
    positives = own.precision.positives
    most = np.argsort(-positives, kind="stable")[:_CURVES]
    curves = []
    for place, c in enumerate(most[positives[most] > 0].tolist()):
        of_class = own.classes == c
        curve = precision_recall(own.scores[of_class], own.relevant[of_class], int(positives[c]))
        name = f"{own.precision.per_class[c]:.2f} {run.class_name(c)}"
        curves.append(_series(place, name, *curve))
    return steps(
        f"precision of classes: {run.name}",
        f"Precision over recall of the classes with the most positives: {run.name}",
        "recall",
        curves,
        caption=f"{run.name}, over {_PAIRS[own.rated]}; with the average precision of each.",
    )


def _series(
    number: int, name: str, recall: np.ndarray, precision: np.ndarray, threshold: np.ndarray
) -> Series:
    """Returns a precision-recall curve with no more points than a chart can show."""
    kept = thin(np.arange(len(recall)), _CURVE_POINTS)
    texts = [f"p ≥ {p:.2g}" for p in _probability(threshold[kept]).tolist()]
    return Series(number, name, recall[kept], precision[kept], texts)


def _probability(logits: np.ndarray) -> np.ndarray:
    values: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))  # no overflow
    return values


def precision_recall(
    scores: np.ndarray, relevant: np.ndarray, positives: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the precision-recall curve of pairs: one point per distinct score.

    Args:
        scores: (R,) numbers, larger is better.
        relevant: (R,) bool.
        positives: The number of positive pairs, which may include more than the R; default: the
            relevant ones.

    Returns:
        Recall, increasing; precision; and the threshold; (P,) each.

    Example:
        >>> scores, relevant = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False])
        >>> [a.round(2).tolist() for a in precision_recall(scores, relevant)]
        [[0.5, 1.0, 1.0], [1.0, 0.67, 0.5], [0.9, 0.5, 0.1]]
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(relevant[order])
    last = np.flatnonzero(np.diff(ranked, append=np.nan) != 0)  # the last of equal scores
    total = int(relevant.sum()) if positives is None else positives
    return hits[last] / max(total, 1), hits[last] / (last + 1), ranked[last]


def at_thresholds(
    recall: np.ndarray, precision: np.ndarray, threshold: np.ndarray, probabilities: np.ndarray
) -> np.ndarray:
    """Returns precision, recall and F1 of the pairs of at least some probabilities.

    Args:
        recall: (P,) of a precision-recall curve.
        precision: (P,) of the curve.
        threshold: (P,) its logits, decreasing.
        probabilities: (T,) the thresholds.

    Returns:
        (3, T); precision and F1 are NaN where no pair is taken.

    Example:
        >>> curve = np.array([0.5, 1.0]), np.array([1.0, 0.8]), np.array([2.0, 0.0])
        >>> at_thresholds(*curve, np.array([0.5, 0.8, 0.9])).round(2).tolist()
        [[0.8, 1.0, nan], [1.0, 0.5, 0.0], [0.89, 0.67, nan]]
    """
    taken = np.searchsorted(-_probability(threshold), -probabilities, side="right") - 1
    some = taken >= 0
    own_precision = np.where(some, precision[taken], np.nan)
    own_recall = np.where(some, recall[taken], 0.0)
    f1 = 2 * own_precision * own_recall / np.maximum(own_precision + own_recall, 1e-12)
    return np.stack([own_precision, own_recall, f1])


class _Best(NamedTuple):
    """The point of a precision-recall curve with the best F1, and a text that says it."""

    recall: float
    precision: float
    probability: float
    text: str


def _best_f1(recall: np.ndarray, precision: np.ndarray, threshold: np.ndarray) -> _Best:
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    best = int(f1.argmax())
    probability = float(_probability(threshold[best]))
    text = f"F1 {f1[best]:.3f} at p ≥ {probability:.2g}"
    return _Best(float(recall[best]), float(precision[best]), probability, text)
