"""The run folder, which `pyseg.train` writes and all other commands read.

A run folder holds

* ``config.yaml``: the options; ``--config`` reads them back;
* ``model.safetensors``, ``model.json``: the weights, and what `pyseg.models.load` builds;
* ``features.json``: the features that the model takes, and the length of frames and segments;
* ``segment_vocabulary.csv``: the classes whose segments are rated, if any;
* ``correlation.npz``: the label correlation that was used, if any;
* ``metrics.jsonl``: one JSON object per line; ``stage`` is the part of the run that wrote it;
* ``calibration.json``: what makes probabilities of the logits, if `pyseg.calibrate` wrote it;
* ``tensorboard``: the same numbers for TensorBoard, if requested;
* ``mlflow.id``, ``wandb.id``: what those trackers call the run, if requested;
* ``pretrained``: the weights before fine-tuning, if ``--final_fit`` needs them;
* ``checkpoints``: during training, all that ``--resume`` needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pyseg import _cli, distributed, models, results
from pyseg._containers import parse_json
from pyseg._paths import path_text
from pyseg._remote import check_whole, location
from pyseg._urls import hides
from pyseg.calibration import Calibration
from pyseg.checkpoint import list_checkpoints
from pyseg.config import TrainConfig, make_parser, recipe_defaults
from pyseg.data import (
    Collection,
    FeatureSet,
    features,
    find_shards,
    open_collection,
    vocabulary,
)
from pyseg.data.collection import find_data
from pyseg.data.records import OnError
from pyseg.data.shards import fingerprints
from pyseg.errors import DataError, MissingFileError, PysegError, UserError
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier

_NUMBERS = {"step", "loss", "learning_rate", "examples_per_second"}.union(
    *(kind.names() for kind in results.KINDS)
)


class Run:
    """A run folder: the only place that knows the names of its files and how to read them.

    Files are read on request only.

    Args:
        folder: The folder, which need not exist yet.

    Attributes:
        folder: The folder.

    Raises:
        pyseg.errors.ArgumentError: The folder is no path.

    Example:
        >>> Run("runs/sample-mlp-1").log_file.name
        'metrics.jsonl'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(path_text(folder, "run"))
        self.config_file = self.folder / "config.yaml"
        self.weights_file = self.folder / models.WEIGHTS
        self.features_file = self.folder / features.FILE
        self.vocabulary_file = self.folder / vocabulary.SEGMENT_FILE
        self.correlation_file = self.folder / "correlation.npz"
        self.calibration_file = self.folder / "calibration.json"
        self.log_file = self.folder / "metrics.jsonl"
        self.tensorboard_folder = self.folder / "tensorboard"
        self.pretrained_folder = self.folder / "pretrained"
        self.checkpoints_folder = self.folder / "checkpoints"

    def __str__(self) -> str:
        """The folder."""
        return str(self.folder)

    def tracker_file(self, name: str) -> Path:
        """Returns the file of what a tracker calls the run."""
        return self.folder / f"{name}.id"

    def config(self) -> TrainConfig:
        """Returns the options of its training.

        Raises:
            pyseg.errors.UserError: The folder is not a run, or its options are invalid.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self} is not a run folder: it has no config.yaml")
        return _cli.read_config(make_parser(), TrainConfig, self.config_file, recipe_defaults)

    def write_config(self, config: TrainConfig) -> None:
        """Writes the options, which ``--config`` reads back."""
        _cli.write_config(make_parser(), config, self.config_file)

    def model(self, device: str | torch.device = "cpu") -> FrameClassifier:
        """Returns the model, in eval mode; see `pyseg.models.load`.

        Raises:
            pyseg.errors.UserError: The folder is not a run.
            pyseg.errors.DataError: A file is damaged, or features.json is of another model.
        """
        if not (self.config_file.is_file() or (self.folder / models.CONFIG).is_file()):
            raise UserError(f"{self} is not a run folder: it has no {models.CONFIG}")
        model = models.load(self.folder, device=device)
        if self.features_file.is_file():
            expected, found = tuple(model.feature_sizes), self.features().feature_sizes
            if expected != found:
                raise DataError(
                    f"{self.features_file}: expected features of the widths {expected}, which "
                    f"{self.weights_file.name} takes, found {found}"
                )
        return model

    def features(self) -> FeatureSet:
        """Returns the features that its model was trained on.

        Raises:
            pyseg.errors.UserError: The folder has no such file.
            pyseg.errors.DataError: The file is malformed.
        """
        if not self.features_file.is_file():
            raise UserError(
                f"{self.features_file}: expected the features of the run's data, which training "
                f"writes, found no such file: train again, or {self._how_to_write_features}"
            )
        return FeatureSet.read(self.features_file)

    @property
    def _how_to_write_features(self) -> str:
        """How the file of features can be written after training, for messages."""
        if not self.config_file.is_file():
            return "write a pyseg.data.FeatureSet there"
        data = str(self.config().data)
        code = (
            "from pyseg.data import open_collection; "
            f"open_collection({data!r}).features.write({str(self.features_file)!r})"
        )
        return f"write it from the same data: python -c {shlex.quote(code)}"

    @property
    def is_unfinished(self) -> bool:
        """Whether its training has not ended, and can be resumed."""
        return bool(list_checkpoints(self.checkpoints_folder))

    def follow_up(self, words: str, then: str = "", processes: int = 1) -> str:
        """Returns the command ``python -m <words> <run>`` for messages, followed by ``then``.

        For several processes it is that of torchrun.
        If a secret is hidden in the URL of one of the run's options, it says to give that again.
        """
        command = _cli.follow_up(f"{words} {self}", processes)
        hidden: dict[str, Any] = {}
        with contextlib.suppress(PysegError):  # the message is of something else
            hidden = {name: url for name, url in vars(self.config()).items() if hides(url)}
        if not hidden:
            return command + then
        given = "".join(f" --{name} URL" for name in hidden)
        return (
            f"{command}{given}{then}; URL is {', then '.join(hidden.values())} with its password "
            "or signature, which is not stored"
        )

    @property
    def how_to_resume(self) -> str:
        """The command that resumes its training, for messages."""
        return self.follow_up("pyseg.train --resume", " continues", distributed.world_size())

    def warn_unfinished(self) -> None:
        """Prints a line if its training has not ended, so that its weights are not final."""
        if self.is_unfinished:
            print(f"{self}: its training has not ended: {self.how_to_resume}")

    def rated_classes(self) -> list[int] | None:
        """Returns the rated classes, by their numbers in the data, if the run stores them.

        A model with as many classes has them in this order.

        Raises:
            pyseg.errors.DataError: The file is malformed.
        """
        if not self.vocabulary_file.is_file():
            return None
        return vocabulary.read_segment_vocabulary(self.vocabulary_file).classes

    def write_rated_classes(self, classes: Sequence[int], names: Sequence[str] | None) -> None:
        """Writes the rated classes; `names` are those of all classes, if known."""
        vocabulary.write_segment_vocabulary(self.vocabulary_file, classes, names)

    def known_classes(self, num_classes: int) -> list[int] | None:
        """Returns the numbers in the data of its model's classes; None: all classes.

        Args:
            num_classes: The number of classes C of the model.

        Raises:
            pyseg.errors.DataError: The file of rated classes is malformed.
        """
        rated = self.rated_classes()
        return rated if rated is not None and len(rated) == num_classes else None

    def correlation(self) -> LabelCorrelation | None:
        """Returns the label correlation of its training, if any.

        Raises:
            pyseg.errors.DataError: The file is damaged.
        """
        if not self.correlation_file.is_file():
            return None
        return LabelCorrelation.load(self.correlation_file)

    def weights_digest(self) -> str:
        """Returns a digest of its file of weights.

        Raises:
            OSError: The file cannot be read.
        """
        digest = hashlib.blake2b(digest_size=16)
        with self.weights_file.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        return digest.hexdigest()

    def calibration(self, num_classes: int) -> Calibration | None:
        """Returns the calibration of its probabilities, if `pyseg.calibrate` wrote one.

        Args:
            num_classes: The number of classes C of the model.

        Raises:
            pyseg.errors.DataError: The file is damaged, or of other weights.
        """
        if not self.calibration_file.is_file():
            return None
        again = f"run {_cli.follow_up(f'pyseg.calibrate --run {self}')} again"
        try:
            found = Calibration.read(self.calibration_file)
        except DataError as error:
            raise DataError(f"{error}; {again}, or remove the file") from error
        if found.is_sample:
            again += " with the --ratings of then"
        if found.weights != (digest := self.weights_digest()):
            raise DataError(
                f"{self.calibration_file}: expected a calibration of the weights {digest}, found "
                f"one of {found.weights:.40}; {again}, or remove the file"
            )
        if found.num_classes != num_classes:
            raise DataError(
                f"{self.calibration_file}: expected {num_classes} classes, as the model has, found "
                f"{found.num_classes}; {again}, or remove the file"
            )
        return found

    def log(self) -> list[dict[str, Any]]:
        """Returns the lines of its log, none if there is no such file.

        Text after the last line break is a line that is being written, and ignored.

        Raises:
            pyseg.errors.DataError: A line is not what pyseg writes.
        """
        if not self.log_file.is_file():
            return []
        lines = self.log_file.read_bytes().split(b"\n")[:-1]
        return [
            _log_entry(line, f"{self.log_file}, line {number}")
            for number, line in enumerate(lines, 1)
        ]

    def append_to_log(self, stage: str, **values: Any) -> None:
        """Appends a line to its log, and flushes it to disk."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, **values}) + "\n")


