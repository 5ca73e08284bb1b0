"""Losses of the literature on missing labels, as baselines: the table ``literature``.

All of them see what `pyseg.training.Loss` sees: the logits (B, C) of a batch, and for each of its
examples a few classes that are rated present or absent; nothing is known of the other classes. The
papers' examples have one class that is known to be present and none that is known to be absent.
Here a class that is rated 0 is an ordinary negative of cross-entropy in every loss, and never
"unobserved": no loss rejects, flips, softens or estimates it.

Each loss is the sum over classes and the mean over the batch. Most papers take the mean over
classes instead, which under Adam is the same up to its epsilon. An epoch of a paper is
``epoch_steps`` calls of the loss. So the model must call it once a step, which a mixture does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg import distributed
from pyseg.errors import ArgumentError, UserError
from pyseg.training import register_loss

PAPER_EPOCHS = 10
"""The epochs of training in most of the papers: here an epoch is a tenth of the steps."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: The row's name.
        loss: The registered loss.
        overrides: Its arguments, beside ``epoch_steps``.
    """

    name: str
    loss: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


class _StatefulLoss(nn.Module):
    """A loss that counts its calls and may keep something of every example, also in checkpoints.

    Args:
        epoch_steps: The number of calls in an epoch.
    """

    def __init__(self, epoch_steps: int) -> None:
        super().__init__()
        if epoch_steps < 1:
            raise ArgumentError(f"epoch_steps: expected at least 1, found {epoch_steps}")
        self.epoch_steps = epoch_steps
        self.calls = 0
        self.places: dict[str, int] = {}
        self.kept: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return self.calls // self.epoch_steps

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what a checkpoint stores."""
        return {"calls": self.calls, "ids": list(self.places), "kept": self.kept}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_extra_state`."""
        self.calls, self.kept = state["calls"], dict(state["kept"])
        self.places = {id: place for place, id in enumerate(state["ids"])}


class _RememberingLoss(_StatefulLoss):
    """A loss that keeps something of every example, by its id (`set_examples`)."""

    def __init__(self, epoch_steps: int) -> None:
        super().__init__(epoch_steps)
        self._ids: Sequence[str] = ()

    def set_examples(self, ids: Sequence[str]) -> None:
        """Tells the ids of the next call's examples, see `pyseg.training.register_loss`."""
        self._ids = ids

    def recall(self, **initial: Tensor) -> Tensor:
        """Returns the rows of the batch in `kept`, (B,) int64, after adding those of new examples.

        Args:
            **initial: What `kept` has of an example from its first call on, (B, C) each.

        Raises:
            ValueError: `set_examples` was not called for this batch.
            pyseg.errors.UserError: There are several processes, which would keep different things.
        """
        if distributed.world_size() > 1:
            raise UserError(
                f"{type(self).__name__}: expected one process, as it keeps something of every "
                f"example, found {distributed.world_size()}"
            )
        (length,) = {len(tensor) for tensor in initial.values()}
        if len(self._ids) != length:
            raise ArgumentError(f"set_examples: expected {length} ids, found {len(self._ids)}")
        new = []
        for number, id in enumerate(self._ids):
            if id not in self.places:
                self.places[id] = len(self.places)
                new.append(number)
        for name, tensor in initial.items():
            kept = self.kept.get(name, tensor[:0]).to(tensor.device)  # a checkpoint's is on the CPU
            self.kept[name] = torch.cat([kept, tensor[new]]) if new else kept
        return torch.tensor([self.places[id] for id in self._ids], device=tensor.device)


@register_loss("large-loss")
class LargeLoss(_RememberingLoss):
    """Large losses of unrated classes are rejected or corrected.

    Unrated classes count as absent. From the second epoch on, those of a batch with the largest
    losses are believed to be present. With cross-entropies l, targets y = 0 of unrated classes and
    R(t) the k-th largest loss of the unrated pairs of the batch::

        k = ceil(B C (t - 1) delta / 100)    in epoch t = 1, 2, ...
        LL-R   "reject":               l >= R(t) of an unrated pair counts 0
        LL-Ct  "correct":              it counts -log p instead, in this step
        LL-Cp  "correct-permanently":  in this and all later steps, with k = ceil(B C delta / 100)

    Source: Kim, Kim, Akata and Lee, CVPR 2022, "Large Loss Matters in Weakly Supervised Multi-Label
    Classification"; k as in the authors' code (snucml/LargeLossMatters, losses.py). There delta is
    0.1 to 0.5, and training takes 10 epochs.

    With `boost` > 1 it is BoostLU on top: Kim et al., CVPR 2023, "Bridging the Gap between Model
    Explanations in Partially Annotated Multi-label Classification". It multiplies what is positive
    in a class activation map by 5 before its mean over the positions is the logit. An example with
    a single position has a map of one value, the logit z, so that it becomes::

        BoostLU(z) = max(z, boost z)

    This is strictly increasing: at inference it leaves the ranking of every class as it is, and
    `pyseg.metrics` measure the same. What is left is its effect on training. Where there is more
    than one position, it is not the paper's.

    Args:
        scheme: What happens to large losses.
        delta: The share of pairs in percent, see above.
        epoch_steps: The number of steps in an epoch.
        boost: The paper's alpha; 1: no boost.

    Example:
        >>> loss = LargeLoss("reject", delta=25.0, epoch_steps=1)
        >>> logits = torch.tensor([[0.0, 3.0, -3.0, -3.0]])
        >>> rated = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
        >>> [round(float(loss(logits, *rated)), 2) for _ in range(2)]  # log 2 + 3.05 + 0.05 + 0.05
        [3.84, 0.79]
    """

    def __init__(
        self,
        scheme: Literal["reject", "correct", "correct-permanently"] = "reject",
        *,
        delta: float = 0.2,
        epoch_steps: int,
        boost: float = 1.0,
    ) -> None:
        super().__init__(epoch_steps)
        if scheme not in ("reject", "correct", "correct-permanently"):
            raise ArgumentError(
                f'scheme: expected "reject", "correct" or "correct-permanently", found {scheme!r}'
            )
        _check_positive("delta", delta)
        _check_positive("boost", boost)
        self.scheme, self.delta, self.boost = scheme, delta, boost

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        targets, rated = _dense(logits, offsets, classes, scores)
        logits = torch.where(logits > 0, self.boost * logits, logits)
        rows = None
        if self.scheme == "correct-permanently":
            rows = self.recall(corrected=torch.zeros_like(rated))
            corrected = self.kept["corrected"][rows] & ~rated
            targets, rated = targets.masked_fill(corrected, 1.0), rated | corrected
        losses = _bce(logits, targets)
        epoch = self.epoch
        self.calls += 1
        if epoch:
            share = self.delta / 100 * (epoch if rows is None else 1)
            largest = losses.detach().masked_fill(rated, -math.inf).flatten()
            count = min(math.ceil(share * len(largest)), len(largest))
            large = ~rated & (losses.detach() >= largest.topk(count).values[-1])
            other = (
                torch.zeros_like(losses) if self.scheme == "reject" else _bce(logits, 1.0 - targets)
            )
            losses = torch.where(large, other, losses)
            if rows is not None:
                numbers, columns = large.nonzero(as_tuple=True)
                self.kept["corrected"][rows[numbers], columns] = True
        return losses.sum() / len(logits)


@register_loss("self-paced-correction")
class SelfPacedCorrection(_StatefulLoss):
    """SPLC: unrated classes that the model is sure of count as present.

    With focal margin losses of a logit z, p = sigmoid(z) and p_m = sigmoid(z - margin)::

        loss+ = -(1 - p_m)^gamma log p_m            rated 1
        loss- = -p^gamma log(1 - p)                 rated 0
        loss- if p <= tau, else loss+               unrated; loss- in the first epoch

    A score between 0 and 1 has a share of both.

    Source: Zhang, Cheng, Huang, Wen, Feng, Li and Guo, 2021, "Simple and Robust Loss Design for
    Multi-Label Learning with Missing Labels", arXiv:2112.07368, with its focal margin loss. Here
    loss+ is the same for all; the authors' code (xinyu1205/robust-loss-mlml) has no margin in that
    of the classes it corrects.

    Args:
        tau: The probability from which on an unrated class counts as present.
        margin: The margin of positives.
        gamma: The exponent of the focal weight.
        epoch_steps: The number of steps in an epoch.

    Example:
        >>> loss = SelfPacedCorrection(epoch_steps=1, gamma=0.0, margin=0.0)
        >>> logits = torch.tensor([[0.0, 3.0, -3.0]])
        >>> rated = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
        >>> [round(float(loss(logits, *rated)), 2) for _ in range(2)]  # log 2 + 3.05 + 0.05
        [3.79, 0.79]
    """

    def __init__(
        self, *, tau: float = 0.6, margin: float = 1.0, gamma: float = 2.0, epoch_steps: int
    ) -> None:
        super().__init__(epoch_steps)
        self.tau, self.margin, self.gamma = tau, margin, gamma

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        targets, rated = _dense(logits, offsets, classes, scores)
        if self.epoch:
            sure = ~rated & (torch.sigmoid(logits.detach()) > self.tau)
            targets = targets.masked_fill(sure, 1.0)
        self.calls += 1
        shifted = logits - self.margin
        positive = -(torch.sigmoid(-shifted) ** self.gamma) * functional.logsigmoid(shifted)
        negative = -(torch.sigmoid(logits) ** self.gamma) * functional.logsigmoid(-logits)
        return torch.lerp(negative, positive, targets).sum() / len(logits)


@register_loss("joint-estimation")
class JointEstimation(_RememberingLoss):
    """ROLE: the labels of every training example are estimated together with the classifier.

    With probabilities F of the classifier and estimates Y of the labels, both (B, C), sg for a
    stopped gradient, and K the expected number of labels::

        loss = (L(F | sg Y) + L(Y | sg F)) / 2
        L(F | Y) = mean over the batch of [BCE(F, Y) of all classes + BCE(F, score) of rated ones]
                   + (mean over the batch of [sum of F over the classes] - K)^2 / C

    Y = sigmoid(theta), where theta has a number for every example and class. It starts at the
    log-odds of 0.995 for classes rated 1 and 0.005 for those rated 0, and uniformly between the
    log-odds of 0.4 and 0.6 for others. Calls of the loss take its steps, of Adam.

    Source: Cole, Mac Aodha, Lorieul, Perona, Morris and Jojic, CVPR 2021, "Multi-Label Learning
    from Single Positive Labels", times C; initial values are those of the authors' code
    (elijahcole/single-positive-multi-label). This differs: Adam knows of an example from its first
    batch on, and the rate of theta, ten times that of the classifier in the authors' code, is
    constant whatever the classifier's schedule.

    Args:
        expected: K.
        learning_rate: The rate of theta.

    Example:
        >>> loss = JointEstimation(expected=1.0)
        >>> logits = torch.zeros(1, 2)
        >>> rated = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
        >>> for _ in range(100):
        ...     loss.set_examples(["video"])
        ...     value = loss(logits, *rated)
        >>> present, absent = loss.kept["theta"].sigmoid()[0]
        >>> bool(present > 0.6), bool(absent < 0.5)
        (True, True)
    """

    def __init__(self, *, expected: float, learning_rate: float = 0.01) -> None:
        super().__init__(1)
        _check_positive("expected", expected)
        _check_positive("learning_rate", learning_rate)
        self.expected, self.learning_rate = expected, learning_rate

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        targets, rated = _dense(logits, offsets, classes, scores)
        spread = torch.empty_like(targets).uniform_(-math.log(1.5), math.log(1.5))
        known = torch.logit(targets.clamp(0.005, 0.995))
        nothing = torch.zeros_like(targets)
        rows = self.recall(theta=torch.where(rated, known, spread), first=nothing, second=nothing)
        theta = self.kept["theta"][rows].requires_grad_()
        with torch.enable_grad():
            own = self._half(theta, logits.detach(), targets, rated)
        (gradient,) = torch.autograd.grad(own, theta)
        result = self._half(logits, theta.detach(), targets, rated) + own.detach()
        self._step(rows, gradient)
        return result

    def _half(self, logits: Tensor, others: Tensor, targets: Tensor, rated: Tensor) -> Tensor:
        """Returns L / 2 of logits, given those of the other side."""
        losses = _bce(logits, torch.sigmoid(others)) + rated * _bce(logits, targets)
        excess = torch.sigmoid(logits).sum(1).mean() - self.expected
        return (losses.sum() / len(logits) + excess.square() / logits.shape[1]) / 2

    @torch.no_grad()
    def _step(self, rows: Tensor, gradient: Tensor) -> None:
        """Takes a step of Adam on all of theta; examples of other batches have a gradient of 0."""
        self.calls += 1
        first, second = self.kept["first"], self.kept["second"]
        whole = torch.zeros_like(first).index_add_(0, rows, gradient)
        first.lerp_(whole, 0.1)
        second.mul_(0.999).addcmul_(whole, whole, value=0.001)
        root = math.sqrt(1 - 0.999**self.calls)  # of the correction of the second moment
        rate = self.learning_rate * root / (1 - 0.9**self.calls)
        self.kept["theta"].addcdiv_(first, second.sqrt().add_(1e-8 * root), value=-rate)


@register_loss("entropy-maximization")
class EntropyMaximization(_RememberingLoss):
    """EM: the model is to know nothing of unrated classes, whose entropy is maximized.

    With p = sigmoid(z) and H(p) = -p log p - (1 - p) log(1 - p)::

        BCE(p, score)     rated
        -alpha H(p)       unrated
        beta BCE(p, q)    unrated, with the pseudo-label q

    With `pseudo` > 0 (EM + APL) a class gets pseudo-labels at the end of the epochs from `warmup`
    on: in the examples whose probabilities are lowest, `pseudo` / (10 - `warmup`) of those in which
    it is not rated. Such a pair keeps its probability of then as its label q.

    Source: Zhou, Chen, Wang, Chen and Heng, ECCV 2022, "Acknowledging the Unknown for Multi-label
    Learning with Single Positive Labels", with negative
    pseudo-labels only, as in the authors' code (Correr-Zhou/SPML-AckTheUnknown). This differs: the
    probabilities are those of the last step that each example was in, with dropout, not those of
    a pass over all examples at the end of the epoch.

    Args:
        alpha: The weight of the entropy.
        beta: The weight of pseudo-labels.
        pseudo: The share of unrated pairs that have pseudo-labels after ten epochs.
        warmup: The number of epochs without pseudo-labels, below 10.
        epoch_steps: The number of steps in an epoch.

    Example:
        >>> loss = EntropyMaximization(alpha=0.1, epoch_steps=100)
        >>> logits = torch.zeros(1, 3)
        >>> rated = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0])
        >>> round(float(loss(logits, *rated)), 3)  # (1 - 2 x 0.1) log 2
        0.555
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        beta: float = 0.2,
        pseudo: float = 0.0,
        warmup: int = 5,
        epoch_steps: int,
    ) -> None:
        super().__init__(epoch_steps)
        if not 0 <= pseudo <= 1:
            raise ArgumentError(f"pseudo: expected a number in [0, 1], found {pseudo}")
        if not 1 <= warmup < PAPER_EPOCHS:
            raise ArgumentError(f"warmup: expected 1 to {PAPER_EPOCHS - 1}, found {warmup}")
        self.alpha, self.beta, self.pseudo, self.warmup = alpha, beta, pseudo, warmup

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        targets, rated = _dense(logits, offsets, classes, scores)
        probabilities = torch.sigmoid(logits)
        unknown = -self.alpha * _bce(logits, probabilities)
        if self.pseudo:
            if self.calls % self.epoch_steps == 0 and self.warmup <= self.epoch < PAPER_EPOCHS:
                self._label()
            # The last probabilities of unrated pairs, and the pseudo-labels of those that have one.
            none = torch.full_like(targets, math.nan)
            rows = self.recall(latest=none, labels=none)
            self.kept["latest"][rows] = probabilities.detach().masked_fill(rated, math.nan)
            labels = self.kept["labels"][rows]
            given = self.beta * _bce(logits, labels.nan_to_num(0.0))
            unknown = torch.where(labels.isnan(), unknown, given)
        self.calls += 1
        return torch.where(rated, _bce(logits, targets), unknown).sum() / len(logits)

    def _label(self) -> None:
        """Gives pseudo-labels to more pairs."""
        latest, labels = self.kept["latest"], self.kept["labels"]
        unrated = (~latest.isnan()).sum(0)
        count = (self.pseudo * unrated / (PAPER_EPOCHS - self.warmup)).long()
        order = latest.nan_to_num(math.inf).masked_fill(~labels.isnan(), math.inf).argsort(0)
        ranks = torch.arange(len(order), device=order.device).unsqueeze(1)
        lowest = torch.zeros_like(labels, dtype=torch.bool).scatter_(0, order, ranks < count)
        self.kept["labels"] = torch.where(lowest, latest, labels)


METHODS = (
    Method("large-loss rejection (LL-R)", "large-loss", {"scheme": "reject"}),
    Method("large-loss correction (LL-Ct)", "large-loss", {"scheme": "correct", "delta": 0.02}),
    Method(
        "  permanently (LL-Cp)", "large-loss", {"scheme": "correct-permanently", "delta": 0.005}
    ),
    Method("LL-R with BoostLU", "large-loss", {"scheme": "reject", "boost": 5.0}),
    Method("self-paced correction (SPLC)", "self-paced-correction"),
    Method("joint estimation (ROLE)", "joint-estimation", {"learning_rate": 0.2}),
    Method("entropy maximization (EM)", "entropy-maximization", {"alpha": 0.01}),
    Method(
        "  with pseudo-labels (EM + APL)", "entropy-maximization", {"alpha": 0.01, "pseudo": 0.9}
    ),
)
"""The rows of the table. Arguments that differ from the papers' were chosen on the validation part
of yt8m among three values, see docs/reproduction.md."""


def _dense(
    logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the scores as a matrix like the logits, 0 where unrated, and what is rated."""
    numbers = torch.arange(len(logits), device=logits.device)
    rows = torch.repeat_interleave(numbers, offsets.diff(), output_size=len(classes))
    rated = torch.zeros_like(logits, dtype=torch.bool)
    rated[rows, classes] = True
    targets = torch.zeros_like(logits)
    targets[rows, classes] = scores.to(logits.dtype)
    return targets.detach(), rated


def _bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of every pair, like the logits."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ArgumentError(f"{name}: expected a finite number above 0, found {value}")
