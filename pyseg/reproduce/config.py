"""The options of ``python -m pyseg.reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyseg import _cli
from pyseg.reproduce.experiments import Part


@dataclass
class ReproduceConfig:
    """What to reproduce, and on which data.

    Args:
        table: A table of the paper; "gcn", "best", "steps" and "literature" go beyond it, "all" is
            all of these that the data allows. "curve": how they grow with the number of videos.
            "segments": what more than its own frames says of a segment. "mixtures": three models
            that are alike, or not. "rating": how few answers a model needs that asks the questions
            itself.
        data: The experiment's data.
        folder: The folder of the data; default: the one of that name. The sample needs none.
        more: A folder with further shards, for yt8m.
        seeds: Runs per row.
        quick: A trial with a quarter of the steps and one seed.
        part: The held-out videos: "test", or "validation", a part of the training videos, for
            choosing between recipes.
        out: The folder to write; default: runs/reproduce-<data>, with options that differ from the
            defaults in its name.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.

    Raises:
        ValueError: A value is out of its range.
    """

    table: Literal[
        "2",
        "3",
        "4",
        "5",
        "gcn",
        "best",
        "steps",
        "literature",
        "curve",
        "segments",
        "mixtures",
        "rating",
        "all",
    ] = "all"
    data: Literal["yt8m", "audioset", "sample"] = "sample"
    folder: str | None = None
    more: str | None = None
    seeds: int = 3
    quick: bool = False
    part: Part = "test"
    out: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.check_range("seeds", self.seeds, 1)

    @property
    def out_folder(self) -> Path:
        """The folder to write."""
        extras = [self.part] * (self.part != "test") + ["quick"] * self.quick
        return Path(self.out or "runs/" + "-".join(["reproduce", self.data, *extras]))

    @property
    def used_seeds(self) -> range:
        """The seeds of each row's runs."""
        return range(1 if self.quick else self.seeds)
