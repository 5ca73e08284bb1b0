"""The kinds of backbones, and how ``--backbone`` names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

import torch

from pyseg._registry import Make, Registry
from pyseg.backbones.base import Backbone
from pyseg.data import BackboneInfo
from pyseg.errors import ArgumentError, MissingFileError


@dataclass(frozen=True)
class Request:
    """What a backbone is made of.

    Attributes:
        name: What ``--backbone`` was given.
        argument: The part after the kind and its colon; of a file its path; "" where there is none.
        weights: What ``--weights`` was given: a file, a folder or "random".
        device: The device to compute on.
    """

    name: str
    argument: str
    weights: str | None
    device: torch.device


Maker = Callable[[Request], Backbone]

_KINDS: Registry[Maker] = Registry("kind of backbone")
_FOLDERS = ("transformers",)  # the kinds whose argument is a folder
_FACTORY = "module"  # module:factory, for every module that is not a kind


def register_backbone(kind: str) -> Callable[[Make], Make]:
    """Registers a kind of backbones: ``--backbone KIND:ARGUMENT`` then makes one.

    It is called as ``make(request)``, with a `Request`, and returns a
    `pyseg.backbones.Backbone`. A kind that begins with a dot stands for the files that end so,
    ``--backbone network.onnx``. A kind may go without argument: ``--backbone youtube8m``.

    Args:
        kind: The name of the kind, which must be new.

    Returns:
        A decorator that returns its argument.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.

    Example:
        >>> import numpy as np
        >>> from pyseg.backbones import Backbone, make_backbone, register_backbone
        >>> @register_backbone("mean-color")
        ... class MeanColor(Backbone):
        ...     features, sha256, preprocessing = (("rgb", 3),), "0" * 64, {}
        ...     def __init__(self, request): ...
        ...     def __call__(self, images, windows):
        ...         return images.mean((1, 2), dtype=np.float32)
        >>> backbone = make_backbone("mean-color")
        >>> backbone.name, backbone(np.full((1, 4, 4, 3), 7, np.uint8), None)
        ('mean-color', array([[7., 7., 7.]], dtype=float32))
    """
    return _KINDS.register(kind)


def make_backbone(
    name: str, weights: str | None = None, *, device: str | torch.device = "cpu"
) -> Backbone:
    """Makes a backbone. Nothing is downloaded.

    Args:
        name: ``network.onnx``, ``network.pt2``, ``timm:NAME``, ``open_clip:NAME``,
            ``transformers:FOLDER``, ``youtube8m``, another registered kind, or ``module:factory``.
        weights: A file of weights for the kinds that need one; "random" draws them instead, the
            same every time, for trials.
        device: The device to compute on.

    Raises:
        pyseg.errors.ArgumentError: There is no such backbone, or it does not take these weights;
            the message names the argument, ``backbone`` or ``weights``.
        pyseg.errors.UserError: A package is missing.
        pyseg.errors.DataError: A file is damaged, or of another network.
        OSError: A file cannot be read.
    """
    kind, argument = _parse(name)
    request = Request(name, argument, weights, torch.device(device))
    backbone = _KINDS.find(kind)(request)
    backbone.name = name
    backbone.weights = os.path.abspath(weights) if weights and os.path.exists(weights) else weights
    backbone.location = os.path.abspath(argument) if kind[0] == "." or kind in _FOLDERS else None
    return backbone


def find_backbone(made: BackboneInfo) -> str:
    """Returns the name with which `make_backbone` makes a recorded backbone in any working folder.

    The file or folder of a backbone is looked for where it was first, then where its name says.

    Args:
        made: The backbone, as ``features.json`` records it.

    Raises:
        pyseg.errors.ArgumentError: There is no such kind of backbone.
        pyseg.errors.MissingFileError: Its file or folder is not there.

    Example:
        >>> find_backbone(BackboneInfo("timm:vit_small_patch14_dinov2", "0" * 64, {}))
        'timm:vit_small_patch14_dinov2'
    """
    if made.location is None:
        return made.name
    _, argument = _parse(made.name)
    for path in (made.location, argument):
        if os.path.exists(path):
            return made.name.removesuffix(argument) + path
    raise MissingFileError(
        f"the run's backbone {made.name} ({made.location}) is not there: name it with --backbone"
    )


def imports_code(name: str) -> bool:
    """Returns whether `make_backbone` imports a module that the name of a backbone gives.

    Example:
        >>> imports_code("my_module:make"), imports_code("timm:vit_small_patch14_dinov2")
        (True, False)
    """
    try:
        return _parse(name)[0] == _FACTORY
    except ArgumentError:
        return False


def _parse(name: str) -> tuple[str, str]:
    """Returns the kind of a backbone, and the argument."""
    if name in _KINDS:
        return name, ""
    kind, colon, argument = name.partition(":")
    if kind in _KINDS and argument:
        return kind, argument
    suffix = PurePath(name).suffix
    if suffix in _KINDS:
        return suffix, name
    if colon and kind.endswith(".py"):
        raise ArgumentError(
            f"backbone: expected a module without .py, {PurePath(kind).stem}:{argument}, that can "
            f"be imported from the working folder or PYTHONPATH; found {name!r}"
        )
    if colon and argument.isidentifier() and all(map(str.isidentifier, kind.split("."))):
        return _FACTORY, name
    forms = [k if k == "youtube8m" else f"FILE{k}" if k[0] == "." else f"{k}:NAME" for k in _KINDS]
    raise ArgumentError(f"backbone: expected one of {', '.join(forms)}; found {name!r}")
