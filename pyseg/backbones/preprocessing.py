"""How images become the input of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseg._containers import is_number
from pyseg._registry import unknown
from pyseg.errors import DataError

Size = tuple[int, int]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The mean and deviation of ImageNet's colors, in [0, 1], which most networks expect."""

_MOST_PIXELS = 1 << 13


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network: resizing, cropping, scaling.

    Images are resized, bilinearly, to ``resize``; the center of ``size`` is cut out; a pixel p of a
    channel becomes (p * scale - mean) / std.

    Attributes:
        size: (H, W) of the network's input.
        crop: Whether resizing keeps the aspect, so that the image covers ``resize`` and the rest is
            cut off; otherwise the image is stretched.
        resize: (H, W) that the image is resized to first; None: ``size``.
        mean: Of red, green and blue.
        std: Their deviations.
        scale: The factor of pixels, before the mean is subtracted.

    Example:
        >>> half = Preprocessing((2, 2), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> half(np.full((1, 2, 2, 3), 255, np.uint8))[0, 0].tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    size: Size
    crop: bool = False
    resize: Size | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    scale: float = 1 / 255

    @property
    def image_size(self) -> Size:
        """(H, W) of the images that it takes."""
        return self.resize or self.size

    def __call__(self, images: npt.NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
        """Returns the network's input (B, 3, H, W), float32, of images (B, H, W, 3)."""
        pixels = torch.from_numpy(self.cut(images)).to(device).permute(0, 3, 1, 2)
        std = torch.tensor(self.std, device=device).view(3, 1, 1)
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        values = torch.empty(pixels.shape, device=device)
        torch.mul(pixels, self.scale / std, out=values)
        return values.sub_(mean / std)

    def cut(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns the centers of images (B, H, W, 3)."""
        (top, left), (height, width) = (
            [(a - b) // 2 for a, b in zip(self.image_size, self.size, strict=True)],
            self.size,
        )
        return images[:, top : top + height, left : left + width]

    def described(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "size": list(self.size),
            "crop": self.crop,
            "resize": list(self.image_size),
            "interpolation": "bilinear",
            "mean": list(self.mean),
            "std": list(self.std),
            "scale": self.scale,
        }


def parse_preprocessing(content: object, name: str, size: Size | None = None) -> Preprocessing:
    """Returns the preprocessing of a JSON object with the names of its attributes.

    Args:
        content: The object; what it lacks has the default.
        name: What it was read from, for messages.
        size: The default size.

    Raises:
        pyseg.errors.DataError: The content is something else.
    """
    if not isinstance(content, Mapping):
        raise DataError(f"{name}: expected a JSON object, found {type(content).__name__}")
    known = list(Preprocessing.__dataclass_fields__)
    for key in content:
        if key not in known:
            raise DataError(f"{name}: {unknown('entry', key, known)}")
    given: dict[str, Any] = {"size": size, **content}
    for key in ("size", "resize"):
        if (value := given.get(key)) is not None:
            given[key] = _pair(value, f"{name}: {key}")
    for key in ("mean", "std"):
        if key in given:
            given[key] = _colors(given[key], f"{name}: {key}")
    _check_numbers(given, name)
    made = Preprocessing(**given)
    if any(a < b for a, b in zip(made.image_size, made.size, strict=True)):
        raise DataError(
            f"{name}: resize: expected at least the size {made.size}, found {made.resize}"
        )
    return made


def _check_numbers(given: Mapping[str, Any], name: str) -> None:
    if given["size"] is None:
        raise DataError(f"{name}: expected size, as [224, 224], found none")
    if not isinstance(given.get("crop", False), bool):
        raise DataError(f"{name}: crop: expected true or false, found {given['crop']!r}")
    if "scale" in given and not is_number(given["scale"]):
        raise DataError(f"{name}: scale: expected a number, found {given['scale']!r}")
    if 0 in given.get("std", ()):
        raise DataError(f"{name}: std: expected numbers other than 0, found {given['std']}")


def _pair(value: object, name: str) -> Size:
    pair = [value, value] if type(value) is int else value
    if (
        not isinstance(pair, (list, tuple))
        or len(pair) != 2
        or not all(type(number) is int and 1 <= number <= _MOST_PIXELS for number in pair)
    ):
        raise DataError(f"{name}: expected [height, width], found {value!r}")
    height, width = pair
    return height, width


def _colors(value: object, name: str) -> tuple[float, ...]:
    numbers = [value] * 3 if is_number(value) else value
    if (
        not isinstance(numbers, (list, tuple))
        or len(numbers) != 3
        or not all(map(is_number, numbers))
    ):
        raise DataError(f"{name}: expected a number for each of three colors, found {value!r}")
    return tuple(map(float, numbers))
