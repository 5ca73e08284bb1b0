"""Weights from other frameworks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pyseg import models

# What a training checkpoint holds beside the model.
_TRAINING_STATE = re.compile(r"(^|/)(global_step|beta[12]_power|Adam|Adam_1)$")

_SCOPE = "tower/"
_BRANCHES = ("video_VLAD", "audio_VLAD")


def load_nextvlad_tf(
    variables: Mapping[str, np.ndarray], num_classes: int, **overrides: Any
) -> nn.Module:
    """Makes a `NeXtVLADClassifier` with the weights of the reference TensorFlow 1 code.

    The geometry (feature sizes, expansion, groups, clusters, hidden size, reduction) is read from
    the shapes. The model has the logistic classifier and the features video and audio.

    The reference normalises frames before the model ("reverse whitening" by default, in its
    train.py); the model that is returned only dequantises unless told otherwise.

    Args:
        variables: array of each variable, under the name the reference code gives it, for example
            ``tower/video_VLAD/cluster_weights`` (a ``:0`` at the end is ignored, and so is what
            the optimiser adds to a checkpoint).
        num_classes: number of classes C.
        **overrides: what shapes do not tell: `dropout`, `normalization`, `eigenvalues`,
            `batch_norm_momentum` or `padded_statistics` of `NeXtVLADClassifier`.

    Returns:
        The model, in float32 and training mode; `pyseg.models.save` can save it.

    Raises:
        ValueError: a variable is missing, unexpected, or of a shape that does not fit; the message
            names it, what was expected and what was found.

    Example:
        >>> variables = dict(np.load("variables.npz", allow_pickle=False))  # doctest: +SKIP
        >>> model = load_nextvlad_tf(variables, num_classes=3862)  # doctest: +SKIP
    """
    arrays = {
        name.removesuffix(":0"): np.asarray(value)
        for name, value in variables.items()
        if not _TRAINING_STATE.search(name.removesuffix(":0"))
    }
    names = _variable_names()
    missing = sorted(set(names.values()) - arrays.keys())
    unexpected = sorted(arrays.keys() - set(names.values()))
    if missing or unexpected:
        raise ValueError(
            "variables: expected those of the reference NeXtVLAD model; "
            f"missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}"
        )
    geometry = _geometry(arrays)
    fixed = sorted(geometry.keys() & overrides.keys())
    if fixed:
        raise ValueError(f"{fixed[0]}: expected no value, as the shapes of the variables give it")
    model = models.create("nextvlad1", num_classes=num_classes, **geometry, **overrides)
    state = model.state_dict()
    for key, name in names.items():
        target = state[key]
        # TensorFlow has (in, out) where PyTorch has (out, in), and the centres as (1, F, K).
        transposed = key.endswith(".weight") and target.ndim == 2
        expected = tuple(target.T.shape if transposed else target.shape)
        if name.endswith("cluster_weights2"):
            expected = (1, *expected)
        array = arrays[name]
        if array.shape != expected:
            raise ValueError(
                f"variables: {name}: expected shape {expected}, as num_classes={num_classes} and "
                f"the other variables say; found {array.shape}"
            )
        value = torch.from_numpy(np.array(array, dtype=np.float32))
        target.copy_(value.T if transposed else value.view_as(target))
    return model


def _variable_names() -> dict[str, str]:
    """Names of the reference's variables by the names in `NeXtVLADClassifier.state_dict`."""
    names = {
        "hidden.weight": "hidden1_weights",
        "gate.squeeze.weight": "gating_weights_1",
        "gate.excite.weight": "gating_weights_2",
        "head.linear.weight": "fully_connected/weights",
        "head.linear.bias": "fully_connected/biases",
        **_batch_norm_names("hidden_norm", "hidden1_bn"),
        **_batch_norm_names("gate.norm", "gating_bn"),
    }
    for index, scope in enumerate(_BRANCHES):
        branch = f"branches.{index}"
        names |= {
            f"{branch}.expand.weight": f"{scope}/fully_connected/weights",
            f"{branch}.expand.bias": f"{scope}/fully_connected/biases",
            f"{branch}.attention.weight": f"{scope}/fully_connected_1/weights",
            f"{branch}.attention.bias": f"{scope}/fully_connected_1/biases",
            f"{branch}.assign.weight": f"{scope}/cluster_weights",
            f"{branch}.centers": f"{scope}/cluster_weights2",
            **_batch_norm_names(f"{branch}.assign_norm", f"{scope}/cluster_bn"),
            **_batch_norm_names(f"{branch}.norm", f"{scope}/vlad_bn"),
        }
    return {key: _SCOPE + name for key, name in names.items()}


def _batch_norm_names(module: str, scope: str) -> dict[str, str]:
    return {
        f"{module}.weight": f"{scope}/gamma",
        f"{module}.bias": f"{scope}/beta",
        f"{module}.running_mean": f"{scope}/moving_mean",
        f"{module}.running_var": f"{scope}/moving_variance",
    }


def _geometry(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Reads the arguments of `NeXtVLADClassifier` from the shapes of the variables."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        found = arrays[_SCOPE + name].shape
        if len(found) != ndim or 0 in found:
            raise ValueError(
                f"variables: {_SCOPE + name}: expected {ndim} dimensions, none of them 0; "
                f"found shape {found}"
            )
        return found

    video, _ = _BRANCHES
    feature_sizes = tuple(shape(f"{scope}/fully_connected/weights", 2)[0] for scope in _BRANCHES)
    expanded = shape(f"{video}/fully_connected/weights", 2)[1]
    hidden_size, inner = shape("gating_weights_1", 2)
    # Rounded: where a size does not divide, the comparison of all shapes that follows says so.
    return {
        "feature_sizes": feature_sizes,
        "clusters": shape(f"{video}/cluster_weights2", 3)[2],
        "groups": shape(f"{video}/fully_connected_1/weights", 2)[1],
        "hidden_size": hidden_size,
        "reduction": max(1, hidden_size // inner),
        "expansion": max(1, expanded // feature_sizes[0]),
    }
