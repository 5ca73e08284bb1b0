"""How a decoded frame is shown: upright, with square pixels, in RGB and in a given size."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]
"""Height and width."""

_PLAUSIBLE = 0.1, 10  # of a pixel; another aspect is a mistake in the file


@dataclass(frozen=True)
class Orientation:
    """How the rows and columns of a frame are shown, in this order.

    Attributes:
        transposed: Rows are shown as columns.
        flipped: The order of the rows is reversed.
        mirrored: The order of the columns is reversed.
    """

    transposed: bool = False
    flipped: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """Returns that of a frame, from its display matrix.

        The matrix moves the pixel at (x, y) to (a x + c y, b x + d y); of other angles than
        multiples of 90 degrees, the next of them is taken.
        """
        side_data: Mapping[str, Any] = frame.side_data
        matrix = side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, d < 0, a < 0)
        return cls(True, b < 0, c < 0)

    @property
    def rotation(self) -> int:
        """Degrees, counterclockwise, of the rotation that follows any mirroring of columns."""
        if self.transposed:
            return 270 if self.mirrored else 90
        return 180 if self.flipped else 0

    def shown(self, size: Size) -> Size:
        """Returns the size of a frame as it is shown; also the other way round."""
        return size[::-1] if self.transposed else size

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns a view of an image (H, W, 3) as it is shown."""
        if self.transposed:
            image = image.transpose(1, 0, 2)
        rows = slice(None, None, -1 if self.flipped else 1)
        columns = slice(None, None, -1 if self.mirrored else 1)
        return image[rows, columns]


def display_size(frame: Any, pixel_aspect: Fraction | None) -> Size:
    """Returns the size of a frame as it is shown: upright, the pixels square, the height kept."""
    aspect = pixel_aspect or 1
    if not _PLAUSIBLE[0] <= aspect <= _PLAUSIBLE[1]:
        aspect = 1
    width = max(1, round(frame.width * aspect))
    return Orientation.of(frame).shown((frame.height, width))


class Converter:
    """Converts frames to RGB images of one size.

    Args:
        size: Height and width of the images; default: the display size of the first frame.
        crop: Keep the aspect: the image covers `size`, and its centre is cut out.
    """

    def __init__(self, size: Size | None, crop: bool) -> None:
        from av.video.reformatter import VideoReformatter

        self._size = size
        self._crop = crop
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any, pixel_aspect: Fraction | None) -> npt.NDArray[np.uint8]:
        """Returns a frame as an array (H, W, 3), contiguous and its own."""
        shown = display_size(frame, pixel_aspect)
        self._size = size = self._size or shown
        scaled = _covering(shown, size) if self._crop else size
        orientation = Orientation.of(frame)
        height, width = orientation.shown(scaled)
        image = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation="BILINEAR", threads=1
        )
        pixels: Any = image.to_ndarray()
        array = orientation.apply(pixels)
        top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
        return np.ascontiguousarray(array[top : top + size[0], left : left + size[1]])


def _covering(shown: Size, size: Size) -> Size:
    """Returns the smallest size of the aspect of `shown` that covers `size`."""
    scale = max(Fraction(size[0], shown[0]), Fraction(size[1], shown[1]))
    return max(size[0], round(shown[0] * scale)), max(size[1], round(shown[1] * scale))
