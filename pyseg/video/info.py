"""What a video file holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

from pyseg.errors import DataError
from pyseg.video.display import Orientation, display_size
from pyseg.video.source import DecodeReport, opened


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself, and its first frame.

    Attributes:
        duration: Seconds from the first frame to the end that the file states; None: it states
            none. A truncated file states the duration that it once had.
        width: Pixels of a frame's row as it is shown: upright, with square pixels.
        height: Rows of a frame as it is shown.
        rotation: Degrees, counterclockwise, by which stored frames are rotated for that: 0, 90,
            180 or 270.
        frame_rate: Frames a second on average; None: unknown.
        codec: FFmpeg's name of the video codec, such as "h264".
        has_audio: Whether there is sound.
        begin: Seconds on the clock of the file at which it begins: 0 of most files, others are cut
            from recordings.
        delay: Seconds from there to the first frame, where sound comes before it.
    """

    duration: float | None
    width: int
    height: int
    rotation: int
    frame_rate: float | None
    codec: str
    has_audio: bool
    begin: float
    delay: float


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Returns what a video file holds; only its first frame is decoded.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: The file is no video, or no frame of it can be decoded.
        pyseg.errors.UserError: PyAV is not installed.
    """
    with opened(path, DecodeReport()) as source:
        stream = source.video_stream()
        stream.codec_context.thread_count = 1
        frame = next(source.frames(stream), None)
        if frame is None:
            raise DataError(source.no_frame(stream))
        height, width = display_size(frame, stream.sample_aspect_ratio)
        stated = source.stated_end(stream)
        start = (frame.pts or 0) * stream.time_base
        begin = Fraction(source.container.start_time or 0, 1_000_000)
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(
            duration=None if stated is None else max(0.0, float(stated[0] - start)),
            width=width,
            height=height,
            rotation=Orientation.of(frame).rotation,
            frame_rate=float(rate) if rate else None,
            codec=stream.codec_context.name,
            has_audio=bool(source.container.streams.audio),
            begin=float(begin),
            delay=max(0.0, float(start - begin)),
        )


def stated_duration(path: str | os.PathLike[str]) -> float | None:
    """Returns the duration in seconds that a video file states; None: it states none.

    No frame is decoded, so that it takes a few milliseconds, a fraction of `probe`'s time.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: The file is no video.
        pyseg.errors.UserError: PyAV is not installed.
    """
    with opened(path, DecodeReport()) as source:
        stream = source.video_stream()
        if (stated := source.stated_end(stream)) is None:
            return None
        return max(0.0, float(stated[0] - (stream.start_time or 0) * stream.time_base))
