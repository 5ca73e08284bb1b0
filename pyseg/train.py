"""Trains a model: ``python -m pyseg.train`` (``--help`` lists the options).

Two stages, as in the paper's section 4.2: pretraining on the labels of whole videos with binary
cross-entropy (eq. 1), then fine-tuning on rated segments, where classes that nobody rated count
less (eq. 2 and 3) and, where asked for, what a rated class says of others is a target too (eq. 6).
Videos are held out by id, in both stages, and the run ends with their evaluation.

A run folder holds

* ``config.yaml``: the options; ``--config`` reads them back;
* ``model.safetensors``, ``model.json``: the weights, and what `pyseg.models.load` builds;
* ``segment_vocabulary.csv``: the classes whose segments are rated, if any;
* ``correlation.npz``: the label correlation that was used, if any;
* ``metrics.jsonl``: one JSON object a line, ``stage`` says which part of the run wrote it.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyseg import _cli, models
from pyseg.config import (
    SEGMENT_VOCABULARY,
    LossConfig,
    StageConfig,
    TrainConfig,
    make_parser,
    open_data,
)
from pyseg.data import Collection, loader, youtube8m
from pyseg.evaluate import describe, evaluate, pick_device
from pyseg.labels import CooccurrenceCounter, LabelCorrelation
from pyseg.ops import rated_bce_with_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyseg.data import Batch, RecordDataset
    from pyseg.nn import FrameClassifier


LOG_EVERY = 10  # steps between two lines of metrics.jsonl


class Loss:
    """The loss of a stage, summed over the classes and averaged over the batch.

    Args:
        rated_weight: The weight of rated classes.
        unrated_weight: The weight of all others; both 1 is plain cross-entropy.
        correlation: What rated classes say of others.
    """

    def __init__(
        self,
        rated_weight: float = 1.0,
        unrated_weight: float = 1.0,
        correlation: LabelCorrelation | None = None,
    ) -> None:
        """Keeps the arguments; the class describes them."""
        self.rated_weight, self.unrated_weight = rated_weight, unrated_weight
        self.correlation = correlation

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the loss of (B, C) logits for a batch of B examples on the same device."""
        return rated_bce_with_logits(
            logits,
            batch.offsets,
            batch.classes,
            batch.scores,
            self.correlation,
            rated_weight=self.rated_weight,
            unrated_weight=self.unrated_weight,
        )


def label_correlation(config: LossConfig, collection: Collection) -> LabelCorrelation | None:
    """Returns the correlation that the options ask for.

    Counts for "auto" are those of the training videos alone: the labels of held-out videos, in
    which the ratings of their segments shine through, must not be known.

    Raises:
        ValueError: A file is none, or of another number of classes.
    """
    if config.correlation is None:
        return None
    classes = collection.num_classes
    if config.correlation != "auto":
        correlation = LabelCorrelation.load(config.correlation)
        if correlation.num_classes != classes:
            raise ValueError(
                f"--loss.correlation {config.correlation}: expected {classes} classes, as the data "
                f"has, found {correlation.num_classes}"
            )
        return correlation
    counter = CooccurrenceCounter(classes)
    for offsets, labels in collection.label_lists("train"):
        counter.update(offsets, labels)
    return LabelCorrelation.from_counts(
        counter.finish(), config.threshold, min_support=config.min_support
    )


def _train_stage(
    name: str,
    model: FrameClassifier,
    dataset: RecordDataset,
    stage: StageConfig,
    loss_of: Loss,
    config: TrainConfig,
    log: _Log,
) -> None:
    from tqdm import tqdm

    device = next(model.parameters()).device
    num_classes = model.num_classes
    optimizer = torch.optim.Adam(model.parameters(), lr=stage.learning_rate)
    batches = iter(loader(dataset, stage.batch_size, workers=config.workers))
    model.train()
    total = torch.zeros((), device=device)
    start, logged = time.perf_counter(), 0
    with tqdm(total=stage.steps, desc=name, unit="step", leave=False, disable=None) as bar:
        for step in range(1, stage.steps + 1):
            batch = next(batches, None)
            if batch is None:
                raise _cli.UserError(f"{name}: the data set has no training example")
            with _cli.user_errors():
                batch.check_classes(num_classes)
            batch = batch.to(device, non_blocking=True)
            criterion = partial(loss_of, batch=batch)
            loss = model.training_loss(batch.frames, batch.num_frames, criterion)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            bar.update()
            if step % LOG_EVERY == 0 or step == stage.steps:
                mean = total.item() / (step - logged)
                if not torch.isfinite(total):
                    raise _cli.UserError(
                        f"{name}: the loss is {mean} between steps {logged + 1} and {step}; "
                        f"the last batch is {', '.join(batch.ids[:5])}, ..."
                    )
                seconds = time.perf_counter() - start
                log.write(
                    name,
                    step=step,
                    loss=mean,
                    examples_per_second=round(step * stage.batch_size / seconds, 1),
                )
                bar.set_postfix(loss=f"{mean:.3f}")
                total.zero_()
                logged = step
    seconds = time.perf_counter() - start
    rate = stage.steps * stage.batch_size / seconds
    print(
        f"{name}: {stage.steps} steps of {stage.batch_size} in {seconds:.0f} s "
        f"({rate:.0f} examples/s), loss {mean:.3f}"
    )


