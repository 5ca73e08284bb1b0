"""Backbones of tests, which read what the videos of tests show."""

from __future__ import annotations

import os
import signal
import time
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pyseg.backbones import AudioWindows, Backbone
from tests.video.make_videos import number_of


class Numbers(Backbone):
    """The number that a frame shows, and a constant."""

    features: ClassVar = (("number", 1), ("one", 2))  # type: ignore[misc]
    sha256 = "1" * 64
    preprocessing: ClassVar = {"reads": "bars"}  # type: ignore[misc]
    size = (48, 64)

    def __call__(self, images: np.ndarray, windows: np.ndarray | None) -> np.ndarray:
        assert windows is None
        return np.array([[number_of(image), 1, 1] for image in images], np.float32)


def numbers() -> Backbone:
    return Numbers()


class Deadly(Numbers):
    """Ends its process at the number 500."""

    def __call__(self, images: np.ndarray, windows: np.ndarray | None) -> np.ndarray:
        rows = super().__call__(images, windows)
        if 500 in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


def deadly() -> Backbone:
    return Deadly()


class Slow(Numbers):
    """Takes its time."""

    def __call__(self, images: np.ndarray, windows: np.ndarray | None) -> np.ndarray:
        time.sleep(0.1)
        return super().__call__(images, windows)


def slow() -> Backbone:
    return Slow()


class Infinite(Numbers):
    """Returns an infinite value for the number 105."""

    def __call__(self, images: np.ndarray, windows: np.ndarray | None) -> np.ndarray:
        rows = super().__call__(images, windows)
        return np.where(rows == 105, np.inf, rows)


def infinite() -> Backbone:
    return Infinite()


class Pitch(Backbone):
    """The pitch of a window of sound in Hz; -1 where there is no sound."""

    features: ClassVar = (("pitch", 1),)  # type: ignore[misc]
    sha256 = "2" * 64
    preprocessing: ClassVar = {}  # type: ignore[misc]
    size = (8, 8)
    ranges = ((-1.0, 1000.0),)
    audio = AudioWindows(seconds=0.5)

    def __call__(self, images: np.ndarray, windows: np.ndarray | None) -> np.ndarray:
        if windows is None:
            return np.full((len(images), 1), -1, np.float32)
        assert windows.shape == (len(images), 8000)
        assert windows.dtype == np.float32
        spectra = np.abs(np.fft.rfft(windows))
        return (spectra.argmax(1)[:, None] * 2).astype(np.float32)


def pitch() -> Backbone:
    return Pitch()


class Means(nn.Module):
    """The mean colors, scaled by a weight."""

    size = (4, 6)
    mean, std, scale = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 4, 6)
        return images.mean((2, 3)) * self.weight


def means() -> nn.Module:
    return Means()


def unseeded() -> nn.Module:
    module = Means()
    nn.init.normal_(module.weight)
    return module


def weighted(weights: str | None = None) -> nn.Module:
    module = Means()
    if weights is not None:
        nn.init.constant_(module.weight, float(weights))
    return module


def needy(width: int, *, weights: str | None = None) -> nn.Module:
    return nn.Linear(width, width)


def sizeless() -> nn.Module:
    return nn.Identity()


def number() -> int:
    return 3


IMAGE = 3
MODULE = nn.Identity()
