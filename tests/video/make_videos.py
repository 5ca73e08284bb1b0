"""Videos whose frames show their number, made with PyAV, and the reading of that number.

A frame is a grid of 3 by 4 blocks: red at the top left, blue at the bottom right, and between them
ten bits of the number, white for 1, the lowest first. A frame that is turned, mirrored, shifted or
in BGR order has another number or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROWS, COLUMNS = 3, 4
BITS = ROWS * COLUMNS - 2
RED, BLUE = (255, 0, 0), (0, 0, 255)

Image = npt.NDArray[np.uint8]


def paint(number: int, size: tuple[int, int] = (48, 64)) -> Image:
    """Returns the frame of a number, modulo 1024."""
    bits = [(number >> i & 1) * 255 for i in range(BITS)]
    blocks = np.array([RED, *((bit,) * 3 for bit in bits), BLUE], np.uint8)
    rows = np.arange(size[0]) * ROWS // size[0]
    columns = np.arange(size[1]) * COLUMNS // size[1]
    return blocks.reshape(ROWS, COLUMNS, 3)[rows[:, None], columns]


def number_of(image: Image) -> int:
    """Returns the number that a frame shows."""
    colours = [block.mean((0, 1)) for block in _centres(image)]
    first, *bits, last = colours
    # Chroma is stored at half the resolution, and video levels are coarse.
    assert np.abs(first - RED).max() < 60, f"the first block is {first}, not red"
    assert np.abs(last - BLUE).max() < 60, f"the last block is {last}, not blue"
    for bit in bits:
        assert min(bit.max(), 255 - bit.min()) < 80, f"a block is {bit}, not black or white"
    return sum(int(bit.mean() > 127) << i for i, bit in enumerate(bits))


def numbers_of(images: Iterable[Image]) -> list[int]:
    """Returns the numbers that frames show."""
    return [number_of(image) for image in images]


def _centres(image: Image) -> list[Image]:
    height, width = image.shape[0] / ROWS, image.shape[1] / COLUMNS
    return [
        image[
            round((row + 0.3) * height) : round((row + 0.7) * height),
            round((column + 0.3) * width) : round((column + 0.7) * width),
        ]
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


@dataclass(frozen=True)
class Sound:
    """Sound that counts seconds: in second s, from 0, there is a tone of 100 * (s + 1) Hz.

    Attributes:
        seconds: Its length.
        start: When it starts, on the clock of the file.
        codec: The encoder.
        rate: Samples a second.
        gap: Sound of this interval is left out: (start, end).
    """

    seconds: float = 3.0
    start: float = 0.0
    codec: str = "aac"
    rate: int = 44100
    gap: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Video:
    """How a video is made.

    Attributes:
        numbers: The numbers of its frames.
        rate: Frames a second.
        times: Seconds at which frames start, and at which the last one ends; default: from `rate`.
        start: Added to all times of pictures.
        size: Height and width of the frames as they are shown.
        codec: The encoder.
        pixels: The pixel format.
        turned: Quarters of a turn, counterclockwise, that a player has to make; stored frames
            are turned back.
        mirrored: Whether a player has to mirror the columns after that.
        aspect: Width of a pixel to its height; frames are stored with fewer columns.
        options: Of the encoder.
        container: Options of the container.
        sound: Sound, if any.
    """

    numbers: Sequence[int] = range(75)
    rate: Fraction | int = 25
    times: Sequence[Fraction | float] | None = None
    start: float = 0.0
    size: tuple[int, int] = (48, 64)
    codec: str = "libx264"
    pixels: str = "yuv420p"
    turned: int = 0
    mirrored: bool = False
    aspect: Fraction = Fraction(1)
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    sound: Sound | None = None

    def write(self, path: Path) -> Path:
        """Writes the video; the container follows from the suffix."""
        import av

        with av.open(str(path), "w", options=self.container) as container:
            stream = self._stream(container)
            sound = None if self.sound is None else _sound_stream(container, self.sound)
            lengths: dict[int, int] = {}
            packets = list(self._packets(stream, lengths))
            for packet in packets:  # encoders take the frame rate's
                packet.duration = lengths[packet.pts]
            if self.sound is not None:
                packets += _sound_packets(sound, self.sound)
            for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
                container.mux(packet)
        return path

    def _stream(self, container: Any) -> Any:
        defaults = {
            "libx264": {"preset": "ultrafast", "bf": "2", "g": "12", "x264-params": "log-level=0"},
            "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12"},
            "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "12"},
        }
        stream = container.add_stream(self.codec, rate=Fraction(self.rate))
        height, width = self._stored(paint(0, self.size)).shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, self.pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.sample_aspect_ratio = self.aspect
        stream.codec_context.time_base = self._base
        stream.options = defaults.get(self.codec, {}) | self.options
        if self.turned or self.mirrored:
            stream.set_display_rotation(90 * self.turned, hflip=self.mirrored)
        return stream

    @property
    def _base(self) -> Fraction:
        return 1 / Fraction(self.rate) if self.times is None else Fraction(1, 1000)

    def _stored(self, shown: Image) -> Image:
        if self.mirrored:
            shown = shown[:, ::-1]
        stored = np.rot90(shown, -self.turned)
        columns = round(stored.shape[1] / self.aspect)
        chosen = (np.arange(columns) + 0.5) * stored.shape[1] / columns
        return np.ascontiguousarray(stored[:, chosen.astype(int)])

    def _packets(self, stream: Any, lengths: dict[int, int]) -> Iterable[Any]:
        import av

        base, times = self._base, self.times
        if times is None:
            times = [Fraction(i) / self.rate for i in range(len(self.numbers) + 1)]
        for number, (time, end) in zip(self.numbers, itertools.pairwise(times), strict=True):
            frame = av.VideoFrame.from_ndarray(self._stored(paint(number, self.size)))
            frame = frame.reformat(format=self.pixels, dst_colorspace="ITU601")
            frame.pts = round((time + self.start) / base)
            frame.duration = round((end + self.start) / base) - frame.pts
            frame.time_base = base
            lengths[frame.pts] = frame.duration
            yield from stream.encode(frame)
        yield from stream.encode(None)


def _sound_stream(container: Any, sound: Sound) -> Any:
    return container.add_stream(sound.codec, rate=sound.rate, layout="stereo")


def tone(seconds: float, rate: int) -> npt.NDArray[np.float32]:
    """Returns the sound that counts seconds."""
    time = np.arange(round(seconds * rate)) / rate
    second = time.astype(int)
    return (0.5 * np.sin(2 * np.pi * 100 * (second + 1) * time)).astype(np.float32)


def _sound_packets(stream: Any, sound: Sound) -> Iterable[Any]:
    import av

    wave = tone(sound.seconds, sound.rate)
    planar = np.stack([wave, np.zeros_like(wave)])  # the mean of the channels is half of it
    context = stream.codec_context
    size = context.frame_size or 1024
    for first in range(0, len(wave), size):
        if sound.gap[0] <= first / sound.rate < sound.gap[1]:
            continue
        block = planar[:, first : first + size]
        if context.format.is_planar and context.format.name == "fltp":
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", "stereo")
        else:
            packed = (block.T * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, "s16", "stereo")
        frame.sample_rate = sound.rate
        frame.time_base = Fraction(1, sound.rate)
        frame.pts = first + round(sound.start * sound.rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def write_sound(path: Path, sound: Sound, cover: bool = False) -> Path:
    """Writes a file without video; with `cover`, the picture of an album is in it."""
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        stream = _sound_stream(container, sound)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = Disposition.attached_pic.value
            frame = av.VideoFrame.from_ndarray(paint(0))
            for packet in [*picture.encode(frame), *picture.encode(None)]:
                container.mux(packet)
        for packet in _sound_packets(stream, sound):
            container.mux(packet)
    return path
