"""The attention-GRU classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyseg.errors import ArgumentError
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.classifier import FrameClassifier, FrameOptions
from pyseg.nn.dropout import Dropout
from pyseg.nn.gate import ContextGate
from pyseg.nn.gru import GRU
from pyseg.nn.head import HeadFactory, LogisticHead
from pyseg.nn.init import he_linear
from pyseg.ops._dispatch import sum_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AttentionGRU(FrameClassifier):
    """A GRU over the frames, and attention over its states.

    With the states h_t of a `GRU` and its state s after the last valid frame::

        e_t = v . tanh(W h_t + U s + b)
        a   = softmax of e over the valid frames
        y   = [sum_t a_t h_t ; s]

    then dropout, a linear layer without bias, batch normalisation, a `ContextGate` and the head, as
    in `NeXtVLADClassifier`. A video without a single valid frame has y = 0.

    The paper shows this branch in Figure 2 only, so this is our reading. The attention is the
    additive one of Chorowski et al., Attention-Based Models for Speech Recognition, NIPS 2015 (the
    paper's reference [4]), with the final state as the query instead of the state of a decoder. The
    sizes are our choice, and so is the cell, PyTorch's (see `pyseg.ops.gru_recurrence`).

    Args:
        num_classes: number of classes C.
        gru_size: size of the GRU's state.
        gru_layers: number of layers of the GRU; the attention reads the last one.
        attention_size: number of rows of W and U.
        hidden_size: size H of the hidden layer.
        reduction: the context gate has H // reduction inner features.
        dropout: probability of dropping a value of y in training; 0 drops none.
        batch_norm_momentum: momentum of every batch normalisation.
        head: makes the head of (H, C).
        **more: see `FrameClassifier`.

    Raises:
        ValueError: a size does not fit, or an argument of `FrameClassifier` is out of range.

    Example:
        >>> model = AttentionGRU(10, feature_sizes=(64, 16), gru_size=32, attention_size=16,
        ...                      hidden_size=32, reduction=4).eval()
        >>> frames = torch.randint(0, 256, (2, 12, 80), dtype=torch.uint8)
        >>> model(frames, torch.tensor([12, 5])).shape
        torch.Size([2, 10])
    """

    reads_bytes = True

    def __init__(
        self,
        num_classes: int,
        *,
        gru_size: int = 1024,
        gru_layers: int = 1,
        attention_size: int = 512,
        hidden_size: int = 2048,
        reduction: int = 16,
        dropout: float = 0.5,
        batch_norm_momentum: float = 0.001,
        head: HeadFactory = LogisticHead,
        **more: Unpack[FrameOptions],
    ) -> None:
        super().__init__(num_classes, **more)
        sizes = {
            "gru_size": gru_size,
            "gru_layers": gru_layers,
            "attention_size": attention_size,
            "hidden_size": hidden_size,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {value}")
        if not 0.0 <= dropout < 1.0:
            raise ArgumentError(f"dropout: expected a number in [0, 1), found {dropout}")
        self.gru = GRU(sum(self.feature_sizes), gru_size, gru_layers)
        self.keys = he_linear(gru_size, attention_size)
        self.query = he_linear(gru_size, attention_size, bias=False)
        self.energy = he_linear(attention_size, 1, bias=False)
        self.dropout = Dropout(dropout)
        self.hidden = he_linear(2 * gru_size, hidden_size, bias=False)
        self.hidden_norm = BatchNorm(hidden_size, momentum=batch_norm_momentum)
        self.gate = ContextGate(hidden_size, reduction, batch_norm_momentum=batch_norm_momentum)
        self.head = head(hidden_size, num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        states = self.gru(x, mask, self.normalization.dequantization(x))
        # The state after the last valid frame; 0, the initial one, where there is none.
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)
        last = (steps == mask.sum(1, keepdim=True)).unsqueeze(-1)
        final = torch.where(last, states, 0.0).sum(1)
        inner = torch.tanh(self.keys(states) + self.query(final).unsqueeze(1))
        energies = self.energy(inner).squeeze(-1)
        energies = energies.to(sum_dtype(energies.dtype))
        # Not -inf, and 0 afterwards: the softmax of a video without frames must not be NaN.
        lowest = torch.finfo(energies.dtype).min
        attention = energies.masked_fill(~mask, lowest).softmax(1).masked_fill(~mask, 0.0)
        context = torch.matmul(attention.to(states.dtype).unsqueeze(1), states).squeeze(1)
        y = torch.cat((context.to(final.dtype), final), dim=-1)
        return self.head(self.gate(self.hidden_norm(self.hidden(self.dropout(y)))))
