"""The training loop: stages, checkpoints, evaluation on the way, and going on after a stop.

`pyseg.train` decides what is trained on what; this module carries it out such that a run that was
stopped, or killed, at any step and goes on ends with the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyseg import _cli, distributed, models
from pyseg._extras import install_command
from pyseg._files import remove_unfinished
from pyseg._progress import Progress
from pyseg._registry import Registry, check_types, parameters, unknown
from pyseg.checkpoint import (
    list_checkpoints,
    random_state,
    remove_checkpoints_after,
    save_checkpoint,
)
from pyseg.checkpoint import set_random_state as restore_random_state
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Batch, Feed, RecordDataset
from pyseg.data.loading import worker_errors
from pyseg.errors import ArgumentError, UserError, WorkerError
from pyseg.evaluate import report_of_all
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier, l2_penalty
from pyseg.ops import rated_bce_with_logits
from pyseg.results import Result
from pyseg.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_EVERY = 10  # steps between two lines of metrics.jsonl

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


_LOSSES: Registry[Callable[..., nn.Module]] = Registry("loss")
MakeLoss = TypeVar("MakeLoss", bound=Callable[..., nn.Module])


def register_loss(name: str) -> Callable[[MakeLoss], MakeLoss]:
    """Makes a module a loss: ``--pretrain.loss NAME`` and ``--finetune.loss NAME`` then choose it.

    It is called as ``loss(logits, offsets, classes, scores)`` with logits (B, C) and the ratings of
    a `pyseg.data.Batch`, and returns a scalar. In fine-tuning it is made with those of the
    arguments of `Loss` that it has parameters for; ``loss_overrides`` sets others.

    Args:
        name: The name of the loss, which none has yet.

    Returns:
        A decorator, which returns what it is given.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.

    Example:
        >>> @register_loss("focal")
        ... class FocalLoss(nn.Module):
        ...     def __init__(self, *, gamma: float = 2.0, rated_weight: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.gamma, self.rated_weight = gamma, rated_weight
        >>> make_loss("focal", {"gamma": 1.0}, rated_weight=2.5, unrated_weight=0.1).rated_weight
        2.5
    """

    def decorator(make: MakeLoss) -> MakeLoss:
        _LOSSES.add(name, make)
        return make

    return decorator


def make_loss(name: str, overrides: Mapping[str, Any], **given: Any) -> nn.Module:
    """Makes the loss of a stage.

    Args:
        name: What it is registered as.
        overrides: Arguments of the loss.
        given: What else there is for those that have parameters for it.

    Raises:
        pyseg.errors.ArgumentError: There is no such loss or argument, or its value is of another
            type.
    """
    make = _LOSSES.find(name)
    known = parameters(make)
    for key in overrides:
        if key not in known:
            raise ArgumentError(f"loss_overrides: {unknown(f'argument of {name}', key, known)}")
    arguments = {key: value for key, value in given.items() if key in known} | dict(overrides)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ArgumentError(f"loss_overrides: expected {key}, which {name} needs, found none")
    try:
        check_types(make, arguments)
    except ArgumentError as error:
        raise ArgumentError(f"loss_overrides.{error}") from error
    return make(**arguments)


@register_loss("rated-bce")
class Loss(nn.Module):
    """Binary cross-entropy, summed over the classes and averaged over the batch.

    Args:
        rated_weight: The weight of rated classes.
        unrated_weight: The weight of all others; both 1 is plain cross-entropy.
        correlation: What rated classes say of others.
        absent_evidence: See `pyseg.ops.rated_bce_with_logits`.
    """

    def __init__(
        self,
        rated_weight: float = 1.0,
        unrated_weight: float = 1.0,
        correlation: LabelCorrelation | None = None,
        absent_evidence: float = 0.0,
    ) -> None:
        super().__init__()
        self.rated_weight, self.unrated_weight = rated_weight, unrated_weight
        self.correlation = correlation
        self.absent_evidence = absent_evidence

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        return rated_bce_with_logits(
            logits,
            offsets,
            classes,
            scores,
            self.correlation,
            rated_weight=self.rated_weight,
            unrated_weight=self.unrated_weight,
            absent_evidence=self.absent_evidence,
        )


class _Step(nn.Module):
    """From a batch to its loss: one module, so that one call is compiled or distributed."""

    model: FrameClassifier
    loss: nn.Module

    def __init__(self, model: FrameClassifier, loss: nn.Module, l2: float) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.l2 = l2

    def forward(
        self, frames: Tensor, num_frames: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor
    ) -> Tensor:
        def criterion(logits: Tensor) -> Tensor:
            return cast(Tensor, self.loss(logits, offsets, classes, scores))

        loss = self.model.training_loss(frames, num_frames, criterion)
        return loss + l2_penalty(self.model, self.l2) if self.l2 else loss


@dataclass(frozen=True)
class Stage:
    """A part of a training run.

    Attributes:
        name: What the log calls it.
        config: Its options.
        dataset: Its examples, repeated without end.
        loss: Its loss, on the device of the model (`register_loss`).
        classes: The classes of the model before that the examples know, if not all.
        refit: Whether it repeats the stage before on all examples, the held-out ones included:
            from the same initial weights, for as many steps as were best there, without evaluation.
    """

    name: str
    config: StageConfig
    dataset: RecordDataset
    loss: nn.Module
    classes: Sequence[int] | None = None
    refit: bool = False

    def share_of_batch(self) -> int:
        """Returns how many examples of a batch this process takes.

        Raises:
            pyseg.errors.UserError: The processes of the run cannot divide a batch.
        """
        name = f"{'finetune' if self.refit else self.name}.batch_size"
        with _cli.option(name):
            return distributed.share_of_batch(name, self.config.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what tells its examples and its targets from others."""
        correlation = getattr(self.loss, "correlation", None)
        digest = None
        if isinstance(correlation, LabelCorrelation):
            tensors = (correlation.offsets, correlation.columns, correlation.values)
            digest = _digest(*(tensor.cpu().numpy().tobytes() for tensor in tensors))
        return {**self.dataset.fingerprint(), "correlation": digest}


def summary_writer() -> Callable[..., SummaryWriter]:
    """Returns what writes files for TensorBoard.

    Raises:
        pyseg.errors.UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard: expected the package tensorboard ({install_command('tensorboard')}), "
            f"found: {error}"
        ) from error
    return SummaryWriter


class Log:
    """A run's log, and its numbers for TensorBoard. The first process writes them.

    Every line is on disk when `write` returns.

    Args:
        run: The run, whose log is appended to.
        tensorboard: Whether TensorBoard is to show every number as ``<stage>/<name>``.

    Attributes:
        steps_before: Steps of the stages before, from which TensorBoard's steps count on.

    Raises:
        pyseg.errors.UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Run, tensorboard: bool = False) -> None:
        self.steps_before = 0
        self._run = run
        self._make_writer: Callable[..., SummaryWriter] | None = None
        if tensorboard and distributed.is_first():
            self._make_writer = summary_writer()
        self._writer: SummaryWriter | None = None

    def write(self, stage: str, *, step: int, **values: Any) -> None:
        """Adds a line about a step of the stage that is run."""
        if not distributed.is_first():
            return
        self._run.append_to_log(stage, step=step, **values)
        if self._make_writer is None:
            return
        step += self.steps_before
        if self._writer is None:  # this step, and later ones, may be there from before a stop
            self._writer = self._make_writer(str(self._run.tensorboard_folder), purge_step=step)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes what is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def size(self) -> int:
        """Returns the bytes that have been written."""
        path = self._run.log_file
        return path.stat().st_size if path.exists() else 0

    def cut(self, size: int) -> None:
        """Removes what was written after the file had a size."""
        if distributed.is_first() and self._run.log_file.exists():
            os.truncate(self._run.log_file, min(size, self.size()))


