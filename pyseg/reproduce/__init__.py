"""The paper's tables on other data: ``python -m pyseg.reproduce --data yt8m --table 3``.

A table is a `Comparison`, and each of its rows a `Variant`: a training run (`pyseg.train`) for each
of some seeds, on the data of an `Experiment`. The command writes one folder:

* ``tables.md``: the tables, beside the paper's numbers;
* ``tables.json``: the same, with the values of every seed;
* ``table-<name>.png``: pictures of them, with the extra ``report``;
* ``runs``: the run folders. A finished run is not repeated, and an interrupted one goes on from its
  last checkpoint: the same command again resumes an interrupted command. Tables share runs.

The tables are:

* 2: architectures; 3: reweighting; 4: label correlation; 5: a graph of the labels on DBoF. They are
  the paper's.
* best: the share of the gap between plain cross-entropy and training on complete labels that is
  closed by the paper's recipe, by ``--recipe best`` of pyseg.train, and by parts of the latter.
* steps: the same targets, for a model that is trained by steps.
* literature: losses of other papers on missing labels (`pyseg.reproduce.literature`), beside the
  paper's recipe and ``--recipe best``. Only for yt8m.
* curve: the same shares, by the number of training videos. Only for yt8m.
* segments, mixtures: ways to score with trained models: what more than its own frames says of a
  segment, where videos have frames; and three models that are alike, or not.
* rating: how few answers a model needs that asks the questions itself (`pyseg.rate`), with
  simulated raters.

The last four are not part of ``--table all``; curve and rating write ``curve.md`` and
``rating.md``, with ``.json`` and ``.png``, instead of tables.
"""

from pyseg.reproduce.cli import main, reproduce
from pyseg.reproduce.comparisons import (
    PLAIN,
    Comparison,
    Variant,
    make_comparisons,
    recipe_variant,
)
from pyseg.reproduce.config import ReproduceConfig
from pyseg.reproduce.estimates import Estimate, Outcome, differences, gaps_closed
from pyseg.reproduce.experiments import Experiment, ModelSpec, open_experiment
from pyseg.reproduce.output import describe, draw, to_json
from pyseg.reproduce.runner import Runner

__all__ = [
    "PLAIN",
    "Comparison",
    "Estimate",
    "Experiment",
    "ModelSpec",
    "Outcome",
    "ReproduceConfig",
    "Runner",
    "Variant",
    "describe",
    "differences",
    "draw",
    "gaps_closed",
    "main",
    "make_comparisons",
    "open_experiment",
    "recipe_variant",
    "reproduce",
    "to_json",
]
