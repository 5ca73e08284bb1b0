"""Hashes of a video's id that are the same in every process and on every machine."""

from __future__ import annotations

import hashlib

from pyseg.errors import ArgumentError


def stable_hash(text: str, *key: int) -> int:
    """Returns 64 bits that depend only on text and key; hash() differs between processes."""
    message = ":".join([*map(str, key), text]).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


def held_out(id: str, fraction: float = 0.2, seed: int = 0) -> bool:
    """Returns whether a video belongs to the part that is held out for evaluation.

    The result depends only on the arguments: it is the same in every process, on every machine, for
    every form of a collection. Pass the id of the video, never that of a segment, as all segments
    of a video belong to the same part.

    Args:
        id: The id of the video.
        fraction: The fraction to hold out, in [0, 1].
        seed: Another seed holds out other videos.

    Raises:
        ValueError: ``fraction`` is not in [0, 1].

    Example:
        >>> sum(held_out(f"{number:04d}", 0.2) for number in range(10_000))
        1924
    """
    if not 0 <= fraction <= 1:
        raise ArgumentError(f"fraction: expected a number in [0, 1], found {fraction}")
    return stable_hash(id, seed) < fraction * 2**64
