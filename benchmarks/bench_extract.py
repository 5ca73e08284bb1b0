"""Extraction beside its limits: decoding alone and the network alone.

    python benchmarks/bench_extract.py

Times are CPU seconds (user and system, of all threads) and wall seconds of the same work: a 1080p
video, one frame a second, ResNet-18-like convolutions. The three take turns, and the medians of
their ratios count. The last lines are the memory of a process at 1080p, besides the backbone's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pyseg.backbones import Backbone, ModuleBackbone, Preprocessing
from pyseg.extract.features import read_rows

SIZE = (224, 224)


def network() -> nn.Module:
    """A stack of convolutions of about 1.3 billion multiplications an image."""
    widths = [3, 48, 96, 192, 384]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(after, after, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def backbone() -> Backbone:
    return ModuleBackbone(network(), Preprocessing(SIZE), torch.device("cpu"))


def write_video(path: Path, seconds: int) -> Path:
    """Writes moving noise at 1080p, 25 frames a second."""
    import av

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1080 // 8, 1920 // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "250"}
        for number in range(25 * seconds):
            moved = np.roll(image, (3 * number, 5 * number), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Returns CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def decode(path: Path) -> None:
    """Decodes every frame with PyAV, and converts one a second."""
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number % 25 == 0:
                frame.to_ndarray(format="rgb24", width=SIZE[1], height=SIZE[0])


def compute(made: Backbone, rows: int, batch_size: int) -> None:
    images = np.zeros((batch_size, *SIZE, 3), np.uint8)
    for first in range(0, rows, batch_size):
        made(images[: rows - first], None)


def extract(path: Path, made: Backbone, batch_size: int) -> None:
    for _ in read_rows(path, made, 1.0, batch_size=batch_size):
        pass


def peak() -> float:
    """Returns the largest memory so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(path: Path) -> None:
    """Prints the peak after the imports and the network, and after an extraction."""
    made = backbone()
    compute(made, 32, 32)
    before = peak()
    extract(path, made, 32)
    print(f"memory: {before:.0f} MB with the network, {peak() - before:.0f} MB more to extract")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="of the video")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the network")
    parser.add_argument("--memory", help="measure the memory with this video, and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(Path(options.memory))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video.mp4", options.seconds)
        made, rows = backbone(), options.seconds
        contenders: dict[str, Callable[[], object]] = {
            "decoding": lambda: decode(path),
            "network": lambda: compute(made, rows, 32),
            "extraction": lambda: extract(path, made, 32),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for number in range(options.rounds + 1):
            for name, work in contenders.items():
                found = measure(work)
                if number:  # the first round warms up
                    times[name].append(found)
        for name, found in times.items():
            cpu, wall = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"{name}: {cpu:.2f} s CPU, {wall:.2f} s wall")
        triples = list(zip(*times.values(), strict=True))
        both = statistics.median(e[0] / (d[0] + n[0]) for d, n, e in triples)
        larger = statistics.median(e[1] / max(d[1], n[1]) for d, n, e in triples)
        print(f"extraction: {both:.2f} of the CPU time of both, {larger:.2f} of the longer's time")
        command = [sys.executable, __file__, "--memory", str(path)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
