"""Makes the model of a run from its options and data, with its initial weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from pyseg import _cli, models
from pyseg._containers import read_array
from pyseg.config import TrainConfig
from pyseg.data import Collection
from pyseg.errors import ArgumentError, UserError
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier
from pyseg.train._data import strong_relations


def known_overrides(config: TrainConfig) -> list[str]:
    """Returns the overrides that `models.create` takes for the model and head of the options."""
    with _cli.option("model", config.model):
        models.options(config.model)
    head = config.overrides.get("head")
    with _cli.option("overrides.head", head):
        return models.options(config.model, head=head)


# Overrides that the data or other options decide.
_GIVEN = {
    "num_classes": "the data",
    "feature_sizes": "the data",
    "generator": "--seed",
    "correlation": "--loss.correlation",
    "eigenvalues": "--eigenvalues",
    "ranges": "the data",
    "mean": "the data",
    "deviation": "the data",
    "node_features": "--node_features",
    "name": "--model",
}


def make_model(
    config: TrainConfig,
    collection: Collection,
    known: Sequence[str],
    graph: LabelCorrelation | None,
    device: torch.device,
    decided: Mapping[str, Any],
) -> FrameClassifier:
    """Makes the model that the options describe.

    Args:
        config: The options.
        collection: The data.
        known: The overrides that the model takes, from `known_overrides`.
        graph: The correlation of all classes, if the model has a label graph.
        device: The device of its weights.
        decided: Overrides that the data decides, from `pyseg.train._data`.

    Raises:
        pyseg.errors.UserError: There is no such model, or not enough memory for it.
    """
    for key in config.overrides:
        if key in _GIVEN:
            raise UserError(f"--overrides.{key}: expected none, {_GIVEN[key]} decides this")
        if key == "branches" and config.copies > 1:
            raise UserError("--overrides.branches: expected none with --copies")
    name = config.model
    arguments: dict[str, Any] = {
        "feature_sizes": collection.feature_sizes,
        **decided,
        **config.overrides,
    }
    for option in ("eigenvalues", "node_features"):
        path = getattr(config, option)
        if path is not None and option not in decided:
            arguments[option] = read_array(path, f"--{option} {path}")
    if graph is not None:
        arguments["correlation"] = strong_relations(graph, config.graph_threshold)
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
    """Returns the size of a device's memory in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def start_from(model: FrameClassifier, folder: Path) -> None:
    """Copies the weights of a saved model of the same kind.

    Raises:
        ValueError: The folder holds no model, or one that does not fit; the message names it.
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
