"""The registry of losses, and the loss of the paper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pyseg._registry import Make, Registry, check_known, check_types, parameters
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.ops import (
    correlated_targets,
    rated_bce_with_logits,
    rated_bce_with_logits_reference,
)

_LOSSES: Registry[Callable[..., nn.Module]] = Registry("loss")


@runtime_checkable
class KnowsExamples(Protocol):
    """A loss that keeps something of every example, see `register_loss`."""

    def set_examples(self, ids: Sequence[str]) -> None:
        """Tells the ids of the examples of the next call."""
        ...


def register_loss(name: str) -> Callable[[Make], Make]:
    """Registers a loss, which ``--pretrain.loss NAME`` and ``--finetune.loss NAME`` choose.

    It is called as ``loss(logits, offsets, classes, scores)`` with logits (B, C) and the ratings of
    a `pyseg.data.Batch`, and returns a scalar. For fine-tuning it is constructed with the
    arguments of `Loss` for which it has parameters; ``loss_overrides`` sets others.

    With an attribute ``takes_spare_ratings = True`` its steps may become CUDA graphs. It must then
    ignore the classes and scores after ``offsets[-1]``, wait for no value of a GPU, and do the same
    in every step.

    A loss that keeps something of every example has a method ``set_examples(ids)``, which is called
    before each step with the ids of the batch. Checkpoints store its ``state_dict()``.

    Args:
        name: The name of the loss, which must be new.

    Returns:
        A decorator that returns its argument.

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
    return _LOSSES.register(name)


def make_loss(name: str, overrides: Mapping[str, Any], **given: Any) -> nn.Module:
    """Makes the loss of a stage.

    Args:
        name: Its registered name.
        overrides: Arguments of the loss.
        given: Further arguments, which go to losses that have parameters for them.

    Raises:
        pyseg.errors.ArgumentError: There is no such loss or argument, or its value is of another
            type.
    """
    make = _LOSSES.find(name)
    known = parameters(make)
    check_known("loss_overrides", name, overrides, known)
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
        correlation: The label correlation, for the targets of unrated classes.
        absent_evidence: See `pyseg.ops.rated_bce_with_logits`.
        absent: See `pyseg.ops.correlated_targets`; in plain PyTorch, as no operator takes it.
    """

    takes_spare_ratings = True

    def __init__(
        self,
        rated_weight: float = 1.0,
        unrated_weight: float = 1.0,
        correlation: LabelCorrelation | None = None,
        absent_evidence: float = 0.0,
        absent: LabelCorrelation | None = None,
    ) -> None:
        super().__init__()
        self.rated_weight, self.unrated_weight = rated_weight, unrated_weight
        self.correlation = correlation
        self.absent_evidence = absent_evidence
        self.absent = absent

    def targets(self, offsets: Tensor, classes: Tensor, scores: Tensor, num_classes: int) -> Tensor:
        """Returns the targets y' (B, C) of the ratings of a `pyseg.data.Batch`."""
        return correlated_targets(
            offsets,
            classes,
            scores,
            self.correlation,
            num_classes,
            absent_evidence=self.absent_evidence,
            absent=self.absent,
        )

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        loss = functools.partial(rated_bce_with_logits, absent_evidence=self.absent_evidence)
        if self.absent is not None:
            loss = functools.partial(rated_bce_with_logits_reference, absent=self.absent)
        return loss(
            logits,
            offsets,
            classes,
            scores,
            self.correlation,
            rated_weight=self.rated_weight,
            unrated_weight=self.unrated_weight,
        )
