"""The section on whether probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pyseg.calibration import sigmoid
from pyseg.metrics import Reliability, reliability
from pyseg.report.charts import Series, shares
from pyseg.report.config import ReportConfig
from pyseg.report.page import Figure, PageTable, Section
from pyseg.report.runs import ReportedRun, not_evaluated

_HEAD = ("run", "probabilities", "ratings", "calibration error", "of perfect ones", "Brier score")


def probabilities(runs: Sequence[ReportedRun], config: ReportConfig) -> Section:
    """Returns the section."""
    section = Section(
        "Reliability of probabilities",
        "How often a rating is positive where the model says p, in bins of equally many ratings: "
        "on the diagonal, probabilities mean what they say. The calibration error is the mean "
        "distance from it; perfect probabilities have one, too, as ratings are few.",
        missing=[line for run in runs if run.calibration is None for line in not_evaluated([run])],
    )
    rows = []
    for run in runs:
        found = _found(run)
        if not found:
            continue
        section.figures.append(_figure(run, found))
        section.missing += _caveats(run, config)
        rows += [_row(run, name, one) for name, one in found]
    if rows:
        section.tables.append(PageTable(_HEAD, rows, numeric=range(2, len(_HEAD))))
    return section


def _found(run: ReportedRun) -> list[tuple[str, Reliability]]:
    """Returns the reliability of a run's probabilities, and of calibrated ones if there are any."""
    if run.calibration is not None:
        return [
            ("before calibration", run.calibration.before),
            ("calibrated", run.calibration.after),
        ]
    if run.evaluation is None or not run.evaluation.rated:
        return []
    logits = run.evaluation.scores.astype(np.float64)
    found = reliability(sigmoid(logits), run.evaluation.relevant)
    return [("not calibrated", found)]


def _caveats(run: ReportedRun, config: ReportConfig) -> list[str]:
    """Returns what a reader should know of the ratings."""
    if run.calibration is None:
        return [
            f"{run.name} is not calibrated: python -m pyseg.calibrate --run {run.folder}. The "
            f"ratings, of {config.evaluated_on}, may not be a random sample."
        ]
    if run.calibration.is_sample:
        return []
    return [
        f"{run.name}: the ratings may not be a random sample; for segments that nobody chose, the "
        "shares may be others."
    ]


def _figure(run: ReportedRun, found: Sequence[tuple[str, Reliability]]) -> Figure:
    series = []
    for number, (name, one) in enumerate(found):
        low, high = one.intervals
        texts = [
            f"{count:,} ratings, 95% interval {least:.2f} to {most:.2f}"
            for count, least, most in zip(one.counts.tolist(), low, high, strict=True)
        ]
        counts = [f"{count:,}" for count in one.counts.tolist()]
        series.append(
            (Series(number, name, one.probabilities, one.shares, texts, counts), low, high)
        )
    rests = (
        "" if run.calibration is None else f", from {run.calibration.source}, by cross-validation"
    )
    return shares(
        f"share of positives by probability: {run.name}",
        f"Share of positive ratings over the probability that {run.name} gives them",
        ("probability", "share of positives"),
        series,
        caption=f"{run.name}{rests}. Upright lines: 95% intervals of the shares.",
    )


def _row(run: ReportedRun, name: str, found: Reliability) -> tuple[str, ...]:
    return (
        run.name,
        name,
        f"{found.counts.sum():,}",
        f"{found.error:.3f}",
        f"{found.noise:.3f}",
        f"{found.brier:.4f}",
    )
