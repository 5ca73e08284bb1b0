"""Named presets: the classifiers of the paper, ready to make, save and load.

A saved model is a folder with ``model.safetensors`` (weights and buffers) and ``model.json`` (what
`create` was called with). Nothing in it is pickled, and a digest of both shows damage.

``python -m pyseg.models`` prints a table of the presets.

Example:
    >>> import tempfile
    >>> model = create("nextvlad-small", num_classes=10, feature_sizes=(64, 16)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, folder, class_names=[f"class {i}" for i in range(10)])
    ...     again = load(folder)
    >>> frames = torch.randint(0, 256, (2, 5, 80), dtype=torch.uint8)
    >>> torch.equal(model(frames, torch.tensor([5, 3])), again(frames, torch.tensor([5, 3])))
    True
    >>> again.config.name, again.config.class_names[3]
    ('nextvlad-small', 'class 3')
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from pyseg._containers import read_json
from pyseg._files import written_whole
from pyseg.errors import ArgumentError, DataError, MissingFileError
from pyseg.labels import LabelCorrelation
from pyseg.nn import (
    MLP,
    AttentionGRU,
    DBoF,
    FrameClassifier,
    LabelGCN,
    LogisticHead,
    Mixture,
    MixtureOfExperts,
    NeXtVLADClassifier,
)
from pyseg.nn.head import HeadFactory

FORMAT_VERSION = 2
"""Version of the two files that `save` writes: since 2 they carry a digest."""

WEIGHTS = "model.safetensors"
"""The file of weights that `save` writes."""

_CONFIG = "model.json"

_HEADS: dict[str, Callable[..., nn.Module]] = {
    "gcn": LabelGCN,
    "logistic": LogisticHead,
    "moe": MixtureOfExperts,
}


def _mixture(num_classes: int, *, branches: Sequence[Any], **arguments: Any) -> Mixture:
    """Makes a mixture of presets.

    Args:
        num_classes: number of classes C.
        branches: a preset's name each, or ``{"name": ..., **overrides}`` of that branch alone.
        **arguments: those of `Mixture`, and those of the branches: each goes to all that take it.
    """
    if isinstance(branches, str) or not isinstance(branches, Sequence) or not branches:
        raise ArgumentError(f"branches: expected a list of presets, found {branches!r}")
    single = [name for name in names() if _PRESETS[name][0] is not _mixture]
    presets, own = [], []
    for branch in branches:
        given = {"name": branch} if isinstance(branch, str) else branch
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise ArgumentError(
                "branches: expected names of presets, or objects with a name and overrides; "
                f"found {branch!r}"
            )
        if given["name"] not in single:
            raise ArgumentError(f"branches: {_unknown('branch', given['name'], single)}")
        presets.append(given["name"])
        own.append({key: value for key, value in given.items() if key != "name"})
    of_mixture = _arguments(Mixture)
    of_branches = [
        options(name, head=given.get("head", arguments.get("head")))
        for name, given in zip(presets, own, strict=True)
    ]
    known = sorted({"branches", *of_mixture}.union(*of_branches))
    for key in arguments:
        if key not in known:
            raise ArgumentError(f"overrides: {_unknown('argument of the mixture', key, known)}")
    _check_types(Mixture, arguments)
    made = []
    for name, overrides, takes in zip(presets, own, of_branches, strict=True):
        # Noise is the mixture's: it adds it once for all branches.
        shared = {k: v for k, v in arguments.items() if k in takes and k != "noise"}
        made.append(_make(name, num_classes, shared | overrides))
    return Mixture(made, **{k: v for k, v in arguments.items() if k in of_mixture})


_NEXTVLAD1 = {"clusters": 112, "hidden_size": 2048, "reduction": 16}

# A head is named here, but none of its options: they would not fit another head.
_PRESETS: dict[str, tuple[Callable[..., FrameClassifier], dict[str, Any]]] = {
    # The three of the paper's table 1: cluster size, hidden size and reduction of each.
    "nextvlad1": (NeXtVLADClassifier, _NEXTVLAD1),
    "nextvlad2": (NeXtVLADClassifier, {"clusters": 136, "hidden_size": 2048, "reduction": 16}),
    "nextvlad3": (NeXtVLADClassifier, {"clusters": 112, "hidden_size": 2048, "reduction": 8}),
    # The paper gives no size of this one.
    "attention-gru": (
        AttentionGRU,
        {"gru_size": 1024, "attention_size": 512, "hidden_size": 2048, "reduction": 16},
    ),
    # The three of the paper's table 2.
    "3nextvlad-same": (_mixture, {"branches": ("nextvlad1",) * 3}),
    "3nextvlad-diff": (_mixture, {"branches": ("nextvlad1", "nextvlad2", "nextvlad3")}),
    "paper-mixture": (
        _mixture,
        {"branches": ("nextvlad1", "nextvlad2", "nextvlad3", "attention-gru")},
    ),
    # Of classifiers that differ in their weights only, with the reference's T and lambda.
    "mixture": (
        _mixture,
        {
            "branches": ("nextvlad-small",) * 3,
            "weights": "static",
            "temperature": 3.0,
            "distillation": 9.0,
        },
    ),
    "nextvlad1-gcn": (NeXtVLADClassifier, {**_NEXTVLAD1, "head": "gcn"}),
    # The starter code's, also in how it normalises frames; and the paper's with a graph.
    "dbof": (DBoF, {"normalization": "l2", "head": "moe"}),
    "dbof-gcn": (DBoF, {"normalization": "l2", "head": "gcn"}),
    "mlp": (MLP, {}),
    # For two CPU cores and some hundred steps: a momentum of 0.001 would leave the running
    # statistics where they started.
    "nextvlad-small": (
        NeXtVLADClassifier,
        {
            "clusters": 16,
            "groups": 4,
            "hidden_size": 128,
            "reduction": 4,
            "expansion": 1,
            "dropout": 0.1,
            "batch_norm_momentum": 0.1,
        },
    ),
}


Shapes = Sequence[int] | Mapping[str, Sequence[int]]
"""The shape of a tensor, or those of the tensors that something is made of, by name."""


@dataclass(frozen=True)
class ModelConfig:
    """What a model was made with; `create` and `load` attach it as ``model.config``.

    Attributes:
        name: name of the preset.
        num_classes: number of classes C.
        overrides: the arguments in which the model differs from the preset, as JSON holds them.
        tensors: shapes of those arguments that are tensors (``eigenvalues``, ``node_features``),
            and of the three tensors of a `LabelCorrelation`; the model's weights and buffers hold
            what became of their values.
        class_names: name of each class, in order of index, or ``None``.
        level: what it was trained on: "frame", or "video" for mean features of whole videos;
            ``None``: unknown.
    """

    name: str
    num_classes: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Shapes] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    level: str | None = None

    def _description(self) -> dict[str, Any]:
        """What both files of a saved model say about it."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "num_classes": self.num_classes,
            "overrides": dict(self.overrides),
            "tensors": dict(self.tensors),
        }


