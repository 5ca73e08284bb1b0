"""NeXtVLAD: the aggregation layer and the classifier built on it.

Source: Lin, Xiao and Fan, NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features
for Large-scale Video Classification, 2018, and its public TensorFlow code (nextvlad.py), which is
followed where the two differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg._int8 import takes_int8
from pyseg._rates import rates_of
from pyseg.errors import ArgumentError
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.classifier import FrameClassifier, FrameOptions
from pyseg.nn.derived import DerivedWeights
from pyseg.nn.dropout import Dropout
from pyseg.nn.gate import ContextGate
from pyseg.nn.head import HeadFactory, LogisticHead
from pyseg.nn.init import he_linear, he_truncated_normal_
from pyseg.nn.linear import linear, matmul
from pyseg.nn.normalize import shared_frames
from pyseg.nn.product_order import (
    ORDERS,
    Order,
    Sizes,
    cached_order,
    cheapest_order,
    operations,
)
from pyseg.ops import AssignmentNorm, frame_linear, frame_pool, soft_assign, vlad_aggregate
from pyseg.ops._dispatch import allow_tf32
from pyseg.ops.frames import dequantize

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Folded(NamedTuple):
    """The maps from frames straight to assignment and attention, without the expanded frames."""

    assign: Tensor  # (G*K, N) = Wc W
    assign_bias: Tensor | None  # (G*K,) = Wc b; None: it is in the norm
    attention: Tensor  # (G, N)
    attention_bias: Tensor  # (G,)
    norm: AssignmentNorm | None = None  # of the assignment; None: to be taken from the batch


class NeXtVLAD(DerivedWeights):
    """Aggregates the frames of a video into one vector of F*K features, F = E*N/G.

    With h = W x + b of size E*N for every frame, seen as G groups of F features::

        a[t,g]   = sigmoid(attention of h[t] to group g), 0 on padding
        p[t,g,k] = softmax over k of BN(Wc h[t])[g*K + k]
        v[f,k]   = sum over t, g of a[t,g] p[t,g,k] (h[t,g,f] - c[f,k])

    Every column v[:,k] is L2-normalised over its F features, the matrix is flattened with index
    f*K + k, and batch normalisation is applied.

    No nonlinearity follows the first layer, so three orders of the same products give the same
    result up to rounding:

    ================ ==============================================================================
    order            what is computed
    ================ ==============================================================================
    ``direct``       h = W x + b, its assignment Wc h, the aggregation of h
    ``folded``       the assignment as (Wc W) x: less than half the operations of Wc h, but the
                     product Wc W has to be formed
    ``reassociated`` the same, and the frames x are aggregated instead of h: sum_t w[t] x[t] first,
                     W after, so that h is never formed
    ================ ==============================================================================

    Unless `order` names one, the cheapest order for the shapes is taken: ``direct`` for few frames,
    the others for many. On a CPU that is the one with the fewest operations (`operations` counts
    them). On a GPU bytes count too, at the rates of the device: each product takes the longer of
    the times of its operations and of its bytes (`python -m pyseg.info --orders` prints what that
    gives, and ``--measure`` measures the rates of a GPU). In eval mode, where
    no gradient is needed, Wc W is formed once, and again after the weights have changed
    (`DerivedWeights`). Programs made by `torch.export` must serve any shape and keep the direct
    order.

    T may differ between calls. A video without a valid frame gives v = 0, and so a finite constant.
    Batch-norm statistics of the assignment include padded frames, as in the reference, where each
    of them is the constant row that 0 input gives.

    Source: reference NeXtVLAD code, nextvlad.py, lines 16-83.

    Args:
        feature_size: size N of a frame.
        clusters: number of clusters K.
        groups: number of groups G; divides E*N.
        expansion: the factor E by which frames are widened.
        batch_norm_momentum: momentum of both batch normalisations.
        padded_statistics: whether padded frames enter the batch-norm statistics of the assignment
            in training (reference: they do).
        order: the order of the products; ``None``: the cheapest one.

    Raises:
        ValueError: a size is smaller than 1, `groups` does not divide E*N, or the order is unknown.

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
        order: Order | None = None,
    ) -> None:
        super().__init__()
        if order is not None and order not in ORDERS:
            raise ArgumentError(f"order: expected one of {', '.join(ORDERS)}; found {order!r}")
        sizes = {
            "feature_size": feature_size,
            "clusters": clusters,
            "groups": groups,
            "expansion": expansion,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {value}")
        expanded = expansion * feature_size
        if expanded % groups:
            nearest = max(d for d in range(1, min(groups, expanded + 1)) if expanded % d == 0)
            raise ArgumentError(
                f"groups: expected a divisor of expansion * feature_size = {expanded}, such as "
                f"{nearest}, found {groups}"
            )
        self.feature_size = feature_size
        self.clusters = clusters
        self.groups = groups
        self.expansion = expansion
        self.padded_statistics = padded_statistics
        self.order = order
        group_size = expanded // groups
        self.out_features = group_size * clusters

        self.expand = he_linear(feature_size, expanded)
        self.attention = he_linear(expanded, groups)
        self.assign = he_linear(expanded, groups * clusters, bias=False)
        self.assign_norm = BatchNorm(groups * clusters, momentum=batch_norm_momentum)
        self.centers = nn.Parameter(torch.empty(group_size, clusters))
        he_truncated_normal_(self.centers, fan_in=group_size)
        self.norm = BatchNorm(self.out_features, momentum=batch_norm_momentum)

    def forward(
        self,
        frames: Tensor,
        mask: Tensor | None = None,
        dequantization: Tensor | None = None,
    ) -> Tensor:
        """Aggregates a padded batch.

        Args:
            frames: (B, T, N) normalised frames, or uint8 as YouTube-8M stores them: bytes are
                dequantised (0 on padding) once for all products that read them if there are few or
                on a GPU, else tile by tile inside these products. Padded frames must be finite;
                padded bytes are ignored, padded floating frames change the result in training only,
                through the statistics.
            mask: (B, T) bool, True where the frame is valid. ``None``: all frames are.
            dequantization: (3, N), what bytes stand for, see `pyseg.ops.frame_linear`.

        Returns:
            (B, F*K), index f*K + k.

        Raises:
            TypeError: `frames` is neither uint8 nor floating.
            ValueError: `frames` does not have N features, or `mask` does not fit.
        """
        if frames.ndim != 3 or frames.shape[-1] != self.feature_size:
            raise ArgumentError(
                f"frames: expected shape (batch, frames, {self.feature_size}), "
                f"found {tuple(frames.shape)}"
            )
        if frames.dtype != torch.uint8 and not frames.is_floating_point():
            raise TypeError(f"frames: expected uint8 or floating, found {frames.dtype}")
        if mask is not None and mask.shape != frames.shape[:2]:
            raise ArgumentError(
                f"mask: expected shape {tuple(frames.shape[:2])} as frames has, "
                f"found {tuple(mask.shape)}"
            )
        batch, length, _ = frames.shape
        groups, clusters, expand = self.groups, self.clusters, self.expand
        order = self.cheapest_order(frames)
        integers = self._multiplies_integers(order)
        if integers:
            order, frames = "direct", _values(frames, mask, dequantization)
        frames = shared_frames(frames, mask, expand.weight, dequantization)
        apply = _products(frames, mask, dequantization)
        norm: AssignmentNorm | None = None
        deferred_bias: Tensor | None = None  # not added to the assignment
        expanded: Tensor | None = None
        if order == "direct":
            # The layer keeps its integers; elsewhere it is a call too many.
            expanded = (
                expand(frames.flatten(0, 1)) if integers else apply(expand.weight, expand.bias)
            )
            attention, assignment = self.attention(expanded), self.assign(expanded)
        else:
            folded = self._cached(self._fold_with_norm) if self._may_cache() else self._fold()
            norm, bias = folded.norm, folded.assign_bias
            if self.training:  # subtracting the mean of the batch would remove it again
                bias, deferred_bias = None, bias
            attention = apply(folded.attention, folded.attention_bias)
            assignment = apply(folded.assign, bias)
        if norm is None:
            counts: Tensor | None = None
            if mask is not None and not self.padded_statistics:
                counts = mask.reshape(assignment.shape[:-1])
            norm = self.assign_norm.deferred(assignment, counts, deferred_bias=deferred_bias)
        attention = torch.sigmoid(attention).view(batch, length, groups)
        if mask is not None:
            attention = attention * mask.unsqueeze(-1)
        assignment = assignment.view(batch, length, groups, clusters)
        if order == "reassociated":
            weights = soft_assign(assignment, attention, norm=norm, by_cluster=True)
            vlad = self._pool(frames, weights, dequantization)
        else:
            if expanded is None:
                expanded = apply(expand.weight, expand.bias)
            features = expanded.view(batch, length, groups, expanded.shape[-1] // groups)
            vlad = vlad_aggregate(features, assignment, attention, self.centers, norm=norm)
        return self.norm(vlad.flatten(1))

    def operations(
        self, batch: int, length: int, *, backward: bool = False, formed: bool = False
    ) -> dict[Order, int]:
        """Counts the multiplications and additions of the matrix products in every order.

        Args:
            batch: number of videos B.
            length: number of frames T of each.
            backward: whether the gradients of the parameters are counted too.
            formed: whether Wc W exists already, as in eval mode.

        Returns:
            Operations for each order.

        Example:
            >>> layer = NeXtVLAD(feature_size=1152, clusters=112, groups=8)
            >>> {order: f"{n / 1e9:.0f}e9" for order, n in layer.operations(80, 300).items()}
            {'direct': '239e9', 'folded': '194e9', 'reassociated': '151e9'}
        """
        counted = functools.partial(
            operations, batch=batch, length=length, backward=backward, formed=formed
        )
        return {order: counted(order, self.sizes) for order in ORDERS}

    @property
    def sizes(self) -> Sizes:
        """The sizes that the cost of an order depends on."""
        expanded = self.expansion * self.feature_size
        return Sizes(self.feature_size, expanded, self.clusters, self.groups)

    def cheapest_order(self, frames: Tensor) -> Order:
        """Returns the order of the products that `forward` takes for `frames`, (B, T, N)."""
        if self.order is not None:
            return self.order
        if torch.compiler.is_exporting():
            return "direct"
        batch, length, _ = frames.shape
        device, weight = frames.device, self.expand.weight
        rates, dtype = rates_of(device.type, device.index), weight.dtype
        if rates is not None and dtype != torch.float64 and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        # Shapes in a graph may be symbols, which cannot be the key of a cache.
        concrete = not torch.compiler.is_compiling() and isinstance(batch * length, int)
        return (cached_order if concrete else cheapest_order)(
            self.sizes,
            batch,
            length,
            backward=torch.is_grad_enabled() and weight.requires_grad,
            formed=self._may_cache(),
            rates=rates,
            dtype=dtype,
            tf32=allow_tf32(weight),
        )

    def _multiplies_integers(self, cheapest: Order) -> bool:
        """Whether both layers multiply 8-bit integers, which saves more time than another order.

        But frames of long videos are aggregated first: that leaves W few rows to multiply.
        """
        weight = self.expand.weight
        return (
            self.order is None
            and cheapest != "reassociated"
            and self._may_cache()
            and takes_int8(weight, weight)
        )

    def _fold(self) -> _Folded:
        assign, attention = self.assign.weight, self.attention.weight
        # One product for both: fewer kernels, forward and above all backward.
        folded = matmul(torch.cat((assign, attention)), self.expand.weight)
        of_assign, of_attention = folded.split((assign.shape[0], attention.shape[0]))
        bias = self.expand.bias
        return _Folded(
            of_assign,
            # In training only the running mean includes it.
            torch.mv(*((assign.detach(), bias.detach()) if self.training else (assign, bias))),
            of_attention,
            torch.addmv(self.attention.bias, attention, bias),
        )

    def _fold_with_norm(self) -> _Folded:
        """Returns what `_fold` does, with the batch normalisation of eval mode.

        The mean absorbs the bias: adding it to the product would be a pass over the assignment.
        """
        folded, norm = self._fold(), self.assign_norm
        mean = norm.running_mean - self.assign.weight @ self.expand.bias
        own = AssignmentNorm(mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        return folded._replace(assign_bias=None, norm=own)

    def _pool(self, frames: Tensor, weights: Tensor, dequantization: Tensor | None) -> Tensor:
        """Returns the descriptors of `vlad_aggregate`, from frames that are not expanded.

        v[f,k] = sum_{g,n} W[g,f,n] u[k,g,n] + sum_g b[g,f] m[g,k] - c[f,k] sum_g m[g,k], where
        u[k,g,n] = sum_t weights[t,g,k] frames[t,n] and m[g,k] = sum_t weights[t,g,k].
        """
        groups = self.groups
        maps = self.expand.weight.unflatten(0, (groups, -1)).to(weights.dtype)
        vlad, mass = frame_pool(frames, weights, maps, dequantization)
        dtype = mass.dtype
        with torch.autocast(frames.device.type, enabled=False):
            bias = self.expand.bias.to(dtype).unflatten(0, (groups, -1))
            centers = self.centers.to(dtype).t() * mass.sum(1).unsqueeze(-1)
            vlad = vlad.to(dtype) + mass.mT @ bias - centers
            # x / max(|x|, sqrt(eps)) is vlad_aggregate's x / sqrt(max(|x|^2, eps)).
            vlad = functional.normalize(vlad, dim=-1, eps=1e-6)
            return vlad.mT.to(weights.dtype)

    def extra_repr(self) -> str:
        """Returns the geometry for `repr`."""
        return (
            f"feature_size={self.feature_size}, clusters={self.clusters}, groups={self.groups}, "
            f"expansion={self.expansion}, out_features={self.out_features}"
        )


def _products(
    frames: Tensor, mask: Tensor | None, dequantization: Tensor | None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Returns the product of the frames with a weight and a bias, (B, T, M) or (B*T, M).

    The latter of floats: of rows that are not contiguous, one feature of several, but a matrix,
    torch adds the bias in the product instead of in another pass.
    """
    if frames.dtype != torch.uint8:
        return functools.partial(linear, frames.flatten(0, 1))
    return functools.partial(_of_bytes, frames, mask, dequantization)


def _values(frames: Tensor, mask: Tensor | None, dequantization: Tensor | None) -> Tensor:
    """Returns the float32 values of bytes; other frames as they are."""
    if frames.dtype != torch.uint8:
        return frames
    return dequantize(frames, mask, torch.float32, dequantization)


def _of_bytes(
    frames: Tensor,
    mask: Tensor | None,
    dequantization: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return frame_linear(frames, mask, weight, bias, dequantization)


class NeXtVLADClassifier(FrameClassifier):
    """The NeXtVLAD video classifier.

    Frames are normalised and split into their features; each has a `NeXtVLAD` of its own, the
    first with K clusters and G groups, the others with K // 2 and G // 2 (rounded down, as the
    reference does). The aggregates are concatenated; then dropout, a linear layer without bias to
    H features, batch normalisation (no ReLU), a `ContextGate` and a head.

    Source: reference NeXtVLAD code, nextvlad.py, lines 86-184.

    Args:
        num_classes: number of classes C.
        clusters: number of clusters K of the first feature.
        groups: number of groups G of the first feature.
        hidden_size: size H of the hidden layer.
        reduction: the context gate has H // reduction inner features.
        expansion: the factor E by which frames are widened.
        dropout: probability of dropping an aggregate feature in training; 0 drops none.
        batch_norm_momentum: momentum of every batch normalisation.
        padded_statistics: whether padded frames enter batch-norm statistics in training
            (reference: they do).
        head: makes the head of (H, C); the reference's default flag is `MixtureOfExperts`, but its
            scripts use `LogisticHead`.
        **more: see `FrameClassifier`.

    Raises:
        ValueError: a size does not fit; K or G is below 2 where there is more than one feature; an
            argument of `FrameClassifier` is out of range.

    Example:
        >>> model = NeXtVLADClassifier(10, feature_sizes=(64, 16), clusters=8, groups=4,
        ...                            hidden_size=32, reduction=4).eval()
        >>> frames = torch.randint(0, 256, (2, 12, 80), dtype=torch.uint8)
        >>> model(frames, torch.tensor([12, 5])).shape
        torch.Size([2, 10])
    """

    reads_bytes = True

    def __init__(
        self,
        num_classes: int,
        *,
        clusters: int = 112,
        groups: int = 8,
        hidden_size: int = 2048,
        reduction: int = 16,
        expansion: int = 2,
        dropout: float = 0.5,
        batch_norm_momentum: float = 0.001,
        padded_statistics: bool = True,
        head: HeadFactory = LogisticHead,
        **more: Unpack[FrameOptions],
    ) -> None:
        super().__init__(num_classes, **more)
        if hidden_size < 1:
            raise ArgumentError(f"hidden_size: expected at least 1, found {hidden_size}")
        if not 0.0 <= dropout < 1.0:
            raise ArgumentError(f"dropout: expected a number in [0, 1), found {dropout}")
        for name, value in (("clusters", clusters), ("groups", groups)):
            if len(self.feature_sizes) > 1 and value < 2:
                raise ArgumentError(
                    f"{name}: expected at least 2, as features after the first have half as many; "
                    f"found {value}"
                )
        branches = [
            NeXtVLAD(
                size,
                clusters if index == 0 else clusters // 2,
                groups if index == 0 else groups // 2,
                expansion,
                batch_norm_momentum=batch_norm_momentum,
                padded_statistics=padded_statistics,
            )
            for index, size in enumerate(self.feature_sizes)
        ]
        self.branches = nn.ModuleList(branches)
        aggregate_size = sum(branch.out_features for branch in branches)
        self.dropout = Dropout(dropout)
        self.hidden = he_linear(aggregate_size, hidden_size, bias=False)
        self.hidden_norm = BatchNorm(hidden_size, momentum=batch_norm_momentum)
        self.gate = ContextGate(hidden_size, reduction, batch_norm_momentum=batch_norm_momentum)
        self.head = head(hidden_size, num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        dequantization = self.normalization.dequantization(x)
        # Here for all features at once; each of those that stay bytes decides for itself.
        x = shared_frames(x, mask, self.hidden.weight, dequantization)
        parts = x.split(self.feature_sizes, -1)
        scales: Sequence[Tensor | None] = [None] * len(parts)
        if dequantization is not None:
            scales = dequantization.split(self.feature_sizes, -1)
        aggregates = [
            branch(part, mask, scale)
            for branch, part, scale in zip(self.branches, parts, scales, strict=True)
        ]
        hidden = self.hidden(self.dropout(torch.cat(aggregates, dim=-1)))
        return self.head(self.gate(self.hidden_norm(hidden)))
