"""pyseg.video.read_audio: sound on the clock of the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.video import probe, read_audio, sample_frames
from tests.video.make_videos import Sound, Video, write_sound

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'pyseg-video[video]'")

RATE = 8000


def read(path: Path, rate: int = RATE) -> np.ndarray:
    blocks = list(read_audio(path, rate))
    assert all(block.dtype == np.float32 and block.shape == (rate,) for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= rate
    return np.concatenate(blocks)


def tones(sound: np.ndarray, rate: int = RATE) -> list[int]:
    """Returns the frequency, a multiple of 100 Hz, of the middle of every half second; 0: none."""
    found = []
    for first in range(0, len(sound) - rate // 2 + 1, rate // 2):
        middle = sound[first + rate // 8 : first + rate * 3 // 8]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) / len(middle)
        loud = spectrum.max() > 0.02
        found.append(int(round(spectrum.argmax() * rate / len(middle) / 100) * 100) if loud else 0)
    return found


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("start", [0, 2])
def test_sound_is_on_the_clock_of_the_frames(tmp_path: Path, suffix: str, start: int) -> None:
    path = Video(range(50), start=start, sound=Sound(4)).write(tmp_path / f"a.{suffix}")
    sound = read(path)
    assert len(sound) / RATE == pytest.approx(4 - start, abs=0.06)
    expected = [100, 100, 200, 200, 300, 300, 400, 400][2 * start :]
    assert tones(sound)[: len(expected) - 1] == expected[:-1]
    assert probe(path).has_audio
    assert len(list(sample_frames(path))) == 2


def test_silence_before_sound_that_starts_late(tmp_path: Path) -> None:
    path = Video(sound=Sound(2, start=1.5)).write(tmp_path / "late.mp4")
    sound = read(path)
    assert tones(sound)[:6] == [0, 0, 0, 100, 100, 200]
    assert not sound[: int(1.4 * RATE)].any()


def test_silence_in_a_gap(tmp_path: Path) -> None:
    path = Video(sound=Sound(4, gap=(1, 2.5))).write(tmp_path / "gap.mkv")
    assert tones(read(path)) == [100, 100, 0, 0, 0, 300, 400, 400]


def test_channels_are_averaged(tmp_path: Path) -> None:
    # One channel has a tone of amplitude 0.5, the other is silent.
    path = write_sound(tmp_path / "a.wav", Sound(1, codec="pcm_s16le"))
    assert np.abs(read(path, 44100)).max() == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.wav", "pcm_s16le", 44100), ("a.mp3", "libmp3lame", 44100), ("a.opus", "libopus", 48000)],
)
def test_files_without_video_start_with_their_sound(
    tmp_path: Path, name: str, codec: str, rate: int
) -> None:
    path = write_sound(tmp_path / name, Sound(2, codec=codec, rate=rate))
    sound = read(path)
    assert len(sound) / RATE == pytest.approx(2, abs=0.05)
    assert tones(sound)[:3] == [100, 100, 200]
    with pytest.raises(DataError, match="expected a video, found only audio"):
        next(sample_frames(path))
    with pytest.raises(DataError, match="expected a video, found only audio"):
        probe(path)


def test_the_picture_of_an_album_is_no_video(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "album.mp3", Sound(1, codec="libmp3lame"), cover=True)
    with av.open(str(path)) as container:
        assert container.streams.video
    with pytest.raises(DataError, match=r"found only audio \(mp3\)"):
        next(sample_frames(path))
    assert tones(read(path)) == [100, 100]


def test_no_sound(tmp_path: Path) -> None:
    path = Video(range(5)).write(tmp_path / "silent.mp4")
    with pytest.raises(DataError, match=r"silent\.mp4: expected sound, found no audio stream"):
        next(read_audio(path))
    assert list(read_audio(path, required=False)) == []
    assert not probe(path).has_audio


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="rate: expected at least 1, found 0"):
        read_audio(tmp_path / "a.mp4", 0)
    with pytest.raises(MissingFileError, match=r"a\.mp4"):
        read_audio(tmp_path / "a.mp4")
    (tmp_path / "noise.mp4").write_bytes(b"\x93noise" * 999)
    with pytest.raises(DataError, match=r"noise\.mp4"):
        next(read_audio(tmp_path / "noise.mp4"))