def names() -> list[str]:
    """Lists the presets.

    Returns:
        Their names, sorted.

    Example:
        >>> [name for name in names() if name.startswith("nextvlad")]
        ['nextvlad-small', 'nextvlad1', 'nextvlad1-gcn', 'nextvlad2', 'nextvlad3']
    """
    return sorted(_PRESETS)


def options(name: str, *, head: str | None = None) -> list[str]:
    """Lists the overrides that `create` takes.

    Args:
        name: a preset, see `names`.
        head: the head that is asked for. ``None``: that of the preset.

    Returns:
        Arguments of the preset's classifier, then those of its head.

    Raises:
        ValueError: the preset or the head is unknown.

    Example:
        >>> "correlation" in options("dbof-gcn"), "correlation" in options("dbof")
        (True, False)
    """
    make, preset = _preset(name)
    if make is _mixture:
        of_branches = (options(branch, head=head) for branch in preset["branches"])
        return sorted({"branches", *_arguments(Mixture)}.union(*of_branches))
    known = _arguments(make)
    if "head" not in known:
        return known
    return known + _arguments(_head(preset.get("head", "logistic") if head is None else head))


def create(name: str, *, num_classes: int, **overrides: Any) -> FrameClassifier:
    """Makes a classifier with fresh weights.

    Args:
        name: a preset, see `names`.
        num_classes: number of classes C.
        **overrides: arguments of the preset's class to use instead of the preset's, for example
            ``feature_sizes=(128,)`` or ``dropout=0``. Where the class takes a `head`, that is
            "logistic" (`LogisticHead`), "moe" (`MixtureOfExperts`) or "gcn" (`LabelGCN`), and the
            head's own arguments are overrides too: ``head="moe", mixtures=4``. A mixture takes
            those of `Mixture` and those of its branches, each for all branches that know it;
            ``branches`` lists other ones, as names of presets or as objects,
            ``{"name": "nextvlad1", "clusters": 64}``. `options` lists all.

    Returns:
        The classifier, called as ``model(frames, num_frames) -> logits (B, C)``, in training mode.
        Its attribute ``config`` is a `ModelConfig`.

    Raises:
        ValueError: the preset or an override is unknown, or a value does not fit.

    Example:
        >>> with torch.device("meta"):  # draws no weights
        ...     model = create("nextvlad1", num_classes=3862)
        >>> sum(p.numel() for p in model.parameters())
        78643170
        >>> create("nextvlad-small", num_classes=10, head="moe", mixtures=4).head
        MixtureOfExperts(
          num_classes=10, mixtures=4
          (gates): Linear(in_features=128, out_features=50, bias=False)
          (experts): Linear(in_features=128, out_features=40, bias=True)
        )
    """
    tensors = {k: v for k, v in overrides.items() if isinstance(v, _TENSORS)}
    try:
        plain = json.loads(json.dumps({k: v for k, v in overrides.items() if k not in tensors}))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"overrides: expected numbers, text, lists of these, or tensors; {error}"
        ) from error
    model = _make(name, num_classes, overrides)
    shapes = {key: _shapes(value) for key, value in tensors.items()}
    model.config = cast(Any, ModelConfig(name, int(num_classes), plain, shapes))
    return model


