"""Speed of reading batches of videos, against tf.data and against the training step.

    pytest benchmarks/bench_input.py [--benchmark-json FILE]

Two files of 300-frame records (346 KB each, uncompressed, in the page cache), shuffled, in batches
of 16. `reading` is the time of 20 consecutive batches without work on them, so that batches read
ahead count for little; tf.data and a worker process use the other core too. `training` is a whole
step of nextvlad1 on each new batch, against the same step on one repeated batch: the difference is
the cost of feeding. Results are medians of contenders that take turns.

`at_a_url` reads one of these files from a made-up store, which answers each request after 20 ms
and sends 100 MB/s to each: with the blocks that are read ahead by default, with one, with none, and
as a local file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from measure import DEVICE, needs_kernels, tensorflow

from pyseg import _remote, models
from pyseg.data import Feed, FrameDataset, encode_frames, read_frames, write_records
from pyseg.training import Loss

BATCH, FRAMES, RECORDS, CLASSES = 16, 300, 200, 3862
IN_A_ROW = 20  # batches
LATENCY, RATE = 0.02, 1e8  # seconds of a request, bytes per second


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 1152), np.uint8)
    paths = []
    for shard in range(2):
        names = (f"{shard}{number:03x}" for number in range(RECORDS))
        records = (encode_frames(name, np.roll(frames, 7, 0), [3, 40, 500]) for name in names)
        paths.append(str(folder / f"train{shard}.tfrecord"))
        write_records(paths[-1], records)
    return paths


def feed(shards: list[str], workers: int) -> Feed:
    dataset = FrameDataset(shards, shuffle=True, repeat=True, buffer=RECORDS)
    return Feed(dataset, BATCH, workers=workers)


def tf_data(shards: list[str]) -> Iterator[object] | None:
    """Returns batches of tf.data: parsed, decoded, concatenated, padded, read ahead."""
    if (tf := tensorflow()) is None:
        return None

    def parse(serialized: object) -> tuple[object, object, object]:
        text = tf.io.FixedLenSequenceFeature([], tf.string)
        context, lists = tf.io.parse_single_sequence_example(
            serialized, {"labels": tf.io.VarLenFeature(tf.int64)}, {"rgb": text, "audio": text}
        )
        parts = [tf.io.decode_raw(lists[name], tf.uint8) for name in ("rgb", "audio")]
        frames = tf.concat(parts, 1)
        return frames, tf.shape(frames)[0], tf.sparse.to_dense(context["labels"])

    dataset = tf.data.TFRecordDataset(shards).shuffle(RECORDS).repeat()
    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    shapes = [None, 1152], [], [None]
    return iter(dataset.padded_batch(BATCH, shapes).prefetch(2))


def test_reading(compare, shards):
    feeds = {"pyseg": feed(shards, 0), "pyseg, a worker": feed(shards, 1)}
    sources: dict[str, Iterator[object]] = dict(feeds)
    if (peer := tf_data(shards)) is not None:
        sources["tf.data"] = peer

    def contender(batches: Iterator[object]) -> Callable[[], None]:
        def take() -> None:
            for _ in range(IN_A_ROW):
                next(batches)

        return take

    compare({name: contender(batches) for name, batches in sources.items()})


class Far(MemoryFileSystem):
    """A store in memory that answers as slowly as one far away."""

    protocol = "far"
    async_impl = True  # parts may be asked for at once

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("far://", "memory://"))

    def cat_file(self, path: str, *, start: int, end: int) -> bytes:
        time.sleep(LATENCY + (end - start) / RATE)
        return super().cat_file(path, start, end)


def test_at_a_url(compare, shards, monkeypatch):
    fsspec.register_implementation("far", Far, clobber=True)
    fsspec.filesystem("memory").pipe_file("/shard", Path(shards[0]).read_bytes())

    def contender(path: str, ahead: int) -> Callable[[], None]:
        def read() -> None:
            monkeypatch.setattr(_remote, "AHEAD", ahead)
            assert sum(1 for _ in read_frames(path)) == RECORDS

        return read

    contenders = {"read ahead": contender("far://shard", _remote.AHEAD)}
    contenders |= {"one block": contender("far://shard", 1), "none": contender("far://shard", 0)}
    compare(contenders | {"local": contender(shards[0], 0)})


@needs_kernels
@pytest.mark.parametrize("workers", [0, 1])
def test_training(compare, shards, workers):
    torch.manual_seed(0)
    model = models.create("nextvlad1", num_classes=CLASSES).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
    batches, loss_of = feed(shards, workers), Loss()
    same = next(batches)

    def step(batch):
        batch = batch.to(DEVICE, non_blocking=True)

        def criterion(logits):
            return loss_of(logits, batch.offsets, batch.classes, batch.scores)

        optimizer.zero_grad(set_to_none=True)
        model.training_loss(batch.frames, batch.num_frames, criterion).backward()
        optimizer.step()

    compare({"pyseg": lambda: step(next(batches)), "step alone": lambda: step(same)})
