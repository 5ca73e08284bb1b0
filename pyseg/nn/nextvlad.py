"""NeXtVLAD: the aggregation layer and the classifier built on it.

Source: Lin, Xiao and Fan, NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features
for Large-scale Video Classification, 2018, and its public TensorFlow code (nextvlad.py), which is
followed where the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.gate import ContextGate
from pyseg.nn.head import LogisticHead
from pyseg.nn.init import he_linear, he_truncated_normal_
from pyseg.nn.mask import frame_mask
from pyseg.nn.normalize import Convention, FrameNormalization
from pyseg.ops import vlad_aggregate


class NeXtVLAD(nn.Module):
    """Aggregates the frames of a video into one vector of F*K features, F = E*N/G.

    With h = W x + b of size E*N for every frame, seen as G groups of F features:

        a[t,g]   = sigmoid(attention of h[t] to group g), 0 on padding
        p[t,g,k] = softmax over k of BN(Wc h[t])[g*K + k]
        v[f,k]   = sum over t, g of a[t,g] p[t,g,k] (h[t,g,f] - c[f,k])

    every column v[:,k] is L2-normalised over its F features, the matrix is flattened with index
    f*K + k, and batch normalisation is applied.

    Works for any number of frames T, also another one at each call. A video without a single valid
    frame gives v = 0, so a finite constant. Batch-norm statistics of the assignment include padded
    frames, as in the reference, where each of them is the constant row that 0 input gives.

    Source: reference NeXtVLAD code, nextvlad.py, lines 16-83.

    Args:
        feature_size: size N of a frame.
        clusters: number of clusters K.
        groups: number of groups G; divides E*N.
        expansion: the factor E by which frames are widened.
        batch_norm_momentum: momentum of both batch normalisations.
        padded_statistics: whether padded frames enter the batch-norm statistics of the assignment
            in training (reference: they do).

    Raises:
        ValueError: a size is smaller than 1, or `groups` does not divide E*N.

    Attributes:
        expand: linear layer, N -> E*N.
        attention: linear layer, E*N -> G.
        assign: linear layer without bias, E*N -> G*K.
        assign_norm: batch normalisation over G*K.
        centers: (F, K) the cluster centres c.
        norm: batch normalisation over F*K.

    Example:
        >>> layer = NeXtVLAD(feature_size=64, clusters=8, groups=4)
        >>> mask = torch.arange(10) < torch.tensor([[10], [7]])
        >>> layer(torch.randn(2, 10, 64), mask).shape  # F*K = 2*64/4 * 8
        torch.Size([2, 256])
    """

    def __init__(
        self,
        feature_size: int,
        clusters: int,
        groups: int,
        expansion: int = 2,
        *,
        batch_norm_momentum: float = 0.001,
        padded_statistics: bool = True,
    ) -> None:
        """Makes the module; the class describes the arguments."""
        super().__init__()
        sizes = {
            "feature_size": feature_size,
            "clusters": clusters,
            "groups": groups,
            "expansion": expansion,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        expanded = expansion * feature_size
        if expanded % groups:
            raise ValueError(
                f"groups: expected a divisor of expansion * feature_size = {expanded}, "
                f"found {groups}"
            )
        self.feature_size = feature_size
        self.clusters = clusters
        self.groups = groups
        self.expansion = expansion
        self.padded_statistics = padded_statistics
        group_size = expanded // groups
        self.out_features = group_size * clusters

        self.expand = he_linear(feature_size, expanded)
        self.attention = he_linear(expanded, groups)
        self.assign = he_linear(expanded, groups * clusters, bias=False)
        self.assign_norm = BatchNorm(groups * clusters, momentum=batch_norm_momentum)
        self.centers = nn.Parameter(torch.empty(group_size, clusters))
        he_truncated_normal_(self.centers, fan_in=group_size)
        self.norm = BatchNorm(self.out_features, momentum=batch_norm_momentum)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Aggregates a padded batch.

        Args:
            frames: (B, T, N) normalised frames. Padded frames must be finite; their values do not
                change the result in eval mode, and in training only through the statistics.
            mask: (B, T) bool, True where the frame is valid. ``None``: all frames are.

        Returns:
            (B, F*K), index f*K + k.

        Raises:
            ValueError: `frames` does not have N features, or `mask` does not fit.
        """
        if frames.ndim != 3 or frames.shape[-1] != self.feature_size:
            raise ValueError(
                f"frames: expected shape (batch, frames, {self.feature_size}), "
                f"found {tuple(frames.shape)}"
            )
        if mask is not None and mask.shape != frames.shape[:2]:
            raise ValueError(
                f"mask: expected shape {tuple(frames.shape[:2])} as frames has, "
                f"found {tuple(mask.shape)}"
            )
        expanded = self.expand(frames)
        attention = torch.sigmoid(self.attention(expanded))
        if mask is not None:
            attention = attention.masked_fill(~mask.unsqueeze(-1), 0.0)
        assignment = self.assign_norm(
            self.assign(expanded), None if self.padded_statistics else mask
        )
        vlad = vlad_aggregate(
            expanded.unflatten(-1, (self.groups, -1)),
            assignment.unflatten(-1, (self.groups, self.clusters)),
            attention,
            self.centers,
        )
        return self.norm(vlad.flatten(1))

    def extra_repr(self) -> str:
        """Returns the geometry for `repr`."""
        return (
            f"feature_size={self.feature_size}, clusters={self.clusters}, groups={self.groups}, "
            f"expansion={self.expansion}, out_features={self.out_features}"
        )


