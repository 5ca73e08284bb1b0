"""Logistic regression on the mean of a video's frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyseg.nn.classifier import FrameClassifier, FrameOptions
from pyseg.nn.head import LogisticHead
from pyseg.ops import frame_pool

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LogisticRegression(FrameClassifier):
    """Logistic regressions, one per class, on the mean of the normalised frames.

    logits = W (mean over the valid frames of x) + b. With few ratings, some 30 of a class, it is
    often as good as any other model; frames should be standardised (`FrameNormalization`). Training
    starts at W = 0, so that nothing of a random start is left where examples do not determine W.
    `l2_penalty` counts the weights and not the biases, as is usual for logistic regression. A video
    without a frame has a mean of 0.

    Args:
        num_classes: number of classes C.
        prior: initial probability of every class, in (0, 1), which sets the biases.
        **more: see `FrameClassifier`.

    Raises:
        ValueError: `prior` is out of its range, or an argument of `FrameClassifier`.

    Example:
        >>> model = LogisticRegression(10, feature_sizes=(64, 16)).eval()
        >>> frames = torch.randint(0, 256, (2, 12, 80), dtype=torch.uint8)
        >>> model(frames, torch.tensor([12, 5])).shape
        torch.Size([2, 10])
    """

    reads_bytes = True

    def __init__(
        self, num_classes: int, *, prior: float = 0.5, **more: Unpack[FrameOptions]
    ) -> None:
        super().__init__(num_classes, **more)
        self.head = _Regression(sum(self.feature_sizes), num_classes, prior=prior)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        weight, bias = self.head.linear.weight, self.head.linear.bias
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        shares = mask.to(weight.dtype) / mask.sum(1, keepdim=True).clamp(min=1)
        # The product is small: reduced precision would only round the means.
        with torch.autocast(x.device.type, enabled=False):
            logits, _ = frame_pool(
                x,
                shares[:, :, None, None],
                weight.unsqueeze(0),
                self.normalization.dequantization(x),
            )
            return logits.squeeze(1) + bias


class _Regression(LogisticHead):
    """A `LogisticHead` that starts at 0, and whose biases are not penalised."""

    def __init__(self, in_features: int, num_classes: int, *, prior: float) -> None:
        super().__init__(in_features, num_classes, prior=prior)
        nn.init.zeros_(self.linear.weight)

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns what the L2 penalty counts: the weights."""
        return (self.linear.weight,)
