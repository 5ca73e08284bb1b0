"""What the features of a collection are: ``features.json`` beside its records, and in every run.

See :class:`FeatureSet`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg._containers import is_number, read_json
from pyseg._files import write_file
from pyseg._paths import path_text
from pyseg.data.records import FrameSchema
from pyseg.errors import ArgumentError, DataError
from pyseg.ops.frames import RANGE, values_of_bytes

FILE = "features.json"
FORMAT_VERSION = 1
_BLOCK = 1 << 20  # values quantized at once


@dataclass(frozen=True)
class BackboneInfo:
    """The network that computed the features.

    Attributes:
        name: What ``--backbone`` was given, such as "timm:vit_small_patch14_dinov2".
        sha256: The digest of its weights.
        preprocessing: How an image becomes its input, as JSON values.
        weights: What ``--weights`` was given, with the whole path, if anything.
        location: The whole path of the file or folder that the name gives, if it gives one.

    Example:
        >>> print(BackboneInfo("net.onnx", "0" * 64, {}, location="/films/net.onnx"))
        net.onnx (/films/net.onnx, digest 000000000000)
    """

    name: str
    sha256: str
    preprocessing: Mapping[str, Any] = field(hash=False)
    weights: str | None = field(default=None, compare=False)
    location: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Its name, where it lies, and the beginning of the digest."""
        place = self.location or self.weights
        where = f"{place}, " if place and place != self.name else ""
        return f"{self.name} ({where}digest {self.sha256[:12]})"


