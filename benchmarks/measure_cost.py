"""What the commands take of time and memory, of 1, 10 and 100 times as much data.

    python benchmarks/measure_cost.py --out docs/_static/cost.png

Videos are the rated ones of the generated sample, over and over, with ids of their own: 100 at
first, in shards of 100. Each has some 75 frames of 1,152 features, labels, and 8 rated segments.
Training takes one pass over the videos and one over the rated segments, and evaluates; the other
commands use that run. Label lists, 100,000 at first, have up to 9 of 3,862 labels. All of it lies
in a temporary folder, which needs 2 GB.

Every run is a process of its own. Its time is what its threads spent on processors, which other
programs disturb least; its memory is the peak of its resident set. Of all sizes but the last the
median of three runs counts. Start-up is the time with a tenth of the first size. The exponent is
that of a power law through the times of 10 and 100, start-up subtracted: 1 is linear.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyseg import _charts
from pyseg._files import write_file
from pyseg._table import Table
from pyseg.data import encode_frames, read_frames, write_records
from pyseg.data.sample import make_sample

SIZES = (0.1, 1, 10, 100)  # the first is start-up
SHARD = 100  # videos
RATED, TRAINING_SHARE = 8, 0.8  # rated segments of a video, and the videos that are not held out
CLASSES = 3862
ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """What a run of a command took.

    Attributes:
        wall: Seconds from start to end.
        cpu: Seconds of all its threads on the processor.
        peak: The most bytes in memory.
    """

    wall: float
    cpu: float
    peak: float


@dataclass(frozen=True)
class Curve:
    """The costs of a command.

    Attributes:
        name: What it does.
        examples: The examples of each of `SIZES`.
        costs: The cost of each.
    """

    name: str
    examples: Sequence[int]
    costs: Sequence[Cost]

    @property
    def exponent(self) -> float:
        """The exponent of time between the last two sizes, start-up subtracted.

        It is NaN where start-up takes most of the time, whose noise would decide.
        """
        start, *_, less, more = (cost.cpu for cost in self.costs)
        if not (start < less and more > 1.5 * start):
            return math.nan
        return math.log((more - start) / (less - start), self.examples[-1] / self.examples[-2])

    @property
    def seconds(self) -> float:
        """The time of one more example."""
        return (self.costs[-1].cpu - self.costs[0].cpu) / (self.examples[-1] - self.examples[0])

    @property
    def bytes(self) -> float:
        """The memory of one more example, between the last two sizes."""
        return (self.costs[-1].peak - self.costs[-2].peak) / (self.examples[-1] - self.examples[-2])


def write_videos(folder: Path, count: int) -> None:
    """Writes a collection of rated videos in the layout of YouTube-8M."""
    sample = make_sample()
    folder.mkdir()
    for vocabulary in sample.glob("*vocabulary.csv"):
        (folder / vocabulary.name).write_bytes(vocabulary.read_bytes())
    shards = sorted(sample.glob("validate/*.tfrecord"))
    videos = itertools.cycle([video for shard in shards for video in read_frames(shard)])
    for first in range(0, count, SHARD):
        numbers = range(first, min(count, first + SHARD))
        write_records(
            folder / f"validate{first // SHARD:04d}.tfrecord",
            (
                encode_frames(f"video{number}", video.frames, video.labels, video.ratings)
                for number, video in zip(numbers, videos, strict=False)
            ),
        )


def write_lists(path: Path, count: int) -> None:
    """Writes a table of label lists, in which label n is about 1 / n as frequent as the first."""
    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, CLASSES + 1)
    drawn = random.choice(CLASSES, (10_000, 9), p=popularity / popularity.sum())
    sizes = random.integers(1, 10, len(drawn))
    lists = [" ".join(map(str, labels[:size])) for labels, size in zip(drawn, sizes, strict=True)]
    with open(path, "w") as file:
        file.writelines(f"{number:08x},{lists[number % len(lists)]}\n" for number in range(count))


def run(*command: str | Path) -> Cost:
    """Runs a command of pyseg in a process of its own."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        arguments = [sys.executable, "-m", *map(os.fspath, command)]
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(arguments)}:\n{output.read().decode()}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def commands(folder: Path, videos: int) -> dict[str, list[str | Path]]:
    """Returns the commands by name, for a folder with `videos` and `lists.csv`."""
    data, lists, trained = folder / "videos", folder / "lists.csv", folder / "run"
    records, submission, out = data / "*.tfrecord", folder / "submission.csv", folder / "p.npz"
    steps = {
        "--pretrain.steps": videos * TRAINING_SHARE / 40,
        "--finetune.steps": videos * TRAINING_SHARE * RATED / 80,
    }
    passes = [word for option, number in steps.items() for word in (option, f"{number:.0f}")]
    train = ["--data", data, "--run", trained, "--workers", "0", *passes]
    return {
        "train": ["pyseg.train", *train],
        "evaluate": ["pyseg.evaluate", "--run", trained, "--data", data, "--part", "all"],
        "predict": ["pyseg.predict", "--run", trained, "--data", records, "--out", submission],
        "evaluate a submission": [
            *("pyseg.evaluate", "--submission", submission, "--truth", records),
        ],
        "cooccur, records": ["pyseg.cooccur", "--data", records, "--out", out],
        "cooccur, a table": ["pyseg.cooccur", "--labels", lists, "--out", out],
    }


