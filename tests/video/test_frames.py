"""pyseg.video.sample_frames: every row shows the frame that a player shows then."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.video import DecodeReport, probe, sample_frames
from tests.video.make_videos import Sound, Video, number_of, numbers_of

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'pyseg-video[video]'")

NTSC = Fraction(30000, 1001)
IRREGULAR = [0.0, 0.64, 1.32, 3.76, 4.0, 6.5]
"""Starts of five frames, and the end of the last."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """Three seconds with B-frames, 25 frames a second."""
    return Video().write(folder / "plain.mp4")


def read(path: Path, **options: Any) -> tuple[list[int], DecodeReport]:
    report = DecodeReport()
    numbers = numbers_of(sample_frames(path, report=report, **options))
    assert report.rows == len(numbers)
    return numbers, report


def on_display(frames: int, rate: Fraction | int, fps: Fraction | int) -> list[int]:
    """Returns the frame of each row of a video of constant rate."""
    rows = math.ceil(Fraction(frames) / rate * fps)
    return [min(frames - 1, math.floor(Fraction(k) / fps * rate)) for k in range(rows)]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (0.5, Fraction(1, 2)),
        (1, 1),
        (2.0, 2),
        (0.3, Fraction(3, 10)),
        (25, 25),
        (29.97, Fraction(2997, 100)),
        (Fraction(25, 7), Fraction(25, 7)),
        (100, 100),
    ],
)
def test_rows_are_the_frames_on_display(plain: Path, fps: float, exact: Fraction) -> None:
    numbers, report = read(plain, fps=fps)
    assert numbers == on_display(75, 25, exact)
    assert report == DecodeReport(75, len(numbers), 0, False, 3.0, 3.0, None)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mov", "flv"])
@pytest.mark.parametrize("rate", [NTSC, 30])
def test_every_container_has_the_same_rows(folder: Path, suffix: str, rate: Fraction) -> None:
    path = Video(range(90), rate=rate, size=(24, 32)).write(folder / f"rate.{suffix}")
    for fps in (rate, Fraction(rate) / 2, Fraction(7)):
        assert read(path, fps=fps)[0] == on_display(90, rate, fps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_irregular_times_and_gaps(folder: Path, suffix: str) -> None:
    video = Video(range(5), times=IRREGULAR)
    numbers, report = read(video.write(folder / f"irregular.{suffix}"), fps=2)
    expected = [max(i for i in range(5) if IRREGULAR[i] <= k / 2) for k in range(13)]
    assert numbers == expected
    assert (report.duration, report.truncated) == (6.5, False)


def test_a_gap_longer_than_the_duration_an_mp4_states(folder: Path) -> None:
    # With reordered frames, the stated duration covers the times of decoding only.
    path = Video(range(5), times=[0, 60, 120, 180, 240, 300]).write(folder / "slides.mp4")
    assert read(path, fps=Fraction(1, 30))[0] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turned", [0, 1, 2, 3])
def test_frames_are_upright(folder: Path, turned: int, mirrored: bool) -> None:
    video = Video(range(25), turned=turned, mirrored=mirrored)
    path = video.write(folder / f"turned_{turned}_{mirrored}.mp4")
    for options in ({}, {"size": (30, 40)}, {"size": (36, 60)}):
        rows = list(sample_frames(path, fps=5, **options))
        assert numbers_of(rows) == [0, 5, 10, 15, 20]
        assert {row.shape for row in rows} == {(*options.get("size", (48, 64)), 3)}
    info = probe(path)
    assert (info.height, info.width) == (48, 64)
    # Mirrored after a turn is the opposite turn after mirroring.
    assert info.rotation == (-90 * turned if mirrored else 90 * turned) % 360


@pytest.mark.parametrize("turned", [0, 1])
def test_pixels_are_square(folder: Path, turned: int) -> None:
    size = (64, 48) if turned else (48, 64)
    video = Video(range(3), size=size, aspect=Fraction(4, 3), turned=turned)
    path = video.write(folder / f"aspect_{turned}.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].width == 48  # as it is stored
    rows = list(sample_frames(path, fps=25))
    assert numbers_of(rows) == [0, 1, 2]
    assert {row.shape for row in rows} == {(*size, 3)}
    assert (probe(path).height, probe(path).width) == size


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("odd.mkv", Video(range(12), size=(181, 321), pixels="yuv444p")),
        ("odd420.mp4", Video(range(12), size=(182, 322))),
        ("hevc10.mp4", Video(range(12), codec="libx265", pixels="yuv420p10le")),
        ("vp9.webm", Video(range(12), codec="libvpx-vp9")),
        ("mpeg4.avi", Video(range(12), codec="mpeg4")),
        ("grey.mkv", Video(range(12), codec="ffv1", pixels="bgr0")),
        ("start.ts", Video(range(12), start=3)),
        ("start.mkv", Video(range(12), start=3)),
        ("start.mp4", Video(range(12), start=3)),
        ("one.mp4", Video([5])),
    ],
)
def test_formats(folder: Path, name: str, video: Video) -> None:
    path = video.write(folder / name)
    rows = list(sample_frames(path, fps=25))
    assert numbers_of(rows) == list(video.numbers)
    assert {row.shape for row in rows} == {(*video.size, 3)}
    assert all(row.flags.c_contiguous and row.dtype == np.uint8 for row in rows)
    report = read(path, fps=5)[1]
    assert (report.corrupt, report.truncated) == (0, False)
    assert report.duration == pytest.approx(len(video.numbers) / 25)


def test_an_edit_list_leaves_out_frames_at_the_start(folder: Path, plain: Path) -> None:
    path = folder / "edited.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.pts -= round(Fraction(10, 25) / packet.time_base)
                packet.dts -= round(Fraction(10, 25) / packet.time_base)
                packet.stream = copy
                target.mux(packet)
    numbers, report = read(path, fps=5)
    assert numbers == list(range(10, 75, 5))
    assert (report.duration, report.truncated) == (2.6, False)


def test_sound_that_is_longer_is_no_truncated_video(folder: Path) -> None:
    for suffix in ("mp4", "mkv"):
        path = Video(sound=Sound(seconds=5)).write(folder / f"sound.{suffix}")
        numbers, report = read(path, fps=1)
        assert (numbers, report.truncated) == ([0, 25, 50], False)


def truncated(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path = path.with_name(f"truncated_{path.name}")
    path.write_bytes(data[: int(share * len(data))])
    return path


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("start.mp4", {"movflags": "faststart"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("whole.mkv", {}),
        ("whole.webm", {}),
    ],
)
@pytest.mark.parametrize("sound", [None, Sound(6)])
def test_truncated(folder: Path, name: str, container: dict[str, str], sound: Sound | None) -> None:
    webm = name.endswith("webm")
    if webm and sound is not None:
        sound = Sound(6, codec="libopus", rate=48000)
    video = Video(
        range(150), container=container, sound=sound, codec="libvpx-vp9" if webm else "libx264"
    )
    whole = video.write(folder / name)
    path = truncated(whole, 0.6)
    report = DecodeReport()
    *numbers, _ = sample_frames(path, fps=5, report=report)  # the last is damaged
    assert numbers_of(numbers) == list(range(0, 5 * len(numbers), 5))
    assert len(numbers) > 5
    assert report.truncated
    assert report.duration < 5
    assert not read(whole, fps=5)[1].truncated


def test_an_mp4_without_its_index_is_no_video(folder: Path, plain: Path) -> None:
    path = truncated(plain, 0.6)
    with pytest.raises(DataError, match=r"truncated_plain\.mp4: expected a video, found none that"):
        next(sample_frames(path))


def flipped(path: Path, bits: int, seed: int = 0) -> Path:
    """Returns a copy with damaged bits; the first tenth, the header, stays as it is."""
    data, generator = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(bits):
        data[generator.randrange(len(data) // 10, len(data) * 8 // 10)] ^= 1 << generator.randrange(
            8
        )
    path = path.with_name(f"flipped_{seed}_{path.name}")
    path.write_bytes(data)
    return path


def test_damaged_frames_are_counted_and_rows_keep_their_times(folder: Path, plain: Path) -> None:
    report = DecodeReport()
    path = flipped(Video(range(150)).write(folder / "bits.mp4"), 20)
    rows = list(sample_frames(path, fps=5, report=report))
    assert len(rows) == 30
    assert report.corrupt > 0
    right = 0
    for k, row in enumerate(rows):
        try:
            right += number_of(row) == 5 * k
        except AssertionError:  # a frame that cannot be read is not shown elsewhere
            continue
    assert right > 15


@pytest.mark.parametrize("name", ["bits.mkv", "plain.mp4", "start.ts", "vp9.webm", "mpeg4.avi"])
def test_no_damage_raises_another_error_or_hangs(folder: Path, plain: Path, name: str) -> None:
    if not (folder / name).exists():
        codec = {"vp9.webm": "libvpx-vp9", "mpeg4.avi": "mpeg4"}.get(name, "libx264")
        Video(range(50), codec=codec).write(folder / name)
    for seed in range(4):
        path = flipped(folder / name, 100, seed)
        with contextlib.suppress(DataError):
            rows = sum(1 for _ in sample_frames(path, fps=1))
            assert 1 <= rows < 3700  # no damaged time is believed that is more than an hour away


def test_a_time_far_beyond_the_stated_duration_is_not_believed(folder: Path, plain: Path) -> None:
    path = folder / "jump.ts"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.size:
                if number >= 36:  # from a key frame on, as if two recordings were joined
                    packet.pts += 10_000 * packet.time_base.denominator
                    packet.dts += 10_000 * packet.time_base.denominator
                packet.stream = copy
                target.mux(packet)
    joined = folder / "joined.ts"
    joined.write_bytes(path.read_bytes() + path.read_bytes())
    numbers, _ = read(joined, fps=5)
    assert len(numbers) == pytest.approx(30, abs=1)


def test_sizes(plain: Path) -> None:
    [stretched] = sample_frames(plain, fps=0.3, size=(30, 90))
    assert stretched.shape == (30, 90, 3)
    assert number_of(stretched) == 0
    [whole] = sample_frames(plain, fps=0.3)
    [cropped] = sample_frames(plain, fps=0.3, size=(48, 48), crop=True)
    np.testing.assert_array_equal(cropped, whole[:, 8:56])
    for size in ((24, 64), (24, 16), (7, 99)):
        [row] = sample_frames(plain, fps=0.3, size=size, crop=True)
        assert row.shape == (*size, 3)


def test_colours_of_both_matrices(folder: Path) -> None:
    for matrix, value in (("ITU601", "smpte170m"), ("ITU709", "bt709")):
        path = folder / f"{matrix}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=1, options={"colorspace": value})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
            image = np.full((48, 64, 3), (200, 60, 90), np.uint8)
            frame = av.VideoFrame.from_ndarray(image)
            frame = frame.reformat(format="yuv444p", dst_colorspace=matrix)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        [row] = sample_frames(path)
        np.testing.assert_allclose(row.mean((0, 1)), (200, 60, 90), atol=4)


def test_rows_share_no_memory(folder: Path) -> None:
    path = Video([7], times=[0, 3]).write(folder / "still.mkv")
    first, *others = sample_frames(path)
    assert len(others) == 2
    first[:] = 0
    assert numbers_of(others) == [7, 7]


def test_a_repeated_frame_is_converted_once(
    folder: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyseg.video import display

    converted = []
    convert = display.Converter.__call__
    monkeypatch.setattr(
        display.Converter, "__call__", lambda *args: converted.append(1) or convert(*args)
    )
    assert len(list(sample_frames(plain, fps=100))) == 300
    assert len(converted) == 75
    converted.clear()
    assert len(list(sample_frames(plain, fps=1))) == 3
    assert len(converted) == 3


def test_fast_shows_a_neighbour(plain: Path, folder: Path) -> None:
    numbers, report = read(plain, fps=5, fast=True)
    assert len(numbers) == 15
    assert np.abs(np.subtract(numbers, range(0, 75, 5))).max() <= 3
    assert report.frames < 60
    # AVI has no times of display, so that no frame may be left out.
    path = Video(range(50)).write(folder / "fast.avi")
    assert read(path, fps=5, fast=True)[0] == list(range(0, 50, 5))


def test_threads_do_not_change_rows(plain: Path) -> None:
    for threads in (0, 2):
        assert read(plain, fps=5, threads=threads)[0] == list(range(0, 75, 5))


def test_the_file_is_closed_when_reading_stops_early(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers, open_file = [], av.open
    monkeypatch.setattr(
        av, "open", lambda *a, **k: containers.append(open_file(*a, **k)) or containers[-1]
    )
    rows = sample_frames(plain)
    next(rows)
    rows.close()
    with pytest.raises(AssertionError, match="not open"):
        next(containers[0].demux())


def test_memory_does_not_grow(folder: Path) -> None:
    path = folder / "long.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame(16, 16, "yuv420p")
        for number in range(8_000):
            frame.pts = number
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    rows = sample_frames(path, fps=1)
    for _ in range(100):
        next(rows)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert sum(1 for _ in rows) == 220
    gc.collect()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 50_000
    assert peak - before < 300_000
    assert sum(type(o) is av.VideoFrame for o in gc.get_objects()) < 20


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("empty.mp4", b"", "an empty file"),
        ("noise.mp4", random.Random(0).randbytes(20_000), "none that can be read"),
        ("notes.txt", b"hello\n" * 300, "text"),
        ("text.mp4", b"hello\n" * 300, "none that can be read"),
        ("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "none that can be read"),
    ],
)
def test_files_that_are_no_video(folder: Path, name: str, content: bytes, found: str) -> None:
    path = folder / name
    path.write_bytes(content)
    for reader in (probe, lambda path: next(sample_frames(path))):
        with pytest.raises(DataError, match=found) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: expected a video, found ")
        assert "\n" not in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a video, found a folder"):
        sample_frames(tmp_path)
    with pytest.raises(MissingFileError, match=r"no.mp4: expected a video, found no such file"):
        probe(tmp_path / "no.mp4")


def test_no_frame_that_can_be_decoded(folder: Path, plain: Path) -> None:
    data = bytearray(plain.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path = folder / "zeros.mp4"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"found no frame that can be decoded \(h264"):
        next(sample_frames(path))


def test_nothing_is_printed(plain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(sample_frames(flipped(plain, 5)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps: expected a number above 0"),
        ({"fps": -1.0}, "fps: expected a number above 0"),
        ({"fps": float("nan")}, "fps: expected a number above 0"),
        ({"fps": float("inf")}, "fps: expected a number above 0"),
        ({"fps": 1001}, "of at most 1000, found 1001"),
        ({"size": (0, 5)}, r"size: expected \(height, width\)"),
        ({"size": (5,)}, r"size: expected \(height, width\)"),
        ({"crop": True}, "crop: expected a size"),
        ({"threads": -1}, "threads: expected 0 or more"),
    ],
)
def test_arguments(plain: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sample_frames(plain, **options)
