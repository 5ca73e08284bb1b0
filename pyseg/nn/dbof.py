"""DBoF, the deep bag of frames: project frames to many clusters, pool, and classify.

Source: Abu-El-Haija et al., YouTube-8M: A Large-Scale Video Classification Benchmark, 2016, and the
starter code google/youtube-8m, frame_level_models.py, lines 89-214, which decides where they
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg._sampling import sample_random_frames, sample_random_sequence
from pyseg.errors import ArgumentError
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.classifier import FrameClassifier, FrameOptions
from pyseg.nn.derived import DerivedWeights
from pyseg.nn.head import HeadFactory, MixtureOfExperts
from pyseg.nn.init import normal_linear
from pyseg.nn.linear import linear
from pyseg.ops import frame_linear
from pyseg.ops.frames import dequantize

if TYPE_CHECKING:
    from typing_extensions import Unpack

Activation = Literal["sigmoid", "relu6", "relu"]
Pooling = Literal["max", "average"]
Sampling = Literal["random-frames", "random-sequence"]

# Monotone, and never below 0: BagOfFrames relies on both.
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu6": functional.relu6,
    "relu": functional.relu,
}


class BagOfFrames(DerivedWeights):
    """Projects every frame to K clusters and pools over the frames.

    y[b,k] = pool over t of f(BN(BN(x[b,t]) W)[k]), where f is an activation. Frames with a count of
    0 enter neither the pooling nor batch statistics; a video without a frame gives 0.

    In eval mode both batch normalisations are folded into W (once, see `DerivedWeights`), so that
    bytes go straight into the product. Max pooling comes before the activation, which is monotone:
    that leaves one activation per cluster instead of one per frame.

    Args:
        feature_size: size N of a frame.
        clusters: number of clusters K.
        activation: the activation f.
        pooling: how frames are pooled.
        batch_norm: whether there are batch normalisations; without them a bias takes the place of
            the second.
        batch_norm_momentum: momentum of both.

    Raises:
        ValueError: a size is smaller than 1, or a name is unknown.

    Attributes:
        input_norm: batch normalisation over N, or ``None``.
        project: linear layer without bias, N -> K, with weights of N(0, 1 / N).
        cluster_norm: batch normalisation over K, or ``None``.
        bias: (K,) of N(0, 1 / N), or ``None``.

    Example:
        >>> layer = BagOfFrames(64, clusters=128)
        >>> mask = torch.arange(10) < torch.tensor([[10], [7]])
        >>> layer(torch.randn(2, 10, 64), mask).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        feature_size: int,
        clusters: int,
        *,
        activation: Activation = "sigmoid",
        pooling: Pooling = "max",
        batch_norm: bool = True,
        batch_norm_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        for name, size in (("feature_size", feature_size), ("clusters", clusters)):
            if size < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {size}")
        _check_choice("activation", activation, get_args(Activation))
        _check_choice("pooling", pooling, get_args(Pooling))
        self.activation = activation
        self.pooling = pooling
        self.project = normal_linear(feature_size, clusters)
        self.input_norm = self.cluster_norm = self.bias = None
        if batch_norm:
            self.input_norm = _slim_norm(feature_size, batch_norm_momentum)
            self.cluster_norm = _slim_norm(clusters, batch_norm_momentum)
        else:
            self.bias = nn.Parameter(torch.randn(clusters) / feature_size**0.5)

    def forward(
        self,
        frames: Tensor,
        counts: Tensor | None = None,
        dequantization: Tensor | None = None,
    ) -> Tensor:
        """Pools a padded batch.

        Args:
            frames: (B, T, N) normalised frames, or uint8 as YouTube-8M stores them. Those with a
                count of 0 must be finite.
            counts: (B, T) how often a frame counts: a bool mask, True where the frame is valid, or
                integers, as if the frame were repeated. ``None``: once each.
            dequantization: (3, N), what bytes stand for, see `pyseg.ops.frame_linear`.

        Returns:
            (B, K).
        """
        if self.training:
            y = self._project(frames, counts, dequantization)
        else:
            weight, bias = self._cached(self._fold) if self._may_cache() else self._fold()
            if frames.dtype == torch.uint8:
                y = frame_linear(frames, None, weight, bias, dequantization)
            else:
                y = linear(frames, weight, bias)
        if y.shape[1] == 0:
            return y.new_zeros(y.shape[0], y.shape[2])
        activate = _ACTIVATIONS[self.activation]
        if self.pooling == "max":
            if counts is not None:
                y = y.masked_fill((counts == 0).unsqueeze(-1), float("-inf"))
            return activate(y.amax(1))  # 0 of -inf, where there is no frame
        y = activate(y)
        if counts is None:
            return y.mean(1)
        total = torch.bmm(counts.to(y.dtype).unsqueeze(1), y).squeeze(1)
        return total / counts.sum(1, keepdim=True).clamp(min=1)

    def _project(
        self, frames: Tensor, counts: Tensor | None, dequantization: Tensor | None
    ) -> Tensor:
        """Returns the projections (B, T, K), normalised by the statistics of the batch."""
        if frames.dtype == torch.uint8:
            frames = dequantize(frames, None, self.project.weight.dtype, dequantization)
        if self.input_norm is None or self.cluster_norm is None:
            return linear(frames, self.project.weight, self.bias)
        return self.cluster_norm(self.project(self.input_norm(frames, counts)), counts)

    def _fold(self) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of the whole projection in eval mode."""
        weight = self.project.weight
        if self.input_norm is None or self.cluster_norm is None:
            return weight, self.bias
        with torch.autocast(weight.device.type, enabled=False):
            scale, shift = self.input_norm.affine()
            out_scale, out_shift = self.cluster_norm.affine()
            bias = (weight @ shift) * out_scale + out_shift
            return weight * scale * out_scale.unsqueeze(1), bias

    def extra_repr(self) -> str:
        """Returns the choices for `repr`."""
        return f"activation={self.activation!r}, pooling={self.pooling!r}"


class DBoF(FrameClassifier):
    """The deep bag of frames: some frames of every video, a `BagOfFrames`, a hidden layer, a head.

    In training `num_samples` frames of every video are drawn, as in the starter code. Bytes are
    gathered before they are dequantised. Where there are no more frames than draws, as in segments,
    each frame is projected once and counts as often as it was drawn, which gives the same result.

    In eval mode all frames are used, so that predictions are repeatable; the starter code draws
    there too, and so does ``every_frame=False``. Draws come from torch's generator of the device,
    which `torch.manual_seed` seeds, or from `generator`.

    As in the starter code, running variances are unbiased (slim's default) and the hidden layer has
    the activation of the frames. The starter code L2-normalises frames: the preset has
    ``normalization="l2"``.

    Source: google/youtube-8m, frame_level_models.py, lines 89-214, and model_utils.py, lines 22-95.

    Args:
        num_classes: number of classes C.
        clusters: size K of the projection.
        hidden_size: size H of the hidden layer.
        activation: the activation after the projection and after the hidden layer.
        pooling: how frames are pooled.
        batch_norm: whether there are batch normalisations; otherwise biases.
        sampling: "random-frames", with replacement, or a "random-sequence" of frames, the last one
            repeated where a video is short.
        num_samples: number of frames to draw.
        every_frame: whether eval mode uses every frame instead of drawing some.
        generator: the random numbers to draw with, on the device of the frames. ``None``: torch's.
        batch_norm_momentum: momentum of every batch normalisation.
        head: makes the head of (H, C).
        **more: see `FrameClassifier`.

    Raises:
        ValueError: a size is smaller than 1, a name is unknown, or an argument of `FrameClassifier`
            is out of range.

    Example:
        >>> model = DBoF(10, feature_sizes=(64, 16), clusters=128, hidden_size=32).eval()
        >>> frames = torch.randint(0, 256, (2, 12, 80), dtype=torch.uint8)
        >>> model(frames, torch.tensor([12, 5])).shape
        torch.Size([2, 10])
    """

    reads_bytes = True

    def __init__(
        self,
        num_classes: int,
        *,
        clusters: int = 8192,
        hidden_size: int = 1024,
        activation: Activation = "sigmoid",
        pooling: Pooling = "max",
        batch_norm: bool = True,
        sampling: Sampling = "random-frames",
        num_samples: int = 30,
        every_frame: bool = True,
        generator: torch.Generator | None = None,
        batch_norm_momentum: float = 0.001,
        head: HeadFactory = MixtureOfExperts,
        **more: Unpack[FrameOptions],
    ) -> None:
        super().__init__(num_classes, **more)
        for name, size in (("hidden_size", hidden_size), ("num_samples", num_samples)):
            if size < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {size}")
        _check_choice("sampling", sampling, get_args(Sampling))
        self.sampling = sampling
        self.num_samples = num_samples
        self.every_frame = every_frame
        self.generator = generator
        self.bag = BagOfFrames(
            sum(self.feature_sizes),
            clusters,
            activation=activation,
            pooling=pooling,
            batch_norm=batch_norm,
            batch_norm_momentum=batch_norm_momentum,
        )
        self.hidden = normal_linear(clusters, hidden_size)
        self.hidden_norm = _slim_norm(hidden_size, batch_norm_momentum) if batch_norm else None
        self.hidden_bias = None if batch_norm else nn.Parameter(0.01 * torch.randn(hidden_size))
        self.head = head(hidden_size, num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        if self.training or not self.every_frame:
            x, mask = self._draw(x, mask)
        pooled = self.bag(x, mask, self.normalization.dequantization(x))
        hidden = linear(pooled, self.hidden.weight, self.hidden_bias)
        if self.hidden_norm is not None:
            hidden = self.hidden_norm(hidden)
        return self.head(_ACTIVATIONS[self.bag.activation](hidden))

    def _draw(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the frames drawn and how often each counts."""
        batch, length, width = x.shape
        if length == 0:
            return x, mask
        valid = x.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
        num_frames = valid.sum(1)
        draw = sample_random_frames if self.sampling == "random-frames" else sample_random_sequence
        frames = draw(num_frames.clamp(min=1), self.num_samples, generator=self.generator)
        # A program made by torch.export must serve any length.
        if not torch.compiler.is_exporting() and length <= self.num_samples:
            counts = torch.zeros_like(valid, dtype=torch.long)
            return x, counts.scatter_add(1, frames, torch.ones_like(frames)) * valid
        x = x.gather(1, frames.unsqueeze(-1).expand(-1, -1, width))
        # The padding of a video without frames must not reach the result.
        return (x if mask is None else x.masked_fill((num_frames == 0)[:, None, None], 0)), None


def _slim_norm(size: int, momentum: float) -> BatchNorm:
    return BatchNorm(size, momentum=momentum, unbiased=True)


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ArgumentError(f"{name}: expected one of {', '.join(known)}; found {value!r}")
