"""The sound of a video, on the clock of its frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError, DataError
from pyseg.video.source import DecodeReport, Source, check_is_file, opened

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
    check_is_file(os.fspath(path))
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
    resampler = _Resampler(rate)
    emitted = skip = 0
    clock: Fraction | None = None  # the end of the samples so far, in seconds
    for frame in source.frames(stream):
        time = clock or Fraction(0) if frame.pts is None else frame.pts * stream.time_base
        start = time if start is None else start
        if clock is None or abs(time - clock) > _DRIFT:
            for piece in resampler.flush():
                emitted += len(piece)
                yield piece
            position = round((time - start) * rate)
            yield from _silence(position - emitted, rate)
            skip = max(0, emitted - position)
            emitted = max(emitted, position)
            clock = time
        clock += Fraction(frame.samples, frame.sample_rate)
        for piece in resampler(frame):
            kept = piece[skip:]
            skip -= len(piece) - len(kept)
            emitted += len(kept)
            if len(kept):
                yield kept
    yield from (piece[skip:] for piece in resampler.flush())


def _silence(count: int, rate: int) -> Iterator[Samples]:
    while count > 0:
        yield np.zeros(min(count, rate), np.float32)
        count -= rate


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
