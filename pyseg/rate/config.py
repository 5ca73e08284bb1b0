"""The options of ``python -m pyseg.rate``."""

from __future__ import annotations

import getpass
from dataclasses import dataclass, field
from typing import ClassVar

from pyseg import _cli
from pyseg.data.records import OnError, why_not_an_id
from pyseg.errors import ArgumentError


@dataclass
class RateConfig:
    """What to ask about, and where to store the answers.

    Args:
        data: The videos' features: a folder, a glob, a file or a URL of records, with ratings or
            without.
        run: The run folder of a model that knows some of the classes already: learning starts from
            its scores.
        videos: The videos to show, as files, folders or globs; default: the files that the features
            were extracted from.
        links: A table with the columns video and url, of videos elsewhere.
        classes: The classes to ask about, as a,b or ["a", "b"]; may be given several times.
            Default: those of the data, of the file of answers and of the run.
        out: The file of answers, to which they are appended.
        rater: The name of the rater; default: that of the user.
        check: Ask again about the answers that the model doubts most.
        strategy: How questions are chosen: change, uncertain, random, or one that is registered.
        model: The model that learns meanwhile: linear, or another preset such as mlp.
        every: Answers after which it is trained again.
        test_fraction: The fraction of the videos that training will hold out: random questions are
            about these, and no others. That of the run, if there is one.
        gain: The gain in mean average precision of twice as many answers that is worth them.
        port: The port of the page on this machine; 0: a free one.
        browser: Open the page in a browser.
        on_error: "raise" at a damaged record, or "skip" and report it.
        device: The device of the run's model, as "cpu" or "cuda"; default: a GPU if there is one.
        seed: The seed of random choices, and of which videos are held out, as in pyseg.train.

    Raises:
        ValueError: A value is out of its range.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "What to ask about": ("data", "videos", "links", "classes", "run", "on_error"),
        "Answers": ("out", "rater", "check"),
        "Learning": ("strategy", "test_fraction", "model", "every", "gain", "seed", "device"),
        "The page": ("port", "browser"),
    }

    data: str
    run: str | None = None
    videos: list[str] = field(default_factory=list)
    links: str | None = None
    classes: list[str] = field(default_factory=list, metadata={"repeated": True})
    out: str = "ratings.csv"
    rater: str | None = field(default=None, metadata={"word": True})
    check: bool = False
    strategy: str = "change"
    model: str = "linear"
    every: int = 20
    test_fraction: float = 0.2
    gain: float = 0.02
    port: int = 0
    browser: bool = True
    on_error: OnError = "raise"
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        _cli.check_range("every", self.every, 1, 1_000_000)
        _cli.check_range("test_fraction", self.test_fraction, 0, 1)
        _cli.check_range("gain", self.gain, 0, 1)
        _cli.check_range("port", self.port, 0, 65535)
        _cli.check_range("seed", self.seed, 0, 2**32 - 1)
        if self.rater is not None and (wrong := why_not_an_id(self.rater)) is not None:
            raise ArgumentError(f"rater: {wrong}")

    def name_of_rater(self) -> str:
        """Returns the name of the rater.

        Raises:
            pyseg.errors.ArgumentError: None is given, and the user has none.
        """
        if self.rater is not None:
            return self.rater
        try:
            name = getpass.getuser()
        except (KeyError, OSError, ImportError):
            name = ""
        if why_not_an_id(name) is not None:
            raise ArgumentError("rater: expected a name, as this user has none; found none")
        return name