class Trainer:
    """Runs the stages of a training run, one after the other.

    Args:
        model: What is trained, on its device.
        stages: The stages.
        config: The run's options.
        run: The run's folder, which receives the weights, checkpoints and metrics.jsonl.
        evaluate: The result of a model on held-out videos, whose ``score`` says which weights are
            kept. None: nothing is held out, and the weights after the last step are.
        checkpoint: Where the run goes on, a path and what it holds; default: at the beginning.

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
    ) -> None:
        self.model = model
        self.stages = stages
        self.config = config
        self.run = run
        self.evaluate = evaluate
        self.log = Log(self.run, config.tensorboard)
        self.device = next(model.parameters()).device
        self._checkpoints = self.run.checkpoints_folder
        self._resumed: dict[str, Any] | None = None
        self._saved = time.monotonic()
        self._best_step = 0  # of the stage before
        identity = None
        if distributed.is_first():  # one look at all files is enough
            identity = {
                "options": flat_options(config),
                "model": _describe_model(model),
                "stages": {stage.name: stage.fingerprint() for stage in stages},
                "surroundings": _surroundings(self.device),
            }
        self._identity = cast(dict[str, Any], distributed.from_first(identity))
        if checkpoint is not None:
            path, self._resumed = checkpoint
            self._check(self._resumed)
            distributed.wait()  # until all have read it
            if distributed.is_first():
                remove_checkpoints_after(path)
        if distributed.is_first():
            for folder in (run.folder, self._checkpoints):
                remove_unfinished(folder)

    def _check(self, resumed: Mapping[str, Any]) -> None:
        """Compares what is here with what a checkpoint was made of, but for the options.

        Raises:
            pyseg.errors.UserError: It is not the same; the message says what.
        """
        asked, before = f"--resume {self.run}", resumed["identity"]
        processes = len(resumed["processes"])
        if processes != distributed.world_size():
            raise UserError(
                f"{asked}: expected {processes} processes, as before; found "
                f"{distributed.world_size()}"
            )
        for name, value in self._identity["model"].items():
            if value != before["model"][name]:
                raise UserError(
                    f"{asked}: the model's {name}: expected {before['model'][name]}, as the run "
                    f"has, found {value}: is the vocabulary, or another table, another one?"
                )
        if list(before["stages"]) != list(self._identity["stages"]):
            raise UserError(
                f"{asked}: expected data for the stages {', '.join(before['stages'])}, found data "
                f"for {', '.join(self._identity['stages'])}"
            )
        for name, found in self._identity["stages"].items():
            _check_fingerprint(f"{asked}: the data of {name}", before["stages"][name], found)
        self._check_steps(asked, resumed)
        told = before["surroundings"] | {"workers": before["options"]["workers"]}
        here = self._identity["surroundings"] | {"workers": self.config.workers}
        cached = all(stage.dataset.cached for stage in self.stages)
        for name, value in here.items():
            if value != told[name] and not (name == "workers" and cached):
                print(
                    f"{name}: {value}, {told[name]} before: the weights will not be, to the bit, "
                    "those of a run that was not stopped"
                )

    def _check_steps(self, asked: str, resumed: Mapping[str, Any]) -> None:
        """Checks that no other number of steps is asked of what has been done."""
        names = [stage.name for stage in self.stages]
        current = names.index(resumed["stage"])
        before = resumed["identity"]["options"]
        for number, stage in enumerate(self.stages):
            steps, option = stage.config.steps, f"{stage.name}.steps"
            if number > current or stage.refit or steps == before[option]:
                continue
            if number < current:
                raise UserError(
                    f"{asked}: --{option} {steps}: expected {before[option]}, as the run has, "
                    "whose stage has ended"
                )
            if steps <= resumed["step"]:
                raise UserError(
                    f"{asked}: --{option} {steps}: expected more than the {resumed['step']} steps "
                    "that the run has done"
                )

    @property
    def resumes(self) -> str | None:
        """Where the run goes on, in words; None at the beginning."""
        if self._resumed is None:
            return None
        return f"{self._resumed['stage']}, step {self._resumed['step']}"

    def fit(self) -> None:
        """Runs what is left of the stages; the run's folder then holds the weights to use.

        Raises:
            pyseg.errors.UserError: The loss is not finite, or there is nothing to train on.
            OSError: A file cannot be written.
            KeyboardInterrupt: It was asked to stop, and has saved where it was.
        """
        names = [stage.name for stage in self.stages]
        first = 0 if self._resumed is None else names.index(self._resumed["stage"])
        with (
            contextlib.closing(self.log),
            self._told_to_go_on(),
            _cli.stop_requests() as stopped,
        ):
            for number in range(first, len(self.stages)):
                stage = self.stages[number]
                if stage.classes is not None:
                    self.model = models.select_classes(self.model, stage.classes)
                if stage.refit:
                    start = models.load(self.run.pretrained_folder, device=self.device)
                    self.model = start.train()
                elif self._resumed is None and self._is_done_again(number):
                    self.save_weights(self.model, self.run.pretrained_folder)
                if stage.config.steps:
                    run = _StageRun(self, number, self._resumed, stopped)
                    run.run()
                    self._best_step = run.best_step
                    self.log.steps_before += run.step
                self._resumed = None
        if distributed.is_first():
            shutil.rmtree(self._checkpoints, ignore_errors=True)

    def _is_done_again(self, number: int) -> bool:
        return number + 1 < len(self.stages) and self.stages[number + 1].refit

    @contextlib.contextmanager
    def _told_to_go_on(self) -> Iterator[None]:
        try:
            with worker_errors():
                yield
        except WorkerError as error:
            if not list_checkpoints(self._checkpoints):
                raise
            told = f"{error}; python -m pyseg.train --resume {self.run} goes on"
            raise WorkerError(told) from error

    def save_weights(self, model: nn.Module, folder: Path | None = None) -> None:
        """Saves the weights to use, or others in a folder of their own."""
        if distributed.is_first():
            models.save(model, folder or self.run.folder)
        distributed.wait()


class _StageRun:
    """A stage that is being run: all that a checkpoint has to hold."""

    def __init__(
        self,
        trainer: Trainer,
        number: int,
        resumed: dict[str, Any] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.trainer = trainer
        self.stage = trainer.stages[number]
        self.stopped = stopped
        self.model = trainer.model
        config = self.stage.config
        self.model.noise.sigma = config.noise
        # Before anything copies the weights: from here on all processes have the same.
        step = distributed.parallel(_Step(self.model, self.stage.loss, config.l2))
        self.loss_of = torch.compile(step) if trainer.config.compile else step
        # fused: one pass over the weights instead of a dozen; they are half of a short step.
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, fused=True
        )
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        half = trainer.config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(trainer.device.type, enabled=half)
        self.steps = trainer._best_step if self.stage.refit else config.steps
        self.step = 0
        self.best: float | None = None  # of the evaluations so far
        self.best_step = 0
        self.worse = 0  # evaluations since the best one
        self.skipped = 0  # batches whose loss was not finite
        self.seconds = 0.0
        self.recent: list[tuple[list[str], Tensor]] = []  # examples and loss since the last line
        feed_state = None
        if resumed is not None:
            self._restore(resumed)
            feed_state = resumed["processes"][distributed.rank()]["feed"]
        self.feed = Feed(
            self.stage.dataset,
            self.stage.share_of_batch(),
            workers=trainer.config.workers,
            state=feed_state,
        )

    @property
    def weights(self) -> FrameClassifier:
        """The model to evaluate and to save."""
        return self.model if self.average is None else cast(Any, self.average.module)

    def run(self) -> None:
        """Takes the steps that are left, and leaves the best weights in the model."""
        name, config = self.stage.name, self.stage.config
        blind = self.stage.refit or self.trainer.evaluate is None
        self.model.train()
        if self.step == 0:
            self.save()  # a folder that cannot take it is told now, not after hours
        began, before = time.perf_counter(), self.seconds
        with Progress(
            name, "steps", self.steps, initial=self.step, examples=config.batch_size
        ) as bar:
            while self.step < self.steps:
                batch = self._next()
                loss = self._optimise(batch)
                self.step += 1
                self.recent.append((batch.ids, loss))
                self.seconds = before + time.perf_counter() - began
                bar.update()
                last = self.step == self.steps
                if self.step % LOG_EVERY == 0 or last:
                    mean = self._report()
                    bar.note(loss=f"{mean:.3f}")
                every = 0 if blind else config.evaluate_every
                if last and blind:
                    self.best_step = self.step
                    self.trainer.save_weights(self.weights)
                elif last or (every and self.step % every == 0):
                    self._evaluate()
                    if config.patience and self.worse >= config.patience and not last:
                        print(f"{name}: stopped early, at step {self.step}")
                        break
                if not last:
                    self._save_where_due()
        if self.recent:
            self._report()
        self._tell_steps()
        self._keep_best(blind)

    def _keep_best(self, blind: bool) -> None:
        """Leaves the best weights in the model, where they were evaluated, and says which."""
        name = self.stage.name
        if blind:
            print(f"after {name}: nothing is held out that could be evaluated")
        elif self.best_step == self.step:
            print(f"after {name}: {self._result.describe()}")
        else:
            print(f"after {name}: the weights of step {self.best_step} are kept")
            if distributed.is_first():
                best = self.trainer.run.model(self.trainer.device)
                self.model.load_state_dict(best.state_dict())
            distributed.share_weights(self.model)
        if self.average is not None and self.best_step == self.step:
            self.model.load_state_dict(self.average.module.state_dict())

    def _tell_steps(self) -> None:
        name, config = self.stage.name, self.stage.config
        rate = self.step * config.batch_size / self.seconds
        print(
            f"{name}: {self.step} steps of {config.batch_size} in {self.seconds:.0f} s "
            f"({rate:.0f} examples/s), loss {self._mean:.3f}"
        )
        if self.skipped:
            print(f"{name}: {self.skipped} batches skipped, their loss was not finite")
        if (summary := report_of_all(self.stage.dataset).summary()) and not self.stage.refit:
            print(f"{name}: {summary}")

    def _next(self) -> Batch:
        batch = next(self.feed, None)
        if batch is None:
            raise UserError(f"{self.stage.name}: the data set has no training example")
        batch.check_classes(self.model.num_classes)
        return batch.to(self.trainer.device, non_blocking=True)

    def _optimise(self, batch: Batch) -> Tensor:
        """Takes a step; returns the loss, which need not be there yet on a GPU."""
        config, options = self.stage.config, self.trainer.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        dtype = _DTYPES.get(options.precision)
        with torch.autocast(self.trainer.device.type, dtype=dtype, enabled=dtype is not None):
            loss: Tensor = self.loss_of(
                batch.frames, batch.num_frames, batch.offsets, batch.classes, batch.scores
            )
        if options.on_nan == "skip":
            wrong = not bool(torch.isfinite(loss.detach()))
            if any(distributed.any_of(wrong)):
                self.skipped += 1
                ids = _examples(distributed.from_all(batch.ids if wrong else []))
                self.trainer.log.write(
                    self.stage.name, step=self.step + 1, skipped=True, ids=ids[:5]
                )
                return torch.zeros_like(loss.detach())
        self.scaler.scale(loss).backward()
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach()

    def _losses(self) -> Tensor:
        """Returns the losses since the last line of the log, of all processes' examples.

        Raises:
            pyseg.errors.UserError: One is not finite: what the weights are since then is no use.
        """
        own = [float(loss) for _, loss in self.recent]
        every = torch.tensor(distributed.from_all(own))
        losses = every.mean(0)  # of all processes, whose parts of a batch are equally large
        wrong = (~losses.isfinite()).nonzero().flatten().tolist()
        if wrong:
            told = [] if math.isfinite(own[wrong[0]]) else self.recent[wrong[0]][0]
            ids = _examples(distributed.from_all(told))
            raise UserError(
                f"{self.stage.name}: the loss is {losses[wrong[0]].item()} at step "
                f"{self.step - len(losses) + wrong[0] + 1}, for the examples "
                f"{', '.join(ids[:5])}{', ...' * (len(ids) > 5)}"
            )
        return losses

    def _report(self) -> float:
        self._mean = self._losses().mean().item()
        done = self.step * self.stage.config.batch_size
        self.trainer.log.write(
            self.stage.name,
            step=self.step,
            loss=self._mean,
            learning_rate=self.stage.config.learning_rate_at(self.step - 1),
            examples_per_second=round(done / self.seconds, 1),
        )
        self.recent.clear()
        return self._mean

    def _evaluate(self) -> None:
        assert self.trainer.evaluate is not None
        result = self._result = self.trainer.evaluate(self.weights)
        value = result.score
        self.trainer.log.write("evaluate", step=self.step, after=self.stage.name, **result.values())
        if self.stage.config.evaluate_every:
            print(f"{self.stage.name} step {self.step}: {result.describe()}")
        if self.best is None or not value <= self.best:
            self.best, self.best_step, self.worse = value, self.step, 0
            self.trainer.save_weights(self.weights)
        else:
            self.worse += 1
        self.model.train()

    def _save_where_due(self) -> None:
        """Writes a checkpoint where it is time for one, or where the run is to stop."""
        trainer, options = self.trainer, self.trainer.config
        # Together, because all processes have a part in a checkpoint, and by the clock of one.
        late = time.monotonic() - trainer._saved > 60 * options.checkpoint_minutes
        stopped, due = distributed.any_of(self.stopped(), distributed.is_first() and late)
        if stopped:
            self.save()
            if self.best is None:
                trainer.save_weights(self.weights)
            print(
                f"stopped at {self.stage.name}, step {self.step}: "
                f"python -m pyseg.train --resume {trainer.run} goes on"
            )
            distributed.wait()  # where one process ends, torchrun ends the others
            raise KeyboardInterrupt
        by_step = options.checkpoint_steps and self.step % options.checkpoint_steps == 0
        if by_step or due:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, which every process has a part in, unless the run has failed."""
        self._losses()
        own = {
            "random": random_state(),
            "feed": self.feed.state(),
            "recent": [[ids, loss.item()] for ids, loss in self.recent],
        }
        processes = distributed.from_all(own)
        self.trainer._saved = time.monotonic()
        if not distributed.is_first():
            return
        state = {
            "stage": self.stage.name,
            "step": self.step,
            "steps": self.steps,
            "identity": self.trainer._identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": [self.best, self.best_step, self.worse],
            "processes": processes,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "log": self.trainer.log.size(),
            "steps_before": self.trainer.log.steps_before,
        }
        save_checkpoint(
            self.trainer._checkpoints,
            self.trainer.log.steps_before + self.step,
            state,
            keep=self.trainer.config.keep_checkpoints,
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if self.stage.refit:  # as many as the stage before found best
            self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best, self.best_step, self.worse = state["best"]
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        device = self.trainer.device
        own = state["processes"][distributed.rank()]
        self.recent = [(ids, torch.tensor(loss, device=device)) for ids, loss in own["recent"]]
        if distributed.is_first() and self.trainer.log.size() < state["log"]:
            print(f"{self.trainer.run.log_file}: lines of the steps before are missing")
        self.trainer.log.cut(state["log"])
        self.trainer.log.steps_before = state["steps_before"]
        restore_random_state(own["random"])


def flat_options(config: TrainConfig) -> dict[str, Any]:
    """Returns the options by the names that the command line has for them, as JSON has them."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                found |= flat(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value
        return found

    return flat(json.loads(json.dumps(asdict(config))))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _describe_model(model: FrameClassifier) -> dict[str, Any]:
    """Returns what decides which weights a model has, and what its classes are called."""
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    names = cast(models.ModelConfig, model.config).class_names
    return {
        "num_classes": model.num_classes,
        "feature_sizes": list(model.feature_sizes),
        "class_names": _digest(json.dumps(None if names is None else list(names)).encode()),
        "weights": _digest(json.dumps(shapes).encode()),
    }


def _surroundings(device: torch.device) -> dict[str, Any]:
    """Returns what changes how results are rounded."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _check_fingerprint(where: str, before: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name in sorted(before.keys() | found.keys()):
        old, new = before.get(name), found.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _check_fingerprint(f"{where}: {name}", old, new)
        expected, here = ("none" if value is None else value for value in (old, new))
        raise UserError(f"{where}: {name}: expected {expected}, as the run had, found {here}")


def _examples(of_processes: list[list[str]]) -> list[str]:
    """Returns the ids of all processes."""
    return [id for ids in of_processes for id in ids]
