"""Opened media files: their streams, and frames that decode in spite of damage."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyseg._extras import requires
from pyseg._paths import path_text
from pyseg.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from av.container import InputContainer

_FAILURES = 100  # reads in a row that may fail before a file counts as truncated
_NO_TIMESTAMPS = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS
_DISCONTINUOUS = 0x200  # FFmpeg's AVFMT_TS_DISCONT
_JUMP = 10  # seconds; FFmpeg takes longer jumps for discontinuities
_LONGEST_GAP = 3600  # seconds; likewise, where nothing says how long the file is
_TEXT = ("tty",)  # FFmpeg renders text files as pictures of a terminal


@dataclass
class DecodeReport:
    """What decoding a video found; `sample_frames` updates it while it runs.

    Attributes:
        frames: Frames decoded so far.
        rows: Frames yielded so far, repetitions included.
        corrupt: Damaged frames among those decoded, and packets that could not be decoded.
        truncated: Whether the file ends before the duration that it states.
        duration: Seconds from the first frame to the end of the last one.
        expected: Seconds from the first frame to the end that the file states; None: it states
            none.
        error: The decoder's last message, if it reported an error.
    """

    frames: int = 0
    rows: int = 0
    corrupt: int = 0
    truncated: bool = False
    duration: float = 0.0
    expected: float | None = None
    error: str | None = None


def exact(value: float) -> Fraction:
    """Returns a number as the fraction that was meant: 1/10 for 0.1, 30000/1001 for 29.97003."""
    return Fraction(value).limit_denominator(1_000_000)


def rounding(time_base: Fraction) -> Fraction:
    """Returns by how many seconds a container may have rounded a time: ticks are up to 1 ms."""
    return min(time_base / 2, Fraction(1, 2000))


class Source:
    """An opened media file.

    Attributes:
        path: Its path as the caller wrote it, for messages.
        container: PyAV's container.
        report: Where damage is counted.
        ends: Per stream, the end of its last packet in units of its time base.
    """

    def __init__(self, path: str, container: InputContainer, report: DecodeReport) -> None:
        self.path = path
        self.container = container
        self.report = report
        self.ends: dict[int, int] = {}
        self._is_avi = self.is_format("avi")  # it has no times of display; FFmpeg makes some up

    def video_stream(self) -> Any:
        """Returns the video stream that players show: the default one, else the first.

        Raises:
            pyseg.errors.DataError: There is none, or no decoder for it.
        """
        from av.stream import Disposition

        streams = [s for s in self.container.streams.video if not _is_cover(s)]
        if not streams:
            raise DataError(f"{self.path}: expected a video, found {self._contents()}")
        default = [s for s in streams if s.disposition & Disposition.default]
        return self._decodable((default or streams)[0], "video")

    def has_video(self) -> bool:
        """Returns whether there is a video stream; the picture of an album is none."""
        return any(not _is_cover(stream) for stream in self.container.streams.video)

    def no_frame(self, stream: Any) -> str:
        """Returns the message where no frame of a video stream can be decoded."""
        error = f": {self.report.error}" if self.report.error else ""
        name = stream.codec_context.name
        return f"{self.path}: expected a video, found no frame that can be decoded ({name}{error})"

    def audio_stream(self) -> Any | None:
        """Returns the audio stream that players play, None if there is none.

        Raises:
            pyseg.errors.DataError: There is no decoder for it.
        """
        stream = self.container.streams.best("audio")
        streams = self.container.streams.audio
        if stream is None and streams:
            stream = streams[0]
        return None if stream is None else self._decodable(stream, "audio")

    def frames(self, stream: Any) -> Iterator[Any]:
        """Yields the frames of a stream, in the order of their display; goes on after damage.

        Where the container stores only when frames are decoded, as AVI does, these times are given
        to the frames in order, and none may be left out.
        """
        import av

        report = self.report
        times: list[int] = []
        packets = (packet for packet in self._packets() if packet.stream_index == stream.index)
        for packet in itertools.chain(packets, [None]):
            if packet is not None and not self._has_display_time(packet):
                stream.codec_context.skip_frame = "DEFAULT"
                heapq.heappush(times, packet.dts)
            try:
                decoded = stream.decode(packet)
            except av.FFmpegError as error:
                report.corrupt += 1
                report.error = error.strerror
                if times:
                    heapq.heappop(times)
                continue
            for frame in decoded:
                report.frames += 1
                report.corrupt += frame.is_corrupt
                if times:
                    frame.pts = heapq.heappop(times)
                yield frame

    def stated_end(self, stream: Any) -> tuple[Fraction, bool] | None:
        """Returns the time, in seconds, at which the file says that it ends.

        The flag tells whether it is that of the stream, not of the whole file.
        """
        start, base = stream.start_time or 0, stream.time_base
        if self.container.format.flags & _NO_TIMESTAMPS:
            return None  # FFmpeg guesses from the bit rate
        if stream.duration:
            return (start + stream.duration) * base, True
        if self.container.duration:
            # Writers of Matroska disagree whether its duration counts from 0 or from the start.
            start = 0 if self.is_format("matroska") else self.container.start_time or 0
            return Fraction(start + self.container.duration, 1_000_000), False
        return None

    def is_format(self, name: str) -> bool:
        """Returns whether the container is of a format, by FFmpeg's name of it."""
        return name in self.container.format.name.split(",")

    def end_of_packets(self, stream: Any | None = None) -> Fraction | None:
        """Returns the end, in seconds, of the packets of one stream or of all."""
        streams: list[Any] = [stream] if stream is not None else list(self.container.streams)
        ends = [self.ends[s.index] * s.time_base for s in streams if s.index in self.ends]
        return max(ends, default=None)

    def _packets(self) -> Iterator[Any]:
        """Yields the packets of all streams; goes on where the container is damaged."""
        import av

        failures, damaged = 0, False
        while failures < _FAILURES:
            try:
                for packet in self.container.demux():
                    if packet.size == 0:  # decoding it would end the stream
                        continue
                    failures, damaged = 0, packet.is_corrupt
                    time = packet.pts if self._has_display_time(packet) else packet.dts
                    if time is not None and not packet.is_discard:
                        index, end = packet.stream_index, time + (packet.duration or 0)
                        if end > self.ends.get(index, end - 1):
                            self.ends[index] = end
                    yield packet
                break
            except IndexError:  # PyAV's, at the end, if streams have appeared since the start
                break
            except av.FFmpegError as error:
                failures += 1
                self.report.error = error.strerror
        self.report.truncated |= damaged or failures > 0  # nothing came after an error

    def _has_display_time(self, packet: Any) -> bool:
        if packet.dts is None:
            return True  # nor a time of decoding, so that there is nothing better
        return packet.pts is not None and not self._is_avi

    def _decodable(self, stream: Any, kind: str) -> Any:
        if stream.codec_context is None:
            raise DataError(
                f"{self.path}: expected {kind} that can be decoded, found an unknown codec"
            )
        return stream

    def _contents(self) -> str:
        kinds = sorted({s.type for s in self.container.streams if not _is_cover(s)})
        found = f"only {' and '.join(kinds)}" if kinds else "no stream"
        return f"{found} ({self.container.format.name})"


