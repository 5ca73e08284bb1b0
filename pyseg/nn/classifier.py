"""The base class of the classifiers of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.nn.mask import Integers, as_tensor, frame_mask
from pyseg.nn.noise import MaskedGaussianNoise
from pyseg.nn.normalize import Convention, FrameNormalization


class FrameOptions(TypedDict, total=False):
    """The arguments of `FrameClassifier` that its subclasses pass on."""

    feature_sizes: Sequence[int]
    normalization: Convention
    eigenvalues: Tensor | np.ndarray | Sequence[float] | None
    ranges: Sequence[Sequence[float]] | None
    mean: Tensor | np.ndarray | Sequence[float] | None
    deviation: Tensor | np.ndarray | Sequence[float] | None
    noise: float


class FrameClassifier(nn.Module):
    """A classifier of padded batches of frames; subclasses implement `classify`.

    It checks the batch, normalises it, and adds noise in training. In eval mode a prediction
    depends only on the valid frames of its own video.

    Args:
        num_classes: number of classes C.
        feature_sizes: widths of the features that make up a frame.
        normalization: how frames are normalised, see `FrameNormalization`.
        eigenvalues: for the normalization ``unwhiten``, see `FrameNormalization`.
        ranges: (low, high) of each feature, the values that its bytes stand for. ``None``: [-2, 2].
        mean: for the normalization ``standardize``, see `FrameNormalization`.
        deviation: likewise.
        noise: standard deviation of the `MaskedGaussianNoise` that training adds to normalised
            frames; ``model.noise.sigma`` changes it later.

    Raises:
        ValueError: there is no class, a width is not positive, or another argument is out of range.

    Attributes:
        reads_bytes: whether `classify` takes bytes: it then gets them unless the normalization or
            the noise needs values, and has to pass ``self.normalization.dequantization(x)`` to the
            operator that reads them. By default it gets values.
    """

    reads_bytes = False

    def __init__(
        self,
        num_classes: int,
        *,
        feature_sizes: Sequence[int] = (1024, 128),
        normalization: Convention = "dequantize",
        eigenvalues: Tensor | np.ndarray | Sequence[float] | None = None,
        ranges: Sequence[Sequence[float]] | None = None,
        mean: Tensor | np.ndarray | Sequence[float] | None = None,
        deviation: Tensor | np.ndarray | Sequence[float] | None = None,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        feature_sizes = tuple(feature_sizes)
        if num_classes < 1:
            raise ArgumentError(f"num_classes: expected at least 1, found {num_classes}")
        if not feature_sizes or min(feature_sizes) < 1:
            raise ArgumentError(f"feature_sizes: expected positive widths, found {feature_sizes}")
        if not 0.0 <= noise < float("inf"):
            raise ArgumentError(f"noise: expected a finite number of at least 0, found {noise}")
        self.num_classes = num_classes
        self.feature_sizes = feature_sizes
        self.normalization = FrameNormalization(
            normalization,
            feature_sizes,
            eigenvalues,
            ranges=ranges,
            mean=mean,
            deviation=deviation,
        )
        self.noise = MaskedGaussianNoise(noise)

    def forward(self, frames: Tensor | np.ndarray, num_frames: Integers | None = None) -> Tensor:
        """Classifies a padded batch.

        Args:
            frames: (B, T, N) uint8 as stored, or floating and already dequantised;
                N = ``sum(feature_sizes)``. Frames past `num_frames` may hold anything. An array
                goes to the device of the model.
            num_frames: (B,) integers in 1..T; a tensor, an array or a list. ``None``: all frames
                are valid.

        Returns:
            (B, C) logits.

        Raises:
            TypeError: an argument is no tensor or array, or its dtype is wrong.
            ValueError: a shape is wrong, `num_frames` is out of range (see `frame_mask`), or
                floating frames are plainly not dequantised (see `FrameNormalization.forward`).
        """
        return self.classify(*self.prepare(frames, num_frames))

    def training_loss(
        self,
        frames: Tensor | np.ndarray,
        num_frames: Integers | None,
        criterion: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Returns the loss to minimise on a batch; by default the criterion of the logits.

        A classifier whose parts have losses of their own adds them here.

        Args:
            frames: see `forward`.
            num_frames: see `forward`.
            criterion: the loss of (B, C) logits.

        Returns:
            A scalar.
        """
        return criterion(self(frames, num_frames))

    def prepare(
        self, frames: Tensor | np.ndarray, num_frames: Integers | None
    ) -> tuple[Tensor, Tensor | None]:
        """Checks and normalises a batch, and adds noise in training.

        Args:
            frames: see `forward`.
            num_frames: see `forward`.

        Returns:
            The arguments of `classify`.
        """
        if not isinstance(frames, Tensor):
            frames = as_tensor("frames", frames).to(_first_parameter(self).device)
        self.normalization.check(frames)
        mask = None if num_frames is None else frame_mask(num_frames, frames)
        if self.reads_bytes and self.normalization.leaves_bytes(frames) and not self.noise.active:
            return frames, mask
        x = self.normalization(frames, mask, dtype=_first_parameter(self).dtype)
        return (self.noise(x, mask) if self.noise.active else x), mask

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames.

        Args:
            x: (B, T, N) normalised frames of the dtype of the weights, with the padding of
                `FrameNormalization`; or, where the class `reads_bytes` and the normalization is
                ``dequantize`` or ``standardize``, the bytes themselves, which the first product
                normalises (`pyseg.ops.frame_linear`) and whose padding may hold anything.
            mask: (B, T) bool, True where the frame is valid. ``None``: all frames are.

        Returns:
            (B, C) logits.
        """
        raise NotImplementedError


def _first_parameter(module: nn.Module) -> nn.Parameter:
    """Returns ``next(module.parameters())``, which takes as long as some kernels of a step."""
    modules = [module]
    while True:
        module = modules.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                return parameter
        modules += [child for child in module._modules.values() if child is not None][::-1]
