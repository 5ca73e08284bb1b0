"""Segment-level multi-label video classification with fused C++/CUDA operators."""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyseg import _command

__version__ = "0.2.0"

_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent  # installed, or a checkout

cmake_prefix_path = str(_ROOT / "cmake")
"""The folder for CMake's ``-DCMAKE_PREFIX_PATH=``, so that ``find_package(pyseg)`` works."""


def include_path() -> str:
    """Returns the folder of the C++ headers: ``#include "pyseg/vlad.h"``.

    They need neither torch nor Python: their functions take raw pointers and sizes.

    Example:
        >>> import pyseg
        >>> from pathlib import Path
        >>> Path(pyseg.include_path(), "pyseg").is_dir()
        True
    """
    return str(_ROOT / "csrc" / "include")


def load(
    run: str | os.PathLike[str],
    *,
    device: str | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    calibrate: bool = True,
    precision: Literal["fp32", "bf16", "fp16", "int8"] | None = None,
    tf32: bool | None = None,
    revision: str | None = None,
) -> Predictor:
    """Loads a run for predictions: when do its classes occur in a video?

    Args:
        run: The run folder that `pyseg.train` wrote; or, where there is no such folder, the name
            ``org/name`` of a model that `push` has put on a hub. Weights are a safetensors file,
            and nothing that is downloaded is unpickled or run. Where its backbone is a function of
            a module, name it as `backbone`.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.
        backbone: The network that computes the features of video files; default: the one that
            computed those of the training data.
        weights: Its file of weights; default: the one that the training data were extracted with.
        calibrate: Whether to use the run's calibration, if `pyseg.calibrate` wrote one; otherwise
            scores are the sigmoids of logits.
        precision: "fp32"; "bf16" or "fp16" is mixed precision; "int8", on a CPU, lets large layers
            multiply 8-bit integers. Default: "bf16" on a GPU, "fp32" on a CPU.
        tf32: Whether a GPU may round the inputs of float32 products to TF32; default: unless
            `precision` is "fp32".
        revision: The branch, tag or commit of a model on a hub; default: its main branch.

    Raises:
        pyseg.errors.UserError: The folder is not a run, its model takes no frames, or there is no
            such device or model.
        pyseg.errors.DataError: A file of the run is damaged.

    Example:
        .. code-block:: python

            model = pyseg.load("runs/films")
            timeline = model.predict("a.mp4")  # or of frames, an array (T, N)
            timeline.events()
            timeline.save("a.vtt")
    """
    make: type[Predictor] = importlib.import_module("pyseg.predict").Predictor
    return make(
        importlib.import_module("pyseg._hub").find(run, revision, backbone),
        device=device,
        backbone=backbone,
        weights=weights,
        calibrate=calibrate,
        precision=precision,
        tf32=tf32,
    )


def push(
    run: str | os.PathLike[str],
    name: str,
    *,
    license: str,
    data: str | None = None,
    limits: str | None = None,
    private: bool = True,
) -> str:
    """Puts a run's model on a hub, with a card, from where `load` takes it by its name.

    The card says what the model is, how it did (metrics.jsonl), on which data, and its limits.
    Neither the log nor the options nor paths of this machine are sent. It takes huggingface_hub,
    whose environment variables say where the hub is and who you are (HF_ENDPOINT, HF_TOKEN).

    Args:
        run: The run folder that `pyseg.train` wrote.
        name: ``org/name``. If it exists, a commit is added to it.
        license: The identifier of the weights' licence, such as "apache-2.0" or "other".
        data: What the card is to say about the data, beside the name and the split.
        limits: What it is to say about limits, beside what follows from the run.
        private: Whether a new model is visible to members of the organisation only.

    Returns:
        The commit, a revision for `load`.

    Raises:
        pyseg.errors.ArgumentError: A name or a licence has no such form.
        pyseg.errors.UserError: The folder is not a run, its training has not ended, the hub
            refuses, or huggingface_hub is not installed.
        pyseg.errors.DataError: A file of the run is damaged.

    Example:
        .. code-block:: python

            pyseg.push("runs/films", "studio/films", license="cc-by-4.0", limits="Films only.")
            model = pyseg.load("studio/films")
    """
    pushed: str = importlib.import_module("pyseg._hub").push(
        run, name, license=license, data=data, limits=limits, private=private
    )
    return pushed


_started = _command.started_module()
# `python -m pyseg._build` must not load the libraries, which may be older than this code.
if _started != "pyseg._build":
    if _started is not None:  # a command, which has to import torch first
        _command.end_on_interrupt()
    from pyseg import _ext as _ext
    from pyseg import ops as ops

if TYPE_CHECKING:
    from pyseg import backbones as backbones
    from pyseg import calibrate as calibrate
    from pyseg import calibration as calibration
    from pyseg import checkpoint as checkpoint
    from pyseg import config as config
    from pyseg import convert as convert
    from pyseg import cooccur as cooccur
    from pyseg import data as data
    from pyseg import distributed as distributed
    from pyseg import errors as errors
    from pyseg import evaluate as evaluate
    from pyseg import export as export
    from pyseg import extract as extract
    from pyseg import info as info
    from pyseg import labels as labels
    from pyseg import metrics as metrics
    from pyseg import models as models
    from pyseg import nn as nn
    from pyseg import predict as predict
    from pyseg import rate as rate
    from pyseg import report as report
    from pyseg import reproduce as reproduce
    from pyseg import results as results
    from pyseg import runs as runs
    from pyseg import submission as submission
    from pyseg import timeline as timeline
    from pyseg import train as train
    from pyseg import training as training
    from pyseg import video as video
    from pyseg.predict import Predictor

# Modules, imported on first use; the operator libraries lie beside them but are no modules.
_LAZY = [
    module.name
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith(("_", "libpyseg"))
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return importlib.import_module(f"pyseg.{name}")
    raise AttributeError(f"module 'pyseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
