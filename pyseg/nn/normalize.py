"""Normalisation of frames before the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.ops.frames import dequantize

Convention = Literal["dequantize", "l2", "unwhiten", "raw"]

# Dequantised values lie in [-2, 2.01], features that were never bytes not far from that.
_LARGEST = 16.0


_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor


class FrameNormalization(nn.Module):
    """Normalises stored frames and their padding by the convention that a model was trained with.

    Public YouTube-8M systems differ in this step, and a mix-up costs accuracy without any error. So
    it is part of the classifier: its name is saved with the configuration and its buffer with the
    weights.

    ============== ============================================= ===================================
    convention     valid frames                                  padded frames
    ============== ============================================= ===================================
    ``dequantize`` x                                             0
    ``l2``         x / sqrt(max(sum(x^2), 1e-12)) over the whole 0
                   frame (starter code)
    ``unwhiten``   (x - 4/512) * (sqrt(eigenvalue) + 1e-4) for   -4/512 * (sqrt(eigenvalue) + 1e-4)
                   the first feature, x for the others           in the first feature, 0 in the
                   (reference NeXtVLAD code)                     others
    ``raw``        the input itself: bytes as 0..255             0
    ============== ============================================= ===================================

    Here x is a floating input as it is, or for a uint8 input q its dequantised value
    q * 4/255 + (4/512 - 2). Padding is overwritten, whatever it holds (bytes, garbage, NaN), as in
    the reference, which pads after dequantising. Only `unwhiten` moves padding away from 0; that
    enters batch-norm statistics, but no prediction in eval mode.

    Args:
        convention: one of the above.
        feature_sizes: widths of the features that make up a frame, for example (1024, 128).
        eigenvalues: for ``unwhiten`` only: eigenvalues of the features' PCA, largest first, of any
            shape with at least ``feature_sizes[0]`` values; the first ones are used.

    Raises:
        ValueError: unknown convention; eigenvalues missing, superfluous, too few, negative or not
            finite.

    Example:
        >>> normalize = FrameNormalization("dequantize", feature_sizes=(3,))
        >>> frames = torch.tensor([[[0, 255, 0], [7, 7, 7]]], dtype=torch.uint8)
        >>> normalize(frames, torch.tensor([[True, False]])).tolist()
        [[[-1.9921875, 2.0078125, -1.9921875], [0.0, 0.0, 0.0]]]
    """

    eigenvalues: Tensor | None

    def __init__(
        self,
        convention: Convention = "dequantize",
        feature_sizes: Sequence[int] = (1024, 128),
        eigenvalues: Tensor | np.ndarray | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if convention not in get_args(Convention):
            raise ArgumentError(
                f"normalization: expected one of {', '.join(get_args(Convention))}; "
                f"found {convention!r}"
            )
        if (convention == "unwhiten") != (eigenvalues is not None):
            raise ArgumentError(
                f"eigenvalues: expected {'them' if eigenvalues is None else 'none'} with the "
                f"normalization {convention!r}"
            )
        self.convention = convention
        self._seen = False  # a batch of floating frames on another device than the CPU
        self.feature_sizes = tuple(feature_sizes)
        if eigenvalues is not None:
            values = torch.as_tensor(eigenvalues, dtype=torch.float32).flatten()
            first = self.feature_sizes[0]
            if values.numel() < first:
                raise ArgumentError(
                    f"eigenvalues: expected at least {first} values (the width of the first "
                    f"feature), found {values.numel()}"
                )
            values = values[:first].clone()
            valid = (values >= 0) & values.isfinite()
            if values.device.type != "meta" and not bool(valid.all()):
                raise ArgumentError("eigenvalues: expected finite numbers >= 0")
            self.register_buffer("eigenvalues", values)
        else:
            self.eigenvalues = None

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
        width = sum(self.feature_sizes)
        if frames.dtype == torch.uint8:
            x = frames.to(dtype) if self.convention == "raw" else dequantize(frames, None, dtype)
        elif frames.is_floating_point():
            self._refuse_bytes(frames, mask)
            x = frames.to(dtype)
        else:
            raise TypeError(f"frames: expected uint8 or floating, found {frames.dtype}")
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), x, 0.0)
        if self.convention == "l2":
            return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp(min=1e-12))
        if self.eigenvalues is not None:
            first, rest = x.split((self.feature_sizes[0], width - self.feature_sizes[0]), dim=-1)
            scale = (self.eigenvalues.sqrt() + 1e-4).to(dtype)
            return torch.cat(((first - 4.0 / 512.0) * scale, rest), dim=-1)
        return x

    def leaves_bytes(self, frames: Tensor) -> bool:
        """Whether `frames` may stay bytes, for a first product that dequantises them."""
        return frames.dtype == torch.uint8 and self.convention == "dequantize"

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
            first = first.where(mask[:, :1], 0.0)
        largest = first.abs().amax().item()
        if largest > _LARGEST:
            raise ArgumentError(
                "frames: expected bytes (uint8), or floats that are dequantised already, in about "
                f"-2..2, for the normalization {self.convention!r}; found {largest:g}"
            )

    def extra_repr(self) -> str:
        """Returns the arguments for `repr`."""
        return f"{self.convention!r}, feature_sizes={self.feature_sizes}"
