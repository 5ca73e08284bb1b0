"""Backbones that `torch.export.save` wrote: ``--backbone network.pt2``.

`torch.export.load` unpickles parts of such a file and evaluates expressions in it, so that it may
run any code. Here the file is read as data: the weights are raw numbers, and the graph, which is
JSON, may only call torch's own operators (``torch.ops.aten``).
"""

from __future__ import annotations

import operator
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyseg._containers import parse_json, text_error
from pyseg.backbones.base import Backbone
from pyseg.backbones.files import check_file, read_beside
from pyseg.backbones.module import ModuleBackbone, file_digest
from pyseg.backbones.preprocessing import Size
from pyseg.backbones.registry import Request, register_backbone
from pyseg.errors import DataError, PysegError

# The numbers that stand for types and formats (torch/_export/serde/schema.py, version 8).
_DTYPES = {
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64},
    **{6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16},
}
_FORMATS = {
    **{1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d},
    4: torch.preserve_format,
}
_ON_NUMBERS = {
    **{"add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg},
    **{"floordiv": operator.floordiv, "truediv": operator.truediv, "mod": operator.mod},
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le},
    **{"gt": operator.gt, "ge": operator.ge},
}
_MAJOR = 8
_MOST_BYTES = 1 << 34  # of all members together, unpacked


@register_backbone(".pt2")
def make(request: Request) -> Backbone:
    """Reads a network that `torch.export.save` wrote."""
    path = check_file(request)
    try:
        network = ExportedNetwork(path, request.device)
        preprocessing = read_beside(path, network.size)
        return ModuleBackbone(network, preprocessing, request.device, sha256=file_digest(path))
    except PysegError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a network that torch.export.save wrote, found: {text_error(error)}"
        ) from error


