"""The training runs of the paper's tables, and of those beyond the paper."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyseg.config import RECIPES, LossConfig, StageConfig
from pyseg.reproduce.experiments import Experiment, ModelSpec, with_graph
from pyseg.reproduce.literature import METHODS, PAPER_EPOCHS, Method

PLAIN = LossConfig(rated_weight=1.0, unrated_weight=1.0, correlation="none")
"""Cross-entropy in which unrated classes count as absent."""

RIDGE = ModelSpec("ridge")
"""The linear model that ``--recipe best`` solves in closed form."""

COPIES = 3
"""The models of a mixture of equal ones."""


@dataclass(frozen=True)
class Variant:
    """A way of training: a row of a table.

    Attributes:
        name: The row's name.
        model: The model.
        loss: The loss of fine-tuning.
        paper: The paper's number.
        complete: Whether it is trained on complete labels, which makes it the ceiling.
        copies: The number of models trained together, see `pyseg.config.TrainConfig`.
        finetune: The stage of fine-tuning; default: the experiment's.
        share: The share of the videos that it is trained on, see `Experiment.collection`.
        draw: Another number is another draw of weights and batches, with the same ratings.
    """

    name: str
    model: ModelSpec
    loss: LossConfig
    paper: float | None = None
    complete: bool = False
    copies: int = 1
    finetune: StageConfig | None = None
    share: float = 1.0
    draw: int = 0


@dataclass(frozen=True)
class Comparison:
    """Variants that are compared: a table.

    Attributes:
        name: The table's name on the command line.
        title: What it shows.
        variants: The rows; the others are compared with the first one.
        ceiling: Whether the last row is a ceiling, so that each row closes a share of the gap.
    """

    name: str
    title: str
    variants: Sequence[Variant]
    ceiling: bool = False


def recipe_variant(
    name: str, model: ModelSpec, recipe: str, copies: int | None = None, **loss: Any
) -> Variant:
    """Returns a variant with a recipe of pyseg.train.

    Args:
        name: The variant's name.
        model: The model.
        recipe: The recipe's name.
        copies: The number of models trained together; default: the recipe's.
        loss: Changes to its loss.
    """
    given = RECIPES[recipe]
    own = {key.removeprefix("loss."): given[key] for key in given if key.startswith("loss.")}
    copies = given.get("copies", 1) if copies is None else copies
    return Variant(name, model, LossConfig(**(own | loss)), copies=copies)


def make_comparisons(experiment: Experiment) -> list[Comparison]:
    """Returns the tables that an experiment has the data for, in order."""
    architectures = [_architectures(experiment)] if experiment.architectures else []
    others = (_reweighting, _correlation, _label_graph, _graph_of_others)
    beyond = (_beyond_the_paper, _best_by_steps)
    literature = [] if experiment.labels_per_example is None else [_literature(experiment)]
    return architectures + [make(experiment) for make in others + beyond] + literature


def _architectures(experiment: Experiment) -> Comparison:
    pairs = zip(experiment.architectures.items(), (0.770, 0.773, 0.778), strict=True)
    variants = [Variant(name, model, PLAIN, paper=number) for (name, model), number in pairs]
    return Comparison("2", "model architectures", variants)


_REWEIGHTED = LossConfig(correlation="none")
_CORRELATED = LossConfig(correlation="auto", threshold=0.5)
_PAPERS_RECIPE = "the paper's recipe (m = 2.5, n = 0.1, τ = 0.5)"


def _reweighting(experiment: Experiment) -> Comparison:
    model = experiment.model
    variants = [
        Variant("plain", model, PLAIN, paper=0.778),
        Variant("m = 2.0", model, replace(_REWEIGHTED, rated_weight=2.0), paper=0.782),
        Variant("m = 2.5", model, _REWEIGHTED, paper=0.783),
        Variant("m = 3.0", model, replace(_REWEIGHTED, rated_weight=3.0), paper=0.781),
    ]
    return Comparison("3", "label reweighting, n = 0.1", variants)


def _correlation(experiment: Experiment) -> Comparison:
    model = experiment.model
    papers = {0.3: None, 0.4: 0.788, 0.5: 0.791, 0.6: 0.789}
    variants = [
        Variant("m = 2.5, n = 0.1", model, _REWEIGHTED, paper=0.783),
        *(
            Variant(f"τ = {tau}", model, replace(_CORRELATED, threshold=tau), paper=number)
            for tau, number in papers.items()
        ),
    ]
    return Comparison("4", "label correlation, on top of reweighting", variants)


def _label_graph(experiment: Experiment) -> Comparison:
    papers, stage = {"DBoF": 0.740, "DBoF with GCN": 0.749}, experiment.graph_finetune
    variants = [
        Variant(name, model, _CORRELATED, paper=papers.get(name), finetune=stage)
        for name, model in experiment.graph_models.items()
    ]
    title = "a graph of the labels" + (f", {stage.steps} steps" if stage else "")
    return Comparison("5", title, variants)


def _graph_of_others(experiment: Experiment) -> Comparison:
    model = experiment.model
    variants = [
        Variant(_PAPERS_RECIPE, model, _CORRELATED),
        Variant("  W0 + GCN, ML-GCN's graph", with_graph(model), _CORRELATED),
        Variant("  W0 + GCN, A = I", with_graph(model, adjacency="identity"), _CORRELATED),
    ]
    return Comparison("gcn", f"a graph of the labels for the model {model.name}", variants)


def _beyond_the_paper(experiment: Experiment) -> Comparison:
    best = functools.partial(recipe_variant, model=RIDGE, recipe="best")
    variants = [
        Variant("plain targets", RIDGE, PLAIN),
        Variant("the paper's targets (τ = 0.5)", RIDGE, _CORRELATED),
        best("--recipe best"),
        best("  without absent evidence", absent_evidence=0.0),
        best("  with absent evidence of a half", absent_evidence=0.5),
        best("  with full absent evidence", absent_evidence=1.0),
        best("  with a prior of P", prior="fit"),
    ]
    if experiment.has_ceiling:
        variants.append(Variant("complete labels, the ceiling", RIDGE, PLAIN, complete=True))
    title = "beyond the paper, by ridge regression"
    return Comparison("best", title, variants, ceiling=experiment.has_ceiling)


def _best_by_steps(experiment: Experiment) -> Comparison:
    model = experiment.model
    best = functools.partial(recipe_variant, model=model, recipe="best")
    variants = [
        Variant("plain", model, PLAIN),
        Variant(_PAPERS_RECIPE, model, _CORRELATED),
        best("--recipe best"),
        best("  without absent evidence", absent_evidence=0.0),
        best("  with full absent evidence", absent_evidence=1.0),
        best("  with a prior of P", prior="fit"),
        best("  with the paper's τ = 0.5", threshold=0.5),
        best("  with the paper's m = 2.5, n = 0.1", rated_weight=2.5, unrated_weight=0.1),
        best(f"  {COPIES} copies", copies=COPIES),
        recipe_variant("--recipe best, by ridge regression", RIDGE, "best"),
    ]
    if experiment.has_ceiling:
        ceiling = Variant("complete labels, the ceiling", model, PLAIN, complete=True)
        several = replace(ceiling, name=f"complete labels, {COPIES} copies", copies=COPIES)
        by_ridge = replace(ceiling, name="complete labels, by ridge regression", model=RIDGE)
        variants += [several, by_ridge, ceiling]
    title = f"the same targets for the model {model.name}"
    return Comparison("steps", title, variants, ceiling=experiment.has_ceiling)


def segment_models(experiment: Experiment) -> list[Variant]:
    """Returns the models of the table "segments"."""
    return [
        Variant(f"{experiment.model.name}, the paper's recipe", experiment.model, _CORRELATED),
        recipe_variant("--recipe best", RIDGE, "best"),
    ]


def _literature(experiment: Experiment) -> Comparison:
    model, stage = experiment.model, experiment.finetune

    def finetune(method: Method) -> StageConfig:
        if method.loss == "joint-estimation":
            given = {"expected": experiment.labels_per_example}
        else:
            given = {"epoch_steps": stage.steps // PAPER_EPOCHS}
        return replace(stage, loss=method.loss, loss_overrides=given | dict(method.overrides))

    variants = [
        Variant("plain", model, PLAIN),
        *(Variant(method.name, model, PLAIN, finetune=finetune(method)) for method in METHODS),
        Variant(_PAPERS_RECIPE, model, _CORRELATED),
        recipe_variant("--recipe best", model, "best"),
        Variant("complete labels, the ceiling", model, PLAIN, complete=True),
    ]
    title = f"losses of the literature for the model {model.name}"
    return Comparison("literature", title, variants, ceiling=True)


def curve_lines(experiment: Experiment) -> list[Comparison]:
    """Returns the lines of the learning curve, from plain targets to complete labels, by model."""

    def line(name: str, model: ModelSpec) -> Comparison:
        variants = [
            Variant("plain", model, PLAIN),
            Variant("the paper's", model, _CORRELATED),
            recipe_variant("best", model, "best"),
            Variant("complete", model, PLAIN, complete=True),
        ]
        return Comparison("curve", name, variants, ceiling=True)

    return [line("ridge regression", RIDGE), line(experiment.model.name, experiment.model)]
