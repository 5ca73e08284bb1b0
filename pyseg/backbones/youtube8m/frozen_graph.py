"""The weights in ``classify_image_graph_def.pb``, the published graph, without TensorFlow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyseg.backbones.youtube8m.inception import graph_names
from pyseg.data.records.wire import (
    ContentError,
    Span,
    read_length,
    read_tag,
    read_varint,
    skip_field,
)
from pyseg.errors import DataError

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
_FLOAT = 1  # DT_FLOAT

# Numbers of fields.
_GRAPH_NODE = 1
_NODE_NAME, _NODE_ATTRIBUTE = 1, 5
_KEY, _VALUE = 1, 2
_ATTRIBUTE_TENSOR = 8
_TENSOR_TYPE, _TENSOR_SHAPE, _TENSOR_CONTENT, _TENSOR_FLOATS = 1, 2, 4, 5
_DIMENSION, _DIMENSION_SIZE = 2, 1

_SCALING = {"Sub/y": 128.0, "Mul/y": 1 / 128}
"""The constants of the graph that scale an image; see `prepare`."""
_MOST_VALUES = 1 << 24  # of a tensor: the largest has 2 million

_NORM = {
    "weight": "batchnorm/gamma",
    "bias": "batchnorm/beta",
    "running_mean": "batchnorm/moving_mean",
    "running_var": "batchnorm/moving_variance",
}


def read_frozen_graph(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the weights by the names that `Inception` gives them.

    Raises:
        pyseg.errors.DataError: The file is no graph, or another one; the message names it.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    data = Path(path).read_bytes()
    try:
        constants = dict(_constants(data))
    except (ContentError, ValueError) as error:
        raise DataError(f"{name}: expected a TensorFlow graph, found: {error}") from error
    tensors = {}
    try:
        for module, scope in graph_names():
            kernel = constants[f"{scope}/conv2d_params"]  # (height, width, in, out)
            tensors[f"{module}.conv.weight"] = _reordered(kernel, 3, 2, 0, 1)
            for key, of_graph in _NORM.items():
                tensors[f"{module}.bn.{key}"] = constants[f"{scope}/{of_graph}"]
        tensors["fc.weight"] = _reordered(constants["softmax/weights"], 1, 0)
        scaling = [constants[key].tolist() for key in _SCALING]
    except KeyError as error:
        raise DataError(
            f"{name}: expected the graph classify_image_graph_def.pb of 2015-12-05, found one "
            f"without its constant {error}"
        ) from None
    if scaling != list(_SCALING.values()):
        raise DataError(f"{name}: expected images scaled by {_SCALING}, found {scaling}")
    return tensors


def _reordered(tensor: Tensor, *axes: int) -> Tensor:
    """Returns a tensor with its axes reordered; one of another rank stays as it is."""
    return tensor.permute(axes) if tensor.ndim == len(axes) else tensor


def _constants(data: bytes) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and values of a graph's constants of type float."""
    for field, node in _messages(data, Span(0, len(data))):
        if field != _GRAPH_NODE:
            continue
        name, tensor = "", None
        for part, content in _messages(data, node):
            if part == _NODE_NAME:
                name = data[content.start : content.end].decode()
            elif part == _NODE_ATTRIBUTE:
                tensor = _value_attribute(data, content) or tensor
        if tensor is not None and (value := _tensor(data, tensor)) is not None:
            yield name, value


def _value_attribute(data: bytes, entry: Span) -> Span | None:
    """Returns the tensor of an attribute that is called "value"."""
    parts = dict(_messages(data, entry))
    key, value = parts.get(_KEY), parts.get(_VALUE)
    if key is None or value is None or data[key.start : key.end] != b"value":
        return None
    return dict(_messages(data, value)).get(_ATTRIBUTE_TENSOR)


def _tensor(data: bytes, message: Span) -> Tensor | None:
    """Returns a tensor's value; None if it is not of type float."""
    kind, shape, content = 0, Span(0, 0), b""
    at, end = message
    while at < end:
        start = at
        field, wire, at = read_tag(data, at, end)
        if field == _TENSOR_TYPE and wire == _VARINT:
            kind, at = read_varint(data, at, end)
        elif field in (_TENSOR_SHAPE, _TENSOR_CONTENT, _TENSOR_FLOATS) and wire == _LENGTH:
            part = read_length(data, at, end)
            if field == _TENSOR_SHAPE:
                shape = part
            else:
                content += data[part.start : part.end]
            at = part.end
        elif field == _TENSOR_FLOATS and wire == _FIXED32:
            at = skip_field(data, field, wire, start, at, end)
            content += data[at - 4 : at]
        else:
            at = skip_field(data, field, wire, start, at, end)
    if kind != _FLOAT:
        return None
    values = np.frombuffer(content, "<f4").astype(np.float32)
    sizes = [_size(data, part) for field, part in _messages(data, shape) if field == _DIMENSION]
    if math.prod(sizes) > _MOST_VALUES:
        raise ValueError(f"a tensor of shape {sizes}")
    if len(values) == 1:  # one value stands for all
        values = np.full(sizes, values[0])
    if math.prod(sizes) != values.size:
        raise ValueError(f"{values.size} values of a tensor of shape {sizes}")
    return torch.from_numpy(values.reshape(sizes))


def _size(data: bytes, dimension: Span) -> int:
    at, end = dimension
    size = 0
    while at < end:
        start = at
        field, wire, at = read_tag(data, at, end)
        if field == _DIMENSION_SIZE and wire == _VARINT:
            size, at = read_varint(data, at, end)
        else:
            at = skip_field(data, field, wire, start, at, end)
    return size


def _messages(data: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """Yields number and content of a message's fields that have a length."""
    at, end = span
    while at < end:
        start = at
        field, wire, at = read_tag(data, at, end)
        if wire == _LENGTH:
            content = read_length(data, at, end)
            yield field, content
            at = content.end
        else:
            at = skip_field(data, field, wire, start, at, end)
