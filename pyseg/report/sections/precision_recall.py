"""The section of precision-recall curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyseg.report.charts import Series, draw_steps
from pyseg.report.config import ReportConfig
from pyseg.report.page import Picture, Section
from pyseg.report.runs import (
    BEST_LABELS,
    EvaluatedRun,
    ReportedRun,
    comparable,
    evaluated,
    not_evaluated,
)

_CURVES = 6  # classes with their own precision-recall curve
_CURVE_POINTS = 2000

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
            section.pictures.append(_all_classes(group, _PAIRS[rated]))
    section.pictures += [_single_classes(group[0]) for group in comparable(runs)]
    return section


def _all_classes(group: Sequence[EvaluatedRun], pairs: str) -> Picture:
    """Draws the micro-averaged curves of runs with the same kind of truth."""
    curves, points = [], []
    for number, run, own in group:
        total = int(own.precision.positives.sum())
        curve = precision_recall(own.scores, own.relevant, total)
        point, text = _best_f1(*curve)
        curves.append(Series(number, f"{run.name}: {text}", *_thin(*curve[:2])))
        points.append(point)
    return Picture(
        draw_steps("precision, all classes", "recall", curves, points),
        "Micro-averaged precision over recall: " + ", ".join(member.run.name for member in group),
        f"Over {pairs}. Dot: the best F1, and the probabilities p taken for it.",
    )


def _single_classes(member: EvaluatedRun) -> Picture:
    """Draws the curves of the classes with the most positives."""
    _, run, own = member
    positives = own.precision.positives
    most = np.argsort(-positives, kind="stable")[:_CURVES]
    curves = []
    for place, c in enumerate(most[positives[most] > 0].tolist()):
        of_class = own.classes == c
        curve = precision_recall(own.scores[of_class], own.relevant[of_class], int(positives[c]))
        name = f"{own.precision.per_class[c]:.2f} {run.class_name(c)}"
        curves.append(Series(place, name, *_thin(*curve[:2])))
    return Picture(
        draw_steps(f"precision of classes: {run.name}", "recall", curves),
        f"Precision over recall of the classes with the most positives: {run.name}",
        f"{run.name}, over {_PAIRS[own.rated]}; with the average precision of each.",
    )


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


def _best_f1(
    recall: np.ndarray, precision: np.ndarray, threshold: np.ndarray
) -> tuple[tuple[float, float], str]:
    """Returns the point of the best F1, and a text with the F1 and its probability threshold."""
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    best = int(f1.argmax())
    probability = 0.5 * (1 + np.tanh(0.5 * float(threshold[best])))  # no overflow
    point = float(recall[best]), float(precision[best])
    return point, f"F1 {f1[best]:.3f} at p ≥ {probability:.2g}"


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a curve with only as many points as a picture can show, both ends included."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _CURVE_POINTS)).astype(np.int64))
    return x[kept], y[kept]
