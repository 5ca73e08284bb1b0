"""Creates, resumes and locks the folder of a run."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pyseg import _cli, distributed
from pyseg._files import LOCK, sole_owner
from pyseg.checkpoint import load_last_checkpoint
from pyseg.config import TrainConfig, flat_options
from pyseg.data import Collection
from pyseg.errors import UserError
from pyseg.labels import LabelCorrelation
from pyseg.runs import Run

RESUMABLE = (
    "run",
    "pretrain.steps",
    "finetune.steps",
    "workers",
    "device",
    "cuda_graph",
    "checkpoint_minutes",
    "checkpoint_steps",
    "keep_checkpoints",
    "tensorboard",
    "tracker",
    "timeout_minutes",
)
"""The options that may be given with ``--resume``, and changed in a run's config.yaml."""


def check_new(run: Run) -> None:
    """Checks that the folder of a new run can be created, is empty, or has only begun to be filled.

    Raises:
        pyseg.errors.UserError: It is not.
    """
    if not distributed.is_first():
        return
    found = {path.name for path in run.folder.iterdir()} if run.folder.is_dir() else set()
    begun = {LOCK, run.features_file.name}  # what `create` makes before config.yaml
    if found and not (LOCK in found and found <= begun):
        goes_on = f"; --resume {run} continues it" if run.is_unfinished else ""
        raise UserError(
            f"--run {run} exists already and is not an empty folder: name another, or delete it"
            f"{goes_on}"
        )
    _cli.check_out_folder("run", run.folder)


def create(
    config: TrainConfig,
    collection: Collection,
    correlation: LabelCorrelation | None,
    owned: contextlib.ExitStack,
) -> Run:
    """Creates the folder of a new run, locks it, and writes what is known before training.

    All processes call it; the first one does the work.
    """
    if not distributed.is_first():
        return Run(distributed.from_first(Path()))
    run = _make_folder(config, collection)
    owned.enter_context(sole_owner(run.folder))
    collection.features.write(run.features_file)
    run.write_config(replace(config, run=str(run)))
    if correlation is not None:
        correlation.save(run.correlation_file)
    if collection.segment_classes is not None:
        run.write_rated_classes(collection.segment_classes, collection.class_names)
    return Run(distributed.from_first(run.folder))


def _make_folder(config: TrainConfig, collection: Collection) -> Run:
    if config.run is not None:
        run = Run(config.run)
        run.folder.mkdir(parents=True, exist_ok=True)
        return run
    trained = config.trained.replace(" ", "")  # 3xmlp: a name that needs no quotes in the shell
    for number in itertools.count(1):
        run = Run(Path("runs") / f"{collection.name}-{trained}-{number}")
        try:
            run.folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return run
    raise AssertionError("unreachable")


def check_resumed(config: TrainConfig) -> TrainConfig:
    """Checks the options given with ``--resume``; returns them with the folder to train in.

    Raises:
        pyseg.errors.UserError: One must not change, or the run has no checkpoint.
    """
    run = Run(cast(str, config.resume))
    kept = run.config()
    where = f"--resume {run}: --{{name}} {{value}}"
    _refuse_changes(where, flat_options(kept), flat_options(config))
    if not run.is_unfinished:
        raise _no_checkpoint(run)
    if config.run is None or config.run == kept.run:
        return replace(config, run=str(run))
    same = Path(config.run).resolve() == run.folder.resolve()
    return replace(config, run=str(run)) if same else config


def resume(config: TrainConfig, owned: contextlib.ExitStack) -> tuple[Path, dict[str, Any]]:
    """Locks the run's folder; returns path and content of the checkpoint to resume from.

    Another ``--run`` resumes in a copy of the folder. All processes call it.

    Raises:
        pyseg.errors.UserError: The run is being trained, has ended, or had other options.
        pyseg.errors.DataError: All checkpoints are damaged.
    """
    source, run = Run(cast(str, config.resume)), Run(cast(str, config.run))
    if distributed.is_first():
        with contextlib.ExitStack() as locks:
            locks.enter_context(sole_owner(source.folder))
            if run.folder != source.folder:
                _copy(source, run)
                locks.enter_context(sole_owner(run.folder))
            owned.push(locks.pop_all())
    distributed.wait()
    found = load_last_checkpoint(run.checkpoints_folder)
    if found is None:
        raise _no_checkpoint(source)
    before, now = found[1]["identity"]["options"], flat_options(config)
    _refuse_changes(f"{source.config_file}: {{name}} {{value}}", before, now)
    for name in RESUMABLE:
        if name != "run" and now[name] != before.get(name):
            print(f"--{name} {_shown(now[name])}, {_shown(before.get(name))} before")
    return found


def _copy(source: Run, run: Run) -> None:
    """Copies a run's folder; an interrupted copy is not a run."""
    check_new(run)
    unfinished = run.folder.with_name(f".{run.folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", Run(source.folder).tracker_file("*").name)
    shutil.copytree(source.folder, unfinished, ignore=ignored)
    unfinished.replace(run.folder)


def _refuse_changes(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compares all options but those in `RESUMABLE`.

    Args:
        where: The start of the message, with the fields ``{name}`` and ``{value}`` of an option.
        expected: The run's options by name.
        found: The requested options.

    Raises:
        pyseg.errors.UserError: One differs.
    """
    for name in [*found, *(expected.keys() - found.keys())]:
        if name not in (*RESUMABLE, "resume") and expected.get(name) != found.get(name):
            place = where.format(name=name, value=_shown(found.get(name)))
            raise UserError(f"{place}: expected {_shown(expected.get(name))}, as the run has")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _no_checkpoint(run: Run) -> UserError:
    expected = f"--resume {run}: expected a checkpoint, found none: "
    if not run.weights_file.is_file():
        return UserError(
            f"{expected}its training has failed before the first one: delete the folder, and train "
            "again"
        )
    config, found = run.config(), "its training has ended, or they were removed"
    if not config.final_fit:
        found += f"; {run.follow_up('pyseg.evaluate --run', ' evaluates it')}"
    if config.solver != "ridge":
        again = _cli.follow_up(f"pyseg.train --config {run.config_file}")
        found += (
            f"; {again} with --run NEW_FOLDER and more --pretrain.steps or --finetune.steps trains "
            "longer, from the start"
        )
    return UserError(expected + found)
