"""The files that an exported program is written to, and how they are run."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyseg._containers import text_error
from pyseg._extras import requires
from pyseg.errors import UserError
from pyseg.export.config import FormatName
from pyseg.export.program import INPUTS, OUTPUT

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

Runner = Callable[[Tensor, Tensor], Tensor]
"""Returns the probabilities of frames and their numbers."""

_OPSET = 20  # of 2023: what runtimes and servers of the last years read
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: the limit of protobuf, and room for the graph

# How warnings of some loggers begin that a user can do nothing about: no model has operators of
# torchvision, and the file is checked however it gets its version.
_IDLE_WARNINGS = {
    "torch.onnx._internal.exporter._registration": "torchvision is not installed",
    "onnxscript.version_converter": "The model version conversion is not supported by",
}


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        check: Raises before any work if the file cannot be written here.
        write: Writes a program and what the file says about itself.
        open: Returns what runs a file.
    """

    check: Callable[[], None]
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None]
    open: Callable[[Path], Runner]


def _write_pt2(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    torch.export.save(program, path, extra_files=dict(metadata))


def _open_pt2(path: Path) -> Runner:
    module: Runner = torch.export.load(path).module()
    return module


def _check_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise UserError(
            "--format aoti: expected a C++ compiler, which compiles the model, found none that "
            f"runs ({text_error(error)}): install g++, or name another with the variable CXX"
        ) from error


def _write_aoti(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    print("compiling the model, which may take minutes", flush=True)
    configs = {"aot_inductor.metadata": dict(metadata)}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs=configs
    )


def _open_aoti(path: Path) -> Runner:
    loaded: Runner = torch._inductor.aoti_load_package(str(path))
    return loaded


def _check_onnx() -> None:
    with requires("export", "--format onnx"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def _write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > _LARGEST_ONNX:
        raise UserError(
            f"--format onnx: expected at most {_LARGEST_ONNX:,} bytes of weights, which one file "
            f"can hold, found {weights:,}: take --format pt2 or aoti"
        )
    with _without_idle_warnings():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            input_names=INPUTS,
            output_names=[OUTPUT],
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    _name_dimensions(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _without_idle_warnings() -> Iterator[None]:
    def is_shown(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_IDLE_WARNINGS[record.name])

    loggers = [logging.getLogger(name) for name in _IDLE_WARNINGS]
    for logger in loggers:
        logger.addFilter(is_shown)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_shown)


def _name_dimensions(model: ModelProto) -> None:
    """Names the free dimensions of a graph: torch calls them s77 and the like."""
    frames = model.graph.input[0].type.tensor_type.shape.dim
    names = {frames[0].dim_param: "batch", frames[1].dim_param: "frames"}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(
                    r"\w+", lambda found: names.get(found[0], found[0]), dimension.dim_param
                )


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(frames: Tensor, num_frames: Tensor) -> Tensor:
        arrays = frames.numpy(), num_frames.numpy()
        return torch.from_numpy(session.run(None, dict(zip(INPUTS, arrays, strict=True)))[0])

    return run


FORMATS: Mapping[FormatName, Format] = {
    "pt2": Format(lambda: None, _write_pt2, _open_pt2),
    "aoti": Format(_check_compiler, _write_aoti, _open_aoti),
    "onnx": Format(_check_onnx, _write_onnx, _open_onnx),
}
"""How each kind of file is written and run."""
