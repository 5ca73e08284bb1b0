"""The order in which the consumers of a data set read its examples, and their positions.

A consumer is a DataLoader worker of a rank. It reads examples from shards (`Stream`) or takes them
from memory (`recall`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import numpy as np

from pyseg.data.shards import Share, divide

Item = TypeVar("Item")


class Position(NamedTuple):
    """The position of one consumer of a stream, from which it can resume.

    Attributes:
        epoch: The pass.
        share: The consumer's share in which its chunk begins.
        skip: Examples of that share before the chunk.
        chunk: The number of the chunk in the pass.
        done: Examples of the chunk that have been consumed.
    """

    epoch: int
    share: int = 0
    skip: int = 0
    chunk: int = 0
    done: int = 0


class Start(NamedTuple):
    """The position at which a `loader` begins.

    Attributes:
        batches: The number of earlier batches.
        positions: The position of each worker, by number, for data sets that are not in memory;
            empty at the very beginning.
    """

    batches: int = 0
    positions: tuple[Position, ...] = ()


class Consumer(NamedTuple):
    """A consumer of a data set: a DataLoader worker of a rank."""

    rank: int
    world_size: int
    worker: int
    workers: int


@dataclass(frozen=True)
class Stream:
    """The examples that one of several consumers reads from the shards in a pass.

    It reads chunks and shuffles each of them separately, so that returning to a position takes
    reading one chunk again instead of the whole pass.

    Attributes:
        num_shards: Shards of the data set.
        consumer: The number of the consumer, from 0.
        consumers: The number of consumers.
        shuffle: Shuffle the shards, and the items of a chunk.
        seed: The seed of the order.
        buffer: Items of a chunk.
    """

    num_shards: int
    consumer: int
    consumers: int
    shuffle: bool
    seed: int
    buffer: int

    def read(
        self, start: Position, read_share: Callable[[Share], Iterator[Item]]
    ) -> Iterator[tuple[Position, Item]]:
        """Yields the items of a pass from a position on, each with the position after it.

        Args:
            start: The position to begin at, which includes the pass.
            read_share: Reads the items of a share, in their order.
        """
        items = self._from_chunk(start, read_share)
        place, done = (start.share, start.skip), start.done
        for chunk in itertools.count(start.chunk):
            held = list(itertools.islice(items, self.buffer if self.shuffle else 1))
            if not held:
                return
            after = held[-1][0]
            waiting: list[Item | None] = [item for _, item in held]
            held.clear()
            order = np.arange(len(waiting))
            if self.shuffle:
                order = self._random(start.epoch, self.consumer, 1, chunk).permutation(order)
            for number in order[done:].tolist():
                done += 1
                item, waiting[number] = waiting[number], None  # frees items as they are consumed
                yield Position(start.epoch, *place, chunk, done), cast(Item, item)
            place, done = after, 0

    def _from_chunk(
        self, start: Position, read_share: Callable[[Share], Iterator[Item]]
    ) -> Iterator[tuple[tuple[int, int], Item]]:
        """Yields every item from the start of the chunk on, with the position after it."""
        shares = self._shares(start.epoch)
        for number in range(start.share, len(shares)):
            skipped = start.skip if number == start.share else 0
            rest = itertools.islice(read_share(shares[number]), skipped, None)
            for count, item in enumerate(rest, skipped + 1):
                yield (number, count), item

    def _shares(self, epoch: int) -> list[Share]:
        """Returns the consumer's shares in a pass, in order."""
        shards = np.arange(self.num_shards)
        if self.shuffle:
            shards = self._random(epoch).permutation(shards)
        shares = divide(self.num_shards, self.consumers, self.consumer)
        if self.shuffle:
            self._random(epoch, self.consumer, 0).shuffle(shares)
        return [share._replace(shard=int(shards[share.shard])) for share in shares]

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))


def recall(
    numbers: np.ndarray,
    consumer: Consumer,
    epoch: int,
    *,
    shuffle: bool,
    seed: int,
    repeat: bool,
    batch_size: int,
    skip: int,
) -> Iterator[tuple[int, int]]:
    """Yields (epoch, number) of one consumer's examples in memory.

    The batches are the same for any number of workers: DataLoader takes batches from its workers in
    turn, so that a worker takes every n-th batch.

    Args:
        numbers: The numbers of all examples.
        consumer: The consumer.
        epoch: The first pass.
        shuffle: Shuffle all of the numbers.
        seed: The seed of the order.
        repeat: Repeat without end.
        batch_size: Examples per batch of a rank.
        skip: Batches to leave out at the start.
    """
    if not len(numbers):
        return
    rank, world_size, worker, workers = consumer
    start = 0  # this rank's examples before this epoch
    first_epoch = epoch
    for epoch in itertools.count(first_epoch):
        before = (epoch - first_epoch) * len(numbers)
        turn = (rank - before) % world_size
        end = start + len(range(turn, len(numbers), world_size))
        if end > skip * batch_size:
            order = numbers
            if shuffle:
                order = np.random.default_rng((seed, epoch)).permutation(numbers)
            batches = np.arange(start, end) // batch_size - skip
            mine = (batches >= 0) & (batches % workers == worker)
            for number in order[turn::world_size][mine].tolist():
                yield epoch, number
        start = end
        if not repeat:
            return
