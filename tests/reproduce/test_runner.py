"""Which runs are trained, kept and shared."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from pyseg.config import LossConfig, StageConfig
from pyseg.reproduce import PLAIN, ModelSpec, Runner, Variant, open_experiment, runner
from pyseg.reproduce.experiments import GeneratedSample
from pyseg.training import StageRun


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
    assert 0 < np.nanmean(first["classes"]["map_rated"]) <= 1
    assert trained == [("pretrain", 0), ("finetune", 0)]
    again = Runner(open_experiment("sample", tmp_path), tmp_path / "runs")
    np.testing.assert_equal(again.run(Variant("of another table", tiny, PLAIN), 0), first)
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
    runs = Runner(open_experiment("sample", tmp_path), tmp_path / "runs")
    assert np.nanmean(runs.run(row, 0)["classes"]["map_rated"]) > 0
    assert trained == [("pretrain", 0, "auto"), ("finetune", 4, "auto")]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Stages and numbers of the steps that are taken; the fifth one of fine-tuning is the last."""
    taken: list[tuple[str, int]] = []
    take = StageRun._take_step

    def recorded(self, batch):
        taken.append((self.stage.name, self.step))
        if taken.count(("finetune", 4)) == 1 and taken[-1] == ("finetune", 4):
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, batch)

    monkeypatch.setattr(StageRun, "_take_step", recorded)
    return taken


def test_an_interrupted_run_goes_on(
    tiny: ModelSpec, tmp_path: Path, steps, monkeypatch, ctrl_c
) -> None:
    def run(folder: str) -> dict:
        return Runner(experiment, tmp_path / folder).run(Variant("plain", tiny, PLAIN), 0)

    experiment = open_experiment("sample", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run("runs")
    shutil.copytree(tmp_path / "runs", tmp_path / "damaged")
    whole = [("pretrain", step) for step in range(4)] + [("finetune", step) for step in range(8)]
    assert steps == whole[:9]
    with monkeypatch.context() as patch:
        patch.setattr(GeneratedSample, "measure", lambda *_: {}["none"])
        with pytest.raises(KeyError):
            run("runs")
    assert steps == whole  # none of them twice
    found = run("runs")
    assert steps == whole
    assert np.nanmean(found["classes"]["map_rated"]) > 0
    # A checkpoint that cannot be read is no reason to stop: training starts again.
    (checkpoint,) = (tmp_path / "damaged").glob("*-0/checkpoints/*5.pt")
    for path in checkpoint.parent.iterdir():
        path.write_bytes(b"damaged")
    del steps[:]
    steps.append(("finetune", 4))  # is not interrupted again
    np.testing.assert_equal(run("damaged")["classes"], found["classes"])
    assert steps[1:] == whole[4:]
    assert "damaged" in checkpoint.parents[1].with_suffix(".log").read_text()