def measure(videos: int, lists: int) -> list[Curve]:
    """Measures all commands with all sizes; `videos` and `lists` are those of size 1."""
    costs: dict[str, list[Cost]] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder, count = Path(name), round(size * videos)
            write_videos(folder / "videos", count)
            write_lists(folder / "lists.csv", round(size * lists))
            for title, command in commands(folder, count).items():
                rounds = []
                for _ in range(ROUNDS if size < SIZES[-1] else 1):
                    if title == "train":
                        shutil.rmtree(folder / "run", ignore_errors=True)
                    rounds.append(run(*command))
                costs.setdefault(title, []).append(median(rounds))
                print(f"{title}, {size:g} times the data: {costs[title][-1]}", file=sys.stderr)
    first = {title: lists if "table" in title else videos for title in costs}
    return [
        Curve(title, [round(size * first[title]) for size in SIZES], found)
        for title, found in costs.items()
    ]


def median(costs: Sequence[Cost]) -> Cost:
    """Returns the medians of some runs."""
    fields = zip(*((cost.wall, cost.cpu, cost.peak) for cost in costs), strict=True)
    return Cost(*map(statistics.median, fields))


def tables(curves: Sequence[Curve]) -> str:
    """Returns a table of the times and one of the memory."""
    times = [
        [
            f"{curve.name}, {curve.examples[1]:,} to {curve.examples[-1]:,}",
            *(f"{cost.cpu:.1f} s" for cost in curve.costs),
            f"{curve.costs[-1].wall:.1f} s",
            f"{1e6 * curve.seconds:,.1f} us",
            "" if math.isnan(curve.exponent) else f"{curve.exponent:.2f}",
        ]
        for curve in curves
    ]
    peaks = [
        [
            curve.name,
            *(f"{cost.peak / 1e6:,.0f} MB" for cost in curve.costs),
            f"{curve.bytes / 1e3:,.2f} kB",
        ]
        for curve in curves
    ]
    sizes = ["start-up", *(f"{size:g}x" for size in SIZES[1:])]
    head = ["processor time", *sizes, f"{SIZES[-1]:g}x, wall clock", "an example", "exponent"]
    memory = ["peak memory", *sizes, "an example"]
    return "\n\n".join(
        Table(names, rows, numeric=range(1, len(names))).markdown()
        for names, rows in ((head, times), (memory, peaks))
    )


def draw(curves: Sequence[Curve]) -> bytes:
    """Draws time and memory by the size of the data; returns a PNG file."""
    figure = _charts.new_figure(10, 4)
    panels = (
        ("processor time in s", lambda cost: cost.cpu),
        ("peak memory in MB", lambda cost: cost.peak / 1e6),
    )
    for number, (title, value) in enumerate(panels, start=1):
        axes = _charts.new_axes(figure, title, "size of the data", (1, len(panels), number))
        for place, curve in enumerate(curves):
            values = [value(cost) for cost in curve.costs[1:]]
            axes.plot(SIZES[1:], values, "o-", color=_charts.color(place), label=curve.name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(SIZES[1:], [f"{size:g}x" for size in SIZES[1:]])
        low, high = axes.get_ylim()
        ticks = [digit * 10**power for power in range(-3, 7) for digit in (1, 2, 3, 4, 5, 7)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.minorticks_off()
        if number == 1:
            most = max(curve.costs[-1].cpu for curve in curves)
            linear = [most * size / SIZES[-1] for size in SIZES[1:]]
            axes.plot(SIZES[1:], linear, ":", color=_charts.GRAY, label="linear")
            axes.set_ylim(low, high)
            axes.legend(fontsize=8, frameon=False)
    return _charts.png(figure)


def main() -> None:
    """Prints the tables and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the picture to write, a .png file")
    parser.add_argument("--videos", type=int, default=100, help="videos of size 1")
    parser.add_argument("--lists", type=int, default=100_000, help="label lists of size 1")
    options = parser.parse_args()
    curves = measure(options.videos, options.lists)
    print(tables(curves))
    if options.out is not None:
        write_file(options.out, draw(curves))


if __name__ == "__main__":
    main()
