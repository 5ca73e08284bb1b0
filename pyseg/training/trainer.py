"""Trains a model in stages; training can be stopped and resumed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pyseg import _cli, distributed, models
from pyseg._files import remove_unfinished
from pyseg.checkpoint import remove_checkpoints_after, save_checkpoint
from pyseg.config import TrainConfig, flat_options
from pyseg.data.loading import worker_errors
from pyseg.errors import RecordError, WorkerError
from pyseg.nn import FrameClassifier
from pyseg.results import Result
from pyseg.runs import Run
from pyseg.training.identity import check_resumed, identify
from pyseg.training.log import Log
from pyseg.training.ridge import RidgeRun
from pyseg.training.stages import Stage, StageRun
from pyseg.training.trackers import Tracker


class Trainer:
    """Runs the stages of a training run, one after the other.

    Args:
        model: The model to train, on its device.
        stages: The stages.
        config: The run's options.
        run: The run, whose folder receives the weights, checkpoints and metrics.jsonl.
        evaluate: Returns the result of a model on held-out videos, whose ``score`` decides which
            weights are kept. None: nothing is held out, and the weights of the last step are kept.
        checkpoint: Path and content of the checkpoint to resume from; default: a new run.
        trackers: What receives the numbers of metrics.jsonl, too; in the first process only.

    Attributes:
        identity: The identity that the run's checkpoints must match (`pyseg.training.identity`).
        log: The run's log.
        device: The device of the model.

    Raises:
        pyseg.errors.UserError: The checkpoint is of another model or of other data.
    """

    def __init__(
        self,
        model: FrameClassifier,
        stages: Sequence[Stage],
        config: TrainConfig,
        run: Run,
        evaluate: Callable[[FrameClassifier], Result] | None,
        checkpoint: tuple[Path, dict[str, Any]] | None = None,
        trackers: Iterable[Tracker] = (),
    ) -> None:
        self.model = model
        self.stages = stages
        self.config = config
        self.run = run
        self.evaluate = evaluate
        self.log = Log(run, trackers, flat_options(config))
        self.device = next(model.parameters()).device
        self.identity = identify(config, model, stages)
        self._printed: set[str] = set()
        self._resumed: dict[str, Any] | None = None
        if checkpoint is not None:
            path, self._resumed = checkpoint
            check_resumed(f"--resume {run}", self.identity, self._resumed, stages)
            distributed.wait()  # until all processes have read it
            if distributed.is_first():
                remove_checkpoints_after(path)
        if distributed.is_first():
            for folder in (run.folder, run.checkpoints_folder):
                remove_unfinished(folder)

    @property
    def resumes(self) -> str | None:
        """Stage and step that the run resumes from, as text; None for a new run."""
        if self._resumed is None:
            return None
        return f"{self._resumed['stage']}, step {self._resumed['step']}"

    def print_once(self, line: str) -> None:
        """Prints a line that holds for the whole run, not again in every stage."""
        if line not in self._printed:
            self._printed.add(line)
            print(line)

    def fit(self) -> None:
        """Runs the remaining stages; the run's folder then holds the final weights.

        Raises:
            pyseg.errors.UserError: The loss is not finite, or there is nothing to train on.
            OSError: A file cannot be written.
            KeyboardInterrupt: The user asked to stop; the state is saved.
        """
        names = [stage.name for stage in self.stages]
        make_run = RidgeRun if self.config.solver == "ridge" else StageRun
        first = 0 if self._resumed is None else names.index(self._resumed["stage"])
        best_step = 0  # of the previous stage
        with (
            contextlib.closing(self.log),
            self._saying_how_to_resume(),
            _cli.stop_requests() as stopped,
        ):
            for number, stage in list(enumerate(self.stages))[first:]:
                if stage.classes is not None:
                    self.model = models.select_classes(self.model, stage.classes)
                if stage.refit:
                    start = models.load(self.run.pretrained_folder, device=self.device)
                    self.model = start.train()
                elif self._resumed is None and self._is_refitted(number):
                    self.save_weights(self.model, self.run.pretrained_folder)
                if stage.config.steps:
                    steps = best_step if stage.refit else stage.config.steps
                    stage_run = make_run(self, stage, steps, self._resumed, stopped)
                    stage_run.run()
                    best_step = stage_run.best_step
                    self.log.steps_before += stage_run.step
                self._resumed = None
        if distributed.is_first():
            shutil.rmtree(self.run.checkpoints_folder, ignore_errors=True)

    def evaluated(self, model: FrameClassifier, stage: str, step: int) -> Result:
        """Returns the result of a model on held-out videos, after writing it to the log."""
        assert self.evaluate is not None
        result = self.evaluate(model)
        self.log.write("evaluate", step=step, after=stage, **result.values())
        return result

    def save_weights(self, model: nn.Module, folder: Path | None = None) -> None:
        """Saves weights in a folder; default: the run's, as its final ones."""
        if distributed.is_first():
            if folder is None:  # a calibration is of other weights
                self.run.calibration_file.unlink(missing_ok=True)
            models.save(model, folder or self.run.folder)
        distributed.wait()

    def save_checkpoint(self, stage: str, step: int, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint.

        Args:
            stage: The current stage.
            step: The number of its steps so far.
            state: What else the stage needs; the first process's counts. It has at least
                ``steps``, ``model``, and for each of the ``processes`` its own state.
        """
        if distributed.is_first():
            save_checkpoint(
                self.run.checkpoints_folder,
                self.log.steps_before + step,
                {
                    "stage": stage,
                    "step": step,
                    "identity": self.identity,
                    "log": self.log.size(),
                    "steps_before": self.log.steps_before,
                    **state,
                },
                keep=self.config.keep_checkpoints,
            )

    def rewind_log(self, state: Mapping[str, Any]) -> None:
        """Truncates the log to the lines from before a checkpoint, whose content is `state`."""
        if distributed.is_first() and self.log.size() < state["log"]:
            print(f"{self.run.log_file}: lines of the steps before are missing")
        self.log.cut(state["log"])
        self.log.steps_before = state["steps_before"]

    def _is_refitted(self, number: int) -> bool:
        return number + 1 < len(self.stages) and self.stages[number + 1].refit

    @contextlib.contextmanager
    def _saying_how_to_resume(self) -> Iterator[None]:
        """Adds it to errors of workers, and of shards at URLs, which may pass."""
        try:
            with worker_errors():
                yield
        except (WorkerError, RecordError) as error:
            may_pass = isinstance(error, WorkerError) or "://" in str(error)
            if not may_pass or not self.run.is_unfinished:
                raise
            error.args = (f"{error}; {self.run.how_to_resume}",)
            raise
