"""The tables as Markdown, JSON and pictures."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyseg
from pyseg._charts import color, label, new_axes, new_figure, png
from pyseg._files import write_file
from pyseg._table import Table
from pyseg._text import counted
from pyseg.reproduce.comparisons import Comparison
from pyseg.reproduce.config import ReproduceConfig
from pyseg.reproduce.estimates import Estimate, Outcome, differences, gaps_closed
from pyseg.reproduce.experiments import Experiment


def describe(comparison: Comparison, outcomes: Sequence[Outcome], measures: Sequence[str]) -> str:
    """Returns a comparison as a Markdown table, beside the paper's numbers if there are any."""
    head = [""]
    columns = [[outcome.variant.name.replace("  ", "– ") for outcome in outcomes]]
    papers = [outcome.variant.paper for outcome in outcomes]
    if any(paper is not None for paper in papers):
        head.append("paper")
        columns.append(["" if paper is None else f"{paper:.3f}" for paper in papers])
    for measure in measures:
        head += [measure, "difference"]
        columns.append([Estimate.of(outcome.values(measure)).text(".3f") for outcome in outcomes])
        compared = [""] + [
            difference.text("+.3f") + " *" * difference.is_clear
            for difference in differences(outcomes, measure)[1:]
        ]
        columns.append(compared)
        if comparison.ceiling and (closed := gaps_closed(outcomes, measure)) is not None:
            head.append("of the gap")
            columns.append([gap.text(".0%") for gap in closed])
    rows = list(zip(*columns, strict=True))
    title = f"## {'Table ' * comparison.name.isdigit()}{comparison.name}: {comparison.title}"
    return f"{title}\n\n{Table(head, rows, numeric=range(1, len(head))).markdown()}\n"


def result_line(table: str, outcome: Outcome) -> str:
    """Returns a row of a table as a line to print."""
    means = (f"{m} {Estimate.of(outcome.values(m)).text('.4f')}" for m in outcome.classes)
    return f"{table}: {outcome.variant.name.strip()}: {', '.join(means)}"


def to_json(
    comparison: Comparison, outcomes: Sequence[Outcome], measures: Sequence[str]
) -> dict[str, Any]:
    """Returns a comparison with the values of every seed and their statistics."""
    rows = []
    compared = {measure: differences(outcomes, measure) for measure in measures}
    closed = {m: gaps_closed(outcomes, m) for m in measures} if comparison.ceiling else {}
    for number, outcome in enumerate(outcomes):
        variant = outcome.variant
        row: dict[str, Any] = {"name": variant.name.strip(), "paper": variant.paper}
        row["seconds_a_run"] = round(outcome.seconds, 1)
        row["loss"] = asdict(variant.loss)
        row["model"] = asdict(variant.model) | {"copies": variant.copies}
        for measure in measures:
            row[measure] = {
                "values": outcome.values(measure).tolist(),
                **_plain(Estimate.of(outcome.values(measure))),
                "difference": _plain(compared[measure][number]),
            }
            if (gaps := closed.get(measure)) is not None:
                row[measure]["gap_closed"] = _plain(gaps[number])
        rows.append(row)
    return {"table": comparison.name, "title": comparison.title, "rows": rows}


def _plain(estimate: Estimate) -> dict[str, float | None]:
    """Returns an estimate for JSON, which has no NaN."""
    names = ("mean", "standard_error", "standard_error_over_classes")
    found = zip(names, estimate, strict=True)
    return {name: None if math.isnan(value) else value for name, value in found}


