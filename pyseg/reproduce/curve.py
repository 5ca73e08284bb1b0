"""The table "curve": what is closed of the gap to complete labels, by the number of videos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyseg._charts import new_axes, new_figure, png
from pyseg._files import write_file
from pyseg._progress import Progress
from pyseg._table import Table
from pyseg._text import counted
from pyseg.reproduce.comparisons import Comparison, curve_lines
from pyseg.reproduce.config import ReproduceConfig
from pyseg.reproduce.estimates import Estimate, Outcome, gaps_closed
from pyseg.reproduce.experiments import Experiment
from pyseg.reproduce.output import can_draw, draw_band, write_json
from pyseg.reproduce.runner import Runner, run_all

SHARES = (0.125, 0.25, 0.5, 1.0)
"""The shares of the videos to train on."""


class Point(NamedTuple):
    """The results of a model's targets for a number of videos.

    Attributes:
        line: The model, and its targets from plain to complete ones.
        videos: The number of training videos.
        outcomes: The result of each kind of targets.
    """

    line: Comparison
    videos: int
    outcomes: list[Outcome]


def run_curve(config: ReproduceConfig, experiment: Experiment) -> None:
    """Trains all points and writes ``curve.md``, ``curve.json`` and ``curve.png``."""
    out = config.out_folder
    runner = Runner(experiment, out / "runs", device=config.device)
    points: list[Point] = []
    lines = curve_lines(experiment)
    runs = len(SHARES) * sum(len(line.variants) for line in lines) * len(config.used_seeds)
    began = time.perf_counter()
    with Progress("reproduce", "runs", runs) as bar:
        for share in SHARES:
            videos = experiment.training_examples(share)
            for line in lines:
                outcomes = [
                    run_all(runner, replace(variant, share=share), config.used_seeds, bar)
                    for variant in line.variants
                ]
                points.append(Point(line, videos, outcomes))
                bar.write(f"curve: {' | '.join(_row(points[-1], _measure(experiment)))}")
                _write_all(out, config, experiment, points)
    print(f"{time.perf_counter() - began:.0f} s; written: {out / 'curve.md'}")


def _measure(experiment: Experiment) -> str:
    return next(iter(experiment.measures))  # the decisive one


def _row(point: Point, measure: str) -> list[str]:
    closed = gaps_closed(point.outcomes, measure)
    shares = ["", ""] if closed is None else [gap.text(".0%") for gap in closed[1:-1]]
    values = [Estimate.of(outcome.values(measure)).text(".3f") for outcome in point.outcomes]
    return [point.line.title, f"{point.videos:,}", *values, *shares]


def describe_points(points: Sequence[Point], measure: str) -> str:
    """Returns the points as a Markdown table, model by model."""
    names = [variant.name for variant in points[0].line.variants]
    head = ["", "videos", *names, *(f"{name}, of the gap" for name in names[1:-1])]
    rows = [_row(point, measure) for title in _titles(points) for point in _of(points, title)]
    return Table(head, rows, numeric=range(1, len(head))).markdown()


def _titles(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.line.title for point in points))


def _of(points: Sequence[Point], title: str) -> list[Point]:
    return [point for point in points if point.line.title == title]


def draw_points(points: Sequence[Point], measure: str) -> bytes:
    """Draws a panel for each model, with two standard errors; returns a PNG."""
    titles = _titles(points)
    figure = new_figure(1.0 + 3.6 * len(titles), 3.8)
    highest = max(np.max(o.values(measure)) for point in points for o in point.outcomes)
    for number, title in enumerate(titles, 1):
        axes = new_axes(figure, title, "training videos", (1, len(titles), number))
        own = _of(points, title)
        videos = [point.videos for point in own]
        for place, variant in enumerate(own[0].line.variants):
            values = np.array([point.outcomes[place].values(measure) for point in own]).T
            draw_band(axes, videos, values, place, variant.name, "o-")
        axes.set_xscale("log", base=2)
        axes.set_xticks(videos, [f"{number:,}" for number in videos])
        axes.minorticks_off()
        axes.set_ylim(0, 1.05 * highest)
        if number == 1:
            axes.set_ylabel("MAP, held-out videos")
            axes.legend(fontsize=8, frameon=False)
    return png(figure)


def _write_all(
    out: Path, config: ReproduceConfig, experiment: Experiment, points: Sequence[Point]
) -> None:
    seeds, measure = len(config.used_seeds), _measure(experiment)
    held_out = " Held out: the validation part." * (experiment.part == "validation")
    lines = [
        f"# Learning curves on {experiment.name}",
        "",
        f"{measure}: {experiment.measures[measure]}. {counted(seeds, 'seed')}, mean ± "
        "standard error over seeds; shares of the gap between plain targets and complete labels "
        f"with a second one over classes (bootstrap).{held_out}",
        "",
        describe_points(points, measure),
        "",
    ]
    write_file(out / "curve.md", "\n".join(lines).encode())
    described = [
        {
            "model": point.line.title,
            "videos": point.videos,
            measure: {o.variant.name: o.values(measure).tolist() for o in point.outcomes},
        }
        for point in points
    ]
    write_json(out / "curve.json", config, experiment, {"points": described})
    if can_draw():
        write_file(out / "curve.png", draw_points(points, measure))
