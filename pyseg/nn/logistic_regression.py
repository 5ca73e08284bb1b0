"""Logistic regression on the mean of a video's frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg.nn.classifier import FrameClassifier, FrameOptions
from pyseg.nn.head import LogisticHead
from pyseg.nn.mask import Integers
from pyseg.ops import frame_pool
from pyseg.ops.frames import dequantize

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LogisticRegression(FrameClassifier):
    """Logistic regressions, one per class, on the mean of the normalised frames.

    logits = W m + b, where m is the mean over the valid frames of x. With few ratings, some 30 of a
    class, it is often as good as any other model; frames should be standardised
    (`FrameNormalization`) or m made of unit length. Training starts at W = 0, so that nothing of a
    random start is left where examples do not determine W.
    `l2_penalty` counts the weights and not the biases, as is usual for logistic regression. A video
    without a frame has a mean of 0.

    With `unit_length` m is divided by its L2 norm: how a video differs from others is then all that
    counts, and not how much. It suits ridge regression (``--solver ridge`` of `pyseg.train`), whose
    squared errors would otherwise be those of the longest means.

    Args:
        num_classes: number of classes C.
        unit_length: whether to divide the mean by its L2 norm.
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
        self,
        num_classes: int,
        *,
        unit_length: bool = False,
        prior: float = 0.5,
        **more: Unpack[FrameOptions],
    ) -> None:
        super().__init__(num_classes, **more)
        self.unit_length = unit_length
        self.head = _Regression(sum(self.feature_sizes), num_classes, prior=prior)

    def features(self, frames: Tensor | np.ndarray, num_frames: Integers | None = None) -> Tensor:
        """Returns m, (B, N) of the dtype of the weights, of the arguments of `forward`."""
        return self._mean(*self.prepare(frames, num_frames))

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        weight, bias = self.head.linear.weight, self.head.linear.bias
        # The product is small: reduced precision would only round the means.
        with torch.autocast(x.device.type, enabled=False):
            if self.unit_length:
                return self.head(self._mean(x, mask))
            logits, _ = frame_pool(
                x,
                self._shares(x, mask)[:, :, None, None],
                weight.unsqueeze(0),
                self.normalization.dequantization(x),
            )
            return logits.squeeze(1) + bias

    def _mean(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns m, (B, N)."""
        shares = self._shares(x, mask)
        if x.dtype == torch.uint8:
            x = dequantize(x, mask, shares.dtype, self.normalization.dequantization(x))
        mean = torch.bmm(shares.unsqueeze(1), x).squeeze(1)
        return functional.normalize(mean, dim=1) if self.unit_length else mean

    def _shares(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns what each frame contributes to the mean, (B, T)."""
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return mask.to(self.head.linear.weight.dtype) / mask.sum(1, keepdim=True).clamp(min=1)


class _Regression(LogisticHead):
    """A `LogisticHead` that starts at 0, and whose biases are not penalised."""

    def __init__(self, in_features: int, num_classes: int, *, prior: float) -> None:
        super().__init__(in_features, num_classes, prior=prior)
        nn.init.zeros_(self.linear.weight)

    def regularized(self) -> tuple[Tensor, ...]:
        """Returns what the L2 penalty counts: the weights."""
        return (self.linear.weight,)
