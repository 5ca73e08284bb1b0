"""What a backbone is; see `pyseg.backbones.Backbone`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg.data import BackboneInfo


@dataclass(frozen=True)
class AudioWindows:
    """The windows of a video's sound that a backbone takes, one for each of its rows.

    The window of the row at time t starts at t or, with a hop, at the last multiple of the hop
    that is not after t. What is missing at the end of the sound is zero.

    Attributes:
        seconds: The duration of a window.
        hop: The time from one window to the next; None: windows start where the rows do.
        rate: Samples a second, of one channel.

    Example:
        >>> AudioWindows(seconds=0.96).samples
        15360
    """

    seconds: float
    hop: float | None = None
    rate: int = 16_000

    @property
    def samples(self) -> int:
        """The number of samples of a window, S."""
        return round(self.seconds * self.rate)


class Backbone(ABC):
    """A network that computes the features of frames.

    Subclasses set the attributes and define `__call__`. What `pyseg.backbones.make_backbone`
    returns is one; so may be what a factory returns, for ``--backbone module:factory``.

    Attributes:
        name: What ``--backbone`` was given, such as "timm:vit_small_patch14_dinov2".
        weights: What ``--weights`` was given, with the whole path; None: nothing.
        location: The whole path of the file or folder that the name gives; None: it gives none.
        features: The name and the width of each feature, in the order of a row's values.
        size: (H, W) of the images that it takes; None: any.
        crop: Whether images are resized to cover the size, and their center is cut out; otherwise
            they are stretched to it.
        sha256: The digest of its weights.
        preprocessing: How an image becomes its input, as JSON values; `features.json` records it.
        ranges: (low, high) of each feature's values where they are known beforehand; None: they
            are found in the first videos.
        audio: The windows of sound that it takes; None: it takes none.
    """

    name: str = ""
    weights: str | None = None
    location: str | None = None
    features: tuple[tuple[str, int], ...]
    size: tuple[int, int] | None = None
    crop: bool = False
    sha256: str
    preprocessing: Mapping[str, Any]
    ranges: tuple[tuple[float, float], ...] | None = None
    audio: AudioWindows | None = None

    @property
    def width(self) -> int:
        """The length of a row, the sum of the features' widths."""
        return sum(width for _, width in self.features)

    @property
    def description(self) -> BackboneInfo:
        """What `features.json` says about it."""
        told = {"size": self.size, "crop": self.crop, **self.preprocessing}
        plain = json.loads(json.dumps(told))
        return BackboneInfo(self.name, self.sha256, plain, self.weights, self.location)

    @abstractmethod
    def __call__(
        self, images: npt.NDArray[np.uint8], windows: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        """Returns the features (B, width) of frames.

        Args:
            images: (B, H, W, 3) RGB.
            windows: (B, S) samples in [-1, 1], see `audio`; None where it takes no sound, or the
                video has none.
        """
