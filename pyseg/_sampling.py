"""Random sampling of a video's frames, as in the starter code's model_utils.py.

Data sets use it, and models that sample frames themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyseg.errors import ArgumentError


def sample_random_frames(
    num_frames: Tensor,
    num_samples: int,
    *,
    ordered: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns frame numbers drawn independently and with replacement: ``int(u * num_frames)``.

    Source: SampleRandomFrames of google/youtube-8m.

    Args:
        num_frames: (B,) int, at least 1 each.
        num_samples: S, the number of frames to draw from every video.
        ordered: Sort each video's frame numbers, for models that read frames in sequence. The
            drawn frames are the same.
        generator: The random numbers to use, on the device of ``num_frames``; default: torch's own.

    Returns:
        (B, S) int64, each in ``[0, num_frames)``.

    Raises:
        ValueError: ``num_samples`` is less than 1; or an element of ``num_frames`` is, on the CPU
            while nothing is being traced.

    Example:
        >>> sample_random_frames(torch.tensor([1, 300]), 4).shape
        torch.Size([2, 4])
    """
    _check(num_frames, num_samples)
    uniform = _uniform((len(num_frames), num_samples), num_frames, generator)
    frames = (uniform * num_frames[:, None]).long()
    return frames.sort(dim=1).values if ordered else frames


def sample_random_sequence(
    num_frames: Tensor, num_samples: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Returns the numbers of consecutive frames from a random start.

    ``start = int(u * (max(num_frames - num_samples, 0) + 1))``, and the i-th frame is
    ``min(start + i, num_frames - 1)``: the last frame of a short video is repeated.

    Source: SampleRandomSequence of google/youtube-8m.

    Args:
        num_frames: (B,) int, at least 1 each.
        num_samples: S, the number of frames to take from every video.
        generator: As in `sample_random_frames`.

    Returns:
        (B, S) int64, each in ``[0, num_frames)``, rising by at most 1.

    Raises:
        ValueError: See `sample_random_frames`.

    Example:
        >>> sample_random_sequence(torch.tensor([2]), 4)
        tensor([[0, 1, 1, 1]])
    """
    _check(num_frames, num_samples)
    starts = (num_frames - num_samples).clamp(min=0) + 1
    start = (_uniform((len(num_frames),), num_frames, generator) * starts).long()
    steps = torch.arange(num_samples, device=num_frames.device)
    return torch.minimum(start[:, None] + steps, num_frames[:, None] - 1)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    # Not torch.rand: torch.compile cannot trace its argument `generator`, not even None.
    uniform = torch.empty(shape, dtype=torch.float64, device=like.device)
    return uniform.uniform_(generator=generator)


def _check(num_frames: Tensor, num_samples: int) -> None:
    if num_samples < 1:
        raise ArgumentError(f"num_samples: expected at least 1, found {num_samples}")
    # Elsewhere the comparison would wait for the device; data sets have no empty videos.
    on_host = num_frames.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and (num_frames < 1).any():
        raise ArgumentError(f"num_frames: expected at least 1, found {int(num_frames.min())}")
