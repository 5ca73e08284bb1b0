"""The registry of models: presets and heads by name, and how models are made of them."""

from __future__ import annotations

import functools
import json
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from pyseg._registry import Make, Registry, check_known, check_types, parameters, unknown
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.nn import FrameClassifier, Mixture
from pyseg.nn.head import HeadFactory


class _Preset(NamedTuple):
    """A registered classifier, with the values of its arguments and of options of training."""

    make: Callable[..., FrameClassifier]
    arguments: dict[str, Any]
    training_defaults: Mapping[str, Any]


_PRESETS: Registry[_Preset] = Registry("preset")
_HEADS: Registry[Callable[..., nn.Module]] = Registry("head")


def register(
    name: str, *, training_defaults: Mapping[str, Any] | None = None, **arguments: Any
) -> Callable[[Make], Make]:
    """Registers a classifier as a preset, which `create`, saved models and commands know by name.

    It is called as ``make(num_classes, **overrides)`` and returns a `pyseg.nn.FrameClassifier`. Its
    other parameters, and those of its base class if it passes them on (``**more``), are what
    `create` and ``--overrides`` may set; values for those annotated as int, float, bool, str,
    Literal or None are checked. A parameter ``head`` receives a function that makes the chosen
    head, ``head(in_features, num_classes)``.

    Args:
        name: The name of the preset, which must be new.
        training_defaults: The preset's defaults of options of `pyseg.train`, such as
            ``{"finetune.learning_rate": 3e-2}``; those of a recipe take precedence.
        **arguments: The preset's values of arguments of `make`, instead of the defaults.

    Returns:
        A decorator that returns its argument.

    Raises:
        pyseg.errors.ArgumentError: The name is taken, or there is no such argument.

    Example:
        >>> from pyseg import models, nn
        >>> @models.register("mlp-narrow", hidden_size=16)
        ... class NarrowMLP(nn.MLP):
        ...     pass
        >>> models.create("mlp-narrow", num_classes=3).config.name
        'mlp-narrow'
    """

    def entry_of(make: Callable[..., FrameClassifier]) -> _Preset:
        check_known("arguments", name, arguments, _known(make, arguments))
        return _Preset(make, arguments, dict(training_defaults or {}))

    return _PRESETS.register(name, entry_of)


def register_head(name: str) -> Callable[[Make], Make]:
    """Registers a head: ``--overrides.head NAME`` then gives it to any classifier with a head.

    It is called as ``make(in_features, num_classes, **overrides)`` and maps (B, in_features) to
    logits (B, C).

    Args:
        name: The name of the head, which must be new.

    Returns:
        A decorator that returns its argument.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.

    Example:
        >>> from pyseg import models
        >>> @models.register_head("linear")
        ... def linear(in_features: int, num_classes: int, bias: bool = True) -> nn.Module:
        ...     return nn.Linear(in_features, num_classes, bias)
        >>> models.create("mlp", num_classes=3, head="linear", bias=False).head
        Linear(in_features=1024, out_features=3, bias=False)
    """
    return _HEADS.register(name)


Shapes = Sequence[int] | Mapping[str, Sequence[int]]
"""The shape of a tensor, or the shapes of an object's tensors by name."""


