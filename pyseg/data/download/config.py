"""The options of a download."""

from __future__ import annotations

import math
import re
import urllib.parse
from dataclasses import dataclass
from typing import Literal

from pyseg.errors import ArgumentError

RELEASES = {"frame": "2/frame", "video": "2/video", "segment": "3/frame"}
"""The path of each subset's files on the servers."""


@dataclass
class DownloadConfig:
    """What to fetch, from where, and to which folder.

    Args:
        subset: Features to fetch: "frame" are those of frames of 2018, "video" those of whole
            videos of 2018, "segment" those of frames with rated segments of 2019.
        partition: Partition to fetch; segment has no train of its own.
        folder: The folder to write; shards go to <folder>/<subset>-<partition>/.
        mirror: The mirror nearest to you.
        server: The URL of another server; its paths are those of the published ones
            (2/download_plans/frame_train.json, 2/frame/train/..., csv/2/vocabulary.csv).
        shard: "i,n" takes the i-th of n parts of the shards, from 1; the same shards as the
            published script takes.
        jobs: Files fetched at the same time.
        retries: Retries in a row without a new byte; then the file is given up.
        timeout: Seconds without a byte until a connection counts as dead; so does one with fewer
            than 1,000 bytes per second over twice as long.
        verify: Verify existing files again; without it, those once verified are trusted.
        vocabulary: Also fetch the vocabularies: vocabulary.csv and, for segment,
            segment_vocabulary.csv, into the folder.

    Raises:
        ValueError: A value is out of its range.
    """

    subset: Literal["frame", "video", "segment"]
    partition: Literal["train", "validate", "test"]
    folder: str = "yt8m"
    mirror: Literal["us", "eu", "asia"] = "us"
    server: str | None = None
    shard: str = "1,1"
    jobs: int = 4
    retries: int = 10
    timeout: float = 30.0
    verify: bool = False
    vocabulary: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.subset not in RELEASES:
            raise ArgumentError(
                f"subset: expected one of {', '.join(RELEASES)}, found {self.subset}"
            )
        if self.partition not in ("train", "validate", "test"):
            raise ArgumentError(
                f"partition: expected train, validate or test, found {self.partition}"
            )
        if self.subset == "segment" and self.partition == "train":
            raise ArgumentError(
                "partition: expected validate or test of the subset segment, found train (its "
                "models are pretrained on --subset frame --partition train)"
            )
        if self.mirror not in ("us", "eu", "asia"):
            raise ArgumentError(f"mirror: expected us, eu or asia, found {self.mirror}")
        if self.server is not None:
            parts = urllib.parse.urlsplit(self.server)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ArgumentError(f"server: expected an http or https URL, found {self.server}")
            if parts.query or parts.fragment:
                raise ArgumentError(f"server: expected a URL without ? and #, found {self.server}")
        self.part_of_shards()
        if self.jobs < 1:
            raise ArgumentError(f"jobs: expected at least 1, found {self.jobs}")
        if self.retries < 0:
            raise ArgumentError(f"retries: expected at least 0, found {self.retries}")
        if not 0 < self.timeout < math.inf:
            raise ArgumentError(f"timeout: expected more than 0 seconds, found {self.timeout}")

    def part_of_shards(self) -> tuple[int, int]:
        """Returns the numbers in ``shard``."""
        match = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9})", self.shard.replace(" ", ""))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ArgumentError(f"shard: expected i,n with 1 <= i <= n, found {self.shard}")
        return int(match[1]), int(match[2])
