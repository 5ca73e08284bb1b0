"""What the answers so far say of all segments; see `Learner`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseg import models
from pyseg._registry import unknown
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier, l2_penalty
from pyseg.ops import rated_bce_with_logits
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers

RATED_WEIGHT, UNRATED_WEIGHT = 2.5, 0.1
"""The weights of rated and unrated classes in the loss, the paper's m and n."""

# The penalty of a weight, times the number N of values, and that of a bias. A logit w x then has a
# prior deviation of 1, whatever N is. The penalty of the bias keeps it finite where all answers are
# the same.
_L2, _BIAS_L2 = 1.0, 0.05

# Full-batch steps of L-BFGS, of which a warm start needs fewer; and of Adam, of the first fit and
# of a later one.
_MOST_STEPS, _HISTORY = 60, 10
_FIRST_STEPS, _LATER_STEPS, _BATCH = 150, 60, 128
_LEARNING_RATE, _NETWORK_L2 = 2e-3, 1e-3

_SIZES: dict[str, dict[str, Any]] = {"mlp": {"hidden_size": 128, "input_dropout": 0.2}}
_BLOCK = 16_384  # segments scored at once


class Beliefs(NamedTuple):
    """What a model believes of the segments of a pool.

    Attributes:
        logits: (S, C) float32, the logits of all segments and classes.
        held_out: (A,) float32, the logit of each answered pair by a model that learned from other
            videos only; (0,) without cross-fitting.
        answers: The answers that it learned from.
    """

    logits: npt.NDArray[np.float32]
    held_out: npt.NDArray[np.float32]
    answers: Answers


class _Rows(NamedTuple):
    """Rated segments, and their ratings, as `rated_bce_with_logits` takes them.

    Attributes:
        segments: (R,) numbers of segments, increasing.
        offsets: (R + 1,).
        classes: (A,).
        scores: (A,).
    """

    segments: Tensor
    offsets: Tensor
    classes: Tensor
    scores: Tensor

    @classmethod
    def of(cls, answers: Answers) -> _Rows:
        order = np.lexsort((answers.labels, answers.segments))
        segments, counts = np.unique(answers.segments, return_counts=True)
        return cls(
            torch.from_numpy(segments.astype(np.int64)),
            torch.from_numpy(np.concatenate(([0], np.cumsum(counts)))),
            torch.from_numpy(answers.labels[order].astype(np.int64)),
            torch.from_numpy(answers.scores[order].astype(np.float32)),
        )

    def take(self, rows: Tensor) -> _Rows:
        """Returns some rows by their numbers, which may repeat."""
        sizes = self.offsets.diff()[rows]
        offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
        shift = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], sizes)
        places = torch.arange(len(shift)) + shift
        return _Rows(self.segments[rows], offsets, self.classes[places], self.scores[places])


