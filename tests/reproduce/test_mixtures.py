"""Mixtures of models that are alike, or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyseg import models
from pyseg.reproduce import ModelSpec, Runner, main, recipe_variant
from pyseg.reproduce.experiments import GeneratedSample
from pyseg.reproduce.mixtures import MeanOfLogits
from pyseg.runs import Run


def test_a_perceptron_of_one_feature_sees_no_other(tmp_path: Path) -> None:
    sizes = {"feature_sizes": (5, 3), "hidden_size": 8}
    trained = models.create("mlp-of-feature", num_classes=2, feature=1, **sizes).eval()
    models.save(trained, tmp_path)
    x = torch.randn(4, 2, 8)
    expected = trained(x)
    for model in (trained, models.load(tmp_path)):
        torch.testing.assert_close(
            model(torch.cat((torch.randn(4, 2, 5), x[..., 5:]), 2)), expected
        )
        assert (model(torch.cat((x[..., :5], -x[..., 5:]), 2)) - expected).abs().min() > 1e-4


def test_mean_of_logits() -> None:
    first, second = (models.create("mlp", num_classes=2, feature_sizes=(4,)) for _ in range(2))
    both = MeanOfLogits([first, second]).eval()
    x, lengths = torch.randn(3, 2, 4), torch.tensor([2, 1, 2])
    expected = (first(x, lengths) + second(x, lengths)) / 2
    torch.testing.assert_close(both(x, lengths), expected)


def test_draws_differ_in_weights_but_not_in_ratings(tiny: ModelSpec, tmp_path: Path) -> None:
    opened = []

    class Sample(GeneratedSample):
        def collection(self, seed, **options):
            opened.append(seed)
            return super().collection(seed, **options)

    runner = Runner(Sample(Path(), "test"), tmp_path)
    variant = recipe_variant("one", tiny, "best")
    folders = [runner.trained(replace(variant, draw=draw), 1) for draw in (0, 1)]
    assert set(opened) == {1}
    for runs in zip(*folders, strict=True):  # fine-tuned, then pretrained
        seeds = [Run(run).config().seed for run in runs]
        assert seeds == [1, 1001]


def test_command(tiny: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ModelSpec("dbof", {"clusters": 8, "hidden_size": 8, "normalization": "dequantize"})
    monkeypatch.setattr(GeneratedSample, "unlike", {"architectures": {"DBoF": small}})
    main(["--table", "mixtures", "--data", "sample", "--quick", "--out", str(tmp_path)])
    (table,) = json.loads((tmp_path / "tables.json").read_text())["tables"]
    rows = {row["name"]: row["model"] for row in table["rows"]}
    assert rows["3 of it, trained together (--copies 3)"]["copies"] == 3
    joint = rows["one of each, architectures, trained together"]
    assert [branch["name"] for branch in joint["overrides"]["branches"]] == [tiny.name, "dbof"]
    # Every branch of a joint run takes part in the row below it.
    assert [row["name"] for row in table["rows"]].count("without distillation") == 2
    values = {row["name"]: row["map_rated"]["values"] for row in table["rows"]}
    assert values["3 of it, trained apart"] != values["one DBoF"]
