"""Trains and measures each variant of an experiment once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import pyseg
from pyseg import distributed, models
from pyseg._containers import parse_json
from pyseg._files import write_file
from pyseg._progress import Progress
from pyseg.config import LossConfig, StageConfig, TrainConfig
from pyseg.data import Collection
from pyseg.errors import DataError, MissingFileError, UserError
from pyseg.evaluate import predictions
from pyseg.nn import FrameClassifier
from pyseg.reproduce.comparisons import PLAIN, Variant
from pyseg.reproduce.estimates import Outcome
from pyseg.reproduce.experiments import Experiment
from pyseg.runs import Run
from pyseg.train import train

_RESULT = "result.json"
_TRAINED = "trained"  # an empty file in the folder of a run whose training has ended
_DRAWS = 1_000  # more than the seeds of a row, so that draws of their weights differ


class Runner:
    """Trains and measures variants, and stores their results.

    Args:
        experiment: The data and the measures.
        folder: The folder of the runs.
        device: The device to train on.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        device: str | None = None,
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.device = device
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Returns the measures of a variant with a seed, and the seconds that they took.

        The measures are those of every class (`Experiment.measure`), under "classes". The result of
        a finished run is read from its folder; a run that was interrupted goes on from its last
        checkpoint, and the seconds are those after that.

        Raises:
            pyseg.errors.DataError: That result is damaged.
        """
        config = self._config(variant, seed)
        folder = self.folder / f"{self._key(config, variant)}-{seed}"
        result = folder / _RESULT
        if result.is_file():
            found: dict[str, Any] = parse_json(result.read_bytes(), str(result), finite=False)
            if not isinstance(found, dict) or found.keys() != {"classes", "seconds"}:
                raise DataError(f"{result}: expected classes and seconds: delete {folder}")
            return found
        began = time.perf_counter()
        self.trained(variant, seed)
        model = self.load(folder)
        measured = self.experiment.measure(functools.partial(predictions, model), seed)
        classes = {name: values.tolist() for name, values in measured.items()}
        found = {"classes": classes, "seconds": time.perf_counter() - began}
        write_file(result, json.dumps(found).encode())
        return found

    def trained(self, variant: Variant, seed: int) -> tuple[Path, Path | None]:
        """Trains a variant with a seed, unless that is done.

        Returns:
            The folder of its run, and that of the run it was fine-tuned from, if there is one.
        """
        config, before = self._config(variant, seed), None
        folder = self.folder / f"{self._key(config, variant)}-{seed}"
        if self.experiment.pretrain is not None:
            before = self._pretrained(variant, seed)
            config = replace(config, init=str(before))
        self._train(replace(config, run=str(folder)), variant, seed)
        return folder, before

    def load(self, folder: Path) -> FrameClassifier:
        """Returns the model of a run, on the device."""
        return models.load(folder, device=distributed.pick_device(self.device))

    def _config(self, variant: Variant, seed: int) -> TrainConfig:
        return TrainConfig(
            data=self.experiment.name,
            model=variant.model.name,
            overrides=dict(variant.model.overrides),
            node_features=variant.model.node_features,
            graph_threshold=variant.model.graph_threshold,
            copies=variant.copies,
            stage="finetune",
            finetune=variant.finetune or self.experiment.finetune,
            loss=variant.loss,
            seed=seed + _DRAWS * variant.draw,
            device=self.device,
            checkpoint_minutes=1.0,
            precision="fp32",  # on a GPU too, as in the published tables
            tf32=False,
        )

    def _key(self, config: TrainConfig, variant: Variant) -> str:
        """Returns the name that runs share which differ only in the seed."""
        more = self.experiment.more
        options = {
            **asdict(config),
            "seed": None,
            "complete": variant.complete,
            "share": variant.share,
            "draw": variant.draw,
            "data": str(self.experiment.folder.resolve()),
            "more": more and str(more.resolve()),
            "part": self.experiment.part,
            "version": pyseg.__version__,
        }
        text = json.dumps(options, sort_keys=True)
        return f"{config.model}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def _pretrained(self, variant: Variant, seed: int) -> Path:
        """Returns the run whose weights a variant is fine-tuned from; trains it if necessary."""
        assert self.experiment.pretrain is not None
        config = replace(
            self._config(variant, seed),
            stage="pretrain",
            pretrain=self.experiment.pretrain,
            finetune=StageConfig(0, 1.0),
            loss=_pretraining_loss(variant),
        )
        trained = replace(variant, complete=False)
        folder = self.folder / f"{self._key(config, trained)}-{seed}-pretrained"
        self._train(replace(config, run=str(folder)), trained, seed)
        return folder

    def _train(self, config: TrainConfig, variant: Variant, seed: int) -> None:
        """Trains a run, or what is left of it."""
        run = Run(config.run or "")
        done = run.folder / _TRAINED
        if done.is_file():
            return
        loss = self.experiment.loss(config.loss, self.folder)
        nodes = self.experiment.node_features(variant.model, self.folder)
        collection = self.experiment.collection(
            seed, complete=variant.complete, share=variant.share
        )
        log = run.folder.with_suffix(".log")
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            if not (run.is_unfinished and _goes_on(run, collection)):
                shutil.rmtree(run.folder, ignore_errors=True)
                train(replace(config, loss=loss, node_features=nodes), collection)
        done.touch()


def run_all(runner: Runner, variant: Variant, seeds: Sequence[int], bar: Progress) -> Outcome:
    """Runs a variant with every seed; `bar` counts the runs."""
    runs = []
    for seed in seeds:
        runs.append(runner.run(variant, seed))
        bar.update()
    classes = {m: np.array([run["classes"][m] for run in runs]) for m in runner.experiment.measures}
    return Outcome(variant, classes, float(np.mean([run["seconds"] for run in runs])))


def _goes_on(run: Run, collection: Collection) -> bool:
    """Trains a run from its last checkpoint, if that is undamaged and of the same data."""
    try:
        train(TrainConfig(resume=str(run)), collection)
    except (DataError, MissingFileError, UserError) as error:
        print(f"{error}; it is trained from its beginning")
        return False
    return True


def _pretraining_loss(variant: Variant) -> LossConfig:
    """Returns the loss of pretraining: plain, unless the model takes its graph from the loss."""
    known = models.options(variant.model.name, head=variant.model.overrides.get("head"))
    return variant.loss if "correlation" in known else PLAIN