class NeXtVLADClassifier(nn.Module):
    """The NeXtVLAD video classifier.

    Frames are normalised and split into their features; each has a `NeXtVLAD` of its own, the
    first with K clusters and G groups, the others with K // 2 and G // 2 (rounded down, as the
    reference does). The aggregates are concatenated; then dropout, a linear layer without bias to
    H features, batch normalisation (no ReLU), a `ContextGate` and a `LogisticHead`.

    In eval mode a prediction depends on the valid frames of its own video and on nothing else. A
    video with ``num_frames == 0`` gets finite logits, those of a video without any evidence.

    Source: reference NeXtVLAD code, nextvlad.py, lines 86-184.

    Args:
        num_classes: number of classes C.
        feature_sizes: widths of the features that make up a frame.
        clusters: number of clusters K of the first feature.
        groups: number of groups G of the first feature.
        hidden_size: size H of the hidden layer.
        reduction: the context gate has H // reduction inner features.
        expansion: the factor E by which frames are widened.
        dropout: probability of dropping an aggregate feature in training; 0 drops none.
        normalization: what is done to frames first, see `FrameNormalization`.
        eigenvalues: for the normalization ``unwhiten``, see `FrameNormalization`.
        batch_norm_momentum: momentum of every batch normalisation.
        padded_statistics: whether padded frames enter batch-norm statistics in training
            (reference: they do).

    Raises:
        ValueError: a size does not fit; K or G is below 2 where there is more than one feature.

    Example:
        >>> model = NeXtVLADClassifier(10, feature_sizes=(64, 16), clusters=8, groups=4,
        ...                            hidden_size=32, reduction=4).eval()
        >>> frames = torch.randint(0, 256, (2, 12, 80), dtype=torch.uint8)
        >>> model(frames, torch.tensor([12, 5])).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        feature_sizes: Sequence[int] = (1024, 128),
        clusters: int = 112,
        groups: int = 8,
        hidden_size: int = 2048,
        reduction: int = 16,
        expansion: int = 2,
        dropout: float = 0.5,
        normalization: Convention = "dequantize",
        eigenvalues: Tensor | np.ndarray | Sequence[float] | None = None,
        batch_norm_momentum: float = 0.001,
        padded_statistics: bool = True,
    ) -> None:
        """Makes the module; the class describes the arguments."""
        super().__init__()
        feature_sizes = tuple(feature_sizes)
        if not feature_sizes or min(feature_sizes) < 1:
            raise ValueError(f"feature_sizes: expected positive widths, found {feature_sizes}")
        if hidden_size < 1:
            raise ValueError(f"hidden_size: expected at least 1, found {hidden_size}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout: expected a number in [0, 1), found {dropout}")
        for name, value in (("clusters", clusters), ("groups", groups)):
            if len(feature_sizes) > 1 and value < 2:
                raise ValueError(
                    f"{name}: expected at least 2, as features after the first have half as many; "
                    f"found {value}"
                )
        self.feature_sizes = feature_sizes
        self.num_classes = num_classes
        self.normalization = FrameNormalization(normalization, feature_sizes, eigenvalues)
        branches = [
            NeXtVLAD(
                size,
                clusters if index == 0 else clusters // 2,
                groups if index == 0 else groups // 2,
                expansion,
                batch_norm_momentum=batch_norm_momentum,
                padded_statistics=padded_statistics,
            )
            for index, size in enumerate(feature_sizes)
        ]
        self.branches = nn.ModuleList(branches)
        aggregate_size = sum(branch.out_features for branch in branches)
        self.dropout = nn.Dropout(dropout)
        self.hidden = he_linear(aggregate_size, hidden_size, bias=False)
        self.hidden_norm = BatchNorm(hidden_size, momentum=batch_norm_momentum)
        self.gate = ContextGate(hidden_size, reduction, batch_norm_momentum=batch_norm_momentum)
        self.head = LogisticHead(hidden_size, num_classes)

    def forward(self, frames: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Classifies a padded batch.

        Args:
            frames: (B, T, N) uint8 as stored, or floating and already dequantised;
                N = ``sum(feature_sizes)``. Frames past `num_frames` may hold anything.
            num_frames: (B,) integers in 0..T. ``None``: all frames are valid.

        Returns:
            (B, C) logits.

        Raises:
            TypeError: a dtype is wrong.
            ValueError: a shape is wrong, or `num_frames` is out of range (see `frame_mask`).
        """
        if frames.ndim != 3:
            raise ValueError(
                f"frames: expected shape (batch, frames, {sum(self.feature_sizes)}), "
                f"found {tuple(frames.shape)}"
            )
        mask = None if num_frames is None else frame_mask(num_frames, frames)
        x = self.normalization(frames, mask, dtype=self.hidden.weight.dtype)
        aggregates = [
            branch(part, mask)
            for branch, part in zip(self.branches, x.split(self.feature_sizes, -1), strict=True)
        ]
        hidden = self.hidden(self.dropout(torch.cat(aggregates, dim=-1)))
        return self.head(self.gate(self.hidden_norm(hidden)))