@dataclass(frozen=True)
class ModelConfig:
    """How a model was created; `create` and `load` attach it as ``model.config``.

    Attributes:
        name: name of the preset.
        num_classes: number of classes C.
        overrides: the arguments in which the model differs from the preset, as JSON values.
        tensors: shapes of those arguments that are tensors (``eigenvalues``, ``mean``,
            ``deviation``, ``node_features``), and of the three tensors of a `LabelCorrelation`;
            the model's weights and buffers are computed from their values.
        class_names: the name of each class, by number, or ``None``.
        level: the level of its training data: "frame", or "video" for mean features of whole
            videos; ``None``: unknown.
    """

    name: str
    num_classes: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Shapes] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    level: str | None = None


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
        head: the head to use. ``None``: that of the preset.

    Returns:
        Arguments of the preset's classifier, then those of its head.

    Raises:
        ValueError: the preset or the head is unknown.

    Example:
        >>> "correlation" in options("dbof-gcn"), "correlation" in options("dbof")
        (True, False)
    """
    preset = _preset(name)
    return _known(preset.make, preset.arguments, head)


def training_defaults(name: str) -> Mapping[str, Any]:
    """Returns a preset's defaults of options of training, by name; none for an unknown preset.

    Example:
        >>> training_defaults("linear")["finetune.l2"], len(training_defaults("mlp"))
        (0.02, 0)
    """
    return _PRESETS[name].training_defaults if name in _PRESETS else {}


def _known(
    make: Callable[..., FrameClassifier], preset: Mapping[str, Any], head: str | None = None
) -> list[str]:
    if make is mixture:
        of_branches = (options(branch, head=head) for branch in preset["branches"])
        return sorted({"branches", *_arguments(Mixture)}.union(*of_branches))
    known = _arguments(make)
    if "head" not in known:
        return known
    return known + _arguments(_HEADS.find(preset.get("head", "logistic") if head is None else head))


def create(name: str, *, num_classes: int, **overrides: Any) -> FrameClassifier:
    """Makes a classifier with fresh weights.

    Args:
        name: a preset, see `names`.
        num_classes: number of classes C.
        **overrides: arguments of the preset's class to use instead of the preset's, for example
            ``feature_sizes=(128,)`` or ``dropout=0``. Where the class takes a `head`, that is
            "logistic" (`LogisticHead`), "moe" (`MixtureOfExperts`) or "gcn" (`LabelGCN`), and the
            head's own arguments are overrides too: ``head="moe", mixtures=4``. A mixture takes
            those of `Mixture` and those of its branches, each for all branches that take it;
            ``branches`` lists other branches, as names of presets or as objects,
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
    """Counts the parameters of a classifier without allocating its weights.

    Args:
        name: a preset, see `names`.
        num_classes: number of classes C.
        **overrides: as `create` takes them.

    Raises:
        pyseg.errors.ArgumentError: as `create` does, or the sizes exceed any memory.

    Example:
        >>> count_parameters("nextvlad1", num_classes=3862)
        78643170
    """
    try:
        with torch.device("meta"):
            placeholders = {
                key: placeholder(_shapes(value)) if isinstance(value, _TENSORS) else value
                for key, value in overrides.items()
            }
            model = create(name, num_classes=num_classes, **placeholders)
    except (RuntimeError, OverflowError) as error:
        if not re.search("overflow|too large", str(error), re.IGNORECASE):
            raise
        raise ArgumentError("overrides: expected sizes that fit into memory") from error
    return sum(parameter.numel() for parameter in model.parameters())


