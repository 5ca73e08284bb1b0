"""Where the numbers of a run go beside its log; see `register_tracker`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pyseg._extras import requires
from pyseg._registry import Make, Registry
from pyseg._urls import redacted
from pyseg.errors import UserError
from pyseg.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECT = "pyseg"
"""The experiment of MLflow and project of Weights & Biases, unless the environment names one."""

_MOST_PARAMETERS, _LONGEST_PARAMETER = 100, 6000  # of a request to MLflow, and of a value


class Tracker(Protocol):
    """What `register_tracker` registers makes one for each run, in the first process only.

    Its constructor takes no argument and checks what the tracker needs: it is called before there
    is a run folder. A `pyseg.errors.UserError` of a method is reported in a line: from `start` it
    ends training, which can be resumed, and after one from `log` or `finish` training goes on
    without the tracker. Every other error is a fault of the tracker, and ends training with its
    traceback.
    """

    def start(self, run: Path, options: Mapping[str, Any]) -> None:
        """Starts tracking, or goes on where an interrupted run is resumed, before the first step.

        Args:
            run: The run folder, where the tracker may keep a file.
            options: The options of training by their names on the command line.
        """

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Receives a line of the run's log.

        Args:
            stage: The part of the run: "pretrain", "finetune", "final_fit" or "evaluate".
            step: The number of steps so far, of all stages. A resumed run repeats those since its
                last checkpoint, with the same values but for times.
            values: The numbers, by name.
        """

    def finish(self) -> None:
        """Ends tracking, also where training fails or is interrupted."""


_TRACKERS: Registry[Callable[[], Tracker]] = Registry("tracker")


def register_tracker(name: str) -> Callable[[Make], Make]:
    """Registers a class or function that makes a `Tracker`, which ``--tracker NAME`` chooses.

    Args:
        name: The name of the tracker, which must be new.

    Returns:
        A decorator that returns its argument.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.

    Example:
        >>> @register_tracker("print")
        ... class Printer:
        ...     def start(self, run, options):
        ...         print(f"{run.name}: {options['model']}")
        ...     def log(self, stage, step, values):
        ...         print(f"{stage} {step}: {values}")
        ...     def finish(self):
        ...         print("the end")
        >>> tracker = make_tracker("print")
        >>> tracker.start(Path("runs/sample-mlp-1"), {"model": "mlp"})
        sample-mlp-1: mlp
        >>> tracker.log("finetune", 5, {"loss": 0.25})
        finetune 5: {'loss': 0.25}
    """
    return _TRACKERS.register(name)


def make_tracker(name: str) -> Tracker:
    """Makes a tracker.

    Args:
        name: Its registered name.

    Raises:
        pyseg.errors.ArgumentError: There is no such tracker.
        pyseg.errors.UserError: It needs a package that is not installed.
    """
    return _TRACKERS.find(name)()


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turns what a tracker's package, or what that uses, raises into a line.

    Python's own exceptions, other than the operating system's, are faults of a program.
    """
    try:
        with requires(name, f"--tracker {name}"):
            yield
    except UserError:
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and not isinstance(error, OSError):
            raise
        found = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"--tracker {name}: {redacted(found)}") from error


@register_tracker("tensorboard")
class TensorBoard:
    """Files for TensorBoard in the run folder: every number as ``<stage>/<name>``."""

    @_errors_of("tensorboard")
    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make: Callable[..., SummaryWriter] = SummaryWriter
        self._writer: SummaryWriter | None = None

    @_errors_of("tensorboard")
    def start(self, run: Path, options: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._folder = Run(run).tensorboard_folder
        self._folder.mkdir(exist_ok=True)

    @_errors_of("tensorboard")
    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if self._writer is None:  # an interrupted run may have written this step and later ones
            self._writer = self._make(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()

    @_errors_of("tensorboard")
    def finish(self) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def _one_retry() -> Iterator[None]:
    """Lets MLflow ask a server twice, not for minutes, unless the environment says how often."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


@register_tracker("mlflow")
class MLflow:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI``: options as parameters, numbers as metrics.

    Without that variable it is where MLflow's own default is, ``mlflow.db`` in the working folder.

    It belongs to the experiment ``MLFLOW_EXPERIMENT_NAME``, by default "pyseg". Its id is kept in
    the run folder; a resumed run goes on with it, and logs no step of a metric twice.
    """

    @_errors_of("mlflow")
    def __init__(self) -> None:
        import mlflow

        self._mlflow = mlflow
        self._client = mlflow.MlflowClient()
        self._name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with _one_retry():
            self._client.get_experiment_by_name(self._name)  # raises before a run folder is made

    @_errors_of("mlflow")
    def start(self, run: Path, options: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._last: dict[str, int] = {}  # the last step of each metric before this session
        file = Run(run).tracker_file("mlflow")
        self._resumes = file.is_file()
        if self._resumes:
            self._id = file.read_text(encoding="utf-8").strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._name)
        experiment = (
            self._client.create_experiment(self._name) if found is None else found.experiment_id
        )
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        file.write_text(self._id + "\n", encoding="utf-8")
        given = [
            self._mlflow.entities.Param(key, str(value)[:_LONGEST_PARAMETER])
            for key, value in options.items()
        ]
        for begin in range(0, len(given), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=given[begin : begin + _MOST_PARAMETERS])

    @_errors_of("mlflow")
    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        metrics = [
            self._mlflow.entities.Metric(f"{stage}/{name}", value, now, step)
            for name, value in values.items()
            if step > self._last_step(f"{stage}/{name}")
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def _last_step(self, key: str) -> int:
        if not self._resumes:
            return -1
        if key not in self._last:
            history = self._client.get_metric_history(self._id, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last[key]

    @_errors_of("mlflow")
    def finish(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id)


@register_tracker("wandb")
class WandB:
    """A run of Weights & Biases, whose own variables say where and how: ``WANDB_MODE=offline``.

    It belongs to the project ``WANDB_PROJECT``, by default "pyseg". Its id is kept in the run
    folder; a resumed run goes on with it, and Weights & Biases ignores the steps that it has.
    """

    @_errors_of("wandb")
    def __init__(self) -> None:
        import wandb

        self._wandb = wandb

    @_errors_of("wandb")
    def start(self, run: Path, options: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        file = Run(run).tracker_file("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            dir=str(run),
            id=file.read_text(encoding="utf-8").strip() if file.is_file() else None,
            resume="allow",
            config=dict(options),
            allow_val_change=True,  # of the options that a resumed run may change
        )
        file.write_text(f"{self._run.id}\n", encoding="utf-8")

    @_errors_of("wandb")
    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    @_errors_of("wandb")
    def finish(self) -> None:
        """See `Tracker`."""
        self._run.finish()