class Jumps:
    """Corrects the times of a stream where they jump: in joined recordings, or by damage.

    After a jump back, or one ahead that the file cannot mean, times continue from what came before.

    Args:
        source: The file.
        stream: One of its streams.
        first: The time from which times are counted, in units of the stream's time base.
    """

    def __init__(self, source: Source, stream: Any, first: int) -> None:
        base = stream.time_base
        stated = source.stated_end(stream)
        more, latest = _JUMP, Fraction(0)
        if stated is None:
            more = _LONGEST_GAP
        elif not source.container.format.flags & _DISCONTINUOUS:
            latest = stated[0]
            # MP4 files state too little where times are irregular and frames are reordered.
            more = _LONGEST_GAP if source.is_format("mp4") else _JUMP
        self._first = first
        self._latest = math.ceil((latest + more) / base) - first
        self._jump = int(_JUMP / base)
        self._shift = 0

    def corrected(self, pts: int, following: int) -> int:
        """Returns the time since the first one; what came before ends at `following`."""
        time = pts - self._first + self._shift
        ahead = time - following
        if ahead < -self._jump or (ahead > self._jump and time > self._latest):
            self._shift -= ahead
            return following
        return time


def _is_cover(stream: Any) -> bool:
    """Returns whether a stream is the picture of an album or a preview."""
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], report: DecodeReport) -> Iterator[Source]:
    """Opens a media file while the block runs.

    Raises:
        pyseg.errors.MissingFileError: There is no such file.
        pyseg.errors.DataError: It is no media file.
        pyseg.errors.UserError: PyAV is not installed.
    """
    text = checked_file(path)
    with requires("video", "reading videos"):
        import av
    # PyAV 19 always replaces what is not UTF-8.
    older = int(av.__version__.split(".")[0]) < 19
    errors: dict[str, Any] = {"metadata_errors": "replace"} if older else {}
    try:
        container = av.open(
            # Absolute, as FFmpeg takes what precedes a colon for a protocol.
            str(Path(text).absolute()),
            options={"protocol_whitelist": "file"},  # playlists must not reach the network
            **errors,
        )
    except (av.FFmpegError, OSError) as error:
        message = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{text}: expected a video, found none that can be read ({message})"
        ) from error
    with container:
        if container.format.name in _TEXT:
            raise DataError(f"{text}: expected a video, found text")
        yield Source(text, container, report)


def checked_file(given: str | os.PathLike[str]) -> str:
    """Returns the path of a file with content; raises the error of what is none."""
    path = path_text(given)
    if os.path.isdir(path):
        raise DataError(f"{path}: expected a video, found a folder")
    if not os.path.exists(path):
        raise MissingFileError(f"{path}: expected a video, found no such file")
    if not os.path.isfile(path):
        raise DataError(f"{path}: expected a video, found a device, a pipe or a socket")
    if os.path.getsize(path) == 0:
        raise DataError(f"{path}: expected a video, found an empty file")
    return path