def count_parameters(name: str, *, num_classes: int, **overrides: Any) -> int:
    """Counts the parameters of a classifier without making it: it takes next to no memory.

    Args:
        name: a preset, see `names`.
        num_classes: number of classes C.
        **overrides: as `create` takes them.

    Raises:
        pyseg.errors.ArgumentError: as `create` does, or the sizes are beyond any memory.

    Example:
        >>> count_parameters("nextvlad1", num_classes=3862)
        78643170
    """
    try:
        with torch.device("meta"):
            placeholders = {
                key: _placeholder(_shapes(value)) if isinstance(value, _TENSORS) else value
                for key, value in overrides.items()
            }
            model = create(name, num_classes=num_classes, **placeholders)
    except (RuntimeError, OverflowError) as error:
        if not re.search("overflow|too large", str(error), re.IGNORECASE):
            raise
        raise ArgumentError("overrides: expected sizes that fit into memory") from error
    return sum(parameter.numel() for parameter in model.parameters())


def select_classes(model: FrameClassifier, classes: Sequence[int]) -> FrameClassifier:
    """Makes a model for some of a model's classes: the same trunk, and their rows of the head.

    Args:
        model: one that `create` or `load` returned.
        classes: different classes, in the order that they shall have.

    Returns:
        A model of n classes that shares nothing with the other one, in the same mode.

    Raises:
        ValueError: a class is out of range or named twice, or the head cannot be cut.

    Example:
        >>> model = create("nextvlad-small", num_classes=10, feature_sizes=(64, 16)).eval()
        >>> frames = torch.randint(0, 256, (2, 5, 80), dtype=torch.uint8)
        >>> logits = select_classes(model, [7, 2])(frames)
        >>> torch.allclose(logits, model(frames)[:, [7, 2]], atol=1e-6)
        True
    """
    config = cast(ModelConfig, model.config)
    if len(set(classes)) < len(classes) or not classes:
        raise ArgumentError("classes: expected different classes, at least one")
    if not 0 <= min(classes) <= max(classes) < config.num_classes:
        wrong = next(c for c in classes if not 0 <= c < config.num_classes)
        raise ArgumentError(f"classes: expected 0..{config.num_classes - 1}, found {wrong}")
    index = torch.tensor(classes, device=next(model.parameters()).device)
    state = model.state_dict()
    for name, module in model.named_modules():
        if hasattr(module, "select_classes"):
            chosen = module.select_classes(index)
            state |= {f"{name}.{key}": value for key, value in chosen.items()}
    tensors = {
        key: _of_classes(shapes, len(classes)) if key in _BY_CLASS else shapes
        for key, shapes in config.tensors.items()
    }
    names = config.class_names
    chosen_names = None if names is None else [names[c] for c in classes]
    with torch.device("meta"):
        placeholders = {key: _placeholder(shapes) for key, shapes in tensors.items()}
        cut = create(config.name, num_classes=len(classes), **config.overrides, **placeholders)
    cut.load_state_dict({key: value.detach().clone() for key, value in state.items()}, assign=True)
    cut.config = cast(
        Any, replace(config, num_classes=len(classes), tensors=tensors, class_names=chosen_names)
    )
    return cut.train(model.training)


