"""Backbones that are PyTorch modules, and ``--backbone module:factory``."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pyseg._containers import text_error
from pyseg._extras import find_module
from pyseg._registry import suggestion
from pyseg.backbones.base import Backbone
from pyseg.backbones.preprocessing import Preprocessing, parse_preprocessing
from pyseg.backbones.registry import Request, register_backbone
from pyseg.errors import ArgumentError, DataError, MissingFileError

RANDOM = "random"
"""The value of ``--weights`` for weights that are drawn at random."""

FEATURE = "rgb"
"""The name of the feature of a network that has only one."""


class ModuleBackbone(Backbone):
    """A PyTorch module that maps images (B, 3, H, W) to features (B, N).

    Args:
        module: The module; it is put in eval mode, on the device.
        preprocessing: How images become its input.
        device: The device to compute on.
        sha256: The digest of its weights; default: that of its state.
        forward: Computes the features; default: the module itself.
        feature: The name of the feature.

    Raises:
        pyseg.errors.ArgumentError: It fails on an image, or its output is something else.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        sha256: str | None = None,
        forward: Callable[[Tensor], Any] | None = None,
        feature: str = FEATURE,
    ) -> None:
        self.module = module.eval().to(device)
        self.size, self.crop = preprocessing.image_size, preprocessing.crop
        self.preprocessing = preprocessing.described()
        self.sha256 = sha256 or state_digest(module.state_dict())
        self._prepare, self._device = preprocessing, device
        self._forward = forward or module
        try:
            found = self._compute(np.zeros((1, *self.size, 3), np.uint8))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"backbone: expected a network of images (B, 3, {preprocessing.size[0]}, "
                f"{preprocessing.size[1]}), found that it fails: {text_error(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2:
            kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
            raise ArgumentError(f"backbone: expected features of shape (B, N), found {kind}")
        self.features = ((feature, found.shape[1]),)

    def _compute(self, images: npt.NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            return self._forward(self._prepare(images, self._device))

    def __call__(
        self, images: npt.NDArray[np.uint8], windows: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Returns the features (B, N) of images (B, H, W, 3)."""
        result: npt.NDArray[np.float32] = self._compute(images).float().cpu().numpy()
        return result


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of a module's weights and buffers.

    Example:
        >>> len(state_digest({"weight": torch.zeros(2)}))
        64
    """
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(*paths: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, or of several ones together.

    Raises:
        OSError: One cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: str) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file, which ``--weights`` names.

    Raises:
        pyseg.errors.DataError: It is a file of another kind.
        pyseg.errors.MissingFileError: There is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise MissingFileError(f"--weights {path}: expected a .safetensors file, found none")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: expected a .safetensors file, found: {error}") from error


def load_weights(
    module: nn.Module,
    request: Request,
    *,
    prefix: str = "",
    keep: Callable[[str], bool] = lambda _: True,
) -> str:
    """Loads the weights that a request names into a module; returns their digest.

    Args:
        module: The module.
        request: The request.
        prefix: Begins the names of the module's tensors in a file that holds others too.
        keep: Whether a tensor of the file, by its name, is one of the module's.

    Raises:
        pyseg.errors.ArgumentError: There are none.
        pyseg.errors.DataError: They are those of another network, or the file is of another kind.
        pyseg.errors.MissingFileError: There is no such file.
    """
    if request.weights is None:
        raise ArgumentError(
            f"weights: expected a .safetensors file with the weights of {request.name}, as nothing "
            "is downloaded, or random for a trial; found none"
        )
    if request.weights == RANDOM:
        return state_digest(module.state_dict())
    state = read_weights(request.weights)
    if any(key.startswith(prefix) for key in state):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        module.load_state_dict({key: value for key, value in state.items() if keep(key)})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(
            f"{request.weights}: expected the weights of {request.name}, found others: "
            f"{shorten(' '.join(lines), 300)}"
        ) from error
    return file_digest(request.weights)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Returns the module that `make` makes, with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@register_backbone("module")
def make(request: Request) -> Backbone:
    """Calls ``factory`` of ``module``, which returns a backbone or a PyTorch module.

    A factory with a parameter ``weights`` gets ``--weights``; otherwise a .safetensors file is
    loaded into the PyTorch module. That takes images (B, 3, H, W) and returns features (B, N); its
    attributes may be those of `Preprocessing`, of which ``size`` is required.
    """
    factory = _import(request.argument)
    takes_weights = _takes_weights(factory, request.name)
    made = factory(weights=request.weights) if takes_weights else factory()
    if isinstance(made, Backbone):
        if request.weights is not None and not takes_weights:
            raise ArgumentError(
                f"weights: expected a parameter weights of {request.name}, found none"
            )
        return made
    if not isinstance(made, nn.Module):
        raise ArgumentError(
            f"backbone: expected that {request.name} returns a pyseg.backbones.Backbone or a "
            f"torch.nn.Module, found {type(made).__name__}"
        )
    if request.weights is not None and not takes_weights:
        load_weights(made, request)
    names = Preprocessing.__dataclass_fields__
    given = {name: getattr(made, name) for name in names if hasattr(made, name)}
    try:
        preprocessing = parse_preprocessing(given, request.name)
    except DataError as error:
        raise ArgumentError(f"backbone: {error}") from error
    return ModuleBackbone(made, preprocessing, request.device)


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found = find_module(module)
    if found is None:
        raise ArgumentError(
            f"backbone: expected a module {module} that can be imported, found none"
        )
    if not hasattr(found, attribute):
        functions = [key for key, value in vars(found).items() if inspect.isroutine(value)]
        raise ArgumentError(
            f"backbone: expected a function {attribute} in {module}, found none"
            f"{suggestion(attribute, functions, '{}')}"
        )
    factory = getattr(found, attribute)
    if not callable(factory) or isinstance(factory, nn.Module | Backbone):
        raise ArgumentError(
            f"backbone: expected that {attribute} in {module} is a function that returns the "
            f"network, found {type(factory).__name__}"
        )
    return cast(Callable[..., Any], factory)


def _takes_weights(factory: Callable[..., Any], name: str) -> bool:
    """Returns whether a factory has a parameter ``weights``.

    Raises:
        pyseg.errors.ArgumentError: It needs other arguments.
    """
    try:
        signature = inspect.signature(factory)
    except ValueError:  # of a builtin function without one
        return False
    takes_weights = "weights" in signature.parameters
    try:
        signature.bind(**({"weights": None} if takes_weights else {}))
    except TypeError as error:
        function = name.rpartition(":")[2]
        raise ArgumentError(
            f"backbone: expected a function that needs no arguments but weights, found "
            f"{function}{signature} in {name}: name a function that calls it"
        ) from error
    return takes_weights
