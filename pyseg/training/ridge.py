"""Ridge regression: the solver of linear models that takes no steps.

`RidgeRegression` solves it from sums over examples, and `RidgeRun` is a stage of training that does
so in two passes over the data: one for the sums, one to turn predictions into probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from pyseg import distributed
from pyseg._progress import Progress
from pyseg._text import counted
from pyseg.data import Batch
from pyseg.data.loading import loader
from pyseg.errors import UserError
from pyseg.nn import FrameClassifier, LogisticRegression
from pyseg.training.losses import Loss

if TYPE_CHECKING:
    from pyseg.training.stages import Stage
    from pyseg.training.trainer import Trainer

# Penalties to choose from, relative to the largest eigenvalue.
_PENALTIES = torch.logspace(-9, 3, 73, dtype=torch.float64)

# Predictions are counted in this many bins from the first to the last value for the calibration.
_BINS, _FIRST, _LAST = 3000, -1.0, 2.0


@dataclass(frozen=True)
class RidgeSolution:
    """A solved regression, y = W x + b.

    Attributes:
        weight: (C, N) float64, W.
        bias: (C,) float64, b.
        penalty: The penalty in use.
        freedom: The degrees of freedom of each output: 1 + sum of e / (e + penalty) over the
            eigenvalues e of the centred second moments of the inputs.
        inverse: (N, N) float64, such that ``((x - mean) @ inverse).square().sum()`` + 1 / n is the
            leverage of an example x.
        mean: (N,) float64, the mean of the inputs.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    freedom: float
    inverse: Tensor
    mean: Tensor


