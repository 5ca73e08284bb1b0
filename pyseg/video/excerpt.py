"""A part of a video, found without decoding what comes before it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError, DataError
from pyseg.video.display import Converter, Size, display_size
from pyseg.video.source import DecodeReport, Source, exact, opened, rounding

Image = npt.NDArray[np.uint8]

_BEFORE = (1, 20, 120)  # seconds before the part from which decoding is tried


def read_excerpt(
    path: str | os.PathLike[str],
    start: float,
    end: float,
    *,
    fps: float = 4.0,
    longest: int | None = None,
) -> list[Image]:
    """Returns the frames of a part of a video at regular times.

    Row k is the frame on display ``start + k / fps`` seconds after the first one, as in
    `sample_frames`, but the file is entered near ``start``: time and memory do not depend on how
    much comes before. Where a recording was joined from several, whose times jump, the times of the
    file count.

    Args:
        path: The video file.
        start: The first row's time in seconds.
        end: Rows are before this time; those after the video's end are left out.
        fps: Rows a second.
        longest: The most pixels of the longer side; larger frames are scaled down.

    Returns:
        Contiguous uint8 arrays (H, W, 3) in RGB order, upright and with square pixels: none if the
        video ends before ``start``.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: The file is no video, or no frame of it can be decoded.
        pyseg.errors.ArgumentError: An argument is invalid.
        pyseg.errors.UserError: PyAV is not installed.

    Example:
        >>> read_excerpt("no/such.mp4", 10, 15)
        Traceback (most recent call last):
        ...
        pyseg.errors.MissingFileError: no/such.mp4: expected a video, found no such file
    """
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise ArgumentError(f"start, end: expected 0 <= start < end, found {start} and {end}")
    if not (math.isfinite(fps) and fps > 0):
        raise ArgumentError(f"fps: expected a number above 0, found {fps}")
    if longest is not None and longest < 1:
        raise ArgumentError(f"longest: expected at least 1, found {longest}")
    begin, step = exact(start), 1 / exact(fps)
    times = [begin + k * step for k in range(math.ceil((exact(end) - begin) / step))]
    with opened(path, DecodeReport()) as source:
        part = _Part(source, longest)
        for seconds in _BEFORE:
            if begin > seconds and (rows := part.rows_after(begin - seconds, times)) is not None:
                return rows
    with opened(path, DecodeReport()) as source:
        return _Part(source, longest).rows_from_start(times)


class _Part:
    """Reads frames from a place in an opened file on; its times are seconds."""

    def __init__(self, source: Source, longest: int | None) -> None:
        self._source = source
        self._stream = stream = source.video_stream()
        stream.codec_context.thread_count = 1
        self._frames = source.frames(stream)
        self._first: Any = next(self._frames, None)
        if self._first is None:
            raise DataError(source.no_frame(stream))
        self._aspect = stream.sample_aspect_ratio
        size = _limited(display_size(self._first, self._aspect), longest)
        self._convert = Converter(size, crop=False)
        rate = stream.average_rate or stream.guessed_rate
        self._nominal = 1 / rate if rate else stream.time_base

    def rows_after(self, begin: Fraction, times: Sequence[Fraction]) -> list[Image] | None:
        """Returns the frames on display at some times, decoded from a key frame at `begin` on.

        Returns:
            The frames; None if none of the first time was found there.
        """
        import av

        base = self._stream.time_base
        ticks = int(begin / base) + (self._first.pts or 0)
        try:
            self._source.container.seek(ticks, stream=self._stream)
        except av.FFmpegError:
            return None
        frames = self._source.frames(self._stream)
        timed = self._timed(itertools.dropwhile(lambda frame: not frame.key_frame, frames))
        first = next(timed, None)
        if first is None or first[0] > times[0] or first[2].pts is None:
            return None
        return self._rows(itertools.chain([first], timed), times)

    def rows_from_start(self, times: Sequence[Fraction]) -> list[Image]:
        """Returns the frames on display at some times, decoded from the first frame on."""
        return self._rows(self._timed(itertools.chain([self._first], self._frames)), times)

    def _timed(self, frames: Iterable[Any]) -> Iterator[tuple[Fraction, Fraction, Any]]:
        """Yields frames with the times at which they start and end."""
        base, origin = self._stream.time_base, self._first.pts or 0
        start = end = Fraction(0)
        for frame in frames:
            time = end if frame.pts is None else (frame.pts - origin) * base
            if time >= start:  # else another frame is on display by then
                start, end = time, time + (frame.duration * base or self._nominal)
                yield start, end, frame

    def _rows(
        self, timed: Iterator[tuple[Fraction, Fraction, Any]], times: Sequence[Fraction]
    ) -> list[Image]:
        tolerance = rounding(self._stream.time_base)
        rows: list[Image] = []
        _, end, frame = next(timed)
        for following in itertools.chain(timed, [None]):
            until = end if following is None else following[0]
            image = None
            while len(rows) < len(times) and times[len(rows)] + tolerance < until:
                image = self._convert(frame, self._aspect) if image is None else image
                rows.append(image)
            if len(rows) == len(times) or following is None:
                break
            _, end, frame = following
        return rows


def _limited(size: Size, longest: int | None) -> Size:
    """Returns a size that is scaled down, if need be, so that no side is longer than `longest`."""
    if longest is None or max(size) <= longest:
        return size
    height, width = (max(1, round(side * longest / max(size))) for side in size)
    return height, width
