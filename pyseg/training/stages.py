"""A stage of training, and its loop: steps, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyseg import _cli, distributed
from pyseg._progress import Progress
from pyseg.checkpoint import random_state
from pyseg.checkpoint import set_random_state as restore_random_state
from pyseg.config import StageConfig
from pyseg.data import Batch, Feed, RecordDataset
from pyseg.errors import UserError
from pyseg.evaluate import report_of_all
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier
from pyseg.training import graph
from pyseg.training.identity import digest
from pyseg.training.losses import KnowsExamples
from pyseg.training.optimization import Optimization

if TYPE_CHECKING:
    from pyseg.training.trainer import Trainer

LOG_EVERY = 10  # steps between lines of metrics.jsonl
CHECK_SECONDS = 1.0  # between the times that several processes ask each other whether to save


@dataclass(frozen=True)
class Stage:
    """A part of a training run.

    Attributes:
        name: Its name in the log.
        config: Its options.
        dataset: Its examples, repeated without end.
        loss: Its loss, on the device of the model (`register_loss`).
        classes: The classes of the previous stage's model to keep; None: all.
        refit: Whether it repeats the previous stage on all examples, held-out ones included: from
            the same initial weights, for its best number of steps, without evaluation.
        frames: The length to pad its examples to; None: the longest of each batch.
    """

    name: str
    config: StageConfig
    dataset: RecordDataset
    loss: nn.Module
    classes: Sequence[int] | None = None
    refit: bool = False
    frames: int | None = None

    def share_of_batch(self) -> int:
        """Returns the number of a batch's examples that this process takes.

        Raises:
            pyseg.errors.UserError: The batch size is not divisible by the number of processes.
        """
        name = f"{'finetune' if self.refit else self.name}.batch_size"
        with _cli.option(name):
            return distributed.share_of_batch(name, self.config.batch_size)

    def print_problems(self) -> None:
        """Prints the problems found in its records; all processes call it."""
        if (summary := report_of_all(self.dataset).summary()) and not self.refit:
            print(f"{self.name}: {summary}")

    def fingerprint(self) -> dict[str, Any]:
        """Returns what identifies its examples and targets."""
        correlation = getattr(self.loss, "correlation", None)
        kept = None
        if isinstance(correlation, LabelCorrelation):
            tensors = (correlation.offsets, correlation.columns, correlation.values)
            kept = digest(*(tensor.cpu().numpy().tobytes() for tensor in tensors))
        return {**self.dataset.fingerprint(), "correlation": kept}


class StageRun:
    """A running stage: all state that a checkpoint stores.

    Args:
        trainer: The trainer, with model, options, run and log.
        stage: The stage.
        steps: The number of its steps.
        resumed: The content of the checkpoint to resume from, if any.
        stopped: Returns whether the user has asked to stop.
    """

    def __init__(
        self,
        trainer: Trainer,
        stage: Stage,
        steps: int,
        resumed: dict[str, Any] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.trainer = trainer
        self.stage = stage
        self.stopped = stopped
        self.model = trainer.model
        config = stage.config
        self.model.noise.sigma = config.noise
        self.optimization = Optimization(self.model, stage.loss, config, trainer.config)
        self.graphs = self._make_graphs()
        self.steps = steps
        self.step = 0
        self.best: float | None = None  # of all evaluations so far
        self.best_step = 0
        self.worse = 0  # evaluations since the best one
        self.skipped = 0  # batches whose loss was not finite
        self.seconds = 0.0
        self.saved_at = time.monotonic()
        self.next_check = 0  # the step at which processes ask each other whether to save
        self.recent: list[tuple[list[str], Tensor]] = []  # examples and losses since the last line
        feed_state = None
        if resumed is not None:
            self._restore(resumed)
            feed_state = resumed["processes"][distributed.rank()]["feed"]
        self.feed = Feed(
            stage.dataset,
            stage.share_of_batch(),
            workers=trainer.config.workers or 0,
            frames=stage.frames,
            num_classes=self.model.num_classes,
            device=trainer.device,
            state=feed_state,
        )

    def _make_graphs(self) -> graph.GraphedSteps | None:
        """Returns what takes steps as CUDA graphs, or None; a line says why there are none."""
        options = self.trainer.config
        recorder = None if options.cuda_graph is False else graph.make_recorder(self.trainer.device)
        if recorder is None:
            if options.cuda_graph:
                self.trainer.print_once(f"CUDA graphs: none on {self.trainer.device}")
            return None
        if why := graph.why_not(options, self.model, self.stage.loss):
            self.trainer.print_once(f"CUDA graphs: none: {why}")
            return None
        self.optimization.keep_rate_on_device()
        return graph.GraphedSteps(self.optimization.step, recorder)

    @property
    def weights(self) -> FrameClassifier:
        """The model to evaluate and to save."""
        average = self.optimization.average
        return self.model if average is None else average

    def run(self) -> None:
        """Takes the remaining steps; the model then has the best weights."""
        with contextlib.nullcontext() if self.graphs is None else self.graphs.stream():
            self._run()

    def _run(self) -> None:
        name, config = self.stage.name, self.stage.config
        blind = self.stage.refit or self.trainer.evaluate is None
        self.model.train()
        if self.step == 0:
            self.save()  # if the folder is not writable, this fails now instead of after hours
        self.trainer.log.start()
        began, before = time.perf_counter(), self.seconds
        with Progress(
            name, "steps", self.steps, initial=self.step, examples=config.batch_size
        ) as bar:
            while self.step < self.steps:
                batch = self._next()
                self.recent.append((batch.ids, self._take_step(batch)))
                self.step += 1
                last = self.step == self.steps
                if not last:
                    self.feed.read_ahead()
                self.seconds = before + time.perf_counter() - began
                bar.update()
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
                    self._save_if_due()
        if self.recent:
            self._report()
        self._print_summary()
        self._keep_best(blind)

    def _keep_best(self, blind: bool) -> None:
        """Loads the best weights into the model, and prints their step."""
        name = self.stage.name
        if blind:
            print(f"after {name}: no evaluation, as nothing is held out")
        elif self.best_step == self.step:
            print(f"after {name}: {self._result.describe()}")
        else:
            print(f"after {name}: the weights of step {self.best_step} are kept")
            if distributed.is_first():
                best = self.trainer.run.model(self.trainer.device)
                self.model.load_state_dict(best.state_dict())
            distributed.share_weights(self.model)
        if self.weights is not self.model and self.best_step == self.step:
            self.model.load_state_dict(self.weights.state_dict())

    def _print_summary(self) -> None:
        name, config = self.stage.name, self.stage.config
        rate = self.step * config.batch_size / self.seconds
        print(
            f"{name}: {self.step} steps of {config.batch_size} in {self.seconds:.0f} s "
            f"({rate:.0f} examples/s), loss {self._mean:.3f}"
        )
        if self.skipped:
            print(f"{name}: {self.skipped} batches skipped, their loss was not finite")
        self.stage.print_problems()

    def _next(self) -> Batch:
        batch = next(self.feed, None)
        if batch is None:
            raise UserError(f"{self.stage.name}: the data set has no training example")
        return batch

    def _take_step(self, batch: Batch) -> Tensor:
        """Takes a step; returns the loss, without waiting for the GPU."""
        self.optimization.set_rate(self.stage.config.learning_rate_at(self.step))
        if isinstance(self.stage.loss, KnowsExamples):
            self.stage.loss.set_examples(batch.ids)
        if self.graphs is not None:
            return self.graphs(batch)
        if self.trainer.config.on_nan == "raise":
            return self.optimization.step(*batch.tensors)
        loss = self.optimization.forward(*batch.tensors)
        wrong = not bool(torch.isfinite(loss.detach()))
        if any(distributed.any_of(wrong)):
            self.skipped += 1
            ids = _examples(distributed.from_all(batch.ids if wrong else []))
            self.trainer.log.write(self.stage.name, step=self.step + 1, skipped=True, ids=ids[:5])
            return torch.zeros_like(loss.detach())
        self.optimization.update(loss)
        return loss.detach()

    def _own_losses(self) -> list[float]:
        """Returns this process's losses since the last line of the log, in one transfer."""
        return torch.stack([loss for _, loss in self.recent]).tolist() if self.recent else []

    def _losses(self) -> Tensor:
        """Returns the losses since the last line of the log, over all processes.

        Raises:
            pyseg.errors.UserError: One is not finite, so that all later weights are invalid.
        """
        own = self._own_losses()
        every = torch.tensor(distributed.from_all(own))
        losses = every.mean(0)  # the mean over processes, whose parts of a batch have equal sizes
        wrong = (~losses.isfinite()).nonzero().flatten().tolist()
        if wrong:
            mine = [] if math.isfinite(own[wrong[0]]) else self.recent[wrong[0]][0]
            ids = _examples(distributed.from_all(mine))
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
        result = self.trainer.evaluated(self.weights, self.stage.name, self.step)
        self._result, value = result, result.score
        if self.stage.config.evaluate_every:
            print(f"{self.stage.name} step {self.step}: {result.describe()}")
        if self.best is None or not value <= self.best:
            self.best, self.best_step, self.worse = value, self.step, 0
            self.trainer.save_weights(self.weights)
        else:
            self.worse += 1
        self.model.train()

    def _save_if_due(self) -> None:
        """Writes a checkpoint if one is due or the user has asked to stop."""
        trainer, options = self.trainer, self.trainer.config
        by_step = options.checkpoint_steps and self.step % options.checkpoint_steps == 0
        if not by_step and self.step < self.next_check:
            return
        # The first process's clock decides for all: each of them contributes to a checkpoint.
        if distributed.world_size() > 1:
            within = int(CHECK_SECONDS * self.step / self.seconds)
            self.next_check = self.step + distributed.from_first(max(1, min(within, LOG_EVERY)))
        late = time.monotonic() - self.saved_at > 60 * options.checkpoint_minutes
        stopped, due = distributed.any_of(self.stopped(), distributed.is_first() and late)
        if stopped:
            self.save()
            if self.best is None:
                trainer.save_weights(self.weights)
            print(f"stopped at {self.stage.name}, step {self.step}: {trainer.run.how_to_resume}")
            distributed.wait()  # torchrun ends all processes as soon as one ends
            raise KeyboardInterrupt
        if by_step or due:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint of the states of all processes, unless the loss is not finite."""
        self._losses()
        own = {
            "random": random_state(),
            "feed": self.feed.state(),
            "recent": [
                [ids, loss] for (ids, _), loss in zip(self.recent, self._own_losses(), strict=True)
            ],
        }
        processes = distributed.from_all(own)
        self.saved_at = time.monotonic()
        self.trainer.save_checkpoint(
            self.stage.name,
            self.step,
            {
                "steps": self.steps,
                **self.optimization.state(),
                "best": [self.best, self.best_step, self.worse],
                "processes": processes,
                "skipped": self.skipped,
                "seconds": self.seconds,
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if self.stage.refit:  # the best step of the previous stage
            self.steps = state["steps"]
        self.optimization.restore(state)
        self.best, self.best_step, self.worse = state["best"]
        self.skipped, self.seconds = state["skipped"], state["seconds"]
        device = self.trainer.device
        own = state["processes"][distributed.rank()]
        self.recent = [(ids, torch.tensor(loss, device=device)) for ids, loss in own["recent"]]
        self.trainer.rewind_log(state)
        restore_random_state(own["random"])


def _examples(of_processes: list[list[str]]) -> list[str]:
    """Returns the ids of all processes' examples."""
    return [id for ids in of_processes for id in ids]