class Learner:
    """Learns from answers what the segments of a pool show.

    The loss is the paper's: rated classes weigh 2.5, unrated ones 0.1 (eq. 3), and the targets of
    the latter are what the label correlation makes of the answers (eq. 6). Only rated segments are
    learned from.

    The model "linear" is a logistic regression on the means of segments, logit = offset + w x + b,
    with an L2 penalty. Here x is the standardised mean, scaled to the length sqrt(N): segments
    unlike all others would have large logits otherwise, and would be asked about first. The models
    of all folds and the one of all answers are fitted together, in about a second for 1,000
    answers, 1,152 values and 20 classes.

    Any other model is a preset of `pyseg.models` that reads x as the only frame of a video. It is
    trained for a fixed number of steps, one fold after the other.

    A fit is deterministic, given the fits before it.

    Args:
        pool: The segments.
        correlation: P' of the pool's classes; None: no relations.
        offsets: (S, C) the logits of another model, where this one starts; None: 0.
        folds: Parts into which the videos are divided for cross-fitting: the answers about each
            part are also scored by a model that learned from the other parts; 0: no cross-fitting.
        model: "linear", or another preset, such as "mlp".
        seed: The seed of the folds, and of a network's weights and batches.

    Raises:
        ValueError: An argument does not fit the pool, or the model is unknown.

    Example:
        >>> from pyseg.data.sample import make_sample
        >>> pool = Pool.read(make_sample() / "validate", ["car", "sun"])
        >>> yes_and_no = np.array([1, 0], np.float32)
        >>> asked = np.array([0, 50]), np.array([1, 1])
        >>> beliefs = Learner(pool).fit(Answers(*asked, yes_and_no, np.array([True, True])))
        >>> bool(beliefs.logits[0, 1] > beliefs.logits[50, 1])
        True
    """

    def __init__(
        self,
        pool: Pool,
        *,
        correlation: LabelCorrelation | None = None,
        offsets: npt.NDArray[np.float32] | None = None,
        folds: int = 5,
        model: str = "linear",
        seed: int = 0,
    ) -> None:
        shape = len(pool), len(pool.class_names)
        if correlation is not None and correlation.num_classes != shape[1]:
            raise ArgumentError(
                f"correlation: expected {shape[1]} classes, found {correlation.num_classes}"
            )
        if offsets is not None and not (offsets.shape == shape and np.isfinite(offsets).all()):
            raise ArgumentError(
                f"offsets: expected finite numbers of shape {shape}, found shape {offsets.shape}"
            )
        if folds < 0 or folds == 1:
            raise ArgumentError(f"folds: expected 0, or at least 2, found {folds}")
        if model not in models.names():
            raise ArgumentError(f"model: {unknown('preset', model, models.names())}")
        self.pool, self.correlation, self.folds = pool, correlation, folds
        self._offsets = None if offsets is None else torch.from_numpy(np.float32(offsets))
        order = np.random.default_rng(seed).permutation(len(pool.ids))
        self._folds = torch.from_numpy((order % max(folds, 1))[pool.videos])
        inputs = _Inputs(torch.from_numpy(pool.means))
        self._models: _Models
        if model == "linear":
            self._models = _Regressions(inputs, folds + 1, shape[1])
        else:
            self._models = _Networks(inputs, folds + 1, shape[1], model, seed)

    def fit(self, answers: Answers) -> Beliefs:
        """Learns from answers, starting from what the last fit has found.

        Args:
            answers: All answers so far.

        Returns:
            What the model of all answers believes. Without an answer, logits are the offsets.
        """
        if len(answers):
            rows = _Rows.of(answers)
            numbers = torch.arange(self.folds + 1)
            learns = self._folds[rows.segments, None] != numbers
            learns[:, -1] = True
            self._models.fit(rows, learns, self._loss)
        else:
            self._models.reset()
        logits = self._models.score(self.folds)
        if self._offsets is not None:
            logits += self._offsets
        return Beliefs(logits.numpy(), self._held_out(answers), answers)

    def _loss(self, logits: Tensor, rows: _Rows) -> Tensor:
        """Returns the mean loss of rows, given what the model adds to the offsets."""
        if self._offsets is not None:
            logits = logits + self._offsets[rows.segments]
        return rated_bce_with_logits(
            logits,
            rows.offsets,
            rows.classes,
            rows.scores,
            self.correlation,
            rated_weight=RATED_WEIGHT,
            unrated_weight=UNRATED_WEIGHT,
        )

    def _held_out(self, answers: Answers) -> npt.NDArray[np.float32]:
        found = torch.zeros(len(answers) if self.folds else 0)
        segments = torch.from_numpy(answers.segments).long()
        labels = torch.from_numpy(answers.labels).long()
        for fold in range(self.folds):
            of_fold = (self._folds[segments] == fold).nonzero()[:, 0]
            asked = segments[of_fold]
            logits = self._models.score(fold, asked)
            if self._offsets is not None:
                logits += self._offsets[asked]
            found[of_fold] = logits.gather(1, labels[of_fold, None])[:, 0]
        held_out: npt.NDArray[np.float32] = found.numpy()
        return held_out


class _Inputs:
    """The means of segments, scaled to the length sqrt(N) as they are read."""

    def __init__(self, means: Tensor) -> None:
        self._means = means
        self.width = means.shape[1]
        norms = torch.linalg.vector_norm(means, dim=1, keepdim=True)
        self._scale = self.width**0.5 / norms.clamp(min=1e-6)

    def __len__(self) -> int:
        return len(self._means)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self._means[rows] * self._scale[rows]


class _Models(ABC):
    """The models of the folds, and that of all answers, which is the last."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets everything."""

    @abstractmethod
    def fit(self, rows: _Rows, learns: Tensor, loss: Callable[[Tensor, _Rows], Tensor]) -> None:
        """Fits each model to its rows.

        Args:
            rows: R rated segments.
            learns: (R, models) whether a model learns from a row.
            loss: Returns the mean loss of (B, C) logits of B rows.
        """

    @abstractmethod
    def score(self, number: int, segments: Tensor | None = None) -> Tensor:
        """Returns a model's logits of some segments, default: all."""