@dataclass(frozen=True)
class FeatureSet:
    """The features of frames: names, widths, times, and how bytes stand for values.

    Feature f stores a value x of its range [low, high] as the byte floor((x - low) * 255 / (high -
    low)); byte q stands for q * (high - low) / 255 + low + (high - low) / 512. With the range
    [-2, 2] these are the formulas of YouTube-8M's extractor and starter code.

    Attributes:
        features: The name and the width of each feature, in the order of a frame's values.
        frame_seconds: The time from one frame to the next, in seconds.
        segment_size: Frames of a segment, the unit of ratings and predictions.
        ranges: (low, high) of each feature; default: [-2, 2].
        backbone: The network that computed them, if known.
        sampling: The rule by which frames were sampled from a video, in words, if known.
        id_key: The context feature of a record with the id.

    Example:
        >>> clip = FeatureSet((("clip", 2),), frame_seconds=0.5, ranges=((0.0, 1.0),))
        >>> stored, clipped = clip.quantize(np.array([[0.0, 0.25], [1.0, 1.5]]))
        >>> stored.tolist(), clipped
        ([[0, 63], [255, 255]], 1)
        >>> print(clip.dequantize(stored)[0].round(3))
        [0.002 0.249]
    """

    features: tuple[tuple[str, int], ...]
    frame_seconds: float = 1.0
    segment_size: int = 5
    ranges: tuple[tuple[float, float], ...] = ()
    backbone: BackboneInfo | None = None
    sampling: str | None = None
    id_key: str = "id"

    def __post_init__(self) -> None:
        """Checks the values."""
        _ = self.schema  # checks what it has
        if not self.features:
            raise ArgumentError("features: expected at least one, found none")
        if not is_number(self.frame_seconds) or self.frame_seconds <= 0:
            raise ArgumentError(
                f"frame_seconds: expected a number above 0, found {self.frame_seconds!r}"
            )
        if not self.ranges:
            object.__setattr__(self, "ranges", (RANGE,) * len(self.features))
        if len(self.ranges) != len(self.features):
            raise ArgumentError(
                f"ranges: expected one for each of {len(self.features)} features, found "
                f"{len(self.ranges)}"
            )
        for (name, _), (low, high) in zip(self.features, self.ranges, strict=True):
            if not (is_number(low) and is_number(high) and low < high < high + (high - low)):
                raise ArgumentError(
                    f"ranges: expected low < high for {name}, found {low!r}, {high!r}"
                )

    @property
    def schema(self) -> FrameSchema:
        """The schema of its records."""
        return FrameSchema(self.features, self.id_key, segment_size=self.segment_size)

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """The widths of the features."""
        return tuple(width for _, width in self.features)

    @property
    def has_own_ranges(self) -> bool:
        """Whether the range of a feature is another than [-2, 2]."""
        return any(limits != RANGE for limits in self.ranges)

    @property
    def segment_seconds(self) -> float:
        """The duration of a segment in seconds."""
        return self.segment_size * self.frame_seconds

    def differences(self, other: FeatureSet, *, same_level: bool = True) -> list[str]:
        """Returns in what another set differs, with the names of ``features.json``.

        Weights of backbones are compared where both are known; the names of ids and the rule of
        sampling are not.

        Args:
            other: The other set.
            same_level: Whether both are of frames, or both of means of whole videos; if not, only
                the widths are compared.

        Example:
            >>> clip = FeatureSet((("clip", 512),))
            >>> clip.differences(replace(clip, frame_seconds=0.5))
            ['frame_seconds: expected 1.0, found 0.5']
        """
        if not same_level:
            compared: dict[str, tuple[object, object]] = {
                "widths": (self.feature_sizes, other.feature_sizes)
            }
        else:
            compared = {
                "features": (self._columns(), other._columns()),
                "frame_seconds": (self.frame_seconds, other.frame_seconds),
                "segment_size": (self.segment_size, other.segment_size),
            }
            if self.features == other.features:
                compared["ranges"] = self._named_ranges(), other._named_ranges()
            mine, others = self.backbone, other.backbone
            if mine is not None and others is not None and mine.sha256 != others.sha256:
                compared["backbone"] = mine, others
        return [
            f"{name}: expected {expected}, found {found}"
            for name, (expected, found) in compared.items()
            if expected != found
        ]

    def _columns(self) -> str:
        return ", ".join(f"{name} ({width})" for name, width in self.features)

    def _named_ranges(self) -> str:
        pairs = zip(self.features, self.ranges, strict=True)
        return ", ".join(f"{name} from {low!r} to {high!r}" for (name, _), (low, high) in pairs)

    def quantize(self, values: npt.ArrayLike) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns the bytes of values, and how many values were outside of their range.

        Args:
            values: (T, width) numbers, the features side by side; those outside are clipped.

        Returns:
            (T, width) uint8, and the number of clipped values.

        Raises:
            pyseg.errors.ArgumentError: The shape differs, or a value is not finite.
        """
        array = np.asarray(values)
        width = sum(self.feature_sizes)
        if array.ndim != 2 or array.shape[1] != width:
            raise ArgumentError(f"values: expected shape (T, {width}), found {array.shape}")
        low, high = self.limits()
        stored, clipped = np.empty(array.shape, np.uint8), 0
        rows = max(1, _BLOCK // width)  # the values may be mapped from a file larger than memory
        for first in range(0, len(array), rows):
            block = array[first : first + rows].astype(np.float32)
            if not np.isfinite(block).all():
                raise ArgumentError("values: expected finite numbers, found NaN or infinite ones")
            clipped += int(np.count_nonzero((block < low) | (block > high)))
            # float64, in which a range's highest value always is the byte 255.
            steps = (np.clip(block, low, high) - low) * np.float64(255) / (high - low)
            stored[first : first + rows] = np.floor(steps)
        return stored, clipped

    def dequantize(self, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Returns the values that bytes (..., width) stand for."""
        scale, offset = values_of_bytes(*self.limits())
        return stored * scale + offset

    def with_ranges_of(self, samples: Iterable[npt.ArrayLike]) -> FeatureSet:
        """Returns the set with each feature's range from the least to the largest sample.

        Args:
            samples: Arrays (T, width) of finite values, the features side by side.

        Raises:
            pyseg.errors.ArgumentError: There is no value.
        """
        lows = np.full(len(self.features), np.inf)
        highs = -lows
        ends = np.cumsum(self.feature_sizes)[:-1]
        for sample in samples:
            for column, part in enumerate(np.split(np.asarray(sample), ends, axis=1)):
                if part.size:
                    lows[column] = min(lows[column], part.min())
                    highs[column] = max(highs[column], part.max())
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            raise ArgumentError("samples: expected finite values of every feature, found none")
        ranges = []
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            if not high - low > 1e-6 * max(abs(low), abs(high)):  # a constant needs some width
                low, high = low - max(1.0, abs(low)), high + max(1.0, abs(high))
            ranges.append((low, high))
        return replace(self, ranges=tuple(ranges))

    def limits(
        self, dtype: npt.DTypeLike = np.float32
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Returns the lows and highs of a frame's values, (width,) each."""
        limits = np.repeat(np.array(self.ranges, dtype), self.feature_sizes, axis=0)
        return limits[:, 0], limits[:, 1]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the set as JSON."""
        from pyseg import __version__

        described: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "features": [
                {"name": name, "width": width, "low": low, "high": high}
                for (name, width), (low, high) in zip(self.features, self.ranges, strict=True)
            ],
            "frame_seconds": self.frame_seconds,
            "segment_size": self.segment_size,
            "id_key": self.id_key,
            "sampling": self.sampling,
            "backbone": None if self.backbone is None else dict(vars(self.backbone)),
            "pyseg": __version__,
        }
        write_file(Path(path_text(path)), (json.dumps(described, indent=1) + "\n").encode())

    @staticmethod
    def read(path: str | os.PathLike[str]) -> FeatureSet:
        """Reads what `write` has written.

        Raises:
            pyseg.errors.DataError: The content is something else; the message names the file.
            OSError: The file cannot be read.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp(), FILE)
            >>> FeatureSet((("clip", 512),)).write(path)
            >>> FeatureSet.read(path).segment_seconds
            5.0
        """
        name = path_text(path, remote=True)
        content = read_json(path)
        if not isinstance(content, dict):
            raise DataError(f"{name}: expected a JSON object, found {type(content).__name__}")
        if (version := content.get("format_version")) != FORMAT_VERSION:
            raise DataError(f"{name}: format_version: expected {FORMAT_VERSION}, found {version!r}")
        features = _get(content, "features", list, name)
        columns = [
            tuple(
                _get(feature, key, kind, f"{name}: features")
                for key, kind in (("name", str), ("width", int), ("low", float), ("high", float))
            )
            for feature in features
        ]
        backbone = _get(content, "backbone", dict, name, optional=True)
        try:
            return FeatureSet(
                features=tuple((name, width) for name, width, _, _ in columns),
                frame_seconds=_get(content, "frame_seconds", float, name),
                segment_size=_get(content, "segment_size", int, name),
                ranges=tuple((low, high) for _, _, low, high in columns),
                backbone=backbone
                and BackboneInfo(
                    _get(backbone, "name", str, f"{name}: backbone"),
                    _get(backbone, "sha256", str, f"{name}: backbone"),
                    _get(backbone, "preprocessing", dict, f"{name}: backbone"),
                    _get(backbone, "weights", str, f"{name}: backbone", optional=True),
                    _get(backbone, "location", str, f"{name}: backbone", optional=True),
                ),
                sampling=_get(content, "sampling", str, name, optional=True),
                id_key=_get(content, "id_key", str, name),
            )
        except ArgumentError as error:
            raise DataError(f"{name}: {error}") from error


def _get(content: object, key: str, kind: type, name: str, *, optional: bool = False) -> Any:
    """Returns an entry of a JSON object, of the given type; a float may be written as an int."""
    value = content.get(key) if isinstance(content, dict) else content
    kinds = (int, float) if kind is float else (kind,)
    if optional and value is None:
        return None
    if type(value) not in kinds:
        raise DataError(f"{name}: {key}: expected {kind.__name__}, found {value!r}")
    return value
