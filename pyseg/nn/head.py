"""Classifier heads: from a hidden vector to logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg.errors import ArgumentError
from pyseg.nn.init import he_linear, xavier_linear
from pyseg.ops._dispatch import sum_dtype

HeadFactory = Callable[[int, int], nn.Module]
"""Makes a head for H features and C classes: (B, H) -> (B, C) logits. Each class of this file is a
factory, and so is a `functools.partial` of it with options."""


class LogisticHead(nn.Module):
    """One logistic regression per class: logits = W x + b.

    Source: `LogisticModel` of the reference NeXtVLAD code, video_level_models.py, lines 34-55.

    Args:
        in_features: size H of the input.
        num_classes: number of classes C.
        prior: initial probability of every class, in (0, 1), which sets the biases. The reference
            has 1/2. Where most labels are 0, a short training would spend its steps on unlearning
            that (Lin et al., Focal Loss for Dense Object Detection, 2017, section 3.3).

    Raises:
        ValueError: `num_classes` is smaller than 1, or `prior` is out of its range.

    Example:
        >>> import torch
        >>> LogisticHead(32, num_classes=5)(torch.randn(6, 32)).shape
        torch.Size([6, 5])
    """

    def __init__(self, in_features: int, num_classes: int, *, prior: float = 0.5) -> None:
        super().__init__()
        check_num_classes(num_classes)
        self.linear = he_linear(in_features, num_classes)
        nn.init.constant_(self.linear.bias, prior_logit(prior))

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns what the reference's L2 penalty counts: weights and biases."""
        return self.linear.weight, self.linear.bias

    def select_classes(self, classes: Tensor) -> dict[str, Tensor]:
        """Returns the state of a head for some of the classes, (n,) int64, in their order."""
        return {
            "linear.weight": self.linear.weight[classes],
            "linear.bias": self.linear.bias[classes],
        }

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: (B, H).

        Returns:
            (B, C) logits; probabilities are their sigmoid.
        """
        return self.linear(x)


class MixtureOfExperts(nn.Module):
    """M logistic regressions per class, mixed by a softmax over them and a constant 0.

    With gates g of size M + 1 and experts e of size M for every class, both linear in x::

        p = sum over m < M of softmax(g)[m] * sigmoid(e[m])

    Only the experts have a bias. The result is the logit of p, log p - log(1 - p), computed from
    logarithms, so that probabilities near 0 and 1 keep their value and their gradient; the
    reference computes p and clips it in the loss.

    Source: `MoeModel` of google/youtube-8m, video_level_models.py, lines 57-113.

    Args:
        in_features: size H of the input.
        num_classes: number of classes C.
        mixtures: number of experts M of every class (2 in the source).

    Raises:
        ValueError: `num_classes` or `mixtures` is smaller than 1.

    Attributes:
        gates: linear layer without bias, H -> C*(M+1), class by class.
        experts: linear layer, H -> C*M, class by class.

    Example:
        >>> head = MixtureOfExperts(32, num_classes=5, mixtures=4)
        >>> head(torch.randn(6, 32)).shape
        torch.Size([6, 5])
        >>> head(torch.zeros(1, 32)).sigmoid()[0, 0].item()  # 4 of 5 gates open, experts say 1/2
        0.4000000...
    """

    def __init__(self, in_features: int, num_classes: int, mixtures: int = 2) -> None:
        super().__init__()
        check_num_classes(num_classes)
        if mixtures < 1:
            raise ArgumentError(f"mixtures: expected at least 1, found {mixtures}")
        self.num_classes = num_classes
        self.mixtures = mixtures
        self.gates = xavier_linear(in_features, num_classes * (mixtures + 1), bias=False)
        self.experts = xavier_linear(in_features, num_classes * mixtures)

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns what the reference's L2 penalty counts: weights, not biases."""
        return self.gates.weight, self.experts.weight

    def select_classes(self, classes: Tensor) -> dict[str, Tensor]:
        """Returns the state of a head for some of the classes, (n,) int64, in their order."""
        state = {
            "gates.weight": self.gates.weight,
            "experts.weight": self.experts.weight,
            "experts.bias": self.experts.bias,
        }
        return {
            key: value.unflatten(0, (self.num_classes, -1))[classes].flatten(0, 1)
            for key, value in state.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits, in float32 or better from the linear layers on.

        Args:
            x: (B, H).

        Returns:
            (B, C) logits; probabilities are their sigmoid.
        """
        gates = self.gates(x).unflatten(-1, (self.num_classes, -1))
        experts = self.experts(x).unflatten(-1, (self.num_classes, -1))
        dtype = gates.dtype
        inner = sum_dtype(dtype)
        gates, experts = gates.to(inner), experts.to(inner)
        # The softmax's denominator cancels in p / (1 - p). Without the largest gate, the difference
        # of the two logarithms is not one of two large numbers.
        gates = gates - gates.detach().amax(-1, keepdim=True)
        chosen, dummy = gates.split((self.mixtures, 1), dim=-1)
        positive = functional.logsigmoid(experts)
        negative = positive - experts  # log(1 - sigmoid)
        inside = torch.logsumexp(chosen + positive, dim=-1)
        outside = torch.logsumexp(torch.cat((chosen + negative, dummy), dim=-1), dim=-1)
        return (inside - outside).to(dtype)

    def extra_repr(self) -> str:
        """Returns the geometry for `repr`."""
        return f"num_classes={self.num_classes}, mixtures={self.mixtures}"


def prior_logit(prior: float) -> float:
    """Returns the bias that gives a class its prior probability.

    Raises:
        ValueError: `prior` is not in (0, 1).
    """
    if not 0.0 < prior < 1.0:
        raise ArgumentError(f"prior: expected a number above 0 and below 1, found {prior}")
    return math.log(prior / (1.0 - prior))


def check_num_classes(num_classes: int) -> None:
    """Raises `ValueError` unless there is a class."""
    if num_classes < 1:
        raise ArgumentError(f"num_classes: expected at least 1, found {num_classes}")
