"""The command ``python -m pyseg.report``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import pyseg
from pyseg import _cli, distributed
from pyseg._extras import requires
from pyseg._files import write_file
from pyseg.report.config import ReportConfig
from pyseg.report.evaluation import add_evaluation
from pyseg.report.page import render
from pyseg.report.runs import read_run, run_names
from pyseg.report.sections.class_precision import class_precision
from pyseg.report.sections.facts import facts
from pyseg.report.sections.label_graph import label_graphs
from pyseg.report.sections.learning_curves import learning_curves
from pyseg.report.sections.precision_recall import precision_recall_curves
from pyseg.report.sections.probabilities import probabilities
from pyseg.report.sections.scores_over_time import scores_over_time


def report(config: ReportConfig) -> Path:
    """Writes the page; returns its path.

    Raises:
        pyseg.errors.UserError: A folder is not a run, --data does not fit it, or a package of the
            extra `report` is missing.
        pyseg.errors.RecordError: A record is damaged.
        OSError: The page cannot be written.
    """
    versions = _versions()
    _cli.check_out("out", config.out)
    distributed.pick_device(config.device)
    folders = [Path(run) for run in config.run]
    runs = [read_run(*pair) for pair in zip(folders, run_names(folders), strict=True)]
    for run in runs:
        add_evaluation(run, config)
        if run.missing:
            print(f"{run.name} was not evaluated: {run.missing}")
    page = render(
        f"Training report: {', '.join(run.name for run in runs)}",
        ", ".join(dict.fromkeys(f"{run.config.trained} on {run.config.data}" for run in runs)),
        [
            facts(runs),
            learning_curves(runs),
            class_precision(runs, config),
            precision_recall_curves(runs, config),
            probabilities(runs, config),
            label_graphs(runs),
            scores_over_time(runs, config),
        ],
        versions,
    )
    out = folders[0] / "report.html" if config.out is None else Path(config.out)
    write_file(out, page.encode("utf-8", "replace"))
    print(f"report: {out} ({len(page) / 1e6:.1f} MB)")
    return out


def _versions() -> str:
    """Returns the versions of the packages in use; raises before any work if one is missing."""
    with requires("report", "a report"):
        import jinja2  # noqa: F401
        import networkx
    packages = {"torch": torch, "numpy": np, "networkx": networkx}
    versions = ", ".join(f"{name} {module.__version__}" for name, module in packages.items())
    return f"Made by pyseg {pyseg.__version__} with Python {platform.python_version()}, {versions}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.report``."""
    parser = _cli.make_parser(
        ReportConfig,
        "pyseg.report",
        "Draws the results of runs as one HTML page.",
        several={"run": "Run folders that pyseg.train wrote, to compare."},
    )
    report(_cli.parse(parser, ReportConfig, argv))
