"""Data sets of videos and rated segments, read from TFRecord shards.

See :class:`FrameDataset`, :class:`SegmentDataset` and :class:`VideoDataset`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pyseg import _urls
from pyseg._progress import Progress
from pyseg._sampling import sample_random_frames, sample_random_sequence
from pyseg.data.batch import Example
from pyseg.data.hashing import stable_hash
from pyseg.data.memory import MOST_WORKERS, Counters, ExampleMemory
from pyseg.data.records import (
    FrameRecord,
    FrameSchema,
    OnError,
    Ratings,
    ReadReport,
    VideoSchema,
    check_on_error,
    read_frames,
    read_videos,
)
from pyseg.data.records.report import COUNTS
from pyseg.data.shards import Paths, Share, find_shards, fingerprints
from pyseg.data.stream import Consumer, Position, Start, Stream, recall
from pyseg.errors import ArgumentError

Self = TypeVar("Self", bound="RecordDataset")

VIEW_OPTIONS = ("keep", "select", "shuffle", "seed", "buffer", "repeat", "rank", "world_size")
"""The options that `RecordDataset.subset` can change."""


class RecordDataset(IterableDataset[Example]):
    """The base class of data sets; use one of its subclasses.

    A data set is divided over the ranks of a distributed run and the workers of a DataLoader (the
    same number on every rank): each example is read exactly once in a pass, whatever the numbers of
    ranks, workers and shards. A shard that several consumers share is read by each of them in full,
    but each decodes only its own records.

    The order depends on ``seed``, the epoch, and the numbers of ranks and workers; with
    ``cache=True`` in a `loader`, not on the last two. Ranks may differ by one batch in a pass; with
    ``repeat=True`` no rank ever ends.

    Args:
        paths: Shards: a glob, a folder, a file, a URL of these, or a list (`find_shards`).
        shuffle: Shuffle the shards, and the examples within chunks; in memory, all of them.
        seed: The seed of the order and of sampled frames; at least 0.
        buffer: The examples of a chunk, which are read ahead and shuffled together.
        keep: Returns whether to read a video, by id; it must be picklable if worker processes are
            not forked.
        select: Likewise, by shard and id.
        classes: Restrict labels and ratings to these classes, and renumber them by their position
            in this list. A video without any of them is kept, a segment left out.
        on_error: "raise" stops at a faulty record, "skip" leaves it out and counts it
            (`pyseg.data.records.read_frames`).
        cache: Read all examples immediately and keep them in memory, as stored.
        repeat: Repeat without end instead of stopping after one epoch.
        rank: This process's part of a distributed run; default: torch.distributed's, where it is
            initialised when iteration starts, else 0.
        world_size: Parts of the distributed run; default likewise, else 1.

    Raises:
        FileNotFoundError: ``paths`` matches nothing.
        ValueError: An argument is out of range.
        pyseg.errors.RecordError: A record is faulty (while iterating; with ``cache``, immediately).
    """

    _unrated_examples = True  # whether examples that `classes` leaves without a class are kept
    _counts: tuple[str, ...] = COUNTS

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
        self._class_positions = _class_positions(self.classes)
        self._batch_size = 1
        self._start = Start()
        self._position = Position(0)
        self._shared = Counters(len(self._counts))
        self._memory: ExampleMemory | None = None
        self._kept = np.empty(0, np.int64)  # numbers of the examples in memory
        if cache:
            self._memory = self._read_all()
            self._kept = np.arange(len(self._memory))

    def _check_options(self) -> None:
        if self.seed < 0:
            raise ArgumentError(f"seed: expected at least 0, found {self.seed}")
        if self.buffer < 1:
            raise ArgumentError(f"buffer: expected at least 1, found {self.buffer}")
        check_on_error(self.on_error)
        if (self.rank is None) != (self.world_size is None):
            raise ArgumentError(
                f"rank and world_size: expected both or none, found {self.rank} and "
                f"{self.world_size}"
            )
        if self.rank is not None and not 0 <= self.rank < cast(int, self.world_size):
            raise ArgumentError(
                f"rank: expected a number in [0, {self.world_size}), found {self.rank}"
            )

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next pass, which its order depends on, in running workers too."""
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
    def position(self) -> Position:
        """This process's position after the last example that it read, unless from memory."""
        return self._position

    @property
    def report(self) -> ReadReport:
        """The problems found in the current or last pass, by all workers of this process.

        A worker counts the records of a shard after reading it, but a skipped record immediately.
        If passes repeat, only the first one is counted.
        """
        counts = dict(zip(self._counts, self._shared.total(), strict=True))
        return ReadReport(
            **{name: counts[name] for name in COUNTS}, first_error=self._shared.error()
        )

    def group(self) -> tuple[int, int]:
        """Returns rank and world size, which determine this process's part of the data."""
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def fingerprint(self) -> dict[str, Any]:
        """Returns what identifies the data, as numbers, text and dictionaries.

        That is the size of every shard and a digest of its first and last 4096 bytes, and a digest
        of the ids, classes and scores in a cache.
        """
        found: dict[str, Any] = {"shards": fingerprints(self.paths)}
        if self._memory is not None:
            ratings = self._memory.fingerprint(self._kept)
            found |= {"examples": len(self._kept), "ratings": ratings}
        return found

    def class_counts(self) -> np.ndarray:
        """Returns how many examples in memory have each class, rated 1 or not, of all ranks.

        Returns:
            (K,) int64, K being above every class in memory.

        Raises:
            TypeError: The examples are not in memory.
        """
        if self._memory is None:
            raise TypeError(f"{type(self).__name__} counts its classes only with cache=True")
        return self._memory.count_classes(self._kept)

    def subset(self: Self, **changes: Any) -> Self:
        """Returns the same data set with other options; a cache is shared, not read again.

        Args:
            changes: ``keep``, ``select``, ``shuffle``, ``seed``, ``buffer``, ``repeat``, ``rank``
                or ``world_size``. The first two choose among the videos of a cached data set, and
                replace the options of any other.

        Raises:
            TypeError: Another option is given.
        """
        if wrong := changes.keys() - set(VIEW_OPTIONS):
            raise TypeError(f"subset cannot change {', '.join(sorted(wrong))}")
        return self._copy(**changes)._detach()

    def in_batches(self: Self, batch_size: int, start: Start) -> Self:
        """Returns the same data set for a `loader`; both share epoch and report.

        Args:
            batch_size: Examples per batch; workers take whole batches of examples in memory.
            start: Where to begin.
        """
        return self._copy(_batch_size=batch_size, _start=start)

    def _copy(self: Self, **changes: Any) -> Self:
        other = copy.copy(self)
        # Undoes `__getstate__`, which copy.copy calls and which fixes rank and world size.
        vars(other).update({"rank": self.rank, "world_size": self.world_size, **changes})
        return other

    def _detach(self: Self) -> Self:
        """Gives a copy with other options its own epoch and report; returns it."""
        self._check_options()
        counters, self._shared = self._shared, Counters(len(self._counts))
        if self._memory is not None:
            self._shared.copy_counts(counters)
            paths, videos = self._memory.paths, self._memory.videos
            kept = [n for n in self._kept.tolist() if self._wants(paths[n], videos[n])]
            self._kept = np.array(kept, np.int64)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for a worker process, where torch.distributed is not initialised."""
        rank, world_size = self.group()
        return {**self.__dict__, "rank": rank, "world_size": world_size, "secrets": _urls.secrets()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over the state, in a worker process that may not have been forked."""
        _urls.learn(state.pop("secrets"))
        self.__dict__.update(state)

    def __len__(self) -> int:
        """Returns the number of examples of this rank, if they are in memory.

        Raises:
            TypeError: They are not, so that the number is unknown.
        """
        if self._memory is None or self.repeat:
            raise TypeError(f"{type(self).__name__} has a length only with cache=True, unrepeated")
        rank, world_size = self.group()
        return len(range(rank, len(self._kept), world_size))

    def __iter__(self) -> Iterator[Example]:
        """Yields the examples of this rank and worker."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > MOST_WORKERS:
            raise ArgumentError(f"workers: expected at most {MOST_WORKERS}, found {workers}")
        consumer = Consumer(*self.group(), worker, workers)
        if self._memory is not None:
            return self._recall(self._memory, consumer)
        self._shared.write(worker, [0] * len(self._counts), None)
        if worker == 0:
            self._shared.clear(workers)
        return self._stream(consumer)

    def _read(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        """Yields (video id, example) for some records of a shard."""
        raise NotImplementedError

    def _count(self, report: ReadReport) -> list[int]:
        """Returns the values of the counters in ``_counts``."""
        return [getattr(report, name) for name in COUNTS]

    def _transform(self, example: Example, epoch: int) -> Example:
        """Returns an example as a pass yields it, for example with sampled frames."""
        return example

    def _publish(self, worker: int, report: ReadReport) -> None:
        """Publishes a worker's counts to all processes."""
        self._shared.write(worker, self._count(report), report.first_error)

    def _read_all(self) -> ExampleMemory:
        report = ReadReport()

        def read() -> Iterator[tuple[str, str, Example]]:
            with Progress("reading", "shards", len(self.paths)) as bar:
                for path in self.paths:
                    for video, example in self._select(path, (0, 1), report):
                        yield path, video, example
                    bar.update()

        memory = ExampleMemory(read())
        report.warn(type(self).__name__)
        self._publish(0, report)
        return memory

    def _wants(self, path: str, video: str) -> bool:
        if self.keep is not None and not self.keep(video):
            return False
        return self.select is None or self.select(path, video)

    def _select(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        """Yields the examples of `_read` that ``keep``, ``select`` and ``classes`` admit."""
        for video, example in self._read(path, shard, report):
            if not self._wants(path, video):
                continue
            if self._class_positions is not None:
                last = len(self._class_positions) - 1
                positions = self._class_positions[example.classes.clip(max=last)]
                among = positions >= 0
                if not (self._unrated_examples or among.any()):
                    continue
                example = example._replace(classes=positions[among], scores=example.scores[among])
            yield video, example

    def _stream(self, consumer: Consumer) -> Iterator[Example]:
        """Yields a consumer's examples from the shards."""
        rank, world_size, worker, workers = consumer
        reader, start = (worker + self._start.batches) % workers, Position(self.epoch)
        if self._start.positions:
            start = self._start.positions[reader]
        return self._passes(
            Stream(
                num_shards=len(self.paths),
                consumer=rank * workers + reader,
                consumers=world_size * workers,
                shuffle=self.shuffle,
                seed=self.seed,
                buffer=self.buffer,
            ),
            start,
            worker,
        )

    def _passes(self, stream: Stream, start: Position, worker: int) -> Iterator[Example]:
        """Yields the examples of a pass, or of all passes; only the first is counted."""
        report = ReadReport()
        first_epoch = epoch = start.epoch

        def read_share(share: Share) -> Iterator[Example]:
            counted = epoch == first_epoch
            found = report if counted else ReadReport()
            published = report.skipped
            for _, example in self._select(self.paths[share.shard], share.part, found):
                if counted and report.skipped > published:
                    published = report.skipped
                    self._publish(worker, report)
                yield example
            if counted:
                self._publish(worker, report)

        try:
            for epoch in itertools.count(first_epoch):
                empty = start == Position(epoch)
                for self._position, example in stream.read(start, read_share):
                    empty = False
                    yield self._transform(example, epoch)
                if epoch == first_epoch:
                    report.warn(type(self).__name__)
                if empty or not self.repeat:
                    return
                start = self._position = Position(epoch + 1)
        finally:
            if epoch == first_epoch:
                self._publish(worker, report)

    def _recall(self, memory: ExampleMemory, consumer: Consumer) -> Iterator[Example]:
        """Yields a consumer's examples from memory."""
        for epoch, number in recall(
            self._kept,
            consumer,
            self.epoch,
            shuffle=self.shuffle,
            seed=self.seed,
            repeat=self.repeat,
            batch_size=self._batch_size,
            skip=self._start.batches,
        ):
            yield self._transform(memory[number], epoch)


class FrameDataset(RecordDataset):
    """Videos as frames, with the labels of the whole video.

    Args:
        paths: See `RecordDataset`.
        schema: The names of the features; default: YouTube-8M's rgb and audio.
        max_frames: Frames of a video to use, from its start; None for all.
        sampling: "all" frames, or ``num_samples`` of them: "random-frames", drawn with replacement
            and kept in temporal order, or a "random-sequence" (`sample_random_sequence`). The draw
            depends only on ``seed``, epoch and video, so that every epoch has other frames.
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
                'sampling: expected "all", "random-frames" or "random-sequence", '
                f"found {sampling!r}"
            )
        for name, value in (("max_frames", max_frames), ("num_samples", num_samples)):
            if value is not None and value < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {value}")
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
    """Rated segments: one example per segment, with all classes rated for it.

    The id of an example is ``"<video id>:<start frame>"``. A segment at the end of its video may
    have fewer frames. Videos without ratings are skipped.

    With ``cache=True`` a collection of 235,000 segments takes 1.35 GB; the frames around them are
    not kept.

    Args:
        paths: See `RecordDataset`.
        schema: The names of the features, and the length of a segment; default: YouTube-8M's.
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
        """Returns the ratings of a video's segments; subclasses may have other sources."""
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
            check_ends=True,
        ):
            ratings = self.rate(record)
            if ratings is None:
                continue
            rows: dict[int, list[int]] = {}  # in order of first appearance
            for row, start in enumerate(ratings.starts.tolist()):
                rows.setdefault(start, []).append(row)
            for start, rated in rows.items():
                # Copied, as a view would keep all frames of the video in memory.
                frames = record.frames[start : start + size].copy()
                id = f"{record.id}:{start}"
                example = Example(id, frames, ratings.classes[rated], ratings.scores[rated])
                yield record.id, example


class VideoDataset(RecordDataset):
    """Video-level features, as videos of one float32 frame, with the labels of the video.

    Args:
        paths: See `RecordDataset`.
        schema: The names of the features; default: YouTube-8M's mean_rgb and mean_audio.
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


def _unique(labels: np.ndarray) -> np.ndarray:
    """Returns the labels of a record without repetitions, in their order."""
    if len(labels) < 2:
        return labels
    first = np.unique(labels, return_index=True)[1]
    return labels if len(first) == len(labels) else labels[np.sort(first)]


def _class_positions(classes: list[int] | None) -> np.ndarray | None:
    """Returns (largest class + 2,) int64: the position of each class, -1 for others."""
    if classes is None:
        return None
    if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
        raise ArgumentError(
            f"classes: expected different numbers, at least one, none below 0, found {classes}"
        )
    positions = np.full(max(classes) + 2, -1, np.int64)
    positions[classes] = np.arange(len(classes))
    return positions
