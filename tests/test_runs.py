"""The run folder: its options, classes, correlation and log, as far as they exist."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyseg import models
from pyseg.config import TrainConfig
from pyseg.data import vocabulary
from pyseg.errors import DataError, UserError
from pyseg.labels import LabelCorrelation
from pyseg.runs import Run


def test_a_folder_with_nothing_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    assert (run.log(), run.correlation(), run.rated_classes()) == ([], None, None)
    assert not run.is_unfinished
    run.warn_unfinished()
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=rf"^{tmp_path} is not a run folder: it has no config\.y"):
        run.config()
    with pytest.raises(UserError, match=rf"^{tmp_path} is not a run folder: .*no model.json$"):
        run.model()
    run.config_file.touch()  # a run whose training has just begun
    with pytest.raises(FileNotFoundError, match=r"model\.json: no such file"):
        run.model()
    run.config_file.unlink()
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(str(tmp_path))
    config = TrainConfig(data="somewhere", model="mlp", overrides={"hidden_size": 8}, seed=3)
    run.write_config(config)
    assert run.config() == config
    models.save(models.create("mlp", num_classes=3, feature_sizes=(4,)), run.folder)
    assert run.model().num_classes == 3
    assert run.weights_file.is_file()
    correlation = LabelCorrelation(torch.tensor([0, 1, 1]), torch.tensor([1]), torch.tensor([0.5]))
    correlation.save(run.correlation_file)
    found = run.correlation()
    assert found is not None
    assert torch.equal(found.dense(), correlation.dense())
    run.append_to_log("pretrain", step=1, loss=0.5)
    run.append_to_log("evaluate", rated=1)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: expected \w+ in an evaluation"):
        run.log()
    run.log_file.write_text('{"stage": "pretrain", "step": 1, "loss": 0.5}\n{"stage": "fine')
    assert run.log() == [{"stage": "pretrain", "step": 1, "loss": 0.5}]
    run.checkpoints_folder.mkdir()
    (run.checkpoints_folder / "checkpoint-000000001.pt").touch()
    assert run.is_unfinished
    run.warn_unfinished()
    assert f"python -m pyseg.train --resume {tmp_path} continues" in capsys.readouterr().out


def test_a_model_of_the_rated_classes_knows_their_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    vocabulary.write_segment_vocabulary(run.vocabulary_file, [4, 1])
    assert run.rated_classes() == [4, 1]
    assert run.known_classes(2) == [4, 1]
    assert run.known_classes(5) is None
