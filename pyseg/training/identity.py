"""The identity of a run: its options, model, data and machine.

Checkpoints store it. A resumed run must match it, or it would not end with the same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from pyseg import _cli, distributed, models
from pyseg.config import TrainConfig, flat_options
from pyseg.data import FeatureSet
from pyseg.errors import UserError
from pyseg.nn import FrameClassifier

if TYPE_CHECKING:
    from pyseg.training.stages import Stage

Identity = dict[str, Any]


def identify(config: TrainConfig, model: FrameClassifier, stages: Sequence[Stage]) -> Identity:
    """Returns the identity of a run; all processes call it, the first one reads the files."""
    identity = None
    if distributed.is_first():
        identity = {
            "options": flat_options(config),
            "model": _describe_model(model),
            "stages": {stage.name: stage.fingerprint() for stage in stages},
            "surroundings": _surroundings(next(model.parameters()).device),
        }
    return cast(Identity, distributed.from_first(identity))


def check_features(prefix: str, trained: FeatureSet, found: FeatureSet) -> None:
    """Compares the features of a resumed run with those of its data.

    Args:
        prefix: The start of the message, ``--resume <run>``.
        trained: The features of the run.
        found: The features of the data.

    Raises:
        pyseg.errors.UserError: They differ; the message says in what.
    """
    if differences := trained.differences(found):
        raise UserError(f"{prefix}: {'; '.join(differences)}, as the run has")


def check_resumed(
    prefix: str, identity: Identity, checkpoint: Mapping[str, Any], stages: Sequence[Stage]
) -> None:
    """Compares a run with the one that wrote a checkpoint, except for the options.

    A difference that affects only rounding is printed.

    Args:
        prefix: The start of messages, ``--resume <run>``.
        identity: The run's identity.
        checkpoint: The content of the checkpoint.
        stages: The stages of the run.

    Raises:
        pyseg.errors.UserError: They differ; the message says in what.
    """
    before = checkpoint["identity"]
    processes = len(checkpoint["processes"])
    if processes != distributed.world_size():
        raise UserError(
            f"{prefix}: expected {processes} processes, as before; found "
            f"{distributed.world_size()}: {_cli.follow_up(f'pyseg.train {prefix}', processes)}"
        )
    for name, value in identity["model"].items():
        if value != before["model"][name]:
            raise UserError(
                f"{prefix}: the model's {name}: expected {before['model'][name]}, as the run "
                f"has, found {value}: is the vocabulary, or another table, another one?"
            )
    if list(before["stages"]) != list(identity["stages"]):
        raise UserError(
            f"{prefix}: expected data for the stages {', '.join(before['stages'])}, found data "
            f"for {', '.join(identity['stages'])}"
        )
    for name, found in identity["stages"].items():
        _check_fingerprint(f"{prefix}: the data of {name}", before["stages"][name], found)
    _check_steps(prefix, checkpoint, stages)
    machine = before["surroundings"] | {"workers": before["options"]["workers"]}
    here = identity["surroundings"] | {"workers": identity["options"]["workers"]}
    cached = all(stage.dataset.cached for stage in stages)
    for name, value in here.items():
        if value != machine[name] and not (name == "workers" and cached):
            print(
                f"{name}: {value}, {machine[name]} before: the weights will not be, to the bit, "
                "those of a run that was not stopped"
            )


def _check_steps(prefix: str, checkpoint: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Checks that the numbers of steps differ only in stages that have not ended."""
    current = [stage.name for stage in stages].index(checkpoint["stage"])
    before = checkpoint["identity"]["options"]
    for number, stage in enumerate(stages):
        steps, option = stage.config.steps, f"{stage.name}.steps"
        if number > current or stage.refit or steps == before[option]:
            continue
        if number < current:
            raise UserError(
                f"{prefix}: --{option} {steps}: expected {before[option]}, as the run has, "
                "whose stage has ended"
            )
        if steps <= checkpoint["step"]:
            raise UserError(
                f"{prefix}: --{option} {steps}: expected more than the {checkpoint['step']} steps "
                "that the run has done"
            )


def _check_fingerprint(where: str, before: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name in sorted(before.keys() | found.keys()):
        old, new = before.get(name), found.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _check_fingerprint(f"{where}: {name}", old, new)
        expected, here = ("none" if value is None else value for value in (old, new))
        raise UserError(f"{where}: {name}: expected {expected}, as the run had, found {here}")


def digest(*parts: bytes) -> str:
    """Returns the SHA-256 of bytes."""
    result = hashlib.sha256()
    for part in parts:
        result.update(part)
    return result.hexdigest()


def _describe_model(model: FrameClassifier) -> dict[str, Any]:
    """Returns what determines a model's weights, and the names of its classes."""
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    names = cast(models.ModelConfig, model.config).class_names
    return {
        "num_classes": model.num_classes,
        "feature_sizes": list(model.feature_sizes),
        "class_names": digest(json.dumps(None if names is None else list(names)).encode()),
        "weights": digest(json.dumps(shapes).encode()),
    }


def _surroundings(device: torch.device) -> dict[str, Any]:
    """Returns the properties of the machine that affect rounding."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
