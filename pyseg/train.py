"""Trains a model: ``python -m pyseg.train`` (``--help`` lists the options).

Two stages, as in the paper's section 4.2: pretraining on the labels of whole videos with binary
cross-entropy (eq. 1), then fine-tuning on rated segments, where classes that nobody rated count
less (eq. 2 and 3) and, where asked for, what a rated class says of others is a target too (eq. 6).
Videos are held out by id, in both stages, and the run ends with their evaluation.

What it leaves is a run folder (`pyseg.runs`).

``--resume`` takes the last checkpoint that is whole. Data, model and options have to be those of
the run; `RESUMABLE` lists those, such as steps and workers, that may be given with it. One command
at a time trains in a folder.

``torchrun --nproc_per_node=N -m pyseg.train -- ...`` divides every batch over N processes
(`pyseg.distributed`); the run is that of one process, and goes on with as many.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from pyseg import _cli, distributed, models
from pyseg._containers import read_array
from pyseg._files import sole_owner
from pyseg._memory import keep_memory
from pyseg.checkpoint import load_last_checkpoint
from pyseg.config import LossConfig, StageConfig, TrainConfig, make_parser, recipe_defaults
from pyseg.data import Collection, ReadReport, RecordDataset
from pyseg.data.records import without_record_warnings
from pyseg.errors import ArgumentError, UserError
from pyseg.evaluate import evaluate
from pyseg.labels import CooccurrenceCounter, LabelCorrelation
from pyseg.results import Result
from pyseg.runs import Run, open_data
from pyseg.training import Stage, Trainer, flat_options, make_loss, summary_writer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jsonargparse import Namespace

    from pyseg.nn import FrameClassifier


def label_correlation(
    config: LossConfig,
    collection: Collection,
    classes: Sequence[int] | None = None,
    report: ReadReport | None = None,
) -> LabelCorrelation | None:
    """Returns the correlation that the options ask for.

    Counts for "auto" are those of the training videos alone: the labels of held-out videos, in
    which the ratings of their segments shine through, must not be known.

    Args:
        config: The options.
        collection: Whose labels are counted.
        classes: The classes that it is for; default: all.
        report: See `pyseg.data.read_frames`.

    Raises:
        ValueError: A file is none, or of another number of classes.
    """
    if config.correlation == "none":
        return None
    expected = collection.num_classes if classes is None else len(classes)
    if config.correlation != "auto":
        correlation = LabelCorrelation.load(config.correlation)
        if correlation.num_classes != expected:
            raise UserError(
                f"--loss.correlation {config.correlation}: expected {expected} classes, as the "
                f"{'data has' if classes is None else 'fine-tuned model has'}, found "
                f"{correlation.num_classes}"
            )
        return correlation
    counter = CooccurrenceCounter(collection.num_classes)
    for offsets, labels in collection.label_lists("train", report):
        counter.update(offsets, labels)
    return LabelCorrelation.from_counts(
        counter.finish(), config.threshold, classes, min_support=config.min_support
    )


def _options(config: TrainConfig) -> list[str]:
    """Returns what `models.create` takes for the model and the head that are asked for."""
    with _cli.option("model", config.model):
        models.options(config.model)
    head = config.overrides.get("head")
    with _cli.option("overrides.head", head):
        return models.options(config.model, head=head)


# What the data or other options say of a model.
_GIVEN = {
    "num_classes": "the data",
    "feature_sizes": "the data",
    "generator": "--seed",
    "correlation": "--loss.correlation",
    "eigenvalues": "--eigenvalues",
    "node_features": "--node_features",
    "name": "--model",
}


def _make_model(
    config: TrainConfig,
    collection: Collection,
    graph: LabelCorrelation | None,
    device: torch.device,
) -> FrameClassifier:
    """Makes the model that the options ask for.

    Raises:
        pyseg.errors.UserError: There is no such model, or not enough memory for it.
    """
    known = _options(config)
    for key in config.overrides:
        if key in _GIVEN:
            raise UserError(f"--overrides.{key}: expected none, {_GIVEN[key]} decides this")
        if key == "branches" and config.copies > 1:
            raise UserError("--overrides.branches: expected none with --copies")
    name = config.model
    arguments: dict[str, Any] = {"feature_sizes": collection.feature_sizes, **config.overrides}
    for option in ("eigenvalues", "node_features"):
        if (path := getattr(config, option)) is not None:
            arguments[option] = read_array(path, f"--{option} {path}")
    if graph is not None:
        arguments["correlation"] = graph
    if config.copies > 1:
        if "branches" in known:
            raise UserError(
                f"--copies {config.copies}: {name} is a mixture already, expected --copies 1"
            )
        name, arguments = "mixture", {"branches": [name] * config.copies, **arguments}
    try:
        needed = models.count_parameters(name, num_classes=collection.num_classes, **arguments)
    except ArgumentError as error:
        argument = str(error).partition(":")[0]
        where = (
            "--" if argument in {"overrides", "eigenvalues", "node_features"} else "--overrides."
        )
        raise UserError(f"{where}{error}") from error
    there = _memory_of(device)
    if 4 * needed > there:
        given = ", ".join(f"--overrides.{key} {value}" for key, value in config.overrides.items())
        raise UserError(
            f"{given or f'--model {name}'}: expected a model that fits into {there / 1e9:.3g} GB, "
            f"found {needed:,} parameters"
        )
    model = models.create(name, num_classes=collection.num_classes, **arguments).to(device)
    made = cast(models.ModelConfig, model.config)
    made = replace(made, class_names=collection.class_names, level=collection.level)
    model.config = cast(Any, made)
    return model


def _memory_of(device: torch.device) -> int:
    """Returns the bytes of memory that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _start_from(model: FrameClassifier, folder: Path) -> None:
    """Copies the weights of a saved model of the same kind.

    Raises:
        ValueError: There is no model, or one that does not fit; the message names the folder.
    """
    try:
        state = models.load(folder).state_dict()
    except FileNotFoundError as error:
        raise UserError(f"--init {folder}: {error}") from error
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key in expected.keys() | state.keys():
        found = tuple(state[key].shape) if key in state else "none"
        if found != expected.get(key, "none"):
            raise UserError(
                f"--init {folder}: {key}: expected shape {expected.get(key, 'none')}, as the model "
                f"of this run has, found {found}"
            )
    model.load_state_dict(state)


