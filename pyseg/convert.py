"""Conversion of weights from other frameworks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyseg import models
from pyseg.errors import ArgumentError
from pyseg.nn import FrameClassifier

# Variables of a training checkpoint that are not the model's.
_TRAINING_STATE = re.compile(r"(^|/)(global_step|beta[12]_power|Adam|Adam_1)$")

_SCOPE = "tower/"
_FEATURES = ("video_VLAD", "audio_VLAD")
_FEATURES_OF_MIX = ("video_vlad", "audio_vlad")
_BRANCH = re.compile(_SCOPE + r"branch_(\d+)/")


def load_nextvlad_tf(
    variables: Mapping[str, np.ndarray], num_classes: int, **overrides: Any
) -> FrameClassifier:
    """Makes a `NeXtVLADClassifier` with the weights of the reference TensorFlow 1 code.

    The geometry (feature sizes, expansion, groups, clusters, hidden size, reduction) is read from
    the shapes. The model has the logistic head and the features video and audio.

    The reference normalises frames before the model ("reverse whitening" by default, in its
    train.py); the returned model only dequantises, unless `normalization` says otherwise.

    Args:
        variables: array of each variable, under its name in the reference code, for example
            ``tower/video_VLAD/cluster_weights`` (a ``:0`` at the end is ignored, and so are the
            optimiser's variables in a checkpoint).
        num_classes: number of classes C.
        **overrides: options that shapes do not determine: `dropout`, `normalization`,
            `eigenvalues`, `batch_norm_momentum` or `padded_statistics` of `NeXtVLADClassifier`.

    Returns:
        The model, in float32 and training mode; `pyseg.models.save` can save it.

    Raises:
        ValueError: a variable is missing, unexpected, or of a shape that does not fit; the message
            names it, what was expected and what was found.

    Example:
        >>> variables = dict(np.load("variables.npz", allow_pickle=False))  # doctest: +SKIP
        >>> model = load_nextvlad_tf(variables, num_classes=3862)  # doctest: +SKIP
    """
    arrays = _arrays(variables)
    names = _variable_names(_SCOPE, _FEATURES)
    _check_names(arrays, names, "NeXtVLAD model")
    geometry = _geometry(arrays, _SCOPE, _FEATURES)
    _check_overrides(overrides, geometry)
    model = models.create("nextvlad1", num_classes=num_classes, **geometry, **overrides)
    _copy(model, arrays, names)
    return model


def load_mix_nextvlad_tf(
    variables: Mapping[str, np.ndarray], num_classes: int, **overrides: Any
) -> FrameClassifier:
    """Makes a `Mixture` of `NeXtVLADClassifier` with the weights of the reference's mixture.

    As `load_nextvlad_tf`, for the variables of ``MixNeXtVladModel``: those of any number of
    branches (``tower/branch_0/video_vlad/cluster_weights``) and of the mixture's weights
    (``tower/mix_weights/weights``). As in the reference, the mean over the frames that determines
    these weights includes padding: pad to the number of frames that the model was trained with.

    Args:
        variables: see `load_nextvlad_tf`.
        num_classes: number of classes C.
        **overrides: options that shapes do not determine: those of `load_nextvlad_tf`,
            `temperature`, `distillation`, and `padded_mean`.

    Returns:
        The model, in float32 and training mode; `pyseg.models.save` can save it.

    Raises:
        ValueError: a variable is missing, unexpected, or of a shape that does not fit; the message
            names it, what was expected and what was found.

    Example:
        >>> variables = dict(np.load("variables.npz", allow_pickle=False))  # doctest: +SKIP
        >>> model = load_mix_nextvlad_tf(variables, num_classes=3862)  # doctest: +SKIP
    """
    arrays = _arrays(variables)
    found = {match[1] for name in arrays if (match := _BRANCH.match(name))}
    count = max(1, len(found))
    names = _mixture_names(count)
    _check_names(arrays, names, "mixture of NeXtVLAD models")
    geometry = _geometry(arrays, f"{_SCOPE}branch_0/", _FEATURES_OF_MIX)
    geometry |= {"branches": ["nextvlad1"] * count, "weights": "input"}
    _check_overrides(overrides, geometry)
    model = models.create(
        "3nextvlad-same",
        num_classes=num_classes,
        **{**geometry, "padded_mean": True, **overrides},
    )
    _copy(model, arrays, names)
    return model


def _arrays(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the model's variables, without ``:0`` in their names."""
    return {
        name.removesuffix(":0"): np.asarray(value)
        for name, value in variables.items()
        if not _TRAINING_STATE.search(name.removesuffix(":0"))
    }


def _check_names(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], model: str) -> None:
    missing = sorted(set(names.values()) - arrays.keys())
    unexpected = sorted(arrays.keys() - set(names.values()))
    if missing or unexpected:
        raise ArgumentError(
            f"variables: expected those of the reference {model}; "
            f"missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(unexpected) or 'none'}"
        )


