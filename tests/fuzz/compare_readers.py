"""Compares the C++ reader with the Python reader: results and errors must be equal.

python tests/fuzz/compare_readers.py [--records 60000] [--seed 0] [FILE OR FOLDER ...]

The records are those of `make_corpus` and others of pyseg's own schemas, mutated within their
messages and framed with valid checksums. Files, such as the fuzzer's findings, are compared
unchanged.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from make_corpus import FRAMES, VIDEOS, seeds

from pyseg import _ext
from pyseg.data import audioset
from pyseg.data.records import (
    FrameSchema,
    Ratings,
    ReadReport,
    RecordError,
    VideoSchema,
    encode_frames,
    encode_video,
    read_frames,
    read_records,
    read_videos,
)
from pyseg.data.records.framing import crc32c, mask
from pyseg.data.records.wire import (
    ContentError,
    encode_varint,
    read_length,
    read_tag,
    skip_field,
)

_START = audioset.StrongSegmentDataset.context_keys
# Every schema that pyseg reads with, the small ones of the seeds, and the options of the readers.
READERS: dict[str, tuple[Callable[..., Iterator[Any]], dict[str, Any]]] = {
    "payloads": (read_records, {}),
    "YouTube-8M frames": (read_frames, {"schema": FrameSchema(), "max_frames": 300}),
    "unlabelled frames": (read_frames, {"schema": replace(FrameSchema(), labels_key=None)}),
    "AudioSet": (read_frames, {"schema": audioset.SCHEMA}),
    "AudioSet, strong": (read_frames, {"schema": audioset.SCHEMA, "context_keys": _START}),
    "unlabelled AudioSet": (read_frames, {"schema": replace(audioset.SCHEMA, labels_key=None)}),
    "YouTube-8M videos": (read_videos, {"schema": VideoSchema(), "block": 256}),
    "labels": (read_videos, {"schema": VideoSchema(features=())}),
    "AudioSet labels": (read_videos, {"schema": VideoSchema(features=(), id_key="video_id")}),
    "ids": (read_videos, {"schema": VideoSchema(features=(), labels_key=None)}),
    "small frames": (read_frames, {"schema": FRAMES}),
    "ends": (read_frames, {"schema": FRAMES, "check_ends": True}),
    "cut frames": (read_frames, {"schema": FRAMES, "max_frames": 2, "context_keys": ("start",)}),
    "shard": (read_frames, {"schema": FRAMES, "shard": (1, 2)}),
    "audio": (read_frames, {"schema": FrameSchema(features=(("audio", 3),), labels_key=None)}),
    "small videos": (read_videos, {"schema": VIDEOS, "block": 2}),
}
_OF_SEEDS = tuple(READERS)[10:]


class Counts(NamedTuple):
    """The number of comparisons.

    Attributes:
        reads: Reads, each with both readers.
        refused: Reads that ended in an error, the same for both.
    """

    reads: int
    refused: int

    def __str__(self) -> str:
        """A summary in one line."""
        return f"{self.reads:,} reads, {self.refused:,} of them refused, the same by both readers"


def framed(payload: bytes) -> bytes:
    """A record with valid checksums."""
    length = struct.pack("<Q", len(payload))
    checksums = [struct.pack("<I", mask(crc32c(x))) for x in (length, payload)]
    return length + checksums[0] + payload + checksums[1]


def originals() -> dict[str, list[bytes]]:
    """Valid records, by the reader that reads them (or "seeds")."""
    rng = np.random.default_rng(1)
    ratings = Ratings(np.array([0, 5, 5]), np.array([1, 2, 2]), np.array([1, 0, 1]))

    def frames(schema: FrameSchema, **options: Any) -> bytes:
        features = rng.integers(0, 256, (6, schema.width), dtype=np.uint8)
        labels = [] if schema.labels_key is None else [3]
        return encode_frames("06xy", features, labels, schema=schema, **options)

    def of(name: str) -> Any:
        return READERS[name][1]["schema"]

    start = dict.fromkeys(_START, 1.5)
    return {
        "YouTube-8M frames": [frames(of("YouTube-8M frames"), ratings=ratings)],
        "unlabelled frames": [frames(of("unlabelled frames"))],
        "AudioSet": [frames(of("AudioSet"), context=start)],
        "unlabelled AudioSet": [frames(of("unlabelled AudioSet"))],
        "YouTube-8M videos": [encode_video("06xy", rng.standard_normal(1152), [3, 12])],
        "seeds": [record for records in seeds().values() for record in records],
    }


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Changes a field of a message or of a nested one, and corrects the lengths around it."""
    fields = []
    at = 0
    try:
        while at < len(data):
            start = at
            field, wire, at = read_tag(data, at, len(data))
            if wire == 2:
                span = read_length(data, at, len(data))
                fields.append((data[start:at], data[span.start : span.end]))
                at = span.end
            else:
                at = skip_field(data, field, wire, start, at, len(data))
                fields.append((data[start:at], None))
    except ContentError:
        fields = []
    if not fields or rng.random() < 0.15:
        return _changed(data, rng)
    at = rng.randrange(len(fields))
    tag, content = fields[at]
    change = rng.randrange(10)
    if change == 0:
        del fields[at]
    elif change == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif change == 2:
        fields.append(fields.pop(at))
    elif content is None:
        fields[at] = (_changed(tag, rng), None)
    else:
        fields[at] = (tag, mutated(content, rng))
    return b"".join(
        tag if content is None else tag + encode_varint(len(content)) + content
        for tag, content in fields
    )