def save(
    model: nn.Module, folder: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> None:
    """Saves a model that `create` or `load` returned.

    Each file is written beside its place and then renamed, so that an interrupted save never
    leaves half a file.

    Args:
        model: the model, also as `torch.compile` wraps it.
        folder: where to; created if it is not there.
        class_names: name of each class, in order of index. ``None``: those of ``model.config``.

    Raises:
        ValueError: the model has no ``config``, or there are not as many class names as classes.
    """
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
    description = config._description()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The description goes into both files: so `load` sees when they do not belong together.
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    digest = _digest(replace(config, class_names=class_names), state)
    metadata = json.dumps(description | {"sha256": digest}, sort_keys=True)
    weights = serialize(state, metadata={"pyseg": metadata})
    if class_names is not None:
        description["class_names"] = list(class_names)
    if config.level is not None:
        description["level"] = config.level
    _write(folder / WEIGHTS, weights)
    _write(folder / _CONFIG, (json.dumps(description, indent=2) + "\n").encode())


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> FrameClassifier:
    """Loads a model that `save` wrote, bit for bit.

    Args:
        folder: the folder.
        device: where the weights go.

    Returns:
        The model, in eval mode: call ``.train()`` to go on training. ``model.config`` holds the
        class names.

    Raises:
        FileNotFoundError: one of the two files is not there.
        pyseg.errors.DataError: a file is damaged, of another format version, or does not fit the
            other; the message names the file, what was expected and what was found.
    """
    folder = Path(folder)
    config = _read_config(folder / _CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise MissingFileError(f"{weights}: no such file")
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copied, since a file's tensors begin at any address, and some libraries' products are
            # not the same to the bit where their operands begin elsewhere.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{weights}: expected a safetensors file, found: {error}") from error
    described = _parse(metadata.get("pyseg", "null"))
    digest = described.pop("sha256", "none") if isinstance(described, dict) else "none"
    if described != config._description():
        expected, found = (
            json.dumps(value, sort_keys=True) for value in (config._description(), described)
        )
        raise DataError(
            f"{weights}: expected the weights that {_CONFIG} describes, {expected}; "
            f"found {found if described else 'no description: not written by pyseg.models.save'}"
        )
    try:
        with torch.device("meta"):  # the values come from the file: draw none
            tensors = {key: _placeholder(shapes) for key, shapes in config.tensors.items()}
            model = create(
                config.name, num_classes=config.num_classes, **config.overrides, **tensors
            )
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / _CONFIG}: {error}") from error
    _check_shapes(weights, model.state_dict(), state)
    if digest != (found := _digest(config, state)):
        raise DataError(
            f"{weights}: expected weights, and class names in {_CONFIG}, of the digest {digest}, "
            f"found {found}: one of the files is damaged"
        )
    model.load_state_dict({key: value.to(device) for key, value in state.items()}, assign=True)
    model.config = cast(Any, config)
    return model.eval()


def _make(name: str, num_classes: int, overrides: Mapping[str, Any]) -> FrameClassifier:
    make, preset = _preset(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral):
        raise ArgumentError(f"num_classes: expected an integer, found {num_classes!r}")
    num_classes = int(num_classes)
    arguments = {**preset, **overrides}
    if make is _mixture:  # which looks at its arguments itself
        return make(num_classes, **arguments)
    known = options(name, head=arguments.get("head"))
    for key in overrides:
        if key not in known:
            raise ArgumentError(f"overrides: {_unknown(f'argument of {name}', key, known)}")
    _check_types(make, arguments)
    if "head" in known:
        head: HeadFactory = _head(arguments.get("head", "logistic"))
        _check_types(head, arguments)
        own = {key: arguments.pop(key) for key in _arguments(head) if key in arguments}
        arguments["head"] = functools.partial(head, **own)
    return make(num_classes, **arguments)


def _preset(name: str) -> tuple[Callable[..., FrameClassifier], dict[str, Any]]:
    if name not in _PRESETS:
        raise ArgumentError(f"name: {_unknown('preset', name, names())}")
    return _PRESETS[name]


def _head(name: str) -> Callable[..., nn.Module]:
    if not isinstance(name, str) or name not in _HEADS:
        raise ArgumentError(f"head: {_unknown('head', str(name), sorted(_HEADS))}")
    return _HEADS[name]


def _arguments(make: Callable[..., nn.Module]) -> list[str]:
    """Lists what may be overridden: what `create` gives is not, nor what no file can hold."""
    excluded = ("in_features", "num_classes", "branches", "generator")
    return [key for key in inspect.signature(make).parameters if key not in excluded]


_KINDS = {
    "None": type(None),
    "bool": bool,
    "int": Integral,
    "float": Real,
    "str": str,
    "Literal": str,
}


def _check_types(make: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """Raises where an argument that takes numbers or text is given something else."""
    for name, parameter in inspect.signature(make).parameters.items():
        kinds = re.findall(r"\w+", re.sub(r"\[.*?\]", "", str(parameter.annotation)))
        if name not in arguments or not kinds or not _KINDS.keys() >= set(kinds):
            continue
        value = arguments[name]
        fits = isinstance(value, tuple(_KINDS[kind] for kind in kinds))
        if not fits or (isinstance(value, bool) and "bool" not in kinds):
            raise ArgumentError(f"{name}: expected {' or '.join(kinds)}, found {value!r}")


# A correlation is three tensors, each of a shape of its own.
_CORRELATION = ("offsets", "columns", "values")
_TENSORS = (Tensor, np.ndarray, LabelCorrelation)


def _shapes(value: Tensor | np.ndarray | LabelCorrelation) -> Shapes:
    if isinstance(value, LabelCorrelation):
        return {name: list(getattr(value, name).shape) for name in _CORRELATION}
    return list(value.shape)


# Tensors among the overrides that have a row, or rows and columns, for every class.
_BY_CLASS = ("correlation", "node_features")


def _of_classes(shapes: Shapes, number: int) -> Shapes:
    """Returns the shapes of one of these for another number of classes."""
    if isinstance(shapes, Mapping):
        return {**shapes, "offsets": [number + 1]}
    rows, columns = shapes
    return [number, number if columns == rows else columns]


def _placeholder(shapes: Shapes) -> Tensor | LabelCorrelation:
    """Returns what has the shapes, on the default device: `load` needs no values."""
    if not isinstance(shapes, Mapping):
        return torch.empty(*shapes)
    if shapes.keys() != set(_CORRELATION):
        raise ArgumentError(
            f"tensors: expected shapes of {', '.join(_CORRELATION)}, found {', '.join(shapes)}"
        )
    offsets, columns, values = (torch.empty(*shapes[name]) for name in _CORRELATION)
    return LabelCorrelation(offsets.long(), columns.long(), values)


def _unknown(kind: str, found: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(found, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected one of {', '.join(known)}; found the unknown {kind} {found!r}{hint}"


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
    """Returns what JSON says, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _digest(config: ModelConfig, state: Mapping[str, Tensor]) -> str:
    """Returns a digest of all that makes up a model: on the CPU, in contiguous tensors."""
    names = None if config.class_names is None else list(config.class_names)
    described = config._description() | {"class_names": names}
    if config.level is not None:
        described["level"] = config.level
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with written_whole(path) as file:
        file.write(data)


if __name__ == "__main__":
    from pyseg import _cli
    from pyseg.model_table import main

    _cli.run(main)