def can_draw() -> bool:
    """Returns whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(comparison: Comparison, outcomes: Sequence[Outcome], measures: Sequence[str]) -> bytes:
    """Draws the mean, two standard errors and the paper's number of every row; returns a PNG."""
    panels = [
        (measure, [Estimate.of(outcome.values(measure)) for outcome in outcomes])
        for measure in measures
    ]
    papers = [outcome.variant.paper for outcome in outcomes]
    if any(paper is not None for paper in papers):
        own = [Estimate(math.nan if paper is None else paper, math.nan) for paper in papers]
        panels.append(("the paper's map@100k", own))
    names = [label(outcome.variant.name, 48) for outcome in outcomes]
    figure = new_figure(2.6 + 2.9 * len(panels), 1.0 + 0.3 * len(names))
    places = np.arange(len(names))
    for number, (x_label, estimates) in enumerate(panels, 1):
        is_first = number == 1
        place = (1, len(panels), number)
        axes = new_axes(figure, comparison.title if is_first else "", x_label, place)
        means, errors, _ = np.array(estimates).T
        axes.errorbar(
            means, places, xerr=2 * np.nan_to_num(errors), fmt="o", color=color(number - 1),
            markersize=5, capsize=2,
        )  # fmt: skip
        axes.set_yticks(places, names if is_first else [])
        axes.set_ylim(len(names) - 0.5, -0.5)
    return png(figure)


def draw_band(
    axes: Any, x: Sequence[float], values: np.ndarray, number: int, name: str, style: str = "-"
) -> None:
    """Draws a mean curve with two standard errors.

    Args:
        axes: Where to draw.
        x: The P places.
        values: (seeds, P).
        number: The number of the curve, which decides its color.
        name: Its name in the legend.
        style: Its line and markers, as matplotlib has them.
    """
    means = values.mean(0)
    axes.plot(x, means, style, markersize=4, color=color(number), label=name)
    if len(values) > 1:
        error = 2 * values.std(0, ddof=1) / math.sqrt(len(values))
        axes.fill_between(
            x, means - error, means + error, color=color(number), alpha=0.15, linewidth=0
        )


def write_json(
    path: Path, config: ReproduceConfig, experiment: Experiment, numbers: dict[str, Any]
) -> None:
    """Writes numbers as JSON, after what describes the experiment and the options."""
    described = {
        "protocol": experiment.name,
        "part": experiment.part,
        "quick": config.quick,
        "seeds": len(config.used_seeds),
        "pyseg": pyseg.__version__,
        "torch": torch.__version__,
    }
    write_file(path, f"{json.dumps(described | numbers, indent=2)}\n".encode())


class Results:
    """The results so far in the folder of a command.

    Args:
        config: The command's options.
        experiment: The experiment.
    """

    def __init__(self, config: ReproduceConfig, experiment: Experiment) -> None:
        self.folder = config.out_folder
        self.tables_file = self.folder / "tables.md"
        self._config = config
        self._experiment = experiment
        self._texts: list[str] = []
        self._numbers: list[dict[str, Any]] = []

    def add(self, comparison: Comparison, outcomes: Sequence[Outcome]) -> None:
        """Adds a comparison and rewrites the files."""
        measures = list(self._experiment.measures)
        self._texts.append(describe(comparison, outcomes, measures))
        self._numbers.append(to_json(comparison, outcomes, measures))
        if can_draw():
            write_file(
                self.folder / f"table-{comparison.name}.png", draw(comparison, outcomes, measures)
            )
        write_file(self.tables_file, "\n".join([*self._introduction(), *self._texts]).encode())
        numbers = {"measures": dict(self._experiment.measures), "tables": self._numbers}
        write_json(self.folder / "tables.json", self._config, self._experiment, numbers)

    def _introduction(self) -> list[str]:
        """Returns the lines before the first table."""
        experiment, seeds = self._experiment, len(self._config.used_seeds)
        stage = experiment.finetune
        return [
            f"# The paper's tables on {experiment.name}",
            "",
            f"{experiment.description[0].upper()}{experiment.description[1:]}. {stage.steps} steps "
            f"of {stage.batch_size}; {counted(seeds, 'seed')}, mean ± "
            "standard error over seeds; differences are from the first row, seed by seed, with a "
            "second standard error over classes (bootstrap); * marks those of more than two "
            "standard errors, of both together."
            + " Held out: the validation part."
            * (experiment.part == "validation"),
            "",
            *(f"- `{name}`: {text}" for name, text in experiment.measures.items()),
            "",
        ]
