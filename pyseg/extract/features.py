"""The features of one video."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyseg._threads import read_ahead
from pyseg.backbones import AudioWindows, Backbone
from pyseg.data import FeatureSet
from pyseg.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from pyseg.video import DecodeReport

_MOST_BYTES = 1 << 25  # of the images of a batch, unless a single one is larger


def extract_features(
    path: str | os.PathLike[str],
    backbone: Backbone,
    features: FeatureSet,
    *,
    batch_size: int = 32,
    report: DecodeReport | None = None,
) -> npt.NDArray[np.uint8]:
    """Returns the features of a video as the records of a collection store them.

    Args:
        path: The video.
        backbone: The network that computed the features of the collection.
        features: The features of the collection, whose times and ranges apply.
        batch_size: Frames that the network gets at once.
        report: Receives what was found while decoding.

    Returns:
        (T, width) uint8: row k belongs to the frame on display at k * ``features.frame_seconds``.

    Raises:
        pyseg.errors.ArgumentError: The backbone is another one than that of the features.
        pyseg.errors.DataError: The file holds no video that can be decoded; the message names it.
        OSError: The file cannot be read.
    """
    check_backbone(backbone, features)
    rows = read_rows(
        path, backbone, 1 / features.frame_seconds, batch_size=batch_size, report=report
    )
    parts = [features.quantize(part)[0] for part in rows]
    return np.concatenate(parts) if parts else np.empty((0, backbone.width), np.uint8)


def check_backbone(backbone: Backbone, features: FeatureSet) -> None:
    """Checks that a backbone is the one that computed the features of a collection.

    Raises:
        pyseg.errors.ArgumentError: It has other weights, preprocessing or features.
    """
    made, here = features.backbone, backbone.description
    if made is None:
        raise ArgumentError("backbone: expected features of a known backbone, found none recorded")
    if made.sha256 != here.sha256:
        raise ArgumentError(f"backbone: expected the collection's {made}, found {here}")
    for what, expected, found in (
        ("the preprocessing", dict(made.preprocessing), dict(here.preprocessing)),
        ("the features", list(features.features), list(backbone.features)),
    ):
        if expected != found:
            raise ArgumentError(
                f"backbone: expected {what} {expected}, as the collection's {made.name} has, found "
                f"{found} of {here.name}"
            )


def read_rows(
    path: str | os.PathLike[str],
    backbone: Backbone,
    fps: float,
    *,
    batch_size: int = 32,
    fast: bool = False,
    max_seconds: float | None = None,
    report: DecodeReport | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the features of a video's frames, some rows at a time; a thread decodes ahead.

    Args:
        path: The video.
        backbone: The network.
        fps: Rows a second: row k belongs to the frame on display at k / fps.
        batch_size: Frames that the network gets at once, fewer where images are large.
        fast: Decode only frames that others refer to; rows may show a neighboring frame.
        max_seconds: Stop after the rows of so many seconds; None: at the video's end.
        report: Receives what was found while decoding.

    Yields:
        (B, width) finite values.

    Raises:
        pyseg.errors.DataError: The file holds no video that can be decoded, or a value is not
            finite; the message names the file.
        OSError: The file cannot be read.
    """
    first = 0
    most = None if max_seconds is None else math.ceil(max_seconds * fps - 1e-9)
    batches = _batches(path, backbone, fps, batch_size, fast, most, report)
    for images, windows in read_ahead(batches):
        rows = np.asarray(backbone(images, windows), np.float32)
        if rows.shape != (len(images), backbone.width):
            raise ArgumentError(
                f"backbone: expected features of shape {(len(images), backbone.width)} from "
                f"{backbone.name}, found {rows.shape}"
            )
        if not np.isfinite(rows).all():
            row = first + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise DataError(
                f"{os.fspath(path)}: expected finite features, found NaN or infinite ones at "
                f"{row / fps:.2f} s"
            )
        first += len(rows)
        yield rows


def _batches(
    path: str | os.PathLike[str],
    backbone: Backbone,
    fps: float,
    batch_size: int,
    fast: bool,
    most: int | None,
    report: DecodeReport | None,
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None]]:
    """Yields the images and, where the backbone takes them, the windows of sound of some rows.

    It ends after `most` rows, unless that is None.
    """
    from pyseg.video import read_audio, sample_frames

    frames = sample_frames(
        path, fps=fps, size=backbone.size, crop=backbone.crop, fast=fast, report=report
    )
    sound: Iterator[npt.NDArray[np.float32]] | None = None
    if backbone.audio is not None:
        blocks = read_audio(path, rate=backbone.audio.rate, required=False)
        if (block := next(blocks, None)) is not None:
            sound = audio_windows(itertools.chain([block], blocks), backbone.audio, fps)
    frames = itertools.islice(frames, most)
    for first in frames:
        size = max(1, min(batch_size, _MOST_BYTES // first.nbytes))
        images = [first, *itertools.islice(frames, size - 1)]
        windows = None if sound is None else np.stack([next(sound) for _ in images])
        yield np.stack(images), windows


def audio_windows(
    blocks: Iterable[npt.NDArray[np.float32]], audio: AudioWindows, fps: float
) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the window of each row k, without end; after the end of the sound all is zero.

    Args:
        blocks: The samples from the first frame on, in blocks of any length.
        audio: The windows.
        fps: Rows a second.

    Example:
        >>> audio = AudioWindows(seconds=1.0, rate=4)
        >>> blocks = [np.arange(3, dtype=np.float32), np.arange(3, 7, dtype=np.float32)]
        >>> for window in itertools.islice(audio_windows(blocks, audio, fps=2), 4):
        ...     print(window)
        [0. 1. 2. 3.]
        [2. 3. 4. 5.]
        [4. 5. 6. 0.]
        [6. 0. 0. 0.]
    """
    source = iter(blocks)
    held, start = np.empty(0, np.float32), 0  # the samples from number `start` on
    for row in itertools.count():
        time = row / fps
        if audio.hop is not None:
            time = math.floor(time / audio.hop + 1e-9) * audio.hop
        first = round(time * audio.rate)
        while start + len(held) < first + audio.samples:
            held, start = held[max(0, first - start) :], max(start, min(first, start + len(held)))
            block = next(source, None)
            if block is None:
                break
            held = np.concatenate([held, block])
        window = np.zeros(audio.samples, np.float32)
        part = held[max(0, first - start) :][: audio.samples]
        window[: len(part)] = part
        yield window