def _check_run_folder(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--run {folder} exists already and is not an empty folder")
    _cli.check_out_folder("run", folder)


def _make_run_folder(config: TrainConfig, collection: Collection) -> Path:
    if config.run is not None:
        folder = Path(config.run)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    trained = config.trained.replace(" ", "")  # 3xmlp: a name that no shell takes apart
    for number in itertools.count(1):
        folder = Path("runs") / f"{collection.name}-{trained}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def hold_out(config: TrainConfig, collection: Collection) -> tuple[TrainConfig, Collection, str]:
    """Makes sure that there is something to train on, and says where nothing is left to evaluate.

    Returns:
        The options and the data, of which nothing is held out where all would be; and a line for
        the user if there is no evaluation.

    Raises:
        pyseg.errors.UserError: The options ask for what is not there.
    """
    why = f"--test_fraction {collection.test_fraction:g} --seed {collection.seed}"
    if collection.is_empty("train", rated=False):
        if collection.test_fraction == 1:
            raise UserError(f"{why}: expected videos to train on, found all of them held out")
        config = replace(config, test_fraction=0.0)
        collection = replace(collection, test_fraction=0.0)
        why = "as there are so few videos"
    classes = collection.segment_classes if config.classes == "rated" else None
    tuned = collection.has_segments and config.stage != "pretrain" and config.finetune.steps > 0
    if tuned and collection.is_empty("train", rated=True, classes=classes):
        raise UserError(f"{why}: expected rated segments to train on, found all of them held out")
    if not collection.is_empty("test", classes=classes if collection.has_segments else None):
        return config, collection, ""
    what = "rated segment" if collection.has_segments else "video"
    for name, asked in (
        ("final_fit", config.final_fit),
        ("pretrain.patience", config.pretrain.patience),
        ("finetune.patience", config.finetune.patience),
    ):
        if asked:
            raise UserError(
                f"--{name} {asked}: expected a {what} that is held out, found none ({why})"
            )
    line = f"no {what} is held out ({why}): training without evaluation"
    if config.pretrain.evaluate_every or config.finetune.evaluate_every:
        line += ", whatever evaluate_every says"
    return config, collection, line


RESUMABLE = (
    "run",
    "pretrain.steps",
    "finetune.steps",
    "workers",
    "device",
    "checkpoint_minutes",
    "checkpoint_steps",
    "keep_checkpoints",
    "tensorboard",
    "timeout_minutes",
)
"""The options that may be given with ``--resume``, and changed in a run's config.yaml."""


def _refuse_changes(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compares options but for `RESUMABLE`.

    Args:
        where: For the message, in which ``{name}`` and ``{value}`` are those of an option.
        expected: The run's, by name.
        found: Those that are asked for.

    Raises:
        pyseg.errors.UserError: One is another one.
    """
    for name in [*found, *(expected.keys() - found.keys())]:
        if name not in (*RESUMABLE, "resume") and expected.get(name) != found.get(name):
            place = where.format(name=name, value=_in_words(found.get(name)))
            raise UserError(f"{place}: expected {_in_words(expected.get(name))}, as the run has")


def _in_words(value: Any) -> str:
    return "none" if value is None else str(value)


def train(config: TrainConfig, collection: Collection | None = None) -> Path:
    """Trains, evaluates and saves a model; returns the run folder.

    Args:
        config: The options. With ``resume`` all others are the run's.
        collection: What to train on; default: what the options say, split as they say.

    Raises:
        pyseg.errors.UserError: The options do not fit the data or, with ``resume``, the run.
        pyseg.errors.RecordError: A record is damaged.
        pyseg.errors.DataError: No checkpoint of the run is whole.
        KeyboardInterrupt: It was asked to stop, and has saved where it was.
    """
    if config.resume is not None:
        config = replace(Run(config.resume).config(), resume=config.resume)
    return _start(config, collection)


def _start(config: TrainConfig, collection: Collection | None = None) -> Path:
    """Does what `train` says, with options that may differ from those of a run that goes on."""
    if config.resume is not None:
        run = Run(config.resume)
        kept = run.config()
        _refuse_changes(
            f"--resume {run}: --{{name}} {{value}}", flat_options(kept), flat_options(config)
        )
        if config.run is None or config.run == kept.run or _is_same(config.run, run.folder):
            config = replace(config, run=str(run))
        if not run.is_unfinished:
            raise _no_checkpoint(run.folder)
    device = distributed.local_device(distributed.pick_device(config.device))
    with (
        distributed.session(device, config.timeout_minutes),
        without_record_warnings(),
        contextlib.ExitStack() as owned,
    ):
        return _train(config, collection, device, owned)


def _no_checkpoint(run: Path) -> UserError:
    return UserError(
        f"--resume {run}: expected a checkpoint, found none: its training has ended, or they were "
        "removed"
    )


def _is_same(path: str, other: Path) -> bool:
    return Path(path).resolve() == other.resolve()


def _go_on(config: TrainConfig, owned: contextlib.ExitStack) -> tuple[Path, dict[str, Any]]:
    """Returns the checkpoint that a run goes on from, once its folder is this process's own.

    The folder is that of ``--run``, where it is another one a copy. All processes call it.

    Raises:
        pyseg.errors.UserError: The run is being trained, has ended, or had other options.
        pyseg.errors.DataError: No checkpoint is whole.
    """
    run, asked = Path(cast(str, config.resume)), Path(cast(str, config.run))
    if distributed.is_first():
        with contextlib.ExitStack() as source:
            source.enter_context(sole_owner(run))
            if asked != run:
                _check_run_folder(asked)
                unfinished = asked.with_name(f".{asked.name}.part")
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns(".*"))
                unfinished.replace(asked)
                source.enter_context(sole_owner(asked))
            owned.push(source.pop_all())
    distributed.wait()
    found = load_last_checkpoint(Run(asked).checkpoints_folder)
    if found is None:
        raise _no_checkpoint(run)
    expected = found[1]["identity"]["options"]
    now = flat_options(config)
    _refuse_changes(f"{Run(run).config_file}: {{name}} {{value}}", expected, now)
    for name in RESUMABLE:
        if name != "run" and now[name] != expected[name]:
            print(f"--{name} {_in_words(now[name])}, {_in_words(expected[name])} before")
    return found


def _train(
    config: TrainConfig,
    collection: Collection | None,
    device: torch.device,
    owned: contextlib.ExitStack,
) -> Path:
    """Does what `train` says, as one of the processes of a run, whose folder it comes to own."""
    if config.tensorboard and distributed.is_first():
        summary_writer()  # where it is missing, this is told before a run folder is made
    checkpoint = None if config.resume is None else _go_on(config, owned)
    if checkpoint is None and config.run is not None and distributed.is_first():
        _check_run_folder(Path(config.run))  # before the data, which may take minutes
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.manual_seed(config.seed)

    collection = open_data(config) if collection is None else collection
    config, collection, blind = hold_out(config, collection)
    counted = ReadReport()
    graph = None
    if "correlation" in _options(config):
        graph = label_correlation(config.loss, collection, report=counted)
    model = _make_model(config, collection, graph, device)
    if config.init is not None and checkpoint is None:
        _start_from(model, Path(config.init))
    classes = _classes_to_tune(config, collection)
    stages, correlation = _make_stages(config, collection, classes, graph, device, counted)
    if distributed.rank():  # weights are the same everywhere, dropout and noise are not
        torch.manual_seed(config.seed + distributed.rank())
    if checkpoint is None:
        folder = _open_run(config, collection, correlation, owned)
    else:
        folder = Path(cast(str, config.run))

    def on_held_out(trained: FrameClassifier) -> Result:
        known = None if trained.num_classes == collection.num_classes else classes
        return evaluate(trained, collection, "test", classes=known, workers=config.workers)

    trainer = Trainer(model, stages, config, folder, None if blind else on_held_out, checkpoint)
    if checkpoint is None:
        trainer.save_weights(model)
    elif distributed.is_first():  # with what may have changed
        Run(folder).write_config(replace(config, resume=None))
    _tell_task(config, collection, model, correlation, counted, blind)
    if trainer.resumes:
        print(f"going on from {trainer.resumes}")
    trainer.fit()
    _tell_next(config, folder, evaluated=not blind)
    return folder


def _classes_to_tune(config: TrainConfig, collection: Collection) -> Sequence[int] | None:
    """Returns the collection's classes that are fine-tuned; None: all."""
    if config.classes != "rated":
        return None
    if collection.segment_classes is None:
        raise UserError("--classes rated: the data does not say which are rated")
    return collection.segment_classes


def _make_stages(
    config: TrainConfig,
    collection: Collection,
    classes: Sequence[int] | None,
    graph: LabelCorrelation | None,
    device: torch.device,
    counted: ReadReport,
) -> tuple[list[Stage], LabelCorrelation | None]:
    """Returns what is trained on what, one after the other, and the correlation that is in use.

    Args:
        config: The options.
        collection: What to train on.
        classes: Those that are fine-tuned; None: all.
        graph: The correlation of all classes, where the model has a label graph.
        device: Where the loss is computed.
        counted: What counting labels met with is added to it.

    Raises:
        pyseg.errors.UserError: The data has no rated segments where the options ask for them.
    """
    # Repeated without end, so that every batch is a full one: batch statistics need it.
    order: dict[str, Any] = {"shuffle": True, "seed": config.seed, "repeat": True}
    stages = []
    if config.stage != "finetune":
        frames = {"max_frames": config.max_frames} if collection.level == "frame" else {}
        videos = collection.videos("train", **order, **frames)
        stages.append(
            Stage("pretrain", config.pretrain, videos, _loss("pretrain", config.pretrain))
        )
    correlation, segments = graph, None
    if config.stage != "pretrain":
        segments = collection.segments("train", classes=classes, **order)
        if segments is None and config.stage == "finetune":
            raise UserError("--stage finetune: the data has no rated segments")
    if segments is not None:
        # Where a label graph of the same classes has it, it is counted already.
        if config.finetune.steps and (graph is None or classes is not None):
            correlation = label_correlation(config.loss, collection, classes, counted)
        loss = _loss(
            "finetune",
            config.finetune,
            rated_weight=config.loss.rated_weight,
            unrated_weight=config.loss.unrated_weight,
            correlation=None if correlation is None else correlation.to(device),
            absent_evidence=config.loss.absent_evidence,
        )
        stages.append(Stage("finetune", config.finetune, segments, loss, classes))
        if config.final_fit:
            everything = cast(RecordDataset, collection.segments("all", classes=classes, **order))
            stages.append(Stage("final", config.finetune, everything, loss, refit=True))
    elif config.final_fit:
        raise UserError("--final_fit: the data has no rated segments")
    for stage in stages:
        if stage.config.steps:
            stage.share_of_batch()
    return stages, correlation


def _loss(stage: str, config: StageConfig, **given: Any) -> nn.Module:
    """Makes the loss of a stage; in pretraining with its own defaults, as all classes are rated."""
    try:
        return make_loss(config.loss, config.loss_overrides, **given)
    except ArgumentError as error:
        raise UserError(f"--{stage}.{error}") from error


def _open_run(
    config: TrainConfig,
    collection: Collection,
    correlation: LabelCorrelation | None,
    owned: contextlib.ExitStack,
) -> Path:
    """Makes the folder of a new run, this process's own, and writes what is known of the run.

    All processes call it; the first one does it.
    """
    if not distributed.is_first():
        return distributed.from_first(Path())
    folder = _make_run_folder(config, collection)
    owned.enter_context(sole_owner(folder))
    run = Run(folder)
    run.write_config(replace(config, run=str(folder)))
    if correlation is not None:
        correlation.save(run.correlation_file)
    if collection.segment_classes is not None:
        run.write_rated_classes(collection.segment_classes, collection.class_names)
    return distributed.from_first(folder)


def _tell_task(
    config: TrainConfig,
    collection: Collection,
    model: FrameClassifier,
    correlation: LabelCorrelation | None,
    counted: ReadReport,
    blind: str,
) -> None:
    """Prints what is trained on what."""
    weight = next(model.parameters())
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"data: {collection.name}, {collection.num_classes} classes; "
        f"model: {config.trained}, {parameters:,} parameters, on {weight.device}"
    )
    for note in (*collection.notes, blind):
        if note:
            print(f"data: {note}")
    if correlation is not None:
        source = config.loss.correlation
        where = f"of {source}" if source != "auto" else "of the training videos' labels"
        print(f"label correlation: {len(correlation.values)} relations {where}")
    if summary := counted.summary():
        print(f"label correlation: {summary}")


def _tell_next(config: TrainConfig, folder: Path, evaluated: bool) -> None:
    """Prints where the run lies, and what can be done with it."""
    print(f"run folder: {folder}")
    if evaluated:
        print(f"evaluate again: python -m pyseg.evaluate --run {folder}")
    if config.data == "sample":
        print(
            "on YouTube-8M: python -m pyseg.train --model nextvlad1 "
            "--data <folder of train*.tfrecord and validate*.tfrecord>"
        )


def parse_options(argv: Sequence[str] | None) -> TrainConfig:
    """Returns the options of ``python -m pyseg.train``.

    Those that are not given are the recipe's, or with ``--resume`` the run's.

    Raises:
        pyseg.errors.UserError: An option is unknown, or its value is not one that it may have.
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


if __name__ == "__main__":
    _cli.run(main)
