"""The frames of a video at regular times."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError, DataError
from pyseg.video.display import Converter, Size
from pyseg.video.source import (
    DecodeReport,
    Jumps,
    Source,
    checked_file,
    exact,
    opened,
    rounding,
)

_HIGHEST_FPS = 1000
_MISSING = Fraction(1, 4)  # seconds at the end without which a file counts as truncated


def sample_frames(
    path: str | os.PathLike[str],
    *,
    fps: float | Fraction = 1.0,
    size: Size | None = None,
    crop: bool = False,
    fast: bool = False,
    threads: int = 1,
    report: DecodeReport | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames of a video that are on display at regular times.

    Row k is what a player shows k / fps seconds after the first frame: the last frame that starts
    no later. Start offsets and edit lists are applied, gaps repeat a frame, and so there are
    ceil(duration * fps) rows, whatever the frame rate. Frames are upright (rotated and mirrored as
    the file says) and have square pixels. Memory does not grow with the length of the video.

    A damaged video yields what can be decoded, at the right times; the report counts the damage.
    Times are exact: a time that the container has rounded, to 1 ms in Matroska, counts as equal
    to k / fps where rounding explains the difference.

    Args:
        path: The video file.
        fps: Rows a second.
        size: Height and width of the rows, by bilinear interpolation; default: the display size of
            the first frame.
        crop: Keep the aspect: scale until the frame covers ``size`` and cut out its centre. Without
            it, the frame is stretched.
        fast: Do not decode frames that no other frame refers to: about a quarter less time, but
            rows may show a neighbouring frame.
        threads: Threads of the decoder; 0: one per core.
        report: Updated while frames are yielded; complete after the last one.

    Yields:
        Contiguous uint8 arrays (H, W, 3) in RGB order; none shares memory with another.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: The file is no video, or no frame of it can be decoded.
        pyseg.errors.ArgumentError: An argument is invalid.
        pyseg.errors.UserError: PyAV is not installed.

    Example:
        >>> from pyseg.video import sample_frames
        >>> next(sample_frames("no/such.mp4"))
        Traceback (most recent call last):
        ...
        pyseg.errors.MissingFileError: no/such.mp4: expected a video, found no such file
    """
    rate = _checked_rate(fps)
    _check_size(size, crop)
    if threads < 0:
        raise ArgumentError(f"threads: expected 0 or more, found {threads}")
    checked_file(path)
    report = DecodeReport() if report is None else report
    return _sample(path, rate, size, crop, fast, threads, report)


def _checked_rate(fps: float | Fraction) -> Fraction:
    """Returns the rate as a fraction, see `exact`."""
    rate = Fraction(0)
    if isinstance(fps, Fraction):
        rate = fps
    elif math.isfinite(fps):
        rate = exact(fps)
    if not 0 < rate <= _HIGHEST_FPS:
        raise ArgumentError(
            f"fps: expected a number above 0 and of at most {_HIGHEST_FPS}, found {fps}"
        )
    return rate


def _check_size(size: Size | None, crop: bool) -> None:
    if size is None:
        if crop:
            raise ArgumentError("crop: expected a size to crop to, found size=None")
        return
    if len(size) != 2 or min(size) < 1:
        raise ArgumentError(f"size: expected (height, width) of at least 1, found {size}")


def _sample(
    path: str | os.PathLike[str],
    rate: Fraction,
    size: Size | None,
    crop: bool,
    fast: bool,
    threads: int,
    report: DecodeReport,
) -> Iterator[npt.NDArray[np.uint8]]:
    with opened(path, report) as source:
        stream = source.video_stream()
        context = stream.codec_context
        context.thread_count = threads
        if threads != 1:
            context.thread_type = "AUTO"
        if fast:
            context.skip_frame = "NONREF"
        convert = Converter(size, crop)
        ticks = _row_ticks(rate, stream.time_base)
        limit = next(ticks)
        shown: Any = None
        for time, frame in _Clock(source, stream, fast).timed():
            if limit < time:
                image = convert(shown, stream.sample_aspect_ratio)
                while limit < time:
                    report.rows += 1
                    yield image.copy()
                    limit = next(ticks)
            shown = frame


def _row_ticks(rate: Fraction, time_base: Fraction) -> Iterator[int]:
    """Yields the last tick at which a frame of each row may start."""
    start = rounding(time_base) / time_base
    step = 1 / (rate * time_base)
    denominator = start.denominator * step.denominator
    value, increment = int(start * denominator), int(step * denominator)
    while True:
        yield value // denominator
        value += increment


class _Clock:
    """The times of a video's frames, in ticks of its time base since the first one."""

    def __init__(self, source: Source, stream: Any, fast: bool) -> None:
        self._source = source
        self._stream = stream
        self._fast = fast
        rate = stream.average_rate or stream.guessed_rate
        self._nominal = max(1, round(1 / (rate * stream.time_base))) if rate else 1
        self._first = 0
        self._last = 0  # the time of the last frame
        self._next = 0  # the time at which it ends

    def timed(self) -> Iterator[tuple[int, Any]]:
        """Yields frames with their times, which never decrease, and None with the end of the last.

        Raises:
            pyseg.errors.DataError: There is no frame.
        """
        frames = self._source.frames(self._stream)
        first = next(frames, None)
        if first is None:
            raise DataError(self._source.no_frame(self._stream))
        self._first = first.pts or 0
        jumps = Jumps(self._source, self._stream, self._first)
        for frame in itertools.chain([first], frames):
            time = self._next if frame.pts is None else jumps.corrected(frame.pts, self._next)
            if time < self._last:
                continue  # another frame is on display by then
            self._last = time
            self._next = time + (frame.duration or self._nominal)
            yield time, frame
        yield self._finish(jumps), None

    def _finish(self, jumps: Jumps) -> int:
        """Completes the report; returns the end of the last frame."""
        source, stream, report = self._source, self._stream, self._source.report
        base = stream.time_base
        end = self._next
        came = source.end_of_packets(stream)
        if self._fast and came is not None:  # the last frames may have been left out
            end = max(end, jumps.corrected(int(came / base), end))
        report.duration = float(end * base)
        stated = source.stated_end(stream)
        if stated is not None:
            stated_end, of_stream = stated
            report.expected = float(stated_end - self._first * base)
            reached = came if of_stream else source.end_of_packets()
            if reached is not None and stated_end - reached > _MISSING:
                report.truncated = True
        return end
