"""Saved models: ``model.safetensors`` and ``model.json``, bound together by a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from pyseg._containers import read_json
from pyseg._files import write_file
from pyseg._paths import path_text
from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.models.registry import ModelConfig, create, placeholder
from pyseg.nn import FrameClassifier

FORMAT_VERSION = 2
"""Version of the two files that `save` writes: since 2 they carry a digest."""

WEIGHTS = "model.safetensors"
"""The file of weights that `save` writes."""

CONFIG = "model.json"
"""The file of the arguments of `create` that `save` writes."""


def save(
    model: nn.Module, folder: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> None:
    """Saves a model that `create` or `load` returned.

    Each file is written under another name and then renamed, so that an interrupted save leaves no
    partial file.

    Args:
        model: the model, compiled by `torch.compile` or not.
        folder: the folder; created if missing.
        class_names: the name of each class, by number. ``None``: those of ``model.config``.

    Raises:
        ValueError: the model has no ``config``, or the number of class names is wrong.
    """
    folder = Path(path_text(folder, "folder"))
    model = getattr(model, "_orig_mod", model)
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise ArgumentError(
            "model: expected one that pyseg.models.create or load returned, "
            f"found {type(model).__name__} without a config"
        )
    if class_names is None:
        class_names = config.class_names
    if class_names is not None and len(class_names) != config.num_classes:
        raise ArgumentError(
            f"class_names: expected {config.num_classes} names, found {len(class_names)}"
        )
    description = _description(config)
    folder.mkdir(parents=True, exist_ok=True)
    # The description is in both files, so that `load` can tell whether they belong together.
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    digest = _digest(replace(config, class_names=class_names), state)
    metadata = json.dumps(description | {"sha256": digest}, sort_keys=True)
    weights = serialize(state, metadata={"pyseg": metadata})
    if class_names is not None:
        description["class_names"] = list(class_names)
    if config.level is not None:
        description["level"] = config.level
    write_file(folder / WEIGHTS, weights)
    write_file(folder / CONFIG, (json.dumps(description, indent=2) + "\n").encode())


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> FrameClassifier:
    """Loads a model that `save` wrote; its weights are the same bits.

    Args:
        folder: the folder.
        device: the device of the weights.

    Returns:
        The model, in eval mode: call ``.train()`` to train it. ``model.config`` holds the
        class names.

    Raises:
        FileNotFoundError: one of the two files is missing.
        pyseg.errors.DataError: a file is damaged, of another format version, or does not fit the
            other; the message names the file, what was expected and what was found.
    """
    folder = Path(path_text(folder, "folder"))
    config = _read_config(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise MissingFileError(f"{weights}: no such file")
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copied, since a file's tensors have any alignment, on which the bits of some
            # libraries' products depend.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{weights}: expected a safetensors file, found: {error}") from error
    described = _parse(metadata.get("pyseg", "null"))
    digest = described.pop("sha256", "none") if isinstance(described, dict) else "none"
    if described != _description(config):
        expected, found = (
            json.dumps(value, sort_keys=True) for value in (_description(config), described)
        )
        raise DataError(
            f"{weights}: expected the weights that {CONFIG} describes, {expected}; "
            "found "
            + (found if described else "no description: damaged, or not of pyseg.models.save")
        )
    try:
        with torch.device("meta"):  # the values come from the file: do not draw them
            tensors = {key: placeholder(shapes) for key, shapes in config.tensors.items()}
            model = create(
                config.name, num_classes=config.num_classes, **config.overrides, **tensors
            )
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG}: {error}") from error
    _check_shapes(weights, model.state_dict(), state)
    if digest != (found := _digest(config, state)):
        raise DataError(
            f"{weights}: expected weights, and class names in {CONFIG}, of the digest {digest}, "
            f"found {found}: one of the files is damaged"
        )
    model.load_state_dict({key: value.to(device) for key, value in state.items()}, assign=True)
    model.config = cast(Any, config)
    return model.eval()


def _description(config: ModelConfig) -> dict[str, Any]:
    """Returns the description of a saved model that is in both files."""
    return {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "num_classes": config.num_classes,
        "overrides": dict(config.overrides),
        "tensors": dict(config.tensors),
    }


def _read_config(path: Path) -> ModelConfig:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    data = read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(data).__name__}")
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: expected format_version {FORMAT_VERSION}, found {version!r}")
    expected: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "num_classes": int,
        "overrides": dict,
        "tensors": dict,
        "class_names": (list, type(None)),
    }
    for key, kind in expected.items():
        found = data.get(key)
        if not isinstance(found, kind) or isinstance(found, bool):
            name = (kind[0] if isinstance(kind, tuple) else kind).__name__
            raise DataError(f"{path}: {key}: expected {name}, found {found!r}")
    class_names = data.get("class_names")
    if class_names is not None and not all(isinstance(name, str) for name in class_names):
        raise DataError(f"{path}: class_names: expected text, found something else")
    if class_names is not None and len(class_names) != data["num_classes"]:
        raise DataError(
            f"{path}: class_names: expected {data['num_classes']} names, found {len(class_names)}"
        )
    if (level := data.get("level")) not in (None, "frame", "video"):
        raise DataError(f'{path}: level: expected "frame" or "video", found {level!r}')
    return ModelConfig(
        data["name"],
        data["num_classes"],
        data["overrides"],
        data["tensors"],
        class_names,
        level,
    )


def _check_shapes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise DataError(
            f"{path}: expected the {len(expected)} tensors of the model, "
            f"found missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}"
        )
    for key, value in expected.items():
        if value.shape != found[key].shape:
            raise DataError(
                f"{path}: {key}: expected shape {tuple(value.shape)}, "
                f"found {tuple(found[key].shape)}"
            )
        if value.is_floating_point() != found[key].is_floating_point():
            raise DataError(
                f"{path}: {key}: expected numbers like {value.dtype}, found {found[key].dtype}"
            )
        if value.is_floating_point() and not found[key].isfinite().all():
            raise DataError(f"{path}: {key}: expected finite numbers, found NaN or infinite ones")


def _parse(text: str) -> Any:
    """Returns the value of a JSON text, None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _digest(config: ModelConfig, state: Mapping[str, Tensor]) -> str:
    """Returns a digest of a model's configuration and tensors (contiguous, on the CPU)."""
    names = None if config.class_names is None else list(config.class_names)
    described = _description(config) | {"class_names": names}
    if config.level is not None:
        described["level"] = config.level
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
