"""The L2 penalty of the reference code."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.ops._dispatch import sum_dtype


@runtime_checkable
class Regularized(Protocol):
    """A module with parameters that `l2_penalty` counts."""

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns these parameters."""
        ...


def l2_penalty(model: nn.Module, strength: float) -> Tensor:
    """Returns strength * sum(w^2) / 2 over the weights that the reference regularises.

    The reference regularises heads only: weights and biases of a `LogisticHead` (strength 1e-5 in
    the reference NeXtVLAD code), the weights of a `MixtureOfExperts` (1e-8 in the starter code). A
    module names them in a method ``regularized() -> tuple of Tensor``.

    The penalty is part of the loss, unlike decoupled weight decay (AdamW).

    Source: ``slim.l2_regularizer`` and the two codes' video_level_models.py.

    Args:
        model: the classifier, or a part of it.
        strength: factor of the penalty.

    Returns:
        A scalar to add to the loss, float32 or better; 0 where nothing is regularised.

    Raises:
        ValueError: `strength` is negative or not finite.

    Example:
        >>> from pyseg.nn import LogisticHead
        >>> head = LogisticHead(2, num_classes=1)
        >>> _ = head.linear.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> l2_penalty(head, strength=0.5).item()
        6.25
    """
    if not 0.0 <= strength < float("inf"):
        raise ArgumentError(f"strength: expected a finite number of at least 0, found {strength}")
    total = next(model.parameters()).new_zeros((), dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, Regularized):
            for weight in module.regularized():
                dtype = sum_dtype(weight.dtype)
                total = total + weight.to(dtype).square().sum()
    return total * (strength / 2.0)
