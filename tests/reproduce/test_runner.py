"""Which runs are trained, kept and shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyseg.config import LossConfig, StageConfig
from pyseg.reproduce import PLAIN, ModelSpec, Runner, Variant, open_experiment, runner
from pyseg.reproduce.experiments import GeneratedSample


def test_runs_are_kept_and_shared(tiny: ModelSpec, tmp_path: Path, monkeypatch) -> None:
    trained = []
    train = runner.train

    def recorded(config, collection):
        trained.append((config.stage, config.seed))
        return train(config, collection)

    monkeypatch.setattr(runner, "train", recorded)
    first_runner = Runner(open_experiment("sample", tmp_path), tmp_path / "runs")
    plain = Variant("plain", tiny, PLAIN)
    first = first_runner.run(plain, 0)
    assert 0 < first["measures"]["map_rated"] <= 1
    assert trained == [("pretrain", 0), ("finetune", 0)]
    again = Runner(open_experiment("sample", tmp_path), tmp_path / "runs")
    assert again.run(Variant("of another table", tiny, PLAIN), 0) == first
    assert len(trained) == 2
    # Another loss goes on from the same weights, another seed does not.
    again.run(Variant("other", tiny, LossConfig(correlation="none")), 0)
    assert trained[2:] == [("finetune", 0)]
    again.run(plain, 1)
    assert trained[3:] == [("pretrain", 1), ("finetune", 1)]


def test_a_row_has_its_own_steps_and_nodes(tiny: ModelSpec, tmp_path: Path, monkeypatch) -> None:
    trained = []
    train = runner.train

    def recorded(config, collection):
        trained.append((config.stage, config.finetune.steps, config.node_features))
        assert config.graph_threshold == 0.3
        return train(config, collection)

    monkeypatch.setattr(runner, "train", recorded)
    graph = {**tiny.overrides, "head": "gcn", "node_size": 3, "gcn_size": 4}
    model = ModelSpec(tiny.name, graph, node_features="auto", graph_threshold=0.3)
    row = Variant("graph", model, LossConfig(), finetune=StageConfig(4, 1e-3, 8))
    quick = Runner(open_experiment("sample", tmp_path), tmp_path / "runs", quick=True)
    assert quick.run(row, 0)["measures"]["map_rated"] > 0
    assert trained == [("pretrain", 0, "auto"), ("finetune", 1, "auto")]


def test_an_interrupted_run_is_done_again(tiny: ModelSpec, tmp_path: Path, monkeypatch) -> None:
    experiment = open_experiment("sample", tmp_path)
    row = Variant("plain", tiny, PLAIN)
    measure = GeneratedSample.measure
    with monkeypatch.context() as patch:
        patch.setattr(GeneratedSample, "measure", lambda *_: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            Runner(experiment, tmp_path / "runs").run(row, 0)
    assert GeneratedSample.measure is measure
    assert Runner(experiment, tmp_path / "runs").run(row, 0)["measures"]["map_rated"] > 0