def _changed(data: bytes, rng: random.Random) -> bytes:
    """Sets, inserts, removes or repeats a few bytes."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out) + 1)
        change = rng.randrange(6)
        if change < 2 and at < len(out):
            out[at] = rng.choice((0, 1, 8, 10, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif change == 2:
            out[at:at] = rng.randbytes(rng.randrange(1, 5))
        elif change == 3:
            del out[at : at + rng.randrange(1, 5)]
        elif change == 4:
            out[at:at] = out[at : at + 30]
        elif rng.random() < 0.2:
            out += bytes(1100)  # longer than an id may be
    return bytes(out)


def _outcome(path: Path, reader: str, native: Any, on_error: str) -> tuple[list[str], str, str]:
    """Returns records and error as text, exact to the bit, and the report."""
    kept, _ext.records = _ext.records, native
    read, options = READERS[reader]
    report = ReadReport()
    given = {**options, "on_error": on_error} | ({} if read is read_records else {"report": report})
    found, error = [], ""
    try:
        for record in read(path, **given):
            found.append(_text(record))
    except RecordError as fault:
        error = str(fault)
    finally:
        _ext.records = kept
    return found, error, repr(report)


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    return f"{type(value).__name__} {value!r}"


def check_file(path: Path, readers: Sequence[str], on_error: str = "raise") -> int:
    """Compares the two readers; returns how often both ended in the same error.

    Raises:
        AssertionError: They differ; the file is kept.
    """
    refused = 0
    for reader in readers:
        native, python = (
            _outcome(path, reader, engine, on_error) for engine in (_ext.records, None)
        )
        if native != python:
            kept = Path(tempfile.mkdtemp()) / "different"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(
                f"{reader}, {on_error}: {kept}\nC++:    {native}\nPython: {python}"
            )
        refused += bool(native[1])
    return refused


def compare(number: int, seed: int = 0) -> Counts:
    """Compares the two readers on `number` generated records.

    Raises:
        AssertionError: They differ.
    """
    rng = random.Random(seed)
    good = originals()
    records = reads = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        while records < number:
            kind = "seeds" if rng.random() < 0.6 else rng.choice(list(good))
            payloads = [rng.choice(good[kind]) for _ in range(rng.choice((1, 1, 3)))]
            for at, payload in enumerate(payloads):
                for _ in range(rng.choice((0, 1, 1, 2))):
                    payload = mutated(payload, rng)
                payloads[at] = payload
            path.unlink(missing_ok=True)  # overwriting a file takes longer
            path.write_bytes(b"".join(map(framed, payloads)))
            readers = {
                rng.choice(tuple(READERS)),
                rng.choice(_OF_SEEDS) if kind == "seeds" else kind,
            }
            on_error = "skip" if len(payloads) > 1 and rng.random() < 0.5 else "raise"
            refused += check_file(path, sorted(readers), on_error)
            records += len(payloads)
            reads += len(readers)
    return Counts(reads, refused)


def compare_files(paths: Sequence[Path]) -> Counts:
    """Compares the two readers on files, with the schemas of the seeds.

    Raises:
        AssertionError: They differ.
    """
    refused = sum(check_file(path, _OF_SEEDS) for path in paths)
    return Counts(len(paths) * len(_OF_SEEDS), refused)


def main() -> None:
    """Compares, and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("paths", nargs="*", type=Path)
    arguments = parser.parse_args()
    if _ext.records is None:
        raise SystemExit(f"no C++ reader: {_ext.RECORDS_REASON}")
    if arguments.paths:
        files = [
            file
            for path in arguments.paths
            for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        ]
        print(f"{len(files):,} files: {compare_files(files)}")
    else:
        counts = compare(arguments.records, arguments.seed)
        print(f"{arguments.records:,} records: {counts}")


if __name__ == "__main__":
    main()
