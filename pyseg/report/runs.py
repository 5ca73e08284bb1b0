"""The data of runs that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyseg import results
from pyseg.calibration import Calibration
from pyseg.config import TrainConfig
from pyseg.labels import LabelCorrelation
from pyseg.metrics import MeanAveragePrecision
from pyseg.runs import Run
from pyseg.timeline import Rating, Timeline

BEST_LABELS = 20
"""Classes per video that count where no segment is rated: as many as in GAP@20."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a part of its data, and the truth.

    Attributes:
        rated: Whether ratings of segments are the truth, or the labels of whole videos.
        precision: The average precision of every class.
        classes: (R,) the classes of R pairs of an example and a class: the rated ones, or those
            with the `BEST_LABELS` highest scores of each video.
        scores: (R,) their logits.
        relevant: (R,) whether they are positive.
        ratings: The ratings of every video, by id; empty lists where nothing is rated.
        has_frames: Whether videos have frames, so that there are scores over time.
    """

    rated: bool
    precision: MeanAveragePrecision
    classes: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray
    ratings: Mapping[str, Sequence[Rating]]
    has_frames: bool


class LoggedEvaluation(NamedTuple):
    """An evaluation in the log of a run.

    Attributes:
        after: The stage of training that it evaluates.
        step: The step of that stage, if the log has it.
        metric: The decisive metric, "map" or "gap".
        score: Its value.
        description: All metrics as one line of text.
    """

    after: str
    step: int | None
    metric: str
    score: float
    description: str

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> LoggedEvaluation:
        """Returns the evaluation in a line of the log."""
        result = results.parse(line)
        text = result.describe()
        return cls(line["after"], line.get("step"), result.measure, result.score, text)


@dataclass
class ReportedRun:
    """Everything that a report shows of a run.

    Attributes:
        folder: The run folder.
        name: The run's name in the report.
        config: Its options.
        log: The lines of its metrics.jsonl.
        is_unfinished: Whether its training can be resumed.
        parameters: The number of its model's parameters; None without weights.
        num_classes: The number of classes C; None without weights.
        class_names: C names, if known.
        numbers: The C classes' numbers in the data; None: the same.
        correlation: The label correlation that it was trained with, if any.
        calibration: What makes probabilities of its logits, if it is calibrated.
        evaluation: Its evaluation, if there is one.
        timelines: Scores of some videos over time.
        missing: Why there is no evaluation.
    """

    folder: Path
    name: str
    config: TrainConfig
    log: list[dict[str, Any]]
    is_unfinished: bool
    parameters: int | None = None
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    numbers: Sequence[int] | None = None
    correlation: LabelCorrelation | None = None
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    timelines: list[Timeline] = field(default_factory=list)
    missing: str | None = None

    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the log's lines by stage, in the order of training, without empty stages."""
        stages: dict[str, list[dict[str, Any]]] = {}
        for line in self.log:
            if line["stage"] != "evaluate" and "step" in line:
                stages.setdefault(line["stage"], []).append(line)
        return stages

    def stage_ends(self) -> dict[str, int]:
        """Returns the last logged step of every stage, counted from the start of the first one."""
        ends, end = {}, 0
        for stage, lines in self.stages().items():
            end += int(lines[-1]["step"])
            ends[stage] = end
        return ends

    def stage_starts(self) -> dict[str, int]:
        """Returns the step at which every stage starts, counted from the start of the first one."""
        ends = self.stage_ends()
        return dict(zip(ends, [0, *ends.values()], strict=False))

    def evaluations(self) -> list[LoggedEvaluation]:
        """Returns the evaluations that training logged."""
        return [
            LoggedEvaluation.of(line)
            for line in self.log
            if line["stage"] == "evaluate" and "after" in line
        ]

    def class_name(self, number: int) -> str:
        """Returns the name of one of the C classes."""
        if self.class_names is None:
            return f"class {self.number_in_data(number)}"
        return self.class_names[number]

    def number_in_data(self, number: int) -> int:
        """Returns the number in the data of one of the C classes."""
        return number if self.numbers is None else self.numbers[number]


def read_run(folder: Path, name: str) -> ReportedRun:
    """Reads a run, without its evaluation.

    Raises:
        pyseg.errors.UserError: The folder is not a run, or one of its files is damaged.
    """
    files = Run(folder)
    run = ReportedRun(folder, name, files.config(), files.log(), files.is_unfinished)
    run.correlation = files.correlation()
    if files.weights_file.is_file():
        model: Any = files.model()
        run.parameters = sum(p.numel() for p in model.parameters())
        run.num_classes = model.config.num_classes
        run.class_names = model.config.class_names
        run.numbers = files.known_classes(model.num_classes)
        run.calibration = files.calibration(model.num_classes)
    return run


def run_names(folders: Sequence[Path]) -> list[str]:
    """Returns short names of runs: their folders' names, or the paths where these are not unique.

    Example:
        >>> run_names([Path("runs/a"), Path("runs/b")]), run_names([Path("old/a"), Path("new/a")])
        (['a', 'b'], ['old/a', 'new/a'])
    """
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def correlation_size(correlation: LabelCorrelation) -> str:
    """Returns a description of the size of a label correlation."""
    return f"{len(correlation.values):,} relations of {correlation.num_classes:,} labels"


class EvaluatedRun(NamedTuple):
    """A run that has been evaluated.

    Attributes:
        number: Its number among all runs.
        run: The run.
        evaluation: Its evaluation.
    """

    number: int
    run: ReportedRun
    evaluation: Evaluation


def evaluated(runs: Sequence[ReportedRun]) -> list[EvaluatedRun]:
    """Returns the runs that have been evaluated."""
    return [
        EvaluatedRun(number, run, run.evaluation)
        for number, run in enumerate(runs)
        if run.evaluation is not None
    ]


def not_evaluated(runs: Sequence[ReportedRun]) -> list[str]:
    """Returns a line for each run that has not been evaluated, with the reason."""
    return [f"{run.name} was not evaluated: {run.missing}" for run in runs if run.missing]


def comparable(runs: Sequence[ReportedRun]) -> list[list[EvaluatedRun]]:
    """Returns the evaluated runs, grouped by equal classes and truth."""
    groups: list[list[EvaluatedRun]] = []
    for member in evaluated(runs):
        for group in groups:
            if _is_comparable(group[0], member):
                group.append(member)
                break
        else:
            groups.append([member])
    return groups


def _is_comparable(first: EvaluatedRun, other: EvaluatedRun) -> bool:
    a, b = first.evaluation.precision, other.evaluation.precision
    return (
        first.evaluation.rated == other.evaluation.rated
        and first.run.class_names == other.run.class_names
        and np.array_equal(a.positives, b.positives)
        and np.array_equal(a.rated, b.rated)
    )
