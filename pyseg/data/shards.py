"""The files of a data set, its shards: how they are found, divided and fingerprinted."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from pyseg import _remote, _urls
from pyseg._files import Paths as Paths
from pyseg._files import find_files
from pyseg._threads import map_in_order
from pyseg.data.records import is_record_file
from pyseg.errors import MissingFileError
from pyseg.video.paths import SUFFIXES

_RECORD_NAME = re.compile(r".+\.tfrec(ord)?s?(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE)
_MISSING = "no file in this folder ends in .tfrecord or .tfrecord.gz, or holds records"
_THREADS = 8  # threads that wait for servers
_END = 4096  # bytes at either end of a shard that its fingerprint covers


def named_as_records(path: str) -> bool:
    """Returns whether a file has the name of a TFRecord file.

    Example:
        >>> named_as_records("val.tfrecord-00000-of-00001"), named_as_records("vocabulary.csv")
        (True, False)
    """
    return _RECORD_NAME.fullmatch(_urls.split(path)[1]) is not None


def find_shards(paths: Paths) -> list[str]:
    """Returns the files of a glob, a folder, a file, or a list of these: paths or URLs.

    A folder stands for every file of records in it, at any depth: ``*.tfrecord``, ``*.tfrecords``
    and ``*.tfrec``, which may be followed by ``-00000-of-00001`` and ``.gz``; if there is none,
    every file that begins as TFRecord files do. The order is that of the names (of a list: of its
    elements), and repeated files are listed once.

    Raises:
        FileNotFoundError: One of ``paths`` matches nothing; the message names it.

    Example:
        >>> find_shards("no/such/*.tfrecord")
        Traceback (most recent call last):
        ...
        pyseg.errors.MissingFileError: no/such/*.tfrecord: no file matches
    """
    return find_files(paths, _records_in, _MISSING, remote=True)


def _records_in(folder: str) -> list[str]:
    every = _remote.files_below(folder)
    found = list(filter(named_as_records, every)) or list(filter(_holds_records, every))
    if not found and any(os.path.splitext(path)[1].lower() in SUFFIXES for path in every):
        raise MissingFileError(
            f"{folder}: {_MISSING}, but there are videos: run python -m pyseg.extract --videos "
            f"{shlex.quote(folder)} --backbone NETWORK --out FOLDER first, and name that FOLDER"
        )
    return found


def _holds_records(path: str) -> bool:
    """Returns whether a file holds records and is not being written."""
    name = _urls.split(path)[1]
    unfinished = name.startswith(".") or name.endswith(".part")
    return not unfinished and _remote.is_file(path) and is_record_file(path)


class Share(NamedTuple):
    """A consumer's part of a shard: the records whose number % part[1] is part[0]."""

    shard: int
    part: tuple[int, int]


def divide(num_shards: int, consumers: int, consumer: int) -> list[Share]:
    """Returns one consumer's shares, such that every record is read by exactly one.

    Consumers take whole shards while there is one for each of them. The remaining shards, fewer
    than consumers, are divided by record, so that all shares are equally large.

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


def fingerprints(paths: Sequence[str]) -> dict[str, str]:
    """Returns the size and a digest of the ends of each shard, by path below a common folder."""
    places = [_remote.location(path).split("/") for path in paths]
    levels = zip(*(place[:-1] for place in places), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda level: len({*level}) == 1, levels))
    names = ["/".join(place[common:]) for place in places]
    far = any(map(_urls.is_url, paths))
    found = map_in_order(_fingerprint, paths, _THREADS) if far else map(_fingerprint, paths)
    return dict(zip(names, found, strict=True))


def _fingerprint(path: str) -> str:
    size, ends = _remote.ends_of(path, _END)
    return f"{size} bytes, digest {hashlib.sha256(ends).hexdigest()[:16]}"
