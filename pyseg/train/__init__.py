"""Trains a model: ``python -m pyseg.train`` (``--help`` lists the options).

Training has two stages, as in the paper's section 4.2: pretraining on the labels of whole videos
with binary cross-entropy (eq. 1), then fine-tuning on rated segments, where unrated classes have a
smaller weight (eq. 2 and 3) and, unless switched off, targets from the label correlation
(eq. 6). Both stages hold out the same videos, by id, and the run ends with their evaluation.

The result is a run folder (`pyseg.runs`), in which one command at a time trains.

``--resume`` continues from the last undamaged checkpoint. Data, model and options must be those of
the run, except for the options in `RESUMABLE`, such as steps and workers.

``torchrun --nproc_per_node=N -m pyseg.train -- ...`` divides every batch over N processes
(`pyseg.distributed`); the result is that of one process. It resumes with as many processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pyseg import _cli, _ext, _text, distributed
from pyseg._memory import keep_memory
from pyseg._precision import allow_tf32
from pyseg.config import TrainConfig, make_parser, recipe_defaults, unused_by_ridge
from pyseg.data import Collection, ReadReport
from pyseg.data.records import without_record_warnings
from pyseg.errors import UserError
from pyseg.evaluate import evaluate
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier
from pyseg.results import Result
from pyseg.runs import Run, open_data
from pyseg.train._data import (
    classes_to_tune,
    hold_out,
    label_correlation,
    label_graph,
    normalization,
    ratings_per_class,
)
from pyseg.train._folder import RESUMABLE, check_new, check_resumed, create, resume
from pyseg.train._machine import settle
from pyseg.train._model import known_overrides, make_model, start_from
from pyseg.train._stages import make_stages
from pyseg.training import Stage, Tracker, Trainer, make_tracker
from pyseg.training.identity import check_features
from pyseg.training.ridge import check_solvable

if TYPE_CHECKING:
    from jsonargparse import Namespace

FEW_RATINGS = 50
"""Ratings of a class, the median over rated ones, below which `train` suggests a linear model."""

MANY_CLASSES = 40
"""From so many classes on it suggests ``--recipe best``, for which unrated classes are absent."""

MOST_EXPECTED = 0.5
"""Share of the other classes from which on `train` suggests to leave out the correlation."""

_LINEAR = ("linear", "ridge")

__all__ = [
    "FEW_RATINGS",
    "MANY_CLASSES",
    "RESUMABLE",
    "label_correlation",
    "main",
    "parse_options",
    "train",
]


def train(config: TrainConfig, collection: Collection | None = None) -> Path:
    """Trains, evaluates and saves a model; returns the run folder.

    Args:
        config: The options. With ``resume`` all others are the run's.
        collection: The data; default: what the options name, split as they say.

    Raises:
        pyseg.errors.UserError: The options do not fit the data or, with ``resume``, the run.
        pyseg.errors.RecordError: A record is damaged.
        pyseg.errors.DataError: All checkpoints of the run are damaged.
        KeyboardInterrupt: The user asked to stop; the state is saved.
    """
    if config.resume is not None:
        config = replace(Run(config.resume).config(), resume=config.resume)
    return _start(config, collection)


def _start(config: TrainConfig, collection: Collection | None = None) -> Path:
    """Does the work of `train`, also for a resumed run whose options have changed."""
    device = distributed.local_device(distributed.pick_device(config.device))
    if config.resume is not None:
        config = check_resumed(config)
    with (
        distributed.session(device, config.timeout_minutes),
        without_record_warnings(),
        contextlib.ExitStack() as owned,
    ):
        return _train(config, collection, device, owned).folder


def _train(
    config: TrainConfig,
    collection: Collection | None,
    device: torch.device,
    owned: contextlib.ExitStack,
) -> Run:
    """Trains in one process of the run; adds the lock of the run's folder to `owned`."""
    config = settle(config, device)
    if config.resume is None and config.run is not None:
        check_new(Run(config.run))  # before the data is read, which may take minutes
    trackers = _make_trackers(config)  # raises before a run folder is made
    checkpoint = None if config.resume is None else resume(config, owned)
    owned.enter_context(allow_tf32(bool(config.tf32)))
    torch.manual_seed(config.seed)

    collection = open_data(config) if collection is None else collection
    run = None if checkpoint is None else Run(cast(str, config.run))
    if run is not None:
        check_features(f"--resume {config.resume}", run.features(), collection.features)
    config, collection, blind = hold_out(config, collection)
    counted, known = ReadReport(), known_overrides(config)
    graph, nodes = label_graph(config, collection, known, counted)
    given = nodes | normalization(config, collection, known, resumed=checkpoint is not None)
    model = make_model(config, collection, known, graph, device, given)
    if config.init is not None and checkpoint is None:
        start_from(model, Path(config.init))
    classes = classes_to_tune(config, collection)
    stages, correlation = make_stages(config, collection, classes, graph, device, counted)
    if config.solver == "ridge":
        _check_ridge(config, model, stages)
    if distributed.rank():  # the same weights in all processes, but different dropout and noise
        torch.manual_seed(config.seed + distributed.rank())

    def on_held_out(trained: FrameClassifier) -> Result:
        known = None if trained.num_classes == collection.num_classes else classes
        return evaluate(trained, collection, "test", classes=known, workers=config.workers or 0)

    if run is None:
        run = create(config, collection, correlation, owned)
    tested = None if blind else on_held_out
    trainer = Trainer(model, stages, config, run, tested, checkpoint, trackers)
    if checkpoint is None:
        trainer.save_weights(model)
    elif distributed.is_first():  # the options that may have changed
        run.write_config(replace(config, resume=None))
    _print_task(config, collection, model, correlation, counted, blind)
    _suggest_linear(config, stages, collection.num_classes)
    if trainer.resumes:
        print(f"continuing from {trainer.resumes}")
    trainer.fit()
    _print_next_steps(config, run, evaluated=not blind)
    return run


