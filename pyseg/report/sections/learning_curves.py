"""The section on loss, evaluations and speed during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pyseg.report.charts import Series, curves
from pyseg.report.page import Section
from pyseg.report.runs import ReportedRun

_METRICS = {"map": "MAP@100k", "gap": "GAP@20"}


def learning_curves(runs: Sequence[ReportedRun]) -> Section:
    """Returns the section."""
    section = Section(
        "Learning curves",
        "Loss, evaluations on held-out videos and speed while training, from metrics.jsonl.",
    )
    numbered = list(enumerate(runs))
    for stage in dict.fromkeys(stage for run in runs for stage in run.stages()):
        drawable = _drawable(_curve(n, run, {stage: 0}, "loss") for n, run in numbered)
        if drawable:
            section.figures.append(
                curves(
                    f"loss: {stage}",
                    f"Training loss over the steps of {stage}",
                    f"step of {stage}",
                    drawable,
                    caption="Means of some steps (pale) and their moving average.",
                    smooth=True,
                )
            )
    borders = [(n, end) for n, run in numbered for end in list(run.stage_ends().values())[:-1]]
    for metric, name in _METRICS.items():
        drawable = _drawable(_evaluations(n, run, metric) for n, run in numbered)
        if any(len(curve.x) > len(runs[curve.run].stages()) for curve in drawable):
            section.figures.append(
                curves(
                    f"{name} of held-out videos",
                    f"{name} over steps",
                    "step",
                    drawable,
                    caption="Dotted: where the next stage begins." if borders else "",
                    marks=True,
                    borders=borders,
                )
            )
        elif drawable:  # a line through the ends of the stages would be no curve
            section.missing.append(
                f"{name} was evaluated at the ends of the stages only: see the table above. "
                "--pretrain.evaluate_every and --finetune.evaluate_every of pyseg.train evaluate "
                "more often."
            )
    key = "examples_per_second"
    drawable = _drawable(_curve(n, run, run.stage_starts(), key) for n, run in numbered)
    if drawable:
        section.figures.append(
            curves(
                "examples/s",
                "Examples a second over steps",
                "step",
                drawable,
                caption="Mean since the stage began.",
                from_zero=True,
                borders=borders,
            )
        )
    empty = [run.name for run in runs if not run.stages()]
    if empty:
        section.missing.append(f"Nothing is logged yet: {', '.join(empty)}.")
    return section


def _drawable(curves: Iterable[Series]) -> list[Series]:
    """Returns the curves with at least one point."""
    return [curve for curve in curves if len(curve.x)]


def _curve(number: int, run: ReportedRun, starts: Mapping[str, int], key: str) -> Series:
    """Returns the curve of a logged value over the steps.

    Args:
        number: The number of the run.
        run: The run.
        starts: The stages to show, and the step at which each starts.
        key: The value's key in the log.
    """
    stages = run.stages()
    points: list[tuple[float, float]] = []
    for stage, start in starts.items():
        if points:
            points.append((start, np.nan))  # a gap between the stages
        points += [(start + e["step"], e[key]) for e in stages.get(stage, ()) if key in e]
    return _series(number, run, points)


def _evaluations(number: int, run: ReportedRun, metric: str) -> Series:
    """Returns the curve of a metric of the logged evaluations over the steps of all stages."""
    starts = run.stage_starts()
    points = [
        (starts[evaluation.after] + evaluation.step, evaluation.score)
        for evaluation in run.evaluations()
        if evaluation.after in starts
        and evaluation.step is not None
        and evaluation.metric == metric
    ]
    return _series(number, run, points)


def _series(number: int, run: ReportedRun, points: Sequence[tuple[float, float]]) -> Series:
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    return Series(number, run.name, x, y)
