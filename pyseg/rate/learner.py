"""What the answers so far say of all segments; see `Learner`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseg import models
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.ops import rated_bce_with_logits
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers

RATED_WEIGHT, UNRATED_WEIGHT = 2.5, 0.1
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

    def repeat(self, rows: Tensor) -> _Rows:
        """Returns some rows, which may repeat, by their numbers."""
        sizes = self.offsets.diff()[rows]
        offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
        shift = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], sizes)
        places = torch.arange(len(shift)) + shift
        return _Rows(self.segments[rows], offsets, self.classes[places], self.scores[places])


class Learner:
    """Learns from answers what the segments of a pool show.

    The model is a logistic regression on the means of segments, logit = offset + w x + b, with the
    paper's loss: rated classes weigh 2.5, unrated ones 0.1 (eq. 3) with the targets that the label
    correlation gives (eq. 6). Its weights have an L2 penalty.

    Args:
        pool: The segments.
        correlation: P' of the pool's classes; None: no relations.
        offsets: (S, C), the logits of another model, where this one starts; None: 0.
        folds: Parts into which the videos are divided for cross-fitting: each part's answers are
            also scored by a model that learned from the other parts; 0: no cross-fitting.
        model: "linear", or another preset of `pyseg.models`, such as "mlp".
        seed: The seed of the division into folds and of weights.

    Raises:
        ValueError: An argument does not fit the pool, or the model is unknown.
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
        l2: float = 0.3,
        rated_weight: float = RATED_WEIGHT,
        unrated_weight: float = UNRATED_WEIGHT,
    ) -> None:
        classes = len(pool.class_names)
        if correlation is not None and correlation.num_classes != classes:
            raise ArgumentError(
                f"correlation: expected {classes} classes, found {correlation.num_classes}"
            )
        if offsets is not None and offsets.shape != (len(pool), classes):
            raise ArgumentError(
                f"offsets: expected shape {(len(pool), classes)}, found {offsets.shape}"
            )
        if folds < 0 or folds == 1:
            raise ArgumentError(f"folds: expected 0 or at least 2, found {folds}")
        if model not in models.names():
            models.options(model)
        self.pool, self.correlation, self.offsets = pool, correlation, offsets
        self.folds, self.model, self.seed = folds, model, seed
        self.l2, self.weights = l2, (rated_weight, unrated_weight)
        order = np.random.default_rng(seed).permutation(len(pool.ids))
        self._fold_of_video = order % max(folds, 1)
        self._means = torch.from_numpy(pool.means)
        # Of the folds' models and the one of all answers, which is the last.
        self._parameters = torch.zeros(folds + 1, pool.means.shape[1] + 1, classes)

    def fit(self, answers: Answers) -> Beliefs:
        """Learns from answers, starting from what the last fit has found."""
        rows = _Rows.of(answers)
        if len(answers):
            self._minimize(rows)
        return Beliefs(self._score_all(), self._score_held_out(answers), answers)

    def _minimize(self, rows: _Rows) -> None:
        folds = torch.from_numpy(self._fold_of_video[self.pool.videos[rows.segments.numpy()]])
        learns = folds[:, None] != torch.arange(self.folds + 1)  # (R, folds + 1)
        if not self.folds:
            learns = torch.ones_like(learns)
        repeated = rows.repeat(learns.nonzero()[:, 0])
        x = self._means[rows.segments]
        x = torch.cat((x, x.new_ones(len(x), 1)), 1)
        width, classes = x.shape[1], len(self.pool.class_names)
        offsets = None
        if self.offsets is not None:
            offsets = torch.from_numpy(self.offsets[repeated.segments.numpy()]).float()
        penalty = torch.full((width, 1), self.l2 * (width - 1))
        penalty[-1] = 0.05
        parameters = self._parameters.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=40, history_size=10, tolerance_grad=1e-4,
            tolerance_change=1e-7, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def objective() -> Tensor:
            optimizer.zero_grad()
            flat = parameters.permute(1, 0, 2).reshape(width, -1)
            logits = (x @ flat).view(len(x), -1, classes)[learns]
            if offsets is not None:
                logits = logits + offsets
            loss = rated_bce_with_logits(
                logits,
                repeated.offsets,
                repeated.classes,
                repeated.scores,
                self.correlation,
                rated_weight=self.weights[0],
                unrated_weight=self.weights[1],
            )
            total = loss * len(logits) + 0.5 * (penalty * parameters.square()).sum()
            total.backward()
            return total

        optimizer.step(objective)
        self._parameters = parameters.detach()

    def _score_all(self) -> npt.NDArray[np.float32]:
        weights, bias = self._parameters[-1, :-1], self._parameters[-1, -1]
        logits = torch.addmm(bias, self._means, weights).numpy()
        return logits if self.offsets is None else logits + self.offsets

    def _score_held_out(self, answers: Answers) -> npt.NDArray[np.float32]:
        if not self.folds:
            return np.zeros(0, np.float32)
        segments, labels = answers.segments, answers.labels
        folds = self._fold_of_video[self.pool.videos[segments]]
        of_pair = self._parameters[folds, :, labels]  # (A, N + 1)
        logits = (self._means[segments] * of_pair[:, :-1]).sum(1) + of_pair[:, -1]
        found: npt.NDArray[np.float32] = logits.numpy()
        return found if self.offsets is None else found + self.offsets[segments, labels]