class _Regressions(_Models):
    """Logistic regressions, fitted together: they share products, and no parameter."""

    def __init__(self, inputs: _Inputs, count: int, classes: int) -> None:
        self._inputs = inputs
        self._parameters = torch.zeros(count, inputs.width + 1, classes)  # the last row: biases

    def reset(self) -> None:
        self._parameters = torch.zeros_like(self._parameters)

    def fit(self, rows: _Rows, learns: Tensor, loss: Callable[[Tensor, _Rows], Tensor]) -> None:
        x = self._inputs[rows.segments]
        x = torch.cat((x, x.new_ones(len(x), 1)), 1)
        width, classes = self._parameters.shape[1:]
        # Model after model, so that the gradients of their rows are added in a fixed order.
        of_model, row = learns.T.nonzero().unbind(1)
        places = of_model * len(x) + row
        used = rows.take(row)
        penalty = torch.full((width, 1), _L2 * (width - 1))
        penalty[-1] = _BIAS_L2
        parameters = self._parameters.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameters],
            max_iter=_MOST_STEPS,
            history_size=_HISTORY,
            tolerance_grad=1e-3,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            logits = torch.matmul(x, parameters).view(-1, classes).index_select(0, places)
            total = loss(logits, used) * len(places)  # a sum, as the models have different rows
            total = total + 0.5 * (penalty * parameters.square()).sum()
            total.backward()
            return total

        optimizer.step(objective)
        self._parameters = parameters.detach()

    def score(self, number: int, segments: Tensor | None = None) -> Tensor:
        weights, bias = self._parameters[number, :-1], self._parameters[number, -1]
        if segments is not None:
            return torch.addmm(bias, self._inputs[segments], weights)
        logits = torch.empty(len(self._inputs), len(bias))
        for start in range(0, len(logits), _BLOCK):
            block = slice(start, start + _BLOCK)
            torch.addmm(bias, self._inputs[block], weights, out=logits[block])
        return logits


class _Networks(_Models):
    """Networks of a preset, trained one after the other."""

    def __init__(self, inputs: _Inputs, count: int, classes: int, preset: str, seed: int) -> None:
        self._inputs, self._classes = inputs, classes
        self._preset, self._seed = preset, seed
        self._networks: list[FrameClassifier | None] = [None] * count

    def reset(self) -> None:
        self._networks = [None] * len(self._networks)

    def fit(self, rows: _Rows, learns: Tensor, loss: Callable[[Tensor, _Rows], Tensor]) -> None:
        with torch.random.fork_rng(devices=[]):  # of dropout and weights
            for number, network in enumerate(self._networks):
                torch.manual_seed(self._seed)
                steps = _LATER_STEPS
                if network is None:
                    network, steps = self._make(), _FIRST_STEPS
                own = learns[:, number].nonzero()[:, 0]
                if len(own):
                    self._train(network, rows.take(own), loss, steps)
                    self._networks[number] = network.eval()
                else:
                    self._networks[number] = None

    def _make(self) -> FrameClassifier:
        width = self._inputs.width
        limit = float(width)  # above all values, so that none is taken for a byte
        return models.create(
            self._preset,
            num_classes=self._classes,
            feature_sizes=(width,),
            ranges=((-limit, limit),),
            **_SIZES.get(self._preset, {}),
        )

    def _train(
        self,
        network: FrameClassifier,
        rows: _Rows,
        loss: Callable[[Tensor, _Rows], Tensor],
        steps: int,
    ) -> None:
        """Trains a network; any segments in each batch give batch norms the statistics of all."""
        optimizer = torch.optim.Adam(network.train().parameters(), lr=_LEARNING_RATE)
        for _ in range(steps):
            batch = rows.take(torch.randperm(len(rows.segments))[:_BATCH])
            others = torch.randint(len(self._inputs), (_BATCH,))
            x = self._inputs[torch.cat((batch.segments, others))]
            logits = network(x.unsqueeze(1))[: len(batch.segments)]
            total = loss(logits, batch) + l2_penalty(network, _NETWORK_L2)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    @torch.no_grad()
    def score(self, number: int, segments: Tensor | None = None) -> Tensor:
        network = self._networks[number]
        count = len(self._inputs) if segments is None else len(segments)
        logits = torch.zeros(count, self._classes)
        for start in range(0, count if network is not None else 0, _BLOCK):
            block = slice(start, start + _BLOCK)
            x = self._inputs[block if segments is None else segments[block]]
            assert network is not None
            logits[block] = network(x.unsqueeze(1))
        return logits
