"""A small generated collection, to start without data: ``python -m pyseg.data.sample``.

It has the layout and feature sizes of YouTube-8M, generated from a seed; see :func:`make_sample`.

A video is a sequence of scenes. A scene has a theme, a class drawn by popularity, and classes that
the planted graph adds: each edge theme -> class with its probability. Each class is present in all
of its scene or in a part of it. A frame is the sum of

* a look of each present class: one of a few per class, partly shared with the classes of its topic,
  with a strength that varies by scene;
* a context of each of the video's labels, whether present in the frame or not;
* backgrounds of the video and of the scene, and noise of the frame.

So a model trained on the labels of videos learns which classes a video has, but not when: that must
come from ratings. The labels of a video are complete; a rating covers one class only.

Only raw bits of the random generator and exact arithmetic are used: a seed gives the same bytes on
every machine and with every version of NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pyseg._build import user_cache
from pyseg._containers import read_json
from pyseg._files import sole_owner
from pyseg._progress import Progress
from pyseg.data import vocabulary
from pyseg.data.records import FrameSchema, Ratings, encode_frames, write_records
from pyseg.errors import ArgumentError, DataError, UserError

SCHEMA = FrameSchema()  # YouTube-8M's
VERSION = 1  # increased whenever the bytes of a seed change
TRAIN_VIDEOS = 200
RATED_VIDEOS = 300
SHARDS = 4  # of each partition
RATED_SEGMENTS = 8  # of a video, at most
POSITIVE = 0.56  # of the ratings, as in the release of 2019
FRAMES = (40, 110)
LOOKS = 3
# Weights of the summands of a frame.
LOOK, CONTEXT, SCENE_NOISE, VIDEO_NOISE, FRAME_NOISE = 7, 14, 45, 40, 40

_TOPICS = {
    "Music": ("Concert", "Guitar", "Piano", "Drum kit"),
    "Sports": ("Football", "Skateboarding", "Swimming", "Boxing"),
    "Food": ("Cooking", "Baking", "Barbecue", "Coffee"),
    "Vehicles": ("Car", "Motorcycle", "Train", "Boat"),
    "Animals": ("Dog", "Cat", "Horse", "Aquarium"),
    "Games": ("Racing game", "Card game", "Chess", "Arcade"),
    "Home": ("Gardening", "Carpentry", "Knitting", "Painting"),
    "Outdoors": ("Camping", "Fishing", "Mountain", "Beach"),
}
_STYLES = ("Interview", "Tutorial", "Slow motion", "Advertisement")  # of a whole video, never rated
_RELATED = {
    "Concert": ("Guitar", "Drum kit"),
    "Racing game": ("Car",),
    "Boat": ("Fishing", "Beach"),
    "Fishing": ("Boat",),
    "Camping": ("Mountain", "Barbecue"),
    "Swimming": ("Beach",),
    "Coffee": ("Baking",),
    "Arcade": ("Racing game",),
    "Horse": ("Mountain",),
    "Dog": ("Cat", "Gardening"),
}
_TOPIC_CHANCE = 0.85  # the probability that a scene's theme adds its topic
_RELATED_CHANCE = 0.6
# Ids are text. These look like numbers or Python constants, as some real ones do.
_AWKWARD_IDS = ("1e10", "0012", "00e1", "0x1F", "None", "True", "9999", "inf0", "NaN1", "1_00")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

Item = TypeVar("Item")


class _Dice:
    """Random numbers from raw bits, which NumPy keeps stable, unlike its distributions."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, limit: int) -> int:
        return int(self._bits.random_raw()) % limit

    def chance(self, probability: float) -> bool:
        return int(self._bits.random_raw()) >> 11 < probability * 2**53

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def noise(self, *shape: int) -> np.ndarray:
        """Returns int32 with mean 0 and standard deviation 147.8: sums of four bytes."""
        count = int(np.prod(shape))
        words = self._bits.random_raw((count + 1) // 2).astype("<u8", copy=False)
        quads = words.view(np.uint8)[: 4 * count].reshape(*shape, 4).astype(np.int32)
        return quads[..., 0] + quads[..., 1] + quads[..., 2] + quads[..., 3] - 510


@dataclass(frozen=True)
class _World:
    """The classes, their graph and their looks, which all videos share."""

    names: list[str]
    rated: int  # the first classes, whose segments are rated
    themes: list[int]  # classes, repeated by popularity
    edges: dict[int, dict[int, float]]  # class -> class -> probability in its scenes
    looks: np.ndarray  # (rated, LOOKS, 1152) int32
    contexts: np.ndarray  # (rated, 1152) int32


def _make_world(seed: int) -> _World:
    names = [*_TOPICS, *(name for group in _TOPICS.values() for name in group)]
    rated = len(names)
    number = {name: place for place, name in enumerate([*names, *_STYLES])}
    edges: dict[int, dict[int, float]] = {}
    themes: list[int] = []
    dice = _Dice(seed, 0)
    width = SCHEMA.width
    topic_looks = dice.noise(len(_TOPICS), width)
    class_looks = dice.noise(rated, 1, width)
    looks = dice.noise(rated, LOOKS, width) + class_looks
    contexts = dice.noise(rated, width)
    for place, (topic, group) in enumerate(_TOPICS.items()):
        for rank, name in enumerate(group):
            edges[number[name]] = {number[topic]: _TOPIC_CHANCE}
            edges[number[name]] |= {number[n]: _RELATED_CHANCE for n in _RELATED.get(name, ())}
            themes += [number[name]] * (5 - rank)
            looks[number[name]] += topic_looks[place]
    return _World([*names, *_STYLES], rated, themes, edges, looks, contexts)


@dataclass(frozen=True)
class _Video:
    present: np.ndarray  # (T, rated) bool
    labels: list[int]
    frames: np.ndarray  # (T, 1152) uint8
    ratings: Ratings | None


def _make_video(world: _World, dice: _Dice, rate: bool) -> _Video:
    length = FRAMES[0] + dice.below(FRAMES[1] - FRAMES[0] + 1)
    width = SCHEMA.width
    present = np.zeros((length, world.rated), bool)
    total = dice.noise(length, width) * FRAME_NOISE + dice.noise(width) * VIDEO_NOISE
    favourite = dice.pick(world.themes)  # videos have a subject
    begin = 0
    while begin < length:
        end = min(length, begin + 14 + dice.below(26))
        if length - end < 10:
            end = length
        theme = favourite if dice.chance(0.5) else dice.pick(world.themes)
        scene = [theme, *(j for j, chance in world.edges[theme].items() if dice.chance(chance))]
        total[begin:end] += dice.noise(width) * SCENE_NOISE
        for place, label in enumerate(scene):
            first, last = begin, end
            if place and dice.chance(0.5):  # an added class may start later or end sooner
                first += dice.below((end - begin) // 2)
                last = min(end, first + max(SCHEMA.segment_size, (end - begin) // 2))
            present[first:last, label] = True
            strength = LOOK // 2 + dice.below(LOOK)
            total[first:last] += world.looks[label, dice.below(LOOKS)] * strength
        begin = end
    labels = np.flatnonzero(present.any(axis=0)).tolist()
    for label in labels:
        total += world.contexts[label] * (CONTEXT // 2 + dice.below(CONTEXT))
    labels += [world.rated + i for i in range(len(_STYLES)) if dice.chance(0.2)]
    # Noise of weight w has a standard deviation of 0.58 w; that of the sum is 30 of 255 steps.
    frames = np.clip(128 + (total >> 8), 0, 255).astype(np.uint8)
    ratings = _rate(world, dice, present) if rate else None
    return _Video(present, labels, frames, ratings)


def _rate(world: _World, dice: _Dice, present: np.ndarray) -> Ratings:
    """Rates one class per segment: one present in most of it, or an absent one like those."""
    length = len(present)
    starts = list(range(0, length - SCHEMA.segment_size + 1, SCHEMA.segment_size))
    while len(starts) > RATED_SEGMENTS:
        starts.pop(dice.below(len(starts)))
    in_video = np.flatnonzero(present.any(axis=0)).tolist()
    classes, scores = [], []
    for start in starts:
        frames = present[start : start + SCHEMA.segment_size].sum(axis=0)
        positives = np.flatnonzero(2 * frames >= SCHEMA.segment_size).tolist()
        absent = frames == 0
        elsewhere = [label for label in in_video if absent[label]]
        related = [j for i in positives for j in world.edges.get(i, ()) if absent[j]]
        if dice.chance(POSITIVE):
            classes.append(dice.pick(positives))
            scores.append(1.0)
        else:
            others = elsewhere + related
            if not others:
                others = np.flatnonzero(absent).tolist()
            classes.append(dice.pick(others))
            scores.append(0.0)
    return Ratings(
        np.array(starts, np.int64), np.array(classes, np.int64), np.array(scores, np.float32)
    )


def generate(folder: str | os.PathLike[str], *, seed: int = 0, progress: bool = True) -> Path:
    """Writes the sample into an empty or new folder; returns the folder.

    It holds ``train/`` (4 shards of 50 videos) and ``validate/`` (4 of 75, with 8 rated segments
    each), ``vocabulary.csv`` and ``segment_vocabulary.csv`` in the layout of the published files,
    ``graph.json`` with the planted edges and their probabilities, and last ``sample.json``.

    Args:
        folder: The folder to write, about 45 MB.
        seed: The same seed gives the same bytes.
        progress: Whether to show a progress bar, or log lines without a terminal.

    Raises:
        pyseg.errors.DataError: The folder is not empty.
        ValueError: ``seed`` is less than 0.
        OSError: The folder cannot be written.
    """
    if seed < 0:
        raise ArgumentError(f"seed: expected at least 0, found {seed}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already and is not an empty folder")
    world = _make_world(seed)
    ids = _make_ids(seed, TRAIN_VIDEOS + RATED_VIDEOS)
    videos = np.zeros(len(world.names), np.int64)
    rated = np.zeros((2, world.rated), np.int64)  # all, positive
    sizes: dict[str, int] = {}
    bar = Progress("sample", "videos", len(ids), hidden=not progress)

    def records(numbers: range, rate: bool) -> Iterator[bytes]:
        for number in numbers:
            video = _make_video(world, _Dice(seed, 1, number), rate)
            if rate and video.ratings is not None:
                np.add.at(rated[0], video.ratings.classes, 1)
                np.add.at(rated[1], video.ratings.classes[video.ratings.scores > 0], 1)
            else:
                videos[video.labels] += 1
            yield encode_frames(ids[number], video.frames, video.labels, video.ratings)
            bar.update()

    with bar:
        first = 0
        for partition, count in (("train", TRAIN_VIDEOS), ("validate", RATED_VIDEOS)):
            (folder / partition).mkdir(parents=True, exist_ok=True)
            for shard in range(SHARDS):
                numbers = range(first + shard, first + count, SHARDS)
                name = f"{partition}/{partition}{shard:04d}.tfrecord"
                write_records(folder / name, records(numbers, partition == "validate"))
                sizes[name] = (folder / name).stat().st_size
            first += count
    _write_tables(folder, world, videos, rated)
    _write_json(folder / "sample.json", {"version": VERSION, "seed": seed, "bytes": sizes})
    return folder


def _make_ids(seed: int, count: int) -> list[str]:
    dice = _Dice(seed, 2)
    ids = set(_AWKWARD_IDS)
    while len(ids) < count:
        ids.add("".join(dice.pick(_ALPHABET) for _ in range(4)))
    order = sorted(ids)
    for place in range(count - 1, 0, -1):
        other = dice.below(place + 1)
        order[place], order[other] = order[other], order[place]
    return order


def _write_tables(folder: Path, world: _World, videos: np.ndarray, rated: np.ndarray) -> None:
    lines = ["Index,TrainVideoCount,KnowledgeGraphId,Name,Vertical1"]
    topics = {name: topic for topic, group in _TOPICS.items() for name in (topic, *group)}
    for number, name in enumerate(world.names):
        topic = topics.get(name, "Style")
        lines.append(f"{number},{videos[number]},/sample/{number:02d},{name},{topic}")
    _write(folder / vocabulary.FILE, "\n".join(lines) + "\n")
    lines = ["Index,KnowledgeGraphId,Name,PositiveSegmentCount,TotalSegmentCount"]
    for number, name in enumerate(world.names[: world.rated]):
        lines.append(f"{number},/sample/{number:02d},{name},{rated[1, number]},{rated[0, number]}")
    _write(folder / vocabulary.SEGMENT_FILE, "\n".join(lines) + "\n")
    edges = [
        {"class": i, "implies": j, "probability": probability}
        for i, targets in world.edges.items()
        for j, probability in targets.items()
    ]
    _write_json(folder / "graph.json", {"classes": world.names, "edges": edges})


def _write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def make_sample(seed: int = 0) -> Path:
    """Returns the folder of the generated sample, which the first call writes.

    It is in the user's cache folder (``PYSEG_CACHE``, else ``~/.cache/pyseg``), where it appears
    only when complete: neither an interruption nor concurrent processes leave a part of it.

    Raises:
        pyseg.errors.DataError: The folder has been damaged since.
        OSError: The folder cannot be written.

    Example:
        >>> sorted(path.name for path in make_sample().iterdir())[:2]
        ['graph.json', 'sample.json']
    """
    folder = user_cache() / f"sample-{VERSION}-{seed}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: expected a folder to keep the sample in, which PYSEG_CACHE chooses: "
            f"{error.strerror}"
        ) from error
    place = folder.parent / f".{folder.name}.unfinished"
    while not folder.exists():
        try:
            with sole_owner(place):
                if not folder.exists():
                    _generate_atomically(place / folder.name, folder, seed)
        except UserError:  # another process is writing it
            time.sleep(0.1)
    with contextlib.suppress(OSError):  # another process may have finished it meanwhile
        place.rmdir()
    _check(folder)
    return folder


def _generate_atomically(unfinished: Path, folder: Path, seed: int) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    try:
        generate(unfinished, seed=seed)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check(folder: Path) -> None:
    try:
        sizes = read_json(folder / "sample.json")["bytes"].items()
    except (OSError, DataError, KeyError, TypeError, AttributeError):
        sizes = [("sample.json", None)]
    for name, size in sizes:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path} is not as it was written: delete {folder} to generate it anew")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.data.sample``."""
    parser = argparse.ArgumentParser(
        prog="python -m pyseg.data.sample",
        description="Writes a small generated collection in the layout of YouTube-8M.",
    )
    parser.add_argument("--out", help="the folder to write; default: one in the user's cache")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other videos")
    options = parser.parse_args(argv)
    if options.seed < 0:
        parser.error(f"--seed {options.seed}: expected at least 0")
    try:
        if options.out is None:
            folder = make_sample(options.seed)
        else:
            folder = generate(options.out, seed=options.seed)
    except (OSError, DataError) as error:
        parser.exit(1, f"pyseg: error: {error}\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(
        f"{folder}: {TRAIN_VIDEOS} videos with labels, {RATED_VIDEOS} with "
        f"up to {RATED_SEGMENTS} rated segments each, {size / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
