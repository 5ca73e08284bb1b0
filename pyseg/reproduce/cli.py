"""The command ``python -m pyseg.reproduce``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyseg import _cli
from pyseg._extras import install_command
from pyseg._files import remove_unfinished, sole_owner
from pyseg._memory import keep_memory
from pyseg._progress import Progress
from pyseg.errors import UserError
from pyseg.reproduce.comparisons import Comparison, make_comparisons
from pyseg.reproduce.config import ReproduceConfig
from pyseg.reproduce.curve import run_curve
from pyseg.reproduce.experiments import Experiment, open_experiment
from pyseg.reproduce.mixtures import mixture_tables
from pyseg.reproduce.output import Results, can_draw, result_line
from pyseg.reproduce.rating import run_rating
from pyseg.reproduce.runner import Runner, run_all
from pyseg.reproduce.segments import segment_tables
from pyseg.reproduce.ways import run_ways

# Tables that have to be named, and whether an experiment has the data for them.
_ALONE: dict[str, tuple[Callable[[ReproduceConfig, Experiment], None], Callable[..., bool]]] = {
    "curve": (run_curve, lambda experiment: experiment.has_shares),
    "segments": (
        functools.partial(run_ways, make_tables=segment_tables),
        lambda experiment: experiment.pretrain is not None,
    ),
    "mixtures": (functools.partial(run_ways, make_tables=mixture_tables), lambda experiment: True),
    "rating": (run_rating, lambda experiment: True),
}


def reproduce(config: ReproduceConfig) -> Path:
    """Runs experiments and writes their tables; returns the folder.

    Raises:
        pyseg.errors.UserError: The data does not allow the table.
        FileNotFoundError: The data is missing.
    """
    out = config.out_folder
    _cli.check_out_folder("out", out)
    experiment = open_experiment(
        config.data,
        Path(config.folder or config.data),
        config.part,
        None if config.more is None else Path(config.more),
    )
    if config.quick:
        experiment.shorten()
    comparisons = make_comparisons(experiment)
    alone = {name: run for name, (run, has_data) in _ALONE.items() if has_data(experiment)}
    if config.table != "all":
        known = [*(comparison.name for comparison in comparisons), *alone]
        if config.table not in known:
            raise UserError(
                f"--table {config.table}: expected one of {', '.join(known)}, which {config.data} "
                "has the data for"
            )
        comparisons = [found for found in comparisons if found.name == config.table]
    if not can_draw():
        print(f"no pictures without matplotlib: {install_command('report')}")
    out.mkdir(parents=True, exist_ok=True)
    with sole_owner(out):
        remove_unfinished(out)
        if config.table in alone:
            alone[config.table](config, experiment)
        else:
            _run(config, experiment, comparisons)
    return out


def _run(
    config: ReproduceConfig, experiment: Experiment, comparisons: Sequence[Comparison]
) -> None:
    """Runs comparisons and writes their tables, in a folder that no other command uses."""
    runner = Runner(experiment, config.out_folder / "runs", device=config.device)
    results = Results(config, experiment)
    print(f"{experiment.name}: {experiment.description}")
    variants = sum(len(comparison.variants) for comparison in comparisons)
    began = time.perf_counter()
    with Progress("reproduce", "runs", len(config.used_seeds) * variants) as bar:
        for comparison in comparisons:
            outcomes = []
            for variant in comparison.variants:
                outcome = run_all(runner, variant, config.used_seeds, bar)
                line = result_line(comparison.name, outcome)
                bar.write(f"{line} ({outcome.seconds:.0f} s a run)")
                outcomes.append(outcome)
            results.add(comparison, outcomes)
    print(f"{time.perf_counter() - began:.0f} s; written: {results.tables_file}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.reproduce``."""
    keep_memory()
    parser = _cli.make_parser(
        ReproduceConfig, "pyseg.reproduce", "Repeats the paper's experiments on other data."
    )
    reproduce(_cli.parse(parser, ReproduceConfig, argv))