def select_classes(model: FrameClassifier, classes: Sequence[int]) -> FrameClassifier:
    """Makes a model for some of a model's classes: the same trunk, with their rows of the head.

    Args:
        model: one that `create` or `load` returned.
        classes: distinct classes, in the order of the new model.

    Returns:
        A model of n classes that shares no memory with the other one, in the same mode.

    Raises:
        ValueError: a class is out of range or repeated, or the head cannot be cut.

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
        placeholders = {key: placeholder(shapes) for key, shapes in tensors.items()}
        cut = create(config.name, num_classes=len(classes), **config.overrides, **placeholders)
    cut.load_state_dict({key: value.detach().clone() for key, value in state.items()}, assign=True)
    cut.config = cast(
        Any, replace(config, num_classes=len(classes), tensors=tensors, class_names=chosen_names)
    )
    return cut.train(model.training)


def mixture(num_classes: int, *, branches: Sequence[Any], **arguments: Any) -> Mixture:
    """Makes a mixture of presets.

    Args:
        num_classes: number of classes C.
        branches: each a preset's name, or ``{"name": ..., **overrides}`` for that branch alone.
        **arguments: those of `Mixture`, and those of the branches: each goes to all that take it.
    """
    if isinstance(branches, str) or not isinstance(branches, Sequence) or not branches:
        raise ArgumentError(f"branches: expected a list of presets, found {branches!r}")
    single = [name for name in names() if _PRESETS[name].make is not mixture]
    presets, own = [], []
    for branch in branches:
        given = {"name": branch} if isinstance(branch, str) else branch
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise ArgumentError(
                "branches: expected names of presets, or objects with a name and overrides; "
                f"found {branch!r}"
            )
        if given["name"] not in single:
            raise ArgumentError(f"branches: {unknown('branch', given['name'], single)}")
        presets.append(given["name"])
        own.append({key: value for key, value in given.items() if key != "name"})
    of_mixture = _arguments(Mixture)
    of_branches = [
        options(name, head=given.get("head", arguments.get("head")))
        for name, given in zip(presets, own, strict=True)
    ]
    known = sorted({"branches", *of_mixture}.union(*of_branches))
    check_known("overrides", "the mixture", arguments, known)
    check_types(Mixture, arguments)
    classifiers = []
    for name, overrides, takes in zip(presets, own, of_branches, strict=True):
        # The mixture adds noise once for all branches.
        shared = {k: v for k, v in arguments.items() if k in takes and k != "noise"}
        classifiers.append(_make(name, num_classes, shared | overrides))
    return Mixture(classifiers, **{k: v for k, v in arguments.items() if k in of_mixture})


def _make(name: str, num_classes: int, overrides: Mapping[str, Any]) -> FrameClassifier:
    make, preset, _ = _preset(name)
    if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral):
        raise ArgumentError(f"num_classes: expected an integer, found {num_classes!r}")
    num_classes = int(num_classes)
    arguments = {**preset, **overrides}
    if make is mixture:  # which checks its arguments itself
        return make(num_classes, **arguments)
    known = options(name, head=arguments.get("head"))
    check_known("overrides", name, overrides, known)
    check_types(make, arguments)
    if "head" in known:
        head: HeadFactory = _HEADS.find(arguments.get("head", "logistic"))
        check_types(head, arguments)
        own = {key: arguments.pop(key) for key in _arguments(head) if key in arguments}
        arguments["head"] = functools.partial(head, **own)
    return make(num_classes, **arguments)


def _preset(name: str) -> _Preset:
    try:
        return _PRESETS.find(name, "name")
    except ArgumentError as error:
        raise ArgumentError(f"{error}; one of your own has to be registered (--plugin)") from None


def _arguments(make: Callable[..., nn.Module]) -> list[str]:
    """Lists the arguments that may be overridden: none that `create` sets or no file can hold."""
    excluded = ("in_features", "num_classes", "branches", "generator")
    return [key for key in parameters(make) if key not in excluded]


# A correlation is three tensors of different shapes.
_CORRELATION = ("offsets", "columns", "values")


_TENSORS = (Tensor, np.ndarray, LabelCorrelation)


def _shapes(value: Tensor | np.ndarray | LabelCorrelation) -> Shapes:
    if isinstance(value, LabelCorrelation):
        return {name: list(getattr(value, name).shape) for name in _CORRELATION}
    return list(value.shape)


# Tensor overrides with a row, or a row and a column, per class.
_BY_CLASS = ("correlation", "node_features")


def _of_classes(shapes: Shapes, number: int) -> Shapes:
    """Returns the shapes of such an override for another number of classes."""
    if isinstance(shapes, Mapping):
        return {**shapes, "offsets": [number + 1]}
    rows, columns = shapes
    return [number, number if columns == rows else columns]


def placeholder(shapes: Shapes) -> Tensor | LabelCorrelation:
    """Returns uninitialized tensors of the shapes, on the default device."""
    if not isinstance(shapes, Mapping):
        return torch.empty(*shapes)
    if shapes.keys() != set(_CORRELATION):
        raise ArgumentError(
            f"tensors: expected shapes of {', '.join(_CORRELATION)}, found {', '.join(shapes)}"
        )
    offsets, columns, values = (torch.empty(*shapes[name]) for name in _CORRELATION)
    return LabelCorrelation(offsets.long(), columns.long(), values)