class _Log:
    """metrics.jsonl: every line is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, stage: str, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, **values}) + "\n")


def _read_array(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise _cli.UserError(f"{path}: expected a NumPy array, found: {error}") from error


def _make_run_folder(config: TrainConfig, collection: Collection) -> Path:
    if config.run is not None:
        folder = Path(config.run)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise _cli.UserError(f"--run {folder} exists already and is not an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    for number in itertools.count(1):
        folder = Path("runs") / f"{collection.name}-{config.model}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def train(config: TrainConfig) -> Path:
    """Trains, evaluates and saves a model; returns the run folder.

    Raises:
        pyseg._cli.UserError: The options do not fit the data.
        pyseg.data.RecordError: A record is damaged.
    """
    device = pick_device(config.device)
    with _cli.user_errors():
        torch.manual_seed(config.seed)
        collection = open_data(config)
        overrides = dict(config.overrides)
        if config.eigenvalues is not None:
            overrides["eigenvalues"] = _read_array(config.eigenvalues)
        model = models.create(
            config.model,
            num_classes=collection.num_classes,
            feature_sizes=collection.feature_sizes,
            **overrides,
        ).to(device)
        # Repeated without end, so that every batch is a full one: batch statistics need it.
        order: dict[str, Any] = {"shuffle": True, "seed": config.seed, "repeat": True}
        frames = {"max_frames": config.max_frames} if collection.level == "frame" else {}
        videos = collection.videos("train", **order, **frames)
        stages = [("pretrain", config.pretrain, videos, Loss())]
        segments = collection.segments("train", **order)
        correlation = None
        if segments is not None:
            correlation = label_correlation(config.loss, collection)
            weights = config.loss.rated_weight, config.loss.unrated_weight
            on_device = None if correlation is None else correlation.to(device)
            stages.append(("finetune", config.finetune, segments, Loss(*weights, on_device)))
    run = _make_run_folder(config, collection)

    def save() -> None:
        models.save(model, run, class_names=collection.class_names)

    _cli.write_config(make_parser(), replace(config, run=str(run)), run / "config.yaml")
    if correlation is not None:
        correlation.save(run / "correlation.npz")
    if collection.segment_classes is not None:
        youtube8m.write_segment_vocabulary(
            run / SEGMENT_VOCABULARY, collection.segment_classes, collection.class_names
        )
    save()  # a folder that cannot take the weights is told now, not after hours
    log = _Log(run / "metrics.jsonl")
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"data: {collection.name}, {collection.num_classes} classes; "
        f"model: {config.model}, {parameters:,} parameters, on {device}"
    )
    for note in collection.notes:
        print(f"data: {note}")
    if correlation is not None:
        source = config.loss.correlation
        where = f"of {source}" if source != "auto" else "of the training videos' labels"
        print(f"label correlation: {len(correlation.values)} relations {where}")
    try:
        for name, stage, dataset, loss in stages:
            if stage.steps == 0:
                continue
            _train_stage(name, model, dataset, stage, loss, config, log)
            save()
            result = evaluate(model, collection, "test", workers=config.workers)
            log.write("evaluate", after=name, **result)
            print(f"after {name}: {describe(result)}")
    except KeyboardInterrupt:
        save()
        print(f"interrupted: the weights so far are in {run}")
        raise
    print(f"run folder: {run}")
    return run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.train``."""
    config = _cli.parse(make_parser(), TrainConfig, argv)
    run = train(config)
    print(f"evaluate again: python -m pyseg.evaluate --run {run}")
    if config.data == "sample":
        print(
            "on YouTube-8M: python -m pyseg.train --model nextvlad1 "
            "--data <folder of train*.tfrecord and validate*.tfrecord>"
        )


if __name__ == "__main__":
    _cli.run(main)