def _log_entry(line: bytes, place: str) -> dict[str, Any]:
    entry = parse_json(line, place, finite=False)
    if not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
        raise DataError(f"{place}: expected a JSON object with a stage, found {line[:80]!r}")
    if not isinstance(entry.get("after", ""), str):
        raise DataError(f"{place}: after: expected a stage, found {entry['after']!r}")
    for key in results.kind_of(entry).names() if entry["stage"] == "evaluate" else ():
        if key not in entry:
            raise DataError(f"{place}: expected {key} in an evaluation, found none")
    for key in entry.keys() & _NUMBERS:
        if type(entry[key]) not in (int, float):
            raise DataError(f"{place}: {key}: expected a number, found {entry[key]!r}")
    if not 0 <= (step := entry.get("step", 0)) < 2**63 or step != int(step):
        raise DataError(f"{place}: step: expected a whole number, found {step}")
    return entry


def open_data(
    config: TrainConfig,
    data: str | None = None,
    labels: str | None = None,
    on_error: OnError | None = None,
    vocabulary: str | None = None,
) -> Collection:
    """Opens a run's collection, or another one with the same split.

    Args:
        config: The run's options.
        data: The records; default: the run's, with the run's strong labels.
        labels: Tables of strong labels; default: those of the data.
        on_error: "raise" or "skip" damaged records; default: the run's option.
        vocabulary: The classes; default: the run's vocabulary.

    Raises:
        pyseg.errors.UserError: A secret is hidden in the URL of one of them, and not known.
    """
    labels = labels or (config.labels if data in (None, config.data) else None)
    data, vocabulary = data or config.data, vocabulary or config.vocabulary
    for name, url in (("data", data), ("labels", labels), ("vocabulary", vocabulary)):
        check_whole(url, name)
    return open_collection(
        data,
        labels=labels,
        vocabulary=vocabulary,
        on_error=on_error or config.on_error,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )


@contextlib.contextmanager
def saying_whose(data: str | None) -> Iterator[None]:
    """Adds to an error about missing records that the user did not name them, but the run.

    Args:
        data: What the user named; None: the run's data, which the enclosed call looks for.
    """
    try:
        yield
    except MissingFileError as error:
        if data is not None:
            raise
        raise MissingFileError(
            f"{error}; this is what the run was trained on: if it is elsewhere now, or in another "
            "folder than this one, name it with --data"
        ) from error


def is_own(config: TrainConfig, data: str | None, shards: Sequence[str]) -> bool:
    """Returns whether records, or some of them, are those that a run was trained on, or copies.

    Args:
        config: The run's options.
        data: What the user named; None: the run's data.
        shards: The files of the records.
    """
    if data is None:
        return True
    try:
        own = find_shards(find_data(config.data))
    except (DataError, UserError, FileNotFoundError):  # they cannot be read now
        return False
    if {*map(location, own)} & {*map(location, shards)}:
        return True
    return bool({*fingerprints(own).values()} & {*fingerprints(shards).values()})


def holds_out(config: TrainConfig) -> bool:
    """Whether a run with these options was not trained on a part of its videos."""
    return not config.final_fit and config.test_fraction > 0


def check_held_out(run: Run, data: str | None, shards: Sequence[str], hint: str = "") -> None:
    """Checks that a run was not trained on the videos that it holds out of records.

    Args:
        run: The run.
        data: What the user named; None: the run's data.
        shards: The files of the records.
        hint: What the message ends with where the records are those of training.

    Raises:
        pyseg.errors.UserError: It was trained on all of them, or holds out none of any records.
    """
    config = run.config()
    if holds_out(config):
        return
    option = "--final_fit" if config.final_fit else "--test_fraction 0"
    if is_own(config, data, shards):
        raise UserError(
            f"--run {run}: expected videos that were held out, found that it was trained on all "
            f"with {option}: name --data of other videos, with --part all{hint}"
        )
    if not config.test_fraction:
        raise UserError(
            f"--part test: expected all with --data of other videos, as {run} was trained with "
            f"{option} and holds out none"
        )
