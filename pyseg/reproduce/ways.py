"""Tables whose rows are ways to score with trained models, where others' are ways to train them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pyseg._progress import Progress
from pyseg.reproduce.comparisons import Comparison, Variant
from pyseg.reproduce.config import ReproduceConfig
from pyseg.reproduce.estimates import Outcome
from pyseg.reproduce.experiments import Experiment, Scored
from pyseg.reproduce.output import Results, result_line
from pyseg.reproduce.runner import Runner


class Ways(NamedTuple):
    """A table of ways to score.

    Attributes:
        name: The table's name.
        title: What it shows.
        score: Yields the rows for a seed, the first one being that which others are compared with,
            each as what is trained for it and what scores with that.
    """

    name: str
    title: str
    score: Callable[[Runner, int], Iterator[tuple[Variant, Scored]]]


def run_ways(
    config: ReproduceConfig,
    experiment: Experiment,
    make_tables: Callable[[Experiment], Sequence[Ways]],
) -> None:
    """Trains what tables need, and writes them."""
    tables = make_tables(experiment)
    runner = Runner(experiment, config.out_folder / "runs", device=config.device)
    results = Results(config, experiment)
    measures = experiment.measures
    with Progress("reproduce", "runs", len(tables) * len(config.used_seeds)) as bar:
        for table in tables:
            runs = []
            for seed in config.used_seeds:
                scored = table.score(runner, seed)
                runs.append([(row, experiment.measure(scores, seed)) for row, scores in scored])
                bar.update()
            outcomes = []
            for found in zip(*runs, strict=True):  # of a row, from every seed
                classes = {m: np.array([values[m] for _, values in found]) for m in measures}
                outcomes.append(Outcome(found[0][0], classes, 0.0))
                bar.write(result_line(table.name, outcomes[-1]))
            rows = [outcome.variant for outcome in outcomes]
            results.add(Comparison(table.name, table.title, rows), outcomes)
    print(f"written: {results.tables_file}")
