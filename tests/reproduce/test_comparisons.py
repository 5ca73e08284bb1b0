"""The rows of the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pyseg.config import RECIPES, StageConfig
from pyseg.reproduce import ModelSpec, make_comparisons, recipe_variant
from pyseg.reproduce.comparisons import curve_lines
from pyseg.reproduce.experiments import GeneratedSample, IncompleteVideos


def test_the_tables_of_the_paper() -> None:
    tables = {t.name: t for t in make_comparisons(GeneratedSample(Path(), "test"))}
    assert list(tables) == ["2", "3", "4", "5", "gcn", "best", "steps"]
    assert [row.paper for row in tables["2"].variants] == [0.770, 0.773, 0.778]
    weights = [(row.loss.rated_weight, row.loss.unrated_weight) for row in tables["3"].variants]
    assert weights == [(1.0, 1.0), (2.0, 0.1), (2.5, 0.1), (3.0, 0.1)]
    assert all(row.loss.correlation == "none" for row in tables["3"].variants)
    thresholds = [row.loss.threshold for row in tables["4"].variants[1:]]
    assert thresholds == [0.3, 0.4, 0.5, 0.6]
    graphs = tables["5"].variants
    assert [row.paper for row in graphs[:2]] == [0.740, 0.749]
    # Every graph has its twin without one, and nodes that know nothing.
    kinds = [row.model.overrides.get("adjacency") for row in graphs]
    assert kinds == [None, None, "ml-gcn", "identity", "ml-gcn", "identity", "ml-gcn"]
    nodes = [row.model.node_features for row in graphs]
    assert nodes == [None, None, "auto", "auto", "auto", "auto", None]
    assert {row.finetune for row in graphs} == {None}
    linear, *others = tables["gcn"].variants
    assert (linear.model, linear.loss) == (
        tables["4"].variants[3].model,
        tables["4"].variants[3].loss,
    )
    assert [row.model.overrides["adjacency"] for row in others] == ["ml-gcn", "identity"]
    assert all(row.model.name == linear.model.name and row.loss == linear.loss for row in others)
    assert not tables["best"].ceiling  # nobody knows all labels of the sample
    assert {row.model.name for row in tables["best"].variants} == {"ridge"}
    assert [row.copies for row in tables["steps"].variants] == [1] * 8 + [3, 1]
    for name in ("best", "steps"):
        assert [row.loss.prior for row in tables[name].variants].count("fit") == 1


def test_a_trial_takes_a_quarter_of_the_steps(yt8m: Path) -> None:
    def stages(experiment: IncompleteVideos) -> list[StageConfig]:
        rows = (row for table in make_comparisons(experiment) for row in table.variants)
        return [row.finetune or experiment.finetune for row in rows]

    trial = IncompleteVideos(yt8m, "test")
    trial.shorten()
    epochs = 0
    for short, full in zip(stages(trial), stages(IncompleteVideos(yt8m, "test")), strict=True):
        assert 4 * short.steps == full.steps
        if "epoch_steps" in full.loss_overrides:
            assert 4 * short.loss_overrides["epoch_steps"] == full.loss_overrides["epoch_steps"]
            epochs += 1
    assert epochs > 4
    sample = GeneratedSample(Path(), "test")
    steps = sample.pretrain.steps
    sample.shorten()
    assert (sample.pretrain.steps, GeneratedSample.pretrain.steps) == (steps // 4, steps)


def test_what_goes_beyond_the_paper() -> None:
    given = RECIPES["best"]
    model = ModelSpec("mlp")
    row = recipe_variant("best", model, "best")
    assert row.copies == 1
    assert row.loss.absent_evidence == given["loss.absent_evidence"]
    several = recipe_variant("several", model, "best", copies=3, threshold=0.5)
    assert several.loss == replace(row.loss, threshold=0.5)
    assert several.copies == 3


def test_complete_labels_are_a_ceiling_for_each_kind_of_model(monkeypatch) -> None:
    monkeypatch.setattr(GeneratedSample, "has_ceiling", True)
    *_, best, steps = make_comparisons(GeneratedSample(Path(), "test"))
    assert best.ceiling
    assert steps.ceiling
    assert [row.model.name for row in best.variants if row.complete] == ["ridge"]
    assert [(row.model.name, row.copies) for row in steps.variants if row.complete] == [
        ("nextvlad-small", 3),
        ("ridge", 1),
        ("nextvlad-small", 1),
    ]
    for line in curve_lines(GeneratedSample(Path(), "test")):
        assert [row.complete for row in line.variants] == [False, False, False, True]
