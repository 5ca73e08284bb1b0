"""Speed of sampling frames from a video, against the limit of the decoder and the ffmpeg command.

    python benchmarks/bench_decode.py [--seconds 60] [--rounds 5] [--ffmpeg PATH] [--json FILE]

Every contender in turn takes one frame a second, scaled to 299 x 299, from a video of 1280 x 720 at
25 frames a second (H.264, one decoder thread), in several rounds. Times are those of the processor,
with those of child processes, as other programs disturb elapsed time; results are medians.

    pyseg        sample_frames
    PyAV         a loop that decodes every frame and keeps none: the limit
    ffmpeg       the command with -vf fps=1,scale, which writes raw frames; left out if missing

Then a process of its own samples a video of 1920 x 1080, and its peak of memory is printed, less
what it needs to import pyseg.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

RATE = 25
SIZE = 299


def write_video(path: Path, size: tuple[int, int], seconds: int) -> None:
    """Writes a video of moving noise, which costs the decoder about what a film does."""
    import av

    height, width = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "28", "g": "250", "x264-params": "log-level=0"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(RATE * seconds):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1))
            frame.pts = number
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def sample(path: Path) -> int:
    from pyseg.video import sample_frames

    return sum(1 for _ in sample_frames(path, size=(SIZE, SIZE)))


def decode(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def command(ffmpeg: str, path: Path) -> int:
    filters = f"fps=1,scale={SIZE}:{SIZE}:flags=bilinear"
    arguments = ["-v", "error", "-threads", "1", "-filter_threads", "1", "-i", str(path)]
    arguments += ["-an", "-vf", filters, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    output = subprocess.run([ffmpeg, *arguments], check=True, stdout=subprocess.PIPE).stdout
    return len(output) // (SIZE * SIZE * 3)


def processor_seconds(contender: Callable[[], int]) -> float:
    def now() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    start = now()
    contender()
    return now() - start


def peak(path: Path) -> tuple[int, int]:
    """Returns the peak of this process's memory before and after sampling, in bytes."""
    import av  # noqa: F401

    import pyseg.video  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sample(path)
    return 1024 * before, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="length of the video")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ffmpeg", default=shutil.which("ffmpeg"), help="path of the command")
    parser.add_argument("--json", type=Path, help="write the times to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "720p.mp4")
        write_video(path, (720, 1280), arguments.seconds)
        contenders: dict[str, Callable[[], int]] = {
            "pyseg": lambda: sample(path),
            "PyAV": lambda: decode(path),
        }
        if arguments.ffmpeg:
            contenders["ffmpeg"] = lambda: command(arguments.ffmpeg, path)
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            contender()  # imports, and reads the file into the page cache
        for _ in range(arguments.rounds):
            for name, contender in contenders.items():
                times[name].append(processor_seconds(contender))
        large = Path(folder, "1080p.mp4")
        write_video(large, (1080, 1920), 8)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, after = pool.apply(peak, (large,))

    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{arguments.seconds} s of 720p, {RATE * arguments.seconds} frames, processor time")
    for name, value in medians.items():
        spread = (max(times[name]) - min(times[name])) / value
        print(
            f"{name:8} {value:7.2f} s  spread {spread:4.0%}  pyseg {medians['pyseg'] / value:.3f}x"
        )
    print(
        f"1080p: peak {after / 1e6:.0f} MB, {(after - before) / 1e6:.0f} MB more than the imports"
    )
    if arguments.json:
        results = {"seconds": times, "peak": after, "peak_of_imports": before}
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
