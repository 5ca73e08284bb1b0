"""The sound of a video, on the clock of its frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError, DataError
from pyseg.video.source import DecodeReport, Jumps, Source, checked_file, opened

_DRIFT = Fraction(1, 20)  # seconds between a frame's time and the samples so far that are corrected

Samples = npt.NDArray[np.float32]


def read_audio(
    path: str | os.PathLike[str], rate: int = 16000, *, required: bool = True
) -> Iterator[Samples]:
    """Yields the sound of a video or audio file, mixed to one channel and resampled.

    Sample k is heard k / rate seconds after the first frame of the video: sound before it is cut
    off, and silence (0) stands where there is no sound, at the start or in a gap. It ends with the
    sound, which may be before or after the last frame. A file without video starts with its sound.
    One channel is the mean of all. Memory does not grow with the length.

    Args:
        path: The file.
        rate: Samples a second.
        required: Whether a file without sound is an error; else nothing is yielded.

    Yields:
        Blocks of ``rate`` samples, float32 in [-1, 1]; the last may be shorter.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: The file cannot be read, or has no sound.
        pyseg.errors.ArgumentError: The rate is not positive.
        pyseg.errors.UserError: PyAV is not installed.
    """
    if rate < 1:
        raise ArgumentError(f"rate: expected at least 1, found {rate}")
    checked_file(path)
    return _blocks(_samples(path, rate, required), rate)


def _blocks(pieces: Iterator[Samples], length: int) -> Iterator[Samples]:
    """Yields the samples of `pieces` in blocks of one length."""
    waiting: list[Samples] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        while count >= length:
            joined = np.concatenate(waiting)
            yield joined[:length].copy()
            waiting, count = [joined[length:]], count - length
    if count:
        yield np.concatenate(waiting)


def _samples(path: str | os.PathLike[str], rate: int, required: bool) -> Iterator[Samples]:
    start = _first_frame_time(path)
    with opened(path, DecodeReport()) as source:
        stream = source.audio_stream()
        if stream is None:
            if required:
                raise DataError(f"{source.path}: expected sound, found no audio stream")
            return
        yield from _placed(source, stream, start, rate)


def _first_frame_time(path: str | os.PathLike[str]) -> Fraction | None:
    """Returns the time of the first video frame in seconds, None if there is no video."""
    with opened(path, DecodeReport()) as source:
        if not source.has_video():
            return None
        stream = source.video_stream()
        stream.codec_context.thread_count = 1
        frame = next(source.frames(stream), None)
        if frame is None:
            return None
        return (frame.pts or 0) * stream.time_base


def _placed(source: Source, stream: Any, start: Fraction | None, rate: int) -> Iterator[Samples]:
    """Yields samples such that each stands at its time after `start`."""
    resampler, track = _Resampler(rate), _Track(rate)
    clock: Fraction | None = None  # the end of the samples so far, in seconds after the start
    jumps: Jumps | None = None
    base = stream.time_base
    for frame in source.frames(stream):
        pts = frame.pts
        if jumps is None:
            jumps = Jumps(source, stream, (pts or 0) if start is None else round(start / base))
        time = clock or Fraction(0)
        if pts is not None:
            time = jumps.corrected(pts, round(time / base)) * base
        if clock is None or abs(time - clock) > _DRIFT:
            yield from track.append(resampler.flush())
            yield from track.move(round(time * rate))
            clock = time
        clock += Fraction(frame.samples, frame.sample_rate)
        yield from track.append(resampler(frame))
    yield from track.append(resampler.flush())


class _Track:
    """Places samples: moves ahead by silence, and back by leaving out the next samples."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._length = 0
        self._excess = 0  # samples to leave out

    def move(self, position: int) -> Iterator[Samples]:
        """Makes `position` that of the next sample."""
        self._excess = max(0, self._length - position)
        while self._length < position:
            count = min(self._rate, position - self._length)
            self._length += count
            yield np.zeros(count, np.float32)

    def append(self, pieces: Iterable[Samples]) -> Iterator[Samples]:
        """Yields the pieces, but for the samples to leave out."""
        for piece in pieces:
            kept = piece[self._excess :]
            self._excess -= len(piece) - len(kept)
            self._length += len(kept)
            if len(kept):
                yield kept


class _Resampler:
    """Resamples frames of any format, and averages their channels."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler: Any = None
        self._setup: tuple[object, ...] = ()

    def __call__(self, frame: Any) -> Iterator[Samples]:
        from av import AudioResampler

        setup = frame.format.name, frame.layout.name, frame.sample_rate
        if setup != self._setup:
            yield from self.flush()
            self._setup = setup
            self._resampler = AudioResampler("fltp", frame.layout.name, self._rate)
        frame.pts = None  # it counts samples
        yield from self._mixed(frame)

    def flush(self) -> Iterator[Samples]:
        """Yields what the resampler holds back; the next frame starts anew."""
        if self._resampler is not None:
            yield from self._mixed(None)
        self._resampler, self._setup = None, ()

    def _mixed(self, frame: Any) -> Iterator[Samples]:
        for resampled in self._resampler.resample(frame):
            if resampled is not None:
                yield resampled.to_ndarray().mean(0, dtype=np.float32)
