"""The paper's tables: what is run, what is kept, and what is written of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pyseg import reproduce
from pyseg.config import RECIPES, LossConfig, StageConfig
from pyseg.errors import UserError
from pyseg.reproduce import (
    Comparison,
    Estimate,
    ModelSpec,
    Outcome,
    ReproduceConfig,
    Runner,
    Variant,
    open_experiment,
    runner,
)
from pyseg.reproduce.experiments import GeneratedSample
from pyseg.reproduce.output import can_draw

TINY = ModelSpec("nextvlad-small", {"clusters": 4, "hidden_size": 8, "reduction": 2})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample, a model of no account, and some steps."""
    monkeypatch.setattr(GeneratedSample, "model", TINY)
    monkeypatch.setattr(GeneratedSample, "pretrain", StageConfig(4, 1e-3, 8))
    monkeypatch.setattr(GeneratedSample, "finetune", StageConfig(8, 1e-3, 8))


def rows_of(*values: list[float]) -> list[Outcome]:
    rows = [Variant(f"row {number}", TINY, LossConfig()) for number in range(len(values))]
    return [Outcome(row, {"map": v}, 1.0) for row, v in zip(rows, values, strict=True)]


def test_estimates() -> None:
    one = Estimate.of([0.25])
    assert (one.mean, one.text(".3f"), one.is_clear) == (0.25, "0.250", False)
    some = Estimate.of([1.0, 2.0, 6.0])
    assert some.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert some.text("+.2f") == "+3.00 ± 1.53"
    assert not some.is_clear
    assert Estimate.of([-1.0, -1.1, -0.9]).is_clear


def test_rows_are_compared_seed_by_seed() -> None:
    outcomes = rows_of([0.1, 0.3], [0.2, 0.4], [0.5, 0.7])
    assert reproduce.differences(outcomes, "map")[1] == pytest.approx((0.1, 0.0))
    closed = reproduce.gaps_closed(outcomes, "map")
    assert closed is not None
    assert [gap.mean for gap in closed] == pytest.approx([0.0, 0.25, 1.0])
    # A ceiling that is none, and one seed, of which nobody knows.
    assert reproduce.gaps_closed(rows_of([0.1, 0.3], [0.2, 0.2]), "map") is None
    assert reproduce.gaps_closed(rows_of([0.1], [0.2]), "map") is not None


def test_markdown_and_json() -> None:
    outcomes = rows_of([0.1, 0.3], [0.2, 0.4], [0.5, 0.8])
    table = Comparison("best", "a title", [outcome.variant for outcome in outcomes], ceiling=True)
    assert reproduce.describe(table, outcomes, ["map"]).splitlines() == [
        "## best: a title",
        "",
        "|  | map | difference | of the gap |",
        "| --- | ---: | ---: | ---: |",
        "| row 0 | 0.200 ± 0.100 |  | 0% ± 0% |",
        "| row 1 | 0.300 ± 0.100 | +0.100 ± 0.000 * | 23% ± 2% |",
        "| row 2 | 0.650 ± 0.150 | +0.450 ± 0.050 * | 100% ± 0% |",
    ]
    found = reproduce.to_json(table, outcomes, ["map"])
    assert found["rows"][1]["map"]["values"] == [0.2, 0.4]
    assert found["rows"][1]["map"]["difference"]["mean"] == pytest.approx(0.1)
    single = rows_of([0.1], [0.2])
    table = Comparison("3", "one seed", [outcome.variant for outcome in single])
    assert "| row 1 | 0.200 | +0.100 |" in reproduce.describe(table, single, ["map"])
    json.dumps(reproduce.to_json(table, single, ["map"]), allow_nan=False)


def test_the_tables_of_the_paper() -> None:
    tables = {t.name: t for t in reproduce.make_comparisons(GeneratedSample(Path(), "test"))}
    assert list(tables) == ["2", "3", "4", "5", "best"]
    assert [row.paper for row in tables["2"].variants] == [0.770, 0.773, 0.778]
    weights = [(row.loss.rated_weight, row.loss.unrated_weight) for row in tables["3"].variants]
    assert weights == [(1.0, 1.0), (2.0, 0.1), (2.5, 0.1), (3.0, 0.1)]
    assert all(row.loss.correlation == "none" for row in tables["3"].variants)
    thresholds = [row.loss.threshold for row in tables["4"].variants[1:]]
    assert thresholds == [0.3, 0.4, 0.5, 0.6]
    assert [row.paper for row in tables["5"].variants] == [0.740, 0.749]
    assert not tables["best"].ceiling  # nobody knows all labels of the sample
    assert [row.copies for row in tables["best"].variants] == [1, 1, 3, 1, 1, 1, 1]


