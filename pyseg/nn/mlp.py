"""A perceptron of two layers on the mean of a video's frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyseg.errors import ArgumentError
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.classifier import FrameClassifier, FrameOptions
from pyseg.nn.dropout import Dropout
from pyseg.nn.head import HeadFactory, LogisticHead
from pyseg.nn.init import he_linear

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MLP(FrameClassifier):
    """The mean of the normalised frames, one hidden layer, and a head.

    h = relu(BN(W mean over the valid frames of x)), with dropout before W and before the head. It
    serves video-level features (T = 1), and as a baseline for models that read frames. A video
    without a frame has a mean of 0.

    Args:
        num_classes: number of classes C.
        hidden_size: size H of the hidden layer.
        input_dropout: probability of dropping a value of the mean in training.
        dropout: probability of dropping a value of the hidden layer in training.
        batch_norm_momentum: momentum of the batch normalisation.
        head: makes the head of (H, C).
        **more: see `FrameClassifier`.

    Raises:
        ValueError: a size or a probability is out of range, or an argument of `FrameClassifier`.

    Example:
        >>> model = MLP(10, feature_sizes=(64, 16), hidden_size=32).eval()
        >>> model(torch.randn(2, 1, 80)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        hidden_size: int = 1024,
        input_dropout: float = 0.0,
        dropout: float = 0.5,
        batch_norm_momentum: float = 0.1,
        head: HeadFactory = LogisticHead,
        **more: Unpack[FrameOptions],
    ) -> None:
        super().__init__(num_classes, **more)
        if hidden_size < 1:
            raise ArgumentError(f"hidden_size: expected at least 1, found {hidden_size}")
        for name, value in (("input_dropout", input_dropout), ("dropout", dropout)):
            if not 0.0 <= value < 1.0:
                raise ArgumentError(f"{name}: expected a number in [0, 1), found {value}")
        self.input_dropout = Dropout(input_dropout)
        self.hidden = he_linear(sum(self.feature_sizes), hidden_size, bias=False)
        # slim's eps would be as large as the variance that L2-normalised frames have here.
        self.hidden_norm = BatchNorm(hidden_size, eps=1e-5, momentum=batch_norm_momentum)
        self.dropout = Dropout(dropout)
        self.head = head(hidden_size, num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        if mask is None:
            mean = x.mean(1)
        else:  # a padded frame need not be 0, see `FrameNormalization`
            mean = torch.where(mask.unsqueeze(-1), x, 0.0).sum(1)
            mean = mean / mask.sum(1, keepdim=True).clamp(min=1)
        hidden = torch.relu(self.hidden_norm(self.hidden(self.input_dropout(mean))))
        return self.head(self.dropout(hidden))
