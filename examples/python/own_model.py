"""Adds a custom model to pyseg: a convolution over time, registered like pyseg's own models.

    cd examples/python
    python -m pyseg.train --plugin own_model --model temporal-conv
    python -m pyseg.evaluate --plugin own_model --run runs/sample-temporal-conv-1

The name stands for some arguments of the class, and for defaults of options of training that suit
the model. ``--plugin`` imports this module first, in every command that makes or loads the model.
An installed package can name its module in the entry point group "pyseg.plugins" instead, without
the option. As a script, this trains and evaluates in a temporary folder:

    python examples/python/own_model.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyseg import evaluate, models, train
from pyseg.nn import FrameClassifier, LogisticHead
from pyseg.nn.head import HeadFactory


@models.register("temporal-conv", channels=64, training_defaults={"finetune.l2": 1e-4})
class TemporalConv(FrameClassifier):
    """A convolution over neighbouring frames, max pooling of each channel over time, and a head.

    The base class provides checks, normalization and noise.

    Args:
        num_classes: Number of classes C.
        channels: Channels of the convolution.
        kernel_size: Frames of the convolution's kernel, an odd number.
        head: Makes the head of (channels, C).
        **more: See `pyseg.nn.FrameClassifier`.

    Example:
        >>> model = models.create("temporal-conv", num_classes=10, feature_sizes=(64, 16))
        >>> model(torch.randint(0, 256, (2, 5, 80), dtype=torch.uint8), [5, 3]).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 128,
        kernel_size: int = 3,
        head: HeadFactory = LogisticHead,
        **more: Any,
    ) -> None:
        super().__init__(num_classes, **more)
        width = sum(self.feature_sizes)
        self.convolution = nn.Conv1d(width, channels, kernel_size, padding=kernel_size // 2)
        self.head = head(channels, num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns (B, C) logits of frames (B, T, N); ``mask`` (B, T) marks the valid ones."""
        if mask is not None:
            x = torch.where(mask.unsqueeze(2), x, 0)
        hidden = self.convolution(x.transpose(1, 2)).relu()
        if mask is not None:
            hidden = torch.where(mask.unsqueeze(1), hidden, 0)
        return self.head(hidden.amax(2))


def main() -> None:
    """Trains the model on the generated sample for a few steps, and evaluates it."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder, "run"))
        steps = ["--pretrain.steps", "5", "--finetune.steps", "10"]
        train.main(["--model", "temporal-conv", "--run", run, *steps])
        evaluate.main(["--run", run])


if __name__ == "__main__":
    main()
