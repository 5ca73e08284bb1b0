"""Thumbnails of a video for its page; PyAV and Pillow are in the extra `video`."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg.errors import DataError
from pyseg.video import DecodeReport, VideoInfo, probe, sample_frames
from pyseg.video.display import Converter, display_size
from pyseg.video.source import Source, opened

MOST = 40
"""The most thumbnails of a page."""

_HEIGHT = 54  # pixels on the page; the pictures have twice as many, for dense displays
_FEW = 16  # of a short video, frames of which are decoded
_SHORT = 120.0  # seconds

Pictures = Iterator[tuple[float, npt.NDArray[np.uint8]]]
"""Times in seconds, and images (H, W, 3)."""


class Thumbnail(NamedTuple):
    """A small picture of a video.

    Attributes:
        time: Its time in seconds.
        address: A JPEG file as a data address.
        width: Its width on the page in pixels.
    """

    time: float
    address: str
    width: float


def thumbnails(video: str) -> list[Thumbnail]:
    """Returns small pictures of a video, at about equal distances in the order of time.

    They are key frames, which are found without decoding others; of a short video, which may have
    a single one, any frames. Without the packages of the extra `video`, and of a file that cannot
    be decoded, there are none: a page is complete without them.

    Args:
        video: The file.
    """
    if any(importlib.util.find_spec(package) is None for package in ("av", "PIL")):
        return []
    try:
        info = probe(video)
        duration = info.duration or 0.0
        found = {time: _encode(time, image) for time, image in _key_frames(video, duration)}
        if len(found) < _FEW and 0 < duration <= _SHORT:
            found = {time: _encode(time, image) for time, image in _frames(video, info, duration)}
    except DataError:
        return []
    return [found[time] for time in sorted(found)]


def _key_frames(video: str, duration: float) -> Pictures:
    """Yields the key frames before equally spaced times."""
    import av

    with opened(video, DecodeReport()) as source:
        stream = source.video_stream()
        stream.codec_context.skip_frame = "NONKEY"
        convert: Converter | None = None
        first: int | None = None
        last = -1.0
        for number in range(MOST if duration else 1):
            ticks = int(duration * number / MOST / stream.time_base) + (first or 0)
            try:
                if number:
                    source.container.seek(ticks, stream=stream)
                frame = _next_frame(source, stream)
            except av.FFmpegError:
                continue
            if frame is None or (number and first is None):
                continue
            first = frame.pts if first is None else first
            time = float((frame.pts - first) * stream.time_base)
            if time > last:
                if convert is None:
                    height, width = display_size(frame, stream.sample_aspect_ratio)
                    convert = Converter(_size(height, width), crop=False)
                yield time, convert(frame, stream.sample_aspect_ratio)
                last = time


def _next_frame(source: Source, stream: Any) -> Any:
    """Returns the next frame that has a time; None at the end."""
    frames = source.container.decode(stream)
    return next((frame for frame in frames if frame.pts is not None), None)


def _frames(video: str, info: VideoInfo, duration: float) -> Pictures:
    """Yields frames at equally spaced times."""
    rate = _FEW / duration
    size = _size(info.height, info.width)
    for row, image in enumerate(sample_frames(video, fps=rate, size=size)):
        yield row / rate, image


def _size(height: int, width: int) -> tuple[int, int]:
    return 2 * _HEIGHT, max(1, round(2 * _HEIGHT * width / height))


def _encode(time: float, image: npt.NDArray[np.uint8]) -> Thumbnail:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=70)
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(round(time, 3), address, image.shape[1] / 2)