def test_what_goes_beyond_the_paper() -> None:
    given = RECIPES["best"]
    model = ModelSpec("mlp")
    row = reproduce.recipe_variant("best", model, "best")
    assert row.copies == given["copies"]
    assert row.loss.absent_evidence == given["loss.absent_evidence"]
    alone = reproduce.recipe_variant("alone", model, "best", copies=1, threshold=0.5)
    assert alone.loss == replace(row.loss, threshold=0.5)
    assert alone.copies == 1


def test_complete_labels_are_learnt_by_as_many_models_as_the_recipe_has(monkeypatch) -> None:
    monkeypatch.setattr(GeneratedSample, "has_ceiling", True)
    monkeypatch.setitem(RECIPES["best"], "copies", 5)
    rows = reproduce.make_comparisons(GeneratedSample(Path(), "test"))[-1].variants
    assert rows[2].copies == 5
    assert [(row.name, row.copies) for row in rows if row.complete] == [
        ("complete labels, 5 models", 5),
        ("complete labels, the ceiling", 1),
    ]


def test_runs_are_kept_and_shared(tiny, tmp_path: Path, monkeypatch) -> None:
    trained = []
    train = runner.train

    def recorded(config, collection):
        trained.append((config.stage, config.seed))
        return train(config, collection)

    monkeypatch.setattr(runner, "train", recorded)
    first_runner = Runner(open_experiment("sample", tmp_path), tmp_path / "runs")
    plain = Variant("plain", TINY, reproduce.PLAIN)
    first = first_runner.run(plain, 0)
    assert 0 < first["measures"]["map_rated"] <= 1
    assert trained == [("pretrain", 0), ("finetune", 0)]
    again = Runner(open_experiment("sample", tmp_path), tmp_path / "runs")
    assert again.run(Variant("of another table", TINY, reproduce.PLAIN), 0) == first
    assert len(trained) == 2
    # Another loss goes on from the same weights, another seed does not.
    again.run(Variant("other", TINY, LossConfig(correlation="none")), 0)
    assert trained[2:] == [("finetune", 0)]
    again.run(plain, 1)
    assert trained[3:] == [("pretrain", 1), ("finetune", 1)]


def test_an_interrupted_run_is_done_again(tiny, tmp_path: Path, monkeypatch) -> None:
    experiment = open_experiment("sample", tmp_path)
    row = Variant("plain", TINY, reproduce.PLAIN)
    measure = GeneratedSample.measure
    with monkeypatch.context() as patch:
        patch.setattr(GeneratedSample, "measure", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            Runner(experiment, tmp_path / "runs").run(row, 0)
    assert GeneratedSample.measure is measure
    assert Runner(experiment, tmp_path / "runs").run(row, 0)["measures"]["map_rated"] > 0


def test_command(tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    options = ["--data", "sample", "--table", "3", "--quick", "true", "--out", str(out)]
    reproduce.main(options)
    printed = capsys.readouterr().out
    assert "3: plain: map_rated 0." in printed
    assert "loss" not in printed  # what training says is in the runs' logs
    text = (out / "tables.md").read_text()
    assert "2 steps of 8; 1 seed," in text
    assert "## Table 3: label reweighting" in text
    assert "| m = 2.5 | 0.783 | 0." in text
    found = json.loads((out / "tables.json").read_text())
    assert found["tables"][0]["rows"][0]["name"] == "plain"
    assert sorted(found["tables"][0]["rows"][0]["map_rated"]) == [
        "difference", "mean", "standard_error", "values",
    ]  # fmt: skip
    if can_draw():
        assert (out / "table-3.png").read_bytes().startswith(b"\x89PNG")
    reproduce.main(options)
    assert (out / "tables.md").read_text() == text


def test_what_cannot_be_done_is_told(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="seeds: expected at least 1, found 0"):
        ReproduceConfig(seeds=0)
    monkeypatch.setattr(GeneratedSample, "architectures", {})
    with pytest.raises(UserError, match="--table 2: expected one of 3, 4, 5, best, which sam"):
        reproduce.reproduce(ReproduceConfig(table="2", out=str(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file: expected a folder, found a file"):
        reproduce.reproduce(ReproduceConfig(out=str(tmp_path / "file")))
    (tmp_path / "file").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"yt8m/labelsets\.csv\.gz: no such file"):
        reproduce.reproduce(ReproduceConfig(data="yt8m", folder=str(tmp_path / "yt8m")))
    assert list(tmp_path.iterdir()) == []
