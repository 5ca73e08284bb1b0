"""Normalisation of frames before the first layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyseg.errors import ArgumentError
from pyseg.nn.derived import DerivedWeights
from pyseg.ops._dispatch import is_captured, product_dtype, sum_dtype
from pyseg.ops._op import is_plain
from pyseg.ops.frames import RANGE, dequantize, is_one_tile, values_of_bytes

Convention = Literal["dequantize", "l2", "unwhiten", "raw", "standardize"]

# How far from the middle of their range floating frames may be, in widths of the range: 16 for
# [-2, 2]. Features that were never bytes are not far outside of it.
_WIDTHS = 4.0

# A dimension is constant if its deviation is not above this fraction of its mean, which is what
# float32 resolves, nor above the second number.
_RESOLUTION, _LEAST_DEVIATION = 1e-6, 1e-12


# Where any number of bytes is dequantised once for all that reads them. On a CPU each product does
# it again, in tiles that fit the cache: reading floats from memory would take longer.
_SHARING = ("cuda",)

_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor


def shared_frames(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    dequantization: Tensor | None = None,
) -> Tensor:
    """Returns the frames as all products of a step with them, and their gradients, read them.

    On a GPU that is in autocast's dtype where it is on: floats are cast once, and bytes are
    dequantised once, with a single rounding. B = 80 videos of T = 300 frames of N = 1152 bytes are
    27.6 MB to read and, in bfloat16, 55 MB to write. On a CPU bytes are dequantised once if they
    are no more than a tile of `frame_linear` and the processor computes in that dtype; all other
    frames are returned as they are.

    Args:
        frames: (B, T, N), uint8 or floating.
        mask: (B, T) bool, True where a frame is valid; bytes of other frames become 0.
        weight: a weight of the products, whose dtype bytes get without autocast.
        dequantization: what bytes stand for, see `pyseg.ops.frame_linear`.
    """
    device, dtype, are_bytes = frames.device.type, weight.dtype, frames.dtype == torch.uint8
    shares = device in _SHARING
    if not (are_bytes or shares):
        return frames
    in_autocast = torch.is_autocast_enabled(device)
    if not (are_bytes or in_autocast):
        return frames
    if in_autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if not shares:
        is_eager = is_plain((frames, mask, weight, dequantization))
        if product_dtype(device, dtype) != dtype or not (is_eager and is_one_tile(dtype, frames)):
            return frames
    if are_bytes:
        return dequantize(frames, mask, dtype, dequantization)
    return frames if frames.dtype == torch.float64 else frames.to(dtype)


class FrameNormalization(DerivedWeights):
    """Normalises stored frames and their padding by the convention that a model was trained with.

    Public YouTube-8M systems differ in this step, and a mix-up costs accuracy without any error. So
    it is part of the classifier: its name is saved with the configuration and its buffers with the
    weights.

    =============== =========================================== ====================================
    convention      valid frames                                padded frames
    =============== =========================================== ====================================
    ``dequantize``  x                                           0
    ``l2``          x / sqrt(max(sum(x^2), 1e-12)) over the     0
                    whole frame (starter code)
    ``unwhiten``    (x - w/512) * (sqrt(eigenvalue) + 1e-4) for -w/512 * (sqrt(eigenvalue) + 1e-4)
                    the first feature, x for the others         in the first feature, 0 in the
                    (reference NeXtVLAD code, w = 4)            others
    ``raw``         the input itself: bytes as 0..255           0
    ``standardize`` (x - mean) / deviation of each dimension    0
    =============== =========================================== ====================================

    Here x is a floating input as it is, or for a uint8 input q its dequantised value
    q * w/255 + low + w/512, where w = high - low is the width of the feature's range. Padding is
    overwritten, whatever it holds (bytes, garbage, NaN), as in the reference, which pads after
    dequantising. Only `unwhiten` moves padding away from 0; that enters batch-norm statistics, but
    no prediction in eval mode.

    Args:
        convention: one of the above.
        feature_sizes: widths of the features that make up a frame, for example (1024, 128).
        eigenvalues: for ``unwhiten`` only: eigenvalues of the features' PCA, largest first, of any
            shape with at least ``feature_sizes[0]`` values; the first ones are used.
        ranges: (low, high) of each feature, the values that its bytes stand for. ``None``: [-2, 2].
        mean: for ``standardize`` only: (N,) the mean of each dimension of the dequantised frames
            (`pyseg.data.frame_moments`).
        deviation: for ``standardize`` only: (N,) the standard deviations. A constant dimension,
            whose deviation is 0 or below 1e-6 of its mean, becomes x - mean, without a division.

    Raises:
        ValueError: unknown convention; a range without low < high; eigenvalues, mean or deviation
            missing, superfluous, too few, negative or not finite.

    Example:
        >>> normalize = FrameNormalization("dequantize", feature_sizes=(3,))
        >>> frames = torch.tensor([[[0, 255, 0], [7, 7, 7]]], dtype=torch.uint8)
        >>> normalize(frames, torch.tensor([[True, False]])).tolist()
        [[[-1.9921875, 2.0078125, -1.9921875], [0.0, 0.0, 0.0]]]
        >>> moments = {"mean": [5.0, 2.0], "deviation": [2.0, 0.0]}
        >>> normalize = FrameNormalization("standardize", (2,), ranges=[(0, 9)], **moments)
        >>> normalize(torch.tensor([[[9.0, 2.0]]])).tolist()
        [[[2.0, 0.0]]]
    """

    eigenvalues: Tensor | None
    mean: Tensor | None
    deviation: Tensor | None

    def __init__(
        self,
        convention: Convention = "dequantize",
        feature_sizes: Sequence[int] = (1024, 128),
        eigenvalues: Tensor | np.ndarray | Sequence[float] | None = None,
        *,
        ranges: Sequence[Sequence[float]] | None = None,
        mean: Tensor | np.ndarray | Sequence[float] | None = None,
        deviation: Tensor | np.ndarray | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if convention not in get_args(Convention):
            raise ArgumentError(
                f"normalization: expected one of {', '.join(get_args(Convention))}; "
                f"found {convention!r}"
            )
        self.convention = convention
        self._seen = False  # a batch of floating frames on another device than the CPU
        self.feature_sizes = tuple(feature_sizes)
        self.ranges = _checked_ranges(ranges, self.feature_sizes)
        width = sum(self.feature_sizes)
        self._register("eigenvalues", eigenvalues, "unwhiten", self.feature_sizes[0], least=0.0)
        self._register("mean", mean, "standardize", width)
        self._register("deviation", deviation, "standardize", width, least=0.0)

    def _register(
        self,
        name: str,
        values: Tensor | np.ndarray | Sequence[float] | None,
        convention: Convention,
        number: int,
        *,
        least: float = -math.inf,
    ) -> None:
        """Makes the values of an argument that only one convention takes a buffer."""
        if (self.convention == convention) != (values is not None):
            raise ArgumentError(
                f"{name}: expected {'them' if values is None else 'none'} with the "
                f"normalization {self.convention!r}"
            )
        if values is None:
            self.register_buffer(name, None)
            return
        tensor = torch.as_tensor(values, dtype=torch.float32).flatten()
        # Those of a PCA may be more: a prefix of the dimensions is in use.
        fits = tensor.numel() >= number if name == "eigenvalues" else tensor.numel() == number
        if not fits:
            of = "at least" if name == "eigenvalues" else "exactly"
            whose = "the first feature" if name == "eigenvalues" else "a frame"
            raise ArgumentError(
                f"{name}: expected {of} {number} values (the width of {whose}), "
                f"found {tensor.numel()}"
            )
        tensor = tensor[:number].clone()
        valid = (tensor >= least) & tensor.isfinite()
        if tensor.device.type != "meta" and not bool(valid.all()):
            raise ArgumentError(f"{name}: expected finite numbers{' >= 0' if least == 0 else ''}")
        self.register_buffer(name, tensor)

    def forward(
        self, frames: Tensor, mask: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Normalises a padded batch.

        Args:
            frames: (B, T, N) uint8 as stored, or floating and already dequantised.
            mask: (B, T) bool, True where the frame is valid. ``None``: all frames are.
            dtype: dtype of the result; the dtype of the model's weights.

        Returns:
            (B, T, N) of `dtype`.

        Raises:
            TypeError: `frames` is neither uint8 nor floating.
            ValueError: the last dimension of `frames` is not ``sum(feature_sizes)``, or floating
                frames are plainly not dequantised: bytes made floats. Only the first frame of each
                video is checked; on a GPU, where that synchronises, only in the first batch, and
                under torch.compile never.
        """
        self.check(frames)
        if frames.dtype == torch.uint8 and self.convention != "raw":
            x = dequantize(frames, mask, dtype, self.dequantization(frames))
        else:
            if frames.is_floating_point():
                self._refuse_bytes(frames, mask)
                x = self._standardize(frames, dtype)
            elif frames.dtype == torch.uint8:
                x = frames.to(dtype)
            else:
                raise TypeError(f"frames: expected uint8 or floating, found {frames.dtype}")
            if mask is not None:
                x = torch.where(mask.unsqueeze(-1), x, 0.0)
        if self.convention == "l2":
            return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp(min=1e-12))
        if self.eigenvalues is not None:
            first, rest = x.tensor_split((self.feature_sizes[0],), dim=-1)
            scale = (self.eigenvalues.sqrt() + 1e-4).to(dtype)
            low, high = self.ranges[0]
            return torch.cat(((first - (high - low) / 512.0) * scale, rest), dim=-1)
        return x

    def leaves_bytes(self, frames: Tensor) -> bool:
        """Whether `frames` may stay bytes, for a first product that dequantises them."""
        return frames.dtype == torch.uint8 and self.convention in ("dequantize", "standardize")

    def dequantization(self, frames: Tensor) -> Tensor | None:
        """Returns how a first product turns bytes into normalised values.

        Args:
            frames: (B, T, N) bytes; other frames are normalised already, and have none.

        Returns:
            (3, N) float64, the argument ``dequantization`` of `pyseg.ops.frame_linear`, on the
            device of `frames`; ``None`` where its default fits.
        """
        if frames.dtype != torch.uint8:
            return None
        if self.mean is None and all(limits == RANGE for limits in self.ranges):
            return None
        derive = functools.partial(self._dequantization, frames.device)
        # A CUDA graph must not read memory that a later change of the buffers would free.
        is_cached = self.mean is not None and is_plain((frames, self.mean, self.deviation))
        return self._cached(derive) if is_cached and not is_captured(frames.device) else derive()

    def _dequantization(self, device: torch.device) -> Tensor:
        def of_features(values: list[float]) -> Tensor:  # filled: a copy would stall a GPU
            fill = functools.partial(torch.full, dtype=torch.float64, device=device)
            sizes = zip(self.feature_sizes, values, strict=True)
            return torch.cat([fill((size,), value) for size, value in sizes])

        step, start = (
            of_features(list(values))
            for values in zip(*(values_of_bytes(*limits) for limits in self.ranges), strict=True)
        )
        if self.mean is None:
            mean, deviation = torch.zeros_like(start), torch.ones_like(start)
        else:
            mean, deviation = self.mean.double(), self._deviation()
        zero_point = ((mean - start) / step).round().clamp(0.0, 255.0)
        offset = (start + zero_point * step - mean) / deviation
        return torch.stack((zero_point, step / deviation, offset))

    def _deviation(self) -> Tensor:
        """Returns the deviations to divide by, (N,) float64."""
        assert self.mean is not None
        assert self.deviation is not None
        deviation = self.deviation.double()
        least = self.mean.double().abs() * _RESOLUTION + _LEAST_DEVIATION
        return torch.where(deviation > least, deviation, 1.0)

    def _standardize(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns floating frames in `dtype`, standardised if that is the convention."""
        if self.mean is None:
            return x.to(dtype)
        inner = sum_dtype(dtype)  # 16 bits would lose the digits that the mean cancels
        return ((x.to(inner) - self.mean.to(inner)) / self._deviation().to(inner)).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrameNormalization:
        """Moves the buffers, but keeps mean and deviation in float32 or better.

        A mean far from 0 in 16 bits would shift its dimension by more than the deviation.
        """
        before = {"mean": self.mean, "deviation": self.deviation}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = getattr(self, name)
            if buffer is not None and now.dtype.itemsize < 4:
                setattr(self, name, buffer.to(now.device))
        return self

    def check(self, frames: Tensor) -> None:
        """Raises the `ValueError` of `forward` where the shape of `frames` does not fit."""
        width = sum(self.feature_sizes)
        if frames.ndim != 3 or frames.shape[-1] != width:
            sizes = " + ".join(map(str, self.feature_sizes))
            raise ArgumentError(
                f"frames: expected shape (batch, frames, {width}), as the features have the "
                f"widths {sizes}; found {tuple(frames.shape)}"
            )

    def _refuse_bytes(self, frames: Tensor, mask: Tensor | None) -> None:
        """Raises where floating frames are far outside the range of dequantised ones."""
        if self.convention == "raw" or not frames.numel() or torch.compiler.is_compiling():
            return
        # A meta, fake or vmapped tensor has no values to check.
        if type(frames) is not Tensor or frames.is_meta or _is_transformed(frames):
            return
        if frames.device.type != "cpu":
            if self._seen:
                return
            self._seen = True
        first = frames[:, 0].detach()
        if mask is not None:
            first = first.where(mask[:, :1], float("nan"))
        outside = []
        for (low, high), part in zip(
            self.ranges, first.split(self.feature_sizes, dim=-1), strict=True
        ):
            far = (part - (low + high) / 2).abs() > _WIDTHS * (high - low)
            outside.append(part.abs().where(far, 0.0).amax())
        for found, (low, high) in zip(torch.stack(outside).tolist(), self.ranges, strict=True):
            if found:
                raise ArgumentError(
                    "frames: expected bytes (uint8), or floats that are dequantised already, in "
                    f"about {low:g}..{high:g}, for the normalization {self.convention!r}; found "
                    f"{found:g}"
                )

    def extra_repr(self) -> str:
        """Returns the arguments for `repr`."""
        ranges = "" if all(r == RANGE for r in self.ranges) else f", ranges={self.ranges}"
        return f"{self.convention!r}, feature_sizes={self.feature_sizes}{ranges}"


def _checked_ranges(
    ranges: Sequence[Sequence[float]] | None, feature_sizes: tuple[int, ...]
) -> tuple[tuple[float, float], ...]:
    """Returns the ranges of the features, checked."""
    if ranges is None:
        return (RANGE,) * len(feature_sizes)
    try:
        pairs = tuple((float(low), float(high)) for low, high in ranges)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"ranges: expected (low, high) of each feature, found {ranges!r}"
        ) from None
    if len(pairs) != len(feature_sizes):
        raise ArgumentError(
            f"ranges: expected one for each of {len(feature_sizes)} features, found {len(pairs)}"
        )
    for low, high in pairs:
        if not (low < high and math.isfinite(high - low)):
            raise ArgumentError(f"ranges: expected finite low < high, found {low:g}, {high:g}")
    return pairs
