"""Models in plain PyTorch, for comparison in the benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyseg.nn import NeXtVLAD, NeXtVLADClassifier


def plain_linear(layer: nn.Linear) -> nn.Linear:
    """Returns torch's own layer with the weights of `layer`."""
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


class PlainNeXtVLAD(nn.Module):
    """The layer in plain PyTorch, with the weights of `layer`."""

    def __init__(self, layer: NeXtVLAD) -> None:
        super().__init__()
        self.expand, self.attention = plain_linear(layer.expand), plain_linear(layer.attention)
        self.assign = plain_linear(layer.assign)
        self.centers, self.groups, self.clusters = layer.centers, layer.groups, layer.clusters
        self.assign_norm = nn.BatchNorm1d(layer.groups * layer.clusters, eps=1e-3, momentum=1e-3)
        self.norm = nn.BatchNorm1d(layer.out_features, eps=1e-3, momentum=1e-3)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, _ = frames.shape
        expanded = self.expand(frames)
        attention = torch.sigmoid(self.attention(expanded))
        if mask is not None:
            attention = attention * mask.unsqueeze(-1)
        attention = attention.reshape(batch, -1, 1)
        assignment = self.assign_norm(self.assign(expanded).flatten(0, 1))
        weights = assignment.reshape(batch, -1, self.clusters).softmax(-1) * attention
        rows = expanded.reshape(batch, length * self.groups, -1)
        mass = weights.sum(1, keepdim=True)
        vlad = torch.matmul(rows.mT, weights) - self.centers * mass
        vlad = nn.functional.normalize(vlad, dim=1, eps=1e-6)
        return self.norm(vlad.flatten(1))


class PlainClassifier(nn.Module):
    """The classifier in plain PyTorch, with the weights of `model`."""

    def __init__(self, model: NeXtVLADClassifier) -> None:
        super().__init__()
        self.sizes = model.feature_sizes
        self.branches = nn.ModuleList(PlainNeXtVLAD(branch) for branch in model.branches)
        self.hidden, self.head = plain_linear(model.hidden), plain_linear(model.head.linear)
        self.squeeze = plain_linear(model.gate.squeeze)
        self.excite = plain_linear(model.gate.excite)
        self.hidden_norm, self.gate_norm = (
            nn.BatchNorm1d(layer.out_features, eps=1e-3, momentum=1e-3)
            for layer in (self.hidden, self.squeeze)
        )
        self.dropout = nn.Dropout(model.dropout.p)

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        mask = torch.arange(frames.shape[1], device=frames.device) < num_frames.unsqueeze(1)
        x = (frames * (4.0 / 255.0) + (4.0 / 512.0 - 2.0)) * mask.unsqueeze(-1)
        parts = zip(self.branches, x.split(self.sizes, -1), strict=True)
        aggregates = [branch(part, mask) for branch, part in parts]
        hidden = self.hidden_norm(self.hidden(self.dropout(torch.cat(aggregates, -1))))
        gate = self.excite(torch.relu(self.gate_norm(self.squeeze(hidden))))
        return self.head(hidden * torch.sigmoid(gate))
