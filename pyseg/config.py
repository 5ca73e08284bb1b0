"""The options of a training run, which its run folder keeps and later commands read back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyseg import _cli
from pyseg.data import Collection, open_collection

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import ArgumentParser

SEGMENT_VOCABULARY = "segment_vocabulary.csv"
"""The file of a run folder that says which classes are rated, as those of YouTube-8M do."""


@dataclass
class StageConfig:
    """One stage of training.

    Args:
        steps: Optimiser steps; 0 leaves the stage out.
        learning_rate: Adam's learning rate.
        batch_size: Examples a step.

    Raises:
        ValueError: A value is out of its range.
    """

    steps: int
    learning_rate: float
    batch_size: int = 80

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in (("steps", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected above 0, found {self.learning_rate}")


@dataclass
class LossConfig:
    """The loss of fine-tuning on rated segments: the paper's sections 3.2 and 3.3.

    Args:
        rated_weight: The weight m of a rated class (eq. 3).
        unrated_weight: The weight n of every other class.
        correlation: What a rated class says of others (eq. 6): a file of pyseg.cooccur, or "auto":
            counted from the labels of the training videos. Default: nothing.
        threshold: For "auto": probabilities below it are dropped (eq. 5).
        min_support: For "auto": pairs seen in fewer videos are dropped.

    Raises:
        ValueError: A value is out of its range.
    """

    rated_weight: float = 2.5
    unrated_weight: float = 0.1
    correlation: str | None = None
    threshold: float = 0.5
    min_support: int = 1

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("rated_weight", "unrated_weight"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold: expected a number in [0, 1], found {self.threshold}")
        if self.min_support < 1:
            raise ValueError(f"min_support: expected at least 1, found {self.min_support}")


@dataclass
class TrainConfig:
    """What to train, on what.

    Args:
        data: Records as a folder, glob or file; "sample" is a small generated collection, made
            in the user's cache folder at first use.
        vocabulary: A vocabulary.csv naming the classes; default: the one beside the records.
        model: A preset of pyseg.models.
        overrides: Arguments of the preset to change, as in --overrides.hidden_size 256.
        eigenvalues: The .npy file of the features' PCA eigenvalues, which
            --overrides.normalization unwhiten needs.
        run: The folder to write; default: the next free runs/<data>-<model>-<number>.
        pretrain: Pretraining on video labels.
        finetune: Fine-tuning on rated segments; skipped where the data has none.
        loss: The loss of fine-tuning; that of pretraining is plain cross-entropy.
        max_frames: Frames of a video that are used, from its start.
        test_fraction: The part of the videos that is held out for evaluation.
        seed: Seeds the weights, the order of the data and the choice of held-out videos.
        workers: Processes that read ahead; 0 reads in this process.
        device: "cpu", "cuda", ...; default: a GPU where there is one.
    """

    data: str = "sample"
    vocabulary: str | None = None
    model: str = "nextvlad-small"
    overrides: dict[str, Any] = field(default_factory=dict)
    eigenvalues: str | None = None
    run: str | None = None
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(200, 2e-3, 40))
    finetune: StageConfig = field(default_factory=lambda: StageConfig(200, 1e-3))
    loss: LossConfig = field(default_factory=LossConfig)
    max_frames: int = 300
    test_fraction: float = 0.2
    seed: int = 0
    workers: int = 0
    device: str | None = None


def make_parser() -> ArgumentParser:
    """Returns the command line of ``python -m pyseg.train``."""
    return _cli.make_parser(
        TrainConfig,
        "pyseg.train",
        "Pretrains a model on video labels, fine-tunes it on rated segments, evaluates it on "
        "held-out videos. Without options it trains on a small generated sample.",
    )


def open_data(config: TrainConfig, data: str | None = None) -> Collection:
    """Returns a run's collection, or another one split in the same way."""
    return open_collection(
        data or config.data,
        vocabulary=config.vocabulary,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )


def read_run_config(run: Path) -> TrainConfig:
    """Returns the options that a run folder was trained with.

    Raises:
        pyseg._cli.UserError: The folder is not a run.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise _cli.UserError(f"{run} is not a run folder: it has no config.yaml")
    return _cli.read_config(make_parser(), TrainConfig, path)