def _make_trackers(config: TrainConfig) -> list[Tracker]:
    """Makes the trackers, in the first process."""
    trackers = []
    for name in config.trackers if distributed.is_first() else ():
        with _cli.option("tracker", name):
            trackers.append(make_tracker(name))
    return trackers


def _check_ridge(config: TrainConfig, model: FrameClassifier, stages: Sequence[Stage]) -> None:
    if config.copies > 1:
        raise UserError(
            f"--copies {config.copies}: expected 1 with --solver ridge (as of --model ridge and "
            "--recipe best), whose solution is the same for all copies"
        )
    for stage in stages:
        check_solvable(model, stage)
    if unused := unused_by_ridge(config):
        print(f"solver: ridge takes no steps, and has no use for {', '.join(unused)}")


def _print_task(
    config: TrainConfig,
    collection: Collection,
    model: FrameClassifier,
    correlation: LabelCorrelation | None,
    counted: ReadReport,
    blind: str,
) -> None:
    """Prints the data, the model and the label correlation."""
    weight = next(model.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"data: {collection.name}, {_text.counted(collection.num_classes, 'class')}; "
        f"model: {config.trained}, {parameters:,} parameters, on {weight.device}"
    )
    if _ext.CPU_REASON:
        print(f"operators: plain PyTorch, which is slower: {_ext.CPU_REASON}")
    for note in (*collection.notes, blind):
        if note:
            print(f"data: {note}")
    if correlation is not None:
        source = config.loss.correlation
        where = f"of {source}" if source != "auto" else "of the training videos' labels"
        relations = _text.counted(len(correlation.values), "relation")
        print(f"label correlation: {relations} {where}")
        pairs = correlation.num_classes * (correlation.num_classes - 1)
        if pairs and (share := float(correlation.values.sum()) / pairs) > MOST_EXPECTED:
            print(
                f"label correlation: where one class is, it expects {share:.0%} of the others; if "
                "segments have fewer, as they are shorter than videos, --loss.correlation none is "
                "better"
            )
    if summary := counted.summary():
        print(f"label correlation: {summary}")


def _suggest_linear(config: TrainConfig, stages: Sequence[Stage], num_classes: int) -> None:
    """Prints that another model may do as well or better, if there are few ratings or classes."""
    few = num_classes < MANY_CLASSES
    if config.solver == "ridge" and few:
        print(
            f"data: {_text.counted(num_classes, 'class')}; ridge counts an unrated class as "
            "absent, so that with so few of them --model linear is often better"
        )
    for stage in stages:
        if stage.name != "finetune" or not stage.config.steps or config.model in _LINEAR:
            continue
        if stage.dataset.cached and (number := ratings_per_class(stage.dataset)) < FEW_RATINGS:
            best = "--model ridge" if config.recipe == "best" else "--recipe best"
            option = "--model linear" if few else best
            ratings = _text.counted(number, "rating")
            print(f"data: {ratings} a class; with so few, {option} is often as good")


def _print_next_steps(config: TrainConfig, run: Run, evaluated: bool) -> None:
    """Prints the run's folder, and commands to go on with."""
    print(f"run folder: {run}")
    if config.final_fit:
        print("the evaluation above is of the weights before the final fit, on all ratings")
    elif evaluated:
        print(f"evaluate again: {run.follow_up('pyseg.evaluate --run')}")
    if config.data == "sample":
        option = "--recipe best" if config.solver == "ridge" else "--model nextvlad1"
        print(
            f"on YouTube-8M: python -m pyseg.train {option} "
            "--data <folder of train*.tfrecord and validate*.tfrecord>"
        )


def parse_options(argv: Sequence[str] | None) -> TrainConfig:
    """Returns the options of ``python -m pyseg.train``.

    The defaults are the recipe's, or with ``--resume`` the run's options.

    Raises:
        pyseg.errors.UserError: An option is unknown, or its value is invalid.
    """

    def defaults(options: Namespace) -> dict[str, Any]:
        if options["resume"] is None:
            return recipe_defaults(options)
        kept = vars(Run(options["resume"]).config())
        groups = {name: vars(value) for name, value in kept.items() if is_dataclass(value)}
        own = {f"{name}.{key}": v for name, group in groups.items() for key, v in group.items()}
        return own | {name: value for name, value in kept.items() if name not in groups}

    return _cli.parse(make_parser(), TrainConfig, argv, defaults)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.train``."""
    keep_memory()
    _start(parse_options(argv))