def _check_overrides(overrides: Mapping[str, Any], geometry: Mapping[str, Any]) -> None:
    fixed = sorted(geometry.keys() & overrides.keys())
    if fixed:
        raise ArgumentError(
            f"{fixed[0]}: expected no value, as the shapes of the variables give it"
        )
    if "head" in overrides:
        raise ArgumentError("head: expected no value, as the variables are those of a logistic one")


def _copy(model: FrameClassifier, arrays: Mapping[str, np.ndarray], names: dict[str, str]) -> None:
    """Copies the variables into the model; `names` maps names in its state to theirs."""
    state = model.state_dict()
    for key, name in names.items():
        target = state[key]
        # TensorFlow stores (in, out) where PyTorch stores (out, in), and the centres as (1, F, K).
        transposed = key.endswith(".weight") and target.ndim == 2
        expected = tuple(target.T.shape if transposed else target.shape)
        if name.endswith("cluster_weights2"):
            expected = (1, *expected)
        array = arrays[name]
        if array.shape != expected:
            raise ArgumentError(
                f"variables: {name}: expected shape {expected}, as num_classes={model.num_classes} "
                f"and the other variables say; found {array.shape}"
            )
        value = torch.from_numpy(np.array(array, dtype=np.float32))
        target.copy_(value.T if transposed else value.view_as(target))


def _variable_names(scope: str = _SCOPE, features: Sequence[str] = _FEATURES) -> dict[str, str]:
    """Maps names in `NeXtVLADClassifier.state_dict` to those of the reference's variables."""
    names = {
        "hidden.weight": "hidden1_weights",
        "gate.squeeze.weight": "gating_weights_1",
        "gate.excite.weight": "gating_weights_2",
        "head.linear.weight": "fully_connected/weights",
        "head.linear.bias": "fully_connected/biases",
        **_batch_norm_names("hidden_norm", "hidden1_bn"),
        **_batch_norm_names("gate.norm", "gating_bn"),
    }
    for index, feature in enumerate(features):
        branch = f"branches.{index}"
        names |= {
            f"{branch}.expand.weight": f"{feature}/fully_connected/weights",
            f"{branch}.expand.bias": f"{feature}/fully_connected/biases",
            f"{branch}.attention.weight": f"{feature}/fully_connected_1/weights",
            f"{branch}.attention.bias": f"{feature}/fully_connected_1/biases",
            f"{branch}.assign.weight": f"{feature}/cluster_weights",
            f"{branch}.centers": f"{feature}/cluster_weights2",
            **_batch_norm_names(f"{branch}.assign_norm", f"{feature}/cluster_bn"),
            **_batch_norm_names(f"{branch}.norm", f"{feature}/vlad_bn"),
        }
    return {key: scope + name for key, name in names.items()}


def _mixture_names(count: int) -> dict[str, str]:
    """Maps names in `Mixture.state_dict` to those of the reference's variables."""
    names = {
        "gate.weight": f"{_SCOPE}mix_weights/weights",
        "gate.bias": f"{_SCOPE}mix_weights/biases",
        **_batch_norm_names("gate_norm", f"{_SCOPE}mix_weights_bn"),
    }
    for index in range(count):
        of_branch = _variable_names(f"{_SCOPE}branch_{index}/", _FEATURES_OF_MIX)
        names |= {f"branches.{index}.{key}": name for key, name in of_branch.items()}
    return names


def _batch_norm_names(module: str, scope: str) -> dict[str, str]:
    return {
        f"{module}.weight": f"{scope}/gamma",
        f"{module}.bias": f"{scope}/beta",
        f"{module}.running_mean": f"{scope}/moving_mean",
        f"{module}.running_var": f"{scope}/moving_variance",
    }


def _geometry(
    arrays: Mapping[str, np.ndarray], scope: str, features: Sequence[str]
) -> dict[str, Any]:
    """Reads the arguments of `NeXtVLADClassifier` from the shapes of the variables."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        found = arrays[scope + name].shape
        if len(found) != ndim or 0 in found:
            raise ArgumentError(
                f"variables: {scope + name}: expected {ndim} dimensions, none of them 0; "
                f"found shape {found}"
            )
        return found

    feature_sizes = tuple(shape(f"{name}/fully_connected/weights", 2)[0] for name in features)
    video = features[0]
    expanded = shape(f"{video}/fully_connected/weights", 2)[1]
    hidden_size, inner = shape("gating_weights_1", 2)
    # Rounded down: if a size does not divide, `_copy` finds the shape that does not fit.
    return {
        "feature_sizes": feature_sizes,
        "clusters": shape(f"{video}/cluster_weights2", 3)[2],
        "groups": shape(f"{video}/fully_connected_1/weights", 2)[1],
        "hidden_size": hidden_size,
        "reduction": max(1, hidden_size // inner),
        "expansion": max(1, expanded // feature_sizes[0]),
    }
