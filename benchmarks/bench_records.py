"""Speed of reading records, against other readers and the limit of the memory.

    python benchmarks/bench_records.py [--records 600] [--rounds 7] [--clock cpu] [--json FILE]

Every contender in turn reads one file of frame-level records of 300 frames (346 KB each),
uncompressed and in the page cache, in several rounds, each in its own process, all on the same
core. Results are medians. On a busy machine `--clock cpu` measures the contender's processor time
instead of elapsed time.

    pyseg              read_frames: checksums verified, rgb and audio side by side, (T, 1152) uint8
    pyseg, in batches  the same, but 80 records are kept at a time, as training does
    pyseg, reference   the fallback in Python
    tfrecord           the package of that name: lists of byte strings, checksums not verified
    tensorflow         TFRecordDataset + parse_single_sequence_example + decode_raw, one array each
    limit              one memcpy and one CRC32C pass over the bytes of the file, in memory
    limit, in cache    the same record by record, so that the CRC finds the memcpy's output in cache

`pip install -e '.[bench]'` installs TensorFlow and tfrecord; missing peers are skipped. Both define
the same protobuf messages, so one process cannot import both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

FRAMES = 300
BATCH = 80


def write_sample(path: Path, records: int) -> None:
    from pyseg.data.records import encode_frames, write_records

    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (FRAMES, 1152), dtype=np.uint8)
    write_records(
        path, (encode_frames(f"{i:04x}", np.roll(frames, i, 0), [i]) for i in range(records))
    )


def native() -> None:
    from pyseg import _ext

    if _ext.records is None:
        raise ImportError(_ext.RECORDS_REASON)


def pyseg(path: str, records: int) -> Callable[[], int]:
    from pyseg.data.records import read_frames

    native()
    return lambda: sum(record.frames.shape[0] for record in read_frames(path))


def pyseg_batches(path: str, records: int) -> Callable[[], int]:
    from pyseg.data.records import read_frames

    native()

    def read() -> int:
        frames = 0
        batch = []
        for record in read_frames(path):
            batch.append(record)
            if len(batch) == BATCH:
                frames += sum(len(record.frames) for record in batch)
                batch = []
        return frames + sum(len(record.frames) for record in batch)

    return read


def pyseg_reference(path: str, records: int) -> Callable[[], int]:
    os.environ["PYSEG_EXT"] = "0"
    from pyseg.data.records import read_frames

    return lambda: sum(record.frames.shape[0] for record in read_frames(path))


def tfrecord(path: str, records: int) -> Callable[[], int]:
    from tfrecord import tfrecord_loader

    context = {"id": "byte", "labels": "int"}
    features = {"rgb": "byte", "audio": "byte"}

    def read() -> int:
        loader = tfrecord_loader(path, None, context, sequence_description=features)
        return sum(len(lists["rgb"]) for _, lists in loader)

    return read


def tensorflow(path: str, records: int) -> Callable[[], int]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def parse(serialized):
        context, features = tf.io.parse_single_sequence_example(
            serialized,
            {
                "id": tf.io.FixedLenFeature([], tf.string),
                "labels": tf.io.VarLenFeature(tf.int64),
            },
            {
                "rgb": tf.io.FixedLenSequenceFeature([], tf.string),
                "audio": tf.io.FixedLenSequenceFeature([], tf.string),
            },
        )
        rgb = tf.io.decode_raw(features["rgb"], tf.uint8)
        return context["id"], context["labels"], rgb, tf.io.decode_raw(features["audio"], tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    dataset = tf.data.TFRecordDataset(path).map(parse).with_options(options)
    return lambda: sum(int(rgb.shape[0]) for _, _, rgb, _ in dataset)


def limit(path: str, records: int) -> Callable[[], int]:
    from pyseg import _ext

    native()
    data = np.fromfile(path, dtype=np.uint8)
    copy = data.copy()

    def run() -> int:
        np.copyto(copy, data)
        _ext.records.crc32c(data)
        return records * FRAMES

    return run


def limit_in_cache(path: str, records: int) -> Callable[[], int]:
    from pyseg import _ext

    native()
    data = np.fromfile(path, dtype=np.uint8)
    size = len(data) // records
    copy = data[:size].copy()

    def run() -> int:
        for i in range(records):
            np.copyto(copy, data[i * size : (i + 1) * size])
            _ext.records.crc32c(copy)
        return records * FRAMES

    return run


CONTENDERS = {
    "pyseg": pyseg,
    "pyseg, in batches": pyseg_batches,
    "pyseg, reference": pyseg_reference,
    "tfrecord": tfrecord,
    "tensorflow": tensorflow,
    "limit": limit,
    "limit, in cache": limit_in_cache,
}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def serve(name: str, path: str, records: int, core: int, clock: str, pipe: Connection) -> None:
    """Runs a contender on each request of the pipe, and sends back the seconds."""
    os.sched_setaffinity(0, {core})
    try:
        run = CONTENDERS[name](path, records)
    except ImportError as error:
        pipe.send(str(error))
        return
    found = run()
    if found != records * FRAMES:
        raise AssertionError(f"{name} read {found} frames of {records * FRAMES}")
    pipe.send(None)
    while pipe.recv():
        start = CLOCKS[clock]()
        run()
        pipe.send(CLOCKS[clock]() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()

    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frames.tfrecord")
        write_sample(path, arguments.records)
        size = path.stat().st_size
        print(f"{arguments.records} records, {size / 1e6:.1f} MB, {arguments.clock} time")
        pipes = {}
        processes = []
        for name in arguments.only:
            pipe, theirs = spawn.Pipe()
            process = spawn.Process(
                target=serve,
                args=(
                    name,
                    str(path),
                    arguments.records,
                    arguments.core,
                    arguments.clock,
                    theirs,
                ),
                daemon=True,
            )
            process.start()
            theirs.close()
            processes.append(process)
            if reason := pipe.recv():
                print(f"{name}: left out, {reason}")
            else:
                pipes[name] = pipe
        times: dict[str, list[float]] = {name: [] for name in pipes}
        for _ in range(arguments.rounds):
            for name, pipe in pipes.items():
                pipe.send(True)
                times[name].append(pipe.recv())
        for pipe in pipes.values():
            pipe.send(False)
        for process in processes:
            process.join()

    speed = {name: size / statistics.median(seconds) / 1e9 for name, seconds in times.items()}
    own = speed.get("pyseg")
    batches = speed.get("pyseg, in batches")
    print(f"{'':18}   GB/s  spread  pyseg  in batches")
    for name, value in speed.items():
        spread = (max(times[name]) - min(times[name])) / statistics.median(times[name])
        ratios = "".join(f"{ours / value:6.2f}x   " if ours else "" for ours in (own, batches))
        print(f"{name:18} {value:6.2f}  {spread:5.0%} {ratios}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"size": size, "seconds": times, "gigabytes_per_second": speed}, indent=1)
        )


if __name__ == "__main__":
    main()