class ExportedNetwork(nn.Module):
    """An exported network, whose graph is interpreted.

    Args:
        path: The file.
        device: The device of its tensors.

    Attributes:
        size: (H, W) of its input (B, 3, H, W), None where it is not fixed.

    Raises:
        pyseg.errors.DataError: The file is of another kind, or does more than call torch's
            operators.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__()
        self._name, self._device = str(path), device
        members = _Members(path)
        program = members.json("models/model.json")
        if (version := program["schema_version"]["major"]) != _MAJOR:
            raise DataError(f"{path}: expected version {_MAJOR} of the format, found {version}")
        graph = program["graph_module"]["graph"]
        self._values: dict[str, Any] = {}
        images = []
        stored = {
            **members.tensors("data/weights", "weight_"),
            **members.tensors("data/constants", "tensor_"),
        }
        for spec in program["graph_module"]["signature"]["input_specs"]:
            [(kind, content)] = spec.items()
            if kind == "user_input":
                images.append(content["arg"]["as_tensor"]["name"])
            else:
                names = ("parameter_name", "buffer_name", "tensor_constant_name")
                key = next((content[name] for name in names if name in content), None)
                if key not in stored:
                    raise DataError(f"{path}: expected tensors as inputs, found {kind} {key}")
                self._values[content["arg"]["name"]] = stored[key].to(device)
        [self._images] = images
        shape = [size.get("as_int") for size in graph["tensor_values"][self._images]["sizes"]]
        self.size: Size | None = None
        if len(shape) == 4 and None not in shape[2:]:
            self.size = (shape[2], shape[3])
        [output] = graph["outputs"]
        self._output = output["as_tensor"]["name"]
        self._steps = [self._step(node) for node in graph["nodes"]]
        self._last_uses = self._find_last_uses(graph["nodes"])

    def _step(self, node: Mapping[str, Any]) -> tuple[Callable[..., Any], Any, Any, Any]:
        """Returns the operator of a node, its positional and named arguments, and its outputs."""
        target = node["target"]
        function: Any = None
        if found := re.fullmatch(r"torch\.ops\.aten\.(_?[a-z]\w*)\.([a-zA-Z]\w*)", target):
            overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
            function = overload if isinstance(overload, torch._ops.OpOverload) else None
        elif target.startswith("_operator."):
            function = _ON_NUMBERS.get(target.removeprefix("_operator."))
        if function is None:
            raise DataError(f"{self._name}: expected calls of torch.ops.aten, found {target!r}")
        named = {given["name"]: given["arg"] for given in node["inputs"] if given["kind"] == 2}
        plain = [given["arg"] for given in node["inputs"] if given["kind"] != 2]
        return function, plain, named, node["outputs"]

    def _find_last_uses(self, nodes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Returns for each node the values that are not used after it."""
        kept, seen, uses = {*self._values, self._output}, set[str](), []
        for node in reversed(nodes):
            names = {
                name
                for argument in [given["arg"] for given in node["inputs"]] + node["outputs"]
                for name in _names(argument)
            }
            uses.append(sorted(names - seen - kept))
            seen |= names
        return uses[::-1]

    def forward(self, images: Tensor) -> Any:
        """Returns the network's output."""
        values = {**self._values, self._images: images}
        for (function, plain, named, outputs), done in zip(
            self._steps, self._last_uses, strict=True
        ):
            arguments = [self._value(argument, values) for argument in plain]
            options = {name: self._value(argument, values) for name, argument in named.items()}
            result = function(*arguments, **options)
            results = result if len(outputs) > 1 else [result]
            for output, found in zip(outputs, results, strict=False):  # none of an assertion
                several = found if "as_tensors" in output else [found]
                values.update(zip(_names(output), several, strict=False))
            for name in done:
                del values[name]
        return values[self._output]

    def _value(self, argument: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """Returns the value of an argument of an operator."""
        [(kind, content)] = argument.items()
        if kind in _PLAIN:
            return content
        if kind == "as_none":
            return None
        if kind == "as_device":
            return self._device
        if kind in _CODES:
            return _CODES[kind][content]
        if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats"):
            return [self._one(entry, values) for entry in content]
        return self._one(content, values)

    def _one(self, entry: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """Returns a named value, or a number or None in its place."""
        if "as_tensor" in entry:
            entry = entry["as_tensor"]
        for key in ("name", "as_name"):
            if key in entry:
                return values[entry[key]]
        [(kind, content)] = entry.items()
        if kind not in ("as_none", "as_int", "as_float", "as_bool"):
            raise DataError(f"{self._name}: expected tensors and numbers, found {kind}")
        return None if kind == "as_none" else content


_PLAIN = (
    *("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools"),
    *("as_string", "as_strings"),
)
_CODES: dict[str, Mapping[int, Any]] = {
    "as_scalar_type": _DTYPES,
    "as_memory_format": _FORMATS,
    "as_layout": {7: torch.strided},
}


def _names(argument: Mapping[str, Any]) -> list[str]:
    """Returns the names of the values in an argument."""
    [(kind, content)] = argument.items()
    if kind in _PLAIN or kind in _CODES or kind in ("as_none", "as_device"):
        return []
    names = []
    for entry in content if isinstance(content, list) else [content]:
        entry = entry.get("as_tensor", entry)
        names += [entry[key] for key in ("name", "as_name") if key in entry]
    return names


class _Members:
    """The members of an archive, whose names begin with the same folder."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path}: expected a network that torch.export.save wrote, found no zip archive"
            ) from error
        sizes = [member.file_size for member in self._zip.infolist()]
        if sum(sizes) > _MOST_BYTES:
            raise DataError(f"{path}: expected at most 16 GB, found {sum(sizes):,} bytes")
        self._members = {name.partition("/")[2]: name for name in self._zip.namelist()}

    def read(self, name: str) -> bytes:
        if name not in self._members:
            raise DataError(
                f"{self._name}: expected {name} in the archive, as torch.export.save writes since "
                "torch 2.9, found none"
            )
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise DataError(f"{self._name}: {name}: damaged: {error}") from error

    def json(self, name: str) -> Any:
        return parse_json(self.read(name), f"{self._name}: {name}", finite=False)

    def tensors(self, folder: str, prefix: str) -> dict[str, Tensor]:
        """Returns the stored tensors by name.

        Raises:
            pyseg.errors.DataError: Some are stored as Python objects.
        """
        kind = folder.rpartition("/")[2]
        config = self.json(f"{folder}/model_{kind}_config.json")["config"]
        result, blocks = {}, dict[str, bytearray]()
        for key, entry in config.items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or not file.startswith(prefix):
                raise DataError(
                    f"{self._name}: {key}: expected a tensor stored as numbers, found a pickled one"
                )
            if file not in blocks:
                blocks[file] = bytearray(self.read(f"{folder}/{file}"))
            result[key] = _tensor(blocks[file], meta, f"{self._name}: {key}")
        return result


def _tensor(block: bytearray, meta: Mapping[str, Any], name: str) -> Tensor:
    """Returns a tensor in a block of bytes, which several ones may share."""
    dtype = _DTYPES[meta["dtype"]]
    sizes, strides = ([n["as_int"] for n in meta[key]] for key in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    reach = offset + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True)) + 1
    if min(offset, *sizes, *strides, 0) < 0 or reach * dtype.itemsize > len(block):
        raise DataError(f"{name}: expected {reach * dtype.itemsize:,} bytes, found {len(block):,}")
    return torch.frombuffer(block, dtype=dtype).as_strided(sizes, strides, offset)
