"""Trackers receive the numbers of the log, also of a resumed run, and each step once."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyseg import train
from pyseg.config import TrainConfig
from pyseg.errors import ArgumentError, UserError
from pyseg.runs import Run
from pyseg.train import _folder
from pyseg.training import Log, make_tracker, register_tracker

OPTIONS: dict[str, Any] = {"model": "mlp", "overrides.hidden_size": 4, "tracker": ["mlflow"]}


def write_and_resume(run: Run, tracker: str, first: Any = lambda: None) -> None:
    """Writes a log that is interrupted after step 6 of a run whose last checkpoint is of step 4."""
    log = Log(run, [make_tracker(tracker)], OPTIONS)
    for step, loss in ((2, 0.5), (4, 0.25), (6, 0.125)):
        log.write("pretrain", step=step, loss=loss, skipped=[1], note="text")
    log.close()
    first()
    log = Log(run, [make_tracker(tracker)], OPTIONS | {"tracker": []})
    log.write("pretrain", step=6, loss=0.125)
    log.steps_before = 6
    log.write("evaluate", step=0, after="pretrain", map=0.5)
    log.write("finetune", step=3, loss=2)
    log.close()


EXPECTED = {
    "pretrain/loss": [(2, 0.5), (4, 0.25), (6, 0.125)],
    "evaluate/map": [(6, 0.5)],
    "finetune/loss": [(9, 2.0)],
}


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real store in local files."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions prefer a data base
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    run = Run(tmp_path / "runs" / "one")
    run.folder.mkdir(parents=True)
    client = mlflow.MlflowClient()

    def first() -> None:
        assert client.get_run(run.tracker_file("mlflow").read_text().strip()).info.end_time

    write_and_resume(run, "mlflow", first)
    [found] = client.search_runs([client.get_experiment_by_name("pyseg").experiment_id])
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    assert found.data.params == {name: str(value) for name, value in OPTIONS.items()}
    assert found.data.metrics.keys() == EXPECTED.keys()
    for name, values in EXPECTED.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == values, name
    again = Run(tmp_path / "runs" / "two")
    again.folder.mkdir()
    write_and_resume(again, "mlflow")
    assert len(client.search_runs([found.info.experiment_id])) == 2


@pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")  # MLflow's own
def test_mlflow_where_the_user_has_said_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the extra installs: MLflow's own default."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("alembic", reason="alembic is not installed")
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "one")
    run.folder.mkdir()
    write_and_resume(run, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [found] = client.search_runs([client.get_experiment_by_name("pyseg").experiment_id])
    assert (found.info.run_name, found.data.metrics["finetune/loss"]) == ("one", 2)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///{}", "maintenance mode.*MLFLOW_ALLOW_FILE_STORE=true"),
        ("http://ann:pass@127.0.0.1:9", "API request to .*refused"),
        ("foo://x", "unsupported URI 'foo://x'"),
    ],
)
def test_a_store_that_cannot_be_used_is_a_line_before_there_is_a_run(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path / "store"))
    with pytest.raises(UserError, match=rf"^--tracker mlflow: [^\n]*{message}[^\n]*$") as raised:
        train.train(TrainConfig(run=str(tmp_path / "run"), tracker=["mlflow"]))
    assert "pass@" not in str(raised.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert list(tmp_path.iterdir()) == []


class StandIn:
    """What `wandb.init` returns; as that, it ignores steps before its last one."""

    made: dict[str, StandIn]

    def __init__(self, id: str, **options: Any) -> None:
        self.id, self.options, self.rows, self.finished = id, options, {}, 0

    @classmethod
    def init(cls, *, id: str | None, **options: Any) -> StandIn:
        if id is None:
            id = f"id{len(cls.made)}"
            cls.made[id] = cls(id, **options)
        return cls.made[id]

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= max(self.rows, default=0):
            self.rows.setdefault(step, {}).update(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn.made = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=StandIn.init))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write_and_resume(Run(tmp_path), "wandb")
    [made] = StandIn.made.values()
    assert made.finished == 2
    assert made.options.pop("config") == OPTIONS
    assert made.options == {
        "project": "pyseg",
        "name": tmp_path.name,
        "dir": str(tmp_path),
        "resume": "allow",
        "allow_val_change": True,
    }
    for name, values in EXPECTED.items():
        found = [(step, row[name]) for step, row in made.rows.items() if name in row]
        assert found == values, name


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_missing_packages_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--tracker {name} needs {package}: pip .*\[{name}\]'"):
        make_tracker(name)


class CommError(Exception):
    """As Weights & Biases has one."""


class Failing(StandIn):
    """It fails in one of its methods, with an error."""

    fails, error = "", CommError("server\nis away")

    @classmethod
    def init(cls, *, id: str | None, **options: Any) -> StandIn:
        if cls.fails == "init":
            raise cls.error
        return super().init(id=id, **options)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails == "log" and step > 2:
            raise self.error
        super().log(values, step)

    def finish(self) -> None:
        if self.fails == "finish":
            raise self.error
        super().finish()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Failing]:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Failing.init))
    Failing.made = {}
    return Failing


def test_training_goes_on_without_a_tracker_that_fails(
    failing: type[Failing],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(failing, "fails", "log")
    run = Run(tmp_path)
    log = Log(run, [make_tracker("wandb")], OPTIONS)
    with caplog.at_level(logging.WARNING, "pyseg"):
        for step in (2, 4, 6):
            log.write("pretrain", step=step, loss=0.5)
        log.close()
    assert [record.getMessage() for record in caplog.records] == [
        "--tracker wandb: server is away; training goes on without this tracker, and "
        f"{run.log_file} has all numbers"
    ]
    [made] = failing.made.values()
    assert (list(made.rows), made.finished) == ([2], 0)
    assert len(run.log_file.read_text().splitlines()) == 3


def test_a_tracker_that_cannot_end_is_a_warning(
    failing: type[Failing],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(failing, "fails", "finish")
    log = Log(Run(tmp_path), [make_tracker("wandb")])
    with caplog.at_level(logging.WARNING, "pyseg"):
        log.write("pretrain", step=2, loss=0.5)
        log.close()
    assert [record.getMessage() for record in caplog.records] == ["--tracker wandb: server is away"]


@pytest.mark.parametrize("solver", ["steps", "ridge"])
def test_a_tracker_that_cannot_start_is_a_line_before_the_first_step(
    solver: str, failing: type[Failing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "fails", "init")
    folder = tmp_path / "run"
    options = ["--data", "sample", "--run", str(folder), "--tracker", "wandb", "--device", "cpu"]
    model = ["--model", "ridge"] if solver == "ridge" else ["--model", "linear"]
    with pytest.raises(UserError) as raised:
        train.main([*options, *model])
    assert str(raised.value) == (
        f"--tracker wandb: server is away; python -m pyseg.train --resume {folder} continues"
    )
    assert not Run(folder).log_file.exists()


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_fault_of_a_tracker_keeps_its_traceback(
    method: str, failing: type[Failing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "fails", method)
    monkeypatch.setattr(failing, "error", KeyError("fault"))
    with (
        pytest.raises(KeyError, match="fault"),
        contextlib.closing(Log(Run(tmp_path), [make_tracker("wandb")])) as log,
    ):
        log.write("pretrain", step=4, loss=0.5)


def test_unknown_trackers_are_refused_before_training(tmp_path: Path) -> None:
    known = r"expected one of mlflow, .*; found the unknown tracker 'mlfow' \(did you mean 'mlflow'"
    with pytest.raises(UserError, match=f"^--tracker mlfow: {known}"):
        train.train(TrainConfig(run=str(tmp_path / "run"), tracker=["mlfow"]))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArgumentError, match=f"^tracker: {known}"):
        make_tracker("mlfow")
    with pytest.raises(ArgumentError, match="name of a new tracker, found 'wandb'"):
        register_tracker("wandb")(object)


def test_several_are_given_and_kept_in_the_run_folder(tmp_path: Path) -> None:
    config = train.parse_options(["--tracker", "mlflow", "wandb", "--tensorboard"])
    assert config.trackers == ["mlflow", "wandb", "tensorboard"]
    run = Run(tmp_path)
    run.write_config(config)
    assert run.config() == config
    lines = run.config_file.read_text().splitlines(keepends=True)
    first = lines.index("tracker:\n")
    del lines[first : first + 3]  # as of a run before there were trackers
    run.config_file.write_text("".join(lines))
    assert run.config().trackers == ["tensorboard"]


def test_a_copy_of_a_run_is_tracked_as_another_one(tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run"), Run(tmp_path / "copy")
    run.folder.mkdir()
    for file in (run.config_file, run.tracker_file("mlflow"), run.tracker_file("wandb")):
        file.write_text("kept")
    _folder._copy(run, other)
    assert [path.name for path in other.folder.iterdir()] == [other.config_file.name]
