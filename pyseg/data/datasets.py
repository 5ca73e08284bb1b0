"""Data sets of videos and rated segments, read from TFRecord shards.

See :class:`FrameDataset`, :class:`SegmentDataset`, :class:`VideoDataset` and :func:`loader`.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import itertools
import math
import mmap
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pyseg._progress import Progress
from pyseg._sampling import sample_random_frames, sample_random_sequence
from pyseg.data.batch import Batch, Example, collate
from pyseg.data.records import (
    FrameRecord,
    FrameSchema,
    Ratings,
    ReadReport,
    VideoSchema,
    is_record_file,
    read_frames,
    read_videos,
)
from pyseg.errors import ArgumentError, MissingFileError, UserError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
OnError = Literal["raise", "skip"]
Self = TypeVar("Self", bound="RecordDataset")

VIEW_OPTIONS = ("keep", "select", "shuffle", "seed", "buffer", "repeat", "rank", "world_size")
_RECORD_NAME = re.compile(r".+\.tfrec(ord)?s?(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE)
MOST_WORKERS = 128
_COUNTS = (
    "records",
    "skipped",
    "unlabelled",
    "dropped_segments",
    "cut_segments",
    "duplicate_ratings",
)
_ERROR_BYTES = 1000


def named_as_records(path: str) -> bool:
    """Returns whether the name of a file is one that TFRecords go by.

    Example:
        >>> named_as_records("val.tfrecord-00000-of-00001"), named_as_records("vocabulary.csv")
        (True, False)
    """
    return _RECORD_NAME.fullmatch(os.path.basename(path)) is not None


def find_shards(paths: Paths) -> list[str]:
    """Returns the files that a glob, a folder, a file, or a list of these stands for.

    A folder stands for every file of records in it, at any depth: ``*.tfrecord``, ``*.tfrecords``
    and ``*.tfrec``, which may go on with ``-00000-of-00001`` and ``.gz``; where no name is like
    that, every file that begins as TFRecords do. The order is that of the names (of a list: of its
    elements), and a file that comes up twice counts once.

    Raises:
        FileNotFoundError: One of ``paths`` stands for nothing; the message names it.

    Example:
        >>> find_shards("no/such/*.tfrecord")
        Traceback (most recent call last):
        ...
        pyseg.errors.MissingFileError: no/such/*.tfrecord: no file matches
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[str, str] = {}
    for path in paths:
        text = os.fspath(path)
        if os.path.isdir(text):
            every = sorted(str(p) for p in Path(text).rglob("*") if not p.is_dir())
            files = list(filter(named_as_records, every)) or list(filter(_holds_records, every))
            missing = "no file in this folder ends in .tfrecord or .tfrecord.gz, or holds records"
        elif os.path.exists(text):
            files, missing = [text], ""
        elif glob.has_magic(text):
            files = sorted(p for p in glob.glob(text, recursive=True) if os.path.isfile(p))
            missing = "no file matches"
        else:
            files, missing = [], "no such file or folder"
        if not files:
            raise MissingFileError(f"{text}: {missing}")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise ArgumentError("paths: expected at least one file, found none")
    return list(found.values())


def _holds_records(path: str) -> bool:
    """Returns whether a file holds records, and is none that is still being written."""
    name = os.path.basename(path)
    unfinished = name.startswith(".") or name.endswith(".part")
    return not unfinished and os.path.isfile(path) and is_record_file(path)


def held_out(id: str, fraction: float = 0.2, seed: int = 0) -> bool:
    """Returns whether a video belongs to the part that is held out for evaluation.

    The answer depends on nothing but the arguments: it is the same in every process, on every
    machine, for every form of a collection. Pass the id of the video, never that of a segment:
    segments of one video must not come to lie on both sides.

    Args:
        id: The video's id.
        fraction: The part to hold out, in [0, 1].
        seed: Another seed holds out other videos.

    Raises:
        ValueError: ``fraction`` is not in [0, 1].

    Example:
        >>> sum(held_out(f"{number:04d}", 0.2) for number in range(10_000))
        1924
    """
    if not 0 <= fraction <= 1:
        raise ArgumentError(f"fraction must be in [0, 1], got {fraction}")
    return stable_hash(id, seed) < fraction * 2**64


def stable_hash(text: str, *key: int) -> int:
    """Returns 64 bits that depend on text and key only; hash() differs between processes."""
    message = ":".join([*map(str, key), text]).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


class Share(NamedTuple):
    """What one consumer reads of a shard: the records whose number % part[1] is part[0]."""

    shard: int
    part: tuple[int, int]


def divide(num_shards: int, consumers: int, consumer: int) -> list[Share]:
    """Returns what one of several consumers reads, so that nothing is lost or read twice.

    Consumers take whole shards while there is one for each of them. The shards that are left over,
    fewer than consumers, are divided by record, so that all shares are of one size.

    Args:
        num_shards: Shards of the data set.
        consumers: Ranks times DataLoader workers.
        consumer: Which of them, from 0.

    Example:
        >>> divide(3, 2, 1)
        [Share(shard=1, part=(0, 1)), Share(shard=2, part=(1, 2))]
    """
    whole = num_shards - num_shards % consumers
    shares = [Share(shard, (0, 1)) for shard in range(consumer, whole, consumers)]
    return shares + [Share(shard, (consumer, consumers)) for shard in range(whole, num_shards)]


class Position(NamedTuple):
    """Where one consumer of a stream stands: all that is needed to go on from there.

    Attributes:
        epoch: The pass.
        share: The consumer's share of the shards that its chunk begins in.
        skip: Examples of that share which came before the chunk.
        chunk: The number of the chunk in the pass.
        done: Examples of the chunk that have been handed out.
    """

    epoch: int
    share: int = 0
    skip: int = 0
    chunk: int = 0
    done: int = 0


class Start(NamedTuple):
    """Where a `loader` begins.

    Attributes:
        batches: Batches that came before.
        positions: Where each worker stands, by number, for data sets that are not in memory; none
            at the very beginning.
    """

    batches: int = 0
    positions: tuple[Position, ...] = ()


def _shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor that forked processes have in common, without a file in /dev/shm.

    Where processes are not forked, torch moves it there when it is sent to one.
    """
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class _Shared:
    """What the copies of a data set, in worker processes too, have in common: shared memory."""

    def __init__(self, counts: int) -> None:
        self.epoch = _shared_zeros((), torch.int64)
        self.counts = _shared_zeros((MOST_WORKERS, counts), torch.int64)
        self.errors = _shared_zeros((MOST_WORKERS, _ERROR_BYTES), torch.uint8)

    def write(self, worker: int, counts: list[int], error: str | None) -> None:
        """Stores what a worker has counted in its pass; every worker has a row to itself."""
        self.counts[worker] = torch.tensor(counts)
        text = (error or "").encode("utf-8", "replace")[:_ERROR_BYTES]
        padded = np.frombuffer(text.ljust(_ERROR_BYTES, b"\0"), np.uint8)
        self.errors.numpy()[worker] = padded

    def error(self) -> str | None:
        texts = (row.tobytes().rstrip(b"\0") for row in self.errors.numpy())
        return next((text.decode("utf-8", "replace") for text in texts if text), None)


class _Memory:
    """Examples held column by column, their frames in one contiguous array.

    The columns are tensors, because torch hands those to worker processes without a copy.
    """

    def __init__(self, examples: Iterable[tuple[str, str, Example]]) -> None:
        self.paths: list[str] = []
        self.videos: list[str] = []
        self.ids: list[str] = []
        frames = np.empty((0, 0), np.uint8)
        lengths, counts = [0], [0]
        classes, scores = [], []
        # A file that is nowhere but in memory grows without a copy. An array of the C library's
        # memory may be copied, and what it leaves behind is kept (`pyseg._memory`).
        with os.fdopen(os.memfd_create("pyseg"), "wb") as file:
            for path, video, example in examples:
                frames = np.ascontiguousarray(example.frames)
                file.write(frames.data)
                lengths.append(len(frames))
                counts.append(len(example.classes))
                self.paths.append(path)
                self.videos.append(video)
                self.ids.append(example.id)
                classes.append(example.classes)
                scores.append(example.scores)
            file.flush()
            if sum(lengths):
                mapped = mmap.mmap(file.fileno(), 0)
                frames = np.frombuffer(mapped, frames.dtype).reshape(-1, frames.shape[1])
        self.frames = torch.from_numpy(frames)
        self.frame_offsets = torch.from_numpy(np.cumsum(lengths, dtype=np.int64))
        self.offsets = torch.from_numpy(np.cumsum(counts, dtype=np.int64))
        self.classes = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *classes]))
        self.scores = torch.from_numpy(np.concatenate([np.empty(0, np.float32), *scores]))
        self._arrays: list[np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Sending a tensor to another process moves it: arrays made before have the old memory.
        self._arrays = None
        return self.__dict__

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Example:
        if self._arrays is None:
            columns = self.frame_offsets, self.offsets, self.frames, self.classes, self.scores
            self._arrays = [_frozen(tensor) for tensor in columns]
        frame_offsets, offsets, frames, classes, scores = self._arrays
        first, last = frame_offsets[number : number + 2].tolist()
        begin, end = offsets[number : number + 2].tolist()
        return Example(self.ids[number], frames[first:last], classes[begin:end], scores[begin:end])


def _frozen(tensor: Tensor) -> np.ndarray:
    array = tensor.numpy()
    array.flags.writeable = False
    return array


class RecordDataset(IterableDataset[Example]):
    """What the data sets of this package have in common; use one of its subclasses.

    A data set is divided over the ranks of a distributed run and over the workers of a DataLoader
    (every rank must have as many), whatever their numbers and that of the shards: each example
    comes up exactly once in a pass. Where there are fewer shards than consumers, and for the
    shards that are left over, every consumer reads the whole file and decodes its own records.

    The order depends on ``seed``, the epoch, and the numbers of ranks and workers; on the last two
    not at all with ``cache=True`` in a `loader`. Ranks may have one batch more or less than
    others in a pass; with ``repeat=True`` none ever ends.

    Args:
        paths: Shards: a glob, a folder, a file, or a list of these (`find_shards`).
        shuffle: Shuffle the shards, and the examples within chunks; in memory, all of them.
        seed: Decides the order, and which frames are sampled; at least 0.
        buffer: Examples that are read ahead and shuffled with each other, a chunk.
        keep: Which videos to read, by id; a function of this kind must be picklable where worker
            processes are not forked.
        select: Likewise, by shard and id, for what the id alone does not tell.
        classes: Restrict labels and ratings to these classes, and renumber them by their position
            in this list. A video without any of them stays, a segment is left out.
        on_error: "raise" stops at a faulty record, "skip" leaves it out and counts it
            (`pyseg.data.records.read_frames`).
        cache: Read all examples at once and keep them in memory, as they are stored.
        repeat: Go on with the next epoch for ever instead of ending after one.
        rank: This process's part of a distributed run; default: torch.distributed's, where it is
            initialised by the time the data set is iterated over, else 0.
        world_size: Parts of the distributed run; default likewise, else 1.

    Raises:
        FileNotFoundError: ``paths`` stands for nothing.
        ValueError: An argument is out of range.
        pyseg.errors.RecordError: A record is faulty (while iterating; with ``cache``, at once).
    """

    _unrated_examples = True  # whether an example that `classes` leaves without a class stays
    _counts: tuple[str, ...] = _COUNTS

    def __init__(
        self,
        paths: Paths,
        *,
        shuffle: bool = False,
        seed: int = 0,
        buffer: int = 1000,
        keep: Callable[[str], bool] | None = None,
        select: Callable[[str, str], bool] | None = None,
        classes: Sequence[int] | None = None,
        on_error: OnError = "raise",
        cache: bool = False,
        repeat: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.paths = find_shards(paths)
        self.shuffle = shuffle
        self.seed = seed
        self.buffer = buffer
        self.keep = keep
        self.select = select
        self.classes = None if classes is None else list(classes)
        self.on_error = on_error
        self.repeat = repeat
        self.rank = rank
        self.world_size = world_size
        self._check_options()
        self._positions = _positions(self.classes)
        self._block = 1
        self._start = Start()
        self._position = Position(0)  # of this process's copy, after the last example
        self._shared = _Shared(len(self._counts))
        self._memory: _Memory | None = None
        self._kept: np.ndarray | None = None
        if cache:
            self._memory = self._read_all()
            self._kept = np.arange(len(self._memory))

    def _check_options(self) -> None:
        if self.seed < 0:
            raise ArgumentError(f"seed must be at least 0, got {self.seed}")
        if self.buffer < 1:
            raise ArgumentError(f"buffer must be at least 1, got {self.buffer}")
        if self.on_error not in ("raise", "skip"):
            raise ArgumentError(f'on_error must be "raise" or "skip", got {self.on_error!r}')
        if (self.rank is None) != (self.world_size is None):
            raise ArgumentError("rank and world_size must be given together")
        if self.rank is not None and not 0 <= self.rank < cast(int, self.world_size):
            raise ArgumentError(f"rank must be in [0, {self.world_size}), got {self.rank}")

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order (and sampled frames) of the next pass, in running workers too."""
        self._shared.epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The number of the next pass."""
        return int(self._shared.epoch)

    @property
    def cached(self) -> bool:
        """Whether all examples are in memory."""
        return self._memory is not None

    @property
    def report(self) -> ReadReport:
        """What the current or last pass met with, in all workers of this process together.

        A worker counts a shard when it has read it, and a record that it skips at once. Where
        passes repeat, it is the first that is counted.
        """
        counts = dict(zip(self._counts, self._shared.counts.sum(dim=0).tolist(), strict=True))
        return ReadReport(
            **{name: counts[name] for name in _COUNTS}, first_error=self._shared.error()
        )

    def group(self) -> tuple[int, int]:
        """Returns rank and world size: which part of the data this process reads."""
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def fingerprint(self) -> dict[str, Any]:
        """Returns what tells the data from other data, in numbers, text and dictionaries.

        That is, of every shard, its size and a digest of its first and last 4096 bytes, and of a
        cache a digest of what it keeps of ids, classes and scores.
        """
        common = os.path.commonpath([os.path.dirname(os.path.realpath(p)) for p in self.paths])
        shards = {
            os.path.relpath(os.path.realpath(path), common): _shard_fingerprint(path)
            for path in self.paths
        }
        found: dict[str, Any] = {"shards": shards}
        if self._memory is not None:
            kept = self._kept_numbers()
            ids = "\n".join(self._memory.ids[n] for n in kept)
            digest = hashlib.sha256(ids.encode("utf-8", "surrogateescape"))
            for tensor in (self._memory.offsets, self._memory.classes, self._memory.scores):
                digest.update(tensor.numpy().tobytes())
            found |= {"examples": len(kept), "ratings": digest.hexdigest()[:16]}
        return found

    def subset(self: Self, **changes: Any) -> Self:
        """Returns the same data set with other options; a cache is shared, not read again.

        Args:
            changes: ``keep``, ``select``, ``shuffle``, ``seed``, ``buffer``, ``repeat``, ``rank``
                or ``world_size``. The first two choose among the videos of a cached data set, and
                replace those of one that is not.

        Raises:
            TypeError: Another option is to change.
        """
        if wrong := changes.keys() - set(VIEW_OPTIONS):
            raise TypeError(f"subset cannot change {', '.join(sorted(wrong))}")
        other = self._copy()
        other.__dict__.update(changes)
        other._check_options()
        other._shared = _Shared(len(self._counts))
        if self._memory is not None:
            other._shared.counts.copy_(self._shared.counts)
            other._shared.errors.copy_(self._shared.errors)
            paths, videos = self._memory.paths, self._memory.videos
            kept = [n for n in self._kept_numbers().tolist() if other._wants(paths[n], videos[n])]
            other._kept = np.array(kept, np.int64)
        return other

    def __len__(self) -> int:
        """Returns the number of examples of this rank, if they are in memory.

        Raises:
            TypeError: They are not: the number is known after reading them only.
        """
        if self._memory is None or self.repeat:
            raise TypeError(f"{type(self).__name__} has a length only with cache=True, unrepeated")
        rank, world_size = self.group()
        return len(range(rank, len(self._kept_numbers()), world_size))

    def __iter__(self) -> Iterator[Example]:
        """Yields the examples of this rank and worker."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > MOST_WORKERS:
            raise ArgumentError(f"expected at most {MOST_WORKERS} workers, got {workers}")
        rank, world_size = self.group()
        epoch = self.epoch
        if self._memory is not None:
            return self._recall(epoch, rank, world_size, worker, workers)
        consumer, position = (worker + self._start.batches) % workers, Position(epoch)
        if self._start.positions:
            position = self._start.positions[consumer]
        self._shared.write(worker, [0] * len(self._counts), None)
        if worker == 0:  # what more workers may have counted before
            self._shared.counts[workers:] = 0
            self._shared.errors[workers:] = 0
        return self._stream(position, rank * workers + consumer, world_size * workers, worker)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a worker process is given: there, torch.distributed is not initialised."""
        rank, world_size = self.group()
        return {**self.__dict__, "rank": rank, "world_size": world_size}

    def _read(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        """Yields (video id, example) for some records of a shard."""
        raise NotImplementedError

    def _count(self, report: ReadReport) -> list[int]:
        """Returns the numbers that ``_counts`` names."""
        return [getattr(report, name) for name in _COUNTS]

    def _transform(self, example: Example, epoch: int) -> Example:
        return example

    def _copy(self: Self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def _kept_numbers(self) -> np.ndarray:
        return cast(np.ndarray, self._kept)

    def _read_all(self) -> _Memory:
        report = ReadReport()

        def read() -> Iterator[tuple[str, str, Example]]:
            with Progress("reading", "shards", len(self.paths)) as bar:
                for path in self.paths:
                    for video, example in self._select(path, (0, 1), report):
                        yield path, video, example
                    bar.update()

        memory = _Memory(read())
        report.warn(type(self).__name__)
        self._shared.write(0, self._count(report), report.first_error)
        return memory

    def _wants(self, path: str, video: str) -> bool:
        if self.keep is not None and not self.keep(video):
            return False
        return self.select is None or self.select(path, video)

    def _select(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        """Yields what `_read` does, as far as ``keep`` and ``classes`` let it."""
        for video, example in self._read(path, shard, report):
            if not self._wants(path, video):
                continue
            if self._positions is not None:
                positions = self._positions[example.classes.clip(max=len(self._positions) - 1)]
                among = positions >= 0
                if not (self._unrated_examples or among.any()):
                    continue
                example = example._replace(classes=positions[among], scores=example.scores[among])
            yield video, example

    def _stream(
        self, start: Position, consumer: int, consumers: int, worker: int
    ) -> Iterator[Example]:
        report = ReadReport()
        first_epoch = epoch = start.epoch
        try:
            for epoch in itertools.count(first_epoch):
                empty = start == Position(epoch)
                counted = report if epoch == first_epoch else None
                for example in self._pass(start, consumer, consumers, worker, counted):
                    empty = False
                    yield example
                if counted is not None:
                    report.warn(type(self).__name__)
                if empty or not self.repeat:
                    return
                start = self._position = Position(epoch + 1)
        finally:
            if epoch == first_epoch:
                self._shared.write(worker, self._count(report), report.first_error)

    def _pass(
        self,
        start: Position,
        consumer: int,
        consumers: int,
        worker: int,
        counted: ReadReport | None,
    ) -> Iterator[Example]:
        """Yields the examples of an epoch from some position on; ``_position`` follows them.

        They are read in chunks, each of which is shuffled for itself: so the way back to a position
        is to read one chunk again, and not the epoch.
        """
        epoch = start.epoch
        shards = np.arange(len(self.paths))
        if self.shuffle:
            shards = _generator(self.seed, epoch).permutation(shards)
        shares = divide(len(shards), consumers, consumer)
        if self.shuffle:
            _generator(self.seed, epoch, consumer, 0).shuffle(shares)

        report = ReadReport() if counted is None else counted

        def read() -> Iterator[tuple[tuple[int, int], Example]]:
            """Yields every example from the beginning of the chunk on, and the place after it."""
            for number in range(start.share, len(shares)):
                path = self.paths[shards[shares[number].shard]]
                examples = self._select(path, shares[number].part, report)
                skipped = start.skip if number == start.share else 0
                rest = itertools.islice(examples, skipped, None)
                told = report.skipped
                for count, (_, example) in enumerate(rest, skipped + 1):
                    if report.skipped > told and counted is not None:
                        self._shared.write(worker, self._count(report), report.first_error)
                        told = report.skipped
                    yield (number, count), example
                if counted is not None:
                    self._shared.write(worker, self._count(report), report.first_error)

        items = read()
        place, done = (start.share, start.skip), start.done
        for chunk in itertools.count(start.chunk):
            held = list(itertools.islice(items, self.buffer if self.shuffle else 1))
            if not held:
                return
            after = held[-1][0]
            waiting: list[Example | None] = [example for _, example in held]
            held.clear()
            order = np.arange(len(waiting))
            if self.shuffle:
                order = _generator(self.seed, epoch, consumer, 1, chunk).permutation(order)
            for number in order[done:].tolist():
                done += 1
                self._position = Position(epoch, *place, chunk, done)
                example, waiting[number] = waiting[number], None  # memory goes as it is used
                yield self._transform(cast(Example, example), epoch)
            place, done = after, 0

    def _recall(
        self, first_epoch: int, rank: int, world_size: int, worker: int, workers: int
    ) -> Iterator[Example]:
        """Yields from memory; the batches are the same whatever the number of workers.

        DataLoader takes batches from its workers in turn, so a worker takes every n-th batch.
        """
        memory = cast(_Memory, self._memory)
        kept = self._kept_numbers()
        if not len(kept):
            return
        start = 0  # examples of this rank before this epoch
        skipped = self._start.batches
        for epoch in itertools.count(first_epoch):
            before = (epoch - first_epoch) * len(kept)
            turn = (rank - before) % world_size
            end = start + len(range(turn, len(kept), world_size))
            if end > skipped * self._block:
                order = kept
                if self.shuffle:
                    order = _generator(self.seed, epoch).permutation(kept)
                blocks = np.arange(start, end) // self._block - skipped
                mine = (blocks >= 0) & (blocks % workers == worker)
                for number in order[turn::world_size][mine].tolist():
                    yield self._transform(memory[number], epoch)
            start = end
            if not self.repeat:
                return


def _unique(labels: np.ndarray) -> np.ndarray:
    """Returns the labels of a record, those that it has twice only once, in their order."""
    if len(labels) < 2:
        return labels
    first = np.unique(labels, return_index=True)[1]
    return labels if len(first) == len(labels) else labels[np.sort(first)]


def _positions(classes: list[int] | None) -> np.ndarray | None:
    """Returns (largest class + 2,) int64: the position of each class, -1 where it has none."""
    if classes is None:
        return None
    if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
        raise ArgumentError("classes must be different numbers, at least one, none below 0")
    positions = np.full(max(classes) + 2, -1, np.int64)
    positions[classes] = np.arange(len(classes))
    return positions


def _shard_fingerprint(path: str) -> str:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        ends = file.read(4096)
        file.seek(max(0, size - 4096))
        ends += file.read()
    return f"{size} bytes, digest {hashlib.sha256(ends).hexdigest()[:16]}"


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


class FrameDataset(RecordDataset):
    """Videos as frames, with the labels of the whole video.

    Args:
        paths: See `RecordDataset`.
        schema: What the features are called; default: YouTube-8M's rgb and audio.
        max_frames: Frames of a video that are used, from its start; None for all.
        sampling: "all" frames, or ``num_samples`` of them: "random-frames", drawn with replacement
            and kept in the order of time, or a "random-sequence" (`sample_random_sequence`). The
            draw depends on ``seed``, epoch and video only, so every epoch sees other frames.
        num_samples: How many frames to sample.
        options: See `RecordDataset`.

    Example:
        >>> from pyseg.data.sample import make_sample
        >>> dataset = FrameDataset(make_sample() / "train", sampling="random-frames")
        >>> next(iter(dataset)).frames.shape
        (30, 1152)
    """

    def __init__(
        self,
        paths: Paths,
        schema: FrameSchema = FrameSchema(),  # noqa: B008 - immutable
        *,
        max_frames: int | None = 300,
        sampling: Literal["all", "random-frames", "random-sequence"] = "all",
        num_samples: int = 30,
        **options: Any,
    ) -> None:
        if sampling not in ("all", "random-frames", "random-sequence"):
            raise ArgumentError(
                f'sampling must be "all", "random-frames" or "random-sequence", got {sampling!r}'
            )
        for name, value in (("max_frames", max_frames), ("num_samples", num_samples)):
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}")
        self.schema = schema
        self.max_frames = max_frames
        self.sampling = sampling
        self.num_samples = num_samples
        super().__init__(paths, **options)

    def _read(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        for record in read_frames(
            path,
            self.schema,
            max_frames=self.max_frames,
            on_error=self.on_error,
            report=report,
            shard=shard,
        ):
            labels = _unique(record.labels)
            ones = np.ones(len(labels), np.float32)
            yield record.id, Example(record.id, record.frames, labels, ones)

    def _transform(self, example: Example, epoch: int) -> Example:
        if self.sampling == "all":
            return example
        generator = torch.Generator().manual_seed(stable_hash(example.id, self.seed, epoch))
        num_frames = torch.tensor([len(example.frames)])
        if self.sampling == "random-frames":
            frames = sample_random_frames(
                num_frames, self.num_samples, ordered=True, generator=generator
            )
        else:
            frames = sample_random_sequence(num_frames, self.num_samples, generator=generator)
        return example._replace(frames=example.frames[frames[0].numpy()])


class SegmentDataset(RecordDataset):
    """Rated segments: one example a segment, with all classes that are rated for it.

    An example's id is ``"<video id>:<start frame>"``. A segment that the end of its video cuts has
    as many frames as are left. Videos without ratings are passed over.

    With ``cache=True`` a collection of 235,000 segments takes 1.35 GB; the frames around them are
    not kept.

    Args:
        paths: See `RecordDataset`.
        schema: What the features are called, and how long a segment is; default: YouTube-8M's.
        options: See `RecordDataset`.

    Example:
        >>> from pyseg.data.sample import make_sample
        >>> segment = next(iter(SegmentDataset(make_sample() / "validate")))
        >>> segment.frames.shape, len(segment.classes)
        ((5, 1152), 1)
    """

    _unrated_examples = False

    def __init__(
        self,
        paths: Paths,
        schema: FrameSchema = FrameSchema(),  # noqa: B008 - immutable
        **options: Any,
    ) -> None:
        self.schema = schema
        super().__init__(paths, **options)

    context_keys: tuple[str, ...] = ()

    def rate(self, record: FrameRecord) -> Ratings | None:
        """Returns the ratings of a video's segments; a subclass may take them from elsewhere."""
        return record.ratings

    def _read(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        size = self.schema.segment_size
        for record in read_frames(
            path,
            self.schema,
            on_error=self.on_error,
            report=report,
            shard=shard,
            context_keys=self.context_keys,
        ):
            ratings = self.rate(record)
            if ratings is None:
                continue
            rows: dict[int, list[int]] = {}  # in order of first appearance
            for row, start in enumerate(ratings.starts.tolist()):
                rows.setdefault(start, []).append(row)
            for start, rated in rows.items():
                # A copy: a view would keep all frames of the video in memory.
                frames = record.frames[start : start + size].copy()
                id = f"{record.id}:{start}"
                example = Example(id, frames, ratings.classes[rated], ratings.scores[rated])
                yield record.id, example


class VideoDataset(RecordDataset):
    """Video-level features, as videos of one float32 frame, with the labels of the video.

    Args:
        paths: See `RecordDataset`.
        schema: What the features are called; default: YouTube-8M's mean_rgb and mean_audio.
        options: See `RecordDataset`.

    Example:
        >>> import os, tempfile
        >>> from pyseg.data import encode_video, write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "train0000.tfrecord")
        >>> write_records(path, [encode_video("06xy", np.zeros(1152), [3, 12])])
        1
        >>> [video] = VideoDataset(path)
        >>> video.frames.shape, video.classes
        ((1, 1152), array([ 3, 12]))
    """

    def __init__(
        self,
        paths: Paths,
        schema: VideoSchema = VideoSchema(),  # noqa: B008 - immutable
        **options: Any,
    ) -> None:
        self.schema = schema
        super().__init__(paths, **options)

    def _read(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        for block in read_videos(
            path, self.schema, block=256, on_error=self.on_error, report=report, shard=shard
        ):
            offsets = block.label_offsets.tolist()
            for row, id in enumerate(block.ids):
                labels = _unique(block.labels[offsets[row] : offsets[row + 1]])
                frames = block.features[row : row + 1]
                yield id, Example(id, frames, labels, np.ones(len(labels), np.float32))


class WorkerError(UserError):
    """A worker process has died, or has no memory that it could share with this one."""


_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: ([\w ]+)|exited)")
_SHARED_MEMORY = re.compile(r"shared memory|Bus error|</torch_")
_TOO_LITTLE = (
    "--workers: expected shared memory for the batches of the processes that read ahead, found too "
    "little in /dev/shm: give a container more (docker run --shm-size), or use fewer --workers; 0 "
    "need none"
)


@contextlib.contextmanager
def worker_errors(workers: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """Reports what becomes of dead workers as a `WorkerError`.

    torch raises it from a signal handler too, wherever the process then is.

    Args:
        workers: The processes, where they are known: others' deaths can have other signs.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(text):
            raise WorkerError(_TOO_LITTLE) from error
        found = _DEAD_WORKER.search(text)
        if found is None and not isinstance(error, ConnectionError | EOFError):
            raise
        wait([worker.sentinel for worker in workers], timeout=1)
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        if found is None and not codes:
            raise
        how = "has ended unexpectedly"
        if found is not None and found[1]:
            how = f"was killed by a signal ({found[1]})"
        elif codes and codes[0] < 0:
            how = f"was killed by a signal ({signal.strsignal(-codes[0])})"
        raise WorkerError(
            f"--workers: a process that reads the data {how}; where memory was short, fewer need "
            "less"
        ) from error


class _Loader(DataLoader[Batch]):
    """A DataLoader that says what has become of its workers."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        try:  # queues need semaphores, which lie there too; torch would be noisy about it
            _ = [multiprocessing.Lock() for _ in range(4 * (self.num_workers + 1))]
        except OSError as error:
            raise WorkerError(_TOO_LITTLE) from error
        batches: Any = super().__iter__()

        def told() -> Iterator[Batch]:
            try:
                with worker_errors(batches._workers):
                    yield from batches
            except Exception:
                # The traceback holds them in a cycle, and the garbage collector first takes the
                # queues from which workers would hear that they are not needed any more.
                self._iterator = None
                batches._shutdown_workers()
                raise

        return told()


def loader(
    dataset: IterableDataset[Example],
    batch_size: int,
    *,
    workers: int = 0,
    frames: int | None = None,
    drop_last: bool = False,
    pin_memory: bool | None = None,
    prefetch: int = 2,
    start: Start = Start(),  # noqa: B008 - immutable
) -> DataLoader[Batch]:
    """Returns a DataLoader of `Batch` for a data set.

    Workers persist from one pass to the next, and torch's global random numbers are not touched. A
    cached data set gives the same batches whatever the number of workers. Every batch that waits
    for its consumer holds one file descriptor and its size in shared memory.

    Args:
        dataset: Examples.
        batch_size: Examples a batch (on every rank).
        workers: Processes that read ahead; 0 reads in this process.
        frames: The length to pad to; default: the longest of each batch (`collate`).
        drop_last: Leave out a last batch that is not full (with workers: of every worker).
        pin_memory: Whether batches are in page-locked memory; default: where there is a GPU.
        prefetch: Batches that every worker reads ahead.
        start: Where to begin; `pyseg.data.Feed` keeps track of it.

    Raises:
        ValueError: An argument is out of range.
        WorkerError: While iterating: a worker has died, or there is too little shared memory.

    Example:
        >>> from pyseg.data.sample import make_sample
        >>> batches = loader(SegmentDataset(make_sample() / "validate"), 80)
        >>> next(iter(batches)).frames.shape
        torch.Size([80, 5, 1152])
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= workers <= MOST_WORKERS:
        raise ArgumentError(f"workers must be in [0, {MOST_WORKERS}], got {workers}")
    seed = 0
    if isinstance(dataset, RecordDataset):
        dataset = dataset._copy()
        dataset._block = batch_size
        dataset._start = start
        seed = dataset.seed
    return _Loader(
        cast(Any, dataset),  # DataLoader's type has no place for what collate_fn makes of examples
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=functools.partial(_collate, dataset, frames=frames),
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )


def _collate(
    dataset: IterableDataset[Example], examples: Sequence[Example], *, frames: int | None
) -> Batch:
    batch = collate(examples, frames=frames)
    info = get_worker_info()  # a worker has a copy of the data set, which knows where it stands
    here = dataset if info is None else info.dataset
    return replace(batch, position=here._position) if isinstance(here, RecordDataset) else batch
