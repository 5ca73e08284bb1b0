"""The table "rating": how few answers are enough if the right questions are asked."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pyseg
from pyseg._charts import new_axes, new_figure, png
from pyseg._containers import parse_json
from pyseg._files import write_file
from pyseg._progress import Progress
from pyseg._table import Table
from pyseg._text import counted
from pyseg.errors import DataError
from pyseg.reproduce.asking import BUDGETS, Asking, Truth, read_truth, simulate
from pyseg.reproduce.config import ReproduceConfig
from pyseg.reproduce.estimates import Estimate
from pyseg.reproduce.experiments import Experiment
from pyseg.reproduce.output import can_draw, draw_band, write_json

ROWS = (
    Asking("random", "random"),
    Asking("uncertain", "uncertain"),
    Asking("change, the default", "change"),
    Asking("  without relations in asking", "change", relates=False),
    Asking("  without relations at all", "change", relates=False, learns_relations=False),
    Asking("  without the random fifth", "change", with_random=False),
    Asking("random, measured with mlp", "random", model="mlp"),
    Asking("change, measured with mlp", "change", model="mlp"),
)
_SHOWN = (10, 20, 30, 40, 50, 60, 80, 100)  # of the budgets


class Curve(NamedTuple):
    """The results of a way of asking.

    Attributes:
        asking: The way of asking.
        values: (seeds, budgets) MAP.
    """

    asking: Asking
    values: np.ndarray

    def needed(self, goal: float) -> Estimate:
        """Returns how many answers a class it takes to reach a MAP; infinite if a seed does not.

        Example:
            >>> values = np.array([[0.005 * budget for budget in BUDGETS]])
            >>> Curve(ROWS[0], values).needed(0.2).mean
            40.0
        """
        budgets = [_crossing(row, goal) for row in self.values]
        if math.isinf(max(budgets)):
            return Estimate(math.inf, math.nan)
        return Estimate.of(budgets)


def _crossing(values: np.ndarray, goal: float) -> float:
    """Returns the budget from which on a curve, linear between budgets, is above a goal."""
    above = np.flatnonzero(values >= goal)
    if not len(above):
        return math.inf
    first = int(above[0])
    if first == 0:
        return float(BUDGETS[0])
    low, high = values[first - 1], values[first]
    share = (goal - low) / (high - low)
    return float(BUDGETS[first - 1] + share * (BUDGETS[first] - BUDGETS[first - 1]))


def run_rating(config: ReproduceConfig, experiment: Experiment) -> None:
    """Simulates all rows and writes ``rating.md``, ``rating.json`` and ``rating.png``."""
    out = config.out_folder
    runs = out / "runs"
    runs.mkdir(exist_ok=True)
    rows = ROWS[:3] if config.quick else ROWS
    truth: Truth | None = None
    curves = []
    began = time.perf_counter()
    with Progress("reproduce", "runs", len(rows) * len(config.used_seeds)) as bar:
        for asking in rows:
            values = []
            for seed in config.used_seeds:
                path = runs / f"rating-{_key(experiment, asking)}-{seed}.json"
                if not path.is_file():
                    truth = truth or read_truth(experiment)
                    write_file(path, json.dumps(simulate(truth, asking, seed)).encode())
                values.append(_read(path))
                bar.update()
            curves.append(Curve(asking, np.array(values)))
            bar.write(f"rating: {asking.name.strip()}: {_text(curves[-1], -1)}")
            _write_all(out, config, experiment, curves)
    print(f"{time.perf_counter() - began:.0f} s; written: {out / 'rating.md'}")


def _key(experiment: Experiment, asking: Asking) -> str:
    options = {
        **asdict(asking),
        "name": None,
        "data": str(experiment.folder.resolve()),
        "part": experiment.part,
        "version": pyseg.__version__,
    }
    text = json.dumps(options, sort_keys=True)
    return f"{asking.strategy}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _read(path: Path) -> list[float]:
    found = parse_json(path.read_bytes(), str(path))
    if not isinstance(found, list) or len(found) != len(BUDGETS):
        raise DataError(f"{path}: expected {len(BUDGETS)} numbers: delete this file")
    return found


def _text(curve: Curve, budget: int) -> str:
    return Estimate.of(curve.values[:, budget].tolist()).text(".3f")


def _goals(curves: Sequence[Curve]) -> Mapping[str, float]:
    """Returns what random questions reach at last, by the model that is measured."""
    randoms = [curve for curve in curves if curve.asking.strategy == "random"]
    return {curve.asking.model: float(curve.values[:, -1].mean()) for curve in randoms}


def describe_curves(curves: Sequence[Curve]) -> str:
    """Returns the table of some curves as Markdown."""
    goals = _goals(curves)
    head = ["", *map(str, _SHOWN), "needed"]
    rows = []
    for curve in curves:
        shown = [_text(curve, BUDGETS.index(budget)) for budget in _SHOWN]
        needed = curve.needed(goals[curve.asking.model])
        text = needed.text(".0f") if math.isfinite(needed.mean) else f"over {BUDGETS[-1]}"
        rows.append([curve.asking.name.replace("  ", "– "), *shown, text])
    return Table(head, rows, numeric=range(1, len(head))).markdown()


def draw_curves(curves: Sequence[Curve]) -> bytes:
    """Draws the mean curves with two standard errors; returns a PNG."""
    figure = new_figure(6.4, 4.0)
    axes = new_axes(figure, "Which questions are asked", "answers a class")
    for number, curve in enumerate(curves):
        draw_band(axes, BUDGETS, curve.values, number, curve.asking.name.strip())
    axes.set_ylabel("MAP, held-out segments")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def _write_all(
    out: Path, config: ReproduceConfig, experiment: Experiment, curves: Sequence[Curve]
) -> None:
    seeds = len(config.used_seeds)
    held_out = " Held out: the validation part." * (experiment.part == "validation")
    lines = [
        f"# Answers needed, on {experiment.name}",
        "",
        "MAP over complete labels of held-out segments after so many answers a class; "
        f"{counted(seeds, 'seed')}, mean ± standard error. Needed: the answers a class after which "
        f"it is what {BUDGETS[-1]} random questions a class give.{held_out}",
        "",
        describe_curves(curves),
        "",
    ]
    write_file(out / "rating.md", "\n".join(lines).encode())
    described = {
        "budgets": list(BUDGETS),
        "rows": [
            {
                **asdict(curve.asking),
                "name": curve.asking.name.strip(),
                "map": curve.values.tolist(),
            }
            for curve in curves
        ],
    }
    write_json(out / "rating.json", config, experiment, described)
    if can_draw():
        write_file(out / "rating.png", draw_curves(curves[:5]))
