"""Classifier heads: from a hidden vector to logits."""

from __future__ import annotations

from torch import Tensor, nn

from pyseg.nn.init import he_linear


class LogisticHead(nn.Module):
    """One logistic regression a class: logits = W x + b.

    Source: `LogisticModel` of the reference NeXtVLAD code, video_level_models.py, lines 34-55.

    Args:
        in_features: size H of the input.
        num_classes: number of classes C.

    Raises:
        ValueError: `num_classes` is smaller than 1.

    Example:
        >>> import torch
        >>> LogisticHead(32, num_classes=5)(torch.randn(6, 32)).shape
        torch.Size([6, 5])
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        """Makes the module; the class describes the arguments."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, found {num_classes}")
        self.linear = he_linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            x: (B, H).

        Returns:
            (B, C) logits; probabilities are their sigmoid.
        """
        return self.linear(x)