class RidgeRegression:
    """Ridge regressions of several outputs on the same inputs, from sums over the examples.

    Minimises over W and b::

        sum over examples of |y - W x - b|^2  +  penalty |W - s W0|^2

    The penalty is the one with the least generalised cross-validation error over all outputs
    together (Golub, Heath and Wahba, 1979, "Generalized cross-validation as a method for choosing a
    good ridge parameter")::

        (sum of squared errors / n) / (1 - freedom / n)^2

    W0 are weights to shrink to, as of an earlier stage; their scale s >= 0 is the one that fits the
    examples best. All sums are in float64.

    Args:
        in_features: The number N of inputs.
        num_outputs: The number C of outputs.
        device: The device of the sums.

    Attributes:
        count: The number n of examples so far.

    Example:
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> regression = RidgeRegression(3, 1)
        >>> regression.update(x, x @ torch.tensor([[1.0], [0.5], [2.0]]) + 5)
        >>> solution = regression.solve()
        >>> solution.weight.round(decimals=3).tolist(), solution.bias.round(decimals=3).tolist()
        ([[1.0, 0.5, 2.0]], [5.0])
    """

    def __init__(
        self, in_features: int, num_outputs: int, device: torch.device | str = "cpu"
    ) -> None:
        self.count = 0
        # The constant is one more input, and the inputs are further outputs: one matrix of sums.
        self._inputs, size = in_features, in_features + 1
        self._sums = torch.zeros(size, size + num_outputs, dtype=torch.float64, device=device)
        self._squares = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Adds examples.

        Args:
            x: (B, N) floating inputs.
            y: (B, C) floating outputs.
        """
        inputs = torch.cat((x, x.new_ones(len(x), 1)), 1).double()
        self._sums.addmm_(inputs.T, torch.cat((inputs, y.double()), 1))
        self._squares += y.double().square().sum()
        self.count += len(x)

    def reduce(self) -> None:
        """Adds the sums of all processes of the run; each of them must call it."""
        self.count = distributed.total(self.count)
        distributed.add_up(self._sums, self._squares)

    def solve(self, weight: Tensor | None = None) -> RidgeSolution:
        """Solves the regression.

        Args:
            weight: (C, N) the weights W0; default: 0.

        Raises:
            ValueError: There is no example.
        """
        if not self.count:
            raise ValueError("RidgeRegression: expected examples, found none")
        size, n = self._inputs, self.count
        mean_x, mean_y = self._sums[size].split((size + 1, self._sums.shape[1] - size - 1))
        mean_x, mean_y = mean_x[:size] / n, mean_y / n
        moments = self._sums[:size, :size] - n * torch.outer(mean_x, mean_x)
        products = self._sums[:size, size + 1 :] - n * torch.outer(mean_x, mean_y)
        error = self._squares - n * mean_y.square().sum()
        start = torch.zeros_like(products)
        if weight is not None:
            start = weight.to(moments).T
            fitted = moments @ start
            power, shared = (start * fitted).sum(), (start * products).sum()
            scale = torch.where(power > 0, shared / power, 0.0).clamp(min=0.0)
            error = error - scale * shared
            products, start = products - scale * fitted, scale * start
        values, vectors = torch.linalg.eigh(moments)
        # Smaller ones are what rounding left of the moments about 0.
        least = self._sums[:size, :size].trace() * size * torch.finfo(values.dtype).eps
        values = values.where(values > least, 0.0)
        rotated = vectors.T @ products
        penalty = _best_penalty(values, rotated.square().sum(1), error, n)
        damped = values + penalty
        solved = start + vectors @ (rotated / damped.unsqueeze(1))
        return RidgeSolution(
            solved.T,
            mean_y - mean_x @ solved,
            penalty,
            1 + float((values / damped).sum()),
            vectors / damped.sqrt(),
            mean_x,
        )


def _best_penalty(values: Tensor, powers: Tensor, error: Tensor, n: int) -> float:
    """Returns the penalty with the least generalised cross-validation error.

    Args:
        values: (N,) the eigenvalues, smallest first, at least 0.
        powers: (N,) the squared products of inputs and outputs along their eigenvectors.
        error: The sum of the squared outputs, centred.
        n: The number of examples.
    """
    largest = float(values[-1])
    if not largest:  # all examples are equal
        return 1.0
    values, powers = values[values > 0.0], powers[values > 0.0]
    penalties = largest * _PENALTIES.to(values)
    # What is left of the outputs, and of the degrees of freedom, summed from what is left along
    # each eigenvector and outside of them: as differences from all they would vanish in rounding.
    shares = penalties[:, None] / (values + penalties[:, None])
    outside = max(0, n - 1 - len(values))
    errors = (shares.square() * (powers / values)).sum(1)
    if outside:
        errors = errors + (error - (powers / values).sum()).clamp(min=0.0)
    scores = errors / (shares.sum(1) + outside).square()
    return float(penalties[scores.argmin()])


class _Calibration:
    """Fits logit = a * prediction + b to predictions of examples that were left out.

    The prediction of an example by the regression on all others follows from the regression on all:
    it errs by 1 / (1 - leverage) times as much.

    Args:
        solution: The regression.
        count: The number of its examples.
    """

    def __init__(self, solution: RidgeSolution, count: int) -> None:
        self._solution = solution
        self._count = count
        device = solution.weight.device
        self._counted = torch.zeros(2, _BINS, dtype=torch.float64, device=device)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Adds examples, see `RidgeRegression.update`."""
        solution, x, y = self._solution, x.double(), y.double()
        leverage = ((x - solution.mean) @ solution.inverse).square().sum(1) + 1 / self._count
        kept = (1 - leverage.clamp(max=1 - 1e-6)).unsqueeze(1)
        left_out = y - (y - (x @ solution.weight.T + solution.bias)) / kept
        place = (left_out - _FIRST) * (_BINS / (_LAST - _FIRST))
        bins = place.clamp(0, _BINS - 1).long().flatten()
        self._counted[0] += torch.bincount(bins, minlength=_BINS)
        self._counted[1] += torch.bincount(bins, weights=y.flatten(), minlength=_BINS)

    def fit(self) -> tuple[float, float]:
        """Returns a and b of the examples of all processes; each of them must call it."""
        distributed.add_up(self._counted)
        number, positive = self._counted.cpu()
        width = (_LAST - _FIRST) / _BINS
        values = _FIRST + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)
        # Half an example more at 0 and at 1: without them b has no limit if no target is positive.
        for value in (0.0, 1.0):
            place = int((value - _FIRST) / width)
            number[place] += 0.5
            positive[place] += 0.5 * value
        line = torch.tensor([8.0, -4.0], dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [line], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            search.zero_grad()
            logits = line[0] * values + line[1]
            each = number * functional.softplus(logits) - positive * logits
            total = each.sum() / number.sum()
            total.backward()
            return total

        search.step(loss)
        slope, bias = line.tolist()
        return max(slope, 1.0), bias


def check_solvable(model: FrameClassifier, stage: Stage) -> tuple[LogisticRegression, Loss]:
    """Returns the model and the loss of a stage that ridge regression can solve.

    Raises:
        pyseg.errors.UserError: The model is not linear, or the stage has another loss.
    """
    if not isinstance(model, LogisticRegression):
        raise UserError(
            "--solver ridge: expected a linear model (--model ridge or linear), found "
            f"{type(model).__name__}"
        )
    if not isinstance(stage.loss, Loss):
        raise UserError(
            f"--solver ridge: expected --{stage.name}.loss rated-bce, whose targets it takes, "
            f"found {stage.config.loss}"
        )
    return model, stage.loss


class RidgeRun:
    """A running stage that solves a ridge regression instead of taking steps.

    The targets are those of the stage's loss, without its weights: the ratings, and the targets of
    unrated classes from the label correlation (eq. 6). All pairs of an example and a class count
    alike. The weights shrink towards those that the model starts with.

    Two passes over the data take little time beside the steps of other models, so one that is
    interrupted starts again.

    Args:
        trainer: The trainer, with model, options, run and log.
        stage: The stage, whose data set does not repeat.
        steps: The number of its steps, which is only kept.
        resumed: The content of the checkpoint to resume from, if any.
        stopped: Returns whether the user has asked to stop.

    Raises:
        pyseg.errors.UserError: The model is not linear, or the stage has another loss.
    """

    best_step = 1
    step = 1

    def __init__(
        self,
        trainer: Trainer,
        stage: Stage,
        steps: int,
        resumed: Mapping[str, Any] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self.trainer = trainer
        self.stage = stage
        self.model, self.loss = check_solvable(trainer.model, stage)
        self.steps = steps
        self.stopped = stopped
        if resumed is not None:
            self.model.load_state_dict(resumed["model"])
            trainer.rewind_log(resumed)

    def run(self) -> None:
        """Solves the regression; the model then has its weights."""
        trainer, name, began = self.trainer, self.stage.name, time.perf_counter()
        state = {
            "steps": self.steps,
            "model": self.model.state_dict(),
            "processes": [{}] * distributed.world_size(),
        }
        trainer.save_checkpoint(name, 0, state)  # if the folder is not writable, this fails now
        trainer.log.start()
        self.model.eval()
        head = self.model.head.linear
        regression = RidgeRegression(head.in_features, head.out_features, trainer.device)
        for x, y in self._examples(name):
            regression.update(x, y)
        regression.reduce()
        if not regression.count:
            raise UserError(f"{name}: the data set has no training example")
        solution = regression.solve(head.weight.detach())
        calibration = _Calibration(solution, regression.count)
        for x, y in self._examples(f"{name}: probabilities"):
            calibration.update(x, y)
        slope, bias = calibration.fit()
        with torch.no_grad():
            head.weight.copy_(slope * solution.weight)
            head.bias.copy_(slope * solution.bias + bias)
        seconds = time.perf_counter() - began
        print(
            f"{name}: ridge regression on {counted(regression.count, 'example')} in "
            f"{seconds:.0f} s, penalty {solution.penalty:.3g}, "
            f"{counted(round(solution.freedom), 'degree')} of freedom"
        )
        self.stage.print_problems()
        trainer.log.write(
            name,
            step=self.step,
            examples=regression.count,
            penalty=solution.penalty,
            freedom=solution.freedom,
        )
        self._evaluate()
        trainer.save_weights(self.model)

    def _evaluate(self) -> None:
        trainer, name = self.trainer, self.stage.name
        if self.stage.refit or trainer.evaluate is None:
            print(f"after {name}: no evaluation, as nothing is held out")
            return
        result = trainer.evaluated(self.model, name, self.step)
        print(f"after {name}: {result.describe()}")

    def _examples(self, text: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the inputs (B, N) and targets (B, C) of this process's examples, in batches."""
        size = self.stage.share_of_batch()
        workers = self.trainer.config.workers or 0
        with Progress(text, "examples") as bar:
            for batch in loader(self.stage.dataset, size, workers=workers):
                self._stop_if_asked()
                batch.check_classes(self.model.num_classes)
                yield self._prepared(batch.to(self.trainer.device))
                bar.update(len(batch))

    @torch.no_grad()
    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        ratings = batch.offsets, batch.classes, batch.scores
        targets = self.loss.targets(*ratings, self.model.num_classes)
        return self.model.features(batch.frames, batch.num_frames), targets

    def _stop_if_asked(self) -> None:
        if self.stopped():
            how = self.trainer.run.how_to_resume
            print(f"stopped at {self.stage.name}, which starts again: {how}")
            raise KeyboardInterrupt
