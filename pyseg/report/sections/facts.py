"""The section on what each run trained, and on which data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyseg.config import TrainConfig, flat_options
from pyseg.report.charts import color
from pyseg.report.page import PageTable, Section
from pyseg.report.runs import ReportedRun, correlation_size

_OWN_ROWS = ("data", "model", "copies", "run", "resume")  # options shown in other rows

_Row = tuple[str, Iterable[object]]  # a name and a value for every run


def facts(runs: Sequence[ReportedRun]) -> Section:
    """Returns the section."""
    rows = [*_results(runs), *_changed_options(runs)]
    texts = [[name, *("–" if v is None else str(v) for v in values)] for name, values in rows]
    table = PageTable(
        head=["", *(run.name for run in runs)],
        rows=[row for row in texts if set(row[1:]) != {"–"}],
        colors=[color(number) for number in range(len(runs))],
    )
    return Section(
        "Runs",
        "Model and data of each run, from its config.yaml, model.json and metrics.jsonl; "
        "of the options, those that differ from the defaults.",
        [table],
    )


def _results(runs: Sequence[ReportedRun]) -> list[_Row]:
    rows: list[_Row] = [
        ("folder", (run.folder for run in runs)),
        ("state", map(_state, runs)),
        ("data", (run.config.data for run in runs)),
        ("classes", (run.num_classes for run in runs)),
        ("model", (run.config.trained for run in runs)),
        ("parameters", (run.parameters and f"{run.parameters:,}" for run in runs)),
    ]
    for stage in dict.fromkeys(stage for run in runs for stage in run.stages()):
        rows.append((stage, [_progress(run, stage) for run in runs]))
        rows.append((f"after {stage}", [_best_evaluation(run, stage) for run in runs]))
    sizes = (run.correlation and correlation_size(run.correlation) for run in runs)
    return [*rows, ("label correlation", sizes)]


def _changed_options(runs: Sequence[ReportedRun]) -> list[_Row]:
    """Returns a row for every option that differs from its default in some run."""
    default = _options(TrainConfig())
    options = [_options(run.config) for run in runs]
    rows: list[_Row] = []
    for name in dict.fromkeys(name for given in options for name in given):
        values = [given.get(name) for given in options]
        if any(value != default.get(name) for value in values):
            usual = f" (default {default[name]})" if default.get(name) is not None else ""
            rows.append((f"{name}{usual}", values))
    return rows


def _options(config: TrainConfig) -> dict[str, Any]:
    """Returns options by their names on the command line, without those that have rows."""
    return {key: value for key, value in flat_options(config).items() if key not in _OWN_ROWS}


def _state(run: ReportedRun) -> str:
    if run.is_unfinished:
        return "unfinished: python -m pyseg.train --resume continues"
    return "finished" if run.log else "nothing logged"


def _progress(run: ReportedRun, stage: str) -> str | None:
    lines = run.stages().get(stage)
    if not lines:
        return None
    step = lines[-1]["step"]
    options = getattr(run.config, stage, None)
    text = f"{step:,} steps" if options is None else f"{step:,} of {options.steps:,} steps"
    rate = next((r for line in reversed(lines) if (r := line.get("examples_per_second"))), None)
    if options is not None and rate:
        seconds = step * options.batch_size / rate
        duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        text += f" of {options.batch_size} in {duration} ({rate:,.0f} examples/s)"
    skipped = sum(bool(line.get("skipped")) for line in lines)
    return text + (f", {skipped} batches skipped" if skipped else "")


def _best_evaluation(run: ReportedRun, stage: str) -> str | None:
    """Returns a description of the best evaluation of a stage, whose weights were kept."""
    found = [evaluation for evaluation in run.evaluations() if evaluation.after == stage]
    if not found:
        return None
    best = max(found, key=lambda evaluation: np.nan_to_num(evaluation.score, nan=-1.0))
    at = f"step {best.step:,}: " if len(found) > 1 and best.step is not None else ""
    return at + best.description
